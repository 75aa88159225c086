"""All matrix products: one function, ``product``, on a cuBLAS handle of its own.

CuPy's ``matmul`` copies the transposed factors of a batch, does not use tensor cores for it, and cannot be captured
into a CUDA graph. cuBLAS can do all three: it takes a transpose as a flag, any distance between rows (the leading
dimension) and between matrices, and can be captured once it has a workspace. So libcublas is called through ctypes.

cuBLAS stores matrices by columns, arrays here are stored by rows. A row-major matrix read by columns is its transpose,
so instead of C = A B we ask for Cᵀ = Bᵀ Aᵀ and no transpose is ever written.

``use("tf32")`` rounds the factors to 10 bits of mantissa inside the product; sums and results are float32. With
``use("bf16")`` activations between layers, and their gradients, are stored in bfloat16, which has 7 bits, and weights
are rounded for each product. Weights and their gradients, residual sums, statistics and losses remain float32, and all
sums are accumulated in it. float64 arrays are always multiplied in full precision.
"""

import ctypes
import functools
import itertools
import math
import weakref

import cupy
import numpy as np

from ...errors import InputError
from .graph import per_stream
from .kernels import BF16, blocks_for, contiguous, launch

PRECISIONS = ("fp32", "tf32", "bf16")
KINDS = {np.dtype("float32"): 0, np.dtype("float64"): 1, np.dtype("uint16"): 14}  # cudaDataType; uint16 holds bfloat16
COMPUTE_32F, COMPUTE_64F, COMPUTE_TF32 = 68, 70, 77  # cublasComputeType_t
PLAIN, TRANSPOSED, ANY_ALGORITHM = 0, 1, -1
MATRICES = np.dtype([(name, np.uint64, 5) for name in ("start", "outer", "inner")])  # as in kernels.cu
WORKSPACE_BYTES = 32 << 20  # NVIDIA's recommendation for Hopper

_precision = "fp32"


def use(precision):
    """Set the precision of float32 products to "fp32", "tf32" or "bf16". Raises InputError for another name."""
    global _precision
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    _precision = precision


