"""Augmentation of whole batches (B, H, W, C) as array operations on NumPy or CuPy arrays, without a loop over images.

Random numbers come from the host generator ``rng``, so both backends see the same ones. Each function returns a new
array and leaves its input unchanged. Crop, cutout, erasing and cutmix take any dtype. TypeError and ValueError are
raised for arrays and numbers that do not fit.
"""

import math
import operator

import numpy as np

from ..backend import array_module, describe, is_array


def channel_stats(images):
    """Return ``(mean, std)`` per channel of uint8 images or clips, on a scale of 0 to 1: two float32 arrays (C,).

    The std of a constant channel is returned as 1, so that one can divide by it.
    """
    _expect_uint8(images)
    xp, images = array_module(images), images.reshape(-1, *images.shape[-3:])
    count = images.size // images.shape[-1]
    squares = xp.square(images, dtype="uint16")  # 255² just fits, so the sums are exact
    mean, second = (x.sum(0, dtype="int64").sum((0, 1)) / count for x in (images, squares))
    std = xp.sqrt(second - mean**2) / 255
    return (mean / 255).astype("float32"), xp.where(std > 0, std, 1).astype("float32")


def normalize(images, mean, std):
    """Return (x / 255 - mean) / std of uint8 images or clips as float32; ``mean`` and ``std`` (C,) are per channel."""
    _expect_uint8(images)
    xp = array_module(images)
    mean, std = xp.asarray(mean, "float32"), xp.asarray(std, "float32")
    if not mean.shape == std.shape == images.shape[-1:]:
        raise ValueError(f"mean and std have one number per channel, got {describe(mean)} and {describe(std)}")
    pixels = math.prod(images.shape[1:-1])
    x = images.reshape(len(images), pixels * len(mean)).astype("float32")  # NumPy is fast on long rows
    x *= xp.tile(1 / (255 * std), pixels)
    x -= xp.tile(mean / std, pixels)
    return x.reshape(images.shape)


def random_crop(images, padding, rng, flip=False):
    """Shift each image by up to ``padding`` pixels in each direction, filling the border with its reflection.

    With ``flip``, first mirror each image left to right with probability 1/2.
    """
    _expect_images(images)
    xp, padding = array_module(images), operator.index(padding)
    B, H, W, C = images.shape
    if not 0 <= padding < min(H, W):
        raise ValueError(f"padding for images of {H} x {W} pixels is 0 to {min(H, W) - 1}, got {padding}")

    mirrored = rng.random(B) < 0.5 if flip else np.zeros(B, bool)
    down, right = (rng.integers(-padding, padding + 1, size=B) for _ in "HW")
    if xp is not np and images.dtype == "uint8":
        from ..fast.cuda import augment

        return augment.transform(images, [("crop", slice(None), np.stack([down, right, mirrored], 1))])

    def reflected(shift, size):  # the row (or column) of the image for each one of the crop: (B, size)
        return size - 1 - abs(size - 1 - abs(np.arange(size) + shift[:, None]))

    rows = xp.asarray(reflected(down, H) + H * np.arange(B)[:, None])  # counted through all images
    columns = reflected(right, W)
    columns = xp.asarray(np.where(mirrored[:, None], W - 1 - columns, columns))
    return images.reshape(-1, C).take((W * rows)[:, :, None] + columns[:, None, :], axis=0)


