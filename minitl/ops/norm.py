"""Normalisations. Both share one derivation: n = (x - mean) / std, and with g = dy·weight,

dx = (g - mean(g) - n mean(g n)) / std,  where the means run over the normalised axes.

The first term is the direct path; the second and third remove what changes the mean and the spread of x.
"""

import math

from ..autograd import op
from ..backend import array_module


@op
def layer_norm(x, weight, bias, *, eps=1e-6):
    """y = n weight + bias,  n = (x - mean x) / √(var x + eps) over the last axis

    dx = (g - mean g - n mean(g n)) / √(var x + eps),  g = dy weight
    dweight = Σ dy n,  dbias = Σ dy  over all other axes
    """
    _check(x, weight=weight, bias=bias)
    xp, shape, d = array_module(x), x.shape, x.shape[-1]
    ones = xp.ones((d, 1), x.dtype)  # BLAS sums rows by a product with ones, faster than sum does
    n = x.reshape(-1, d)
    n = n - (n @ ones) / d
    inv_std = 1 / xp.sqrt((xp.square(n) @ ones) / d + eps)
    n *= inv_std
    y = n * weight
    y += bias

    def backward(dy):
        dy = dy.reshape(-1, d)
        dyn, ones, w = dy * n, xp.ones(len(dy), dy.dtype), (weight / d)[:, None]
        dweight, dbias, mean_g, mean_gn = ones @ dyn, ones @ dy, dy @ w, dyn @ w
        dx = dy * weight
        dx -= mean_g
        dx -= xp.multiply(n, mean_gn, out=dyn)
        dx *= inv_std
        return dx.reshape(shape), dweight, dbias

    return y.reshape(shape), backward


@op
def batch_norm(x, weight, bias, *, running_mean, running_var, training=True, momentum=0.1, eps=1e-5, total=None):
    """y = n weight + bias,  n = (x - mean) / √(var + eps) over all axes but the last

    In training mean and var are the batch's, and the two running arrays move towards them in place:
    r ← (1 - momentum) r + momentum · (mean, unbiased var).  dx as in layer_norm, over the other axes.
    Otherwise mean and var are the running arrays, constants:  dx = dy weight / √(var + eps).
    Where several threads share a batch, ``total`` adds up over them what each has.
    """
    _check(x, weight=weight, bias=bias)
    _check(x, running_mean=running_mean, running_var=running_var)
    xp, C, shape = array_module(x), x.shape[-1], x.shape
    total = total or (lambda own: own)
    count = total(x.size // C) if training else None
    if training and count < 2:
        raise ValueError(f"training needs at least two values per channel, got x {x.shape}; use a larger batch")

    def row(channels):  # (C) -> as often as a sample has pixels: NumPy is slow on rows as short as C
        return xp.tile(channels, math.prod(shape[1:-1]))

    x = x.reshape(len(x), -1)
    mean = total(_totals(x, C)) / count if training else running_mean
    n = x - row(mean)
    var = total(_totals(n * n, C)) / count if training else running_var
    if training:
        for running, batch in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
            running *= 1 - momentum
            running += momentum * batch
    inv_std = 1 / xp.sqrt(var + eps)
    n *= row(inv_std)
    y = n * row(weight)
    y += row(bias)

    def backward(dy):
        dy = dy.reshape(n.shape)
        dyn = dy * n
        dweight, dbias = _totals(dyn, C), _totals(dy, C)
        dx = dy * row(weight * inv_std)
        if training:
            scale = weight * inv_std / count
            dx -= xp.multiply(n, row(scale * total(dweight)), out=dyn)
            dx -= row(scale * total(dbias))
        return dx.reshape(shape), dweight, dbias

    return y.reshape(shape), backward


def _totals(rows, C):
    """The sum of each channel over samples and pixels: (B, pixels·C) -> (C)."""
    return (array_module(rows).ones(len(rows), rows.dtype) @ rows).reshape(-1, C).sum(0)


def _check(x, **arrays):
    if any(array.shape != x.shape[-1:] for array in arrays.values()):
        got = " and ".join(str(array.shape) for array in arrays.values())
        raise ValueError(f"{' and '.join(arrays)} need the shape {x.shape[-1:]}; got {got}")
