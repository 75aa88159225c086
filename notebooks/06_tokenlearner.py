# %% [markdown]
# # 06 · TokenLearner, first version
#
# TokenLearner turns a grid of many tokens into a few. Each of the few is a weighted mean over the whole grid, and the
# weights are computed from the grid itself. In this notebook you write it in NumPy, line by line, with its gradient;
# then you train it and watch eight maps find an object that nobody showed them.
#
# | | |
# |---|---|
# | **Goal** | build TokenLearner 1.0 (the version of the paper) and know why each line is there |
# | **Time** | 40 minutes to read, 90 seconds to run on two cores of an AMD EPYC |
# | **You need** | NumPy; for the training part, what `loss.backward()` and an optimiser do |

# %%
import itertools
import os

import matplotlib.pyplot as plt
import numpy as np

from minitl import Tensor, check_gradients, data, metrics, nn, no_grad, ops, optim
from minitl.autograd import op

# %%
FAST = bool(os.environ.get("MINITL_FAST"))  # set by the tests: few training steps
plt.rcParams["figure.dpi"] = 90
rng = np.random.default_rng(0)

# %% [markdown]
# ## One token, with a map drawn by hand
#
# Before anything is learned, let us make one token ourselves. We take four images of CLUTTER (one red object among
# cool ones, see notebook 00) and cut them into a grid of patches. A patch of 4 × 4 pixels and 3 colours is a vector
# of 48 numbers. For now the patches themselves are our tokens, so that we can look at them.
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
cells = few.images.reshape(B, H, 4, W, 4, 3) / 255  # row, pixel in row, column, pixel in column, colour
x = cells.transpose(0, 1, 3, 2, 4, 5).reshape(B, H, W, C)
print("images", few.images.shape, " grid x", x.shape)

# %% [markdown]
# The map: how red is each patch? From red we subtract the larger of green and blue, and let a **sigmoid**,
# $\sigma(l) = 1 / (1 + e^{-l})$, turn the result into a weight between 0 and 1. The token is the mean over all
# places, each multiplied by its weight:
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
figure, axes = plt.subplots(3, 4, figsize=(5, 4.4), layout="constrained")
for b in range(B):
    share = a[b].mean()  # undone for the picture only: most weights are 0, so z is dark
    for ax, picture in zip(axes[:, b], (few.images[b], a[b], (z[b] / share).reshape(4, 4, 3)), strict=True):
        ax.imshow(picture, cmap="magma", vmin=0, vmax=1)
        ax.set_axis_off()
for ax, name in zip(axes[:, 0], ("image", "map $a$", "token $z$"), strict=True):
    ax.set_title(name, loc="left", fontsize=10)
plt.show()

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
assert np.allclose(Z, loop)

pooled = ops.token_pool(Tensor(A.reshape(B, S, H * W)), Tensor(x.reshape(B, H * W, C)), mean=True)
assert np.allclose(Z, pooled.data)  # minitl's version, the matrix product
print("Z", Z.shape)

# %% [markdown]
# ## Where the maps come from
#
# The paper computes the maps with four convolutions of 3 × 3, a **GELU** after each of the first three, and a sigmoid
# at the end. The code that its authors published also normalises first (**LayerNorm**). For $i$ = 1, 2, 3:
#
# $$y_0 = \text{norm}(x) \qquad y_i = \text{gelu}(\text{conv}_i(y_{i-1})) \qquad A = \sigma(\text{conv}_4(y_3))$$
#
# - LayerNorm brings the $C$ numbers of each token to mean 0 and variance 1, then scales and shifts them by learned
#   numbers. Then bright and dark images get similar maps. Only this branch is normalised; what is averaged is $x$
#   itself.
# - A convolution lets a place see its neighbours: "red, with an edge to my left". The first has $C$ channels in and
#   $S$ out, the other three $S$ in and $S$ out. The last $S$ channels are the maps.
# - GELU is a smooth version of $\max(x, 0)$. Without it, four convolutions would be no more than one large one.


# %%
def layer_norm(x, weight, bias):
    """(..., C) -> (..., C)"""
    n = x - x.mean(-1, keepdims=True)
    return n / np.sqrt((n * n).mean(-1, keepdims=True) + 1e-6) * weight + bias


