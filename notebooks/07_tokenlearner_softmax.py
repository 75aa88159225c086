# %% [markdown]
# # 07 · TokenLearner, second version
#
# The authors of TokenLearner later published a second version, 1.1. A small network at each place takes the part of
# the convolutions, and a softmax over the places that of the sigmoid. In this lesson you write it, derive its
# gradient, train it beside version 1.0, and meet tokens that never find the object.
#
# | | |
# |---|---|
# | **Goal** | build TokenLearner 1.1, understand its gradient, and judge it against version 1.0 |
# | **Time** | 45 minutes to read, 90 seconds to run on two cores of an AMD EPYC |
# | **You need** | [04](04_attention.ipynb): softmax and its gradient; [06](06_tokenlearner.ipynb): version 1.0 |

# %%
import itertools

import numpy as np
from checks import check
from lesson import FAST, bars, curves, graph, images, matrices

from minitl import Tensor, check_gradients, data, flops, metrics, nn, no_grad, ops, optim
from minitl.autograd import op

rng = np.random.default_rng(0)

# %% [markdown]
# ## What changes
#
# | | version 1.0 | version 1.1 |
# |---|---|---|
# | logits $l$ | four convolutions of 3 × 3 | at each place two linear layers with GELU between them (an MLP) |
# | a place sees | itself and four neighbors on each side | itself |
# | weights $A$ | a sigmoid of each logit | a **softmax over the $N$ places** of each map |
# | tokens $Z$ | $A x / N$ (mean), or $A x$ (sum) | $A x$ |
#
# Either can have a LayerNorm before its logits. Here it is left out (`pre_norm=False`); a section below tries both.
#
# The letters are those of lesson 06: $x$ the grid of tokens, flattened to $(B, N, C)$; $A$ the maps, $(B, S, N)$;
# $Z$ the learned tokens, $(B, S, C)$. The MLP has 64 hidden units: $W_1$ is $(C, 64)$, $W_2$ is $(64, S)$. Its output
# is transposed, so that the last axis of the logits runs over the places of one map:
#
# $$l = \bigl(\text{gelu}(x W_1 + b_1)\, W_2 + b_2\bigr)^\top \qquad
# A_{sn} = \frac{e^{l_{sn}}}{\sum_m e^{l_{sm}}} \qquad Z = A x$$

# %%
edges = [("x", "MLP at each place"), ("MLP at each place", "softmax over places"), ("softmax over places", "maps A")]
edges += [("maps A", "Z = A x"), ("x", "Z = A x")]
alt = "A graph: x leads through the MLP and the softmax to the maps A; A and x lead to the tokens Z."
graph(edges, alt, size=(8, 2))


# %%
def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def make_logits(x, w):
    """(B, N, C) -> (B, S, N)"""
    y = ops.gelu(x @ w["mlp.fc1.weight"] + w["mlp.fc1.bias"]).data
    return (y @ w["mlp.fc2.weight"] + w["mlp.fc2.bias"]).transpose(0, 2, 1)


def token_learner(x, w):
    """(B, N, C) -> (B, S, C)"""
    return softmax(make_logits(x, w)) @ x


# %%
B, H, W, C, S = 4, 8, 8, 48, 8
few = data.sample(rng, B)
cells = few.images.reshape(B, H, 4, W, 4, 3) / 255
x = cells.transpose(0, 1, 3, 2, 4, 5).reshape(B, H * W, C)  # patches as tokens, as in lesson 06

learner = nn.TokenLearner(C, S, version="1.1", pre_norm=False, rng=rng).to(dtype="float64")
w = learner.state_dict()
for name, array in w.items():
    print(f"{name:16} {array.shape}")
Z = token_learner(x, w)
assert np.allclose(Z, learner(Tensor(x.reshape(B, H, W, C))).data)  # minitl's version

# %% [markdown]
# ## Three consequences of the softmax
#
# The weights of a map are positive and add up to 1. A sum with such weights is a **convex combination**: no entry of
# a token is larger than the largest at any place, or smaller than the smallest.
#
# 1. **Mean or sum is no longer a question.** No learned token is longer than the longest one of the grid, and a finer
#    grid changes nothing.
# 2. **Only differences count.** The same number added to all logits of a map changes nothing. A place gets much
#    weight if its logit is larger than the others.
# 3. **A map cannot be empty.** Where nothing is what a token looks for, its weight must still go somewhere.
#
# The third one can be seen. We make a logit by hand again (how red is the patch?), and paint the red object green.

