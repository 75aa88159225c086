"""The whole model: where the few tokens start, that it learns, and what it says to wrong sizes."""

import dataclasses

import numpy as np
import pytest
from graph_memory import saved_bytes

from minitl import Tensor, check_module, flops, nn, ops
from minitl.errors import InputError
from minitl.nn.vit import patchify, waves

TINY = nn.ViTConfig(patch_size=4, dim=6, layers=3, heads=2, mlp_dim=7, num_tokens=3, hidden=5)
SPEC = nn.DataSpec((8, 12), num_classes=4)
TOKENIZERS = [
    {"tokenizer": "learner", "version": "1.1"},
    {"tokenizer": "learner", "version": "1.0"},
    {"tokenizer": "learner", "version": "1.0", "pool": "sum"},
    {"tokenizer": "pool"},
    {"tokenizer": "static"},
    {"tokenizer": "dense"},
    {"tokenizer": "mean-dense"},
    {"tokenizer": "query"},
    {"tokenizer": "gate"},
    {"tokenizer": "none"},
]
BACKS = [
    {"back": "fuser", "version": "1.0"},
    {"back": "fuser", "fuser_beta": "mlp", "version": "1.1"},
    {"back": "fuser", "tokenizer": "dense"},
    {"back": "unpool", "version": "1.0"},
    {"back": "unpool", "version": "1.1"},
    {"back": "reproject", "version": "1.1"},
    {"back": "reproject", "tokenizer": "query"},
]
STEMS = [
    {"stem": "conv"},
    {"stem": "conv", "stem_width": 5, "head_pool": "sequence", "tokenizer": "none"},
    {"stem": "conv", "patch_size": 2, "image_size": (4, 6), "version": "1.1", "frames": 2},
    {"head_pool": "sequence"},
]
every_tokenizer = pytest.mark.parametrize("options", TOKENIZERS, ids=lambda o: "-".join(o.values()))
every_back = pytest.mark.parametrize("options", BACKS, ids=lambda o: "-".join(o.values()))


def tiny(rng=None, **options):
    """A ViT of TINY and SPEC with other options, whichever of the two they belong to."""
    sizes = {field.name: options.pop(field.name) for field in dataclasses.fields(SPEC) if field.name in options}
    return nn.ViT(dataclasses.replace(TINY, **options), dataclasses.replace(SPEC, **sizes), rng=rng)


def images(rng, count=2, dtype="float32"):
    return rng.standard_normal((count, 8, 12, 3)).astype(dtype)


def spy(module, seen):
    """Note each input of ``module`` in the list ``seen``."""
    forward = module.forward
    module.forward = lambda x: seen.append(x.data) or forward(x)


@pytest.mark.parametrize("options", TOKENIZERS + BACKS, ids=lambda o: "-".join(o.values()))
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


def test_names_with_a_way_back():
    """One tokenizer and one fuser for each block from ``loc`` on."""
    tops = {".".join(name.split(".")[:2]) for name in tiny(version="1.1", back="fuser", loc=1).state_dict()}
    assert {name for name in tops if name.startswith("later")} == {"later_tokenizers.0"}
    assert {name for name in tops if name.startswith("backs")} == {"backs.0", "backs.1"}


def test_config_reaches_the_fuser():
    options = {"back": "fuser", "frames": 4, "tubelet": 2, "dropout": 0.2}
    fuser = tiny(**options).backs[0]
    assert fuser.mix.weight.shape == (6, 6) and fuser.beta.weight.shape == (6, 3) and fuser.drop.p == 0.2
    fuser = tiny(**options, fuser_mix="frame", fuser_beta="mlp", fuser_norm=False, hidden=9).backs[0]
    assert fuser.mix.weight.shape == (3, 3) and fuser.mix_norm1 is fuser.mix_norm2 is None
    assert fuser.beta.fc1.weight.shape == (6, 9) and fuser.beta.drop.p == 0.2
    attention = tiny(back="reproject", heads=3).backs[0].attn
    assert attention.num_heads == 3


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


