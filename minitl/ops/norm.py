"""Normalizations.

Both share one derivation: with n = (x - mean x) / std and g = dy weight,

    dx = (g - mean g - n mean(g n)) / std,  std = √(var x + eps),

where the means run over the normalized axes. The second and third term remove the parts of g that would only shift or
scale x, to which n is blind.
"""

from ..autograd import op
from ..backend import array_module


@op
def layer_norm(x, weight, bias, *, eps=1e-6):
    """y = n weight + bias,  n = (x - mean x) / √(var x + eps) over the last axis

    dx = (g - mean g - n mean(g n)) / √(var x + eps),  g = dy weight
    dweight = Σ dy n,  dbias = Σ dy:  the engine sums over all other axes
    """
    check_channels(x, weight=weight, bias=bias)
    std = array_module(x).sqrt(x.var(-1, keepdims=True) + eps)
    n = (x - x.mean(-1, keepdims=True)) / std

    def backward(dy):
        g = dy * weight
        dx = (g - g.mean(-1, keepdims=True) - n * (g * n).mean(-1, keepdims=True)) / std
        return dx, dy * n, dy

    return n * weight + bias, backward


@op
def batch_norm(x, weight, bias, *, running_mean, running_var, training=True, momentum=0.1, eps=1e-5):
    """y = n weight + bias,  n = (x - mean) / √(var + eps) over all axes but the last

    In training mean and var are those of the batch, and the running arrays move towards them in place:
    r ← (1 - momentum) r + momentum (mean, unbiased var).  dx as in layer_norm, over the other axes.
    Otherwise mean and var are the running arrays, constants:  dx = dy weight / √(var + eps).
    """
    check_channels(x, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    mean, var, axes = running_mean, running_var, tuple(range(x.ndim - 1))
    if training:
        count = x.size // x.shape[-1]
        if count < 2:
            raise ValueError("training needs at least two values per channel; use a larger batch")
        mean, var = x.mean(axes), x.var(axes)
        running_mean[...] = (1 - momentum) * running_mean + momentum * mean
        running_var[...] = (1 - momentum) * running_var + momentum * var * (count / (count - 1))
    std = array_module(x).sqrt(var + eps)
    n = (x - mean) / std

    def backward(dy):
        g = dy * weight
        dx = (g - g.mean(axes) - n * (g * n).mean(axes)) / std if training else g / std
        return dx, dy * n, dy

    return n * weight + bias, backward


def check_channels(x, **arrays):
    """Raise ValueError unless each array has one number for each channel of x, the last axis."""
    if any(array.shape != x.shape[-1:] for array in arrays.values()):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"{' and '.join(arrays)} need the shape {x.shape[-1:]}, one number per channel; got {shapes}")
