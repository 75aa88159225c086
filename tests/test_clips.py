"""ACTORS, the generated clips; data sets of clips with several labels each; and the precision that scores them."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from minitl import data, metrics, train
from minitl.errors import InputError

ACTORS = sys.modules["minitl.data.actors"]  # `data.actors` is the function of that name


def rng(seed=0):
    return np.random.default_rng(seed)


def same(a, b):
    return a.classes == b.classes and all(
        np.array_equal(getattr(a, k), getattr(b, k)) for k in ("images", "labels", "boxes")
    )


# --- ACTORS ---


@pytest.fixture(scope="module")
def actors():
    return data.actors(600, 120)


def test_actors_are_the_same_every_time(actors):
    train, test = data.actors(600, 120)
    assert same(train, actors[0]) and same(test, actors[1])
    assert not np.array_equal(train.images[:50], test.images[:50])
    assert same(data.actors(100, 1)[0], train.take(slice(100)))
    # Known sums: integers drawn by the generator are exact everywhere, rounded pixels nearly.
    assert train.labels.sum(0).tolist() == [100, 95, 105, 90, 89, 97, 103, 76, 96, 82]
    np.testing.assert_allclose(train.images.mean((0, 1, 2, 3)), [121.7507, 131.5744, 127.6519], atol=1e-3)
    assert np.abs(train.boxes[:, :, 0].sum((0, 1)) - [55591, 54812, 97247, 96552]).max() <= 4


def test_actors_are_what_they_say(actors):
    train, test = actors
    assert train.images.shape == (600, 8, 32, 32, 3) and test.images.shape == (120, 8, 32, 32, 3)
    assert train.boxes.shape == (600, 8, 2, 4) and train.multi_label and len(train.classes) == 10
    assert set(train.labels.sum(1)) == {1, 2}
    assert abs(train.labels.sum(1).mean() - 1.54) < 0.06  # 1 + 0.6 * 0.9
    assert train.labels.mean(0).min() > 0.1 and train.labels.mean(0).max() < 0.2
    second = train.boxes[:, :, 1].any((1, 2))
    assert abs(second.mean() - 0.6) < 0.06 and second[train.labels.sum(1) == 2].all()
    top, left, bottom, right = np.moveaxis(train.boxes, -1, 0)
    assert (bottom > top)[:, :, 0].all() and ((bottom > top)[:, :, 1] == second[:, None]).all()
    assert min(top.min(), left.min()) == 0 and max(bottom.max(), right.max()) == 32


def test_both_frame_rates_show_the_same_motion(actors):
    slow, fast = actors[1], data.actors(1, 120, fps=12)[1]
    assert fast.images.shape == (120, 16, 32, 32, 3)
    assert same(slow, replace(fast, images=fast.images[:, ::2], boxes=fast.boxes[:, ::2]))
    assert not np.array_equal(fast.images[:, 1::2], slow.images)
    with pytest.raises(InputError, match="6 or 12 frames per second, got fps=8"):
        data.actors(1, 1, fps=8)


def like(colour, image):
    """Return a mask of the pixels that have an actor's unmixed color."""
    return (abs(image / 255 - colour) < 0.11).all(-1)


@pytest.mark.parametrize("actor", [0, 1])
@pytest.mark.parametrize("motion", ACTORS.MOTIONS)
def test_the_actors_do_what_the_label_says(actors, motion, actor):
    """With one label, all actors make that motion. The first is the only red object, the second the only yellow one."""
    train, _ = actors
    mine = train.take((train.labels.sum(1) == 1) & (train.labels[:, train.classes.index(motion)] == 1))
    mine = mine.take(mine.boxes[:, 0, actor].any(1))
    colour = (ACTORS.WARM, ACTORS.YELLOW)[actor]
    assert len(mine) > (10, 0)[actor]
    for clip, boxes in zip(mine.images, mine.boxes[:, :, actor], strict=True):
        red = [
            like(colour, frame[top:bottom, left:right]).sum()
            for frame, (top, left, bottom, right) in zip(clip, boxes, strict=True)
        ]
        seen = np.array(red) >= 5
        top, left, bottom, right = boxes.T
        size = bottom - top
        y, x = (top + bottom) / 2, (left + right) / 2
        dy, dx = np.diff(y), np.diff(x)
        turns = dx[:-1] * dy[1:] - dy[:-1] * dx[1:]  # > 0: to the right of where it went, as y points down
        if motion == "blink":
            assert 3 <= seen.sum() <= 5 and np.abs(np.diff(seen)).sum() >= 6
        else:
            # a small ring is too thin to cover a pixel whole, and the first actor may cover the second
            assert actor == 1 or seen[size >= 7].all()
        if motion in ("left", "right", "up", "down"):
            along, across, sign = {"left": (x, y, -1), "right": (x, y, 1), "up": (y, x, -1), "down": (y, x, 1)}[motion]
            assert 12 <= sign * (along[-1] - along[0]) <= 18 and (sign * np.diff(along) >= 0).all()
            assert np.ptp(across) == 0
        elif motion in ("clockwise", "counter-clockwise"):
            assert turns.sum() * (1 if motion == "clockwise" else -1) > 20
            assert 12 <= np.ptp(x) <= 15 and 12 <= np.ptp(y) <= 15
        elif motion in ("grow", "shrink"):
            change = (size[-1] - size[0]) * (1 if motion == "grow" else -1)
            assert 3 <= change <= 7 and max(np.ptp(x), np.ptp(y)) <= 1
        elif motion == "shake":
            assert 5 <= np.ptp(x) <= 11 and np.ptp(y) == 0 and (dx[:-1] * dx[1:] < 0).all()
        else:
            assert max(np.ptp(x), np.ptp(y)) == 0


