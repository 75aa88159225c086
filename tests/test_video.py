"""A ViT on clips: how they are cut, that tokens are learned frame by frame, and how to start from an image model."""

import dataclasses

import numpy as np
import pytest

from minitl import Tensor, check_module, nn
from minitl.errors import InputError
from minitl.nn.vit import patchify

TINY = nn.ViTConfig(
    patch_size=2,
    tubelet=2,
    dim=6,
    layers=2,
    heads=2,
    mlp_dim=7,
    num_tokens=3,
    hidden=5,
    loc=1,
    version="1.1",
)
SPEC = nn.DataSpec((4, 6), num_classes=4, frames=4)
BACKS = [
    {},
    {"version": "1.0"},
    {"tokenizer": "pool"},
    {"tokenizer": "none"},
    {"back": "fuser"},
    {"back": "fuser", "fuser_mix": "frame", "fuser_beta": "mlp"},
    {"back": "unpool"},
    {"back": "reproject"},
]
every_back = pytest.mark.parametrize("options", BACKS, ids=lambda o: "-".join(o.values()))


def tiny(rng, frames=4, **options):
    """In float64, without the zeros (of the head and the fusers) behind which the rest would be hidden."""
    spec = dataclasses.replace(SPEC, frames=frames)
    model = nn.ViT(dataclasses.replace(TINY, **options), spec, rng).to(dtype="float64")
    for matrix in (model.head.weight, *[back.mix.weight for back in model.backs if hasattr(back, "mix")]):
        matrix.data[...] = rng.standard_normal(matrix.shape)
    return model


def clips(rng, frames=4):
    return rng.standard_normal((2, frames, 4, 6, 3))


@every_back
def test_shapes_and_gradients(options, rng):
    model, x = tiny(rng, **options), clips(rng)
    assert model(x).shape == (2, 4) and model.pos_embed.shape == (1, 2 * 2 * 3, 6)
    check_module(model, x)


