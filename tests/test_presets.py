"""The recipes for CIFAR are what their sources say, and their variants differ in the tokens alone."""

from dataclasses import asdict, replace

import pytest

from minitl import flops
from minitl.errors import InputError
from minitl.nn import DataSpec, ViTConfig
from minitl.train.presets import PRESETS, RECIPES, preset

COUNTED = {  # millions of parameters, and of multiply-adds for an image: counted by hand, apart from this code
    "cifar-r1": (5.5, 319),
    "cifar-r1-all": (5.4, 396),
    "cifar-r2": (4.4, 731),
    "cifar-r3": (4.8, 232),
}


@pytest.mark.parametrize("name", COUNTED)
def test_sizes(name):
    cost, (params, macs) = flops.total(flops.count(preset(name).model, DataSpec())), COUNTED[name]
    assert cost.params / 1e6 == pytest.approx(params, abs=0.06) and cost.macs / 1e6 == pytest.approx(macs, rel=0.01)


def test_none_is_large():
    assert max(flops.total(flops.count(preset(name).model, DataSpec())).params for name in PRESETS) < 7e6
    assert flops.total(flops.count(preset("cifar-cpu").model, DataSpec())).macs < 5e6


@pytest.mark.parametrize("name", RECIPES)
def test_variants(name):
    """They have as many blocks and the same training; the grid is as many cells as there are learned tokens."""
    config = preset(name, "photos.zip")
    assert config.dataset == "photos.zip" and config.model.tokenizer == "learner"
    for variant, tokenizer in (("all", "none"), ("grid", "pool")):
        other = preset(f"{name}-{variant}", "photos.zip")
        assert other == replace(config, model=replace(config.model, tokenizer=tokenizer))
        assert ViTConfig(**asdict(other.model)) == other.model


def test_muon():
    assert preset("cifar-r1-muon") == replace(preset("cifar-r1"), optimizer="muon", lr=3e-3)


def test_unknown_names():
    with pytest.raises(InputError, match="there is no preset 'cifar-r4'; did you mean cifar-r"):
        preset("cifar-r4")
    with pytest.raises(
        InputError, match="there is no preset '?'; choose one of cifar-r1, cifar-r1-muon, cifar-r2,".replace("?", r"\?")
    ):
        preset("?")
