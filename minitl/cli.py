"""The command line; the options of its commands are made from the configuration dataclasses."""

import argparse
import contextlib
import functools
import itertools
import json
import os
import shlex
import sys
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path

import tyro
from tqdm import tqdm
from tyro.conf import OmitArgPrefixes, Positional, Suppress

from . import flops, interop
from .errors import InputError, did_you_mean
from .metrics import box_share
from .nn import ViTConfig
from .paper import ablate, fewshot, seeds, tables
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

MOST_IMAGES = 64  # in one picture


@dataclass(frozen=True)
class ModelOptions(ViTConfig):
    image_size: Suppress[tuple[int, int]] = (32, 32)  # these four are the data set's to say
    frames: Suppress[int] = 1
    channels: Suppress[int] = 3
    num_classes: Suppress[int] = 8

    def __post_init__(self):
        """Check what does not depend on the images, by a size that fits all patches, tubelets and numbers of tokens."""
        side = self.patch_size * self.num_tokens
        ViTConfig(**vars(self) | {"image_size": (side, side), "frames": self.tubelet})


@dataclass(frozen=True)
class TrainOptions(TrainConfig):
    dataset: Positional[str] = "clutter"
    model: OmitArgPrefixes[ModelOptions] = field(default_factory=lambda: ModelOptions(**vars(TrainConfig().model)))
    preset: str | None = None
    """a recipe whose options hold where no others are given: cifar-r1, cifar-r2, cifar-r3, cifar-cpu, or one of these
    with -all (no TokenLearner) or -grid (grid pooling) behind it; its data set is cifar10"""
    out: Path | None = None
    """new folder for the results; by default runs/DATASET, with a number if that exists"""
    resume: Path | None = None
    """go on with the run in this folder, with the options it was started with"""
    seeds: int | None = None
    """train so often, with this seed and the next ones, in folders below --out, by default runs/DATASET-seeds; the same
    command goes on where it was stopped, and finished runs of other seeds there count as well"""


@dataclass(frozen=True)
class EvalOptions:
    run: Positional[Path]
    """folder of a run"""
    flip: bool = False
    """also with flip averaging: by the mean of the logits of an image and of its mirror image"""


@dataclass(frozen=True)
class MapsOptions:
    run: Positional[Path]
    """folder of a run"""
    out: Path | None = None
    """PNG to write; maps.png or stages.png in the folder by default"""
    images: int | None = None
    """number of test images or clips; 8 images or 2 clips by default"""
    stages: bool = False
    """show how strongly each stage of the model acts, and where, in place of what the tokens look at"""


@dataclass(frozen=True)
class PredictOptions:
    run: Positional[Path]
    """folder of a run"""
    pictures: Positional[tuple[Path, ...]]
    """files of any size; the middle is cut out and brought to the size of the run's images"""
    out: Path | None = None
    """PNG to write; predict.png in the folder by default"""


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
    paper: bool = False
    """what the paper publishes beside what is counted, row by row"""
    json: bool = False
    """print for machines"""


@dataclass(frozen=True)
class AblateOptions:
    kind: Positional[str]
    """location, tokens, fuser, pooling, back, tokenizer, video; recipe and overfit, on CIFAR-10"""
    dataset: str | None = None
    """another data set, as for `minitl train`; by default a generated one, or cifar10 for recipe and overfit"""
    seeds: int | None = None
    """how often each model is trained; 2, or 1 if quick"""
    quick: bool = False
    """one epoch on few images, to see that everything runs"""
    out: Path | None = None
    """folder for the runs and results; by default runs/ablate-KIND"""


@dataclass(frozen=True)
class FewshotOptions:
    run: Positional[Path]
    """folder of a run"""
    shots: int = 5
    """training images of each class"""
    draws: int = 5
    """how often they are drawn anew"""
    dataset: str | None = None
    """another data set of images of the same size; that of the run by default"""
    l2: float = 100.0
    """weight of the squared weights in the regression"""


