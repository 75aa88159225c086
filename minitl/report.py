"""What a run looks like: learned maps, curves, how much of the maps lies on the object, what backward keeps.

Pictures are matplotlib figures; matplotlib is imported when the first one is drawn.
"""

import io

import numpy as np

from .autograd import Tensor
from .backend import is_array, to_numpy


def map_mass(maps, boxes, image_size):
    """Share of the maps that lies inside the boxes, (B,): the mean over the S maps of each image.

    maps (B, S, H, W), not negative; boxes (B, 4) as (top, left, bottom, right) in pixels of an image of
    ``image_size`` (height, width). A map's value is spread evenly over the pixels of its cell; a map of zeros counts 0.
    """
    maps = to_numpy(maps)
    _, _, H, W = maps.shape
    rows = _overlap(boxes[:, 0], boxes[:, 2], H, image_size[0] / H)  # (B, H)
    columns = _overlap(boxes[:, 1], boxes[:, 3], W, image_size[1] / W)  # (B, W)
    inside = np.einsum("bshw,bh,bw->bs", maps, rows, columns)
    total = maps.sum((2, 3))
    return (inside / np.maximum(total, np.finfo(total.dtype).tiny)).mean(1)


def box_share(boxes, image_size):
    """Mean share of an image's pixels that lie in its box: what ``map_mass`` gives for maps that are even."""
    height, width = image_size
    return float(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).mean() / (height * width))


def _overlap(start, end, cells, size):
    """The share of each of ``cells`` intervals of length ``size`` that lies between start and end, (B, cells)."""
    edges = np.arange(cells) * size
    shared = np.minimum(end[:, None], edges + size) - np.maximum(start[:, None], edges)
    return shared.clip(0) / size


def show_maps(images, maps, boxes=None):
    """A figure with one row per image: the image, then the maps over it, bright where a map is large.

    images uint8 (B, H, W, C) with C 1 or 3; maps (B, S, h, w), each spread over its own smallest and largest value;
    boxes (B, 4) in pixels as for ``map_mass``, or None. Of more than 16 maps the first 16 are shown.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    images, maps = np.asarray(images), to_numpy(maps)
    if images.ndim != 4 or images.shape[3] not in (1, 3) or maps.ndim != 4 or len(maps) != len(images):
        raise ValueError(f"needs images (B, H, W, 1 or 3) and maps (B, S, h, w), got {images.shape} and {maps.shape}")
    (B, H, W, _), S = images.shape, min(maps.shape[1], 16)
    height = 1.05 * H / W  # of a picture in inches; all are as wide as the word above them
    figure = Figure(figsize=(1.05 * (S + 1), height * B + 0.3), dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    for b, row in enumerate(figure.subplots(B, S + 1, squeeze=False)):
        for s, axes in enumerate(row):
            axes.set_axis_off()
            if b == 0:
                axes.set_title(f"token {s}" if s else "image", fontsize=8)
            picture = _lit(images[b], maps[b, s - 1]) if s else images[b]
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            if boxes is not None:
                top, left, bottom, right = boxes[b]
                corner = (left - 0.5, top - 0.5)
                frame = Rectangle(corner, right - left, bottom - top, fill=False, edgecolor="white", linewidth=0.8)
                axes.add_patch(frame)
    return figure


def _lit(image, weights):
    """The image (H, W, C), at full brightness where a map (h, w) is largest and at a quarter of it where smallest."""
    H, W, _ = image.shape
    low, high = weights.min(), weights.max()
    light = (weights - low) / (high - low) if high > low else np.ones_like(weights)
    light = light.repeat(H // weights.shape[0], 0).repeat(W // weights.shape[1], 1)
    return (image * (0.25 + 0.75 * light[..., None])).astype(np.uint8)


def curves(rows):
    """A figure of loss and accuracy by epoch, from the rows of ``metrics.csv`` (a list of dicts of numbers)."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(8, 3), dpi=110, layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, style, face in (("train", "o--", "white"), ("test", "o-", "tab:blue")):
            values = [row[f"{split}_{name}"] for row in rows]
            axes.plot(epochs, values, style, color="tab:blue", markersize=4, markerfacecolor=face, label=split)
        axes.set_xlabel("epoch")
        axes.set_title(name, fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    losses, accuracies = figure.axes
    losses.set_ylim(0, 1.05 * losses.dataLim.ymax or 1)
    accuracies.set_ylim(0, 1.02)
    accuracies.yaxis.set_major_formatter(PercentFormatter(1))
    losses.legend(frameon=False)
    return figure


def png(figure):
    """The PNG file of a figure, as bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def saved_bytes(loss):
    """What the graph of the Tensor ``loss`` keeps for its backward: ``{op name: bytes}``, largest first.

    An array is counted once, at the newest op that holds it, and a view as the whole array behind it. Parameters and
    other leaves exist anyway and are left out.
    """
    waiting, nodes, leaves = [loss.node], set(), set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, Tensor):
            leaves.add(id(_owner(node.data)))
        elif node is not None and node not in nodes:
            nodes.add(node)
            waiting.extend(node.parents)
    seen, sizes = set(leaves), {}
    for node in sorted(nodes, key=lambda node: -node.order):
        held = {id(array): array for array in map(_owner, _held(node.pullback))}
        new = [array.nbytes for key, array in held.items() if key not in seen]
        seen |= held.keys()
        sizes[node.name] = sizes.get(node.name, 0) + sum(new)
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _held(kept):
    """The arrays that a pullback names, directly, in a list, or by a function that it names."""
    if is_array(kept):
        yield kept
    elif isinstance(kept, tuple | list):
        for item in kept:
            yield from _held(item)
    else:
        for cell in getattr(kept, "__closure__", None) or ():
            yield from _held(cell.cell_contents)


def _owner(array):
    while getattr(array, "base", None) is not None and is_array(array.base):
        array = array.base
    return array
