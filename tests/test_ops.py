"""Every row of ``cases.py`` with every form of its op, and what each op says to wrong input."""

import contextlib
import math

import numpy as np
import pytest
from cases import CASES, Case, batch_norm, generator, layer_norm

import minitl
from minitl import OPS, Tensor, check_gradients, ops, plain
from minitl.autograd import OVERRIDES, PLAIN, form, unbroadcast
from minitl.backend import cuda_problem, to_numpy


@pytest.fixture(params=["plain", "cpu", "cuda", "cuda-plain"])
def xp(request):
    """The array library, with each form of the ops that there is for it."""
    library = np
    if request.param.startswith("cuda"):
        if problem := cuda_problem():
            pytest.skip(problem)
        import cupy as library

        import minitl.fast.cuda  # noqa: F401  (registers the CUDA forms)

    with plain() if request.param.endswith("plain") else contextlib.nullcontext():
        yield library


all_cases = pytest.mark.parametrize("case", CASES, ids=str)


def call(case, arrays, xp, dtype="float64"):
    """The op's Tensor; every float input asks for a gradient. It runs what a user's call runs: OPS, or an override."""
    tensors = [Tensor(x, requires_grad=x.dtype.kind == "f") for x in arrays]
    return getattr(ops, case.op)(*tensors, **case.fresh_options(xp, dtype))


def pull(out, dy):
    """Return the gradients from the pullback, always as a tuple of arrays."""
    grads = out.node.pullback(dy)
    grads = grads if isinstance(grads, tuple) else (grads,)
    return tuple(g() if callable(g) else g for g in grads)


def gradients(out, arrays, dy):
    """The gradient of each float input, on the host."""
    grads = zip(pull(out, dy), arrays, strict=False)
    return [to_numpy(unbroadcast(g, x.shape)) for g, x in grads if x.dtype.kind == "f"]


def cotangent(case, xp, dtype="float64"):
    return xp.asarray(np.random.default_rng(9).standard_normal(case.expected().shape).astype(dtype))


def test_every_op_has_a_row():
    assert {case.op for case in CASES} == set(OPS)


def test_every_op_is_public_under_its_name():
    assert sorted(OPS) == sorted(ops.__all__)
    for name in OPS:
        assert getattr(ops, name).__name__ == name and getattr(ops, name).__doc__


@all_cases
def test_value(case, xp):
    value = call(case, case.arrays(xp), xp).data
    assert isinstance(value, xp.ndarray)
    np.testing.assert_allclose(to_numpy(value), case.expected(), rtol=1e-12, atol=1e-13)


@all_cases
def test_gradient(case, xp):
    """Each input along a random direction, with a random cotangent."""
    arrays = case.arrays(xp)

    def fn(*floats):
        rest = iter(floats)
        inputs = [next(rest) if x.dtype.kind == "f" else x for x in arrays]
        return getattr(ops, case.op)(*inputs, **case.fresh_options(xp))

    check_gradients(fn, *[x for x in arrays if x.dtype.kind == "f"], tolerance=1e-6)


@all_cases
def test_one_gradient_per_argument(case, xp):
    """Each is as large as its input, or larger along axes that were broadcast."""
    arrays = case.arrays(xp)
    grads = pull(call(case, arrays, xp), cotangent(case, xp))
    assert len(grads) >= len(arrays) and all(g is None for g in grads[len(arrays) :])
    for grad, x in zip(grads, arrays, strict=False):
        if x.dtype.kind == "f":
            assert grad.dtype == x.dtype and unbroadcast(grad, x.shape).shape == x.shape


def one_gradient_scaled(fn, i):
    """The op ``fn``, with its i-th gradient a thousandth too large."""

    def op(*arrays, **options):
        value, backward = fn(*arrays, **options)

        def wrong(dy):
            grads = list(grads) if isinstance(grads := backward(dy), tuple) else [grads]
            grad = grads[i]() if callable(grads[i]) else grads[i]
            grads[i] = None if grad is None else 1.001 * grad
            return tuple(grads)

        return value, wrong

    return op


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("mode", [plain, contextlib.nullcontext], ids=["plain", "cpu"])
def test_a_thousandth_too_much_is_noticed(name, mode, monkeypatch):
    """Each gradient of each form is looked at by some row."""
    with mode():
        original = form(name, "cpu")
    rows = [case for case in CASES if case.op == name]
    for i in range(max(len(case.inputs) for case in rows)):
        if all(len(case.inputs) <= i or case.arrays()[i].dtype.kind != "f" for case in rows):
            continue  # labels
        monkeypatch.setitem(OPS, name, one_gradient_scaled(original, i))
        noticed = 0
        for case in rows:
            if len(case.inputs) > i and case.arrays()[i].dtype.kind == "f":
                try:
                    test_gradient(case, np)
                except AssertionError:
                    noticed += 1
        assert noticed, f"gradient {i}"


