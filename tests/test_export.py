"""Weights for PyTorch and back: names, axes, files; and PyTorch computes the same from them."""

from dataclasses import replace

import numpy as np
import pytest

from minitl import interop, nn
from minitl.errors import InputError
from minitl.train.step import build_model

SMALL = nn.ViTConfig(dim=12, heads=3, mlp_dim=20, layers=3, loc=1, num_tokens=4, zero_head=False)
MODELS = {
    "version 1.0": SMALL,
    "version 1.1": replace(SMALL, version="1.1", hidden=9),
    "all tokens": replace(SMALL, tokenizer="none"),
    "convolutional stem": replace(SMALL, stem="conv", stem_width=5, head_pool="sequence", version="1.1"),
    "grid": replace(SMALL, tokenizer="pool", stem="conv", patch_size=2),
    "clips": replace(SMALL, tubelet=2),
    "X(2+1)D": nn.X21DConfig(widths=(4, 6), num_tokens=3),
}
IMAGES = nn.DataSpec((16, 24), num_classes=8)
SPECS = {"clips": replace(IMAGES, frames=4), "X(2+1)D": replace(IMAGES, frames=2)}  # IMAGES for the others


def made(name, rng):
    """A model whose every number is drawn, so that none can be mistaken for another."""
    model = build_model(MODELS[name], SPECS.get(name, IMAGES), rng)
    for array in model.state_dict().values():
        array[...] = 0.3 * rng.random(array.shape) + 0.1
    return model.eval()


def test_names_and_axes(rng):
    linear, conv = nn.Linear(2, 3, rng=rng), nn.Conv2d(4, 6, (3, 5), groups=2, rng=rng)
    arrays = interop.to_torch(linear)
    assert list(arrays) == ["weight", "bias"] and (arrays["weight"] == linear.weight.data.T).all()
    weight = interop.to_torch(conv)["weight"]
    assert weight.shape == (6, 2, 3, 5) and weight[5, 1, 2, 4] == conv.weight.data[2, 4, 1, 5]
    weight[...] = 0
    assert conv.weight.data.any(), "a copy"
    model = made("convolutional stem", rng)
    arrays = interop.to_torch(model)
    assert arrays.keys() == model.state_dict().keys() and all(x.flags.c_contiguous for x in arrays.values())
    assert arrays["pos_embed"].shape == (1, 24, 12) and arrays["blocks.2.mlp.fc1.weight"].shape == (20, 12)


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(name, rng, tmp_path):
    model, other = made(name, rng), made(name, rng)
    interop.from_torch(other, interop.to_torch(model))
    path = tmp_path / "model.safetensors"
    path.write_bytes(interop.torch_file(model, {"classes": "a, b"}))
    again, about = interop.load_torch(path)
    assert about == {"format": "pt", "classes": "a, b"} and (again.config, again.spec) == (model.config, model.spec)
    for found in (other, again):
        for key, array in model.state_dict().items():
            assert (found.state_dict()[key] == array).all(), key


@pytest.mark.parametrize("name", [name for name in MODELS if name != "X(2+1)D"])
def test_pytorch_computes_the_same_logits(name, rng, tmp_path):
    """A model of PyTorch's own layers, made of other weights, reads the file by itself, strictly."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; it is what this compares with")
    from safetensors.torch import load_file

    from tests.bench.torch_twin import twin

    model = made(name, rng)
    (tmp_path / "model.safetensors").write_bytes(interop.torch_file(model, {}))
    theirs = twin(made(name, rng)).eval()
    time = (model.spec.frames,) if model.spec.frames > 1 else ()
    x = rng.standard_normal((5, *time, *model.spec.image_size, 3)).astype("float32")
    y = model(x).data
    assert np.abs(theirs(torch.tensor(x)).detach().numpy() - y).max() > 1e-2
    theirs.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    np.testing.assert_allclose(theirs(torch.tensor(x)).detach().numpy(), y, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit(rng, tmp_path):
    model = made("version 1.1", rng)
    before = {name: array.copy() for name, array in model.state_dict().items()}
    arrays = interop.to_torch(made("version 1.1", rng))
    arrays["extra"], arrays["head.weight"] = np.zeros(3), arrays["head.weight"][:5]
    del arrays["norm.bias"]
    with pytest.raises(InputError) as error:
        interop.from_torch(model, arrays)
    for line in ("missing: norm.bias", "unknown: extra", "differs: head.weight is float32[12, 8] here, float32[12, 5]"):
        assert line in str(error.value)
    assert all((array == before[name]).all() for name, array in model.state_dict().items())


def test_wrong_files(rng, tmp_path):
    from safetensors.numpy import save_file

    model, path = made("version 1.1", rng), tmp_path / "x.safetensors"
    for content in (None, b"", b"no weights", interop.torch_file(model, {})[:-1]):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.safetensors is not a model that minitl exported"):
            interop.load_torch(path)
    save_file(interop.to_torch(model), path)
    with pytest.raises(InputError, match="has weights, but no metadata on the model; build it and use from_torch"):
        interop.load_torch(path)
    save_file(interop.to_torch(model), path, {"ViT": "{"})
    with pytest.raises(InputError, match="is not a model that minitl exported"):
        interop.load_torch(path)
    save_file(interop.to_torch(model), path, {"ViT": '{"dim": 13, "heads": 13}'})
    with pytest.raises(InputError, match=r"exported \(these weights do not fit this model"):
        interop.load_torch(path)