def gelu(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def conv3x3(x, kernel):
    """(B, H, W, in) -> (B, H, W, out) with a kernel (3, 3, in, out). Beyond the border there are zeros."""
    _, H, W, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(padded[:, i : i + H, j : j + W] @ kernel[i, j] for i in range(3) for j in range(3))


# %%
kernels = np.zeros((3, 3, 1, 3))  # one channel in, three out
kernels[:, 0, 0, 0], kernels[:, 2, 0, 0] = -1, 1  # what is on the right minus what is on the left
kernels[0, :, 0, 1], kernels[2, :, 0, 1] = -1, 1  # below minus above
kernels[:, :, 0, 2] = 1 / 9  # the mean of the place and its neighbours
y = conv3x3(a[..., None], kernels)[2]

figure, axes = plt.subplots(1, 5, figsize=(8, 1.9), layout="constrained")
names = ("image", "map $a$", "right minus left", "below minus above", "mean of 3 × 3")
for ax, name, picture in zip(axes, names, (few.images[2], a[2], *y.transpose(2, 0, 1)), strict=True):
    ax.imshow(picture, cmap="magma")
    ax.set_title(name, fontsize=9)
    ax.set_axis_off()
plt.show()

# %% [markdown]
# These three kernels are written by hand: two find the sides of what is bright in the map $a$, one blurs it. In
# TokenLearner, kernels are learned. And this is version 1.0, complete; `w` is a dict of its learned arrays.


# %%
def make_maps(x, w):
    """(B, H, W, C) -> (B, S, H, W)"""
    y = layer_norm(x, w["norm.weight"], w["norm.bias"])
    for i in range(3):
        y = gelu(conv3x3(y, w[f"convs.{i}.weight"]))
    logits = conv3x3(y, w["convs.3.weight"])  # (B, H, W, S)
    return sigmoid(logits).transpose(0, 3, 1, 2)


def token_learner(x, w):
    """(B, H, W, C) -> (B, S, C)"""
    return np.einsum("bshw,bhwc->bsc", make_maps(x, w), x) / (x.shape[1] * x.shape[2])


# %% [markdown]
# Does it equal minitl's? We make one of its modules with random weights, and give the same weights to our function.

# %%
learner = nn.TokenLearner(C, S, version="1.0", rng=rng).to(dtype="float64")
w = learner.state_dict()
for name, array in w.items():
    print(f"{name:16} {array.shape}")
assert np.allclose(make_maps(x, w), learner.maps(Tensor(x)).data)
assert np.allclose(token_learner(x, w), learner(Tensor(x)).data)


# %%
def draw(rows, image):
    """One row for each name and its maps (S, H, W), black for 0 and light yellow for 1, after the image."""
    figure = plt.figure(figsize=(9, 1.15 * len(rows)), layout="constrained")
    for row, (name, maps) in zip(figure.subplots(len(rows), S + 1, squeeze=False), rows.items(), strict=True):
        for s, (ax, picture) in enumerate(zip(row, (image, *maps), strict=True)):
            ax.imshow(picture, cmap="magma", vmin=0, vmax=1)
            ax.set_title(f"map {s}" if s else name, fontsize=9, fontweight="normal" if s else "bold")
            ax.set_axis_off()
    plt.show()


draw({"start": make_maps(x, w)[0]}, few.images[0])

# %% [markdown]
# Eight maps before any training, black for 0 and light yellow for 1. The kernels are small random numbers, so the
# logits are near 0, and $\sigma(0) = 1/2$: every token begins as about half of the mean of everything.
#
# ## Mean or sum?
#
# The paper divides by $N$. The authors' code, by default, does not: it takes the **sum**, and so does `pool="sum"`
# here. The tokens differ by the factor $N$, which is no detail. Since all weights start near $1/2$, a sum starts at
# about $N/2$ times the size of an ordinary token.

# %%
sums = nn.TokenLearner(C, S, pool="sum").to(dtype="float64")
sums.load_state_dict(w)
sizes = {
    "a token of the grid": np.linalg.norm(x, axis=-1).mean(),
    "learned, mean": np.linalg.norm(learner(Tensor(x)).data, axis=-1).mean(),
    "learned, sum": np.linalg.norm(sums(Tensor(x)).data, axis=-1).mean(),
}
figure, ax = plt.subplots(figsize=(6, 1.7), layout="constrained")
ax.bar_label(ax.barh(list(sizes), list(sizes.values()), color="tab:red"), fmt="{:.1f}", padding=3)
ax.set(xscale="log", xlim=(0.3, 400), xlabel="length of the vector")
ax.invert_yaxis()
plt.show()
assert np.allclose(sums(Tensor(x)).data, H * W * learner(Tensor(x)).data)

# %% [markdown]
# ## The gradient, by hand
#
# In training, a loss $L$ is computed from $Z$, and its gradient $dZ$ of shape $(B, S, C)$ comes back: how much $L$
# changes when an entry of $Z$ does. We have to pass it on. With the grid flattened to $N$ places and $A = \sigma(l)$
# of the logits $l$, three lines do it:
#
# $$dA = \tfrac{1}{N}\, dZ\, x^\top \qquad dx = \tfrac{1}{N}\, A^\top dZ \qquad dl = dA \odot A \odot (1 - A)$$
#
# - $dA$, $(B, S, N)$: a weight should grow where the token at that place points in the direction in which $Z$ should
#   go.
# - $dx$, $(B, N, C)$: a place gets the gradient of each learned token, as strongly as it contributed to it.
# - $A(1 - A)$ is the slope of the sigmoid; $\odot$ multiplies entry by entry.
#
# An op in minitl is a function that returns its value and a function `backward`, which gives one gradient for each
# input.


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


# %% [markdown]
# Is it right? `check_gradients` moves the inputs a little in a random direction and compares how the output really
# changes with what `backward` says. It is silent when they agree. To be sure that it *can* object, we also give it a
# version in which a factor was forgotten.

# %%
logits, flat = rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 5, 4))
check_gradients(sigmoid_pool, logits, flat)


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

