"""Ops that are random in training. A key drawn on the host determines each mask, so all devices get the same one."""

import numpy as np

from ..autograd import op
from ..backend import array_module, default_rng


def probability(p):
    """Return ``p``. Raises ValueError unless 0 <= p < 1: something has to be kept."""
    if not 0 <= p < 1:
        raise ValueError(f"a drop probability must lie in [0, 1), got {p}")
    return p


def keep_mask(x, shape, p, rng):
    """Return a mask like x of the given shape: 0 with probability p and 1/(1-p) otherwise; the number 1 if p is 0."""
    if probability(p) == 0:
        return 1
    key = int(default_rng(rng).integers(2**64, dtype="uint64"))
    bits = np.random.Philox(key=key)  # counter-based, so a GPU can produce the same bits
    keep = (np.random.Generator(bits).random(shape, dtype="float32") >= p).astype(x.dtype)
    return array_module(x).asarray(keep / x.dtype.type(1 - p))


@op
def dropout(x, *, p, rng=None):
    """y = m x,  dx = m dy: an entry of the mask m is 0 with probability p, and 1/(1-p) otherwise"""
    m = keep_mask(x, x.shape, p, rng)
    return m * x, lambda dy: m * dy


@op
def drop_path(x, *, p, rng=None):
    """y = m x,  dx = m dy with one entry of m for each sample (the first axis): stochastic depth"""
    m = keep_mask(x, (len(x),) + (1,) * (x.ndim - 1), p, rng)
    return m * x, lambda dy: m * dy


@op
def residual(x, y, b=None, *, p=0.0, rng=None):
    """z = x + m (y + b): the end of a residual branch, with the bias b of its last layer and the mask m of drop_path

    y (B, ..., C), b (C), and x like y or broadcast to it.  dx = dz,  dy = m dz,  db = Σ dy
    """
    if np.broadcast_shapes(x.shape, y.shape) != y.shape or (b is not None and b.shape != y.shape[-1:]):
        raise ValueError("needs y (B, ..., C), b (C), and x that can be broadcast to y")
    m = keep_mask(y, (len(y),) + (1,) * (y.ndim - 1), p, rng)

    def backward(dz):
        dy = m * dz
        return dz, dy, None if b is None else dy

    return x + m * (y if b is None else y + b), backward
