"""Scores of predictions: mean average precision, as Charades is scored; and which classes are taken for which."""

import numpy as np

from .backend import describe, to_numpy


def average_precision(scores, targets):
    """The average precision of each class, float64 (K,): nan for a class that no sample has.

        AP_k = mean over the samples i of class k of: the share of class k among all j with scores_jk >= scores_ik

    scores (N, K) are of any scale, the higher the surer; targets (N, K) are 0 or 1. Equal scores share one rank, so the
    order of the samples never matters. Raises ValueError for shapes that differ, other targets, or nan.
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
            found = of_class.size - np.searchsorted(of_class, of_class)  # how many of the class score at least as high,
            among = len(ranked) - np.searchsorted(ranked, of_class)  # and how many of all
            precisions[k] = (found / among).mean()
    return precisions


def mean_average_precision(scores, targets):
    """The mean of ``average_precision`` over the classes that any sample has; ValueError where there is none."""
    precisions = average_precision(scores, targets)
    if np.isnan(precisions).all():
        raise ValueError("no sample has any class, so there is nothing to average")
    return float(np.nanmean(precisions))


def confusion_counts(labels, predicted, num_classes):
    """int64 (K, K): how many samples of the class of the row were taken for that of the column.

    Both are integers (N,) in 0 … K-1; ValueError otherwise.
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
    """Share of the maps that lies inside the boxes, (B,): the mean over the S maps of each image.

    maps (B, S, H, W), not negative; boxes (B, 4) as (top, left, bottom, right) in pixels of an image of
    ``image_size`` (height, width), which H and W divide. A map's value is spread evenly over the pixels of its cell; a
    map of zeros counts 0. For clips maps (B, T', S, H, W) and boxes (B, T, M, 4): what lies in any of M boxes, and the
    mean over all frames, those of a tubelet having its maps.
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
    """Mean share of an image's pixels that lie in its boxes: what ``map_mass`` gives for maps that are even."""
    return float(_inside(boxes, image_size).mean())


def _inside(boxes, image_size):
    """Which pixels lie in a box: (B, height, width) for boxes (B, 4), (B, T, height, width) for boxes (B, T, M, 4)."""
    top, left, bottom, right = np.moveaxis(boxes, -1, 0)[..., None]
    y, x = (np.arange(size) for size in image_size)
    inside = ((top <= y) & (y < bottom))[..., :, None] & ((left <= x) & (x < right))[..., None, :]
    return inside if boxes.ndim == 2 else inside.any(2)


def _of_each_frame(maps, frames):
    """Maps (B, T', ...) of tubelets as maps (B, frames, ...)."""
    return maps.repeat(frames // maps.shape[1], axis=1)