def train_command(args):
    """train a tiny ViT with TokenLearner, and leave curves, maps and a checkpoint"""
    options = _train_options(args)
    config = TrainConfig(**{f.name: getattr(options, f.name) for f in fields(TrainConfig)})
    command = shlex.join(["minitl", "train", *args])
    if options.seeds is not None:
        return _train_seeds(options, config, command)
    if options.resume:
        trainer = resume(options.resume, config)
        print(f"going on with {trainer.folder} after step {trainer.step} of {trainer.total}")
    else:
        trainer = start(config, options.out or _new_folder(options.dataset), command)
    how = f"go on with: minitl train --resume {shlex.quote(str(trainer.folder))}"
    with _unread(how):
        print(trainer.describe(), flush=True)
        if not trainer.fit(on_epoch=lambda row: _print_epoch(row, config.epochs, trainer.score)):
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
    say_once = functools.cache(lambda text: print(text, flush=True))  # it is the same for all seeds
    says = {
        "on_start": lambda trainer: say_once(trainer.describe()),
        "on_epoch": lambda row: _print_epoch(row, config.epochs, score),
    }
    for row in _results(runs, score, command, **says):
        rows.append(row)
        seeds.save(rows, folder)
    (mean,) = ablate.summary(rows)
    spread = f" ± {mean['spread']:.2%} (mean ± standard deviation of {len(rows)} seeds)" if "spread" in mean else ""
    print(f"\ntest {score:8}  {mean['accuracy']:.2%}{spread}")
    print(f"results are in {folder}: results.csv, and a folder of each run")


def eval_command(args):
    """print loss and accuracy of a run on its test images"""
    options = _parse(EvalOptions, "eval", args)
    model, test_set, mean, std = load_run(options.run)
    _print_result(evaluate(model, test_set, mean, std, flip=options.flip), test_set)


def maps_command(args):
    """draw what each learned token looks at, over test images of a run"""
    options = _parse(MapsOptions, "maps", args)
    out = _picture(options.out, options.run / ("stages.png" if options.stages else "maps.png"))
    if options.images is not None and not 1 <= options.images <= MOST_IMAGES:
        raise InputError(f"--images is from 1 to {MOST_IMAGES}, got {options.images}")
    draw_maps(out, *load_run(options.run), count=options.images, stages=options.stages)
    print(f"wrote {out}")


def predict_command(args):
    """name the classes of your own pictures, and draw what each learned token looks at"""
    options = _parse(PredictOptions, "predict", args)
    out = _picture(options.out, options.run / "predict.png")
    if not 1 <= len(options.pictures) <= MOST_IMAGES:
        raise InputError(f"give from 1 to {MOST_IMAGES} picture files, got {len(options.pictures)}")
    found = predict(options.run, options.pictures)
    print(found.table())
    if found.maps is None:
        print("no picture: the tokens of this model do not come from maps")
    else:
        files.write(out, png(found.figure()))
        print(f"wrote {out}")


def export_command(args):
    """write the weights of a run with PyTorch's names and shapes"""
    options = _parse(ExportOptions, "export", args)
    if options.file.suffix != ".safetensors":
        raise InputError(f"{options.file} is to be a safetensors file; choose a name that ends in .safetensors")
    if options.file.exists():
        raise InputError(f"{options.file} exists already; choose another name")
    model, meta = load_model(options.run)
    files.write(
        options.file, interop.torch_file(model, {name: json.dumps(meta[name]) for name in ("classes", "mean", "std")})
    )
    print(f"wrote {options.file}: {len(model.state_dict())} arrays, {model.num_parameters():,} parameters")


