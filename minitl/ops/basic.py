"""Arithmetic, matrix products, reductions and shapes. Tensor gets its operators here."""

import itertools
import math

import numpy as np

from ..autograd import Tensor, op
from ..backend import array_module, is_array


def tensor(data, requires_grad=False, dtype=None):
    """Return a Tensor of ``data``: an array (not copied), numbers in lists (as float32), or a Tensor (detached)."""
    data = data.data if isinstance(data, Tensor) else data
    if not is_array(data):
        data = np.asarray(data)
        data = data.astype("float32") if data.dtype == "float64" else data
    return Tensor(data if dtype is None else data.astype(dtype, copy=False), requires_grad)


# --- element by element, with broadcasting: the engine sums gradients over broadcast axes ---


@op
def add(a, b):
    """y = a + b,  da = db = dy"""
    return a + b, lambda dy: (dy, dy)


@op
def sub(a, b):
    """y = a - b,  da = dy,  db = -dy"""
    return a - b, lambda dy: (dy, -dy)


@op
def mul(a, b):
    """y = a b,  da = b dy,  db = a dy"""
    return a * b, lambda dy: (b * dy, a * dy)


@op
def div(a, b):
    """y = a / b,  da = dy / b,  db = -y da"""
    y = a / b

    def backward(dy):
        da = dy / b
        return da, -y * da

    return y, backward


@op
def neg(x):
    """y = -x,  dx = -dy"""
    return -x, lambda dy: -dy


@op
def power(x, *, exponent):
    """y = x^p for a number p, the exponent;  dx = p x^(p-1) dy"""
    p = exponent
    if not isinstance(p, int | float):
        raise TypeError("the exponent must be a Python number; for an array of exponents use exp(p * log(x))")
    below = p - 1 if p else 0  # so that x^0 has the derivative 0 at x = 0 too
    return x**p, lambda dy: p * x**below * dy


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
    """y = √x,  dx = dy / (2 y)"""
    y = array_module(x).sqrt(x)
    return y, lambda dy: dy / (2 * y)


@op
def maximum(a, b):
    """y = max(a, b), element by element;  da = dy where a > b, dy / 2 where a = b, else 0;  db = dy - da"""

    def backward(dy):
        da = ((a > b) * dy + (a >= b) * dy) / 2
        return da, dy - da

    return array_module(a, b).maximum(a, b), backward


@op
def where(a, b, *, condition):
    """y = a where the boolean array ``condition`` is true, else b;  da = dy where it is true, db = dy where not"""
    xp = array_module(condition)
    return xp.where(condition, a, b), lambda dy: (xp.where(condition, dy, 0), xp.where(condition, 0, dy))


@op
def matmul(a, b):
    """y = a b over the last two axes,  da = dy bᵀ,  db = aᵀ dy"""
    if a.ndim < 2 or b.ndim < 2:
        raise ValueError("matmul needs at least two axes on each side; add one with reshape")

    def backward(dy):
        return dy @ b.swapaxes(-1, -2), a.swapaxes(-1, -2) @ dy

    return a @ b, backward


# --- reductions: axis is None (all axes), an int or a tuple ---


def _with_reduced_axes(dy, shape, axis, keepdims):
    """Restore the reduced axes of dy, with length 1."""
    axes = _reduced_axes(shape, axis)
    return dy if keepdims else dy.reshape([1 if i in axes else n for i, n in enumerate(shape)])


def _reduced_axes(shape, axis):
    """Return the axes over which a reduction runs, as non-negative numbers."""
    if axis is None:
        return set(range(len(shape)))
    return {a % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,))}


@op
def sum(x, *, axis=None, keepdims=False):
    """y = Σ x over ``axis``,  dx = dy for each summed entry"""
    xp, shape = array_module(x), x.shape
    y = x.sum(axis, keepdims=keepdims)
    return y, lambda dy: xp.broadcast_to(_with_reduced_axes(dy, shape, axis, keepdims), shape)


@op
def mean(x, *, axis=None, keepdims=False):
    """y = Σ x / n over ``axis``,  dx = dy / n for each of the n entries"""
    xp, shape = array_module(x), x.shape
    y = x.mean(axis, keepdims=keepdims)
    n = math.prod(shape[i] for i in _reduced_axes(shape, axis))
    return y, lambda dy: xp.broadcast_to(_with_reduced_axes(dy / n, shape, axis, keepdims), shape)


@op
def max(x, *, axis=None, keepdims=False):
    """y = max x over ``axis``;  dx = dy for the largest entry, shared equally by tied ones"""
    y = x.max(axis, keepdims=keepdims)

    def backward(dy):
        hit = x == x.max(axis, keepdims=True)
        return hit * (_with_reduced_axes(dy, x.shape, axis, keepdims) / hit.sum(axis, keepdims=True).astype(dy.dtype))

    return y, backward


# --- shapes: no arithmetic, so backward only puts the gradient back in place ---


@op
def reshape(x, *, shape):
    """y = x with another shape, in row-major order"""
    before = x.shape
    return x.reshape(shape), lambda dy: dy.reshape(before)


@op
def transpose(x, *, axes=None):
    """y whose axis i is axis ``axes[i]`` of x; by default the axes are reversed"""
    axes = tuple(range(x.ndim))[::-1] if axes is None else tuple(axes)
    inverse = sorted(range(x.ndim), key=lambda i: axes[i] % x.ndim)
    return x.transpose(axes), lambda dy: dy.transpose(inverse)


@op
def getitem(x, *, index):
    """y = x[index]; the gradients of an entry that is picked several times add up"""
    xp, shape = array_module(x), x.shape
    parts = index if isinstance(index, tuple) else (index,)
    basic = all(isinstance(p, int | slice | None | type(...)) for p in parts)  # then no entry is picked twice

    def backward(dy):
        dx = xp.zeros(shape, dy.dtype)
        if basic:
            dx[index] = dy
        else:
            xp.add.at(dx, index, dy)
        return dx

    return x[index], backward


@op
def concatenate(*xs, axis=0):
    """y = the arrays joined along an existing axis; each gets its slice of dy"""
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
Tensor.item = lambda x: x.data.item()  # its only element, as a Python number
Tensor.__bool__ = lambda x: bool(x.data)  # its truth value; ValueError for more than one element, as in NumPy
