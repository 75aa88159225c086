"""Activations, and the softmax."""

import math

import numpy as np

from ..autograd import op
from ..backend import array_module, to_numpy


@op
def relu(x):
    """y = max(x, 0),  dx = dy where y > 0, else 0"""
    y = array_module(x).maximum(x, 0)
    return y, lambda dy: dy * (y > 0)


@op
def sigmoid(x):
    """y = 1 / (1 + e^-x) = (1 + tanh(x/2)) / 2,  dx = y (1 - y) dy

    The second form never overflows.
    """
    y = (1 + array_module(x).tanh(x / 2)) / 2
    return y, lambda dy: y * (1 - y) * dy


@op
def tanh(x):
    """y = tanh x,  dx = (1 - y²) dy"""
    y = array_module(x).tanh(x)
    return y, lambda dy: (1 - y * y) * dy


@op
def gelu(x, *, approximate="tanh"):
    """y = x Φ,  dx = (Φ + x φ) dy, with the normal distribution function Φ(x) and its derivative φ(x)

    "none":  Φ = (1 + erf(x/√2)) / 2,  φ = e^(-x²/2) / √(2π)
    "tanh" (the authors' code):  Φ = (1 + t) / 2,  φ = (1 - t²) u' / 2,  t = tanh u,  u = √(2/π) (x + 0.044715 x³)
    """
    if approximate not in ("tanh", "none") or x.dtype.kind != "f":
        raise ValueError(f"needs floats in x, and approximate='tanh' or 'none'; got {approximate!r}")
    xp = array_module(x)
    if approximate == "none":
        Phi, phi = (1 + erf(x / math.sqrt(2))) / 2, xp.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    else:
        c, k = math.sqrt(2 / math.pi), 0.044715
        t = xp.tanh(c * (x + k * x * x * x))
        Phi, phi = (1 + t) / 2, (1 - t * t) * c * (1 + 3 * k * x * x) / 2
    return x * Phi, lambda dy: (Phi + x * phi) * dy


def erf(x):
    """Return the error function of an array. NumPy has none, so this calls math.erf on each entry, slowly."""
    y = np.asarray(np.frompyfunc(math.erf, 1, 1)(to_numpy(x))).astype(x.dtype)
    return array_module(x).asarray(y)


@op
def softmax(x, *, axis=-1):
    """y_i = exp(x_i) / Σ_j exp(x_j)

    dx_i = y_i (dy_i - Σ_j dy_j y_j)
    """
    xp = array_module(x)
    e = xp.exp(x - x.max(axis, keepdims=True))
    y = e / e.sum(axis, keepdims=True)

    def backward(dy):
        return y * (dy - (dy * y).sum(axis, keepdims=True))

    return y, backward


@op
def log_softmax(x, *, axis=-1):
    """y_i = x_i - ln Σ_j exp(x_j)

    dx_i = dy_i - exp(y_i) Σ_j dy_j
    """
    xp = array_module(x)
    x = x - x.max(axis, keepdims=True)
    y = x - xp.log(xp.exp(x).sum(axis, keepdims=True))
    return y, lambda dy: dy - xp.exp(y) * dy.sum(axis, keepdims=True)
