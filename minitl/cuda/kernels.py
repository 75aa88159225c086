"""Compiles ``kernels.cu`` for the GPU at hand, at the first launch, and launches its kernels.

NVRTC, NVIDIA's run-time compiler, makes the machine code, and CuPy keeps it on disk: the first run of a machine waits
a second or two, later ones do not. ``launch`` is the only place that knows how arguments are passed. One GPU is used.
"""

import functools
from pathlib import Path

import cupy
import numpy as np

SOURCE = Path(__file__).with_name("kernels.cu").read_text()
THREADS = 256  # of a block: 8 warps


@functools.cache
def function(name, real):
    """The kernel ``name`` for ``real`` numbers, "float" or "double", ready to be launched."""
    return _module(real).get_function(name)


@functools.cache
def _module(real):
    return cupy.RawModule(code=SOURCE, options=("-std=c++17", f"-Dreal={real}"))


def launch(name, blocks, *args):
    """Start a kernel on ``blocks`` (a number or a pair) of 256 threads; it runs after what was started before.

    Arrays are passed as pointers and must be without gaps, None as the null pointer, integers as ``int`` and floats as
    ``real``, which is ``double`` if one of the arrays is float64. NumPy numbers are passed as they are.
    """
    arrays = [a for a in args if isinstance(a, cupy.ndarray)]
    for a in arrays:
        if not a.flags.c_contiguous or a.size >= 2**31:
            raise ValueError(f"{name} needs arrays without gaps of less than 2³¹ numbers, got {a.shape} {a.strides}")
    double = any(a.dtype == np.float64 for a in arrays)
    kinds = {type(None): lambda _: np.uint64(0), int: np.int32, bool: np.int32}
    kinds[float] = np.float64 if double else np.float32
    grid = blocks if isinstance(blocks, tuple) else (blocks,)
    kernel = function(name, "double" if double else "float")
    kernel(grid, (THREADS,), tuple(kinds[type(a)](a) if type(a) in kinds else a for a in args))


def each(n):
    """Blocks for ``n`` threads."""
    return -(-n // THREADS)


def rows(n):
    """Blocks for ``n`` rows of a warp each."""
    return each(32 * n)


def dense(x):
    """``x`` itself, or a copy without gaps."""
    return cupy.ascontiguousarray(x)


def chunk_of(count):
    """How many of ``count`` rows a block adds up: all where they are few, so that one launch is enough."""
    return count if count <= 256 else max(64, -(-count // 128))


def column_sums(x, mean=None):
    """(rows, C) -> (C): sums of x, or of (x - mean)² for a ``mean`` (C).

    Partial sums of chunks of rows come first, so that all of the GPU has work, then their sum.
    """
    count, C = x.shape
    chunk = chunk_of(count)
    sums = cupy.empty((-(-count // chunk), C), x.dtype)
    launch("column_sums", (-(-C // 32), len(sums)), sums, x, mean, count, C, chunk)
    return sums[0] if len(sums) == 1 else column_sums(sums)


def norm_columns(dy, x, mean, inv_std, by_column=False):
    """(2C): the sums of dy n and of dy down the columns of (rows, C), where n = (x - mean) inv_std."""
    count, C = x.shape
    chunk = chunk_of(count)
    sums = cupy.empty((-(-count // chunk), 2 * C), x.dtype)
    launch("norm_columns", (-(-C // 32), len(sums)), sums, dy, x, mean, inv_std, count, C, chunk, by_column)
    return sums[0] if len(sums) == 1 else column_sums(sums)
