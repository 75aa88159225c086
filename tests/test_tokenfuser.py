"""TokenFuser against loops over single pixels, its gradients, and what holds for any weights."""

import cases
import numpy as np
import pytest

from minitl import Tensor, check_module, nn

VARIANTS = [
    {},
    {"beta": "mlp", "hidden": 7},
    {"normalize": False},
    {"frames": 2},
    {"frames": 2, "mix": "frame"},
    {"frames": 2, "mix": "frame", "beta": "mlp", "normalize": False},
]
every_variant = pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()))


def randomised(rng, **options):
    """With all weights away from their special starting values, in float64.

    At the zero matrix the norm behind it divides by the root of its epsilon, which no finite difference survives.
    """
    fuser = nn.TokenFuser(5, 3, rng=rng, **options).to(dtype="float64")
    for parameter in fuser.parameters():
        parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.shape)
    return fuser


def inputs(rng, frames=1, **_):
    """Tokens and a grid that is not square."""
    clip = (frames,) if frames > 1 else ()
    return rng.standard_normal((2, frames * 3, 5)), rng.standard_normal((2, *clip, 4, 2, 5))


def slow(fuser, tokens, grid, frames=1, mix="all", **_):
    """One channel of one token, then one channel of one pixel, at a time."""
    w = fuser.state_dict()

    def norm(x, name):
        return cases.layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"]) if f"{name}.weight" in w else x

    y = norm(tokens, "mix_norm1")
    mixed = np.zeros_like(y)
    for b, s, c in np.ndindex(y.shape):
        t = s // 3  # the time of token s
        together = range(3 * frames) if mix == "all" else range(3 * t, 3 * t + 3)
        first = together[0]
        mixed[b, s, c] = w["mix.bias"][s - first]
        for other in together:
            mixed[b, s, c] += y[b, other, c] * w["mix.weight"][other - first, s - first]
    mixed = norm(mixed, "mix_norm2")
    clips = grid.reshape(2, frames, 4, 2, 5)
    out = clips.copy()
    for b, t, i, j in np.ndindex(2, frames, 4, 2):
        pixel = norm(clips[b, t, i, j], "norm")
        if "beta.weight" in w:
            weights = pixel @ w["beta.weight"]
        else:
            hidden = cases.each(cases.gelu)(pixel @ w["beta.fc1.weight"] + w["beta.fc1.bias"])
            weights = hidden @ w["beta.fc2.weight"] + w["beta.fc2.bias"]
        for s in range(3):
            out[b, t, i, j] += cases.sigmoid(weights[s]) * mixed[b, 3 * t + s]
    return out.reshape(grid.shape)


@every_variant
def test_slow_loops(options, rng):
    fuser, (tokens, grid) = randomised(rng, **options), inputs(rng, **options)
    y = fuser(Tensor(tokens), Tensor(grid)).data
    assert y.shape == grid.shape
    np.testing.assert_allclose(y, slow(fuser, tokens, grid, **options), rtol=1e-11, atol=1e-12)


@every_variant
def test_gradients(options, rng):
    check_module(randomised(rng, **options), *inputs(rng, **options))


@every_variant
def test_a_zero_matrix_makes_it_the_identity(options, rng):
    """This is how training starts; it can leave that start, since the matrix has a gradient."""
    fuser = nn.TokenFuser(5, 3, rng=rng, **options).to(dtype="float64")
    tokens, grid = inputs(rng, **options)
    y = fuser(Tensor(tokens), Tensor(grid))
    np.testing.assert_array_equal(y.data, grid)
    y.backward(rng.standard_normal(y.shape))
    assert np.abs(fuser.mix.weight.grad).max() > 0.1


def test_mixing(rng):
    """Mixed over all frames, a token reaches every frame; mixed per frame, its own alone."""
    tokens, grid = inputs(rng, frames=2)
    changed = tokens.copy()
    changed[:, 0] += 1 + np.arange(5.0)
    for mix, reached in (("all", [True, True]), ("frame", [True, False])):
        fuser = randomised(rng, frames=2, mix=mix)
        y, z = (fuser(Tensor(x), Tensor(grid)).data for x in (tokens, changed))
        assert [bool((y[:, t] != z[:, t]).any()) for t in range(2)] == reached


def test_frames_are_fused_one_by_one(rng):
    """With mixing per frame, a clip is treated as independent images."""
    fuser, (tokens, grid) = randomised(rng, frames=2, mix="frame"), inputs(rng, frames=2)
    image = randomised(rng)
    image.load_state_dict(fuser.state_dict())
    y = fuser(Tensor(tokens), Tensor(grid)).data
    for t in range(2):
        one = image(Tensor(tokens[:, 3 * t : 3 * t + 3]), Tensor(grid[:, t])).data
        np.testing.assert_allclose(y[:, t], one, rtol=1e-12, atol=1e-13)


def test_defaults_are_the_papers():
    shapes = {name: x.shape for name, x in nn.TokenFuser(6, frames=4).state_dict().items()}
    assert shapes == {
        "mix_norm1.weight": (6,),
        "mix_norm1.bias": (6,),
        "mix.weight": (32, 32),
        "mix.bias": (32,),
        "mix_norm2.weight": (6,),
        "mix_norm2.bias": (6,),
        "norm.weight": (6,),
        "norm.bias": (6,),
        "beta.weight": (6, 8),
    }
    assert nn.TokenFuser(6, 8).num_parameters() == 6 * 6 + 8 * 8 + 8 + 8 * 6
    mlp = 64 * 6 + 64 + 64 * 8 + 8
    assert nn.TokenFuser(6, 8, frames=4, mix="frame", beta="mlp").num_parameters() == 6 * 6 + 8 * 8 + 8 + mlp


def test_dropout_is_for_training(rng):
    fuser, (tokens, grid) = randomised(rng, dropout=0.5), map(Tensor, inputs(rng))
    assert (fuser(tokens, grid).data != fuser(tokens, grid).data).any()
    kept = fuser(tokens, grid).data == grid.data
    assert 0.3 < kept.mean() < 0.7, "what is dropped leaves the pixel as it was"
    assert (fuser.eval()(tokens, grid).data == fuser(tokens, grid).data).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mix": "clip"}, "mix must be 'all' or 'frame', got 'clip'"),
        ({"beta": "mlp64"}, "beta must be 'linear' or 'mlp', got 'mlp64'"),
        ({"num_tokens": 0}, "num_tokens=0 and frames=1 must be at least 1"),
        ({"frames": 0}, "frames=0 must be at least 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        nn.TokenFuser(4, **options)


@pytest.mark.parametrize(
    "frames, tokens, grid",
    [
        (1, (2, 4, 5), (2, 4, 2, 5)),
        (1, (2, 3, 5), (2, 8, 5)),
        (1, (2, 3, 5), (2, 4, 2, 6)),
        (1, (3, 3, 5), (2, 4, 2, 5)),
        (1, (2, 6, 5), (2, 2, 4, 2, 5)),
        (2, (2, 3, 5), (2, 2, 4, 2, 5)),
        (2, (2, 6, 5), (2, 4, 2, 5)),
        (2, (4, 3, 5), (4, 4, 2, 5)),
        (2, (2, 6, 5), (2, 3, 4, 2, 5)),
    ],
)
def test_wrong_shapes(frames, tokens, grid):
    fuser = nn.TokenFuser(5, 3, frames=frames)
    with pytest.raises(ValueError, match=rf"needs tokens .* S=3 and T={frames}; got \({tokens[0]}, {tokens[1]}, 5\)"):
        fuser(Tensor(np.ones(tokens, "float32")), Tensor(np.ones(grid, "float32")))
