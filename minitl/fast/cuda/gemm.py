"""Matrix products: all of them go through ``product``, which calls cuBLAS directly.

For batches, CuPy's ``matmul`` copies transposed factors and does not use tensor cores, and no product of CuPy can be
captured in a CUDA graph. cuBLAS has none of these limits: a transpose is a flag, distances between rows (the leading
dimension) and matrices are arbitrary, and with a workspace it can be captured. So libcublas is called through ctypes.

cuBLAS expects column-major matrices, and arrays here are row-major. A row-major matrix read as column-major is its
transpose, so instead of C = A B we compute Cᵀ = Bᵀ Aᵀ, and no transpose is ever written.

``use("tf32")`` rounds factors to 10 bits of mantissa inside the product. ``use("bf16")`` rounds them to bfloat16, which
has 7: activations inside residual branches and convolutional stems, and their gradients, are also stored in it, and
weights are rounded for each product. Weights, their gradients, residual sums and losses stay in float32, and in every
precision sums are accumulated in float32. float64 arrays are always multiplied in full precision.
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
PLAIN, TRANSPOSED, ANY_ALGORITHM, ALLOC_FAILED = 0, 1, -1, 3
MATRICES = np.dtype(
    [(name, np.uint64, 5) for name in ("start", "outer", "inner")]
)  # the structure of the same name in kernels.cu
WORKSPACE_BYTES = 32 << 20  # NVIDIA's recommendation for Hopper

_precision = "fp32"


def use(precision):
    """Set the precision of float32 arrays to "fp32", "tf32" or "bf16". Raises InputError for another name."""
    global _precision
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    _precision = precision


@functools.cache
def library():
    """Return libcublas, or None if it is not found; then CuPy multiplies, slower and without graphs."""
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
    """A cuBLAS handle for the current stream; changing its stream would drop the workspace that capturing needs."""

    def __init__(self):
        self.pointer, self.workspace = ctypes.c_void_p(), cupy.cuda.Memory(WORKSPACE_BYTES)
        _check("cublasCreate_v2", ctypes.byref(self.pointer))
        weakref.finalize(self, library().cublasDestroy_v2, self.pointer).atexit = False  # CUDA may be gone by then
        _check("cublasSetStream_v2", self.pointer, ctypes.c_void_p(cupy.cuda.get_current_stream().ptr))
        space = ctypes.c_void_p(self.workspace.ptr), ctypes.c_size_t(WORKSPACE_BYTES)
        _check("cublasSetWorkspace_v2", self.pointer, *space)


def _check(name, *args):
    if status := getattr(library(), name)(*args):
        raise (MemoryError if status == ALLOC_FAILED else RuntimeError)(f"{name} failed with status {status}")


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
    """Return alpha a b, (..., M, K) (..., K, N) -> (..., M, N); leading axes are broadcast.

    ``a`` and ``b`` come from ``to_precision``. They may be transposed or parts of larger arrays, and are not copied if
    one of their last two axes is contiguous; the rows of ``out`` must be contiguous (else ValueError).
    ``tables`` is a dict filled by ``matrix_addresses``, which saves launches for matrices at uneven distances.
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
            # Tensor cores need rows aligned to 16 bytes. cuBLAS checks a single address for that, but not a table of
            # them. So these products are computed in float32, in which bfloat16 numbers are exact.
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
    """Return ``(x, flag, step)`` with the transpose flag and the leading dimension; ``x`` is copied if necessary."""
    (rows, columns), (down, along) = x.shape[-2:], (s // x.itemsize for s in x.strides[-2:])
    if (along == 1 or columns == 1) and (down >= columns or rows == 1):
        return x, PLAIN, down if rows > 1 else columns
    if (down == 1 or rows == 1) and (along >= rows or columns == 1):
        return x, TRANSPOSED, along if columns > 1 else rows
    return contiguous(x), PLAIN, columns


def _aligned(x, step, batch):
    """Return True if all matrices and all their rows are aligned to 16 bytes."""
    return not any(n % 16 for n in (x.data.ptr, step * x.itemsize, *(stride for _, stride in _axes(x, batch))))


def _axes(x, batch):
    """Return (length, stride in bytes) of each axis of the batch longer than 1."""
    own = [s if n > 1 else 0 for n, s in zip(x.shape[:-2], x.strides, strict=False)]  # 0: the same matrix for all
    strides = [0] * (len(batch) - len(own)) + own
    return [(n, s) for n, s in zip(batch, strides, strict=True) if n > 1]


def _offsets(x, batch):
    """Return the distance in elements from each matrix of the batch to the next, or None if it varies."""
    axes = _axes(x, batch)
    if any(outer != n * inner for (_, outer), (n, inner) in itertools.pairwise(axes)):
        return None
    return axes[-1][1] // x.itemsize if axes else 0


def matrix_addresses(tables, batch, *arrays):
    """Return a table of the addresses of all matrices for each of up to five arrays, written on the GPU by one launch.

    cuBLAS needs them for the heads of attention, which have two distances: to the next head and to the next sample.
    The dict ``tables`` caches tables by address and strides; arrays with a single distance need none.
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
