"""ACTORS, the generated clips: name the motions of the warm-colored objects among cool-colored ones that also move.

A clip has one or two actors and so one or two labels, much like Charades. The motions of the other objects do not
count, and no single frame shows a motion: a model has to find the actors in each frame and then compare the frames.
"""

import functools

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..errors import InputError
from .clutter import COOL, NOISE, SHAPES, SIDE, SIZES, WARM
from .dataset import Dataset, concatenate

FRAMES = {6: 8, 12: 16}  # frames per second: frames per clip
FINE = 4  # positions are multiples of 1 / FINE pixel
BODIES = ("disc", "square", "triangle", "plus", "ring", "cross")
DISTRACTORS = 8
YELLOW = np.float32([0.95, 0.85, 0.20])  # the second actor; the first one is WARM
SECOND_SHARE = 0.6  # of the clips have a second actor

# Each motion as a function of the time t, from 0 at the start of the clip to 1 at its end, and of a random number r
# from 0 to 1 that makes each performance a little different. It returns the shift (x, y) in pixels, y pointing down,
# the growth in pixels, and True if the object is visible.
MOTIONS = {
    "left": lambda t, r: (-(15 + 4 * r) * t, 0, 0, True),
    "right": lambda t, r: ((15 + 4 * r) * t, 0, 0, True),
    "up": lambda t, r: (0, -(15 + 4 * r) * t, 0, True),
    "down": lambda t, r: (0, (15 + 4 * r) * t, 0, True),
    "clockwise": lambda t, r: (7 * np.cos(2 * np.pi * (t + r)), 7 * np.sin(2 * np.pi * (t + r)), 0, True),
    "counter-clockwise": lambda t, r: (7 * np.cos(2 * np.pi * (t + r)), -7 * np.sin(2 * np.pi * (t + r)), 0, True),
    "grow": lambda t, r: (0, 0, (4 + 2 * r) * (t - 0.5), True),
    "shrink": lambda t, r: (0, 0, (4 + 2 * r) * (0.5 - t), True),
    "blink": lambda t, r: (0, 0, 0, (4 * t + r) % 1 < 0.5),
    "shake": lambda t, r: ((3 + 2 * r) * np.cos(8 * np.pi * t), 0, 0, True),
}
SMALLEST, LARGEST = min(SIZES) - 3, max(SIZES) + 3  # with growth
WINDOW = LARGEST + 1  # pixels that the largest object may touch in each direction


@functools.cache
def masks():
    """Return the share of each pixel that a body covers: float32 (bodies, sizes, FINE, FINE, WINDOW, WINDOW).

    Sizes run from SMALLEST to LARGEST. The next two axes shift the object down and right from the window's corner, in
    steps of 1 / FINE pixel. The share is that of the pixel's FINE x FINE sample points that lie inside the body.
    """
    sizes = np.arange(SMALLEST, LARGEST + 1)
    table = np.zeros((len(BODIES), len(sizes), FINE, FINE, WINDOW, WINDOW), "float32")
    for j, size in enumerate(sizes):
        t = (np.arange(FINE * size) + 0.5) * 2 / (FINE * size) - 1
        for i, body in enumerate(BODIES):
            points = SHAPES[body](*np.meshgrid(t, t))
            for down, right in np.ndindex(FINE, FINE):
                fine = np.zeros((FINE * WINDOW, FINE * WINDOW))
                fine[down:, right:][: len(t), : len(t)] = points
                table[i, j, down, right] = fine.reshape(WINDOW, FINE, WINDOW, FINE).mean((1, 3))
    return table


