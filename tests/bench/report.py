"""Tables and pictures of what `python -m tests.bench` measured: of rows of ``measure`` and ``measure_cuda``."""

import numpy as np

from minitl.flops import short

WORDS = {"train": "training step", "infer": "inference", "memory": "peak memory", "process": "whole process"}
MODEL = "{:13}{:15}{:>10}{:>10}{:>7}{:>14}  {:16}{:>10}{:>9}{:>10}"
LAYER = "{:18}{:22}{:>11}{:>11}{:>7}{:>14}{:>11}{:>9}"
BLUE, ORANGE, GRAY = "tab:blue", "tab:orange", "0.6"
PLAIN = "plain", "/ minitl"
CUDA = "{:14}{:>7}{:>14}{:>14}{:>15}{:>18}{:>11}{:>10}{:>10}"
GRAPH = "minitl graph"
COLORS = {GRAPH: BLUE, "minitl eager": "tab:cyan", "PyTorch eager": GRAY, "PyTorch compiled": ORANGE}


def heading(machine):
    """The machine and the versions, in a line."""
    names = "Python", "NumPy", "SIMD", "BLAS", "PyTorch", "JAX"
    versions = [f"{name} {machine[name]}" for name in names if name in machine]
    load = f", load {machine['load']:.1f}" if "load" in machine else ""
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads{load}; {', '.join(versions)}"


def head():
    """The first line of a table of ``line``."""
    return MODEL.format("", "", "minitl", "PyTorch", "ratio", "quartiles", "PyTorch with", *PLAIN, "JAX")


def line(row):
    """A row of ``measure.compare`` as a line of the table."""
    name = row["name"] if row["quantity"] == "train" else ""
    *cells, jax = (_amount(row[who], row["quantity"]) if who in row else "-" for who in ("minitl", "PyTorch", "JAX"))
    return MODEL.format(name, WORDS[row["quantity"]], *cells, *_ratio(row), row["variant"], *_plain(row), jax)


def _ratio(row):
    return f"{row['ratio']:.2f}", f"{row['low']:.2f} to {row['high']:.2f}"


def _plain(row):
    return _amount(row["plain"], row["quantity"]), f"{row['plain_ratio']:.2f}"


def savings(rows, pairs):
    """Savings by TokenLearner, counted and measured: a line for each of ``pairs`` whose models are both in ``rows``."""
    steps, lines = {row["name"]: row for row in rows if row["quantity"] == "train"}, []
    for few, whole in pairs.items():
        if {few, whole} <= steps.keys():
            macs, ours, theirs = (steps[few][key] / steps[whole][key] for key in ("macs", "minitl", "PyTorch"))
            times = f"training step {ours:.2f} in minitl, {theirs:.2f} in PyTorch"
            lines.append(f"{few} / {whole}: multiply-adds {macs:.2f}, {times}")
    return lines


def by_op_table(rows, shares):
    """Both lists of ``measure.by_op`` as lines of text."""
    lines = [LAYER.format("", "", "minitl", "PyTorch", "ratio", "quartiles", *PLAIN)]
    for row in rows:
        name = "" if row["quantity"] == "forward and backward" else row["name"]
        cells = _amount(row["minitl"]), _amount(row["PyTorch"]), *_ratio(row), *_plain(row)
        lines.append(LAYER.format(name, row["quantity"], *cells))
    return "\n".join([*lines, "", shares_table("training step", shares)])


def shares_table(title, shares, words=(("rest", "rest, optimizer"), ("data", "load, crop, flip"))):
    """The rows of ``measure.shares`` as lines of text."""
    lines, words = ["{:20}{:>12}{:>12}{:>8}".format(title, "forward", "backward", "share")], dict(words)
    for row in shares:
        name, back = words.get(row["name"], row["name"]), "" if row["name"] in words else _amount(row["backward"])
        lines.append(f"{name:20}{_amount(row['forward']):>12}{back:>12}{row['share']:>8.1%}")
    return "\n".join(lines)


def cuda_heading(machine):
    """The GPU and the versions, in a line."""
    versions = [f"{name} {machine[name]}" for name in ("Python", "NumPy", "CuPy", "PyTorch") if name in machine]
    return f"{machine['gpu']}, driver {machine['driver']}, CUDA {machine['runtime']}; {', '.join(versions)}"


def cuda_head():
    """The first line of a table of ``cuda_line``."""
    return CUDA.format("training step", "batch", *COLORS, "floor", "reached", "launches")


