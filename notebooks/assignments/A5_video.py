# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A5 · TokenFuser and video
#
# You write TokenFuser with its gradients, cut clips into tokens, and write the loss and the score for clips that have
# several labels. At the end a model with all your parts learns to name the motions of two actors in a crowd.
#
# | | |
# |---|---|
# | **Points** | 14 by checks (8 visible, 6 hidden), 2 for written answers |
# | **Time** | 4 to 6 hours |
# | **You need** | the sigmoid, gradients of products of matrices, lessons 09 and 10 of the course; paper |
#
# Write only where a cell says `your code here`; you may add cells of your own. The tasks do not depend on each other: a
# wrong answer in one costs no points in another.
#
# Letters: `B` images or clips, `T` frames, `H` rows and `W` columns, `N` places, `C` channels, `S` tokens, `K` classes.
# L is the loss, and `dx` means ∂L/∂x, an array of the shape of x. No function writes into an argument. Numbers are
# float64 or float32, and results have the dtype of the inputs.

# %%
import math

import lesson
import numpy as np

import minitl
from minitl import Tensor, check_gradients, data, nn, no_grad, ops, optim
from minitl.autograd import op
from minitl.nn import vit

rng = np.random.default_rng(0)


def compare(what, got, want, tolerance=1e-9):
    """Raise AssertionError unless ``got`` is an array with the shape and the numbers of ``want``."""
    want = np.asarray(want)
    assert isinstance(got, np.ndarray | np.generic), (
        f"{what}: expected a NumPy array or number, got {type(got).__name__}"
    )
    assert got.shape == want.shape, f"{what}: expected the shape {want.shape}, got {got.shape}"
    same = np.isnan(got) == np.isnan(want)
    assert same.all(), f"{what}: {(~same).sum()} entries are nan and should be numbers, or numbers and should be nan"
    error = np.abs(np.where(got == want, 0, np.nan_to_num(got) - np.nan_to_num(want))).max()
    assert error <= tolerance, f"{what}: the shape {got.shape} is right, but entries are off by up to {error:.3g}"


def run(fn, dy, *arrays):
    """Call an operation and, twice, its backward; return the value and the gradients. Nothing may be written into."""
    name, kept = fn.__name__, [array.copy() for array in (dy, *arrays)]
    made = fn(*arrays)
    assert isinstance(made, tuple) and len(made) == 2, f"{name}: expected (value, backward), got {type(made).__name__}"
    first, second = (g if isinstance(g, tuple | list) else (g,) for g in (made[1](dy), made[1](dy)))
    count = sum(array.dtype.kind == "f" for array in arrays)
    assert len(first) == count, f"{name}: backward returns {len(first)} arrays, expected {count}"
    same = all(np.allclose(a, b, equal_nan=True) for a, b in zip(first, second, strict=True))
    assert same, f"{name}: backward gives another result when it is called a second time; does it change an array?"
    same = all((a == b).all() for a, b in zip((dy, *arrays), kept, strict=True))
    assert same, f"{name} writes into an argument or into the gradient; make a new array in place of -=, *= or out="
    return made[0], *first


# %% [markdown]
# ## Task 1 · TokenFuser
#
# TokenLearner makes a few tokens of many places, and a transformer block changes them. TokenFuser brings them back: it
# mixes the tokens, and each place takes of each mixed token as much as it wants.
#
# | letter | meaning | shape |
# |---|---|---|
# | $y$ | tokens | $(B, S, C)$ |
# | $x$ | the grid, as $N$ places | $(B, N, C)$ |
# | $M$ | learned: mixes the tokens | $(S, S)$ |
# | $V$ | learned: what a place wants of each mixed token | $(C, S)$ |
# | $o$ | the new grid | $(B, N, C)$ |
#
# This is the paper's formula, without the norms of its authors' code. For each image $b$, with the sigmoid
# $\sigma(l) = 1 / (1 + e^{-l})$:
#
# $$U_{btc} = \sum_s M_{st}\, y_{bsc} \qquad W_{bnt} = \sigma\Big(\sum_c x_{bnc} V_{ct}\Big) \qquad
# o_{bnc} = x_{bnc} + \sum_t W_{bnt} U_{btc}$$
#
# Find $dy$, $dx$, $dM$ and $dV$. Ask of each array in how many ways it acts on $o$. $M$ and $V$ serve all images of a
# batch. The slope of $W = \sigma(l)$ is $W (1 - W)$.
#
# In the example, two places of three channels take from two tokens.

