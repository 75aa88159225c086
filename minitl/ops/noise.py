"""Random ops of training. A mask follows from a key that is drawn on the host, so every device sees the same ones."""

import numpy as np

from ..autograd import op
from ..backend import array_module, default_rng


def probability(p):
    """``p`` itself; raises ``ValueError`` when nothing could be kept or ``p`` is no probability."""
    if not 0 <= p < 1:
        raise ValueError(f"a drop probability lies in [0, 1), got {p}")
    return p


def keep_mask(x, shape, p, rng):
    """0 with probability p and 1/(1-p) otherwise, of x's kind and the given shape; ``None`` when p is 0."""
    if probability(p) == 0:
        return None
    bits = np.random.Philox(key=int(rng.integers(2**64, dtype="uint64")))  # a generator that a GPU can run too
    keep = (np.random.Generator(bits).random(shape, dtype="float32") >= p).astype(x.dtype)
    keep /= 1 - p
    return array_module(x).asarray(keep)


@op
def dropout(x, *, p, rng=None):
    """y = m x,  dx = m dy: an entry of the mask m is 0 with probability p, and 1/(1-p) otherwise"""
    return _masked(x, keep_mask(x, x.shape, p, default_rng(rng)))


@op
def drop_path(x, *, p, rng=None):
    """y = m x,  dx = m dy with one entry of m for each sample (the first axis): stochastic depth"""
    return _masked(x, keep_mask(x, (len(x),) + (1,) * (x.ndim - 1), p, default_rng(rng)))


def _masked(x, keep):
    return (x.copy(), lambda dy: dy) if keep is None else (x * keep, lambda dy: dy * keep)
