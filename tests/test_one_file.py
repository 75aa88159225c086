"""notebooks/one_file.py: short, in NumPy alone, and with the numbers of the package."""

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from minitl import data, metrics, nn, ops, optim, tensor

PATH = Path(__file__).resolve().parents[1] / "notebooks" / "one_file.py"
TEXT = PATH.read_text(encoding="utf-8")
CONFIG = nn.ViTConfig(version="1.1", pre_norm=False, heads=1)  # that of `minitl train`, but for the heads


@pytest.fixture(scope="module")
def one():
    """The file as a module."""
    spec = importlib.util.spec_from_file_location("one_file", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def models(one):
    """The package's ViT and the file's with the same weights, in float64 and away from their initial values."""
    rng = np.random.default_rng(0)
    theirs = nn.ViT(CONFIG, data.sample(rng, 1).spec, rng).to(dtype="float64")
    for parameter in theirs.parameters():
        parameter.data += 0.1 * rng.standard_normal(parameter.shape)
    ours = one.ViT(rng)
    ours(np.zeros((1, 32, 32, 3), "uint8"))  # makes the weights
    assert sum(w.data.size for w in ours.p.values()) == theirs.num_parameters()
    weights = renamed(theirs.state_dict())
    assert weights.keys() == ours.p.keys()
    for name, w in ours.p.items():
        w.data = weights[name].reshape(w.data.shape).copy()
    return ours, theirs


def renamed(arrays):
    """The package's arrays by the file's names: queries, keys and values have matrices of their own."""
    found = {}
    for name, x in arrays.items():
        parts = np.split(x, 3, axis=-1) if ".qkv." in name else [x]
        letters = "qkv" if ".qkv." in name else [""]
        found |= {name.replace("qkv", letter): part for letter, part in zip(letters, parts, strict=True)}
    return found


def gradients(ours, theirs):
    """Pairs of gradients, the file's and the package's, by name."""
    expected = renamed({name: p.grad for name, p in theirs.named_parameters()})
    return {name: (w.grad, expected[name].reshape(w.data.shape)) for name, w in ours.p.items()}


def normalized(images):
    """The images as the file scales them, in float64."""
    return (images - 127.5) / 64


def test_it_is_short_and_needs_numpy_alone():
    lines = TEXT.splitlines()
    assert len(lines) <= 200
    assert max(map(len, lines)) <= 100
    imports = [node for node in ast.walk(ast.parse(TEXT)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imports] == ["import numpy as np"]


def test_the_images_are_those_of_clutter(one):
    """Bit for bit."""
    images, labels, boxes = one.sample(np.random.default_rng(5), 300)
    theirs = data.sample(np.random.default_rng(5), 300)
    assert images.dtype == np.uint8 and (images == theirs.images).all()
    assert (labels == theirs.labels).all() and (boxes == theirs.boxes).all()


def test_logits_maps_and_gradients(models):
    ours, theirs = models
    batch = data.sample(np.random.default_rng(1), 6)
    logits, maps = ours(batch.images)
    loss = logits.cross_entropy(batch.labels)
    loss.backward()

    x = normalized(batch.images)
    expected = theirs(x)
    expected_loss = ops.cross_entropy(expected, batch.labels)
    expected_loss.backward()
    expected_maps = theirs.maps(x).data.reshape(6, 8, 64).transpose(0, 2, 1)
    np.testing.assert_allclose(logits.data, expected.data, rtol=0, atol=1e-11)
    np.testing.assert_allclose(maps.data, expected_maps, rtol=0, atol=1e-12)
    np.testing.assert_allclose(loss.data, expected_loss.item(), rtol=1e-12)
    for name, (grad, wanted) in gradients(ours, theirs).items():
        np.testing.assert_allclose(grad, wanted, rtol=1e-9, atol=1e-12, err_msg=name)


def test_steps_of_adamw(one, models):
    """Three of them, since the first is the same for any betas."""
    ours, theirs = models
    optimizer = optim.AdamW(theirs.parameters(), weight_decay=0.05)
    for t in (1, 2, 3):
        batch = data.sample(np.random.default_rng(t), 6)
        ours(batch.images)[0].cross_entropy(batch.labels).backward()
        optimizer.zero_grad()
        ops.cross_entropy(theirs(normalized(batch.images)), batch.labels).backward()
        one.adamw(ours.p.values(), t, 0.01 / t)
        optimizer.lr = 0.01 / t
        optimizer.step()
    weights = renamed(theirs.state_dict())
    for name, w in ours.p.items():
        np.testing.assert_allclose(w.data, weights[name].reshape(w.data.shape), rtol=1e-7, atol=1e-9, err_msg=name)


def test_a_graph_with_several_ways(one):
    """x is used by two results, y by two of which one comes late, and b is repeated along two axes."""
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((2, 3, 4)), rng.standard_normal((3, 1))
    x, b = map(one.Tensor, arrays)
    y = x.gelu() + b
    z = (y + x).normalize() + y
    z.einsum(one.Tensor(arrays[0] ** 2), "bnc,bnc->").backward()

    x_, b_ = (tensor(array, requires_grad=True) for array in arrays)
    weight, bias = tensor(np.ones(4)), tensor(np.zeros(4))
    y_ = ops.gelu(x_) + b_
    z_ = ops.layer_norm(y_ + x_, weight, bias) + y_
    (z_ * arrays[0] ** 2).sum().backward()
    np.testing.assert_allclose(x.grad, x_.grad, rtol=1e-9)
    np.testing.assert_allclose(b.grad, b_.grad, rtol=1e-9)


def test_map_mass_and_log(one, capsys):
    """A run of few steps prints at most twelve lines, and the map mass as minitl computes it."""
    models = []
    one_ViT = one.ViT
    one.ViT = lambda rng: models.append(one_ViT(rng)) or models[0]
    try:
        one.main(steps=10, tests=100)
    finally:
        one.ViT = one_ViT
    *log, accuracy, mass = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[3]) for line in log]
    assert len(log) == 10 and all(np.isfinite(losses))

    images, labels, boxes = one.sample(np.random.default_rng(2), 100)
    logits, maps = models[0](images)
    assert models[0].p["head.weight"].data.any(), "it has learned, since this starts at zero"
    right = (logits.data.argmax(1) == labels).mean()
    found = metrics.map_mass(maps.data.transpose(0, 2, 1).reshape(-1, 8, 8, 8), boxes, (32, 32)).mean()
    chance = metrics.box_share(boxes, (32, 32))
    assert accuracy == f"test accuracy {right:.1%}"
    assert mass == f"map mass {found:.2f} (even maps: {chance:.2f})"


def test_a_few_steps_lower_the_loss(one):
    """On the same images again and again, as the loss on new ones falls too slowly for a test."""
    images, labels, _ = one.sample(np.random.default_rng(0), 16)
    model, losses = one.ViT(np.random.default_rng(0)), []
    for t in range(1, 16):
        loss = model(images)[0].cross_entropy(labels)
        loss.backward()
        one.adamw(model.p.values(), t, 3e-3)
        losses.append(float(loss.data))
    assert losses[0] == pytest.approx(np.log(8))  # the head starts at zero
    assert losses[-1] < 0.6 * losses[0], losses
    assert {w.data.dtype for w in model.p.values()} == {np.dtype("float32")}