def sample(rng, n, fps=6):
    """Return a Dataset of ``n`` ACTORS clips (T, 32, 32, 3) with the boxes (n, T, 2, 4) of their actors.

    A clip lasts 4/3 seconds, so T is 8 at 6 frames per second and 16 at 12. Every other frame at 12 is the clip that
    an equal generator ``rng`` gives at 6. The first actor's box comes first; the box of a blinking actor stays while
    the actor is invisible. Raises InputError if ``fps`` is neither 6 nor 12.
    """
    if fps not in FRAMES:
        raise InputError(f"clips have {' or '.join(map(str, FRAMES))} frames per second, got fps={fps}")
    T, L = FRAMES[fps], DISTRACTORS + 2  # frames, and objects: the actors come last, the first actor on top
    motion, body = rng.integers(len(MOTIONS), size=(n, L)), rng.integers(len(BODIES), size=(n, L))
    color = COOL[0] + (COOL[1] - COOL[0]) * rng.random((n, L, 3), "float32")
    color[:, -2:] = np.stack([YELLOW, WARM]) + 0.2 * rng.random((n, 2, 3), "float32") - 0.1
    second = rng.random(n) < SECOND_SHARE
    x, y, size, visible = (a[..., :: max(FRAMES) // fps] for a in _trajectories(rng, motion))  # each (n, L, T)
    visible[:, -2] &= second[:, None]

    blocks = 0.25 + 0.5 * rng.random((n, 1, 4, 4, 3), "float32")
    background = blocks.repeat(SIDE // 4, axis=2).repeat(SIDE // 4, axis=3)
    extent = SIDE + WINDOW - SMALLEST  # the windows of objects near the lower and right border end there
    canvas = np.zeros((n, T, extent, extent, 3), "float32")
    step = T // FRAMES[6]
    for start in range(step):  # the frames shown at 6 per second come first, so that their noise does not depend on fps
        noise = NOISE * rng.standard_normal((n, FRAMES[6], SIDE, SIDE, 3), "float32")
        canvas[:, start::step, :SIDE, :SIDE] = background + noise

    windows = sliding_window_view(canvas, (WINDOW, WINDOW), axis=(2, 3), writeable=True)  # by top left corner
    for k in range(L):
        at = (np.arange(n)[:, None], np.arange(T), y[:, k] // FINE, x[:, k] // FINE)
        cover = masks()[body[:, k, None], size[:, k] - SMALLEST, y[:, k] % FINE, x[:, k] % FINE]
        cover = (cover * visible[:, k, :, None, None])[:, :, None]  # (n, T, 1, WINDOW, WINDOW)
        under = windows[at]  # (n, T, 3, WINDOW, WINDOW)
        windows[at] = under + cover * (color[:, k, None, :, None, None] - under)

    clips = np.rint(255 * canvas[:, :, :SIDE, :SIDE].clip(0, 1)).astype("uint8")
    labels = np.zeros((n, len(MOTIONS)), "uint8")
    labels[np.arange(n), motion[:, -2]] = second
    labels[np.arange(n), motion[:, -1]] = 1
    y, x, size = (a[:, :-3:-1].swapaxes(1, 2) for a in (y, x, FINE * size))  # of both actors: (n, T, 2)
    boxes = np.stack([y // FINE, x // FINE, -(-(y + size) // FINE), -(-(x + size) // FINE)], axis=-1)
    boxes[~second, :, 1] = 0
    return Dataset(clips, labels, tuple(MOTIONS), boxes)


def _trajectories(rng, motion):
    """Return the trajectories of objects with these motions (n, L) at the highest frame rate: four arrays (n, L, T).

    They are the left and top edge in steps of 1 / FINE pixel, the size in pixels, and True where the object is
    visible. Every object stays inside the frame.
    """
    T = max(FRAMES.values())
    t, r = np.arange(T) / T, rng.random(motion.shape)
    x, y, growth, visible = arrays = np.empty((4, *motion.shape, T))
    for i, move in enumerate(MOTIONS.values()):
        chosen = motion == i
        for array, value in zip(arrays, move(t, r[chosen][:, None]), strict=True):
            array[chosen] = value
    size = np.rint(rng.choice(SIZES, motion.shape)[..., None] + growth).astype(int)
    edges = []
    for center in (x, y):
        edge = np.rint(FINE * (center - size / 2)).astype(int)
        lowest, highest = -edge.min(-1), FINE * SIDE - (edge + FINE * size).max(-1)
        edges.append(edge + rng.integers(lowest, highest + 1)[..., None])
    return *edges, size, visible > 0


def actors(num_train=10000, num_test=1500, fps=6):
    """Return ``(train, test)``: ACTORS with 10 classes, the same clips on every call.

    With ``fps=12`` they show the same motions in twice as many frames; see ``sample``. A uniform map has 0.116 of its
    mass in the actors' boxes. Raises InputError for a split without clips.
    """
    return _split(1, num_train, fps), _split(2, num_test, fps)


def _split(seed, n, fps):
    """Return ``n`` clips, each 50 of them by a generator of their own, so that they do not depend on ``fps``."""
    starts = range(0, n, 50)
    chunks = (sample(np.random.default_rng((seed, start)), min(50, n - start), fps) for start in starts)
    return concatenate(chunks, n, "clips")
