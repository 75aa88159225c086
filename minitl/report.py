"""What a run looks like: learned maps, curves, how much of the maps lies on the object, what backward keeps.

Pictures are matplotlib figures; matplotlib is imported when the first one is drawn.
"""

import numpy as np

from .autograd import Tensor
from .backend import is_array, to_numpy


def map_mass(maps, boxes, image_size):
    """Share of the maps that lies inside the boxes, (B,): the mean over the S maps of each image.

    maps (B, S, H, W), not negative; boxes (B, 4) as (top, left, bottom, right) in pixels of an image of
    ``image_size`` (height, width). A map's value is spread evenly over the pixels of its cell.
    """
    maps = to_numpy(maps)
    _, _, H, W = maps.shape
    rows = _overlap(boxes[:, 0], boxes[:, 2], H, image_size[0] / H)  # (B, H)
    columns = _overlap(boxes[:, 1], boxes[:, 3], W, image_size[1] / W)  # (B, W)
    inside = np.einsum("bshw,bh,bw->bs", maps, rows, columns)
    return (inside / maps.sum((2, 3))).mean(1)


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
    """A figure with one row per image: the image, then each of its S maps laid over it.

    images uint8 (B, H, W, 3); maps (B, S, h, w); boxes (B, 4) or None. In each map white is the largest weight and
    black the smallest; the number above it is the share of the map inside the box, where there is one.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    images, maps = np.asarray(images), to_numpy(maps)
    B, S = maps.shape[:2]
    figure = Figure(figsize=(1.05 * (S + 1), 1.05 * B + 0.35), dpi=110, layout="constrained")
    for b, row in enumerate(np.atleast_2d(figure.subplots(B, S + 1, squeeze=False))):
        for s, axes in enumerate(row):
            axes.set_axis_off()
            if b == 0:
                axes.set_title("image" if s == 0 else f"token {s}", fontsize=8)
            axes.imshow(images[b] if s == 0 else _lit(images[b], maps[b, s - 1]), interpolation="nearest")
            if boxes is not None:
                top, left, bottom, right = boxes[b]
                corner = (left - 0.5, top - 0.5)
                axes.add_patch(
                    Rectangle(corner, right - left, bottom - top, fill=False, edgecolor="white", linewidth=0.8)
                )
    return figure


def _lit(image, weights):
    """The image (H, W, 3), dark where a map (h, w) is small and at full brightness where it is largest."""
    H, W = image.shape[:2]
    low, high = weights.min(), weights.max()
    light = (weights - low) / (high - low) if high > low else np.ones_like(weights)
    light = light.repeat(H // weights.shape[0], 0).repeat(W // weights.shape[1], 1)
    return (image * (0.15 + 0.85 * light[..., None])).astype(np.uint8)


def curves(rows):
    """A figure of loss and accuracy by epoch, from the rows of ``metrics.csv`` (a list of dicts of numbers)."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(8, 3), dpi=110, layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, style in (("train", "--"), ("test", "-")):
            values = [row[f"{split}_{name}"] for row in rows]
            axes.plot([row["epoch"] for row in rows], values, style, marker=".", color="tab:blue", label=split)
        axes.set_xlabel("epoch")
        axes.set_title(name, fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylim(0, 1)
    axes.legend(frameon=False)
    return figure


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


def _held(pullback):
    """The arrays that a pullback names, and those that a function inside it names."""
    for cell in pullback.__closure__ or ():
        if is_array(cell.cell_contents):
            yield cell.cell_contents
        elif callable(cell.cell_contents) and getattr(cell.cell_contents, "__closure__", None):
            yield from _held(cell.cell_contents)


def _owner(array):
    while getattr(array, "base", None) is not None and is_array(array.base):
        array = array.base
    return array
