"""Real processes, really killed: training resumes bit for bit, and a checkpoint is whole at every moment."""

import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from minitl import data
from minitl.train import checkpoint

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a system without SIGKILL")

TRAIN = """
import os, signal, sys
from minitl import cli, train

def kill_at_once(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def count(frame, event, argument):  # Python reports each call, and each return
    global events
    events -= 1
    if not events:
        kill_at_once()

def step(self, images, labels, usual=train.Trainer._train_batch):
    global steps
    steps -= 1
    if not steps:
        sys.setprofile(count)
    usual(self, images, labels)

steps, events, *args = sys.argv[1:]
steps, events, train.Trainer._train_batch = int(steps), int(events), step
if steps == 0:  # before the first checkpoint
    train.Trainer.save = kill_at_once
cli.main(["train", *args])
"""
SAVE = """
import sys
import numpy as np
from minitl.train import checkpoint

for i in range(10**6):
    checkpoint.save(sys.argv[1], {name: np.full(2**20, i, "float32") for name in "ab"}, {"i": i})
"""
OPTIONS = """--epochs 30 --batch-size 20 --patch-size 8 --dim 12 --heads 2 --mlp-dim 16 --num-tokens 4
--hidden 8 --dropout 0.1 --drop-path 0.2 --ema 0.9 --flip --crop 3 --rand-augment 1 --mixup 0.4 --cutmix 1.0
--optimizer muon --threads 1"""
STEPS = 5  # of an epoch
EVENTS = 100_000  # calls and returns in more than an epoch
NEVER = -1


@pytest.fixture
def photos(tmp_path):
    """A zip of CLUTTER, of 100 images to train on and 20 to test on."""
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as file:
        for split, count in (("train", 100), ("test", 20)):
            drawn = data.sample(np.random.default_rng(count), count)
            for i, (image, label) in enumerate(zip(drawn.images, drawn.labels, strict=True)):
                png = BytesIO()
                Image.fromarray(image).save(png, "PNG")
                file.writestr(f"{split}/{drawn.classes[label]}/{i}.png", png.getvalue())
    return path


def train(*args, steps=NEVER, events=NEVER):
    """``minitl train``, killed ``events`` events after step ``steps`` began. Returns exit status, stdout and stderr."""
    command = [sys.executable, "-c", TRAIN, *map(str, (steps, events, *args))]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    return run.returncode, run.stdout, run.stderr


def contents(folder):
    """All that a run computed: arrays as bytes, what the checkpoint says but for times, metrics.csv but for times."""
    arrays, meta = checkpoint.load(folder / "checkpoint.safetensors")
    meta = {name: value for name, value in meta.items() if name not in ("seconds", "rows")}
    table = [line.rpartition(",")[0] for line in (folder / "metrics.csv").read_text().splitlines()]
    return {name: (x.dtype, x.shape, x.tobytes()) for name, x in arrays.items()}, meta, table


def test_a_run_killed_ten_times_ends_like_an_uninterrupted_one(photos, tmp_path):
    """Each kill comes within three epochs, so that ten of them do not reach the end."""
    rng, parts, whole = np.random.default_rng(0), tmp_path / "parts", tmp_path / "whole"
    status, _, problem = train(photos, *OPTIONS.split(), "--out", whole)
    assert status == 0, problem

    begun = []
    for kill in range(11):
        args = ("--resume", parts) if kill else (photos, *OPTIONS.split(), "--out", parts)
        moment = {"steps": rng.integers(1, STEPS + 1), "events": rng.integers(1, EVENTS)} if kill < 10 else {}
        status, text, problem = train(*args, **moment)
        assert status == (-signal.SIGKILL if moment else 0), problem
        begun += [int(step) for step in re.findall("after step (.*) of 150", text)]
    assert len(begun) == 10 and begun == sorted(begun)
    assert 3 < len(set(begun)) < 10  # some of them cost an epoch and others do not
    assert contents(parts) == contents(whole)


def test_a_run_killed_before_its_first_checkpoint_can_only_be_started_again(photos, tmp_path):
    options = [photos, *OPTIONS.split(), "--epochs", 1]
    assert train(*options, "--out", tmp_path / "run", steps=0)[0] == -signal.SIGKILL
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"command.txt", "config.json"}
    status, _, problem = train("--resume", tmp_path / "run")
    assert status == 2 and "no checkpoint" in problem
    assert train(*options, "--out", tmp_path / "run")[0] == 0


def test_killed_while_it_is_written_a_checkpoint_is_whole(tmp_path):
    """The old one or the new one: all its numbers are of one call of ``save``."""
    path, delays = tmp_path / "x.safetensors", np.random.default_rng(0).uniform(0, 0.05, 6)
    for delay in delays:
        path.unlink(missing_ok=True)
        with subprocess.Popen([sys.executable, "-c", SAVE, str(path)]) as process:
            while not path.exists() and process.poll() is None:
                time.sleep(0.001)
            time.sleep(delay)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        arrays, meta = checkpoint.load(path)
        assert all((array == meta["i"]).all() and array.size == 2**20 for array in arrays.values())
    checkpoint.save(path, {}, {})
    assert [file.name for file in tmp_path.iterdir()] == [path.name]  # what a kill left beside it is gone
