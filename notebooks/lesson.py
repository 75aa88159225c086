"""What the lessons draw with, in one style that also reads in gray, and the saved models that they load.

Every function shows its figure at once. ``alt`` says in a sentence what can be seen, for those who do not see it.
"""

import csv
import os
from pathlib import Path

import numpy as np
from IPython.display import Image, display
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from minitl.fast.threads import keep_memory
from minitl.train import checkpoint, model_of, pictures

FAST = bool(os.environ.get("MINITL_FAST"))  # set by the tests: fewer images and steps, and no claims on accuracy
keep_memory()  # as `minitl train` does: without it, a lesson that trains takes up to twice the time
STYLE = {"figure.dpi": 90, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
STYLE |= {"axes.titlesize": 9, "legend.frameon": False, "grid.alpha": 0.3}
LINES = [  # color, dashes and marker, so that color is never the only difference
    ("tab:red", "-", "o"),
    ("tab:blue", "--", "s"),
    ("black", ":", "^"),
    ("tab:green", "-.", "D"),
    ("tab:purple", (0, (6, 1, 1, 1, 1, 1)), "v"),
    ("tab:brown", (0, (1, 3)), "x"),
]


def load_model(name):
    """Return a model from the folder ``models``, ready for use, and the dict that was saved with it."""
    arrays, meta = checkpoint.load(Path(__file__).parent / "models" / f"{name}.safetensors")
    model = model_of(meta)
    weights = {key: array.astype(np.float32) for key, array in arrays.items()}  # stored as float16
    checkpoint.restore(weights, {"model": model})
    return model.eval(), meta


def load_curve(name):
    """Return the command that made a CSV file of the folder ``curves``, and its columns, a dict of lists."""
    with open(Path(__file__).parent / "curves" / f"{name}.csv", encoding="utf-8") as file:
        command, *rows = file
    rows = list(csv.DictReader(rows))
    return command.removeprefix("#").strip(), {key: [_number(row[key]) for row in rows] for key in rows[0]}


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text


def show(figure, alt):
    """Show a matplotlib figure with alternative text."""
    display(Image(pictures.png(figure), alt=alt))


def images(rows, alt, titles=None, side=1.1, low=None, high=None):
    """Show rows of pictures: a dict of a row's name to its pictures, (H, W, 3) in color or (H, W) as a map.

    ``titles`` are those of the columns, or a list of them for each row. A map is black where it is ``low`` and light
    yellow where it is ``high``; by default these are its own extremes. ``side`` is a picture's width in inches.
    """
    columns = max(len(row) for row in rows.values())
    titles = [] if titles is None else titles
    by_row = titles if titles and not isinstance(titles[0], str) else [titles]
    with rc_context(STYLE):
        aspect = np.shape(next(iter(rows.values()))[0])
        height = side * aspect[0] / aspect[1] + (0.2 if len(by_row) > 1 else 0.08)
        names = 0.075 * max(map(len, rows)) + 0.05  # inches
        figure = Figure(figsize=(side * columns + names, height * len(rows) + 0.25), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.04, wspace=0.02, hspace=0.02)
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for i, (name, row) in enumerate(rows.items()):
            for j, ax in enumerate(grid[i]):
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
                if j < len(row):
                    ax.imshow(row[j], cmap="magma", vmin=low, vmax=high, interpolation="nearest")
                if i < len(by_row) and j < len(by_row[i]):
                    ax.set_title(by_row[i][j])
            grid[i][0].set_ylabel(name, rotation=0, ha="right", va="center")
    show(figure, alt)


def curves(lines, xlabel, ylabel, alt, size=(5.5, 2.6), marks=False, **axes):
    """Show curves: a dict of a name to (x, y). ``marks`` draws their points; ``axes`` are options of ``Axes.set``."""
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        ax = figure.subplots()
        for (name, (x, y)), (color, dashes, marker) in zip(lines.items(), LINES, strict=False):
            marker = marker if marks else None
            ax.plot(x, y, color=color, linestyle=dashes, marker=marker, markersize=4, linewidth=1.4, label=name)
        ax.set(xlabel=xlabel, ylabel=ylabel, **axes)
        ax.grid(True)
        if len(lines) > 1:
            ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    show(figure, alt)


def bars(values, xlabel, alt, text="{:.1%}", chance=None, **axes):
    """Show horizontal bars with their numbers: a dict of a name to a value. ``chance`` is marked by a dashed line."""
    with rc_context(STYLE):
        figure = Figure(figsize=(5.5, 0.28 * len(values) + 0.7), layout="constrained")
        ax = figure.subplots()
        drawn = ax.barh(list(values), list(values.values()), color="tab:red", edgecolor="black", linewidth=0.5)
        ax.bar_label(drawn, [text.format(value) for value in values.values()], padding=3)
        if chance is not None:
            ax.axvline(chance, color="black", linestyle="--", linewidth=1)
            ax.text(chance, 1.01, "chance", transform=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize=8)
        ax.margins(x=0.15)  # room for the numbers
        ax.set(xlabel=xlabel, **axes)
        ax.invert_yaxis()
    show(figure, alt)


def matrices(grids, xlabel, ylabel, alt, unit="", side=2.4, text=None, low=None, high=None):
    """Show matrices side by side with one scale: a dict of a title to (rows, columns).

    ``unit`` labels the scale. ``text``, such as "{:.2f}", writes each number into its cell.
    """
    low = min(np.min(grid) for grid in grids.values()) if low is None else low
    high = max(np.max(grid) for grid in grids.values()) if high is None else high
    with rc_context(STYLE):
        rows, columns = np.shape(next(iter(grids.values())))
        figure = Figure(figsize=(side * len(grids) + 0.8, side * rows / columns + 0.6), layout="constrained")
        panels = figure.subplots(1, len(grids), squeeze=False)[0]
        for ax, (title, grid) in zip(panels, grids.items(), strict=True):
            drawn = ax.imshow(grid, cmap="magma", vmin=low, vmax=high, interpolation="nearest")
            ax.set(title=title, xlabel=xlabel)
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
            for (i, j), value in np.ndenumerate(np.asarray(grid)) if text else ():
                color = "black" if value > (low + high) / 2 else "white"
                ax.text(j, i, text.format(value), ha="center", va="center", color=color, fontsize=8)
        panels[0].set_ylabel(ylabel)
        figure.colorbar(drawn, ax=list(panels), label=unit, shrink=0.8)
    show(figure, alt)


def graph(edges, alt, size=(6.5, 2.2)):
    """Show a graph: pairs (from, to) of texts, each a box. A box stands to the right of all that lead to it.

    A third text is written on its arrow.
    """
    depth = {}
    for _ in edges:  # long enough for the longest chain
        for a, b, *_ in edges:
            depth[b] = max(depth.get(b, 0), depth.setdefault(a, 0) + 1)
    ranks = [[box for box in depth if depth[box] == d] for d in range(max(depth.values()) + 1)]
    at = {box: (d, (len(rank) - 1) / 2 - i) for d, rank in enumerate(ranks) for i, box in enumerate(rank)}
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        ax = figure.subplots()
        ax.set_axis_off()
        ax.set(xlim=(-0.5, len(ranks) - 0.5), ylim=(-max(map(len, ranks)) / 2, max(map(len, ranks)) / 2))
        frame = {"boxstyle": "round", "facecolor": "white", "edgecolor": "black"}
        drawn = {box: ax.text(*at[box], box, ha="center", va="center", bbox=frame, zorder=2) for box in at}
        for a, b, *label in edges:
            around = 0.25 if at[a][1] == at[b][1] else 0.1  # the boxes in between
            bend = 0 if depth[b] == depth[a] + 1 else -around if at[a][1] > 0 else around
            arrow = {"arrowstyle": "->", "patchA": drawn[a].get_bbox_patch(), "patchB": drawn[b].get_bbox_patch()}
            arrow |= {"shrinkA": 4, "shrinkB": 4, "connectionstyle": f"arc3,rad={bend}"}
            ax.annotate("", at[b], at[a], arrowprops=arrow)
            (x, y), squeeze = np.mean([at[a], at[b]], axis=0), size[0] * max(map(len, ranks)) / size[1] / len(ranks)
            for text in label:
                y -= squeeze * bend * (depth[b] - depth[a]) / 2  # where the bent arrow passes
                blank = {"facecolor": "white", "edgecolor": "none", "pad": 1}
                ax.text(x, y, text, ha="center", va="center", fontsize=8, bbox=blank)
    show(figure, alt)
