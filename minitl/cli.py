"""The command line; its options are the fields of the configuration dataclasses."""

import argparse
import contextlib
import functools
import itertools
import json
import logging
import os
import shlex
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm
from tyro.conf import OmitArgPrefixes, Positional, arg

from . import __version__, flops, interop
from .errors import InputError, did_you_mean
from .metrics import box_share
from .nn import DataSpec, ViTConfig
from .paper import ablate, fewshot, seeds, tables
from .teach import core, course
from .train import (
    TrainConfig,
    default_config,
    draw_maps,
    evaluate,
    files,
    load_config,
    load_model,
    load_run,
    predict,
    presets,
    resume,
    start,
)
from .train.pictures import png

MOST_IMAGES = 64  # in one figure


@dataclass(frozen=True)
class TrainOptions(TrainConfig):
    dataset: Positional[Annotated[str, arg(metavar="[DATASET]")]] = "clutter"
    model: OmitArgPrefixes[ViTConfig] = field(default_factory=lambda: TrainConfig().model)
    preset: str | None = None
    """defaults from a recipe: cifar-r1, -r1-muon, -r2, -r3 or -cpu, with -all (no TokenLearner) or -grid (pooling)"""
    out: Path | None = None
    """new folder for the results; by default runs/DATASET, numbered if that exists"""
    resume: Path | None = None
    """continue the run in this folder with its own options"""
    seeds: int | None = None
    """number of runs, with this seed and the next ones, in folders below --out; repeat the command to continue"""
    verbose: bool = False
    """print to stderr the ops that do not run in their fastest form on a GPU"""


@dataclass(frozen=True)
class EvalOptions:
    run: Positional[Path]
    """folder of a run"""
    flip: bool = False
    """also average the logits of each image and its mirror image"""


@dataclass(frozen=True)
class MapsOptions:
    run: Positional[Path]
    """folder of a run"""
    out: Path | None = None
    """PNG to write; by default maps.png or stages.png in the folder of the run"""
    images: int | None = None
    """number of test images or clips; by default 8 images or 2 clips"""
    stages: bool = False
    """show how strongly each stage of the model responds at each place instead of the tokens' maps"""


@dataclass(frozen=True)
class PredictOptions:
    run: Positional[Path]
    """folder of a run"""
    pictures: Positional[tuple[Path, ...]]
    """files of any size; their central part is resized to the size of the run's images"""
    out: Path | None = None
    """PNG to write; by default predict.png in the folder of the run"""


@dataclass(frozen=True)
class ExportOptions:
    run: Positional[Path]
    """folder of a run"""
    file: Positional[Path]
    """safetensors file to write"""


@dataclass(frozen=True)
class FlopsOptions:
    preset: Positional[str] = ""
    """a model of the paper, such as B/16-8at6; --paper lists them"""
    model: OmitArgPrefixes[ViTConfig] = field(default_factory=ViTConfig)
    spec: OmitArgPrefixes[DataSpec] = field(default_factory=DataSpec)
    paper: bool = False
    """list all published costs beside the counted ones"""
    json: bool = False
    """print JSON"""


@dataclass(frozen=True)
class AblateOptions:
    kind: Positional[Annotated[str, arg(metavar="KIND")]]
    """location, tokens, fuser, pooling, back, tokenizer, reduce, video; recipe, overfit (CIFAR-10); or a preset"""
    dataset: str | None = None
    """another data set, as for `minitl train`"""
    seeds: int | None = None
    """number of seeds for each model; by default 2, or 1 with --quick"""
    quick: bool = False
    """train one epoch on few images, to check that everything runs"""
    epochs: int | None = None
    """passes over the training images in each run"""
    minutes: float | None = None
    """train each run for as many epochs as fit into this time"""
    subset: int | None = None
    """train on at most this many images"""
    device: Literal["cpu", "cuda"] | None = None
    """device to compute on"""
    precision: Literal["fp32", "tf32", "bf16"] | None = None
    """precision on a GPU, as for `minitl train`"""
    out: Path | None = None
    """folder for the runs and results; by default runs/ablate-KIND"""


@dataclass(frozen=True)
class FewshotOptions:
    run: Positional[Path]
    """folder of a run"""
    shots: int = 5
    """training images of each class"""
    draws: int = 5
    """number of random draws of these images"""
    dataset: str | None = None
    """another data set of images of the same size; by default that of the run"""
    l2: float = 100.0
    """weight of the squared weights in the regression"""