@pytest.mark.parametrize("body", ACTORS.BODIES)
def test_masks_are_shares_of_sample_points(body):
    table, steps = ACTORS.masks()[ACTORS.BODIES.index(body)], (np.arange(4) + 0.5) / 4
    for size, down, right in [(4, 0, 0), (7, 3, 1), (9, 2, 0), (12, 3, 3)]:
        expected = np.zeros((ACTORS.WINDOW, ACTORS.WINDOW))
        for i, j in np.ndindex(expected.shape):
            x = (j + steps - right / 4) * 2 / size - 1
            y = (i + steps[:, None] - down / 4) * 2 / size - 1
            inside = ACTORS.SHAPES[body](x, y) & (abs(x) < 1) & (abs(y) < 1)
            expected[i, j] = inside.mean()
        np.testing.assert_array_equal(table[size - ACTORS.SMALLEST, down, right], expected)


def test_bodies_differ():
    table = ACTORS.masks()
    for i, body in enumerate(table):
        assert all(abs(body[4] - other[4]).sum() > 6 * 16 for other in table[:i])  # by at least six pixels


def test_load_knows_actors(monkeypatch):
    data._generated.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(data.GENERATED, "actors", lambda: ACTORS.actors(70, 20))
        train, test = data.load("actors", subset=30)
    data._generated.cache_clear()
    assert train.multi_label and len(train) == 30 and len(test) == 20
    with pytest.raises(InputError, match="did you mean actors"):
        data.load("actor")


# --- data sets of clips ---


def small(n=10, labels=3):
    images = rng().integers(256, size=(n, 2, 4, 5, 3), dtype="uint8")
    multi_hot = rng(1).integers(2, size=(n, labels), dtype="uint8")
    return data.Dataset(images, multi_hot, tuple("abc"), rng(2).integers(4, size=(n, 2, 3, 4)))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": np.zeros((10, 2, 2, 4, 5, 3), "uint8")}, "clips"),
        ({"images": np.zeros((10, 4, 5, 3), "uint8")}, r"boxes .* \(10, 4\)"),
        ({"boxes": np.zeros((10, 4), "int64")}, r"boxes .* \(10, 2, 1, 4\)"),
        ({"boxes": np.zeros((10, 2, 4), "int64")}, r"boxes .* \(10, 2, 1, 4\)"),
        ({"boxes": np.zeros((10, 1, 3, 4), "int64")}, r"boxes .* \(10, 2, 3, 4\)"),
        ({"labels": np.zeros((9, 3), "uint8")}, r"multi-hot labels .* \(10, 3\)"),
        ({"labels": np.zeros((10, 4), "uint8")}, r"multi-hot labels .* \(10, 3\)"),
        ({"labels": np.zeros((10, 3), "int64")}, r"dtype uint8 and shape \(10, 3\), got int64\[10, 3\]"),
        ({"labels": np.full((10, 3), 2, "uint8")}, "0 or 1 for every class, got 2"),
        ({"labels": np.zeros((10, 3, 1), "uint8")}, r"labels .* \(10,\)"),
        ({"labels": [0, 1]}, r"labels .* \(10,\)"),
    ],
)
def test_dataset_refuses_parts_that_do_not_fit(change, message):
    with pytest.raises(InputError, match=message):
        replace(small(), **change)


def test_clips_may_have_one_label_and_images_several():
    clip = small()
    assert clip.multi_label
    assert not replace(clip, labels=np.arange(10) % 3).multi_label
    assert replace(clip, images=clip.images[:, 0], boxes=clip.boxes[:, 0, 0]).multi_label
    assert not data.clutter(8, 1)[0].multi_label


