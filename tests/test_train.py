"""A run learns, stops when it should, resumes bit for bit from any step, and never loses what it saved."""

import errno
import itertools
import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minitl import backend, data, metrics, nn, no_grad, ops, optim, train
from minitl.data.actors import sample as sample_clips
from minitl.errors import InputError
from minitl.nn import ViTConfig, X21DConfig
from minitl.nn.baselines import BACKS, TOKENIZERS
from minitl.nn.reduce import REDUCTIONS
from minitl.train import TrainConfig, checkpoint, pictures, run, step
from minitl.train.augmentation import training_batch
from minitl.train.step import build_model

SMALL = ViTConfig(patch_size=8, dim=12, heads=2, mlp_dim=16, num_tokens=4, version="1.1", pre_norm=False, hidden=8)
PLAIN = TrainConfig(model=SMALL, epochs=3, batch_size=16)  # of 70 images: 5 steps, the last one with 6 images
EVERYTHING = replace(
    PLAIN,
    model=replace(SMALL, dropout=0.1, drop_path=0.2, version="1.0", num_tokens=3),
    **{"flip": True, "crop": 3, "cutout": 5, "mixup": 0.4, "cutmix": 1.0, "ema": 0.9, "label_smoothing": 0.1},
    **{"rand_augment": 2, "erasing": 0.5, "mix_until": 0.7},
)


@pytest.fixture(autouse=True)
def images(monkeypatch):
    """70 images to train on instead of 20,000, and 450 to test on: three batches. Gives the calls of ``load``."""
    calls = []
    splits = data.sample(np.random.default_rng(1), 70), data.sample(np.random.default_rng(2), 450)

    def load(name, data_dir=None, subset=None):
        calls.append((name, data_dir, subset))
        return splits if subset is None else (splits[0].subset(subset, np.random.default_rng(0)), splits[1])

    monkeypatch.setattr(data, "load", load)
    return calls


@pytest.fixture
def real_pictures():
    """For the tests that look at the pictures; the others save time."""


@pytest.fixture(autouse=True)
def quick_pictures(request, monkeypatch):
    if "real_pictures" not in request.fixturenames:
        for name in ("show_maps", "show_clip_maps"):
            monkeypatch.setattr(pictures, name, lambda images, maps, boxes: images.tobytes() + maps.data.tobytes())
        monkeypatch.setattr(pictures, "confusion", lambda counts, classes: counts.tobytes())
        monkeypatch.setattr(pictures, "curves", lambda rows, score: repr(len(rows)).encode())
        monkeypatch.setattr(pictures, "png", lambda picture: picture)


def before(owner, name, action):
    """Let ``owner.name(...)`` call ``action()`` first."""
    method = getattr(owner, name)

    def wrapped(*args, **options):
        action()
        return method(*args, **options)

    setattr(owner, name, wrapped)


def ctrl_c_after(trainer, steps):
    """Press Ctrl-C, really, while step number ``steps`` runs."""
    before(trainer, "_train_batch", lambda: trainer.step + 1 == steps and signal.raise_signal(signal.SIGINT))


def contents(folder):
    """All that a run left, but for times: arrays as bytes, what the checkpoint says, and metrics.csv."""
    arrays, meta = checkpoint.load(folder / "checkpoint.safetensors")
    del meta["seconds"]
    for row in meta["rows"]:
        del row["seconds"]
    table = [line.rpartition(",")[0] for line in (folder / "metrics.csv").read_text().splitlines()]
    return {name: (x.shape, x.dtype, x.tobytes()) for name, x in arrays.items()}, meta, table


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- a run ---


def test_a_run_leaves_its_folder_behind(tmp_path, real_pictures):
    seen = []
    trainer = train.start(PLAIN, tmp_path / "deep" / "run")
    assert trainer.fit(seen.append)
    names = ["checkpoint.safetensors", "config.json", "confusion.png", "curves.png", "maps.png", "metrics.csv"]
    assert sorted(files(trainer.folder)) == names
    lines = (trainer.folder / "metrics.csv").read_text().splitlines()
    assert lines[0] == "epoch,step,train_loss,train_accuracy,test_loss,test_accuracy,seconds"
    assert [line.split(",")[:2] for line in lines[1:]] == [["1", "5"], ["2", "10"], ["3", "15"]]
    assert [[str(value) for value in row.values()] for row in seen] == [line.split(",") for line in lines[1:]]
    assert json.loads((trainer.folder / "config.json").read_text())["model"]["num_tokens"] == 4
    assert train.load_config(trainer.folder) == trainer.config


def test_overfits(tmp_path, monkeypatch):
    few = data.sample(np.random.default_rng(3), 16)
    monkeypatch.setattr(data, "load", lambda *_: (few, few))
    trainer = train.start(replace(PLAIN, epochs=80, lr=1e-2, weight_decay=0.0), tmp_path)
    assert trainer.fit()
    last = trainer.rows[-1]
    assert last["train_accuracy"] == last["test_accuracy"] == 1
    assert last["test_loss"] < 0.05 < 1.5 < trainer.rows[0]["test_loss"]


