"""ToMe and EViT against loops over single tokens, in a model that was trained with all of them, and in clips."""

import dataclasses
from pathlib import Path

import cases
import numpy as np
import pytest

from minitl import check_module, data, nn, no_grad
from minitl.errors import InputError
from minitl.nn.reduce import pairs, ranks
from minitl.train import checkpoint, model_of

CONFIG = nn.ViTConfig(patch_size=4, dim=6, layers=3, heads=2, mlp_dim=7)
SPEC = nn.DataSpec((12, 16), num_classes=4)  # 3 x 4 tokens
LEFT = {"merge": (6, 9, 11), "topk": (1, 4, 11)}
every_rule = pytest.mark.parametrize("rule, S", [(rule, S) for rule, sizes in LEFT.items() for S in sizes])
ALL_64 = Path(__file__).parents[1] / "notebooks" / "models" / "all-64.safetensors"


def tiny(rng, rule, S, frames=1, **options):
    """A ViT in float64 whose attention is not nearly even, as it is at first."""
    options = {"tokenizer": rule, "num_tokens": S, "loc": 1} | options
    spec = dataclasses.replace(SPEC, frames=frames)
    model = nn.ViT(dataclasses.replace(CONFIG, **options), spec, rng).to(dtype="float64")
    for parameter in model.parameters():
        parameter.data += 0.5 * rng.standard_normal(parameter.shape)
    return model


def images(rng, frames=1, count=2):
    return rng.standard_normal((count, *([frames] if frames > 1 else []), 12, 16, 3))


# --- loops ---


def norm(x, layer):
    return cases.layer_norm(x, layer.weight.data, layer.bias.data)


def linear(x, layer):
    return x @ layer.weight.data + layer.bias.data


def attention(block, x, sizes):
    """One image (N, C) after the attention of a block; its weights (heads, N, N) and keys (heads, N, d)."""
    N, C = x.shape
    heads = block.attn.num_heads
    d, y = C // heads, np.zeros((N, C))
    q, k, v = np.split(linear(norm(x, block.norm1), block.attn.qkv), 3, axis=1)
    weights, keys = np.zeros((heads, N, N)), np.zeros((heads, N, d))
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        keys[h] = k[:, part]
        for i in range(N):
            scores = np.array([q[i, part] @ k[j, part] / np.sqrt(d) for j in range(N)])
            e = np.array([sizes[j] * np.exp(scores[j]) for j in range(N)])  # a token of size n counts n times
            weights[h, i] = e / e.sum()
            y[i, part] = sum(weights[h, i, j] * v[j, part] for j in range(N))
    return x + linear(y, block.attn.proj), weights, keys


def mlp(block, x):
    hidden = cases.each(cases.gelu)(linear(norm(x, block.norm2), block.mlp.fc1))
    return x + linear(hidden, block.mlp.fc2)


def merged(keys, S):
    """ToMe's groups of the tokens of a frame, by one merge after another; and their weights."""
    k = keys.mean(0)

    def cosine(i, j):
        return k[i] @ k[j] / np.linalg.norm(k[i]) / np.linalg.norm(k[j])

    odd = range(1, len(k), 2)
    best = {i: max(odd, key=lambda j: cosine(i, j)) for i in range(0, len(k), 2)}
    order = sorted(best, key=lambda i: -cosine(i, best[i]))
    groups = [[i] for i in order[len(k) - S :]] + [[j] for j in odd]
    for i in order[: len(k) - S]:
        next(group for group in groups if group[0] == best[i]).append(i)
    return groups, np.ones(len(k))


def kept(received, S):
    """EViT's groups of the tokens of a frame, and their weights."""
    order = sorted(range(len(received)), key=lambda j: -received[j])
    return [[j] for j in order[: S - 1]] + [order[S - 1 :]], received


def loop(model, image):
    """Logits of one image or clip, and its maps (T, S, P)."""
    config, T, x = model.config, model.grid[0], model._embed(image[None]).data[0]
    P, S, sizes = len(x) // T, config.num_tokens, np.ones(len(x))
    for i, block in enumerate(model.blocks):
        x, weights, keys = attention(block, x, sizes)
        if i == config.loc:
            A, z, sizes = np.zeros((T, S, P)), np.zeros((T * S, x.shape[1])), np.ones(T * S)
            for t in range(T):
                frame = slice(t * P, (t + 1) * P)
                received = np.array([weights[:, :, n].mean() for n in range(t * P, (t + 1) * P)])
                groups, w = merged(keys[:, frame], S) if config.tokenizer == "merge" else kept(received, S)
                for s, group in enumerate(groups):
                    for n in group:
                        A[t, s, n] = w[n] / sum(w[m] for m in group)
                        z[t * S + s] += A[t, s, n] * x[t * P + n]
                    sizes[t * S + s] = len(group) if config.tokenizer == "merge" else 1
            x = z
        x = mlp(block, x)
    return linear(norm(x, model.norm).mean(0), model.head), A