def test_take_subset_and_loader_keep_clips_and_labels_together():
    full = small(20)
    known = {bytes(x): y.tolist() for x, y in zip(full.images, full.labels, strict=True)}
    part = full.subset(7, rng(3))
    assert len(part) == 7 and same(part, full.subset(7, rng(3))) and not same(part, full.subset(7, rng(4)))
    assert same(full.subset(100, rng()), full)
    assert same(full.take(slice(2, 5)), full.take([2, 3, 4]))
    seen = 0
    for images, labels in data.Loader(part, 3, shuffle=True, rng=rng()):
        assert images.shape[1:] == (2, 4, 5, 3) and labels.dtype == np.uint8
        assert [known[bytes(x)] for x in images] == labels.tolist()
        seen += len(labels)
    assert seen == 7


# --- average precision ---


def by_thresholds(scores, targets):
    """Precision at each threshold, weighted by the recall that it adds: one class, in plain Python."""
    total, recall = 0.0, 0
    for threshold in sorted(set(scores), reverse=True):
        chosen = [t for s, t in zip(scores, targets, strict=True) if s >= threshold]
        total += (sum(chosen) - recall) / sum(targets) * sum(chosen) / len(chosen)
        recall = sum(chosen)
    return total


@pytest.mark.parametrize("levels", [3, 10, 1000])  # many ties, some, hardly any
def test_average_precision_is_the_slow_loop(levels):
    scores, targets = rng(levels).integers(levels, size=(80, 6)) - 5.0, rng(5).integers(2, size=(80, 6))
    expected = [by_thresholds(s.tolist(), t.tolist()) for s, t in zip(scores.T, targets.T, strict=True)]
    np.testing.assert_allclose(metrics.average_precision(scores, targets), expected, rtol=1e-12)
    assert np.isclose(metrics.mean_average_precision(scores, targets), np.mean(expected), rtol=1e-12)
    order = rng().permutation(80)
    np.testing.assert_array_equal(
        metrics.average_precision(scores[order], targets[order]), metrics.average_precision(scores, targets)
    )


@pytest.mark.parametrize(
    "scores, targets, expected",
    [
        ([4, 3, 2, 1], [1, 1, 0, 0], 1),
        ([4, 3, 2, 1], [0, 0, 1, 1], (1 / 3 + 2 / 4) / 2),
        ([4, 3, 2, 1], [1, 0, 1, 0], (1 + 2 / 3) / 2),
        ([1, 1, 1, 1], [1, 0, 0, 0], 1 / 4),  # undecided: the share of the class
        ([2, 1, 1, 0], [1, 1, 0, 0], (1 + 2 / 3) / 2),
        ([np.inf, 0, -np.inf], [0, 1, 1], (1 / 2 + 2 / 3) / 2),
    ],
)
def test_average_precision_by_hand(scores, targets, expected):
    found = metrics.average_precision(np.array([scores], "float32").T, np.array([targets], "uint8").T)
    assert found.dtype == np.float64 and np.allclose(found, [expected], rtol=1e-15)


def test_classes_that_no_sample_has_are_left_out():
    scores, targets = np.array([[2, 7, 1], [1, 8, 2]]), np.array([[1, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(metrics.average_precision(scores, targets), [1, np.nan, 0.5])
    assert metrics.mean_average_precision(scores, targets) == 0.75
    with pytest.raises(ValueError, match="no sample has any class"):
        metrics.mean_average_precision(scores, 0 * targets)


@pytest.mark.parametrize(
    "scores, targets, message",
    [
        (np.zeros((3, 2)), np.zeros((3, 3)), r"both \(N, K\)"),
        (np.zeros(3), np.zeros(3), r"both \(N, K\)"),
        (np.zeros((3, 2)), np.full((3, 2), 0.5), "0 or 1"),
        (np.full((3, 2), np.nan), np.ones((3, 2)), "nan"),
    ],
)
def test_average_precision_refuses(scores, targets, message):
    with pytest.raises(ValueError, match=message):
        metrics.average_precision(scores, targets)


def test_twice_as_many_frames_by_name(monkeypatch):
    """The data set actors-12fps has the clips of actors, and their defaults."""
    monkeypatch.setattr(ACTORS, "_split", lambda seed, n, fps: ACTORS.sample(rng(), 4, fps))
    data._generated.cache_clear()
    try:
        fast, slow = data.load("actors-12fps")[0], data.load("actors")[0]
    finally:
        data._generated.cache_clear()
    assert fast.images.shape == (4, 16, 32, 32, 3) and slow.images.shape == (4, 8, 32, 32, 3)
    assert (fast.labels == slow.labels).all()
    config = train.default_config("actors-12fps")
    assert config == replace(train.default_config("actors"), dataset="actors-12fps")
