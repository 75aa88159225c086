"""``minitl.plug``: a model runs with a person's own ops, and with minitl's again afterwards."""

import numpy as np
import pytest

import minitl
from minitl import Tensor, nn, ops
from minitl.autograd import OPS, PLAIN, op
from minitl.errors import InputError


def halved(x):
    """Half of GELU, so that one sees whether it ran."""
    y, backward = OPS_GELU(x)
    return y / 2, lambda dy: backward(dy / 2)


OPS_GELU = OPS["gelu"]


def doubled_relu(x):
    return 2 * x * (x > 0), lambda dy: 2 * dy * (x > 0)


def test_the_model_runs_with_it_forward_and_backward(rng):
    layer = nn.Linear(3, 4, rng=rng).to(dtype="float64")
    x = rng.standard_normal((2, 3))

    def loss(x):
        return ops.sum(ops.gelu(layer(x)))

    before = loss(x).data
    with minitl.plug(gelu=halved):
        tensor = Tensor(x, requires_grad=True)
        assert np.isclose(loss(tensor).data, before / 2)
        minitl.check_gradients(loss, x)
    assert loss(x).data == before


def test_several_at_once_and_one_that_is_decorated(rng, monkeypatch):
    for table in (OPS, PLAIN):
        monkeypatch.setitem(table, "doubled_relu", None)  # so that the decorator leaves no trace
    x = rng.standard_normal((3, 4))
    with minitl.plug(relu=op(doubled_relu), gelu=halved):
        assert (ops.relu(x).data == 2 * x * (x > 0)).all()
        assert np.allclose(ops.gelu(x).data, OPS_GELU(x)[0] / 2)
    assert (ops.relu(x).data == x * (x > 0)).all()


def test_an_error_inside_restores_the_op():
    with pytest.raises(ZeroDivisionError), minitl.plug(gelu=halved):
        raise ZeroDivisionError
    assert OPS["gelu"] is OPS_GELU


def test_plugs_nest(rng):
    x = rng.standard_normal(5)
    with minitl.plug(relu=doubled_relu):
        with minitl.plug(relu=lambda x: (0 * x, lambda dy: 0 * dy)):
            assert (ops.relu(x).data == 0).all()
        assert (ops.relu(x).data == 2 * x * (x > 0)).all()


def test_an_unknown_name_says_what_was_meant():
    known = pytest.raises(InputError, match="no op 'sofmax' that halved could replace; did you mean softmax")
    with known, minitl.plug(gelu=halved, sofmax=halved):
        pytest.fail("it went on")
    assert OPS["gelu"] is OPS_GELU
