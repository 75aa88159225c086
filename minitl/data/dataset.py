"""The Dataset that every reader and generator returns: images or clips, their labels and, if known, boxes."""

from dataclasses import dataclass, replace

import numpy as np

from ..backend import describe, is_array, to_device
from ..errors import InputError
from ..nn import DataSpec


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set, all of it in memory; images and labels may be on a GPU, see ``to``.

    images   uint8 (N, H, W, C), or clips (N, T, H, W, C)
    labels   int64 (N,), each an index into ``classes``; or uint8 (N, K), 1 for each class that applies and 0 elsewhere
    classes  names of the K classes
    boxes    int64 (N, 4), or (N, T, M, 4) for clips of up to M objects: (top, left, bottom, right) in pixels, bottom
             and right excluded, all 0 for an object that is absent; None if unknown

    Raises InputError if the arrays do not fit together.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    boxes: np.ndarray | None = None

    def __post_init__(self):
        if not is_array(self.images) or self.images.dtype != np.uint8 or self.images.ndim not in (4, 5):
            raise InputError(
                f"images are a uint8 array (N, H, W, C), or clips (N, T, H, W, C), got {describe(self.images)}"
            )
        n, k = len(self.images), len(self.classes)
        if self.boxes is not None:
            objects = (np.shape(self.boxes)[2:-1][:1] or (1,)) if self.images.ndim == 5 else ()
            _check("boxes", self.boxes, np.int64, (*self.images.shape[:-3], *objects, 4))
        if self.multi_label:
            _check("multi-hot labels", self.labels, np.uint8, (n, k))
            if (self.labels > 1).any():
                raise InputError(f"multi-hot labels are 0 or 1 for every class, got {self.labels.max()}")
        else:
            _check("labels", self.labels, np.int64, (n,))
            wrong = self.labels[(self.labels < 0) | (self.labels >= k)]
            if wrong.size:
                raise InputError(f"label {wrong[0]} is out of range: the labels of {k} classes are 0..{k - 1}")

    @property
    def multi_label(self):
        """True if an image (or clip) may have several labels, or none: ``labels`` is (N, K)."""
        return np.ndim(self.labels) == 2

    @property
    def spec(self):
        """DataSpec of the images or clips: ``nn.ViT(nn.ViTConfig(), dataset.spec)`` fits them."""
        *frames, H, W, C = self.images.shape[1:]
        return DataSpec((H, W), C, len(self.classes), *frames)

    def __len__(self):
        return len(self.images)

    def take(self, indices):
        """Return the images at ``indices`` (any NumPy index along the first axis) as a new Dataset."""
        boxes = None if self.boxes is None else self.boxes[indices]
        return replace(self, images=self.images[indices], labels=self.labels[indices], boxes=boxes)

    def to(self, device):
        """Return the Dataset with its images and labels on ``"cpu"`` or ``"cuda"``, where a Loader indexes them."""
        return replace(self, images=to_device(self.images, device), labels=to_device(self.labels, device))

    def subset(self, n, rng):
        """Return at most ``n`` images, drawn by ``rng`` and balanced over the classes; their order is kept.

        With several labels per image, all images are equally likely. Raises InputError if ``n`` is less than 1.
        """
        return self.take(balanced_indices(self.labels, n, rng))


def balanced_indices(labels, n, rng):
    """Return sorted indices of at most ``n`` labels, drawn by ``rng``, with class counts as equal as possible.

    Labels (N, K) are drawn as if all were of one class.
    """
    if n < 1:
        raise InputError(f"a subset has at least 1 image, got {n}")
    if labels.ndim == 2:
        labels = np.zeros(len(labels), "int64")
    order = rng.permutation(len(labels))
    by_class = np.argsort(labels[order], kind="stable")
    counts = np.bincount(labels)
    rank = np.empty_like(order)  # within its class, in the drawn order
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[np.argsort(rank, kind="stable")[:n]])


def concatenate(parts, n, unit):
    """Return the Datasets ``parts``, of ``n`` images or clips in all, as one.

    On a terminal, a progress bar counts them in ``unit`` if generating them takes more than a second. Raises
    InputError if ``n`` is less than 1.
    """
    from tqdm import tqdm

    if n < 1:
        raise InputError(f"a split has at least 1 image or clip, got {n} {unit}")
    arrays, start = {}, 0
    style = {"unit": f" {unit}", "unit_scale": True, "dynamic_ncols": True, "leave": False, "disable": None}
    with tqdm(desc="generating", total=n, delay=1, **style) as progress:
        for part in parts:
            for name in ("images", "labels", "boxes"):
                x = getattr(part, name)
                if name not in arrays:
                    arrays[name] = np.empty((n, *x.shape[1:]), x.dtype)
                arrays[name][start : start + len(x)] = x
            start += len(part)
            progress.update(len(part))
    return Dataset(**arrays, classes=part.classes)


def _check(name, x, dtype, shape):
    if not is_array(x) or x.dtype != dtype or x.shape != shape:
        raise InputError(f"{name} of these images have dtype {np.dtype(dtype)} and shape {shape}, got {describe(x)}")
