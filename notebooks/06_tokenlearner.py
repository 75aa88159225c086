# %% [markdown]
# # 06 · TokenLearner, first version
#
# TokenLearner turns a grid of many tokens into a few. Each of the few is a weighted mean over the whole grid, and the
# weights are computed from the grid itself. In this lesson you write it in NumPy, line by line, with its gradients;
# then you train it and watch eight maps find an object that nobody showed them.
#
# | | |
# |---|---|
# | **Goal** | build TokenLearner 1.0 (the version of the paper) and know why each line is there |
# | **Time** | 50 minutes to read, 60 seconds to run on two cores of an AMD EPYC |
# | **You need** | lessons [02](02_engine.ipynb), [03](03_patches.ipynb), [04](04_attention.ipynb), [05](05_vit.ipynb) |

# %%
import itertools

import numpy as np
from checks import check
from lesson import FAST, bars, curves, images, matrices

from minitl import Tensor, check_gradients, data, flops, metrics, nn, no_grad, ops, optim
from minitl.autograd import op

rng = np.random.default_rng(0)

# %% [markdown]
# ## One token, with a map made by hand
#
# Before anything is learned, let us make one token ourselves. We take four images of CLUTTER (one red object among
# cool ones, see [lesson 00](00_eight_tokens.ipynb)) and cut them into a grid of patches. A patch of 4 × 4 pixels and
# 3 colors is a vector of 48 numbers. For now the patches themselves are our tokens, so that we can look at them.
#
# | letter | meaning | here |
# |---|---|---|
# | $B$ | images | 4 |
# | $H, W$ | rows and columns of the grid | 8, 8 |
# | $N = HW$ | tokens in | 64 |
# | $C$ | numbers in a token, its width | 48 |
# | $S$ | learned tokens out | 1, soon 8 |
# | $x$ | the grid of tokens, $(B, H, W, C)$ | |
# | $A$ | the maps, one weight for each place, $(B, S, H, W)$ | |
# | $Z$ | the learned tokens, $(B, S, C)$ | |

# %%
few = data.sample(rng, 4)
B, H, W, C, S = 4, 8, 8, 48, 8
cells = few.images.reshape(B, H, 4, W, 4, 3) / 255  # row, pixel in row, column, pixel in column, color
x = cells.transpose(0, 1, 3, 2, 4, 5).reshape(B, H, W, C)
print("images", few.images.shape, " grid x", x.shape)

# %% [markdown]
# The map: how red is each patch? From red we subtract the larger of green and blue, and take the mean over the pixels
# of the patch. A **sigmoid**, $\sigma(l) = 1 / (1 + e^{-l})$, turns the result into a weight between 0 and 1. Its input
# $l$ is called a *logit*; we shift and scale, so that a redness of 0.25 gives $l = 0$ and the weight 1/2. The token is
# the mean over all places, each multiplied by its weight:
#
# $$z = \frac{1}{N} \sum_{h,w} a_{hw}\, x_{hw}$$


# %%
def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


pixels = x.reshape(B, H, W, 16, 3)
redness = (pixels[..., 0] - pixels[..., 1:].max(-1)).mean(-1)  # (B, H, W)
a = sigmoid(30 * (redness - 0.25))

z = np.zeros((B, C))
for b, h, w in np.ndindex(B, H, W):
    z[b] += a[b, h, w] * x[b, h, w] / (H * W)

# %%
share = a.mean((1, 2))[:, None]  # most weights are near 0, so z is dark; for the picture we divide by their mean
images(
    {"image": few.images, "map $a$": a, "token $z$": (z / share).reshape(B, 4, 4, 3)},
    alt="Four images, their maps, bright where the image is red, and their tokens, patches of mostly red pixels.",
)