# %%
edges = [("M", "U"), ("y", "U"), ("V", "W"), ("x", "W"), ("U", "o"), ("W", "o"), ("x", "o")]
lesson.graph(edges, "M and y lead to U, V and x to W; U, W and also x itself lead to o.", size=(5, 2.2))
x, y = np.array([[0.0, 0.0, 0.0], [2.0, 1.0, 0.0]]), np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
M, V = np.array([[0.0, 1.0], [0.5, 0.0]]), np.array([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
U = np.array([[sum(M[s, t] * y[s, c] for s in range(2)) for c in range(3)] for t in range(2)])
W = np.array([[1 / (1 + math.exp(-sum(x[n, c] * V[c, t] for c in range(3)))) for t in range(2)] for n in range(2)])
print("U, half of token 1 and all of token 0:", *U.tolist())
print("W, a row for each place:", *W.round(3).tolist())
print(f"o[1, 0] = {x[1, 0]} + {W[1, 0]:.3f} · {U[0, 0]} + {W[1, 1]:.3f} · {U[1, 0]}")


# %% answer="a5-fuse" forbids="TokenFuser"
def my_fuse(y, x, M, V):
    """Return o (B, N, C) and backward for y (B, S, C), x (B, N, C), M (S, S), V (C, S).

    backward: do (B, N, C) -> dy (B, S, C), dx (B, N, C), dM (S, S), dV (C, S). 8 to 12 lines.
    Right for entries of ±1000 as well.
    """
    ### BEGIN SOLUTION
    U, W = M.T @ y, 1 / (1 + np.exp(-(x @ V)))

    def backward(do):
        dU = W.swapaxes(1, 2) @ do
        dl = do @ U.swapaxes(1, 2) * W * (1 - W)
        dM = (y @ dU.swapaxes(1, 2)).sum(0)
        return M @ dU, do + dl @ V.T, dM, (x.swapaxes(1, 2) @ dl).sum(0)

    return x + W @ U, backward
    ### END SOLUTION


# %% test="a5-fuse-1" points=2
x, y = np.array([[[0.0, 0.0, 0.0], [2.0, 1.0, 0.0]]]), np.array([[[1.0, 0.0, 0.0], [0.0, 0.0, 4.0]]])
M, V = np.array([[0.0, 1.0], [0.5, 0.0]]), np.array([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
o, dy, dx, dM, dV = run(my_fuse, np.array([[[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]]), y, x, M, V)
compare("my_fuse: o of the worked example", o, [[[0.5, 0, 1], [2 + 1 / (1 + math.exp(-2)), 1, 1]]])
compare("my_fuse: dy for do = 1 at place 0, channel 2", dy, [[[0, 0, 0.5], [0, 0, 0.25]]])
compare("my_fuse: dM for the same do", dM, [[0, 0], [2, 2]])
check = np.random.default_rng(1)
shapes = (2, 3, 4), (2, 5, 4), (3, 3), (4, 3)  # y, x, M, V: B = 2, S = 3, N = 5, C = 4
check_gradients(op(my_fuse), *(check.standard_normal(shape) for shape in shapes))
print("visible checks passed (2 of 4 points of this task); hidden checks run at grading")

# %% hidden="a5-fuse-2" points=1
draw = np.random.default_rng(2)
for B, S, N, C in ((3, 2, 4, 5), (1, 1, 3, 2), (2, 4, 1, 3), (3, 3, 3, 3)):
    y, x, M, V, do = (draw.standard_normal(s) for s in ((B, S, C), (B, N, C), (S, S), (C, S), (B, N, C)))
    want, want_dy, want_dx, want_dM, want_dV = do * 0, y * 0, do.copy(), M * 0, V * 0
    for b in range(B):
        U = [[sum(M[s, t] * y[b, s, c] for s in range(S)) for c in range(C)] for t in range(S)]
        for n in range(N):
            W = [1 / (1 + math.exp(-sum(x[b, n, c] * V[c, t] for c in range(C)))) for t in range(S)]
            for c in range(C):
                want[b, n, c] = x[b, n, c] + sum(W[t] * U[t][c] for t in range(S))
            for t in range(S):
                slope = W[t] * (1 - W[t]) * sum(do[b, n, c] * U[t][c] for c in range(C))
                for c in range(C):
                    want_dx[b, n, c] += slope * V[c, t]
                    want_dV[c, t] += slope * x[b, n, c]
                    for s in range(S):
                        want_dy[b, s, c] += M[s, t] * W[t] * do[b, n, c]
                        want_dM[s, t] += y[b, s, c] * W[t] * do[b, n, c]
    got = run(my_fuse, do, *(np.asfortranarray(a) for a in (y, x, M, V)))
    names, wanted = ("o", "dy", "dx", "dM", "dV"), (want, want_dy, want_dx, want_dM, want_dV)
    for name, array, right in zip(names, got, wanted, strict=True):
        compare(f"my_fuse with B={B}, S={S}, N={N}, C={C}: {name}", array, right)

# %% hidden="a5-fuse-3" points=1
for kind in (np.float64, np.float32):
    x = np.array([[[1000, 0], [-1000, 0], [0, 1000]]], kind)
    y, M, V = np.array([[[1, 2]]], kind), np.array([[3]], kind), np.array([[1], [-1]], kind)
    with np.errstate(all="ignore"):
        o, dy, dx, dM, dV = run(my_fuse, np.ones_like(x), y, x, M, V)
    told = f"my_fuse with entries of 1000 in {kind.__name__}"
    compare(f"{told}: o", o, [[[1003, 6], [-1000, 0], [0, 1000]]])
    compare(f"{told}: dx", dx, np.ones((1, 3, 2)))
    compare(f"{told}: dV", dV, np.zeros((2, 1)))
    compare(f"{told}: dM", dM, [[3]])
    kinds = {str(a.dtype) for a in (o, dy, dx, dM, dV)}
    assert kinds == {kind.__name__}, f"{kind.__name__} in, {kind.__name__} out; got {', '.join(sorted(kinds))}"

# %%
# Look: your fuser paints. The places are the pixels of a frame, with red, green, blue and 1 as channels. V is chosen so
# that token 0 goes to red and yellow places and token 1 to blue ones; the tokens hold what is added to their colors.
frame = data.actors(1, 8)[1].images[7, 2] / 255
x = np.concatenate([frame, np.ones((32, 32, 1))], -1).reshape(1, -1, 4)
V = np.array([[30.0, -30.0], [0.0, 0.0], [-30.0, 30.0], [-12.0, -9.0]])
paint = np.array([[[-0.7, -0.3, 0.6, 0.0], [0.5, 0.2, -0.5, 0.0]]])
marker = np.eye(2, 4)[None]  # the change of channel 0 is then the weight of token 0, of channel 1 that of token 1
weights = (my_fuse(marker, x, np.eye(2), V)[0] - x).reshape(32, 32, 4)
painted = {name: my_fuse(paint, x, M, V)[0] for name, M in (("o", np.eye(2)), ("o, M swaps", np.eye(2)[::-1]))}
pictures = [
    frame,
    weights[..., 0],
    weights[..., 1],
    *(o[0, :, :3].reshape(32, 32, 3).clip(0, 1) for o in painted.values()),
]
lesson.images(
    {"": pictures},
    "A frame; maps, bright at red and yellow and at blue places; the frame with these colors exchanged, and stronger.",
    ["x", "W, token 0", "W, token 1", *painted],
    side=1.5,
    low=0,
    high=1,
)

# %% [markdown]
# **Question 1** (1 point). At the start of training $M$ is 0, so that $o = x$, and $V$ is random. In 2 to 4 sentences:
# which of $dy$, $dx$, $dM$ and $dV$ can differ from 0 in the first step? And if *both* $M$ and $V$ started as zeros,
# the fuser would still learn, but what would its $S$ mixed tokens have in common after any number of steps? Argue with
# the columns of $dM$ and $dV$.

# %% [markdown] written="a5-q1" points=1
# With M = 0 all mixed tokens are 0, and so are dy = M dU and dV. dM differs from 0, as it takes y and the random
# weights W, and dx = do by the residual. If V is 0 too, all weights are 1/2 and the columns of dM are equal. After a
# step all mixed tokens are equal, so the columns of dV are equal as well, and so on: the columns of M and V stay
# equal, and the S tokens act as a single one.
#
# Rubric: half a point for "dM and dx alone"; half a point for "all columns get the same gradient, so the tokens stay
# copies of one".

# %% [markdown]
# ## Task 2 · The tokens of a clip
#
# A clip has a time axis. A *tubelet* is a patch with a length in time, so that one token can see a motion. TokenLearner
# knows images alone, and you apply it to clips without a change to it.
#
# 1. `tubelets`: cut clips $(B, T, H, W, c)$ into tubelets of $t$ frames, $p$ rows and $p$ columns: an array
#    $(B, T/t, H/p, W/p, t\,p\,p\,c)$. The last axis holds the pixels of a tubelet in order of time, row, column and
#    channel:
#
# $$\text{out}_{b,\,i,\,j,\,k,\;((a p + r) p + s) c + z} = \text{clips}_{b,\;i t + a,\;j p + r,\;k p + s,\;z}$$
#
# 2. `clip_tokens`: `learn` is a function of images, $(n, H, W, C)$ to $(n, S, C)$ for any $n$. Apply it to all frames
#    of all clips, in one call. The result $(B, T S, C)$ holds the tokens of a clip in order of time: token $s$ of frame
#    $i$ is number $i S + s$.
#
# Both get arrays or Tensors, which have `reshape` and `transpose` as methods. Use no more than these, then gradients
# need no code.
#
# In the example, the numbers of a clip of 2 frames, 2 rows and 3 columns are its frame, row and column.

# %%
clip = np.array([[[f"{a}{r}{s}" for s in range(3)] for r in range(2)] for a in range(2)])
print("as two rows of six: ", *(" ".join(row) for row in clip.reshape(2, 6)), sep="\n    ")
print(
    "columns first, then frames and rows:",
    *(" ".join(row) for row in clip.transpose(2, 0, 1).reshape(3, 4)),
    sep="\n    ",
)


# %% answer="a5-clip" forbids="patchify"
def tubelets(clips, t, p):
    """Return (B, T/t, H/p, W/p, t·p·p·c) for ``clips`` (B, T, H, W, c). About three lines."""
    ### BEGIN SOLUTION
    B, T, H, W, c = clips.shape
    cut = clips.reshape(B, T // t, t, H // p, p, W // p, p, c).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return cut.reshape(B, T // t, H // p, W // p, t * p * p * c)
    ### END SOLUTION


def clip_tokens(x, learn):
    """Return (B, T·S, C) for ``x`` (B, T, H, W, C) and ``learn``, (n, H, W, C) -> (n, S, C). About three lines."""
    ### BEGIN SOLUTION
    B, T, H, W, C = x.shape
    tokens = learn(x.reshape(B * T, H, W, C))
    return tokens.reshape(B, T * tokens.shape[1], C)
    ### END SOLUTION


# %% test="a5-clip-1" points=1
clips = np.arange(32.0).reshape(1, 2, 4, 4, 1)  # pixel (a, r, s) holds 16 a + 4 r + s
cut = tubelets(clips, 2, 2)
compare("tubelets of one clip (1, 2, 4, 4, 1) with t = p = 2: the shape", np.array(np.shape(cut)), [1, 1, 2, 2, 8])
compare("tubelets: the one at row 0, column 0", cut[0, 0, 0, 0], [0, 1, 4, 5, 16, 17, 20, 21])
compare("tubelets: the one at row 0, column 1", cut[0, 0, 0, 1], [2, 3, 6, 7, 18, 19, 22, 23])
compare("tubelets: the one at row 1, column 0", cut[0, 0, 1, 0], [8, 9, 12, 13, 24, 25, 28, 29])
print("visible checks passed (1 of 3 points of this task); hidden checks run at grading")


# %% test="a5-clip-2" points=1
def first_and_sum(grids):
    """Two tokens for each image: its first place, and the sum of all places."""
    assert len(grids.shape) == 4, f"learn takes images (n, H, W, C), got the shape {grids.shape}"
    flat = grids.reshape(len(grids), -1, grids.shape[3])
    return np.concatenate([flat[:, :1], flat.sum(1, keepdims=True)], 1)


x = np.arange(48.0).reshape(2, 3, 2, 2, 2)
got = clip_tokens(x, first_and_sum)
compare("clip_tokens for x (2, 3, 2, 2, 2) and S = 2: the shape", np.array(np.shape(got)), [2, 6, 2])
compare("clip_tokens: both tokens of frame 0 of clip 0", got[0, :2], [[0, 1], [12, 16]])
compare("clip_tokens: both tokens of frame 1 of clip 0", got[0, 2:4], [[8, 9], [44, 48]])
compare("clip_tokens: both tokens of frame 0 of clip 1", got[1, :2], [[24, 25], [108, 112]])
print("visible checks passed (1 of 3 points of this task); hidden checks run at grading")

# %% hidden="a5-clip-3" points=1
draw = np.random.default_rng(3)
for B, T, H, W, c, t, p in ((2, 6, 4, 6, 3, 2, 2), (1, 3, 6, 3, 2, 1, 3), (3, 4, 2, 5, 1, 4, 1)):
    clips = np.asfortranarray(draw.standard_normal((B, T, H, W, c)).astype(np.float32))
    clips.flags.writeable = False
    want = np.empty((B, T // t, H // p, W // p, t * p * p * c), np.float32)
    for b, i, j, k in np.ndindex(*want.shape[:4]):
        for a, r, s, z in np.ndindex(t, p, p, c):
            want[b, i, j, k, ((a * p + r) * p + s) * c + z] = clips[b, i * t + a, j * p + r, k * p + s, z]
    told = f"tubelets of clips {clips.shape} with t = {t}, p = {p}"
    compare(told, tubelets(clips, t, p), want, tolerance=0)
    assert tubelets(clips, t, p).dtype == np.float32, f"{told}: float32 in, float32 out"
    made = tubelets(Tensor(clips), t, p)
    assert isinstance(made, Tensor), f"{told}: Tensor in, Tensor out; got {type(made).__name__}"
for B, T, H, W, C, S in ((2, 3, 4, 5, 6, 7), (1, 4, 2, 3, 5, 1), (5, 1, 3, 2, 4, 3)):
    x, A, calls = draw.standard_normal((B, T, H, W, C)), draw.standard_normal((S, H * W)), []

    def pool(grids, A=A, calls=calls):
        calls.append(grids.shape)
        flat = grids.reshape(grids.shape[0], -1, grids.shape[3])
        return ops.token_pool(Tensor(np.stack([A] * grids.shape[0])), flat, mean=False)

    x = Tensor(x, requires_grad=True)
    got = clip_tokens(x, pool)
    told = f"clip_tokens of x {x.shape} with S = {S}"
    assert calls == [(B * T, H, W, C)], f"{told}: expected one call of learn with {(B * T, H, W, C)}, got {calls}"
    want = np.concatenate([A @ x.data[:, i].reshape(B, H * W, C) for i in range(T)], 1)
    assert isinstance(got, Tensor), f"{told}: Tensor in, Tensor out; got {type(got).__name__}"
    compare(told, got.data, want)
    got.backward(np.ones(got.shape))
    compare(f"{told}: dx", x.grad, np.broadcast_to(A.sum(0).reshape(H, W, 1), x.shape))

# %%
# Look: above, every other frame of a clip. Below, from your tubelets of two frames: how much each patch of 4 x 4 pixels
# changes from the first frame of a tubelet to the second. It is brightest at the borders of moving objects. The
# background flickers; inside an object that stands still it is dark.
clip = data.actors(1, 8)[1].images[7:8] / 255
cut = tubelets(clip, 2, 4).reshape(4, 8, 8, 2, 48)
change = np.abs(cut[:, :, :, 1] - cut[:, :, :, 0]).mean(-1)
lesson.images(
    {"frame": clip[0, ::2], "change": change},
    "Four frames of a clip, and below each a coarse map that is brightest at the borders of moving objects.",
    [f"tubelet {i}" for i in range(4)],
    side=1.3,
)


# Then one token for each frame, the mean row and column of its red places, by your clip_tokens. Each of two clips has
# one actor, a red one: in the first it moves up, in the second to the right.
def red_center(frames):
    """Return one token for each frame (32, 32, 3): row, column and 0, as (n, 1, 3)."""
    red = np.exp(-80 * ((frames - [0.95, 0.25, 0.2]) ** 2).sum(-1)).reshape(len(frames), -1)
    center = red / red.sum(1, keepdims=True) @ np.indices((32, 32)).reshape(2, -1).T
    return np.concatenate([center, np.zeros((len(frames), 1))], 1)[:, None]


up, right = clip_tokens(data.actors(1, 50)[1].images[[41, 49]] / 255, red_center)  # (8, 3) each
paths = {"up, row": up[:, 0], "up, column": up[:, 1], "right, row": right[:, 0], "right, column": right[:, 1]}
lesson.curves(
    {name: (np.arange(8), path) for name, path in paths.items()},
    "frame",
    "pixels",
    "Two of four lines change and two stay: the row falls for the motion up, the column rises for the motion right.",
)

# %% [markdown]
# ## Task 3 · A loss for several labels
#
# An ACTORS clip has one or two of ten labels, so softmax, which lets the classes compete, does not fit. Each class gets
# a yes or no of its own: *binary cross-entropy*.
#
# With logits $x$ and targets $t$ of shape $(B, K)$, where $t$ is 1 if the label applies and 0 elsewhere:
#
# $$p_{bk} = \sigma(x_{bk}) \qquad
# L = \frac{1}{B K} \sum_{b, k} \big( -t_{bk} \ln p_{bk} - (1 - t_{bk}) \ln (1 - p_{bk}) \big)$$
#
# Computed as it stands, the loss is infinite or nan when $|x|$ is large, because $p$ or $1 - p$ is rounded to 0. Write
# $\ln p$ and $\ln(1 - p)$ by $x$ and simplify, so that no exponent is ever positive. Find $dx$; it becomes short.
#
# Targets are uint8, as the data set has them. This type has no negative numbers: `-t` of 1 is 255.

# %%
x, t = np.array([[0.0, 2.0, -1.0], [3.0, -3.0, 0.0]]), np.array([[1, 0, 0], [1, 1, 0]], "uint8")
for value, target in zip(x.ravel(), t.ravel(), strict=True):
    p = 1 / (1 + math.exp(-value))
    print(f"x = {value:4}, t = {target}: p = {p:.3f}, loss {-math.log(p if target else 1 - p):.3f}")
with np.errstate(all="ignore"):
    print("x = -100 in float32, t = 1: loss", -np.log(1 / (1 + np.exp(np.float32(100)))), "should be 100")


# %% answer="a5-loss" forbids="binary_cross_entropy_with_logits"
def my_bce(x, t):
    """Return L, a number of the dtype of x, and backward for logits x (B, K) and targets t (B, K), uint8.

    backward: dL, a number -> dx (B, K). 4 to 7 lines. Right for logits of ±1000 as well.
    """
    ### BEGIN SOLUTION
    e = np.exp(-np.abs(x))
    p = np.where(x >= 0, 1, e) / (1 + e)
    L = (np.maximum(x, 0) - t * x + np.log1p(e)).mean()
    return L, lambda dL: (p - t) * (dL / x.size)
    ### END SOLUTION


# %% test="a5-loss-1" points=2
x, t = np.array([[0.0, 2.0, -1.0], [3.0, -3.0, 0.0]]), np.array([[1, 0, 0], [1, 1, 0]], "uint8")
L, dx = run(my_bce, np.float64(6), x, t)
compare("my_bce: L of the worked example", L, 1.1539434, tolerance=1e-6)
compare("my_bce: dx[0, 0] for x = 0, t = 1 and dL = 6", dx[0, 0], -0.5)
compare("my_bce: dx[1, 2] for x = 0, t = 0 and dL = 6", dx[1, 2], 0.5)


@op
def of_logits(x):
    return my_bce(x, t)


check_gradients(of_logits, x)
print("visible checks passed (2 of 3 points of this task); hidden checks run at grading")

# %% hidden="a5-loss-2" points=1
draw = np.random.default_rng(4)
for B, K in ((1, 1), (1, 7), (5, 3), (4, 4)):
    x, t = 3 * draw.standard_normal((B, K)), draw.integers(2, size=(B, K)).astype("uint8")
    L, dx = run(my_bce, np.float64(0.7), np.asfortranarray(x), t)
    p = [[1 / (1 + math.exp(-v)) for v in row] for row in x]
    losses = [-math.log(p[b][k] if t[b, k] else 1 - p[b][k]) for b in range(B) for k in range(K)]
    compare(f"my_bce with B={B}, K={K}: L", L, sum(losses) / (B * K))
    want = [[0.7 * (p[b][k] - int(t[b, k])) / (B * K) for k in range(K)] for b in range(B)]
    compare(f"my_bce with B={B}, K={K} and dL = 0.7: dx", dx, want)
for kind, size in ((np.float64, 1000), (np.float32, 1000), (np.float32, 100)):
    x, t = np.array([[-size, size, size, -size]], kind), np.array([[1, 0, 1, 0]], "uint8")
    with np.errstate(all="ignore"):
        L, dx = run(my_bce, kind(4), x, t)
    told = f"my_bce with logits of ±{size} in {kind.__name__}"
    compare(f"{told}: L", L, size / 2)
    compare(f"{told}: dx", dx, [[-1, 1, 0, 0]], tolerance=1e-7)
    assert L.dtype == dx.dtype == kind, f"{kind.__name__} in, {kind.__name__} out; got {L.dtype} and {dx.dtype}"

# %%
# Look: your loss of one logit, and its slope, for both targets. A wrong answer costs more the surer it is, but the pull
# on the logit is never more than 1.
x = np.linspace(-6, 6, 121)
lines = {}
for target in (1, 0):
    made = [my_bce(np.array([[v]]), np.array([[target]], "uint8")) for v in x]
    lines |= {
        f"L, t = {target}": (x, [L for L, _ in made]),
        f"dx, t = {target}": (x, [back(1.0)[0, 0] for _, back in made]),
    }
lesson.curves(
    lines, "logit x", "", "Two losses, mirror images that cross at 0; the slopes go from -1 to 0 and from 0 to 1."
)

# %% [markdown]
# ## Task 4 · Mean average precision
#
# Most labels are 0, so a model that always says no is right nine times out of ten. *Average precision* asks for more:
# do the clips that have a label get higher scores than those that do not?
#
# A *hit* of class $k$ is a clip with $t_{ik} = 1$. For each hit, take all clips that score at least as high, the hit
# among them. The share of hits in them is the precision at this hit, and the mean over all hits is the average
# precision:
#
# $$\text{AP}_k = \frac{1}{\#\{i : t_{ik} = 1\}} \sum_{i:\, t_{ik} = 1}
# \frac{\#\{j : s_{jk} \ge s_{ik} \text{ and } t_{jk} = 1\}}{\#\{j : s_{jk} \ge s_{ik}\}}$$
#
# with scores $s$ and targets $t$ of shape $(N, K)$ for $N$ clips. Scores on any scale will do, logits too. Clips with
# equal scores are taken together, so their order does not matter. A class without a hit has no AP: it is `nan`, and
# the mean is taken over the other classes. Some class has a hit.

# %%
score, target = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [1, 0, 1, 1, 0, 0]
for rank in range(1, 7):
    hits = sum(target[:rank])
    told = f"precision {hits}/{rank} = {hits / rank:.3f}" if target[rank - 1] else ""
    print(f"score {score[rank - 1]}, {'hit ' if target[rank - 1] else 'miss'}   {told}")
print(f"AP = (1/1 + 2/3 + 3/4) / 3 = {(1 + 2 / 3 + 3 / 4) / 3:.3f}")


# %% answer="a5-ap"
def my_average_precision(scores, targets):
    """Return AP (K,), an array of float64, and its mean, a number, for scores and targets (N, K). 6 to 10 lines.

    AP is nan for a class without a hit. Scores are numbers of any size, targets 0 or 1 of type uint8.
    """
    ### BEGIN SOLUTION
    ap = np.full(scores.shape[1], np.nan)
    for k in range(scores.shape[1]):
        hit = targets[:, k] == 1
        if hit.any():
            taken = scores[:, k] >= scores[hit, k][:, None]  # (hits, N)
            ap[k] = ((taken & hit).sum(1) / taken.sum(1)).mean()
    return ap, ap[~np.isnan(ap)].mean()
    ### END SOLUTION


# %% test="a5-ap-1" points=1
score, target = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), np.array([1, 0, 1, 1, 0, 0], "uint8")
ap, _ = my_average_precision(score[:, None], target[:, None])
compare("my_average_precision: AP of the worked example", ap, [29 / 36])
order = np.array([3, 0, 5, 1, 4, 2])
ap, _ = my_average_precision(score[order, None], target[order, None])
compare("my_average_precision: AP of the worked example, with the clips in another order", ap, [29 / 36])
print("visible checks passed (1 of 4 points of this task); hidden checks run at grading")

# %% test="a5-ap-2" points=1
scores = np.array([[4.0, 1.0, 0.1], [3.0, 2.0, 0.2], [2.0, 3.0, 0.3], [1.0, 4.0, 0.4]])
targets = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 1]], "uint8")
ap, mean = my_average_precision(scores, targets)
compare("my_average_precision: AP of three classes", ap, [1, 1 / 4, 3 / 4])
compare("my_average_precision: the mean of 1, 1/4 and 3/4", np.asarray(mean), 2 / 3)
print("visible checks passed (1 of 4 points of this task); hidden checks run at grading")

# %% hidden="a5-ap-3" points=1
draw = np.random.default_rng(5)
for N, K, levels in ((12, 3, 4), (1, 2, 1), (7, 1, 2), (30, 5, 6), (9, 2, 1)):
    scores, targets = draw.integers(levels, size=(N, K)).astype(float), draw.integers(2, size=(N, K)).astype("uint8")
    targets[draw.integers(N)] = 1  # every class has a hit
    want = []
    for k in range(K):
        parts = []
        for i in range(N):
            if targets[i, k]:
                taken = [j for j in range(N) if scores[j, k] >= scores[i, k]]
                parts.append(sum(int(targets[j, k]) for j in taken) / len(taken))
        want.append(sum(parts) / len(parts))
    for order in (np.arange(N), np.arange(N)[::-1], draw.permutation(N)):
        ap, mean = my_average_precision(scores[order], targets[order])
        compare(f"my_average_precision of {N} clips with equal scores, {levels} levels", ap, want)
        compare(f"my_average_precision of {N} clips with equal scores: the mean", np.asarray(mean), sum(want) / K)

# %% hidden="a5-ap-4" points=1
scores = np.array([[-5.0, 1e30, 0.5], [-7.0, -1e30, 2.5], [-6.0, 0.0, 1.5], [-9.0, 1e-30, -3.5]], np.float32)
targets = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0]], "uint8")
scores.flags.writeable = targets.flags.writeable = False
with np.errstate(all="ignore"):
    ap, mean = my_average_precision(scores, targets)
compare("my_average_precision with negative and extreme scores and a class without a hit", ap, [5 / 12, 1, np.nan])
compare("my_average_precision: the mean over the two classes that occur", np.asarray(mean), 17 / 24)
assert ap.dtype == np.float64, f"my_average_precision: AP is an array of float64, got {ap.dtype}"
big = np.random.default_rng(6).permutation(1000)[:, None].astype(float)
ap, _ = my_average_precision(big, (big >= 600).astype("uint8"))
compare("my_average_precision of 1000 clips in the perfect order, 400 of them hits", ap, [1])

# %%
# Look: average precision against the share of hits, for scores that know nothing, a little, and more about the targets.
shares, lines = np.array([0.02, 0.05, 0.1, 0.2, 0.35, 0.5]), {}
for gain in (0, 1, 2):
    targets = (rng.random((4000, 6)) < shares).astype("uint8")
    lines[f"hits score {gain} higher"] = (
        shares,
        my_average_precision(gain * targets + rng.standard_normal((4000, 6)), targets)[0],
    )
lesson.curves(
    lines,
    "share of hits among all clips",
    "average precision",
    "Three rising lines. The lowest, of random scores, is the diagonal: chance is the share of hits.",
    marks=True,
    ylim=(0, 1),
)

# %% [markdown]
# **Question 2** (1 point). One clip in ten shows a motion. To "balance the test set", a colleague keeps all of these
# clips and every fourth of the others. In 2 to 4 sentences: about what AP does a random ranking reach before, and what
# after? Does the AP of one and the same model rise, fall or stay, and why? What must you know before you compare two
# APs?

# %% [markdown] written="a5-q2" points=1
# A random ranking reaches the share of hits: 0.1 before, and 1 / (1 + 9/4), about 0.31, after. The AP of the same model
# rises, for at each hit the number of other clips in the denominator falls to about a quarter, and the hits stay; only
# a perfect AP of 1 stays. Two APs can be compared when they come from the same clips, or at least with the same share
# of hits.
#
# Rubric: half a point for 0.1 and about 0.3; half a point for "it rises, because fewer other clips stand before each
# hit", with "the share of hits must be the same" for the full point.

# %% [markdown]
# ## Plug in
#
# A model with all your parts. It makes the chain of the paper twice: few tokens, a block, and between the two blocks
# your fuser, which brings back all places, so that the second TokenLearner can look again.
#
# | step | shape | whose |
# |---|---|---|
# | tubelets of two frames, a linear layer, positions in time and space | $(B, 4, 8, 8, 48)$ | yours, minitl's |
# | TokenLearner on each of the four grids | $(B, 4 \cdot 4, 48)$ | yours, minitl's |
# | block | $(B, 4 \cdot 4, 48)$ | minitl's |
# | TokenFuser, its tokens mixed within each grid | $(B, 4, 8, 8, 48)$ | yours |
# | TokenLearner and block again, mean, linear layer | $(B, 10)$ | yours, minitl's |
# | loss, and average precision on other clips | | yours |


# %%
T, C, S = 4, 48, 4  # grids of a clip, channels, tokens of a grid
fuse = op(my_fuse)


class Motions(nn.Module):
    """Clips (B, 8, 32, 32, 3) -> logits (B, 10)."""

    def __init__(self, rng):
        self.embed, self.positions = nn.Linear(2 * 4 * 4 * 3, C, rng=rng), vit.waves(rng, (T, 8, 8), C)
        self.learners = [nn.TokenLearner(C, S, version="1.1", pre_norm=False, rng=rng) for _ in range(2)]
        self.blocks = [nn.EncoderBlock(C, 3, 96, rng=rng) for _ in range(2)]
        self.mix_norm, self.norm, self.head = nn.LayerNorm(C), nn.LayerNorm(C), nn.Linear(C, 10, rng=rng)
        self.M = nn.Parameter(np.zeros((S, S), "float32"))
        self.V = nn.Parameter((rng.standard_normal((C, S)) / math.sqrt(C)).astype("float32"))

    def forward(self, clips):
        x = self.embed(tubelets(Tensor(clips), 2, 4)) + self.positions.reshape(T, 8, 8, C)
        y = self.blocks[0](clip_tokens(x, self.learners[0]))
        o = fuse(self.mix_norm(y).reshape(-1, S, C), x.reshape(-1, 64, C), self.M, self.V)
        y = clip_tokens(o.reshape(x.shape), self.learners[1])
        return self.head(self.norm(self.blocks[1](y)).mean(axis=1))


# %%
def bce(logits, targets):  # minitl passes targets as floats and asks for a gradient of each argument
    L, backward = my_bce(logits, targets.astype("uint8"))
    return L, lambda dL: (backward(dL), None)


def train(model, epochs=5):
    """Train on the clips of ``train_set``; print the mean average precision on those of ``test_set``."""
    optimizer, step = optim.Muon(model.parameters(), weight_decay=0.05), 0
    loader = data.Loader(train_set, 32, shuffle=True, rng=np.random.default_rng(0))
    steps = epochs * len(loader)
    for epoch in range(epochs):
        for clips, labels in loader:
            with minitl.plug(binary_cross_entropy_with_logits=bce):
                logits = model(data.normalize(clips, mean, std))
                loss = ops.binary_cross_entropy_with_logits(logits, labels.astype("float32"))
            optimizer.zero_grad()
            loss.backward()
            optimizer.clip_grad_norm(1.0)
            optimizer.lr = optim.warmup_cosine(step, steps, steps // 10, 0.012)
            optimizer.step()
            step += 1
        print(
            f"epoch {epoch + 1}: mean average precision {my_average_precision(scores(model), test_set.labels)[1]:.3f}"
        )
    return model


def scores(model):
    """The logits of the test clips."""
    with no_grad():
        return np.concatenate([model(data.normalize(part, mean, std)).data for part in np.split(test_set.images, 10)])


# %%
# This takes about 15 seconds.
train_set, test_set = data.actors(3000, 500)
mean, std = data.channel_stats(train_set.images)
model = train(Motions(np.random.default_rng(0)))

# %%
ap, average = my_average_precision(scores(model), test_set.labels)
lesson.bars(
    dict(zip(test_set.classes, ap, strict=True)),
    f"average precision on {len(test_set)} test clips; mean {average:.3f}",
    "Ten bars, one for each motion, all far longer than chance; those of the rotations are the shortest.",
    text="{:.2f}",
    chance=test_set.labels.mean(),
    xlim=(0, 1.15),
)

# %% [markdown]
# With all 10,000 clips, `train_set, test_set = data.actors()`, and more epochs the mean rises further. And does this
# task need the fuser? To name a motion, no place has to come back. Leave out the fuser and the second TokenLearner,
# train again from the same seed, and compare. Try both on a copy of this notebook: the grader runs every cell, and
# stops one that takes more than a minute.
#
# ## Before you hand in
#
# 1. *Kernel → Restart and run all*: every visible check prints its line.
# 2. Both written answers are there.
# 3. The file is still called `A5_video.ipynb`. Hand in this file alone.
