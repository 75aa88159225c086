"""Batches of a data set, in a seeded order."""

import numpy as np

from ..backend import array_module, default_rng
from ..errors import InputError


class Loader:
    """Iterate over batches ``(images, labels)`` of a Dataset, on the device of its arrays; each pass is one epoch.

    shuffle  draw a new order from ``rng`` at the start of each epoch; otherwise keep the order of the data set
    rng      a NumPy generator, by default minitl's own. Its state between two epochs determines all later batches,
             so a run that saves and restores it sees the same ones

    Raises InputError if ``batch_size`` is less than 1 or the data set is empty.
    """

    def __init__(self, dataset, batch_size, shuffle=False, rng=None):
        if batch_size < 1:
            raise InputError(f"batch_size is at least 1, got {batch_size}")
        if not len(dataset):
            raise InputError("the data set has no images, so there are no batches")
        self.dataset, self.batch_size, self.shuffle, self.rng = dataset, batch_size, shuffle, default_rng(rng)

    def __len__(self):
        """Return the number of batches in an epoch; the last one may be smaller."""
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self):
        n = len(self.dataset)
        order = self.rng.permutation(n) if self.shuffle else np.arange(n)
        order = array_module(self.dataset.images).asarray(order)  # on a GPU, no image passes through the host
        for start in range(0, n, self.batch_size):
            batch = order[start : start + self.batch_size]
            yield self.dataset.images[batch], self.dataset.labels[batch]
