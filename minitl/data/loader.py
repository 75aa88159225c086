"""Batches of a data set, in an order that a generator decides."""

import numpy as np

from ..backend import default_rng
from ..errors import InputError


class Loader:
    """Iterate over ``(images, labels)``: uint8 (B, H, W, C) and int64 (B,), each pass being one epoch.

    shuffle    draw a new order from ``rng`` at the start of each epoch; without it, the data set's own order
    rng        a NumPy generator, minitl's own by default. Its state between two epochs decides everything that
               follows, so a run that saves and restores it sees the same batches
    augment    a function ``(images, rng) -> images``, called for each batch
    drop_last  leave out the last batch when it is not full

    Raises ``InputError`` when there would be no batch.
    """

    def __init__(self, dataset, batch_size, shuffle=False, rng=None, augment=None, drop_last=False):
        if batch_size < 1:
            raise InputError(f"batch_size is at least 1, got {batch_size}")
        self.dataset, self.batch_size, self.shuffle, self.drop_last = dataset, batch_size, shuffle, drop_last
        self.rng, self.augment = default_rng(rng), augment
        if len(self) == 0:
            raise InputError(f"{len(dataset)} images make no batch of {batch_size}; choose a smaller batch_size")

    def __len__(self):
        """The number of batches in an epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self):
        n = len(self.dataset)
        order = self.rng.permutation(n) if self.shuffle else np.arange(n)
        for i in range(len(self)):
            batch = order[i * self.batch_size : (i + 1) * self.batch_size]
            images = self.dataset.images[batch]
            yield (self.augment(images, self.rng) if self.augment else images), self.dataset.labels[batch]