@dataclass(frozen=True)
class CourseOptions:
    what: Positional[
        Literal["build", "check", "grade", "feedback", "gradescope", "classroom50", "pytest", "handout", "test"]
    ]
    """what to do; notebooks/assignments/README.md explains it"""
    names: Positional[tuple[str, ...]] = ()
    """folder of the course, then assignments such as A1, by default all; for handout, ops"""
    seconds: int = core.SECONDS
    """time limit of a cell"""


def train_command(args):
    """train a tiny ViT with TokenLearner, and write curves, maps and a checkpoint"""
    options = _train_options(args)
    config = TrainConfig(**{f.name: getattr(options, f.name) for f in fields(TrainConfig)})
    command = shlex.join(["minitl", "train", *args])
    if options.verbose:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("minitl").setLevel(logging.INFO)
    if options.seeds is not None:
        return _train_seeds(options, config, command)
    if options.resume:
        trainer = resume(options.resume, config)
        print(f"continuing {trainer.folder} after step {trainer.step} of {trainer.total}")
    else:
        trainer = start(config, options.out or _new_folder(options.dataset), command)
    how = f"continue with: minitl train --resume {shlex.quote(str(trainer.folder))}"
    with _closed_output(how):
        print(trainer.describe(), flush=True)
        if not trainer.fit(on_epoch=lambda row: _print_epoch(trainer, row)):
            print(f"stopped and saved after step {trainer.step} of {trainer.total}; {how}", flush=True)
            sys.exit(130)
    _print_result(trainer.result, trainer.test_set)
    print(f"results are in {trainer.folder}: {', '.join(sorted(path.name for path in trainer.folder.iterdir()))}")


def _train_seeds(options, config, command):
    name = "-".join(filter(None, [_name_of(options.dataset), options.preset]))
    folder = options.out or Path("runs") / f"{name}-seeds"
    score, rows = ablate.score_of(config), []
    runs = seeds.plan(name, config, options.seeds, folder)
    seeds.begin(folder, command)
    print_once = functools.cache(lambda text: print(text, flush=True))  # the same for all seeds
    for row in _results(runs, score, command, lambda trainer: print_once(trainer.describe()), _print_epoch):
        rows.append(row)
        files.write_csv(folder / "results.csv", row, rows)
    (mean,) = ablate.summary(rows)
    spread = f" ± {mean['spread']:.2%} (mean ± standard deviation of {len(rows)} seeds)" if "spread" in mean else ""
    print(f"\ntest {score:8}  {mean['accuracy']:.2%}{spread}")
    print(f"results are in {folder}: results.csv, and a folder for each run")


def eval_command(args):
    """print loss and accuracy of a run on its test images"""
    options = _parse(EvalOptions, "eval", args)
    model, test_set, mean, std = load_run(options.run)
    _print_result(evaluate(model, test_set, mean, std, flip=options.flip), test_set)


def maps_command(args):
    """draw the maps of the learned tokens over test images of a run"""
    options = _parse(MapsOptions, "maps", args)
    out = _png(options.out, options.run / ("stages.png" if options.stages else "maps.png"))
    if options.images is not None and not 1 <= options.images <= MOST_IMAGES:
        raise InputError(f"--images must be from 1 to {MOST_IMAGES}, got {options.images}")
    draw_maps(out, *load_run(options.run), count=options.images, stages=options.stages)
    print(f"wrote {out}")


def predict_command(args):
    """predict the classes of your own pictures, and draw the maps of the learned tokens"""
    options = _parse(PredictOptions, "predict", args)
    out = _png(options.out, options.run / "predict.png")
    if not 1 <= len(options.pictures) <= MOST_IMAGES:
        raise InputError(f"give from 1 to {MOST_IMAGES} picture files, got {len(options.pictures)}")
    prediction = predict(options.run, options.pictures)
    print(prediction.table())
    if prediction.maps is None:
        print("no figure: the tokens of this model do not come from maps")
    else:
        files.write(out, png(prediction.figure()))
        print(f"wrote {out}")


def export_command(args):
    """write the weights of a run with PyTorch's names and shapes"""
    options = _parse(ExportOptions, "export", args)
    if options.file.suffix != ".safetensors":
        raise InputError(f"{options.file} is not the name of a safetensors file; choose one that ends in .safetensors")
    if options.file.exists():
        raise InputError(f"{options.file} exists already; choose another name")
    model, meta = load_model(options.run)
    files.write(
        options.file, interop.torch_file(model, {name: json.dumps(meta[name]) for name in ("classes", "mean", "std")})
    )
    print(f"wrote {options.file}: {len(model.state_dict())} arrays, {model.num_parameters():,} parameters")