# %% [markdown]
# The token, drawn as the 4 × 4 pixels that it is, shows *what* the map has chosen and has forgotten *where*. Our rule
# is crude: on the third image it prefers a reddish background to the thin red ring. All that TokenLearner adds is
# this: the rule is not written by us but learned, and there are $S$ rules at once.
#
# ## S tokens are one einsum
#
# With $S$ maps, the formula gets one more index, $s$, and stays the same:
#
# $$Z_{bsc} = \frac{1}{N} \sum_{h,w} A_{bshw}\, x_{bhwc}$$
#
# Read `einsum` from it: the letters of $A$, the letters of $x$, an arrow, the letters of $Z$. The indices that are
# missing after the arrow are summed. If the grid is flattened to $N$ places, it is a product of matrices,
# $Z = A x / N$.

# %%
A = rng.random((B, S, H, W))  # any weights will do for a test
Z = np.einsum("bshw,bhwc->bsc", A, x) / (H * W)

loop = np.zeros((B, S, C))
for b, s, h, w in np.ndindex(B, S, H, W):
    loop[b, s] += A[b, s, h, w] * x[b, h, w] / (H * W)
pooled = ops.token_pool(A.reshape(B, S, H * W), x.reshape(B, H * W, C), mean=True)  # minitl's, a matrix product
assert np.allclose(Z, loop) and np.allclose(Z, pooled.data)

# %% [markdown]
# ## The gradient of the pooling
#
# In training, a loss $L$ is computed from $Z$, and its gradient $dZ$, of the shape of $Z$, comes back. We pass it on.
# With $n$ for a place of the flattened grid, $Z_{bsc} = \frac{1}{N} \sum_n A_{bsn}\, x_{bnc}$.
#
# - One weight $A_{bsn}$ occurs in $Z_{bsc}$ for each $c$, with the factor $x_{bnc} / N$. Add up over $c$:
#   $dA_{bsn} = \frac{1}{N} \sum_c dZ_{bsc}\, x_{bnc}$. A weight should grow where the token at that place points in
#   the direction in which $Z$ should go.
# - One entry $x_{bnc}$ occurs in $Z_{bsc}$ for each $s$, with the factor $A_{bsn} / N$. Add up over $s$:
#   $dx_{bnc} = \frac{1}{N} \sum_s A_{bsn}\, dZ_{bsc}$. A place gets the gradient of each learned token, as strongly
#   as it contributed to it.
#
# The weights come from logits. The slope of the sigmoid can be written with its own value:
#
# $$\frac{d\sigma}{dl} = \frac{e^{-l}}{(1 + e^{-l})^2} = \frac{1}{1 + e^{-l}} \cdot \frac{e^{-l}}{1 + e^{-l}}
# = \sigma\,(1 - \sigma)$$
#
# Each logit makes one weight, so nothing is summed. As products of matrices for each image,
# $(S, C)(C, N)$ and $(N, S)(S, C)$, with $\odot$ for entry by entry:
#
# $$dA = \tfrac{1}{N}\, dZ\, x^\top \qquad dx = \tfrac{1}{N}\, A^\top dZ \qquad dl = dA \odot A \odot (1 - A)$$


# %%
@op
def sigmoid_pool(logits, x):
    """Z = σ(logits) x / N:  logits (B, S, N), x (B, N, C), Z (B, S, C)"""
    A, N = sigmoid(logits), x.shape[1]

    def backward(dZ):
        dA = np.einsum("bsc,bnc->bsn", dZ, x) / N
        dx = np.einsum("bsn,bsc->bnc", A, dZ) / N
        return dA * A * (1 - A), dx

    return np.einsum("bsn,bnc->bsc", A, x) / N, backward


logits, flat = rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 5, 4))
check_gradients(sigmoid_pool, logits, flat)

# %%
line = np.linspace(-8, 8, 200)
A = sigmoid(line)
curves(
    {"weight $\\sigma(l)$": (line, A), "slope $\\sigma(1 - \\sigma)$": (line, A * (1 - A))},
    xlabel="logit $l$",
    ylabel="weight, slope",
    alt="The sigmoid rises from 0 to 1; its slope is largest, a quarter, at 0 and near zero beyond 5 on either side.",
)

