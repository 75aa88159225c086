"""Figures of a run: maps, curves, confusion matrices.

They are matplotlib figures; matplotlib is imported when the first one is drawn.
"""

import io
import warnings

import numpy as np

from ..backend import to_numpy

MOST_MAPS = 16  # tokens, or frames, in one figure
MOST_CLASSES = 20  # in one figure


def show_maps(images, maps, boxes=None, rows=None):
    """Return a figure with one row per image: the image, then the maps over it, bright where a map is large.

    images  uint8 (B, H, W, C) with C 1 or 3, or a list of images of different sizes
    maps    (B, S, h, w), each scaled to its own range; only the first 16 are shown
    boxes   (B, 4) in pixels as for ``map_mass``, or None
    rows    B labels, or None
    """
    maps, shapes = to_numpy(maps), [np.shape(image) for image in images]
    if {len(shape) for shape in shapes} != {3} or maps.ndim != 4 or len(maps) != len(images):
        raise ValueError(f"needs images (B, H, W, C) and maps (B, S, h, w), got {shapes} and {maps.shape}")
    stages = {f"token {s + 1}": maps[:, s] for s in range(min(maps.shape[1], MOST_MAPS))}
    return show_stages(images, stages, boxes, rows)


def show_stages(images, stages, boxes=None, rows=None):
    """Return a figure like ``show_maps`` for maps of any size, ``stages`` = {title: maps (B, h, w)}."""
    pictures = [[image, *(_brightened(image, maps[b]) for maps in stages.values())] for b, image in enumerate(images)]
    boxes = None if boxes is None else [[box] * (1 + len(stages)) for box in boxes]
    return _grid(pictures, boxes, ["image", *stages], rows)


def show_clip_maps(clips, maps, boxes=None):
    """Return a figure with a film strip per clip: its frames side by side, and below them a row for each token.

    clips   uint8 (B, T, H, W, C) with C 1 or 3
    maps    (B, T', S, h, w), each shown on all frames of its tubelet; those of a token are scaled to their range in
            the whole clip, to show when it looks at nothing
    boxes   (B, T, M, 4), or None

    Only the first 16 tokens and frames are shown.
    """
    maps = to_numpy(maps)
    if np.ndim(clips) != 5 or maps.ndim != 5 or len(maps) != len(clips):
        raise ValueError(f"needs clips (B, T, H, W, C) and maps (B, T', S, h, w), got {np.shape(clips)}, {maps.shape}")
    stages = {f"token {s + 1}": maps[:, :, s] for s in range(min(maps.shape[2], MOST_MAPS))}
    return show_clip_stages(clips, stages, boxes)


