"""Configuration of a training run: everything that a person chooses."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from .. import data
from ..errors import InputError, check_types
from ..interop import split_spec
from ..nn import ViTConfig, X21DConfig


@dataclass(frozen=True)
class TrainConfig:
    """Options of a training run. Raises InputError for a value out of range."""

    dataset: str = "clutter"
    """clutter; actors or actors-12fps (clips); cifar10, cifar100; or a folder, zip or tar of split/class/image files"""
    model: ViTConfig | X21DConfig = field(default_factory=lambda: ViTConfig(version="1.1", pre_norm=False))
    epochs: int = 10
    """passes over the training images"""
    minutes: float = 0.0
    """train for as many epochs as fit into this time, measured on some steps; 0 for the given number of epochs"""
    save_every: int = 0
    """epochs between evaluations, each with a checkpoint; 0: every epoch on a CPU, about every minute on a GPU"""
    batch_size: int = 100
    """images per step"""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """update rule; muon orthogonalizes the updates of matrices and treats vectors like adamw"""
    lr: float = 4e-3
    """peak learning rate, after a linear warmup and before a cosine decay"""
    warmup: float = 0.1
    """share of all steps in which the learning rate rises"""
    weight_decay: float = 0.05
    """decoupled decay of all matrices"""
    clip: float = 1.0
    """largest norm of the gradient; larger gradients are scaled down to it"""
    label_smoothing: float = 0.0
    """share of each target that is spread over all classes"""
    ema: float = 0.0
    """decay of the moving average of the weights, which is then evaluated; 0 for none"""
    flip: bool = False
    """mirror half of the training images"""
    crop: int = 0
    """pad training images by this many pixels and crop them at a random place"""
    rand_augment: int = 0
    """operations of RandAugment on each training image"""
    rand_augment_p: float = 0.5
    """probability of each of these operations"""
    magnitude: float = 27.0
    """strength of these operations, from 0 to 30"""
    auto_augment: bool = False
    """apply one of AutoAugment's 25 policies for CIFAR-10 to each training image; not together with rand_augment"""
    erasing: float = 0.0
    """probability of erasing a random box of a training image"""
    cutout: int = 0
    """side of a square to erase in each training image"""
    mixup: float = 0.0
    """alpha of mixup: blend pairs of training images and their labels"""
    cutmix: float = 0.0
    """alpha of cutmix: paste a box of one training image into another; with mixup, one of the two per batch"""
    mix_until: float = 1.0
    """share of all steps after which mixup and cutmix end"""
    subset: int | None = None
    """train on at most this many images, the same number per class"""
    data_dir: str | None = None
    """folder for downloads; by default $MINITL_DATA or ~/.cache/minitl"""
    seed: int = 0
    """random seed"""
    device: Literal["cpu", "cuda"] = "cpu"
    """device to compute on"""
    threads: int = 0
    """threads that share a batch on the CPU; 0 chooses one per processor, at most 8, if there is enough work"""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """fp32; on a GPU also tf32, which rounds the factors of matrix products to 10 bits of mantissa, or bf16, which
    rounds them to 7 and stores activations in bfloat16; weights and sums are in float32"""
    graph: bool = True
    """replay each step on a GPU as one CUDA graph"""

    def __post_init__(self):
        check_types(self)
        for wanted, holds, names in (
            ("at least 1", lambda x: x >= 1, ("epochs", "batch_size", "subset")),
            ("above 0", lambda x: 0 < x < np.inf, ("lr", "clip")),
            ("in [0, 1)", lambda x: 0 <= x < 1, ("warmup", "label_smoothing", "ema")),
            ("in [0, 1]", lambda x: 0 <= x <= 1, ("rand_augment_p", "erasing", "mix_until")),
            ("from 0 to 30", lambda x: 0 <= x <= 30, ("magnitude",)),
            (
                "0 or more",
                lambda x: 0 <= x < np.inf,
                ("weight_decay", "crop", "rand_augment", "cutout", "mixup", "cutmix", "seed", "threads"),
            ),
            ("0 or more", lambda x: 0 <= x < np.inf, ("minutes", "save_every")),
        ):
            for name in names:
                value = getattr(self, name)
                if value is not None and not holds(value):
                    raise InputError(f"{name} must be {wanted}, got {value}")
        if self.auto_augment and self.rand_augment:
            raise InputError(
                f"auto_augment and rand_augment {self.rand_augment} cannot be combined; leave one out, "
                "or set rand_augment to 0 if a preset has it"
            )
        if self.device == "cpu" and self.precision != "fp32":
            raise InputError(f"precision {self.precision} needs device cuda; a CPU computes in fp32")


def default_config(dataset):
    """Return the TrainConfig of ``minitl train DATASET`` without further options."""
    config = TrainConfig(dataset)
    if dataset not in data.CLIPS:
        return config
    # with small positions, or a head of zeros, learning takes many epochs to begin
    model = replace(config.model, num_tokens=4, positions="waves", zero_head=False)
    return replace(config, model=model, epochs=8, batch_size=64, lr=6e-3)


def load_config(folder):
    """Return the TrainConfig of the run in ``folder``. Raises InputError if there is no run."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        runs = sorted(path.parent.name for path in Path(folder).glob("*/config.json"))
        more = " …" if len(runs) > 3 else ""
        hint = f"one of its runs: {', '.join(runs[:3])}{more}" if runs else "a folder that `minitl train` made"
        raise InputError(f"{folder} is not a run: it has no config.json; give {hint}")
    try:
        return config_of(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is not a configuration of this minitl ({error}); restore it or start a new run"
        ) from error


def config_of(saved):
    """Return the TrainConfig that ``asdict`` turned into ``saved``; fields added since then have their defaults.

    Before there was a DataSpec, its fields were among the model's; they are ignored.
    """
    model, _ = split_spec(saved["model"])
    kind = X21DConfig if "widths" in model else ViTConfig
    return TrainConfig(**saved | {"model": kind(**model)})


def absolute(config):
    """Return ``config`` with the absolute path of its data set, so that the run can be used from any folder."""
    found = config.dataset not in data.NAMES and Path(config.dataset).exists()
    return replace(config, dataset=str(Path(config.dataset).resolve())) if found else config


def check_data(config, dataset):
    """Raise InputError if options of the TrainConfig ``config`` do not fit the images or clips of a Dataset.

    Options of the model are checked when it is built, except its kind.
    """
    clips, (H, W) = dataset.images.ndim == 5, dataset.spec.image_size
    if isinstance(config.model, X21DConfig) and not clips:
        raise InputError(f"an X(2+1)D model needs clips, and {config.dataset} has images; train a ViT on them")
    for names, kind, unfit in (
        (("flip", "crop", "rand_augment", "auto_augment", "erasing", "cutout", "mixup", "cutmix"), "clips", clips),
        (("label_smoothing", "mixup", "cutmix"), "images with several labels", dataset.multi_label),
    ):
        if used := [name for name in names if unfit and getattr(config, name)]:
            raise InputError(
                f"{config.dataset} has {kind}, which cannot be combined with {', '.join(used)}; leave that out"
            )
    for name in ("crop", "cutout"):
        if (value := getattr(config, name)) >= min(H, W):
            raise InputError(f"{name} must be less than a side of the images, {H} x {W}, got {value}")
