"""The whole model: where the few tokens start, that it learns, and what it says to wrong sizes."""

import dataclasses

import numpy as np
import pytest

from minitl import Tensor, check_module, nn, ops
from minitl.backend import InputError
from minitl.nn.vit import patchify

TINY = nn.ViTConfig(
    image_size=(8, 12),
    patch_size=4,
    dim=6,
    layers=3,
    heads=2,
    mlp_dim=7,
    num_tokens=3,
    num_classes=4,
    hidden=5,
)
TOKENIZERS = [
    {"tokenizer": "learner", "version": "1.1"},
    {"tokenizer": "learner", "version": "1.0"},
    {"tokenizer": "learner", "version": "1.0", "pool": "sum"},
    {"tokenizer": "pool"},
    {"tokenizer": "static"},
    {"tokenizer": "none"},
]
every_tokenizer = pytest.mark.parametrize("options", TOKENIZERS, ids=lambda o: "-".join(o.values()))


def tiny(rng=None, **options):
    return nn.ViT(dataclasses.replace(TINY, **options), rng=rng)


def images(rng, count=2, dtype="float32"):
    return rng.standard_normal((count, 8, 12, 3)).astype(dtype)


def spy(module, seen):
    """Note each input of ``module`` in the list ``seen``."""
    forward = module.forward
    module.forward = lambda x: seen.append(x.data) or forward(x)


@every_tokenizer
def test_shapes(options, rng):
    model = tiny(rng, **options)
    for count in (1, 3):
        y = model(images(rng, count))
        assert y.shape == (count, 4) and y.dtype == "float32"
        assert (y.data == 0).all(), "the head starts at zero"
    assert model(Tensor(images(rng))).shape == (2, 4)


def test_names_of_the_parameters():
    """A checkpoint is read by these names."""
    names = list(tiny(layers=2, version="1.1").state_dict())
    block = [
        f"{a}.{b}"
        for a in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for b in ("weight", "bias")
    ]
    learner = [f"tokenizer.{a}.{b}" for a in ("norm", "mlp.fc1", "mlp.fc2") for b in ("weight", "bias")]
    assert names == [
        "patch_embed.weight",
        "patch_embed.bias",
        "pos_embed",
        *learner,
        *[f"blocks.{i}.{name}" for i in range(2) for name in block],
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    ]


def test_config_reaches_the_tokenizer():
    learner = tiny(version="1.1", hidden=9, dropout=0.2, pre_norm=False).tokenizer
    assert learner.norm is None and learner.mlp.fc1.weight.shape == (6, 9) and learner.mlp.drop.p == 0.2
    learner = tiny(version="1.0", pool="sum").tokenizer
    assert learner.norm is not None and (learner.version, learner.pool, learner.num_tokens) == ("1.0", "sum", 3)


def test_patchify(rng):
    x = images(rng)
    patches = patchify(Tensor(x), 4).data
    assert patches.shape == (2, 6, 48)
    for i, j in np.ndindex(2, 3):
        assert (patches[:, 3 * i + j] == x[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].reshape(2, 48)).all()


@pytest.mark.parametrize("loc", [0, 1, 2])
@every_tokenizer
def test_loc(loc, options, rng):
    """Blocks before ``loc`` see all 6 tokens, block ``loc`` and those after it see 3."""
    model, seen = tiny(rng, loc=loc, **options), []
    for block in model.blocks:
        spy(block, seen)
    model(images(rng))
    few = 6 if options["tokenizer"] == "none" else 3
    assert [x.shape for x in seen] == [(2, 6, 6)] * loc + [(2, few, 6)] * (3 - loc)


@pytest.mark.parametrize("loc", [0, 2])
@every_tokenizer
def test_maps(loc, options, rng):
    """They are the weights with which forward pools the grid."""
    model, grids, tokens = tiny(rng, loc=loc, **options), [], []
    if options["tokenizer"] == "none":
        with pytest.raises(ValueError, match="no tokenizer, so it has no maps"):
            model.maps(images(rng))
        return
    spy(model.tokenizer, grids)
    spy(model.blocks[loc], tokens)
    x = images(rng)
    model(x)
    maps = model.maps(x).data
    assert maps.shape == (2, 3, 2, 3)
    scale = 1 / 6 if options.get("version") == "1.0" and "pool" not in options else 1
    np.testing.assert_allclose(np.einsum("bshw,bhwc->bsc", maps, grids[0]) * scale, tokens[0], rtol=1e-4, atol=1e-6)


@every_tokenizer
def test_gradients(options, rng):
    """Every parameter by finite differences; the zero head would hide the rest of the model."""
    model = tiny(rng, loc=1, layers=2, **options).to(dtype="float64")
    model.head.weight.data[...] = rng.standard_normal(model.head.weight.shape)
    check_module(model, images(rng, dtype="float64"))