# %% [markdown]
# `check_gradients` is silent, so the formulas are right. To be sure that it *can* object, we forget a factor.


# %%
@op
def forgetful_pool(logits, x):
    A, N = sigmoid(logits), x.shape[1]

    def backward(dZ):
        dA = np.einsum("bsc,bnc->bsn", dZ, x) / N
        return dA * A, np.einsum("bsn,bsc->bnc", A, dZ) / N  # where is 1 - A?

    return np.einsum("bsn,bnc->bsc", A, x) / N, backward


try:
    check_gradients(forgetful_pool, logits, flat)
except AssertionError as error:
    print(error)

# %% [markdown]
# The forgotten factor is the interesting one, as the slope above shows. A weight that has reached 0 or 1 passes on
# almost no gradient: it is *saturated* and hardly learns any more. At logit 0 the slope is as large as it can be.
#
# ## Where the maps come from
#
# The paper computes the maps with four convolutions of 3 × 3 (explained below), GELU after each of the first three, and
# a sigmoid at the end. The code that its authors published also normalizes first. For $i$ = 1, 2, 3:
#
# $$y_0 = \text{norm}(x) \qquad y_i = \text{gelu}(\text{conv}_i(y_{i-1})) \qquad A = \sigma(\text{conv}_4(y_3))$$
#
# LayerNorm gives bright and dark images similar maps. Only this branch is normalized; what is averaged is $x$ itself.
# Without GELU, four convolutions in a row could do no more than a single larger one.
#
# A **convolution** lets a place see its neighbors: "red, with an edge to my left". First along a line, with one number
# at each place. Put a zero at either end, cut out three parts, each shifted by one, multiply each by its own number,
# and add up. Backward, an entry gets a gradient from each part that it lies in. As a matrix, with a row for each entry
# of $y$ and a column for each entry of $P$: forward combines along rows, backward along columns.

# %%
row, k, dy = np.array([1.0, 2, 3]), np.array([0.5, 1, -1]), np.array([100.0, 10, 1])
P, dP = np.pad(row, 1), np.zeros(5)
parts = [slice(i, i + 3) for i in range(3)]
print("P   ", P)
for i, part in enumerate(parts):
    print(f"P_{i} ", "   " * i, P[part])
    dP[part] += dy * k[i]
y = sum(P[part] * k[i] for i, part in enumerate(parts))
assert y[1] == 1 * k[0] + 2 * k[1] + 3 * k[2]  # the middle place sees itself and its neighbors
M = np.stack([np.pad(k, (n, 2 - n)) for n in range(3)])
assert np.allclose(y, M @ P) and np.allclose(dP, M.T @ dy)

# %%
matrices(
    {"factor of each entry of $P$ in $y$": M},
    xlabel="entry of $P$",
    ylabel="entry of $y$",
    text="{:.1f}",
    alt="A matrix of 3 by 5: each row holds the three numbers of the kernel, one place further right each time.",
)

# %% [markdown]
# On a grid there are nine parts. A place holds $C$ numbers, its *channels*, so each part is multiplied by a matrix: a
# sum of nine linear layers. Let $P$ be $x$ with a border of zeros, $(B, H + 2, W + 2, C)$, and $P_{ij}$, for
# $i, j$ = 0, 1, 2, the part of $P$ of size $H × W$ that begins at row $i$ and column $j$. The kernel $K$,
# $(3, 3, C, S)$, holds nine matrices $K_{ij}$, $(C, S)$; there is no bias. ($K$ no longer counts classes.) Then
#
# $$y = \sum_{i,j} P_{ij}\, K_{ij}$$
#
# with all leading axes flattened: $(BHW, C)$ times $(C, S)$ is $(BHW, S)$. Backward, each of the nine is a linear
# layer as in lesson 03:
#
# $$dK_{ij} = P_{ij}^\top\, dy \qquad\qquad dP_{ij} = dy\, K_{ij}^\top$$
#
# The parts overlap. An entry of $P$ lies in up to nine of them, and gradients add: each $dP_{ij}$ is *added* to $dP$
# at the place that $P_{ij}$ was taken from. The border holds constants, so it is cut off, and the rest is $dx$.


