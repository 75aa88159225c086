"""Grading of ops and modules that students write: ``pytest --student hw.py``.

The file runs in a process of its own (``worker.py``); the grader sends it arrays and judges the arrays that come back.
"""
