"""Optimisers against steps by hand and against PyTorch; clipping, the schedule, the average of weights."""

import itertools
import math

import numpy as np
import pytest

from minitl.autograd import Tensor
from minitl.backend import array_module, cuda_problem, to_device, to_numpy
from minitl.errors import InputError
from minitl.optim import EMA, SGD, AdamW, Flat, Muon, orthogonal, warmup_cosine

SHAPES = [(5,), (4, 3), (), (2, 2, 3), (3,), (1, 6)]  # vectors and matrices mixed, so that the flat order differs


def make_params(dtype="float64", seed=0, device="cpu"):
    rng = np.random.default_rng(seed)
    return [Tensor(to_device(rng.standard_normal(s).astype(dtype), device), requires_grad=True) for s in SHAPES]


def set_gradients(params, rng):
    """Add a random gradient to each parameter, as ``backward`` would; returns the gradients as drawn."""
    grads = [rng.standard_normal(p.shape) for p in params]
    for p, g in zip(params, grads, strict=True):
        p.grad += array_module(p.data).asarray(g.astype(p.dtype))
    return grads


def train(optimizer, params, rng, steps, ema=None):
    for _ in range(steps):
        optimizer.zero_grad()
        set_gradients(params, rng)
        optimizer.step()
        if ema:
            ema.update()


# --- the flat buffer ---


def test_parameters_become_views_with_matrices_first():
    params = make_params()
    before = [p.data.copy() for p in params]
    flat = Flat(params)
    assert flat.decayed == sum(p.size for p in params if p.ndim >= 2) == 30
    for p, values in zip(params, before, strict=True):
        assert np.array_equal(p.data, values) and p.shape == values.shape
        assert np.shares_memory(p.data, flat.data) and np.shares_memory(p.grad, flat.grad)
        assert np.shares_memory(p.data, flat.data[: flat.decayed]) == (p.ndim >= 2)
    flat.data[...] = 7
    assert all((p.data == 7).all() for p in params)


def test_a_real_backward_fills_the_flat_gradient():
    from minitl.ops import matmul, sum

    w = Tensor(np.ones((2, 3)), requires_grad=True)
    optimizer = SGD([w], lr=1.0)
    x = Tensor(np.array([[1.0, 2.0]]))
    for times in (1, 2):  # the second adds to the first
        sum(matmul(x, w)).backward()
        assert np.array_equal(optimizer.flat.grad, times * np.repeat([1.0, 2.0], 3))
    optimizer.zero_grad()
    assert not w.grad.any()


def test_gradients_existing_before_or_set_from_outside_count():
    params = make_params()
    for p in params:
        p.grad = np.ones_like(p.data)
    optimizer = SGD(params, lr=0.5)
    before = optimizer.flat.data.copy()
    optimizer.step()
    for p in params:
        p.grad = np.ones_like(p.data)
    params[1].grad = None  # as module.zero_grad() leaves it: counts as zero
    optimizer.step()
    moved = before - optimizer.flat.data
    assert np.allclose(moved[:12], 0.5) and np.allclose(moved[12:], 1.0)
    params[0].grad = np.ones(1)  # would broadcast
    with pytest.raises(ValueError, match=r"a gradient is float64\[1\], but its parameter is float64\[5\]"):
        optimizer.step()


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ([], ValueError, "no parameters"),
        (
            [("weight", Tensor(np.ones(2), True))],
            TypeError,
            r"parameter 0 \(tuple\) is not a leaf .*module\.parameters",
        ),
        ([np.ones(2)], TypeError, r"parameter 0 \(ndarray\) is not a leaf"),
        ([Tensor(np.ones(2))], TypeError, r"\(float64\[2\]\) is not a leaf with requires_grad=True"),
        (
            [Tensor(np.ones(2), True), Tensor(np.ones(2, "float32"), True)],
            ValueError,
            "parameters are float32 on cpu and float64 on cpu",
        ),
        ([Tensor(np.ones(2), True)] * 2, ValueError, "listed twice"),
    ],
)
def test_unusable_parameters_are_refused(params, error, message):
    for make in (lambda: AdamW(params), lambda: Muon(params), lambda: SGD(params, lr=1.0), lambda: EMA(params, 0.9)):
        with pytest.raises(error, match=message):
            make()