def test_training_metrics_are_means_over_images(tmp_path):
    """With a learning rate of nearly nothing an epoch's loss is that of the first weights, also with a short batch."""
    trainer = train.start(replace(PLAIN, lr=1e-12, epochs=1), tmp_path)
    head = trainer.model.head.weight.data
    head[...] = np.random.default_rng(0).standard_normal(head.shape)
    expected = train.evaluate(trainer.model, trainer.train_set, trainer.mean, trainer.std)
    trainer.fit()
    assert trainer.rows[0]["train_loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert trainer.rows[0]["train_accuracy"] == expected["accuracy"]


def test_each_epoch_sees_all_images_in_another_order(tmp_path):
    trainer = train.Trainer(PLAIN, tmp_path)
    orders = []
    for epoch in range(2):
        trainer.step, trainer.rows = 5 * epoch, [{}] * epoch
        orders.append(np.concatenate([images for images, _ in trainer._rest_of_epoch()]))
    ours, first, second = (sorted(x.tobytes() for x in images) for images in (trainer.train_set.images, *orders))
    assert ours == first == second and orders[0].tobytes() != orders[1].tobytes()


def test_options_reach_the_batch(tmp_path):
    """Each augmentation changes images; mixing makes the labels soft."""
    plain = train.Trainer(PLAIN, tmp_path)
    images, labels = plain.train_set.images[:16], plain.train_set.labels[:16]

    def batch(**options):
        config, rng = replace(plain.config, **options), np.random.default_rng(0)
        return training_batch(images, labels, config, 8, plain.mean, plain.std, rng)

    expected, same = batch()
    assert same is labels and np.array_equal(expected, data.normalize(images, plain.mean, plain.std))
    options = ({"flip": True}, {"crop": 2}, {"rand_augment": 1}, {"auto_augment": True}, {"erasing": 1.0})
    for option in (*options, {"cutout": 4}, {"mixup": 9.0}, {"cutmix": 9.0}):
        x, targets = batch(**option)
        assert x.shape == expected.shape and x.dtype == np.float32 and (x != expected).any(), option
        assert targets.shape == ((16, 8) if {"mixup", "cutmix"} & option.keys() else (16,))


def test_mixing_ends(tmp_path):
    """After half of the steps the targets are labels again; each step has its own, reproducible random numbers."""
    trainer, seen = train.Trainer(replace(PLAIN, mixup=9.0, mix_until=0.5), tmp_path), []
    trainer.take_step = lambda inputs, targets, *_: seen.append((inputs, targets.ndim))
    batch = trainer.train_set.images[:16], trainer.train_set.labels[:16]
    for i in (0, 1, 7, 8, 14, 0):
        trainer.step = i
        trainer._train_batch(*batch)
    assert [ndim for _, ndim in seen] == [2, 2, 2, 1, 1, 2]
    first, second, *_, again = (inputs for inputs, _ in seen)
    assert np.array_equal(first, again) and not np.array_equal(first, second)


def test_evaluate_agrees_with_itself_over_batches_and_restores_the_mode(tmp_path):
    trainer = train.Trainer(EVERYTHING, tmp_path)
    arguments = trainer.model, trainer.test_set, trainer.mean, trainer.std
    at_once, in_parts = (train.evaluate(*arguments, batch_size=size, flip=True) for size in (450, 7))
    assert at_once.keys() == {"loss", "accuracy", "confusion", "map_mass", "flip_accuracy"}
    counts = at_once.pop("confusion")
    assert (counts == in_parts.pop("confusion")).all() and at_once == pytest.approx(in_parts, rel=1e-5)
    assert (counts.sum(1) == np.bincount(trainer.test_set.labels)).all()
    assert np.trace(counts) == round(450 * at_once["accuracy"])
    assert trainer.model.training and trainer.model.blocks[0].training
    assert train.evaluate(*arguments, stop=[True]) is None
    arguments = trainer.model, replace(trainer.test_set, boxes=None), trainer.mean, trainer.std
    assert train.evaluate(*arguments).keys() == {"loss", "accuracy", "confusion"}


def test_flip_averaging(tmp_path):
    """The mean of the logits, of which neither image alone decides; the plain scores stay what they are."""
    trainer = train.Trainer(replace(PLAIN, model=replace(SMALL, zero_head=False)), tmp_path)
    model, test_set, mean, std = trainer.model, trainer.test_set, trainer.mean, trainer.std
    plain, both = (train.evaluate(model, test_set, mean, std, flip=flip) for flip in (False, True))
    model.eval()
    with no_grad():
        sides = [model(data.normalize(x, mean, std)).data for x in (test_set.images, test_set.images[:, :, ::-1])]
    right = [(scores.argmax(1) == test_set.labels).mean() for scores in (*sides, sum(sides))]
    assert len(set(right)) == 3 and both.pop("flip_accuracy") == right[2] and plain["accuracy"] == right[0]
    np.testing.assert_equal(both, plain)


def test_a_run_that_mirrors_is_averaged_in_the_end(tmp_path, monkeypatch):
    trainer, seen = train.start(replace(PLAIN, flip=True, epochs=2), tmp_path), []
    monkeypatch.setattr(run, "evaluate", lambda *_, flip, **__: seen.append(flip) or {"loss": 1.0, "accuracy": 0.5})
    assert trainer.result is None and trainer.fit() and seen == [False, True]
    again = train.resume(tmp_path)
    assert again.fit() and again.result == trainer.result and seen == [False, True, True]


def test_the_data_decide_sizes(tmp_path, monkeypatch, real_pictures):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 16, 24, 1)).astype("uint8")
    split = data.Dataset(images, np.arange(12) % 3, ("a", "b", "c"))
    monkeypatch.setattr(data, "load", lambda *_, **__: (split, split))
    trainer = train.start(PLAIN, tmp_path)
    assert trainer.fit()
    model = train.load_run(tmp_path)[0]
    assert model.spec == split.spec == nn.DataSpec((16, 24), channels=1, num_classes=3)
    assert train.load_config(tmp_path) == PLAIN, "which says what a person chose"
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")


