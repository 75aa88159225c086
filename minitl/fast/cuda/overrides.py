"""CUDA forms of the ops: the functions of ``minitl.ops``, which remain the specification, in fewer launches.

A form runs if its arguments suit the kernels. Otherwise, and for invalid input, the plain form runs.
"""

import functools
import itertools
import logging
import math

import cupy
import numpy as np

from ...autograd import OPS, OVERRIDES, PLAIN, WRAPPERS, Accumulator, Tensor, no_grad, unbroadcast
from ...backend import FLOATS, default_rng, describe
from ...ops.conv import pair
from .gemm import activation_dtype, allows_tf32, is_bf16, matrix_addresses, product, to_fp32, to_precision
from .graph import host_values, remember_host_values
from .kernels import (
    BF16,
    bias_gelu_dx,
    blocks_for,
    blocks_for_rows,
    column_sums,
    contiguous,
    last_norm,
    launch,
    layer_norm_dx,
    norm_columns,
    residual_dx,
    tickets,
)

MAX_NORM_COLUMNS = 1024  # of a layer norm, which keeps a row in the registers of a warp


def override(fits, bf16=()):
    """Decorate the CUDA form of the op of the same name; it is used if ``fits(*arrays, **options)``.

    ``bf16`` are the positions of arguments that it takes in bfloat16; others are converted to float32 first.
    """

    def register(fn):
        OVERRIDES["cuda"][fn.__name__] = functools.partial(_run, fn.__name__, fn, fits, bf16)
        return fn

    return register


def _run(name, fn, fits, bf16, /, *arrays, **options):
    """Run ``fn``, or the plain form if ``fits`` says no, on arrays that may be in bfloat16."""
    inputs = [a if i in bf16 else to_fp32(a) for i, a in enumerate(arrays)]
    given = [a for a in inputs if a is not None]
    usable = all(isinstance(a, cupy.ndarray) and a.size for a in given)
    dtypes = {np.dtype("float32") if is_bf16(a) else a.dtype for a in given if a.dtype.kind in "fu"} if usable else ()
    if len(dtypes) == 1 and dtypes <= {*FLOATS} and fits(*inputs, **options):
        value, backward = fn(*inputs, **options)
        return value, _pullback(backward, arrays)
    call = f"{name}({', '.join(map(describe, arrays))})"
    _log_once(f"{call} does not fit its CUDA form and runs in the plain one")
    return in_fp32(PLAIN[name])(*arrays, **options)


def in_fp32(fn):
    """Return ``fn``, a function of arrays like those in ``ops/``, for arrays that may be in bfloat16 as well."""

    def run(*arrays, **options):
        value, backward = fn(*map(to_fp32, arrays), **options)
        return value, _pullback(backward, arrays)

    return run


def _pullback(backward, arrays):
    """Return ``backward`` with gradients that can be added to others, for arrays of which some may be in bfloat16."""
    if not any(map(is_bf16, arrays)):
        return backward

    def pull(dy):
        grads = backward(dy)
        grads = grads if isinstance(grads, tuple) else (grads,)
        return tuple(_accumulator(g, a.shape) if is_bf16(a) else g for g, a in zip(grads, arrays, strict=False))

    return pull


@functools.cache  # each message once
def _log_once(text):
    logging.getLogger("minitl").info(text)


def to_dtype(dy, dtype):
    """Return ``dy``, the gradient of an array of ``dtype``: contiguous, and in bfloat16 if ``dtype`` is."""
    return contiguous(to_precision(dy) if dtype == BF16 else dy)


def _accumulator(grad, shape):
    """Return ``grad``, of an array in bfloat16, as an Accumulator: the engine cannot add bfloat16 gradients itself."""

    def add(accumulated=None):
        g = unbroadcast(grad() if callable(grad) else grad, shape)
        return g if accumulated is None else to_fp32(accumulated) + to_fp32(g)

    return None if grad is None else Accumulator(add)


# --- element by element ---