def test_tubelets(rng):
    """In the order of time, then row by row; within one again frame by frame."""
    x = clips(rng)
    patches = patchify(Tensor(x), 2, tubelet=2).data
    assert patches.shape == (2, 12, 24)
    for t, i, j in np.ndindex(2, 2, 3):
        tubelet = x[:, 2 * t : 2 * t + 2, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        assert (patches[:, 6 * t + 3 * i + j] == tubelet.reshape(2, 24)).all()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_tokens_are_learned_frame_by_frame(version, rng):
    """The input of the block equals that of a loop over the frames, in order of time."""
    model, seen = tiny(rng, version=version, loc=0), []
    embedded, forward = model._embed(clips(rng)), model.blocks[0].forward
    model._embed = lambda _: embedded
    model.blocks[0].forward = lambda x: seen.append(x.data) or forward(x)
    model(None)
    frames = embedded.data.reshape(2, 2, 2, 3, 6)
    each = [model.tokenizer(Tensor(frames[:, t])).data for t in range(2)]
    np.testing.assert_allclose(seen[0], np.concatenate(each, 1), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("back", ["none", "fuser"])
def test_maps(back, rng):
    model, x = tiny(rng, back=back, loc=0), clips(rng)
    maps = model.maps(x).data
    assert maps.shape == (2, 2, 3, 2, 3)
    grid = model._embed(Tensor(x)).data.reshape(2, 2, 2, 3, 6)
    for t in range(2):
        np.testing.assert_allclose(maps[:, t], model.tokenizer.maps(Tensor(grid[:, t])).data, rtol=1e-12)
    assert tiny(rng, frames=2).maps(clips(rng, 2)).shape == (2, 1, 3, 2, 3), "a clip of one tubelet is still a clip"


@every_back
def test_attention_is_joint(options, rng):
    """The last frame reaches the tokens of the first."""
    model, seen = tiny(rng, **options, layers=3), []
    forward = model.blocks[2].forward
    model.blocks[2].forward = lambda x: seen.append(x.data[:, 0]) or forward(x)
    x = clips(rng)
    model(x)
    x[:, 3] += rng.standard_normal(x[:, 3].shape)
    model(x)
    assert np.abs(seen[0] - seen[1]).max() > 1e-4


# --- from an image model ---


def image_model(rng, **options):
    return tiny(rng, **options | {"frames": 1, "tubelet": 1})


def inflated(model, rng, how, **options):
    clip_model = tiny(rng, **options)
    clip_model.load_state_dict(nn.inflate(model.state_dict(), clip_model.config, clip_model.spec, how))
    return clip_model


@pytest.mark.parametrize("how", ["central", "average"])
@pytest.mark.parametrize(
    "options",
    [{}, {"tokenizer": "none"}, {"back": "fuser", "fuser_mix": "frame"}, {"stem": "conv", "tubelet": 1}],
    ids=str,
)
def test_a_still_clip_has_the_logits_of_its_image(options, how, rng):
    model = image_model(rng, **options)
    image = rng.standard_normal((2, 4, 6, 3))
    y = inflated(model, rng, how, **options)(np.repeat(image[:, None], 4, 1))
    np.testing.assert_allclose(y.data, model(image).data, rtol=1e-11, atol=1e-12)


def test_what_a_tubelet_sees(rng):
    """Its middle frame alone, or the mean of its frames."""
    model, x = image_model(rng), clips(rng)
    model.pos_embed.data[...] = 0
    frames = np.stack([model._embed(x[:, t]).data for t in range(4)], 1)  # (2, 4, 6, 6)
    central = inflated(model, rng, "central")._embed(x).data.reshape(2, 2, 6, 6)
    np.testing.assert_allclose(central, frames[:, [1, 3]], rtol=1e-12, atol=1e-13)
    average = inflated(model, rng, "average")._embed(x).data.reshape(2, 2, 6, 6)
    np.testing.assert_allclose(average, frames.reshape(2, 2, 2, 6, 6).mean(2), rtol=1e-11, atol=1e-12)
    odd = inflated(model, rng, "central", frames=3, tubelet=3)._embed(x[:, :3]).data
    np.testing.assert_allclose(odd, frames[:, 1], rtol=1e-12, atol=1e-13)


def test_inflate_leaves_the_image_model(rng):
    model = image_model(rng)
    before = {name: x.copy() for name, x in model.state_dict().items()}
    video = inflated(model, rng, "average")
    for parameter in video.parameters():
        parameter.data[...] = 7
    for name, x in model.state_dict().items():
        np.testing.assert_array_equal(x, before[name])


def test_what_cannot_be_inflated(rng):
    state = image_model(rng).state_dict()
    with pytest.raises(InputError, match="how must be central or average, got 'middle'"):
        nn.inflate(state, TINY, SPEC, "middle")
    with pytest.raises(InputError, match=r"unknown: tokenizer.norm.weight"):
        tiny(rng, tokenizer="none").load_state_dict(nn.inflate(state, TINY, SPEC))


# --- wrong input ---


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tubelet": 3}, "tubelet=3 does not divide frames=4"),
        ({"tubelet": 8}, "tubelet=8 does not divide frames=4"),
        ({"frames": 1}, "tubelet=2 does not divide frames=1"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"tubelet": 0}, "tubelet must be at least 1, got 0"),
    ],
    ids=str,
)
def test_wrong_config(options, message, rng):
    with pytest.raises(InputError, match=message):
        tiny(rng, **options)


@pytest.mark.parametrize("shape", [(2, 3, 4, 6, 3), (2, 8, 4, 6, 3), (2, 4, 6, 3), (2, 4, 3, 4, 6), (4, 4, 6, 3)])
def test_wrong_clips(shape, rng):
    model = tiny(rng)
    for call in (model, model.maps):
        with pytest.raises(ValueError, match=rf"takes clips \(B, 4, 4, 6, 3\), got \({shape[0]}, {shape[1]}, "):
            call(np.ones(shape))
    with pytest.raises(TypeError, match="in float64, the clips are float32; convert them"):
        model(np.ones((2, 4, 4, 6, 3), "float32"))
