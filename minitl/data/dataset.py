"""What every reader and generator of this package returns: images, labels, class names and, if known, boxes."""

from dataclasses import dataclass, replace

import numpy as np

from ..backend import InputError, describe


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set, whole in memory.

    images   uint8 (N, H, W, C)
    labels   int64 (N,), each an index into ``classes``
    classes  the names of the K classes
    boxes    int64 (N, 4) as (top, left, bottom, right) in pixels, bottom and right excluded; None when not known

    Raises ``InputError`` when the parts do not fit together.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    boxes: np.ndarray | None = None

    def __post_init__(self):
        if not isinstance(self.images, np.ndarray) or self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise InputError(f"images are a uint8 array (N, H, W, C), got {describe(self.images)}")
        n = len(self.images)
        _check("labels", self.labels, (n,))
        if self.boxes is not None:
            _check("boxes", self.boxes, (n, 4))
        wrong = self.labels[(self.labels < 0) | (self.labels >= len(self.classes))]
        if wrong.size:
            last = len(self.classes) - 1
            raise InputError(f"label {wrong[0]} is out of range: the labels of {last + 1} classes are 0..{last}")

    def __len__(self):
        return len(self.images)

    def take(self, indices):
        """The images at ``indices`` (any NumPy index along the first axis) as a new Dataset."""
        boxes = None if self.boxes is None else self.boxes[indices]
        return replace(self, images=self.images[indices], labels=self.labels[indices], boxes=boxes)

    def subset(self, n, rng):
        """At most ``n`` images drawn by ``rng``, as equally many of each class as there are; their order is kept."""
        return self.take(balanced(self.labels, n, rng))


def balanced(labels, n, rng):
    """Sorted indices of at most ``n`` labels, drawn by ``rng`` so that the classes are as equal as can be."""
    if n < 1:
        raise InputError(f"a subset has at least 1 image, got {n}")
    order = rng.permutation(len(labels))
    by_class = np.argsort(labels[order], kind="stable")
    counts = np.bincount(labels)
    rank = np.empty_like(order)  # the how-manieth of its class each image is, in the drawn order
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[np.argsort(rank, kind="stable")[:n]])


def _check(name, x, shape):
    if not isinstance(x, np.ndarray) or x.dtype != np.int64 or x.shape != shape:
        raise InputError(f"{name} of these images are an int64 array {shape}, got {describe(x)}")