# %%
@op
def conv3x3(x, K):
    """y = Σ P_ij K_ij:  x (B, H, W, C), K (3, 3, C, S), y (B, H, W, S)"""
    _, H, W, _ = x.shape
    P = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = {(i, j): (slice(None), slice(i, i + H), slice(j, j + W)) for i in range(3) for j in range(3)}

    def backward(dy):
        dP, dK = np.zeros_like(P), np.zeros_like(K)
        for ij, part in parts.items():
            dK[ij] = np.einsum("bhwc,bhws->cs", P[part], dy)
            dP[part] += dy @ K[ij].T
        return dP[:, 1:-1, 1:-1], dK

    return sum(P[part] @ K[ij] for ij, part in parts.items()), backward


K = rng.standard_normal((3, 3, C, S))
check_gradients(conv3x3, x, K)
assert np.allclose(conv3x3(x, K).data, ops.conv2d(x, K, padding=1).data)  # minitl's version: any size and stride

# %% [markdown]
# Three kernels written by hand show what a convolution can do: two find the sides of what is bright in the map $a$,
# one blurs it. In the first two results the medium color is 0. In TokenLearner, kernels are learned.
#
# And to see the backward pass, let $dy$ be 1 at three places of the output, with a kernel that holds the numbers 1
# to 9. Each 1 sends the kernel back to its 3 × 3 places of the input, and where two of them meet, they add up.

# %%
edge = np.array([[-1.0], [0], [1]]) * np.ones(3)  # what is below minus what is above
K = np.stack([edge.T, edge, np.ones((3, 3)) / 9], axis=-1)[:, :, None]  # (3, 3, 1, 3): one channel in, three out
images(
    {"": [few.images[2], a[2], *conv3x3(a[..., None], K).data[2].transpose(2, 0, 1)]},
    titles=["image", "map $a$", "right - left", "below - above", "mean of 3 × 3"],
    alt="An image, its map, and three filtered maps: bright at left edges, bright at upper edges, and blurred.",
)

# %%
ones, blank = np.zeros((1, 8, 8, 1)), Tensor(np.zeros((1, 8, 8, 1)), requires_grad=True)
ones[0, 2, 2], ones[0, 2, 4], ones[0, 7, 7] = 1, 1, 1
conv3x3(blank, np.arange(1.0, 10).reshape(3, 3, 1, 1)).backward(ones)
assert blank.grad[0, 3, 3, 0] == 9 + 7  # the last entry of one kernel and the first of the other's last row

# %%
matrices(
    {"$dy$": ones[0, ..., 0], "$dx$": blank.grad[0, ..., 0]},
    xlabel="column",
    ylabel="row",
    text="{:.0f}",
    alt="Left three ones; right the numbers 1 to 9 around each, added up where two overlap, and cut off at the border.",
)

# %% [markdown]
# This is version 1.0, complete; `w` is a dict of its learned arrays. The first convolution leads from $C$ to $S$
# numbers at each place, the other three from $S$ to $S$.


# %%
def make_maps(x, w):
    """(B, H, W, C) -> (B, S, H, W)"""
    y = ops.layer_norm(x, w["norm.weight"], w["norm.bias"])
    for i in range(3):
        y = ops.gelu(conv3x3(y, w[f"convs.{i}.weight"]))
    logits = conv3x3(y, w["convs.3.weight"])  # (B, H, W, S)
    return ops.sigmoid(logits).transpose(0, 3, 1, 2)


def token_learner(x, w):
    """(B, H, W, C) -> (B, S, C)"""
    B, H, W, C = x.shape
    return ops.token_pool(make_maps(x, w).reshape(B, -1, H * W), x.reshape(B, H * W, C), mean=True)


