"""SGD, AdamW, Muon, gradient clipping, the learning rate schedule and the average of weights, on one flat buffer.

A model has many small parameters. In one flat buffer, an update, a norm or an average of all of them takes a few
whole-array operations. Formulas and names are PyTorch's, so settings carry over, but weight decay acts on matrices
only, and Muon is PyTorch's with ``adjust_lr_fn="match_rms_adamw"``.
"""

import contextlib
import math

import numpy as np

from .autograd import Tensor
from .backend import array_module, describe, to_numpy
from .errors import InputError

CHUNK_NUMBERS = 2**17  # weights that AdamW updates at a time: 3 MB in float32, with gradients and moments


class Flat:
    """All parameters side by side: each ``p.data`` and ``p.grad`` becomes a view of the flat ``data`` and ``grad``.

    Matrices (two axes or more) come first, so weight decay acts on the slice ``data[:decayed]``; biases, norms and
    other vectors follow. Raises TypeError for anything but leaf Tensors with ``requires_grad=True``, and
    ValueError for no parameters, one listed twice, or mixed dtypes or devices; nothing is changed then.
    """

    def __init__(self, params):
        params = list(params)
        if not params:
            raise ValueError("no parameters to train; pass module.parameters()")
        for i, p in enumerate(params):
            if not isinstance(p, Tensor) or not p.requires_grad or p.node is not None:
                kind = describe(p.data) if isinstance(p, Tensor) else type(p).__name__
                raise TypeError(
                    f"parameter {i} ({kind}) is not a leaf with requires_grad=True; pass module.parameters()"
                )
        if len({id(p) for p in params}) < len(params):
            raise ValueError("the same parameter is listed twice; pass each one once")
        kinds = sorted({f"{p.dtype} on {p.data.device}" for p in params})
        if len(kinds) > 1:
            raise ValueError(f"parameters are {' and '.join(kinds)}; make them alike with module.to(...)")

        params.sort(key=lambda p: p.ndim < 2)  # stable: the given order is kept within both groups
        self.decayed = sum(p.size for p in params if p.ndim >= 2)
        self.xp = array_module(params[0].data)
        self.data = self.xp.concatenate([p.data.ravel() for p in params])
        self.grad = self.xp.zeros_like(self.data)
        self.views, start = [], 0  # (parameter, its part of data, its part of grad)
        for p in params:
            data, grad = (x[start : start + p.size].reshape(p.shape) for x in (self.data, self.grad))
            self.views.append((p, data, grad))
            p.data, start = data, start + p.size
        self.gather()

    def check(self):
        """Raise RuntimeError if the data of a parameter is no longer its part of the flat array."""
        if any(p.data is not data for p, data, _ in self.views):
            raise RuntimeError(
                "the data of a parameter was replaced after the optimizer was made; make one optimizer, after "
                "module.to(...), and write values with p.data[...] = values"
            )

    def gather(self):
        """Copy gradients that were set from outside into the flat array; a parameter without one gets zeros."""
        self.check()
        for p, data, grad in self.views:
            if p.grad is not grad:
                if p.grad is not None and describe(p.grad) != describe(data):
                    raise ValueError(f"a gradient is {describe(p.grad)}, but its parameter is {describe(data)}")
                grad[...] = 0 if p.grad is None else p.grad
                p.grad = grad


class Stateful:
    """Saving and loading of the attributes in ``numbers``, pairs (name, type), and ``arrays``, names."""

    numbers = arrays = ()

    def state_dict(self):
        """Return name -> array. Numbers become 0-d arrays; the arrays are the live ones, not copies."""
        numbers = {name: np.asarray(getattr(self, name), kind) for name, kind in self.numbers}
        return numbers | {name: getattr(self, name) for name in self.arrays}

    def load_state_dict(self, state):
        """Continue from ``state``, bit for bit. Raises InputError, with nothing changed, if it does not fit."""
        found, wanted = ({name: describe(x) for name, x in d.items()} for d in (state, self.state_dict()))
        if found != wanted:
            raise InputError(f"the saved state does not fit {type(self).__name__}: it has {found}, expected {wanted}")
        for name, kind in self.numbers:
            setattr(self, name, kind(state[name]))
        for name in self.arrays:
            getattr(self, name)[...] = self.flat.xp.asarray(to_numpy(state[name]))


