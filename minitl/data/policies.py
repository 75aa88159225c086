"""RandAugment (Cubuk et al., 2020) and AutoAugment (Cubuk et al., 2019): a random few of the transforms for each image.

Names, ranges and policies are those of torchvision. uint8 images (B, H, W, C) with 1 or 3 channels, on NumPy or CuPy.
"""

import numpy as np

from ..backend import array_module
from ..errors import InputError, did_you_mean
from . import transforms as t

# Each takes images and a level of -1 to 1 for each of them; those that have no direction use its absolute value. None
# is for no change. A shift is by whole pixels, so that it moves an image without resampling it.
OPS = {
    "Identity": None,
    "ShearX": lambda x, level: t.affine(x, t.shear(0.3 * level, 0)),
    "ShearY": lambda x, level: t.affine(x, t.shear(0, 0.3 * level)),
    "TranslateX": lambda x, level: t.affine(x, t.translation(np.trunc(150 / 331 * x.shape[2] * level), 0)),
    "TranslateY": lambda x, level: t.affine(x, t.translation(0, np.trunc(150 / 331 * x.shape[1] * level))),
    "Rotate": lambda x, level: t.affine(x, t.rotation(30 * level, *x.shape[1:3])),
    "Brightness": lambda x, level: t.brightness(x, 1 + 0.9 * level),
    "Color": lambda x, level: t.color(x, 1 + 0.9 * level),
    "Contrast": lambda x, level: t.contrast(x, 1 + 0.9 * level),
    "Sharpness": lambda x, level: t.sharpness(x, 1 + 0.9 * level),
    "Posterize": lambda x, level: t.posterize(x, 8 - np.rint(4 * abs(level))),
    "Solarize": lambda x, level: t.solarize(x, 255 * (1 - abs(level))),
    "AutoContrast": lambda x, level: t.autocontrast(x),
    "Equalize": lambda x, level: t.equalize(x),
    "Invert": lambda x, level: t.invert(x),
}
NAMES = tuple(OPS)
LARGEST = 30  # magnitude of RandAugment

# Each sub-policy is two operations: name, probability, magnitude of 0 to 9.
POLICIES = {
    "cifar10": (
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
    ),
}


def rand_augment(images, rng, num_ops=2, magnitude=9, p=1.0):
    """``num_ops`` operations after one another on each image, drawn from 14, each done with probability ``p``.

    magnitude  0 to 30, the same for all. Some count to 10 instead: their 9 is about 27 here

    Raises ``InputError`` for a number out of range.
    """
    if num_ops != int(num_ops) or num_ops < 0:
        raise InputError(f"num_ops is a whole number of 0 or more, got {num_ops}")
    if not 0 <= magnitude <= LARGEST:
        raise InputError(f"magnitude is from 0 to {LARGEST}, got {magnitude}")
    if not 0 <= p <= 1:
        raise InputError(f"p is a probability, got {p}")
    B = len(images)
    for _ in range(int(num_ops)):
        ops = rng.integers(NAMES.index("Invert"), size=B)  # all but the last one
        images = _apply(images, np.where(rng.random(B) < p, ops, 0), magnitude / LARGEST * _signs(rng, B))
    return images


def auto_augment(images, rng, policy="cifar10"):
    """One of the sub-policies for each image: two operations after one another, each with its own probability.

    Raises ``InputError`` for an unknown policy.
    """
    if policy not in POLICIES:
        raise InputError(f"there is no policy {policy!r}; {did_you_mean(policy, POLICIES)}")
    names, p, magnitude = (np.array(column) for column in zip(*sum(POLICIES[policy], ()), strict=True))
    ops = np.array([NAMES.index(name) for name in names])
    B = len(images)
    chosen = 2 * rng.integers(len(POLICIES[policy]), size=B)
    for i in (chosen, chosen + 1):
        images = _apply(images, np.where(rng.random(B) < p[i], ops[i], 0), magnitude[i] / 9 * _signs(rng, B))
    return images


def _signs(rng, n):
    return 1 - 2 * rng.integers(2, size=n)


def _apply(images, ops, levels):
    """Each image after the operation ``NAMES[ops]`` at its level; both (B,), on the host.

    Each operation runs once, on all images that have drawn it: that is 14 times less work than to compute all of them
    for every image. The host drew, so it knows how many images each gets, and nothing waits for the GPU. But the
    numbers differ from batch to batch, so a captured graph takes the images that come from here, and this stays
    outside of it.
    """
    xp, order = array_module(images), np.argsort(ops, kind="stable")
    ends = np.searchsorted(ops[order], np.arange(1, len(OPS) + 1)).tolist()
    images, where = images.copy(), xp.asarray(order)
    for op, start, end in zip(OPS.values(), [0, *ends], ends, strict=False):
        if op and start < end:
            group = where[start:end]
            images[group] = op(images[group], levels[order[start:end]])
    return images
