"""Convolution and pooling, channels last: windows are gathered into rows, and the rest is matrix products.

That is done for a few images at a time: windows overlap, so those of all images would take many times their memory.
``_windows`` is a view of windows; ``_scatter`` is its transpose and adds them back to where they came from.
"""

import itertools
import math
from numbers import Integral

import numpy as np

from ..autograd import op
from ..backend import array_module


def pair(value, name, smallest):
    """(height, width) from one integer or two; raises ``ValueError`` for anything else."""
    sizes = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(sizes) != 2 or any(not isinstance(n, Integral) or n < smallest for n in sizes):
        raise ValueError(f"{name} is an integer >= {smallest} or a pair of them, got {value!r}")
    return tuple(map(int, sizes))  # NumPy integers would turn float32 into float64


def _windows(x, kernel, stride, padding, fill=0):
    """View of x (B, H, W, C) as (B, Ho, Wo, kh, kw, C), padded with ``fill`` on all sides first."""
    xp, (ph, pw) = array_module(x), padding
    if x.ndim != 4:
        raise ValueError("needs images x (B, H, W, C)")
    if ph or pw:
        x = xp.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)), constant_values=fill)
    if x.shape[1] < kernel[0] or x.shape[2] < kernel[1]:
        raise ValueError(f"the kernel {kernel} is larger than the padded image {x.shape[1:3]}")
    view = xp.lib.stride_tricks.sliding_window_view(x, kernel, (1, 2))[:, :: stride[0], :: stride[1]]
    return view.transpose(0, 1, 2, 4, 5, 3)


def _scatter(windows, shape, stride, padding):
    """Transpose of ``_windows``: the sum of all windows (B, Ho, Wo, kh, kw, C) in an image of ``shape``."""
    (B, H, W, C), (ph, pw) = shape, padding
    _, Ho, Wo, kh, kw, _ = windows.shape
    x = array_module(windows).zeros((B, H + 2 * ph, W + 2 * pw, C), windows.dtype)
    for i in range(kh):
        for j in range(kw):
            _shifted(x, i, j, (Ho, Wo), stride)[...] += windows[:, :, :, i, j]
    return x[:, ph : ph + H, pw : pw + W]


def _shifted(x, i, j, size, stride):
    """View of the padded image x: what lies at the offset (i, j) of each of Ho x Wo windows, (B, Ho, Wo, C)."""
    return x[:, i : i + size[0] * stride[0] : stride[0], j : j + size[1] * stride[1] : stride[1]]


@op
def conv2d(x, W, b=None, *, stride=1, padding=0, groups=1):
    """y[p] = Σ_o x[p + o] W[o] + b over the offsets o of the kernel

    x (B, H, W, C), W (kh, kw, C/groups, out), b (out), y (B, Ho, Wo, out), Ho = (H + 2 padding - kh) // stride + 1.
    dx[q] = Σ_o dy[q - o] W[o]ᵀ,  dW[o] = Σ_p x[p + o]ᵀ dy[p] = Σ_q x[q]ᵀ dy[q - o],  db = Σ dy
    For stride 1 dx is a convolution, too, and the second form of dW is the first with x and dy in each other's roles.
    With ``groups`` the channels of x, W and y are cut into as many parts, each convolved on its own.
    """
    stride, padding = pair(stride, "stride", 1), pair(padding, "padding", 0)
    if x.ndim != 4 or W.ndim != 4 or x.shape[3] != groups * W.shape[2] or W.shape[3] % groups:
        raise ValueError(f"needs x (B, H, W, C) and W (kh, kw, C/groups, out), out divisible by groups={groups}")
    kh, kw, Cg, out = W.shape
    if 0 in (kh, kw) or (b is not None and b.shape != (out,)):
        raise ValueError(f"needs a kernel of at least 1 x 1 and b ({out},)")
    height, width = (n + 2 * p for n, p in zip(x.shape[1:3], padding, strict=True))
    if height < kh or width < kw:
        raise ValueError(f"the kernel {(kh, kw)} is larger than the padded image {(height, width)}")
    around = kh - 1 - padding[0], kw - 1 - padding[1]  # the padding with which dy has a window for each pixel of x
    shape, dense = x.shape, stride == (1, 1) and min(around) >= 0
    few = dense and groups == 1 and 2 * out <= Cg  # faster then, as measured: dy is less to gather than x
    y = _few_outputs(x, W, padding) if few and 8 * out <= Cg else _convolve(x, W, stride, padding, groups)
    if b is not None:
        y += b

    def dx(dy):
        if dense:
            return _convolve(dy, _turned(W, groups), (1, 1), around, groups)
        return _scattered_products(dy, W, shape, stride, padding, groups)

    def backward(dy):
        if few:
            dW = _turned(_weight_gradient(dy, x, (kh, kw, out, Cg), (1, 1), around, 1), 1)
        else:
            dW = _weight_gradient(x, dy, W.shape, stride, padding, groups)
        return lambda: dx(dy), dW, None if b is None else dy.sum((0, 1, 2))

    return y, backward


