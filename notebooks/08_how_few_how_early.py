# %% [markdown]
# # 08 · How few, how early?
#
# A model that reduces its tokens has two dials: how many are left, and after how many blocks. This lesson turns both,
# with a meter of multiply-adds beside the accuracy. It shows a place where learned tokens are no better than a grid.
# And it answers the question that most readers ask by now: why not take the 64 tokens and merge similar ones, without
# training anything?
#
# | | |
# |---|---|
# | **Goal** | know what each way to have fewer tokens costs, what it needs, and when it wins |
# | **Time** | 45 minutes to read, 60 seconds to run on two cores of an AMD EPYC |
# | **You need** | attention from [04](04_attention.ipynb), TokenLearner 1.1 from [07](07_tokenlearner_softmax.ipynb) |

# %%
import dataclasses

import numpy as np
from checks import check
from lesson import FAST, bars, curves, images, load_curve, load_model

from minitl import data, flops, nn, no_grad, ops, optim

rng = np.random.default_rng(0)
test = data.sample(rng, 200 if FAST else 1000)  # images that no model has seen
whole, meta = load_model("all-64")
x = data.normalize(test.images, meta["mean"], meta["std"])

# %% [markdown]
# ## A meter
#
# We count multiply-adds for one image. Let a block attend to $N$ tokens of width $C$, with an MLP of hidden width
# $M$. Each linear layer from $a$ to $b$ numbers needs $ab$ per token, and attention compares every token with all:
#
# | part of a block | multiply-adds |
# |---|---|
# | q, k, v and the layer behind the heads | $4 N C^2$ |
# | $q k^\top$ and the product of the weights with $v$ | $2 N^2 C$ |
# | MLP | $2 N C M$ |
#
# The models of this lesson have two blocks. We count blocks from 0, as minitl does; `loc` is the first block that gets
# few tokens. TokenLearner 1.1 leaves $S$ of the 64 tokens. It has an MLP with 64 hidden units at each place, which
# gives $S$ numbers, and then takes $S$ weighted means.

# %%
C, M, N, hidden = 48, 96, 64, 64


def block(N):
    return 4 * N * C**2 + 2 * N**2 * C + 2 * N * C * M


def learner(S):
    return N * (C * hidden + hidden * S) + S * N * C


def meter(S, loc, tokenizer=0):
    """Multiply-adds of a model with S tokens from block ``loc`` on; embedding and head are the same for all."""
    return N * C * C + loc * block(N) + tokenizer + (2 - loc) * block(S) + C * 8


# %% [markdown]
# The folder `models` has seven trained models, which differ in nothing but their reduction. Static maps cost the
# weighted means only. The mean over a cell of a grid costs nothing here: it needs additions, but no multiply-adds.
# `flops.count` is minitl's own meter. Both must agree.

# %%
saved = {
    "all 64": ("all-64", meter(64, 0)),
    "learned, before block 0": ("learner-8", meter(8, 0, learner(8))),
    "learned, after block 0": ("late-learner-8", meter(8, 1, learner(8))),
    "static, before block 0": ("static-8", meter(8, 0, 8 * N * C)),
    "2 × 4 grid, before block 0": ("grid-8", meter(8, 0)),
    "4 × 4 grid, before block 0": ("grid-16", meter(16, 0)),
    "2 × 4 grid, after block 0": ("late-grid-8", meter(8, 1)),
}
models = {title: load_model(name)[0] for title, (name, _) in saved.items()}


def macs(model):
    """Multiply-adds of a model for one image, in millions."""
    return flops.total(flops.count(model.config, model.spec)).macs / 1e6


for title, (_, counted) in saved.items():
    print(f"{title:27} {counted / 1e6:.2f} million")
    assert counted / 1e6 == macs(models[title])

