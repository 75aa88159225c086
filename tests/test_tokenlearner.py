"""TokenLearner against loops over single pixels, and what holds for any weights."""

import cases
import numpy as np
import pytest

from minitl import Tensor, nn


def randomise(module, rng):
    """Move all weights away from their special starting values (0, 1), in float64."""
    module.to(dtype="float64")
    for parameter in module.parameters():
        parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.shape)
    return module


def slow(learner, x):
    """Maps (B, S, H, W) and tokens (B, S, C), one pixel at a time."""
    w = learner.state_dict()
    B, H, W, C = x.shape
    y = cases.layer_norm(x, w["norm.weight"], w["norm.bias"]) if "norm.weight" in w else x
    if learner.version == "1.0":
        kernels = [w[name] for name in w if name.startswith("convs.")]
        for i, kernel in enumerate(kernels):
            y = cases.each(cases.gelu)(y) if i else y
            y = cases.conv2d(y, kernel, padding=1)
        weights = cases.each(cases.sigmoid)(y)
    else:
        y = cases.each(cases.gelu)(cases.linear(y, w["mlp.fc1.weight"], w["mlp.fc1.bias"]))
        y = np.exp(cases.linear(y, w["mlp.fc2.weight"], w["mlp.fc2.bias"]))
        weights = y / y.sum((1, 2), keepdims=True)
    tokens = np.zeros((B, learner.num_tokens, C))
    for b, i, j in np.ndindex(B, H, W):
        for s in range(learner.num_tokens):
            tokens[b, s] += weights[b, i, j, s] * x[b, i, j]
    mean = learner.version == "1.0" and learner.pool == "mean"
    return weights.transpose(0, 3, 1, 2), tokens / (H * W) if mean else tokens


VARIANTS = [
    {"version": "1.0"},
    {"version": "1.0", "pool": "sum"},
    {"version": "1.0", "n_conv": 1},
    {"version": "1.0", "n_conv": 2, "pool": "sum"},
    {"version": "1.0", "n_conv": 3},
    {"version": "1.0", "n_conv": 2, "pre_norm": False},
    {"version": "1.1"},
    {"version": "1.1", "hidden": 3},
    {"version": "1.1", "pre_norm": False},
]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()))
def test_slow_loops(options, rng):
    """On a grid that is not square, with fewer tokens than pixels."""
    learner = randomise(nn.TokenLearner(5, 4, **options), rng)
    x = rng.standard_normal((2, 3, 4, 5))
    maps, tokens = slow(learner, x)
    np.testing.assert_allclose(learner.maps(Tensor(x)).data, maps, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(learner(Tensor(x)).data, tokens, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()))
def test_maps_are_what_forward_uses(options, rng):
    learner = randomise(nn.TokenLearner(5, 4, **options), rng)
    x = rng.standard_normal((2, 3, 4, 5))
    tokens = np.einsum("bshw,bhwc->bsc", learner.maps(Tensor(x)).data, x)
    tokens /= 12 if learner.version == "1.0" and learner.pool == "mean" else 1
    np.testing.assert_allclose(learner(Tensor(x)).data, tokens, rtol=1e-12, atol=1e-13)


def test_defaults_are_the_papers():
    learner = nn.TokenLearner(6)
    assert (learner.num_tokens, learner.version, learner.pool) == (8, "1.0", "mean")
    shapes = {name: x.shape for name, x in learner.state_dict().items()}
    assert shapes == {
        "norm.weight": (6,),
        "norm.bias": (6,),
        "convs.0.weight": (3, 3, 6, 8),
        **{f"convs.{i}.weight": (3, 3, 8, 8) for i in (1, 2, 3)},
    }
    shapes = {name: x.shape for name, x in nn.TokenLearner(6, 8, version="1.1").state_dict().items()}
    assert shapes["mlp.fc1.weight"] == (6, 64) and shapes["mlp.fc2.weight"] == (64, 8)


def test_1_1_starts_near_the_mean_pixel(rng):
    """The last layer's weights are a tenth of what a layer of this size starts with, ±√(6 / (in + out))."""
    largest = np.abs(nn.TokenLearner(6, 8, version="1.1", hidden=64, rng=rng).mlp.fc2.weight.data).max()
    assert 0.09 < largest / np.sqrt(6 / (64 + 8)) <= 0.1


