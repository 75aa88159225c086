"""Arithmetic, matrix products, reductions and shapes. Tensor gets its operators here."""

import itertools
import math

import numpy as np

from ..autograd import Tensor, op
from ..backend import array_module, is_array


def tensor(data, requires_grad=False, dtype=None):
    """A Tensor of ``data``: an array (kept, not copied), a number or nested lists (Python floats become float32)."""
    data = data.data if isinstance(data, Tensor) else data
    if not is_array(data):
        data = np.asarray(data)
        data = data.astype("float32") if data.dtype == "float64" else data
    return Tensor(data if dtype is None else data.astype(dtype, copy=False), requires_grad)


# --- element by element, with broadcasting: the engine sums a gradient over broadcast axes ---


@op
def add(x, y):
    """x + y"""
    return x + y, lambda dz: (dz, dz)


@op
def sub(x, y):
    """x - y"""
    return x - y, lambda dz: (dz, -dz)


@op
def mul(x, y):
    """z = x y,  dx = y dz,  dy = x dz"""
    return x * y, lambda dz: (y * dz, x * dz)


@op
def div(x, y):
    """z = x / y,  dx = dz / y,  dy = -z dx"""
    z = x / y

    def backward(dz):
        dx = dz / y
        return dx, -z * dx

    return z, backward


@op
def neg(x):
    """-x"""
    return -x, lambda dy: -dy


@op
def power(x, *, exponent):
    """y = x^p for a number p,  dx = p x^(p-1) dy"""
    if not isinstance(exponent, int | float):
        raise TypeError("the exponent is a Python number; for an array of exponents use exp(p * log(x))")
    below = exponent - 1 if exponent else 0  # so that x^0 has the derivative 0 at x = 0 too
    return x**exponent, lambda dy: exponent * x**below * dy


@op
def exp(x):
    """y = e^x,  dx = y dy"""
    y = array_module(x).exp(x)
    return y, lambda dy: y * dy


@op
def log(x):
    """y = ln x,  dx = dy / x"""
    return array_module(x).log(x), lambda dy: dy / x


@op
def sqrt(x):
    """y = √x,  dx = dy / 2y"""
    y = array_module(x).sqrt(x)
    return y, lambda dy: dy / (2 * y)


@op
def maximum(x, y):
    """max(x, y), element by element; where both are equal, each gets half of the gradient"""

    def backward(dz):
        dx = ((x > y) * dz + (x >= y) * dz) / 2
        return dx, dz - dx

    return array_module(x).maximum(x, y), backward


@op
def where(x, y, *, condition):
    """x where the boolean array ``condition`` holds, y elsewhere"""
    xp = array_module(condition)
    return xp.where(condition, x, y), lambda dz: (xp.where(condition, dz, 0), xp.where(condition, 0, dz))


@op
def matmul(x, y):
    """z = x y over the last two axes,  dx = dz yᵀ,  dy = xᵀ dz"""
    if x.ndim < 2 or y.ndim < 2:
        raise ValueError("matmul needs at least two axes on each side; add one with reshape")

    def backward(dz):
        return dz @ y.swapaxes(-1, -2), x.swapaxes(-1, -2) @ dz

    return x @ y, backward


# --- reductions: axis is None (all axes), an int or a tuple ---


def _spread(dy, shape, axis, keepdims):
    """Give the gradient of a reduction its reduced axes back, each with one entry."""
    axes = _reduced(shape, axis)
    return dy if keepdims else dy.reshape([1 if i in axes else n for i, n in enumerate(shape)])


def _reduced(shape, axis):
    """The axes, counted from 0, over which a reduction runs."""
    if axis is None:
        return set(range(len(shape)))
    return {a % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,))}


@op
def sum(x, *, axis=None, keepdims=False):
    """y = Σ x over ``axis``,  dx = dy for each summed entry"""
    xp, shape = array_module(x), x.shape
    return x.sum(axis, keepdims=keepdims), lambda dy: xp.broadcast_to(_spread(dy, shape, axis, keepdims), shape)