def flops_command(args):
    """count parameters, multiply-adds and memory of a model, or of all that the paper names"""
    name = tables.find(args[0]) if args and not args[0].startswith("-") else ""
    fixed = name in tables.SPECIAL
    if fixed and set(args[1:]) - {"--json", "--help", "-h"}:
        tables.preset(name)  # says that it has no options
    model = tables.preset(name) if name and not fixed else ViTConfig()
    options = _parse(FlopsOptions, "flops", args, default=FlopsOptions(name, model))
    if options.paper:
        print(json.dumps(tables.paper(), indent=1) if options.json else tables.paper_table())
        return
    if not name:
        raise InputError("name a model first, as in `minitl flops B/16-8at6`; `minitl flops --paper` lists them")
    parts = tables.count_preset(name) if fixed else flops.count(options.model)
    print(json.dumps(flops.as_dict(parts), indent=1) if options.json else flops.table(parts))


def ablate_command(args):
    """train all models of one of the paper's ablations, and compare them"""
    options = _parse(AblateOptions, "ablate", args)
    folder = options.out or ablate.folder_of(options.kind, options.dataset, options.quick)
    times = options.seeds if options.seeds is not None else 1 if options.quick else 2
    runs = ablate.plan(options.kind, folder, times, options.dataset, options.quick)
    score = ablate.score_of(runs[0].config)
    rows = list(_results(runs, score, shlex.join(["minitl", "ablate", *args])))
    ablate.save(rows, folder, score)
    print(
        f"\n{ablate.table(rows, score)}\n\nresults are in {folder}: results.csv, results.png, and a folder of each run"
    )


def _results(runs, score, command, **options):
    """The results of Runs, printed one by one; ends at Ctrl-C, and then says by which ``command`` it goes on."""
    for i, run in enumerate(runs, 1):
        how = f"the same command goes on from there:\n{command}"
        with _unread(how):
            row = run.finish(**options)
            if row is None:
                print(f"stopped and saved in {run.folder}; {how}", flush=True)
                sys.exit(130)
            result = f"{score} {row['accuracy']:.2%}   {row['seconds']:.0f} s"
            print(f"{i:3d}/{len(runs)}   {run.name:22} seed {run.seed}   {result}", flush=True)
        yield row


@contextlib.contextmanager
def _unread(how):
    """Inside, training ends after the epoch in which nobody reads stdout any more; stderr says ``how`` it goes on."""
    try:
        yield
    except BrokenPipeError:
        print(f"minitl: nobody reads the output any more; stopped and saved; {how}", file=sys.stderr)
        raise


def fewshot_command(args):
    """how well the features of a run serve with a few labelled images of each class"""
    options = vars(_parse(FewshotOptions, "fewshot", args))
    accuracies = fewshot.few_shot(options.pop("run"), **options)
    spread = f", deviation {accuracies.std(ddof=1):.2%}" if len(accuracies) > 1 else ""
    print(f"{options['shots']}-shot accuracy  {accuracies.mean():.2%} (mean of {len(accuracies)} draws{spread})")


COMMANDS = {
    "train": train_command,
    "eval": eval_command,
    "maps": maps_command,
    "predict": predict_command,
    "export": export_command,
    "flops": flops_command,
    "ablate": ablate_command,
    "fewshot": fewshot_command,
}


def main(args=None):
    """Run the command in ``args`` (``sys.argv`` by default)."""
    name, *args = (sys.argv[1:] if args is None else args) or ["--help"]
    with ending_in_words():
        _run(name, args)