def _one_row(x, y):
    """Return True if y is added to each row of x: its shape, without leading ones, is the end of the shape of x."""
    tail = tuple(itertools.dropwhile(lambda n: n == 1, y.shape))
    return tail and y.size < x.size and y.ndim <= x.ndim and tail == x.shape[-len(tail) :]


@override(_one_row)
def add(x, y):
    """x + y, where y is added to each row: dy is a sum down the columns."""
    size, shape = y.size, y.shape
    return x + y, lambda dz: (dz, column_sums(contiguous(dz).reshape(-1, size)).reshape(shape))


@override(lambda x: True, bf16=(0,))
def relu(x):
    """y = max(x, 0): one launch in each direction."""
    y = cupy.empty(x.shape, x.dtype)
    launch("relu", blocks_for(y.size), y, contiguous(x), y.size)

    def backward(dy):
        dx = cupy.empty_like(y)
        launch("relu_dx", blocks_for(y.size), dx, to_dtype(dy, y.dtype), y, y.size)
        return dx

    return y, backward


@override(lambda x, approximate="tanh": approximate in ("tanh", "none"), bf16=(0,))
def gelu(x, *, approximate="tanh"):
    """y = x Φ(x); backward computes Φ again, so only x is kept."""
    x, exact = contiguous(x), approximate == "none"
    y = cupy.empty_like(x)
    launch("gelu", blocks_for(x.size), y, x, x.size, exact)

    def backward(dy):
        dx = cupy.empty_like(x)
        launch("gelu_dx", blocks_for(x.size), dx, to_dtype(dy, x.dtype), x, x.size, exact)
        return dx

    return y, backward


@override(lambda x, axis=None, keepdims=False: True)
def mean(x, *, axis=None, keepdims=False):
    """y = Σ x / n; backward divides and copies in one launch."""
    shape, y = x.shape, x.mean(axis, keepdims=True)
    kept, n, dtype = y.shape, x.size // y.size, x.dtype

    def backward(dy):
        return cupy.divide(dy.reshape(kept), n, out=cupy.empty(shape, dtype))

    return y if keepdims else y.reshape(()) if axis is None else y.squeeze(axis), backward


# --- matrix products ---


def _linear_fits(x, W, b=None):
    return W.ndim == 2 and x.shape[-1:] == W.shape[:1] and (b is None or b.shape == W.shape[1:])


@override(_linear_fits, bf16=(0,))
def linear(x, W, b=None):
    """y = x W + b: one product, and b added in place. y is stored as x is."""
    y, backward = _product(x, W)
    outputs = W.shape[1]
    if b is not None:
        launch("bias_drop_path", blocks_for(y.size), y, y, contiguous(b), None, y.size, outputs, 1)

    def pull(dy):
        db = None if b is None else last_norm.sums_of(dy, outputs)
        return *backward(last_norm.bf16_of(dy)), db

    return y.reshape(*x.shape[:-1], outputs), pull


def _linear_gelu_fits(x, W, b):
    return all(OPS[name] is PLAIN[name] for name in ("linear", "gelu")) and _linear_fits(x, W, b)


@override(_linear_gelu_fits, bf16=(0,))
def linear_gelu(x, W, b):
    """y = GELU(u + b), u = x W; backward computes du and its sums down the columns, db, in one launch."""
    u, backward = _product(x, W)
    y, b, sizes = cupy.empty_like(u), contiguous(b), u.shape
    launch("bias_gelu", blocks_for_rows(len(u)), y, u, b, *sizes)

    def pull(dy):
        dy = to_dtype(dy, u.dtype).reshape(sizes)
        du = cupy.empty_like(u)
        db = bias_gelu_dx(du, dy, u, b)
        return *backward(du), db

    return y.reshape(*x.shape[:-1], sizes[1]), pull


def _product(x, W):
    """Return x W in two dimensions, stored as x is, and a function from its gradient to those of x and W."""
    shape, dtype = x.shape, x.dtype
    x, W = to_precision(x.reshape(-1, shape[-1])), to_precision(W)

    def backward(dy):
        dy = to_precision(dy.reshape(-1, W.shape[1]))
        return lambda: product(dy, W.T, cupy.empty(x.shape, dtype)).reshape(shape), product(x.T, dy)

    return product(x, W, cupy.empty((len(x), W.shape[1]), dtype)), backward