@pytest.mark.parametrize("name", OVERRIDES["cpu"])
def test_the_fast_form_runs(name, monkeypatch):
    """In at least one row, so that rows for the CPU are not rows of the plain form."""
    fell_back = []

    def stand_in(*arrays, **options):
        fell_back.append(True)
        return original(*arrays, **options)

    original = PLAIN[name]
    for table in (PLAIN, OPS):
        monkeypatch.setitem(table, name, stand_in)
    rows = [case for case in CASES if case.op == name]
    for case in rows:
        call(case, case.arrays(), np)
    assert len(fell_back) < len(rows)


def permuted(x):
    """The same values with the axes in reverse order in memory."""
    return x.T.copy().T


def spread(x):
    """The same values with gaps between them in memory, from the last to the first."""
    if x.ndim == 0:
        return x
    wide = x.repeat(2, axis=-1)[..., ::-1].copy()
    return wide[..., ::-2]


@pytest.mark.parametrize("layout", [permuted, spread])
@all_cases
def test_strides(case, layout, xp):
    """An op may not count on memory order: not for its inputs, and not for dy."""
    arrays, dy = case.arrays(xp), cotangent(case, xp)
    strided, strided_dy = [layout(x) for x in arrays], layout(dy)
    assert all((a == b).all() for a, b in zip(arrays, strided, strict=True)) and (dy == strided_dy).all()
    out, other = call(case, arrays, xp), call(case, strided, xp)
    np.testing.assert_allclose(to_numpy(other), to_numpy(out), rtol=1e-12, atol=1e-13)
    for a, b in zip(gradients(out, arrays, dy), gradients(other, strided, strided_dy), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-13)


@all_cases
def test_arguments_are_not_written_to(case, xp):
    """Nor dy. NumPy refuses the write, on CuPy the values are compared."""
    arrays, dy = case.arrays(xp), cotangent(case, xp)
    options = {name: value for name, value in case.options.items() if isinstance(value, np.ndarray)}
    held = [*arrays, dy, *options.values()]
    before = [x.copy() for x in held]
    for x in held:
        if isinstance(x, np.ndarray):
            x.flags.writeable = False
    try:
        pull(call(case, arrays, xp), dy)
    finally:
        for x in options.values():
            x.flags.writeable = True
    assert all((a == b).all() for a, b in zip(before, held, strict=True))


@all_cases
def test_float32_stays_float32(case, xp):
    """So do its gradients, and both agree with float64 to the rounding of float32."""
    arrays, single = case.arrays(xp), case.arrays(xp, "float32")
    out, out32 = call(case, arrays, xp), call(case, single, xp, "float32")
    assert out.dtype == "float64" and out32.dtype == "float32"
    np.testing.assert_allclose(to_numpy(out32), to_numpy(out), rtol=1e-5, atol=1e-5)
    grads32 = gradients(out32, single, cotangent(case, xp, "float32"))
    for grad, grad32 in zip(gradients(out, arrays, cotangent(case, xp)), grads32, strict=True):
        assert grad32.dtype == "float32"
        np.testing.assert_allclose(grad32, grad, rtol=1e-4, atol=1e-4)


@all_cases
def test_only_wanted_gradients_are_recorded(case, xp):
    """Constants give a constant; the op still takes bare arrays."""
    out = getattr(ops, case.op)(*case.arrays(xp), **case.fresh_options(xp))
    assert not out.requires_grad and out.node is None
    np.testing.assert_allclose(to_numpy(out), case.expected(), rtol=1e-12, atol=1e-13)


