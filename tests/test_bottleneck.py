"""Vector attention and the X(2+1)D model: each part against loops or against its own parts."""

import dataclasses
import tracemalloc

import cases
import numpy as np
import pytest
from graph_memory import saved_bytes

from minitl import OPS, Tensor, check_module, nn, ops, optim
from minitl.errors import InputError
from minitl.fast import cpu
from minitl.nn import bottleneck
from minitl.nn.bottleneck import X21D, X21DConfig

TINY = X21DConfig(widths=(3, 4), expansion=2, num_tokens=2)
SPEC = nn.DataSpec((5, 8), channels=2, num_classes=4, frames=3)


def tiny(rng=None, **options):
    return X21D(dataclasses.replace(TINY, **options), SPEC, rng)


def clips(rng, count=2, dtype="float32"):
    return rng.standard_normal((count, 3, 5, 8, 2)).astype(dtype)


def randomise(module, rng):
    """Move all weights away from their special starting values (0, 1), in float64."""
    module.to(dtype="float64")
    for parameter in module.parameters():
        parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.shape)
    return module


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def value_and_gradients(fn, *arrays):
    """Of ⟨cotangent, fn(*arrays)⟩ with a random cotangent."""
    tensors = [Tensor(x, requires_grad=True) for x in arrays]
    y = fn(*tensors)
    y.backward(np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype))
    return [y.data, *[x.grad for x in tensors]]


# --- vector attention; its slow loop and its finite differences are in cases.py ---


def heads_of_width_one(q, k, v):
    return ops.attention(ops.concatenate(q, k, v, axis=-1), num_heads=q.shape[-1])


def test_equals_attention_with_as_many_heads_as_channels(rng):
    """A head of width 1 scales its scores by 1/√1 = 1. Values and all three gradients."""
    qkv = rng.standard_normal((3, 2, 7, 5))
    for one, other in zip(
        value_and_gradients(ops.vector_attention, *qkv), value_and_gradients(heads_of_width_one, *qkv), strict=True
    ):
        close(one, other)


def test_module_equals_attention_with_as_many_heads_as_channels(rng):
    vector, heads = randomise(bottleneck.VectorAttention(4), rng), randomise(nn.Attention(4, 4), rng)
    layers = (vector.q, vector.k, vector.v)
    heads.qkv.weight.data = np.concatenate([layer.weight.data for layer in layers], 1)
    heads.qkv.bias.data = np.concatenate([layer.bias.data for layer in layers])
    heads.proj.weight.data, heads.proj.bias.data = np.eye(4), np.zeros(4)
    x = Tensor(rng.standard_normal((2, 6, 4)))
    close(vector(x).data, heads(x).data)


@pytest.mark.parametrize("held", [1, 7**2, 3 * 7**2 + 1, 9 * 7**2, 10 * 7**2])
def test_weights_held_at_once_change_nothing(held, rng, monkeypatch):
    """From one channel of one sample at a time to all 2 x 5 at once."""
    qkv = rng.standard_normal((3, 2, 7, 5))
    whole = value_and_gradients(ops.vector_attention, *qkv)
    monkeypatch.setattr(cpu, "WEIGHT_ELEMENTS", held)
    parts = value_and_gradients(ops.vector_attention, *qkv)
    for one, other in zip(whole, parts, strict=True):
        close(one, other)