class Optimizer(Stateful):
    """Base of the optimizers. A schedule assigns to ``lr`` between steps.

    Weight decay acts on matrices only (parameters with two axes or more). A parameter without a gradient counts as
    having a gradient of zeros. Raises the errors of ``Flat``, and InputError for an option out of range.
    """

    numbers = (("lr", float),)

    def __init__(self, params, lr, weight_decay):
        _require("lr", lr, 0 < lr < math.inf, "above 0")
        _require("weight_decay", weight_decay, 0 <= weight_decay < math.inf, "0 or more")
        self.lr, self.weight_decay = float(lr), weight_decay
        self.flat = Flat(params)

    def zero_grad(self):
        """Set all gradients to zero (not None, as ``Module.zero_grad``); ``backward`` adds to them."""
        self.flat.grad[...] = 0
        for p, _, grad in self.flat.views:
            p.grad = grad

    def clip_grad_norm(self, max_norm):
        """Scale all gradients by one factor so that their common norm is at most ``max_norm``.

        Returns the norm before clipping. If it is infinite or NaN, the gradients are left as they are, so that the
        caller can stop.
        """
        _require("max_norm", max_norm, 0 < max_norm < math.inf, "above 0")
        self.flat.gather()
        norm = float(self.flat.xp.dot(self.flat.grad, self.flat.grad)) ** 0.5
        if max_norm < norm < math.inf:
            self.flat.grad *= max_norm / (norm + 1e-6)
        return norm


class SGD(Optimizer):
    """u = g + λ w,  v ← μ v + u,  w ← w - lr v,  with momentum μ and weight decay λ."""

    def __init__(self, params, lr, momentum=0.0, weight_decay=0.0):
        _require("momentum", momentum, 0 <= momentum < 1, "in [0, 1)")
        super().__init__(params, lr, weight_decay)
        self.momentum = momentum
        if momentum:
            self.momentum_buffer = self.flat.xp.zeros_like(self.flat.data)
            self.arrays = ("momentum_buffer",)

    def step(self):
        """Update all parameters once."""
        self.flat.gather()
        w, n = self.flat.data, self.flat.decayed
        u = self.flat.grad.copy()
        u[:n] += self.weight_decay * w[:n]
        if self.momentum:
            self.momentum_buffer *= self.momentum
            self.momentum_buffer += u
            u = self.momentum_buffer
        w -= self.lr * u


class AdamW(Optimizer):
    """w ← (1 - lr λ) w - lr m̂ / (√v̂ + ε): Adam with decoupled weight decay λ (Loshchilov and Hutter, 2019).

    m ← β₁ m + (1-β₁) g  and  v ← β₂ v + (1-β₂) g²  are ``exp_avg`` and ``exp_avg_sq``. Both start at zero; m̂ = m / c₁
    and v̂ = v / c₂ correct for that bias after t steps, with c₁ = 1 - β₁ᵗ and c₂ = 1 - β₂ᵗ.
    """

    numbers = (("lr", float), ("steps", int))
    arrays = ("exp_avg", "exp_avg_sq")

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        _require("betas", betas, len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "two numbers in [0, 1)")
        _require("eps", eps, 0 < eps < math.inf, "above 0")
        super().__init__(params, lr, weight_decay)
        self.betas, self.eps, self.steps = tuple(betas), eps, 0
        self.exp_avg, self.exp_avg_sq = (self.flat.xp.zeros_like(self.flat.data) for _ in range(2))

    def step(self):
        """Update all parameters once."""
        self.flat.gather()
        self.steps += 1
        self._move(0)

    def _move(self, start):
        """Update the flat array from index ``start`` on, a chunk at a time."""
        sqrt, (beta1, beta2) = self.flat.xp.sqrt, self.betas
        c1, c2 = 1 - beta1**self.steps, 1 - beta2**self.steps
        for i in range(start, self.flat.data.size, CHUNK_NUMBERS):
            chunk = slice(i, i + CHUNK_NUMBERS)
            w, g, m, v = (x[chunk] for x in (self.flat.data, self.flat.grad, self.exp_avg, self.exp_avg_sq))
            m *= beta1
            m += (1 - beta1) * g
            v *= beta2
            v += (1 - beta2) * g**2
            matrices = w[: max(0, self.flat.decayed - i)]
            matrices *= 1 - self.lr * self.weight_decay
            w -= self.lr / c1 * (m / (sqrt(v) / c2**0.5 + self.eps))


