# %% [markdown]
# # 12 · What goes wrong
#
# A fault in a network rarely raises an error. The loss may even fall, only not as far as it could, and nothing says
# why. Here you make seven faults happen, each in a run of a few seconds, see each in a picture, and repair it. A quiz
# on the whole course follows.
#
# | | |
# |---|---|
# | **Goal** | recognize seven faults by what they do to losses, maps and steps, and know what to look at |
# | **Time** | 60 minutes to read, 70 seconds to run on two cores of an AMD EPYC |
# | **You need** | the lessons up to [08](08_how_few_how_early.ipynb), above all [05](05_vit.ipynb) |

# %%
import functools

import lesson
import numpy as np
from checks import check, patients
from lesson import FAST

from minitl import OPS, Tensor, check_gradients, data, nn, no_grad, ops, optim
from minitl.autograd import op

STEPS = 10 if FAST else 250
rng = np.random.default_rng(0)

# %% [markdown]
# ## A task that shows faults
#
# CLUTTER forgives much: lesson [03](03_patches.ipynb) took the positions away from a trained model, and it hardly
# noticed. So we use a smaller task, CUE, that forgives less. An image has 16 × 16 pixels, which is a grid of 4 × 4
# patches. The patch in the upper left corner is the **cue**: it is filled with one of six colors. Six other patches
# hold an object, one in each color. **Which of four shapes has the object in the color of the cue?** Guessing gives
# 25 %.

# %%
COLORS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]])  # the first is red
stripes = np.array([[1, 1, 1, 1], [0, 0, 0, 0]] * 2)
SHAPES = np.stack([stripes, stripes.T, np.kron(np.eye(2), np.ones((2, 2))), np.pad(np.ones((2, 2)), 1)])  # (4, 4, 4)


