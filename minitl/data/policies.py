"""RandAugment (Cubuk et al., 2020) and AutoAugment (Cubuk et al., 2019): a few random operations on each image.

Names, ranges and the policy are those of torchvision. Images are uint8 (B, H, W, C) with 1 or 3 channels, on NumPy or
CuPy.
"""

import numpy as np

from ..backend import array_module
from ..errors import InputError
from . import transforms as t

# Each takes images and one level of -1 to 1 per image; those without a direction use its absolute value. Translations
# are by whole pixels, so that nothing is resampled.
OPERATIONS = {
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

    Each operation runs once, on all images that have drawn it: 14 times less work than computing all operations for
    every image. The draws are on the host, so the host knows how many images each operation gets, and nothing waits
    for the GPU. But these numbers differ from batch to batch, so this cannot be part of a captured CUDA graph.
    """
    xp, order = array_module(images), np.argsort(ops, kind="stable")
    ends = np.searchsorted(ops[order], np.arange(1, len(OPERATIONS) + 1)).tolist()
    images, indices = images.copy(), xp.asarray(order)
    for operation, start, end in zip(OPERATIONS.values(), [0, *ends], ends, strict=False):
        if operation and start < end:
            group = indices[start:end]
            images[group] = operation(images[group], levels[order[start:end]])
    return images
