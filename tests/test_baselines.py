"""The alternatives to TokenLearner and TokenFuser against loops over single pixels."""

import cases
import numpy as np
import pytest

from minitl import Tensor, check_module
from minitl.errors import InputError
from minitl.nn import baselines
from minitl.nn.baselines import (
    BACKS,
    TOKENIZERS,
    CrossAttention,
    DenseTokenizer,
    GateTokenizer,
    GridPool,
    QueryTokenizer,
    Reproject,
    SpatialGate,
    StaticPool,
    Unpool,
    grid_shape,
    make_back,
    make_tokenizer,
)

B, H, W, C, S = 2, 3, 4, 6, 2  # sizes of the tests below: a grid that is not square
PIXELS = list(np.ndindex(H, W))


def randomise(module, rng):
    """Move all weights and running values away from their special starting values (0, 1), in float64."""
    module.to(dtype="float64")
    for parameter in module.parameters():
        parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.shape)
    for name, array in module.state_dict().items():
        if "running" in name:
            array += rng.uniform(0.1, 0.5, array.shape)
    return module


def grid(rng, dtype="float64"):
    return rng.standard_normal((B, H, W, C)).astype(dtype)


# --- fixed cells ---


@pytest.mark.parametrize(
    "tokens, height, width, cells",
    [(4, 4, 4, (2, 2)), (8, 8, 8, (2, 4)), (8, 4, 8, (2, 4)), (6, 4, 6, (2, 3)), (1, 3, 5, (1, 1)), (16, 4, 4, (4, 4))],
)
def test_grid_shape(tokens, height, width, cells):
    """Eight tokens of a square frame are the fixed split of the paper's video table, 2 x 4."""
    assert grid_shape(tokens, height, width) == cells


def test_grid_shape_that_does_not_fit():
    with pytest.raises(InputError, match="a grid of 4 x 4 pixels cannot be cut into 3 equal cells"):
        GridPool(3, 4, 4)
    with pytest.raises(InputError, match="a grid of 4 x 4 pixels cannot be cut into 17 equal cells"):
        GridPool(17, 4, 4)