def test_maps_of_1_1_are_averages(rng):
    """Each map is positive and adds up to 1, so a constant image gives that constant, whatever the weights."""
    learner = randomise(nn.TokenLearner(5, 4, version="1.1"), rng)
    maps = learner.maps(Tensor(rng.standard_normal((2, 3, 4, 5)))).data
    assert (maps > 0).all()
    np.testing.assert_allclose(maps.sum((2, 3)), 1, rtol=1e-12)
    colour = rng.standard_normal(5)
    tokens = learner(Tensor(np.broadcast_to(colour, (2, 3, 4, 5)).copy())).data
    np.testing.assert_allclose(tokens, np.broadcast_to(colour, (2, 4, 5)), rtol=1e-12)


def test_constant_logits_give_the_mean_pixel(rng):
    x = rng.standard_normal((2, 3, 4, 5))
    learner = randomise(nn.TokenLearner(5, 4, version="1.1"), rng)
    learner.mlp.fc2.weight.data[...] = 0
    tokens = learner(Tensor(x)).data
    np.testing.assert_allclose(tokens, np.repeat(x.mean((1, 2))[:, None], 4, 1), rtol=1e-12)
    learner = randomise(nn.TokenLearner(5, 4, version="1.0"), rng)
    learner.convs[-1].weight.data[...] = 0  # sigmoid(0) is a half
    np.testing.assert_allclose(learner(Tensor(x)).data, np.repeat(x.mean((1, 2))[:, None], 4, 1) / 2, rtol=1e-12)


def test_pixels_have_no_order_in_1_1(rng):
    """Moving the pixels moves the maps with them and leaves the tokens."""
    learner, x = randomise(nn.TokenLearner(5, 4, version="1.1"), rng), rng.standard_normal((2, 3, 4, 5))
    order = rng.permutation(12)
    moved = x.reshape(2, 12, 5)[:, order].reshape(2, 3, 4, 5)
    maps, maps_moved = (learner.maps(Tensor(image)).data.reshape(2, 4, 12) for image in (x, moved))
    np.testing.assert_allclose(maps_moved, maps[:, :, order], rtol=1e-12)
    np.testing.assert_allclose(learner(Tensor(moved)).data, learner(Tensor(x)).data, rtol=1e-11, atol=1e-13)


def test_only_the_maps_see_the_norm(rng):
    """Pooled values are the input itself: brighter pixels, equal maps, brighter tokens."""
    learner, x = randomise(nn.TokenLearner(5, 4, version="1.1"), rng), rng.standard_normal((1, 3, 4, 5))
    bright = x + 100.0
    np.testing.assert_allclose(learner.maps(Tensor(bright)).data, learner.maps(Tensor(x)).data, rtol=1e-9)
    np.testing.assert_allclose(learner(Tensor(bright)).data, learner(Tensor(x)).data + 100.0, rtol=1e-9)


def test_samples_do_not_mix(rng):
    for version in ("1.0", "1.1"):
        learner, x = randomise(nn.TokenLearner(5, 4, version=version), rng), rng.standard_normal((3, 2, 2, 5))
        each = np.concatenate([learner(Tensor(x[i : i + 1])).data for i in range(3)])
        np.testing.assert_allclose(learner(Tensor(x)).data, each, rtol=1e-12, atol=1e-13)


def test_dropout_is_for_training(rng):
    x = Tensor(rng.standard_normal((1, 4, 4, 5)).astype("float32"))
    learner = nn.TokenLearner(5, 4, version="1.1", dropout=0.5, rng=rng)
    assert (learner(x).data != learner(x).data).any() and (learner.eval()(x).data == learner(x).data).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"version": "2.0"}, r"version must be '1\.0' or '1\.1', got '2\.0'"),
        ({"version": 1.0}, r"version must be '1\.0' or '1\.1', got 1\.0"),
        ({"pool": "max"}, "pool must be 'mean' or 'sum', got 'max'"),
        ({"num_tokens": 0}, "num_tokens=0 .* at least 1"),
        ({"n_conv": 0}, "n_conv=0 must be at least 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        nn.TokenLearner(4, **options)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_wrong_shapes(version):
    learner = nn.TokenLearner(5, 4, version=version)
    tokens = Tensor(np.ones((2, 12, 5), "float32"))
    with pytest.raises(ValueError, match=r"needs \(B, H, W, channels\), got \(2, 12, 5\); reshape"):
        learner(tokens)
    with pytest.raises(ValueError, match=r"needs \(B, H, W, channels\), got \(2, 12, 5\); reshape"):
        learner.maps(tokens)
    with pytest.raises(ValueError, match=r"\[2, 3, 4, 6\].*float32\[5\]"):
        learner(Tensor(np.ones((2, 3, 4, 6), "float32")))
