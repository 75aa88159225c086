"""Convolution and pooling, channels last, by windows: ``windows`` copies them out of x, ``scatter`` adds them up.

As linear maps the two are transposes of each other, so each is the backward pass of the other: windows overlap, and a
pixel that was copied into several of them gets the sum of the gradients of its copies.
"""

import math
from numbers import Integral

from ..autograd import op
from ..backend import array_module


def pair(value, name, smallest):
    """Return (height, width) from one integer or two. Raises ValueError for anything else."""
    sizes = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(sizes) != 2 or any(not isinstance(n, Integral) or n < smallest for n in sizes):
        raise ValueError(f"{name} must be an integer >= {smallest} or a pair of them, got {value!r}")
    return tuple(map(int, sizes))  # NumPy integers would turn float32 into float64


def windows(x, kernel, stride, padding, fill=0):
    """Return a view of the windows (B, Ho, Wo, kh, kw, C) of x (B, H, W, C), after padding x with ``fill``."""
    xp, (ph, pw) = array_module(x), padding
    if x.ndim != 4:
        raise ValueError("needs images x (B, H, W, C)")
    x = xp.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)), constant_values=fill)
    if not (0 < kernel[0] <= x.shape[1] and 0 < kernel[1] <= x.shape[2]):
        raise ValueError(f"the kernel {kernel} is larger than the padded image {x.shape[1:3]}, or empty")
    view = xp.lib.stride_tricks.sliding_window_view(x, kernel, (1, 2))[:, :: stride[0], :: stride[1]]
    return view.transpose(0, 1, 2, 4, 5, 3)


def scatter(dX, x_shape, stride, padding):
    """Return dx of ``x_shape`` (B, H, W, C): each window of dX (B, Ho, Wo, kh, kw, C) is added where it came from."""
    (B, H, W, C), (sh, sw), (ph, pw) = x_shape, stride, padding
    _, Ho, Wo, kh, kw, _ = dX.shape
    dx = array_module(dX).zeros((B, H + 2 * ph, W + 2 * pw, C), dX.dtype)
    for i in range(kh):
        for j in range(kw):
            dx[:, i : i + Ho * sh : sh, j : j + Wo * sw : sw] += dX[:, :, :, i, j]
    return dx[:, ph : ph + H, pw : pw + W]


@op
def conv2d(x, W, b=None, *, stride=1, padding=0, groups=1):
    """y = X W + b, where the rows of X are the windows of x

    x (B, H, W, C), W (kh, kw, C/groups, out), b (out,), y (B, Ho, Wo, out), Ho = (H + 2 padding - kh) // stride + 1.
    dW = Xᵀ dy,  db = Σ dy,  dX = dy Wᵀ,  dx = the sum of all windows of dX, each where it came from.
    With ``groups`` > 1 the channels of x and y are split into as many blocks; a block of y sees one block of x.
    """
    stride, padding = pair(stride, "stride", 1), pair(padding, "padding", 0)
    if x.ndim != 4 or W.ndim != 4 or x.shape[3] != groups * W.shape[2] or W.shape[3] % groups:
        raise ValueError(f"needs x (B, H, W, C) and W (kh, kw, C/groups, out), out divisible by groups={groups}")
    kh, kw, Cg, out = W.shape
    if b is not None and b.shape != (out,):
        raise ValueError(f"needs b ({out},)")
    view, x_shape = windows(x, (kh, kw), stride, padding), x.shape
    B, Ho, Wo, *window = view.shape  # window: kh, kw, C
    rows = B * Ho * Wo
    X = view.reshape(rows, kh * kw, groups, Cg).transpose(2, 0, 1, 3).reshape(groups, rows, kh * kw * Cg)
    W = W.reshape(kh * kw * Cg, groups, out // groups).swapaxes(0, 1)  # (groups, kh·kw·C/groups, out/groups)
    y = (X @ W).swapaxes(0, 1).reshape(B, Ho, Wo, out)

    def backward(dy):
        db = None if b is None else dy.sum((0, 1, 2))
        dy = dy.reshape(rows, groups, out // groups).swapaxes(0, 1)  # (groups, rows, out/groups)
        dW = (X.swapaxes(1, 2) @ dy).swapaxes(0, 1).reshape(kh, kw, Cg, out)
        dX = (dy @ W.swapaxes(1, 2)).reshape(groups, rows, kh * kw, Cg).transpose(1, 2, 0, 3)
        return lambda: scatter(dX.reshape(B, Ho, Wo, *window), x_shape, stride, padding), dW, db

    return y if b is None else y + b, backward


@op
def max_pool2d(x, *, kernel_size, stride=None, padding=0):
    """y = the maximum of each window;  dy goes to the first of the largest entries

    x (B, H, W, C); ``stride`` is the kernel size by default; the padding is -∞ and never wins.
    """
    kernel, padding = pair(kernel_size, "kernel_size", 1), pair(padding, "padding", 0)
    stride = kernel if stride is None else pair(stride, "stride", 1)
    if 2 * padding[0] > kernel[0] or 2 * padding[1] > kernel[1]:
        raise ValueError(f"padding {padding} is more than half of the kernel {kernel}")
    view = windows(x, kernel, stride, padding, fill=-math.inf)
    (B, Ho, Wo, kh, kw, C), x_shape = view.shape, x.shape
    X, offsets = view.reshape(B, Ho, Wo, kh * kw, C), array_module(x).arange(kh * kw)[:, None]
    best = X.argmax(3)

    def backward(dy):
        dX = dy[:, :, :, None] * (offsets == best[:, :, :, None])  # (B, Ho, Wo, kh·kw, C)
        return scatter(dX.reshape(B, Ho, Wo, kh, kw, C), x_shape, stride, padding)

    return X.max(3), backward


@op
def avg_pool2d(x, *, kernel_size, stride=None, padding=0):
    """y = the mean of each window (padding counts as zeros);  each of its entries gets dy / (kh kw)

    x (B, H, W, C); ``stride`` is the kernel size by default.
    """
    kernel, padding = pair(kernel_size, "kernel_size", 1), pair(padding, "padding", 0)
    stride = kernel if stride is None else pair(stride, "stride", 1)
    xp, view = array_module(x), windows(x, kernel, stride, padding)
    x_shape, shape = x.shape, view.shape

    def backward(dy):
        share = (dy / (kernel[0] * kernel[1]))[:, :, :, None, None]
        return scatter(xp.broadcast_to(share, shape), x_shape, stride, padding)

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