def test_a_refusal_changes_nothing():
    good, bad = Tensor(np.ones(2), True), Tensor(np.ones(2, "float32"), True)
    data = good.data
    with pytest.raises(ValueError, match="float32 on cpu"):
        AdamW([good, bad])
    assert good.data is data and good.grad is None


def test_parameters_on_two_devices_are_refused():
    class Elsewhere(np.ndarray):
        device = "gpu:0"

    with pytest.raises(ValueError, match="parameters are float64 on cpu and float64 on gpu:0"):
        AdamW([Tensor(np.ones(2), True), Tensor(np.ones(2).view(Elsewhere), True)])


def test_replaced_data_is_noticed():
    params = make_params()
    optimizer = AdamW(params)
    ema = EMA(optimizer, 0.9)
    params[3].data = params[3].data.copy()
    for use in (optimizer.step, lambda: optimizer.clip_grad_norm(1.0), ema.update, ema.weights().__enter__):
        with pytest.raises(RuntimeError, match=r"make one optimizer, after module\.to"):
            use()
    assert optimizer.steps == 0


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [
        (SGD, {"lr": 0.0}, "lr"),
        (SGD, {"lr": math.nan}, "lr"),
        (SGD, {"lr": 1.0, "momentum": 1.0}, "momentum"),
        (SGD, {"lr": 1.0, "weight_decay": -0.1}, "weight_decay"),
        (AdamW, {"lr": -1e-3}, "lr"),
        (AdamW, {"lr": math.inf}, "lr"),
        (AdamW, {"betas": (0.9, 1.0)}, "betas"),
        (AdamW, {"betas": (0.9,)}, "betas"),
        (AdamW, {"eps": 0.0}, "eps"),
        (AdamW, {"weight_decay": math.nan}, "weight_decay"),
        (Muon, {"lr": 0.0}, "lr"),
        (Muon, {"momentum": 1.0}, "momentum"),
        (EMA, {"decay": 1.0}, "decay"),
    ],
)
def test_options_out_of_range_are_refused(kind, options, name):
    params = make_params()
    with pytest.raises(InputError, match=f"{name} must be .*, got "):
        kind(params, **options)
    assert all(p.grad is None for p in params)


# --- steps by hand ---


def test_sgd_by_hand():
    w, b = Tensor(np.array([[2.0]]), True), Tensor(np.array([1.0]), True)
    optimizer = SGD([b, w], lr=0.1, momentum=0.5, weight_decay=0.25)
    w.grad[...], b.grad[...] = 1.0, 4.0
    optimizer.step()  # w: u = 1 + 0.25*2 = 1.5, v = 1.5; b is not a matrix: v = 4
    assert np.allclose([w.item(), b.item()], [2 - 0.15, 1 - 0.4], rtol=1e-15)
    optimizer.step()  # w: u = 1 + 0.25*1.85 = 1.4625, v = 0.75 + 1.4625; b: v = 2 + 4
    assert np.allclose([w.item(), b.item()], [1.85 - 0.22125, 0.6 - 0.6], rtol=1e-15, atol=1e-15)
    assert (w.grad.item(), b.grad.item()) == (1.0, 4.0)


def test_adamw_by_hand():
    w, b = Tensor(np.array([[2.0]]), True), Tensor(np.array([1.0]), True)
    optimizer = AdamW([b, w], lr=0.1, betas=(0.5, 0.75), eps=0.5, weight_decay=0.2)
    w.grad[...], b.grad[...] = 3.0, -4.0
    optimizer.step()  # with corrected means m̂ = g and v̂ = g² after one step
    assert np.allclose([w.item(), b.item()], [2 * 0.98 - 0.1 * 3 / 3.5, 1 + 0.1 * 4 / 4.5], rtol=1e-14)
    before = w.item()
    w.grad[...] = 1.0
    optimizer.step()  # m = 0.5*1.5 + 0.5*1 = 1.25, m̂ = 1.25/0.75; v = 0.75*2.25 + 0.25 = 1.9375, v̂ = 1.9375/0.4375
    assert np.allclose(w.item(), before * 0.98 - 0.1 * (1.25 / 0.75) / (math.sqrt(1.9375 / 0.4375) + 0.5), rtol=1e-14)


# --- against PyTorch ---