@pytest.mark.parametrize("loc", [0, 1, 2])
@every_back
def test_loc_with_a_way_back(loc, options, rng):
    """Each block from ``loc`` on sees 3 tokens, and each gets all 6 to make its own from."""
    model, seen, grids = tiny(rng, loc=loc, **options), [], []
    tokenizers = [model.tokenizer, *model.later_tokenizers]
    for block in model.blocks:
        spy(block, seen)
    for tokenizer in tokenizers:
        forward = tokenizer.forward
        tokenizer.forward = lambda x, *maps, forward=forward: grids.append(x.data) or forward(x, *maps)
    spy(model.norm, seen)
    model(images(rng))
    assert [x.shape for x in seen] == [(2, 6, 6)] * loc + [(2, 3, 6)] * (3 - loc) + [(2, 6, 6)]
    assert [x.shape for x in grids] == [(2, 2, 3, 6)] * (3 - loc)


def test_layer_with_a_fuser(rng):
    """x + fuser(block(tokenizer(x)), x), each with its own weights; the paper's section 3.2 and nothing else."""
    model, outputs = tiny(rng, loc=1, back="fuser"), []
    for back in model.backs:
        back.mix.weight.data[...] = rng.standard_normal((3, 3))
    spy(model.norm, outputs)
    image = images(rng)
    model(image)
    x = model.blocks[0](model._embed(image))
    for i, tokenizer in enumerate([model.tokenizer, *model.later_tokenizers]):
        grid = x.reshape(2, 2, 3, 6)
        x = model.backs[i](model.blocks[1 + i](tokenizer(grid)), grid).reshape(2, 6, 6)
    np.testing.assert_allclose(outputs[0], x.data, rtol=1e-5, atol=1e-6)


def test_unpooling_uses_the_maps_that_made_the_tokens(rng):
    """Also with dropout, where maps made a second time would differ."""
    model, made, used = tiny(rng, version="1.1", back="unpool", dropout=0.5), [], []
    for tokenizer, back in zip([model.tokenizer, *model.later_tokenizers], model.backs, strict=True):
        forward, spread = tokenizer.forward, back.forward
        tokenizer.forward = lambda x, maps, forward=forward: made.append(maps) or forward(x, maps)
        back.forward = lambda y, x, maps, spread=spread: used.append(maps) or spread(y, x, maps)
    model(images(rng))
    assert len(made) == 3 and all(a is b for a, b in zip(made, used, strict=True))


@pytest.mark.parametrize("tokenizer", ["none", "dense", "mean-dense"])
def test_no_maps(tokenizer, rng):
    model = tiny(rng, tokenizer=tokenizer)
    assert not model.has_maps
    with pytest.raises(ValueError, match=f"no maps: its tokenizer is '{tokenizer}'"):
        model.maps(images(rng))


