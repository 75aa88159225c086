"""Models of the paper by name, and their published cost beside the counted one.

A name reads ``B/16@224+9-8at10-fuser``: size and patch, image side unless it is the paper's usual one, blocks added at
the end, tokens at ``loc``, way back. ``ViViT-L/16x2`` takes clips, in tubelets of 2 frames; ``-jft`` has a head of
18,291 classes, for JFT. Only the names in ``names()`` are known.
"""

import re
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from ..errors import InputError, did_you_mean
from ..flops import BACKS, Cost, Part, block, conv, count, frames, gelu, linear, norm, pooling, total
from ..nn import DataSpec, ViTConfig

SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}  # dim, layers, heads (paper, section 4.1)
NAME = re.compile(
    r"(?P<video>ViViT-)?(?P<size>\w)/(?P<patch>\d+)(x(?P<tubelet>\d))?(@(?P<side>\d+))?(\+(?P<extra>\d+))?"
    r"(-(?P<pool>pool)?(?P<tokens>\d+)at(?P<loc>\d+))?(-(?P<back>fuser|unpool|reproject))?(?P<jft>-jft)?"
)
UNPUBLISHED = "S/16 S/16@224 S/16-8at6 S/16-16at6 S/16-8at9 B/32-8at6 B/32-16at6 L/14 L/10 L/8 L/8-16at12 L/8+11-16at18"


class Row(NamedTuple):
    """A published number: GFLOPs and millions of parameters as printed, or "" if not given."""

    where: str
    model: str
    gflops: str
    params: str = ""
    note: str = ""
    """reason why the numbers need not agree"""


KERAS = "its profiler omits attention"
OPEN = "the paper does not say enough to count this module"

PAPER = (
    Row("Table 1", "S/32", "3.4"),
    Row("Table 1", "B/32", "19.8", note="erratum: no image size gives 19.8"),
    Row("Table 1", "B/16", "55.6"),
    Row("Table 1", "S/32-8at6", "1.9"),
    Row("Table 1", "B/16-8at6", "28.7", note="erratum: 28.7 is the cost of 16 tokens; Table 4 has 28.3"),
    Row("Table 1", "S/32+10-8at11", "3.3"),
    Row("Table 1", "B/32+8-8at10", "11.5"),
    Row("Table 1", "B/16+9-8at10", "47.1"),
    Row("Table 1", "B/16+9-16at10", "47.7"),
    Row("Table 2", "L/16", "363.1"),
    Row("Table 2", "L/16-16at12", "178.1", note="erratum: Tables 4 and 5 print 184.6 for this model"),
    Row("Table 2", "L/16+11-16at12", "186.8"),
    Row("Table 2", "L/16+6-8at18", "274.2"),
    Row("Table 2", "L/14+11-16at18", "361.6"),
    Row("Table 3", "L/10+11-16at18-jft", "", "460"),
    Row("Table 3", "L/8+11-16at18-jft", "", "460"),
    Row("Table 4", "B/16-8at6", "28.3"),
    Row("Table 4", "B/16-8at6-fuser", "28.5"),
    Row("Table 4", "B/16-16at6", "28.7"),
    Row("Table 4", "B/16-16at6-fuser", "29.1"),
    Row("Table 4", "L/16-16at12", "184.6"),
    Row("Table 4", "L/16-16at12-fuser", "187.1"),
    Row("Table 4", "L/16-8at18", "273.2"),
    Row("Table 4", "L/16-8at18-fuser", "273.8"),
    Row("Table 4", "L/10+11-16at18", "849.0"),
    Row("Table 4", "L/10+11-16at18-fuser", "856.9"),
    Row("Table 5", "L/16-pool64at9-pool4at18", "144.3"),
    Row("Table 5", "L/16-pool64at12-pool4at18", "187.2"),
    Row("Table 5", "L/16-pool16at12", "184.4"),
    Row("Figure 5", "B/16@224", "17.5"),
    Row("Figure 5", "B/16@224-8at0", "0.8"),
    Row("Figure 5", "B/16@224-8at3", "5.0"),
    Row("Figure 5", "B/16@224-8at6", "9.2"),
    Row("Figure 5", "B/16@224-8at9", "13.35"),
    Row("Figure 5", "B/16@224-16at0", "1.5"),
    Row("Figure 5", "B/16@224-16at3", "5.5"),
    Row("Figure 5", "B/16@224-16at6", "9.5"),
    Row("Figure 5", "B/16@224-16at9", "13.5"),
    Row("Figure 7", "S/32@224", "1.15", note="read off the figure, to 0.05 or so"),
    Row("Figure 7", "S/32@224-8at6", "0.7"),
    Row("Figure 7", "S/32@224+10-8at11", "1.1", note="read off the figure; the 3.3 of Table 1 agrees"),
    Row("Figure 7", "B/32@224", "4.35"),
    Row("Figure 7", "B/32@224+8-8at10", "4.2"),
    Row("Figure 7", "B/16@224-16at6", "9.5"),
    Row("Figure 7", "B/16@224+9-8at10", "15.3"),
    Row("Figure 8", "B/16-8at6-unpool", "28.6"),
    Row("Figure 8", "B/16-16at6-unpool", "29.2"),
    Row("Figure 8", "B/16-8at6-reproject", "32.7"),
    Row("Figure 8", "B/16-16at6-reproject", "33.4"),
    Row("Table 6", "ViViT-L/16x2", "1446"),
    Row("Table 6", "ViViT-L/16x2@320", "3992"),
    Row("Table 6", "ViViT-L/16x2-16at12", "766"),
    Row("Table 6", "ViViT-L/16x2+6-8at18", "1105"),
    Row("Table 6", "ViViT-L/14x2+11-16at18", "1621"),
    Row("Table 6", "ViViT-L/10x2+11-16at18", "4076"),
    Row("Table 8", "ViViT-L/10x2+11-16at18-fuser", "4100"),
    Row("Table 11", "joint", "22.0", "0.30", note=OPEN),
    Row("Table 11", "conv2d+joint", "35.8", "1.98", note=OPEN),
    Row("Table 11", "tokenlearner", "3.4", "0.81", note=OPEN),
    Row("Table 11", "conv2d+tokenlearner", "17.2", "2.49", note=OPEN),
    Row("Table 12", "conv2d+conv1d", "18.3", "2.24"),
    Row("Table 12", "conv2d+mixer", "13.8", "2.06"),
    Row("Table 12", "conv2d+temporal", "16.5", "1.98"),
    Row("Table 12", "spatial+temporal", "5.5", "0.59"),
    Row("Table 12", "conv2d+spatial+temporal", "19.2", "2.27"),
    Row("Table 12", "spatial+tokenlearner", "6.2", "1.11", note=OPEN),
    Row("Keras", "keras", "0.0184", note=KERAS),
    Row("Keras", "keras-8at3", "0.0153", note=KERAS),
    Row("Keras", "keras-4at3", "0.0147", note=KERAS),
    Row("Keras", "keras+4", "0.0359", note=KERAS),
)


