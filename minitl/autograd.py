"""The engine: tensors that remember the op that made them, and one walk back over that record.

An op is a function of arrays that returns its value and its pullback, ``backward``; ``@op`` makes it accept Tensors.
"""

import contextlib
import functools
import heapq
import itertools
from contextvars import ContextVar

import numpy as np

from .backend import FLOATS, array_module, describe, is_array

OPS = {}  # name -> the function of arrays that runs; assign to an entry to replace an op
PLAIN = {}  # name -> the function as written in ops/
OVERRIDES = {"cpu": {}, "cuda": {}}  # device -> {name: a faster form of the op}, see minitl/fast
WRAPPERS = {}  # device -> a decorator for functions without such a form, which do not know how it stores numbers
_order = itertools.count()
_grad_mode, _plain_mode = ContextVar("grad_mode", default=True), ContextVar("plain_mode", default=False)


@contextlib.contextmanager
def _set(mode, value):
    token = mode.set(value)
    try:
        yield
    finally:
        mode.reset(token)


def no_grad():
    """Run ops without recording them inside ``with no_grad():``, in this thread only."""
    return _set(_grad_mode, False)


def plain():
    """Run the plain forms of ops, those in ``ops/``, inside ``with plain():``, in this thread only."""
    return _set(_plain_mode, True)


def form(name, device):
    """Return the function that runs the op ``name`` on ``device``: a user's, the fast form or the plain one."""
    tuned = OPS[name] is PLAIN[name] and not _plain_mode.get()
    fast = OVERRIDES[device].get(name) if tuned else None
    return fast or WRAPPERS.get(device, lambda fn: fn)(OPS[name])


class Accumulator(functools.partial):
    """A gradient to call if needed (rule 2 of ``op``) that takes the sum so far, if any, and returns the new sum."""


class Node:
    """One call of an op: its pullback, and edges to the nodes (or leaf Tensors) that its inputs came from."""

    __slots__ = ("name", "order", "parents", "pullback", "shape")

    def __init__(self, name, parents, pullback, shape):
        self.name, self.parents, self.pullback, self.shape, self.order = name, parents, pullback, shape, next(_order)


class Tensor:
    """A NumPy or CuPy array ``data`` that may have a gradient. A leaf is a Tensor that no recorded op made.

    ``loss.backward()`` adds the gradient to ``grad`` of every leaf that has ``requires_grad=True``. Raises TypeError
    unless ``data`` is an array of real numbers or booleans, and with ``requires_grad`` of float32 or float64.
    """

    __array_ufunc__ = None  # so that `array + tensor` calls Tensor.__radd__
    shape, ndim = property(lambda self: self.data.shape), property(lambda self: self.data.ndim)
    size, dtype = property(lambda self: self.data.size), property(lambda self: self.data.dtype)

    def __init__(self, data, requires_grad=False):
        if not is_array(data) or data.dtype.kind not in "biuf":
            got = describe(data) if is_array(data) else type(data).__name__
            raise TypeError(f"a Tensor holds an array of real numbers or booleans, got {got}; see minitl.tensor")
        self.data = np.asarray(data) if isinstance(data, np.generic) else data
        if requires_grad and self.dtype not in FLOATS:
            raise TypeError(f"only float32 and float64 have gradients, got {self.dtype}; convert the array first")
        self.grad, self.requires_grad, self.node = None, requires_grad, None

    def __repr__(self):
        made_by = f", made by {self.node.name}" if self.node else ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({self.data}, shape={self.shape}, dtype={self.dtype}{made_by})"

    def backward(self, grad=None):
        """Add the gradient of this Tensor to ``grad`` of every leaf that it was computed from.

        ``grad`` is an array like ``data``; for one element it defaults to 1. The graph is freed: call it only once.
        """
        if not self.requires_grad:
            raise RuntimeError("this Tensor has no graph: it was made under no_grad, or from none with requires_grad")
        grad = array_module(self.data).ones_like(self.data) if grad is None and self.size == 1 else grad
        if describe(grad) != describe(self.data):
            raise ValueError(f"{describe(self.data)} needs .sum() first, or a grad like it; got {describe(grad)}")
        pending, owned, heap = {}, set(), []  # heap: newest node first, for creation order is a topological order

        def accumulate(target, grad):
            if isinstance(target, Tensor) and target.grad is None:  # a leaf
                target.grad = array_module(grad).array(grad)
            elif isinstance(target, Tensor):
                target.grad += grad
            elif target not in pending:  # borrow the first gradient, allocate at the second, then add in place
                pending[target] = grad
                heapq.heappush(heap, (-target.order, target))
            elif target in owned:
                pending[target] += grad
            else:
                pending[target] = pending[target] + grad
                owned.add(target)

        accumulate(self.node or self, grad)
        while heap:
            node = heapq.heappop(heap)[1]
            if node.pullback is None:
                raise RuntimeError(f"backward() already ran through this {node.name}; compute the loss again first")
            grads = node.pullback(pending.pop(node))
            grads = grads if isinstance(grads, tuple) else (grads,)
            if any(p is not None and g is None for p, g in itertools.zip_longest(node.parents, grads)):
                raise RuntimeError(f"the backward of {node.name} lacks a gradient; it returns one for each input")
            for parent, grad in zip(node.parents, grads, strict=False):
                if parent in pending and isinstance(grad, Accumulator):
                    pending[parent] = grad(pending[parent])
                    owned.discard(parent)
                elif parent is not None:
                    accumulate(parent, unbroadcast(grad() if callable(grad) else grad, parent.shape, node.name))
            node.parents, node.pullback = (), None


