"""Augmentation of whole batches (B, H, W, C), as array operations on NumPy or CuPy arrays: no loop over images.

Random numbers come from the host generator ``rng``, so both backends see the same ones. Each function returns a new
array and leaves its input alone. Crop, flip and cutmix take any dtype; the rest says what it takes.
"""

import math
import operator

import numpy as np

from ..backend import array_module, describe, is_array


def channel_stats(images):
    """``(mean, std)`` of each channel of uint8 images or clips, in units of 0 to 1: two float32 arrays (C,).

    The std of a channel that never varies is given as 1, so that one can divide by it.
    """
    _expect(images, "uint8")
    xp, images = array_module(images), images.reshape(-1, *images.shape[-3:])
    count = images.size // images.shape[-1]
    squares = xp.square(images, dtype="uint16")  # 255² just fits, so the sums are exact
    mean, second = (x.sum(0, dtype="int64").sum((0, 1)) / count for x in (images, squares))
    std = xp.sqrt(second - mean**2) / 255
    return (mean / 255).astype("float32"), xp.where(std > 0, std, 1).astype("float32")


def normalize(images, mean, std):
    """float32 (x / 255 - mean) / std of uint8 images or clips, with ``mean`` and ``std`` for each channel."""
    _expect(images, "uint8")
    xp = array_module(images)
    mean, std = xp.asarray(mean, "float32"), xp.asarray(std, "float32")
    if not mean.shape == std.shape == images.shape[-1:]:
        raise ValueError(f"mean and std have one number per channel, got {describe(mean)}, {describe(std)}")
    pixels = math.prod(images.shape[1:-1])
    x = images.reshape(len(images), pixels * len(mean)).astype("float32")  # one row each: NumPy likes long ones
    x *= xp.tile(1 / (255 * std), pixels)
    x -= xp.tile(mean / std, pixels)
    return x.reshape(images.shape)


def flip(images, rng):
    """Mirror each image left to right with probability 1/2."""
    return random_crop(images, 0, rng, flip=True)


def random_crop(images, padding, rng, flip=False):
    """Shift each image by up to ``padding`` pixels each way; what comes in is its own reflection at the border.

    With ``flip``, each image is first mirrored with probability 1/2: as by the function of that name, but at no cost.
    """
    _expect_images(images)
    xp, padding = array_module(images), operator.index(padding)
    B, H, W, C = images.shape
    if not 0 <= padding < min(H, W):
        raise ValueError(f"padding for images of {H} x {W} pixels is from 0 to {min(H, W) - 1}, got {padding}")

    def reflected(size):  # which row (or column) of the image each one of the crop is: (B, size)
        at = abs(np.arange(size) + rng.integers(-padding, padding + 1, size=(B, 1)))
        return size - 1 - abs(size - 1 - at)

    mirrored = rng.random((B, 1)) < 0.5 if flip else False
    rows = xp.asarray(reflected(H) + H * np.arange(B)[:, None])  # among those of all images
    columns = reflected(W)
    columns = xp.asarray(np.where(mirrored, W - 1 - columns, columns))
    return images.reshape(-1, C).take((W * rows)[:, :, None] + columns[:, None, :], axis=0)


def cutout(images, size, rng):
    """Set a square of ``size`` pixels, centred anywhere in each image, to 0: black, or the mean once normalised."""
    _expect_images(images)
    size = operator.index(size)
    B, H, W, _ = images.shape
    if size < 1:
        raise ValueError(f"size is at least 1 pixel, got {size}")
    top, left = (rng.integers(n, size=(B, 1)) - size // 2 for n in (H, W))
    return _blanked(images, _between(np.arange(H), top, top + size), _between(np.arange(W), left, left + size))


def random_erasing(images, rng, p=0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3)):
    """Set a box in each image to 0 with probability ``p`` (Zhong et al., 2020): black, or the mean once normalised.

    scale  least and largest share of the area; uniform
    ratio  least and largest height over width; its logarithm is uniform

    A box that is longer than the image is cut down to its length; it lies anywhere inside, and covers a pixel at least.
    """
    _expect_images(images)
    B, H, W, _ = images.shape
    if not 0 <= p <= 1:
        raise ValueError(f"p is a probability, got {p}")
    if not 0 <= scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale is two shares of the area, the smaller one first, got {scale}")
    if not 0 < ratio[0] <= ratio[1] < np.inf:
        raise ValueError(f"ratio is two positive numbers, the smaller one first, got {ratio}")
    erased = rng.random((B, 1)) < p
    area = H * W * rng.uniform(*scale, size=(B, 1))
    aspect = np.exp(rng.uniform(*np.log(ratio), size=(B, 1)))
    inside = []
    for n, length in ((H, np.sqrt(area * aspect)), (W, np.sqrt(area / aspect))):
        length = np.rint(length).astype(int).clip(1, n)
        start = rng.integers(n - length + 1)
        inside.append(_between(np.arange(n), start, start + length))
    return _blanked(images, inside[0] & erased, inside[1])


