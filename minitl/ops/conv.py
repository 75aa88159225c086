"""Convolution and pooling, channels last: a window is gathered into a row, and the rest is a matrix product.

``_windows`` is a view that shows each output position its window; ``_scatter`` is its transpose and adds windows
back to where they came from.
"""

import math
from numbers import Integral

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
            x[:, i : i + Ho * stride[0] : stride[0], j : j + Wo * stride[1] : stride[1]] += windows[:, :, :, i, j]
    return x[:, ph : ph + H, pw : pw + W]


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
    view = _windows(x, (kh, kw), stride, padding)
    (B, Ho, Wo), shape = view.shape[:3], x.shape

    def columns():  # (groups, B·Ho·Wo, kh·kw·C/groups); gathered again in backward, which costs less than keeping it
        return view.reshape(B * Ho * Wo, kh * kw, groups, Cg).transpose(2, 0, 1, 3).reshape(groups, -1, kh * kw * Cg)

    kernel = W.reshape(kh * kw * Cg, groups, out // groups).swapaxes(0, 1)  # (groups, kh·kw·C/groups, out/groups)
    y = (columns() @ kernel).swapaxes(0, 1).reshape(B, Ho, Wo, out)
    if b is not None:
        y = y + b

    def backward(dy):
        rows = dy.reshape(B * Ho * Wo, groups, out // groups).swapaxes(0, 1)
        dW = (columns().swapaxes(1, 2) @ rows).swapaxes(0, 1).reshape(W.shape)
        dcolumns = (rows @ kernel.swapaxes(1, 2)).reshape(groups, B, Ho, Wo, kh, kw, Cg)
        dview = dcolumns.transpose(1, 2, 3, 4, 5, 0, 6).reshape(B, Ho, Wo, kh, kw, groups * Cg)
        return _scatter(dview, shape, stride, padding), dW, None if b is None else dy.sum((0, 1, 2))

    return y, backward


@op
def max_pool2d(x, *, kernel_size, stride=None, padding=0):
    """y[p] = max_o x[p + o] over a window;  dx goes to the first of the largest entries

    x (B, H, W, C); ``stride`` is the kernel size by default; the padding is -∞ and never wins.
    """
    kernel, padding = pair(kernel_size, "kernel_size", 1), pair(padding, "padding", 0)
    stride = kernel if stride is None else pair(stride, "stride", 1)
    if 2 * padding[0] > kernel[0] or 2 * padding[1] > kernel[1]:
        raise ValueError(f"padding {padding} is more than half of the kernel {kernel}")
    xp = array_module(x)
    view = _windows(x, kernel, stride, padding, fill=-math.inf)
    flat = view.reshape(*view.shape[:3], kernel[0] * kernel[1], x.shape[3])  # (B, Ho, Wo, kh·kw, C)
    best = flat.argmax(3)[:, :, :, None]
    shape, size = view.shape, x.shape

    def backward(dy):
        hit = best == xp.arange(kernel[0] * kernel[1])[:, None]
        return _scatter((hit * dy[:, :, :, None]).reshape(shape), size, stride, padding)

    return xp.take_along_axis(flat, best, 3)[:, :, :, 0], backward


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
