"""Figures agree with slow loops and hand counts, and pictures hold what they promise."""

import itertools
import weakref

import numpy as np
import pytest
from graph_memory import saved_bytes

from minitl import OPS, metrics, nn, ops
from minitl.autograd import Tensor, op
from minitl.train import activations, pictures


def ticks(axes):
    return [round(value, 6) for value in axes.get_xticks() if axes.get_xlim()[0] <= value <= axes.get_xlim()[1]]


def a_row(epoch, loss=1.0, accuracy=0.5):
    columns = {"train_loss": loss, "test_loss": loss / 2, "train_accuracy": accuracy, "test_accuracy": accuracy / 2}
    return {"epoch": epoch} | columns


# --- how much of the maps lies on the object ---


@pytest.mark.parametrize("grid, size", [((4, 4), (32, 32)), ((3, 5), (12, 20)), ((1, 1), (8, 6)), ((6, 2), (6, 6))])
def test_map_mass_is_a_sum_over_pixels(rng, grid, size):
    """Each pixel of a cell has the cell's value divided by its pixels."""
    (h, w), (H, W), B, S = grid, size, 5, 3
    maps = rng.random((B, S, h, w))
    start, end = np.sort(rng.integers(0, size, (2, B, 2)), axis=0)
    boxes = np.hstack([start, end + 1])  # top, left, bottom, right: at least a pixel each way
    expected = np.zeros(B)
    for b, (top, left, bottom, right) in enumerate(boxes):
        for s in range(S):
            inside = sum(maps[b, s, y * h // H, x * w // W] for y in range(top, bottom) for x in range(left, right)) / (
                H // h * (W // w)
            )
            expected[b] += inside / maps[b, s].sum() / S
    np.testing.assert_allclose(metrics.map_mass(maps, boxes, size), expected, rtol=1e-12)


def test_map_mass_of_even_maps_is_the_share_of_the_box(rng):
    boxes = np.array([[0, 0, 4, 4], [3, 5, 10, 31], [0, 0, 32, 32]])
    mass = metrics.map_mass(Tensor(np.full((3, 2, 8, 8), 0.25)), boxes, (32, 32))
    np.testing.assert_allclose(mass, [16 / 1024, 7 * 26 / 1024, 1])
    assert metrics.box_share(boxes, (32, 32)) == pytest.approx(mass.mean())


def test_map_mass_of_a_map_of_zeros_counts_nothing():
    maps = np.zeros((1, 2, 2, 2), "float32")
    maps[0, 1, 0, 0] = 3
    assert metrics.map_mass(maps, np.array([[0, 0, 2, 2]]), (4, 4)) == 0.5


# --- what backward keeps ---


def test_saved_bytes_of_a_graph_counted_by_hand():
    x = Tensor(np.ones((4, 8), "float32"))
    W = Tensor(np.ones((8, 16), "float32"), requires_grad=True)
    y = ops.relu(x @ W)
    loss = (y * y).sum()
    # relu and mul name the same y (4 x 16): it is counted at mul, the newer one. matmul names x (4 x 8), and W, which
    # exists anyway. sum names nothing but shapes.
    assert saved_bytes(loss) == {"mul": 4 * 16 * 4, "matmul": 4 * 8 * 4, "relu": 0, "sum": 0}
    loss.backward()
    assert saved_bytes(loss) == {"sum": 0}


def test_saved_bytes_counts_the_whole_array_behind_a_view():
    x = Tensor(np.ones((10, 3)), requires_grad=True)
    y = ops.exp(x)
    assert saved_bytes((y[2:4] * y[2:4]).sum()) == {"mul": 10 * 3 * 8, "exp": 0, "getitem": 0, "sum": 0}


def test_saved_bytes_looks_for_parameters_behind_their_views():
    layer = nn.Linear(3, 5)
    flat = np.concatenate([p.data.ravel() for p in layer.parameters()])
    layer.weight.data, layer.bias.data = flat[:15].reshape(3, 5), flat[15:]
    x = Tensor(np.ones((2, 3), "float32"))
    assert saved_bytes(layer(x).sum()) == {"linear": 2 * 3 * 4, "sum": 0}


def test_what_backward_names_is_what_is_kept(monkeypatch):
    """Design rule 5: an array that backward does not name is freed, one that it names by a function or list is kept."""
    monkeypatch.setattr("minitl.autograd.OPS", dict(OPS))
    freed, kept = [], []

    @op
    def three_temporaries(x):
        one, two, three = x + 1, [x + 2], x[:4] + 3
        freed.append(weakref.ref(one))
        kept.extend([weakref.ref(two[0]), weakref.ref(three)])

        def helper():
            return two[0].sum()

        def backward(dy):
            return dy * helper() * three.sum()

        return one * 2, backward

    loss = three_temporaries(Tensor(np.ones(10), requires_grad=True)).sum()
    assert freed[0]() is None and all(array() is not None for array in kept)
    assert saved_bytes(loss) == {"three_temporaries": 10 * 8 + 4 * 8, "sum": 0}


# --- pictures ---


@pytest.mark.parametrize("size, grid, tokens", [((32, 32), (8, 8), 8), ((24, 48), (2, 4), 1), ((48, 24), (4, 2), 16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_show_maps(rng, size, grid, tokens, channels):
    images = rng.integers(0, 256, (2, *size, channels)).astype("uint8")
    maps = rng.random((2, tokens, *grid))
    figure = pictures.show_maps(images, Tensor(maps), boxes=np.array([[0, 0, 5, 7], [1, 2, 9, 9]]))
    assert len(figure.axes) == 2 * (tokens + 1)
    assert [axes.get_title() for axes in figure.axes[: tokens + 1]][:2] == ["image", "token 1"]
    np.testing.assert_array_equal(np.squeeze(images[1]), figure.axes[tokens + 1].images[0].get_array())
    (box,) = figure.axes[-1].patches
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (1.5, 0.5, 7, 8)
    assert pictures.png(figure).startswith(b"\x89PNG")


def test_show_maps_is_bright_where_a_map_is_large():
    image = np.full((1, 8, 8, 3), 200, "uint8")
    maps = np.array([[[[2.0, 2.0], [3.0, 4.0]], [[7.0, 7.0], [7.0, 7.0]]]])
    _, first, second = (axes.images[0].get_array()[..., 0] for axes in pictures.show_maps(image, maps).axes)
    assert first[::4, ::4].tolist() == [[50, 50], [125, 200]] and (first[4:, :4] == 125).all()
    assert (second == 200).all()


def test_show_maps_shows_at_most_sixteen(rng):
    figure = pictures.show_maps(np.zeros((1, 8, 8, 3), "uint8"), rng.random((1, 64, 8, 8)))
    assert len(figure.axes) == 17


@pytest.mark.parametrize(
    "shape, maps", [((2, 8, 8, 2), (2, 4, 2, 2)), ((8, 8, 3), (2, 4, 2, 2)), ((2, 8, 8, 3), (4, 2, 2))]
)
def test_show_maps_refuses_what_is_no_picture(shape, maps):
    with pytest.raises(ValueError, match=r"needs (images|pictures)"):
        pictures.show_maps(np.zeros(shape, "uint8"), np.zeros(maps))


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_curves(epochs):
    """Losses from 0, accuracies from 0 to 1, whole epochs, and no point at the edge."""
    losses, accuracies = pictures.curves([a_row(i + 1, loss=3.0, accuracy=1.0) for i in range(epochs)]).axes
    for axes, top in ((losses, 3.0), (accuracies, 1.0)):
        assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > top
        assert [line.get_label() for line in axes.lines] == ["train", "test"]
        assert all(tick == int(tick) for tick in ticks(axes))
    assert list(accuracies.lines[1].get_ydata()) == [0.5] * epochs


def test_curves_of_a_perfect_model():
    """No warning about limits that coincide."""
    pictures.png(pictures.curves([a_row(1, loss=0.0, accuracy=1.0)]))


# --- clips ---


def test_map_mass_of_clips_is_a_mean_over_frames(rng):
    """Two tubelets of three frames, each scored with the maps of its tubelet; a pixel in two boxes counts once."""
    maps, start = rng.random((2, 2, 3, 4, 4)), rng.integers(0, 8, (2, 6, 2, 2))
    boxes = np.concatenate([start, start + rng.integers(1, 8, (2, 6, 2, 2))], axis=-1)
    boxes[0, :, 1] = 0  # there is one object only
    expected = np.zeros((2, 6))
    for b, t in np.ndindex(2, 6):
        inside = np.zeros((16, 16))
        for top, left, bottom, right in boxes[b, t]:
            inside[top:bottom, left:right] = 1
        map_ = maps[b, t // 3] / maps[b, t // 3].sum((1, 2), keepdims=True)
        expected[b, t] = (map_.repeat(4, 1).repeat(4, 2) / 16 * inside).sum() / 3
    np.testing.assert_allclose(metrics.map_mass(maps, boxes, (16, 16)), expected.mean(1))
    even = metrics.map_mass(np.ones((2, 6, 1, 4, 4)), boxes, (16, 16))
    assert metrics.box_share(boxes, (16, 16)) == pytest.approx(even.mean())


@pytest.mark.parametrize("channels", [1, 3])
def test_show_clip_maps(rng, channels):
    """Tokens are rows, frames are columns; both frames of a tubelet have its map; boxes move with their frame."""
    clips = rng.integers(100, 256, (2, 4, 8, 8, channels)).astype("uint8")
    maps, boxes = rng.random((2, 2, 3, 2, 2)), rng.integers(1, 5, (2, 4, 2, 4))
    boxes[0, :, 1] = 0  # there is one object only
    figure = pictures.show_clip_maps(clips, Tensor(maps), boxes)
    axes = np.array(figure.axes).reshape(8, 4)
    assert [a.get_title() for a in axes[0]] == ["frame 1", "frame 2", "frame 3", "frame 4"]
    assert [a.get_ylabel() for a in axes[:, 0]] == ["clip", "token 1", "token 2", "token 3"] * 2
    np.testing.assert_array_equal(axes[4, 2].images[0].get_array(), np.squeeze(clips[1, 2]))
    token = maps[1, :, 2]  # of the second clip, over both tubelets
    light = (token - token.min()) / (token.max() - token.min())
    for t in range(4):
        shown = axes[7, t].images[0].get_array().reshape(8, 8, channels)
        expected = clips[1, t] * (0.25 + 0.75 * light[t // 2].repeat(4, 0).repeat(4, 1)[..., None])
        np.testing.assert_array_equal(shown, expected.astype("uint8"))
        corners = [(box.get_y(), box.get_x()) for box in axes[7, t].patches]
        assert corners == [tuple(boxes[1, t, k, :2] - 0.5) for k in (0, 1)]
        assert len(axes[3, t].patches) == 1
    assert pictures.png(figure).startswith(b"\x89PNG")


def test_show_clip_maps_shows_at_most_sixteen():
    figure = pictures.show_clip_maps(np.zeros((1, 18, 2, 2, 3), "uint8"), np.zeros((1, 9, 20, 1, 1)))
    assert len(figure.axes) == 17 * 16


def test_show_clip_maps_refuses_images():
    with pytest.raises(ValueError, match=r"needs clips .*\(2, 8, 8, 3\)"):
        pictures.show_clip_maps(np.zeros((2, 8, 8, 3), "uint8"), np.zeros((2, 3, 2, 2)))


# --- activations ---

TINY = {"patch_size": 4, "dim": 6, "layers": 3, "heads": 2, "mlp_dim": 5, "num_tokens": 2}


@pytest.mark.parametrize(
    "options, stages",
    [
        ({"tokenizer": "none"}, ["patches", "block 0", "block 1", "block 2"]),
        ({"loc": 1}, ["patches", "block 0"]),
        ({"loc": 1, "back": "fuser"}, ["patches", "block 0", "block 1", "block 2"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("frames", [1, 4])
def test_activation_maps(rng, options, stages, frames):
    """One map per stage where each place has channels of its own; afterwards the model is as it was."""
    tubelet, time = (1, ()) if frames == 1 else (2, (2,))
    model = nn.ViT(nn.ViTConfig(**TINY, **options, tubelet=tubelet), nn.DataSpec((8, 12), frames=frames), rng)
    x = rng.standard_normal((5, *[frames] * (frames > 1), 8, 12, 3), "float32")
    maps = activations.activation_maps(model, x)
    assert {name: m.shape for name, m in maps.items()} == dict.fromkeys(stages, (5, *time, 2, 3))
    embedded = model._embed(x)
    np.testing.assert_allclose(maps["patches"].reshape(5, -1), (embedded.data**2).mean(2), rtol=1e-6)
    first = model.blocks[0](embedded) if stages[1:] else embedded
    np.testing.assert_allclose(list(maps.values())[:2][-1].reshape(5, -1), (first.data**2).mean(2), rtol=1e-5)
    assert not any("forward" in vars(module) for module in model.modules())


def test_activation_maps_of_the_bottleneck_model(rng):
    model = nn.X21D(nn.X21DConfig(widths=(4, 6), num_tokens=2), nn.DataSpec((8, 8), frames=2), rng).eval()
    maps = activations.activation_maps(model, rng.standard_normal((3, 2, 8, 8, 3), "float32"))
    assert {name: m.shape[1:] for name, m in maps.items()} == {
        "stage 1": (2, 4, 4),
        "stage 2": (2, 2, 2),
        "last block": (2, 2, 2),
    }


def test_show_stages(rng):
    stages = {"fine": rng.random((2, 8, 8)), "coarse": rng.random((2, 1, 2))}
    figure = pictures.show_stages(rng.integers(0, 256, (2, 8, 8, 3)).astype("uint8"), stages)
    assert [axes.get_title() for axes in figure.axes] == ["image", "fine", "coarse", "", "", ""]


def test_show_clip_stages(rng):
    stages = {"fine": rng.random((2, 4, 8, 8)), "coarse": rng.random((2, 2, 1, 2))}  # the second are of two tubelets
    figure = pictures.show_clip_stages(np.full((2, 4, 8, 8, 3), 255, "uint8"), stages)
    assert [axes.get_title() for axes in figure.axes][:5] == ["frame 1", "frame 2", "frame 3", "frame 4", ""]
    assert [axes.get_ylabel() for axes in figure.axes[::4]] == ["clip", "fine", "coarse"] * 2
    first, second, third, _ = (axes.images[0].get_array() for axes in figure.axes[8:12])
    assert (first == second).all() and (first != third).any()


# --- an ablation ---


@pytest.mark.parametrize("step", [0.001, 0.01])
@pytest.mark.parametrize("spread", [0, 0.005, 0.05])
@pytest.mark.parametrize("models", [3, 11])
def test_names_in_the_cost_plot_can_be_read(models, spread, step):
    """None lies on another, on a point or on its bar, or outside; also where all models cost the same."""
    rows = [{"name": f"model number {i}", "macs": 1e6, "accuracy": 0.5 + step * i} for i in range(models)]
    rows = [row | ({"spread": spread} if spread else {}) for row in rows]
    figure = pictures.accuracy_against_cost([*rows, {"name": "far", "macs": 9e6, "accuracy": 0.9}])
    pictures.png(figure)
    (axes,) = figure.axes
    names = [text.get_window_extent() for text in axes.texts if text.get_text()]
    bars = [axes.transData.transform((1, row["accuracy"] + side * spread)) for row in rows for side in (-1, 0, 1)]
    assert len(names) == models + 1
    assert not any(a.overlaps(b) for a, b in itertools.combinations(names, 2))
    assert not any(name.contains(*point) for name in names for point in bars)
    assert all(axes.bbox.x0 <= name.x0 and name.x1 <= axes.bbox.x1 and name.y1 <= axes.bbox.y1 for name in names)


def test_a_line_leads_to_a_name_that_is_not_beside_its_point():
    rows = [{"name": f"model {i}", "macs": 1e6, "accuracy": 0.5} for i in range(3)]
    (axes,) = pictures.accuracy_against_cost(rows).axes
    assert [text.get_text() for text in axes.texts] == ["model 0", "model 1", "model 2", ""]


def test_accuracy_against_cost():
    rows = [
        {"name": "one", "macs": 2e6, "accuracy": 0.5},
        {"name": "two", "macs": 7e6, "accuracy": 0.9, "spread": 0.02},
    ]
    (axes,) = pictures.accuracy_against_cost(rows, "mAP").axes
    assert axes.get_ylabel() == "mAP" and axes.get_xlim()[0] == 0 and axes.get_xlim()[1] > 7
    points = [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.lines if line.get_marker() == "o"
    ]
    assert points == [(2, 0.5), (7, 0.9)] and [text.get_text() for text in axes.texts] == ["one", "two"]


# --- which classes are taken for which ---


@pytest.mark.parametrize("dtype", ["int64", "uint8"])
def test_confusion_counts_one_by_one(rng, dtype):
    labels, predicted = rng.integers(0, 4, (2, 50)).astype(dtype)
    expected = np.zeros((5, 5), int)  # no sample has class 4
    for i, j in zip(labels, predicted, strict=True):
        expected[i, j] += 1
    counts = metrics.confusion_counts(labels, Tensor(predicted), 5)
    assert counts.dtype == "int64" and (counts == expected).all()


@pytest.mark.parametrize(
    "labels, predicted", [([0, 5], [0, 0]), ([0, -1], [0, 0]), ([0.0], [0.0]), ([[0]], [[0]]), ([0, 1], [0])], ids=str
)
def test_confusion_counts_refuses(labels, predicted):
    with pytest.raises(ValueError, match=r"labels and predicted are integers \(N,\) in 0..4"):
        metrics.confusion_counts(np.array(labels), np.array(predicted), 5)


def test_confusion():
    """Shares of each row; what is rare is said to be rare, what is not there is left out."""
    figure = pictures.confusion(np.array([[3, 1, 0], [5, 995, 0], [0, 0, 0]]), ["ant", "bee", "cicada"])
    (axes,) = figure.axes
    assert {text.get_position()[::-1]: text.get_text() for text in axes.texts} == {
        (0, 0): "75",
        (0, 1): "25",
        (1, 0): "<1",
        (1, 1): "100",
    }
    np.testing.assert_allclose(axes.images[0].get_array(), [[75, 25, 0], [0.5, 99.5, 0], [0, 0, 0]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["ant", "bee", "cicada"]
    assert figure.get_suptitle() == "99.4% of 1,004 images are right; rows in percent"


def test_confusion_of_many_classes():
    """Those that are mistaken for one another most often, pair by pair; their shares are of all images of a class."""
    K = 100
    counts, classes = 200 * np.eye(K, dtype=int), [f"class {i}" for i in range(K)]
    pairs = [(90 - i, 3 * i) for i in range(10)]
    for i, (row, column) in enumerate(pairs):
        counts[row, column] = 100 + i
    counts[50, 49] = 99  # the eleventh pair
    figure = pictures.confusion(counts, classes)
    (axes,) = figure.axes
    shown = sorted(k for pair in pairs for k in pair)
    assert [label.get_text() for label in axes.get_yticklabels()] == [classes[k] for k in shown]
    texts = {text.get_position()[::-1]: text.get_text() for text in axes.texts}
    assert texts[shown.index(90), shown.index(0)] == "33" and len(texts) == 30
    assert figure.get_suptitle().splitlines()[1] == "the 20 of 100 classes that are confused most often"
    (axes,) = pictures.confusion(np.eye(21, dtype=int), classes[:21]).axes
    assert len(axes.get_yticklabels()) == len(axes.texts) == 20, "also where none is mistaken"
    with pytest.raises(ValueError, match=r"needs counts \(3, 3\) of 3 classes, got \(2, 2\)"):
        pictures.confusion(np.zeros((2, 2)), "abc")


def test_confusion_of_classes_with_odd_names():
    """No formula is looked for in them, and long ones leave room for the picture and can still be told apart."""
    figure = pictures.confusion(np.eye(4), ["$\\no formula$", "_private", *(f"{'long' * 30} {i}" for i in (1, 2))])
    assert pictures.png(figure).startswith(b"\x89PNG")
    names = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert names[2:] == ["longlonglong…glonglong 1", "longlonglong…glonglong 2"]


@pytest.mark.parametrize("name", ["a", "M" * 40])
def test_nothing_of_a_confusion_is_cut(name):
    figure = pictures.confusion(np.full((2, 2), 10**6), [name] * 2)
    pictures.png(figure)
    tight = figure.get_tightbbox().extents * figure.dpi
    assert (tight[:2] >= 0).all() and (tight[2:] <= figure.bbox.extents[2:]).all()


def test_a_character_without_a_glyph_is_no_error():
    """Warnings are errors here."""
    assert pictures.png(pictures.confusion(np.eye(2, dtype=int), ["猫", "\ue000"]))[1:4] == b"PNG"
