"""Pictures of a run: maps, curves, confusions.

Pictures are matplotlib figures; matplotlib is imported when the first one is drawn.
"""

import io
import warnings

import numpy as np

from ..backend import to_numpy

MOST = 16  # tokens and frames in one picture
CLASSES = 20  # in one picture


def show_maps(images, maps, boxes=None, rows=None):
    """A figure with one row per image: the image, then the maps over it, bright where a map is large.

    images uint8 (B, H, W, C) with C 1 or 3, or a list of images whose sizes may differ; maps (B, S, h, w), each spread
    over its own smallest and largest value; boxes (B, 4) in pixels as for ``map_mass``, or None; ``rows`` what is
    written beside each image, or None. Of more than 16 maps the first 16 are shown.
    """
    maps, shapes = to_numpy(maps), [np.shape(image) for image in images]
    if {len(shape) for shape in shapes} != {3} or maps.ndim != 4 or len(maps) != len(images):
        raise ValueError(f"needs images (B, H, W, C) and maps (B, S, h, w), got {shapes} and {maps.shape}")
    return show_stages(images, {f"token {s + 1}": maps[:, s] for s in range(min(maps.shape[1], MOST))}, boxes, rows)


def show_stages(images, stages, boxes=None, rows=None):
    """The same for maps of any size, such as ``activation_maps``: ``stages`` is {title: maps (B, h, w)}."""
    pictures = [[image, *(_lit(image, maps[b]) for maps in stages.values())] for b, image in enumerate(images)]
    boxes = None if boxes is None else [[box] * (1 + len(stages)) for box in boxes]
    return _table(pictures, boxes, ["image", *stages], rows)


def show_clip_maps(clips, maps, boxes=None):
    """A figure with a film strip per clip: its frames side by side, and below them a row for each token.

    clips uint8 (B, T, H, W, C) with C 1 or 3; maps (B, T', S, h, w), those of a tubelet being shown on each of its
    frames. A token's maps are spread over their smallest and largest value in the whole clip, so that one sees when it
    looks at nothing. boxes (B, T, M, 4), or None. Of more than 16 tokens or frames the first 16 are shown.
    """
    maps = to_numpy(maps)
    if np.ndim(clips) != 5 or maps.ndim != 5 or len(maps) != len(clips):
        raise ValueError(f"needs clips (B, T, H, W, C) and maps (B, T', S, h, w), got {np.shape(clips)}, {maps.shape}")
    return show_clip_stages(clips, {f"token {s + 1}": maps[:, :, s] for s in range(min(maps.shape[2], MOST))}, boxes)


def show_clip_stages(clips, stages, boxes=None):
    """The same for maps of any size, such as ``activation_maps``: ``stages`` is {title: maps (B, T', h, w)}."""
    T, pictures = min(clips.shape[1], MOST), []
    for b, clip in enumerate(clips):
        pictures.append(list(clip[:T]))
        for maps in stages.values():
            frames = maps[b].repeat(clips.shape[1] // maps.shape[1], axis=0)  # those of a tubelet have its map
            pictures.append([_lit(clip[t], frames[t], frames.min(), frames.max()) for t in range(T)])
    boxes = None if boxes is None else np.repeat(boxes[:, :T], 1 + len(stages), axis=0)
    return _table(pictures, boxes, [f"frame {t + 1}" for t in range(T)], ["clip", *stages] * len(clips))


def _table(pictures, boxes, columns, rows=None):
    """A figure of pictures (H, W, C) in rows and columns, each with its box (4,), its boxes (M, 4), or None at all."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    H, W, C = pictures[0][0].shape
    if C not in (1, 3):
        raise ValueError(f"needs pictures with 1 or 3 colour channels, got {C}")
    height = 1.05 * H / W  # of a picture in inches; all are as wide as the word above them
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


def _lit(image, weights, low=None, high=None):
    """The image (H, W, C), at full brightness where a map (h, w) is ``high`` and at a quarter of it where ``low``.

    By default these are the map's own largest and smallest value.
    """
    H, W, _ = image.shape
    low, high = weights.min() if low is None else low, weights.max() if high is None else high
    light = (weights - low) / (high - low) if high > low else np.ones_like(weights)
    light = light.repeat(H // weights.shape[0], 0).repeat(W // weights.shape[1], 1)
    return (image * (0.25 + 0.75 * light[..., None])).astype(np.uint8)


def accuracy_against_cost(rows, score="accuracy"):
    """A figure of what models achieve against what they cost, one point per row.

    Rows are dicts of ``name``, ``macs`` (multiply-adds of one image or clip), ``accuracy`` from 0 to 1 (what it is,
    ``score`` says), and for a mean over several seeds ``spread``, drawn as a bar to both sides.
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
    """Write names near their points (name, x, y, spread), where they cover least; a line leads to those farther off."""
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
            line = {"arrowstyle": "-", "linewidth": 0.5, "color": "grey", "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (x, y), places[best], textcoords="offset pixels", arrowprops=line, in_layout=False)
        taken = np.vstack([taken, boxes[best]])


def confusion(counts, classes):
    """A figure of what images of each class were taken for: the share of each class, row by row, in percent.

    counts (K, K): how many images of the class of the row were taken for that of the column, as
    ``metrics.confusion_counts`` has them; a class without images has an empty row. Of more than 20 classes those 20 are
    shown that are taken for one another most often.
    """
    from matplotlib.figure import Figure

    counts, K = np.asarray(counts), len(classes)
    if counts.shape != (K, K):
        raise ValueError(f"needs counts ({K}, {K}) of {K} classes, got {counts.shape}")
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    title = f"{np.trace(counts) / max(counts.sum(), 1):.1%} of {counts.sum():,} images are right; rows in percent"
    if K > CLASSES:
        title += f"\nthe {CLASSES} of {K} classes that are taken for one another most often"
        shown = _most_confused(counts, CLASSES)
        shares, classes, K = shares[np.ix_(shown, shown)], [classes[k] for k in shown], CLASSES
    side = max(4, 2 + 0.42 * K)
    figure = Figure(figsize=(side, side), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    names = [name if len(name) <= 24 else f"{name[:12]}…{name[-11:]}" for name in classes]  # either end may differ
    plain = {"fontsize": 8, "parse_math": False}  # a class may be called $x$
    axes.set_xticks(range(K), names, rotation=45, ha="right", rotation_mode="anchor", **plain)
    axes.set_yticks(range(K), names, **plain)
    axes.set_xlabel("taken for")
    axes.set_ylabel("true class")
    figure.suptitle(title, fontsize=9)  # over the names too, which may leave a narrow picture
    axes.spines[:].set_visible(False)
    for i, j in np.argwhere(shares):
        text = f"{shares[i, j]:.0f}" if shares[i, j] >= 1 else "<1"
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if shares[i, j] > 55 else "black")
    return figure


def _most_confused(counts, n):
    """The sorted indices of ``n`` classes: those of the pairs that were mistaken most often, and so on."""
    wrong = counts * (1 - np.eye(len(counts), dtype=int))
    pairs = np.argsort(-wrong, axis=None, kind="stable")[: n * n]  # more than n classes have
    return sorted(list(dict.fromkeys(k for pair in pairs for k in divmod(pair, len(counts))))[:n])


def curves(rows, score="accuracy"):
    """A figure of loss and accuracy by epoch, from the rows of ``metrics.csv`` (a list of dicts of numbers).

    ``score`` says what the accuracy is.
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
    """The PNG file of a figure, as bytes. A character that the font does not have is drawn as a box."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(file, format="png")
    return file.getvalue()
