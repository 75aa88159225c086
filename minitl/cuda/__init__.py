"""The GPU at full speed: CUDA versions of ops, and a training step captured as one graph.

``import minitl.cuda`` needs CuPy and registers the overrides; nothing in minitl imports it unless a GPU is used.
"""

from . import overrides
from .adamw import update
from .gemm import PRECISIONS, precision, use
from .graph import capture, changing

__all__ = ["PRECISIONS", "capture", "changing", "precision", "update", "use"]
