"""What augmentation policies do to images, each image by its own amount: warps, tables and blends.

Images are uint8 (B, H, W, C) with 1 or 3 channels, on NumPy or CuPy; an amount is one number for each image, (B,), or
one for all. Each function returns a new array, which is what Pillow makes of the images one by one, bit for bit.
No shape depends on a value and nothing waits for the GPU, as a captured graph needs it; amounts may lie there too.
"""

import numpy as np

from ..backend import array_module, describe, is_array

# --- warps: one gather, whatever the matrix ---


def affine(images, matrix, fill=0):
    """Pixel (x, y) of the result has the value at ``matrix`` (x, y, 1) of the image, or ``fill`` beyond its border.

    matrix  (B, 3, 3), or (1, 3, 3) for all images, from ``shear``, ``translation``, ``rotation``, or a product of them:
            several warps cost one gather, and the image is sampled once. The left factor is the one done first

    The nearest pixel is taken. Coordinates have 16 binary digits after the point, as in Pillow.
    """
    _expect_uint8(images)
    xp = array_module(images)
    if matrix.shape not in ((len(images), 3, 3), (1, 3, 3)):
        raise ValueError(f"the matrices of these images are ({len(images)}, 3, 3), got {describe(matrix)}")
    B, H, W, C = images.shape
    (a, b, c), (d, e, f) = _fixed(xp.asarray(matrix))
    x, y = xp.arange(W), xp.arange(H)[:, None]
    column = (a * x + c) + b * y >> 16  # (B, H, W): where each pixel comes from
    row = (d * x + f) + e * y >> 16
    inside = (column >= 0) & (column < W) & (row >= 0) & (row < H)
    place = (row + H * xp.arange(B)[:, None, None]) * W + column
    pixels = xp.concatenate([images.reshape(-1, C), xp.full((1, C), fill, "uint8")])
    return pixels.take(xp.where(inside, place, len(pixels) - 1), axis=0)


def _fixed(matrix):
    """The upper two rows in units of 2⁻¹⁶ pixel, int64 (2, 3, B, 1, 1); pixel n has its centre at n + 1/2."""
    xp = array_module(matrix)
    rows = matrix[:, :2].astype("float64")
    rows[:, :, 2] = rows[:, :, 2] + 0.5 * rows[:, :, 0] + 0.5 * rows[:, :, 1]
    return xp.floor(65536 * rows + 0.5).astype("int64").transpose(1, 2, 0)[..., None, None]


def shear(x, y):
    """Matrices that move each row to the left by ``x`` times its y, and each column up by ``y`` times its x."""
    return _matrix(1, x, 0, y, 1, 0)


def translation(x, y):
    """Matrices that shift images to the right and down, by whole numbers of pixels."""
    return _matrix(1, 0, np.negative(x), 0, 1, np.negative(y))