def flops_command(args):
    """count parameters, multiply-adds and memory of a model, or list those of the paper"""
    name = tables.find(args[0]) if args and not args[0].startswith("-") else ""
    fixed = name in tables.SPECIAL
    if fixed and set(args[1:]) - {"--json", "--help", "-h"}:
        tables.preset(name)  # raises the error that it has no options
    model = tables.preset(name) if name and not fixed else ()
    options = _parse(FlopsOptions, "flops", args, default=FlopsOptions(name, *model))
    if options.paper:
        print(json.dumps(tables.paper(), indent=1) if options.json else tables.paper_table())
        return
    if not name:
        raise InputError(
            "the name of a model comes first, as in `minitl flops B/16-8at6 --json`; `minitl flops --paper` lists them"
        )
    parts = tables.count_preset(name) if fixed else flops.count(options.model, options.spec)
    print(json.dumps(flops.as_dict(parts), indent=1) if options.json else flops.table(parts))


def ablate_command(args):
    """train all models of one of the paper's ablations, and compare them"""
    options = _parse(AblateOptions, "ablate", args)
    folder = options.out or ablate.folder_of(options.kind, options.dataset, options.quick)
    count = options.seeds if options.seeds is not None else 1 if options.quick else 2
    changes = {name: getattr(options, name) for name in ("epochs", "minutes", "subset", "device", "precision")}
    runs = ablate.plan(options.kind, folder, count, options.dataset, options.quick, **changes)
    score = ablate.score_of(runs[0].config)
    rows = list(_results(runs, score, shlex.join(["minitl", "ablate", *args])))
    ablate.save(rows, folder, score)
    print(
        f"\n{ablate.table(rows, score)}\n\nresults are in {folder}: results.csv, results.png, and a folder for each run"
    )


def _results(runs, score, command, *callbacks):
    """Finish Runs; print and yield their results one by one. Ctrl-C ends it with the ``command`` that continues."""
    for i, run in enumerate(runs, 1):
        how = f"the same command continues from there:\n{command}"
        with _closed_output(how):
            row = run.finish(*callbacks)
            if row is None:
                print(f"stopped and saved in {run.folder}; {how}", flush=True)
                sys.exit(130)
            result = f"{score} {row['accuracy']:.2%}   {row['seconds']:.0f} s"
            print(f"{i:3d}/{len(runs)}   {run.name:22} seed {run.seed}   {result}", flush=True)
        yield row


@contextlib.contextmanager
def _closed_output(how):
    """If stdout is closed, let training end after that epoch, and print to stderr ``how`` to continue."""
    try:
        yield
    except BrokenPipeError:
        print(f"minitl: the output was closed; stopped and saved; {how}", file=sys.stderr)
        raise


def fewshot_command(args):
    """evaluate the features of a run with a few labeled images of each class"""
    options = vars(_parse(FewshotOptions, "fewshot", args))
    accuracies = fewshot.few_shot(options.pop("run"), **options)
    spread = f", deviation {accuracies.std(ddof=1):.2%}" if len(accuracies) > 1 else ""
    print(f"{options['shots']}-shot accuracy  {accuracies.mean():.2%} (mean of {len(accuracies)} draws{spread})")


def course_command(args):
    """hand out assignments, check and grade what students hand in"""
    options = _parse(CourseOptions, "course", args)
    for line in course.run(options.what, options.names, options.seconds):
        print(line, flush=True)


COMMANDS = {
    "train": train_command,
    "eval": eval_command,
    "maps": maps_command,
    "predict": predict_command,
    "export": export_command,
    "flops": flops_command,
    "ablate": ablate_command,
    "fewshot": fewshot_command,
    "course": course_command,
}


def main(args=None):
    """Run the command in ``args`` (``sys.argv`` by default)."""
    name, *args = (sys.argv[1:] if args is None else args) or ["--help"]
    with exit_status():
        _run(name, args)


