"""Activations. Each docstring gives the formula and its derivative; the code computes the same, partly in place."""

import math

from ..autograd import op
from ..backend import array_module


@op
def relu(x):
    """y = max(x, 0),  dx = dy where x > 0"""
    xp = array_module(x)
    y = xp.zeros_like(x)
    xp.maximum(x, y, out=y)  # against an array NumPy is twice as fast as against a number
    return y, lambda dy: dy * (y > 0)


@op
def sigmoid(x):
    """y = 1 / (1 + e^-x) = (1 + tanh(x/2)) / 2,  dx = y (1 - y) dy

    The second form never overflows.
    """
    y = array_module(x).tanh(x / 2)
    y += 1
    y /= 2
    return y, lambda dy: dy * y * (1 - y)


@op
def tanh(x):
    """y = tanh x,  dx = (1 - y²) dy"""
    y = array_module(x).tanh(x)
    return y, lambda dy: dy * (1 - y * y)


@op
def gelu(x, *, approximate="tanh"):
    """y = x Φ(x), with the normal distribution function Φ exact ("none") or as tanh (paper, Scenic)

    tanh:  y = x (1 + t) / 2,   t = tanh u,   u = √(2/π) (x + 0.044715 x³)
           dx = ((1 + t) / 2 + x (1 - t²) u' / 2) dy,   u' = √(2/π) (1 + 3·0.044715 x²)
    none:  y = x Φ,   Φ = (1 + erf(x/√2)) / 2
           dx = (Φ + x φ) dy,   φ = e^(-x²/2) / √(2π)
    """
    xp = array_module(x)
    if approximate == "none":
        Phi = (1 + erf(x / math.sqrt(2))) / 2
        return x * Phi, lambda dy: dy * (Phi + x * (xp.exp(-x * x / 2) / math.sqrt(2 * math.pi)))
    if approximate != "tanh":
        raise ValueError(f"approximate is 'tanh' or 'none', not {approximate!r}")
    c, k = math.sqrt(2 / math.pi), 0.044715
    t = x * x  # in place from here on: u = x (c + c k x²)
    t *= c * k
    t += c
    t *= x
    xp.tanh(t, out=t)
    y = t + 1
    y *= x
    y *= 0.5

    def backward(dy):
        dx = x * x
        dx *= 3 * c * k
        dx += c  # u'
        dx *= x
        sech2 = t * t
        dx *= xp.subtract(1, sech2, out=sech2)
        dx += t
        dx += 1
        dx *= dy
        dx *= 0.5
        return dx

    return y, backward


def erf(x):
    """The error function of an array. NumPy has none, so Python's own is called for each entry, which is slow."""
    if array_module(x).__name__ == "cupy":
        from cupyx.scipy.special import erf as cuda_erf

        return cuda_erf(x)
    xp = array_module(x)
    return xp.asarray(xp.frompyfunc(math.erf, 1, 1)(x)).astype(x.dtype)


@op
def softmax(x, *, axis=-1):
    """y_i = exp(x_i) / Σ_j exp(x_j)

    dx_i = y_i (dy_i - Σ_j dy_j y_j)
    """
    xp = array_module(x)
    x = xp.ascontiguousarray(x)  # several times as fast as to sum along a turned array
    y = x - x.max(axis, keepdims=True)
    xp.exp(y, out=y)
    y /= y.sum(axis, keepdims=True)

    def backward(dy):
        dx = dy * y
        dx -= y * dx.sum(axis, keepdims=True)
        return dx

    return y, backward


@op
def log_softmax(x, *, axis=-1):
    """y_i = x_i - ln Σ_j exp(x_j)

    dx_i = dy_i - exp(y_i) Σ_j dy_j
    """
    xp = array_module(x)
    y = x - x.max(axis, keepdims=True)
    y -= xp.log(xp.exp(y).sum(axis, keepdims=True))
    return y, lambda dy: dy - xp.exp(y) * dy.sum(axis, keepdims=True)
