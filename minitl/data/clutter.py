"""CLUTTER, the generated image set: name the shape of the one warm-coloured object among cool-coloured ones.

The object that counts is anywhere and small, so a model has to find it before it can name it: pooling on a fixed grid
mixes it with its surroundings, tokens that look where the image tells them to do not. Since the generator knows the
object's box, where the model looks can be scored too.
"""

import numpy as np

from ..errors import InputError
from .dataset import Dataset, drawing

SIDE = 32  # pixels
SIZES = (7, 8, 9)  # pixels across an object
DISTRACTORS = 6
NOISE = 0.12  # standard deviation, of colours between 0 and 1
WARM = np.float32([0.95, 0.25, 0.20])  # red, green, blue of the target, each up to 0.1 more or less
COOL = np.float32([[0.05, 0.2, 0.2], [0.5, 0.95, 0.95]])  # lowest and highest colour of a distractor

# Each shape as a condition on the point (x, y) of its box, both from -1 to 1, y pointing down.
SHAPES = {
    "disc": lambda x, y: x**2 + y**2 < 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.9,
    "triangle": lambda x, y: abs(x) < (y + 1) / 2,
    "plus": lambda x, y: np.minimum(abs(x), abs(y)) < 0.3,
    "ring": lambda x, y: (x**2 + y**2 < 1) & (x**2 + y**2 > 0.3),
    "cross": lambda x, y: np.minimum(abs(x + y), abs(x - y)) < 0.4,
    "bar": lambda x, y: abs(y) < 0.35,
    "diamond": lambda x, y: abs(x) + abs(y) < 1,
}


def masks():
    """How much of each pixel a shape covers: float32 (shapes, sizes, 9, 9), the object in the upper left corner.

    A pixel's value is the share of its 4 x 4 sample points that lie inside the shape.
    """
    table = np.zeros((len(SHAPES), len(SIZES), max(SIZES), max(SIZES)), "float32")
    for j, size in enumerate(SIZES):
        t = (np.arange(4 * size) + 0.5) / (2 * size) - 1
        for i, inside in enumerate(SHAPES.values()):
            table[i, j, :size, :size] = inside(*np.meshgrid(t, t)).reshape(size, 4, size, 4).mean((1, 3))
    return table


def sample(rng, n):
    """A Dataset of ``n`` CLUTTER images (32, 32, 3) with the boxes of their targets, drawn by the generator ``rng``."""
    blocks = 0.25 + 0.5 * rng.random((n, 4, 4, 3), "float32")
    background = blocks.repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2)
    background += NOISE * rng.standard_normal(background.shape, "float32")
    # Every object is painted through a window as large as the largest one, so the canvas ends that much later.
    spare = max(SIZES) - min(SIZES)
    canvas = np.pad(background, ((0, 0), (0, spare), (0, spare), (0, 0)))
    table, window = masks(), np.arange(max(SIZES))

    for layer in range(DISTRACTORS + 1):  # the target comes last, on top
        shape = rng.integers(len(SHAPES), size=n)
        size = rng.integers(len(SIZES), size=n)
        pixels = np.take(SIZES, size)
        top, left = rng.integers(SIDE - pixels + 1), rng.integers(SIDE - pixels + 1)
        if layer < DISTRACTORS:
            colour = COOL[0] + (COOL[1] - COOL[0]) * rng.random((n, 3), "float32")
        else:
            colour = WARM + 0.2 * rng.random((n, 3), "float32") - 0.1
        at = (np.arange(n)[:, None, None], (top[:, None] + window)[:, :, None], (left[:, None] + window)[:, None, :])
        cover = table[shape, size][..., None]  # (n, 9, 9, 1)
        canvas[at] += cover * (colour[:, None, None] - canvas[at])

    images = np.rint(255 * canvas[:, :SIDE, :SIDE].clip(0, 1)).astype("uint8")
    boxes = np.stack([top, left, top + pixels, left + pixels], axis=1)
    return Dataset(images, shape, tuple(SHAPES), boxes)


def clutter(num_train=20000, num_test=2000):
    """``(train, test)``: CLUTTER with 8 classes, the same images on every call.

    A map that looks everywhere equally has 0.063 of its mass in the target's box.
    Raises ``InputError`` for a split without images.
    """
    if min(num_train, num_test) < 1:
        raise InputError(f"each split has at least 1 image, got {num_train} for training and {num_test} for testing")
    return _many(np.random.default_rng(1), num_train), _many(np.random.default_rng(2), num_test)


def _many(rng, n, at_once=500):
    """``n`` images, drawn few at a time: what the processor's cache holds is painted fastest."""
    parts = list(drawing((sample(rng, min(at_once, n - start)) for start in range(0, n, at_once)), n, "images"))
    images, labels, boxes = (np.concatenate([getattr(p, k) for p in parts]) for k in ("images", "labels", "boxes"))
    return Dataset(images, labels, tuple(SHAPES), boxes)
