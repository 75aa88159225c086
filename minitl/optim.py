"""SGD, AdamW, Muon, gradient clipping, the schedule and the average of weights, all on one flat buffer.

A model has many small parameters; one update, one norm or one average over all of them is a handful of whole-array
operations when they lie side by side. Formulas and names are PyTorch's, so settings can be taken over from there, but
weight decay moves matrices only, and Muon is PyTorch's with ``adjust_lr_fn="match_rms_adamw"``.
"""

import contextlib
import math

import numpy as np

from .autograd import Tensor
from .backend import array_module, describe, to_numpy
from .errors import InputError

CHUNK = 2**16  # numbers that an optimiser treats at a time: with all that belongs to them, about 1 MB


class Flat:
    """All parameters side by side: each ``p.data`` and ``p.grad`` becomes a view of the flat ``data`` and ``grad``.

    Matrices (two axes or more) come first, so that what weight decay acts on is the slice ``data[:decayed]``; biases,
    norms and other vectors follow. Raises ``TypeError`` for anything but leaf Tensors with ``requires_grad=True``, and
    ``ValueError`` for no parameters, one of them twice, or a mix of dtypes or devices; nothing is changed then.
    """

    def __init__(self, params):
        params = list(params)
        if not params:
            raise ValueError("no parameters to train; pass module.parameters()")
        for i, p in enumerate(params):
            if not isinstance(p, Tensor):
                raise TypeError(f"parameter {i} is a {type(p).__name__}, not a Tensor; pass module.parameters()")
            if not p.requires_grad or p.node is not None:
                raise TypeError(f"parameter {i} is no leaf with requires_grad=True: {describe(p.data)}; leave it out")
        if len({id(p) for p in params}) < len(params):
            raise ValueError("the same parameter is listed twice; pass each one once")
        for what, of in (("dtype", lambda p: p.dtype), ("device", lambda p: p.data.device)):
            kinds = " and ".join(sorted({str(of(p)) for p in params}))
            if " and " in kinds:
                raise ValueError(f"parameters of more than one {what}: {kinds}; bring them together by module.to(...)")

        params.sort(key=lambda p: p.ndim < 2)  # stable: the given order is kept within both groups
        self.decayed = sum(p.size for p in params if p.ndim >= 2)
        self.xp = array_module(params[0].data)
        self.data = self.xp.concatenate([p.data.ravel() for p in params])
        self.grad = self.xp.zeros_like(self.data)
        self.views, start = [], 0
        for p in params:
            part = slice(start, start + p.size)
            self.views.append((p, self.data[part].reshape(p.shape), self.grad[part].reshape(p.shape)))
            start += p.size
        for p, data, _ in self.views:
            p.data = data
        self.gather()

    def check(self):
        """Raise ``RuntimeError`` when the data of a parameter is no longer its part of the flat array."""
        for p, data, _ in self.views:
            if p.data is not data:
                raise RuntimeError(
                    f"the data of a parameter ({describe(p.data)}) was replaced after the optimiser was made; make the "
                    "optimiser after module.to(...), one per parameter, and write values with p.data[...] = values"
                )

    def gather(self):
        """Bring gradients that were set from outside into the flat array; a parameter without one gets zeros."""
        self.check()
        for p, data, grad in self.views:
            if p.grad is grad:
                continue
            if p.grad is not None and describe(p.grad) != describe(data):
                raise ValueError(f"a gradient is {describe(p.grad)}, but its parameter is {describe(data)}")
            grad[...] = 0 if p.grad is None else p.grad
            p.grad = grad


class Stateful:
    """Saving and loading: ``numbers`` and ``arrays`` list the attributes that make up the state."""

    numbers = arrays = ()  # (name, dtype) pairs, names

    def state_dict(self):
        """Name -> array; numbers are host arrays with no axes. The arrays are the live ones, not copies."""
        numbers = {name: np.asarray(getattr(self, name), dtype) for name, dtype in self.numbers}
        return numbers | {name: getattr(self, name) for name in self.arrays}

    def load_state_dict(self, state):
        """Go on from ``state``, bit for bit. Raises ``InputError``, with nothing changed, when it does not fit."""
        found, wanted = ({name: describe(x) for name, x in d.items()} for d in (state, self.state_dict()))
        if found != wanted:
            raise InputError(f"the saved state does not fit {type(self).__name__}: it has {found}, expected {wanted}")
        for name, _ in self.numbers:
            setattr(self, name, state[name].item())
        for name in self.arrays:
            mine = getattr(self, name)
            mine[...] = array_module(mine).asarray(to_numpy(state[name]))