# --- clips with several labels ---

TUBELETS = replace(SMALL, tubelet=2)
BOTTLENECK = X21DConfig(widths=(4, 6), expansion=2, num_tokens=2)


@pytest.fixture
def actors(monkeypatch):
    """40 clips to train on, 50 to test on."""
    splits = sample_clips(np.random.default_rng(1), 40), sample_clips(np.random.default_rng(2), 50)
    monkeypatch.setattr(data, "load", lambda *_, **__: splits)
    return splits


@pytest.mark.parametrize("model", [SMALL, TUBELETS, BOTTLENECK], ids=["frames", "tubelets", "bottleneck"])
def test_a_run_on_clips(tmp_path, actors, real_pictures, model):
    """It is resumed bit for bit, read back, evaluated by mAP, and drawn as a film strip."""
    config = replace(PLAIN, dataset="actors", model=model)
    whole = train.start(config, tmp_path / "whole")
    assert whole.fit() and whole.score == "mAP"
    assert "40 training and 50 test clips of 10 classes" in whole.describe()
    parts = train.start(config, tmp_path / "parts")
    ctrl_c_after(parts, 4)
    assert not parts.fit() and train.resume(parts.folder).fit()
    assert contents(parts.folder) == contents(whole.folder)

    model, test_set, mean, std = train.load_run(whole.folder)
    found = train.evaluate(model, test_set, mean, std, batch_size=50)
    assert not (whole.folder / "confusion.png").exists(), "of several labels"
    assert found == pytest.approx(whole.evaluate(), rel=1e-5) and 0 < found["map_mass"] < 1
    assert whole.rows[-1]["test_accuracy"] == pytest.approx(found["accuracy"])
    model.eval()
    with no_grad():
        scores = model(data.normalize(test_set.images, mean, std)).data
    assert found["accuracy"] == pytest.approx(metrics.mean_average_precision(scores, test_set.labels))
    p, t = 1 / (1 + np.exp(-scores.astype("float64"))), test_set.labels
    assert found["loss"] == pytest.approx(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(), rel=1e-5)
    assert (whole.folder / "maps.png").read_bytes().startswith(b"\x89PNG")


