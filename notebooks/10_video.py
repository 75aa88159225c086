# %% [markdown]
# # 10 · Eight tokens per frame
#
# A video of 64 frames with 64 patches each has 4,096 tokens, and attention compares every token with every other. That
# is why it matters even more for video than for images to have few tokens. This lesson applies the TokenLearner of
# lesson 07 to every frame, trains a model to name the motions in a clip, and measures it by average precision. The
# paper's video model learns eight tokens per frame; our frames are small, and four will do.
#
# | | |
# |---|---|
# | **Goal** | build a video model from the parts you have, and measure it where a clip may have several labels |
# | **Time** | 45 minutes to read, 90 seconds to run on two cores of an AMD EPYC |
# | **You need** | [05](05_vit.ipynb) for training, [07](07_tokenlearner_softmax.ipynb) for the tokens |

# %%
import numpy as np
from checks import check
from lesson import FAST, bars, curves, images, load_curve, matrices

from minitl import Tensor, check_gradients, data, flops, metrics, nn, no_grad, ops, optim
from minitl.autograd import op

rng = np.random.default_rng(0)

# %% [markdown]
# ## The task
#
# ACTORS is a generated set of clips of 8 frames. In each clip a red object moves, the *actor*, and in most a yellow
# one as well. **The question is what the actors do.** Eight other objects, in cool colors, move in the same ten ways
# (listed below) and do not count. Clips are arrays of pixels with time as the second axis, (clips, frames, rows,
# columns, 3).

# %%
train_set, test_set = data.actors(200, 100) if FAST else data.actors(4000, 500)
print("clips", train_set.images.shape, train_set.images.dtype, "   labels", train_set.labels.shape)
print("motions", *train_set.classes)
print(f"{train_set.labels.sum(1).mean():.2f} labels per clip")  # two actors with the same motion share one

# %%
names = ["\n".join(np.array(test_set.classes)[labels == 1]) for labels in test_set.labels]
frames = [f"frame {t + 1}" for t in range(8)]
rows = {names[i]: test_set.images[i] for i in (3, 18)}
alt = "Two film strips of eight frames: among cool objects, a red and a yellow one move as the labels say."
images(rows, titles=frames, alt=alt)

# %% [markdown]
# No single frame shows a motion. A model has to find the actors in each frame and then compare the frames.
#
# ## The same TokenLearner on every frame
#
# Each frame is cut into patches and embedded as an image is (lesson 03), which gives a grid of $H × W$ tokens of width
# $C$ per frame. TokenLearner takes a grid $(B, H, W, C)$. It needs no new code for clips: hide the time in the batch
# axis, apply it, and bring the time back.
#
# | step | shape |
# |---|---|
# | tokens of all frames | $(B, T, H, W, C)$ |
# | every frame is an image | $(B T, H, W, C)$ |
# | TokenLearner | $(B T, S, C)$ |
# | the tokens of a clip | $(B, T S, C)$ |
#
# Both steps are a `reshape` and not a `transpose`, because $B$ and $T$ are neighboring axes, and so are $T$ and $S$.

# %%
B, T, H, W, C, S = 2, 8, 8, 8, 48, 4
learner = nn.TokenLearner(C, S, version="1.1", pre_norm=False, rng=rng)


def tokens_of_clip(x):
    """(B, T, H, W, C) -> (B, T·S, C)"""
    B, T, H, W, C = x.shape
    return learner(x.reshape(B * T, H, W, C)).reshape(B, T * S, C)


# %%
x = Tensor(rng.standard_normal((B, T, H, W, C)).astype("float32"))
with no_grad():
    Z = tokens_of_clip(x).data
    loop = np.concatenate([learner(x[:, t]).data for t in range(T)], axis=1)  # frame after frame
assert Z.shape == (B, T * S, C) and np.allclose(Z, loop, atol=1e-6)

# %% [markdown]
# The $T S$ tokens of the clip then pass through ordinary transformer blocks, in which each token attends to those of
# all frames.
#
# ## What it saves
#
# With $N$ tokens of width $C$ and an MLP of hidden width $M$, a block needs $N (4 C^2 + 2 C M)$ multiply-adds in its
# linear layers (lesson 05: $3 C^2$ for queries, keys and values, $C^2$ after attention, $2 C M$ in the MLP) and
# $2 N^2 C$ in attention. For clips, $N = 64\,T$ without TokenLearner and $N = S\,T$ with it. In long clips the second
# term decides: it grows with the square of the length.

