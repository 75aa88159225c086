"""RandAugment (Cubuk et al., 2020) and AutoAugment (Cubuk et al., 2019): a few random operations on each image.

Names, ranges and the policy are those of torchvision. Images are uint8 (B, H, W, C) with 1 or 3 channels, on NumPy or
CuPy; other arrays raise TypeError.
"""

import numpy as np

from ..backend import array_module
from ..errors import InputError
from . import transforms as t

# Each has a transform and its amount for levels (n,) of -1 to 1 and images of H x W pixels; those without a direction
# use the absolute level. Translations are by whole pixels, so that nothing is resampled; thresholds are whole as well.
OPERATIONS = {
    "Identity": None,
    "ShearX": (t.affine, lambda level, H, W: t.shear(0.3 * level, 0)),
    "ShearY": (t.affine, lambda level, H, W: t.shear(0, 0.3 * level)),
    "TranslateX": (t.affine, lambda level, H, W: t.translation(np.trunc(150 / 331 * W * level), 0)),
    "TranslateY": (t.affine, lambda level, H, W: t.translation(0, np.trunc(150 / 331 * H * level))),
    "Rotate": (t.affine, lambda level, H, W: t.rotation(30 * level, H, W)),
    "Brightness": (t.brightness, lambda level, *_: 1 + 0.9 * level),
    "Color": (t.color, lambda level, *_: 1 + 0.9 * level),
    "Contrast": (t.contrast, lambda level, *_: 1 + 0.9 * level),
    "Sharpness": (t.sharpness, lambda level, *_: 1 + 0.9 * level),
    "Posterize": (t.posterize, lambda level, *_: 8 - np.rint(4 * abs(level))),
    "Solarize": (t.solarize, lambda level, *_: np.ceil(255 * (1 - abs(level)))),
    "AutoContrast": (t.autocontrast, None),
    "Equalize": (t.equalize, None),
    "Invert": (t.invert, None),
}
INDEX = {name: i for i, name in enumerate(OPERATIONS)}
MAX_MAGNITUDE = 30  # of RandAugment

# AutoAugment's policy for CIFAR-10: 25 sub-policies of two operations, each as name, probability, magnitude of 0 to 9.
CIFAR10_POLICY = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)


def rand_augment(images, rng, num_ops=2, magnitude=9, p=1.0):
    """Apply ``num_ops`` of 14 operations, drawn at random, to each image; each is carried out with probability ``p``.

    magnitude  0 to 30, the same for all operations. Where others count to 10, their 9 is about 27 here

    Raises InputError for a number out of range.
    """
    if num_ops != int(num_ops) or num_ops < 0:
        raise InputError(f"num_ops is a whole number of 0 or more, got {num_ops}")
    if not 0 <= magnitude <= MAX_MAGNITUDE:
        raise InputError(f"magnitude is from 0 to {MAX_MAGNITUDE}, got {magnitude}")
    if not 0 <= p <= 1:
        raise InputError(f"p is a probability, got {p}")
    B = len(images)
    for _ in range(int(num_ops)):
        ops = rng.integers(INDEX["Invert"], size=B)  # all but the last one
        images = _apply(images, np.where(rng.random(B) < p, ops, 0), magnitude / MAX_MAGNITUDE * _signs(rng, B))
    return images


def auto_augment(images, rng):
    """Apply one sub-policy of ``CIFAR10_POLICY``, drawn at random, to each image: its two operations in turn."""
    names, p, magnitude = (np.array(column) for column in zip(*sum(CIFAR10_POLICY, ()), strict=True))
    ops = np.array([INDEX[name] for name in names])
    B = len(images)
    chosen = 2 * rng.integers(len(CIFAR10_POLICY), size=B)
    for i in (chosen, chosen + 1):
        images = _apply(images, np.where(rng.random(B) < p[i], ops[i], 0), magnitude[i] / 9 * _signs(rng, B))
    return images


def _signs(rng, n):
    return 1 - 2 * rng.integers(2, size=n)


def _apply(images, ops, levels):
    """Return the images after the operations numbered ``ops`` at ``levels``; both (B,), on the host.

    On a CPU each operation runs once, on all images that have drawn it: 14 times less work than computing all
    operations for every image. On a GPU one kernel applies all of them.
    """
    t.expect_1_or_3_channels(images)
    groups = []
    for i, operation in enumerate(OPERATIONS.values()):
        indices = np.flatnonzero(ops == i)
        if operation and indices.size:
            transform, amount = operation
            groups.append((transform, indices, amount and amount(levels[indices], *images.shape[1:3])))
    if array_module(images) is not np:
        from ..fast.cuda import augment

        groups = [(f.__name__, i, t.fixed_point(a) if f is t.affine else a) for f, i, a in groups]
        return augment.transform(images, groups)
    images = images.copy()
    for transform, indices, amount in groups:
        images[indices] = transform(images[indices], *([] if amount is None else [amount]))
    return images
