"""Several seeds by one command: each run equals that of its seed alone, can be continued, and leaves others alone."""

import csv
import os
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minitl import cli, data, train
from minitl.errors import InputError
from minitl.paper import seeds
from minitl.train import checkpoint, pictures

TINY = ["--patch-size", "8", "--dim", "12", "--heads", "2", "--mlp-dim", "16", "--hidden", "8", "--num-tokens", "4"]
TINY += ["--batch-size", "16", "--epochs", "2"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder, 32 images in place of 20,000, and pictures that are not drawn."""
    splits = data.sample(np.random.default_rng(1), 32), data.sample(np.random.default_rng(2), 50)
    monkeypatch.setattr(data, "load", lambda *_, **__: splits)
    monkeypatch.setattr(pictures, "png", lambda figure: b"a picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def minitl(monkeypatch, *args):
    """The exit status of a command."""
    monkeypatch.setattr(sys, "argv", ["minitl", *map(str, args)])
    try:
        cli.main()
    except SystemExit as end:
        return end.code
    return 0


def weights(folder):
    return {name: array.tobytes() for name, array in train.load_model(folder)[0].state_dict().items()}


def rows_of(folder):
    with open(folder / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_several_seeds(capsys, monkeypatch):
    """Each as if it were alone; then their mean and deviation, and nothing left to do for the same command."""
    command = ["train", *TINY, "--seed", 4, "--seeds", 3]
    assert minitl(monkeypatch, *command) == 0
    folder, lines = Path("runs/clutter-seeds"), capsys.readouterr().out.splitlines()
    assert sorted(path.name for path in folder.iterdir()) == ["command.txt", "results.csv", "seed4", "seed5", "seed6"]
    assert shlex.split(os.fsdecode((folder / "command.txt").read_bytes())) == ["minitl", *map(str, command)]
    assert lines[0].startswith("ViT, ") and lines[0].endswith("32 training and 50 test images of 8 classes")
    assert lines.count(lines[0]) == 1 and lines[1].startswith("epoch   1/2 ")
    rows = rows_of(folder)
    assert [row["seed"] for row in rows] == ["4", "5", "6"]
    found = [float(row["accuracy"]) for row in rows]
    expected = f"{np.mean(found):.2%} ± {np.std(found, ddof=1):.2%} (mean ± standard deviation of 3 seeds)"
    assert lines[-2:] == [
        f"test accuracy  {expected}",
        f"results are in {folder}: results.csv, and a folder for each run",
    ]
    assert [line.split()[:4] for line in lines if "/3 " in line] == [
        [f"{i}/3", "clutter", "seed", str(3 + i)] for i in (1, 2, 3)
    ]

    assert minitl(monkeypatch, "train", *TINY, "--seed", 5, "--out", "alone") == 0
    assert weights("alone") == weights(folder / "seed5") != weights(folder / "seed6")
    assert train.load_config("alone") == train.load_config(folder / "seed5")
    capsys.readouterr()

    monkeypatch.setattr(train, "start", None)
    assert minitl(monkeypatch, *command) == 0
    assert [line for line in lines[1:] if "epoch" not in line] == capsys.readouterr().out.splitlines()
    assert rows_of(folder) == rows


def test_finished_seeds_of_an_earlier_command_count(capsys, monkeypatch):
    """In the table, which never loses one again, and in the mean; those that were only begun do not."""
    command = ["train", *TINY, "--out", "some"]
    assert minitl(monkeypatch, *command, "--seed", 4, "--seeds", 1) == 0
    (row,) = rows_of(Path("some"))
    assert capsys.readouterr().out.splitlines()[-2] == f"test accuracy  {float(row['accuracy']):.2%}", "no deviation"
    train.start(replace(train.load_config("some/seed4"), seed=9), "some/seed9")
    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "fit", lambda *_: False)
        assert minitl(monkeypatch, *command, "--seeds", 2) == 130
    assert rows_of(Path("some")) == [row]
    assert minitl(monkeypatch, *command, "--seeds", 2) == 0
    assert [row["seed"] for row in rows_of(Path("some"))] == ["4", "0", "1"]
    assert "of 3 seeds)" in capsys.readouterr().out.splitlines()[-2]


def test_ctrl_c_and_the_same_again(capsys, monkeypatch):
    """Stopped in the second run: the first one's result is kept, and the second one is resumed."""
    step, done = train.Trainer._train_batch, []

    def stop_at_the_sixth(self, images, labels):
        done.append((self.config.seed, self.step))
        if len(done) == 6:
            signal.raise_signal(signal.SIGINT)
        step(self, images, labels)

    command = ["train", *TINY, "--seeds", 2, "--out", "both"]
    monkeypatch.setattr(train.Trainer, "_train_batch", stop_at_the_sixth)
    assert minitl(monkeypatch, *command) == 130
    stopped = f"stopped and saved in {Path('both/seed1')}; the same command continues from there:"
    assert capsys.readouterr().out.splitlines()[-2:] == [stopped, shlex.join(["minitl", *map(str, command)])]
    assert len(rows_of(Path("both"))) == 1
    assert minitl(monkeypatch, *command) == 0
    assert done == [(seed, i) for seed in (0, 1) for i in range(4)] and len(rows_of(Path("both"))) == 2
    assert minitl(monkeypatch, "train", *TINY, "--seed", 1, "--out", "alone") == 0
    assert weights("alone") == weights("both/seed1")


def test_a_relative_path_is_good_again(here, monkeypatch):
    (here / "photos").mkdir()
    for _ in range(2):
        assert minitl(monkeypatch, "train", "photos", *TINY, "--seeds", 1) == 0
    assert train.load_config("runs/photos-seeds/seed0").dataset == str(here / "photos")


def test_presets_have_folders_of_their_own(capsys, monkeypatch):
    model = ["--patch-size", 8, "--stem", "patch", "--dim", 12, "--layers", 1, "--hidden", 8, "--num-tokens", 2]
    assert minitl(monkeypatch, "train", "--preset", "cifar-cpu", *model, "--epochs", 1, "--seeds", 1) == 0
    assert Path("runs/cifar10-cifar-cpu-seeds/seed0/confusion.png").is_file()
    assert "cifar10-cifar-cpu      seed 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--seeds 0", "seeds must be at least 1, got 0"),
        ("--seeds two", "'two'"),
        ("--seeds 2 --resume mine/seed0", "--seeds and --resume exclude each other"),
        ("--seeds 2 --out mine/seed0", "holds something else (checkpoint.safetensors, config.json, metrics.csv)"),
        ("--seeds 2 --out mine/seed0/config.json", "cannot write mine/seed0/config.json (Not a directory)"),
        ("--seeds 2 --out mine --seed 0 --lr 0.5", "seed1 does not fit this command; choose another --out"),
        ("--out mine", "mine is not empty"),
    ],
)
def test_errors(capsys, monkeypatch, args, message):
    """Before anything is trained or written: also where the first of the runs would fit."""
    train.start(train.TrainConfig(seed=1), "mine/seed1")
    train.start(train.TrainConfig(), "mine/seed0")
    if "--lr" in args:
        for file in Path("mine/seed0").iterdir():
            file.unlink()
        Path("mine/seed0").rmdir()
    before = {path: path.read_bytes() for path in Path().rglob("*.*")}
    assert minitl(monkeypatch, "train", *shlex.split(args)) == 2
    out, err = capsys.readouterr()
    assert message in " ".join(err.replace("│", " ").split()) and out == ""
    assert {path: path.read_bytes() for path in Path().rglob("*.*")} == before