# %%
S = np.arange(1, 65)
cost = {f"TokenLearner before block {loc}": (S, [meter(s, loc, learner(s)) / 1e6 for s in S]) for loc in (0, 1)}
cost["all 64 tokens"] = ([1, 64], [macs(whole)] * 2)
alt = "The cost rises with the tokens left, before block 0 from an eighth of that of all, before block 1 from half."
curves(cost, "tokens left", "million multiply-adds", alt, ylim=(0, None))
share = meter(1, 1, learner(1)) / meter(64, 0)
print(f"one token from block 1 on: {share:.0%} of the cost of all tokens, and no less")
assert 0.5 < share < 0.65

# %% [markdown]
# The dial "how early" is the stronger one. In a model of two blocks, whoever waits for one block keeps more than half
# of the cost, however few tokens are left. In general, `loc` of $D$ blocks cost as much as before, so the saving is at
# most $1 - \text{loc} / D$.
#
# ## Exercise 1: a block that reduces in its middle
#
# Later we meet methods that reduce *inside* a block: attention, with the layer behind its heads, works on all $N$
# tokens, and the MLP on the $S$ that are left. How many multiply-adds does such a block need?


# %%
def reducing_block(N, S, C, M):
    """Multiply-adds of a block that attends to N tokens and leaves S of them to its MLP."""
    ...


check(reducing_block)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Only the MLP gets cheaper:
#
# ```python
# def reducing_block(N, S, C, M):
#     return 4 * N * C**2 + 2 * N**2 * C + 2 * S * C * M
#
#
# check(reducing_block)
# ```
#
# </details>
#
# ## How few?
#
# The file `curves/reductions.csv` has the results of more models, each trained as long as those of the folder, with one
# row for each model and seed. The cell prints the commands that made it. We take the mean of two seeds.

# %%
command, table = load_curve("reductions")
print(command)
rows, trained = list(zip(table["name"], table["macs"], table["accuracy"], strict=True)), {}
for name, cost, _ in rows:  # name -> (million multiply-adds, mean accuracy)
    trained[name] = cost / 1e6, np.mean([share for other, _, share in rows if other == name])
few = [1, 2, 4, 8, 16]
learned = [trained[f"{n} tokens"] for n in few]
for n, (cost, accuracy) in zip(few, learned, strict=True):
    print(f"{n:2} learned tokens   {cost:.2f} million   {accuracy:.1%}")
assert learned[0][1] > 0.85 and learned[2][1] > learned[0][1] + 0.03 and learned[4][1] < learned[2][1] + 0.02

# %%
lines = {"learned": (few, [share for _, share in learned]), "all 64": ([64], [trained["all tokens"][1]])}
ticks = {"xscale": "log", "xticks": [*few, 64], "xticklabels": [*few, 64], "ylim": (0.85, 1)}
alt = "Learned tokens rise from nine in ten images with one token to the level of all 64 with four."
curves(lines, "tokens left before block 0", "accuracy", alt, marks=True, **ticks)

# %% [markdown]
# A single token, 48 numbers for the whole image, is enough for nine images in ten. From four on, more tokens gain
# nothing here. A likely reason: the red object covers several patches, and its shape has to fit into the tokens. One
# mean of these patches no longer tells which of them was where; several different means can.
#
# Now the controls. Both have few tokens as well, but they choose without looking at the image: the grid takes the
# mean of each of its cells, the static model has maps that were learned and then stay the same for all images.


# %%
def accuracy(model):
    with no_grad():
        return np.mean(np.concatenate([model(part).data.argmax(1) for part in np.split(x, 10)]) == test.labels)


right = {title: accuracy(model) for title, model in models.items()}
if not FAST:
    assert right["learned, before block 0"] > 0.93 > 0.6 > right["4 × 4 grid, before block 0"]
    assert right["static, before block 0"] < 0.3

# %%
before = {title.split(",")[0]: share for title, share in right.items() if "after" not in title}
alt = "All 64 and eight learned tokens get nearly all images right, the grid of 16 less than half, the others few."
bars(before, "accuracy, reduced before block 0", alt, chance=1 / 8, xlim=(0, 1))