def _convolve(x, W, stride, padding, groups):
    """y (B, Ho, Wo, out) = Σ_i X_i W_i"""
    xp, (kh, kw, Cg, out) = array_module(x), W.shape
    Ho, Wo = ((n + 2 * p - k) // s + 1 for n, p, k, s in zip(x.shape[1:], padding, W.shape, stride, strict=False))
    y = xp.empty((groups, len(x), Ho * Wo, out // groups), xp.result_type(x, W))
    W = W.reshape(kh, kw * Cg, groups, 1, out // groups).transpose(0, 2, 3, 1, 4)
    for part, factors in _factors(x, (kh, kw), stride, padding, groups, out // groups):
        sums = _like(factors[0], y, part)
        xp.matmul(factors[0], W[0], out=sums)
        for X, W_i in zip(factors[1:], W[1:], strict=True):
            sums += X @ W_i
    return y.transpose(1, 2, 0, 3).reshape(len(x), Ho, Wo, out)


def _weight_gradient(x, dy, shape, stride, padding, groups):
    """dW_i = X_iᵀ dy, in the ``shape`` of W"""
    (kh, kw, _, out), dW, dy = shape, 0, _by_group(dy, groups)
    for part, factors in _factors(x, (kh, kw), stride, padding, groups, out // groups):
        d = _like(factors[0], dy, part)
        dW = dW + array_module(x).stack([(X.swapaxes(2, 3) @ d).sum(1) for X in factors])
    return dW.swapaxes(1, 2).reshape(shape)


def _factors(x, kernel, stride, padding, groups, out):
    """Yield (part, [X_0, …]) for a few images at a time: X_i is what row i of the kernel sees at each place of y.

    X_i (groups, images, Ho·Wo, kw·C/groups) are views of windows that are one row high. These are gathered once, for
    X_i and X_(i + stride) differ by one row of y, no more. Where the products of an image would be small (few places of
    y, or more numbers in W than in them), images are put together: (groups, 1, images·Ho·Wo, kw·C/groups).
    """
    xp, (B, H, _, C), (kh, kw), (sh, sw), (ph, pw) = array_module(x), x.shape, kernel, stride, padding
    extra = -(H + 2 * ph) % sh  # rows, so that the stride divides their number
    if ph or pw or extra:
        x = xp.pad(x, ((0, 0), (ph, ph + extra), (pw, pw), (0, 0)))
    view = xp.lib.stride_tricks.sliding_window_view(x, kw, 2)[:, :, ::sw]  # (B, H, Wo, C, kw)
    Ho, Wo, high, K = (H + 2 * ph - kh) // sh + 1, view.shape[2], x.shape[1] // sh, kw * C // groups
    view = view.reshape(B, high, sh, Wo, groups, C // groups, kw).transpose(4, 0, 2, 1, 3, 6, 5)
    together = Ho * Wo < 64 or K * out > Ho * Wo * (K + out)
    for part in _parts(B, x.shape[1] * Wo * kw * C):
        n = len(x[part])
        rows = view[:, part].reshape(groups, n, sh, high * Wo, K)
        rows = [rows[:, :, i % sh, i // sh * Wo : (i // sh + Ho) * Wo] for i in range(kh)]
        yield part, [X.reshape(groups, 1, n * Ho * Wo, K) for X in rows] if together else rows


def _like(X, y, part):
    """A ``part`` of the images of y (groups, B, Ho·Wo, channels), as they lie in a factor X."""
    return y[:, part].reshape(*X.shape[:3], y.shape[3])


def _by_group(y, groups):
    """(B, H, W, C) -> (groups, B, H·W, C/groups), a view for one group."""
    B, H, W, C = y.shape
    return y.reshape(B, H * W, groups, C // groups).transpose(2, 0, 1, 3)


def _turned(W, groups):
    """The kernel of the way back: (kh, kw, C/groups, out) -> (kh, kw, out/groups, C)."""
    kh, kw, Cg, out = W.shape
    W = W.reshape(kh, kw, Cg, groups, out // groups)[::-1, ::-1]
    return W.transpose(0, 1, 4, 3, 2).reshape(kh, kw, out // groups, groups * Cg)


def _scattered_products(dy, W, shape, stride, padding, groups):
    """dx (B, H, W, C) of this shape, for any stride: each dy[p] W[o]ᵀ is added to dx[p + o]."""
    (kh, kw, Cg, out), (B, Ho, Wo, _) = W.shape, dy.shape
    dx, dy = array_module(dy).empty(shape, dy.dtype), _by_group(dy, groups)
    W = W.reshape(kh * kw * Cg, groups, 1, out // groups).transpose(1, 2, 3, 0)
    for part in _parts(B, Ho * Wo * kh * kw * shape[3]):
        d = (dy[:, part] @ W).reshape(groups, len(dx[part]), Ho, Wo, kh, kw, Cg).transpose(1, 2, 3, 4, 5, 0, 6)
        dx[part] = _scatter(d.reshape(*d.shape[:5], shape[3]), dx[part].shape, stride, padding)
    return dx


def _few_outputs(x, W, padding):
    """y for stride 1 and few outputs: each pixel's products with the whole kernel, added up where they belong."""
    (B, H, width, C), (kh, kw, _, out), (ph, pw) = x.shape, W.shape, padding
    z = x.reshape(-1, C) @ W[::-1, ::-1].transpose(2, 0, 1, 3).reshape(C, -1)
    shape = B, H + 2 * ph - kh + 1, width + 2 * pw - kw + 1, out
    return _scatter(z.reshape(B, H, width, kh, kw, out), shape, (1, 1), (kh - 1 - ph, kw - 1 - pw)).copy()


def _parts(images, size):
    """Slices of so few images that their windows, ``size`` numbers each, stay near the processor: 2 MB in float32.

    With fewer still, threads would wait for Python's lock more often than it is worth.
    """
    step = max(1, 2**19 // max(1, size))
    return [slice(first, first + step) for first in range(0, max(1, images), step)]


@op
def max_pool2d(x, *, kernel_size, stride=None, padding=0):
    """y[p] = max_o x[p + o] over a window;  dx goes to the first of the largest entries

    x (B, H, W, C); ``stride`` is the kernel size by default; the padding is -∞ and never wins.
    """
    kernel, padding = pair(kernel_size, "kernel_size", 1), pair(padding, "padding", 0)
    stride = kernel if stride is None else pair(stride, "stride", 1)
    if 2 * padding[0] > kernel[0] or 2 * padding[1] > kernel[1]:
        raise ValueError(f"padding {padding} is more than half of the kernel {kernel}")
    view = _windows(x, kernel, stride, padding, fill=-math.inf)
    xp, (B, H, W, C), (ph, pw), size = array_module(x), x.shape, padding, view.shape[1:3]
    offsets = list(itertools.product(*map(range, kernel)))
    y = view[:, :, :, 0, 0].copy()
    best = xp.zeros(y.shape, np.min_scalar_type(len(offsets)))  # at which offset it is
    for k, (i, j) in enumerate(offsets):
        part = view[:, :, :, i, j].copy()  # once, for the view has rows as short as C
        xp.maximum(best, (part > y) * best.dtype.type(k), out=best)  # k grows, so the last one counts
        xp.maximum(y, part, out=y)

    def backward(dy):
        dx = xp.zeros((B, H + 2 * ph, W + 2 * pw, C), dy.dtype)
        for k, (i, j) in enumerate(offsets):
            _shifted(dx, i, j, size, stride)[...] += dy * (best == k)
        return dx[:, ph : ph + H, pw : pw + W]

    return y, backward


@op
def avg_pool2d(x, *, kernel_size, stride=None, padding=0):
    """y[p] = Σ_o x[p + o] / (kh kw) over a window (padding counts as zeros),  dx[p + o] += dy[p] / (kh kw)

    x (B, H, W, C); ``stride`` is the kernel size by default.
    """
    kernel, padding = pair(kernel_size, "kernel_size", 1), pair(padding, "padding", 0)
    stride = kernel if stride is None else pair(stride, "stride", 1)
    xp = array_module(x)
    view = _windows(x, kernel, stride, padding)
    shape, size = view.shape, x.shape

    def backward(dy):
        share = (dy / (kernel[0] * kernel[1]))[:, :, :, None, None]
        return _scatter(xp.broadcast_to(share, shape), size, stride, padding)

    return view.mean((3, 4)), backward


@op
def global_avg_pool(x):
    """y = mean of x (B, ..., C) over all axes but the first and the last,  dx = dy / count"""
    if x.ndim < 3:
        raise ValueError("needs x (B, ..., C) with at least one axis in between")
    xp, shape = array_module(x), x.shape
    y = x.mean(tuple(range(1, x.ndim - 1)))
    count = math.prod(shape[1:-1])
    return y, lambda dy: xp.broadcast_to((dy / count).reshape(shape[0], *(1,) * (len(shape) - 2), shape[-1]), shape)
