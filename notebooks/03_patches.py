# %% [markdown]
# # 03 · From pixels to tokens
#
# A transformer works on *tokens*: vectors, all of one length. An image is a grid of colored dots. Three steps lead from
# one to the other: cut the image into patches, multiply each patch by a matrix, and add a vector that says where the
# patch was. Each step can go wrong without an error message, so each gets a check.
#
# | | |
# |---|---|
# | **Goal** | turn images into tokens, derive the gradient of a linear layer, know what positions are for |
# | **Time** | 40 minutes to read, 10 seconds to run on two cores of an AMD EPYC |
# | **You need** | [02](02_engine.ipynb): `@op`, `check_gradients`, `unbroadcast` |

# %%
import lesson
import numpy as np
from checks import check

from minitl import Tensor, check_gradients, data, nn, no_grad, ops
from minitl.autograd import op, unbroadcast
from minitl.nn import vit

rng = np.random.default_rng(0)

# %% [markdown]
# ## An image is an array
#
# The images are those of [00](00_eight_tokens.ipynb): one red object among green and blue ones. An array of $B$ of them
# has four axes: image, row, column, color.

# %%
few = data.sample(rng, 4)
image = few.images[1]
print("all", few.images.shape, "  one", image.shape, image.dtype, "  one pixel", image[6, 18])
print("strides of one image:", image.strides, "bytes")

# %%
lesson.images(
    {"": [image, *image.transpose(2, 0, 1)]},
    titles=["image", "red", "green", "blue"],
    alt="A noisy image with colored shapes, and its red, green and blue values as three maps.",
    low=0,
    high=255,
)

# %% [markdown]
# The red object is bright in the first map and dark in the other two. The strides tell how the numbers lie in memory:
# the next color is 1 byte away, the next column 3 bytes, the next row 96 bytes. Remember this order; the first mistake
# below comes from it.
#
# ## Cutting
#
# We want a grid of $H \times W$ patches of 4 × 4 pixels, each flattened to a vector of 4 · 4 · 3 = 48 numbers, row
# after row of the grid: $N = HW$ vectors. Two loops over the grid would do. Without loops it takes three steps. Let a
# pixel be in row $i$ and column $j$ of its patch, and the patch in row $h$ and column $w$ of the grid. Then the pixel's
# row in the image is $4h + i$ and its column is $4w + j$.
#
# | step | axes | shape |
# |---|---|---|
# | start | image, row, column, color | $(B, 32, 32, 3)$ |
# | `reshape` splits row and column | image, $h$, $i$, $w$, $j$, color | $(B, 8, 4, 8, 4, 3)$ |
# | `transpose` brings $h, w$ together, and $i, j$ | image, $h$, $w$, $i$, $j$, color | $(B, 8, 8, 4, 4, 3)$ |
# | `reshape` joins them | image, patch, number | $(B, 64, 48)$ |
#
# `reshape` never changes the order of the numbers. It only cuts the same sequence in another way. Here the order has to
# change, and only `transpose` can do that.