def names():
    """Return all names in the order of the paper's tables; those without a published number come last."""
    return list(dict.fromkeys([row.model for row in PAPER] + UNPUBLISHED.split()))


def find(name):
    """Return the known name that equals ``name`` up to case. Raises InputError with similar names if there is none."""
    known = {known.lower(): known for known in names()}
    if name.lower() not in known:
        hint = did_you_mean(name, known.values(), "`minitl flops --paper` lists the names")
        raise InputError(f"there is no preset {name!r}; {hint}")
    return known[name.lower()]


def preset(name):
    """Return ``(config, spec)``, the ViTConfig and the DataSpec of a named model.

    Patches that do not fit the image are left out at its edge, as in the paper: L/14 at 512 is L/14 at 504. Raises
    InputError for an unknown name and for models that no ViTConfig describes.
    """
    name = find(name)
    if name in SPECIAL:
        raise InputError(f"{name} can be counted, but is not a ViT with options; choose one like B/16-8at6")
    f = NAME.fullmatch(name).groupdict()
    dim, layers, heads = SIZES[f["size"]]
    patch, video = int(f["patch"]), f["video"] is not None
    side = int(f["side"] or (224 if video else 512 if f["size"] == "L" else 384)) // patch * patch
    classes = 400 if video else 18291 if f["jft"] else 1000
    config = ViTConfig(
        tubelet=int(f["tubelet"] or 1),
        patch_size=patch,
        dim=dim,
        layers=layers + int(f["extra"] or 0),
        heads=heads,
        mlp_dim=4 * dim,
        tokenizer="none" if f["tokens"] is None else f["pool"] or "learner",
        num_tokens=int(f["tokens"] or 8),
        loc=int(f["loc"] or 0),
        back=f["back"] or "none",
    )
    return config, DataSpec((side, side), num_classes=classes, frames=32 if video else 1)


def count_preset(name):
    """Return the Parts of a named model, like ``flops.count``. Raises InputError for an unknown name."""
    name = find(name)
    return SPECIAL[name]() if name in SPECIAL else count(*preset(name))


def _pool_twice(first, second):
    """Count Table 5's two poolings: 64 tokens from block ``first`` on, 4 from block ``second`` on."""
    config, spec = preset("L/16-pool16at12")
    *parts, few, head = count(replace(config, num_tokens=64, loc=first), spec)
    fewer = Part("block", config.layers - second, 4, block(4, config.dim, config.mlp_dim, config.heads))
    return [*parts, replace(few, times=second - first), replace(parts[-1], tokens=4), fewer, head]