# %%
M = 96


def block(N):
    """Multiply-adds of one transformer block with N tokens: linear layers, attention."""
    return np.array([N * (4 * C**2 + 2 * C * M), 2 * N**2 * C])


length = 2 ** np.arange(2, 9)  # frames
costs = {name: np.array([block(n * T) for T in length]).T / 1e6 for name, n in (("64", 64), (f"{S}", S))}
assert block(8 * S).sum() == flops.block(8 * S, C, M, 3).macs  # as minitl counts
assert costs["64"][1, 0] > costs["64"][0, 0] and costs["4"][1, 3] < costs["4"][0, 3]  # at 4 frames; at 32 frames
print(f"attention on {8 * 64} tokens costs {block(8 * 64)[1] // block(8 * S)[1]} times as much as on {8 * S}")

# %%
parts = [(n, i, part) for n in costs for i, part in enumerate(("linear", "attention"))]
lines = {f"{n} tokens a frame, {part}": (length, costs[n][i]) for n, i, part in parts}
alt = "On logarithmic axes, attention grows twice as steeply as the linear layers; few tokens shift both far down."
axes = {"xscale": "log", "yscale": "log", "xticks": length, "xticklabels": length}
curves(lines, "frames, T", "million multiply-adds", alt=alt, size=(7, 2.8), marks=True, **axes)

# %% [markdown]
# On these axes a square is a line of slope 2. With 64 tokens per frame, attention is the larger part from four frames
# on. With four, it is still the smaller part at 32 frames. What TokenLearner itself and the embedding of patches cost
# grows only in proportion to $T$. Now whole models with two blocks, for our eight frames. The convolutional one is a
# control, to which we come at the end:

# %%
# a head of zeros would hide below what an untrained model sees, so it starts with random weights
config = nn.ViTConfig(version="1.1", pre_norm=False, num_tokens=S, positions="waves", zero_head=False)
kinds = {"all tokens": nn.ViTConfig(tokenizer="none"), "TokenLearner": config}
kinds |= {"convolutions": nn.X21DConfig(last="conv")}
macs = {name: flops.total(flops.count(kind, train_set.spec)).macs for name, kind in kinds.items()}
for name, value in macs.items():
    print(f"{name:15} {value / 1e6:.1f} million multiply-adds per clip")
assert macs["all tokens"] > 10 * macs["TokenLearner"] and macs["convolutions"] > 5 * macs["TokenLearner"]

# %% [markdown]
# ## A token needs to know its time
#
# Attention treats its tokens as a set (lesson 04). If nothing told the frames apart, a clip would have the same answer
# with its frames in any other order, and a model could not know left from right. So the embedding adds a position to
# each patch that depends on its frame, row and column. A learned token is a mean of such sums, and so it carries along
# from which frame, and from about which place, it comes. Here positions start as the waves of lesson 03, now along
# three axes. The picture shows how similar those of two frames are, at the same row and column: neighboring frames are
# most alike, and no two are equal.

# %%
model = nn.ViT(config, train_set.spec, np.random.default_rng(0))
positions = model.pos_embed.data.reshape(T, 64, C)  # a view: changing it changes the model
unit = positions / np.linalg.norm(positions, axis=-1, keepdims=True)
similar = np.einsum("tnc,unc->tu", unit, unit) / 64  # mean cosine of the same place in frames t and u
alt = "An eight by eight matrix: ones on the diagonal, and beside it frames that are more alike than most others."
matrices({"similarity of positions": similar}, "frame, from 0", "frame, from 0", alt=alt, unit="cosine")

# %%
mean, std = data.channel_stats(train_set.images)
clips = data.normalize(test_set.images[:4], mean, std)
shuffled = clips[:, [3, 7, 0, 5, 2, 6, 1, 4]]
with no_grad():
    with_time = np.abs(model(clips).data - model(shuffled).data).max()
    positions[...] = positions.mean(0)  # the same for all frames
    without_time = np.abs(model(clips).data - model(shuffled).data).max()
print(f"largest change of a logit: {with_time:.3f} with time in the positions, {without_time:.1e} without")
assert with_time > 0.01 and without_time < 1e-5