def test_positions_matter(rng):
    model = tiny(rng, tokenizer="none")
    model.head.weight.data[...] = rng.standard_normal(model.head.weight.shape)
    x = images(rng)
    moved = np.concatenate([x[:, 4:], x[:, :4]], 1)
    assert np.abs(model(x).data - model(moved).data).max() > 1e-4
    model.pos_embed.data[...] = 0
    np.testing.assert_allclose(model(x).data, model(moved).data, atol=1e-5)


def test_dropout_is_for_training(rng):
    model = tiny(rng, dropout=0.3, drop_path=0.3)
    model.head.weight.data[...] = rng.standard_normal(model.head.weight.shape)
    x = images(rng)
    assert (model(x).data != model(x).data).any()
    assert (model.eval()(x).data == model(x).data).all()
    assert [block.drop_path.p for block in model.blocks] == [0.0, 0.15, 0.3]


def test_overfits_16_images():
    """Random pictures with random labels: only a model whose every part learns gets all of them right."""
    optim = pytest.importorskip("minitl.optim")
    rng = np.random.default_rng(0)
    config = nn.ViTConfig(image_size=(16, 16), dim=24, heads=2, mlp_dim=48, num_tokens=4, hidden=16, loc=1)
    model = nn.ViT(config, rng=rng)
    optimizer = optim.AdamW(model.parameters(), lr=3e-3)
    x, labels = rng.standard_normal((16, 16, 16, 3)).astype("float32"), rng.integers(0, 8, 16)
    start = ops.cross_entropy(model(x), labels).item()
    assert start == pytest.approx(np.log(8), rel=1e-5)
    for _ in range(60):
        optimizer.zero_grad()
        ops.cross_entropy(model(x), labels).backward()
        optimizer.step()
    logits = model.eval()(x)
    assert (logits.data.argmax(1) == labels).all() and ops.cross_entropy(logits, labels).item() < 0.1


def test_the_smallest_model():
    names = ("patch_size", "channels", "num_classes", "dim", "layers", "heads", "mlp_dim", "num_tokens", "hidden")
    config = nn.ViTConfig(image_size=(1, 1), **dict.fromkeys(names, 1))
    assert nn.ViT(config)(np.ones((1, 1, 1, 1), "float32")).shape == (1, 1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"loc": 3}, "loc=3 is not the index of a block: 0 <= loc < layers=3"),
        ({"loc": -1}, "loc=-1 is not the index of a block"),
        ({"patch_size": 5}, "patch_size=5 does not divide the image size 8 x 12"),
        ({"patch_size": 0}, "patch_size is at least 1, got 0"),
        ({"heads": 4}, "heads=4 does not divide dim=6"),
        ({"heads": 0}, "heads is at least 1, got 0"),
        ({"layers": 0}, "layers is at least 1, got 0"),
        ({"num_tokens": 0}, "num_tokens is at least 1, got 0"),
        ({"num_classes": -2}, "num_classes is at least 1, got -2"),
        ({"image_size": (0, 12)}, "does not divide the image size 0 x 12"),
        ({"tokenizer": "lerner"}, "tokenizer is one of learner, pool, static, none, got 'lerner'"),
        ({"version": "1"}, "version is one of 1.0, 1.1, got '1'"),
        ({"pool": "max"}, "pool is one of mean, sum, got 'max'"),
        ({"dropout": 1.0}, r"dropout lies in \[0, 1\), got 1.0"),
        ({"drop_path": -0.1}, r"drop_path lies in \[0, 1\), got -0.1"),
        ({"tokenizer": "pool", "num_tokens": 5}, "a grid of 2 x 3 pixels cannot be cut into 5 equal cells"),
    ],
    ids=str,
)
def test_wrong_config(options, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(TINY, **options)


@pytest.mark.parametrize(
    "x, kind, message",
    [
        (np.ones((2, 8, 8, 3), "float32"), ValueError, r"takes images \(B, 8, 12, 3\), got \(2, 8, 8, 3\)"),
        (np.ones((8, 12, 3), "float32"), ValueError, r"got \(8, 12, 3\)"),
        (np.ones((2, 3, 8, 12), "float32"), ValueError, r"got \(2, 3, 8, 12\)"),
        (np.ones((2, 8, 12, 3)), TypeError, "computes in float32, the images are float64; convert them"),
        (np.ones((2, 8, 12, 3), "uint8"), TypeError, "computes in float32, the images are uint8; convert them"),
        ([[1.0]], TypeError, "expects an array, got list"),
    ],
)
def test_wrong_images(x, kind, message):
    model = tiny()
    for call in (model, model.maps):
        with pytest.raises(kind, match=message):
            call(x)