@contextlib.contextmanager
def ending_in_words():
    """Inside, what a person can fix ends in one message on stderr and exit status 2.

    Ctrl-C ends in exit status 130, and a reader that goes away, as ``| head`` does, in 141, as signals do in a shell.
    """
    try:
        try:
            yield
        finally:
            print(end="", flush=True)
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):  # Python writes what is left in them when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(141)
    except (InputError, OSError) as error:
        print(f"minitl: {error}", file=sys.stderr)
        sys.exit(2)
    except MemoryError as error:
        print(f"minitl: not enough memory ({error}); choose a smaller model or batch size", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("minitl: interrupted; whatever was saved before is still there", file=sys.stderr)
        sys.exit(130)


def _run(name, args):
    if name == "--version":
        print(f"minitl {version('minitl')}")
    elif name in ("-h", "--help", "help"):
        print("usage: minitl COMMAND [options]\n")
        print("\n".join(f"  {name:7} {command.__doc__}" for name, command in COMMANDS.items()))
        print("\nOptions of a command: minitl COMMAND --help")
    elif name in COMMANDS:
        COMMANDS[name](args)
    else:
        raise InputError(f"unknown command {name!r}; {did_you_mean(name, COMMANDS)}")


def _picture(out, default):
    """The file that a picture is written to."""
    out = out or default
    if out.suffix.lower() != ".png":
        raise InputError(f"--out {out}: the picture is a PNG; choose a name that ends in .png")
    return out


def _parse(options, name, args, default=None):
    return tyro.cli(options, prog=f"minitl {name}", args=args, default=default)


def _train_options(args):
    """Options for ``minitl train``; others are the data's, the preset's, or with ``--resume`` those of that run."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", nargs="?", type=Path)
    parser.add_argument("--preset", nargs="?")
    known = parser.parse_known_args(args)[0]
    run, name = known.resume, known.preset
    if run is None and name is not None:
        return _parse(TrainOptions, "train", args, default=_as_options(presets.preset(name)))
    if name is not None:
        raise InputError(f"--preset {name} and --resume exclude each other: a run goes on with its own options")
    if run is None:
        dataset = _parse(TrainOptions, "train", args).dataset
        return _parse(TrainOptions, "train", args, default=_as_options(default_config(dataset)))
    saved = load_config(run)
    if not isinstance(saved.model, ViTConfig):
        raise InputError(f"{run} is a run of `minitl ablate`; go on with it by that command")
    options = _parse(TrainOptions, "train", args, default=_as_options(saved))
    if options.out:
        raise InputError(f"--out {options.out} and --resume exclude each other: a run goes on in its own folder")
    if options.seeds is not None:
        raise InputError(
            "--seeds and --resume exclude each other: the command with --seeds goes on if it is given again"
        )
    return options


def _as_options(config):
    return TrainOptions(**vars(config) | {"model": ModelOptions(**vars(config.model))})


def _name_of(dataset):
    """What a folder of runs on it is called."""
    return Path(dataset).resolve().name.strip(".").split(".")[0] or "run"


def _new_folder(dataset):
    """runs/clutter, or the first of runs/clutter-2, runs/clutter-3 … that does not exist."""
    stem = Path("runs") / _name_of(dataset)
    names = itertools.chain([stem], (stem.with_name(f"{stem.name}-{i}") for i in itertools.count(2)))
    return next(folder for folder in names if not folder.exists())


def _print_epoch(row, epochs, score):
    """A line for a row of metrics.csv, above the progress bar where there is one."""
    train = f"train loss {row['train_loss']:.3f}  {score} {row['train_accuracy']:.1%}"
    test = f"test loss {row['test_loss']:.3f}  {score} {row['test_accuracy']:.1%}"
    tqdm.write(f"epoch {row['epoch']:3d}/{epochs}   {train}   {test}   {row['seconds']:.0f} s")
    sys.stdout.flush()


def _print_result(result, test_set):
    score = "mAP" if test_set.multi_label else "accuracy"
    print(f"test loss      {result['loss']:.4f}\ntest {score:8}  {result['accuracy']:.2%}")
    if "flip_accuracy" in result:
        print(f"flip averaging {result['flip_accuracy']:.2%} (mean logits of an image and of its mirror image)")
    if "map_mass" in result:
        even = box_share(test_set.boxes, test_set.images.shape[-3:-1])
        where = "the target object" if test_set.boxes.ndim == 2 else "the actors"  # of clips
        print(f"map mass       {result['map_mass']:.3f} on {where} (even maps would have {even:.3f})")