def rotation(degrees, height, width):
    """Matrices that turn images of this size counter-clockwise about their centre."""
    angle = np.radians(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = width / 2, height / 2
    return _matrix(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def _matrix(*entries):
    """(B, 3, 3) of its upper two rows, each entry a number or (B,)."""
    entries = np.broadcast_arrays(*(np.atleast_1d(entry) for entry in entries), 0.0, 0.0, 1.0)
    return np.stack(entries, axis=-1).reshape(-1, 3, 3)


# --- tables: what becomes of each of the 256 values, for each image and channel ---


def lookup(images, table):
    """Each value replaced by its entry in ``table``, uint8 (B, C, 256), or (B, 1, 256) for all channels alike."""
    _expect_uint8(images)
    xp = array_module(images)
    table = xp.broadcast_to(table, (len(images), images.shape[-1], 256))
    return table.ravel().take(_places(images)).reshape(images.shape)


def _places(images):
    """Where each value has its entry in a flat table (B, C, 256): int64 (B, H, W C)."""
    xp = array_module(images)
    B, H, W, C = images.shape
    return images.reshape(B, H, W * C) + xp.tile(256 * xp.arange(B * C).reshape(B, 1, C), W)


def brightness(images, factor):
    """0 is black, 1 the image itself; above 1 it is brighter."""
    return lookup(images, _blend(0, _values(images), _amount(images, factor)))


def contrast(images, factor):
    """0 is the mean grey of the image, 1 the image itself; above 1 it has more contrast."""
    factor = _amount(images, factor)
    count = images.shape[1] * images.shape[2]
    mean = (2 * _grey(images).sum((1, 2), dtype="int64") + count) // (2 * count)  # rounded, halves up: (B, 1)
    return lookup(images, _blend(mean.astype("uint8")[..., None], _values(images), factor))


def posterize(images, bits):
    """Keep the upper ``bits`` of the 8 bits of each value."""
    unit = 2 ** (8 - _amount(images, bits, "int32"))
    return lookup(images, (_values(images) // unit * unit).astype("uint8"))


def solarize(images, threshold):
    """Invert the values from ``threshold`` on."""
    values = _values(images)
    inverted = values >= _amount(images, threshold, "float64")
    return lookup(images, array_module(images).where(inverted, 255 - values, values))


def invert(images):
    """255 - x."""
    _expect_uint8(images)
    return 255 - images


def autocontrast(images):
    """Stretch the values of each channel over 0 to 255."""
    _expect_uint8(images)
    xp = array_module(images)
    low, high = images.min(1).min(1), images.max(1).max(1)  # (B, C); fast because one axis at a time
    low, high = low.astype("int64")[..., None], high.astype("int64")[..., None]
    scale = 255 / xp.maximum(high - low, 1)
    stretched = (_values(images) * scale + -low * scale).clip(0, 255).astype("uint8")
    return lookup(images, xp.where(high > low, stretched, _values(images)))


def equalize(images):
    """Spread the values of each channel so that all are about equally frequent."""
    _expect_uint8(images)
    xp = array_module(images)
    B, H, W, C = images.shape
    counts = xp.zeros(B * C * 256, "int32")  # CuPy cannot add.at to int64
    xp.add.at(counts, _places(images).ravel(), 1)
    counts = counts.reshape(B, C, 256)
    upto = counts.cumsum(-1)
    below_last = xp.where(upto < H * W, upto, 0).max(-1, keepdims=True)  # pixels of all but the largest value
    step = below_last // 255
    spread = (upto - counts + step // 2) // xp.maximum(step, 1)
    return lookup(images, xp.where(step > 0, spread.clip(0, 255), _values(images)).astype("uint8"))


def _values(images):
    return array_module(images).arange(256, dtype="uint8")


# --- blends of the image with another one ---


def color(images, factor):
    """0 is a grey image, 1 the image itself; above 1 its colours are stronger."""
    _expect_uint8(images)
    grey = _grey(images).repeat(images.shape[-1], axis=-1)
    return _blend(grey, images, _amount(images, factor)[..., None])


def sharpness(images, factor):
    """0 is a smoothed image, 1 the image itself; above 1 it is sharper. The border stays as it is.

    To smooth is to take the mean of the 3 x 3 pixels, of which that in the middle counts five times.
    """
    _expect_uint8(images)
    B, H, W, C = images.shape
    smooth = images.reshape(B, H, W * C).copy()
    x = smooth.astype("uint16")
    sums = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    sums = sums[..., : -2 * C] + sums[..., C:-C] + sums[..., 2 * C :]
    sums += 4 * x[:, 1:-1, C:-C]
    smooth[:, 1:-1, C:-C] = (sums + 6) // 13  # rounded: there are no halves
    return _blend(smooth.reshape(images.shape), images, _amount(images, factor)[..., None])


def _blend(base, images, factor):
    """base + factor (images - base), cut off to 0 ... 255; in float32 step by step, as Pillow computes it."""
    mixed = images.astype("float32") - base
    mixed = mixed * factor + base
    return mixed.clip(0, 255).astype("uint8")


def _grey(images):
    """Luma, uint8 (B, H, W, 1)."""
    if images.shape[-1] == 1:
        return images
    red, green, blue = (images[..., i : i + 1].astype("int32") for i in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 2**15 >> 16).astype("uint8")


def _amount(images, amount, dtype="float32"):
    """The amount of each image as (B, 1, 1)."""
    _expect_uint8(images)
    xp = array_module(images)
    return xp.broadcast_to(xp.asarray(amount, dtype), (len(images),))[:, None, None]


def _expect_uint8(images):
    if not is_array(images) or images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        raise TypeError(f"expected uint8 images (B, H, W, C) with 1 or 3 channels, got {describe(images)}")