def _keras(tokens=None, loc=0, layers=4):
    """Count the mini ViT of the Keras example: heads as wide as the model (128), GELU after both layers of the MLP."""
    options = {"tokenizer": "none"} if tokens is None else {"num_tokens": tokens, "loc": loc}
    sizes = {"patch_size": 6, "dim": 128, "heads": 4, "mlp_dim": 256}
    parts = count(ViTConfig(**sizes, layers=layers, **options), DataSpec((48, 48)))

    def wide(n):
        return block(n, 128, 256, 4, e=4 * 128) + gelu(n * 128) + Cost(elementwise=5 * n * 128)

    return [replace(part, cost=wide(part.tokens)) if part.name == "block" else part for part in parts]


def _module(name):
    """Count a sequence of modules of Tables 11 and 12: 64 frames of 8 x 8 pixels, 432 channels, 8 tokens per frame.

    Their activations are not counted.
    """
    T, P, S, d = 64, 64, 8, 432

    def attention(groups, n):  # queries and keys of width 128, no output layer: this fits the printed parameters
        return Cost(d * (2 * 128 + d), groups * (n * d * (2 * 128 + d) + n * n * (128 + d)))

    vector_attention = 3 * linear(T * S, d, d) + Cost(macs=2 * (T * S) ** 2 * d)
    costs = {
        "conv2d": frames(T, conv(P, 3, d, d)),
        "conv1d": Cost(3 * d * d, T * P * 3 * d * d),
        "joint": attention(1, T * P),
        "spatial": attention(T, P),
        "temporal": attention(P, T),
        "mixer": 2 * linear(d, T, T) + 2 * linear(T, d, d),  # on the mean of each frame: this fits what is printed
        "tokenlearner": frames(T, norm(P, d) + conv(P, 3, d, S) + pooling(P, S, d))
        + vector_attention
        + BACKS["fuser"](ViTConfig(), T, P, S, d),
    }
    return [Part(part, 1, T * P, replace(costs[part], kept=0)) for part in name.split("+")]


MODULES = [row.model for row in PAPER if row.where in ("Table 11", "Table 12")]
SPECIAL = {
    "L/16-pool64at9-pool4at18": partial(_pool_twice, 9, 18),
    "L/16-pool64at12-pool4at18": partial(_pool_twice, 12, 18),
    "keras": _keras,
    "keras+4": partial(_keras, layers=8),
    "keras-8at3": partial(_keras, 8, 3),
    "keras-4at3": partial(_keras, 4, 3),
} | {name: partial(_module, name) for name in MODULES}


def paper():
    """Return all rows of PAPER beside the counted cost: dicts of GFLOPs, millions of parameters, errors in percent.

    ``agrees`` is true if the count lies within 0.5 % of the printed GFLOPs, 1 % of the printed parameters, or rounds to
    them. The tables of modules count a multiply-add as 2, all others as 1.
    """
    return [_compare(row) for row in PAPER]


def _compare(row):
    cost = total(count_preset(row.model))
    unit = 2 if row.model in MODULES else 1
    macs, flops, params = unit * cost.macs / 1e9, unit * cost.flops / 1e9, cost.params / 1e6
    return {
        **row._asdict(),
        "gflops": float(row.gflops) if row.gflops else None,
        "params": float(row.params) if row.params else None,
        "counted_macs": macs,
        "counted_gflops": flops,
        "counted_params": params,
        "macs_error": _error(macs, row.gflops),
        "gflops_error": _error(flops, row.gflops),
        "params_error": _error(params, row.params),
        "agrees": _agrees(flops, row.gflops, 0.5) and _agrees(params, row.params, 1),
    }


def _error(value, printed):
    return 100 * (value / float(printed) - 1) if printed else None


def _agrees(value, printed, percent):
    if not printed or abs(_error(value, printed)) <= percent:
        return True
    return f"{value:.{len(printed.partition('.')[2])}f}" == printed


def paper_table():
    """Return ``paper()`` as lines of text."""
    rows, line = paper(), "{:9}{:31}{:>9}{:>11}{:>8}{:>11}{:>8}{:>10}{:>10}  {}"
    lines = [
        "GFLOPs as printed, counted as multiply-adds alone, and with elementwise terms; parameters in millions",
        "(Tables 11 and 12 count a multiply-add as 2 and nothing else)",
        line.format("", "", "printed", "mult-adds", "%", "with elem.", "%", "printed", "counted", "").rstrip(),
    ]
    for printed, row in zip(PAPER, rows, strict=True):
        errors = ["" if (e := row[f"{name}_error"]) is None else f"{e:+.1f}" for name in ("macs", "gflops")]
        macs, flops = f"{row['counted_macs']:.5g}", f"{row['counted_gflops']:.5g}"
        cells = (printed.gflops, macs, errors[0], flops, errors[1], printed.params, f"{row['counted_params']:.2f}")
        lines.append(line.format(row["where"], row["model"], *cells, row["note"]).rstrip())
    agree = sum(row["agrees"] for row in rows)
    lines.append(f"{agree} of {len(rows)} rows agree; the others have a remark beside them")
    return "\n".join([*lines, f"counted without a published number: {UNPUBLISHED}"])
