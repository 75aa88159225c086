"""Scores of predictions and maps: mean average precision (as for Charades), confusion counts, map mass."""

import numpy as np

from .backend import describe, to_numpy


def average_precision(scores, targets):
    """Return the average precision of each class, float64 (K,): nan for a class that no sample has.

        AP_k = mean over the samples i of class k of: the share of class k among all j with scores_jk >= scores_ik

    scores (N, K) are on any scale, higher meaning more confident; targets (N, K) are 0 or 1. Equal scores share a rank,
    so the order of the samples does not matter. Raises ValueError for shapes that differ, other targets, or nan.
    """
    scores, targets = to_numpy(scores), to_numpy(targets)
    if scores.ndim != 2 or scores.shape != targets.shape:
        raise ValueError(f"scores and targets are both (N, K), got {scores.shape} and {targets.shape}")
    if not np.isin(targets, (0, 1)).all():
        raise ValueError("targets are 0 or 1 for each class")
    if np.isnan(scores).any():
        raise ValueError("some scores are nan, so they cannot be ranked")
    precisions = np.full(scores.shape[1], np.nan)
    for k, (score, target) in enumerate(zip(scores.T, targets.T, strict=True)):
        ranked, of_class = np.sort(score), np.sort(score[target == 1])
        if of_class.size:
            hits = of_class.size - np.searchsorted(
                of_class, of_class
            )  # samples of the class that score at least as high
            rank = len(ranked) - np.searchsorted(ranked, of_class)  # all samples that do
            precisions[k] = (hits / rank).mean()
    return precisions


def mean_average_precision(scores, targets):
    """Return the mean of ``average_precision`` over the classes that occur. Raises ValueError if none does."""
    precisions = average_precision(scores, targets)
    if np.isnan(precisions).all():
        raise ValueError("no sample has any class: there is nothing to average")
    return float(np.nanmean(precisions))


def confusion_counts(labels, predicted, num_classes):
    """Return int64 (K, K): the number of samples of the row's class that were predicted as the column's.

    labels and predicted are integers (N,) in 0 … K-1; raises ValueError otherwise.
    """
    labels, predicted = to_numpy(labels), to_numpy(predicted)
    pairs = np.concatenate([labels, predicted])
    fit = labels.ndim == 1 and labels.shape == predicted.shape and pairs.dtype.kind in "iu"
    if not fit or (pairs.size and not 0 <= pairs.min() <= pairs.max() < num_classes):
        shapes = f"{describe(labels)} and {describe(predicted)}"
        raise ValueError(f"labels and predicted are integers (N,) in 0..{num_classes - 1}, got {shapes}")
    cells = labels.astype("int64") * num_classes + predicted  # a uint8 would overflow
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def map_mass(maps, boxes, image_size):
    """Return the share of each image's maps that lies inside its boxes, (B,), as the mean over the S maps.

    maps (B, S, H, W) are not negative; boxes (B, 4) are (top, left, bottom, right) in pixels of an image of
    ``image_size`` (height, width), which H and W divide. A map's value is spread evenly over the pixels of its cell; a
    map of zeros counts as 0. For clips, maps (B, T', S, H, W) and boxes (B, T, M, 4): the share inside any of M boxes,
    as the mean over all frames; the frames of a tubelet share its maps.
    """
    maps = to_numpy(maps)
    if maps.ndim == 5:
        maps = _of_each_frame(maps, boxes.shape[1])
    *first, _, H, W = maps.shape
    height, width = image_size
    shares = _inside(boxes, image_size).reshape(*first, H, height // H, W, width // W).mean((-3, -1))  # of each cell
    inside, total = np.einsum("...shw,...hw->...s", maps, shares), maps.sum((-2, -1))
    return (inside / np.maximum(total, np.finfo(total.dtype).tiny)).reshape(len(maps), -1).mean(1)


def box_share(boxes, image_size):
    """Return the mean share of an image's pixels that lie in its boxes: the ``map_mass`` of uniform maps."""
    return float(_inside(boxes, image_size).mean())


def _inside(boxes, image_size):
    """Return a mask of the pixels in boxes (B, 4) or (B, T, M, 4): (B, height, width) or (B, T, height, width)."""
    top, left, bottom, right = np.moveaxis(boxes, -1, 0)[..., None]
    y, x = (np.arange(size) for size in image_size)
    inside = ((top <= y) & (y < bottom))[..., :, None] & ((left <= x) & (x < right))[..., None, :]
    return inside if boxes.ndim == 2 else inside.any(2)


def _of_each_frame(maps, frames):
    """Return maps (B, frames, ...) of frames for maps (B, T', ...) of tubelets."""
    return maps.repeat(frames // maps.shape[1], axis=1)