BIG = np.array([[1000.0, -1000.0, 0.0]])
APART = np.array([[1000.0, 2000.0, 0.0], [0.0, 0.0, 0.0]])  # the largest entry of all is far above a whole row
FAR = np.array([[4096.0, 4098.0, 4100.0]])  # the mean square minus the square of the mean has few right digits
STABLE = [
    Case("sigmoid", (BIG,), lambda x: np.array([[1.0, 0.0, 0.5]])),
    Case("tanh", (BIG,), lambda x: np.array([[1.0, -1.0, 0.0]])),
    Case("gelu", (BIG,), lambda x: np.array([[1000.0, 0.0, 0.0]])),
    Case("gelu", (BIG,), lambda x, approximate: np.array([[1000.0, 0.0, 0.0]]), {"approximate": "none"}),
    Case("softmax", (BIG,), lambda x: np.array([[1.0, 0.0, 0.0]])),
    Case("softmax", (BIG + 1e6,), lambda x: np.array([[1.0, 0.0, 0.0]])),
    Case("softmax", (np.full((2, 4), -200.0),), lambda x: np.full((2, 4), 0.25)),
    Case("softmax", (np.full((2, 4), 200.0),), lambda x: np.full((2, 4), 0.25)),
    Case("softmax", (np.full((1, 100_000), 79.9),), lambda x: np.full((1, 100_000), 1e-5)),
    Case("softmax", (APART,), lambda x: np.array([[0.0, 1.0, 0.0], [1 / 3] * 3])),
    Case("softmax", (APART.T,), lambda x, axis: np.array([[0.0, 1 / 3], [1.0, 1 / 3], [0.0, 1 / 3]]), {"axis": 0}),
    Case("log_softmax", (BIG,), lambda x: np.array([[0.0, -2000.0, -1000.0]])),
    Case("log_softmax", (APART,), lambda x: np.array([[-1000.0, 0.0, -2000.0], [-math.log(3)] * 3])),
    Case(
        "attention",
        (1000 * np.array([[[3.0, 1.0, 7.0]], [[-2.0, 4.0, 8.0]]]),),
        lambda x, num_heads: x[:, :, 2:],
        {"num_heads": 1},
    ),
    Case(
        "attention",
        (np.array([[[20.0, -10.0, 3.0], [20.0, -10.0, 5.0]]]),),
        lambda x, num_heads: np.full((1, 2, 1), 4.0),
        {"num_heads": 1},
    ),
    Case(
        "attention",  # the second query's scores are 2000 below those of the first
        (np.array([[[50.0, 40.0, 3.0], [0.0, 40.0, 5.0]]]),),
        lambda x, num_heads: np.full((1, 2, 1), 4.0),
        {"num_heads": 1},
    ),
    Case(
        "vector_attention",
        tuple(np.array(part)[None, :, None] for part in ([50.0, 0.0], [40.0, 40.0], [3.0, 5.0])),
        lambda q, k, v: np.full((1, 2, 1), 4.0),
    ),
    Case("cross_entropy", (BIG, np.array([1])), lambda x, t: 2000.0),
    Case("cross_entropy", (APART, np.array([1, 0])), lambda x, t: math.log(3) / 2),
    Case("binary_cross_entropy_with_logits", (BIG, np.array([[0.0, 0.0, 0.5]])), lambda x, t: (1000 + math.log(2)) / 3),
    Case("layer_norm", (np.full((1, 3), 7.0), np.ones(3), np.zeros(3)), lambda x, w, b: np.zeros((1, 3))),
    Case("layer_norm", (FAR, np.ones(3), np.zeros(3)), lambda x, w, b: layer_norm(x - 4098, w, b)),
    Case(
        "batch_norm",
        (FAR.T, np.ones(1), np.zeros(1)),
        lambda x, w, b, **options: batch_norm(x - 4098, w, b, **options),
        {"running_mean": lambda: np.zeros(1), "running_var": lambda: np.ones(1)},
    ),
]