# %% [markdown]
# With eight tokens, grid and static maps are hardly better than guessing. Their maps show why.

# %%
with no_grad():
    drawn = {title.split(",")[0]: models[title].maps(x[:1]).data[0] for title in list(saved)[1:5] if "before" in title}
picture = {name: [test.images[0], *maps] for name, maps in drawn.items()}
alt = "Learned maps lie on or beside the red object, static maps are spots anywhere, grid cells cover all places."
images(picture, alt, [["image", *(f"map {s}" for s in range(8))]], side=0.9)

# %% [markdown]
# The learned maps have found the red cross at the lower left. A static map reads the same spots in every image, and a
# cell of the grid mixes eight patches, few of which are the object's. (Each map is scaled by its own largest weight.)
#
# ## How early? Where TokenLearner does not help
#
# Now the second dial. The two models "after block 0" let one block work on all 64 tokens first.

# %%
pairs = {"TokenLearner, 8 tokens": "learned", "2 × 4 grid, 8 tokens": "2 × 4 grid"}
lines = {"all 64": ([macs(whole)], [right["all 64"]])}
for name, title in pairs.items():
    places = [f"{title}, before block 0", f"{title}, after block 0"]
    lines[name] = [macs(models[p]) for p in places], [right[p] for p in places]
gap = right["learned, after block 0"] - right["2 × 4 grid, after block 0"]
print(f"after one block TokenLearner is {gap:.1%} ahead of the grid")
if not FAST:
    assert gap < 0.06 and right["2 × 4 grid, after block 0"] > right["2 × 4 grid, before block 0"] + 0.5

# %%
alt = "Before block 0 the grid fails and TokenLearner does not; after block 0, at higher cost, both are good."
curves(lines, "million multiply-adds", "accuracy", alt, marks=True, ylim=(0, 1.02), xlim=(0, 3.5))

# %% [markdown]
# After one block, a grid does nearly as well as learned tokens, and it costs less. How can means over fixed cells be
# enough there? Lesson 00 gave a reason: the first block has already carried the news of the red object to all places.
# It did not test it. Take one token per image from a random place that the object does *not* touch, and see whether a
# linear map of its 48 numbers and a bias tells the class. We fit the map to the one-hot labels by least squares on one
# half of the images, and count on the other.


# %%
def covered(start, end):
    """The share of each row or column of patches between start and end, in pixels: (B,), (B,) -> (B, 8)."""
    edge = np.arange(8) * 4
    return (np.minimum(end[:, None], edge + 4) - np.maximum(start[:, None], edge)).clip(0) / 4


y0, x0, y1, x1 = test.boxes.T
cover = covered(y0, y1)[:, :, None] * covered(x0, x1)[:, None]  # (B, 8, 8): how much of each patch is in the box
touched = cover > 0
away = (~touched.reshape(-1, 64) * rng.random((len(x), 64))).argmax(1)  # one free place per image


def news(tokens):
    """How often the class can be read from one token that the object does not touch: (B, N, C) -> share."""
    one, half = np.c_[tokens[np.arange(len(x)), away], np.ones(len(x))], len(x) // 2
    W = np.linalg.lstsq(one[:half], np.eye(8)[test.labels[:half]], rcond=None)[0]
    return ((one[half:] @ W).argmax(1) == test.labels[half:]).mean()


# %%
known = {}
for title in ("2 × 4 grid, after block 0", "learned, after block 0"):
    with no_grad():
        tokens = models[title]._embed(x)  # what block 0 gets
        known[f"{title.split(',')[0]} model, patches"] = news(tokens.data)
        known[f"{title.split(',')[0]} model, after block 0"] = news(models[title].blocks[0](tokens).data)
if not FAST:
    assert known["2 × 4 grid model, after block 0"] > 0.4 > 0.25 > sorted(known.values())[-2]