def mixup(images, targets, alpha, rng):
    """Blend each float image, and its soft target (B, K), with another of the batch (Zhang et al., 2018).

    One share for the batch, drawn from Beta(alpha, alpha).
    """
    _expect_images(images)
    if images.dtype.kind != "f":
        raise TypeError(f"mixup blends float images, got {describe(images)}; normalise them first")
    share, other = _partners(images, targets, alpha, rng)
    return share * images + (1 - share) * images[other], share * targets + (1 - share) * targets[other]


def cutmix(images, targets, alpha, rng):
    """Paste a box of another image of the batch into each, and mix the soft targets (B, K) by area (Yun et al., 2019).

    One box for the batch: its share of the area is drawn from Beta(alpha, alpha), its centre anywhere in the image.
    """
    _expect_images(images)
    xp = array_module(images)
    share, other = _partners(images, targets, alpha, rng)
    _, H, W, _ = images.shape
    inside = []
    for n in (H, W):
        length = round(n * (1 - share) ** 0.5)
        start = rng.integers(n) - length // 2
        inside.append(_between(np.arange(n), start, start + length))
    inside = inside[0][:, None] & inside[1]
    share = 1 - float(inside.mean())  # the border cuts some boxes off
    mixed = xp.where(xp.asarray(inside)[..., None], images[other], images)
    return mixed, share * targets + (1 - share) * targets[other]


def one_hot(labels, num_classes):
    """Soft targets float32 (B, K) that are 1 at each of the integer ``labels`` (B,) and 0 elsewhere.

    Raises ValueError for a label outside 0 … K-1. On a GPU it gets a row of zeros: raising would need a look at it.
    """
    xp = array_module(labels)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise TypeError(f"labels are one axis of integers, got {describe(labels)}")
    if xp is np and labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(f"labels lie between {labels.min()} and {labels.max()}, outside 0..{num_classes - 1}")
    return (labels[:, None] == xp.arange(num_classes)).astype("float32")


def _partners(images, targets, alpha, rng):
    """The share that an image keeps, and the index of the one it is mixed with."""
    if targets.ndim != 2 or len(targets) != len(images) or targets.dtype.kind != "f":
        raise ValueError(f"soft targets are float (B, K) with B = {len(images)}, got {describe(targets)}; see one_hot")
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha is positive and finite, got {alpha}")
    return float(rng.beta(alpha, alpha)), array_module(images).asarray(rng.permutation(len(images)))


def _blanked(images, rows, columns):
    """0 where both a row of (B, H) and a column of (B, W) are marked."""
    xp, (B, H, W, C) = array_module(images), images.shape
    rows, columns = xp.asarray(rows)[:, :, None], xp.asarray(columns.repeat(C, axis=1))[:, None]
    return xp.where(rows & columns, images.dtype.type(0), images.reshape(B, H, W * C)).reshape(images.shape)


def _between(x, low, high):
    return (x >= low) & (x < high)


def _expect_images(images):
    if not is_array(images) or images.ndim != 4:
        raise TypeError(f"expected an array of images (B, H, W, C), got {describe(images)}")


def _expect(images, dtype):
    if images.dtype != dtype or images.ndim not in (4, 5):
        raise TypeError(f"expected {dtype} images (B, H, W, C) or clips (B, T, H, W, C), got {describe(images)}")
