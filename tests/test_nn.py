"""Modules: their state, moving and loading; and the gradients of each layer, parameters included."""

import cases
import numpy as np
import pytest

import minitl
from minitl import Tensor, backend, check_module, nn
from minitl.errors import InputError
from minitl.nn.module import lecun_normal, xavier_uniform


class Net(nn.Module):
    """One of everything that a module can hold, set in an order that is not the alphabet's."""

    def __init__(self, rng=None):
        self.stem = nn.Linear(3, 4, bias=False, rng=rng)
        self.scale = nn.Parameter(np.full(4, 2.0, "float32"))
        self.blocks = [nn.Linear(4, 4, rng=rng), nn.LayerNorm(4)]
        self.pair = (nn.BatchNorm2d(4), nn.Dropout(0.5, rng))
        self.absent, self.name, self.sizes = None, "net", [1, 2]
        self.count = np.zeros(2, "float32")

    def forward(self, x):
        x = self.stem(x) * self.scale
        for module in (*self.blocks, *self.pair):
            x = module(x)
        return x


PATHS = {
    "stem.weight": (3, 4),
    "scale": (4,),
    "blocks.0.weight": (4, 4),
    "blocks.0.bias": (4,),
    "blocks.1.weight": (4,),
    "blocks.1.bias": (4,),
    "pair.0.weight": (4,),
    "pair.0.bias": (4,),
    "pair.0.running_mean": (4,),
    "pair.0.running_var": (4,),
    "count": (2,),
}


def randomise(module, rng):
    """Move all weights away from their special starting values (0, 1), in float64."""
    module.to(dtype="float64")
    for parameter in module.parameters():
        parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.shape)
    return module


# --- Module ---


def test_state_is_found_in_order():
    net = Net()
    state = net.state_dict()
    assert [(name, x.shape) for name, x in state.items()] == list(PATHS.items())
    buffers = ("running_mean", "running_var", "count")
    names = [name for name in PATHS if not name.endswith(buffers)]
    assert [name for name, _ in net.named_parameters()] == names
    assert [id(p) for _, p in net.named_parameters()] == [id(p) for p in net.parameters()]
    assert net.num_parameters() == 12 + 4 + 16 + 4 + 4 + 4 + 4 + 4
    kinds = [type(module).__name__ for module in net.modules()]
    assert kinds == ["Net", "Linear", "Linear", "LayerNorm", "BatchNorm2d", "Dropout"]
    assert state["scale"] is net.scale.data and state["count"] is net.count


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="weigth"):
        _ = Net().stem.weigth


def test_load_state_dict(rng):
    """The arrays stay the same objects, so an optimiser that holds them keeps working."""
    one, two = Net(rng), Net(rng).to(dtype="float64")
    one.count[...] = 7
    held = two.state_dict()
    assert any((held[name] != x).any() for name, x in one.state_dict().items())
    two.load_state_dict(one.state_dict())
    for name, x in one.state_dict().items():
        assert two.state_dict()[name] is held[name] and held[name].dtype == "float64" and (held[name] == x).all()


def test_load_state_dict_lists_everything_that_is_wrong(rng):
    net, state = Net(rng), {name: x + 1 for name, x in Net(rng).state_dict().items()}
    before = {name: x.copy() for name, x in net.state_dict().items()}
    del state["scale"], state["blocks.1.bias"]
    state |= {"head.weight": np.ones((2, 2)), "stem.weight": np.ones((4, 3))}
    with pytest.raises(InputError) as caught:
        net.load_state_dict(state)
    assert str(caught.value).splitlines() == [
        "these weights do not fit this model; nothing was loaded",
        "  missing: scale float32[4]",
        "  missing: blocks.1.bias float32[4]",
        "  unknown: head.weight float64[2, 2]",
        "  differs: stem.weight is float32[3, 4] here, float64[4, 3] there",
    ]
    assert all((x == before[name]).all() for name, x in net.state_dict().items())


def test_load_state_dict_reads_everything_before_it_writes(rng):
    net, state = Net(rng), {name: x + 1 for name, x in Net(rng).state_dict().items()}
    before = {name: x.copy() for name, x in net.state_dict().items()}
    net.load_state_dict({name: x.tolist() for name, x in before.items()})
    with pytest.raises(InputError, match=r"differs: count is float32\[2\] here, object\[2\] there"):
        net.load_state_dict(state | {"count": np.array(["a", None])})
    assert all((x == before[name]).all() for name, x in net.state_dict().items())


def holder(value):
    module = nn.Module()
    module.thing = value
    return module


