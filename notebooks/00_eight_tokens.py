# %% [markdown]
# # 00 · What can eight tokens do?
#
# A Vision Transformer cuts an image into patches and turns every patch into a vector, a *token*. Here there are 64 of
# them. TokenLearner replaces the 64 tokens by 8, and computes from the image itself what those 8 should look at. This
# notebook shows the result before any theory: trained models, what their tokens look at, what they cost, and where
# the idea does not help.
#
# | | |
# |---|---|
# | **Goal** | see what 8 learned tokens do, and judge it against 64 tokens and against simpler ways to have few |
# | **Time** | 15 minutes to read, 20 seconds to run on two cores of an AMD EPYC |
# | **You need** | NumPy arrays and their shapes; no knowledge of transformers or gradients |

# %%
import time

import numpy as np
from checks import check
from lesson import FAST, bars, images, load_model, show

from minitl import data, flops, metrics, no_grad
from minitl.train import pictures

rng = np.random.default_rng(0)

# %% [markdown]
# ## The task
#
# CLUTTER is a generated set of images of 32 × 32 pixels. Each has seven objects. Six are green, blue or purple; **one
# is red, and the question is which shape it has**. It can be anywhere, and nothing covers it. Images are made by a
# random generator, so no model has seen the ones below, and the generator tells us the box around the red object. The
# models never get that box. We use it only to judge where they look.

# %%
B = 400 if FAST else 2000  # number of images; FAST is set only when the course tests itself
test = data.sample(rng, B)
print("images", test.images.shape, test.images.dtype, "   boxes", test.boxes.shape)
print("classes", *test.classes)

# %%
images(
    {"": test.images[:8]},
    titles=[test.classes[k] for k in test.labels[:8]],
    alt="Eight noisy images of colored shapes; each has one red shape, and its name stands above the image.",
)

# %% [markdown]
# ## A model with eight tokens
#
# The folder `models` holds small trained models. Each was made by one `minitl train` command, which `make_models.py`
# lists. They share everything but one step, in the middle:
#
# | step | shape | |
# |---|---|---|
# | images | $(B, 32, 32, 3)$ | $B$ images, colors last |
# | patches of 4 × 4 pixels, made into tokens | $(B, H, W, C)$ | a grid of $H = W = 8$ tokens of $C = 48$ numbers |
# | **TokenLearner** | $(B, S, C)$ | $N = H W = 64$ tokens in, $S = 8$ learned tokens out |
# | two transformer blocks | $(B, S, C)$ | tokens exchange what they know |
# | mean over the tokens, linear layer | $(B, 8)$ | one number per class; the largest wins |


# %%
def predict(model, x):
    """The most likely class of each image: (B, 32, 32, 3) -> (B,)."""
    with no_grad():  # we only ask for answers, so nothing has to be kept for training
        parts = np.array_split(x, 10)  # one after the other, to need less memory
        return np.concatenate([model(part).data.argmax(1) for part in parts])  # .data is the array in the result


# %%
model, meta = load_model("learner-8")
x = data.normalize(test.images, meta["mean"], meta["std"])  # float32, mean 0 and deviation 1 per color
correct = predict(model, x) == test.labels
print(f"{model.num_parameters():,} learned numbers, {correct.mean():.1%} of {B} new images right")
assert correct.mean() > 0.95

# %% [markdown]
# ## What do the eight tokens look at?
#
# TokenLearner gives each learned token a **map**: one weight for each of the 64 places. The token is the average of
# the tokens at all places, with these weights. So the maps *are* the answer to the question what a token looks at.
# Let $A$ of shape $(B, S, H, W)$ hold all of them. In this model the weights of a map are positive and add up to 1.

# %%
with no_grad():
    A = model.maps(x).data
print("maps", A.shape)
assert (A > 0).all() and np.allclose(A.sum((2, 3)), 1, atol=1e-4)

# %%
figure = pictures.show_maps(test.images[:5], A[:5], test.boxes[:5])
show(
    figure,
    alt="Five images, each with eight maps: most are bright in the box around the red object and dark elsewhere.",
)

