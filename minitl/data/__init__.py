"""Data sets in memory, batches and augmentation.

Start with ``train, test = load("clutter")``. Until images are generated or read, only NumPy is imported.
"""

import functools
from pathlib import Path

import numpy as np

from ..errors import InputError, did_you_mean
from . import cifar, images
from .actors import actors
from .augment import channel_stats, cutmix, cutout, mixup, normalize, one_hot, random_crop, random_erasing
from .clutter import clutter, sample
from .dataset import Dataset
from .loader import Loader
from .policies import auto_augment, rand_augment

__all__ = ["Dataset", "Loader", "actors", "auto_augment", "channel_stats", "clutter", "cutmix", "cutout", "sample"]
__all__ += ["load", "mixup", "normalize", "one_hot", "rand_augment", "random_crop", "random_erasing"]

GENERATED = {"clutter": clutter, "actors": actors, "actors-12fps": functools.partial(actors, fps=12)}
CLIPS = ("actors", "actors-12fps")
NAMES = (*GENERATED, *cifar.ARCHIVES)


def load(name, data_dir=None, subset=None):
    """Return the two splits of a data set, ``(train, test)``.

    name      "clutter", "actors", "actors-12fps" (the same motions in twice as many frames), "cifar10", "cifar100",
              or the path of a folder, zip or tar of ``split/class/image`` files
    data_dir  folder for downloads; by default the one that $MINITL_DATA names, or else ~/.cache/minitl
    subset    at most this many training images, balanced over the classes and always the same ones; the test split
              stays complete

    A generated set is made once and shared by all calls, so its arrays are read-only.
    Raises InputError for an unknown name and for files that cannot be used.
    """
    if name not in NAMES and Path(name).exists():
        return images.read(name, subset)
    if name in GENERATED:
        train, test = _generated(name)
    elif name in NAMES:
        train, test = cifar.read(name, data_dir)
    else:
        path = Path(name)
        remedy = "check the path; if a run was trained on it, put it back"
        remedy = remedy if path.is_absolute() else f"choose {', '.join(NAMES)}, or a path"
        hint = did_you_mean(path.name, [*NAMES, *(file.name for file in path.parent.glob("*"))], remedy)
        raise InputError(f"no data set and no file is called {name!r}; {hint}")
    return (train if subset is None else train.subset(subset, np.random.default_rng(0))), test


@functools.lru_cache(1)
def _generated(name):
    """Return the splits of a generated set; this takes seconds, so all calls of ``load`` share the last one."""
    splits = GENERATED[name]()
    for split in splits:
        for array in (split.images, split.labels, split.boxes):
            array.flags.writeable = False
    return splits
