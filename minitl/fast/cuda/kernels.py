"""Compilation of the .cu files for the present GPU, each at its first launch, and the launch of their kernels.

NVRTC, NVIDIA's run-time compiler, makes the machine code, and CuPy caches it on disk, so only the first run on a
machine waits for it. ``launch`` alone knows how arguments are passed. One GPU is used.
"""

import functools
import re
from pathlib import Path

import cupy
import numpy as np

from .graph import per_stream

FOLDER = Path(__file__).parent
SOURCES = [(FOLDER / "common.cuh").read_text() + path.read_text() for path in sorted(FOLDER.glob("*.cu"))]
SOURCE_OF = {name: source for source in SOURCES for name in re.findall(r"KERNEL (\w+)\(", source)}  # of each kernel
BF16 = np.dtype("uint16")  # holds activations in bfloat16, for which NumPy has no type
THREADS_PER_BLOCK = 256  # 8 warps
MAX_GROUPED = 256  # blocks of a layer norm's backward: a counter for all, and one for each group of 16
MAX_STRIPS = 4096  # strips of 32 columns that have a counter; with more, a GPU is busy without chunks of rows


@functools.cache
def _kernel(name, types, constants):
    """Return the compiled kernel ``name`` for the types (real, stored) and the sizes ``constants``, pairs."""
    return _module(SOURCE_OF[name], types, constants).get_function(name)


@functools.cache
def _module(source, types, constants):
    macros = (("real", types[0]), ("stored", types[1]), *constants)
    return cupy.RawModule(code=source, options=("-std=c++17", *(f"-D{name}={value}" for name, value in macros)))


def launch(name, blocks, *args, **constants):
    """Launch a kernel on ``blocks`` (a number or a pair) of 256 threads, after all earlier launches.

    Arrays are passed as pointers and must be contiguous, None as the null pointer, integers as ``int`` and floats as
    ``real``, which is ``double`` if an array is float64. Activations are ``stored`` as bf16 if an array is BF16. NumPy
    numbers and structures are passed as they are. ``constants`` are the sizes that the kernel is compiled for.
    """
    arrays = [a for a in args if isinstance(a, cupy.ndarray)]
    for a in arrays:
        if not a.flags.c_contiguous or a.size >= 2**31:
            raise ValueError(f"{name} needs contiguous arrays of fewer than 2³¹ numbers, got {a.shape} {a.strides}")
    dtypes = {a.dtype for a in arrays}
    real = "double" if np.dtype("float64") in dtypes else "float"
    kinds = {type(None): lambda _: np.uint64(0), int: np.int32, bool: np.int32}
    kinds[float] = np.float64 if real == "double" else np.float32
    grid = blocks if isinstance(blocks, tuple) else (blocks,)
    kernel = _kernel(name, (real, "bf16" if BF16 in dtypes else real), tuple(constants.items()))
    kernel(grid, (THREADS_PER_BLOCK,), tuple(kinds[type(a)](a) if type(a) in kinds else a for a in args))


def blocks_for(n):
    """Number of blocks with ``n`` threads in all."""
    return -(-n // THREADS_PER_BLOCK)


def blocks_for_rows(n):
    """Number of blocks with a warp for each of ``n`` rows."""
    return blocks_for(32 * n)


def contiguous(x):
    """Return ``x`` itself, or a contiguous copy."""
    return cupy.ascontiguousarray(x)


@per_stream
def _counts():
    """A counter for each strip of columns, for the kernels of one stream, which find and leave it at 0."""
    memory = cupy.cuda.Memory(4 * MAX_STRIPS)
    cupy.cuda.runtime.memset(memory.ptr, 0, 4 * MAX_STRIPS)
    cupy.cuda.runtime.streamSynchronize(0)
    return memory


def tickets():
    """Address of the current stream's counters, for a kernel whose last block adds up the results of all blocks."""
    return np.uint64(_counts().ptr)


def column_sums(x, mean=None):
    """(rows, C) -> (C): sums of x, or of (x - mean)² for a ``mean`` (C)."""
    dtype = np.float32 if x.dtype == BF16 else x.dtype
    return _reduce_columns("column_sums", cupy.empty(x.shape[1], dtype), (x, mean), x.shape)


def residual_dx(dy, dz, m):
    """(C): the sums down the columns of dy = m dz (rows, C), which is written; m has one number for equal parts."""
    rows, C = dz.shape
    return _reduce_columns("residual_dx", cupy.empty(C, dz.dtype), (dy, dz, m, rows // len(m)), dz.shape)


class NormGradient:
    """The ``gradient`` that a layer norm computed last, and what its kernel found out on the way.

    Its sums down the columns are the gradient of a bias, and its copy in bfloat16 (or None) enters products, if the
    layer whose output the norm's input was gets it unchanged, as at the end of a residual branch.
    """

    gradient = sums = bf16 = None

    def sums_of(self, dy, C):
        """(..., C) -> (C): sums over all axes but the last."""
        return self.sums if dy is self.gradient else column_sums(contiguous(dy).reshape(-1, C))

    def bf16_of(self, dy):
        """Return ``dy`` in bfloat16 if it exists so, or else itself."""
        return self.bf16 if dy is self.gradient and self.bf16 is not None else dy


last_norm = NormGradient()


def layer_norm_dx(dy, x, accumulated, weight, mean, inv_std):
    """Return (3C): the gradients of weight and bias, and the sums of that of x, which is then ``last_norm.gradient``.

    ``accumulated``, like x or None, is added to it.
    """
    C = weight.size
    rows, dx, sums = x.size // C, cupy.empty_like(x), cupy.empty(3 * C, x.dtype)
    blocks = min(MAX_GROUPED, -(-rows // 8))
    parts = cupy.empty((blocks, 3 * C), x.dtype)
    dx_bf16 = cupy.empty(x.shape, BF16) if dy.dtype == BF16 else None
    accumulated = accumulated if accumulated is None else contiguous(accumulated)
    arrays = dx, dx_bf16, sums, parts, tickets(), dy, x, accumulated, weight, mean, inv_std
    launch("layer_norm_dx", blocks, *arrays, rows, C=C)
    last_norm.gradient, last_norm.sums, last_norm.bf16 = dx, sums[2 * C :], dx_bf16
    return sums


def norm_columns(dy, x, mean, inv_std):
    """(2C): the sums of dy n and of dy down the columns of (rows, C), where n = (x - mean) inv_std."""
    return _reduce_columns("norm_columns", cupy.empty(2 * x.shape[1], x.dtype), (dy, x, mean, inv_std), x.shape)


def bias_gelu_dx(dx, dy, x, b):
    """(C): the gradient of b, the sums down the columns of dx (rows, C), which is written."""
    return _reduce_columns("bias_gelu_dx", cupy.empty_like(b), (dx, dy, x, b), x.shape)


def _reduce_columns(name, sums, arrays, shape):
    """Launch one kernel that adds up chunks of rows at the same time, so that the whole GPU has work."""
    count, C = shape
    strips = -(-C // 32)
    chunk = count if count <= 256 or strips > MAX_STRIPS else max(64, -(-count // 128))
    chunks = -(-count // chunk)
    parts = cupy.empty((chunks, sums.size), sums.dtype) if chunks > 1 else None
    launch(name, (strips, chunks), sums, parts, tickets(), *arrays, count, C, chunk)
    return sums
