"""The GPU at full speed: CUDA forms of ops, and a training step captured as one graph.

``import minitl.fast.cuda`` needs CuPy and registers the forms; nothing in minitl imports it unless a GPU is used.
"""

import cupy

from . import overrides
from .adamw import concatenate, update, zero_grad
from .gemm import PRECISIONS, use
from .graph import capture

__all__ = ["PRECISIONS", "capture", "concatenate", "memory", "update", "use", "zero_grad"]


def memory():
    """Return a phrase that says how much of the GPU's memory is in use."""
    free, total = cupy.cuda.runtime.memGetInfo()
    return f"{(total - free) / 2**30:.1f} of the GPU's {total / 2**30:.1f} GB are in use"
