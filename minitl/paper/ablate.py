"""The paper's ablations at toy size, ablations of a training recipe, and presets beside their variants: tables of runs.

Each model is trained with each seed in a run folder of its own, and the results are read from those folders. So the
same call continues where it was stopped and does not repeat finished runs.
"""

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

from .. import data, flops, train
from ..errors import InputError, did_you_mean
from ..nn import X21DConfig
from ..train import TrainConfig, files, pictures
from ..train.config import absolute, load_config
from ..train.presets import TWINS, preset
from ..train.run import CHECKPOINT, CURVES, load_checkpoint

IMAGES = train.default_config("clutter")  # 8 tokens by TokenLearner 1.1 before the first of 2 blocks
CLIPS = train.default_config("actors")
PHOTOS = replace(preset("cifar-cpu"), epochs=3)
MIX = {"mixup": 0.8, "cutmix": 1.0, "mix_until": 0.6}
ALL = MIX | {"crop": 4, "rand_augment": 2, "label_smoothing": 0.1}  # options of the presets for a GPU, besides flips
PAPER = {"version": "1.0", "pre_norm": True}  # convolutions and sigmoid, after Scenic's LayerNorm
SLOW = {"epochs": 3, "batch_size": 32}  # for models that take ten times as long for a clip
QUICK = {"epochs": 1, "subset": 200}


def image(**options):
    """Return the default run on images with other options of its model."""
    return replace(IMAGES, model=replace(IMAGES.model, **options))