def torch_twin(kind, options, params):
    """The same optimiser in PyTorch; vectors are in a group without weight decay."""
    torch = pytest.importorskip("torch")
    twins = [torch.nn.Parameter(torch.tensor(p.data)) for p in params]
    decay = options.get("weight_decay", 0.01 if kind is AdamW else 0.0)
    groups = [
        {"params": [t for t in twins if t.ndim >= 2], "weight_decay": decay},
        {"params": [t for t in twins if t.ndim < 2], "weight_decay": 0.0},
    ]
    rest = {name: value for name, value in options.items() if name != "weight_decay"}
    return torch, twins, getattr(torch.optim, kind.__name__)(groups, **rest)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SGD, {"lr": 0.1}),
        (SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}),
        (AdamW, {}),
        (AdamW, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3}),
    ],
)
def test_many_steps_with_a_schedule_and_clipping_match_torch(kind, options, dtype, tolerance):
    params = make_params(dtype)
    torch, twins, other = torch_twin(kind, options, params)
    optimizer, rng, peak = kind(params, **options), np.random.default_rng(1), options.get("lr", 1e-3)
    for step in range(200):
        optimizer.lr = warmup_cosine(step, 200, 20, peak)
        for group in other.param_groups:
            group["lr"] = optimizer.lr
        optimizer.zero_grad()
        for twin, g in zip(twins, set_gradients(params, rng), strict=True):
            twin.grad = torch.tensor(g.astype(dtype))
        ours, theirs = optimizer.clip_grad_norm(6.0), torch.nn.utils.clip_grad_norm_(twins, 6.0)
        assert ours == pytest.approx(theirs.item(), rel=tolerance)
        optimizer.step()
        other.step()
    for p, twin in zip(params, twins, strict=True):
        assert p.dtype == dtype
        np.testing.assert_allclose(p.data, twin.detach().numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-11), ("float32", 1e-3)])
def test_muon_matches_torch(dtype, tolerance, monkeypatch):
    """Matrices as by torch.optim.Muon, which would compute in bfloat16, and vectors as by torch.optim.AdamW."""
    torch = pytest.importorskip("torch")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self)
    params = make_params(dtype)
    flat = [p.data if p.ndim < 2 else p.data.reshape(-1, p.shape[-1]) for p in params]
    twins = [torch.nn.Parameter(torch.tensor(x)) for x in flat]
    options = {"lr": 0.02, "weight_decay": 0.3}
    others = (
        torch.optim.Muon([t for t in twins if t.ndim == 2], adjust_lr_fn="match_rms_adamw", momentum=0.9, **options),
        torch.optim.AdamW([t for t in twins if t.ndim < 2], lr=0.02, weight_decay=0.0),
    )
    optimizer, rng = Muon(params, momentum=0.9, **options), np.random.default_rng(1)
    for _ in range(30):
        optimizer.zero_grad()
        for twin, g in zip(twins, set_gradients(params, rng), strict=True):
            twin.grad = torch.tensor(g.astype(dtype)).reshape(twin.shape)
        optimizer.step()
        for other in others:
            other.step()
    for p, twin in zip(params, twins, strict=True):
        assert p.dtype == dtype
        np.testing.assert_allclose(p.data.ravel(), twin.detach().numpy().ravel(), rtol=tolerance, atol=tolerance)


# --- Muon ---


@pytest.mark.parametrize("shape", [(5, 5), (3, 4, 9), (2, 9, 4), (1, 6), (6, 1)])
def test_orthogonal_acts_on_singular_values_alone(rng, shape):
    x = 100 * rng.standard_normal(shape)
    u, values, vt = np.linalg.svd(x, full_matrices=False)
    wanted = values / np.sqrt((values**2).sum(-1, keepdims=True))
    for _ in range(5):
        wanted = 3.4445 * wanted - 4.775 * wanted**3 + 2.0315 * wanted**5
    found = orthogonal(x)
    np.testing.assert_allclose(found, u * wanted[..., None, :] @ vt, atol=1e-12)
    assert np.linalg.svd(found, compute_uv=False).min() > 0.68 and wanted.max() < 1.21
    assert not orthogonal(0 * x).any()


