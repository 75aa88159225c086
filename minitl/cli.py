"""The command line: ``minitl train | eval | maps``. Options are made from the configuration dataclasses."""

import argparse
import difflib
import itertools
import shlex
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import tyro
from tqdm import tqdm
from tyro.conf import OmitArgPrefixes, Positional, Suppress

from .backend import InputError
from .nn import ViTConfig
from .report import box_share
from .train import TrainConfig, draw_maps, evaluate, load_config, load_run, resume, start

MOST_IMAGES = 64  # in one picture


@dataclass(frozen=True)
class ModelOptions(ViTConfig):
    image_size: Suppress[tuple[int, int]] = (32, 32)  # these three are the data set's to say
    channels: Suppress[int] = 3
    num_classes: Suppress[int] = 8

    def __post_init__(self):
        """Check what does not depend on the images, by a size that fits all patches and numbers of tokens."""
        side = self.patch_size * self.num_tokens
        ViTConfig(**vars(self) | {"image_size": (side, side)})


@dataclass(frozen=True)
class TrainOptions(TrainConfig):
    dataset: Positional[str] = "clutter"
    model: OmitArgPrefixes[ModelOptions] = field(default_factory=lambda: ModelOptions(**vars(TrainConfig().model)))
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
    """PNG to write; maps.png in the folder by default"""
    images: int = 8
    """number of test images"""


def train_command(args):
    """train a tiny ViT with TokenLearner, and leave curves, maps and a checkpoint"""
    options = _train_options(args)
    config = TrainConfig(**{f.name: getattr(options, f.name) for f in fields(TrainConfig)})
    if options.resume:
        trainer = resume(options.resume, config)
        print(f"going on with {trainer.folder} after step {trainer.step} of {trainer.total}")
    else:
        trainer = start(config, options.out or _new_folder(options.dataset))
    print(trainer.describe(), flush=True)
    if not trainer.fit(on_epoch=lambda row: _print_epoch(row, config.epochs)):
        how = f"minitl train --resume {shlex.quote(str(trainer.folder))}"
        print(f"stopped and saved after step {trainer.step} of {trainer.total}; go on with: {how}")
        sys.exit(130)
    _print_result(trainer.evaluate(), trainer.test_set)
    print(f"results are in {trainer.folder}: {', '.join(sorted(path.name for path in trainer.folder.iterdir()))}")


def eval_command(args):
    """print loss and accuracy of a run on its test images"""
    model, test_set, mean, std = load_run(_parse(EvalOptions, "eval", args).run)
    _print_result(evaluate(model, test_set, mean, std), test_set)


def maps_command(args):
    """draw what each learned token looks at, over test images of a run"""
    options = _parse(MapsOptions, "maps", args)
    out = options.out or options.run / "maps.png"
    if not 1 <= options.images <= MOST_IMAGES:
        raise InputError(f"--images is from 1 to {MOST_IMAGES}, got {options.images}")
    if out.suffix.lower() != ".png":
        raise InputError(f"--out {out}: the picture is a PNG; choose a name that ends in .png")
    draw_maps(out, *load_run(options.run), count=options.images)
    print(f"wrote {out}")


COMMANDS = {"train": train_command, "eval": eval_command, "maps": maps_command}


def main(args=None):
    """Run the command in ``args`` (``sys.argv`` by default).

    What a person can mend ends in one message on stderr and exit status 2; Ctrl-C ends in exit status 130.
    """
    name, *args = (sys.argv[1:] if args is None else args) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: minitl COMMAND [options]\n")
        print("\n".join(f"  {name:6} {command.__doc__}" for name, command in COMMANDS.items()))
        print("\nOptions of a command: minitl COMMAND --help")
        return
    try:
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, 1)
            hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
            raise InputError(f"unknown command {name!r}; {hint}")
        COMMANDS[name](args)
    except (InputError, OSError) as error:
        print(f"minitl: {error}", file=sys.stderr)
        sys.exit(2)
    except MemoryError as error:
        print(f"minitl: not enough memory ({error}); choose a smaller model or batch size", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("minitl: interrupted; whatever was saved before is still there", file=sys.stderr)
        sys.exit(130)


def _parse(options, name, args, default=None):
    return tyro.cli(options, prog=f"minitl {name}", args=args, default=default)


def _train_options(args):
    """Options for ``minitl train``; those not given are the defaults, or with ``--resume`` those of that run."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", nargs="?", type=Path)
    run = parser.parse_known_args(args)[0].resume
    if run is None:
        return _parse(TrainOptions, "train", args)
    saved = vars(load_config(run))
    saved = TrainOptions(**saved | {"model": ModelOptions(**vars(saved["model"]))})
    options = _parse(TrainOptions, "train", args, default=saved)
    if options.out:
        raise InputError(f"--out {options.out} and --resume exclude each other: a run goes on in its own folder")
    return options


def _new_folder(dataset):
    """runs/clutter, or the first of runs/clutter-2, runs/clutter-3 … that does not exist."""
    stem = Path("runs") / (Path(dataset).resolve().name.strip(".").split(".")[0] or "run")
    names = itertools.chain([stem], (stem.with_name(f"{stem.name}-{i}") for i in itertools.count(2)))
    return next(folder for folder in names if not folder.exists())


def _print_epoch(row, epochs):
    """A line for a row of metrics.csv, above the progress bar where there is one."""
    train = "train loss {train_loss:.3f}  accuracy {train_accuracy:.1%}".format(**row)
    test = "test loss {test_loss:.3f}  accuracy {test_accuracy:.1%}".format(**row)
    tqdm.write(f"epoch {row['epoch']:3d}/{epochs}   {train}   {test}   {row['seconds']:.0f} s")
    sys.stdout.flush()


def _print_result(result, test_set):
    print(f"test loss      {result['loss']:.4f}\ntest accuracy  {result['accuracy']:.2%}")
    if "map_mass" in result:
        even = box_share(test_set.boxes, test_set.images.shape[1:3])
        print(f"map mass       {result['map_mass']:.3f} on the target object (even maps would have {even:.3f})")
