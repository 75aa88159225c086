"""The ops on a CPU, tuned: the same functions as in ``minitl.ops``, which stay the specification.

A form is included only if it makes a step of the benchmark faster. The forms write into their own arrays in place, sum
by products with ones, which BLAS computes several times faster than ``sum``, and cut work into parts that fit in the
cache. If a form does not apply, as for wrong input, the plain one runs.
"""

import contextvars
import itertools
import math

import numpy as np

from ..autograd import OVERRIDES, PLAIN
from ..backend import FLOATS
from ..ops.conv import pair, scatter, windows
from ..ops.noise import keep_mask

WINDOW_ELEMENTS = 2**19  # of convolutions, held at once: 2 MB in float32, about what fits in the cache
WEIGHT_ELEMENTS = 2**20  # of vector attention, (N, N, channels), held at once: 4 MB in float32
MAX_EXPONENT = 40  # in float32, sums of a million e^40 are finite, and e^-40 divided by one is not yet zero
exchange = contextvars.ContextVar("exchange", default=None)  # how threads that share a batch share its statistics


def override(fits):
    """Register the function below as the CPU form of the op of that name, for calls for which ``fits`` is true."""

    def register(fn):
        def run(*arrays, **options):
            return (fn if fits(*arrays, **options) else PLAIN[fn.__name__])(*arrays, **options)

        OVERRIDES["cpu"][fn.__name__] = run
        return fn

    return register


def alike(*arrays):
    """Return True if all are NumPy arrays of float32, or all of float64, and none is empty or 0-d."""
    dtypes = {a.dtype if isinstance(a, np.ndarray) and a.ndim and a.size else None for a in arrays}
    return len(dtypes) == 1 and dtypes <= {*FLOATS}


# --- element by element ---


@override(lambda x, approximate="tanh": alike(x) and approximate == "tanh")
def gelu(x, *, approximate="tanh"):
    """y = x s,  dx = s (1 + 2 u' x (1 - s)) dy,  s = (1 + tanh u) / 2 = 1 / (1 + e^-2u),  u = x (c + c k x²)

    NumPy computes the exponential faster than tanh, and without AVX2 several times faster.
    """
    c, k = math.sqrt(2 / math.pi), 0.044715
    e = x * x
    e *= -2 * c * k
    e -= 2 * c
    e *= x
    with np.errstate(over="ignore"):
        np.exp(e, out=e)
    e += 1

    def backward(dy):
        s = 1 / e
        dx = x * x
        dx *= 6 * c * k
        dx += 2 * c  # 2 u'
        dx *= x
        dx *= 1 - s
        dx += 1
        dx *= s
        dx *= dy
        return dx

    return x / e, backward


# --- rows ---


def _small(x):
    """Return True if exp(x) cannot overflow; this takes far less time than finding the maximum of each row."""
    return x.size > 0 and x.min() > -MAX_EXPONENT and x.max() < MAX_EXPONENT


@override(lambda x, axis=-1: alike(x))
def softmax(x, *, axis=-1):
    """x is made contiguous first: sums along a transposed array are several times slower."""
    x = np.ascontiguousarray(x)
    y = np.exp(x if _small(x) else x - x.max(axis, keepdims=True))
    y /= y.sum(axis, keepdims=True)

    def backward(dy):
        dx = dy * y
        dx -= y * dx.sum(axis, keepdims=True)
        return dx

    return y, backward


def _linear_fits(x, W, b=None):
    fits = alike(x, W) and W.ndim == 2 and x.shape[-1:] == W.shape[:1]
    return fits and (b is None or (alike(x, b) and b.shape == W.shape[1:]))


@override(_linear_fits)
def linear(x, W, b=None):
    """b is added in place; db is a product with ones."""
    shape, rows = x.shape, x.reshape(-1, x.shape[-1])
    y = rows @ W
    if b is not None:
        y += b

    def backward(dy):
        dy = dy.reshape(-1, dy.shape[-1])
        db = None if b is None else np.ones(len(dy), dy.dtype) @ dy
        return lambda: (dy @ W.T).reshape(shape), rows.T @ dy, db

    return y.reshape(*shape[:-1], W.shape[1]), backward


