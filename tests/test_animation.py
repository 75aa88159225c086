"""The animation on the README's first screen, and the command that makes it."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minitl import data

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


@pytest.fixture(scope="module")
def make():
    """The functions of ``make_animation.py``."""
    spec = importlib.util.spec_from_file_location("make_animation", NOTEBOOKS / "make_animation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def about(file):
    """Return (number of frames, how often they are repeated, milliseconds of each) of a GIF."""
    with Image.open(file) as picture:
        milliseconds = []
        for i in range(picture.n_frames):
            picture.seek(i)
            milliseconds.append(picture.info["duration"])
        return picture.n_frames, picture.info["loop"], milliseconds


def test_the_stored_animation():
    """It loops (0 is for ever), has at most 8 frames a second, and holds the last one."""
    file = NOTEBOOKS / "images" / "finding.gif"
    frames, loop, milliseconds = about(file)
    assert file.stat().st_size < 1_500_000
    assert 30 <= frames <= 80 and loop == 0
    assert min(milliseconds) >= 125 and milliseconds[-1] >= 2000
    assert f"(notebooks/images/{file.name})" in (NOTEBOOKS.parent / "README.md").read_text(encoding="utf-8")


def test_nothing_flashes(make):
    """From frame to frame, the mean light of each picture changes by less than a tenth of the full scale."""
    with Image.open(NOTEBOOKS / "images" / "finding.gif") as gif:
        frames = []
        for i in range(gif.n_frames):
            gif.seek(i)
            frames.append(np.asarray(gif.convert("L"), "float64"))
    means = [[picture.mean() for row in parts(make, frame) for picture in row] for frame in frames]
    assert np.abs(np.diff(means, axis=0)).max() < 25.5
    assert means[0][4] > 2 * means[-1][4], "the light gathers"


def parts(make, frame):
    """Return the four pictures of each of the two rows of a frame."""
    step = make.SIDE + make.GAP
    corners = [[(make.GAP + row * step, make.MARGIN + i * step) for i in range(4)] for row in range(2)]
    return [[frame[y : y + make.SIDE, x : x + make.SIDE] for y, x in row] for row in corners]


def test_a_short_run(make, tmp_path):
    train_set, test_set = data.clutter(300, make.SCORED.start + 20)
    seen = list(make.train(train_set, test_set, epochs=1))
    assert [(step, steps) for step, steps, *_ in seen] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    for _, _, accuracy, mass, maps in seen:
        assert 0 <= accuracy <= 1 and 0 < mass < 1
        assert maps.shape == (4, 8, 8) and np.allclose(maps.sum((1, 2)), 1, atol=1e-5)
    assert np.abs(seen[0][4] - 1 / 64).max() < 0.005, "maps start nearly even"
    assert (seen[0][4] != seen[3][4]).any()

    file = tmp_path / "short.gif"
    make.save([make.frame(test_set.take(make.SHOWN), *row) for row in seen], file)
    frames, loop, milliseconds = about(file)
    assert (frames, loop, milliseconds) == (4, 0, [make.MILLISECONDS] * 3 + [make.HOLD])


def test_light_follows_the_map(make):
    """An even map leaves an image as it is; a map of one patch darkens all others; a quarter gives half the light."""
    shown = data.sample(np.random.default_rng(0), 4)
    shown.boxes[...] = 0, 0, 1, 1
    maps = np.full((4, 8, 8), 1 / 64)
    maps[1] = maps[2] = np.eye(64)[8 * 5 + 2].reshape(8, 8)
    maps[2] = np.maximum(maps[2], 0.25)
    picture = np.asarray(make.frame(shown, 30, 100, 0.5, 0.25, maps))
    above, below = ([part[::5, ::5] for part in row] for row in parts(make, picture))  # one of 5 x 5 equal pixels
    inner = np.s_[2:, 2:]  # without the box
    assert all((above[i][inner] == shown.images[i][inner]).all() for i in range(4))
    assert all((below[i][inner] == above[i][inner]).all() for i in (0, 3))
    lit = np.s_[20:24, 8:12]
    assert (below[1][lit] == above[1][lit]).all()
    for i, light in ((1, 0.1), (2, 0.1 + 0.9 * 0.5)):
        dark = above[i] * light
        dark[lit] = above[i][lit]
        assert np.abs(below[i] - dark)[inner].max() <= 1