@pytest.mark.parametrize("case", STABLE, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_overflow(case, dtype, xp):
    """Inputs at which the plain formula overflows; a warning of NumPy is an error here."""
    arrays = case.arrays(xp, dtype)
    out = call(case, arrays, xp, dtype)
    np.testing.assert_allclose(to_numpy(out), case.expected(), rtol=1e-6, atol=1e-12)
    assert all(np.isfinite(g).all() for g in gradients(out, arrays, cotangent(case, xp, dtype)))


def test_losses_of_infinite_logits(xp):
    """0 · ∞ counts as 0: a class that is ruled out and not asked for costs nothing."""
    logits = Tensor(xp.asarray([[1.0, -math.inf, 1.0]]), requires_grad=True)
    loss = ops.cross_entropy(logits, xp.asarray([0]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    np.testing.assert_allclose(to_numpy(logits.grad), [[-0.5, 0, 0.5]], rtol=1e-15)
    logits = Tensor(xp.asarray([-math.inf, math.inf]), requires_grad=True)
    loss = ops.binary_cross_entropy_with_logits(logits, xp.asarray([0.0, 1.0]))
    loss.backward()
    assert loss.item() == 0 and to_numpy(logits.grad).tolist() == [0, 0]


EMPTY = [
    Case("linear", ((0, 4), (4, 5), (5,)), lambda *_: np.zeros((0, 5))),
    Case("mean", ((0, 3),), lambda x, **_: np.zeros(0), {"axis": np.int64(1)}),
    Case("attention", ((0, 5, 12),), lambda x, **_: np.zeros((0, 5, 4)), {"num_heads": 2}),
    Case("layer_norm", ((0, 4), (4,), (4,)), lambda *_: np.zeros((0, 4))),
    Case("conv2d", ((0, 4, 5, 4), (3, 3, 2, 2), (2,)), lambda *_, **__: np.zeros((0, 2, 3, 2)), {"groups": 2}),
    Case("max_pool2d", ((0, 4, 6, 2),), lambda x, **_: np.zeros((0, 2, 3, 2)), {"kernel_size": 2}),
    Case("avg_pool2d", ((0, 4, 6, 2),), lambda x, **_: np.zeros((0, 2, 3, 2)), {"kernel_size": 2}),
    Case("global_avg_pool", ((0, 3, 4, 5),), lambda x: np.zeros((0, 5))),
]


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_empty_batch(case, xp):
    """No samples: a value of the right shape, and zeros for the weights."""
    arrays = case.arrays(xp)
    out = call(case, arrays, xp)
    assert out.shape == case.expected().shape
    for grad, x in zip(gradients(out, arrays, cotangent(case, xp)), arrays, strict=True):
        assert grad.shape == x.shape and (grad == 0).all()


def test_numpy_integers_are_integers(xp):
    """As sizes and axes; a NumPy number must not make float64 of float32 either."""
    x, two = Tensor(xp.ones((1, 4, 4, 2), "float32"), requires_grad=True), np.int64(2)
    for y in (
        ops.max_pool2d(x, kernel_size=(two, two), stride=two),
        ops.avg_pool2d(x, kernel_size=(two, two), stride=(two, two)),
        ops.conv2d(x, xp.ones((2, 2, 2, 2), "float32"), stride=(two, two)),
        ops.mean(x, axis=(two, np.int64(1))),
        ops.max(x, axis=two),
        ops.layer_norm(x, xp.ones(2, "float32"), xp.ones(2, "float32"), eps=np.float64(1e-6)),
    ):
        y.sum().backward()
        assert y.dtype == x.grad.dtype == "float32"
        x.grad = None


TIES = [  # here the reference is the gradients, for dy = 1
    Case("relu", (np.array([-1.0, 0.0, 2.0]),), lambda x: [[0, 0, 1]]),
    Case("maximum", (np.array([1.0, 2, 3]), np.array([2.0, 2, 2])), lambda x, y: [[0, 0.5, 1], [1, 0.5, 0]]),
    Case("max", (np.array([[3.0, 3, 1], [0, 2, 1]]),), lambda x, axis: [[[0.5, 0.5, 0], [0, 1, 0]]], {"axis": 1}),
    Case("max", (np.array([2.0, 2, 1, 2]),), lambda x: [[1 / 3, 1 / 3, 0, 1 / 3]]),
    Case("max_pool2d", (np.ones((1, 2, 2, 1)),), lambda x, **_: [[[[[1], [0]], [[0], [0]]]]], {"kernel_size": 2}),
]


@pytest.mark.parametrize("case", TIES, ids=str)
def test_ties(case, xp):
    """At points without a derivative, the gradient is the one that the docstring promises."""
    arrays = case.arrays(xp)
    out = call(case, arrays, xp)
    expected = case.reference(*arrays, **case.options)
    for grad, right in zip(gradients(out, arrays, xp.ones_like(out.data)), expected, strict=True):
        np.testing.assert_allclose(grad, right, rtol=1e-15)


STATE = [
    Case("batch_norm", ((4, 5, 3), (3,), (3,)), None, {"momentum": 0.25}),
    Case("batch_norm", ((2, 3), (3,), (3,)), None),  # two values per channel: the unbiased variance is twice the other
    Case("batch_norm", ((4, 3), (3,), (3,)), None, {"training": False}),
]


@pytest.mark.parametrize("case", STATE, ids=str)
def test_batch_norm_moves_the_running_arrays(case, xp):
    """By ``momentum``, towards the mean and the unbiased variance of the batch; in evaluation not at all."""
    arrays, mean, var = case.arrays(xp), xp.asarray([1.0, 2.0, 3.0]), xp.asarray([4.0, 5.0, 6.0])
    ops.batch_norm(*arrays, running_mean=mean, running_var=var, **case.options)
    x, axes = to_numpy(arrays[0]), tuple(range(arrays[0].ndim - 1))
    share = case.options.get("momentum", 0.1) * case.options.get("training", True)
    np.testing.assert_allclose(to_numpy(mean), (1 - share) * np.array([1, 2, 3]) + share * x.mean(axes))
    np.testing.assert_allclose(to_numpy(var), (1 - share) * np.array([4, 5, 6]) + share * x.var(axes, ddof=1))


def test_batch_norm_writes_nothing_when_a_shape_is_wrong():
    mean, var = np.zeros(3), np.ones(1)
    with pytest.raises(ValueError, match="running_mean and running_var"):
        ops.batch_norm(f(4, 3), f(3), f(3), running_mean=mean, running_var=var)
    assert (mean == 0).all() and (var == 1).all()


MASKED = [Case(name, ((5_000, 2, 2),), None, {"p": 0.3, "rng": generator}) for name in ("dropout", "drop_path")]


@pytest.mark.parametrize("case", MASKED, ids=str)
def test_dropping_keeps_the_mean(case, xp):
    """Each entry, or sample, is 0 with probability p; 5,000 draws put the mean within five deviations of 1."""
    y = to_numpy(call(case, [xp.ones((5_000, 2, 2))], xp).data)
    assert set(y.ravel().tolist()) == {0.0, 1 / 0.7}
    assert abs(y[:, 0, 0].mean() - 1) < 5 * math.sqrt(0.3 / 0.7 / 5_000)
    assert ((y == y[:, :1, :1]).all((1, 2)).mean() == 1) == (case.op == "drop_path"), "whole samples, or single entries"


@pytest.mark.parametrize("case", MASKED, ids=str)
def test_the_gradient_is_dropped_where_the_value_is(case, xp):
    x = xp.ones((50, 2, 2))
    out = call(case, [x], xp)
    np.testing.assert_allclose(gradients(out, [x], 3 * xp.ones_like(x))[0], 3 * to_numpy(out.data), rtol=1e-15)


@pytest.mark.parametrize("name", ["dropout", "drop_path"])
def test_equal_generators_give_equal_masks(name):
    x = np.ones((8, 8))
    draw = [getattr(ops, name)(x, p=0.5, rng=np.random.default_rng(seed)).data for seed in (1, 1, 2)]
    assert (draw[0] == draw[1]).all() and (draw[0] != draw[2]).any()
    minitl.seed(4)
    first = getattr(ops, name)(x, p=0.5).data
    minitl.seed(4)
    assert (getattr(ops, name)(x, p=0.5).data == first).all()


# --- wrong input: (op, arguments, options, kind of error, what the message says) ---


def f(*shape):
    return np.ones(shape)


def f32(*shape):
    return np.ones(shape, "float32")


norm_state = {"running_mean": f(3), "running_var": f(3)}
MISUSE = [
    ("add", (f(2, 3), f(4)), {}, ValueError, r"add\(float64\[2, 3\], float64\[4\]\)"),
    ("sub", (f(2), f(3)), {}, ValueError, r"sub\(float64\[2\], float64\[3\]\)"),
    ("mul", (f(2), f(3)), {}, ValueError, r"mul\(.*\[2\].*\[3\]"),
    ("div", (f(2), f(3)), {}, ValueError, r"div\(.*\[2\].*\[3\]"),
    ("maximum", (f(2), f(3)), {}, ValueError, r"maximum\(.*\[2\].*\[3\]"),
    ("where", (f(2), f(3)), {"condition": np.array(True)}, ValueError, r"where\(.*\[2\].*\[3\]"),
    ("where", (f(2), f(2)), {}, TypeError, r"where\(.*condition"),
    ("matmul", (f(2, 3), f(4, 5)), {}, ValueError, r"matmul\(float64\[2, 3\], float64\[4, 5\]\)"),
    ("matmul", (f(3), f(3, 2)), {}, ValueError, r"matmul\(.*at least two axes"),
    ("add", (f32(2), f(2)), {}, TypeError, r"add\(float32\[2\], float64\[2\]\).*one dtype"),
    ("matmul", (f32(2, 3), f(3, 2)), {}, TypeError, r"matmul\(float32.*float64.*one dtype"),
    ("linear", (f32(2, 3), f(3, 2), f(2)), {}, TypeError, r"linear\(float32\[2, 3\].*one dtype"),
    ("linear", (f(2, 3), f(3, 2), f32(2)), {}, TypeError, r"linear\(.*float32\[2\].*one dtype"),
    ("layer_norm", (f(2, 3), f32(3), f32(3)), {}, TypeError, r"layer_norm\(.*one dtype"),
    ("conv2d", (f32(1, 4, 4, 2), f(3, 3, 2, 2)), {}, TypeError, r"conv2d\(float32.*float64.*one dtype"),
    ("token_pool", (f32(2, 3, 4), f(2, 4, 5)), {}, TypeError, r"token_pool\(.*one dtype"),
    ("concatenate", (f32(2, 3), f(2, 3)), {}, TypeError, r"concatenate\(.*one dtype"),
    ("concatenate", (f(2, 3), f(2, 4)), {}, ValueError, r"concatenate\(float64\[2, 3\], float64\[2, 4\]\)"),
    ("concatenate", ([f(2), f(2)],), {}, TypeError, r"concatenate\(.*got list"),
    ("add", (f(2), "two"), {}, TypeError, r"add\(float64\[2\], 'two'\)"),
    ("exp", ([1.0, 2.0],), {}, TypeError, r"exp\(\[1.0, 2.0\]\).*minitl.tensor"),
    ("gelu", (np.arange(3),), {}, ValueError, r"gelu\(int64\[3\]\): needs floats"),
    (
        "linear",
        (np.ones((2, 3), int), np.ones((3, 2), int), f(2)),
        {},
        ValueError,
        r"linear\(int64\[2, 3\].*of floats",
    ),
    ("power", (f(2), 3), {}, TypeError, r"power.*by keyword"),
    ("power", (f(2),), {"exponent": f(2)}, TypeError, r"power\(float64\[2\]\).*number"),
    ("softmax", (f(2, 3), 1), {}, TypeError, r"softmax.*by keyword"),
    ("softmax", (f(2, 3),), {"axis": 2}, ValueError, r"softmax\(float64\[2, 3\]\).*axis 2"),
    ("softmax", (f(2, 3),), {"dim": 1}, TypeError, r"softmax\(.*'dim'"),
    ("log_softmax", (f(2, 3),), {"axis": -3}, ValueError, r"log_softmax\(float64\[2, 3\]\).*axis -3"),
    ("sum", (f(2, 3), 1), {}, TypeError, r"sum.*by keyword"),
    ("sum", (f(2, 3),), {"axis": 5}, ValueError, r"sum\(float64\[2, 3\]\).*axis 5"),
    ("mean", (f(2, 3),), {"axis": (0, 0)}, ValueError, r"mean\(float64\[2, 3\]\).*duplicate"),
    ("max", (f(2, 3),), {"axis": 2}, ValueError, r"max\(float64\[2, 3\]\).*axis 2"),
    ("reshape", (f(2, 3),), {"shape": (4, 2)}, ValueError, r"reshape\(float64\[2, 3\]\).*\(4, ?2\)"),
    ("transpose", (f(2, 3),), {"axes": (0, 1, 2)}, ValueError, r"transpose\(float64\[2, 3\]\)"),
    ("transpose", (f(2, 3),), {"axes": (0, 0)}, ValueError, r"transpose\(float64\[2, 3\]\)"),
    ("getitem", (f(2, 3),), {"index": 2}, IndexError, r"getitem\(float64\[2, 3\]\).*out of bounds"),
    ("gelu", (f(2),), {"approximate": "erf"}, ValueError, r"gelu\(float64\[2\]\).*'tanh' or 'none'"),
    ("linear", (f(2, 3), f(4, 5)), {}, ValueError, r"linear\(float64\[2, 3\], float64\[4, 5\]\).*b \(out,\)$"),
    ("linear", (f(2, 3), f(3, 5), f(3)), {}, ValueError, r"linear\(.*float64\[3\]\).*b \(out,\)"),
    ("linear", (f(2, 3), f(3, 5, 1)), {}, ValueError, r"linear\(.*float64\[3, 5, 1\]\).*\(in, out\)"),
    ("linear", (f(2, 3), f(3)), {}, ValueError, r"linear\(.*float64\[3\]\).*\(in, out\)"),
    ("linear", (f(2, 3), f(3, 5)), {"b": f(5)}, TypeError, r"linear\(\) takes arrays by position.*x, W, b"),
    ("token_pool", (f(2, 3, 4), f(2, 5, 6)), {}, ValueError, r"token_pool\(.*\(B, S, P\).*x \(B, P, C\)$"),
    ("token_pool", (f(3, 3, 4), f(2, 4, 6)), {}, ValueError, r"token_pool\(.*\(B, S, P\)"),
    ("token_pool", (f(3, 4), f(2, 4, 6)), {}, ValueError, r"token_pool\(.*\(B, S, P\)"),
    ("attention", (f(2, 5, 18),), {"num_heads": 4}, ValueError, r"attention\(float64\[2, 5, 18\]\).*num_heads=4$"),
    ("attention", (f(5, 18),), {"num_heads": 1}, ValueError, r"attention\(float64\[5, 18\]\).*\(B, N, 3C\)"),
    ("attention", (f(2, 5, 18),), {"num_heads": 0}, ValueError, r"attention\(.*num_heads=0"),
    ("attention", (f(2, 5, 18),), {"num_heads": 1, "dropout": 1.0}, ValueError, r"attention\(.*\[0, 1\).*1.0"),
    ("attention", (f(2, 5, 18), f(6)), {"num_heads": 1}, ValueError, r"attention\(.*float64\[6\]\): .*b \(3C\)"),
    ("attention", (f(2, 5, 18),), {}, TypeError, r"attention\(.*num_heads"),
    (
        "layer_norm",
        (f(2, 3), f(2), f(3)),
        {},
        ValueError,
        r"layer_norm\(.*float64\[2\], float64\[3\]\).*shape \(3,\), one",
    ),
    ("batch_norm", (f(2, 3), f(3), f(2)), norm_state, ValueError, r"batch_norm\(.*float64\[2\]\).*shape \(3,\), one"),
    ("batch_norm", (f(1, 3), f(3), f(3)), norm_state, ValueError, r"batch_norm\(.*two values per channel; use"),
    (
        "batch_norm",
        (f(4, 3), f(3), f(3)),
        {"running_mean": f(3), "running_var": f(1)},
        ValueError,
        r"batch_norm\(.*running_var need the shape \(3,\), .*; got .*running_mean \(3,\), running_var \(1,\)",
    ),
    ("batch_norm", (f(4, 3), f(3), f(3)), {}, TypeError, r"batch_norm\(.*running_mean"),
    (
        "conv2d",
        (f(1, 4, 4, 2), f(3, 3, 3, 2)),
        {},
        ValueError,
        r"conv2d\(float64\[1, 4, 4, 2\], float64\[3, 3, 3, 2\]\).*C/groups.*groups=1$",
    ),
    ("conv2d", (f(4, 4, 2), f(3, 3, 2, 2)), {}, ValueError, r"conv2d\(float64\[4, 4, 2\].*needs x \(B, H, W, C\)"),
    ("conv2d", (f(1, 2, 2, 2), f(3, 3, 2, 2)), {}, ValueError, r"conv2d\(.*kernel \(3, 3\) is larger.*\(2, 2\)"),
    ("conv2d", (f(1, 4, 4, 4), f(3, 3, 2, 3)), {"groups": 2}, ValueError, r"conv2d\(.*divisible by groups=2$"),
    ("conv2d", (f(1, 4, 4, 4), f(3, 3, 4, 3)), {"groups": 0}, ValueError, r"conv2d\(.*groups=0"),
    ("conv2d", (f(1, 4, 4, 2), f(3, 3, 2, 2)), {"stride": 0}, ValueError, r"conv2d\(.*stride.*>= 1.*got 0"),
    ("conv2d", (f(1, 4, 4, 2), f(3, 3, 2, 2)), {"padding": -1}, ValueError, r"conv2d\(.*padding.*>= 0.*got -1"),
    ("conv2d", (f(1, 4, 4, 2), f(3, 3, 2, 2)), {"padding": (1, 1, 1)}, ValueError, r"conv2d\(.*padding.*pair"),
    ("conv2d", (f(1, 4, 4, 2), f(3, 3, 2, 2), f(3)), {}, ValueError, r"conv2d\(.*float64\[3\]"),
    ("conv2d", (f(1, 4, 4, 2), f(3, 3, 2, 2), f(1)), {}, ValueError, r"conv2d\(.*b \(2,\)"),
    ("conv2d", (f(1, 4, 4, 2), f(0, 3, 2, 2)), {}, ValueError, r"conv2d\(.*kernel \(0, 3\) .*or empty"),
    ("conv2d", (f(1, 4, 4, 2), f(3, 3, 2, 2)), {"b": Tensor(f(2))}, TypeError, r"conv2d\(\) takes arrays by position"),
    ("global_avg_pool", (f(2, 3),), {}, ValueError, r"global_avg_pool\(float64\[2, 3\]\).*in between$"),
    ("max_pool2d", (f(1, 4, 4, 2),), {"kernel_size": 5}, ValueError, r"max_pool2d\(.*kernel \(5, 5\) is larger"),
    ("max_pool2d", (f(1, 4, 4, 2),), {"kernel_size": 2, "padding": 2}, ValueError, r"max_pool2d\(.*half of the kernel"),
    ("max_pool2d", (f(1, 9, 9, 2),), {"kernel_size": (4, 2), "padding": (1, 2)}, ValueError, "half of the kernel"),
    ("max_pool2d", (f(1, 9, 9, 2),), {"kernel_size": (2, 4), "padding": (2, 1)}, ValueError, "half of the kernel"),
    ("max_pool2d", (f(1, 4, 4, 2), 2), {}, TypeError, r"max_pool2d.*by keyword"),
    ("max_pool2d", (f(4, 4, 2),), {"kernel_size": 2}, ValueError, r"max_pool2d\(float64\[4, 4, 2\]\).*\(B, H, W, C\)$"),
    ("avg_pool2d", (f(1, 4, 4, 2),), {"kernel_size": 0}, ValueError, r"avg_pool2d\(.*kernel_size.*>= 1.*got 0"),
    ("avg_pool2d", (f(4, 4, 2),), {"kernel_size": 2}, ValueError, r"avg_pool2d\(float64\[4, 4, 2\]\).*\(B, H, W, C\)"),
    ("concatenate", (), {}, ValueError, r"concatenate\(\): needs at least one"),
    ("cross_entropy", (f(2, 3), np.array([0, 3])), {}, ValueError, r"cross_entropy\(.*outside 0 … 2.*0 … 3"),
    ("cross_entropy", (f(2, 3), np.array([-1, 0])), {}, ValueError, r"cross_entropy\(.*outside 0 … 2.*-1 … 0"),
    ("cross_entropy", (f(2, 3), np.array([0, 1, 2])), {}, ValueError, r"cross_entropy\(.*int64\[3\].*classes \(2,\)"),
    ("cross_entropy", (f(2, 3), np.array([0.0, 1.0])), {}, ValueError, r"cross_entropy\(.*as integers"),
    ("cross_entropy", (f(2, 3), f32(2, 3)), {}, ValueError, r"cross_entropy\(.*float32\[2, 3\].*soft targets.*float64"),
    ("cross_entropy", (f(2, 3), f(3, 3)), {}, ValueError, r"cross_entropy\(.*soft targets \(2, 3\)"),
    ("cross_entropy", (f(3), np.array([0])), {}, ValueError, r"cross_entropy\(float64\[3\], int64\[1\]\).*\(B, K\)"),
    ("cross_entropy", (f(2, 3), np.array([0, 1]), 0.1), {}, TypeError, r"cross_entropy.*by keyword"),
    ("cross_entropy", (f(2, 3), np.array([0, 1])), {"label_smoothing": 1.5}, ValueError, r"cross_entropy\(.*\[0, 1\)"),
    ("binary_cross_entropy_with_logits", (f(2), f(3)), {}, ValueError, r"binary.*\[2\].*\[3\].*shape and dtype"),
    ("binary_cross_entropy_with_logits", (f(2), np.array([0, 1])), {}, ValueError, r"int64.*shape and dtype"),
    ("dropout", (f(2), 0.5), {}, TypeError, r"dropout.*by keyword"),
    ("dropout", (f(2),), {"p": 1.0}, ValueError, r"dropout\(float64\[2\]\).*\[0, 1\).*1.0"),
    ("drop_path", (f(2),), {"p": -0.1}, ValueError, r"drop_path\(float64\[2\]\).*\[0, 1\).*-0.1"),
]


@pytest.mark.parametrize(
    "name, arrays, options, kind, message", MISUSE, ids=[f"{m[0]}-{i}" for i, m in enumerate(MISUSE)]
)
def test_misuse(name, arrays, options, kind, message):
    """The error names the op and what it was given; Tensors and the plain form give the same error."""
    for wrap in (lambda x: x, lambda x: Tensor(x) if isinstance(x, np.ndarray) else x):
        for mode in (contextlib.nullcontext, plain):
            with pytest.raises(kind, match=message), mode():
                getattr(ops, name)(*map(wrap, arrays), **options)


def test_an_op_may_be_swapped():
    """OPS is looked up at each call, also by modules that are already built."""
    layer = minitl.nn.Linear(2, 3)
    before = OPS["linear"]
    try:
        OPS["linear"] = lambda x, W, b=None: (x @ W + 100, None)
        assert (layer(Tensor(np.zeros((1, 2), "float32"))).data == 100).all()
    finally:
        OPS["linear"] = before
    assert (layer(Tensor(np.zeros((1, 2), "float32"))).data == 0).all()
