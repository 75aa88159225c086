"""Compiles ``kernels.cu`` for the GPU at hand, at the first launch, and launches its kernels.

NVRTC, NVIDIA's run-time compiler, makes the machine code, and CuPy keeps it on disk: the first run of a machine waits
for it, later ones do not. ``launch`` is the only place that knows how arguments are passed. One GPU is used.
"""

import functools
from pathlib import Path

import cupy
import numpy as np

SOURCE = Path(__file__).with_name("kernels.cu").read_text()
THREADS = 256  # of a block: 8 warps
STRIPS = 4096  # strips of 32 columns that can be counted; more than that keep a GPU busy without chunks of rows


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
    ``real``, which is ``double`` if one of the arrays is float64. NumPy numbers, and structures in arrays of one, are
    passed as they are.
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


@functools.cache
def _counts(stream):
    """A count for each strip of columns, for kernels on the stream at this address: they find 0 and leave 0.

    Kernels of two streams may run at the same time. The memory is of no pool, for the pool of a graph goes with the
    graph; and it is 0 at once, not when the stream comes to it, for a stream that is being captured only takes notes.
    """
    memory = cupy.cuda.Memory(4 * STRIPS)
    cupy.cuda.runtime.memset(memory.ptr, 0, 4 * STRIPS)
    cupy.cuda.runtime.streamSynchronize(0)
    return memory


def tickets():
    """Where the counts of the stream in use lie, for a kernel whose last block adds up what all have left."""
    return np.uint64(_counts(cupy.cuda.get_current_stream().ptr).ptr)


def column_sums(x, mean=None):
    """(rows, C) -> (C): sums of x, or of (x - mean)² for a ``mean`` (C)."""
    return _down("column_sums", cupy.empty(x.shape[1], x.dtype), (x, mean), x.shape)


def norm_columns(dy, x, mean, inv_std, by_column=False):
    """(2C): the sums of dy n and of dy down the columns of (rows, C), where n = (x - mean) inv_std."""
    return _down("norm_columns", cupy.empty(2 * x.shape[1], x.dtype), (dy, x, mean, inv_std), x.shape, by_column)


def _down(name, sums, arrays, shape, *options):
    """One launch: chunks of many rows are added up at the same time, so that all of the GPU has work."""
    count, C = shape
    strips = -(-C // 32)
    chunk = count if count <= 256 or strips > STRIPS else max(64, -(-count // 128))
    chunks = -(-count // chunk)
    parts = cupy.empty((chunks, sums.size), sums.dtype) if chunks > 1 else None
    launch(name, (strips, chunks), sums, parts, tickets(), *arrays, count, C, chunk, *options)
    return sums