def sample(n):
    """n images, uint8 (n, 16, 16, 3), the shape that is asked for, (n,), and the red object's row, (n,)."""
    place = rng.permuted(np.tile(np.arange(1, 16), (n, 1)), axis=1)[:, :6]  # of the object in each color
    shape, cue, every = rng.integers(4, size=(n, 6)), rng.integers(6, size=n), np.arange(n)
    patches = 0.1 * rng.standard_normal((n, 16, 4, 4, 3))
    patches[every[:, None], place] += SHAPES[shape][..., None] * COLORS[:, None, None]
    patches[:, 0] += COLORS[cue][:, None, None]
    pixels = patches.reshape(n, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(n, 16, 16, 3)
    return (255 * pixels.clip(0, 1)).astype("uint8"), shape[every, cue], place[:, 0] // 4


# %%
images, labels, red_row = sample(2000 if FAST else 20_000)
test_images, test_labels, test_red_row = sample(1000)
mean, std = data.channel_stats(images)
x, test_x = data.normalize(images, mean, std), data.normalize(test_images, mean, std)
names = np.array(["rows", "columns", "checks", "dot"])

# %%
lesson.images(
    {"image": images[:6]},
    titles=list(names[labels[:6]]),
    alt="Six images of sixteen patches: the upper left one is filled with a color, six others have a small pattern.",
)

# %% [markdown]
# The training loop is that of lesson 05. It logs three numbers at each step: the **loss**, the **norm of the
# gradient** before clipping, and the **relative step** $\lVert \Delta w \rVert / \lVert w \rVert$, how far the weights
# moved compared with their size. It stops at a loss that is not a number.


# %%
def build(**options):
    """A ViT with 8 tokens by TokenLearner 1.1 before its two blocks, or with other options."""
    config = nn.ViTConfig(**{"version": "1.1", "pre_norm": False, **options})
    return nn.ViT(config, nn.DataSpec(image_size=(16, 16), num_classes=4), np.random.default_rng(0))


def weights(model):
    return np.concatenate([p.data.ravel() for p in model.parameters()])


def accuracy(model, x=test_x, labels=test_labels):
    with no_grad():
        return (model(x).data.argmax(1) == labels).mean()


def smooth(values):
    """Means of ten steps, with the step at which each ends, for pictures."""
    return np.arange(10, len(values) + 1), np.convolve(values, np.ones(10) / 10, "valid")


# %%
def train(model, x=x, labels=labels, peak=3e-3, warmup=STEPS // 10):
    """Train for STEPS steps with 100 images each; returns the log."""
    rng, log = np.random.default_rng(0), {"loss": [], "gradient norm": [], "relative step": []}
    optimizer = optim.AdamW(model.parameters(), weight_decay=0.05)
    for step in range(STEPS):
        some = rng.integers(len(x), size=100)
        loss = ops.cross_entropy(model(x[some]), labels[some])
        log["loss"].append(loss.item())
        if not np.isfinite(loss.item()):
            break
        optimizer.zero_grad()
        loss.backward()
        log["gradient norm"].append(optimizer.clip_grad_norm(1.0))
        before = weights(model)
        optimizer.lr = optim.warmup_cosine(step, STEPS, warmup, peak)
        optimizer.step()
        log["relative step"].append(np.linalg.norm(weights(model) - before) / np.linalg.norm(before))
    return log


# %%
healthy = build()
healthy_log = train(healthy)
print(f"accuracy {accuracy(healthy):.1%}")
assert FAST or (accuracy(healthy) > 0.95 and 3e-3 < max(healthy_log["relative step"]) < 3e-2)

# %%
lesson.curves(
    {name: smooth(values) for name, values in healthy_log.items()},
    xlabel="step",
    ylabel="mean of ten steps",
    yscale="log",
    alt="A healthy run on a logarithmic scale: the loss falls early, the gradient later, the step last of all.",
)

# %% [markdown]
# A healthy run: the loss falls early. The gradient norm first grows meanwhile, then falls too, apart from a few single
# batches. The relative step rises with the learning rate to about 0.01, and falls until the end.
#
# ## 1. NaN from a softmax
#
# Two slips at once: a softmax written straight from its formula, and images that nobody normalized, with pixels from 0
# to 255. A function that is assigned to `OPS` takes the place of minitl's op.

# %%
raw = images.astype("float32")
stable = OPS["softmax"]


def naive(x, *, axis=-1):
    e = np.exp(x)
    y = e / e.sum(axis, keepdims=True)
    return y, lambda dy: y * (dy - (dy * y).sum(axis, keepdims=True))


OPS["softmax"] = naive
broken = build()
with np.errstate(all="ignore"):  # NumPy warns of the overflow; we silence it to see what happens without
    broken_log = train(broken, raw)
print(f"stopped after {len(broken_log['loss'])} steps, with loss {broken_log['loss'][-1]:.3f}")

# %% [markdown]
# The loop stopped *before* the step, so the weights are still numbers and the model can be questioned. Which op was the
# first? Give each op a guard that compares what goes in (here the first array is enough) with what comes out.


# %%
def first_bad(model, x):
    """The ops whose result is not finite although their inputs are."""
    found, saved = [], dict(OPS)

    def guard(name, *arrays, **options):
        y, backward = saved[name](*arrays, **options)
        if np.isfinite(arrays[0]).all() and not np.isfinite(y).all():
            found.append(name)
        return y, backward

    OPS.update({name: functools.partial(guard, name) for name in OPS})
    with no_grad(), np.errstate(all="ignore"):
        model(x)
    OPS.update(saved)
    return found


# %%
found = first_bad(broken, raw[:2000])
with np.errstate(all="ignore"):
    assert np.isinf(np.exp(np.float32(89)))
    ops.cross_entropy(broken(raw[:2000]), labels[:2000]).backward()
gradient = np.concatenate([p.grad.ravel() for p in broken.parameters()])
OPS["softmax"] = stable
stable_log = train(build(), raw)
print("guilty:", *found, f"  share of the gradient that is NaN: {np.isnan(gradient).mean():.0%}")
assert FAST or (found == ["softmax"] and np.isnan(gradient).all() and np.isfinite(stable_log["loss"]).all())
assert FAST or np.mean(stable_log["loss"][-10:]) > 1  # log 4 = 1.39 is guessing

# %%
runs = {"stable, normalized": healthy_log, "stable, raw": stable_log, "naive, raw": broken_log}
lesson.curves(
    {name: smooth(log["loss"]) for name, log in runs.items()},
    xlabel="step",
    ylabel="loss",
    alt="On normalized images the loss falls to zero, on raw ones hardly at all; with the naive softmax it ends early.",
)

# %% [markdown]
# In float32 $e^{89}$ is infinite, and infinity divided by infinity is NaN. One such image in a batch makes the whole
# gradient NaN. Subtracting the largest entry of each row changes no result and keeps every exponent at 0 or below. That
# cures the NaN but not its cause: on raw pixels the model still learns little.
#
# ## 2. A learning rate far off
#
# The learning rate had its peak at 3e-3. Here are a peak that is far too small and one that is far too large.

# %%
logs, scores = {"3e-3": healthy_log}, {"3e-3": accuracy(healthy)}
for name, options in {"3e-5": {"peak": 3e-5}, "3e-2": {"peak": 3e-2}, "3e-3, no warm-up": {"warmup": 0}}.items():
    model = build()
    logs[name] = train(model, **options)
    scores[name] = accuracy(model)
    at_peak = np.mean(logs[name]["relative step"][STEPS // 10 :][:10])
    print(f"{name:17} accuracy {scores[name]:.1%}   relative step after the warm-up {at_peak:.0e}")
assert FAST or min(scores["3e-3"], scores["3e-3, no warm-up"]) > max(scores["3e-5"], scores["3e-2"]) + 0.3


# %%
lesson.curves(
    {name: smooth(log["loss"]) for name, log in logs.items()},
    xlabel="step",
    ylabel="loss",
    alt="Losses of four learning rates: two reach zero; those of 3e-5 and 3e-2 stay near 1.4.",
)

# %%
lesson.curves(
    {name: smooth(log["relative step"]) for name, log in logs.items()},
    xlabel="step",
    ylabel="relative step",
    yscale="log",
    alt="Relative steps on a logarithmic scale: that of 3e-5 is far below 0.001, that of 3e-2 far above 0.01.",
)

# %% [markdown]
# The two bad losses look alike: they hardly leave $\log 4 \approx 1.39$, the loss of guessing, although more answers
# are right than by guessing. The relative step tells them apart. At 3e-5 the weights barely move; at 3e-2 they jump.
# Look at it right after the warm-up, where it is about largest. As a rule of thumb, 1e-3 to 1e-2 is a good range for
# such models.
#
# Leaving out the warm-up changed nothing here, but it can. AdamW divides by the root of an average of squared
# gradients. At the first step the average has only one entry, so every weight moves by the full learning rate, however
# small or wrong its gradient is. Two blocks whose head starts at zero forgive that. Six blocks with an ordinary head
# and a large rate do not:

# %%
deep_logs = {}
for name, warmup in (("warm-up", STEPS // 10), ("no warm-up", 0)):
    model = build(layers=6, zero_head=False)
    deep_logs[name] = train(model, peak=1.3e-2, warmup=warmup)
    scores[name] = accuracy(model)
    print(f"{name:10}  accuracy {scores[name]:.1%}, highest loss {max(deep_logs[name]['loss']):.1f}")
assert FAST or scores["warm-up"] > scores["no warm-up"] + 0.1

# %%
lesson.curves(
    {name: smooth(log["loss"]) for name, log in deep_logs.items()},
    xlabel="step",
    ylabel="loss",
    alt="With warm-up the loss of six blocks falls to zero; without, it jumps up first and stays high.",
)

# %% [markdown]
# ## 3. A saturated sigmoid
#
# Version 1.0 makes its maps by a sigmoid, whose slope is $A (1 - A)$. On raw pixels the logits are large from the
# start: most weights are within 0.01 of 0 or 1, where the slope is nearly 0. For control, the third model has a
# LayerNorm before its maps.


# %%
def saturated(maps):
    """Share of weights that are at most 0.01 away from 0 or 1."""
    return (np.abs(maps - 0.5) > 0.49).mean()


rows, raw_test = {}, test_images.astype("float32")
kinds = {"normalized": (x, test_x, False), "raw": (raw, raw_test, False), "raw, LayerNorm": (raw, raw_test, True)}
for name, (inputs, test_inputs, pre_norm) in kinds.items():
    model = build(version="1.0", pre_norm=pre_norm)
    start = model.maps(test_inputs).data
    train(model, inputs)
    rows[name] = end = model.maps(test_inputs).data
    scores[name] = accuracy(model, test_inputs)
    assert FAST or name != "raw" or 0.5 < saturated(start) < saturated(end)
    print(f"{name:14} saturated {saturated(start):.0%}, then {saturated(end):.0%}; accuracy {scores[name]:.1%}")
assert FAST or scores["normalized"] > scores["raw, LayerNorm"] > scores["raw"] + 0.05

# %%
lesson.images(
    {name: maps[0] for name, maps in rows.items()},
    low=0,
    high=1,
    side=0.7,
    alt="Eight maps of an image for three models after training; those on raw pixels are nearly all light.",
)

# %% [markdown]
# Training on raw pixels did not free the weights: more reached the flat part than left it. The LayerNorm keeps the maps
# open, but it does not bring all of the accuracy back; the blocks, too, get raw tokens. So normalize the images, and
# look at the share of saturated weights *before* training; it costs one forward pass.
#
# ## 4. All maps equal
#
# It sounds sensible to start with even maps by setting the last layer of TokenLearner to zero.

# %%
zeros = build()
zeros.tokenizer.mlp.fc2.weight.data[...] = 0  # (64, 8), a column for each map
zeros.tokenizer.mlp.fc2.bias.data[...] = 0
train(zeros)
with no_grad():
    maps = {"random start": healthy.maps(test_x).data, "zero start": zeros.maps(test_x).data}
print(f"accuracy {accuracy(zeros):.1%}, largest difference between maps {np.ptp(maps['zero start'], axis=1).max():.1e}")
assert np.ptp(maps["zero start"], axis=1).max() < 1e-5
assert FAST or accuracy(healthy) > accuracy(zeros) + 0.1

# %%
lesson.images(
    {"image": test_images[:1]} | {name: A[0] for name, A in maps.items()},
    side=0.7,
    alt="Eight maps of an image after training: eight different ones from a random start, one eight times from zero.",
)

# %% [markdown]
# All columns of the layer are equal, so all maps and all tokens are equal. The blocks treat equal tokens equally, so
# all columns get the same gradient, and after the update they are equal again, forever. The model pays for eight tokens
# and has one. Nothing in the loss says so; it falls.
# **Random numbers must break the symmetry.** minitl starts this layer small, not at zero. (The head may start at zero:
# its columns get different gradients, since each belongs to another class.)
#
# ## 5. Positions too small
#
# Now another question about the same images: in which of the four rows of patches is the red object? Only the labels
# change, and two learned tokens are enough; guessing gives 25 % again. minitl's
# `positions="random"` starts the position embeddings as small random numbers, with a standard deviation of 0.02 as in
# many ViTs; `"waves"` starts them larger.

# %%
runs, positions = {}, {}
for name in ("random", "waves"):
    model = build(positions=name, num_tokens=2)
    size = np.linalg.norm(model.pos_embed.data, axis=-1).mean()
    content = np.linalg.norm(model.patch_embed(nn.vit.patchify(Tensor(x[:500]), 4)).data, axis=-1).mean()
    runs[name] = train(model, labels=red_row)
    positions[name] = accuracy(model, labels=test_red_row)
    print(f"{name:6}  length of a position {size:.2f}, of a patch {content:.1f}; accuracy {positions[name]:.1%}")
assert FAST or (positions["random"] < 0.45 and positions["waves"] > 0.9)

# %%
lesson.curves(
    {name: smooth(log["loss"]) for name, log in runs.items()},
    xlabel="step",
    ylabel="loss",
    alt="The loss with waves falls to zero within a hundred steps; that with small random positions never falls.",
)

# %% [markdown]
# A token is content plus position. If the position is a small part of it, the layers hardly learn to read it in so few
# steps, and what is not read gets hardly any gradient that would tell it how to grow. Compare the two lengths before
# you train. In clips motion is a matter of position, and so lesson [10](10_video.ipynb) starts with waves.
#
# ## 6. A reshape for a transpose
#
# Attention with $h$ heads splits each token of $C$ numbers into $h$ parts: $(B, N, C)$ becomes $(B, h, N, C/h)$. This
# takes a `reshape` to $(B, N, h, C/h)$ and a `transpose`. A `reshape` alone gives the same shape. Lesson
# [04](04_attention.ipynb) met this slip; here it is trained, without TokenLearner, on all 16 tokens.


# %%
def transposed(z, h):
    return z.reshape(*z.shape[:2], h, -1).transpose(0, 2, 1, 3)


def reshaped(z, h):
    return z.reshape(z.shape[0], h, z.shape[1], -1)


def heads(attn, split, z):
    """The heads of attention, (B, N, C) -> (B, N, C)."""
    h, C = attn.num_heads, z.shape[2]
    qkv = attn.qkv(z)
    q, k, v = (split(qkv[:, :, i * C : (i + 1) * C], h) for i in range(3))  # (B, h, N, C/h) each
    y = ops.softmax(q @ k.transpose(0, 1, 3, 2) * (C / h) ** -0.5) @ v
    return (y.transpose(0, 2, 1, 3) if split is transposed else y).reshape(*z.shape)


# %%
def influence(attn):
    """How far output i moves when token j changes, (16, 16)."""
    z = np.repeat(np.random.default_rng(0).standard_normal((1, 16, 48)), 17, axis=0).astype("float32")
    z[np.arange(1, 17), np.arange(16)] += 1  # token j is another in row 1 + j
    y = attn.heads(Tensor(z)).data
    return np.linalg.norm(y[1:] - y[0], axis=-1).T


moves, split_scores = {}, {}
for split in (transposed, reshaped):
    model = build(tokenizer="none", heads=4)
    before = influence(model.blocks[0].attn)
    for block in model.blocks:
        block.attn.heads = functools.partial(heads, block.attn, split)
    moves[split.__name__] = influence(model.blocks[0].attn)
    assert np.allclose(moves[split.__name__], before, atol=1e-5) == (split is transposed)
    train(model)
    split_scores[split.__name__] = accuracy(model)
    print(f"{split.__name__:10} accuracy {split_scores[split.__name__]:.1%}")
assert FAST or split_scores["transposed"] > split_scores["reshaped"] + 0.3

# %%
lesson.matrices(
    moves,
    xlabel="token that changes",
    ylabel="output that moves",
    unit="length",
    low=0,
    alt="Two matrices: with a transpose every output moves, with a reshape only those in four blocks on the diagonal.",
)

# %% [markdown]
# In memory the numbers lie token after token. A `reshape` to $h$ heads cuts this line of numbers into $h$ pieces, so
# "head 1" is the first four tokens and not the first part of all. Each row of patches talks to itself alone, and the
# cue is heard in the first row only. Shapes, gradients and `check_gradients` are all in order: it *is* a differentiable
# function, but not attention. Only a test of what it should do finds it: change one input, see which outputs move.
#
# ## 7. Tokens too early
#
# TokenLearner may stand before the first block or after it. In the first case a map is computed from each place alone.
# No place but the corner knows the cue, so the maps cannot choose the object that is asked for.

# %%
early = {S: build(num_tokens=S) for S in (1, 2, 4)}
for model in early.values():
    train(model)
late = build(num_tokens=1, loc=1)
train(late)
early_scores = {S: accuracy(model) for S, model in early.items()} | {8: accuracy(healthy)}
late_score = accuracy(late)
for S, score in early_scores.items():
    print(f"{S} learned, before the blocks: accuracy {score:.1%}")
print(f"1 learned, after a block: accuracy {late_score:.1%}")
assert FAST or abs(early_scores[1] - accuracy(zeros)) < 0.1  # one token, and eight equal ones
assert FAST or (early_scores[1] < 0.85 and min(early_scores[8], late_score) > 0.95)

# %%
points = {"before the blocks": (list(early_scores), list(early_scores.values())), "after a block": ([1], [late_score])}
lesson.curves(
    points,
    xlabel="learned tokens",
    ylabel="accuracy",
    marks=True,
    alt="Before the blocks, accuracy grows with the number of tokens; after one block a single token is enough.",
)

# %% [markdown]
# A token is an average, and an average of six objects keeps a little of each; with more tokens, fewer colors share one.
# (One token does as well as the eight equal ones of fault 4.) After one block the corner has asked all others and knows
# the answer, and one token is enough.
#
# So ask: *could a place know from itself and its neighbors that it matters?* On CLUTTER it can, since red is red. If
# not, let the tokens talk for a block first, or take more tokens. [RESULTS.md](RESULTS.md) has the accuracy of a deeper
# model for each location.
#
# ## The table to keep
#
# | symptom | cause | look at | repair |
# |---|---|---|---|
# | loss is NaN | overflow, 0/0 | the first op with a bad result | subtract the maximum; normalize; smaller rate |
# | loss stays at that of guessing | rate too large or too small | relative step | aim at 1e-3 to 1e-2; warm-up |
# | maps black and white | saturated sigmoid | share of saturated weights | normalize; LayerNorm; softmax |
# | eight tokens as good as one | all maps equal | differences between maps | random start |
# | cannot tell *where* | positions too small | length of position and of content | `positions="waves"` |
# | learns, but not enough | `reshape` for `transpose` | which outputs move | split, then transpose |
# | more tokens help a lot | tokens too early | the same with `loc=1` | a block before, or more tokens |
#
# ## Exercises
#
# **1. Five patients.** `patients()` returns the maps $(S, H, W)$ of five models for the same image. They should be a
# softmax over the places. One is `"healthy"`; the others are `"equal"`, `"saturated"` (a sigmoid), have the softmax
# over the `"wrong axis"`, or a `"reshape"` for a transpose. Decide by numbers: sums over places and over tokens,
# differences between maps, the share of weights near 1.

# %%
for name, A in patients().items():
    print(name, A.shape)

diagnosis = None  # five words, in the order of the patients
check(diagnosis=diagnosis)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# for name, A in patients().items():
#     places, tokens = A.sum((1, 2)), A.sum(0)
#     print(name, f"sums over places: {places.min():.2f} to {places.max():.2f}", end="   ")
#     print(f"over tokens: {tokens.min():.2f} to {tokens.max():.2f}", end="   ")
#     print(f"differences up to {np.ptp(A, 0).max():.2f}, above 0.99: {(A > 0.99).mean():.0%}")
#
# check(diagnosis=("wrong axis", "equal", "reshape", "saturated", "healthy"))
# ```
#
# A softmax leaves a trace: sums of 1 along its axis. A `reshape` keeps all numbers, so the total is right and the sum
# of each map is not.
#
# </details>
#
# **2. Nothing to attend to.** Clips of different lengths are padded, and a mask says which tokens exist. Write
# `masked_softmax(x, mask)`: a softmax over the last axis in which entries with a mask of `False` have weight 0. A row
# without any `True` gets zeros. Nothing may be NaN, however large the entries of `x` are.


# %%
def masked_softmax(x, mask): ...


check(masked_softmax)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# def masked_softmax(x, mask):
#     x = np.where(mask, x, -np.inf)
#     top = x.max(-1, keepdims=True)
#     e = np.exp(x - np.where(np.isfinite(top), top, 0))  # exp(-inf) is 0, but -inf minus -inf is NaN
#     return e / np.maximum(e.sum(-1, keepdims=True), 1)  # a row with a True has a sum of at least 1
#
#
# check(masked_softmax)
# ```
#
# </details>

# %% [markdown]
# ## A quiz on the course
#
# Answer on paper before you unfold.
#
# **1.** Derive the backward of softmax, $y_i = e^{x_i} / \sum_j e^{x_j}$.
#
# <details><summary>What you should have said</summary>
#
# $x_i$ is in the numerator of $y_i$ and in every denominator, so $\partial y_j / \partial x_i = y_j (\delta_{ij} -
# y_i)$. Every output hands its share back, and shares add:
# $dx_i = \sum_j dy_j\, y_j (\delta_{ij} - y_i) = y_i \,(dy_i - \sum_j dy_j\, y_j)$.
#
# </details>
#
# **2.** Why does an engine need `unbroadcast`?
#
# <details><summary>What you should have said</summary>
#
# Broadcasting uses one number in several places. The gradient comes back in the large shape, one entry for each use,
# and gradients of several uses add. So it is summed over the axes that were repeated, and has the input's shape again.
#
# </details>
#
# **3.** Why does attention's backward need only $A$, $q$, $k$ and $v$?
#
# <details><summary>What you should have said</summary>
#
# The backward of a product needs its factors: $A$ and $v$ for $y = A v$, and $q$ and $k$ for $l = q k^\top / \sqrt d$.
# The backward of softmax needs its result $A$. Nobody asks for the scores $l$ again.
#
# </details>
#
# **4.** What does TokenLearner cost, and what does it save?
#
# <details><summary>What you should have said</summary>
#
# It costs, once, the network of the maps at all $N$ places and $N S C$ multiply-adds for the averages. Each later block
# works on $S$ tokens: its linear layers need $S / N$ of the multiply-adds, attention's products $(S / N)^2$. So it
# saves the more, the more blocks follow.
#
# </details>
#
# **5.** When does it not help?
#
# <details><summary>What you should have said</summary>
#
# When what matters fills the image: a grid does as well. When a block has mixed the tokens before: a grid does nearly
# as well ([00](00_eight_tokens.ipynb)). When a place cannot know that it matters: fault 7. When few blocks follow, or
# most work lies before it: there is little to save.
#
# </details>

# %% [markdown]
# The first and the third answer in code: the backward below uses $A$, $q$, $k$, $v$ and nothing else.


# %%
@op
def attention_of_four(q, k, v):
    root = np.sqrt(q.shape[1])
    logits = q @ k.T / root  # the scores l
    e = np.exp(logits - logits.max(1, keepdims=True))
    A = e / e.sum(1, keepdims=True)

    def backward(dy):
        dA = dy @ v.T
        dl = A * (dA - (dA * A).sum(1, keepdims=True))
        return dl @ k / root, dl.T @ q / root, A.T @ dy

    return A @ v, backward


check_gradients(attention_of_four, *rng.standard_normal((3, 5, 4)))

# %% [markdown]
# ## What you can do now
#
# - Log three numbers, and tell from them whether a run is healthy.
# - Name the first op that goes wrong, and test a layer by what it should do, not by its shape.
# - Explain what TokenLearner gains, and when it gains nothing.
#
# **Next:** back to [the first lesson](00_eight_tokens.ipynb) with other eyes, or on to the code: the README says in
# which order to read the files of `minitl`.
