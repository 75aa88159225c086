"""The operations of augmentation policies, with an amount for each image: warps, lookup tables and blends.

Images are uint8 NumPy arrays (B, H, W, C) with 1 or 3 channels; an amount is one number per image, (B,), or one for
all. Each function returns a new array, equal bit for bit to what Pillow returns for each image, and to what the kernel
in ``fast/cuda/augment.cu`` computes on a GPU. Other arrays raise TypeError.
"""

import numpy as np

from ..backend import describe, is_array

# --- warps: one gather, whatever the matrix ---


def affine(images, matrix):
    """Warp images: pixel (x, y) of the result is the nearest pixel to ``matrix`` (x, y, 1), or 0 beyond the border.

    matrix  (B, 3, 3), or (1, 3, 3) for all images, from ``shear``, ``translation``, ``rotation``, or a product of
            them: several warps then cost one gather, and the image is sampled once. The left factor is applied first

    Coordinates have 16 binary digits after the point, as in Pillow.
    """
    expect_1_or_3_channels(images)
    if matrix.shape not in ((len(images), 3, 3), (1, 3, 3)):
        raise ValueError(f"the matrices for these images are ({len(images)}, 3, 3), got {describe(matrix)}")
    B, H, W, C = images.shape
    a, b, c, d, e, f = fixed_point(matrix).T[:, :, None, None]
    x, y = np.arange(W), np.arange(H)[:, None]
    column = (a * x + c) + b * y >> 16  # (B, H, W): the source of each pixel
    row = (d * x + f) + e * y >> 16
    inside = (column >= 0) & (column < W) & (row >= 0) & (row < H)
    source = (row + H * np.arange(B)[:, None, None]) * W + column
    pixels = np.concatenate([images.reshape(-1, C), np.zeros((1, C), "uint8")])
    return pixels.take(np.where(inside, source, len(pixels) - 1), axis=0)


def fixed_point(matrix):
    """Return the upper two rows in units of 2⁻¹⁶ pixels, int64 (B, 6), for pixels with centers at n + 1/2."""
    rows = matrix[:, :2].astype("float64")
    rows[:, :, 2] = rows[:, :, 2] + 0.5 * rows[:, :, 0] + 0.5 * rows[:, :, 1]
    return np.floor(65536 * rows + 0.5).astype("int64").reshape(-1, 6)


def shear(x, y):
    """Return matrices that move each row to the left by ``x`` times its y, and each column up by ``y`` times its x."""
    return _matrix(1, x, 0, y, 1, 0)


def translation(x, y):
    """Return matrices that shift images to the right by ``x`` and down by ``y`` pixels, whole numbers."""
    return _matrix(1, 0, np.negative(x), 0, 1, np.negative(y))


