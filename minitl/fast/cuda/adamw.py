"""Clipping, AdamW or Muon, and the average of the weights, on the optimizer's flat arrays, without waiting for the GPU.

A model has many small parameters, and adding to the gradient of each would take one launch per parameter. So gradients
stay where they were computed until backward ends, and a single launch copies them into the flat array.
"""

import math

import cupy
import numpy as np

from ...optim import Muon
from .gemm import product, to_precision
from .graph import host_values
from .kernels import blocks_for, contiguous, launch, tickets


class PendingGradient:
    """The gradient of a parameter during backward: the array that was added, not yet in the flat array."""

    def __init__(self):
        self.array = None

    def __iadd__(self, grad):
        self.array = grad if self.array is None else self.array + grad
        return self


def zero_grad(optimizer):
    """Replace ``optimizer.zero_grad()`` before ``backward`` and ``update``, without writing zeros."""
    for p, _, _ in optimizer.flat.views:
        p.grad = PendingGradient()


def concatenate(arrays, out=None):
    """Copy arrays into the flat array ``out``, by default a new one, in one launch; an integer n stands for n zeros."""
    arrays = [x if isinstance(x, int) else contiguous(x) for x in arrays]
    sizes = [x if isinstance(x, int) else x.size for x in arrays]
    out = cupy.empty(sum(sizes), arrays[0].dtype) if out is None else out
    starts = np.cumsum([0, *sizes]).tolist()
    rows = [(0 if isinstance(x, int) else x.data.ptr, *part) for x, *part in zip(arrays, starts, sizes, strict=False)]
    # a graph keeps the function, and so the arrays whose addresses it returns
    table = host_values(lambda _=arrays: sum(rows, ()), 3 * len(rows), np.uint64)
    launch("gather", (min(32, blocks_for(max(sizes))), len(rows)), out, table, len(rows))
    return out


def _gather(flat):
    """Copy gradients into the flat array, in one launch if all are pending, else as ``Flat.gather`` does."""
    if not all(isinstance(p.grad, PendingGradient) for p, _, _ in flat.views):
        return flat.gather()
    flat.check()
    concatenate([p.size if p.grad.array is None else p.grad.array for p, _, _ in flat.views], flat.grad)
    for p, _, grad in flat.views:
        p.grad = grad


def update(optimizer, max_norm=math.inf, ema=None):
    """Do ``clip_grad_norm(max_norm)``, ``step()`` and ``ema.update()`` of ``optim`` at once.

    With AdamW this takes two launches, and one to gather the gradients. Returns the squared norm of the gradient as a
    device array (1,): the host reads nothing back, so a graph can capture it. If the norm is not finite, the weights do
    not change. The gradients themselves are not scaled.
    """
    flat, (beta1, beta2) = optimizer.flat, optimizer.betas
    _gather(flat)
    n, dtype = flat.data.size, flat.data.dtype

    def step_factors():
        optimizer.steps += 1
        t = optimizer.steps
        return optimizer.lr, 1 - beta1**t, (1 - beta2**t) ** 0.5

    norm2, parts = cupy.empty(1, dtype), cupy.empty(min(256, blocks_for(n)), dtype)
    launch("squares", (1, len(parts)), norm2, parts, tickets(), flat.grad, n)
    numbers = host_values(step_factors, 3, dtype)
    average, decay = (None, 0.0) if ema is None else (ema.average, ema.decay)
    first = flat.decayed if isinstance(optimizer, Muon) else 0
    if first:
        _move_matrices(optimizer, norm2, numbers[:1], max_norm)
        if ema:
            average[:first] *= decay
            average[:first] += (1 - decay) * flat.data[:first]
    if first == n:
        return norm2
    arrays = flat.data, optimizer.exp_avg, optimizer.exp_avg_sq, average, flat.grad
    rest = (x if x is None else x[first:] for x in arrays)
    factors = beta1, 1 - beta1, beta2, 1 - beta2, optimizer.eps, decay, 1 - decay
    options = (float(x) for x in (max_norm, optimizer.weight_decay, *factors))
    launch("adamw", blocks_for(n - first), *rest, norm2, numbers, n - first, flat.decayed - first, *options)
    return norm2


def _move_matrices(optimizer, norm2, lr, max_norm):
    """Update matrices as ``optimizer.step`` does, but leave them unchanged if the gradient is not finite."""
    norm = cupy.sqrt(norm2)
    finite = norm < math.inf
    factor = cupy.minimum(max_norm / (norm + 1e-6), 1)
    g = cupy.where(finite, factor * optimizer.flat.grad[: optimizer.flat.decayed], 0)
    optimizer.move_matrices(g, cupy.where(finite, lr, 0), lambda a, b: product(to_precision(a), to_precision(b)))