# %% [markdown]
# Each row is one image. To its right it is shown once for each token, lit by the token's map: bright is where the
# weight is large. The white box marks the red object, and the model has not seen that box.
#
# - Most light falls on the red object, wherever it is and whatever it is. Nobody told the model that position or
#   color matters. It was trained on the names of shapes alone. (In the fourth row some light
#   falls on yellow patches of the background.)
# - The tokens share the work. One looks at the left part of an object, another at the right or at the top. Some look
#   at the same part.
# - A shape needs more than one patch to be recognized, and eight tokens carry several patches of it.
#
# Change `:5` to `5:10` above and look at other images.
#
# ## How much of a map is on the object?
#
# Pictures can be chosen to please, so let us count over all images. The **map mass** of a token is the share of its
# weight that lies inside the box. A patch may lie partly in the box; then that part of it counts:
#
# $$\text{mass}_{bs} = \sum_{h,w} A_{bshw}\; R_{bh}\; K_{bw}$$
#
# $R$ of shape $(B, H)$ says what share of each row of patches the box covers, $K$ of shape $(B, W)$ the same for
# columns.


# %%
def covered(start, end, cells=8, size=4):
    """Share of each cell of a row that lies between start and end, in pixels: (B,), (B,) -> (B, cells)."""
    edge = np.arange(cells) * size
    overlap = np.minimum(end[:, None], edge + size) - np.maximum(start[:, None], edge)  # below 0 outside the box
    return overlap.clip(0) / size


top, left, bottom, right = test.boxes.T
R, K = covered(top, bottom), covered(left, right)
mass = np.einsum("bshw,bh,bw->bs", A, R, K)  # (B, S)
assert np.allclose(mass.mean(1), metrics.map_mass(A, test.boxes, (32, 32)), atol=1e-5)  # minitl's version
chance = metrics.box_share(test.boxes, (32, 32))  # the mass of a map that is even everywhere
print(f"mean over tokens and images: {mass.mean():.2f}, which is {mass.mean() / chance:.0f} times chance")
assert mass.mean() > 0.6 > 8 * chance

# %%
bars(
    {f"token {s + 1}": share for s, share in enumerate(mass.mean(0))},
    "map mass on the object, mean over the images",
    text="{:.2f}",
    chance=chance,
    alt="Bars of the map mass of the eight tokens: each is far to the right of chance, which is near zero.",
)

# %% [markdown]
# ## Do the maps follow the object?
#
# The point of TokenLearner is that its maps are computed from the image. The test: shift an image, so that what leaves
# on one side comes back on the other, and see whether the maps move along. For comparison we take a model with
# **static** maps. Its maps were learned in training just as freely, but then they are fixed and the same for all
# images.

# %%
central = np.abs(test.boxes[:, :2] - 12).max(1).argmin()  # a box of about 8 pixels that begins near 12 is in the middle
shifts = [(0, 0), (-8, -8), (-8, 8), (8, -8), (8, 8)]  # pixels down and to the right; 8 are two patches
moved = np.stack([np.roll(x[central], shift, axis=(0, 1)) for shift in shifts])

static, _ = load_model("static-8")
with no_grad():
    learned_maps, static_maps = model.maps(moved).data, static.maps(moved).data  # (5, S, H, W) each

# %%
rows = {
    "image": [np.roll(test.images[central], shift, axis=(0, 1)) for shift in shifts],
    "learned maps,\nmean of 8": learned_maps.mean(1),
    "static maps,\nmean of 8": static_maps.mean(1),
}
images(rows, alt="An image shifted to five places: the learned maps move with its red object, the static maps stay.")

# %% [markdown]
# The learned maps go where the object goes. The static maps stay where they are. They can only hope that the object
# comes by, and since it comes by everywhere equally often, there is no good place to wait. (Each small map has a scale
# of its own, from black for its smallest weight to light yellow for its largest.)
#
# ## Eight learned tokens against the alternatives
#
# Five models, trained in the same way on the same images for ten epochs, that is ten passes over all training images.
# They differ only in what they hand to the transformer blocks:
#
# - **all 64**: nothing is reduced;
# - **8 learned**: TokenLearner;
# - **8 static**: eight learned maps that ignore the image;
# - **4 × 4 grid** and **2 × 4 grid**: the average over each cell of a fixed grid, 16 or 8 tokens.

# %%
names = {
    "all 64": "all-64",
    "8 learned": "learner-8",
    "8 static": "static-8",
    "4 × 4 grid": "grid-16",
    "2 × 4 grid": "grid-8",
}
models = {title: load_model(name)[0] for title, name in names.items()}
accuracy, seconds = {}, {}
for title, m in models.items():
    start = time.process_time()
    accuracy[title] = (predict(m, x) == test.labels).mean()
    seconds[title] = time.process_time() - start
assert accuracy["8 learned"] > accuracy["all 64"] - 0.05
assert max(accuracy["8 static"], accuracy["2 × 4 grid"]) < 0.35
assert accuracy["4 × 4 grid"] < 0.5 < accuracy["8 learned"] - 0.4