@op
def mean(x, *, axis=None, keepdims=False):
    """y = Σ x / n over ``axis``,  dx = dy / n for each of the n entries"""
    xp, shape = array_module(x), x.shape
    y = x.mean(axis, keepdims=keepdims)
    n = math.prod(shape[i] for i in _reduced(shape, axis))
    return y, lambda dy: xp.broadcast_to(_spread(dy / n, shape, axis, keepdims), shape)


@op
def max(x, *, axis=None, keepdims=False):
    """y = max x over ``axis``; entries that share the maximum share the gradient equally"""
    xp = array_module(x)
    top = xp.asarray(x.max(axis, keepdims=True))

    def backward(dy):
        hit = x == top
        return hit * (_spread(dy, x.shape, axis, keepdims) / hit.sum(axis, keepdims=True).astype(dy.dtype))

    return x.max(axis, keepdims=keepdims), backward


# --- shapes: no arithmetic, so each pullback only puts the gradient back in place ---


@op
def reshape(x, *, shape):
    """The same entries in row-major order under another shape"""
    before = x.shape
    return x.reshape(shape), lambda dy: dy.reshape(before)


@op
def transpose(x, *, axes=None):
    """Axis i of the result is axis ``axes[i]`` of x; all axes reversed by default"""
    axes = tuple(range(x.ndim))[::-1] if axes is None else tuple(axes)
    inverse = sorted(range(x.ndim), key=lambda i: axes[i] % x.ndim)
    return x.transpose(axes), lambda dy: dy.transpose(inverse)


@op
def getitem(x, *, index):
    """x[index]; an entry picked several times gets the sum of its gradients"""
    xp, shape = array_module(x), x.shape
    parts = index if isinstance(index, tuple) else (index,)
    plain = all(isinstance(p, int | slice | None | type(...)) for p in parts)  # then no entry is picked twice

    def backward(dy):
        dx = xp.zeros(shape, dy.dtype)
        if plain:
            dx[index] = dy
        else:
            xp.add.at(dx, index, dy)
        return dx

    return x[index], backward


@op
def concatenate(*xs, axis=0):
    """The arrays joined along an axis they already have; each gets its own slice of the gradient"""
    if not xs:
        raise ValueError("needs at least one array")
    xp = array_module(xs[0])
    ends = list(itertools.accumulate(x.shape[axis] for x in xs))
    return xp.concatenate(xs, axis), lambda dy: tuple(xp.split(dy, ends[:-1], axis))


def _flexible(fn, name):
    """Let ``x.reshape(2, 3)`` and ``x.reshape((2, 3))`` mean the same, as in NumPy."""

    def method(x, *sizes):
        sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes
        return fn(x, **{name: sizes})

    return method


Tensor.__add__ = Tensor.__radd__ = add
Tensor.__sub__, Tensor.__rsub__ = sub, lambda x, y: sub(y, x)
Tensor.__mul__ = Tensor.__rmul__ = mul
Tensor.__truediv__, Tensor.__rtruediv__ = div, lambda x, y: div(y, x)
Tensor.__neg__ = neg
Tensor.__pow__ = lambda x, exponent: power(x, exponent=exponent)
Tensor.__matmul__, Tensor.__rmatmul__ = matmul, lambda x, y: matmul(y, x)
Tensor.__getitem__ = lambda x, index: getitem(x, index=index)
Tensor.sum = lambda x, axis=None, keepdims=False: sum(x, axis=axis, keepdims=keepdims)
Tensor.mean = lambda x, axis=None, keepdims=False: mean(x, axis=axis, keepdims=keepdims)
Tensor.max = lambda x, axis=None, keepdims=False: max(x, axis=axis, keepdims=keepdims)
Tensor.reshape = _flexible(reshape, "shape")
Tensor.transpose = _flexible(lambda x, axes: transpose(x, axes=axes or None), "axes")
Tensor.item = lambda x: x.data.item()  # the one element, as a Python number
Tensor.__bool__ = lambda x: bool(x.data)  # its truth; more than one element raises ValueError, as in NumPy