def test_what_is_in_the_way_is_named():
    config = train.TrainConfig()
    Path("thesis").mkdir()
    for name in ("a.tex", "seed0", "seedling", "results.csv"):
        (Path("thesis") / name).touch()
    with pytest.raises(InputError, match=r"thesis holds something else \(a.tex, seedling\); several seeds need a new"):
        seeds.plan("x", config, 2, "thesis")
    plan = seeds.plan("x", replace(config, seed=7), 2, "new")
    assert [(run.config.seed, run.folder) for run in plan] == [(7, Path("new/seed7")), (8, Path("new/seed8"))]


@pytest.mark.parametrize(
    "left", ["seed0/config.json.tmp", "seed0/command.txt", "results.csv.tmp", "command.txt.tmp", ".DS_Store"]
)
def test_what_a_kill_leaves_is_not_in_the_way(here, monkeypatch, left):
    """In the folder of a run that had not begun to train, or beside a file that was about to be written."""
    path = here / "both" / left
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert minitl(monkeypatch, "train", *TINY, "--seeds", 1, "--out", "both") == 0
    assert (here / "both/seed0/curves.png").is_file() and len(rows_of(here / "both")) == 1


def test_a_run_that_ended_between_two_files_is_ended_again(here, monkeypatch):
    """The metrics of the last epoch are written, but not its checkpoint; or both, but no picture."""
    config = train.TrainConfig(epochs=2, batch_size=16)
    (run,) = seeds.plan("x", config, 1, here / "both")
    save, saved = train.Trainer.save, []

    def killed(self):
        saved.append(checkpoint.save)
        if len(saved) == 3:  # the first one is that of the start
            monkeypatch.setattr(checkpoint, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        save(self)

    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            run.finish()
    monkeypatch.setattr(checkpoint, "save", saved[0])
    assert len((run.folder / "metrics.csv").read_text().splitlines()) == 3 and run.result() is None
    row = run.finish()
    assert row["accuracy"] == train.evaluate(*train.load_run(run.folder))["accuracy"]
    (run.folder / "curves.png").unlink()
    assert run.result() is None and run.finish()["accuracy"] == row["accuracy"]
    assert (run.folder / "curves.png").is_file()


def test_seeds_with_other_options_are_not_mixed(here, monkeypatch, capsys):
    assert minitl(monkeypatch, "train", *TINY, "--seeds", 1, "--out", "both") == 0
    assert minitl(monkeypatch, "train", *TINY, "--lr", 0.5, "--seed", 7, "--seeds", 1, "--out", "both") == 2
    assert "seed0 does not fit this command" in " ".join(capsys.readouterr().err.split())
    assert not (here / "both/seed7").exists()


def test_seeds_on_other_images_are_not_mixed(here, monkeypatch, capsys):
    """Also where all are finished and the images of a folder have changed since."""
    assert minitl(monkeypatch, "train", *TINY, "--seeds", 1, "--out", "both") == 0
    other = data.sample(np.random.default_rng(3), 32), data.sample(np.random.default_rng(2), 50)
    monkeypatch.setattr(data, "load", lambda *_, **__: other)
    before = {path: path.read_bytes() for path in here.rglob("*.*")}
    for count in (1, 2):
        assert minitl(monkeypatch, "train", *TINY, "--seeds", count, "--out", "both") == 2
        assert "the training images of clutter are not those that the run in both/seed0" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in here.rglob("*.*")} == before


@pytest.mark.parametrize("content", ["", "x\n", "epoch,test_accuracy,seconds\n1,,\n2,,\n", "\xff"])
def test_damaged_metrics(here, content):
    (run,) = seeds.plan("x", train.TrainConfig(epochs=1, batch_size=16), 1, here / "both")
    run.finish()
    (run.folder / "metrics.csv").write_bytes(content.encode("latin1"))
    with pytest.raises(InputError, match=r"metrics.csv is damaged .*; `minitl train --resume .*seed0` repairs it"):
        run.result()
    assert train.resume(run.folder).fit() and run.result()


def test_a_folder_of_runs_is_no_run(here, monkeypatch, capsys):
    assert minitl(monkeypatch, "train", *TINY, "--seeds", 2, "--out", "both") == 0
    assert minitl(monkeypatch, "eval", "both") == 2
    assert "both is not a run: it has no config.json; give one of its runs: seed0, seed1" in capsys.readouterr().err