def cuda_line(row):
    """A row of ``measure_cuda.compare`` as a line of the table; reached is the floor's share of a graph's time."""
    times = [_amount(row["times"][label]["seconds"]) if label in row["times"] else "-" for label in COLORS]
    share = f"{row['floor'] / row['times'][GRAPH]['seconds']:.0%}" if GRAPH in row["times"] else "-"
    return CUDA.format(row["name"], row["batch"], *times, _amount(row["floor"]), share, row["launches"] or "-")


def cuda_notes(rows):
    """Ratios of the times, contestants that are missing, and the rates behind the floors, as lines of text."""
    lines = []
    for row in rows:
        ours, *others = (label for label in COLORS if label in row["times"])
        ratios = [
            f"{row['times'][ours]['seconds'] / row['times'][label]['seconds']:.2f} of {label}" for label in others
        ]
        if ratios:
            lines.append(f"{row['name']}: time of {ours}: {', '.join(ratios)}")
        lines += [f"{row['name']}: no {label}: {why}" for label, why in row["missing"].items()]
        if "estimate" in row:
            cost = row["estimate"]
            amounts = [f"{_amount(seconds)} on an {gpu}" for gpu, seconds in cost["seconds"].items()]
            sizes = (
                f"{short(cost['bytes'], 'B')} and {short(cost['macs'])} multiply-adds in {cost['launches']} launches"
            )
            lines.append(f"{row['name']}: estimated from {sizes}: {', '.join(amounts)}")
    last = rows[-1]
    rate = f"{short(last['products'], 'FLOP/s')} in large {last['precision']} products"
    return [*lines, f"floor: {rate}, {short(last['copy'], 'B')}/s in a copy; activations as counted by minitl.flops"]


def cost_table(row):
    """A row of ``model.costs`` as lines of text: the sums, then a line for each kernel, with estimated times."""
    text = "{:34}{:>10}{:>10}{:>16}{:>13}{:>13}"
    title = f"{row['name']}, batch {row['batch']}, {row['precision']}"
    lines = [text.format(title, "launches", "bytes", "multiply-adds", *(f"{gpu}, est." for gpu in row["seconds"]))]
    for kernel in ({"name": "training step"} | {key: x for key, x in row.items() if key != "name"}, *row["kernels"]):
        sizes = short(kernel["bytes"], "B"), short(kernel["macs"]) if kernel["macs"] else ""
        lines.append(
            text.format(
                kernel["name"], kernel["launches"], *sizes, *(f"{1e3 * s:.3f} ms" for s in kernel["seconds"].values())
            )
        )
    return "\n".join(lines)


def cuda_picture(rows):
    """Milliseconds of a training step, a panel for each row of ``compare`` on a GPU; the dashed line is the floor."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.6 + 1.1 * len(rows)), dpi=110, layout="constrained")
    for axes, row in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows, strict=True):
        labels = [label for label in COLORS if label in row["times"]]
        low, median, high = (
            1e3 * np.array([row["times"][label][key] for label in labels]) for key in ("low", "seconds", "high")
        )
        bars = axes.barh(labels, median, xerr=[median - low, high - median], color=[COLORS[it] for it in labels])
        axes.bar_label(bars, [_amount(ms / 1e3) for ms in median], padding=5, fontsize=8)
        axes.axvline(1e3 * row["floor"], color="black", linestyle="--", linewidth=0.8)
        axes.set_title(f"{row['name']}, batch {row['batch']}, {row['precision']}", fontsize=9, loc="left")
        axes.set_xlim(0, 1.15 * max(*high, 1e3 * row["floor"]))
        axes.tick_params(labelsize=8)
        axes.invert_yaxis()
    axes.set_xlabel("ms per training step; dashed: the floor, what multiply-adds and memory need at least", fontsize=8)
    return figure


def scale_table(rows):
    """The rows of ``measure.scale`` as lines of text."""
    text = "{:>6} {:31}{:>14}{:>12}{:>19}{:>12}{:>12}"
    lines = [text.format("", "", "multiply-adds", "step", "quartiles", "activations", "peak memory")]
    for row in rows:
        spread = f"{1e3 * row['low']:.1f} to {1e3 * row['high']:.1f}"
        sizes = short(row["kept"], "B"), short(row["memory"], "B") if "memory" in row else ""
        lines.append(
            text.format(row["value"], row["axis"], short(row["macs"]), _amount(row["seconds"]), spread, *sizes)
        )
    return "\n".join(lines)


def picture(rows):
    """A bar chart of time and memory as shares of PyTorch's, with quartiles, for rows of ``measure.compare``."""
    return _bars(rows, {"train": BLUE, "infer": ORANGE, "memory": GRAY})


