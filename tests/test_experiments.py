"""Ablations compare what they say, continue where they were stopped, and count what they compute; few-shot."""

import csv
import signal
from dataclasses import asdict, replace

import numpy as np
import pytest

from minitl import OPS, data, nn, train
from minitl.errors import InputError
from minitl.flops import count, total
from minitl.paper import ablate, fewshot
from minitl.train import TrainConfig
from minitl.train.presets import preset
from minitl.train.step import build_model

SMALL = nn.ViTConfig(patch_size=8, dim=12, heads=2, mlp_dim=16, num_tokens=4, version="1.1", pre_norm=False, hidden=8)
PLAIN = TrainConfig(model=SMALL, epochs=2, batch_size=20)
MODELS = [(kind, label) for kind, models in ablate.KINDS.items() for label in models]


@pytest.fixture
def small(monkeypatch):
    """An ablation "small" of two models on 60 images; gives the two splits."""
    splits = data.sample(np.random.default_rng(1), 60), data.sample(np.random.default_rng(2), 40)
    monkeypatch.setattr(data, "load", lambda *_, **__: splits)
    monkeypatch.setattr(train.Trainer, "_draw", lambda self: (self.folder / "curves.png").touch())
    few = {"4 tokens": PLAIN, "2 tokens": replace(PLAIN, model=replace(SMALL, num_tokens=2))}
    monkeypatch.setitem(ablate.KINDS, "small", few)
    return splits


# --- what is compared ---


@pytest.mark.parametrize(("kind", "label"), MODELS)
def test_each_model_can_be_built_and_is_counted(kind, label):
    config = ablate.KINDS[kind][label].model
    spec = nn.DataSpec(frames=8 if kind == "video" else 1)
    assert total(count(config, spec)).params == build_model(config, spec).num_parameters()


@pytest.mark.parametrize("last", ["tokens", "conv"])
def test_multiply_adds_of_the_bottleneck_model(last, monkeypatch):
    """Those of the products that one clip really goes through."""
    sizes = {
        "linear": lambda y, x, W, *_: y.size * W.shape[0],
        "conv2d": lambda y, x, W, *_: y.size * W[..., 0].size,
        "token_pool": lambda y, A, x: A.size * x.shape[2],
        "matmul": lambda y, a, b: y.size * a.shape[-1],
        "vector_attention": lambda y, q, k, v: 2 * q.size * q.shape[1],
    }
    macs = []

    def counted(fn, size):
        def op(*args, **options):
            y, backward = fn(*args, **options)
            macs.append(size(y, *args))
            return y, backward

        return op

    for name, size in sizes.items():
        monkeypatch.setitem(OPS, name, counted(OPS[name], size))
    config, spec = nn.X21DConfig(widths=(4, 6, 6), num_tokens=3, last=last), nn.DataSpec((16, 20), frames=4)
    nn.X21D(config, spec, np.random.default_rng(0))(np.zeros((1, 4, 16, 20, 3), "float32"))
    assert total(count(config, spec)).macs == sum(macs)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("location", {"loc", "tokenizer"}),
        ("tokens", {"num_tokens"}),
        ("fuser", {"loc", "back"}),
        ("pooling", {"version", "pre_norm", "pool", "tokenizer", "num_tokens", "loc"}),
        ("back", {"back"}),
        ("tokenizer", {"tokenizer", "version", "pre_norm"}),
        ("reduce", {"tokenizer", "num_tokens", "loc"}),
    ],
)
def test_an_ablation_varies_one_thing(kind, options):
    """Models differ in the named options, runs in nothing else."""
    configs = list(ablate.KINDS[kind].values())
    varied = {name for name in asdict(SMALL) if len({getattr(config.model, name) for config in configs}) > 1}
    assert varied == options
    assert len({replace(config, model=SMALL) for config in configs}) == 1


MIX = {"mixup", "cutmix", "mix_until"}
CHANGED = {  # from the first row
    "AdamW": {"optimizer", "lr"},
    "no flip": {"flip"},
    "crop 4": {"crop"},
    "patch stem": {"stem"},
    "sequence pooling": {"head_pool"},
    "TokenLearner 1.0": {"version", "pre_norm"},
    "grid of 16": {"tokenizer"},
    "all tokens": {"tokenizer"},
    "EMA 0.99": {"ema"},
    "RandAugment 2": {"rand_augment"},
    "erasing 0.25": {"erasing"},
    "mixup and cutmix": MIX,
    "label smoothing 0.1": {"label_smoothing"},
    "drop path 0.1": {"drop_path"},
    "all regularization": MIX | {"crop", "rand_augment", "label_smoothing"},
    "flip, 60 epochs": {"epochs"},
    "all, 60 epochs": MIX | {"crop", "rand_augment", "label_smoothing", "epochs"},
}