def cutout(images, size, rng):
    """Set a square of ``size`` pixels, centered anywhere in each image, to 0: black, or the mean if normalized."""
    _expect_images(images)
    size = operator.index(size)
    B, H, W, _ = images.shape
    if size < 1:
        raise ValueError(f"size is at least 1 pixel, got {size}")
    top, left = (rng.integers(n, size=(B, 1)) - size // 2 for n in (H, W))
    return _erased(images, _between(np.arange(H), top, top + size), _between(np.arange(W), left, left + size))


def random_erasing(images, rng, p):
    """Set a box in each image to 0 with probability ``p`` (Zhong et al., 2020): black, or the mean if normalized.

    The box takes a share of 0.02 to 0.33 of the area, drawn uniformly; height over width is 0.3 to 3.3, its logarithm
    drawn uniformly. A side longer than the image is cut to its length. The box lies anywhere inside the image.
    """
    _expect_images(images)
    B, H, W, _ = images.shape
    if not 0 <= p <= 1:
        raise ValueError(f"p is a probability, got {p}")
    erased = rng.random((B, 1)) < p
    area = H * W * rng.uniform(0.02, 0.33, size=(B, 1))
    aspect = np.exp(rng.uniform(*np.log((0.3, 3.3)), size=(B, 1)))
    inside = []
    for n, length in ((H, np.sqrt(area * aspect)), (W, np.sqrt(area / aspect))):
        length = np.rint(length).astype(int).clip(1, n)
        start = rng.integers(n - length + 1)
        inside.append(_between(np.arange(n), start, start + length))
    return _erased(images, inside[0] & erased, inside[1])


def mixup(images, targets, alpha, rng):
    """Blend each float image, and its soft target (B, K), with another one of the batch (Zhang et al., 2018).

    The share is one for the whole batch, drawn from Beta(alpha, alpha).
    """
    _expect_images(images)
    if images.dtype.kind != "f":
        raise TypeError(f"mixup blends float images, got {describe(images)}; normalize them first")
    share, other = _partners(images, targets, alpha, rng)
    return share * images + (1 - share) * images[other], share * targets + (1 - share) * targets[other]


def cutmix(images, targets, alpha, rng):
    """Paste a box of another image of the batch into each; mix the soft targets (B, K) by area (Yun et al., 2019).

    The box is one for the whole batch; its share of the area comes from Beta(alpha, alpha), its center lies anywhere.
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
    share = 1 - float((inside[0][:, None] & inside[1]).mean())  # the border may cut the box
    rows, columns = map(xp.asarray, inside)
    mixed = xp.where((rows[:, None] & columns)[..., None], images[other], images)
    return mixed, share * targets + (1 - share) * targets[other]


def one_hot(labels, num_classes):
    """Return soft targets, float32 (B, K): 1 at each of the integer ``labels`` (B,), 0 elsewhere.

    Raises ValueError if a label is outside 0 … K-1. On a GPU such a label gives a row of zeros instead: to raise, the
    host would have to wait for the GPU.
    """
    xp = array_module(labels)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise TypeError(f"labels are one axis of integers, got {describe(labels)}")
    if xp is np and labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(f"labels lie between {labels.min()} and {labels.max()}, outside 0..{num_classes - 1}")
    return (labels[:, None] == xp.arange(num_classes)).astype("float32")


def _partners(images, targets, alpha, rng):
    """Return the share that each image keeps, and the indices (B,) of the images they are mixed with."""
    if targets.ndim != 2 or len(targets) != len(images) or targets.dtype.kind != "f":
        raise ValueError(f"soft targets are float (B, K) with B = {len(images)}, got {describe(targets)}; see one_hot")
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha is positive and finite, got {alpha}")
    return float(rng.beta(alpha, alpha)), array_module(images).asarray(rng.permutation(len(images)))


def _erased(images, rows, columns):
    """Return the images with 0 where both the row, of (B, H), and the column, of (B, W), are marked."""
    xp, (B, H, W, C) = array_module(images), images.shape
    rows, columns = xp.asarray(rows)[:, :, None], xp.asarray(columns.repeat(C, axis=1))[:, None]
    return xp.where(rows & columns, images.dtype.type(0), images.reshape(B, H, W * C)).reshape(images.shape)


def _between(x, low, high):
    return (x >= low) & (x < high)


def _expect_images(images):
    if not is_array(images) or images.ndim != 4:
        raise TypeError(f"expected an array of images (B, H, W, C), got {describe(images)}")


def _expect_uint8(images):
    if images.dtype != "uint8" or images.ndim not in (4, 5):
        raise TypeError(f"expected uint8 images (B, H, W, C) or clips (B, T, H, W, C), got {describe(images)}")