# %% [markdown]
# ### What does it cost?
#
# We count multiply-adds, one multiplication and one addition together, for one image. In a transformer block, tokens
# exchange what they know by *attention*; then a small network, the *MLP*, works on each of them, with $M$ numbers
# between its two layers. Lessons 04 and 05 derive what a block costs for $N$ tokens of width $C$:
#
# $$\underbrace{N (4 C^2 + 2 C M)}_{\text{linear layers}} \;+\; \underbrace{2 N^2 C}_{\text{attention}}$$
#
# TokenLearner itself is not free: at each of the 64 places it computes $S$ weights from the $C$ numbers of the token,
# by two layers with 64 numbers between them. Then it averages.


# %%
C, M, places, hidden = 48, 96, 64, 64


def block(N):
    """Multiply-adds of one transformer block with N tokens."""
    return N * (4 * C**2 + 2 * C * M) + 2 * N**2 * C


def learner(S):
    """Multiply-adds of TokenLearner: the maps, then the weighted averages."""
    return places * (C * hidden + hidden * S) + S * places * C


embed = places * C * C  # patches of 4·4·3 = 48 numbers, times a matrix (48, C)
cost = {
    "all 64": embed + 2 * block(64),
    "8 learned": embed + learner(8) + 2 * block(8),
    "8 static": embed + 8 * places * C + 2 * block(8),
    "4 × 4 grid": embed + 2 * block(16),
    "2 × 4 grid": embed + 2 * block(8),
}
head = C * len(test.classes)  # the linear layer at the end; all five models have it
assert cost == {title: flops.total(flops.count(m.config, m.spec)).macs - head for title, m in models.items()}
assert cost["8 learned"] < cost["all 64"] / 4

# %%
bars(
    accuracy,
    "accuracy",
    chance=1 / len(test.classes),
    alt="Accuracy: all 64 tokens and 8 learned tokens are near one, the three other ways far below.",
)

# %%
bars(
    {title: value / 1e6 for title, value in cost.items()},
    "million multiply-adds per image",
    text="{:.2f}",
    alt="Multiply-adds: all 64 tokens need more than four times as many as each of the four others.",
)
for title in names:
    print(f"{title:11} {B / seconds[title]:7.0f} images per second of one core, on this machine")

# %% [markdown]
# Eight learned tokens are nearly as good as all 64, for less than a quarter of the multiply-adds. The measured speeds
# follow these counts roughly; moving numbers about takes time as well. And few tokens alone are not the secret: the
# other three models have few tokens too. The grid of 16 gets fewer than half of the images right,
# and the grid of 8 and the static maps are little better than guessing. **What matters is that the maps depend on the
# input.** The static model shows it best, since it differs from TokenLearner in that one respect.
#
# ## What still goes wrong
#
# The model's eight numbers, its *logits*, become probabilities by exp and division by the sum. Let us look at the
# images in which the true class gets the smallest probability. Above each is the true class, then the answer.

# %%
with no_grad():
    logits = np.concatenate([model(part).data for part in np.array_split(x, 10)])
p = np.exp(logits - logits.max(1, keepdims=True))
p /= p.sum(1, keepdims=True)  # (B, 8): a probability for each class
worst = p[np.arange(B), test.labels].argsort()[:6]

# %%
images(
    {"image": test.images[worst], "mean of\n8 maps": A[worst].mean(1)},
    titles=[f"{test.classes[test.labels[i]]} → {test.classes[p[i].argmax()]}" for i in worst],
    alt="Six images that the model names wrongly, and their maps: the maps are bright on the red object all the same.",
)

# %%
print(f"map mass: {mass[~correct].mean():.2f} on all {B - correct.sum()} images with wrong answers")
small = (test.boxes[:, 2:] - test.boxes[:, :2]).max(1) == 7  # pixels; the others have 8 or 9
print(f"wrong: {1 - correct[small].mean():.1%} of the smallest objects, {1 - correct[~small].mean():.1%} of the others")
assert FAST or (mass[~correct].mean() > 0.6 and correct[small].mean() < correct[~small].mean())

# %% [markdown]
# The maps are on the object even here. The model *finds* nearly always; when it errs, it mostly errs in *naming*. The
# smallest objects, of 7 pixels, are the hardest: they are less than two patches wide.
#
# ## An honest caveat
#
# On this task we made the tokens few *before* the first transformer block. What if one block runs on all 64 tokens
# first, and only the second on 8? We trained that too, once with TokenLearner and once with the 2 × 4 grid.

