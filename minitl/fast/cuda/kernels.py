"""Compilation of the .cu files for the present GPU, each at its first launch, and the launch of their kernels.

NVRTC, NVIDIA's run-time compiler, makes the machine code, and CuPy caches it on disk, so only the first run on a
machine waits for it. ``launch`` alone knows how arguments are passed. One GPU is used.
"""

import functools
import re
from pathlib import Path

import cupy
import numpy as np

FOLDER = Path(__file__).parent
SOURCES = [(FOLDER / "common.cuh").read_text() + path.read_text() for path in sorted(FOLDER.glob("*.cu"))]
SOURCE_OF = {name: source for source in SOURCES for name in re.findall(r"KERNEL (\w+)\(", source)}  # of each kernel
BF16 = np.dtype("uint16")  # holds activations in bfloat16, for which NumPy has no type
THREADS_PER_BLOCK = 256  # 8 warps
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


@functools.cache
def _counts(stream):
    """A counter for each strip of columns, for kernels on the stream at this address, which find and leave it at 0.

    Each stream has its own, since kernels of two streams may run at the same time. The memory comes from no pool, as
    the pool of a graph is freed with the graph, and is set to 0 at once, as a stream being captured only records.
    """
    memory = cupy.cuda.Memory(4 * MAX_STRIPS)
    cupy.cuda.runtime.memset(memory.ptr, 0, 4 * MAX_STRIPS)
    cupy.cuda.runtime.streamSynchronize(0)
    return memory


def tickets():
    """Address of the current stream's counters, for a kernel whose last block adds up the results of all blocks."""
    return np.uint64(_counts(cupy.cuda.get_current_stream().ptr).ptr)


def column_sums(x, mean=None):
    """(rows, C) -> (C): sums of x, or of (x - mean)² for a ``mean`` (C)."""
    return _reduce_columns("column_sums", cupy.empty(x.shape[1], x.dtype), (x, mean), x.shape)


def norm_columns(dy, x, mean, inv_std, by_column=False):
    """(2C): the sums of dy n and of dy down the columns of (rows, C), where n = (x - mean) inv_std."""
    return _reduce_columns(
        "norm_columns", cupy.empty(2 * x.shape[1], x.dtype), (dy, x, mean, inv_std), x.shape, by_column
    )


def _reduce_columns(name, sums, arrays, shape, *options):
    """Launch one kernel that adds up chunks of rows at the same time, so that the whole GPU has work."""
    count, C = shape
    strips = -(-C // 32)
    chunk = count if count <= 256 or strips > MAX_STRIPS else max(64, -(-count // 128))
    chunks = -(-count // chunk)
    parts = cupy.empty((chunks, sums.size), sums.dtype) if chunks > 1 else None
    launch(name, (strips, chunks), sums, parts, tickets(), *arrays, count, C, chunk, *options)
    return sums