def test_lists_of_parameters():
    parameters = [nn.Parameter(np.ones(2, "float32")) for _ in range(2)]
    net = holder([parameters[0], nn.LayerNorm(3), parameters[1]])
    assert list(net.state_dict()) == ["thing.0", "thing.1.weight", "thing.1.bias", "thing.2"]
    assert net.to(dtype="float64").parameters()[-1] is parameters[1] and parameters[1].dtype == "float64"


@pytest.mark.parametrize(
    "wrap", [lambda x: {"a": x}, lambda x: [[x]], lambda x: (1, {"a": (x,)}), lambda x: {x}], ids=range(4)
)
def test_hidden_weights(wrap):
    """They would never be trained or saved."""
    for value in (nn.LayerNorm(3), nn.Parameter(np.ones(2, "float32"))):
        for use in (nn.Module.parameters, nn.Module.state_dict, nn.Module.modules):
            with pytest.raises(TypeError, match="attribute 'thing' hides weights"):
                use(holder(wrap(value)))


@pytest.mark.parametrize("value", [(1, 2.0), [[1, 2]], {"a": [1]}, np.float64(0.1), "name", None], ids=repr)
def test_options_are_not_state(value):
    assert holder(value).state_dict() == {}


def test_a_module_in_itself():
    net = holder(nn.LayerNorm(3))
    net.thing.parent = net
    with pytest.raises(TypeError, match=r"thing\.parent is a Module that contains itself"):
        net.parameters()


def test_to_dtype_keeps_integer_buffers():
    assert holder(np.arange(3)).to(dtype="float64").thing.dtype == np.arange(3).dtype


def test_to_dtype(rng):
    net, x = Net(rng), rng.standard_normal((2, 3, 3, 3))
    parameters = net.parameters()
    net(Tensor(x.astype("float32"))).sum().backward()
    assert parameters[0].grad is not None and net.to(dtype="float64") is net
    assert net.parameters() == parameters and all(p.grad is None for p in parameters)
    assert {str(a.dtype) for a in net.state_dict().values()} == {"float64"}
    assert net.eval()(Tensor(x)).dtype == "float64"
    with pytest.raises(TypeError, match=r"linear\(float32.*float64.*one dtype"):
        net(Tensor(x.astype("float32")))


@pytest.mark.parametrize("dtype", ["int64", "float16"])
def test_to_other_dtypes(dtype):
    net = Net()
    with pytest.raises(ValueError, match=f"float32 or float64.*{dtype}"):
        net.to(dtype=dtype)
    assert net.scale.dtype == "float32"


def test_to_device():
    net = Net()
    assert net.to("cpu") is net and net.to("cpu", "float64").scale.dtype == "float64"
    with pytest.raises(ValueError, match="unknown device 'gpu'; choose one of cpu, cuda"):
        net.to("gpu")
    if problem := backend.cuda_problem():
        with pytest.raises(RuntimeError, match="device 'cuda' cannot be used") as caught:
            net.to("cuda")
        assert problem in str(caught.value)


def test_train_and_eval():
    net = Net()
    assert net.training and net.eval() is net
    assert not any(module.training for module in net.modules())
    net.train()
    assert all(module.training for module in net.modules())


def test_zero_grad(rng):
    net = Net(rng)
    net(Tensor(rng.standard_normal((2, 2, 2, 3)).astype("float32"))).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


# --- how weights start ---


def test_equal_seeds_give_equal_weights():
    def weights(seed):
        minitl.seed(seed)
        return np.concatenate([x.ravel() for x in Net().state_dict().values()])

    assert (weights(1) == weights(1)).all() and (weights(1) != weights(2)).any()
    one, two = (Net(np.random.default_rng(3)).state_dict() for _ in range(2))
    assert all((one[name] == two[name]).all() for name in one)


def test_xavier_uniform(rng):
    """Uniform in ±√(6 / (in + out)), where ``out`` is that of one part."""
    for parts, limit in ((1, np.sqrt(6 / (100 + 300))), (3, np.sqrt(6 / (100 + 100)))):
        w = xavier_uniform(rng, (100, 300), parts).data
        assert w.dtype == "float32" and np.abs(w).max() <= limit * (1 + 1e-6) and np.abs(w).max() > 0.99 * limit
        assert abs(w.var() / (limit**2 / 3) - 1) < 0.03
    block = nn.Attention(12, 3)
    assert np.abs(block.qkv.weight.data).max() > np.sqrt(6 / (12 + 36))


def test_lecun_normal(rng):
    """Variance 1 / (inputs per output) after the cut at two deviations."""
    w = lecun_normal(rng, (3, 3, 20, 100)).data
    std = np.sqrt(1 / 180)
    assert w.dtype == "float32" and abs(w.std() / std - 1) < 0.02 and abs(w.mean()) < 0.05 * std
    assert np.abs(w).max() <= 2 * std / 0.87962566 * (1 + 1e-6)