# %%
late = {title: load_model(name)[0] for title, name in (("8 learned", "late-learner-8"), ("2 × 4 grid", "late-grid-8"))}
late_accuracy = {title: (predict(m, x) == test.labels).mean() for title, m in late.items()}
late_cost = {
    "8 learned": embed + block(64) + learner(8) + block(8),
    "2 × 4 grid": embed + block(64) + block(8),
}
assert late_accuracy["2 × 4 grid"] > accuracy["2 × 4 grid"] + 0.3
millions = [f"{c['8 learned'] / 1e6:.2f} million" for c in (cost, late_cost)]
print(f"multiply-adds with 8 learned tokens: {millions[0]} before the first block, {millions[1]} after one block")
early_accuracy = {f"{title}, before the first block": accuracy[title] for title in late}

# %%
bars(
    early_accuracy | {f"{title}, after one block": value for title, value in late_accuracy.items()},
    "accuracy",
    chance=1 / len(test.classes),
    alt="Accuracy of learned tokens and of a grid: far apart before the first block, nearly equal after one block.",
)

# %% [markdown]
# The gap is nearly gone. In the first block each of the 64 tokens can ask all the others, so news of the red object can
# reach every place ([lesson 08](08_how_few_how_early.ipynb) tests whether it does). Then it hardly matters which places
# one averages. What TokenLearner gains is that you may
# reduce **early**, and early is where the computation is saved. The price of reducing late is printed above the bars:
# about three times as many multiply-adds.
#
# Also keep in mind that this task was made so that a small thing in an unknown place decides. Where one object fills
# the picture, a plain grid loses little: in [lesson 11](11_cifar.ipynb), on photographs, it is no worse than learned
# tokens.

# %% [markdown]
# ## Exercises
#
# A check says whether an answer is right, and gives a hint if it is not. The answers are folded below the checks.
#
# **1. How many tokens until it no longer pays?** Find the largest $S$ for which a model with $S$ learned tokens,
# placed before the first block, needs fewer multiply-adds than the model with all 64.

# %%
largest = None  # your number
check(largest=largest)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# largest = max(S for S in range(1, 65) if embed + learner(S) + 2 * block(S) < cost["all 64"])
# check(largest=largest)
# ```
#
# The maps cost little, since they are computed once and by a small network.
#
# </details>
#
# **2. No object, then what?** Paint the box of the red object green in a few images,
# `picture[top:bottom, left:right] = (60, 200, 120)`, normalize them, and draw the maps. The weights of a map must
# still add up to 1. Where do they go: (a) evenly over the image, (b) to the green box all the same, (c) to the
# reddest of what is left? Say it first, then look.

# %%
where_to = None  # "a", "b" or "c"
check(where_to=where_to)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# painted = test.images[:4].copy()
# for picture, (top, left, bottom, right) in zip(painted, test.boxes):
#     picture[top:bottom, left:right] = (60, 200, 120)
# with no_grad():
#     maps = model.maps(data.normalize(painted, meta["mean"], meta["std"])).data
# show(pictures.show_maps(painted, maps, test.boxes[:4]), alt="The maps have left the boxes, which are green now.")
#
# where_to = "c"
# check(where_to=where_to)
# ```
#
# The light leaves the box and falls on patches of a red or purple background. Such a map cannot say "nothing here",
# because its weights add up to 1. The maps of [lesson 06](06_tokenlearner.ipynb) can.
#
# </details>
#
# **3. Do the eight tokens have an order?** The transformer blocks get no information on which token is the first.
# Load the model once more, and exchange tokens 1 and 2 in it. The weights that make map $s$ are column $s$ of
# `tokenizer.mlp.fc2.weight.data` and entry $s$ of `tokenizer.mlp.fc2.bias.data`. For what share of the images does the
# answer stay the same?

# %%
same = None  # your number, from 0 to 1
check(same=same)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# swapped, _ = load_model("learner-8")
# last = swapped.tokenizer.mlp.fc2
# last.weight.data[:, [0, 1]] = last.weight.data[:, [1, 0]]
# last.bias.data[[0, 1]] = last.bias.data[[1, 0]]
# same = (predict(swapped, x) == predict(model, x)).mean()
# check(same=same)
# ```
#
# The logits change by rounding only. Attention treats its tokens as a set, and so does the mean at the end.
#
# </details>

# %% [markdown]
# ## What you can do now
#
# - Say what a learned token is: an average over all places, with weights that the image itself decides.
# - Draw the maps of a model, and score them against a known box and against chance.
# - Name the control that shows *why* it works (static maps), and a case in which it gains little (reduce late).
#
# **Next:** [A slope you can check](01_slope.ipynb) begins with one derivative, and five lessons later you build and
# train TokenLearner yourself. If you know how networks are trained, go on to
# [TokenLearner, first version](06_tokenlearner.ipynb).