class Optimizer(Stateful):
    """What all optimisers share. ``lr`` may be written between steps, which is how a schedule acts.

    Weight decay acts on matrices only (parameters of two axes or more). A parameter that got no gradient is treated
    as having a gradient of zeros. Errors: those of ``Flat``, and ``InputError`` for an option out of range.
    """

    numbers = (("lr", "float64"),)

    def __init__(self, params, lr, weight_decay):
        _require("lr", lr, 0 < lr < math.inf, "above 0")
        _require("weight_decay", weight_decay, 0 <= weight_decay < math.inf, "0 or more")
        self.lr, self.weight_decay = float(lr), weight_decay
        self.flat = Flat(params)

    def zero_grad(self):
        """Set all gradients to zero; ``backward`` adds to them."""
        self.flat.grad[...] = 0
        for p, _, grad in self.flat.views:
            p.grad = grad

    def clip_grad_norm(self, max_norm):
        """Scale all gradients by one factor so that their common norm is at most ``max_norm``.

        Returns the norm before clipping. An infinite or NaN norm is returned with the gradients left as they are, so
        that the caller can stop.
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
        """Move all parameters once along their gradients."""
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

    m ← β₁ m + (1-β₁) g and v ← β₂ v + (1-β₂) g² (``exp_avg`` and ``exp_avg_sq``); after t steps
    m̂ = m / (1-β₁ᵗ) and v̂ = v / (1-β₂ᵗ) undo their start at zero.
    """

    numbers = (("lr", "float64"), ("steps", "int64"))
    arrays = ("exp_avg", "exp_avg_sq")

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        _require("betas", betas, len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "two numbers in [0, 1)")
        _require("eps", eps, 0 < eps < math.inf, "above 0")
        super().__init__(params, lr, weight_decay)
        self.betas, self.eps, self.steps = tuple(betas), eps, 0
        self.exp_avg, self.exp_avg_sq = (self.flat.xp.zeros_like(self.flat.data) for _ in range(2))

    def step(self):
        """Move all parameters once; in place, and so few of them at a time that they stay in the cache."""
        self.flat.gather()
        self.steps += 1
        n, size = self.flat.decayed, self.flat.data.size
        for first in (*range(0, n, CHUNK), *range(n, size, CHUNK)):
            last = min(first + CHUNK, n if first < n else size)
            self._move(slice(first, last), self.weight_decay if first < n else 0)

    def _move(self, part, weight_decay):
        xp, (beta1, beta2) = self.flat.xp, self.betas
        w, g, m, v = (x[part] for x in (self.flat.data, self.flat.grad, self.exp_avg, self.exp_avg_sq))
        w *= 1 - self.lr * weight_decay
        s = g * (1 - beta1)
        m *= beta1
        m += s
        xp.multiply(g, g, out=s)
        s *= 1 - beta2
        v *= beta2
        v += s

        xp.sqrt(v, out=s)
        s /= (1 - beta2**self.steps) ** 0.5
        s += self.eps
        xp.divide(m, s, out=s)
        s *= self.lr / (1 - beta1**self.steps)
        w -= s