def test_layers_start_as_documented():
    norm, layer, mlp = nn.LayerNorm(3), nn.Linear(3, 4), nn.MLP(3, 4)
    assert (norm.weight.data == 1).all() and (norm.bias.data == 0).all() and (layer.bias.data == 0).all()
    assert 0 < np.abs(mlp.fc1.bias.data).max() < 1e-5
    assert (nn.Conv2d(3, 4, 1).bias.data == 0).all()
    assert nn.Linear(3, 4, bias=False).bias is None and nn.Conv2d(3, 4, 1, bias=False).bias is None


# --- layers ---

LAYERS = [
    (lambda rng: nn.Linear(4, 3, rng=rng), (2, 5, 4)),
    (lambda rng: nn.Linear(4, 3, bias=False, rng=rng), (4,)),
    (lambda rng: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, rng=rng), (2, 5, 4, 4)),
    (lambda rng: nn.Conv2d(2, 3, (1, 2), bias=False, rng=rng), (2, 3, 4, 2)),
    (lambda rng: nn.LayerNorm(4), (2, 3, 4)),
    (lambda rng: nn.BatchNorm2d(4), (2, 3, 3, 4)),
    (lambda rng: nn.BatchNorm2d(4).eval(), (2, 3, 3, 4)),
    (lambda rng: nn.Dropout(0.5, rng).eval(), (3, 4)),
    (lambda rng: nn.DropPath(0.5, rng).eval(), (3, 4)),
    (lambda rng: nn.Attention(6, 3, rng=rng), (2, 5, 6)),
    (lambda rng: nn.MLP(4, 5, 3, rng=rng), (2, 3, 4)),
    (lambda rng: nn.EncoderBlock(6, 2, 5, rng=rng), (2, 4, 6)),
    (lambda rng: nn.EncoderBlock(6, 2, 5, 0.2, 0.2, 0.2, rng).eval(), (2, 4, 6)),
    (lambda rng: nn.TokenLearner(4, 3, version="1.0", pool="sum", n_conv=2, rng=rng), (2, 3, 4, 4)),
    (lambda rng: nn.TokenLearner(4, 4, version="1.0", pre_norm=False, rng=rng), (2, 3, 4, 4)),
    (lambda rng: nn.TokenLearner(4, 3, version="1.1", hidden=5, rng=rng), (2, 3, 4, 4)),
]


@pytest.mark.parametrize(
    "make, shape", LAYERS, ids=lambda value: "x".join(map(str, value)) if type(value) is tuple else ""
)
def test_gradients(make, shape, rng):
    """Of every parameter and of the input, in float64."""
    check_module(randomise(make(rng), rng), rng.standard_normal(shape))


def test_every_layer_has_its_gradients_checked(rng):
    """Layers of three files; test_tokenfuser, test_baselines, test_bottleneck and test_vit have the rest."""
    modules = {kind for kind in vars(nn).values() if isinstance(kind, type) and issubclass(kind, nn.Module)}
    files = {f"minitl.nn.{name}" for name in ("layers", "transformer", "tokenlearner")}
    expected = {kind for kind in modules if kind.__module__ in files} - {nn.TokenFuser}
    assert {type(make(rng)) for make, _ in LAYERS} == expected


@pytest.mark.parametrize(
    "make, shape", LAYERS, ids=lambda value: "x".join(map(str, value)) if type(value) is tuple else ""
)
def test_float32_stays_float32(make, shape, rng):
    layer, x = make(rng), Tensor(rng.standard_normal(shape).astype("float32"), requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == "float32" and all(p.grad.dtype == "float32" for p in layer.parameters())


def test_values(rng):
    """Layers hand their weights and options to their ops."""
    x = rng.standard_normal((2, 5, 6, 4))
    linear, norm = randomise(nn.Linear(4, 3), rng), randomise(nn.LayerNorm(4, eps=0.1), rng)
    conv = randomise(nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=1, groups=2), rng)
    pairs = [
        (linear, cases.linear(x, linear.weight.data, linear.bias.data)),
        (norm, cases.layer_norm(x, norm.weight.data, norm.bias.data, 0.1)),
        (conv, cases.conv2d(x, conv.weight.data, conv.bias.data, (1, 2), 1, 2)),
    ]
    for layer, expected in pairs:
        np.testing.assert_allclose(layer(Tensor(x)).data, expected, rtol=1e-12, atol=1e-12)