# %%
alt = "Only in the grid model, after block 0, the class can be read from a token away from the object."
bars(known, "class read from a token away from the object", alt, chance=1 / 8, xlim=(0, 1))

# %% [markdown]
# The reason holds, but for one of the two models only. In the grid model, block 0 has learned to send the class to
# places far from the object. In the model with TokenLearner a linear map finds nothing of it there. Its tokens are
# fetched from the object itself, so nothing asks for it. Attention is a way to choose by content, too, and a model
# that has paid for one block on all tokens does not need a second way. **TokenLearner is worth its cost where it
# spares that block.**
#
# ### When the place is known
#
# There is a second case in which maps need not depend on the image. Here the red object may be anywhere. Photographs
# are taken by people who point at something. We shift all images of CLUTTER so that the red object is in the middle,
# and train briefly, from scratch, with learned and with static maps.

# %%
STEPS = 5 if FAST else 300
train_set = data.sample(rng, 500 if FAST else 10_000)


def centered(part):
    """Images shifted, with what leaves one side coming back on the other, so that the object is in the middle."""
    middle = (part.boxes[:, :2] + part.boxes[:, 2:]) // 2
    return np.stack([np.roll(image, 16 - at, axis=(0, 1)) for image, at in zip(part.images, middle, strict=True)])


