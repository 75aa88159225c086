"""The commands as a person meets them: what they print, where they write, and how they fail."""

import contextlib
import errno
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minitl import cli, data, flops, interop, metrics, nn, train
from minitl.data.actors import sample as sample_clips
from minitl.errors import InputError
from minitl.paper import tables
from minitl.train import checkpoint, run

SHARED = Path(__file__).resolve().parents[2] / "shared"
TINY = ["--patch-size", "8", "--dim", "12", "--heads", "2", "--mlp-dim", "16", "--hidden", "8", "--num-tokens", "4"]
TINY += ["--batch-size", "16"]


def draw_folder(path, size=(32, 32), n=64, channels=3):
    """A data set of PNG files in two classes, dark and light: the cheapest thing that a command can learn."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for i in range(n):
            label = ("dark", "light")[i % 2]
            image = rng.integers(0, 150, (*size, channels)) + 100 * (i % 2)
            file = path / split / label / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype("uint8").squeeze()).save(file)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return str(draw_folder(tmp_path_factory.mktemp("data") / "night.and.day"))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder=Path()):
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def minitl(*args):
    """The exit status of the command."""
    try:
        cli.main([str(arg) for arg in args])
    except SystemExit as end:
        return end.code
    return 0


def fails(capsys, *args):
    """Return the text on stderr of a command that ends with status 2 and changes nothing."""
    before = tree()
    assert minitl(*args) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err and tree() == before
    return " ".join(err.replace("│", " ").split())


# --- what works ---


def test_train_eval_maps(here, capsys, pictures):
    """Results, the same results again, a picture elsewhere, a finished run resumed, and a second run."""
    assert minitl("train", pictures, *TINY, "--epochs", 8, "--lr", 0.01) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("ViT, ") and "16 tokens -> 4 by TokenLearner 1.1 before block 0, on cpu" in lines[0]
    assert "64 training and 64 test images of 2 classes" in lines[0]
    assert [line[:9] for line in lines[1:9]] == [f"epoch   {i}" for i in range(1, 9)]
    assert lines[9].startswith("test loss") and lines[10] == "test accuracy  100.00%"
    kept = "checkpoint.safetensors, command.txt, config.json, confusion.png, curves.png, maps.png, metrics.csv"
    assert lines[11:] == [f"results are in runs/night: {kept}"] and err == ""

    before = tree(Path("runs"))
    assert minitl("eval", "runs/night") == 0
    assert capsys.readouterr().out.splitlines() == lines[9:11] and tree(Path("runs")) == before
    assert minitl("maps", "runs/night", "--out", "some.png", "--images", 2) == 0
    assert capsys.readouterr().out == "wrote some.png\n" and Path("some.png").read_bytes().startswith(b"\x89PNG")

    assert minitl("train", "--resume", "runs/night", "--epochs", 8, "--lr=0.01", pictures) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "continuing runs/night after step 32 of 32" and lines[2].startswith("test loss")
    assert minitl("train", pictures, *TINY, "--epochs", 1) == 0
    assert "results are in runs/night-2:" in capsys.readouterr().out


def test_the_command_is_kept(here, pictures, monkeypatch):
    """As typed, so that a shell can repeat it; resuming leaves it alone."""
    folder = here / "it's my run\udcff"  # a name that is not UTF-8
    typed = ["minitl", "train", pictures, *TINY, "--epochs", "1", "--out", str(folder)]
    monkeypatch.setattr(sys, "argv", typed)
    cli.main()
    kept = (folder / "command.txt").read_bytes()
    assert shlex.split(os.fsdecode(kept)) == typed
    assert minitl("train", "--resume", folder) == 0 and (folder / "command.txt").read_bytes() == kept


def test_flip_averaging(capsys, pictures, monkeypatch):
    """In the end of a run that mirrors, and for any run of images that is asked."""
    line = "flip averaging 100.00% (mean logits of each image and its mirror image)"
    options = [*TINY, "--epochs", 8, "--lr", 0.01, "--out"]
    assert minitl("train", pictures, "--flip", *options, "mirrored") == 0
    assert capsys.readouterr().out.splitlines()[-3:-1] == ["test accuracy  100.00%", line]
    assert minitl("train", pictures, *options, "plain") == 0
    assert "averaging" not in capsys.readouterr().out
    assert minitl("eval", "plain", "--flip") == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["test accuracy  100.00%", line]

    splits = sample_clips(np.random.default_rng(1), 8), sample_clips(np.random.default_rng(2), 8)
    monkeypatch.setattr(data, "load", lambda *_, **__: splits)
    train.start(train.TrainConfig("actors", batch_size=8), "clips")
    assert "flip averaging needs images; mirrored clips show other" in fails(capsys, "eval", "clips", "--flip")


def test_images_of_any_size(here, capsys):
    """48 x 36 is cut by 12, which does not divide the 32 x 32 of the default; grey files become RGB."""
    draw_folder(here / "tall", size=(48, 36), n=8, channels=1)
    options = ["--patch-size", 12, "--tokenizer", "pool", "--num-tokens", 3, "--epochs", 1]
    assert minitl("train", "tall", *options) == 0
    assert "12 tokens -> 3 by grid pooling" in capsys.readouterr().out
    assert minitl("maps", "runs/tall") == 0


def test_clutter_prints_the_map_mass(capsys, monkeypatch):
    splits = data.sample(np.random.default_rng(1), 32), data.sample(np.random.default_rng(2), 32)
    monkeypatch.setattr(data, "load", lambda *_, **__: splits)
    assert minitl("train", *TINY, "--epochs", 1) == 0
    even = metrics.box_share(splits[1].boxes, (32, 32))
    assert f"on the target object (even maps would have {even:.3f})" in capsys.readouterr().out


def test_a_clip_has_two_actors(capsys):
    test_set = sample_clips(np.random.default_rng(1), 4)
    cli._print_result({"loss": 1.0, "accuracy": 0.5, "map_mass": 0.25}, test_set)
    assert "map mass       0.250 on the actors (even maps would have 0." in capsys.readouterr().out


def test_clips_print_their_mean_average_precision(capsys, monkeypatch):
    splits = sample_clips(np.random.default_rng(1), 16), sample_clips(np.random.default_rng(2), 16)
    monkeypatch.setattr(data, "load", lambda *_, **__: splits)
    assert minitl("train", "actors", *TINY, "--tubelet", 2, "--epochs", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "4 x 16 tokens -> 4 x 4 by TokenLearner 1.1" in lines[0] and " mAP " in lines[1]
    config = train.load_config("runs/actors")
    given = config.batch_size, config.model.positions, config.model.zero_head
    assert given == (16, "waves", False), "an option that is given, and two of the data set's own"
    assert lines[3].startswith("test mAP       ") and lines[4].startswith("map mass       ")
    assert minitl("maps", "runs/actors", "--images", 1) == 0
    assert minitl("eval", "runs/actors") == 0


def test_predict_and_export(here, capsys, pictures):
    """Of files of other sizes and kinds than the run's; and the weights for other programs."""
    from PIL import Image

    assert minitl("train", pictures, *TINY, "--epochs", 8, "--lr", 0.01, "--out", "run") == 0
    Image.new("L", (90, 50), 240).save("snow.png")
    Image.new("RGB", (40, 200), (20, 20, 20)).save("night.jpg")
    capsys.readouterr()
    assert minitl("predict", "run", "snow.png", "night.jpg", "--out", "seen.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["snow.png", "light", "dark", "night.jpg", "dark", "light", "wrote"]
    assert lines[-1] == "wrote seen.png" and Path("seen.png").read_bytes().startswith(b"\x89PNG")

    assert minitl("export", "run", "weights.safetensors") == 0
    model, about = interop.load_torch("weights.safetensors")
    assert f"{model.num_parameters():,} parameters" in capsys.readouterr().out
    assert json.loads(about["classes"]) == ["dark", "light"]
    state = train.load_run("run")[0].state_dict()
    assert all((array == state[name]).all() for name, array in model.state_dict().items())


def test_predict_without_maps(capsys, pictures):
    assert minitl("train", pictures, *TINY, "--tokenizer", "none", "--epochs", 1, "--out", "plain") == 0
    assert minitl("predict", "plain", f"{pictures}/test/dark/0.png") == 0
    assert "no figure: the tokens" in capsys.readouterr().out and not Path("plain/predict.png").exists()


def test_flops(capsys):
    """A model of the paper, changed, as a table or for machines; one that has no options; and the paper's tables."""
    assert minitl("flops", "b/16-8AT6", "--back", "fuser", "--json") == 0
    same = flops.as_dict(tables.count_preset("B/16-8at6-fuser"))
    assert json.loads(capsys.readouterr().out) == same
    assert minitl("flops", "B/16-8at6", "--num-classes", 18291, "--image-size", 224, 224, "--json") == 0
    config, spec = tables.preset("B/16-8at6")
    cost = flops.total(flops.count(config, nn.DataSpec((224, 224), num_classes=18291)))
    assert (
        json.loads(capsys.readouterr().out)["total"]["params"]
        == cost.params
        != flops.total(flops.count(config, spec)).params
    )
    assert minitl("flops", "B/16-8at6-fuser") == 0
    assert capsys.readouterr().out == flops.table(tables.count_preset("B/16-8at6-fuser")) + "\n"
    assert minitl("flops", "keras") == 0
    assert capsys.readouterr().out == flops.table(tables.count_preset("keras")) + "\n"
    assert minitl("flops", "--paper") == 0
    assert capsys.readouterr().out == tables.paper_table() + "\n"
    assert minitl("flops", "--paper", "--json") == 0
    assert json.loads(capsys.readouterr().out) == tables.paper()


def test_minutes(capsys, pictures, monkeypatch):
    """Each look at the clock takes a second; the same for two seeds, and once more, which finds them finished."""
    monkeypatch.setattr(run, "time", SimpleNamespace(perf_counter=map(float, itertools.count()).__next__))
    monkeypatch.setattr(train.Trainer, "_draw", lambda trainer: (trainer.folder / "curves.png").touch())
    fit = "3 epochs fit into 0.15 minutes (32 images per second)"  # with a second to evaluate each
    command = ["train", pictures, *TINY, "--minutes", 0.15, "--threads", 1]
    assert minitl(*command, "--out", "one") == 0
    assert capsys.readouterr().out.splitlines()[1] == fit and train.load_config("one").epochs == 3
    assert minitl(*command, "--seeds", 2, "--out", "two") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == fit and lines[2].startswith("epoch   1/3 ")
    monkeypatch.setattr(train, "start", None)
    assert minitl(*command, "--seeds", 2, "--out", "two") == 0
    assert capsys.readouterr().out.splitlines() == [line for line in lines[2:] if not line.startswith("epoch")]


def test_a_recipe_beside_its_twins(capsys, pictures, monkeypatch):
    """By one command, which does not repeat what is finished; a run on other images does not fit beside them."""
    monkeypatch.setattr(train.Trainer, "_draw", lambda trainer: (trainer.folder / "curves.png").touch())
    command = ["ablate", "cifar-cpu", "--dataset", pictures, "--epochs", 1, "--subset", 8, "--seeds", 1]
    for _ in range(2):
        assert minitl(*command) == 0
        *_, head, learned, every, grid, _, end = capsys.readouterr().out.splitlines()
        assert head.split()[:3] == ["tokens", "parameters", "multiply-adds"]
        assert learned.startswith("cifar-cpu ") and " 64 -> 16 " in learned and " 64 -> 16 " in grid
        assert every.split()[:2] == ["cifar-cpu-all", "64"] and grid.startswith("cifar-cpu-grid ")
        assert end.startswith("results are in runs/ablate-cifar-cpu-night: results.csv")
    assert "subset: 8 in the checkpoint, 9 here" in fails(capsys, *command[:-3], 9, "--seeds", 1)


def test_runs_of_ablations_are_resumed_elsewhere(capsys, monkeypatch):
    splits = sample_clips(np.random.default_rng(1), 8), sample_clips(np.random.default_rng(2), 8)
    monkeypatch.setattr(data, "load", lambda *_, **__: splits)
    train.start(train.TrainConfig("actors", nn.X21DConfig(widths=(4,))), "run")
    assert "run is a run of `minitl ablate`" in fails(capsys, "train", "--resume", "run")


def test_cifar_photographs(capsys):
    """A few of them: real files in a real archive."""
    archive = SHARED / "data" / "cifar10-images.tar.xz"
    if not archive.is_file():
        pytest.skip("the folder shared/ with CIFAR-10 photographs is not beside this repository")
    assert minitl("train", archive, "--subset", 40, *TINY, "--epochs", 1) == 0
    assert "40 training and" in capsys.readouterr().out and Path("runs/cifar10-images/maps.png").is_file()


def test_help(capsys):
    assert minitl() == 0
    text = capsys.readouterr().out
    assert all(f"  {name}" in text for name in cli.COMMANDS)
    assert minitl("train", "--help") == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--epochs", "--num-tokens", "--resume", "--out", "--data-dir"))
    assert not [
        name for name in ("--image-size", "--frames", "--num-classes") if name in text
    ]  # the data set says that


def test_a_name_for_the_folder(here):
    assert str(cli._new_folder("clutter")) == "runs/clutter"
    assert str(cli._new_folder("/some/photos.tar.xz")) == "runs/photos"
    assert str(cli._new_folder(".")) == f"runs/{here.name}"
    assert str(cli._new_folder("/")) == "runs/run"
    (here / "runs" / "clutter").mkdir(parents=True)
    assert str(cli._new_folder("clutter")) == "runs/clutter-2"


# --- what does not ---


@pytest.mark.parametrize(
    "args, messages",
    [
        ("trian", ["unknown command 'trian'; did you mean train?"]),
        ("xyz", ["unknown command 'xyz'; choose one of train, eval, maps, predict, export, flops, ablate,"]),
        ("train --epoch 2", ["Unrecognized options: --epoch", "--epochs"]),
        ("train --epochs two", ["--epochs", "'two'"]),
        ("train --epochs 0", ["epochs must be at least 1, got 0"]),
        ("train --epochs=2 --minutes 1", ["--minutes and --epochs exclude each other: the time decides the number"]),
        ("train --minutes -1", ["minutes must be 0 or more, got -1"]),
        ("train --resume RUN --minutes 2", ["minutes: 0.0 in the checkpoint, 2.0 here"]),
        ("train --lr -1", ["lr must be above 0, got -1.0"]),
        ("train --ema 1", ["ema must be in [0, 1), got 1.0"]),
        ("train --seed -1", ["seed must be 0 or more, got -1"]),
        ("train --subset 0", ["subset must be at least 1, got 0"]),
        ("train --dropout 1", ["dropout must be in [0, 1), got 1.0"]),
        ("train --patch-size 0", ["patch_size must be at least 1, got 0"]),
        ("train --heads 5", ["heads=5 does not divide dim=48"]),
        ("train --loc 2", ["loc=2 is not the index of a block: 0 <= loc < layers=2"]),
        ("train --loc -1", ["loc=-1 is not the index of a block"]),
        ("train --tokenizer pol", ["'pol'", "'pool'"]),
        ("train --device gpu", ["'gpu'", "'cuda'"]),
        ("train cluter", ["no data set and no file is called 'cluter'; did you mean clutter?"]),
        ("train DATA --patch-size 5", ["patch_size=5 does not divide the image size 32 x 32"]),
        ("train DATA --tokenizer pool --num-tokens 7", ["8 x 8", "cannot be cut into 7 equal cells"]),
        ("train DATA --crop 32", ["crop must be less than a side of the images, 32 x 32, got 32"]),
        ("train DATA --out RUN", ["is not empty; continue it with --resume, or choose another --out"]),
        ("train DATA --out RUN/config.json", ["cannot write", "Not a directory"]),
        ("train --resume nowhere", ["nowhere is not a run"]),
        ("train --resume RUN --out other", ["--out other and --resume exclude each other"]),
        (
            "train --resume RUN --lr 0.5 --dim 24",
            ["lr: 0.004 in the checkpoint, 0.5", "model.dim: 12 in"],
        ),
        ("train --resume RUN clutter", ["dataset:", "in the checkpoint, clutter here"]),
        ("train --resume", ["--resume"]),
        ("train DATA --tubelet 2", ["tubelet=2 does not divide frames=1"]),
        ("eval", ["folder of a run"]),
        ("eval nowhere", ["nowhere is not a run"]),
        ("eval RUN --images 3", ["Unrecognized options: --images"]),
        ("maps RUN --images 0", ["--images must be from 1 to 64, got 0"]),
        ("maps RUN --out maps.gif", ["the figure is a PNG; choose a name that ends in .png"]),
        ("predict RUN", ["give from 1 to 64 picture files, got 0"]),
        ("predict nowhere DATA", ["nowhere is not a run"]),
        ("predict RUN DATA", ["night.and.day is a folder; give picture files"]),
        ("predict RUN cat.jpg", ["cat.jpg is not there; give picture files"]),
        ("predict RUN run/config.json", ["run/config.json is not a readable image of a format that Pillow knows"]),
        ("predict RUN DATA/test/dark/0.png --out x.gif", ["the figure is a PNG; choose a name that ends in .png"]),
        ("export", ["folder of a run"]),
        ("export nowhere x.safetensors", ["nowhere is not a run"]),
        ("export RUN x.pt", ["x.pt is not the name of a safetensors file; choose one that ends in .safetensors"]),
        ("export RUN run/checkpoint.safetensors", ["exists already; choose another name"]),
        ("export RUN no/x.safetensors", ["cannot write no/x.safetensors (No such file or directory)"]),
        (
            "flops",
            ["the name of a model comes first, as in `minitl flops B/16-8at6 --json`; `minitl flops --paper` lists"],
        ),
        ("flops --loc 1 B/16", ["the name of a model comes first"]),
        ("flops B/17-8at6", ["there is no preset 'B/17-8at6'; did you mean B/16-8at6"]),
        ("flops keras --loc 2", ["keras can be counted, but is not a ViT with options"]),
        ("flops B/16-8at6 --loc 12", ["loc=12 is not the index of a block: 0 <= loc < layers=12"]),
        ("flops B/16 --image-size 100 100", ["patch_size=16 does not divide the image size 100 x 100"]),
        ("flops B/16 --num-classes 0", ["num_classes must be at least 1, got 0"]),
        ("maps RUN --out nowhere/maps.png", ["cannot write nowhere/maps.png (No such file or directory)"]),
    ],
)
def test_errors(capsys, pictures, args, messages):
    run = Path("run")
    train.start(tiny_config(pictures), run)
    text = fails(capsys, *(arg.replace("DATA", pictures).replace("RUN", "run") for arg in args.split()))
    assert [message for message in messages if message not in text] == [], text


def tiny_config(dataset, **options):
    model = {"patch_size": 8, "dim": 12, "heads": 2, "mlp_dim": 16, "hidden": 8, "num_tokens": 4}
    return train.TrainConfig(dataset, nn.ViTConfig(**model, layers=4, loc=3), batch_size=16, **options)


def test_the_same_options_can_be_given_again(capsys, pictures):
    """Also where they do not go together with the defaults: loc=3 needs more than 2 layers."""
    train.start(tiny_config(pictures, epochs=1), "run")
    assert minitl("train", pictures, "--loc", 3, "--epochs", 1, "--resume=run", "--num-tokens", 4) == 0


def test_one_sentence_without_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(run, "cuda_problem", lambda: "CuPy cannot be imported")
    assert fails(capsys, "train", "--device", "cuda") == "minitl: device cuda cannot be used: CuPy cannot be imported"


def test_one_class(here, capsys):
    draw_folder(here / "one", n=1)
    assert "train has the single class 'dark'" in fails(capsys, "train", "one")


def test_a_run_without_maps(capsys, pictures):
    assert minitl("train", pictures, *TINY, "--tokenizer", "none", "--epochs", 1, "--out", "run") == 0
    capsys.readouterr()
    assert "do not come from maps, so there is nothing to draw" in fails(capsys, "maps", "run")
    assert minitl("maps", "run", "--stages") == 0, "which any model has"
    assert Path("run/stages.png").stat().st_size > 1000


def test_a_loss_that_is_no_number(capsys, pictures):
    assert minitl("train", pictures, *TINY, "--lr", 1e30, "--out", "run") == 2
    err = capsys.readouterr().err
    assert err.startswith("minitl: the loss of step 2 of 40 is") and "RuntimeWarning" not in err
    assert train.resume("run").step == 0


@pytest.mark.parametrize(
    "error, status, message",
    [
        (InputError("it is wrong"), 2, "minitl: it is wrong\n"),
        (OSError(errno.EACCES, "Permission denied", "x"), 2, "minitl: [Errno 13] Permission denied: 'x'\n"),
        (MemoryError("7 TiB"), 2, "minitl: not enough memory (7 TiB); choose a smaller model or batch size\n"),
        (KeyboardInterrupt(), 130, "minitl: interrupted; everything saved before is kept\n"),
    ],
)
def test_every_end_has_its_message(capsys, monkeypatch, error, status, message):
    def fail(*_):
        raise error

    monkeypatch.setattr(cli, "load_run", fail)
    assert minitl("eval", "run") == status
    assert capsys.readouterr().err == message


# --- signals, in processes of their own ---


def environment():
    """Return an environment in which the package is found from any folder."""
    path = os.pathsep.join([str(Path(cli.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path}


@contextlib.contextmanager
def running(*args):
    """The command as a process; it is killed in the end, if nothing else ended it."""
    code = "from minitl.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process, start):
    for line in process.stdout:
        if line.startswith(start):
            return
    pytest.fail(f"it ended before it said {start!r}: {process.stderr.read()}")


def test_ctrl_c_and_kill(pictures):
    """Ctrl-C saves and says how to continue; the resumed run is then killed, and can be resumed again."""
    with running("train", pictures, *TINY, "--epochs", 100_000, "--out", "my run") as process:
        wait_for(process, "epoch   2/")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130 and err == ""
    step = int(out.splitlines()[-1].split(" after step ")[1].split(" of ")[0])
    assert out.splitlines()[-1].endswith("continue with: minitl train --resume 'my run'")
    assert checkpoint.load("my run/checkpoint.safetensors")[1]["step"] == step >= 8

    with running("train", "--resume", "my run") as process:
        wait_for(process, f"continuing my run after step {step} of 400000")
        wait_for(process, "epoch")
        wait_for(process, "epoch")
        process.kill()
    trainer = train.resume("my run")
    assert trainer.step > step and len(trainer.rows) == trainer.step // 4


def saved(folder):
    """Return the number of epochs saved, each of 4 steps, with no further steps."""
    trainer = train.resume(folder)
    assert trainer.step == 4 * len(trainer.rows)
    return len(trainer.rows)


def test_a_reader_that_goes_away(pictures):
    """As in ``minitl train | head -2``: not even the epoch is lost of which nobody heard any more."""
    options = [pictures, *TINY, "--epochs", 100_000, "--out"]
    gone = "minitl: the output was closed; stopped and saved; "
    with running("train", *options, "my run") as process:
        wait_for(process, "epoch   1/")
        process.stdout.close()
        assert process.stderr.read() == f"{gone}continue with: minitl train --resume 'my run'\n"
        assert process.wait() == 141 and saved("my run") >= 2

    command = ["train", *map(str, options), "seeds", "--seeds", "2"]
    with running(*command) as process:
        wait_for(process, "epoch   1/")
        process.stdout.close()
        how = f"the same command continues from there:\n{shlex.join(['minitl', *command])}\n"
        assert process.stderr.read() == gone + how
        assert process.wait() == 141 and saved("seeds/seed0") >= 2


def test_a_reader_that_goes_away_at_ctrl_c(pictures):
    """As in ``minitl train | tee log``, where Ctrl-C ends both."""
    with running("train", pictures, *TINY, "--epochs", 100_000, "--out", "run") as process:
        wait_for(process, "epoch   1/")
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().endswith("stopped and saved; continue with: minitl train --resume run\n")
        assert process.wait() == 141 and train.resume("run").step >= 4


@pytest.mark.parametrize("command", ["--help", "flops --paper", "train --help", "train --subset 50 --epochs 1"])
def test_nobody_reads(command):
    """Neither stdout nor stderr: no message, no traceback, and a status of its own."""
    read, write = os.pipe()
    os.close(read)
    code = "from minitl.cli import main; main()"
    run = subprocess.run([sys.executable, "-c", code, *command.split()], stdout=write, stderr=write, env=environment())
    os.close(write)
    assert run.returncode == 141


def test_presets():
    """A recipe by name; options that are given go before it."""
    options = cli._train_options(["--preset", "cifar-r3-grid", "--epochs", "7", "--dim", "64"])
    assert (options.dataset, options.epochs, options.batch_size, options.model.tokenizer) == (
        "cifar10",
        7,
        1024,
        "pool",
    )
    assert (options.model.dim, options.model.layers) == (64, 9)
    assert cli._train_options(["photos", "--preset", "cifar-cpu"]).dataset == "photos"
    assert cli._train_options(["--preset", "cifar-r1", "--rand-augment", "0", "--auto-augment"]).auto_augment


def test_presets_that_do_not_exist(capsys):
    assert "there is no preset 'cifar-r9'; did you mean cifar-r" in fails(capsys, "train", "--preset", "cifar-r9")
    assert "exclude each other" in fails(capsys, "train", "--preset", "cifar-cpu", "--resume", "run")


def test_a_preset_has_rand_augment(capsys):
    text = fails(capsys, "train", "--preset", "cifar-r1", "--auto-augment")
    assert "auto_augment and rand_augment 2 cannot be combined; leave one out, or set rand_augment to 0" in text
