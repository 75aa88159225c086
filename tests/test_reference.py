"""The authors' own outputs and gradients, and the way of weights from and to their names."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from minitl import Tensor, nn
from minitl.backend import default_rng
from minitl.errors import InputError
from minitl.interop import from_scenic, to_scenic

HERE = Path(__file__).resolve()
FOLDERS = HERE.parents[2] / "shared" / "reference", HERE.parent / "reference"  # all of them, and those of the clone
FILES = list({path.name: path for folder in FOLDERS for path in sorted(folder.glob("*.npz"))}.values())
KINDS = {  # (module, version, with a fuser)
    ("TokenLearner", "1.0", False),
    ("TokenLearner", "1.1", False),
    ("TokenFuser", None, False),
    ("EncoderBlock", None, False),
    ("ViT", None, False),
    ("ViT", "1.0", False),
    ("ViT", "1.1", False),
    ("ViT", "1.1", True),
    ("VideoViT", "1.1", False),
    ("VideoViT", "1.1", True),
}
TOLERANCE = 1e-9


def read(path):
    """``meta`` as a dict, and the arrays grouped by the first part of their names: group -> {rest: array}."""
    groups = {}
    with np.load(path) as file:
        for name in file.files:
            group, _, rest = name.partition("/")
            groups.setdefault(group, {})[rest] = file[name]
    return json.loads(str(groups.pop("meta")[""])), groups


def kind(meta):
    return meta["module"], meta.get("version"), bool(meta.get("fuser"))


@pytest.mark.skipif(
    not FOLDERS[0].exists(), reason="only three reference files are in the clone, the others are not at hand"
)
def test_every_kind_has_a_file():
    assert {kind(read(path)[0]) for path in FILES} == KINDS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_output_and_gradients(path):
    meta, groups = read(path)
    module = from_scenic(meta, groups["param"])
    inputs = {name: Tensor(array, requires_grad=True) for name, array in groups["in"].items()}
    y = fuse(module, *inputs.values()) if meta["module"] == "TokenFuser" else module(*inputs.values())
    y.backward(groups["cotangent"][""])
    found = {f"input {name}": x.grad for name, x in inputs.items()} | to_scenic(module, leaf=lambda p: p.grad)
    expected = {f"input {name}": array for name, array in groups["grad_in"].items()} | groups["grad_param"]
    assert found.keys() == expected.keys()
    close("output", y.data, groups["out"][""], np.abs(groups["out"][""]).max())
    largest = max(np.abs(array).max() for array in expected.values())
    for name, array in expected.items():  # each on its own scale, so that no small gradient hides behind a large one
        close(name, found[name], array, largest if has_no_gradient(name, meta) else np.abs(array).max())


def fuse(module, tokens, grid):
    """As Scenic calls it: a flat grid, here of 6 x 8 pixels, and the residual left to the encoder."""
    B, _, C = grid.shape
    return module(tokens, grid.reshape(B, 6, 8, C)).reshape(grid.shape) - grid


def has_no_gradient(name, meta):
    """Return True for a bias whose exact gradient is 0, because the next operation removes any constant.

    That operation is a softmax over keys or pixels, or the LayerNorm after a fuser's mixing.
    """
    biases = r"key/bias|TokenLearner\w*/token_masking/Dense_1/bias|TokenFuser\w*/Dense_0/bias"
    return meta.get("normalize", True) and re.search(f"({biases})$", f"{meta['module']}/{name}")


def close(name, found, expected, scale):
    assert found.shape == expected.shape and found.dtype == expected.dtype == np.float64
    error = np.abs(found - expected).max() / scale
    assert error <= TOLERANCE, f"{name}: relative error {error:.2g}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_round_trip_of_the_files(path):
    meta, groups = read(path)
    same(to_scenic(from_scenic(meta, groups["param"])), groups["param"])


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


# What follows needs no files.

LEARNER = {"module": "TokenLearner", "version": "1.0", "num_tokens": 3, "pool": "mean"}
FUSER = {"module": "TokenFuser", "num_tokens": 3, "bottleneck_dim": 6, "normalize": True}
BLOCK = {"module": "EncoderBlock", "num_heads": 2, "mlp_dim": 5}
VIT = {
    "module": "ViT",
    "version": None,
    "num_layers": 1,
    "num_heads": 2,
    "mlp_dim": 5,
    "hidden_size": 4,
    "patch_size": 2,
    "image_size": 4,
    "num_classes": 3,
    "fuser": False,
}


def learner_params(dtype=np.float64):
    rng = np.random.default_rng(0)
    shapes = {"LayerNorm_0/scale": (4,), "LayerNorm_0/bias": (4,), "Conv_0/kernel": (3, 3, 4, 3)}
    shapes |= {f"Conv_{i}/kernel": (3, 3, 3, 3) for i in (1, 2, 3)}
    return {path: rng.standard_normal(shape).astype(dtype) for path, shape in shapes.items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_token_learner_round_trip(dtype):
    params = learner_params(dtype)
    prefixed = {f"param/{path}": array for path, array in params.items()}
    module = from_scenic(json.dumps(LEARNER), prefixed)
    same(to_scenic(module), params)
    same(to_scenic(from_scenic(LEARNER, params)), params)
    assert module(Tensor(np.ones((2, 5, 6, 4), dtype))).dtype == dtype


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_clip_model_round_trip(version):
    """Models that no file has: fusers after version 1.0, and over all frames."""
    meta = VIT | {"module": "VideoViT", "version": version, "num_tokens": 3, "tokenlearner_loc": 0, "num_layers": 2}
    meta |= {"frames": 4, "tubelet_frames": 2, "fuser": True, "fuser_mix": "all", "bottleneck_dim": 5, "pool": "sum"}
    spec = nn.DataSpec((4, 4), num_classes=3, frames=4)
    sizes = {"patch_size": 2, "dim": 4, "layers": 2, "heads": 2, "mlp_dim": 5}
    sizes |= {
        "tubelet": 2,
        "num_tokens": 3,
        "version": version,
        "pool": "sum" if version == "1.0" else "mean",
    }
    rng = np.random.default_rng(0)
    model = nn.ViT(nn.ViTConfig(**sizes, hidden=5, back="fuser", fuser_beta="mlp"), spec, rng)
    for parameter in model.parameters():
        parameter.data[...] = rng.standard_normal(parameter.shape)
    params = to_scenic(model)
    assert params["Transformer/TokenFuser_1/Dense_0/kernel"].shape == (6, 6)
    again = from_scenic(meta, params)
    assert (again.config, again.spec) == (model.config, model.spec)
    same(again.state_dict(), model.state_dict())
    # row 1, column 0, colour 2 of the second frame of a tubelet is entry ((1·2 + 1)·2 + 0)·3 + 2
    np.testing.assert_array_equal(params["embedding/kernel"][1, 1, 0, 2], model.patch_embed.weight.data[20])


def test_attention_and_patches_are_laid_out_as_in_scenic():
    config = nn.ViTConfig(patch_size=2, dim=4, layers=1, heads=2, tokenizer="none")
    vit = nn.ViT(config, nn.DataSpec((4, 4)))
    params = to_scenic(vit)
    attention, ours = "Transformer/encoderblock_0/MultiHeadDotProductAttention_0", vit.blocks[0].attn
    value, out = params[f"{attention}/value/kernel"], params[f"{attention}/out/kernel"]
    # channel 1 of head 1 of the values is column 2·4 + 1·2 + 1 of [q | k | v]
    np.testing.assert_array_equal(value[:, 1, 1], ours.qkv.weight.data[:, 11])
    np.testing.assert_array_equal(out[1, 0], ours.proj.weight.data[2])
    # row 1, column 0, colour 2 of a patch is entry (1·2 + 0)·3 + 2
    np.testing.assert_array_equal(params["embedding/kernel"][1, 0, 2], vit.patch_embed.weight.data[8])


def test_arrays_are_copies():
    params = learner_params()
    module = from_scenic(LEARNER, params)
    weights = to_scenic(module)
    module.norm.weight.data[...] = 7
    same(weights, params)


def test_building_draws_no_random_numbers_of_the_package():
    before = default_rng().bit_generator.state
    from_scenic(LEARNER, learner_params())
    assert default_rng().bit_generator.state == before


def test_one_error_lists_all_parameters_that_do_not_fit():
    params = learner_params()
    del params["Conv_2/kernel"], params["Conv_3/kernel"]
    params["Conv_1/bias"] = np.zeros(3)
    params["LayerNorm_0/scale"] = np.ones(9)
    with pytest.raises(InputError) as error:
        from_scenic(LEARNER, params)
    assert str(error.value).splitlines()[1:] == [
        "  missing: Conv_2/kernel [3, 3, 3, 3]",
        "  missing: Conv_3/kernel [3, 3, 3, 3]",
        "  unknown: Conv_1/bias float64[3]",
        "  shape: LayerNorm_0/scale is float64[9], not [4]",
    ]


@pytest.mark.parametrize(
    ("dtypes", "message"),
    [(("float32", "float64"), "are float32, float64"), (("int64", "int64"), "are int64")],
)
def test_dtypes_that_cannot_be_kept(dtypes, message):
    params = learner_params(dtypes[0])
    params["LayerNorm_0/scale"] = params["LayerNorm_0/scale"].astype(dtypes[1])
    with pytest.raises(InputError, match=message):
        from_scenic(LEARNER, params)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"module": "TokenTuring"}, "cannot build a TokenTuring .* supported: TokenLearner"),
        (FUSER | {"bottleneck_dim": None}, "integer"),
        ({"module": "TokenFuser", "num_tokens": 3, "bottleneck_dim": 6}, "no 'normalize', which this TokenFuser needs"),
        (VIT | {"fuser": True, "bottleneck_dim": 6}, "back='fuser' needs a tokenizer"),
        (VIT | LEARNER | {"module": "ViT", "tokenlearner_loc": 0, "fuser": True}, "no 'bottleneck_dim'"),
        (VIT | {"module": "VideoViT"}, "no 'frames', which this VideoViT needs"),
        (VIT | {"module": "VideoViT", "frames": 4, "tubelet_frames": 3}, "tubelet=3 does not divide frames=4"),
        ("{'module': 'ViT'}", "neither a dict nor JSON"),
        ("[1, 2]", "with the 'module'"),
        ({"version": "1.0"}, "with the 'module'"),
        ({"module": "EncoderBlock", "num_heads": 2}, "no 'mlp_dim', which this EncoderBlock needs"),
        (LEARNER | {"version": "1.2", "bottleneck_dim": 8}, "version must be '1.0' or '1.1', got '1.2'"),
        (LEARNER | {"pool": None}, "pool must be 'mean' or 'sum'"),
        (BLOCK | {"num_heads": 3}, "num_heads=3 does not divide dim=4"),
        (BLOCK | {"num_heads": "2"}, "integer"),
        (VIT | LEARNER | {"module": "ViT", "tokenlearner_loc": 1}, "loc=1 .* 0 <= loc < layers=1"),
    ],
)
def test_meta_that_cannot_be_built(meta, message):
    with pytest.raises(InputError, match=message):
        from_scenic(meta, learner_params())


def test_no_parameters_at_all():
    with pytest.raises(InputError, match="number of channels"):
        from_scenic(BLOCK, {})
    with pytest.raises(InputError, match="missing: embedding/kernel") as error:
        from_scenic(VIT, {})
    assert str(error.value).count("missing: ") == 23


def test_what_scenic_does_not_have():
    with pytest.raises(InputError, match="GridPool has no counterpart"):
        to_scenic(nn.ViT(nn.ViTConfig(num_tokens=4, tokenizer="pool"), nn.DataSpec((8, 8))))
    with pytest.raises(InputError, match=r"TokenFuser has no counterpart .* TokenFuser with beta='mlp'"):
        to_scenic(nn.TokenFuser(4))


def test_a_leaf_without_an_array():
    module = from_scenic(LEARNER, learner_params())
    with pytest.raises(ValueError, match=r"LayerNorm_0/scale: leaf must return an array .* \(4,\), got None"):
        to_scenic(module, leaf=lambda parameter: parameter.grad)