class Muon(AdamW):
    """Vectors are updated as in AdamW, matrices (r, c) by W ← (1 - lr λ) W - 0.2 √max(r, c) lr O (Jordan et al., 2024).

    m ← m + (1-μ) (g - m)  and  u = g + μ (m - g) are Nesterov momentum. O is ``orthogonal(u)``, so a matrix
    learns equally fast in all directions; the factor makes a step as large as AdamW's (Liu et al., 2025). An array of
    more axes counts as a matrix (-1, c).
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, momentum=0.95):
        _require("momentum", momentum, 0 <= momentum < 1, "in [0, 1)")
        super().__init__(params, lr, betas, eps, weight_decay)
        self.momentum, self.by_shape, start = momentum, {}, 0  # by_shape: (r, c) -> slices of such matrices
        for p in (p for p, _, _ in self.flat.views if p.ndim >= 2):
            self.by_shape.setdefault((p.size // p.shape[-1], p.shape[-1]), []).append(slice(start, start + p.size))
            start += p.size

    def step(self):
        """Update all parameters once."""
        self.flat.gather()
        self.steps += 1
        self._move(self.flat.decayed)
        self.move_matrices(self.flat.grad[: self.flat.decayed], self.lr)

    def move_matrices(self, g, lr, product=np.matmul):
        """Update the matrices, those of one shape together, by their gradient ``g``; ``lr`` may be an array (1,)."""
        w, m = self.flat.data[: g.size], self.exp_avg[: g.size]
        m += (1 - self.momentum) * (g - m)
        u = g + self.momentum * (m - g)
        w *= 1 - lr * self.weight_decay
        for shape, parts in self.by_shape.items():
            matrices = self.flat.xp.empty((len(parts), *shape), u.dtype)
            for matrix, part in zip(matrices, parts, strict=True):  # CuPy's `stack` could not be captured
                matrix[...] = u[part].reshape(shape)
            for part, move in zip(parts, orthogonal(matrices, product), strict=True):
                W = w[part]  # a view
                W -= 0.2 * max(shape) ** 0.5 * lr * move.ravel()


def orthogonal(x, product=np.matmul):
    """Return matrices (..., r, c) with singular values near 1: five times X ← a X + (b X Xᵀ + c (X Xᵀ)²) X.

    This acts on each singular value independently. With Jordan's a, b, c those above 1/500 of the Frobenius norm, by
    which x is divided first, end between 0.68 and 1.21.
    """
    if x.shape[-2] > x.shape[-1]:
        return orthogonal(x.swapaxes(-1, -2), product).swapaxes(-1, -2)
    xp, a, b, c = array_module(x), 3.4445, -4.775, 2.0315
    x = x / xp.maximum(xp.sqrt((x * x).sum((-2, -1), keepdims=True)), 1e-7)
    for _ in range(5):
        s = product(x, x.swapaxes(-1, -2))  # X Xᵀ
        x = a * x + product(b * s + c * product(s, s), x)
    return x


def warmup_cosine(step, total, warmup, peak, final=0.0):
    """Return the learning rate of update ``step`` (from 0) out of ``total``: a linear rise, then half a cosine.

    It is ``peak / (warmup + 1)`` at step 0, ``peak`` at step ``warmup``, and ``final`` from step ``total`` on, so each
    of the ``total`` updates moves the weights. Raises InputError unless ``step >= 0``, ``0 <= warmup < total`` and
    ``0 <= final <= peak < inf``.
    """
    _require("step", step, step >= 0, "0 or more")
    _require("warmup", warmup, 0 <= warmup < total, f"at least 0 and below the {total} steps of the run")
    _require("final", final, 0 <= final <= peak < math.inf, f"at least 0 and at most the peak, {peak}")
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / (total - warmup))
    return final + (peak - final) * (1 + math.cos(math.pi * done)) / 2


class EMA(Stateful):
    """Moving average of weights, starting at the weights: a ← decay a + (1 - decay) w at each ``update()``.

    ``source`` is the optimizer, whose flat buffer is shared, or the parameters if there is no optimizer (creating one
    later replaces their data, and ``update()`` then raises RuntimeError). Raises InputError for a decay outside [0, 1).
    """

    arrays = ("average",)

    def __init__(self, source, decay):
        _require("decay", decay, 0 <= decay < 1, "in [0, 1)")
        self.flat = source.flat if isinstance(source, Optimizer) else Flat(source)
        self.decay, self.average = decay, self.flat.data.copy()

    def update(self):
        """Update the average with the current weights; call this after each step of the optimizer."""
        self.flat.check()
        self.average *= self.decay
        self.average += (1 - self.decay) * self.flat.data

    @contextlib.contextmanager
    def weights(self):
        """Use the averaged weights inside ``with ema.weights():``, then restore the original ones."""
        self.flat.check()
        own = self.flat.data.copy()
        self.flat.data[...] = self.average
        try:
            yield
        finally:
            self.flat.data[...] = own


def _require(name, value, holds, range_):
    if not holds:
        raise InputError(f"{name} must be {range_}, got {value}")