@pytest.mark.parametrize("kind", ["recipe", "overfit"])
def test_a_part_of_the_recipe_changes_what_its_name_says(kind):
    configs = ablate.KINDS[kind]
    flat = {name: asdict(config) | asdict(config.model) | {"model": None} for name, config in configs.items()}
    (_, first), *others = flat.items()
    assert first["dataset"] == "cifar10"
    for name, options in others:
        assert {option for option in options if options[option] != first[option]} == CHANGED[name]


def test_folders_differ(tmp_path):
    for kind, models in ablate.KINDS.items():
        runs = ablate.plan(kind, tmp_path, seeds=3)
        assert len({run.folder for run in runs}) == len(runs) == 3 * len(models)
        assert all(run.folder.parent == tmp_path and run.config.seed == run.seed for run in runs)
    assert str(ablate.plan("pooling", tmp_path)[-1].folder.name) == "grid-of-8-loc-0.5-seed1"


def test_plan():
    assert [run.seed for run in ablate.plan("tokens", "x", seeds=2)] == 5 * [0] + 5 * [1]
    quick = ablate.plan("tokens", "x", dataset="photos.zip", quick=True)[0].config
    assert (quick.epochs, quick.subset, quick.dataset) == (1, 200, "photos.zip")
    usual = ablate.plan("tokens", "x", device=None)[3].config
    assert usual == TrainConfig()


def test_a_recipe_beside_its_twins():
    runs = ablate.plan("cifar-r1", "x", seeds=1, dataset="photos.zip", device="cuda", precision="bf16", minutes=6.0)
    assert [run.name for run in runs] == ["cifar-r1", "cifar-r1-all", "cifar-r1-grid"]
    for run in runs:
        assert run.config == replace(preset(run.name, "photos.zip"), device="cuda", precision="bf16", minutes=6.0)


def test_folder_of():
    assert str(ablate.folder_of("tokens")) == "runs/ablate-tokens"
    assert (
        str(ablate.folder_of("back", "some/where/my photos.tar.gz", quick=True)) == "runs/ablate-back-my-photos-quick"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "tokeniser"}, "no ablation 'tokeniser'; did you mean tokenizer"),
        ({"kind": "fusr"}, "did you mean fuser"),
        ({"kind": "zzz"}, "choose one of location, tokens, .*, overfit"),
        ({"kind": "tokens", "seeds": 0}, "seeds must be at least 1, got 0"),
        ({"kind": "tokens", "minutes": 1.0, "epochs": 3}, "minutes decide the number of epochs; leave out epochs and"),
        (
            {"kind": "tokens", "minutes": 1.0, "quick": True},
            "minutes decide the number of epochs; leave out epochs and",
        ),
        ({"kind": "video", "dataset": "clutter"}, "video needs clips, and clutter has images"),
        ({"kind": "tokens", "dataset": "actors"}, "tokens needs images, and actors has clips"),
    ],
)
def test_what_cannot_be_planned(options, message):
    with pytest.raises(InputError, match=message):
        ablate.plan(folder="x", **options)


# --- running it ---


