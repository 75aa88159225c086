"""Does a training step get faster by as much as multiply-adds are saved? Both, over the place of TokenLearner."""

import time
from statistics import quantiles

import numpy as np

from .. import flops, ops, optim, parallel
from ..nn import ViT
from ..step import shard_size


def measure(models, batch_size=100, rounds=11, seed=0):
    """Time training steps of some models, given as name -> ViTConfig. Returns one dict each:

    ``name``; ``macs``, the multiply-adds of one image's forward pass; ``seconds``, the median of ``rounds`` steps;
    ``low`` and ``high``, the quartiles. The models take turns, so that whatever else the machine does disturbs all
    alike.
    """
    steps = [_step(config, batch_size, np.random.default_rng(seed)) for config in models.values()]
    parallel.keep_memory()
    with parallel.one_blas_thread():
        times = np.array([[step() for step in steps] for _ in range(rounds + 1)])[1:]  # the first round warms up
    rows = []
    for name, config, seconds in zip(models, models.values(), times.T, strict=True):
        low, median, high = quantiles(seconds, n=4, method="inclusive")
        cost = {"name": name, "macs": flops.total(flops.count(config)).macs}
        rows.append(cost | {"seconds": median, "low": low, "high": high})
    return rows


def _step(config, batch_size, rng):
    """A function that does a training step on random images, in one thread, and returns its seconds."""
    model = ViT(config, rng)
    optimizer = optim.AdamW(model.parameters())
    alone = parallel.DataParallel(model, rng, threads=1, shard=shard_size(config))
    images = rng.standard_normal((batch_size, *config.image_size, config.channels), "float32")
    labels = rng.integers(config.num_classes, size=batch_size)

    def step():
        began = time.perf_counter()
        optimizer.zero_grad()
        alone.gradients(ops.cross_entropy, images, labels, np.random.SeedSequence(0))
        optimizer.step()
        return time.perf_counter() - began

    return step


def table(rows):
    """The rows as lines of text, each also as a share of the most costly model."""
    line = "{:14}{:>15}{:>8}{:>13}{:>19}{:>8}"
    lines = [line.format("", "multiply-adds", "share", "ms per step", "quartiles", "share")]
    most, longest = (max(row[name] for row in rows) for name in ("macs", "seconds"))
    for row in rows:
        macs = flops.short(row["macs"]), f"{row['macs'] / most:.0%}"
        spread = f"{1e3 * row['low']:.1f} to {1e3 * row['high']:.1f}"
        cells = f"{1e3 * row['seconds']:.1f}", spread, f"{row['seconds'] / longest:.0%}"
        lines.append(line.format(row["name"], *macs, *cells))
    return "\n".join(lines)


def picture(rows):
    """A figure of the time of a step against the multiply-adds, with quartiles and a line through the origin.

    The line is where all times would lie if time were proportional to multiply-adds.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    macs = [row["macs"] / 1e6 for row in rows]
    milliseconds = np.array([[row[name] for row in rows] for name in ("low", "seconds", "high")]) * 1e3
    axes.errorbar(macs, milliseconds[1], abs(milliseconds[[0, 2]] - milliseconds[1]), fmt="o", capsize=3)
    for row, x, y in zip(rows, macs, milliseconds[1], strict=True):
        axes.annotate(row["name"], (x, y), (-7, 2), textcoords="offset points", fontsize=8, ha="right")
    slope = max(macs), milliseconds[1][np.argmax(macs)]
    axes.plot([0, slope[0]], [0, slope[1]], "--", color="grey", linewidth=0.8, label="proportional")
    axes.set(xlabel="million multiply-adds of an image, forward", ylabel="ms per training step", xlim=0, ylim=0)
    axes.legend(frameon=False)
    return figure