# %% [markdown]
# Does it equal minitl's? We make one of its modules with random weights, and give the same weights to our function.

# %%
learner = nn.TokenLearner(C, S, version="1.0", rng=rng).to(dtype="float64")
w = learner.state_dict()
for name, array in w.items():
    print(f"{name:16} {array.shape}")
A = make_maps(x, w).data
assert np.allclose(A, learner.maps(Tensor(x)).data)
assert np.allclose(token_learner(x, w).data, learner(Tensor(x)).data)
check_gradients(lambda x: token_learner(x, w), x)
print(f"weights from {A.min():.2f} to {A.max():.2f}, their mean {A.mean():.2f}")
assert abs(A.mean() - 0.5) < 0.05 and np.abs(A - 0.5).max() < 0.25

# %%
columns = ["", *(f"map {s + 1}" for s in range(S))]
images(
    {"start": [few.images[0], *A[0]]},
    titles=columns,
    low=0,
    high=1,
    alt="An image and eight maps before training: all places of all maps have nearly the same medium color.",
)

# %% [markdown]
# Eight maps before any training, black for 0 and light yellow for 1. The kernels are small random numbers, so the
# logits are near 0 and the weights near $\sigma(0) = 1/2$, though not equal: every token begins as about half of the
# mean of everything.
#
# ## Mean or sum?
#
# The paper divides by $N$. The authors' code, by default, does not: it takes the **sum**, and so does `pool="sum"`
# here. The tokens differ by the factor $N$, which is no detail. Since all weights start near $1/2$, a sum starts at
# about $N/2$ times the size of an ordinary token, at least here, where all numbers are positive and none cancel.

# %%
sums = nn.TokenLearner(C, S, pool="sum").to(dtype="float64")
sums.load_state_dict(w)
Z, Z_sum = learner(Tensor(x)).data, sums(Tensor(x)).data
assert np.allclose(Z_sum, H * W * Z)

large_x, large_A = x.repeat(2, axis=1).repeat(2, axis=2), A.repeat(2, axis=2).repeat(2, axis=3)  # a finer grid
large_sum = np.einsum("bshw,bhwc->bsc", large_A, large_x)
large_mean = large_sum / (4 * H * W)
print(f"sum:  {np.linalg.norm(large_sum) / np.linalg.norm(Z_sum):.1f} times as long on the finer grid")
print(f"mean: {np.linalg.norm(large_mean) / np.linalg.norm(Z):.1f} times as long on the finer grid")

# %%
tokens = {"a token of the grid": x, "learned, mean": Z, "learned, sum": Z_sum}
bars(
    {name: np.linalg.norm(values, axis=-1).mean() for name, values in tokens.items()},
    "length of the vector, logarithmic",
    text="{:.1f}",
    xscale="log",
    alt="Lengths: a learned token by the mean is shorter than one of the grid, by the sum about thirty times longer.",
)

# %% [markdown]
# The size matters when weights are used with the other pooling than they were trained with: the shapes agree, the
# weights load, no error is raised, and the tokens are $N$ times too large or too small. And with the sum, tokens grow
# with the resolution, as the two printed lines show for the same picture on twice as many rows and columns.
#
# ## Training
#
# Now a whole network: the ViT of lesson 05, with TokenLearner between the patches and the two blocks. The blocks see
# $S = 8$ tokens instead of 64. Nothing tells the maps where the object is. The only signal is the name of its shape.
# The loop is that of lesson 05 as well, with half the learning rate and the usual $\beta_2 = 0.999$. At a few steps
# we look at the test images, and keep the accuracy, the maps and their **map mass**, the share of their weight that
# lies in the box around the object (lesson 00).

