"""Rows for modules that students write: each is compared with the module of that name in ``minitl.nn``."""

import numpy as np
import pytest
from cases import Case

from minitl import Tensor, nn

ROWS = [
    Case("Linear", ((2, 4, 3),), None, {"in_features": 3, "out_features": 5}),
    Case("Linear", ((4, 3),), None, {"in_features": 3, "out_features": 5, "bias": False}),
    Case("Conv2d", ((2, 4, 5, 3),), None, {"in_channels": 3, "out_channels": 4, "kernel_size": 3, "padding": 1}),
    Case("Conv2d", ((2, 6, 5, 3),), None, {"in_channels": 3, "out_channels": 2, "kernel_size": (3, 2), "stride": 2}),
    Case("LayerNorm", ((2, 3, 5),), None, {"dim": 5}),
    Case("BatchNorm2d", ((3, 4, 2, 5),), None, {"channels": 5}),
    Case("MLP", ((2, 3, 4),), None, {"dim": 4, "hidden": 6}),
    Case("MLP", ((2, 3, 4),), None, {"dim": 4, "hidden": 6, "out": 5}),
    Case("Attention", ((2, 5, 6),), None, {"dim": 6, "num_heads": 3}),
    Case("EncoderBlock", ((2, 5, 6),), None, {"dim": 6, "num_heads": 2, "mlp_dim": 7}),
    Case("TokenLearner", ((2, 4, 6, 5),), None, {"channels": 5, "num_tokens": 3}),
    Case("TokenLearner", ((2, 4, 6, 5),), None, {"channels": 5, "num_tokens": 3, "pool": "sum", "pre_norm": False}),
    Case("TokenLearner", ((2, 4, 6, 5),), None, {"channels": 5, "num_tokens": 3, "version": "1.1", "hidden": 7}),
    Case("TokenFuser", ((2, 3, 5), (2, 4, 6, 5)), None, {"channels": 5, "num_tokens": 3}),
    Case("TokenFuser", ((2, 6, 5), (2, 2, 4, 3, 5)), None, {"channels": 5, "num_tokens": 3, "frames": 2}),
]
NAMES = {case.op for case in ROWS}
all_rows = pytest.mark.parametrize("case", ROWS, ids=str)


def results(case, student):
    """Return (value, gradients, names of the gradients) of minitl's module and of the student's, with equal weights."""
    rng = np.random.default_rng(0)
    module = getattr(nn, case.op)(**case.options).to(dtype="float64")
    state = {name: array + 0.5 * rng.random(array.shape) for name, array in module.state_dict().items()}
    module.load_state_dict(state)
    tensors = [Tensor(x, requires_grad=True) for x in case.arrays()]
    out = module(*tensors)
    dy = rng.standard_normal(out.shape)
    out.backward(dy)
    parameters = dict(module.named_parameters())
    names = [*(f"input {i}" for i in range(len(tensors))), *parameters]
    right = out.data, [t.grad for t in (*tensors, *parameters.values())]
    return right, student.module(case.op, case.options, state, case.arrays(), dy), names


@all_rows
def test_module_value(case, student):
    (right, _), (value, _), _ = results(case, student)
    assert value.shape == right.shape, f"forward returns the shape {value.shape}, expected {right.shape}"
    np.testing.assert_allclose(value, right, rtol=1e-9, atol=1e-11)


@all_rows
def test_module_gradient(case, student):
    (_, right), (_, grads), names = results(case, student)
    for grad, expected, name in zip(grads, right, names, strict=True):
        assert grad is not None, f"no gradient reaches {name}: compute with Tensors, not with their data"
        np.testing.assert_allclose(grad, expected, rtol=1e-9, atol=1e-11, err_msg=f"the gradient of {name}")