# %%
smallest, largest = x.min(1, keepdims=True), x.max(1, keepdims=True)
assert (smallest <= Z).all() and (largest >= Z).all()
assert (np.linalg.norm(Z, axis=-1).max(1) <= np.linalg.norm(x, axis=-1).max(1)).all()  # lengths
assert np.allclose(token_learner(x.repeat(4, axis=1), w), Z)  # each place four times: a finer grid
logits = make_logits(x, w)
assert np.allclose(softmax(logits + 7), softmax(logits))

top, left, bottom, right = few.boxes[3]
painted = few.images[3].copy()
painted[top:bottom, left:right] = 60, 200, 120


def by_hand(image):
    """The image, and the maps that two versions make of its redness: sigmoid and softmax, (8, 8) each."""
    red = (image[..., 0] - image[..., 1:].max(-1).astype(float)).reshape(H, 4, W, 4).mean((1, 3)) / 255
    logit = 30 * (red - 0.3)  # a little stricter than in lesson 06
    return image, 1 / (1 + np.exp(-logit)), softmax(logit.ravel()).reshape(H, W)


rows = {"the image": by_hand(few.images[3]), "painted over": by_hand(painted)}
sums = {name: (a.sum(), b.sum()) for name, (_, a, b) in rows.items()}
assert sums["painted over"][0] < sums["the image"][0] / 3 and np.isclose(sums["painted over"][1], 1)

# %%
titles = [["", f"sigmoid, sum {a:.2f}", f"softmax, sum {b:.2f}"] for a, b in sums.values()]
alt = "Both maps are bright on the red object; without it the sigmoid's is dark, the softmax's bright elsewhere."
images(rows, alt, titles, side=1.4, low=0, high=0.5)

# %% [markdown]
# Light yellow is 0.5 or more. Without the object the sigmoid's weights become small, while those of the softmax move to
# the reddest patches that are left.
#
# ## The gradient of the pooling
#
# Take one image, so that $B$ can be left out. The gradient $dZ$, $(S, C)$, is given.
#
# **Step 1: from $Z$ to $A$ and $x$.** $Z_{sc} = \sum_n A_{sn} x_{nc}$ is lesson 06 without $1/N$:
#
# $$dA_{sn} = \sum_c dZ_{sc}\, x_{nc} = dZ_s \cdot x_n \qquad\qquad dx_{nc} = \sum_s A_{sn}\, dZ_{sc}$$
#
# where $dZ_s$ and $x_n$ are vectors of $C$ numbers, and the dot is their inner product.
#
# **Step 2: from $A$ to $l$.** Lesson 04 derived the gradient of softmax. Here it runs over the places $m$ of each map:
#
# $$dl_{sn} = A_{sn} \Bigl( dA_{sn} - \sum_m A_{sm}\, dA_{sm} \Bigr)$$
#
# **Step 3: insert step 1 into the sum of step 2**, and exchange the two sums:
#
# $$\sum_m A_{sm}\, dA_{sm} = \sum_m A_{sm} \sum_c dZ_{sc}\, x_{mc} = \sum_c dZ_{sc} \sum_m A_{sm}\, x_{mc} =
# \sum_c dZ_{sc}\, Z_{sc} = dZ_s \cdot Z_s$$
#
# The inner sum is the token itself. So
#
# $$\boxed{\;dl_{sn} = A_{sn}\; dZ_s \cdot (x_n - Z_s)\;}$$


# %%
@op
def softmax_pool(logits, x):
    """Z = softmax(logits) x:  logits (B, S, N), x (B, N, C), Z (B, S, C)"""
    A = softmax(logits)
    Z = A @ x

    def backward(dZ):
        dA = dZ @ x.swapaxes(1, 2)  # dZ_s · x_n
        dl = A * (dA - (dZ * Z).sum(-1, keepdims=True))
        return dl, A.swapaxes(1, 2) @ dZ

    return Z, backward