def by_op_picture(rows):
    """The same for the rows of ``measure.by_op``."""
    return _bars(rows, {"forward": ORANGE, "forward and backward": BLUE, "step": GRAY})


def _bars(rows, colors):
    """A bar for each row whose quantity has a color, in groups by name; diamonds are the times of JAX."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["quantity"] in colors]
    names = list(dict.fromkeys(row["name"] for row in rows))
    y = np.arange(len(rows)) + 0.5 * np.array([names.index(row["name"]) for row in rows])  # a gap between groups
    ends = np.array([max(row["ratio"], row["high"]) for row in rows])
    timed = [i for i, row in enumerate(rows) if "JAX" in row and row["quantity"] in ("train", "infer")]
    jax = [rows[i]["JAX"] / rows[i]["PyTorch"] for i in timed]
    figure = Figure(figsize=(7, 1 + 0.22 * y[-1]), dpi=110, layout="constrained")
    axes = figure.subplots()
    for quantity in dict.fromkeys(row["quantity"] for row in rows):
        mine = [i for i, row in enumerate(rows) if row["quantity"] == quantity]
        low, ratio, high = (np.array([rows[i][key] for i in mine]) for key in ("low", "ratio", "high"))
        spread = np.maximum(0, [ratio - low, high - ratio])
        label, lines = WORDS.get(quantity, quantity), {"linewidth": 0.8}
        axes.barh(y[mine], ratio, 0.9, xerr=spread, color=colors[quantity], label=label, error_kw=lines)
    text = {"va": "center", "fontsize": 7, "bbox": {"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none"}}
    for row, place, end in zip(rows, y, ends, strict=True):
        axes.annotate(f"{row['ratio']:.2f}", (end, place), (5, 0), textcoords="offset points", **text)
    if jax:
        axes.plot(jax, y[timed], "D", color="black", markersize=3, label="JAX")
    axes.axvline(1, color="black", linewidth=0.8)
    middles = [np.mean([place for row, place in zip(rows, y, strict=True) if row["name"] == name]) for name in names]
    axes.set_yticks(middles, names)
    axes.set(xlabel="share of what PyTorch eager takes (less is better)", xlim=(0, 1.1 * max(1, *ends, *jax)))
    axes.invert_yaxis()
    figure.legend(loc="outside upper right", ncols=4, frameon=False, fontsize=8)
    return figure


def scale_picture(rows):
    """Time and memory of a training step against what grows, a column for each axis, for rows of ``measure.scale``.

    The dashed lines are in proportion to the counted multiply-adds, and the counted activations themselves.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = list(dict.fromkeys(row["axis"] for row in rows))
    figure = Figure(figsize=(2.8 * len(names), 5), dpi=110, layout="constrained")
    panels = figure.subplots(2, len(names), sharex="col", squeeze=False)
    for (upper, lower), name in zip(panels.T, names, strict=True):
        mine = [row for row in rows if row["axis"] == name]
        keys = "value", "seconds", "low", "high", "memory", "macs", "kept"
        x, seconds, low, high, memory, macs, kept = (np.array([row.get(key, np.nan) for row in mine]) for key in keys)
        spread = 1e3 * np.array([seconds - low, high - seconds])
        upper.errorbar(x, 1e3 * seconds, spread, fmt="o-", ms=4, lw=1, capsize=2, clip_on=False, label="measured")
        upper.plot(
            x, 1e3 * seconds[-1] * macs / macs[-1], "--", color="grey", lw=1, label="proportional to multiply-adds"
        )
        lower.plot(x, memory / 1e6, "o-", ms=4, lw=1, clip_on=False, label="measured")
        lower.plot(x, kept / 1e6, "--", color="grey", lw=1, label="activations, counted")
        upper.set(xlim=0, ylim=0)
        lower.set(xlabel=name, ylim=0)
        lower.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panels[0, 0].set_ylabel("ms per training step")
    panels[1, 0].set_ylabel("peak memory in MB")
    for axes in panels[:, 0]:
        axes.legend(frameon=False, fontsize=8)
    return figure


def _amount(value, quantity="train"):
    if quantity in ("memory", "process"):
        return short(value, "B")
    milliseconds = 1e3 * value
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.3g} ms"