@pytest.mark.parametrize("tokens, width, cell", [(6, 6, (2, 2)), (2, 3, (2, 3)), (4, 4, (2, 2)), (1, 4, (4, 4))])
def test_grid_pool(tokens, width, cell, rng):
    height, (h, w) = 4, cell
    pool, x = GridPool(tokens, height, width), rng.standard_normal((2, height, width, 5))
    assert (pool.rows, pool.columns) == (height // h, width // w) and pool.parameters() == []
    expected = np.zeros((2, tokens, 5))
    for i, j in np.ndindex(height, width):
        expected[:, (i // h) * (width // w) + j // w] += x[:, i, j] / (h * w)
    np.testing.assert_allclose(pool(Tensor(x)).data, expected, rtol=1e-12, atol=1e-13)
    maps = pool.maps(Tensor(x)).data
    assert maps.shape == (2, tokens, height, width)
    np.testing.assert_allclose(maps.sum((2, 3)), 1)
    np.testing.assert_allclose(np.einsum("bshw,bhwc->bsc", maps, x), expected, rtol=1e-12, atol=1e-13)


def test_grid_pool_of_another_size():
    with pytest.raises(ValueError, match="takes grids of 4 x 6"):
        GridPool(6, 4, 6)(Tensor(np.ones((2, 4, 8, 5), "float32")))


def test_static_pool(rng):
    """The maps are a softmax of free numbers, the same for every image."""
    pool, x = StaticPool(3, 4, 2, rng=rng).to(dtype="float64"), rng.standard_normal((2, 4, 2, 5))
    maps = np.exp(pool.logits.data[0]) / np.exp(pool.logits.data[0]).sum(1, keepdims=True)
    expected = np.zeros((2, 3, 5))
    for b, s, i, j in np.ndindex(2, 3, 4, 2):
        expected[b, s] += maps[s, 2 * i + j] * x[b, i, j]
    np.testing.assert_allclose(pool(Tensor(x)).data, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(pool.maps(Tensor(x)).data, np.stack([maps.reshape(3, 4, 2)] * 2), rtol=1e-12)


def test_static_pool_of_another_size():
    with pytest.raises(ValueError, match="takes grids of 4 x 2"):
        StaticPool(3, 4, 2)(Tensor(np.ones((2, 4, 3, 5), "float32")))


# --- dense layers ---


def test_dense(rng):
    """Each number of each token is a weighted sum over all numbers of the grid."""
    dense, x = randomise(DenseTokenizer(C, S, (H, W), rng), rng), grid(rng)
    weight = dense.fc.weight.data.reshape(H, W, C, S, C)
    expected = np.tile(dense.fc.bias.data.reshape(S, C), (B, 1, 1))
    for b, i, j, c in np.ndindex(x.shape):
        expected[b] += x[b, i, j, c] * weight[i, j, c]
    np.testing.assert_allclose(dense(Tensor(x)).data, expected, rtol=1e-11, atol=1e-12)
    assert dense.num_parameters() == H * W * C * S * C + S * C


def test_mean_dense(rng):
    """Each token has a matrix of its own for the mean pixel, whatever the size of the grid."""
    dense, x = randomise(DenseTokenizer(C, S, rng=rng), rng), grid(rng)
    for image in (x, x[:, :2]):
        pixel = sum(image[:, i, j] for i, j in np.ndindex(image.shape[1:3])) / (image.shape[1] * image.shape[2])
        columns = [slice(s * C, (s + 1) * C) for s in range(S)]
        expected = [pixel @ dense.fc.weight.data[:, part] + dense.fc.bias.data[part] for part in columns]
        np.testing.assert_allclose(dense(Tensor(image)).data, np.stack(expected, 1), rtol=1e-11, atol=1e-12)
    assert dense.num_parameters() == C * S * C + S * C


def test_dense_of_another_size():
    with pytest.raises(ValueError, match=r"linear\(float32\[2, 36\].*needs x \(\.\.\., in\)"):
        DenseTokenizer(C, S, (H, W))(Tensor(np.ones((2, 2, 3, C), "float32")))


# --- cross-attention ---


def attention(module, x, context):
    """Result (B, N, C) and weights (B, heads, N, M) of a CrossAttention, one query at a time."""
    w, heads = module.state_dict(), module.num_heads
    q, k, v = (cases.linear(a, w[f"{n}.weight"], w[f"{n}.bias"]) for a, n in ((x, "q"), (context, "k"), (context, "v")))
    N, M, d = x.shape[1], context.shape[1], x.shape[2] // heads
    y, weights = np.zeros((len(context), N, x.shape[2])), np.zeros((len(context), heads, N, M))
    for b, h, n in np.ndindex(len(context), heads, N):
        part = slice(h * d, (h + 1) * d)
        scores = [q[b % len(q), n, part] @ k[b, m, part] / np.sqrt(d) for m in range(M)]
        weights[b, h, n] = cases.softmax(np.array(scores))
        y[b, n, part] = sum(weights[b, h, n, m] * v[b, m, part] for m in range(M))
    return cases.linear(y, w["proj.weight"], w["proj.bias"]), weights


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("rows", [1, 2])
def test_cross_attention(heads, rows, rng):
    """Also with one set of queries for the whole batch."""
    module = randomise(CrossAttention(C, heads, rng), rng)
    x, context = rng.standard_normal((rows, 4, C)), rng.standard_normal((2, 5, C))
    y, weights = attention(module, x, context)
    np.testing.assert_allclose(module(Tensor(x), Tensor(context)).data, y, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(module.weights(Tensor(x), Tensor(context)).data, weights, rtol=1e-11, atol=1e-12)
    check_module(module, x, context)


@pytest.mark.parametrize("heads", [0, 4])
def test_wrong_heads(heads):
    with pytest.raises(InputError, match=f"num_heads={heads} does not divide dim=6"):
        CrossAttention(6, heads)


def test_query_tokenizer(rng):
    tokenizer, x = randomise(QueryTokenizer(C, S, 3, rng), rng), grid(rng)
    y, weights = attention(tokenizer.attn, tokenizer.queries.data, x.reshape(B, H * W, C))
    np.testing.assert_allclose(tokenizer(Tensor(x)).data, y, rtol=1e-11, atol=1e-12)
    maps = tokenizer.maps(Tensor(x)).data
    np.testing.assert_allclose(maps, weights.mean(1).reshape(B, S, H, W), rtol=1e-11)
    np.testing.assert_allclose(maps.sum((2, 3)), 1)
    assert tokenizer.num_parameters() == S * C + 4 * (C * C + C)


def test_queries_start_small():
    queries = QueryTokenizer(64, 500, rng=np.random.default_rng(0)).queries.data
    assert queries.shape == (1, 500, 64) and abs(queries.std() / 0.02 - 1) < 0.02 and abs(queries.mean()) < 1e-3


# --- gates ---


def gates(module, x):
    """The gates (B, H, W, S) of a SpatialGate, from its definition."""
    pooled = np.zeros((*x.shape[:3], 2))
    for i in np.ndindex(x.shape[:3]):
        pooled[i] = max(x[i]), sum(x[i]) / x.shape[3]
    w, y = module.norm.state_dict(), cases.conv2d(pooled, module.conv.weight.data, padding=3)
    running = {name: w[f"running_{name}"] for name in ("mean", "var")}
    y = cases.batch_norm(y, w["weight"], w["bias"], running["mean"], running["var"], module.training)
    return cases.sigmoid(y)


@pytest.mark.parametrize("training", [True, False])
def test_spatial_gate(training, rng):
    gate, x = randomise(SpatialGate(rng=rng), rng).train(training), grid(rng)
    expected = gates(gate, x) * x
    np.testing.assert_allclose(gate(Tensor(x)).data, expected, rtol=1e-11, atol=1e-12)
    assert gate.num_parameters() == 100
    assert {name: x.shape for name, x in gate.state_dict().items()} == {
        "conv.weight": (7, 7, 2, 1),
        **{f"norm.{name}": (1,) for name in ("weight", "bias", "running_mean", "running_var")},
    }
    assert (gate.norm.eps, gate.norm.momentum) == (1e-5, 0.01)


@pytest.mark.parametrize("training", [True, False])
def test_gate_tokenizer(training, rng):
    tokenizer, x = randomise(GateTokenizer(S, rng), rng).train(training), grid(rng)
    maps, expected = gates(tokenizer.gate, x).transpose(0, 3, 1, 2), np.zeros((B, S, C))
    for b, s, i, j in np.ndindex(B, S, H, W):
        expected[b, s] += maps[b, s, i, j] * x[b, i, j] / (H * W)
    np.testing.assert_allclose(tokenizer.maps(Tensor(x)).data, maps, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(tokenizer(Tensor(x)).data, expected, rtol=1e-11, atol=1e-12)
    assert tokenizer.num_parameters() == 100 * S


# --- ways back ---


def test_unpool(rng):
    x, tokens, maps = grid(rng), rng.standard_normal((B, S, C)), rng.random((B, S, H, W))
    expected = x.copy()
    for b, s, i, j in np.ndindex(B, S, H, W):
        expected[b, i, j] += maps[b, s, i, j] * tokens[b, s]
    y = Unpool()(Tensor(tokens), Tensor(x), Tensor(maps)).data
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-13)
    assert Unpool().num_parameters() == 0


def test_unpool_of_clips(rng):
    """Frame by frame, tokens in order of time."""
    T = 3
    x, tokens, maps = (rng.standard_normal((B, *shape)) for shape in ((T, H, W, C), (T * S, C), (T, S, H, W)))
    y = Unpool()(Tensor(tokens), Tensor(x), Tensor(maps)).data
    for t in range(T):
        frame = Unpool()(Tensor(tokens[:, t * S : (t + 1) * S]), Tensor(x[:, t]), Tensor(maps[:, t])).data
        np.testing.assert_allclose(y[:, t], frame, rtol=1e-12)


def test_unpool_without_maps(rng):
    with pytest.raises(InputError, match="unpooling needs a tokenizer with maps; choose another way back"):
        Unpool()(Tensor(rng.standard_normal((B, S, C))), Tensor(grid(rng)), None)


@pytest.mark.parametrize("frames", [(), (3,)], ids=["image", "clip"])
def test_reproject(frames, rng):
    """All pixels are queries; all tokens, in a clip those of all frames, are keys."""
    back, x = randomise(Reproject(C, 3, rng), rng), rng.standard_normal((B, *frames, H, W, C))
    tokens = rng.standard_normal((B, S * len(frames) + S, C))
    expected = x + attention(back.attn, x.reshape(B, -1, C), tokens)[0].reshape(x.shape)
    np.testing.assert_allclose(back(Tensor(tokens), Tensor(x), None).data, expected, rtol=1e-11, atol=1e-12)
    assert back.num_parameters() == 4 * (C * C + C)


# --- by name ---

OPTIONS = {"query": {"num_heads": 3}, "reproject": {"num_heads": 3}, "learner": {"version": "1.1"}}
GRID = (4, 6)  # of the tests below, which 6 tokens cut into cells


def make(factory, name, rng, **options):
    return randomise(factory(name, C, 6, GRID, rng=rng, **OPTIONS.get(name, {}), **options), rng)


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name != "none"])
def test_every_tokenizer(name, rng):
    """One shape for all, maps that fit it, gradients of every parameter and of the input; float32 stays float32."""
    tokenizer, x = make(make_tokenizer, name, rng), rng.standard_normal((B, *GRID, C))
    assert tokenizer(Tensor(x)).shape == (B, 6, C)
    assert hasattr(tokenizer, "maps") != ("dense" in name)
    if hasattr(tokenizer, "maps"):
        maps = tokenizer.maps(Tensor(x)).data
        assert maps.shape == (B, 6, *GRID) and (maps >= 0).all()
    check_module(tokenizer, x)
    assert tokenizer.to(dtype="float32")(Tensor(x.astype("float32"))).dtype == "float32"


@pytest.mark.parametrize("name", [name for name in BACKS if name != "none"])
def test_every_way_back(name, rng):
    """The shape of the grid, which is added; gradients of every parameter and of all inputs."""
    back = make(make_back, name, rng)
    inputs = [rng.standard_normal(shape) for shape in ((B, 6, C), (B, *GRID, C), (B, 6, *GRID))]
    y = back(*map(Tensor, inputs))
    assert y.shape == (B, *GRID, C)
    check_module(back, *inputs)
    single = [Tensor(x.astype("float32")) for x in inputs]
    assert back.to(dtype="float32")(*single).dtype == "float32"


def test_gradients_of_gates(rng):
    """Every gradient is right with the batch's mean and variance (training) and with the running ones."""
    for module in (SpatialGate(rng=rng), GateTokenizer(S, rng)):
        check_module(randomise(module, rng).train(), grid(rng))
        check_module(module.eval(), grid(rng))


def test_maps_have_gradients(rng):
    """A way back that uses the maps trains the tokenizer through them."""
    for name in ("learner", "static", "query", "gate"):
        tokenizer, x = make(make_tokenizer, name, rng), Tensor(rng.standard_normal((B, *GRID, C)))
        (tokenizer.maps(x) ** 2).sum().backward()
        used = {n for n, parameter in tokenizer.named_parameters() if parameter.grad is not None}
        assert used == {n for n, _ in tokenizer.named_parameters() if not n.startswith(("attn.v", "attn.proj"))}


def test_equal_seeds_give_equal_weights():
    for factory, table in ((make_tokenizer, TOKENIZERS), (make_back, BACKS)):
        for name in set(table) - {"none"}:
            one, two = (make(factory, name, np.random.default_rng(4)).state_dict() for _ in range(2))
            assert all((one[key] == two[key]).all() for key in one)


def test_names():
    assert set(TOKENIZERS) == {"learner", "pool", "static", "dense", "mean-dense", "query", "gate", "none"}
    assert set(BACKS) == {"none", "fuser", "unpool", "reproject"}
    assert make_tokenizer("none", C, S, (H, W)) is None and make_back("none", C, S, (H, W)) is None


@pytest.mark.parametrize(
    "factory, name, message",
    [
        (make_tokenizer, "leaner", "there is no tokenizer 'leaner'; did you mean learner?"),
        (make_tokenizer, "meandense", "there is no tokenizer 'meandense'; did you mean mean-dense or dense?"),
        (make_tokenizer, None, "there is no tokenizer None; did you mean none?"),
        (make_tokenizer, "xyz", f"there is no tokenizer 'xyz'; choose one of {', '.join(TOKENIZERS)}"),
        (make_back, "fused", "there is no way back 'fused'; did you mean fuser?"),
        (make_back, "xyz", f"there is no way back 'xyz'; choose one of {', '.join(BACKS)}"),
    ],
)
def test_unknown_names(factory, name, message):
    with pytest.raises(InputError) as caught:
        factory(name, C, S, (H, W))
    assert str(caught.value) == message


def test_options_of_another_class():
    with pytest.raises(TypeError, match="unexpected keyword argument 'version'"):
        make_tokenizer("pool", C, S, (H, W), version="1.1")


def test_more_tokens_than_pixels(rng):
    """Learned maps may overlap, so any number of tokens is allowed; cells may not."""
    x = Tensor(rng.standard_normal((B, 2, 2, C)).astype("float32"))
    for name in set(TOKENIZERS) - {"pool", "none"}:
        options = {"num_heads": 3} if name == "query" else {}
        assert make_tokenizer(name, C, 5, (2, 2), rng=rng, **options)(x).shape == (B, 5, C)
    with pytest.raises(InputError, match="2 x 2 pixels cannot be cut into 5 equal cells"):
        make_tokenizer("pool", C, 5, (2, 2))


def test_every_class_is_made_here(rng):
    """A new class of the file needs a row above."""
    made = {type(m) for name in TOKENIZERS if name != "none" for m in make(make_tokenizer, name, rng).modules()}
    made |= {type(m) for name in BACKS if name != "none" for m in make(make_back, name, rng).modules()}
    defined = {c for c in vars(baselines).values() if isinstance(c, type) and c.__module__ == baselines.__name__}
    assert defined <= made


@pytest.mark.parametrize("make", [lambda: GridPool(4, 8, 8), lambda: StaticPool(4, 8, 8)], ids=["grid", "static"])
@pytest.mark.parametrize("shape", [(2, 7, 7, 3), (2, 4, 16, 3), (2, 64, 3)], ids=str)
def test_another_grid_than_the_one_it_was_made_for(make, shape, rng):
    with pytest.raises(ValueError, match="takes grids of 8 x 8, got"):
        make()(Tensor(rng.standard_normal(shape).astype("float32")))