logits, flat = rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 5, 4))
check_gradients(softmax_pool, logits, flat)
pooled = ops.token_pool(ops.softmax(logits, axis=-1), flat)  # minitl's two ops
assert np.allclose(softmax_pool(logits, flat).data, pooled.data)


@op
def wrong_axis(logits, x):
    A = softmax(logits)

    def backward(dZ):
        dA = dZ @ x.swapaxes(1, 2)
        return A * (dA - (A * dA).sum(1, keepdims=True)), A.swapaxes(1, 2) @ dZ  # axis 1 is S, not N

    return A @ x, backward


try:
    check_gradients(wrong_axis, logits, flat)
except AssertionError as error:
    print(error)

# %% [markdown]
# The check is silent for the first op. It objects to the second, in which the sum of step 2 runs over the tokens: all
# shapes fit, and this is the typical mistake.
#
# ### What the formula says
#
# To lower the loss, the token $Z_s$ should move in the direction $-dZ_s$. Gradient descent raises the logit of each
# place whose $x_n$ lies further in that direction than the token does, and lowers the others. The changes add up to
# zero: since $\sum_n A_{sn} x_n = Z_s$ and $\sum_n A_{sn} = 1$, we have $\sum_n dl_{sn} = dZ_s \cdot (Z_s - Z_s) = 0$.
#
# But each change carries the factor $A_{sn}$. **A place that has no weight gains none by itself**, however good it is;
# only others can lift it, through the shared MLP. And if one place has all the weight, $x_n = Z_s$ there, and nothing
# changes anywhere. How fast does this set in when the logits are multiplied by a factor?

# %%
factors = np.logspace(-1, 2, 25)
logits, dZ = rng.standard_normal((B, S, H * W)), rng.standard_normal((B, S, C))
sizes, largest = [], []
for factor in factors:
    t = Tensor(factor * logits, requires_grad=True)
    softmax_pool(t, x).backward(dZ)
    assert np.allclose(t.grad.sum(-1), 0)
    sizes.append(np.median(np.linalg.norm(t.grad, axis=-1)))  # of a typical map
    largest.append(softmax(factor * logits).max(-1).mean())
assert sizes[-1] < max(sizes) / 100 and sizes[0] < 0.8 * max(sizes)

# %%
curves(
    {"size of dl, relative": (factors, np.array(sizes) / max(sizes)), "largest weight": (factors, largest)},
    xlabel="factor on the logits",
    ylabel="size of dl, weight",
    xscale="log",
    alt="As logits grow, the largest weight of a map rises to 1, and the gradient first rises, then falls to near 0.",
)

# %% [markdown]
# The gradient is largest while a few places share the weight. Even maps, on the left, pass on less, since each place
# has little weight; but sharp maps, on the right, pass on almost nothing.
#
# ## Training
#
# The network, the loop, the images and their order are those of lesson 06; only the tokenizer differs. We train
# version 1.1 without LayerNorm, as the command `minitl train` does, and repeat the run of lesson 06: version 1.0 with
# LayerNorm and the mean.