# %% [markdown]
# Without time, the order of the frames changes nothing but the rounding. Training cannot help: whatever its weights,
# such a model gives the same answer for every order.
#
# ## Several labels: one yes or no for each
#
# Cross-entropy (lesson 05) lets classes compete for one answer. Here two answers may be right, so each class gets a
# question of its own. The logit $x$ of a class gives a probability $p = \sigma(x) = 1 / (1 + e^{-x})$, the target $t$
# is 0 or 1, and the loss is the negative logarithm of the probability of what is true, the **binary cross-entropy**:
#
# $$L = -t \ln p - (1 - t) \ln (1 - p)$$
#
# (Here $t$ is a target, not a time.)
#
# **A form that is safe to compute.** Since $1 - p = e^{-x} / (1 + e^{-x})$, we have $\ln p = -\ln(1 + e^{-x})$ and
# $\ln (1 - p) = -x - \ln(1 + e^{-x})$, so
#
# $$L = \ln(1 + e^{-x}) + (1 - t)\, x .$$
#
# For $x = -100$ in float32, $e^{-x}$ overflows. But $1 + e^{-x} = e^{-x} (1 + e^x)$, so
# $\ln(1 + e^{-x}) = \ln(1 + e^{x}) - x$, and for negative $x$ we take $L = \ln(1 + e^x) - t\,x$. Both cases in one
# line, with an exponent that is never positive:
#
# $$L = \max(x, 0) - t\,x + \ln\left(1 + e^{-|x|}\right)$$
#
# For the same reason the code below computes $p$ as $e^x / (1 + e^x)$ where $x$ is negative.
#
# **Its derivative.** As a formula, $L = \ln(1 + e^x) - t\,x$ holds for all $x$. The derivative of $\ln(1 + e^{x})$ is
# $e^x / (1 + e^x) = \sigma(x) = p$, so
#
# $$\frac{\partial L}{\partial x} = p - t .$$
#
# As for softmax with cross-entropy, the gradient is the difference between what the model says and what is true. For
# a batch, $L$ is the mean over all $n$ logits, and each gets $(p - t) / n$.


# %%
@op
def bce(x, t):
    """L = mean of max(x, 0) - t x + ln(1 + e^-|x|),  dx = (p - t) dL / n"""
    e = np.exp(-np.abs(x))
    p = np.where(x >= 0, 1, e) / (1 + e)

    def backward(dL):
        return (p - t) * dL / x.size, None  # nobody asks for the gradient of targets

    return (np.maximum(x, 0) - t * x + np.log1p(e)).mean(), backward


# %%
x, t = 3 * rng.standard_normal((5, 10)), rng.integers(2, size=(5, 10)).astype(float)
check_gradients(lambda x: bce(x, t), x)
assert np.allclose(bce(x, t).data, ops.binary_cross_entropy_with_logits(x, t).data)  # minitl's
p = 1 / (1 + np.exp(-x))
assert np.allclose(bce(x, t).data, (-t * np.log(p) - (1 - t) * np.log(1 - p)).mean())  # the definition

logit = np.linspace(-150, 150, 301, dtype="float32")
with np.errstate(all="ignore"):  # this is the mistake: we want to see what it gives
    naive = -np.log(1 / (1 + np.exp(-logit)))
stable = np.maximum(logit, 0) - logit + np.log1p(np.exp(-np.abs(logit)))  # t = 1
print(f"infinite: {np.isinf(naive).sum()} of {len(logit)} naive losses, {np.isinf(stable).sum()} stable ones")
assert np.isinf(naive).any() and np.isfinite(stable).all()

# %%
alt = "Both losses fall with slope minus one until zero; the naive one ends left of -88, where it becomes infinite."
curves({"naive": (logit, naive), "stable": (logit, stable)}, "logit x in float32", "loss for t = 1", alt=alt)

# %% [markdown]
# ## Average precision by hand
#
# How good is a model if most labels are 0? One that always says "no" is right about most of them. So one ranks
# instead. For one motion, sort all clips by their score, the most confident first. At each clip that really has the
# motion, a **hit**, ask: of the clips down to here, what share were hits? That is the *precision* at this rank. The
# **average precision** (AP) is the mean of the precision at all hits.
#
# What does a model reach that knows nothing? In a random order (three are drawn below), the share of hits is about the
# same down to every rank: it is the **prior**, the share of clips with this motion. So chance is about the prior, here
# 0.16 on average, and not 0.5. (It is a little more than the prior, because each hit counts itself, which raises the
# first ranks.)