def unbroadcast(grad, shape, name="unbroadcast"):
    """Sum ``grad`` over the axes along which an input of ``shape`` was broadcast."""
    if grad.shape == shape:
        return grad
    new = grad.ndim - len(shape)
    axes = tuple(i for i in range(grad.ndim) if i < new or (shape[i - new] == 1 and grad.shape[i] != 1))
    summed = grad.sum(axes, keepdims=True)
    if new < 0 or summed.shape[new:] != shape:
        raise RuntimeError(f"{name}: a gradient of shape {grad.shape} for an input of shape {shape}")
    return summed.reshape(shape)


def op(fn):
    """Make an op, a function of Tensors, from ``fn(*arrays, **options) -> value, backward``. The rules for ``fn``:

    1. Its arguments are arrays or numbers (for the op, Tensors as well); its options are keyword-only.
    2. ``backward(dy)`` returns one gradient per argument: an array, a function that returns it if needed, or None.
    3. A gradient may be larger than its argument along broadcast axes: ``unbroadcast`` sums it.
    4. It never writes into an argument or into ``dy``.
    5. The arrays that ``backward`` names stay in memory until it runs, so it names only those that it needs.
    6. It preserves the dtype: float32 in, float32 out; float64 in, float64 out.
    7. It has a row in ``tests/cases.py``, which checks all of this.
    """
    name = fn.__name__
    OPS[name], _ = fn, PLAIN.setdefault(name, fn)  # an op of an existing name replaces it
    names = fn.__code__.co_varnames[: fn.__code__.co_argcount]  # options are keyword-only, so these are the arrays

    @functools.wraps(fn)
    def call(*args, **options):
        if len(args) > len(names) > 0 or not options.keys().isdisjoint(names):
            raise TypeError(f"{name}() takes arrays by position, options by keyword; its arrays: {', '.join(names)}")
        options = {k: v.item() if isinstance(v, np.number) else v for k, v in options.items()}
        arrays = [a.data if isinstance(a, Tensor) else a.item() if isinstance(a, np.generic) else a for a in args]
        parents = [(a.node or a) if isinstance(a, Tensor) and a.requires_grad else None for a in args]
        run = form(name, "cpu" if any(isinstance(a, np.ndarray) for a in arrays) else "cuda")
        try:
            made = run(*arrays, **options)
            if not (isinstance(made, tuple) and len(made) == 2 and is_array(made[0])):
                raise TypeError("an op returns two things: an array, its value, and the function backward(dy)")
            value, pullback = made
            if any(a.dtype != value.dtype and {a.dtype, value.dtype} <= {*FLOATS} for a in arrays if is_array(a)):
                raise TypeError(f"the result is {value.dtype}; bring all inputs and numbers in the op to one dtype")
        except (TypeError, ValueError, IndexError) as error:
            kind = next(k for k in (TypeError, ValueError, IndexError) if isinstance(error, k))
            raise kind(f"{name}({', '.join(map(describe, arrays))}): {error}") from error
        out = Tensor(value)
        if _grad_mode.get() and any(parent is not None for parent in parents):
            out.requires_grad, out.node = True, Node(name, parents, pullback, out.shape)
        return out

    return call
