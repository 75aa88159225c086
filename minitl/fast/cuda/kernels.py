"""Compilation of the .cu files for the current GPU, at the first launch of each, and the launch of their kernels.

NVRTC, NVIDIA's run-time compiler, generates the machine code, and CuPy caches it on disk, so only the first run on a
machine waits for it. Only ``launch`` knows how arguments are passed. A single GPU is used.
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
BF16 = np.dtype("uint16")  # stands for bfloat16, which NumPy does not have
THREADS_PER_BLOCK = 256  # 8 warps
MAX_GROUPED = 256  # blocks of a layer norm's backward, which counts all of them and each group of 16
MAX_STRIPS = 4096  # strips of 32 columns that have a counter; more keep a GPU busy without splitting the rows


@functools.cache
def _kernel(name, types, constants):
    """Return the kernel ``name``, compiled for the types (real, stored) and the sizes ``constants``, (name, value)."""
    return _module(SOURCE_OF[name], types, constants).get_function(name)


@functools.cache
def _module(source, types, constants):
    macros = (("real", types[0]), ("stored", types[1]), *constants)
    return cupy.RawModule(code=source, options=("-std=c++17", *(f"-D{name}={value}" for name, value in macros)))


def launch(name, blocks, *args, **constants):
    """Launch a kernel with ``blocks`` (a number or a pair) of 256 threads on the current stream.

    Contiguous arrays (else ValueError) are passed as pointers, None as the null pointer, integers as ``int``, floats as
    ``real``, NumPy numbers and structures unchanged. ``real`` is double if an array is float64, else float; activations
    are ``stored`` as bf16 if an array is BF16, else as ``real``. ``constants`` are sizes to compile the kernel for.
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
    """Number of blocks for ``n`` threads."""
    return -(-n // THREADS_PER_BLOCK)


def blocks_for_rows(n):
    """Number of blocks for ``n`` warps, one per row."""
    return blocks_for(32 * n)


def contiguous(x):
    """Return ``x`` itself, or a contiguous copy."""
    return cupy.ascontiguousarray(x)


@per_stream
def _counts():
    """Return memory with a counter for each strip of columns; every kernel of the stream leaves them at 0."""
    memory = cupy.cuda.Memory(4 * MAX_STRIPS)
    cupy.cuda.runtime.memset(memory.ptr, 0, 4 * MAX_STRIPS)
    cupy.cuda.runtime.streamSynchronize(0)
    return memory


def tickets():
    """Address of the current stream's counters, for kernels whose last block adds up the results of all blocks."""
    return np.uint64(_counts().ptr)


def column_sums(x, mean=None):
    """(rows, C) -> (C): sums of x, or of (x - mean)² for a ``mean`` (C)."""
    dtype = np.float32 if x.dtype == BF16 else x.dtype
    return _reduce_columns("column_sums", cupy.empty(x.shape[1], dtype), (x, mean), x.shape)


def residual_dx(dy, dz, m):
    """Write dy = m dz (rows, C), with m (B) repeated for each sample's rows. Returns its sums down the columns (C)."""
    rows, C = dz.shape
    return _reduce_columns("residual_dx", cupy.empty(C, dz.dtype), (dy, dz, m, rows // len(m)), dz.shape)


class NormGradient:
    """The last ``gradient`` computed by a layer norm, with by-products of its kernel: column sums and a bfloat16 copy.

    At the end of a residual branch this gradient is also that of the branch's last layer: then ``sums`` is the gradient
    of its bias, and the copy ``bf16`` (None in other precisions) enters its products.
    """

    gradient = sums = bf16 = None

    def sums_of(self, dy, C):
        """(..., C) -> (C): sums over all axes but the last."""
        return self.sums if dy is self.gradient else column_sums(contiguous(dy).reshape(-1, C))

    def bf16_of(self, dy):
        """Return the bfloat16 copy of ``dy`` if there is one, else ``dy``."""
        return self.bf16 if dy is self.gradient and self.bf16 is not None else dy


last_norm = NormGradient()


def layer_norm_dx(dy, x, accumulated, weight, mean, inv_std):
    """Compute dx, plus ``accumulated`` (like x, or None), as ``last_norm.gradient``.

    Returns the gradients of weight and bias and the column sums of dx, side by side: (3C).
    """
    C = weight.size
    rows, dx, sums = x.size // C, cupy.empty_like(x), cupy.empty(3 * C, x.dtype)
    blocks = min(MAX_GROUPED, -(-rows // 8))
    parts = cupy.empty((blocks, 3 * C), x.dtype)
    dx_bf16 = cupy.empty(x.shape, BF16) if dy.dtype == BF16 else None
    accumulated = accumulated if accumulated is None else contiguous(accumulated)
    arrays = dx, dx_bf16, sums, parts, tickets(), dy, x, accumulated, weight, mean, inv_std
    launch("layer_norm_dx", blocks, *arrays, rows, COLUMNS=C)
    last_norm.gradient, last_norm.sums, last_norm.bf16 = dx, sums[2 * C :], dx_bf16
    return sums


def norm_columns(dy, x, mean, inv_std):
    """(rows, C) -> (2C): sums of dy n and of dy down the columns, n = (x - mean) inv_std."""
    return _reduce_columns("norm_columns", cupy.empty(2 * x.shape[1], x.dtype), (dy, x, mean, inv_std), x.shape)


def bias_gelu_dx(dx, dy, x, b):
    """Write dx (rows, C). Returns db (C), its sums down the columns."""
    return _reduce_columns("bias_gelu_dx", cupy.empty_like(b), (dx, dy, x, b), x.shape)


def _reduce_columns(name, sums, arrays, shape):
    """Launch a kernel that sums chunks of rows in parallel, so that the whole GPU is busy."""
    count, C = shape
    strips = -(-C // 32)
    chunk = count if count <= 256 or strips > MAX_STRIPS else max(64, -(-count // 128))
    chunks = -(-count // chunk)
    parts = cupy.empty((chunks, sums.size), sums.dtype) if chunks > 1 else None
    launch(name, (strips, chunks), sums, parts, tickets(), *arrays, count, C, chunk)
    return sums
