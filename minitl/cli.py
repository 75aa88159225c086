"""The command line: ``minitl train | eval | maps``. Options are made from the configuration dataclasses."""

import difflib
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import tyro
from tqdm import tqdm
from tyro.conf import OmitArgPrefixes, Positional, Suppress

from .backend import InputError
from .nn import ViTConfig
from .report import box_share
from .train import TrainConfig, Trainer, load_config


@dataclass(frozen=True)
class ModelOptions(ViTConfig):
    image_size: Suppress[tuple[int, int]] = (32, 32)  # what the data set says is no option
    channels: Suppress[int] = 3
    num_classes: Suppress[int] = 8


@dataclass(frozen=True)
class TrainOptions(TrainConfig):
    dataset: Positional[str] = "clutter"
    model: OmitArgPrefixes[ModelOptions] = field(default_factory=lambda: ModelOptions(**vars(TrainConfig().model)))


@dataclass(frozen=True)
class RunOptions(TrainOptions):
    out: Path | None = None
    """new folder for the results; by default runs/DATASET, with a number if that exists"""
    resume: Path | None = None
    """go on with the run in this folder, with the options it was started with"""


@dataclass(frozen=True)
class EvalOptions:
    run: Positional[Path]
    """folder of a run"""


@dataclass(frozen=True)
class MapsOptions:
    run: Positional[Path]
    """folder of a run"""
    out: Path | None = None
    """picture to write; maps.png in the folder by default"""
    images: int = 8
    """number of test images"""


def train(args):
    """train a tiny ViT with TokenLearner, and leave curves, maps and a checkpoint"""
    options = _parse(RunOptions, "train", args)
    if options.resume:
        options = _parse(RunOptions, "train", args, default=_saved_options(options.resume))
    trainer = Trainer(_config(options), options.resume or options.out or _new_folder(options.dataset))
    if options.resume:
        trainer.resume()
        print(f"resumed {trainer.folder} at step {trainer.step} of {trainer.total}")
    else:
        trainer.start()
    print(trainer.describe())
    if not trainer.fit(log=tqdm.write):
        print(f"stopped at step {trainer.step} of {trainer.total}; go on with: minitl train --resume {trainer.folder}")
        return
    _print_result(trainer)
    print(f"results are in {trainer.folder}: " + ", ".join(sorted(p.name for p in trainer.folder.iterdir())))


def evaluate(args):
    """print loss and accuracy of a run on its test images"""
    _print_result(_load_run(_parse(EvalOptions, "eval", args).run))


def maps(args):
    """draw what each learned token looks at, over test images of a run"""
    options = _parse(MapsOptions, "maps", args)
    out = options.out or options.run / "maps.png"
    _load_run(options.run).draw_maps(out, options.images)
    print(f"wrote {out}")


COMMANDS = {"train": train, "eval": evaluate, "maps": maps}


def main():
    """Run the command in ``sys.argv``; what a person can mend ends in one line on stderr and exit status 2."""
    name, *args = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: minitl COMMAND [options]\n")
        print("\n".join(f"  {name:6} {command.__doc__}" for name, command in COMMANDS.items()))
        print("\nOptions of a command: minitl COMMAND --help")
        return
    try:
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS)
            hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
            raise InputError(f"unknown command {name!r}; {hint}")
        COMMANDS[name](args)
    except InputError as error:
        print(f"minitl: {error}", file=sys.stderr)
        sys.exit(2)


def _parse(options, name, args, default=None):
    return tyro.cli(options, prog=f"minitl {name}", args=args, default=default)


def _config(options):
    """The TrainConfig among the options."""
    return TrainConfig(**{f.name: getattr(options, f.name) for f in fields(TrainConfig)})


def _saved_options(folder):
    """Options as they were when the run in ``folder`` was started, so that those not given keep their values."""
    saved = load_config(folder)
    return RunOptions(**{**vars(saved), "model": ModelOptions(**vars(saved.model))}, resume=folder)


def _load_run(folder):
    trainer = Trainer(load_config(folder), folder)
    trainer.resume()
    return trainer


def _new_folder(dataset):
    """runs/clutter, or the first of runs/clutter-2, runs/clutter-3 … that does not exist."""
    stem = Path("runs") / Path(dataset).name.split(".")[0]
    names = [stem, *(stem.with_name(f"{stem.name}-{i}") for i in range(2, 10_000))]
    return next(folder for folder in names if not folder.exists())


def _print_result(trainer):
    result = trainer.evaluate()
    print(f"test loss      {result['loss']:.4f}\ntest accuracy  {result['accuracy']:.2%}")
    if "map_mass" in result:
        even = box_share(trainer.test_set.boxes, trainer.config.model.image_size)
        print(f"map mass       {result['map_mass']:.3f} on the target object (even maps would have {even:.3f})")