@contextlib.contextmanager
def exit_status():
    """End with one message on stderr and exit status 2 after an error that a person can fix.

    Ctrl-C ends with exit status 130, and a closed stdout, as by ``| head``, with 141, like signals in a shell.
    """
    try:
        try:
            yield
        finally:
            print(end="", flush=True)
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):  # Python flushes them at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(141)
    except (InputError, OSError) as error:
        print(f"minitl: {error}", file=sys.stderr)
        sys.exit(2)
    except MemoryError as error:
        print(f"minitl: not enough memory ({error}); choose a smaller model or batch size", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("minitl: interrupted; everything saved before is kept", file=sys.stderr)
        sys.exit(130)


def _run(name, args):
    if name == "--version":
        print(f"minitl {__version__}")
    elif name in ("-h", "--help", "help"):
        print("usage: minitl COMMAND [options]\n")
        print("\n".join(f"  {name:7} {command.__doc__}" for name, command in COMMANDS.items()))
        print("\nOptions of a command: minitl COMMAND --help")
    elif name in COMMANDS:
        COMMANDS[name](args)
    else:
        raise InputError(f"unknown command {name!r}; {did_you_mean(name, COMMANDS)}")


def _png(out, default):
    """Return the file to write a figure to. Raises InputError unless it is a PNG."""
    out = out or default
    if out.suffix.lower() != ".png":
        raise InputError(f"--out {out}: the figure is a PNG; choose a name that ends in .png")
    return out


def _parse(options, name, args, default=None):
    return tyro.cli(options, prog=f"minitl {name}", description=COMMANDS[name].__doc__, args=args, default=default)


def _train_options(args):
    """Parse the options of ``minitl train``; defaults are those of the data set, the preset, or the run to resume."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", nargs="?", type=Path)
    for name in ("--preset", "--epochs", "--minutes"):
        parser.add_argument(name, nargs="?")
    known = parser.parse_known_args(args)[0]
    if known.epochs and known.minutes:
        raise InputError("--minutes and --epochs exclude each other: the time decides the number of epochs")
    run, name = known.resume, known.preset
    if run is None and name is not None:
        return _parse(TrainOptions, "train", args, default=_as_options(presets.preset(name)))
    if name is not None:
        raise InputError(f"--preset {name} and --resume exclude each other: a run continues with its own options")
    if run is None:
        dataset = _parse(TrainOptions, "train", args).dataset
        return _parse(TrainOptions, "train", args, default=_as_options(default_config(dataset)))
    saved = load_config(run)
    if not isinstance(saved.model, ViTConfig):
        raise InputError(f"{run} is a run of `minitl ablate`; continue it by that command")
    options = _parse(TrainOptions, "train", args, default=_as_options(saved))
    if options.out:
        raise InputError(f"--out {options.out} and --resume exclude each other: a run continues in its own folder")
    if options.seeds is not None:
        raise InputError("--seeds and --resume exclude each other: repeat the command with --seeds to continue it")
    return options


def _as_options(config):
    return TrainOptions(**vars(config))


def _name_of(dataset):
    """Return the name for a folder of runs on a data set."""
    return Path(dataset).resolve().name.strip(".").split(".")[0] or "run"


def _new_folder(dataset):
    """Return runs/clutter, or the first of runs/clutter-2, runs/clutter-3 … that does not exist."""
    stem = Path("runs") / _name_of(dataset)
    names = itertools.chain([stem], (stem.with_name(f"{stem.name}-{i}") for i in itertools.count(2)))
    return next(folder for folder in names if not folder.exists())


def _print_epoch(trainer, row):
    """Print a row of metrics.csv above the progress bar."""
    epochs, score = trainer.config.epochs, trainer.score
    train = f"train loss {row['train_loss']:.3f}  {score} {row['train_accuracy']:.1%}"
    test = f"test loss {row['test_loss']:.3f}  {score} {row['test_accuracy']:.1%}"
    tqdm.write(f"epoch {row['epoch']:3d}/{epochs}   {train}   {test}   {row['seconds']:.0f} s")
    sys.stdout.flush()


def _print_result(result, test_set):
    score = "mAP" if test_set.multi_label else "accuracy"
    print(f"test loss      {result['loss']:.4f}\ntest {score:8}  {result['accuracy']:.2%}")
    if "flip_accuracy" in result:
        print(f"flip averaging {result['flip_accuracy']:.2%} (mean logits of each image and its mirror image)")
    if "map_mass" in result:
        even = box_share(test_set.boxes, test_set.images.shape[-3:-1])
        where = "the target object" if test_set.boxes.ndim == 2 else "the actors"  # of clips
        print(f"map mass       {result['map_mass']:.3f} on {where} (even maps would have {even:.3f})")
