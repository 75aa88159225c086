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
def batch_norm(x, weight, bias, *, running_mean, running_var, training=True, momentum=0.1, eps=1e-5, gather=None):
    """y = n weight + bias,  n = (x - mean) / √(var + eps) over all axes but the last

    In training mean and var are the batch's, and the two running arrays move towards them in place:
    r ← (1 - momentum) r + momentum · (mean, unbiased var).  dx as in layer_norm, over the other axes.
    Otherwise mean and var are the running arrays, constants:  dx = dy weight / √(var + eps).
    Where threads share a batch, ``gather`` lists what each brings: N var = Σ N_k (var_k + (mean_k - mean)²).
    """
    _check(x, weight=weight, bias=bias)
    _check(x, f"; got {running_mean.shape} and {running_var.shape}", running_mean=running_mean, running_var=running_var)
    xp, C, shape = array_module(x), x.shape[-1], x.shape
    gather = gather or (lambda brought: [brought])

    def row(channels):  # (C) -> as often as a sample has pixels: NumPy is slow on rows as short as C
        return xp.tile(channels, math.prod(shape[1:-1]))

    d, own, mean, var = x.reshape(len(x), -1), 0, running_mean, running_var
    if training:
        own = _totals(d, C) / max(1, x.size // C)
        d = d - row(own)
        counts, means, squares = xp.stack(gather(xp.stack((xp.full_like(own, x.size // C), own, _totals(d * d, C)))), 1)
        if (count := counts.sum(0))[0] < 2:
            raise ValueError("training needs at least two values per channel; use a larger batch")
        mean = (counts * means).sum(0) / count
        var = (squares + counts * (means - mean) ** 2).sum(0) / count
        for running, batch in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
            running *= 1 - momentum
            running += momentum * batch
    inv_std, gap = 1 / xp.sqrt(var + eps), own - mean  # n = (d + gap) inv_std
    y = d * row(weight * inv_std)
    y += row(gap * weight * inv_std + bias)

    def backward(dy):
        dy, scale = dy.reshape(d.shape), weight * inv_std
        dyd, dbias = dy * d, _totals(dy, C)
        dweight = (_totals(dyd, C) + gap * dbias) * inv_std
        dx = dy * row(scale)
        if training:
            mean_gn, mean_g = sum(gather(xp.stack((dweight, dbias)))) * scale / count
            dx -= xp.multiply(d, row(mean_gn * inv_std), out=dyd)
            dx -= row(mean_g + mean_gn * inv_std * gap)
        return dx.reshape(shape), dweight, dbias

    return y.reshape(shape), backward


def _totals(rows, C):
    """The sum of each channel over samples and pixels: (B, pixels·C) -> (C)."""
    return (array_module(rows).ones(len(rows), rows.dtype) @ rows).reshape(-1, C).sum(0)


def _check(x, given="", **arrays):
    """``given`` says the shapes where the arrays are options; those of inputs stand in front of each error."""
    if any(array.shape != x.shape[-1:] for array in arrays.values()):
        raise ValueError(f"{' and '.join(arrays)} need the shape {x.shape[-1:]}{given}")
