"""Clipping, AdamW and the average of the weights in three launches, on the optimiser's own flat arrays."""

import math

import cupy

from .graph import changing
from .kernels import column_sums, each, launch


def update(optimizer, max_norm=math.inf, ema=None):
    """``clip_grad_norm(max_norm)``, ``step()`` and ``ema.update()`` of ``optim.AdamW`` and ``optim.EMA`` in one.

    Returns the squared norm of the gradient as a device array (1,). Nothing is looked at on the host, so it can be
    captured; if the norm is not finite, the weights stay as they are. The gradients are not scaled themselves.
    """
    flat, (beta1, beta2) = optimizer.flat, optimizer.betas
    flat.gather()
    n, dtype = flat.data.size, flat.data.dtype

    def now():
        optimizer.steps += 1
        t = optimizer.steps
        return optimizer.lr, 1 - beta1**t, (1 - beta2**t) ** 0.5

    sums = cupy.empty((min(256, each(n)), 1), dtype)
    launch("squares", len(sums), sums, flat.grad, n)
    norm2 = column_sums(sums)
    average, decay = (None, 0.0) if ema is None else (ema.average, ema.decay)
    state = flat.data, optimizer.exp_avg, optimizer.exp_avg_sq, average, flat.grad, norm2, changing(now, 3, dtype)
    factors = beta1, 1 - beta1, beta2, 1 - beta2, optimizer.eps, decay, 1 - decay
    options = (float(x) for x in (max_norm, optimizer.weight_decay, *factors))
    launch("adamw", each(n), *state, n, flat.decayed, *options)
    return norm2
