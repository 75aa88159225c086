"""The paper's published numbers, its ablations at toy size, and few-shot evaluation."""