@functools.cache
def library():
    """Return libcublas, or None if it is not found; CuPy then multiplies, more slowly and without graphs."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        return ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    except (ImportError, OSError, RuntimeError):  # pathfinder's own error is a RuntimeError
        return None


@per_stream
def _handle():
    """Return a Handle, or None without cuBLAS."""
    return Handle() if library() else None


class Handle:
    """A cuBLAS handle for the current stream: with another, it would lose its workspace and could not be captured."""

    def __init__(self):
        self.pointer, self.workspace = ctypes.c_void_p(), cupy.cuda.Memory(WORKSPACE_BYTES)
        _check("cublasCreate_v2", ctypes.byref(self.pointer))
        weakref.finalize(self, library().cublasDestroy_v2, self.pointer).atexit = False  # CUDA may be gone by then
        _check("cublasSetStream_v2", self.pointer, ctypes.c_void_p(cupy.cuda.get_current_stream().ptr))
        space = ctypes.c_void_p(self.workspace.ptr), ctypes.c_size_t(WORKSPACE_BYTES)
        _check("cublasSetWorkspace_v2", self.pointer, *space)


def _check(name, *args):
    if status := getattr(library(), name)(*args):
        raise RuntimeError(f"{name} failed with status {status}")


def to_precision(x):
    """Return ``x`` as ``product`` takes it: itself, or with "bf16" rounded to bfloat16 (as uint16).

    An array that enters several products is rounded only once, and only the rounded copy has to be kept.
    """
    if activation_dtype(x.dtype) == x.dtype:
        return x
    x = contiguous(x)
    y = cupy.empty(x.shape, BF16)
    launch("to_bf16", blocks_for(x.size), y, x, x.size)
    return y


def is_bf16(x):
    """Return True for an array in bfloat16."""
    return isinstance(x, cupy.ndarray) and x.dtype == BF16


def to_fp32(x):
    """Return ``x``, converted to float32 if it is an array in bfloat16."""
    if not is_bf16(x):
        return x
    x = contiguous(x)
    y = cupy.empty(x.shape, np.float32)
    launch("to_fp32", blocks_for(x.size), y, x, x.size)
    return y


def allows_tf32(dtype):
    """Return True if products of ``dtype`` may round their factors to TF32."""
    return _precision != "fp32" and dtype != np.float64


def activation_dtype(dtype):
    """Return the dtype in which ops store activations of ``dtype``: BF16 for float32 with the precision "bf16"."""
    return BF16 if _precision == "bf16" and dtype == np.float32 and library() is not None else dtype


def product(a, b, out=None, alpha=1.0, tables=None):
    """alpha a b over the last two axes, (..., M, K) (..., K, N) -> (..., M, N), with the axes before broadcast.

    ``a`` and ``b`` come from ``to_precision``. They and ``out``, if given, may be transposed or parts of larger arrays;
    nothing is copied as long as one of the two axes is contiguous. ``tables`` is the dict that ``matrix_addresses``
    filled; it saves launches for matrices at uneven distances.
    """
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    (M, K), N = a.shape[-2:], b.shape[-1]
    if out is None:
        out = cupy.empty((*batch, M, N), np.float32 if a.dtype == BF16 else a.dtype)
    if library() is None:
        out[...] = cupy.matmul(a, b) * alpha
        return out

    (a, a_flag, a_step), (b, b_flag, b_step) = _matrix(a), _matrix(b)
    place, out_flag, out_step = _matrix(out)
    if place is not out or out_flag == TRANSPOSED:
        raise ValueError(f"the rows of out are not contiguous: shape {out.shape}, strides {out.strides}")
    number = ctypes.c_double if out.dtype == np.float64 else ctypes.c_float
    one, zero = number(alpha), number(0)
    compute = COMPUTE_TF32 if _precision == "tf32" else COMPUTE_32F
    compute = COMPUTE_64F if out.dtype == np.float64 else compute

    # Cᵀ = Bᵀ Aᵀ: b comes first
    operands = [(b, b_step), (a, a_step), (out, out_step)]
    count, offsets = int(np.prod(batch)), [_offsets(x, batch) for x, _ in operands]
    if count == 1:
        name, places, last = "cublasGemmEx", [[ctypes.c_void_p(x.data.ptr)] for x, _ in operands], []
    elif None not in offsets:
        name, last = "cublasGemmStridedBatchedEx", [count]
        places = [[ctypes.c_void_p(x.data.ptr)] for x, _ in operands]
    else:
        name, last = "cublasGemmBatchedEx", [count]
        if not all(_aligned(x, step, batch) for x, step in operands):
            # Tensor cores are fed 16 bytes at a time. Given one address, cuBLAS sees where that is impossible, but not
            # given a table of them. So these are products in float32, which holds all digits of bfloat16.
            if a.dtype == BF16:
                y = product(to_fp32(a), to_fp32(b), alpha=alpha)
                out[...] = to_precision(y) if out.dtype == BF16 else y
                return out
            compute = COMPUTE_64F if out.dtype == np.float64 else COMPUTE_32F
        found = matrix_addresses({} if tables is None else tables, batch, *(x for x, _ in operands))
        places = [[ctypes.c_void_p(table.data.ptr)] for table in found]
    for place, (x, step), offset in zip(places, operands, offsets, strict=True):
        place += [KINDS[x.dtype], step]
        if name == "cublasGemmStridedBatchedEx":
            place.append(ctypes.c_longlong(offset))
    first, second, third = places
    sizes = [b_flag, a_flag, N, M, K]
    factors = [ctypes.byref(one), *first, *second, ctypes.byref(zero), *third]
    _check(name, _handle().pointer, *sizes, *factors, *last, compute, ANY_ALGORITHM)
    return out


def _matrix(x):
    """Return ``(x, flag, step)``, the transpose flag and the leading dimension in numbers; copies ``x`` if need be."""
    (rows, columns), (down, along) = x.shape[-2:], (s // x.itemsize for s in x.strides[-2:])
    if (along == 1 or columns == 1) and (down >= columns or rows == 1):
        return x, PLAIN, down if rows > 1 else columns
    if (down == 1 or rows == 1) and (along >= rows or columns == 1):
        return x, TRANSPOSED, along if columns > 1 else rows
    return contiguous(x), PLAIN, columns


def _aligned(x, step, batch):
    """Return True if all matrices, and all their rows, start at multiples of 16 bytes."""
    return not any(n % 16 for n in (x.data.ptr, step * x.itemsize, *(stride for _, stride in _axes(x, batch))))


def _axes(x, batch):
    """(length, stride in bytes) of each axis of the batch that is longer than 1."""
    own = [s if n > 1 else 0 for n, s in zip(x.shape[:-2], x.strides, strict=False)]  # 0: the same matrix for all
    strides = [0] * (len(batch) - len(own)) + own
    return [(n, s) for n, s in zip(batch, strides, strict=True) if n > 1]


def _offsets(x, batch):
    """Return the distance in numbers from each matrix of the batch to the next, or None if it varies."""
    axes = _axes(x, batch)
    if any(outer != n * inner for (_, outer), (n, inner) in itertools.pairwise(axes)):
        return None
    return axes[-1][1] // x.itemsize if axes else 0


def matrix_addresses(tables, batch, *arrays):
    """Return a table of the addresses of all matrices for each of up to five arrays, made on the GPU by one launch.

    cuBLAS needs it for the heads of an attention, which lie at two distances: to the next head and to the next sample.
    The dict ``tables`` keeps those made before by address and strides; with a single distance none is made.
    """
    keys = [(x.data.ptr, *_axes(x, batch)) for x in arrays]
    new = [key for key in dict.fromkeys(keys) if key not in tables]
    if not new or library() is None or all(_offsets(x, batch) is not None for x in arrays):
        return [tables.get(key) for key in keys]
    axes = [n for n in batch if n > 1]
    if len(axes) != 2:
        raise ValueError(f"a batch of matrices at uneven distances has two axes, got {batch}")
    count = math.prod(axes)
    count += count % 2  # each row of the table starts at a multiple of 16 bytes
    matrices, table = np.zeros((), MATRICES), cupy.empty((5, count), np.uint64)
    for i, (start, (_, outer), (_, inner)) in enumerate(new):
        matrices["start"][i], matrices["outer"][i], matrices["inner"][i] = start, outer, inner
    launch("addresses", blocks_for(count), table, matrices, axes[1], count)
    tables.update(zip(new, table, strict=False))
    return [tables[key] for key in keys]