# %%
STEPS = 20 if FAST else 1000
LOOKS = (0, STEPS // 10, STEPS // 4, STEPS // 2, STEPS)  # the steps at which we look at the test images
train_set, test_set = data.clutter(1000, 200) if FAST else data.clutter(20_000, 1000)
mean, std = data.channel_stats(train_set.images)


def look(model):
    """Accuracy, map mass and the maps themselves, on the test images."""
    inputs = data.normalize(test_set.images, mean, std)
    with no_grad():
        logits, A = model(inputs).data, model.maps(inputs).data
    accuracy = (logits.argmax(1) == test_set.labels).mean()
    return accuracy, metrics.map_mass(A, test_set.boxes, (32, 32)).mean(), A


# %%
def train(stop=STEPS, **options):
    """Train a ViT with TokenLearner 1.0; returns the loss at each step, and what `look` saw at some."""
    model = nn.ViT(nn.ViTConfig(version="1.0", **options), train_set.spec, np.random.default_rng(0))
    optimizer = optim.AdamW(model.parameters(), weight_decay=0.05)
    loader = data.Loader(train_set, 100, shuffle=True, rng=np.random.default_rng(0))
    batches = itertools.chain.from_iterable(itertools.repeat(loader))  # epoch after epoch
    losses, seen = [], {0: look(model)}
    for step in range(stop):
        inputs, labels = next(batches)
        loss = ops.cross_entropy(model(data.normalize(inputs, mean, std)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.clip_grad_norm(1.0)
        optimizer.lr = optim.warmup_cosine(step, STEPS, STEPS // 10, 3e-3)
        optimizer.step()
        losses.append(loss.item())
        if step + 1 in LOOKS:
            accuracy, mass, _ = seen[step + 1] = look(model)
            print(f"step {step + 1:4}   loss {loss.item():.3f}   accuracy {accuracy:.1%}   map mass {mass:.2f}")
    return losses, seen


# %%
losses, seen = train()
if not FAST:
    accuracy, mass, last = seen[STEPS]
    assert (last < 0.1).mean() > 0.8  # most weights are near 0
    assert accuracy > 0.7 and mass > 0.4  # chance is 0.125, and an even map has 0.063
kinds = {"version": "1.0"}, {"tokenizer": "none"}  # with TokenLearner, and with all 64 tokens
few_macs, all_macs = (flops.total(flops.count(nn.ViTConfig(**kind), train_set.spec)).macs for kind in kinds)
print(f"multiply-adds with 8 learned tokens: {few_macs / all_macs:.0%} of those with all 64")
assert few_macs < 0.3 * all_macs

# %%
for i in (2, 5):
    images(
        {f"step {step}": [test_set.images[i], *seen[step][2][i]] for step in (0, STEPS // 10, STEPS)},
        titles=columns,
        low=0,
        high=1,
        alt="An image and its eight maps at three steps: even at first, dark but for spots on the red object at last.",
    )

# %% [markdown]
# At step 0 the weights are all near 1/2, and no map prefers the object. At step 100 some maps have a spot on the
# object, but most of their weight is elsewhere, and the network hardly names anything. By step 250 map mass and
# accuracy have risen together: a shape cannot be named before it is found. At step 1000 most weights are near 0, and
# most of the large ones lie on the object or at its edge. The tokens have become different from each other: some maps
# cover several patches, some only one, and a map may be empty. With a sigmoid, a token can say "nothing for me here".
#
# In lesson 05, all 64 tokens came about as far in less than half as many steps. But there a step costs more than three
# times as much. In lesson 00 hardly any gap was left, after twice as many steps and with the second version of
# TokenLearner.
#
# ## What changes with the sum?
#
# One word changes: `pool="sum"`. The first weights, the images and their order are the same. Half as many steps are
# enough to see the difference.

# %%
losses_sum, seen_sum = train(stop=STEPS // 2, pool="sum")
if not FAST:
    assert seen_sum[STEPS // 2][1] > seen[STEPS // 2][1]  # map mass

# %%
width = max(STEPS // 40, 1)
smooth = {name: np.convolve(y, np.ones(width) / width, "valid") for name, y in (("mean", losses), ("sum", losses_sum))}
curves(
    {name: (np.arange(len(y)) + width, y) for name, y in smooth.items()},
    xlabel="step",
    ylabel=f"loss, mean of {width} steps",
    alt="The loss falls from two with both; with the sum it falls earlier than with the mean.",
)

# %%
curves(
    {name: (list(looks), [look[1] for look in looks.values()]) for name, looks in (("mean", seen), ("sum", seen_sum))},
    xlabel="step",
    ylabel="map mass on the object",
    marks=True,
    alt="Map mass against steps: with the sum it rises sooner and higher than with the mean.",
)

# %% [markdown]
# Here the sum learns faster. That is an observation on one task, with one start, and not a law: the paper's formula is
# the mean, which does not depend on the resolution.
#
# ## Exercises
#
# **1. How far does a map see?** Each convolution looks one place further. Change the patch in the upper left corner
# of `x`. In how many places of a map may the weight change? Say it first, then compare `make_maps` before and after.

# %%
places_that_change = None  # your number
check(places_that_change=places_that_change)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# changed = x.copy()
# changed[:, 0, 0] = rng.random(C)
# differs = (make_maps(changed, w).data != A).any((0, 1))  # (H, W)
# print(differs.astype(int))
# places_that_change = differs.sum()
# check(places_that_change=places_that_change)
# ```
#
# Four convolutions reach four places, so the 5 × 5 places at that corner change. In the middle it would be 9 × 9.
#
# </details>
#
# **2. A convolution that does not look ahead.** Along a line of $N$ tokens,
# $y_n = x_n K_0 + x_{n-1} K_1 + x_{n-2} K_2$, where $x$ is zero before the first token. Write it as an op, with its
# backward: $x$ is $(B, N, C)$, $K$ is $(3, C, S)$, $y$ is $(B, N, S)$.


# %%
@op
def causal_conv(x, K):
    y = np.zeros((x.shape[0], x.shape[1], K.shape[2]))  # your sum

    def backward(dy):
        return np.zeros_like(x), np.zeros_like(K)  # your dx and dK

    return y, backward


check(causal_conv)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# @op
# def causal_conv(x, K):
#     N = x.shape[1]
#     P = np.pad(x, ((0, 0), (2, 0), (0, 0)))  # token n is at n + 2, so n - i is at n + 2 - i
#     parts = {i: (slice(None), slice(2 - i, 2 - i + N)) for i in range(3)}
#
#     def backward(dy):
#         dP, dK = np.zeros_like(P), np.zeros_like(K)
#         for i, part in parts.items():
#             dK[i] = np.einsum("bnc,bns->cs", P[part], dy)
#             dP[part] += dy @ K[i].T
#         return dP[:, 2:], dK
#
#     return sum(P[part] @ K[i] for i, part in parts.items()), backward
#
#
# check(causal_conv)
# ```
#
# </details>
#
# **3. What do the maps cost?** Count the multiply-adds (one multiplication and one addition together) of the four
# convolutions of `make_maps` for one image, with the sizes of this lesson.

# %%
multiply_adds_of_maps = None  # your number
check(multiply_adds_of_maps=multiply_adds_of_maps)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# multiply_adds_of_maps = H * W * 9 * (C * S + 3 * S * S)
# check(multiply_adds_of_maps=multiply_adds_of_maps)
# ```
#
# At each of $N$ places, nine matrices: $(C, S)$ in the first convolution, $(S, S)$ in the other three.
#
# </details>

# %% [markdown]
# ## What you can do now
#
# - Write TokenLearner 1.0 from memory: normalize, four convolutions with GELU, sigmoid, weighted mean.
# - Derive the gradients of the pooling, the sigmoid and a convolution, and prove them by finite differences.
# - Say what the sum changes: the size of the tokens, their growth with the resolution, and the pace of learning.
#
# **Next:** [TokenLearner, second version](07_tokenlearner_softmax.ipynb) replaces the convolutions by a small network
# at each place, and the sigmoid by a softmax over all places.
