"""Recipes for CIFAR by name: ``minitl train cifar10 --preset cifar-r1``.

r1, r2 and r3 are for a GPU: a convolutional stem and 64 tokens, reduced to 16 before block 7; the same with 256 tokens
and fewer blocks; and the textbook ViT on patches, with 8 tokens from block 6 on. ``cifar-r1-muon`` is r1 with Muon
and twice the learning rate, not measured yet. ``cifar-cpu`` is for a laptop. Each has two variants that differ only in
the tokens: ``-all`` keeps all of them, and ``-grid`` averages over the cells of a grid instead of using TokenLearner.
"""

from dataclasses import replace

from ..errors import InputError, did_you_mean
from ..nn import ViTConfig
from .config import TrainConfig

SMALL = ViTConfig(dim=256, heads=4, mlp_dim=512, version="1.1", hidden=256, num_tokens=16, drop_path=0.1)
R1 = replace(SMALL, stem="conv", head_pool="sequence", layers=10, loc=7)
R2 = replace(R1, patch_size=2, layers=8, loc=4)
R3 = replace(SMALL, layers=9, loc=6, num_tokens=8)
GPU = {"batch_size": 1024, "lr": 1.5e-3, "warmup": 0.03, "label_smoothing": 0.1, "ema": 0.999}
GPU |= {"flip": True, "crop": 4, "rand_augment": 2, "mixup": 0.8, "cutmix": 1.0, "mix_until": 0.6}
CPU = ViTConfig(dim=64, heads=4, mlp_dim=128, version="1.1", pre_norm=False, num_tokens=16)
CPU = replace(CPU, stem="conv", stem_width=16)

RECIPES = {  # options of a TrainConfig, except the data set and the machine
    "cifar-r1": {"model": R1, "epochs": 300, **GPU},
    "cifar-r1-muon": {"model": R1, "epochs": 300, **GPU, "optimizer": "muon", "lr": 3e-3},
    "cifar-r2": {"model": R2, "epochs": 150, **GPU},
    "cifar-r3": {"model": R3, "epochs": 450, **GPU},
    "cifar-cpu": {"model": CPU, "epochs": 6, "optimizer": "muon", "lr": 9e-3, "flip": True},
}
VARIANTS = {"all": {"tokenizer": "none"}, "grid": {"tokenizer": "pool"}}
TWINS = {name: [name, *(f"{name}-{variant}" for variant in VARIANTS)] for name in RECIPES}  # a recipe and its variants
PRESETS = RECIPES | {
    f"{name}-{variant}": recipe | {"model": replace(recipe["model"], **options)}
    for name, recipe in RECIPES.items()
    for variant, options in VARIANTS.items()
}


def preset(name, dataset="cifar10"):
    """Return the TrainConfig of a recipe in PRESETS for a data set. Raises InputError for an unknown name."""
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}; {did_you_mean(name, PRESETS)}")
    return TrainConfig(dataset, **PRESETS[name])