def train(tokenizer, pictures, labels):
    """Return a model trained for STEPS steps, as in lesson 05."""
    rng = np.random.default_rng(0)
    model = nn.ViT(nn.ViTConfig(version="1.1", pre_norm=False, tokenizer=tokenizer), train_set.spec, rng)
    optimizer = optim.AdamW(model.parameters(), weight_decay=0.05)
    for step in range(STEPS):
        batch = rng.integers(len(pictures), size=100)
        loss = ops.cross_entropy(model(data.normalize(pictures[batch], meta["mean"], meta["std"])), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.clip_grad_norm(1.0)
        optimizer.lr = optim.warmup_cosine(step, STEPS, STEPS // 10, 3e-3)
        optimizer.step()
    return model


# %%
views = {"anywhere": (train_set.images, test.images), "centered": (centered(train_set), centered(test))}
short = {}
for where, (seen, unseen) in views.items():
    for tokenizer in ("learner", "static"):
        model = train(tokenizer, seen, train_set.labels)
        with no_grad():
            logits = model(data.normalize(unseen, meta["mean"], meta["std"])).data
        short[f"{where}, {tokenizer}"] = (logits.argmax(1) == test.labels).mean()

# %%
images({where: unseen[:8] for where, (_, unseen) in views.items()}, "The same images, below with the object centered.")
alt = "With objects anywhere, static maps fail; with centered objects they are nearly as good as TokenLearner."
bars(short, f"accuracy after {STEPS} steps", alt, chance=1 / 8, xlim=(0, 1))
if not FAST:
    assert short["anywhere, learner"] > short["anywhere, static"] + 0.15
    assert short["centered, static"] > max(0.8, short["centered, learner"] - 0.15)

# %% [markdown]
# With the object in the middle, the static maps nearly catch up: training can find the right place once and for all.
# The pictures of CIFAR-10 are of this kind, and there a grid with as many tokens does at least as well as TokenLearner
# ([lesson 11](11_cifar.ipynb), [all figures](RESULTS.md#what-each-part-of-the-recipe-contributes)). Ask of your own
# images: does the place of what matters change from one to the next?
#
# ## Why not just merge?
#
# Two well-known methods have no weights at all. Like TokenLearner they compute $Z = A x$ with a matrix $A$ of shape
# $(S, N)$ whose rows add up to 1. Only the rule for $A$ differs.
#
# - **ToMe** ([token merging](https://arxiv.org/abs/2210.09461)): the tokens are split alternately into two sets. Each
#   token of the first finds the most similar one of the second, by the cosine of their keys. The $N - S$ most similar
#   pairs are merged into their mean;
#   if several chose the same partner, all of them become one mean with it.
# - **[EViT](https://arxiv.org/abs/2202.07800)**: the $S - 1$ tokens that receive most attention stay. All others are
#   fused into one, their mean weighted by the attention that they receive. (There it is the attention of a *class
#   token*, an extra token from which the class is read. Our models have none, so it is the mean over all tokens that
#   read, and over the heads.)
#
# Both need keys or attention weights, so they work in the middle of a block, after its attention. In later blocks,
# ToMe adds $\log n$ to the logits of a token that stands for $n$, so that it counts as $n$ tokens in the softmax:
# $e^{l + \log n} = n\, e^l$. Here is ToMe's rule. The keys are those of block 0, the mean over the heads.


# %%
def merging(keys, S):
    """ToMe's matrix A (S, N) for the keys (N, d) of one image."""
    N, k = len(keys), keys / np.linalg.norm(keys, axis=1, keepdims=True)
    cosine = k[0::2] @ k[1::2].T  # even tokens look for a partner among the odd ones
    partner, order = cosine.argmax(1), (-cosine.max(1)).argsort()  # of the even ones; the most similar first
    merged, kept = order[: N - S], order[N - S :]
    A, odd = np.zeros((S, N)), np.arange(N // 2)  # rows of A: the even tokens that are kept, then all odd ones
    A[np.arange(len(kept)), 2 * kept] = 1
    A[len(kept) + odd, 2 * odd + 1] = 1
    A[len(kept) + partner[merged], 2 * merged] = 1
    return A / A.sum(1, keepdims=True)


# %% [markdown]
# In minitl the rules are `tokenizer="merge"` and `tokenizer="topk"`. They have no weights, so those of a model that was
# trained with all 64 tokens fit at once: same names, same shapes.


# %%
def reduced(rule, S, loc=0):
    """The model that was trained with all 64 tokens, with S of them left from block ``loc`` on; nothing is trained."""
    model = nn.ViT(dataclasses.replace(whole.config, tokenizer=rule, num_tokens=S, loc=loc), whole.spec)
    model.load_state_dict(whole.state_dict())
    return model.eval()


with no_grad():
    first = whole.blocks[0]
    qkv = first.attn.qkv(first.norm1(whole._embed(x[:20]))).data.reshape(20, N, 3, 3, 16)  # (B, N, q k v, heads, d)
    A = reduced("merge", 32).maps(x[:20]).data.reshape(20, 32, N)
assert np.allclose(A, [merging(keys, 32) for keys in qkv[:, :, 1].mean(2)], atol=1e-6)

# %%
with no_grad():
    groups, tokens = (reduced(rule, S).maps(x).data > 0 for rule, S in (("merge", 40), ("topk", 8)))
size = (groups.sum((2, 3), keepdims=True) * groups).sum(1)  # of the group of each patch
kept = tokens[:, :-1].any(1)
print(f"{touched[kept].mean():.0%} of the patches that EViT keeps touch the red object, {touched.mean():.0%} of all do")
rows = {"image": test.images[:6], "ToMe, 40": size[:6], "EViT, 8": kept[:6]}
alt = "ToMe's groups lie everywhere; of the seven patches that EViT keeps, several lie on the red object."
images(rows, alt, side=1.2)

# %% [markdown]
# In the second row a black patch has stayed alone; the lighter a patch, the more are in its group. In the third row
# the seven patches that EViT keeps are light. They touch the red object several times as often as others do: training
# has taught attention to look there, and EViT uses that.
#
# ## Exercise 2: EViT's rule
#
# Write EViT for one image, from the attention that each token receives. The kept tokens come first, in descending
# order of attention; the fused one comes last.


# %%
def keep_and_fuse(received, x, S):
    """received (N,), x (N, C) -> (S, C)"""
    ...


check(keep_and_fuse)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# def keep_and_fuse(received, x, S):
#     order = np.argsort(-received)
#     rest = order[S - 1 :]
#     fused = received[rest] @ x[rest] / received[rest].sum()
#     return np.concatenate([x[order[: S - 1]], fused[None]])
#
#
# check(keep_and_fuse)
# ```
#
# </details>
#
# ## Without training
#
# How far can the tokens of the trained model be reduced? As a control we also put the simplest rule into it: the mean
# of each cell of a grid. It has no weights either.

# %%
untrained = {
    "ToMe in block 0": ("merge", [56, 48, 40, 32], 0),
    "EViT in block 0": ("topk", [32, 16, 8, 4], 0),
    "grid before block 0": ("pool", [32, 16, 8], 0),
    "ToMe in block 1": ("merge", [48, 32], 1),
    "EViT in block 1": ("topk", [32, 8, 2], 1),
}
free = {name: (left, [accuracy(reduced(rule, S, loc)) for S in left]) for name, (rule, left, loc) in untrained.items()}
for name, (left, shares) in free.items():
    print(f"{name:20}", "   ".join(f"{S}: {share:.1%}" for S, share in zip(left, shares, strict=True)))

# %%
alt = "ToMe falls steeply from 40 to 32 tokens, EViT slowly from 32 to 4; in block 1 both lose little down to 8."
curves(free, "tokens left", "accuracy without training", alt, marks=True, ylim=(0, 1.02))
print(f"all 64: {right['all 64']:.1%}")
if not FAST:
    tome, evit, grid = (dict(zip(*free[name], strict=True)) for name in list(free)[:3])
    assert tome[48] > 0.9 > 0.75 > tome[32] and evit[32] > 0.93 and evit[16] > evit[8] > evit[4]
    assert evit[8] > grid[8] + 0.4 and min(free["ToMe in block 1"][1] + free["EViT in block 1"][1][:2]) > 0.93
    assert touched[kept].mean() > 2 * touched.mean()

# %% [markdown]
# - **ToMe** loses nearly nothing as long as pairs that look alike are left, which here is a quarter of the tokens. At
#   32 every even token has to merge, and accuracy falls steeply.
# - **EViT** can do without half of the tokens. With 8 it is far better than the grid, and has lost a tenth of the
#   images.
# - In block 1, ToMe loses little with 32 tokens and EViT with 8: block 0 has worked on all of them before. With 2, EViT
#   errs there, too.
#
# What is lost? We take the patches that lie in the object's box by more than half, and count how many of them end up
# in one token together with a patch that the object does not touch.

# %%
inside = cover > 0.5


def mixed(rule, S):
    """The share of the object's patches that are mixed with background."""
    with no_grad():
        group = reduced(rule, S).maps(x).data > 0  # (B, S, 8, 8)
    foreign = (group & ~touched[:, None]).any((2, 3), keepdims=True)
    return (group & foreign).any(1)[inside].mean()


lost = {name: (left, [mixed(rule, S) for S in left]) for name, (rule, left, _) in list(untrained.items())[:2]}
if not FAST:
    (*_, tome_32), (evit_32, *_) = (shares for _, shares in lost.values())
    assert lost["ToMe in block 0"][1][0] < 0.05 and evit_32 < 0.1 < 0.35 < tome_32

# %%
alt = "The share rises from almost nothing to half for ToMe at 32 tokens, and for EViT from 32 to 4 tokens."
curves(lost, "tokens left", "mixed with background", alt, marks=True, ylim=(0, 1))

# %% [markdown]
# These curves are those of the accuracy, upside down. Where ToMe is forced to merge half of the tokens, half of the
# object's patches get mixed with background. With as many tokens, EViT mixes hardly any.
#
# ## Exercise 3: why not eight?
#
# ToMe is missing at 16 and 8 tokens. It pairs each even token with one odd token, so at most half of the tokens can
# disappear in a block. How many blocks does it need from 64 tokens to 8?

# %%
blocks_needed = None  # your number
check(blocks_needed=blocks_needed)

# %% [markdown]
# <details><summary>Answer</summary>
#
# 64, 32, 16, 8: three. A model of two blocks cannot get there. In the deep models for which ToMe was made, a few tokens
# merge in each of 12 or 24 blocks.
#
# ```python
# blocks_needed = 3
# check(blocks_needed=blocks_needed)
# ```
#
# </details>
#
# ## Trained in
#
# Merging and keeping can also be part of training. The choice itself has no gradient. For ToMe, backward treats $A$
# as a constant; for EViT, the attention weights in $A$ have a gradient. The table has the means of two seeds.

# %%
names = {
    "all tokens": "all 64",
    "8 tokens": "TokenLearner, 8 before block 0",
    "learner, loc 0.5": "TokenLearner, 8 after block 0",
    "grid of 8, loc 0.5": "grid, 8 after block 0",
    "merge 32": "ToMe, 32 in block 0",
    **{f"top-k {S}": f"EViT, {S} in block 0" for S in (32, 16, 8)},
}
for name, title in names.items():
    print(f"{title:31} {trained[name][0]:.2f} million   {trained[name][1]:.1%}")
assert trained["merge 32"][1] > 0.9 and trained["top-k 8"][1] > free["EViT in block 0"][1][2] + 0.04
assert trained["top-k 8"][0] > 1.9 * trained["8 tokens"][0]
assert meter(8, 0, learner(8)) < 4 * N * C**2 + 2 * N**2 * C  # all of TokenLearner's model, and attention to 64 tokens


# %%
def line(points):
    """Pairs (cost, accuracy) as two lists."""
    return [cost for cost, _ in points], [share for _, share in points]


costs = {S: trained[f"top-k {S}"][0] for S in (8, 16, 32)}
untrained_evit = dict(zip(*free["EViT in block 0"], strict=True))
chart = {
    "learned before block 0": line(learned),
    "EViT in block 0, trained in": line([trained[f"top-k {S}"] for S in costs]),
    "EViT in block 0, not trained": line([(cost, untrained_evit[S]) for S, cost in costs.items()]),
    "ToMe in block 0, trained in": line([trained["merge 32"]]),
    "grid of 8 after block 0": line([trained["grid of 8, loc 0.5"]]),
    "all 64": line([trained["all tokens"]]),
}

# %%
alt = "TokenLearner reaches the accuracy of all 64 tokens at less than half the cost of any other method."
curves(chart, "million multiply-adds", "accuracy", alt, marks=True, ylim=(0.82, 1), xlim=(0, 3.5))

# %% [markdown]
# Trained in, all of them are good, and EViT gets back most of what it lost at 8 tokens. What differs is the cost. ToMe
# and EViT decide by the attention of a block, so that block attends to all tokens. Here this alone costs more than
# TokenLearner's whole model. (The points "not trained" are of the one model from the folder, on this lesson's images,
# the others of two other runs each. Between them, a difference of a percent means nothing.)
#
# | | needs | costs | wins when |
# |---|---|---|---|
# | grid | nothing | nothing | a block came before, or the place is known |
# | ToMe | a trained model | a block's attention on all tokens | you cannot train, and a moderate saving is enough |
# | EViT | a trained model whose attention looks at what matters | as ToMe | you cannot train, and few are wanted late |
# | TokenLearner | training | its maps | few tokens are wanted early, and what matters may be anywhere |

# %% [markdown]
# ## What you can do now
#
# - Count what a reduction costs, including the blocks before it, and say what limits the saving.
# - Name two cases in which maps that ignore the image are nearly as good as TokenLearner's, and test a stated reason.
# - Put ToMe or EViT into a trained model, and say why both always pay for attention to all tokens.
#
# **Next:** [TokenFuser](09_tokenfuser.ipynb) brings the result of the few tokens back to all 64 places.
