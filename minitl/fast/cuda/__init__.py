"""The GPU at full speed: CUDA versions of ops, and a training step captured as one graph.

``import minitl.cuda`` needs CuPy and registers the overrides; nothing in minitl imports it unless a GPU is used.
"""

import cupy

from . import overrides
from .adamw import update, zero_grad
from .gemm import PRECISIONS, precision, use
from .graph import capture, changing

__all__ = ["PRECISIONS", "capture", "changing", "memory", "precision", "update", "use", "zero_grad"]


def memory():
    """In words, how full the GPU's memory is."""
    free, total = cupy.cuda.runtime.memGetInfo()
    return f"{(total - free) / 2**30:.1f} of the GPU's {total / 2**30:.1f} GB are in use"
