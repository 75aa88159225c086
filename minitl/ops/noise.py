"""Random ops of training. Masks are drawn on the host, so that every device sees the same ones."""

from ..autograd import op
from ..backend import array_module, default_rng


def keep_mask(x, shape, p, rng):
    """0 with probability p and 1/(1-p) otherwise, of x's kind and the given shape; ``None`` when p is 0."""
    if not 0 <= p < 1:
        raise ValueError(f"a drop probability lies in [0, 1), got {p}")
    if p == 0:
        return None
    keep = (rng.random(shape, dtype="float32") >= p).astype(x.dtype)
    keep /= 1 - p
    return array_module(x).asarray(keep)


@op
def dropout(x, *, p, rng=None):
    """y = m x,  dx = m dy: each entry is 0 with probability p, and otherwise divided by 1 - p"""
    keep = keep_mask(x, x.shape, p, default_rng(rng))
    return (x.copy(), lambda dy: dy) if keep is None else (x * keep, lambda dy: dy * keep)


@op
def drop_path(x, *, p, rng=None):
    """Dropout of whole samples (stochastic depth): one draw for each entry of the first axis"""
    keep = keep_mask(x, (len(x),) + (1,) * (x.ndim - 1), p, default_rng(rng))
    return (x.copy(), lambda dy: dy) if keep is None else (x * keep, lambda dy: dy * keep)
