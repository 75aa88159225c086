"""Convolution and pooling, channels last: a window is gathered into a row, and the rest is a matrix product.

That is done for a few images at a time: windows overlap, so those of all images would take many times their memory.
``_windows`` is a view that shows each output position its window; ``_scatter`` is its transpose and adds windows
back to where they came from.
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
        raise ValueError(f"needs images x (B, H, W, C), got {x.shape}")
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
    dx[p + o] += dy[p] W[o]ᵀ,  dW[o] = Σ_p x[p + o]ᵀ dy[p],  db = Σ dy
    With ``groups`` the channels of x, W and y are cut into as many parts, each convolved on its own.
    """
    stride, padding = pair(stride, "stride", 1), pair(padding, "padding", 0)
    if x.ndim != 4 or W.ndim != 4 or x.shape[3] != groups * W.shape[2] or W.shape[3] % groups:
        shapes = f"got {x.shape}, {W.shape}, groups={groups}"
        raise ValueError(f"needs x (B, H, W, C) and W (kh, kw, C/groups, out), out divisible by groups; {shapes}")
    kh, kw, Cg, out = W.shape
    if 0 in (kh, kw) or (b is not None and b.shape != (out,)):
        raise ValueError(f"needs a kernel of at least 1 x 1 and b ({out},)")
    around = kh - 1 - padding[0], kw - 1 - padding[1]  # the padding with which dy has a window for each pixel of x
    narrow = groups == 1 and stride == (1, 1) and out <= Cg and min(around) >= 0
    y, backward = _narrow(x, W, padding, around) if narrow else _general(x, W, stride, padding, groups)
    if b is not None:
        y += b
    return y, lambda dy: (*backward(dy), None if b is None else dy.sum((0, 1, 2)))


def _general(x, W, stride, padding, groups):
    """y and its pullback. Windows of x are gathered again in backward, which costs less than keeping them."""
    (kh, kw, Cg, out), shape = W.shape, x.shape
    view = _windows(x, (kh, kw), stride, padding)
    Ho, Wo = view.shape[1:3]
    kernel = W.reshape(kh * kw * Cg, groups, out // groups).swapaxes(0, 1)  # (groups, kh·kw·C/groups, out/groups)
    parts = _parts(shape[0], Ho * Wo * kh * kw * shape[3])

    def columns(view):  # (groups, images·Ho·Wo, kh·kw·C/groups)
        rows = view.reshape(-1, kh * kw, groups, Cg)
        return rows.transpose(2, 0, 1, 3).reshape(groups, -1, kh * kw * Cg)

    def rows(dy):  # (groups, images·Ho·Wo, out/groups)
        return dy.reshape(-1, groups, out // groups).swapaxes(0, 1)

    def dx(dy):
        d = (rows(dy) @ kernel.swapaxes(1, 2)).reshape(groups, -1, Ho, Wo, kh, kw, Cg)
        d = d.transpose(1, 2, 3, 4, 5, 0, 6).reshape(-1, Ho, Wo, kh, kw, groups * Cg)
        return _scatter(d, (len(dy), *shape[1:]), stride, padding)

    def backward(dy):
        view = _windows(x, (kh, kw), stride, padding)
        dW = sum(columns(view[part]).swapaxes(1, 2) @ rows(dy[part]) for part in parts)
        return lambda: xp.concatenate([dx(dy[part]) for part in parts]), dW.swapaxes(0, 1).reshape(W.shape)

    xp = array_module(x)
    y = xp.empty((shape[0], Ho, Wo, out), x.dtype)
    for part in parts:
        y[part] = (columns(view[part]) @ kernel).swapaxes(0, 1).reshape(-1, Ho, Wo, out)
    return y, backward


def _narrow(x, W, padding, around):
    """The same for stride 1 and no more outputs than inputs: one gather of windows of dy serves for dx and for dW.

    dx[q] = Σ_o dy[q - o] W[o]ᵀ,  dW[o] = Σ_q x[q]ᵀ dy[q - o]
    """
    xp, (B, H, Wd, C), (kh, kw, _, out) = array_module(x), x.shape, W.shape
    flipped = W[::-1, ::-1]
    if out > C / 4:
        y = _general(x, W, (1, 1), padding, 1)[0]
    else:  # each pixel's products with the whole kernel, kh·kw·out of them, are added where they belong
        z = x.reshape(-1, C) @ flipped.transpose(2, 0, 1, 3).reshape(C, -1)
        shape = B, H + kh - 1 - 2 * around[0], Wd + kw - 1 - 2 * around[1], out
        y = _scatter(z.reshape(B, H, Wd, kh, kw, out), shape, (1, 1), around).copy()  # without the padding

    def backward(dy):
        kernel = flipped.swapaxes(2, 3).reshape(-1, C)  # (kh·kw·out, C)
        dx, dW = xp.empty((B, H, Wd, C), dy.dtype), 0
        view = _windows(dy, (kh, kw), (1, 1), around)
        for part in _parts(B, H * Wd * kh * kw * out):
            columns = view[part].reshape(-1, kh * kw * out)
            dx[part] = (columns @ kernel).reshape(-1, H, Wd, C)
            dW = dW + x[part].reshape(-1, C).T @ columns
        return dx, dW.reshape(C, kh, kw, out)[:, ::-1, ::-1].transpose(1, 2, 0, 3)

    return y, backward


def _parts(images, size):
    """Slices of so few images that their windows, ``size`` numbers each, stay in the cache: 1 MB in float32."""
    step = max(1, 2**18 // max(1, size))
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
        raise ValueError(f"needs x (B, ..., C) with at least one axis in between, got {x.shape}")
    xp, shape = array_module(x), x.shape
    y = x.mean(tuple(range(1, x.ndim - 1)))
    count = math.prod(shape[1:-1])
    return y, lambda dy: xp.broadcast_to((dy / count).reshape(shape[0], *(1,) * (len(shape) - 2), shape[-1]), shape)
