"""The checker must fail: a checker that passes a wrong backward proves nothing about a right one."""

import re

import numpy as np
import pytest

from minitl import OPS, Tensor, check_gradients, check_module, nn, ops


def wrong(name, change):
    """The op ``name`` with ``change`` applied to the tuple of its gradients."""
    right = OPS[name]

    def fn(*arrays, **options):
        value, pullback = right(*arrays, **options)

        def backward(dy):
            grads = pullback(dy)
            return change(grads if isinstance(grads, tuple) else (grads,))

        return value, backward

    return fn


def softmax_without_sum(x, axis=-1):
    y = np.exp(x) / np.exp(x).sum(axis, keepdims=True)
    return y, lambda dy: dy * y


def softmax_over_wrong_axis(x, axis=-1):
    y = np.exp(x) / np.exp(x).sum(axis, keepdims=True)
    return y, lambda dy: y * (dy - (dy * y).sum(0, keepdims=True))


def layer_norm_without_mean(x, weight, bias, eps=1e-6):
    value, pullback = OPS_BEFORE["layer_norm"](x, weight, bias, eps=eps)
    std = np.sqrt(x.var(-1, keepdims=True) + eps)
    n = (x - x.mean(-1, keepdims=True)) / std

    def backward(dy):
        g = dy * weight
        return (g - n * (g * n).mean(-1, keepdims=True)) / std, *pullback(dy)[1:]

    return value, backward


def matmul_transposed(x, y):
    return x @ y, lambda dz: ((dz @ y.T).T, x.T @ dz)


def one_entry(grads):
    dx = grads[0].copy()
    dx[1, 2] += 0.01
    return (dx, *grads[1:])


OPS_BEFORE = dict(OPS)
WRONG = [  # what is wrong, op, its function, shapes, the first input whose gradient is wrong
    ("zero", "exp", wrong("exp", lambda g: (0 * g[0],)), [(3, 4)], 0),
    ("a thousandth", "exp", wrong("exp", lambda g: (1.001 * g[0],)), [(3, 4)], 0),
    ("a thousandth", "linear", wrong("linear", lambda g: (g[0], 1.001 * g[1], g[2])), [(2, 3), (3, 4), (4,)], 1),
    ("a thousandth", "linear", wrong("linear", lambda g: (g[0], g[1], 0.999 * g[2])), [(2, 3), (3, 4), (4,)], 2),
    ("sign", "sub", wrong("sub", lambda g: (g[0], -g[1])), [(3, 4), (4,)], 1),
    ("swapped", "mul", wrong("mul", lambda g: g[::-1]), [(3, 4), (3, 4)], 0),
    ("transposed", "matmul", matmul_transposed, [(3, 3), (3, 3)], 0),
    ("forgotten sum", "softmax", softmax_without_sum, [(3, 4)], 0),
    ("wrong axis", "softmax", softmax_over_wrong_axis, [(4, 4)], 0),
    ("forgotten mean", "layer_norm", layer_norm_without_mean, [(3, 4), (4,), (4,)], 0),
    ("one entry", "tanh", wrong("tanh", one_entry), [(3, 4)], 0),
]


@pytest.mark.parametrize("what, name, fn, shapes, bad", WRONG, ids=[f"{w[0]}-{w[1]}" for w in WRONG])
def test_wrong_backward_fails(what, name, fn, shapes, bad, rng, monkeypatch):
    """The message names the input, the index and both numbers, and the second number is the derivative there."""
    arrays = [rng.standard_normal(shape) for shape in shapes]
    call = getattr(ops, name)
    check_gradients(call, *arrays)
    monkeypatch.setitem(OPS, name, fn)
    with pytest.raises(AssertionError) as caught:
        check_gradients(call, *arrays)
    message = str(caught.value)
    assert message.startswith(f"input {bad} {shapes[bad]}: wrong gradient, at (")
    number = r"(-?[\d.]+(?:e[+-]\d+)?)"
    index, given, found = re.search(
        rf"at (\(.*?\)): backward gives {number}, finite differences {number}$", message
    ).groups()
    assert float(given) != float(found)
    if what == "one entry":
        assert index == "(1, 2)" and float(given) - float(found) == pytest.approx(0.01, abs=1e-6)


def test_the_second_number_is_the_derivative(monkeypatch):
    monkeypatch.setitem(OPS, "power", lambda x, exponent: (x**exponent, lambda dy: dy))
    with pytest.raises(AssertionError, match=r"input 0 \(1,\): wrong gradient, at \(0,\)") as caught:
        check_gradients(lambda x: x**3, np.array([2.0]))
    given, found = map(float, re.findall(r"(?:gives|differences) (\S+?)(?:,|$)", str(caught.value)))
    assert found / given == pytest.approx(12, rel=1e-6)


