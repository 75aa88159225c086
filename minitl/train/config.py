"""The configuration of a training run: what a person chose."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from .. import data
from ..errors import InputError, check_types
from ..nn import ViTConfig, X21DConfig


@dataclass(frozen=True)
class TrainConfig:
    """One training run, checked when it is made. Raises InputError for a value out of range."""

    dataset: str = "clutter"
    """clutter; actors or actors-12fps, which are clips and have other defaults; cifar10, cifar100; or a folder, zip or
    tar of split/class/image files"""
    model: ViTConfig | X21DConfig = field(default_factory=lambda: ViTConfig(version="1.1", pre_norm=False))
    epochs: int = 10
    """passes over the training images"""
    batch_size: int = 100
    """images per step"""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """what moves the weights; muon makes the moves of matrices orthogonal, and treats vectors as adamw does"""
    lr: float = 4e-3
    """largest learning rate; it rises linearly, then falls along half a cosine"""
    warmup: float = 0.1
    """share of all steps in which the learning rate rises"""
    weight_decay: float = 0.05
    """decoupled decay of all matrices"""
    clip: float = 1.0
    """largest norm of the gradient; larger ones are scaled down to it"""
    label_smoothing: float = 0.0
    """share of each target that is spread over all classes"""
    ema: float = 0.0
    """decay of the moving average of the weights that is evaluated; 0 evaluates the weights themselves"""
    flip: bool = False
    """mirror half of the training images"""
    crop: int = 0
    """pad training images by so many pixels and crop them back at a random place"""
    rand_augment: int = 0
    """operations of RandAugment on each training image"""
    rand_augment_p: float = 0.5
    """probability of each of these operations"""
    magnitude: float = 27.0
    """how strong they are, from 0 to 30"""
    auto_augment: bool = False
    """apply one of AutoAugment's 25 policies for CIFAR-10 to each training image; not together with rand_augment"""
    erasing: float = 0.0
    """probability that a random box of a training image is blanked"""
    cutout: int = 0
    """side of a square that is blanked in each training image"""
    mixup: float = 0.0
    """alpha of mixup: blend pairs of training images and their labels"""
    cutmix: float = 0.0
    """alpha of cutmix: paste a box of one training image into another; with mixup, one of the two per batch"""
    mix_until: float = 1.0
    """share of all steps after which images are not mixed any more"""
    subset: int | None = None
    """train on at most so many images, equally many of each class"""
    data_dir: str | None = None
    """where downloads are kept; $MINITL_DATA or ~/.cache/minitl otherwise"""
    seed: int = 0
    """decides everything random"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where to compute"""
    threads: int = 0
    """threads that share a batch on the CPU; 0 is one for each processor, at most 8, if there is work for so many"""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """of matrix products on a GPU: in full, with factors of 10 bits of mantissa, or of 7; sums are in float32"""
    graph: bool = True
    """on a GPU: replay a step as one CUDA graph instead of asking for each part of it"""

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
        ):
            for name in names:
                value = getattr(self, name)
                if value is not None and not holds(value):
                    raise InputError(f"{name} must be {wanted}, got {value}")
        if self.auto_augment and self.rand_augment:
            raise InputError(
                f"auto_augment and rand_augment {self.rand_augment} exclude each other; leave one out, "
                "or set rand_augment to 0 where a preset has it"
            )
        if self.device == "cpu" and self.precision != "fp32":
            raise InputError(f"precision {self.precision} needs device cuda; a CPU computes in fp32")


def default_config(dataset):
    """The TrainConfig of ``minitl train DATASET`` where no option says otherwise."""
    config = TrainConfig(dataset)
    if dataset not in data.CLIPS:
        return config
    # from small positions, or with a head of zeros, learning takes many epochs to begin
    model = replace(config.model, num_tokens=4, positions="waves", zero_head=False)
    return replace(config, model=model, epochs=8, batch_size=64, lr=6e-3)


def load_config(folder):
    """The TrainConfig that a run in ``folder`` was started with. Raises InputError where there is none."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        runs = sorted(path.parent.name for path in Path(folder).glob("*/config.json"))
        hint = f"one of its runs: {', '.join(runs[:3])} …" if runs else "a folder that `minitl train` made"
        raise InputError(f"{folder} is no run, it has no config.json; give {hint}")
    try:
        return config_of(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is no configuration of this minitl ({error}); restore it or start anew") from error


def config_of(saved):
    """The TrainConfig that ``asdict`` made ``saved`` of; fields that came later have their defaults."""
    model = {name: tuple(x) if isinstance(x, list) else x for name, x in dict(saved["model"]).items()}
    kind = X21DConfig if "widths" in model else ViTConfig
    return TrainConfig(**saved | {"model": kind(**model)})


def absolute(config):
    """``config`` with the whole path of its data set, so that the run can be used from any folder."""
    found = config.dataset not in data.NAMES and Path(config.dataset).exists()
    return replace(config, dataset=str(Path(config.dataset).resolve())) if found else config


def fitted(config, train_set):
    """``config`` with what the images decide. Raises InputError for options that do not fit them."""
    *time, height, width, channels = train_set.images.shape[1:]
    if isinstance(config.model, X21DConfig) and not time:
        raise InputError(f"an X(2+1)D model needs clips, and {config.dataset} has images; train a ViT on them")
    for names, images, unfit in (
        (("flip", "crop", "rand_augment", "auto_augment", "erasing", "cutout", "mixup", "cutmix"), "clips", time),
        (("label_smoothing", "mixup", "cutmix"), "images with several labels", train_set.multi_label),
    ):
        if used := [name for name in names if unfit and getattr(config, name)]:
            raise InputError(f"{config.dataset} has {images}, which do not go with {', '.join(used)}; leave that out")
    for name in ("crop", "cutout"):
        if getattr(config, name) >= min(height, width):
            size = f"{height} x {width}"
            raise InputError(f"{name} must be less than a side of the images, {size}, got {getattr(config, name)}")
    known = {"image_size": (height, width), "channels": channels, "num_classes": len(train_set.classes)}
    known |= {"frames": time[0] if time else 1}
    kind = X21DConfig if isinstance(config.model, X21DConfig) else ViTConfig
    return replace(config, model=kind(**vars(config.model) | known))