def deep(**options):
    """Return ``image(...)`` with twice as many blocks and half as many epochs."""
    return replace(image(layers=4, **options), epochs=IMAGES.epochs // 2)


def clip(**options):
    """Return the default run on clips with other options of its model."""
    return replace(CLIPS, model=replace(CLIPS.model, **options))


def photo(model=None, **options):
    """Return the preset for CIFAR on a CPU with half of its epochs and other options of its ``model`` or training."""
    return replace(PHOTOS, model=replace(PHOTOS.model, **model or {}), **options)


def few(model=None, **options):
    """Return ``photo(...)`` on plain patches and a tenth of the images, with enough epochs to overfit."""
    return replace(photo({"stem": "patch"} | (model or {}), **options), subset=5000, epochs=20)


KINDS = {
    # the share of the blocks that see all tokens (paper, Figure 5)
    "location": {f"loc {i / 4:g}": deep(loc=i) for i in range(4)} | {"all tokens": deep(tokenizer="none")},
    "tokens": {f"{n} tokens": image(num_tokens=n) for n in (1, 2, 4, 8, 16)},
    # all tokens come back behind each block from loc on, or never (Table 4)
    "fuser": {
        "loc 0, off": deep(),
        "loc 0, on": deep(back="fuser"),
        "loc 0.5, off": deep(loc=2),
        "loc 0.5, on": deep(loc=2, back="fuser"),
    },
    # how tokens are averaged; after a block, which mixes them, it matters less (Table 5)
    "pooling": {
        "1.0, mean": image(**PAPER),
        "1.0, sum": image(**PAPER, pool="sum"),
        "1.1": image(),
        **{f"grid of {n}": image(tokenizer="pool", num_tokens=n) for n in (1, 4, 8, 16)},
        "1.1, loc 0.5": image(loc=1),
        "grid of 8, loc 0.5": image(tokenizer="pool", loc=1),
    },
    # ways back from the middle of the model (Figure 8)
    "back": {name: deep(loc=2, back=name) for name in ("none", "fuser", "unpool", "reproject")},
    # eight tokens, computed in different ways; and all 64 (Table 11)
    "tokenizer": {
        "learner 1.1": image(),
        "learner 1.0": image(**PAPER),
        **{name: image(tokenizer=name) for name in ("gate", "query", "static", "pool", "dense", "mean-dense")},
        "all tokens": image(tokenizer="none"),
    },
    # rules without weights, which need a block's attention to all tokens first, beside what else can stand there
    "reduce": {
        "learner": image(),
        "learner, loc 0.5": image(loc=1),
        "grid of 8, loc 0.5": image(tokenizer="pool", loc=1),
        "merge 32": image(tokenizer="merge", num_tokens=32),
        **{f"top-k {n}": image(tokenizer="topk", num_tokens=n) for n in (32, 16, 8)},
        "all tokens": image(tokenizer="none"),
    },
    # tokens of each frame; and the bottleneck model with tokens and without (Tables 11 and 12)
    "video": {
        "learner 4": clip(num_tokens=4),
        "learner 1": clip(num_tokens=1),
        "grid of 4": clip(num_tokens=4, tokenizer="pool"),
        "global average": clip(num_tokens=1, tokenizer="pool"),
        "bottleneck, tokens": replace(CLIPS, model=X21DConfig(), **SLOW),
        "bottleneck, conv": replace(CLIPS, model=X21DConfig(last="conv"), **SLOW),
    },
    # a part of the recipe for CIFAR left out, replaced, or added
    "recipe": {
        "cifar-cpu": photo(),
        "AdamW": photo(optimizer="adamw", lr=3e-3),
        "no flip": photo(flip=False),
        "crop 4": photo(crop=4),
        "patch stem": photo({"stem": "patch"}),
        "sequence pooling": photo({"head_pool": "sequence"}),
        "TokenLearner 1.0": photo(PAPER),
        "grid of 16": photo({"tokenizer": "pool"}),
        "all tokens": photo({"tokenizer": "none"}),
        "EMA 0.99": photo(ema=0.99),
        "all regularization": photo(**ALL),
    },
    # remedies for overfitting
    "overfit": {
        "flip": few(),
        "no flip": few(flip=False),
        "crop 4": few(crop=4),
        "RandAugment 2": few(rand_augment=2),
        "erasing 0.25": few(erasing=0.25),
        "mixup and cutmix": few(**MIX),
        "label smoothing 0.1": few(label_smoothing=0.1),
        "drop path 0.1": few({"drop_path": 0.1}),
        "all regularization": few(**ALL),
        "flip, 60 epochs": replace(few(), epochs=60),
        "all, 60 epochs": replace(few(**ALL), epochs=60),
    },
    # presets for CIFAR, with learned tokens, all tokens, and those of a grid
    **{name: {twin: preset(twin) for twin in twins} for name, twins in TWINS.items()},
}


@dataclass(frozen=True)
class Run:
    """One training run of an ablation."""

    name: str
    seed: int
    config: TrainConfig
    folder: Path

    def result(self):
        """Return a row of results.csv as a dict, or None if the run is not finished.

        Raises InputError if its folder holds a run with other options, or metrics that cannot be read.
        """
        if not self._exists():
            return None
        _, meta = load_checkpoint(self.folder, self.own_config())
        if not (self.folder / CURVES).is_file():
            return None
        epochs = self.own_config().epochs
        try:
            with open(self.folder / "metrics.csv", newline="") as file:
                last = {int(row["epoch"]): row for row in csv.DictReader(file)}[epochs]
            metrics = {"accuracy": float(last["test_accuracy"]), "seconds": float(last["seconds"])}
        except (OSError, ValueError, LookupError, TypeError) as error:
            path = self.folder / "metrics.csv"
            raise InputError(
                f"{path} is damaged ({error!r}); `minitl train --resume {self.folder}` repairs it"
            ) from error
        model, spec = self.config.model, meta["spec"]
        cost = flops.total(flops.count(model, spec))
        about = {"tokens": _token_counts(model, spec), "parameters": cost.params, "macs": cost.macs, "epochs": epochs}
        return {"name": self.name, "seed": self.seed} | about | metrics

    def finish(self, on_start=lambda trainer: None, on_epoch=lambda trainer, row: None):
        """Train until the run is finished. Returns ``result()``: None after Ctrl-C, with everything saved.

        ``on_start`` is called with the Trainer, if there is anything to train; ``on_epoch`` with the Trainer and
        each new row, as in ``Trainer.fit``. Raises InputErrors of ``train`` and ``result``, with the name of the run.
        """
        try:
            if row := self.result():
                return row
            trainer = train.resume(self.folder) if self._exists() else train.start(self.config, self.folder)
            on_start(trainer)
            return self.result() if trainer.fit(lambda row: on_epoch(trainer, row)) else None
        except InputError as error:
            raise InputError(f"{self.name}, seed {self.seed}, in {self.folder}: {error}") from error

    def own_config(self):
        """Return the TrainConfig saved in ``folder``, in which a run with ``minutes`` has its measured ``epochs``."""
        return replace(self.config, epochs=load_config(self.folder).epochs) if self.config.minutes else self.config

    def _exists(self):
        return (self.folder / CHECKPOINT).is_file()


def plan(kind, folder, seeds=2, dataset=None, quick=False, **changes):
    """Return the Runs of an ablation in folders below ``folder``: all models with seed 0, then all with seed 1, etc.

    ``dataset`` replaces the generated one. ``quick`` is one epoch on few images, only to show that all models run.
    ``changes`` are other fields of all TrainConfigs, such as ``device``; None leaves a field unchanged. Raises
    InputError for an unknown kind, fewer than one seed, and a data set that does not fit.
    """
    if kind not in KINDS:
        raise InputError(f"there is no ablation {kind!r}; {did_you_mean(kind, KINDS)}")
    if seeds < 1:
        raise InputError(f"seeds must be at least 1, got {seeds}")
    given = {name: value for name, value in changes.items() if value is not None}
    if given.get("minutes") and (quick or "epochs" in given):
        raise InputError("minutes decide the number of epochs; leave out epochs and quick")
    if dataset and (kind == "video") != (dataset in data.CLIPS):
        takes, has = ("clips", "images") if kind == "video" else ("images", "clips")
        raise InputError(f"the ablation {kind} needs {takes}, and {dataset} has {has}; choose another data set")
    changes = ({"dataset": dataset} if dataset else {}) | (QUICK if quick else {}) | given
    configs = {name: absolute(replace(config, **changes)) for name, config in KINDS[kind].items()}
    return [
        Run(name, seed, replace(config, seed=seed), Path(folder) / _slug(f"{name} seed{seed}"))
        for seed in range(seeds)
        for name, config in configs.items()
    ]


def folder_of(kind, dataset=None, quick=False):
    """Return the folder of an ablation: runs/ablate-tokens, runs/ablate-tokens-photos-quick."""
    name = Path(dataset).resolve().name.partition(".")[0] if dataset else ""
    return Path("runs") / _slug(f"ablate {kind} {name} {'quick' if quick else ''}")


def score_of(config):
    """Return the kind of accuracy in a run of a TrainConfig."""
    return "mAP" if config.dataset in data.CLIPS else "accuracy"


def summary(rows):
    """Return a dict per model: means of ``accuracy``, ``epochs`` and ``seconds`` over its seeds, and ``spread``.

    ``rows`` are results of Runs, in any order. The spread is the standard deviation of the accuracy; it is absent with
    one seed.
    """
    groups = {}
    for row in rows:
        groups.setdefault(row["name"], []).append(row)
    means = []
    for group in groups.values():
        values = {key: [row[key] for row in group] for key in ("accuracy", "epochs", "seconds")}
        spread = {"spread": stdev(values["accuracy"])} if len(group) > 1 else {}
        means.append(group[0] | {key: mean(x) for key, x in values.items()} | {"seeds": len(group)} | spread)
    return means


def table(rows, score="accuracy"):
    """Return the ``summary`` of ``rows`` as lines of text; ``score`` is the kind of accuracy."""
    line = "{:22}{:>9}{:>12}{:>15}{:>11}{:>9}{:>7}{:>8}{:>9}"
    names = "tokens", "parameters", "multiply-adds", score, "spread", "seeds", "epochs", "seconds"
    lines = [line.format("", *names)]
    for row in summary(rows):
        cost = flops.short(row["parameters"]), flops.short(row["macs"])
        spread = f"{row['spread']:.2%}" if "spread" in row else ""
        cells = f"{row['accuracy']:.2%}", spread, row["seeds"], f"{row['epochs']:.0f}", f"{row['seconds']:.0f}"
        lines.append(line.format(row["name"], row["tokens"], *cost, *cells))
    return "\n".join(lines)


def save(rows, folder, score="accuracy"):
    """Write ``rows`` to results.csv in ``folder``, and their means against the multiply-adds to results.png."""
    files.write_csv(Path(folder) / "results.csv", rows[0], rows)
    figure = pictures.accuracy_against_cost(summary(rows), score)
    files.write(Path(folder) / "results.png", pictures.png(figure))


def _token_counts(model, spec):
    """Return the number of a sample's tokens, before and after a tokenizer if there is one, such as "64 -> 8"."""
    if isinstance(model, X21DConfig):
        return ""
    frames, rows, columns = model.grid(spec)
    reduced = "" if model.tokenizer == "none" else f" -> {frames * model.num_tokens}"
    return f"{frames * rows * columns}{reduced}"


def _slug(words):
    return "-".join(words.replace(",", "").split())
