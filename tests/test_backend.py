"""The array library of an array, transfers between devices, and the package's generator."""

import numpy as np
import pytest

import minitl
from minitl import Tensor, backend
from minitl.errors import InputError
from minitl.nn import DataSpec, ViTConfig


def test_array_module(xp):
    assert backend.array_module(xp.ones(2)) is xp and backend.is_array(xp.ones(2))
    assert backend.array_module(np.float32(2)) is np


@pytest.mark.parametrize("x", [[1.0], 1.0, None])
def test_other_things_are_not_arrays(x):
    assert not backend.is_array(x)
    with pytest.raises(TypeError, match=rf"NumPy or CuPy array, got {type(x).__name__}; .*minitl\.tensor"):
        backend.array_module(x)


def test_describe():
    assert backend.describe(np.ones((2, 3), "float32")) == "float32[2, 3]" and backend.describe([1]) == "[1]"


def test_to_device(xp):
    x = np.arange(3.0)
    assert backend.to_device(x, "cpu") is x
    y = backend.to_device(x, "cpu" if xp is np else "cuda")
    assert isinstance(y, xp.ndarray) and backend.to_device(backend.to_device(y, "cpu"), "cpu").tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="unknown device 'tpu'; choose one of cpu, cuda"):
        backend.to_device(x, "tpu")


def test_to_device_without_a_gpu(monkeypatch):
    monkeypatch.setattr(backend, "cuda_problem", lambda: "there is none")
    backend._require_cuda.cache_clear()
    with pytest.raises(RuntimeError, match="device 'cuda' cannot be used: there is none"):
        backend.to_device(np.ones(2), "cuda")


def test_cuda_problem_is_a_sentence():
    problem = backend.cuda_problem()
    assert problem is None or (problem.startswith("CuPy ") and len(problem) > 30)


def test_to_numpy(xp):
    for x in (xp.ones(2), Tensor(xp.ones(2)), [1.0, 1.0]):
        assert type(backend.to_numpy(x)) is np.ndarray and backend.to_numpy(x).tolist() == [1, 1]


def test_seed():
    def draw(n):
        minitl.seed(n)
        return backend.default_rng().random(3).tolist()

    assert draw(1) == draw(1) != draw(2)
    rng = np.random.default_rng(0)
    assert backend.default_rng(rng) is rng


@pytest.mark.parametrize(
    "options, message",
    [
        ({"loc": 0.5}, "loc must be of type int, got 0.5"),
        ({"dim": 48.0}, "dim must be of type int, got 48.0"),
        ({"layers": True}, "layers must be of type int, got True"),
        ({"pre_norm": "no"}, "pre_norm must be of type bool, got 'no'"),
        ({"dropout": "0.1"}, "dropout must be of type float, got '0.1'"),
        ({"tokenizer": "lerner"}, "tokenizer must be one of learner, "),
    ],
)
def test_a_configuration_names_the_field_of_a_wrong_type(options, message):
    with pytest.raises(InputError, match=message):
        ViTConfig(**options)
    assert ViTConfig(dropout=0).dropout == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_size": 32}, "image_size must be a pair of integers, got 32"),
        ({"image_size": (32, 32, 3)}, "image_size must be a pair of integers"),
        ({"image_size": (0, 8)}, r"image_size must be at least 1, got \(0, 8\)"),
        ({"num_classes": -2}, "num_classes must be at least 1, got -2"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"channels": 3.0}, "channels must be of type int, got 3.0"),
    ],
)
def test_a_data_spec_is_checked(options, message):
    with pytest.raises(InputError, match=message):
        DataSpec(**options)
    assert DataSpec(image_size=[8, 9]) == DataSpec((8, 9)), "as JSON has it"