def test_learns_several_labels(tmp_path, monkeypatch):
    """Label k says whether channel k is bright."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (48, 3)).astype("uint8")
    images = (100 * labels[:, None, None] + rng.integers(0, 150, (48, 16, 16, 3))).astype("uint8")
    split = data.Dataset(images, labels, ("red", "green", "blue"))
    monkeypatch.setattr(data, "load", lambda *_: (split, split))
    trainer = train.start(replace(PLAIN, epochs=30, lr=1e-2), tmp_path)
    assert trainer.fit()
    last = trainer.rows[-1]
    assert last["train_accuracy"] > 0.99 and last["test_accuracy"] > 0.99 and last["test_loss"] < 0.1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"flip": True, "crop": 2}, "actors has clips, which cannot be combined with flip, crop; leave that out"),
        ({"cutout": 3}, "clips, which cannot be combined with cutout"),
        ({"mixup": 0.5}, "clips, which cannot be combined with mixup"),
        ({"rand_augment": 2, "erasing": 0.1}, "clips, which cannot be combined with rand_augment, erasing"),
        ({"auto_augment": True}, "clips, which cannot be combined with auto_augment"),
        ({"label_smoothing": 0.1}, "images with several labels, which cannot be combined with label_smoothing"),
        ({"model": replace(SMALL, tubelet=3)}, "tubelet=3 does not divide frames=8"),
    ],
)
def test_what_clips_cannot_have(tmp_path, actors, options, message):
    with pytest.raises(InputError, match=message):
        train.start(replace(PLAIN, dataset="actors", **options), tmp_path)
    assert not files(tmp_path)


def test_what_several_labels_cannot_have(tmp_path, monkeypatch):
    few = data.Dataset(np.zeros((8, 32, 32, 3), "uint8"), np.eye(8, 3, dtype="uint8"), ("a", "b", "c"))
    monkeypatch.setattr(data, "load", lambda *_: (few, few))
    with pytest.raises(InputError, match="several labels, which cannot be combined with mixup"):
        train.start(replace(PLAIN, mixup=0.5, flip=True), tmp_path)
    trainer = train.start(replace(PLAIN, flip=True, crop=2, epochs=1), tmp_path)
    assert trainer.fit(), "most of these images have no label at all"


def test_images_are_no_clips(tmp_path):
    with pytest.raises(InputError, match=r"an X\(2\+1\)D model needs clips, and clutter has images; train a ViT"):
        train.start(replace(PLAIN, model=BOTTLENECK), tmp_path)
    with pytest.raises(InputError, match="tubelet=2 does not divide frames=1"):
        train.start(replace(PLAIN, model=TUBELETS), tmp_path)
    assert not files(tmp_path)


@pytest.mark.parametrize(
    "model, text",
    [
        (SMALL, "16 tokens -> 4 by TokenLearner 1.1 before block 0"),
        (replace(SMALL, tokenizer="none"), "16 tokens"),
        (replace(SMALL, tokenizer="merge", num_tokens=8), "16 tokens -> 8 by merging in block 0"),
        (
            replace(SMALL, tokenizer="query", back="fuser"),
            "4 by learned queries before block 0 and each later one, back by",
        ),
        (
            replace(SMALL, tokenizer="mean-dense", tubelet=2),
            "4 x 16 tokens -> 4 x 4 by a linear layer on their",
        ),
        (BOTTLENECK, "2 tokens of each frame"),
        (replace(BOTTLENECK, last="conv"), "a convolution over time"),
    ],
)
def test_tokens_in_words(model, text):
    clips = isinstance(model, X21DConfig) or model.tubelet > 1
    assert text in run._tokens(build_model(model, nn.DataSpec(frames=8 if clips else 1)))


def test_every_tokenizer_and_way_back_has_words():
    for field, values in (("tokenizer", [*TOKENIZERS, *REDUCTIONS]), ("back", BACKS)):
        for name in values:
            model = replace(SMALL, **{"num_tokens": 8, field: name})
            assert run._tokens(build_model(model, nn.DataSpec()))


# --- stop and resume ---


AUTO = replace(PLAIN, auto_augment=True, flip=True, crop=3, cutmix=1.0)


@pytest.mark.parametrize("config", [PLAIN, EVERYTHING, AUTO], ids=["plain", "everything", "auto"])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(tmp_path, config):
    """Interrupted in the middle, at the first and last step of an epoch (5, 15), and twice in a row."""
    whole = train.start(config, tmp_path / "whole")
    assert whole.fit()
    parts = train.start(config, tmp_path / "parts")
    for i in (2, 5, 6, 7, 13, 15):
        ctrl_c_after(parts, i)
        assert not parts.fit() and parts.step == i
        parts = train.resume(parts.folder)
        assert parts.step == i
    assert parts.fit()
    assert contents(parts.folder) == contents(whole.folder)
    assert parts.optimizer.steps == 15
    assert files(parts.folder)["maps.png"] == files(whole.folder)["maps.png"]


def test_an_interrupted_run_that_saves_seldom(tmp_path):
    """After epochs 2, 4 and 5: interrupted there, at other ends of epochs (5, 15) and in between, it ends the same."""
    config = replace(EVERYTHING, epochs=5, save_every=2)
    usual, whole = (
        train.start(replace(config, save_every=0), tmp_path / "usual"),
        train.start(config, tmp_path / "whole"),
    )
    saves = []
    before(whole, "save", lambda: saves.append(whole.step))
    assert usual.fit() and whole.fit() and saves == [10, 20, 25]
    parts = train.start(config, tmp_path / "parts")
    for i in (3, 5, 10, 12, 15, 17, 25):
        ctrl_c_after(parts, i)
        assert not parts.fit() and parts.step == i
        parts = train.resume(parts.folder)
    assert parts.fit() and contents(parts.folder) == contents(whole.folder)
    rows = {row["epoch"]: row | {"seconds": 0} for row in usual.rows}
    assert [row | {"seconds": 0} for row in whole.rows] == [rows[epoch] for epoch in (2, 4, 5)]
    assert contents(whole.folder)[0] == contents(usual.folder)[0], "an evaluation changes nothing"
    assert whole.sums["images"] == 70, "a row is about the images of its own epoch"


def test_ctrl_c_during_evaluation(tmp_path, monkeypatch):
    whole = train.start(EVERYTHING, tmp_path / "whole")
    whole.fit()
    parts = train.start(EVERYTHING, tmp_path / "parts")
    batches = []
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "map_mass", lambda *_: batches.append(signal.raise_signal(signal.SIGINT)) or np.zeros(1))
        assert not parts.fit()
    assert (len(batches), parts.step, parts.rows) == (1, 5, [])  # the second and third batch were not waited for
    parts = train.resume(parts.folder)
    assert parts.fit()
    assert contents(parts.folder) == contents(whole.folder)


def test_a_second_ctrl_c_interrupts_at_once_without_damage(tmp_path, monkeypatch):
    whole = train.start(PLAIN, tmp_path / "whole")
    whole.fit()
    parts = train.start(PLAIN, tmp_path / "parts")
    ctrl_c_after(parts, 3)
    saved, handler = files(parts.folder), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:  # while it saves
        patch.setattr(os, "fsync", lambda file: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            parts.fit()
    assert files(parts.folder) == saved
    parts = train.resume(parts.folder)
    assert parts.step == 0 and parts.fit()
    assert contents(parts.folder) == contents(whole.folder)
    assert signal.getsignal(signal.SIGINT) is handler


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", range(10))
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch, moment):
    """Killed just before a file takes its place: metrics.csv and checkpoint of three epochs, then three pictures."""
    whole = train.start(PLAIN, tmp_path / "whole")
    whole.fit()
    parts = train.start(PLAIN, tmp_path / "parts")
    moves, move = [], os.replace

    def kill(*paths):
        moves.append(paths)
        if len(moves) > moment:
            raise Killed
        move(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        if moment < 9:
            with pytest.raises(Killed):
                parts.fit()
        else:
            parts.fit()
            assert len(moves) == 9
    for name in ("metrics.csv.tmp", "checkpoint.safetensors.tmp"):  # what a real kill would leave
        (parts.folder / name).write_bytes(b"half")
    parts = train.resume(parts.folder)
    assert parts.step == min(moment // 2, 3) * 5
    assert parts.fit()
    assert contents(parts.folder) == contents(whole.folder)
    for name in ("curves.png", "confusion.png", "maps.png"):
        assert files(parts.folder)[name] == files(whole.folder)[name]


def test_seconds_go_on(tmp_path):
    trainer = train.start(PLAIN, tmp_path)
    ctrl_c_after(trainer, 7)
    trainer.fit()
    again = train.resume(tmp_path)
    assert again.seconds == trainer.seconds > 0
    again.fit()
    seconds = [row["seconds"] for row in again.rows]
    assert seconds == sorted(seconds) and again.seconds > trainer.seconds


def test_the_bar_shows_what_a_person_waits_for(tmp_path, monkeypatch, capsys):
    train.start(PLAIN, tmp_path / "quiet").fit()
    assert capsys.readouterr() == ("", "")
    written = []

    class Terminal:
        isatty, flush, encoding = (lambda self: True), (lambda self: None), "utf-8"

        def write(self, text):
            written.append(text)

    monkeypatch.setattr("sys.stderr", Terminal())
    seconds = itertools.count()
    monkeypatch.setattr("tqdm.std.time", lambda: float(next(seconds)))  # tqdm draws only once in a while
    train.start(PLAIN, tmp_path / "loud").fit()
    bar = "".join(written)
    assert re.search(r"\| 156/210 \[.*<\d\d:\d\d, +[\d.]+ images/s, loss \d\.\d{3}, accuracy [\d.]+%\]", bar), bar


# --- a given time ---


@pytest.fixture
def clock(monkeypatch):
    """A clock by which an image takes 0.01 seconds to train on, and an evaluation 2; twice that for flip averaging."""
    now, step, evaluate = [0.0], train.Trainer._train_batch, run.evaluate

    def slow_step(trainer, images, labels):
        now[0] += 0.01 * len(labels)
        step(trainer, images, labels)

    def slow_evaluate(*args, flip, **options):
        now[0] += 2 + 2 * flip
        return evaluate(*args, flip=flip, **options)

    monkeypatch.setattr(train.Trainer, "_train_batch", slow_step)
    monkeypatch.setattr(run, "evaluate", slow_evaluate)
    monkeypatch.setattr(run, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


@pytest.mark.parametrize(
    "seconds, options, epochs, taken",
    [
        (30, {}, 11, 29.7),  # of 0.7 + 2 seconds
        (6, {"flip": True}, 1, 4.7),
        (10, {"save_every": 4}, 8, 9.6),
        (7.4, {"save_every": 4}, 4, 4.8),  # after a fifth one there would be another evaluation
    ],
)
def test_as_many_epochs_as_fit(tmp_path, clock, seconds, options, epochs, taken):
    trainer = train.start(replace(PLAIN, minutes=seconds / 60, **options), tmp_path)
    assert train.load_config(tmp_path) == trainer.config and trainer.config.epochs == epochs
    fit = "1 epoch fits" if epochs == 1 else f"{epochs} epochs fit"
    assert trainer.describe().endswith(f"classes\n{fit} into {seconds / 60:g} minutes (100 images per second)")
    assert trainer.fit() and len(trainer.rows) == -(-epochs // (trainer.config.save_every or 1))
    assert trainer.rows[-1]["seconds"] == pytest.approx(taken)


def test_steps_that_are_timed_leave_no_trace(tmp_path, clock):
    """Interrupted and resumed, which measures nothing again, the run is that of the same number of epochs."""
    config = replace(EVERYTHING, optimizer="muon")
    whole = train.start(replace(config, epochs=3), tmp_path / "whole")
    parts = train.start(replace(config, minutes=0.18), tmp_path / "parts")
    assert parts.config.epochs == 3 and clock[0] > 2
    ctrl_c_after(parts, 7)
    assert not parts.fit()
    parts = train.resume(parts.folder)
    assert whole.fit() and parts.fit()
    ours, theirs = contents(parts.folder), contents(whole.folder)
    assert ours[1]["config"].pop("minutes") == 0.18 and theirs[1]["config"].pop("minutes") == 0
    assert ours == theirs


def test_few_steps_are_timed_if_they_are_slow(tmp_path, clock, monkeypatch):
    steps = []
    step = train.Trainer._train_batch
    monkeypatch.setattr(train.Trainer, "_train_batch", lambda *args: steps.append(args) or step(*args))
    for minutes, timed in ((1, 2 + 4 + 8), (100, 2 + 4 + 8 + 16 + 32 + 64)):  # the last ones take 1 % of the time
        train.start(replace(PLAIN, minutes=minutes), tmp_path / str(minutes))
        assert len(steps) == run.WARMUP_STEPS + timed
        steps.clear()


def test_not_even_one_epoch_fits(tmp_path, clock):
    sentence = (
        "not even one epoch fits into 0.04 minutes: with its evaluation it takes 0.045 minutes (100 images per "
        "second); choose more minutes, or fewer images with subset"
    )
    with pytest.raises(InputError, match=re.escape(sentence)):
        train.start(replace(PLAIN, minutes=0.04), tmp_path / "run")
    assert not files(tmp_path)


# --- what goes wrong ---


def poison_loss(trainer):
    trainer.model.head.weight.data[0, 0] = np.nan


def poison_gradient(trainer):
    before(trainer.optimizer, "clip_grad_norm", lambda: trainer.optimizer.flat.grad.__setitem__(0, np.inf))


@pytest.mark.parametrize("poison", [poison_loss, poison_gradient])
def test_a_number_that_is_not_finite_stops_the_run(tmp_path, poison):
    trainer = train.start(PLAIN, tmp_path)
    before(trainer, "_train_batch", lambda: trainer.step == 7 and poison(trainer))
    with pytest.raises(InputError, match=r"(loss|gradient) (of|in) step 8 of 15 is (nan|inf).*smaller learning rate"):
        trainer.fit()
    resumed = train.resume(tmp_path)
    assert resumed.step == 5 and np.isfinite(resumed.optimizer.flat.data).all()
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 2


def test_a_number_that_is_not_finite_stops_a_run_on_clips(tmp_path, actors):
    """Scores that are not numbers cannot be ranked, but the message is about the loss."""
    config = train.default_config("actors")
    trainer = train.start(replace(config, model=replace(config.model, dim=12, layers=1), lr=1e30, warmup=0.0), tmp_path)
    with pytest.raises(InputError, match=r"(loss|gradient) .* is (nan|inf).*smaller learning rate"):
        trainer.fit()


def test_a_test_loss_that_is_not_finite_is_not_saved(tmp_path):
    trainer = train.start(PLAIN, tmp_path)
    trainer.evaluate = lambda stop: {"loss": float("inf"), "accuracy": 0.0}
    saved = files(tmp_path)
    with pytest.raises(InputError, match="the test loss after step 5 of 15 is inf"):
        trainer.fit()
    assert files(tmp_path) == saved


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_for(name, patch):
    """The disk is full as soon as the file ``name`` shall take its place."""
    move = os.replace
    patch.setattr(os, "replace", lambda old, new: no_space() if Path(new).name == name else move(old, new))


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "metrics.csv"])
def test_a_disk_that_fills(tmp_path, monkeypatch, name):
    trainer = train.start(PLAIN, tmp_path)
    before(trainer, "_train_batch", lambda: trainer.step == 7 and no_space_for(name, monkeypatch))
    with pytest.raises(InputError, match=rf"cannot write .*{name} \(No space left.*; the old file is unchanged"):
        trainer.fit()
    monkeypatch.undo()
    arrays, meta = checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert meta["step"] == 5 and arrays["optimizer.steps"] == 5
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "metrics.csv", "config.json", "command.txt"])
def test_a_disk_that_is_full_from_the_start(tmp_path, monkeypatch, name):
    with monkeypatch.context() as patch:
        no_space_for(name, patch)
        with pytest.raises(InputError, match="No space left"):
            train.start(PLAIN, tmp_path, "minitl train")
    assert not files(tmp_path)
    train.start(PLAIN, tmp_path)


def test_pictures_that_cannot_be_written_lose_nothing(tmp_path, monkeypatch):
    trainer = train.start(PLAIN, tmp_path)
    monkeypatch.setattr(pictures, "png", no_space)
    with pytest.raises(OSError):
        trainer.fit()
    monkeypatch.undo()
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 4


def test_a_folder_in_use_is_left_alone(tmp_path, images):
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(InputError, match="is not empty; continue it with --resume, or choose another --out"):
        train.start(PLAIN, tmp_path)
    assert files(tmp_path) == {"thesis.tex": b"important"} and not images
    with pytest.raises(InputError, match=r"cannot write .*thesis.tex"):
        train.start(PLAIN, tmp_path / "thesis.tex")
    with pytest.raises(InputError, match=r"cannot write .*thesis.tex"):
        train.start(PLAIN, tmp_path / "thesis.tex" / "run")


def test_a_folder_that_is_taken_meanwhile_is_left_alone(tmp_path, monkeypatch):
    """Two runs are started at once in one folder: the second one to have its data gives way."""
    init = train.Trainer.__init__

    def slow(self, config, folder):
        init(self, config, folder)
        (tmp_path / "config.json").write_text("mine")

    monkeypatch.setattr(train.Trainer, "__init__", slow)
    with pytest.raises(InputError, match="is no longer empty"):
        train.start(PLAIN, tmp_path)
    assert files(tmp_path) == {"config.json": b"mine"}


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('"lr": 0.004', '"lr": 0.1', "lr: 0.004 in the checkpoint, 0.1 here"),
        ('"dim": 12', '"dim": 24', "model.dim: 12 in the checkpoint, 24 here"),
        ('"batch_size": 16', '"batch_size": 2.5', "batch_size must be of type int, got 2.5"),
        ('"epochs": 3', '"epochs": 0', "epochs must be at least 1, got 0"),
        ('"epochs": 3', '"epochs": "3"', "is not a configuration of this minitl"),
        ('"device": "cpu"', '"device": "tpu"', "device must be one of cpu, cuda, got 'tpu'"),
        ('"epochs"', '"epoch"', "is not a configuration of this minitl"),
        ("}", "", "is not a configuration of this minitl"),
        ("{", "[", "is not a configuration of this minitl"),
    ],
)
def test_config_json_was_edited(tmp_path, old, new, message):
    train.start(PLAIN, tmp_path)
    config = tmp_path / "config.json"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    refused(tmp_path, message)


def test_config_json_is_missing(tmp_path):
    train.start(PLAIN, tmp_path)
    (tmp_path / "config.json").unlink()
    refused(tmp_path, "is not a run: it has no config.json")


def refused(folder, *messages):
    """It can be neither resumed nor evaluated, and nothing is written."""
    saved = files(folder)
    for use in (train.resume, train.load_run):
        with pytest.raises(InputError) as error:
            use(folder)
        assert [message for message in messages if message not in str(error.value)] == [], str(error.value)
    assert files(folder) == saved


def edit(arrays, meta, kind):
    if kind == "names":
        arrays["model.head.weights"] = arrays.pop("model.head.weight")
    elif kind == "shape":
        arrays["model.head.bias"] = arrays["model.head.bias"][1:]
    elif kind == "meta":
        del meta["rows"], meta["mean"]


@pytest.mark.parametrize(
    "kind, messages",
    [
        ("names", ["missing: model.head.weight", "unknown: model.head.weights"]),
        ("shape", ["different: model.head.bias"]),
        ("meta", ["not a checkpoint of a training run: it lacks mean, rows"]),
        ("truncated", ["damaged, truncated"]),
        ("absent", ["there is no checkpoint"]),
    ],
)
def test_a_damaged_checkpoint(tmp_path, kind, messages):
    train.start(PLAIN, tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    arrays, meta = checkpoint.load(path)
    edit(arrays, meta, kind)
    checkpoint.save(path, arrays, meta)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    if kind == "absent":
        path.unlink()
    refused(tmp_path, *messages)


def test_other_options_or_other_images_cannot_go_on(tmp_path, monkeypatch, images):
    train.start(PLAIN, tmp_path)
    own = train.load_config(tmp_path)
    assert train.resume(tmp_path, own).step == 0
    images.clear()
    with pytest.raises(InputError) as error:
        train.resume(tmp_path, replace(own, lr=0.1, model=replace(own.model, heads=3)))
    assert "lr: 0.004 in the checkpoint, 0.1 here" in str(error.value)
    assert "model.heads: 2 in the checkpoint, 3 here" in str(error.value) and not images
    splits = data.sample(np.random.default_rng(8), 70), data.sample(np.random.default_rng(2), 450)
    monkeypatch.setattr(data, "load", lambda *_, **__: splits)
    with pytest.raises(InputError, match="training images of clutter are not those"):
        train.resume(tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"save_every": -1}, "save_every must be 0 or more, got -1"),
        ({"minutes": float("inf")}, "minutes must be 0 or more, got inf"),
        ({"subset": 0}, "subset must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be above 0, got 0"),
        ({"lr": float("nan")}, "lr must be above 0, got nan"),
        ({"clip": float("inf")}, "clip must be above 0, got inf"),
        ({"warmup": 1.0}, r"warmup must be in \[0, 1\), got 1.0"),
        ({"ema": -0.1}, r"ema must be in \[0, 1\), got -0.1"),
        ({"mixup": float("inf")}, "mixup must be 0 or more, got inf"),
        ({"rand_augment": -1}, "rand_augment must be 0 or more, got -1"),
        ({"magnitude": 31.0}, "magnitude must be from 0 to 30, got 31.0"),
        (
            {"rand_augment": 2, "auto_augment": True},
            "auto_augment and rand_augment 2 cannot be combined; leave one out",
        ),
        ({"erasing": 1.5}, r"erasing must be in \[0, 1\], got 1.5"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"device": "tpu"}, "device must be one of cpu, cuda, got 'tpu'"),
        ({"precision": "fp16"}, "precision must be one of fp32, tf32, bf16, got 'fp16'"),
        ({"precision": "bf16"}, "precision bf16 needs device cuda; a CPU computes in fp32"),
        ({"crop": 32}, "crop must be less than a side of the images, 32 x 32, got 32"),
        ({"cutout": 99}, "cutout must be less than a side of the images"),
        (
            {"model": replace(SMALL, patch_size=5)},
            "patch_size=5 does not divide the image size 32",
        ),
    ],
)
def test_options_out_of_range(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        train.start(replace(PLAIN, **options), tmp_path)
    assert not files(tmp_path)


def test_no_gpu(tmp_path, monkeypatch, images):
    monkeypatch.setattr(run, "cuda_problem", lambda: "there is none")
    with pytest.raises(InputError, match="device cuda cannot be used: there is none"):
        train.start(replace(PLAIN, device="cuda"), tmp_path)
    assert not files(tmp_path) and not images


def test_a_run_of_a_gpu_can_be_looked_at_without_one(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run, "cuda_problem", lambda: None)
        patch.setattr(nn.ViT, "to", lambda model, device: model)
        patch.setattr(step, "OnGPU", step.OnCPU)
        train.start(replace(PLAIN, device="cuda"), tmp_path)
    monkeypatch.setattr(run, "cuda_problem", lambda: "there is none")
    assert train.evaluate(*train.load_run(tmp_path))["loss"] == pytest.approx(np.log(8), rel=1e-3)


# --- a finished run ---


@pytest.mark.parametrize("config", [PLAIN, EVERYTHING], ids=["plain", "everything"])
def test_load_run_gives_the_evaluated_weights(tmp_path, images, config):
    trainer = train.start(config, tmp_path)
    trainer.fit()
    images.clear()
    model, test_set, mean, std = train.load_run(tmp_path)
    assert images == [("clutter", None, 1)]  # the training images are not asked for
    np.testing.assert_equal(train.evaluate(model, test_set, mean, std, flip=config.flip), trainer.result)
    train.draw_maps(tmp_path / "again.png", model, test_set, mean, std)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "maps.png").read_bytes()


def test_load_run_wants_the_images_it_was_trained_for(tmp_path, monkeypatch):
    train.start(PLAIN, tmp_path)
    other = data.Dataset(np.zeros((4, 16, 16, 3), "uint8"), np.arange(4), tuple("abcd"))
    monkeypatch.setattr(data, "load", lambda *_, **__: (other, other))
    with pytest.raises(InputError, match=r"classes or the image size of .* have changed"):
        train.load_run(tmp_path)


def test_no_maps_without_a_tokenizer(tmp_path):
    trainer = train.start(replace(PLAIN, model=replace(SMALL, tokenizer="none")), tmp_path)
    trainer.fit()
    assert "maps.png" not in files(tmp_path) and "16 tokens, on cpu" in trainer.describe()
    with pytest.raises(InputError, match="do not come from maps, so there is nothing to draw"):
        train.draw_maps(tmp_path / "maps.png", *train.load_run(tmp_path))


def test_a_picture_that_cannot_be_written(tmp_path):
    train.start(PLAIN, tmp_path)
    with pytest.raises(InputError, match=r"cannot write .*No such file"):
        train.draw_maps(tmp_path / "nowhere" / "maps.png", *train.load_run(tmp_path))


def test_on_the_gpu_as_on_the_cpu(tmp_path):
    if problem := backend.cuda_problem():
        pytest.skip(problem)
    cpu, gpu = (train.start(replace(EVERYTHING, device=device), tmp_path / device) for device in ("cpu", "cuda"))
    assert cpu.fit() and gpu.fit()
    for ours, theirs in zip(cpu.rows, gpu.rows, strict=True):
        assert ours["test_loss"] == pytest.approx(theirs["test_loss"], rel=1e-2)
    assert isinstance(gpu.optimizer, optim.AdamW)


def test_steps_follow_the_options(tmp_path):
    """Against the loop written out: schedule, smoothing, clipping, decay and average."""
    config = replace(PLAIN, label_smoothing=0.2, ema=0.5, weight_decay=0.3, clip=0.05, warmup=0.5, lr=0.01, threads=1)
    trainer = train.start(config, tmp_path)
    model = nn.ViT(config.model, trainer.train_set.spec, np.random.default_rng(config.seed))
    optimizer = optim.AdamW(model.parameters(), config.lr, weight_decay=0.3)
    average = optim.EMA(optimizer, 0.5)
    for i, (images, labels) in enumerate(itertools.islice(trainer._rest_of_epoch(), 3)):
        trainer._train_batch(images, labels)
        optimizer.lr = optim.warmup_cosine(i, trainer.total, trainer.total // 2, config.lr)
        logits = model(data.normalize(images, trainer.mean, trainer.std))
        optimizer.zero_grad()
        ops.cross_entropy(logits, labels, label_smoothing=0.2).backward()
        assert optimizer.clip_grad_norm(0.05) > 0.05, "clipping has something to do"
        optimizer.step()
        average.update()
        assert trainer.optimizer.lr == optimizer.lr
    assert np.array_equal(trainer.optimizer.flat.data, optimizer.flat.data)
    assert np.array_equal(trainer.ema.average, average.average)


def test_a_run_from_before_a_field_was_added(tmp_path):
    trainer = train.start(PLAIN, tmp_path)
    arrays, meta = checkpoint.load(tmp_path / "checkpoint.safetensors")
    for saved in (meta["config"], json.loads((tmp_path / "config.json").read_text())):
        del saved["cutmix"], saved["model"]["back"]
    checkpoint.save(tmp_path / "checkpoint.safetensors", arrays, meta)
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert train.resume(tmp_path).config == trainer.config


@pytest.mark.parametrize("model", [SMALL, TUBELETS, BOTTLENECK], ids=["images", "tubelets", "bottleneck"])
def test_a_run_from_before_the_data_spec(tmp_path, monkeypatch, model):
    """Its sizes were options of the model, in both files. It is read but not continued: its steps round differently."""
    if model is not SMALL:
        splits = sample_clips(np.random.default_rng(1), 40), sample_clips(np.random.default_rng(2), 50)
        monkeypatch.setattr(data, "load", lambda *_, **__: splits)
    config = replace(PLAIN, dataset="clutter" if model is SMALL else "actors", model=model)
    whole, parts = (train.start(config, tmp_path / name) for name in ("whole", "parts"))
    assert whole.fit()
    ctrl_c_after(parts, 4)
    assert not parts.fit()
    path = parts.folder / "checkpoint.safetensors"
    arrays, meta = checkpoint.load(path)
    meta["config"]["model"] |= meta.pop("spec")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 1)
        checkpoint.save(path, arrays, meta)
    (parts.folder / "config.json").write_text(json.dumps(meta["config"]))
    assert {"image_size", "frames", "channels", "num_classes"} < json.loads((parts.folder / "config.json").read_text())[
        "model"
    ].keys()

    assert train.load_config(parts.folder) == config
    assert train.load_run(parts.folder)[0].spec == train.model_of(meta).spec == whole.model.spec
    before = contents(parts.folder)
    with pytest.raises(
        InputError, match=r"started by an earlier minitl, .* continue it with that version, or start a new"
    ):
        train.resume(parts.folder, config)
    assert contents(parts.folder) == before


def test_a_relative_path_is_good_from_any_folder(tmp_path, monkeypatch):
    """The run keeps where its data set is, not how it was called."""
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    config = replace(PLAIN, dataset="photos", epochs=1)
    train.start(config, "run")
    assert train.load_config("run").dataset == str(tmp_path / "photos")
    assert train.resume("run", config).fit(), "the same name means the same data set"


def test_ctrl_c_after_the_first_checkpoint_leaves_nothing(tmp_path, monkeypatch):
    """Neither a checkpoint without a configuration, nor an error about the folder in place of the interrupt."""
    save = train.Trainer.save

    def interrupted(trainer):
        save(trainer)
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Trainer, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.start(PLAIN, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "damage", [{"config": []}, {"config": {"model": 3}}, {"spec": "large"}, {"spec": {"channels": 0}}]
)
def test_a_checkpoint_whose_description_is_damaged(tmp_path, damage):
    train.start(PLAIN, tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    arrays, meta = checkpoint.load(path)
    checkpoint.save(path, arrays, meta | damage)
    with pytest.raises(InputError, match=r"is damaged|does not describe its images"):
        train.load_model(tmp_path)