# %%
def average_precision(score, target):
    """Scores (N,), all different, and targets (N,) of 0 or 1."""
    hit = target[np.argsort(-score)]
    precision = hit.cumsum() / np.arange(1, len(hit) + 1)
    return precision[hit == 1].mean()


score = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
target = np.array([1, 0, 1, 1, 0, 0])
by_hand = (1 + 2 / 3 + 3 / 4) / 3
print(f"hits at ranks 1, 3 and 4: (1 + 2/3 + 3/4) / 3 = {by_hand:.3f}")
assert np.isclose(average_precision(score, target), by_hand)
assert np.isclose(metrics.average_precision(score[:, None], target[:, None]), by_hand)  # minitl's

prior = test_set.labels.mean(0)
random = [metrics.average_precision(rng.random(test_set.labels.shape), test_set.labels) for _ in range(50)]
print(f"mean over motions: prior {prior.mean():.3f}; random scores have average precision {np.mean(random):.3f}")
assert abs(np.mean(random) - prior.mean()) < (0.1 if FAST else 0.03)

# %%
rank = np.arange(1, len(test_set) + 1)
lines = {f"random order {i}": (rank, rng.permutation(test_set.labels[:, 0]).cumsum() / rank) for i in (1, 2, 3)}
lines["prior"] = rank, np.full(len(rank), prior[0])
alt = "Precision against rank of three random orders: it jumps at the first ranks and soon comes close to the prior."
curves(lines, f"rank: clips so far, for {test_set.classes[0]}", "precision", alt=alt, size=(6, 2.6), ylim=(0, 1.03))

# %% [markdown]
# ## Training
#
# The full run, `minitl train actors`, uses 10,000 clips and takes minutes. Here we train on fewer clips for less time.
# To get further in little time we use the optimizer `Muon` in place of AdamW. [Lesson 11](11_cifar.ipynb) shows what
# it does. The rest is as in lesson 05. Results are the **mean average precision** on the test clips, the mean over the
# ten motions.
#
# Besides TokenLearner, we train two models that differ only in how a frame becomes few tokens: four means over a grid
# of 2 × 2 cells, and one mean over the whole frame.

# %%
EPOCHS = 1 if FAST else 6


def scores(model, clips):
    """The logits of clips: (B, T, H, W, 3) in uint8 -> (B, 10)"""
    with no_grad():
        return np.concatenate([model(data.normalize(part, mean, std)).data for part in np.array_split(clips, 10)])


