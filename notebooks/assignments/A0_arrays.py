# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A0 · Arrays first
#
# A vision model that finds what matters in an image needs three things on its way: the image cut into patches, scores
# turned into weights, and weighted means. You write these with NumPy and without loops. At the end they run inside a
# trained model.
#
# | | |
# |---|---|
# | **Points** | 8 by checks (5 visible, 3 hidden), 2 for written answers |
# | **Time** | 1 to 2 hours |
# | **You need** | NumPy: indexing, broadcasting, `reshape`, `transpose`, `einsum` |
#
# Write only where a cell says `your code here`; you may add cells of your own. The tasks do not depend on each other: a
# wrong answer in one costs no points in another. Letters: B images, C numbers at each place, H and W the rows and
# columns of a grid of places, S weights for each place. Images have the shape (B, rows, columns, C).

# %%
import lesson
import numpy as np

import minitl
from minitl import Tensor, data

rng = np.random.default_rng(0)


def compare(what, got, want, tolerance=1e-9):
    """Raise AssertionError unless ``got`` is an array with the shape and the numbers of ``want``."""
    want = np.asarray(want)
    assert isinstance(got, np.ndarray), f"{what}: expected an array, got {type(got).__name__}"
    assert got.shape == want.shape, f"{what}: expected the shape {want.shape}, got {got.shape}"
    assert np.isfinite(got).all(), f"{what}: some numbers are infinite or not numbers (nan)"
    error = np.abs(got - want.astype(float)).max()
    assert error <= tolerance, f"{what}: the shape {got.shape} is right, but entries are off by up to {error:.3g}"


# %% [markdown]
# ## Task 1 · Cut an image into patches, and put it together again
#
# Write `patchify`, which cuts images into a grid of H × W patches, and `unpatchify`, its inverse. A patch has p rows
# and q columns of pixels, and each patch becomes one row of numbers.
#
# With images $x$ of shape $(B, Hp, Wq, C)$, patches $P$ of shape $(B, HW, pqC)$, a place $h, w$ in the grid and a pixel
# $i, j$ within the patch:
#
# $$P_{b,\; hW + w,\; (iq + j)C + c} \;=\; x_{b,\; hp + i,\; wq + j,\; c}$$
#
# So patches are ordered by row of the grid, then by column. Within a patch, numbers are ordered by row, then by column,
# then by color. A `reshape` never changes the order of the numbers in an array; `transpose` does. Here is an image of
# 4 × 6 pixels with one color, and which patch each pixel belongs to when p = 2 and q = 3:

# %%
tiny = np.arange(24).reshape(1, 4, 6, 1)
row, column = np.indices((4, 6))
lesson.matrices(
    {"number of the patch": row // 2 * 2 + column // 3},
    "column",
    "row",
    "A grid of 4 by 6 pixels in four blocks of 2 by 3, numbered 0 and 1 above, 2 and 3 below.",
    text="{:.0f}",
)
print(tiny[0, :, :, 0])
print("patch 0:", tiny[0, :2, :3, 0].ravel(), "  patch 1:", tiny[0, :2, 3:, 0].ravel())


# %% answer="a0-patch"
def patchify(x, p, q):
    """Cut images into patches of p x q pixels: (B, H p, W q, C) -> (B, H W, p q C). No loops, same dtype.

    p divides the number of rows, q that of columns. 3 to 5 lines.
    """
    ### BEGIN SOLUTION
    B, rows, columns, C = x.shape
    x = x.reshape(B, rows // p, p, columns // q, q, C).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, -1, p * q * C)
    ### END SOLUTION


def unpatchify(patches, H, W, p, q):
    """Put patches of a grid of H x W together again: (B, H W, p q C) -> (B, H p, W q, C). 3 to 5 lines."""
    ### BEGIN SOLUTION
    x = patches.reshape(len(patches), H, W, p, q, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(len(patches), H * p, W * q, -1)
    ### END SOLUTION


# %% test="a0-patch-1" points=2
small = np.arange(24).reshape(1, 4, 6, 1)
cut = patchify(small, 2, 3)
blocks = [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11], [12, 13, 14, 18, 19, 20], [15, 16, 17, 21, 22, 23]]
compare("patchify of the image of 4 x 6 pixels with p = 2, q = 3", cut, [blocks])
compare("unpatchify of these patches", unpatchify(np.array([blocks]), 2, 2, 2, 3), small)
pair = np.arange(2 * 2 * 3 * 4).reshape(2, 2, 3, 4)
compare("patchify of two images of 2 x 3 pixels with p = 1, q = 1", patchify(pair, 1, 1), pair.reshape(2, 6, 4))
print("visible checks passed (2 of 3 points of this task); hidden checks run at grading")

# %% hidden="a0-patch-2" points=1
rng_patch = np.random.default_rng(1)
for B, H, W, p, q, C in ((2, 3, 2, 4, 5, 3), (1, 1, 4, 3, 2, 2), (3, 2, 5, 1, 4, 1)):
    for dtype, order in (("uint8", "C"), ("float32", "F")):
        picture = np.array(rng_patch.integers(0, 255, (B, H * p, W * q, C)), dtype, order=order)
        want = np.empty((B, H * W, p * q * C), dtype)
        for b, h, w, i, j, c in np.ndindex(B, H, W, p, q, C):
            want[b, h * W + w, (i * q + j) * C + c] = picture[b, h * p + i, w * q + j, c]
        kept = picture.copy()
        sizes = f"with B, H, W, p, q, C = {B, H, W, p, q, C}"
        cut = patchify(picture, p, q)
        compare(f"patchify {sizes}", cut, want)
        assert cut.dtype == dtype, f"patchify: {dtype} in, {dtype} out; got {cut.dtype}"
        back = unpatchify(np.array(want, order=order), H, W, p, q)
        compare(f"unpatchify {sizes}", back, kept)
        assert back.dtype == dtype, f"unpatchify: {dtype} in, {dtype} out; got {back.dtype}"
        assert (picture == kept).all(), "patchify changes its input"

# %%
# Look: 32 patches of 4 x 8 pixels of an image, sorted by how many of their pixels are clearly red.
image = data.sample(np.random.default_rng(6), 1).images
patches = patchify(image, 4, 8)
colors = patches.reshape(32, 32, 3).astype(int)
redness = (colors[:, :, 0] - colors[:, :, 1:].max(-1) > 80).sum(1)
lesson.images(
    {"": [image[0], unpatchify(patches[:, np.argsort(-redness, kind="stable")], 8, 4, 4, 8)[0]]},
    "An image with one red object, and beside it the same patches sorted, with the pieces of the red object on top.",
    titles=["image", "patches sorted"],
    side=2,
)

# %% [markdown]
# **Question 1** (1 point). Somebody's `patchify` orders the numbers of each patch by column, then by row, and is right
# in all else. In most models a linear layer $y = PW + b$ follows. In 2 to 4 sentences: can a model that is trained with
# this `patchify` from the start become as good as one that is trained with yours? And what happens to a finished model
# if its `patchify` is replaced by this one?

# %% [markdown] written="a0-q1" points=1
# Trained from the start: yes. The numbers of each patch are permuted, always in the same way, and a W with its rows
# permuted likewise gives the same y; training can find the one as well as the other. A finished model breaks, because
# each row of its W now meets another pixel than the one it was trained for, and no error message tells so.
#
# Rubric: half a point for "as good, since the rows of W can be permuted in the same way" (the reason is needed), half a
# point for "a finished model gets wrong numbers, since W belongs to the order it was trained with".

# %% [markdown]
# ## Task 2 · Softmax that does not overflow
#
# Softmax turns K scores into K positive weights whose sum is 1. Write it for any axis of an array, and so that scores
# of many thousands do no harm.
#
# Along the given axis, with $x$ and $y$ of the same shape:
#
# $$y_i = \frac{e^{x_i}}{\sum_j e^{x_j}}$$
#
# Typed in as it stands, the formula fails: $e^{1000}$ is infinite in a computer. But the same number added to all
# scores of a sum multiplies each $e^{x_j}$ by the same factor, which cancels. Choose that number well.

# %%
scores = np.log([[1.0, 2.0, 1.0], [3.0, 3.0, 2.0]])  # so that e to the power of a score is a round number
print("scores\n", scores.round(3))
print("softmax along the last axis\n", np.array([[1, 2, 1], [3, 3, 2]]) / [[4], [8]])
print("softmax along the first axis\n", np.array([[1, 2, 1], [3, 3, 2]]) / [4, 5, 3])


# %% answer="a0-softmax"
def my_softmax(x, axis=-1):
    """Return the softmax of x along ``axis``, an array of the same shape. 2 to 4 lines.

    float32 in, float32 out; x is not changed.
    """
    ### BEGIN SOLUTION
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)
    ### END SOLUTION


# %% test="a0-softmax-1" points=1
logs = np.log([[1.0, 2.0, 1.0], [3.0, 3.0, 2.0]])
compare("softmax of the example, last axis", my_softmax(logs.copy()), [[1 / 4, 2 / 4, 1 / 4], [3 / 8, 3 / 8, 2 / 8]])
compare(
    "softmax of the example, axis=0", my_softmax(logs.copy(), axis=0), [[1 / 4, 2 / 5, 1 / 3], [3 / 4, 3 / 5, 2 / 3]]
)
print("visible checks passed (1 of 2 points of this task); hidden checks run at grading")

# %% hidden="a0-softmax-2" points=1
rng_soft = np.random.default_rng(2)
for shape in ((2, 3, 4), (1, 5), (3,), (4, 1, 2, 3)):
    for axis in range(-len(shape), len(shape)):
        given = np.asfortranarray(rng_soft.standard_normal(shape))
        kept, want = given.copy(), np.empty(shape)
        lines, results = np.moveaxis(given, axis, -1), np.moveaxis(want, axis, -1)
        for place in np.ndindex(lines.shape[:-1]):
            powers = [np.e**score for score in lines[place]]
            results[place] = [power / sum(powers) for power in powers]
        compare(f"softmax of an array {shape} with axis={axis}", my_softmax(given, axis=axis), want)
        assert (given == kept).all(), "my_softmax changes its input; make a new array in place of -=, *= or out="
large = np.array([[1000.0, 1000 + np.log(3)], [-5000.0, -5000.0], [0.0, 30000.0]])
with np.errstate(all="ignore"):
    weights = my_softmax(large)
compare("softmax of scores from -5000 to 30000", weights, [[1 / 4, 3 / 4], [1 / 2, 1 / 2], [0, 1]])
single = my_softmax(np.float32([[1, 2, 3]]))
assert single.dtype == np.float32, f"float32 in, float32 out; got {single.dtype}"

# %%
# Look: the weights of four scores that are multiplied by a factor. At 0 all are equal; then the largest takes all.
factors = np.linspace(0, 8, 50)
weights = my_softmax(factors[:, None] * np.array([1.0, 0.7, 0.2, -0.5]))
lesson.curves(
    {f"score {score}": (factors, weights[:, k]) for k, score in enumerate((1.0, 0.7, 0.2, -0.5))},
    "factor",
    "weight",
    "All four weights start at a quarter; that of the largest score rises toward one, the others fall to zero.",
    ylim=(0, 1),
)

# %% [markdown]
# ## Task 3 · Weighted means
#
# A *map* gives each place of a grid a weight. Each of S maps makes one vector of an image: the weighted mean of the
# vectors at all places. This one line is at the heart of TokenLearner.
#
# With maps $A$ of shape $(B, H, W, S)$, all weights at least 0, and vectors $x$ of shape $(B, H, W, C)$:
#
# $$Z_{bsc} = \frac{\sum_{hw} A_{bhws}\, x_{bhwc}}{\sum_{hw} A_{bhws}} \qquad \text{of shape } (B, S, C)$$
#
# In `np.einsum("ij,jk->ik", u, v)` a letter that is missing after the arrow is summed over; this one is the product of
# two matrices. A smaller example: a grid of 1 × 3 places, two maps, two numbers at each place.

# %%
two_maps = np.array([[1.0, 0.0], [1.0, 0.0], [2.0, 5.0]])  # (places, S)
vectors = np.array([[4.0, 0.0], [8.0, 40.0], [6.0, 20.0]])  # (places, C)
print("map 0:", (1 * vectors[0] + 1 * vectors[1] + 2 * vectors[2]) / (1 + 1 + 2))
print("map 1:", (0 * vectors[0] + 0 * vectors[1] + 5 * vectors[2]) / (0 + 0 + 5))


# %% answer="a0-pool" forbids="token_pool"
def weighted_mean(A, x):
    """Return the weighted means Z (B, S, C) of vectors x (B, H, W, C) with the weights A (B, H, W, S).

    Each map has a weight above 0. float32 in, float32 out; A and x are not changed. 2 to 3 lines.
    """
    ### BEGIN SOLUTION
    Z = np.einsum("bhws,bhwc->bsc", A, x)
    return Z / A.sum((1, 2))[:, :, None]
    ### END SOLUTION


# %% test="a0-pool-1" points=1
maps = np.array([[1.0, 0.0], [1.0, 0.0], [2.0, 5.0]]).reshape(1, 1, 3, 2)
values = np.array([[4.0, 0.0], [8.0, 40.0], [6.0, 20.0]]).reshape(1, 1, 3, 2)
compare("the weighted means of the example", weighted_mean(maps, values), [[[6, 20], [6, 20]]])
maps[..., 1] = [0.0, 3.0, 1.0]
compare("with the weights 0, 3, 1 in map 1", weighted_mean(maps, values), [[[6, 20], [7.5, 35]]])
print("visible checks passed (1 of 2 points of this task); hidden checks run at grading")

# %% hidden="a0-pool-2" points=1
rng_pool = np.random.default_rng(3)
for B, H, W, S, C in ((2, 3, 4, 5, 6), (1, 2, 1, 3, 2), (3, 3, 3, 3, 3), (4, 1, 5, 2, 1)):
    maps, values = rng_pool.random((B, H, W, S)) + 0.1, np.asfortranarray(rng_pool.standard_normal((B, H, W, C)))
    kept, want = (maps.copy(), values.copy()), np.zeros((B, S, C))
    for b, s, c in np.ndindex(B, S, C):
        places = list(np.ndindex(H, W))
        total = sum(maps[b, h, w, s] for h, w in places)
        want[b, s, c] = sum(maps[b, h, w, s] * values[b, h, w, c] for h, w in places) / total
    compare(f"weighted means with B, H, W, S, C = {B, H, W, S, C}", weighted_mean(maps, values), want)
    assert (maps == kept[0]).all() and (values == kept[1]).all(), "weighted_mean changes one of its inputs"
single = weighted_mean(maps.astype(np.float32), values.astype(np.float32))
assert single.dtype == np.float32, f"float32 in, float32 out; got {single.dtype}"

# %%
# Look: the weights are how red each pixel is. The mean color of an image is grayish, the weighted mean that of the
# object.
images = data.sample(np.random.default_rng(4), 5).images / 255
red = (images[..., 0] - images[..., 1:].max(-1)).clip(0) ** 2 + 1e-6
swatches = weighted_mean(np.stack([red, np.ones_like(red)], axis=-1), images)  # (5, 2, 3)
patch = np.ones((8, 32, 1))
lesson.images(
    {"image": images, "map": red},
    "Five images, each with one red object, and their maps: bright on the red object and mostly dark elsewhere.",
)
lesson.images(
    {"weighted mean": swatches[:, 0, None, None] * patch, "plain mean": swatches[:, 1, None, None] * patch},
    "Two rows of five color samples: red for the weighted means, gray for the plain means.",
)

# %% [markdown]
# **Question 2** (1 point). Somebody has weights between 0 and 1 and divides the sum $\sum_{hw} A_{bhws}\, x_{bhwc}$ by
# the number of places, $HW$, in place of the sum of the weights. In 2 to 4 sentences: the red object covers 6 of 100
# places, its map is 1 there and 0 elsewhere, and red is 0.9 at these places. What is the result for red, by the formula
# above and by the other? What does the other result tell that the first does not?

# %% [markdown] written="a0-q2" points=1
# By the weighted mean 5.4 / 6 = 0.9, the color of the object, however small it is. By the other 5.4 / 100 = 0.054: the
# color times the share of the image that the map covers. So the other tells something about the size of what was
# found, but color and size are mixed, and what covers little gives small numbers.
#
# Rubric: half a point for both numbers, half a point for "it depends on the size of the object (the total weight)".

# %% [markdown]
# ## Task 4 · Shapes, a quiz
#
# Most mistakes with arrays are mistakes of shape. Say for each line below which shape its result has, before you try it
# out: read the axes from left to right, or for broadcasting from right to left.
#
# Given are `x` of shape (B, H, W, C), `A` (B, S, H, W), `Z` (B, S, C) and `b` (C,). B, H, W, C and S are all larger
# than 1, and no two of them are equal.
#
# | | line | | line |
# |---|---|---|---|
# | a | `x.reshape(B, -1, C)` | e | `A[..., None] * x[:, None]` |
# | b | `x.mean((1, 2), keepdims=True)` | f | `Z @ Z.transpose(0, 2, 1)` |
# | c | `x - x.mean(-1)` | g | `Z - Z.mean(1)` |
# | d | `x[:, 0] + b` | h | `(A[0] > 0).sum(0)` |

# %%
u, v = np.ones((2, 3)), np.ones((2, 1, 3))
print("(2, 3) + (2, 1, 3) ->", (u + v).shape)
try:
    np.ones((2, 3)) + np.ones(2)
except ValueError as error:
    print("(2, 3) + (2,) -> error:", error)


# %% answer="a0-shapes"
def shapes(B, H, W, C, S):
    """Return a dict from each letter, "a" to "h", to the shape of the line's result, a tuple such as (B, 2 * H, C).

    In place of a shape stands "error" where NumPy raises one.
    """
    ### BEGIN SOLUTION
    return {
        "a": (B, H * W, C),
        "b": (B, 1, 1, C),
        "c": "error",
        "d": (B, W, C),
        "e": (B, S, H, W, C),
        "f": (B, S, S),
        "g": "error",
        "h": (H, W),
    }
    ### END SOLUTION


# %% test="a0-shapes-1" points=1
sizes = (2, 3, 4, 5, 6)
said, (B, H, W, C, S) = shapes(*sizes), sizes
x, A, Z, b = (np.zeros(shape) for shape in ((B, H, W, C), (B, S, H, W), (B, S, C), (C,)))
lines = {"a": lambda: x.reshape(B, -1, C), "b": lambda: x.mean((1, 2), keepdims=True), "c": lambda: x - x.mean(-1)}
lines |= {"d": lambda: x[:, 0] + b, "e": lambda: A[..., None] * x[:, None], "f": lambda: Z @ Z.transpose(0, 2, 1)}
lines |= {"g": lambda: Z - Z.mean(1), "h": lambda: (A[0] > 0).sum(0)}
assert isinstance(said, dict), f"shapes: expected a dict, got {type(said).__name__}"
assert sorted(said) == sorted(lines), f"shapes: expected the letters a to h, got {sorted(said)}"
wrong = []
for letter, line in lines.items():
    try:
        shape = line().shape
    except ValueError:
        shape = "error"
    wrong += [letter] * (said[letter] != shape)
assert not wrong, f"with B, H, W, C, S = {sizes}, {8 - len(wrong)} of 8 are right; look again at {', '.join(wrong)}"
print("visible checks passed (1 of 1 points of this task); hidden checks run at grading")

# %% [markdown]
# ## Plug in
#
# Now your functions run in a model that has learned to name the shape of the red object: a small TokenLearner. Your
# `patchify` cuts each image into a grid of 8 × 8 patches. An MLP, a small network, gives each patch a score for each of
# S = 8 maps. Your `my_softmax` turns the scores of a map into weights over the places, and your `weighted_mean` makes
# one vector, a *token*, with each map. The rest of the model works on these 8 tokens in place of 64 patches.

# %%
model, about = lesson.load_model("learner-8")
test = data.clutter(8, 200)[1]
x = patchify(data.normalize(test.images, about["mean"], about["std"]), 4, 4)
with minitl.no_grad():
    x = model.patch_embed(Tensor(x)) + model.pos_embed  # (B, 64, C)
    scores = model.tokenizer.mlp(x).data  # (B, 64, S)
    A = my_softmax(scores, axis=1).reshape(-1, 8, 8, 8)  # (B, H, W, S)
    tokens = Tensor(weighted_mean(A, x.data.reshape(*A.shape[:3], -1)))  # (B, S, C)
    for block in model.blocks:
        tokens = block(tokens)
    answers = model.head(model.norm(tokens).mean(axis=1)).data.argmax(1)
    expected = model(data.normalize(test.images, about["mean"], about["std"])).data.argmax(1)
print(f"named correctly: {(answers == test.labels).mean():.1%} with your functions,", end=" ")
print(f"{(expected == test.labels).mean():.1%} with minitl's; by chance 12.5%")

# %%
sharp = np.argsort(-A[:6].max((0, 1, 2)))[:3]  # three maps with large weights
lesson.images(
    {"image": test.images[:6]} | {f"map {s}": A[:6, :, :, s] for s in sharp},
    "Six images, and three maps of each, which are bright on patches of the red object and dark elsewhere.",
    titles=[test.classes[k] for k in answers[:6]],
)

# %% [markdown]
# ## Before you hand in
#
# 1. *Kernel → Restart and run all*: every visible check prints its line.
# 2. Both written answers are there.
# 3. The file is still called `A0_arrays.ipynb`. Hand in this file alone.