def rotation(degrees, height, width):
    """Return matrices that rotate images of this size counter-clockwise about their center."""
    angle = np.radians(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = width / 2, height / 2
    return _matrix(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def _matrix(*entries):
    """Return matrices (B, 3, 3) from the entries of the upper two rows, each a number or (B,)."""
    entries = np.broadcast_arrays(*(np.atleast_1d(entry) for entry in entries), 0.0, 0.0, 1.0)
    return np.stack(entries, axis=-1).reshape(-1, 3, 3)


# --- lookup tables: the new value for each of the 256 values, per image and channel ---

VALUES = np.arange(256, dtype="uint8")


def lookup(images, table):
    """Replace each value by its entry in ``table``, uint8 (B, C, 256), or (B, 1, 256) for all channels."""
    expect_1_or_3_channels(images)
    table = np.broadcast_to(table, (len(images), images.shape[-1], 256))
    return table.ravel().take(_table_index(images)).reshape(images.shape)


def _table_index(images):
    """Return the index of each value's entry in a flattened table (B, C, 256): int64 (B, H, W C)."""
    B, H, W, C = images.shape
    return images.reshape(B, H, W * C) + np.tile(256 * np.arange(B * C).reshape(B, 1, C), W)


def brightness(images, factor):
    """Change the brightness: a factor of 0 gives black, 1 the image itself, more than 1 a brighter image."""
    return lookup(images, _blend(0, VALUES, _amount(images, factor)))


def contrast(images, factor):
    """Change the contrast: a factor of 0 gives the image's mean gray, 1 the image itself, more than 1 more contrast."""
    factor = _amount(images, factor)
    count = images.shape[1] * images.shape[2]
    mean = (2 * _gray(images).sum((1, 2), dtype="int64") + count) // (2 * count)  # rounded, halves up: (B, 1)
    return lookup(images, _blend(mean.astype("uint8")[..., None], VALUES, factor))


def posterize(images, bits):
    """Keep the upper ``bits`` of the 8 bits of each value, and clear the others."""
    unit = 2 ** (8 - _amount(images, bits, "int32"))
    return lookup(images, (VALUES // unit * unit).astype("uint8"))


def solarize(images, threshold):
    """Invert the values that are at least ``threshold``."""
    inverted = _amount(images, threshold, "float64") <= VALUES
    return lookup(images, np.where(inverted, 255 - VALUES, VALUES))


def invert(images):
    """Return 255 - x."""
    expect_1_or_3_channels(images)
    return 255 - images


def autocontrast(images):
    """Stretch the values of each channel to the range of 0 to 255."""
    expect_1_or_3_channels(images)
    low, high = images.min(1).min(1), images.max(1).max(1)  # (B, C); one axis at a time is faster
    low, high = low.astype("int64")[..., None], high.astype("int64")[..., None]
    scale = 255 / np.maximum(high - low, 1)
    stretched = (VALUES * scale + -low * scale).clip(0, 255).astype("uint8")
    return lookup(images, np.where(high > low, stretched, VALUES))


def equalize(images):
    """Equalize the histogram of each channel."""
    expect_1_or_3_channels(images)
    B, H, W, C = images.shape
    counts = np.bincount(_table_index(images).ravel(), minlength=B * C * 256).reshape(B, C, 256)
    total = counts.cumsum(-1)
    below_last = np.where(total < H * W, total, 0).max(-1, keepdims=True)  # pixels below the largest value
    step = below_last // 255
    spread = (total - counts + step // 2) // np.maximum(step, 1)
    return lookup(images, np.where(step > 0, spread.clip(0, 255), VALUES).astype("uint8"))


# --- blends of the image with another one ---


def color(images, factor):
    """Change the saturation: a factor of 0 gives a gray image, 1 the image itself, more than 1 stronger colors."""
    expect_1_or_3_channels(images)
    gray = _gray(images).repeat(images.shape[-1], axis=-1)
    return _blend(gray, images, _amount(images, factor)[..., None])


def sharpness(images, factor):
    """Change the sharpness: a factor of 0 gives a smoothed image, 1 the image itself, more than 1 a sharper image.

    A smoothed pixel is the mean of its 3 x 3 neighborhood, with itself counted five times. The border is unchanged.
    """
    expect_1_or_3_channels(images)
    B, H, W, C = images.shape
    smooth = images.reshape(B, H, W * C).copy()
    x = smooth.astype("uint16")
    sums = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    sums = sums[..., : -2 * C] + sums[..., C:-C] + sums[..., 2 * C :]
    sums += 4 * x[:, 1:-1, C:-C]
    smooth[:, 1:-1, C:-C] = (sums + 6) // 13  # rounded; halves do not occur
    return _blend(smooth.reshape(images.shape), images, _amount(images, factor)[..., None])


def _blend(base, images, factor):
    """Return base + factor (images - base), clipped to 0 … 255; each step in float32, as in Pillow."""
    mixed = images.astype("float32") - base
    mixed = mixed * factor + base
    return mixed.clip(0, 255).astype("uint8")


def _gray(images):
    """Return the luma, uint8 (B, H, W, 1)."""
    if images.shape[-1] == 1:
        return images
    red, green, blue = (images[..., i : i + 1].astype("int32") for i in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 2**15 >> 16).astype("uint8")


def _amount(images, amount, dtype="float32"):
    """Return the amount for each image, (B, 1, 1)."""
    expect_1_or_3_channels(images)
    return np.broadcast_to(np.asarray(amount, dtype), (len(images),))[:, None, None]


def expect_1_or_3_channels(images):
    if not is_array(images) or images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        raise TypeError(f"expected uint8 images (B, H, W, C) with 1 or 3 channels, got {describe(images)}")