def test_memory_stays_bounded(rng, monkeypatch):
    """Neither pass holds the N x N x C weights, 2 MB here, and backward keeps a few arrays of q's size only."""
    qkv = rng.standard_normal((3, 1, 128, 32)).astype("float32")
    q, k, v = (Tensor(x, requires_grad=True) for x in qkv)
    monkeypatch.setattr(cpu, "WEIGHT_ELEMENTS", 2 * 128**2)
    tracemalloc.start()
    y = ops.vector_attention(q, k, v)
    kept = saved_bytes(y)["vector_attention"]
    y.backward(y.data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kept <= 6 * q.data.nbytes
    assert peak < 128 * 128 * 32 * 4 / 3


def test_large_scores(rng):
    """If exp overflows, each channel picks the value at its largest product."""
    q, k, v = 1000 * rng.standard_normal((3, 2, 5, 3)).astype("float32")
    y, *grads = value_and_gradients(ops.vector_attention, q, k, v)
    best = (q[:, :, None] * k[:, None]).argmax(2)
    np.testing.assert_allclose(y, np.take_along_axis(v, best, 1), rtol=1e-5)
    assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize(
    "shapes, message",
    [
        (((2, 5, 3), (2, 4, 3), (2, 4, 3)), r"float64\[2, 4, 3\].*one shape \(B, N, C\)"),
        (((5, 3),) * 3, r"float64\[5, 3\].*one shape \(B, N, C\)"),
    ],
)
def test_vector_attention_misuse(shapes, message):
    with pytest.raises(ValueError, match=r"vector_attention\(.*" + message):
        ops.vector_attention(*map(np.ones, shapes))


# --- the parts ---


def test_time_convolution_is_a_loop(rng):
    conv, x = randomise(bottleneck.TimeConv(3), rng), rng.standard_normal((2, 4, 2, 3, 3))
    W, y = conv.conv.weight.data, np.zeros(x.shape)
    assert W.shape == (3, 1, 3, 3)
    for b, t, i, j in np.ndindex(x.shape[:4]):
        for step in (-1, 0, 1):
            if 0 <= t + step < 4:
                y[b, t, i, j] += x[b, t + step, i, j] @ W[step + 1, 0]
    close(conv(Tensor(x)).data, y)


@pytest.mark.parametrize("stride, shape", [(1, (2, 3, 5, 4, 4)), (2, (2, 3, 3, 2, 4))])
def test_space_convolution_takes_each_frame_by_itself(stride, shape, rng):
    conv, x = randomise(bottleneck.SpaceConv(2, 4, stride), rng), rng.standard_normal((2, 3, 5, 4, 2))
    y = conv(Tensor(x)).data
    assert y.shape == shape
    for t in range(3):
        close(y[:, t], cases.conv2d(x[:, t], conv.conv.weight.data, stride=stride, padding=1))


def mixer(rng, channels=4):
    return bottleneck.TokenMixer(channels, num_tokens=2, frames=3, rng=rng)


def test_token_mixer_is_its_three_parts(rng):
    """TokenLearner frame by frame, tokens in the order of time, attention among all of them, TokenFuser."""
    module, x = randomise(mixer(rng), rng), rng.standard_normal((2, 3, 3, 2, 4))
    frames = [module.learner(Tensor(x[:, t])).data for t in range(3)]
    y = module.attention(Tensor(np.concatenate(frames, 1)))
    assert y.shape == (2, 6, 4)
    close(module(Tensor(x)).data, module.fuser(y, Tensor(x)).data)


def test_maps_are_the_weights_of_the_tokens(rng):
    module, x = randomise(mixer(rng), rng), rng.standard_normal((2, 3, 3, 2, 4))
    maps = module.maps(Tensor(x)).data
    assert maps.shape == (2, 3, 2, 3, 2)
    for t in range(3):
        close(module.learner(Tensor(x[:, t])).data, np.einsum("bshw,bhwc->bsc", maps[:, t], x[:, t]) / 6)


def test_token_mixer_starts_as_the_identity(rng):
    x = rng.standard_normal((2, 3, 3, 2, 4)).astype("float32")
    assert (mixer(rng)(Tensor(x)).data == x).all()


def test_token_mixer_joins_all_frames(rng):
    """A change in the last frame reaches the first, which no convolution over three frames does at once."""
    x = rng.standard_normal((1, 3, 3, 2, 4))
    other = x.copy()
    other[:, 2] += rng.standard_normal((3, 2, 4))
    for module, reaches in ((mixer(rng), True), (bottleneck.TimeConv(4), False)):
        randomise(module, rng)
        assert (module(Tensor(x)).data[:, 0] != module(Tensor(other)).data[:, 0]).any() == reaches


def test_bottleneck(rng):
    """1x1x1, the layers, 1x1x1, each with batch norm over (B, T, H, W), and the residual before the last ReLU."""
    layers = [bottleneck.SpaceConv(6, 6), bottleneck.TimeConv(6)]
    block, x = randomise(bottleneck.Bottleneck(3, 6, layers), rng), rng.standard_normal((2, 3, 2, 4, 3))

    def norm(x, module):
        return cases.batch_norm(x, module.weight.data, module.bias.data, None, None)

    y = norm(x @ block.expand.weight.data, block.norm1).clip(0)
    for layer, after in zip(layers, block.norms, strict=True):
        y = norm(layer(Tensor(y)).data, after).clip(0)
    close(block(Tensor(x)).data, (x + norm(y @ block.reduce.weight.data, block.norm2)).clip(0))


def test_parameters_at_the_papers_width():
    """Table 12: Conv2D adds 1.68 M at 432 channels, and Conv1D 0.56 M."""
    assert bottleneck.SpaceConv(432, 432).num_parameters() == 9 * 432**2 == 1_679_616
    assert bottleneck.TimeConv(432).num_parameters() == 3 * 432**2 == 559_872
    assert bottleneck.VectorAttention(432).num_parameters() == 3 * (432**2 + 432)


def test_parameters_of_the_token_mixer(rng):
    """For C = 4, S = 2, T = 3: norm and a single convolution; q, k and v; three norms, mixing of all T·S tokens, β."""
    sizes = (2 * 4 + 9 * 4 * 2, 3 * (4 * 4 + 4), 3 * 2 * 4 + (6 * 6 + 6) + 4 * 2)
    parts = mixer(rng).learner, mixer(rng).attention, mixer(rng).fuser
    assert tuple(part.num_parameters() for part in parts) == sizes


MODULES = [
    (lambda rng: bottleneck.VectorAttention(4, rng), (2, 5, 4)),
    (lambda rng: bottleneck.SpaceConv(2, 3, stride=2, rng=rng), (2, 3, 4, 5, 2)),
    (lambda rng: bottleneck.TimeConv(3, rng), (2, 4, 2, 3, 3)),
    (mixer, (2, 3, 3, 2, 4)),
    (lambda rng: bottleneck.Bottleneck(4, 6, [bottleneck.TimeConv(6, rng)], rng), (2, 3, 2, 3, 4)),
    (lambda rng: bottleneck.Bottleneck(4, 4, [mixer(rng)], rng).eval(), (2, 3, 2, 3, 4)),
    (tiny, (2, 3, 5, 8, 2)),
    (lambda rng: tiny(rng).eval(), (2, 3, 5, 8, 2)),
    (lambda rng: tiny(rng, last="conv"), (2, 3, 5, 8, 2)),
]


@pytest.mark.parametrize("make, shape", MODULES)
def test_gradients(make, shape, rng, monkeypatch):
    """Of every parameter and of the input, in float64.

    Among this many ReLUs, one has an input so close to 0 that finite differences cross its kink: GELU replaces it.
    """
    monkeypatch.setitem(OPS, "relu", OPS["gelu"])
    check_module(randomise(make(rng), rng), rng.standard_normal(shape))


def test_every_module_has_its_gradients_checked(rng):
    checked = {type(make(rng)) for make, _ in MODULES}
    own = {kind for kind in vars(bottleneck).values() if getattr(kind, "__module__", "") == bottleneck.__name__}
    assert checked == {kind for kind in own if isinstance(kind, type) and issubclass(kind, nn.Module)}


# --- the model ---


@pytest.mark.parametrize("last", ["tokens", "conv"])
def test_shapes(last, rng):
    model = tiny(rng, last=last)
    for count in (1, 3):
        y = model(clips(rng, count))
        assert y.shape == (count, 4) and y.dtype == "float32"
    y.sum().backward()
    assert all(p.grad.shape == p.shape and p.grad.dtype == "float32" for p in model.parameters())


def test_stages_halve_the_frames(rng):
    """5 x 8 pixels become 3 x 4, then 2 x 2, and the maps are that large."""
    model = tiny(rng)
    assert [down(Tensor(clips(rng))).shape for down in model.downs[:1]] == [(2, 3, 3, 4, 3)]
    maps = model.maps(clips(rng)).data
    assert maps.shape == (2, 3, 2, 2, 2) and (maps > 0).all() and (maps < 1).all()


def test_maps_are_those_of_the_forward_pass(rng):
    model, x, seen = tiny(rng).eval(), clips(rng), []
    token_mixer = model.last.layers[1]
    forward = token_mixer.forward
    token_mixer.forward = lambda x: seen.append(token_mixer.maps(x).data) or forward(x)
    model(x)
    assert (model.maps(x).data == seen[0]).all()


def test_default_model_fits_a_laptop():
    assert X21D(X21DConfig(), nn.DataSpec(frames=8)).num_parameters() < 200_000


@pytest.mark.parametrize("last", ["tokens", "conv"])
def test_overfits_8_clips(last):
    """Eight clips of noise are told apart, and the running statistics then serve evaluation too."""
    rng = np.random.default_rng(0)
    model, x, y = tiny(rng, last=last, widths=(4, 8)), clips(rng, 8), np.arange(8) % 4
    optimizer = optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(60):
        loss = ops.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1 and losses[-1] < 0.05
    assert (model.eval()(x).data.argmax(1) == y).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"last": "attention"}, "last must be one of tokens, conv, got 'attention'"),
        ({"widths": ()}, "widths is empty"),
        ({"widths": (4, 0)}, r"widths must be at least 1, got \(4, 0\)"),
        ({"num_tokens": 0}, "num_tokens must be at least 1, got 0"),
        ({"expansion": -1}, "expansion must be at least 1, got -1"),
    ],
)
def test_wrong_config(options, message):
    with pytest.raises(InputError, match=message):
        tiny(**options)


@pytest.mark.parametrize(
    "x, kind, message",
    [
        (np.ones((2, 4, 5, 8, 2), "float32"), ValueError, r"takes clips \(B, 3, 5, 8, 2\), got \(2, 4, 5, 8, 2\)"),
        (np.ones((3, 5, 8, 2), "float32"), ValueError, r"got \(3, 5, 8, 2\)"),
        (np.ones((2, 3, 5, 8, 2)), TypeError, "computes in float32, the clips are float64; convert them"),
        ([[1.0]], TypeError, "holds an array of .*, got list"),
    ],
)
def test_wrong_clips(x, kind, message):
    model = tiny()
    for call in (model, model.maps):
        with pytest.raises(kind, match=message):
            call(x)


def test_a_model_without_tokens_has_no_maps(rng):
    with pytest.raises(ValueError, match="has no tokens, so it has no maps"):
        tiny(last="conv").maps(clips(rng))