def test_muon_against_a_slow_loop():
    """Each matrix for itself, a kernel as a matrix, with a momentum that is computed from all gradients at once."""
    params = make_params()
    start = [p.data.copy() for p in params]
    optimizer, rng, past = Muon(params, lr=0.1, weight_decay=0.5, momentum=0.8), np.random.default_rng(1), []
    for _ in range(3):
        optimizer.zero_grad()
        past.append(set_gradients(params, rng))
        optimizer.step()
    for i, (p, w) in enumerate(zip(params, start, strict=True)):
        if p.ndim < 2:
            continue
        w = w.reshape(-1, p.shape[-1])
        for t in range(3):
            means = [sum(0.2 * 0.8 ** (s - k) * past[k][i] for k in range(s + 1)) for s in range(t + 1)]
            ahead = (0.2 * past[t][i] + 0.8 * means[t]).reshape(w.shape)
            w = w * (1 - 0.1 * 0.5) - 0.1 * 0.2 * max(w.shape) ** 0.5 * orthogonal(ahead)
        np.testing.assert_allclose(p.data.reshape(w.shape), w, atol=1e-12)


def test_muon_moves_vectors_as_adamw_does():
    ours, theirs = make_params(), make_params()
    for params, kind in ((ours, Muon), (theirs, AdamW)):
        train(kind(params, lr=0.1, weight_decay=0.5), params, np.random.default_rng(1), 3)
    for p, q in zip(ours, theirs, strict=True):
        assert np.array_equal(p.data, q.data) == (p.ndim < 2)


def test_a_step_of_muon_is_as_large_as_one_of_adamw(rng):
    """About 0.2 lr for an entry, whatever the shape of the matrix and the size of its gradient."""
    params = [Tensor(np.zeros(shape), True) for shape in ((64, 64), (64, 256), (3, 3, 16, 64), (300, 10))]
    optimizer = Muon(params, lr=0.1)
    for p in params:
        p.grad[...] = 1e-3 * rng.standard_normal(p.shape)
    optimizer.step()
    assert all(0.7 < (p.data**2).mean() ** 0.5 / 0.02 < 1.2 for p in params)


# --- clipping ---


def test_clipping():
    params = make_params()
    optimizer = SGD(params, lr=1.0)
    grads = np.concatenate([g.ravel() for g in set_gradients(params, np.random.default_rng(2))])
    norm = np.sqrt((grads**2).sum())
    assert optimizer.clip_grad_norm(2 * norm) == pytest.approx(norm, rel=1e-14)
    assert np.array_equal(np.sort(optimizer.flat.grad), np.sort(grads))  # below the limit: untouched
    assert optimizer.clip_grad_norm(0.5) == pytest.approx(norm, rel=1e-14)
    assert np.linalg.norm(optimizer.flat.grad) == pytest.approx(0.5, rel=1e-6)
    with pytest.raises(InputError, match="max_norm must be above 0, got 0"):
        optimizer.clip_grad_norm(0)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_norm_that_is_no_number_is_returned_and_leaves_the_gradients(bad):
    params = make_params()
    optimizer = SGD(params, lr=1.0)
    optimizer.flat.grad[...] = 3
    params[2].grad[...] = bad
    before = optimizer.flat.grad.copy()
    norm = optimizer.clip_grad_norm(1.0)
    assert math.isnan(norm) if math.isnan(bad) else norm == math.inf
    assert np.array_equal(optimizer.flat.grad, before, equal_nan=True)


# --- the schedule ---


def test_warmup_cosine_endpoints():
    lr = [warmup_cosine(step, 110, 10, peak=2.0, final=0.5) for step in range(130)]
    assert lr[:11] == pytest.approx([2 * k / 11 for k in range(1, 12)])  # a straight line up to the peak
    assert lr[10] == 2.0 == max(lr)
    assert lr[60] == pytest.approx(1.25) and lr[35] == pytest.approx(0.5 + 1.5 * (1 + math.sqrt(0.5)) / 2)
    assert lr[109] > lr[110] == 0.5 and lr[110:] == [0.5] * 20
    assert all(a > b for a, b in itertools.pairwise(lr[10:111]))


def test_warmup_cosine_without_warmup_and_in_one_step():
    assert [warmup_cosine(step, 2, 0, 1.0) for step in range(3)] == pytest.approx([1.0, 0.5, 0.0])
    assert warmup_cosine(0, 1, 0, 1.0) == 1.0


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((-1, 10, 2, 1.0), "step"),
        ((0, 10, 10, 1.0), "warmup"),
        ((0, 10, -1, 1.0), "warmup"),
        ((0, 10, 2, 1.0, 2.0), "final"),
        ((0, 10, 2, 1.0, -1.0), "final"),
        ((0, 10, 2, math.inf), "final"),
    ],
)
def test_warmup_cosine_refuses(arguments, name):
    with pytest.raises(InputError, match=f"^{name} must be"):
        warmup_cosine(*arguments)


