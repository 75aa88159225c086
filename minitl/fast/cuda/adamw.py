"""Clipping, AdamW or Muon, and the average of weights without a look at the host, on the optimiser's flat arrays.

A model has many small parameters, and to add to the gradient of each one is a launch of its own. So gradients wait
where they were computed until there is one of each parameter, and are brought together by a single launch.
"""

import math

import cupy
import numpy as np

from ...optim import Muon
from .gemm import operand, product
from .graph import changing
from .kernels import dense, each, launch, tickets


class Waiting:
    """The gradient of a parameter during backward: an array that was added to it, not yet in its place."""

    def __init__(self):
        self.array = None

    def __iadd__(self, grad):
        self.array = grad if self.array is None else self.array + grad
        return self


def zero_grad(optimizer):
    """``optimizer.zero_grad()`` for a ``backward`` that is followed by ``update``: there is nothing to write yet."""
    for p, _, _ in optimizer.flat.views:
        p.grad = Waiting()


def _gather(flat):
    """Gradients into the flat array: by one launch if they wait, else as the flat array does it."""
    if not all(isinstance(p.grad, Waiting) for p, _, _ in flat.views):
        return flat.gather()
    flat.check()
    arrays, rows, start = [], [], 0
    for p, _, grad in flat.views:
        arrays.append(None if p.grad.array is None else dense(p.grad.array))
        rows += [0 if arrays[-1] is None else arrays[-1].data.ptr, start, grad.size]
        start += grad.size
        p.grad = grad
    # a graph asks for the table again, and so keeps the arrays where they are
    table = changing(lambda _=arrays: rows, len(rows), np.uint64)
    blocks = min(32, each(max(grad.size for _, _, grad in flat.views)))
    launch("gather", (blocks, len(arrays)), flat.grad, table, len(arrays))


def update(optimizer, max_norm=math.inf, ema=None):
    """``clip_grad_norm(max_norm)``, ``step()`` and ``ema.update()`` of ``optim`` in one.

    With AdamW that is two launches, and one that gathers.
    The gradients are those of any ``backward``, or wait since ``zero_grad``.
    Returns the squared norm of the gradient as a device array (1,). Nothing is looked at on the host, so it can be
    captured; if the norm is not finite, the weights stay as they are. The gradients are not scaled themselves.
    """
    flat, (beta1, beta2) = optimizer.flat, optimizer.betas
    _gather(flat)
    n, dtype = flat.data.size, flat.data.dtype

    def now():
        optimizer.steps += 1
        t = optimizer.steps
        return optimizer.lr, 1 - beta1**t, (1 - beta2**t) ** 0.5

    norm2, parts = cupy.empty(1, dtype), cupy.empty(min(256, each(n)), dtype)
    launch("squares", (1, len(parts)), norm2, parts, tickets(), flat.grad, n)
    numbers = changing(now, 3, dtype)
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
    launch("adamw", each(n - first), *rest, norm2, numbers, n - first, flat.decayed - first, *options)
    return norm2


def _move_matrices(optimizer, norm2, lr, max_norm):
    """As ``optimizer.step`` does it, but a gradient that is not finite leaves the weights as they are."""
    norm = cupy.sqrt(norm2)
    finite = norm < math.inf
    factor = cupy.minimum(max_norm / (norm + 1e-6), 1)
    g = cupy.where(finite, factor * optimizer.flat.grad[: optimizer.flat.decayed], 0)
    optimizer.move_matrices(g, cupy.where(finite, lr, 0), lambda a, b: product(operand(a), operand(b)))
