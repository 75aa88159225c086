"""Checks of handwritten backward functions against finite differences along random directions, in float64.

For y = f(x), a random direction v, and a random array c shaped like y (a cotangent), two ways give the same number:
    analytic   ⟨backward(c), v⟩
    numeric    ⟨c, f(x + h v) - f(x - h v)⟩ / 2h
The cotangent matters: Σ softmax(x) is constant, so with c = 1 a softmax backward off by a factor would pass.
"""

import numpy as np

from .autograd import Tensor
from .backend import array_module

STEP = 1e-5  # near the cube root of float64's epsilon, which balances truncation and rounding errors


def check_gradients(fn, *inputs, tolerance=1e-6, seed=0):
    """Check the backward of ``fn``, a deterministic function of Tensors that returns one Tensor.

    ``inputs`` are float64 arrays or Tensors of any shape, each checked along its own random direction. Raises
    AssertionError naming the input, an index and both numbers if they differ by more than ``tolerance`` relative to the
    larger one, plus rounding, and TypeError for an input that is not float64.
    """
    _check(fn, inputs, [], tolerance, seed)


def check_module(module, *inputs, tolerance=1e-6, seed=0):
    """Check the backward of a float64 ``module`` for every input and every parameter, as ``check_gradients`` does.

    The module is left as it was, with its gradients cleared.
    """
    before = {name: array.copy() for name, array in module.state_dict().items()}  # batch norm updates its buffers
    try:
        _check(module, inputs, module.named_parameters(), tolerance, seed)
    finally:
        module.load_state_dict(before)
        module.zero_grad()


def _check(fn, inputs, parameters, tolerance, seed):
    tensors = [Tensor(x.data if isinstance(x, Tensor) else x, requires_grad=True) for x in inputs]
    named = [*((f"input {i}", tensor) for i, tensor in enumerate(tensors)), *parameters]
    for name, tensor in named:
        if tensor.dtype != np.float64:
            raise TypeError(f"{name} is {tensor.dtype}; finite differences need float64")
        tensor.grad = None
    rng = np.random.default_rng((seed, 1))  # default_rng(seed) may have made the inputs, and they would be drawn again
    y = fn(*tensors)
    xp = array_module(y.data)
    if not xp.isfinite(y.data).all():
        raise AssertionError("the output has infinite or NaN entries; check at other inputs")
    if not (y.data == fn(*tensors).data).all():
        raise AssertionError("two calls with equal inputs differ; give random ops a generator made in each call")
    cotangent = xp.asarray(rng.standard_normal(y.shape))
    y.backward(cotangent)
    noise = 10 * np.finfo(np.float64).eps * float(xp.abs(y.data * cotangent).sum()) / STEP  # rounding of y over STEP

    def agree(analytic, numeric):
        return abs(analytic - numeric) <= tolerance * max(abs(analytic), abs(numeric)) + noise

    def slope(tensor, direction):  # of ⟨cotangent, y⟩
        before, ends = tensor.data, []
        for h in (STEP, -STEP):
            tensor.data = before + h * direction
            ends.append(fn(*tensors).data)
        tensor.data = before
        return float((cotangent * (ends[0] - ends[1])).sum()) / (2 * STEP)

    for name, tensor in named:
        grad = xp.zeros_like(tensor.data) if tensor.grad is None else tensor.grad
        direction = xp.asarray(rng.standard_normal(tensor.shape))
        analytic, numeric = float((grad * direction).sum()), slope(tensor, direction)
        if not agree(analytic, numeric):  # Richardson's extrapolation: the truncation error falls from h² to h⁴
            numeric = (8 * slope(tensor, direction / 2) - numeric) / 3
        if not agree(analytic, numeric):
            raise AssertionError(f"{name} {tensor.shape}: wrong gradient, {_first_wrong(grad, tensor, slope, agree)}")


def _first_wrong(grad, tensor, slope, agree):
    """Return the first entry at which the two numbers differ, for the message."""
    for index in np.ndindex(tensor.shape):
        unit = array_module(grad).zeros_like(grad)
        unit[index] = 1
        numeric = slope(tensor, unit)
        if not agree(float(grad[index]), numeric):
            return f"at {index}: backward gives {float(grad[index]):.9g}, finite differences {numeric:.9g}"
    return "though each entry alone agrees within rounding"
