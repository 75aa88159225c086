"""Faster forms of ops, threads that share a batch, and CUDA: not needed to understand minitl."""