# --- the average of weights ---


@pytest.mark.parametrize("shared", [True, False])
def test_ema_against_a_slow_loop(shared):
    params = make_params()
    optimizer = SGD(params, lr=0.1) if shared else None
    ema = EMA(optimizer if shared else params, decay=0.9)
    expected = [p.data.copy() for p in params]
    rng = np.random.default_rng(3)
    for _ in range(30):
        for i, p in enumerate(params):
            p.data[...] = rng.standard_normal(p.shape)
            for j in np.ndindex(p.shape):
                expected[i][j] = 0.9 * expected[i][j] + (1 - 0.9) * p.data[j]
        ema.update()
    own = [p.data.copy() for p in params]
    with ema.weights():
        for p, average in zip(params, expected, strict=True):
            np.testing.assert_allclose(p.data, average, rtol=1e-13)
    assert all(np.array_equal(p.data, values) for p, values in zip(params, own, strict=True))


def test_ema_gives_the_weights_back_after_an_error():
    params = make_params()
    ema = EMA(params, decay=0.5)
    own = ema.flat.data.copy()
    ema.average[...] = 9
    with pytest.raises(ZeroDivisionError), ema.weights():
        assert all((p.data == 9).all() for p in params)
        _ = 1 / 0
    assert np.array_equal(ema.flat.data, own) and (ema.average == 9).all()


def test_an_optimiser_made_after_the_ema_is_noticed():
    params = make_params()
    ema = EMA(params, decay=0.5)
    AdamW(params)
    with pytest.raises(RuntimeError, match="replaced"):
        ema.update()


# --- state ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1, momentum=0.9), lambda p: SGD(p, lr=0.1), AdamW, Muon])
def test_a_loaded_state_continues_bit_exactly(make, dtype):
    def copied(state):
        return {name: array.copy() for name, array in state.items()}

    params, rng = make_params(dtype), np.random.default_rng(4)
    optimizer = make(params)
    ema = EMA(optimizer, 0.9)
    train(optimizer, params, rng, 7, ema)
    optimizer.lr = 1  # written by hand, and as an int
    weights, states, position = (
        optimizer.flat.data.copy(),
        [copied(x.state_dict()) for x in (optimizer, ema)],
        rng.bit_generator.state,
    )
    train(optimizer, params, rng, 7, ema)

    others = make_params(dtype, seed=9)
    second = make(others)
    average = EMA(second, 0.9)
    second.flat.data[...] = weights
    second.load_state_dict(states[0])
    average.load_state_dict(states[1])
    rng.bit_generator.state = position
    train(second, others, rng, 7, average)
    assert second.lr == 1 and np.array_equal(second.flat.data, optimizer.flat.data)
    for one, two in ((optimizer, second), (ema, average)):
        for name, array in one.state_dict().items():
            assert np.array_equal(array, two.state_dict()[name]), name


def test_a_state_that_does_not_fit_is_refused_whole():
    optimizer = AdamW(make_params())
    other = AdamW(make_params()[1:])
    other.lr = 5.0
    for state in (other.state_dict(), {"lr": np.asarray(5.0)}, optimizer.state_dict() | {"more": np.ones(1)}):
        with pytest.raises(InputError, match="does not fit AdamW"):
            optimizer.load_state_dict(state)
    assert optimizer.lr == 1e-3 and not optimizer.exp_avg.any()


@pytest.mark.skipif(cuda_problem() is not None, reason=f"no GPU: {cuda_problem()}")
@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1), AdamW, Muon])
def test_the_gpu_does_the_same(make):
    results = []
    for device in ("cpu", "cuda"):
        params, rng = make_params(device=device), np.random.default_rng(5)
        optimizer = make(params)
        ema = EMA(optimizer, 0.9)
        train(optimizer, params, rng, 10, ema)
        norm = optimizer.clip_grad_norm(1.0)
        twin = make(make_params(device=device))
        twin.load_state_dict({name: to_numpy(array) for name, array in optimizer.state_dict().items()})
        results.append([norm, *(to_numpy(x) for x in (optimizer.flat.data, ema.average, *twin.state_dict().values()))])
    for cpu, cuda in zip(*results, strict=True):
        np.testing.assert_allclose(cuda, cpu, rtol=1e-12)
