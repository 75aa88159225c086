"""Normalisations. Both share one derivation: n = (x - mean) / std, and with g = dy·weight,

dx = (g - mean(g) - n mean(g n)) / std,  where the means run over the normalised axes.

The first term is the direct path; the second and third remove what changes the mean and the spread of x.
"""

from ..autograd import op
from ..backend import array_module


@op
def layer_norm(x, weight, bias, *, eps=1e-6):
    """y = n weight + bias,  n = (x - mean x) / √(var x + eps) over the last axis

    dx = (g - mean g - n mean(g n)) / √(var x + eps),  g = dy weight
    dweight = Σ dy n,  dbias = Σ dy  over all other axes
    """
    _check(x, weight, bias)
    xp = array_module(x)
    n = x - x.mean(-1, keepdims=True)
    inv_std = 1 / xp.sqrt((n * n).mean(-1, keepdims=True) + eps)
    n *= inv_std

    def backward(dy):
        dyn = dy * n
        dweight, dbias = dyn.reshape(-1, dy.shape[-1]).sum(0), dy.reshape(-1, dy.shape[-1]).sum(0)
        dyn *= weight
        dx = dy * weight
        dx -= dx.mean(-1, keepdims=True)
        dx -= n * dyn.mean(-1, keepdims=True)
        dx *= inv_std
        return dx, dweight, dbias

    return n * weight + bias, backward


@op
def batch_norm(x, weight, bias, *, running_mean, running_var, training=True, momentum=0.1, eps=1e-5):
    """y = n weight + bias,  n = (x - mean) / √(var + eps) over all axes but the last

    In training mean and var are the batch's, and the two running arrays move towards them in place:
    r ← (1 - momentum) r + momentum · (mean, unbiased var).  dx as in layer_norm, over the other axes.
    Otherwise mean and var are the running arrays, constants:  dx = dy weight / √(var + eps).
    """
    _check(x, weight, bias)
    if running_mean.shape != x.shape[-1:] or running_var.shape != x.shape[-1:]:
        got = f"got {running_mean.shape} and {running_var.shape}"
        raise ValueError(f"running_mean and running_var need the shape {x.shape[-1:]}; {got}")
    xp, axes, count = array_module(x), tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    if training and count < 2:
        raise ValueError(f"training needs at least two values per channel, got x {x.shape}; use a larger batch")
    mean = x.mean(axes) if training else running_mean
    n = x - mean
    var = (n * n).mean(axes) if training else running_var
    if training:
        for running, batch in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
            running *= 1 - momentum
            running += momentum * batch
    inv_std = 1 / xp.sqrt(var + eps)
    n *= inv_std

    def backward(dy):
        dweight, dbias = (dy * n).sum(axes), dy.sum(axes)
        dx = dy * (weight * inv_std)
        if training:
            dx -= (weight * inv_std / count) * (dbias + n * dweight)
        return dx, dweight, dbias

    return n * weight + bias, backward


def _check(x, weight, bias):
    if weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(f"weight and bias need the shape {x.shape[-1:]}; got {weight.shape} and {bias.shape}")