# %%
def train(config):
    """Return a trained ViT and its mean average precision on the test clips after each epoch."""
    model = nn.ViT(config, train_set.spec, np.random.default_rng(0))
    optimizer = optim.Muon(model.parameters(), weight_decay=0.05)
    loader = data.Loader(train_set, 64, shuffle=True, rng=np.random.default_rng(0))
    total, step, history = EPOCHS * len(loader), 0, []
    for _ in range(EPOCHS):
        for clips, labels in loader:
            logits = model(data.normalize(clips, mean, std))
            loss = ops.binary_cross_entropy_with_logits(logits, labels.astype("float32"))
            optimizer.zero_grad()
            loss.backward()
            optimizer.clip_grad_norm(1.0)
            optimizer.lr = optim.warmup_cosine(step, total, total // 10, 1.2e-2)
            optimizer.step()
            step += 1
        history.append(metrics.mean_average_precision(scores(model, test_set.images), test_set.labels))
    return model, history


# %%
configs = {
    "TokenLearner, 4 tokens": config,
    "grid of 2 × 2": nn.ViTConfig(tokenizer="pool", num_tokens=4, positions="waves", zero_head=False),
    "mean of the frame": nn.ViTConfig(tokenizer="pool", num_tokens=1, positions="waves", zero_head=False),
}
models, histories = {}, {}
for name, c in configs.items():
    models[name], histories[name] = train(c)
    print(f"{name:23} mean average precision by epoch: {' '.join(f'{m:.2f}' for m in histories[name])}")
if not FAST:
    learned, grid, averaged = (history[-1] for history in histories.values())
    assert learned > grid + 0.15 and grid > averaged

# %%
runs = {name: load_curve(file) for name, file in zip(configs, ("actors", "actors-grid", "actors-mean"), strict=True)}
print("\n".join(command for command, _ in runs.values()))
lines = {name: (run["epoch"], run["test_accuracy"]) for name, (_, run) in runs.items()}  # of clips: mean AP
alt = "With ten thousand clips, TokenLearner ends far above the grid, and the grid above the mean of the frame."
curves(lines, "epoch", "mean average precision", alt=alt, size=(7, 2.8), marks=True, ylim=(0, 1))

# %% [markdown]
# These are the stored curves of the full runs, made by the commands above with AdamW. The three models come in the same
# order as in our short run. In the mean of a frame, or of a quarter of it, the other objects hide what the actors do.
#
# Back to our own model. Here is the precision down the ranks for its best and its worst motion:

# %%
model = models["TokenLearner, 4 tokens"]
logits = scores(model, test_set.images)
ap = metrics.average_precision(logits, test_set.labels)
assert np.isclose(ap[0], average_precision(logits[:, 0], test_set.labels[:, 0]))  # ours from above

lines = {}
for k in (ap.argmax(), ap.argmin()):
    hit = test_set.labels[np.argsort(-logits[:, k]), k]
    lines[f"{test_set.classes[k]}, AP {ap[k]:.2f}"] = rank, hit.cumsum() / rank

# %%
alt = "Precision against rank for the motion with the best and the worst score; both fall to the prior at the end."
axes = {"xlabel": "rank: clips so far, the most confident first", "ylabel": "precision", "ylim": (0, 1.03)}
curves(lines, alt=alt, size=(6.5, 2.6), **axes)

# %% [markdown]
# As long as the curve is at 1, every clip so far was a hit. Average precision is the mean height of the curve over
# the ranks of the hits. At the last rank all clips are taken, and the precision is the prior. All ten motions:

# %%
alt = "Ten bars of average precision, all above the dashed line of chance; the rotations are lowest."
by_motion = dict(zip(test_set.classes, ap, strict=True))
bars(by_motion, "average precision", alt=alt, text="{:.2f}", chance=prior.mean(), xlim=(0, 1.15))
print(f"mean average precision {ap.mean():.3f}")
if not FAST:
    assert ap.mean() > 4 * prior.mean()

# %% [markdown]
# ## Where the tokens look
#
# Nothing in the loss says what an actor is or where it is. The **map mass** (lesson 06) is the share of a map's weight
# inside the boxes of the actors, and the picture shows the maps of all four tokens on the first clip from above:

# %%
with no_grad():
    maps = model.maps(data.normalize(test_set.images, mean, std)[:100]).data  # (B, T, S, H, W)
mass = metrics.map_mass(maps, test_set.boxes[:100], (32, 32))  # for each clip
print(
    f"map mass on the actors {mass.mean():.2f}; even maps would have {metrics.box_share(test_set.boxes, (32, 32)):.2f}"
)
if not FAST:
    assert mass.mean() > 0.25

# %%
i = 3
rows = {names[i]: test_set.images[i]} | {f"token {s + 1}": maps[i, :, s] for s in range(S)}
alt = "A film strip of a clip and four rows of maps below it: bright spots move along with the actors."
images(rows, titles=frames, alt=alt)

# %% [markdown]
# Each map is drawn on its own scale. The bright spots follow the two actors from frame to frame, although the maps of
# a frame are computed without a look at the others. They can do so because color gives an actor away. **That is a
# limit:** an object that stands out by its motion alone could not be found by maps of single frames.
#
# ## Does the order matter?
#
# The answer could also come from single frames, or from the set of places where an actor has been. The test: shuffle
# the frames of each test clip. A blinking object blinks in any order, and a shaking one jumps between two places in
# any order. So we predict that these two survive the shuffling and that the other motions do not.

# %%
order = rng.permuted(np.tile(np.arange(T), (len(test_set), 1)), axis=1)  # another order for each clip
shuffled = np.take_along_axis(test_set.images, order[:, :, None, None, None], axis=1)
ap_shuffled = metrics.average_precision(scores(model, shuffled), test_set.labels)

# %%
alt = "Nine bars near chance; only blink stands out, with about half of its average precision in order."
by_motion = dict(zip(test_set.classes, ap_shuffled, strict=True))
bars(by_motion, "average precision, shuffled", alt=alt, text="{:.2f}", chance=prior.mean(), xlim=(0, 1.15))
print(f"mean average precision {ap.mean():.3f} in order, {ap_shuffled.mean():.3f} shuffled")
if not FAST:
    assert ap_shuffled.mean() < 0.5 * ap.mean() and ap_shuffled.argmax() == test_set.classes.index("blink")

# %% [markdown]
# The order matters. But our prediction was wrong: blinking survived only by half, and shaking is no better off than
# *down*, which does need the order. When a model fails where it should not, ask what it has learned instead. In
# `minitl/data/actors.py` a shake moves an object to the right by a few pixels times $\cos 8 \pi t$, at the times
# $t = 0, \frac18, \frac28, \dots$, which gives $1, -1, 1, -1, \dots$: **every shake begins on the right**. And
# positions tell the model the number of each frame. So it may have learned *on the right in frames 1, 3, 5, 7* instead
# of *back and forth*. If that is so, it must fail when a clip starts one frame later, and not when it starts two
# frames later. We move the first frames to the end, where a shake goes on as before.

# %%
shake = test_set.classes.index("shake")
later = []
for k in range(4):
    rolled = np.roll(test_set.images, -k, axis=1)  # the first k frames come last
    later.append(metrics.average_precision(scores(model, rolled), test_set.labels)[shake])
    print(f"starting {k} frames later: average precision of shake {later[k]:.2f}")
if not FAST:
    assert min(later[0], later[2]) > max(later[1], later[3]) + 0.2

# %% [markdown]
# That is what happens. The model names the shakes of this data set and has not learned what we meant. Such a
# **shortcut** is found only by a test in which it fails. (A random start, on the left or on the right, would close it.)
#
# The last control is in [RESULTS.md](RESULTS.md): the convolutional model from above, which convolves over time as
# well, solves ACTORS almost perfectly *without* tokens. Tokens are not needed for this task; they make it cheap.
#
# ## Exercises
#
# **1. Ties.** If two clips have the same score, our `average_precision` ranks them as they happen to come, and a model
# that gives every clip the same score may look good. Instead, let the precision at hit $i$ be the share of hits among
# *all* clips $j$ that are at least as confident, $\text{score}_j \ge \text{score}_i$. Write
# `my_average_precision(score, target)`, the mean over the hits, for two arrays $(N,)$. What does a constant score get?


# %%
def my_average_precision(score, target): ...


check(my_average_precision)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# def my_average_precision(score, target):
#     taken = score >= score[target == 1][:, None]  # (hits, N)
#     return ((taken * target).sum(1) / taken.sum(1)).mean()
#
#
# check(my_average_precision)
# ```
#
# A constant score takes all clips at once, so it gets the prior. This is what `metrics.average_precision` computes,
# by sorting, which needs less memory than the matrix.
#
# </details>
#
# **2. The film backward.** Play every test clip backward. Which motion does each motion become? Give a list `swap` of
# ten numbers: motion `k` becomes motion `swap[k]`. Motions count from 0, in the order of `train_set.classes`.

# %%
swap = None  # ten numbers


check(swap=swap)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# swap = [1, 0, 3, 2, 5, 4, 7, 6, 8, 9]
# check(swap=swap)
# backward = scores(model, test_set.images[:, ::-1])
# print(f"with the old labels {metrics.mean_average_precision(backward, test_set.labels):.2f}")
# print(f"with the new labels {metrics.mean_average_precision(backward, test_set.labels[:, swap]):.2f}")
# ```
#
# Left and right, up and down, both rotations, and growing and shrinking change places. Blinking and shaking stay. With
# the new labels the model is much better than with the old ones, so it has learned the direction of time. What it loses
# is mostly the shake: played backward, it begins on the left.
#
# </details>
#
# **3. How long may a clip be?** Attention on all 64 patches of 8 frames costs $2 N^2 C$ with $N = 512$. With eight
# tokens per frame, how many frames can attention cover for the same price?

# %%
affordable = None  # frames


check(affordable=affordable)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# affordable = 8 * 64 // 8
# check(affordable=affordable)
# ```
#
# The price depends on $N$ alone, and $8\,T = 512$ gives 64 frames. That is the length of the clips in the paper.
#
# </details>

# %% [markdown]
# ## What you can do now
#
# - Apply TokenLearner to clips by two reshapes, and say what attention then costs.
# - Show that a model without positions in time cannot see order, and test whether a trained model uses it.
# - Derive binary cross-entropy, its stable form and its gradient $p - t$.
# - Compute average precision by hand, and name its chance level.
#
# **Next:** [CIFAR-10, on a laptop and on a GPU](11_cifar.ipynb) leaves generated data for photographs.