# %%
logit = np.linspace(-8, 8, 200)
figure, ax = plt.subplots(figsize=(5.5, 2.4), layout="constrained")
ax.plot(logit, sigmoid(logit), color="tab:red", label=r"weight $\sigma(l)$")
ax.plot(logit, sigmoid(logit) * (1 - sigmoid(logit)), color="tab:blue", label=r"slope $\sigma(l)(1 - \sigma(l))$")
ax.axvline(0, color="black", linewidth=0.8, linestyle="--")
ax.set(xlabel="logit $l$", yticks=[0, 0.25, 0.5, 1])
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# The forgotten factor $1 - A$ is the interesting one. A weight that has reached 0 or 1 passes on almost no gradient:
# it is *saturated* and hardly learns any more. At the start, at the dashed line, the slope is as large as it can be.
#
# ## Training
#
# Now a whole network: a small ViT with TokenLearner between the patches and the two transformer blocks.
# The blocks see $S = 8$ tokens instead of 64. Nothing tells the maps where the object is. The only signal is the name
# of its shape.

# %%
STEPS = 20 if FAST else 1000
LOOKS = (0, STEPS // 10, STEPS // 4, STEPS // 2, STEPS)  # the steps at which we look at the test images
train_set, test_set = data.clutter(1000, 200) if FAST else data.clutter(20_000, 1000)
mean, std = data.channel_stats(train_set.images)


def look(model):
    """Accuracy, map mass (share of the maps on the object), and the maps themselves, on the test images."""
    images = data.normalize(test_set.images, mean, std)
    with no_grad():
        logits, A = model(images).data, model.maps(images).data
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
        images, labels = next(batches)
        loss = ops.cross_entropy(model(data.normalize(images, mean, std)), labels)
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
    accuracy, mass, _ = seen[STEPS]
    assert accuracy > 0.7 and mass > 0.4  # chance is 0.125, and an even map has 0.063

# %%
for i in (2, 5):
    draw({f"step {step}": seen[step][2][i] for step in (0, STEPS // 10, STEPS)}, test_set.images[i])

# %% [markdown]
# At step 0 every map is an even 1/2. At step 100 the network can hardly name anything yet, but the maps have begun to
# lean towards the object: it learns *where* before *what*. At step 1000 most weights are 0, and the few large ones
# lie on the object or at its edge. The tokens have become different from each other: some maps cover several patches,
# some only one, and a map may be empty. With a sigmoid, a token can say "nothing for me here".
#
# ## What changes with the sum?
#
# One word changes: `pool="sum"`. The first weights, the images and their order are the same. Half as many steps are
# enough to see the difference.

# %%
losses_sum, seen_sum = train(stop=STEPS // 2, pool="sum")

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 2.7), layout="constrained")
for name, colour, run, looks in (("mean", "tab:red", losses, seen), ("sum", "tab:blue", losses_sum, seen_sum)):
    width = max(STEPS // 40, 1)
    smooth = np.convolve(run, np.ones(width) / width, "valid")
    panels[0].plot(np.arange(len(smooth)) + width, smooth, color=colour, label=name)
    panels[1].plot(list(looks), [mass for _, mass, _ in looks.values()], ".-", color=colour)
panels[0].set(title=f"loss, mean of {width} steps", xlabel="step", ylim=(0, 2.3))
panels[1].set(title="map mass on the object", xlabel="step", ylim=(0, 1))
panels[0].legend(frameon=False)
plt.show()

# %% [markdown]
# Here the sum learns faster. That is an observation on one task and not a law: the paper reports its results with the
# mean, and the third mistake below shows what the mean is good for.
#
# ## Three mistakes, made on purpose
#
# None of them raises an error.
#
# **1. `reshape` where `transpose` is needed.** The last convolution gives logits of shape $(H, W, S)$ for each image,
# and the maps are $(S, H, W)$. Both ways give the right shape. But `reshape` keeps the numbers in their order in
# memory, where the $S$ numbers of one place lie side by side, so it cuts places apart and makes maps of the pieces.

# %%
right = seen[STEPS][2][2].clip(1e-6, 1 - 1e-6)  # (S, H, W)
logits = np.log(right / (1 - right))
channels_last = right.transpose(1, 2, 0)  # (H, W, S), as the convolution leaves them
draw({"transpose": channels_last.transpose(2, 0, 1), "reshape": channels_last.reshape(S, H, W)}, test_set.images[2])

# %% [markdown]
# **2. Softmax over the wrong axis.** The second version of TokenLearner has a softmax in place of the
# sigmoid. It belongs over the *places*: each map then distributes one unit of attention over the image. Over the
# *tokens*, each place distributes one unit over the tokens instead. Then every place has to go somewhere, so some
# tokens must take the background.


# %%
def softmax(logits, axis):
    e = np.exp(logits - logits.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


over_places = softmax(logits.reshape(S, H * W), axis=1).reshape(S, H, W)
over_tokens = softmax(logits, axis=0)
assert np.allclose(over_places.sum((1, 2)), 1) and np.allclose(over_tokens.sum(0), 1)
draw({"over places": over_places, "over tokens": over_tokens}, test_set.images[2])

# %% [markdown]
# **3. Sum where the weights were trained with mean, or the other way round.** The shapes agree, the weights load, and
# the tokens are $N$ times too large or too small. A related surprise: with the sum, tokens grow with the resolution.
# Here is the same picture on a grid of twice as many rows and columns.

# %%
large_x, large_A = (t.repeat(2, axis=-2).repeat(2, axis=-3) for t in (x, A.transpose(0, 2, 3, 1)))  # channels last
large_sum = np.einsum("bhws,bhwc->bsc", large_A, large_x)
large_mean = large_sum / (4 * H * W)
print(f"sum:  {np.linalg.norm(large_sum) / np.linalg.norm(Z * H * W):.1f} times as long")
print(f"mean: {np.linalg.norm(large_mean) / np.linalg.norm(Z):.1f} times as long")
assert np.allclose(large_mean, Z)

# %% [markdown]
# ## Exercises
#
# **1. How far does a map see?** Each convolution looks one place further. Which weights of a map can depend on the
# patch in the upper left corner? Say it first. Then change that patch of `x` and compare `make_maps` before and
# after.
#
# <details><summary>Answer</summary>
#
# ```python
# changed = x.copy()
# changed[:, 0, 0] = rng.random(C)
# differs = (make_maps(changed, w) != make_maps(x, w)).any((0, 1))  # (H, W)
# print(differs.astype(int))
# ```
#
# Four convolutions reach four places, so the 5 × 5 places at that corner change and the others do not. In the middle
# of a grid it would be 9 × 9.
#
# </details>
#
# **2. The gradient with a softmax.** Write `softmax_pool(logits, x)`: a softmax over the $N$ places, and $Z = A x$
# without $1/N$. For the softmax, $dl = A \odot (dA - \sum_n dA_n A_n)$. Let `check_gradients` decide whether you are
# right.
#
# <details><summary>Answer</summary>
#
# ```python
# @op
# def softmax_pool(logits, x):
#     A = softmax(logits, axis=-1)
#
#     def backward(dZ):
#         dA = np.einsum("bsc,bnc->bsn", dZ, x)
#         dlogits = A * (dA - (dA * A).sum(-1, keepdims=True))
#         return dlogits, np.einsum("bsn,bsc->bnc", A, dZ)
#
#     return np.einsum("bsn,bnc->bsc", A, x), backward
#
#
# check_gradients(softmax_pool, rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 5, 4)))
# ```
#
# That is the pooling of TokenLearner 1.1.
#
# </details>
#
# **3. How many weights still learn?** A weight below 0.01 or above 0.99 is saturated. What share of all weights is it
# at each step in `seen`? What follows for a learning rate that is too large?
#
# <details><summary>Answer</summary>
#
# ```python
# for step, (_, _, A) in seen.items():
#     print(step, (np.abs(A - 0.5) > 0.49).mean())
# ```
#
# None at step 0, most of them at step 1000. Then the maps hardly move any more. If steps that are too large drive the
# weights to 0 or 1 before the maps have found the object, they stay there: with `8e-3` in place of `3e-3` you may see
# maps that are dead by step 250.
#
# </details>

# %% [markdown]
# ## What you can do now
#
# - Write TokenLearner 1.0 from memory: normalise, four convolutions with GELU, sigmoid, weighted mean.
# - Derive its gradient in three lines, and prove it by finite differences.
# - Recognise the mistakes that raise no error: a `reshape` for a `transpose`, the wrong axis, sum for mean.
#
# **Next:** a lesson in preparation replaces the convolutions by a small network at each place and the sigmoid by a
# softmax (`version="1.1"`). If you have come here first, see
# [notebook 00](00_eight_tokens.ipynb) for what the eight tokens are good for.