def show_clip_stages(clips, stages, boxes=None):
    """Return a figure like ``show_clip_maps`` for maps of any size, ``stages`` = {title: maps (B, T', h, w)}."""
    T, pictures = min(clips.shape[1], MOST_MAPS), []
    for b, clip in enumerate(clips):
        pictures.append(list(clip[:T]))
        for maps in stages.values():
            frames = maps[b].repeat(clips.shape[1] // maps.shape[1], axis=0)  # the map of a tubelet for each frame
            pictures.append([_brightened(clip[t], frames[t], frames.min(), frames.max()) for t in range(T)])
    boxes = None if boxes is None else np.repeat(boxes[:, :T], 1 + len(stages), axis=0)
    return _grid(pictures, boxes, [f"frame {t + 1}" for t in range(T)], ["clip", *stages] * len(clips))


def _grid(pictures, boxes, columns, rows=None):
    """Return a figure of pictures (H, W, C) in rows and columns, each with its box (4,) or boxes (M, 4), or none."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    H, W, C = pictures[0][0].shape
    if C not in (1, 3):
        raise ValueError(f"needs pictures with 1 or 3 color channels, got {C}")
    height = 1.05 * H / W  # of a picture in inches; its width leaves room for the title
    figure = Figure(figsize=(1.05 * len(columns), height * len(pictures) + 0.3), dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    for i, line in enumerate(figure.subplots(len(pictures), len(columns), squeeze=False)):
        for j, axes in enumerate(line):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if i == 0:
                axes.set_title(columns[j], fontsize=8)
            if j == 0 and rows:
                axes.set_ylabel(rows[i], fontsize=8)
            axes.imshow(pictures[i][j], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            mine = () if boxes is None else np.reshape(boxes[i][j], (-1, 4))
            for top, left, bottom, right in (box for box in mine if box.any()):
                corner = (left - 0.5, top - 0.5)
                frame = Rectangle(corner, right - left, bottom - top, fill=False, edgecolor="white", linewidth=0.8)
                axes.add_patch(frame)
    return figure


def _brightened(image, weights, low=None, high=None):
    """Return the image (H, W, C) at full brightness where a map (h, w) is ``high``, and a quarter of it where ``low``.

    By default these are the largest and smallest value of the map.
    """
    H, W, _ = image.shape
    low, high = weights.min() if low is None else low, weights.max() if high is None else high
    light = (weights - low) / (high - low) if high > low else np.ones_like(weights)
    light = light.repeat(H // weights.shape[0], 0).repeat(W // weights.shape[1], 1)
    return (image * (0.25 + 0.75 * light[..., None])).astype(np.uint8)


def accuracy_against_cost(rows, score="accuracy"):
    """Return a figure of the accuracy of models against their cost, one point per row.

    Rows are dicts of ``name``, ``macs`` (multiply-adds of one image or clip), ``accuracy`` from 0 to 1 (labeled
    ``score``), and for a mean over several seeds ``spread``, drawn as an error bar.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(6, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for row in rows:
        x, y = row["macs"] / 1e6, row["accuracy"]
        axes.errorbar(x, y, yerr=row.get("spread"), fmt="o", color="tab:blue", markersize=5, capsize=3)
    axes.set_xlabel("million multiply-adds")
    axes.set_xlim(0, 1.2 * axes.dataLim.xmax)  # room for the names
    axes.set_ylabel(score)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    _name_points(axes, [(row["name"], row["macs"] / 1e6, row["accuracy"], row.get("spread", 0)) for row in rows])
    return figure


def _name_points(axes, points):
    """Label points (name, x, y, spread) where names overlap least; a line leads to names that are further away."""
    axes.figure.draw_without_rendering()  # pixels are known from here on
    where = axes.transData.transform
    bars = np.array([where([(x, y - spread), (x, y + spread)]).ravel() for _, x, y, spread in points])
    taken, frame = bars + np.array([-4, -4, 4, 4]), axes.bbox.extents  # left, bottom, right, top of each
    places = np.array([(side * gap, up) for gap in (9, 36, 63) for up in range(-150, 151, 3) for side in (1, -1)])
    places = places[np.hypot(*places.T).argsort(kind="stable")]  # the nearest first
    style = {"fontsize": 8, "va": "center", "textcoords": "offset pixels", "in_layout": False}
    for name, x, y, _ in sorted(points, key=lambda point: point[2]):
        note = axes.annotate(name, (x, y), (0, 0), **style)
        size = note.get_window_extent().size
        corners = where((x, y)) + places - size * np.stack([places[:, 0] < 0, np.full(len(places), 0.5)], 1)
        boxes = np.hstack([corners, corners + size])
        covers = ((boxes[:, None, :2] < taken[:, 2:]) & (boxes[:, None, 2:] > taken[:, :2])).all(2).sum(1)
        outside = ((boxes[:, :2] < frame[:2]) | (boxes[:, 2:] > frame[2:])).any(1)
        best = (covers + len(taken) * outside).argmin()
        note.set(position=places[best], ha="left" if places[best][0] > 0 else "right")
        if np.hypot(*places[best]) > 12:
            line = {"arrowstyle": "-", "linewidth": 0.5, "color": "gray", "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (x, y), places[best], textcoords="offset pixels", arrowprops=line, in_layout=False)
        taken = np.vstack([taken, boxes[best]])


def confusion(counts, classes):
    """Return a figure of a confusion matrix: the share of each predicted class in percent, one row per true class.

    counts (K, K) are those of ``metrics.confusion_counts``; a class without images has an empty row. Of more than 20
    classes, only the 20 that are confused most often are shown.
    """
    from matplotlib.figure import Figure

    counts, K = np.asarray(counts), len(classes)
    if counts.shape != (K, K):
        raise ValueError(f"needs counts ({K}, {K}) of {K} classes, got {counts.shape}")
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    title = f"{np.trace(counts) / max(counts.sum(), 1):.1%} of {counts.sum():,} images are right; rows in percent"
    if K > MOST_CLASSES:
        title += f"\nthe {MOST_CLASSES} of {K} classes that are confused most often"
        shown = _most_confused(counts, MOST_CLASSES)
        shares, classes, K = shares[np.ix_(shown, shown)], [classes[k] for k in shown], MOST_CLASSES
    side = max(4, 2 + 0.42 * K)
    figure = Figure(figsize=(side, side), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    names = [name if len(name) <= 24 else f"{name[:12]}…{name[-11:]}" for name in classes]  # either end may differ
    plain = {"fontsize": 8, "parse_math": False}  # a class may be called $x$
    axes.set_xticks(range(K), names, rotation=45, ha="right", rotation_mode="anchor", **plain)
    axes.set_yticks(range(K), names, **plain)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    figure.suptitle(title, fontsize=9)  # wide names may leave a narrow picture
    axes.spines[:].set_visible(False)
    for i, j in np.argwhere(shares):
        text = f"{shares[i, j]:.0f}" if shares[i, j] >= 1 else "<1"
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if shares[i, j] > 55 else "black")
    return figure


def _most_confused(counts, n):
    """Return the sorted indices of the ``n`` classes in the pairs that are confused most often."""
    wrong = counts * (1 - np.eye(len(counts), dtype=int))
    pairs = np.argsort(-wrong, axis=None, kind="stable")[: n * n]  # more than n classes have
    return sorted(list(dict.fromkeys(k for pair in pairs for k in divmod(pair, len(counts))))[:n])


def curves(rows, score="accuracy"):
    """Return a figure of loss and accuracy by epoch, from the rows of ``metrics.csv`` (a list of dicts of numbers).

    ``score`` is the name of the accuracy.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(8, 3), dpi=110, layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, style, face in (("train", "o--", "white"), ("test", "o-", "tab:blue")):
            values = [row[f"{split}_{name}"] for row in rows]
            axes.plot(epochs, values, style, color="tab:blue", markersize=4, markerfacecolor=face, label=split)
        axes.set_xlabel("epoch")
        axes.set_title(score if name == "accuracy" else name, fontsize=10)
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
    """Return a figure as the bytes of a PNG file. Characters that the font lacks are drawn as boxes."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(file, format="png")
    return file.getvalue()