# %%
STEPS = 20 if FAST else 1000
LOOKS = (0, STEPS // 10, STEPS // 4, STEPS // 2, STEPS)  # the steps at which we look at the test images
train_set, test_set = data.clutter(1000, 200) if FAST else data.clutter(20_000, 1000)
mean, std = data.channel_stats(train_set.images)
test_inputs = data.normalize(test_set.images, mean, std)


def look(model):
    """Accuracy on the test images, the map mass of each token (S,), and the maps (B, S, H, W)."""
    with no_grad():
        logits, A = model(test_inputs).data, model.maps(test_inputs).data
    mass = [metrics.map_mass(A[:, s : s + 1], test_set.boxes, (32, 32)).mean() for s in range(S)]
    return (logits.argmax(1) == test_set.labels).mean(), np.array(mass), A


# %%
def new_model(**options):
    return nn.ViT(nn.ViTConfig(**options), train_set.spec, np.random.default_rng(0))


def train(model, stop=STEPS):
    """Train for `stop` of STEPS steps; returns {step: what `look` saw}."""
    optimizer = optim.AdamW(model.parameters(), weight_decay=0.05)
    loader = data.Loader(train_set, 100, shuffle=True, rng=np.random.default_rng(0))
    batches = itertools.chain.from_iterable(itertools.repeat(loader))  # epoch after epoch
    seen = {0: look(model)}
    for step in range(stop):
        inputs, labels = next(batches)
        loss = ops.cross_entropy(model(data.normalize(inputs, mean, std)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.clip_grad_norm(1.0)
        optimizer.lr = optim.warmup_cosine(step, STEPS, STEPS // 10, 3e-3)
        optimizer.step()
        if step + 1 in LOOKS:
            accuracy, mass, _ = seen[step + 1] = look(model)
            print(f"step {step + 1:4}   accuracy {accuracy:.1%}   map mass {mass.mean():.2f}")
    return seen


# %%
print("version 1.1")
model_11 = new_model(version="1.1", pre_norm=False)
seen_11 = train(model_11)
print("version 1.0")
model_10 = new_model(version="1.0")
seen_10 = train(model_10)
if not FAST:
    assert seen_11[STEPS][0] > 0.85 and seen_11[STEPS][1].mean() > seen_10[STEPS][1].mean()

# %%
columns = ["", *(f"map {s}" for s in range(S))]
alt = "An image and its eight maps at three steps: even and dark, then bright on all that is red, then on the object."
for i in (2, 5):
    rows = {f"step {step}": [test_set.images[i], *seen_11[step][2][i]] for step in (0, STEPS // 10, STEPS)}
    images(rows, alt, columns, low=0, high=0.2)  # an even map has 1/64 everywhere, nearly black

# %% [markdown]
# Light yellow is a weight of 0.2 or more; maps are counted from 0. At step 0 each weight is close to 1/64. At step 100
# all eight maps look at whatever is red, be it the object or a patch of background. At step 1000 they have learned to
# prefer the object, not always with success.
#
# How does version 1.0 compare? First the share of the maps that lies on the object, then the maps themselves at the
# last step, each row divided by its largest weight.

# %%
both = {"version 1.1": seen_11, "version 1.0": seen_10}
lines = {name: (list(seen), [mass.mean() for _, mass, _ in seen.values()]) for name, seen in both.items()}
alt = "Map mass against steps: version 1.1 rises sooner and ends higher than version 1.0."
curves(lines, "step", "map mass on the object", alt, marks=True)

# %%
alt = "Maps of both versions on one image: those of 1.1 are small spots, those of 1.0 larger spots, and some are empty."
for i in (2, 5):
    final = {name: (test_set.images[i], seen[STEPS][2][i]) for name, seen in both.items()}
    images({name: [image, *(A / A.max())] for name, (image, A) in final.items()}, alt, columns, low=0, high=1)

# %% [markdown]
# The maps of version 1.1 are spots of one or two places. In version 1.0, where places see their neighbors, many
# are larger, and some are empty.
#
# ### Saying "nothing here"
#
# We repeat the experiment with the painted object on all test images, now with the learned maps.

# %%
without = test_set.images.copy()
for image, (top, left, bottom, right) in zip(without, test_set.boxes, strict=True):
    image[top:bottom, left:right] = 60, 200, 120
for name, model, seen in (("version 1.1", model_11, seen_11), ("version 1.0", model_10, seen_10)):
    with no_grad():
        maps = model.maps(data.normalize(without, mean, std)).data
    before, after = (a.sum((2, 3)).mean() for a in (seen[max(seen)][2], maps))
    print(f"{name}: sum of a map {before:.2f} with the object, {after:.2f} without")
if not FAST:
    assert after < before / 2  # version 1.0, the last of the two

# %% [markdown]
# With the sigmoid most of the weight is gone. With the softmax it has only moved.
#
# ## With LayerNorm or without?
#
# The authors' code normalizes each token before the MLP, so that only its direction counts and not its length. A faint
# patch then speaks as loudly as a bright one. We train both versions both ways; 500 steps are enough to see a
# difference.

# %%
half = STEPS // 2
print("version 1.1 with LayerNorm")
seen_11_norm = train(new_model(version="1.1", pre_norm=True), half)
print("version 1.0 without LayerNorm")
seen_10_bare = train(new_model(version="1.0", pre_norm=False), half)
runs = {"1.0 without": seen_10_bare, "1.0 with": seen_10, "1.1 without": seen_11, "1.1 with": seen_11_norm}
accuracy = {name: seen[half][0] for name, seen in runs.items()}
if not FAST:
    assert abs(accuracy["1.0 with"] - accuracy["1.0 without"]) < 0.05
    assert accuracy["1.1 without"] > max(accuracy["1.0 with"], accuracy["1.0 without"]) > accuracy["1.1 with"] + 0.03

# %%
alt = "Accuracy at half of the steps: highest for version 1.1 without norm, lowest for 1.1 with it, 1.0 in between."
bars(accuracy, f"accuracy at step {half}, with LayerNorm or without", alt, xlim=(0, 1))

# %% [markdown]
# For the convolutions the norm changes little, and for the MLP it costs much (one seed each). So the answer to "which
# version is better?" depends on a layer that neither formula mentions: here it is 1.0 with the norm, 1.1 without it. A
# comparison that changes the version and the norm at once cannot tell which of the two made the difference. And there
# is a third choice: with the *sum*, version 1.0 came in lesson 06 as far by step 500 as version 1.1 does here.
#
# ## Why the last layer starts ten times smaller
#
# In the authors' code $W_2$ starts as any other matrix. minitl multiplies it by 0.1, so that all maps start nearly
# even. We undo this and train again. In the picture a column is a token, and a row is a look: at steps 0, 100, 250
# and 500.

# %%
eager = new_model(version="1.1", pre_norm=False)
eager.tokenizer.mlp.fc2.weight.data *= 10  # as in the authors' code
seen_eager = train(eager, half)
first, last = seen_eager[0][1], seen_eager[half][1]
above = first > metrics.box_share(test_set.boxes, (32, 32))  # the map mass of an even map
if not FAST:
    assert last[above].mean() > last[~above].mean() + 0.2 and seen_11[half][1].min() > 0.3
    assert abs(seen_eager[half][0] - seen_11[half][0]) < 0.1  # accuracy

# %%
starts = {"ten times larger start": seen_eager, "minitl's start": seen_11}
grids = {name: np.array([seen[step][1] for step in LOOKS[:4]]) for name, seen in starts.items()}
alt = "Map mass of each token at four looks: with the larger start most tokens fall to 0, with minitl's all rise."
matrices(grids, "token", "look", alt, unit="map mass", side=3.6, text="{:.2f}", low=0, high=1)

# %% [markdown]
# The upper row on the left is luck: random weights give some maps somewhat more mass on the object than an even map has
# (0.06), and others less. The last row follows from the first. **The tokens that start above end on the object, and the
# tokens that start below leave it.** A map need not be sharp for that; a slight preference is enough. With minitl's
# start there is hardly any preference, and all eight tokens find the object.
#
# The gradient works in this direction: by the factor $A$, a token with more weight on the object learns more from it.
# That this is the only reason is not shown here. Does it hurt? Hardly, as the two accuracies at step 500 show. A few
# tokens on the object are enough for this task, and the others are wasted.
#
# ## The wrong axis
#
# A softmax over the tokens instead of the places also runs without an error. Each *place* then distributes one unit
# over the tokens.


# %%
class OverTokens(nn.TokenLearner):
    def maps(self, x):
        return ops.softmax(self.mlp(x), axis=-1).transpose(0, 3, 1, 2)  # (B, H, W, S): the last axis is the tokens


wrong = new_model(version="1.1", pre_norm=False)
first_weights = wrong.tokenizer.state_dict()
wrong.tokenizer = OverTokens(C, S, version="1.1", pre_norm=False, rng=rng)
wrong.tokenizer.load_state_dict(first_weights)
quarter = STEPS // 4
seen_wrong = train(wrong, quarter)
print(f"over places: accuracy {seen_11[quarter][0]:.1%} at the same step")
if not FAST:
    assert seen_wrong[quarter][0] < seen_11[quarter][0] - 0.05

# %%
both = {"over places": seen_11[quarter][2][2], "over tokens": seen_wrong[quarter][2][2]}
rows = {name: [test_set.images[2], *(A / A.max())] for name, A in both.items()}
alt = "Over places each map is a spot on the object; over tokens most maps cover the whole background."
images(rows, alt, columns, low=0, high=1)

# %% [markdown]
# (Again each row is divided by its largest weight.) Every place must go to some token, so most tokens have to carry the
# background. The network learns in spite of it, but more slowly, and no error tells you. A look at the maps does, and
# so do their sums: after a softmax over places, each is 1.
#
# ## Do tokens specialize?
#
# Nothing in the loss asks the tokens to differ. We correlate the maps of two tokens over the places, and average over
# the test images.


# %%
def correlation(A):
    """(B, S, H, W) -> (S, S)"""
    a = A.reshape(len(A), S, -1).astype("float64")
    a -= a.mean(-1, keepdims=True)
    a /= np.sqrt((a * a).sum(-1, keepdims=True)) + 1e-12
    return np.einsum("bsn,btn->st", a, a) / len(A)


looks = {"1.1, step 100": seen_11[STEPS // 10], "1.1, step 1000": seen_11[STEPS], "1.0, step 1000": seen_10[STEPS]}
tables = {title: correlation(A) for title, (_, _, A) in looks.items()}
between = {title: (table.sum() - S) / (S * (S - 1)) for title, table in tables.items()}
print(*(f"{title}: {value:.2f} between different tokens" for title, value in between.items()), sep="\n")
if not FAST:
    assert between["1.1, step 100"] > 0.9 and between["1.1, step 1000"] < between["1.1, step 100"] - 0.1

# %%
alt = "Three matrices: all tokens alike at step 100, mixed at step 1000, less alike in version 1.0."
matrices(tables, "token", "token", alt, unit="correlation", low=0, high=1)

# %% [markdown]
# At first all tokens do the same: they find what is red. Later they part, but not by much. Several stay alike, so fewer
# than eight may do ([lesson 08](08_how_few_how_early.ipynb) counts).
#
# ## What it costs
#
# In multiply-adds for one image. Both have the pooling, $N S C$; in addition there are
#
# - in version 1.0, as counted in lesson 06, nine matrices $(C, S)$ and three times nine $(S, S)$ at each place:
#   $9 N C S + 27 N S^2$;
# - in version 1.1, one matrix $(C, 64)$ and one $(64, S)$ at each place: $64 N C + 64 N S$. This 64 is the number of
#   hidden units, whatever $N$ is.


# %%
def cost_10(N, C, S):
    return 9 * N * C * S + 27 * N * S * S + N * S * C


def cost_11(N, C, S):
    return 64 * N * C + 64 * N * S + N * S * C


counts = np.arange(1, 17)
for version, cost in (("1.0", cost_10), ("1.1", cost_11)):
    config = nn.ViTConfig(version=version)
    assert all(cost(64, C, S) == flops.learner(config, 64, S, C).macs for S in counts)
print(f"8 tokens of 64: version 1.0 {cost_10(64, C, 8):,}, version 1.1 {cost_11(64, C, 8):,} multiply-adds")

# %%
curves(
    {name: (counts, f(64, C, counts) / 1e6) for name, f in (("version 1.0", cost_10), ("version 1.1", cost_11))},
    xlabel="learned tokens S",
    ylabel="multiply-adds, millions",
    alt="Version 1.0 grows quickly with the number of tokens and crosses the nearly flat line of 1.1 at about six.",
)

# %% [markdown]
# From six tokens on, version 1.1 needs less.
#
# ## Which one is better?
#
# Here are full runs from [RESULTS.md](RESULTS.md). In the first two rows, on CLUTTER, the numbers are tokens, accuracy
# and map mass, of two seeds each. The third row is version 1.0 pooling by mean and by sum: multiply-adds, then accuracy
# ± standard deviation. The last two are from CIFAR-10 ([lesson 11](11_cifar.ipynb), which explains the words):
# multiply-adds and accuracy.

# %%
with open("RESULTS.md", encoding="utf-8") as file:
    starts = "| **TokenLearner 1.1", "| TokenLearner 1.0", "| `minitl ablate pooling`", "| **the preset"
    rows = [line for line in file if line.startswith(starts)]
for row in rows:
    print("   ".join(cell.strip() for cell in row.replace("*", "").strip("|\n").split("|")))
assert len(rows) == 5  # CLUTTER with 1.1, 1.0 and both poolings of 1.0, CIFAR-10 with 1.1 and 1.0

# %% [markdown]
# | | better |
# |---|---|
# | accuracy here and in these runs, 1.0 with LayerNorm and the mean, 1.1 without LayerNorm | 1.1 |
# | accuracy on CLUTTER, 1.0 with the sum | no difference |
# | accuracy here, both with LayerNorm | 1.0 |
# | map mass, as in the first row | 1.1 |
# | cost of few tokens; of many | 1.0; 1.1 |
# | no choice between mean and sum | 1.1 |
# | seeing neighbors; "nothing here" | 1.0 |
#
# The paper's results were obtained with version 1.0. The authors recommend 1.1, at first for small data sets, later in
# general. In notebooks by the authors of the [Keras example](https://keras.io/examples/vision/token_learner/) an
# earlier form of 1.1 did worse than 1.0 on CIFAR-10. None of this is a law: try both.
#
# ## Exercises
#
# **1. How far does a map see?** Change the patch in the upper left corner of one image. Of the $N$ places of a map of
# version 1.1, at how many may the logit change? And the weight? Say it first.

# %%
logits_and_weights = None  # (your number of logits, your number of weights)
check(logits_and_weights=logits_and_weights)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# y = x.copy()
# y[:, 0] = rng.random(C)
# logits_differ = (make_logits(y, w) != make_logits(x, w)).any((0, 1))
# weights_differ = (softmax(make_logits(y, w)) != softmax(make_logits(x, w))).any((0, 1))
# logits_and_weights = (logits_differ.sum(), weights_differ.sum())
# check(logits_and_weights=logits_and_weights)
# ```
#
# The MLP sees one place, so one logit changes. But the weights add up to 1: if one grows, all others shrink.
#
# </details>
#
# **2. An array that does nothing.** One of the learned arrays of version 1.1, printed above, has no effect on the
# tokens, whatever its values are. Which one?

# %%
idle_array = None  # its name, as a string
check(idle_array=idle_array)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# for name, array in w.items():
#     other = w | {name: array + rng.standard_normal(array.shape)}
#     print(f"{name:16} changes the tokens: {not np.allclose(token_learner(x, other), Z)}")
# idle_array = "mlp.fc2.bias"
# check(idle_array=idle_array)
# ```
#
# It adds the same number to all logits of a map, and only differences count. Its gradient is $\sum_n dl_{sn} = 0$. With
# the sigmoid of version 1.0 a bias would matter.
#
# </details>
#
# **3. A temperature for each token.** Write the op $Z = \text{softmax}(l / \tau)\, x$ with a learned $\tau$ of shape
# $(S, 1)$: a large $\tau$ makes a map even, a small one makes it sharp. Derive $d\tau$ from the gradient of $l / \tau$.


# %%
@op
def warm_pool(logits, x, tau):
    """logits (B, S, N), x (B, N, C), tau (S, 1) -> (B, S, C)"""
    Z = np.zeros((*logits.shape[:2], x.shape[2]))  # your tokens

    def backward(dZ):
        return np.zeros_like(logits), np.zeros_like(x), np.zeros_like(tau)  # your dl, dx and dτ

    return Z, backward


check(warm_pool)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# @op
# def warm_pool(logits, x, tau):
#     A = softmax(logits / tau)
#     Z = A @ x
#
#     def backward(dZ):
#         dA = dZ @ x.swapaxes(1, 2)
#         dscaled = A * (dA - (dZ * Z).sum(-1, keepdims=True))  # of l / τ
#         dtau = -dscaled * logits / tau**2  # the engine sums over images and places
#         return dscaled / tau, A.swapaxes(1, 2) @ dZ, dtau
#
#     return Z, backward
#
#
# check(warm_pool)
# ```
#
# $l / \tau$ has the slope $1/\tau$ in $l$ and $-l/\tau^2$ in $\tau$.
#
# </details>

# %% [markdown]
# ## What you can do now
#
# - Write TokenLearner 1.1 from memory: two linear layers with GELU, a softmax over the places, a weighted sum.
# - Derive $dl = A\, dZ \cdot (x - Z)$, and say from it which places gain weight and which hardly can.
# - Choose between the versions by what they do, and distrust a comparison in which two things change.
#
# **Next:** [How few, how early?](08_how_few_how_early.ipynb) counts how many tokens are needed, and where in the
# network they should be made few.