def test_results(small, tmp_path):
    runs = ablate.plan("small", tmp_path / "deep" / "folder")
    assert [run.result() for run in runs] == [None] * 4
    rows = [run.finish() for run in runs]
    assert [(row["name"], row["seed"]) for row in rows] == [(n, s) for s in (0, 1) for n in ("4 tokens", "2 tokens")]
    for run, row in zip(runs, rows, strict=True):
        model, test_set, mean, std = train.load_run(run.folder)
        assert row["accuracy"] == train.evaluate(model, test_set, mean, std)["accuracy"]
        assert row["parameters"] == model.num_parameters() and row["epochs"] == 2
    assert [row["tokens"] for row in rows] == 2 * ["16 -> 4", "16 -> 2"]
    assert rows[0]["macs"] > rows[1]["macs"] == rows[3]["macs"]

    ablate.save(rows, tmp_path)
    with open(tmp_path / "results.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [{name: str(value) for name, value in row.items()} for row in rows]
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_finished_is_not_done_again(small, tmp_path, monkeypatch):
    first = [run.finish() for run in ablate.plan("small", tmp_path, seeds=1)]
    monkeypatch.setattr(train, "start", None)
    monkeypatch.setattr(train, "resume", None)
    assert [run.finish() for run in ablate.plan("small", tmp_path, seeds=1)] == first


def test_ctrl_c_and_the_same_again(small, tmp_path, monkeypatch):
    """The stopped run is resumed, and ends like an uninterrupted one."""
    run, _ = ablate.plan("small", tmp_path / "stopped", seeds=1)
    usual, _ = ablate.plan("small", tmp_path / "usual", seeds=1)
    expected = usual.finish()

    step, done = train.Trainer._train_batch, []

    def stop_at_the_fourth(self, images, labels):
        done.append(self.step)
        if len(done) == 4:  # of six: in the second epoch
            signal.raise_signal(signal.SIGINT)
        step(self, images, labels)

    monkeypatch.setattr(train.Trainer, "_train_batch", stop_at_the_fourth)
    assert run.finish() is None
    assert run.result() is None
    assert run.finish()["accuracy"] == expected["accuracy"]
    assert done == [0, 1, 2, 3, 4, 5]
    ours, theirs = (train.load_run(r.folder)[0].state_dict() for r in (run, usual))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_tokens_of_clips():
    tubelets = nn.ViTConfig(tubelet=2, num_tokens=3)
    assert ablate._token_counts(tubelets, nn.DataSpec(frames=8)) == "256 -> 12"
    assert ablate._token_counts(nn.X21DConfig(), nn.DataSpec(frames=8)) == ""


def test_each_run_for_a_given_time(small, tmp_path, monkeypatch):
    """Each finds out its number of epochs, once; the same again goes on with it, and other minutes do not."""
    monkeypatch.setattr(train.Trainer, "choose_epochs", lambda trainer: choose(trainer, next(epochs)))

    def choose(trainer, count):
        trainer.config, trainer.total = replace(trainer.config, epochs=count), count * trainer.epoch_steps

    epochs, again = iter((1, 3)), ablate.plan("small", tmp_path, seeds=1, minutes=6.0)
    step = train.Trainer._train_batch

    def stopped(trainer, *batch):
        if trainer.total == 9 and trainer.step == 4:
            signal.raise_signal(signal.SIGINT)
        step(trainer, *batch)

    monkeypatch.setattr(train.Trainer, "_train_batch", stopped)
    assert [run.finish() and run.finish()["epochs"] for run in again] == [1, None]
    monkeypatch.setattr(train.Trainer, "_train_batch", step)
    rows = [run.finish() for run in ablate.plan("small", tmp_path, seeds=1, minutes=6.0)]
    assert [row["epochs"] for row in rows] == [1, 3] and rows == [run.result() for run in again]
    with pytest.raises(InputError, match=r"minutes: 6\.0 in the checkpoint, 7\.0 here"):
        ablate.plan("small", tmp_path, seeds=1, minutes=7.0)[0].finish()


def test_a_folder_with_other_options(small, tmp_path):
    run, _ = ablate.plan("small", tmp_path, seeds=1)
    run.finish()
    with pytest.raises(
        InputError, match=r"(?s)4 tokens, seed 0, in .*4-tokens-seed0: .*epochs: 2 in the checkpoint, 1 here"
    ):
        replace(run, config=replace(run.config, epochs=1)).finish()


def test_summary_and_table():
    row = {"name": "a", "seed": 0, "tokens": "64 -> 8", "parameters": 1000, "macs": 2_500_000}
    row |= {"epochs": 7, "accuracy": 0.5, "seconds": 3.0}
    rows = [row, row | {"name": "b", "tokens": "64"}, row | {"seed": 1, "epochs": 9, "accuracy": 0.6, "seconds": 5.0}]
    a, b = ablate.summary(rows)
    assert (a["name"], a["seeds"], a["seconds"]) == ("a", 2, 4.0)
    assert a["accuracy"] == pytest.approx(0.55)
    assert a["spread"] == pytest.approx(0.1 / 2**0.5)  # of two numbers: their distance over the root of 2
    assert (b["seeds"], b["accuracy"]) == (1, 0.5)
    assert "spread" not in b
    assert [" ".join(line.split()) for line in ablate.table(rows, "mAP").splitlines()] == [
        "tokens parameters multiply-adds mAP spread seeds epochs seconds",
        "a 64 -> 8 1 k 2.5 M 55.00% 7.07% 2 8 4",
        "b 64 1 k 2.5 M 50.00% 1 7 3",
    ]


# --- few-shot ---


def test_ridge_is_the_least_squares_solution(rng):
    """The same by stacking: the penalty is a row of √l2 for each weight, and the bias has none."""
    x, targets = 3 + rng.standard_normal((20, 4)) * [1, 2, 3, 0.1], np.eye(3)[rng.integers(3, size=20)]
    weight, bias = fewshot.ridge(x, targets, 0.7)
    z = (x - x.mean(0)) / (x.std(0) + 1e-5)
    stacked = np.block([[z, np.ones((20, 1))], [0.7**0.5 * np.eye(4), np.zeros((4, 1))]])
    W = np.linalg.lstsq(stacked, np.concatenate([2 * targets - 1, np.zeros((4, 3))]))[0]
    np.testing.assert_allclose(x @ weight + bias, z @ W[:4] + W[4], atol=1e-12)


def test_ridge_with_fewer_images_than_features(rng):
    x = rng.standard_normal((6, 40))
    x[:, 7] = 2  # and one that never varies
    weight, bias = fewshot.ridge(x, np.eye(6), 1e-6)
    np.testing.assert_allclose(x @ weight + bias, 2 * np.eye(6) - 1, atol=1e-3)


@pytest.mark.parametrize("kind", ["vit", "x21d"])
def test_features_are_what_the_head_reads(kind, rng):
    if kind == "vit":
        model, shape = nn.ViT(replace(SMALL, dropout=0.5), nn.DataSpec(), rng), (5, 32, 32, 3)
    else:
        model, shape = nn.X21D(nn.X21DConfig(widths=(4, 6)), nn.DataSpec(frames=2), rng), (5, 2, 32, 32, 3)
    head = model.head
    head.weight.data[...] = rng.standard_normal(head.weight.shape)
    images = rng.standard_normal(shape).astype("float32")
    found = fewshot.features(model, images, batch_size=2)
    assert model.head is head
    np.testing.assert_allclose(found @ head.weight.data + head.bias.data, model.eval()(images).data, atol=1e-5)


@pytest.fixture
def trained(small, tmp_path):
    """A run, and pictures that are easy to tell apart: class k is of brightness k."""
    run = ablate.plan("small", tmp_path, seeds=1)[0]
    run.finish()
    labels = np.arange(64) % 8
    images = np.random.default_rng(0).integers(20, size=(64, 32, 32, 3)) + 30 * labels[:, None, None, None]
    return run.folder, data.Dataset(images.astype("uint8"), labels, small[0].classes)


def test_few_shot(trained, monkeypatch):
    folder, easy = trained
    usual = data.load("clutter")
    monkeypatch.setattr(data, "load", lambda name, *_, **__: (easy, easy) if name == "easy" else usual)
    seen = []
    subset = data.Dataset.subset
    monkeypatch.setattr(data.Dataset, "subset", lambda self, *a: seen.append(subset(self, *a)) or seen[-1])
    accuracies = fewshot.few_shot(folder, shots=2, draws=3, dataset="easy", l2=0.1)
    assert accuracies.shape == (3,)
    assert accuracies.min() > 0.9
    assert [np.bincount(few.labels).tolist() for few in seen] == [[2] * 8] * 3
    assert not np.array_equal(seen[0].images, seen[1].images)
    np.testing.assert_array_equal(fewshot.few_shot(folder, shots=2, draws=3, dataset="easy", l2=0.1), accuracies)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 0}, "shots must be at least 1, got 0"),
        ({"draws": 0}, "draws must be at least 1, got 0"),
        ({"l2": 0.0}, "l2 must be above 0, got 0.0"),
        ({"shots": 50}, "not 50 training images of each class.*choose fewer"),
        ({"dataset": "large"}, r"takes images of \(32, 32, 3\), large has images of \(16, 16, 3\)"),
        ({"dataset": "several"}, "one label per image, several has several"),
    ],
)
def test_few_shot_that_cannot_be(trained, monkeypatch, options, message):
    folder, easy = trained
    large = replace(easy, images=easy.images[:, :16, :16])
    several = replace(easy, labels=np.eye(8, dtype="uint8")[easy.labels])
    usual, others = data.load("clutter"), {"large": (large, large), "several": (several, several)}
    monkeypatch.setattr(data, "load", lambda name, *_, **__: others.get(name, usual))
    with pytest.raises(InputError, match=message):
        fewshot.few_shot(folder, **options)