def test_wrong_shape_fails(rng, monkeypatch):
    """A gradient that no sum over broadcast axes brings to its input's shape; too few gradients."""
    x, y = rng.standard_normal((2, 3)), rng.standard_normal((3, 4))
    monkeypatch.setitem(OPS, "matmul", lambda x, y: (x @ y, lambda dz: ((dz @ y.T).T, x.T @ dz)))
    with pytest.raises(RuntimeError, match=r"matmul: a gradient of shape \(3, 2\) for an input of shape \(2, 3\)"):
        check_gradients(ops.matmul, x, y)
    monkeypatch.setitem(OPS, "matmul", lambda x, y: (x @ y, lambda dz: dz @ y.T))
    with pytest.raises(RuntimeError, match="the backward of matmul lacks a gradient; it returns one for each input"):
        check_gradients(ops.matmul, x, y)


def test_a_detached_input_fails(rng):
    with pytest.raises(AssertionError, match=r"input 1 \(3,\): wrong gradient, at \(0,\): backward gives 0, "):
        check_gradients(lambda x, y: x * y.data, rng.standard_normal(3), rng.standard_normal(3))


def test_an_unused_input_passes(rng):
    check_gradients(lambda x, y: x * x, rng.standard_normal(3), rng.standard_normal(2))


def test_refuses_float32(rng):
    x = rng.standard_normal((2, 3))
    with pytest.raises(TypeError, match="input 1 is float32; finite differences need float64"):
        check_gradients(ops.add, x, x.astype("float32"))
    with pytest.raises(TypeError, match="weight is float32; finite differences need float64"):
        check_module(nn.Linear(3, 2), x)
    with pytest.raises(TypeError, match="only float32 and float64 have gradients"):
        check_gradients(ops.exp, np.arange(3))


def test_refuses_random_functions(rng):
    with pytest.raises(AssertionError, match="two calls with equal inputs differ"):
        check_gradients(lambda x: ops.dropout(x, p=0.5, rng=rng), rng.standard_normal((4, 4)))


def test_refuses_values_that_are_not_finite():
    with pytest.raises(AssertionError, match="the output has infinite or NaN entries"):
        check_gradients(lambda x: x * np.array([1.0, np.nan]), np.ones(2))


def test_buffers_are_left_alone(rng):
    norm = nn.BatchNorm2d(3).to(dtype="float64")
    check_module(norm, rng.standard_normal((2, 2, 2, 3)))
    assert (norm.running_mean == 0).all() and (norm.running_var == 1).all()


def test_inputs_are_left_alone(rng):
    x = rng.standard_normal((2, 3))
    tensor, before = Tensor(x), x.copy()
    check_gradients(lambda a, b: a * b, x, tensor)
    assert tensor.grad is None and tensor.data is x and (x == before).all()


def test_module_parameters_are_named(rng, monkeypatch):
    """A weight gradient that is off by a thousandth in one layer of many."""
    block = nn.EncoderBlock(6, num_heads=2, mlp_dim=5, rng=rng).to(dtype="float64")
    x = rng.standard_normal((2, 4, 6))
    before = {name: array.copy() for name, array in block.state_dict().items()}
    check_module(block, x)
    assert all(p.grad is None for p in block.parameters())
    assert all((array == before[name]).all() for name, array in block.state_dict().items())

    def linear(x, W, b=None):
        value, pullback = OPS_BEFORE["linear"](x, W, b)
        factor = 1.001 if W.shape == (5, 6) else 1
        return value, lambda dy: (pullback(dy)[0], factor * pullback(dy)[1], pullback(dy)[2])

    monkeypatch.setitem(OPS, "linear", linear)
    with pytest.raises(AssertionError, match=r"^mlp\.fc2\.weight \(5, 6\): wrong gradient, at \(0, 0\): backward"):
        check_module(block, x)


def test_module_inputs_are_checked(rng, monkeypatch):
    monkeypatch.setitem(OPS, "linear", wrong("linear", lambda g: (-g[0](), *g[1:])))
    with pytest.raises(AssertionError, match=r"^input 0 \(2, 3\): wrong gradient"):
        check_module(nn.Linear(3, 4, rng=rng).to(dtype="float64"), rng.standard_normal((2, 3)))


def test_the_cotangent_is_not_an_input_that_was_drawn_with_the_same_seed(monkeypatch):
    """Otherwise dx = x² would pass for y = x² / 2: with the cotangent dy = x it equals x dy."""
    monkeypatch.setitem(OPS, "neg", lambda x: (x * x / 2, lambda dy: x * x))
    with pytest.raises(AssertionError, match="wrong gradient"):
        check_gradients(ops.neg, np.random.default_rng(0).standard_normal((3, 4)))