def test_batch_norm(rng):
    """Training normalises with the batch and updates the running values; evaluation uses them and updates nothing."""
    norm = randomise(nn.BatchNorm2d(3, momentum=0.5), rng)
    batches = [rng.standard_normal((4, 2, 2, 3)) + 2 for _ in range(20)]
    mean, var = np.zeros(3), np.ones(3)
    for x in batches:
        y = norm(Tensor(x)).data
        np.testing.assert_allclose(
            y, (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5) * norm.weight.data + norm.bias.data
        )
        mean, var = mean / 2 + x.mean((0, 1, 2)) / 2, var / 2 + x.var((0, 1, 2), ddof=1) / 2
    np.testing.assert_allclose(norm.running_mean, mean)
    np.testing.assert_allclose(norm.running_var, var)
    x = batches[0]
    y = norm.eval()(Tensor(x)).data
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5) * norm.weight.data + norm.bias.data)
    np.testing.assert_allclose(norm.running_mean, mean)


@pytest.mark.parametrize("kind", [nn.Dropout, nn.DropPath])
def test_dropping(kind):
    x = Tensor(np.ones((400, 5)))
    layer = kind(0.25, np.random.default_rng(1))
    y = layer(x).data
    assert set(y.ravel().tolist()) == {0.0, 1 / 0.75}
    assert 0.15 < (y[:, 0] == 0).mean() < 0.35
    assert (y == kind(0.25, np.random.default_rng(1))(x).data).all() and (y != layer(x).data).any()
    assert layer.eval()(x) is x and kind(0.0)(x) is x


def test_attention_dropout_is_for_training(rng):
    layer, x = nn.Attention(4, 2, dropout=0.5, rng=rng), Tensor(rng.standard_normal((1, 6, 4)).astype("float32"))
    assert (layer(x).data != layer(x).data).any()
    assert (layer.eval()(x).data == layer(x).data).all()


def test_encoder_block(rng):
    """x += attention(norm(x)), x += MLP(norm(x)), with the references of the ops."""
    block, x = randomise(nn.EncoderBlock(6, 3, 5), rng), rng.standard_normal((2, 4, 6))
    w = block.state_dict()

    def norm(x, name):
        return cases.layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(x, name):
        return cases.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    y = x + linear(cases.attention(linear(norm(x, "norm1"), "attn.qkv"), num_heads=3), "attn.proj")
    y = y + linear(cases.each(cases.gelu)(linear(norm(y, "norm2"), "mlp.fc1")), "mlp.fc2")
    np.testing.assert_allclose(block(Tensor(x)).data, y, rtol=1e-12, atol=1e-12)


def test_encoder_block_drops_in_training_only(rng):
    x = Tensor(rng.standard_normal((8, 3, 4)).astype("float32"))

    def block(**options):
        return nn.EncoderBlock(4, 2, 5, rng=np.random.default_rng(0), **options)

    plain = block()(x).data
    for name in ("dropout", "attention_dropout", "drop_path"):
        model = block(**{name: 0.5})
        first = model(x).data
        assert (first != plain).any() and (model(x).data != first).any() and (model.eval()(x).data == plain).all()
        assert (block(**{name: 0.5})(x).data == first).all()
    first = block(drop_path=0.5)(x).data
    unchanged = (first == x.data).all((1, 2))
    assert 0 < unchanged.sum() < 8, "drop_path leaves whole samples as they are"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: nn.Attention(6, 4), "num_heads=4 does not divide dim=6"),
        (lambda: nn.Attention(6, 0), "num_heads=0 does not divide dim=6"),
        (lambda: nn.EncoderBlock(6, 5, 8), "num_heads=5 does not divide dim=6"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "groups=2 must divide both 3 and 4 channels"),
        (lambda: nn.Conv2d(3, 4, 3, groups=0), "groups=0 must be at least 1"),
        (lambda: nn.Conv2d(3, 4, 3, stride=0), "stride must be an integer >= 1 .* got 0"),
        (lambda: nn.Conv2d(3, 4, 0), "kernel_size must be an integer >= 1 .* got 0"),
        (lambda: nn.Linear(0, 4), "in_features=0 and out_features=4 must be at least 1"),
        (lambda: nn.Dropout(2.0), r"\[0, 1\), got 2.0"),
        (lambda: nn.DropPath(-0.5), r"\[0, 1\), got -0.5"),
    ],
)
def test_wrong_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_inputs():
    x = Tensor(np.ones((2, 5), "float32"))
    for layer in (nn.Linear(4, 3), nn.LayerNorm(4), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1), nn.Attention(4, 2)):
        with pytest.raises(ValueError, match=r"float32\[2, 5\]"):
            layer(x)