@every_rule
@pytest.mark.parametrize("frames, loc", [(1, 0), (1, 2), (2, 1)])
def test_against_a_loop(rule, S, frames, loc, rng):
    """In the first block and the last; in clips, where all frames attend to one another and each has S tokens left."""
    model, x = tiny(rng, rule, S, frames, loc=loc), images(rng, frames)
    expected, maps = zip(*(loop(model, image) for image in x), strict=True)
    np.testing.assert_allclose(model(x).data, expected, rtol=1e-9, atol=1e-10)
    found = model.maps(x).data
    assert found.shape == (2, *([2] if frames > 1 else []), S, 3, 4) and model.has_maps
    np.testing.assert_allclose(found.reshape(2, frames, S, 12), maps, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found.sum((-2, -1)), 1)


@every_rule
def test_gradients(rule, S, rng):
    """Of every parameter, also through the attention that weighs tokens; a small step does not change the choice."""
    check_module(tiny(rng, rule, S), images(rng))
    assert tiny(rng, rule, S).to(dtype="float32")(images(rng).astype("float32")).dtype == "float32"


# --- choices ---


def test_ranks_of_equal_numbers():
    x = np.array([[1.0, 3, 3, 2], [0, 0, 0, 0]])
    assert ranks(x).tolist() == [[3, 0, 1, 2], [0, 1, 2, 3]]


def test_equal_tokens_merge_first():
    """Two directions, one of them three times among the even tokens, at any length; the rest is far from all others."""
    k = np.eye(6)[None, [0, 1, 2, 1, 3, 4, 1, 5]] * np.arange(1, 9)[:, None]
    k[0, 0], k[0, 4] = k[0, 1], 2 * k[0, 3]
    t = pairs(k, 5)
    assert t.tolist() == [[1, 1, 0, 2, 1, 3, 1, 4]]


def test_no_attention_at_all(rng):
    """Tokens that receive nothing, because the softmax rounds to zero, are fused with even weights."""
    model = tiny(rng, "topk", 11, loc=0)
    model.blocks[0].attn.qkv.weight.data *= 1e4
    maps = model.maps(images(rng)).data
    assert np.isfinite(maps).all() and (maps[:, -1].max((1, 2)) == 0.5).all()


# --- in a model ---


def test_a_model_that_was_trained_with_all_tokens():
    """Its weights fit, and the fewer tokens are left, the more images it gets wrong."""
    arrays, meta = checkpoint.load(ALL_64)
    model = model_of(meta)
    model.load_state_dict({name.removeprefix("model."): array for name, array in arrays.items()})
    test = data.sample(np.random.default_rng(0), 300)
    x = data.normalize(test.images, meta["mean"], meta["std"])

    def accuracy(**options):
        other = nn.ViT(dataclasses.replace(model.config, loc=0, **options), test.spec)
        other.load_state_dict(model.state_dict())
        with no_grad():
            return (other(x).data.argmax(1) == test.labels).mean()

    whole = accuracy()
    assert whole > 0.95
    assert whole - 0.03 < accuracy(tokenizer="merge", num_tokens=56) <= whole + 0.01
    assert 0.2 < accuracy(tokenizer="merge", num_tokens=32) < whole - 0.2
    assert whole - 0.04 < accuracy(tokenizer="topk", num_tokens=32) <= whole + 0.01
    assert 0.5 < accuracy(tokenizer="topk", num_tokens=8) < whole - 0.05


@pytest.mark.parametrize("rule", LEFT)
def test_weights_of_attention_are_dropped(rule, rng):
    """In training only, with masks from the model's generator."""
    model, x = tiny(rng, rule, 9), images(rng)
    whole, maps = model.eval()(x).data, model.maps(x).data
    model.blocks[1].attn.dropout, model.blocks[1].attn.rng = 0.5, np.random.default_rng(1)
    assert (model(x).data == whole).all()
    dropped = model.train()(x).data
    assert np.abs(dropped - whole).max() > 0.01
    model.blocks[1].attn.rng = np.random.default_rng(1)
    assert (model(x).data == dropped).all()
    assert (model.maps(x).data == maps).all(), "what a token receives is counted before weights are dropped"


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"tokenizer": "merge", "num_tokens": 5},
            "tokenizer='merge' leaves 6 to 11 of 12 tokens, got num_tokens=5; .* topk",
        ),
        ({"tokenizer": "merge", "num_tokens": 12}, "tokenizer='merge' leaves 6 to 11 of 12 tokens, got num_tokens=12$"),
        ({"tokenizer": "topk", "num_tokens": 12}, "tokenizer='topk' leaves 1 to 11 of 12 tokens, got num_tokens=12$"),
        ({"tokenizer": "merge", "back": "fuser"}, "'merge' works inside a block; it takes neither back nor recompute"),
        ({"tokenizer": "topk", "recompute": True}, "'topk' works inside a block; it takes neither back nor recompute"),
    ],
)
def test_refused(options, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIG, **options).grid(SPEC)