@override(lambda x, y: x.ndim > 1 and y.ndim > 1 and x.shape[-1] == y.shape[-2], bf16=(0, 1))
def matmul(x, y):
    """z = x y"""
    x, y = to_precision(x), to_precision(y)

    def backward(dz):
        dz = to_precision(dz)
        return product(dz, y.swapaxes(-1, -2)), product(x.swapaxes(-1, -2), dz)

    return product(x, y), backward


@override(
    lambda A, x, mean=False: A.ndim == x.ndim == 3 and len(A) in (1, len(x)) and A.shape[2] == x.shape[1],
    bf16=(0, 1),
)
def token_pool(A, x, *, mean=False):
    """Z = κ A x: batches of products, in which κ and transposes cost nothing."""
    k = 1 / x.shape[1] if mean else 1.0
    A, x = to_precision(A), to_precision(x)

    def backward(dZ):
        dZ = to_precision(dZ)
        return product(dZ, x.swapaxes(1, 2), alpha=k), product(A.swapaxes(1, 2), dZ, alpha=k)

    return product(A, x, alpha=k), backward


# --- rows ---


@override(lambda x, axis=-1: axis in (-1, x.ndim - 1))
def softmax(x, *, axis=-1):
    """A warp for each row."""
    x = contiguous(x)
    y, sizes = cupy.empty_like(x), (x.size // x.shape[-1], x.shape[-1])
    launch("softmax", blocks_for_rows(sizes[0]), y, x, *sizes)

    def backward(dy):
        dx = cupy.empty_like(y)
        launch("softmax_dx", blocks_for_rows(sizes[0]), dx, contiguous(dy), y, *sizes)
        return dx

    return y, backward


def _norm_fits(x, weight, bias, eps=1e-6):
    return weight.shape == bias.shape == x.shape[-1:] and weight.size <= MAX_NORM_COLUMNS


@override(_norm_fits)
def layer_norm(x, weight, bias, *, eps=1e-6):
    """A warp for each row. Only x, which others hold anyway, and two numbers per row are kept.

    With the precision "bf16", y is stored in bfloat16 because it enters products; x, a residual sum, stays in float32.
    """
    x, weight = contiguous(x), contiguous(weight)
    C = x.shape[-1]
    count = x.size // C
    y, mean, inv_std = (
        cupy.empty(x.shape, activation_dtype(x.dtype)),
        cupy.empty(count, x.dtype),
        cupy.empty(count, x.dtype),
    )
    arrays = y, mean, inv_std, x, weight, contiguous(bias)
    launch("layer_norm", blocks_for_rows(count), *arrays, count, float(eps), COLUMNS=C)

    def backward(dy):
        found = []  # one launch computes all three gradients; the engine calls dx first, if x needs it

        def dx(accumulated=None):
            found.append(layer_norm_dx(contiguous(dy), x, accumulated, weight, mean, inv_std))
            return last_norm.gradient

        def sums(part):
            found or dx()
            return found[0][part * C : (part + 1) * C]

        return Accumulator(dx), functools.partial(sums, 0), functools.partial(sums, 1)

    return y, backward


def _batch_fits(x, weight, bias, running_mean, running_var, training=True, momentum=0.1, eps=1e-5):
    vectors = weight, bias, running_mean, running_var
    alike = all(v.shape == x.shape[-1:] and v.dtype == x.dtype for v in vectors)
    return alike and training and x.size > weight.size


@override(_batch_fits)
def batch_norm(x, weight, bias, *, running_mean, running_var, training=True, momentum=0.1, eps=1e-5):
    """Sums down the columns, then a thread for each number. Only x and two numbers per channel are kept."""
    x, weight, C = contiguous(x), contiguous(weight), x.shape[-1]
    table = x.reshape(-1, C)
    count, y, inv_std = len(table), cupy.empty_like(x), cupy.empty(C, x.dtype)
    mean = column_sums(table)
    mean /= count
    state, squares = (inv_std, running_mean, running_var), column_sums(table, mean)
    launch("batch_statistics", blocks_for(C), *state, mean, squares, count, C, float(momentum), float(eps))
    launch("batch_norm", blocks_for(x.size), y, x, mean, inv_std, weight, contiguous(bias), count, C)

    def backward(dy):
        dx, dy = cupy.empty_like(x), contiguous(dy)
        sums = norm_columns(dy.reshape(-1, C), table, mean, inv_std)
        launch("batch_norm_dx", blocks_for(x.size), dx, dy, x, mean, inv_std, weight, sums, count, C)
        return dx, sums[:C], sums[C:]

    return y, backward


def _attention_fits(qkv, b=None, *, num_heads, dropout=0.0, rng=None):
    fits = qkv.ndim == 3 and num_heads > 0 and qkv.shape[2] % (3 * num_heads) == 0 and 0 <= dropout < 1
    return fits and (b is None or b.shape == qkv.shape[2:])


@override(_attention_fits, bf16=(0,))
def attention(qkv, b=None, *, num_heads, dropout=0.0, rng=None):
    """y = A v per head. With few tokens, one launch in each direction, and the weights A are never stored."""
    mask = Mask(dropout, rng, qkv.dtype) if dropout else None
    qkv, d = contiguous(qkv), qkv.shape[2] // (3 * num_heads)
    b = b if b is None else contiguous(b)
    tokens, most = qkv.shape[1], 32 if qkv.dtype == np.float64 else 64  # that fit in the kernel's buffers
    if tokens <= most and d <= 64:
        return _fused_attention(qkv, b, num_heads, d, mask)
    limits = f"one kernel takes up to {most} tokens and heads of up to 64"
    _log_once(f"attention over {tokens} tokens, with heads of {d}, runs as matrix products; {limits}")
    return _attention_by_products(to_fp32(qkv), b, num_heads, d, mask)


def _fused_attention(qkv, b, num_heads, d, mask):
    B, N, _ = qkv.shape
    options = (mask.key, mask.p, mask.scale) if mask else (None, 0.0, 1.0)
    tensor_cores = int(allows_tf32(qkv.dtype) and N % 16 == 0 and d % 8 == 0)
    sizes = {"TOKENS": N, "HEAD": d, "HEADS": num_heads, "TF32": tensor_cores}
    y = cupy.empty((B, N, num_heads * d), qkv.dtype)
    launch("attention", B * num_heads, y, qkv, b, *options, **sizes)

    def backward(dy):
        dqkv, sums = cupy.empty_like(qkv), None if b is None else cupy.empty((B, qkv.shape[2]), b.dtype)
        launch("attention_dx", B * num_heads, dqkv, sums, to_dtype(dy, qkv.dtype), qkv, b, *options, **sizes)
        return dqkv, None if b is None else column_sums(sums)

    return y, backward


def _attention_by_products(qkv, b, num_heads, d, mask):
    """Products on the heads where they lie in qkv, y and dqkv, so nothing is rearranged.

    The scale 1/√d is the factor of a product, which costs nothing.
    """
    (B, N, width), dtype = qkv.shape, qkv.dtype
    if b is not None:
        biased = cupy.empty_like(qkv)
        launch("bias_drop_path", blocks_for(qkv.size), biased, qkv, b, None, qkv.size, width, 1)
        qkv = biased
    scale, batch, tables, rows_of_A = 1 / math.sqrt(d), (B, num_heads), {}, B * num_heads * N
    q, k, v = to_precision(qkv).reshape(B, N, 3, num_heads, d).transpose(2, 0, 3, 1, 4)  # each (B, heads, N, d)
    A, y = cupy.empty((*batch, N, N), dtype), cupy.empty((B, N, num_heads, d), dtype)
    heads = y.swapaxes(1, 2)
    matrix_addresses(tables, batch, q, k, v, A, heads)
    product(q, k.swapaxes(2, 3), A, scale, tables)
    launch("softmax", blocks_for_rows(rows_of_A), A, A, rows_of_A, N)
    kept = to_precision(mask(A) if mask else A)
    product(kept, v, heads, tables=tables)

    def backward(dy):
        dy = to_precision(contiguous(dy)).reshape(B, N, num_heads, d).swapaxes(1, 2)
        dqkv, dS = cupy.empty((B, N, 3, num_heads, d), dtype), cupy.empty(A.shape, dtype)
        dq, dk, dv = dqkv.transpose(2, 0, 3, 1, 4)
        matrix_addresses(tables, batch, dy, dq, dk, dv, dS)
        product(kept.swapaxes(2, 3), dy, dv, tables=tables)
        product(dy, v.swapaxes(2, 3), dS, tables=tables)  # dA
        if mask:
            mask(dS, out=dS)
        launch("softmax_dx", blocks_for_rows(rows_of_A), dS, dS, A, rows_of_A, N)
        dS = to_precision(dS)
        product(dS, k, dq, scale, tables)
        product(dS.swapaxes(2, 3), q, dk, scale, tables)
        return dqkv.reshape(B, N, width), None if b is None else column_sums(dqkv.reshape(B * N, width))

    return y.reshape(B, N, num_heads * d), backward


@override(lambda q, k, v: q.ndim == 3 and q.shape == k.shape == v.shape)
def vector_attention(q, k, v):
    """A thread for each number of y. No weight is stored; backward computes them again from lse, one per number."""
    q, k, v = contiguous(q), contiguous(k), contiguous(v)
    y, lse, sizes = cupy.empty_like(q), cupy.empty_like(q), (q.size, *q.shape[1:])
    launch("vector_attention", blocks_for(q.size), y, lse, q, k, v, *sizes)

    def backward(dy):
        grads = [cupy.empty_like(q) for _ in range(3)]
        launch("vector_attention_dx", blocks_for(q.size), *grads, contiguous(dy), q, k, v, y, lse, *sizes)
        return tuple(grads)

    return y, backward


# --- dropout ---


class Mask:
    """A mask that is never stored: 0 with probability p, else 1/(1-p), generated from a 64-bit key."""

    def __init__(self, p, rng, dtype):
        number = np.float32 if dtype == BF16 else dtype.type
        self.p, self.scale = float(p), float(number(1) / number(1 - p))
        self.key = host_values(lambda: default_rng(rng).integers(2**64, dtype=np.uint64), 1, np.uint64)

    def __call__(self, x, out=None):
        out = cupy.empty_like(x) if out is None else out
        launch("dropout", blocks_for(-(-x.size // 8)), out, x, self.key, self.p, self.scale, x.size)
        return out

    def numbers(self, n, dtype):
        """Return the first ``n`` numbers of the mask."""
        m = cupy.empty(n, dtype)
        launch("dropout", blocks_for(-(-n // 8)), m, None, self.key, self.p, self.scale, n)
        return m


@override(lambda x, p, rng=None: 0 < p < 1, bf16=(0,))
def dropout(x, *, p, rng=None):
    """y = m x, dx = m dy; backward generates the mask again."""
    mask = Mask(p, rng, x.dtype)
    return mask(contiguous(x)), lambda dy: mask(contiguous(dy))


@override(lambda x, p, rng=None: x.ndim > 0 and 0 < p < 1, bf16=(0,))
def drop_path(x, *, p, rng=None):
    """y = m x with one entry of m for each sample."""
    dtype = np.dtype("float32") if is_bf16(x) else x.dtype
    m, group = Mask(p, rng, dtype).numbers(len(x), dtype), x.size // len(x)

    def masked(x):
        y = cupy.empty(x.shape, x.dtype)
        launch("bias_drop_path", blocks_for(x.size), y, contiguous(x), None, m, x.size, 1, group)
        return y

    return masked(x), masked


def _residual_fits(x, y, b=None, p=0.0, rng=None):
    same = x.shape[1:] == y.shape[1:] and len(x) in (1, len(y))
    return y.ndim == x.ndim > 1 and same and (b is None or b.shape == y.shape[-1:]) and 0 <= p < 1


@override(_residual_fits, bf16=(1,))
def residual(x, y, b=None, *, p=0.0, rng=None):
    """z = x + m (y + b) in one launch; dy and db in another, or none without m if a layer norm has summed dz."""
    shape, C, y = x.shape, x.shape[-1], contiguous(y)
    rows, z = y.size // C, cupy.empty(y.shape, x.dtype)
    m = Mask(p, rng, x.dtype).numbers(len(y), x.dtype) if p else None
    b = b if b is None else contiguous(b)
    launch("residual", blocks_for_rows(rows), z, contiguous(x), y, b, m, rows, C, x.size // C, rows // len(y))
    dtype = y.dtype

    def backward(dz):
        dx = dz if dz.shape == shape else column_sums(contiguous(dz).reshape(len(dz), -1)).reshape(shape)
        if m is None:
            return dx, dz, None if b is None else last_norm.sums_of(dz, C)
        dy = cupy.empty(dz.shape, dtype)
        db = residual_dx(dy.reshape(-1, C), contiguous(dz).reshape(-1, C), m)
        return dx, dy, None if b is None else db

    return z, backward


# --- loss ---


def _targets_fit(logits, targets, label_smoothing=0.0):
    classes = targets.dtype.kind in "iu" and targets.shape == logits.shape[:1]
    return logits.ndim == 2 and (classes or targets.shape == logits.shape) and 0 <= label_smoothing < 1


@override(_targets_fit)
def cross_entropy(logits, targets, *, label_smoothing=0.0):
    """A warp for each sample. A label outside 0 … K-1 makes the loss NaN, as raising would have to wait for the GPU."""
    x, (B, K) = contiguous(logits), logits.shape
    labels = targets.astype(np.int64, copy=False) if targets.dtype.kind in "iu" else None
    soft = contiguous(targets) if labels is None else None
    labels = None if labels is None else contiguous(labels)
    options = B, K, float(1 - label_smoothing), label_smoothing / K
    loss, parts, lse = (cupy.empty(shape, x.dtype) for shape in ((), B, B))
    launch("cross_entropy", blocks_for_rows(B), loss, parts, tickets(), lse, x, labels, soft, *options)

    def backward(dL):
        dx, dsoft = cupy.empty_like(x), None if soft is None else cupy.empty_like(x)
        launch("cross_entropy_dx", blocks_for_rows(B), dx, dsoft, contiguous(dL), x, lse, labels, soft, *options)
        return dx, dsoft

    return loss, backward


# --- convolution ---


def _conv_fits(x, W, b=None, stride=1, padding=0, groups=1):
    if x.ndim != 4 or W.ndim != 4 or groups < 1 or x.shape[3] != groups * W.shape[2] or W.shape[3] % groups:
        return False
    pair(stride, "stride", 1)
    ph, pw = pair(padding, "padding", 0)
    return (b is None or b.shape == W.shape[3:]) and x.shape[1] + 2 * ph >= len(W) and x.shape[2] + 2 * pw >= W.shape[1]


def _window_sizes(x, Ho, Wo, kh, kw, sh, sw, ph, pw):
    """Return the sizes for which the kernels of convolution and pooling are compiled."""
    _, H, W, C = x.shape
    sizes = {"IN_H": H, "IN_W": W, "OUT_H": Ho, "OUT_W": Wo, "KERNEL_H": kh, "KERNEL_W": kw}
    return sizes | {"STRIDE_H": sh, "STRIDE_W": sw, "PAD_H": ph, "PAD_W": pw, "CHANNELS": C, "GROUPS": 1}


@override(_conv_fits, bf16=(0,))
def conv2d(x, W, b=None, *, stride=1, padding=0, groups=1):
    """Windows gathered into rows, then one product for each group; backward gathers them again.

    With the precision "bf16", y is stored in bfloat16.
    """
    (sh, sw), (ph, pw) = pair(stride, "stride", 1), pair(padding, "padding", 0)
    given, (B, H, width, _), (kh, kw, Cg, out) = x.dtype, x.shape, W.shape
    x = contiguous(to_precision(x))
    Ho, Wo = (H + 2 * ph - kh) // sh + 1, (width + 2 * pw - kw) // sw + 1
    P, K, part = B * Ho * Wo, kh * kw * Cg, out // groups
    sizes = _window_sizes(x, Ho, Wo, kh, kw, sh, sw, ph, pw) | {"CHANNELS": Cg, "GROUPS": groups}

    def columns():  # (groups, B·Ho·Wo, kh·kw·C/groups)
        y = cupy.empty((groups, P, K), x.dtype)
        launch("im2col", (blocks_for(P * K), groups), y, x, P * K, **sizes)
        return y

    kernel = to_precision(W.reshape(K, groups, part).swapaxes(0, 1))  # (groups, kh·kw·C/groups, out/groups)
    y = cupy.empty((P, groups, part), x.dtype)
    product(columns(), kernel, out=y.swapaxes(0, 1))
    if b is not None:
        launch("bias_drop_path", blocks_for(y.size), y, y, contiguous(b), None, y.size, out, 1)

    def backward(dy):
        dy = to_dtype(dy, x.dtype)
        db = None if b is None else column_sums(dy.reshape(P, out))
        dy = dy.reshape(P, groups, part).swapaxes(0, 1)
        dW = cupy.empty((K, groups, part), W.dtype)
        product(columns().swapaxes(1, 2), dy, out=dW.swapaxes(0, 1))

        def dx():
            dx, columns = cupy.empty_like(x), cupy.empty((groups, P, K), x.dtype)
            product(dy, kernel.swapaxes(1, 2), columns)
            launch("col2im", blocks_for(dx.size), dx, columns, dx.size, B, **sizes)
            return dx if given == BF16 else to_fp32(dx)

        return dx, dW.reshape(kh, kw, Cg, out), db

    return y.reshape(B, Ho, Wo, out), backward


def _pool_fits(x, kernel_size, stride=None, padding=0):
    (kh, kw), (ph, pw) = pair(kernel_size, "kernel_size", 1), pair(padding, "padding", 0)
    pair(kernel_size if stride is None else stride, "stride", 1)
    inside = x.ndim == 4 and x.shape[1] + 2 * ph >= kh and x.shape[2] + 2 * pw >= kw
    return inside and 2 * ph <= kh and 2 * pw <= kw and kh * kw <= 256  # an offset is kept in a byte


@override(_pool_fits, bf16=(0,))
def max_pool2d(x, *, kernel_size, stride=None, padding=0):
    """A thread for each window; one byte per window is kept, the place of its largest entry."""
    (kh, kw), (ph, pw) = pair(kernel_size, "kernel_size", 1), pair(padding, "padding", 0)
    sh, sw = pair(kernel_size if stride is None else stride, "stride", 1)
    x, (B, H, W, C) = contiguous(x), x.shape
    Ho, Wo = (H + 2 * ph - kh) // sh + 1, (W + 2 * pw - kw) // sw + 1
    y, best, shape, dtype = cupy.empty((B, Ho, Wo, C), x.dtype), cupy.empty((B, Ho, Wo, C), np.uint8), x.shape, x.dtype
    sizes = _window_sizes(x, Ho, Wo, kh, kw, sh, sw, ph, pw)
    launch("max_pool", blocks_for(y.size), y, best, x, y.size, **sizes)

    def backward(dy):
        dx = cupy.empty(shape, dtype)
        launch("max_pool_dx", blocks_for(dx.size), dx, to_dtype(dy, dtype), best, dx.size, **sizes)
        return dx

    return y, backward


# --- time for memory ---


@override(lambda x, fn, rng=None: True)
def recompute(x, *, fn, rng=None):
    """y = fn(x), computed twice with the same masks: their keys are kept, because a graph cannot rewind ``rng``."""
    with no_grad(), remember_host_values() as keys:
        y = fn(Tensor(x)).data

    def backward(dy):
        again = Tensor(x, requires_grad=True)
        with remember_host_values(keys):
            z = fn(again)
            z.backward(to_dtype(dy, z.dtype))
        return again.grad

    return y, backward


WRAPPERS["cuda"] = in_fp32