class Muon(AdamW):
    """Vectors move as by AdamW, and matrices (r, c) so: W ← (1 - lr λ) W - 0.2 √max(r, c) lr O (Jordan et al., 2024).

    m ← μ m + (1-μ) g, and O is ``orthogonal`` of (1-μ) g + μ m, so a matrix learns in all directions equally fast; the
    factor makes a step as large as AdamW's (Liu et al., 2025). An array of more axes is taken as a matrix (-1, c).
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, momentum=0.95):
        _require("momentum", momentum, 0 <= momentum < 1, "in [0, 1)")
        super().__init__(params, lr, betas, eps, weight_decay)
        self.momentum, self.alike, start = momentum, {}, 0  # alike: (r, c) -> where such matrices lie
        for p in (p for p, _, _ in self.flat.views if p.ndim >= 2):
            self.alike.setdefault((p.size // p.shape[-1], p.shape[-1]), []).append(slice(start, start + p.size))
            start += p.size

    def step(self):
        """Move all parameters once."""
        self.flat.gather()
        self.steps += 1
        self._move(slice(self.flat.decayed, None), 0)
        self.move_matrices(self.flat.grad[: self.flat.decayed], self.lr)

    def move_matrices(self, g, lr, product=np.matmul):
        """With their gradient ``g``; those of one shape are made orthogonal together. ``lr`` may be an array (1,)."""
        xp, w, m = self.flat.xp, self.flat.data[: g.size], self.exp_avg[: g.size]
        m += (1 - self.momentum) * (g - m)
        ahead = g + self.momentum * (m - g)
        w *= 1 - lr * self.weight_decay
        for shape, parts in self.alike.items():
            moves = orthogonal(xp.stack([ahead[part].reshape(shape) for part in parts]), product)
            for part, move in zip(parts, moves, strict=True):
                xp.subtract(w[part], 0.2 * max(shape) ** 0.5 * lr * move.ravel(), out=w[part])


def orthogonal(x, product=np.matmul):
    """Matrices (..., r, c) with singular values of about 1: X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X, five times.

    That acts on each singular value alone. With Jordan's a, b, c those above 1/500 of the norm end at 0.68 to 1.21.
    """
    if x.shape[-2] > x.shape[-1]:
        return orthogonal(x.swapaxes(-1, -2), product).swapaxes(-1, -2)
    xp = array_module(x)
    x = x / xp.maximum(xp.sqrt((x * x).sum((-2, -1), keepdims=True)), 1e-7)
    for _ in range(5):
        s = product(x, x.swapaxes(-1, -2))
        x = 3.4445 * x + product(2.0315 * product(s, s) - 4.775 * s, x)
    return x


def warmup_cosine(step, total, warmup, peak, final=0.0):
    """The learning rate of update ``step`` (counted from 0) out of ``total``: a linear rise, then half a cosine.

    It is ``peak / (warmup + 1)`` at step 0, ``peak`` at step ``warmup``, halfway between ``peak`` and ``final`` in the
    middle of the rest, and ``final`` from step ``total`` on. So every one of the ``total`` updates moves the weights.
    Raises ``InputError`` unless ``step >= 0``, ``0 <= warmup < total`` and ``0 <= final <= peak < inf``.
    """
    _require("step", step, step >= 0, "0 or more")
    _require("warmup", warmup, 0 <= warmup < total, f"at least 0 and below the {total} steps of the run")
    _require("final", final, 0 <= final <= peak < math.inf, f"at least 0 and at most the peak, {peak}")
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / (total - warmup))
    return final + (peak - final) * (1 + math.cos(math.pi * done)) / 2


class EMA(Stateful):
    """A moving average of weights: a ← decay a + (1 - decay) w at each ``update()``; it starts at the weights.

    ``source`` is the optimiser, whose flat buffer is then shared, or the parameters where there is no optimiser (one
    made later would take them over, and ``update()`` says so). Raises ``InputError`` for a decay outside [0, 1).
    """

    arrays = ("average",)

    def __init__(self, source, decay):
        _require("decay", decay, 0 <= decay < 1, "in [0, 1)")
        self.flat = source.flat if isinstance(source, Optimizer) else Flat(source)
        self.decay, self.average = decay, self.flat.data.copy()

    def update(self):
        """Take the present weights into the average; call it after each step of the optimiser."""
        self.flat.check()
        self.average *= self.decay
        self.average += (1 - self.decay) * self.flat.data

    @contextlib.contextmanager
    def weights(self):
        """``with ema.weights():`` the model has the averaged weights; afterwards its own, also after an error."""
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
