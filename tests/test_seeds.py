"""Several seeds by one command: each run is that of its seed alone, the same call goes on, and other runs are safe."""

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
from minitl.backend import InputError
from minitl.experiments import seeds

TINY = ["--patch-size", "8", "--dim", "12", "--heads", "2", "--mlp-dim", "16", "--hidden", "8", "--num-tokens", "4"]
TINY += ["--batch-size", "16", "--epochs", "2"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder, and 32 images in place of 20,000."""
    splits = data.draw(np.random.default_rng(1), 32), data.draw(np.random.default_rng(2), 50)
    monkeypatch.setattr(data, "load", lambda *_, **__: splits)
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
    rows = rows_of(folder)
    assert [row["seed"] for row in rows] == ["4", "5", "6"]
    found = [float(row["accuracy"]) for row in rows]
    expected = f"{np.mean(found):.2%} ± {np.std(found, ddof=1):.2%} (mean ± standard deviation of 3 seeds)"
    assert lines[-2:] == [
        f"test accuracy  {expected}",
        f"results are in {folder}: results.csv, and a folder of each run",
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
    assert [line for line in lines if "epoch" not in line] == capsys.readouterr().out.splitlines()
    assert rows_of(folder) == rows
    assert minitl(monkeypatch, *command[:-1], 1) == 0, "one alone has no deviation"
    assert capsys.readouterr().out.splitlines()[-2] == f"test accuracy  {found[0]:.2%}"


def test_ctrl_c_and_the_same_again(capsys, monkeypatch):
    """Stopped in the second run: the first one's result is kept, and the second one goes on."""
    step, done = train.Trainer._step, []

    def stop_at_the_sixth(self, images, labels):
        done.append((self.config.seed, self.step))
        if len(done) == 6:
            signal.raise_signal(signal.SIGINT)
        step(self, images, labels)

    command = ["train", *TINY, "--seeds", 2, "--out", "both"]
    monkeypatch.setattr(train.Trainer, "_step", stop_at_the_sixth)
    assert minitl(monkeypatch, *command) == 130
    stopped = f"stopped and saved in {Path('both/seed1')}; the same command goes on from there"
    assert capsys.readouterr().out.splitlines()[-1] == stopped and len(rows_of(Path("both"))) == 1
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
        ("--seeds 0", "seeds is at least 1, got 0"),
        ("--seeds two", "'two'"),
        ("--seeds 2 --resume mine/seed0", "--seeds and --resume exclude each other"),
        ("--seeds 2 --out mine/seed0", "holds something else (checkpoint.safetensors, config.json, metrics.csv)"),
        ("--seeds 2 --out mine/seed0/config.json", "cannot write mine/seed0/config.json (Not a directory)"),
        ("--seeds 2 --out mine --seed 0 --lr 0.5", "seed1 does not go with these options; choose another --out"),
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