# %%
def patchify(x, size):
    """(B, height, width, colors) -> (B, N, size · size · colors)"""
    B, height, width, colors = x.shape
    x = x.reshape(B, height // size, size, width // size, size, colors)  # image, h, i, w, j, color
    x = x.transpose(0, 1, 3, 2, 4, 5)  # image, h, w, i, j, color
    return x.reshape(B, -1, size * size * colors)


B, H, W, size = 4, 8, 8, 4
N = H * W
patches = patchify(few.images, size)
for h, w in np.ndindex(H, W):
    cut = few.images[:, h * size : (h + 1) * size, w * size : (w + 1) * size]  # (B, 4, 4, 3)
    assert np.array_equal(patches[:, h * W + w], cut.reshape(B, -1))
assert np.array_equal(patches, vit.patchify(few.images, size))  # minitl's version

# %% [markdown]
# ## The right shape is not enough
#
# A plain `reshape(B, 64, 48)` gives the same shape and no error. To see what it does, take an image of 4 × 8 pixels
# with one color and patches of 2 × 2, and write into each pixel the number of the patch that gets it.


# %%
def only_reshape(x, size):
    return x.reshape(len(x), -1, size * size * x.shape[3])


def owners(cut):
    """Return the number of the patch that each pixel of a 4 × 8 image ends up in."""
    pixels = cut(np.arange(32).reshape(1, 4, 8, 1), 2)[0]  # (8, 4): the pixels of each patch
    patch_of = np.empty(32, int)
    patch_of[pixels] = np.arange(8)[:, None]
    return patch_of.reshape(4, 8)


assert only_reshape(few.images, size).shape == patches.shape
assert not np.array_equal(only_reshape(few.images, size), patches)

# %%
lesson.matrices(
    {"with transpose": owners(patchify), "reshape alone": owners(only_reshape)},
    xlabel="column",
    ylabel="row",
    alt="With transpose the patches are squares of 2 by 2 pixels; with reshape alone they are strips of 1 by 4 pixels.",
    text="{:.0f}",
)

# %% [markdown]
# Reshape alone takes what lies together in memory: four pixels of one row. On our images its "patches" are strips of 16
# pixels of one row. A model can be trained on strips, and no error tells that it could be better.
#
# ## And back
#
# The inverse runs the steps backward: split, exchange the same two axes, join. We use it to draw patches with gaps.


# %%
def unpatchify(patches, H, W, size):
    """(B, H W, size · size · colors) -> (B, H size, W size, colors)"""
    x = patches.reshape(len(patches), H, W, size, size, -1)  # image, h, w, i, j, color
    x = x.transpose(0, 1, 3, 2, 4, 5)  # image, h, i, w, j, color
    return x.reshape(len(patches), H * size, W * size, -1)


def apart(patches, H=8, W=8, size=4):
    """Return a picture of patches (H W, size · size · 3) from 0 to 1, with white gaps."""
    gaps = ((0, 0), (0, 1), (0, 1), (0, 0))
    squares = np.pad(patches.reshape(H * W, size, size, 3), gaps, constant_values=1)
    return unpatchify(squares.reshape(1, H * W, -1), H, W, size + 1)[0]


wide = rng.random((2, 24, 40, 3))  # not square
assert np.array_equal(unpatchify(patchify(wide, 4), 6, 10, 4), wide)
assert np.array_equal(patchify(wide, 4), vit.patchify(wide, 4))

# %%
lesson.images(
    {"": [image, apart(patches[1] / 255), apart(only_reshape(few.images, size)[1] / 255)]},
    titles=["image", "with transpose", "reshape alone"],
    side=2,
    alt="The image; its 64 patches with gaps, still readable; and 64 wrong patches in which no shape can be seen.",
)

# %% [markdown]
# The check used an image of 24 × 40 pixels on purpose. On a square grid, $H$ and $W$ exchanged would go unnoticed.
# Sides that differ catch it.
#
# ## One matrix for all patches
#
# The second step multiplies each patch by a learned matrix and adds a learned vector. This is a **linear layer**. With
# $N$ vectors of `in` numbers as the rows of $x$:
#
# $$\underset{(N,\ \text{out})}{y} = \underset{(N,\ \text{in})}{x}\;\underset{(\text{in},\ \text{out})}{W} +
# \underset{(\text{out})}{b} \qquad\qquad y_{no} = \sum_i x_{ni} W_{io} + b_o$$
#
# All patches share $W$ and $b$: what one place learns, every place knows.
#
# ### Its gradient, entry by entry
#
# A loss $L$ depends on $y$, and $dy_{no} = \partial L / \partial y_{no}$ is given. By the chain rule, an entry of $W$
# gets a contribution from every entry of $y$:
#
# $$dW_{io} = \frac{\partial L}{\partial W_{io}} = \sum_{n,\,o'} dy_{no'} \frac{\partial y_{no'}}{\partial W_{io}}$$
#
# Now look at the sum for $y_{no'}$. $W_{io}$ occurs in it only if $o' = o$, once, with the factor $x_{ni}$. One sum
# remains, and it is a matrix product:
#
# $$dW_{io} = \sum_n x_{ni}\, dy_{no} \qquad\Longrightarrow\qquad
# \underset{(\text{in},\ \text{out})}{dW} = \underset{(\text{in},\ N)}{x^\top}\;\underset{(N,\ \text{out})}{dy}$$
#
# In the same way, $x_{ni}$ occurs in all the $y_{no}$ of its row, with the factor $W_{io}$. And $b_o$ occurs in every
# row, with the factor 1:
#
# $$dx_{ni} = \sum_o dy_{no}\, W_{io} \;\Longrightarrow\;
# \underset{(N,\ \text{in})}{dx} = \underset{(N,\ \text{out})}{dy}\;\underset{(\text{out},\ \text{in})}{W^\top}
# \qquad\qquad db_o = \sum_n dy_{no}$$


# %%
@op
def my_linear(x, W, b):
    """y = x W + b:  x (N, in), W (in, out), b (out,)"""

    def backward(dy):
        return dy @ W.T, x.T @ dy, dy.sum(0)

    return x @ W + b, backward


x, weight, bias = rng.standard_normal((5, 4)), rng.standard_normal((4, 3)), rng.standard_normal(3)
check_gradients(my_linear, x, weight, bias)
assert np.allclose(my_linear(x, weight, bias).data, ops.linear(Tensor(x), weight, bias).data)

# %%
x_box, W_box, b_box = "x  (N, in)\ndx = dy Wᵀ", "W  (in, out)\ndW = xᵀ dy", "b  (out,)\ndb = Σ dy"
product, sum_box = "x W  (N, out)\ndy", "y = x W + b\ndy"
alt = "A graph: x and W lead to their product, which with b leads to y; each box names its gradient."
lesson.graph([(x_box, product), (W_box, product), (product, sum_box), (b_box, sum_box)], alt)

# %% [markdown]
# The sum in $db$ is an old acquaintance. NumPy broadcast $b$ over the $N$ rows, and `unbroadcast` of lesson 02 undoes
# it. minitl's engine calls it, so `backward` could have returned `dy` itself.
#
# Shapes help you remember: of all products of two of $x$, $W$ and $dy$, only one has the shape of $dW$. But this works
# only while the sizes differ. With a square $W$, a forgotten transpose has the right shape:


# %%
@op
def careless_linear(x, W, b):
    return x @ W + b, lambda dy: (dy @ W, x.T @ dy, dy)  # where is W.T?


dy = rng.standard_normal((5, 3))
assert np.allclose(unbroadcast(dy, bias.shape), dy.sum(0))
try:
    check_gradients(careless_linear, x, rng.standard_normal((4, 4)), rng.standard_normal(4))
except AssertionError as error:
    print(error)

# %% [markdown]
# In training, a linear layer is three products: $xW$, $dy\,W^\top$ and $x^\top dy$. Each needs
# $N \cdot \text{in} \cdot \text{out}$ multiply-adds, so backward costs twice as much as forward. For patches minitl
# leaves out $dy\,W^\top$, since nobody asks for the gradient of an image.
#
# ## The embedding of a trained model
#
# `all-64` of lesson 00 is a model with all 64 tokens, trained on CLUTTER, the set of these images. Its linear layer,
# the *embedding*, takes patches of 48 numbers to tokens of width $C$, which happens to be 48 as well. We repeat it with
# our own functions. Entry $c$ of a token is the patch times column $c$ of $W$. A column has 48 numbers, like a patch,
# so we can draw it as one: what this entry reacts to. Gray is 0 in all three colors.

# %%
model, meta = lesson.load_model("all-64")
images = data.normalize(few.images, meta["mean"], meta["std"])  # mean 0 and deviation 1 for each color
weight, bias = model.patch_embed.weight.data, model.patch_embed.bias.data

tokens = patchify(images, size) @ weight + bias  # (B, N, C)
assert np.allclose(tokens, model.patch_embed(Tensor(vit.patchify(images, size))).data, atol=1e-4)
print("patches", patchify(images, size).shape, "  weight", weight.shape, "  tokens", tokens.shape)

# %%
start = nn.ViT(model.config, model.spec, np.random.default_rng(0))  # the same model, untrained
columns = {"before training": start.patch_embed.weight.data.T, "after training": weight.T}  # (C, 48) each
drawn = [apart(0.5 + 1.2 * w.clip(-0.4, 0.4), 6, 8) for w in columns.values()]
alt = "48 small squares of colored noise before training, and 48 that look much the same after training."
lesson.images({"": drawn}, alt, titles=list(columns), side=3)
correlation = np.corrcoef(*(w.ravel() for w in columns.values()))[0, 1]
print(f"correlation of the weights before and after: {correlation:.2f}")
assert correlation > 0.6

# %% [markdown]
# The columns were noise before training, and mostly they still are. (The left model starts from the seed with which the
# right one was trained.) A random square matrix is practically always invertible and so passes on all that is in a
# patch. Training had little reason to change it. In a large model, trained on many photographs, the main components of
# these columns look like smooth waves (Dosovitskiy et al., 2021, figure 7).
#
# ## No token knows its place
#
# All patches go through the same $W$. A token tells what its patch shows and not where it was. In the end the model
# takes the mean of its tokens, and a mean does not depend on their order. Let $x_n$ now be token $n$, a vector of $C$
# numbers, and $\pi$ any permutation of the places:
#
# $$\frac{1}{N} \sum_n x_{\pi(n)} = \frac{1}{N} \sum_n x_n$$
#
# The layers in between treat all tokens alike, too ([04](04_attention.ipynb) shows it for attention). The consequence:
# the model gives the same answer for an image and for its patches in any other order. `all-64` has a remedy, the array
# `pos_embed` of the next section, so the test sets it to 0 in a second copy of the model, `blind`.

# %%
order = rng.permutation(N)
shuffled = unpatchify(patchify(images, size)[:, order], H, W, size)
blind, _ = lesson.load_model("all-64")
blind.pos_embed.data = np.zeros_like(blind.pos_embed.data)
with no_grad():
    assert np.allclose(tokens.mean(1), tokens[:, order].mean(1), atol=1e-5)
    assert np.allclose(blind(images).data, blind(shuffled).data, atol=1e-3)  # one number per shape
    assert not np.allclose(model(images).data, model(shuffled).data, atol=1e-1)

# %%
pictures = unpatchify(patchify(few.images, size)[:, order], H, W, size)
lesson.images(
    {"image": few.images, "shuffled": pictures},
    alt="Four images with colored shapes, and below each the same patches in a random order.",
)

# %% [markdown]
# Without positions, the model returns the same numbers for an image and for its patches in another order. With them
# the numbers differ, as the last line of the check says.
#
# ## A vector for each place
#
# The remedy is one line: add to token $n$ a learned vector $p_n$, the **position embedding**. It has the shape
# $(1, N, C)$, is broadcast over the $B$ images, and its gradient is the sum over them, by `unbroadcast`. These are the
# three steps with which a Vision Transformer begins:

# %%
tokens = patchify(images, size) @ weight + bias + model.pos_embed.data  # (B, N, C)
with no_grad():
    embedded = model.patch_embed(Tensor(vit.patchify(images, size))) + model.pos_embed
assert np.allclose(tokens, embedded.data, atol=1e-4)

# %% [markdown]
# There is a trap. Adding alone is not enough, since the mean of sums is the sum of the means:
#
# $$\frac{1}{N} \sum_n \left(x_{\pi(n)} + p_n\right) = \frac{1}{N} \sum_n x_n + \frac{1}{N} \sum_n p_n$$
#
# Still no trace of $\pi$. Something that is *not* linear has to see $x_n$ and $p_n$ together before the mean. We test
# this with a question that CLUTTER does not ask: **is the red object in the left half?** The tokens go through a fixed
# random linear layer, then through a function $f$, then we take their mean over the places. From these means, a linear
# layer found by least squares has to tell left from right, on new images. As $f$ we take ReLU, $\max(u, 0)$, or
# nothing. As positions we take none, those that `all-64` has learned, and *waves*: sines and cosines along rows and
# columns, with which a model of minitl can start (`positions="waves"`). Two controls are as large as the waves: the
# learned positions times a number, and random vectors.

# %%
B = 200 if lesson.FAST else 3000
fit, test = data.sample(rng, B), data.sample(rng, B)
mixing = rng.standard_normal((48, 300)).astype("float32") / 7  # 7 is about √48
shift = rng.standard_normal(300).astype("float32")


def relu(u):
    return u.clip(0)


def means(split, p, f):
    """Return the mean over the places of f(linear(tokens)): (B, 300), with a column of ones."""
    x = patchify(data.normalize(split.images, meta["mean"], meta["std"]), size) @ weight + bias
    y = [f((part + p) @ mixing + shift).mean(1) for part in np.array_split(x, 10)]
    return np.insert(np.concatenate(y), 0, 1, axis=1)


def left_or_right(p, f):
    """Return the share of right answers on new images."""
    side = [np.where(split.boxes[:, [1, 3]].mean(1) < 16, 1, -1) for split in (fit, test)]  # of the middle of the box
    last = np.linalg.lstsq(means(fit, p, f), side[0], rcond=1e-5)[0]
    return np.mean(np.sign(means(test, p, f) @ last) == side[1])


# %%
waves, learned = vit.waves(np.random.default_rng(0), (H, W), 48, std=1).data, model.pos_embed.data
print(f"deviation of the entries: waves {waves.std():.2f}, learned {learned.std():.2f}")
share = {
    "no positions, ReLU": left_or_right(0, relu),
    "waves, no ReLU": left_or_right(waves, lambda u: u),
    "waves, ReLU": left_or_right(waves, relu),
    "learned, ReLU": left_or_right(learned, relu),
    "learned, enlarged, ReLU": left_or_right(learned / learned.std() * waves.std(), relu),
    "random, as large, ReLU": left_or_right(rng.normal(0, waves.std(), waves.shape).astype("float32"), relu),
}
none, linear, best, small, enlarged, noise = share.values()
assert lesson.FAST or max(none, linear, small) < 0.57 < 0.65 < min(enlarged, noise) < max(enlarged, noise) < 0.79 < best

# %%
alt = "Bars: near 50 percent but for the waves with ReLU, above 80, and the enlarged and random ones, above 70."
lesson.bars(share, "right answers to: left half or not?", alt, chance=0.5, xlim=(0, 1.1))

# %% [markdown]
# As derived: without positions, or without ReLU, it is a coin toss. With both it works, if the positions are large
# enough. In a transformer, attention (lesson 04) and small networks called MLPs (05) take the place of ReLU.
#
# ## What did training write into the positions?
#
# The fourth bar is a surprise: the positions that the model has *learned* are hardly of use for this question. For one
# thing, they are too small. Enlarged, they serve about as well as random vectors, and not as well as waves. To see why,
# we take some places and draw how similar their vectors are to those of all 64 places, by the cosine.


# %%
def similarity(p):
    """Return the cosine of every position to every other: (1, N, C) -> (N, N)."""
    unit = p[0] / np.linalg.norm(p[0], axis=1, keepdims=True)
    return unit @ unit.T


grid, _ = lesson.load_model("grid-16")
vectors = {"waves": waves} | {
    name: m.pos_embed.data for name, m in (("random start", start), ("all-64", model), ("grid-16", grid))
}
cosines = {name: similarity(p) for name, p in vectors.items()}
row, column = np.divmod(np.arange(N), W)
steps = abs(row[:, None] - row) + abs(column[:, None] - column)  # between every two places
for name, cos in cosines.items():
    print(f"{name:13} cosine to a neighbor {cos[steps == 1].mean():5.2f}   to all others {cos[steps > 1].mean():5.2f}")

# %%
places = [(0, 0), (0, 7), (3, 3), (5, 2), (7, 7)]
maps = {name: [cos[h * W + w].reshape(H, W) for h, w in places] for name, cos in cosines.items()}
alt = "Maps of similarity to five places: smooth for waves; one bright cell and noise otherwise; blocks of 2 by 2 last."
lesson.images(maps, alt, titles=[f"to {place}" for place in places], low=0, high=1)

# %% [markdown]
# `all-64` has learned little: neighbors are a bit more alike than the rest, and so are places at the border. Is that
# enough, or does the model not need positions? Take them away from the trained model and count.

# %%
x = data.normalize(test.images[:1000], meta["mean"], meta["std"])
with no_grad():
    for name, m in (("as trained", model), ("without positions", blind)):
        answers = np.concatenate([m(part).data.argmax(1) for part in np.array_split(x, 10)])
        accuracy = (answers == test.labels[:1000]).mean()
        print(f"{name:17} {accuracy:.1%}")
        assert lesson.FAST or accuracy > 0.9

grid(images).sum().backward()
gradient = grid.pos_embed.grad.reshape(H // 2, 2, W // 2, 2, -1)  # cells of 2 × 2 places
assert np.allclose(gradient, gradient[:, :1, :, :1], atol=1e-5 * abs(gradient).max())

# %% [markdown]
# It does not need them. CLUTTER asks *what* the red thing is, and its patches alone say that: a corner, a hole, a
# slanted edge. For that the patches in any order are enough. Where order carries the meaning, this is different: in
# lesson [10](10_video.ipynb) clips are told apart by motions, and the positions decide. In models trained on large sets
# of photographs, the similarities come to show the rows and columns of the grid (the same figure 7).
#
# The last row of maps shows what a gradient can and cannot do. `grid-16` averages cells of 2 × 2 tokens before its
# first block, so the four positions of a cell only ever occur as their mean. They get the same gradient in every step,
# as the last check says, and move together, away from their random start.

# %% [markdown]
# ## Exercises
#
# **1. Tubelets.** A clip is an array $(B, T, \text{height}, \text{width}, \text{colors})$. Its tokens are made from
# *tubelets*: the patches at one place in `tubelet` frames that follow each other, flattened as frame, row, column,
# color. Order them by time, then by row, then by column. How many axes are there after the first `reshape`?


# %%
def my_tubelets(clips, tubelet, size):
    """(B, T, height, width, colors) -> (B, N, tubelet · size · size · colors)"""
    ...


check(my_tubelets)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# def my_tubelets(clips, tubelet, size):
#     B, T, height, width, colors = clips.shape
#     x = clips.reshape(B, T // tubelet, tubelet, height // size, size, width // size, size, colors)
#     x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
#     return x.reshape(B, -1, tubelet * size * size * colors)
#
#
# check(my_tubelets)
# ```
#
# Eight axes. The three that count tubelets (time, row, column) come first, then the three within one.
#
# </details>
#
# **2. One matrix, used twice.** To compress patches, multiply them by $W$ and return with the same matrix:
# $y = x\,W W^\top$, with $x$ $(N, \text{in})$ and $W$ $(\text{in}, \text{out})$. Write it as an op. Derive $dx$ and
# $dW$ from the three products above; it helps to give $u = xW$ a name.


# %%
@op
def my_tied(x, W):
    """y = x W Wᵀ"""
    ...


check(my_tied)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# @op
# def my_tied(x, W):
#     u = x @ W
#
#     def backward(dy):
#         du = dy @ W
#         return du @ W.T, x.T @ du + dy.T @ u
#
#     return u @ W.T, backward
#
#
# check(my_tied)
# ```
#
# $y = u W^\top$ is a linear layer with the matrix $W^\top$. So $du = dy\,W$, and the gradient of $W^\top$ is
# $u^\top dy$; that of $W$ is its transpose, $dy^\top u$. The other use, $u = xW$, gives $x^\top du$. Gradients add.
#
# </details>
#
# **3. Smaller patches.** You halve the side of the patches and double $C$; the images stay the same. By what factor do
# these change: the number of tokens, the number of entries of $W$, the multiply-adds of the embedding?

# %%
tokens_factor = None
entries_factor = None
work_factor = None
check(tokens_factor=tokens_factor)
check(entries_factor=entries_factor)
check(work_factor=work_factor)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# check(tokens_factor=4)
# check(entries_factor=1 / 2)
# check(work_factor=2)
# ```
#
# There are 4 times as many tokens. $W$ has a quarter of the rows and twice the columns. The work
# $N \cdot \text{in} \cdot C$ doubles only because $C$ does: with the same $C$, smaller patches would look free. The
# bill comes with attention, whose cost grows with $N^2$: by 16.
#
# </details>

# %% [markdown]
# ## What you can do now
#
# - Cut images and clips into patches, name every axis on the way, and put them together again.
# - Derive the three products of a linear layer, and say why the gradient of a bias is a sum.
# - Say what a model without positions cannot know, and why adding them needs something nonlinear afterwards.
#
# **Next:** [Attention by hand](04_attention.ipynb), in which the tokens begin to exchange what they know.