@override(lambda x, weight, bias, eps=1e-6: alike(x, weight, bias) and weight.shape == bias.shape == x.shape[-1:])
def layer_norm(x, weight, bias, *, eps=1e-6):
    """Means over rows and sums over columns are products with ones, or with the weights."""
    shape, d = x.shape, x.shape[-1]
    ones = np.ones((d, 1), x.dtype)
    n = x.reshape(-1, d)
    n = n - (n @ ones) / d
    inv_std = 1 / np.sqrt((np.square(n) @ ones) / d + eps)
    n *= inv_std
    y = n * weight
    y += bias

    def backward(dy):
        dy = dy.reshape(-1, d)
        dyn, ones, w = dy * n, np.ones(len(dy), dy.dtype), (weight / d)[:, None]
        dweight, dbias, mean_g, mean_gn = ones @ dyn, ones @ dy, dy @ w, dyn @ w
        dx = dy * weight
        dx -= mean_g
        dx -= np.multiply(n, mean_gn, out=dyn)
        dx *= inv_std
        return dx.reshape(shape), dweight, dbias

    return y.reshape(shape), backward


def _batch_norm_fits(x, weight, bias, running_mean, running_var, training=True, momentum=0.1, eps=1e-5):
    vectors = weight, bias, running_mean, running_var
    fits = alike(x, *vectors) and x.ndim > 1 and all(v.shape == x.shape[-1:] for v in vectors)
    if exchange.get() and not fits:
        raise ValueError("threads can share a batch norm only if all its arrays have one dtype; use one thread")
    return fits