@pytest.mark.parametrize("loc", [0, 2])
@pytest.mark.parametrize("options", [o for o in TOKENIZERS if o["tokenizer"] in ("learner", "pool", "static", "gate")])
def test_maps(loc, options, rng):
    """They are the weights with which forward pools the grid."""
    model, grids, tokens = tiny(rng, loc=loc, **options), [], []
    assert model.has_maps
    spy(model.tokenizer, grids)
    spy(model.blocks[loc], tokens)
    x = images(rng)
    model(x)
    maps = model.maps(x).data
    assert maps.shape == (2, 3, 2, 3)
    mean = options["tokenizer"] == "gate" or (options.get("version") == "1.0" and "pool" not in options)
    scale = 1 / 6 if mean else 1
    np.testing.assert_allclose(np.einsum("bshw,bhwc->bsc", maps, grids[0]) * scale, tokens[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", TOKENIZERS + BACKS, ids=lambda o: "-".join(o.values()))
def test_gradients(options, rng):
    """Every parameter by finite differences; the zeros of head and fusers would hide the rest of the model."""
    model = tiny(rng, loc=1, **options).to(dtype="float64")
    for matrix in (model.head.weight, *[back.mix.weight for back in model.backs if hasattr(back, "mix")]):
        matrix.data[...] = rng.standard_normal(matrix.shape)
    check_module(model, images(rng, dtype="float64"))


@pytest.mark.parametrize("options", STEMS, ids=str)
def test_gradients_of_stem_and_head(options, rng):
    model = tiny(rng, **options).to(dtype="float64")
    for p in (model.head.weight, *([model.head_weights.weight] if "head_pool" in options else [])):
        p.data[...] = rng.standard_normal(p.shape)
    for conv in getattr(model.patch_embed, "convs", ()):
        conv.weight.data *= 30  # so that no finite difference reaches over a kink of ReLU or of max pooling
    spec = model.spec
    time = (spec.frames,) if spec.frames > 1 else ()
    check_module(model, 30 * rng.standard_normal((2, *time, *spec.image_size, 3)))


def test_a_convolutional_stem(rng):
    """Each time a convolution by its formula, then the largest of 3 x 3 and of zero, at every second pixel."""
    stem = nn.vit.ConvStem(3, 6, n=2, width=5, rng=rng)
    x = y = rng.standard_normal((2, 8, 12, 3)).astype("float32")
    assert [conv.weight.shape for conv in stem.convs] == [(3, 3, 3, 5), (3, 3, 5, 6)]
    for conv in stem.convs:
        B, H, W, _ = y.shape
        y = np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = ((i, j, y[:, i : i + 3, j : j + 3]) for i, j in np.ndindex(H, W))
        convolved = np.full((B, H + 2, W + 2, conv.weight.shape[3]), -np.inf)
        for i, j, window in windows:
            convolved[:, i + 1, j + 1] = np.einsum("bijc,ijco->bo", window, conv.weight.data)
        y = np.zeros((B, H // 2, W // 2, conv.weight.shape[3]))
        for i, j in np.ndindex(H // 2, W // 2):
            y[:, i, j] = convolved[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2)).clip(0)
    np.testing.assert_allclose(stem(Tensor(x)).data, y, rtol=1e-4, atol=1e-6)


def test_tokens_of_a_stem_lie_where_their_pixels_are(rng):
    """Of a clip too: a bright spot lights up one place at one time."""
    model = tiny(rng, stem="conv", frames=3, tokenizer="none")
    clips = np.zeros((1, 3, 8, 12, 3), "float32")
    clips[0, 1, 5:7, 9:11] = 100
    model.pos_embed.data[...] = 0
    lit = np.abs(model._embed(clips).data[0]).sum(-1).reshape(3, 2, 3)
    assert np.unravel_index(lit.argmax(), lit.shape) == (1, 1, 2) and lit[[0, 2]].max() == 0


def test_sequence_pooling(rng):
    """It starts as the mean, and is an average with weights that add up to 1."""
    model, plain = tiny(head_pool="sequence"), tiny()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head_weights")})
    for m in (model, plain):
        m.head.weight.data[...] = np.random.default_rng(0).standard_normal(m.head.weight.shape)
    x = images(rng)
    np.testing.assert_allclose(model(x).data, plain(x).data, rtol=1e-5)
    w = model.head_weights.weight.data
    w[...] = rng.standard_normal(w.shape)
    tokens = []
    model.norm.forward = lambda x, forward=model.norm.forward: tokens.append(forward(x)) or tokens[-1]
    y = model(x).data
    weights = np.exp(tokens[0].data @ w)
    average = (weights * tokens[0].data).sum(1) / weights.sum(1)
    np.testing.assert_allclose(y, average @ model.head.weight.data + model.head.bias.data, rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize("options", [{}, {"back": "fuser"}, {"frames": 4, "tubelet": 2, "image_size": (8, 8)}], ids=str)
def test_overfits_16_images(options):
    """Or clips. Random pictures with random labels: only a model whose every part learns gets all of them right."""
    optim = pytest.importorskip("minitl.optim")
    rng = np.random.default_rng(0)
    sizes = {"image_size": (16, 16), "num_classes": 8, "layers": 2}
    sizes |= {"dim": 24, "heads": 2, "mlp_dim": 48, "num_tokens": 4, "hidden": 16, "loc": 1}
    model = tiny(rng, **sizes | options)
    optimizer = optim.AdamW(model.parameters(), lr=3e-3)
    time = (model.spec.frames,) if model.spec.frames > 1 else ()
    x = rng.standard_normal((16, *time, *model.spec.image_size, 3)).astype("float32")
    labels = rng.integers(0, 8, 16)
    start = ops.cross_entropy(model(x), labels).item()
    assert start == pytest.approx(np.log(8), rel=1e-5)
    for _ in range(60):
        optimizer.zero_grad()
        ops.cross_entropy(model(x), labels).backward()
        optimizer.step()
    logits = model.eval()(x)
    assert (logits.data.argmax(1) == labels).all() and ops.cross_entropy(logits, labels).item() < 0.1


def test_more_tokens_than_pixels(rng):
    """Learned maps may overlap, so there is no limit; cells of a grid cannot."""
    for tokenizer in ("learner", "static", "query", "gate", "dense"):
        assert tiny(rng, tokenizer=tokenizer, num_tokens=9)(images(rng)).shape == (2, 4)
    with pytest.raises(InputError, match="a grid of 2 x 3 pixels cannot be cut into 9 equal cells"):
        tiny(rng, tokenizer="pool", num_tokens=9)


def test_the_smallest_model():
    names = ("patch_size", "dim", "layers", "heads", "mlp_dim", "num_tokens", "hidden")
    for back in ("none", "fuser", "unpool", "reproject"):
        config = nn.ViTConfig(back=back, **dict.fromkeys(names, 1))
        assert nn.ViT(config, nn.DataSpec((1, 1), 1, 1))(np.ones((1, 1, 1, 1), "float32")).shape == (1, 1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"loc": 3}, "loc=3 is not the index of a block: 0 <= loc < layers=3"),
        ({"loc": -1}, "loc=-1 is not the index of a block"),
        ({"patch_size": 5}, "patch_size=5 does not divide the image size 8 x 12"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"heads": 4}, "heads=4 does not divide dim=6"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"num_tokens": 0}, "num_tokens must be at least 1, got 0"),
        ({"num_classes": -2}, "num_classes must be at least 1, got -2"),
        ({"image_size": (0, 12)}, r"image_size must be at least 1, got \(0, 12\)"),
        ({"tokenizer": "lerner"}, "tokenizer must be one of learner, pool, .*, none, got 'lerner'"),
        ({"version": "1"}, "version must be one of 1.0, 1.1, got '1'"),
        ({"back": "fuse"}, "back must be one of none, fuser, unpool, reproject, got 'fuse'"),
        ({"fuser_beta": "mlp64"}, "fuser_beta must be one of linear, mlp, got 'mlp64'"),
        ({"fuser_mix": "clip"}, "fuser_mix must be one of all, frame, got 'clip'"),
        ({"back": "fuser", "tokenizer": "none"}, "back='fuser' needs a tokenizer"),
        ({"back": "unpool", "tokenizer": "dense"}, "needs the maps of tokenizer='learner', not of 'dense'"),
        ({"pool": "max"}, "pool must be one of mean, sum, got 'max'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"drop_path": -0.1}, r"drop_path must be in \[0, 1\), got -0.1"),
        ({"stem": "cnn"}, "stem must be one of patch, conv, got 'cnn'"),
        ({"stem": "conv", "patch_size": 1}, "stem='conv' needs a patch_size of 2, 4, 8 …, got 1"),
        ({"stem": "conv", "patch_size": 6, "image_size": (12, 12)}, "patch_size of 2, 4, 8 …, got 6"),
        ({"stem": "conv", "frames": 4, "tubelet": 2}, "sees one frame at a time: tubelet must be 1, got 2"),
        ({"stem_width": 0}, "stem_width must be at least 1, got 0"),
        ({"head_pool": "max"}, "head_pool must be one of mean, sequence, got 'max'"),
        ({"tokenizer": "pool", "num_tokens": 5}, "a grid of 2 x 3 pixels cannot be cut into 5 equal cells"),
    ],
    ids=str,
)
def test_wrong_config(options, message):
    with pytest.raises(InputError, match=message):
        tiny(**options)


@pytest.mark.parametrize(
    "x, kind, message",
    [
        (np.ones((2, 8, 8, 3), "float32"), ValueError, r"takes images \(B, 8, 12, 3\), got \(2, 8, 8, 3\)"),
        (np.ones((8, 12, 3), "float32"), ValueError, r"got \(8, 12, 3\)"),
        (np.ones((2, 3, 8, 12), "float32"), ValueError, r"got \(2, 3, 8, 12\)"),
        (np.ones((2, 8, 12, 3)), TypeError, "computes in float32, the images are float64; convert them"),
        (np.ones((2, 8, 12, 3), "uint8"), TypeError, "computes in float32, the images are uint8; convert them"),
        ([[1.0]], TypeError, "holds an array of .*, got list"),
    ],
)
def test_wrong_images(x, kind, message):
    model = tiny()
    for call in (model, model.maps):
        with pytest.raises(kind, match=message):
            call(x)


def test_the_head_starts_at_zero():
    """Without that all else starts the same."""
    usual, other = (tiny(np.random.default_rng(0), zero_head=z) for z in (True, False))
    assert (usual.head.weight.data == 0).all() and (other.head.weight.data != 0).all()
    for name, array in usual.state_dict().items():
        assert name == "head.weight" or (array == other.state_dict()[name]).all()


def test_waves(rng):
    """A sum of one function of each coordinate, of equal spread, in which neighbours are nearer than others."""
    x = tiny(rng, positions="waves", frames=8, tubelet=2).pos_embed
    assert x.shape == (1, 4 * 2 * 3, 6) and x.dtype == "float32"
    x = waves(rng, (4, 5, 6), 400).data.reshape(4, 5, 6, 400)
    parts = [x.mean((1, 2), keepdims=True), x.mean((0, 2), keepdims=True), x.mean((0, 1), keepdims=True)]
    np.testing.assert_allclose(sum(parts) - 2 * x.mean((0, 1, 2)), x, atol=1e-5)
    assert abs(x.var() / (3 * 0.3**2) - 1) < 0.3
    distance = np.linalg.norm(x[:, :, 1:] - x[:, :, :1], axis=-1).mean((0, 1))  # of each column from the first
    assert distance.argmin() == 0


@pytest.mark.parametrize("options", [{}, {"dropout": 0.3, "drop_path": 0.2}, {"back": "fuser", "loc": 1}])
def test_recompute_changes_the_memory_and_nothing_else(options):
    """The same loss and gradients to the last bit, with dropout too: the second call sees the same masks."""
    spec = nn.DataSpec((16, 16), num_classes=8)
    sizes = {"dim": 12, "heads": 3, "mlp_dim": 24, "layers": 3, "zero_head": False}
    images = np.random.default_rng(1).standard_normal((2, 16, 16, 3), dtype="float32")
    found, kept = [], []
    for recompute in (False, True):
        config = nn.ViTConfig(**sizes, **options, recompute=recompute)
        model = nn.ViT(config, spec, np.random.default_rng(0))
        loss = ops.cross_entropy(model(images), np.array([1, 5]))
        kept.append(sum(saved_bytes(loss).values()))
        assert options.get("dropout") or kept[-1] == pytest.approx(
            2 * 4 * flops.total(flops.count(config, spec)).kept, rel=0.01
        )
        loss.backward()
        found.append([loss.data, *(p.grad for p in model.parameters()), model(images).data])
    assert all((a == b).all() for a, b in zip(*found, strict=True))
    assert kept[1] < 0.7 * kept[0]
