"""Crops and the operations of augmentation policies on a GPU, in one launch for a batch of different operations."""

import cupy
import numpy as np

from .kernels import contiguous, launch

NAMES = "identity crop affine brightness contrast color sharpness posterize solarize autocontrast equalize invert"
NUMBERS = {name: i for i, name in enumerate(NAMES.split())}  # the enum of augment.cu


def transform(images, operations):
    """Return uint8 images (B, H, W, C) after at most one operation on each; nothing waits for the GPU.

    operations  triples (name, indices of n images, amounts). Amounts are integers (n, 3) for crop: down, right,
                mirrored; ``transforms.fixed_point`` of the matrices for affine; else numbers (n,), or None
    """
    B, H, W, C = images.shape
    chosen = np.zeros((B, 7), "int32")
    for name, indices, amounts in operations:
        chosen[indices, 0] = NUMBERS[name]
        if amounts is not None:
            amounts = amounts if amounts.ndim == 2 else amounts.astype("float32").view("int32")[:, None]
            chosen[indices, 1 : 1 + amounts.shape[1]] = amounts
    y = cupy.empty(images.shape, "uint8")
    if y.size:
        launch("augment", B, y, contiguous(images), cupy.asarray(chosen), HEIGHT=H, WIDTH=W, CHANNELS=C)
    return y