@override(_batch_norm_fits)
def batch_norm(x, weight, bias, *, running_mean, running_var, training=True, momentum=0.1, eps=1e-5):
    """Threads that share a batch combine their statistics: N var = Σ N_k (var_k + (mean_k - mean)²).

    With d = x - mean_k of this thread, n = (d + gap) / std, gap = mean_k - mean. Rows are whole samples, because NumPy
    is slow on rows of only C elements.
    """
    C, shape = x.shape[-1], x.shape
    gather = exchange.get() or (lambda own: [own])

    def row(channels):  # (C) -> once for each pixel of a sample
        return np.tile(channels, math.prod(shape[1:-1]))

    def totals(rows):  # (B, pixels·C) -> (C)
        return (np.ones(len(rows), rows.dtype) @ rows).reshape(-1, C).sum(0)

    d, own, mean, var = x.reshape(len(x), -1), 0, running_mean, running_var
    if training:
        own = totals(d) / max(1, x.size // C)
        d = d - row(own)
        counts, means, squares = np.stack(gather(np.stack((np.full_like(own, x.size // C), own, totals(d * d)))), 1)
        if (count := counts.sum(0))[0] < 2:
            raise ValueError("training needs at least two values per channel; use a larger batch")
        mean = (counts * means).sum(0) / count
        var = (squares + counts * (means - mean) ** 2).sum(0) / count
        for running, batch in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
            running *= 1 - momentum
            running += momentum * batch
    inv_std, gap = 1 / np.sqrt(var + eps), own - mean
    y = d * row(weight * inv_std)
    y += row(gap * weight * inv_std + bias)

    def backward(dy):
        dy, scale = dy.reshape(d.shape), weight * inv_std
        dyd, dbias = dy * d, totals(dy)
        dweight = (totals(dyd) + gap * dbias) * inv_std
        dx = dy * row(scale)
        if training:
            mean_gn, mean_g = sum(gather(np.stack((dweight, dbias)))) * scale / count  # both over std
            dx -= np.multiply(d, row(mean_gn * inv_std), out=dyd)
            dx -= row(mean_g + mean_gn * inv_std * gap)
        return dx.reshape(shape), dweight, dbias

    return y.reshape(shape), backward


def _residual_fits(x, y, b=None, p=0.0, rng=None):
    return (alike(x, y) if b is None else alike(x, y, b) and b.shape == y.shape[-1:]) and x.shape == y.shape


@override(_residual_fits)
def residual(x, y, b=None, *, p=0.0, rng=None):
    """No mask if nothing is dropped, and db is a product with ones."""
    m = keep_mask(y, (len(y),) + (1,) * (y.ndim - 1), p, rng)
    z = y * m if b is None else y + b
    if b is not None and p:
        z *= m
    z += x

    def backward(dz):
        dy = dz * m if p else dz
        rows = dy.reshape(-1, dy.shape[-1])
        return dz, dy, None if b is None else np.ones(len(rows), dy.dtype) @ rows

    return z, backward


# --- attention ---


def _attention_fits(qkv, b=None, *, num_heads, dropout=0.0, rng=None):
    fits = alike(qkv) and qkv.ndim == 3 and num_heads > 0 and qkv.shape[2] % (3 * num_heads) == 0
    return fits and (b is None or (alike(qkv, b) and b.shape == qkv.shape[2:]))


@override(_attention_fits)
def attention(qkv, b=None, *, num_heads, dropout=0.0, rng=None):
    """Σ_j dA_ij A_ij = dy_i y_i, also with dropout. Each head is written directly to its place in y and dqkv."""
    qkv = qkv if b is None else qkv + b
    B, N, C = *qkv.shape[:2], qkv.shape[2] // 3
    d = C // num_heads
    scale = 1 / math.sqrt(d)
    q, k, v = qkv.reshape(B, N, 3, num_heads, d).transpose(2, 0, 3, 1, 4)  # each (B, heads, N, d)
    A = (q * scale) @ _transposed(k)
    if not _small(A):
        A -= A.max(-1, keepdims=True)
    np.exp(A, out=A)
    A /= A @ np.ones((N, 1), A.dtype)
    keep = keep_mask(A, A.shape, dropout, rng) if dropout else None
    y = np.empty((B, N, num_heads, d), qkv.dtype)
    np.matmul(A if keep is None else A * keep, v, out=y.swapaxes(1, 2))

    def backward(dy):
        dy = dy.reshape(B, N, num_heads, d)
        sums = np.einsum("bnhd,bnhd->bhn", dy, y)[..., None]
        dy = dy.swapaxes(1, 2)
        dqkv = np.empty((B, N, 3, num_heads, d), dy.dtype)
        dq, dk, dv = dqkv.transpose(2, 0, 3, 1, 4)
        np.matmul((A if keep is None else A * keep).swapaxes(-1, -2), dy, out=dv)
        dS = dy @ _transposed(v)  # dA
        if keep is not None:
            dS *= keep
        dS -= sums
        dS *= A
        np.matmul(dS, k, out=dq)
        np.matmul(dS.swapaxes(-1, -2), q, out=dk)
        dqkv[:, :, :2] *= scale
        dqkv = dqkv.reshape(-1, 3 * C)
        db = None if b is None else np.ones(len(dqkv), dqkv.dtype) @ dqkv
        return dqkv.reshape(B, N, 3 * C), db

    return y.reshape(B, N, C), backward


def _transposed(x):
    """Return a copy of xᵀ: many small products are faster with both factors in row-major order."""
    return x.swapaxes(-1, -2).copy()


@override(lambda q, k, v: alike(q, k, v) and q.ndim == 3 and q.shape == k.shape == v.shape)
def vector_attention(q, k, v):
    """Compute the weights for a few channels at a time, and again in backward: memory grows with N C, not N² C.

    dq_ic = dy_ic (Σ_j a_ijc k_jc v_jc - y_ic Σ_j a_ijc k_jc)
    dk_jc = v_jc Σ_i a_ijc dy_ic q_ic - Σ_i a_ijc dy_ic q_ic y_ic
    """
    B, N, C = q.shape
    q, k, v = (x.swapaxes(1, 2).reshape(B * C, N) for x in (q, k, v))  # a row for each channel of each sample
    largest = np.maximum(q * k.max(1, keepdims=True), q * k.min(1, keepdims=True))  # max_j q_i k_j
    left, right = np.stack((q, -largest), 2), np.stack((k, np.ones_like(k)), 1)
    step = max(1, WEIGHT_ELEMENTS // N**2)
    parts = [slice(start, start + step) for start in range(0, B * C, step)]

    def weights(part):  # a_ij times its row's sum, (rows, N, N)
        a = left[part] @ right[part]  # q_i k_j - largest_i in one pass
        return np.exp(a, out=a)

    y = np.stack((v, np.ones_like(v)), -1)
    for part in parts:
        y[part] = weights(part) @ y[part]
    y, total = y[..., 0] / y[..., 1], y[..., 1].copy()

    def backward(dy):
        dy = dy.swapaxes(1, 2).reshape(B * C, N) / total
        over_j, over_i = np.stack((k * v, k), -1), np.stack((dy, dy * q, dy * q * y), -1)
        for part in parts:
            a = weights(part)
            over_j[part], over_i[part] = a @ over_j[part], a.swapaxes(1, 2) @ over_i[part]
        dq, dk = dy * (over_j[..., 0] - y * over_j[..., 1]), v * over_i[..., 1] - over_i[..., 2]
        return tuple(dx.reshape(B, C, N).swapaxes(1, 2) for dx in (dq, dk, over_i[..., 0]))

    return y.reshape(B, C, N).swapaxes(1, 2), backward


# --- convolution ---


def _conv2d_fits(x, W, b=None, stride=1, padding=0, groups=1):
    pair(stride, "stride", 1)
    ph, pw = pair(padding, "padding", 0)
    fits = alike(x, W) and x.ndim == W.ndim == 4 and groups > 0 and W.size > 0
    fits = fits and x.shape[3] == groups * W.shape[2] and W.shape[3] % groups == 0
    fits = fits and x.shape[1] + 2 * ph >= W.shape[0] and x.shape[2] + 2 * pw >= W.shape[1]
    return fits and (b is None or (alike(x, b) and b.shape == W.shape[3:]))


@override(_conv2d_fits)
def conv2d(x, W, b=None, *, stride=1, padding=0, groups=1):
    """Windows one row high are copied for a few images at a time; the products with each row of the kernel add up.

    For stride 1 dx is a convolution too, dx[q] = Σ_o dy[q - o] W[o]ᵀ, and in dW[o] = Σ_q x[q]ᵀ dy[q - o] x and dy
    exchange roles, which needs fewer copies if there are fewer outputs than channels.
    """
    stride, padding = pair(stride, "stride", 1), pair(padding, "padding", 0)
    kh, kw, Cg, out = W.shape
    around = kh - 1 - padding[0], kw - 1 - padding[1]  # padding that gives dy a window for each pixel of x
    shape, dense = x.shape, stride == (1, 1) and min(around) >= 0
    few = dense and groups == 1 and 2 * out <= Cg  # measured to be faster then
    y = _few_outputs(x, W, padding) if few and 8 * out <= Cg else _convolve(x, W, stride, padding, groups)
    if b is not None:
        y += b

    def dx(dy):
        if dense:
            return _convolve(dy, _flipped(W, groups), (1, 1), around, groups)
        return _scattered_products(dy, W, shape, stride, padding, groups)

    def backward(dy):
        if few:
            dW = _flipped(_weight_gradient(dy, x, (kh, kw, out, Cg), (1, 1), around, 1), 1)
        else:
            dW = _weight_gradient(x, dy, W.shape, stride, padding, groups)
        return lambda: dx(dy), dW, None if b is None else dy.sum((0, 1, 2))

    return y, backward


def _convolve(x, W, stride, padding, groups):
    """Return y (B, Ho, Wo, out) = Σ_i X_i W_i."""
    kh, kw, Cg, out = W.shape
    Ho, Wo = ((n + 2 * p - k) // s + 1 for n, p, k, s in zip(x.shape[1:], padding, W.shape, stride, strict=False))
    y = np.empty((groups, len(x), Ho * Wo, out // groups), np.result_type(x, W))
    W = W.reshape(kh, kw * Cg, groups, 1, out // groups).transpose(0, 2, 3, 1, 4)
    for part, factors in _factors(x, (kh, kw), stride, padding, groups, out // groups):
        sums = _like(factors[0], y, part)
        np.matmul(factors[0], W[0], out=sums)
        for X, W_i in zip(factors[1:], W[1:], strict=True):
            sums += X @ W_i
    return y.transpose(1, 2, 0, 3).reshape(len(x), Ho, Wo, out)


def _weight_gradient(x, dy, shape, stride, padding, groups):
    """dW_i = X_iᵀ dy, in the ``shape`` of W"""
    (kh, kw, _, out), dW, dy = shape, 0, _by_group(dy, groups)
    for part, factors in _factors(x, (kh, kw), stride, padding, groups, out // groups):
        d = _like(factors[0], dy, part)
        dW = dW + np.stack([(X.swapaxes(2, 3) @ d).sum(1) for X in factors])
    return dW.swapaxes(1, 2).reshape(shape)


def _factors(x, kernel, stride, padding, groups, out):
    """Yield (part, [X_0, …]) for a few images at a time: X_i is what row i of the kernel sees at each pixel of y.

    X_i (groups, images, Ho·Wo, kw·C/groups) are views of windows one row high, which are copied only once, because X_i
    and X_(i + stride) differ by one row of y. If the products of an image would be small (few pixels of y, or more
    elements in W than in X_i), images are joined: (groups, 1, images·Ho·Wo, kw·C/groups).
    """
    (B, H, _, C), (kh, kw), (sh, sw), (ph, pw) = x.shape, kernel, stride, padding
    extra = -(H + 2 * ph) % sh  # rows, so that the stride divides their number
    if ph or pw or extra:
        x = np.pad(x, ((0, 0), (ph, ph + extra), (pw, pw), (0, 0)))
    view = np.lib.stride_tricks.sliding_window_view(x, kw, 2)[:, :, ::sw]  # (B, H, Wo, C, kw)
    Ho, Wo, high, K = (H + 2 * ph - kh) // sh + 1, view.shape[2], x.shape[1] // sh, kw * C // groups
    view = view.reshape(B, high, sh, Wo, groups, C // groups, kw).transpose(4, 0, 2, 1, 3, 6, 5)
    together = Ho * Wo < 64 or K * out > Ho * Wo * (K + out)
    for part in _slices(B, x.shape[1] * Wo * kw * C):
        n = len(x[part])
        rows = view[:, part].reshape(groups, n, sh, high * Wo, K)
        rows = [rows[:, :, i % sh, i // sh * Wo : (i // sh + Ho) * Wo] for i in range(kh)]
        yield part, [X.reshape(groups, 1, n * Ho * Wo, K) for X in rows] if together else rows


def _like(X, y, part):
    """Return a ``part`` of the images of y (groups, B, Ho·Wo, channels), shaped like a factor X."""
    return y[:, part].reshape(*X.shape[:3], y.shape[3])


def _by_group(y, groups):
    """(B, H, W, C) -> (groups, B, H·W, C/groups); a view if there is one group"""
    B, H, W, C = y.shape
    return y.reshape(B, H * W, groups, C // groups).transpose(2, 0, 1, 3)


def _flipped(W, groups):
    """Return the kernel that maps dy to dx: (kh, kw, C/groups, out) -> (kh, kw, out/groups, C)."""
    kh, kw, Cg, out = W.shape
    W = W.reshape(kh, kw, Cg, groups, out // groups)[::-1, ::-1]
    return W.transpose(0, 1, 4, 3, 2).reshape(kh, kw, out // groups, groups * Cg)


def _scattered_products(dy, W, shape, stride, padding, groups):
    """Return dx of ``shape`` for any stride: each window dy[p] Wᵀ is added where it came from."""
    (kh, kw, Cg, out), (B, Ho, Wo, _) = W.shape, dy.shape
    dx, dy = np.empty(shape, dy.dtype), _by_group(dy, groups)
    W = W.reshape(kh * kw * Cg, groups, 1, out // groups).transpose(1, 2, 3, 0)
    for part in _slices(B, Ho * Wo * kh * kw * shape[3]):
        d = (dy[:, part] @ W).reshape(groups, len(dx[part]), Ho, Wo, kh, kw, Cg).transpose(1, 2, 3, 4, 5, 0, 6)
        dx[part] = scatter(d.reshape(*d.shape[:5], shape[3]), dx[part].shape, stride, padding)
    return dx


def _few_outputs(x, W, padding):
    """Return y for stride 1 and few outputs: products of each pixel with the whole kernel, added where they belong."""
    (B, H, width, C), (kh, kw, _, out), (ph, pw) = x.shape, W.shape, padding
    z = x.reshape(-1, C) @ W[::-1, ::-1].transpose(2, 0, 1, 3).reshape(C, -1)
    shape = B, H + 2 * ph - kh + 1, width + 2 * pw - kw + 1, out
    return scatter(z.reshape(B, H, width, kh, kw, out), shape, (1, 1), (kh - 1 - ph, kw - 1 - pw)).copy()


def _slices(images, size):
    """Return slices of so few images that their windows, ``size`` elements per image, fit in the cache.

    With even fewer images, threads would spend too much time waiting for the GIL.
    """
    step = max(1, WINDOW_ELEMENTS // max(1, size))
    return [slice(first, first + step) for first in range(0, max(1, images), step)]


def _pool_fits(x, kernel_size, stride=None, padding=0):
    (kh, kw), (ph, pw) = pair(kernel_size, "kernel_size", 1), pair(padding, "padding", 0)
    fits = alike(x) and x.ndim == 4 and 2 * ph <= kh and 2 * pw <= kw
    return fits and x.shape[1] + 2 * ph >= kh and x.shape[2] + 2 * pw >= kw


@override(_pool_fits)
def max_pool2d(x, *, kernel_size, stride=None, padding=0):
    """The offsets in a window are visited one after the other, for all windows at once."""
    kernel, padding = pair(kernel_size, "kernel_size", 1), pair(padding, "padding", 0)
    stride = kernel if stride is None else pair(stride, "stride", 1)
    view = windows(x, kernel, stride, padding, fill=-math.inf)
    (B, H, W, C), (ph, pw), (sh, sw), (Ho, Wo) = x.shape, padding, stride, view.shape[1:3]
    offsets = list(itertools.product(*map(range, kernel)))
    y = view[:, :, :, 0, 0].copy()
    best = np.zeros(y.shape, np.min_scalar_type(len(offsets)))  # offset of the maximum
    for k, (i, j) in enumerate(offsets):
        part = view[:, :, :, i, j].copy()  # because the view has rows of only C elements
        larger = (part > y) * best.dtype.type(k)  # strictly, so ties keep the first
        np.maximum(best, larger, out=best)
        np.maximum(y, part, out=y)

    def backward(dy):
        dx = np.zeros((B, H + 2 * ph, W + 2 * pw, C), dy.dtype)
        for k, (i, j) in enumerate(offsets):
            dx[:, i : i + Ho * sh : sh, j : j + Wo * sw : sw] += dy * (best == k)
        return dx[:, ph : ph + H, pw : pw + W]

    return y, backward
