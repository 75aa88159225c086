# %% [markdown]
# # 04 · Attention by hand
#
# So far each token knows its own patch and nothing else. Attention lets every token read from all the others, and
# choose from which. It is made of two matrix products with a softmax in between; together with LayerNorm and GELU it is
# nearly all of a transformer. You derive each of them backward, and then look at what a trained model attends to.
#
# | | |
# |---|---|
# | **Goal** | derive the gradients of softmax, LayerNorm, GELU and attention; read an attention map with care |
# | **Time** | 50 minutes to read, 10 seconds to run on two cores of an AMD EPYC |
# | **You need** | [02](02_engine.ipynb): `@op`, `check_gradients`; [03](03_patches.ipynb): tokens, products |

# %%
import lesson
import numpy as np
from checks import check

from minitl import Tensor, check_gradients, data, flops, metrics, nn, no_grad, ops
from minitl.autograd import op
from minitl.nn import vit
from minitl.train import pictures

rng = np.random.default_rng(0)

# %% [markdown]
# ## Softmax: scores become weights
#
# Softmax turns $K$ scores $x$ into $K$ positive weights $y$ whose sum is 1:
#
# $$y_i = \frac{e^{x_i}}{\sum_j e^{x_j}} = \frac{e^{x_i - m}}{\sum_j e^{x_j - m}} \qquad m = \max_j x_j$$
#
# Both forms are equal, since the factor $e^{-m}$ cancels. But only the second one is safe: its largest exponent is 0.

# %%
x = np.array([1000.0, 1001.0, 999.0])
with np.errstate(all="ignore"):  # NumPy would warn about the first line
    print("first form ", np.exp(x) / np.exp(x).sum())
e = np.exp(x - x.max())
print("second form", e / e.sum())

# %% [markdown]
# For the gradient, let $s = \sum_k e^{x_k}$, and let $\delta_{ij}$ be 1 for $i = j$ and 0 otherwise. By the quotient
# rule,
#
# $$\frac{\partial y_i}{\partial x_j} = \frac{\delta_{ij}\, e^{x_i}}{s} - \frac{e^{x_i} e^{x_j}}{s^2}
# = y_i\,(\delta_{ij} - y_j)$$
#
# These $K \times K$ numbers are the **Jacobian** of softmax, the matrix $M$ of lesson 02. A score changes all weights,
# so its gradient is a sum over all of them:
#
# $$dx_j = \sum_i dy_i\, y_i\, (\delta_{ij} - y_j) = y_j \Bigl( dy_j - \sum_i dy_i\, y_i \Bigr)$$
#
# No matrix is left: one sum and a few products entry by entry. In words: only the difference between $dy_j$ and the
# mean of $dy$, taken with the weights $y$, reaches a score.


# %%
@op
def my_softmax(x):
    """Softmax over the last axis: (..., K) -> (..., K)"""
    e = np.exp(x - x.max(-1, keepdims=True))
    y = e / e.sum(-1, keepdims=True)

    def backward(dy):
        return y * (dy - (dy * y).sum(-1, keepdims=True))

    return y, backward


scores = rng.standard_normal((2, 3, 5))
check_gradients(my_softmax, scores)
assert np.allclose(my_softmax(scores).data, ops.softmax(Tensor(scores)).data)  # minitl's version


@op
def careless_softmax(x):
    y = my_softmax(x).data
    return y, lambda dy: dy * y * (1 - y)  # only i = j, as if a score changed its own weight alone


try:
    check_gradients(careless_softmax, scores)
except AssertionError as error:
    print(error)

# %%
flat, sure = my_softmax(np.array([[0, 0.3, -0.2, 0.5], [0, 6, -2, 1]])).data
jacobians = {f"largest weight {y.max():.2f}": np.diag(y) - np.outer(y, y) for y in (flat, sure)}
assert all(np.allclose(J.sum(1), 0) for J in jacobians.values())
jacobians = {title: J.round(2) + 0 for title, J in jacobians.items()}  # + 0 makes -0 a 0
alt = "Two Jacobians: entries of about 0.2 on the diagonal for even weights, and all near 0 where one weight is near 1."
lesson.matrices(jacobians, "score j", "weight i", alt, unit="slope", text="{:.2f}")

# %% [markdown]
# Each row adds up to 0: the same number added to all scores changes no weight. On the right, one weight is nearly 1 and
# the whole Jacobian nearly 0. **A softmax that is sure passes back almost no gradient.** We shall meet this again.
#
# ## LayerNorm
#
# LayerNorm brings each token to mean 0 and variance 1, which gives $n$ (*normalized*), then scales and shifts it by
# learned $w$ and $b$. For one token, $x$, $n$, $w$, $b$ and $y$ have $C$ numbers each:
#
# $$y_i = n_i w_i + b_i \qquad n_i = \frac{x_i - \mu}{\sigma} \qquad \mu = \frac{1}{C} \sum_i x_i \qquad
# \sigma^2 = \frac{1}{C} \sum_i (x_i - \mu)^2 + \varepsilon$$
#
# The small $\varepsilon$ keeps $\sigma$ away from 0. From $y$ to $n$ all is entry by entry: $g_i = dy_i\, w_i$ is the
# gradient of $n_i$; $dw_i = \sum dy_i\, n_i$ and $db_i = \sum dy_i$, summed over all tokens. From $n$ to $x$, an $x_j$
# acts in three ways: directly, through $\mu$ and through $\sigma$. Take the derivative of the last formula and use
# $\sum_i (x_i - \mu) = 0$:
#
# $$\frac{\partial \mu}{\partial x_j} = \frac{1}{C} \qquad
# 2 \sigma \frac{\partial \sigma}{\partial x_j} = \frac{2}{C} \sum_i (x_i - \mu)
# \left( \delta_{ij} - \tfrac{1}{C} \right) = \frac{2}{C} (x_j - \mu) \quad\Longrightarrow\quad
# \frac{\partial \sigma}{\partial x_j} = \frac{n_j}{C}$$
#
# The quotient rule puts them together, and the sum over $i$ gives the gradient:
#
# $$\frac{\partial n_i}{\partial x_j} = \frac{\delta_{ij} - \frac{1}{C}}{\sigma} - \frac{x_i - \mu}{\sigma^2}
# \frac{n_j}{C} = \frac{1}{\sigma} \left( \delta_{ij} - \frac{1}{C} - \frac{n_i n_j}{C} \right)$$
#
# $$dx_j = \sum_i g_i \frac{\partial n_i}{\partial x_j} = \frac{1}{\sigma} \Bigl( g_j -
# \underbrace{\tfrac{1}{C} \textstyle\sum_i g_i}_{\text{mean of } g} -
# n_j \underbrace{\tfrac{1}{C} \textstyle\sum_i g_i n_i}_{\text{mean of } g n} \Bigr)$$


# %%
@op
def my_layer_norm(x, w, b):
    """(..., C) -> (..., C)"""
    std = np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    n = (x - x.mean(-1, keepdims=True)) / std

    def backward(dy):
        g = dy * w
        dx = (g - g.mean(-1, keepdims=True) - n * (g * n).mean(-1, keepdims=True)) / std
        return dx, dy * n, dy  # the engine sums the last two over the tokens

    return n * w + b, backward


x, w, b = rng.standard_normal((2, 3, 5)), rng.standard_normal(5), rng.standard_normal(5)
check_gradients(my_layer_norm, x, w, b)
assert np.allclose(my_layer_norm(x, w, b).data, ops.layer_norm(Tensor(x), w, b).data)

t = Tensor(x, requires_grad=True)
my_layer_norm(t, w, b).backward(rng.standard_normal(x.shape))  # y is not a number, so this takes dy
assert np.allclose(t.grad.sum(-1), 0) and np.allclose((t.grad * x).sum(-1), 0, atol=1e-4)  # ε shows

# %% [markdown]
# The last line shows what the two means are for. If $x$ is shifted or scaled, $y$ stays the same (but for
# $\varepsilon$). A shift moves $x$ along $(1, \dots, 1)$, a scaling along $x$ itself. The slope in both directions is
# 0, so $\sum dx_i = 0$ and $\sum dx_i\, x_i = 0$, and the means see to that.
#
# ## GELU
#
# GELU stands between the two linear layers of a transformer's MLP ([05](05_vit.ipynb)). It is a smooth $\max(x, 0)$: it
# multiplies $x$ by the probability $\Phi$ that a standard normal number is below $x$. minitl follows the code of
# TokenLearner's authors and approximates $\Phi$ with a tanh. The slope of tanh is $1 - t^2$:
#
# $$y = x\,\Phi \qquad \Phi = \tfrac{1}{2} (1 + t) \qquad t = \tanh u \qquad
# u = \sqrt{2 / \pi}\, (x + 0.044715\, x^3)$$
#
# $$\frac{dy}{dx} = \Phi + x\, \frac{d\Phi}{dx} = \Phi + \tfrac{1}{2}\, x\, (1 - t^2)\, u' \qquad
# u' = \sqrt{2 / \pi}\, (1 + 3 \cdot 0.044715\, x^2)$$


# %%
@op
def my_gelu(x):
    c, k = np.sqrt(2 / np.pi), 0.044715
    t = np.tanh(c * (x + k * x**3))
    Phi = (1 + t) / 2
    slope = Phi + x * (1 - t * t) * c * (1 + 3 * k * x * x) / 2
    return x * Phi, lambda dy: dy * slope


check_gradients(my_gelu, x)
assert np.allclose(my_gelu(x).data, ops.gelu(Tensor(x)).data)

# %%
t = Tensor(np.linspace(-4, 4, 200), requires_grad=True)
y = my_gelu(t)
y.backward(np.ones(200))
lines = {"GELU": (t.data, y.data), "its slope": (t.data, t.grad), "max(x, 0)": (t.data, t.data.clip(0))}
alt = "GELU follows max(x, 0) with a shallow dip left of 0; its slope rises from 0 to 1 and overshoots a little."
lesson.curves(lines, "x", "y", alt, ylim=(-0.5, 2))

# %% [markdown]
# ## Attention: one head
#
# Let $x$ of shape $(N, C)$ be the tokens of an image. Three linear layers make three vectors of $d$ numbers from each:
# a **query** $q$ (what the token looks for), a **key** $k$ (what it can be found by), a **value** $v$ (what it hands
# over), each of shape $(N, d)$. Then there are scores $l$, weights $A$ and results $y$:
#
# $$\underset{(N, N)}{l} = \frac{q\, k^\top}{\sqrt{d}} \qquad \underset{(N, N)}{A} = \text{softmax of each row of } l
# \qquad \underset{(N, d)}{y} = \underset{(N, N)}{A}\;\underset{(N, d)}{v}$$
#
# $A_{nm}$ is the weight with which token $n$ reads from token $m$. Each row of $A$ adds up to 1, so $y_n$ is a weighted
# mean of the values.
#
# **Backward** is a chain of three steps that you know. $y = Av$ is a product of matrices, as in lesson 03. Softmax is
# done. And $l_{nm} = \sum_c q_{nc}\, k_{mc} / \sqrt{d}$ contains $q_{nc}$ with the factor $k_{mc} / \sqrt{d}$, so
# $dq_{nc} = \sum_m dl_{nm}\, k_{mc} / \sqrt{d}$; for $dk_{mc}$ the sum runs over $n$.
#
# $$\underset{(N, N)}{dA} = dy\, v^\top \qquad \underset{(N, d)}{dv} = A^\top dy$$
#
# $$dl_{nm} = A_{nm} \Bigl( dA_{nm} - \sum_{m'} dA_{nm'} A_{nm'} \Bigr)$$
#
# $$\underset{(N, d)}{dq} = dl\; k / \sqrt{d} \qquad \underset{(N, d)}{dk} = dl^\top q / \sqrt{d}$$


# %%
@op
def my_attention(q, k, v):
    """(..., N, d) each -> (..., N, d)"""
    root = np.sqrt(q.shape[-1])
    A = my_softmax(q @ k.swapaxes(-1, -2) / root).data

    def backward(dy):
        dA, dv = dy @ v.swapaxes(-1, -2), A.swapaxes(-1, -2) @ dy
        dl = A * (dA - (dA * A).sum(-1, keepdims=True))
        return dl @ k / root, dl.swapaxes(-1, -2) @ q / root, dv

    return A @ v, backward


q, k, v = rng.standard_normal((3, 2, 6, 4))  # two images of six tokens
check_gradients(my_attention, q, k, v)

# %%
texts = {"q": "dq = dl k / √d", "k": "dk = dlᵀ q / √d", "l": "dl from dA and A", "A": "dA = dy vᵀ", "v": "dv = Aᵀ dy"}
box = {name: f"{name}\n{text}" for name, text in texts.items()} | {"y": "y = A v\ndy is given"}
edges = [(box[a], box[b]) for a, b in ("ql", "kl", "lA", "Ay", "vy")]
lesson.graph(edges, "A graph: q and k lead to l, l to A, A and v to y; each box names its gradient.", size=(6.5, 2.8))

# %% [markdown]
# Read what `backward` uses: `A`, `q`, `k`, `v` and `dy`. The scores $l$ and their exponentials do not occur, because
# the gradient of softmax is written in its *result*. So they need not be kept between forward and backward.
#
# A forgotten transpose is easy here, since $dl$ is square. The shape of $dk$ stays right:


# %%
@op
def careless_scores(q, k):
    return q @ k.swapaxes(-1, -2), lambda dl: (dl @ k, dl @ q)  # where is the transpose of dl?


try:
    check_gradients(careless_scores, q, k)
except AssertionError as error:
    print(error)

# %% [markdown]
# ### Why divide by √d?
#
# If the entries of $q$ and $k$ are random and independent, with mean 0 and variance 1, their products have variance 1
# too, and $q_n \cdot k_m$, a sum of $d$ of them, has variance $d$. Divided by $\sqrt{d}$, it has variance 1 for every
# $d$. Without the division the scores grow with $d$, softmax becomes sure before it has learned anything, and a sure
# softmax hardly learns.

# %%
widths = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256])
largest = {"q·k": [], "q·k / √d": []}  # the largest of 64 weights, mean over the rows
for d in widths:
    products = rng.standard_normal((64, d)) @ rng.standard_normal((d, 64))
    largest["q·k"].append(my_softmax(products).data.max(1).mean())
    largest["q·k / √d"].append(my_softmax(products / np.sqrt(d)).data.max(1).mean())
assert largest["q·k"][-1] > 0.7 > 0.3 > max(largest["q·k / √d"])

# %%
lines = {name: (widths, values) for name, values in largest.items()}
alt = "The largest weight grows from 0.1 towards 1 as d grows to 256; divided by the root of d it stays near 0.1."
lesson.curves(lines, "width d of a head", "largest weight of a row", alt, marks=True, xscale="log", ylim=(0, 1))

# %% [markdown]
# ## Several heads
#
# One head takes one weighted mean. With $h$ heads of width $d = C/h$, each token reads in $h$ ways at once. One linear
# layer with a matrix $(C, 3C)$ makes all queries, keys and values; its result `qkv` has shape $(B, N, 3C)$. We split
# the last axis and bring $N$ and $d$ to the end, so that `@` works on each image and head for itself. Then we go back,
# and the results of all heads lie side by side, $(B, N, C)$. A last linear layer, $(C, C)$, mixes them; it is left out
# here. `reshape` and `transpose` are ops whose gradients only move numbers.


# %%
def split(qkv, h):
    """(B, N, 3 h d) -> q, k, v, each (B, h, N, d)"""
    B, N, width = qkv.shape
    parts = qkv.reshape(B, N, 3, h, width // (3 * h)).transpose(2, 0, 3, 1, 4)
    return parts[0], parts[1], parts[2]


def heads(qkv, h):
    """(B, N, 3 h d) -> (B, N, h d)"""
    y = my_attention(*split(qkv, h))  # (B, h, N, d)
    return y.transpose(0, 2, 1, 3).reshape(*qkv.shape[:2], -1)


qkv = rng.standard_normal((2, 5, 24))  # 3 parts of 2 heads of width 4
check_gradients(lambda qkv: heads(qkv, 2), qkv)
assert np.allclose(heads(Tensor(qkv), 2).data, ops.attention(Tensor(qkv), num_heads=2).data)
order = rng.permutation(5)
assert np.allclose(heads(Tensor(qkv[:, order]), 2).data, heads(Tensor(qkv), 2).data[:, order])


def careless_heads(qkv, h):
    B, N, width = qkv.shape
    parts = qkv.reshape(3, B, h, N, width // (3 * h))  # no transpose
    return my_attention(parts[0], parts[1], parts[2]).reshape(B, N, width // 3)


check_gradients(lambda qkv: careless_heads(qkv, 2), qkv)  # silent
same = np.allclose(careless_heads(Tensor(qkv), 2).data, ops.attention(Tensor(qkv), num_heads=2).data)
print("equal to minitl's attention:", same)
assert not same

# %% [markdown]
# Tokens in another order give the same results in that other order, says the check on `order`. Attention knows no
# order, and that is why lesson 03 added positions.
#
# The careless heads mix images, tokens and the parts of a token, and `check_gradients` is silent. It is right to be:
# this is the correct gradient of a wrong function. It compares backward with forward. Only a second version, or a loop,
# finds an error in both.
#
# ## Before and after training
#
# `all-64` of lesson 00 works on all 64 tokens, in two *blocks*: attention with three heads, then an MLP, each with a
# LayerNorm before it. We compute its attention weights with our own `split`. As control we take the same model with
# random weights.


# %%
def attention_weights(model, images):
    """Return the attention weights of each block, (B, h, N, N)."""
    x, found = model.patch_embed(Tensor(vit.patchify(images, 4))) + model.pos_embed, []
    for block in model.blocks:
        normed = block.norm1(x)  # the LayerNorm
        q, k, v = split(block.attn.qkv(normed), block.attn.num_heads)
        A = ops.softmax(q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1]))
        y = (A @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        assert np.allclose(y.data, block.attn.heads(normed).data, atol=1e-4)  # what the block itself computes
        found.append(A.data)
        x = block(x)
    return found


B = 100 if lesson.FAST else 500
test = data.sample(rng, B)
trained, meta = lesson.load_model("all-64")
random = nn.ViT(trained.config, trained.spec, np.random.default_rng(0))
images = data.normalize(test.images, meta["mean"], meta["std"])
with no_grad():
    after, before = attention_weights(trained, images), attention_weights(random, images)

# %%
lesson.matrices(
    {"before: block 2, head 1": before[1][1, 0], "after: block 2, head 1": after[1][1, 0]},
    xlabel="token that is read from",
    ylabel="token that reads",
    alt="Before training the matrix is a dim mixture; after training it is black but for a few bright vertical lines.",
    unit="weight",
    high=0.5,
)

# %% [markdown]
# This is $A$ for one image, the second of those below. Vertical lines: all tokens read from the same few. Which? A row
# of $A$ has 64 weights, one for each patch, so we can lay it over the image, bright where the weight is large. Below
# are the rows of three tokens in the same head: the first patch, the last patch, and the patch at the middle of the red
# object, which the white box marks.

# %%
top, left, bottom, right = test.boxes.T
center = (top + bottom) // 8 * 8 + (left + right) // 8  # a row of patches has 8
rows, every = {"first": np.zeros(B, int), "last": np.full(B, 63), "object": center}, np.arange(B)
stages = {f"before: {n}": before[1][every, 0, row].reshape(B, 8, 8)[:4] for n, row in rows.items()}
stages |= {f"after: {n}": after[1][every, 0, row].reshape(B, 8, 8)[:4] for n, row in rows.items()}
alt = "Before training, weights lie anywhere; after it, mostly on the red object, in the third image elsewhere too."
lesson.show(pictures.show_stages(test.images[:4], stages, test.boxes[:4]), alt)

# %% [markdown]
# The model was never told where the object is. In the third image its tokens also read from a reddish patch of the
# background, the first token from hardly anything else. So how often does it find the object? We count the share of all
# weights that lies in the box, for each head. (An even map has the share that is marked as chance.)


# %%
def mass(A):
    """Return the share of the weights of each head that lies in the boxes: (B, h, N, N) -> list of h numbers."""
    maps = A.mean(2).reshape(B, -1, 8, 8)  # mean over the tokens that read
    return [metrics.map_mass(maps[:, h : h + 1], test.boxes, (32, 32)).mean() for h in range(maps.shape[1])]


share = {f"after: block {i}, head {h}": m for i in (1, 2) for h, m in enumerate(mass(after[i - 1]), 1)}
share = {"before: mean of all heads": np.mean([mass(A) for A in before])} | share
chance = metrics.box_share(test.boxes, (32, 32))
assert abs(share["before: mean of all heads"] - chance) < 0.02
assert share["after: block 2, head 1"] > 0.6 and share["after: block 1, head 3"] > 3 * chance

# %%
alt = "Bars: chance before training; after training far more in five of six heads, most in block 2, head 1."
lesson.bars(share, "share of attention on the red object", alt, chance=chance, xlim=(0, 1))

# %% [markdown]
# ## Does the model need these maps?
#
# A bright map is tempting to read as a reason. Test it: make one head even, and see whether the model still names the
# shapes. If $q = 0$, all scores are 0 and every weight is $1/N$, so it is enough to set the part of the weights that
# makes this head's queries to 0.


# %%
def accuracy(*even):
    """Return the accuracy with even weights in some heads, given as (block, head) counted from 1."""
    model, _ = lesson.load_model("all-64")
    for block, head in even:
        qkv, d = model.blocks[block - 1].attn.qkv, model.config.dim // model.config.heads
        part = slice(d * (head - 1), d * head)
        qkv.weight.data[:, part], qkv.bias.data[part] = 0, 0
    with no_grad():
        return np.mean(np.concatenate([model(x).data.argmax(1) for x in np.array_split(images, 5)]) == test.labels)


right = {"as trained": accuracy()}
right |= {f"even: block {i}, head {h}": accuracy((i, h)) for i in (1, 2) for h in (1, 2, 3)}
right["even: all of block 2"] = accuracy((2, 1), (2, 2), (2, 3))
if not lesson.FAST:
    assert right["even: block 1, head 3"] > 0.95 > 0.85 > right["even: block 2, head 1"]
    assert right["even: all of block 2"] < 0.3

# %%
alt = (
    "Bars: nearly all right as trained or with heads 2 or 3 of block 1 even; fewer with others; chance without block 2."
)
lesson.bars(right, "accuracy", alt, chance=1 / 8, xlim=(0, 1.15))

# %% [markdown]
# Without the choice in block 2, the model guesses. So attention does find the object, and the answer depends on it. But
# compare head 3 of block 1 in both figures: it puts much more than chance on the object, and almost nothing is lost
# without it. **A map shows where a head reads. It does not show what the model makes of it**, nor, after the first
# block, what the token at that place stands for: it has read from others itself.
#
# ## The price: N²
#
# For one image, the linear layers that make $q$, $k$ and $v$ and the one that mixes the heads need $4NC^2$
# multiply-adds. The products $q k^\top$ and $A v$ of all heads need $N^2 C$ each; beyond $N = 2C$ they cost more. And
# $A$ has $h N^2$ entries, which are kept for backward.

# %%
C, h, M = 48, 3, 96
N = np.array([8, 16, 32, 64, 128, 256, 512, 1024])
linear, pairs = 4 * N * C**2, 2 * N**2 * C
mlp = 2 * N * C * M  # the rest of a block, as counted in lesson 00
assert np.array_equal(linear + pairs + mlp, [flops.block(n, C, M, h).macs for n in N.tolist()])
for n in (8, 64, 1024):
    print(f"{n:5} tokens: A has {h * n * n:9,} entries")

# %%
lines = {"linear layers, 4NC²": (N, linear / 1e6), "qkᵀ and Av, 2N²C": (N, pairs / 1e6)}
alt = "On logarithmic axes, the cost of the linear layers grows in a line of slope 1, that of the pairs with slope 2."
scales = {"xscale": "log", "yscale": "log"}
lesson.curves(lines, "tokens N", "million multiply-adds", alt, marks=True, **scales)

# %% [markdown]
# With 8 tokens in place of 64, the linear layers cost an eighth, and the pairs a sixty-fourth. This is what
# TokenLearner is after.
#
# ## Exercises
#
# **1. Log-softmax.** The loss of the next lesson needs the logarithm of softmax, $y_i = x_i - \ln \sum_j e^{x_j}$.
# Derive the gradient and write it as an op over the last axis. It has to work for scores of 1000 and of -1000.


# %%
@op
def my_log_softmax(x):
    """(..., K) -> (..., K)"""
    ...


check(my_log_softmax)

# %% [markdown]
# <details><summary>Answer</summary>
#
# $\partial y_i / \partial x_j = \delta_{ij} - p_j$ with $p = e^y$, the softmax. So $dx_j = dy_j - p_j \sum_i dy_i$.
#
# ```python
# @op
# def my_log_softmax(x):
#     x = x - x.max(-1, keepdims=True)
#     y = x - np.log(np.exp(x).sum(-1, keepdims=True))
#     return y, lambda dy: dy - np.exp(y) * dy.sum(-1, keepdims=True)
#
#
# check(my_log_softmax)
# ```
#
# `np.log(softmax)` would give $-\infty$ where a weight is rounded to 0.
#
# </details>
#
# **2. RMSNorm.** Many language models leave out the mean: $y_i = x_i / r$ with
# $r^2 = \frac{1}{C} \sum_i x_i^2 + 10^{-6}$. Derive $\partial r / \partial x_j$, then $dx$, and write the op.


# %%
@op
def my_rms_norm(x):
    """(..., C) -> (..., C)"""
    ...


check(my_rms_norm)

# %% [markdown]
# <details><summary>Answer</summary>
#
# $2 r\, \partial r / \partial x_j = 2 x_j / C$, so $\partial r / \partial x_j = y_j / C$, and
# $dx_j = (dy_j - y_j \cdot \text{mean of } dy\, y) / r$: LayerNorm without the term for the shift.
#
# ```python
# @op
# def my_rms_norm(x):
#     r = np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
#     y = x / r
#     return y, lambda dy: (dy - y * (dy * y).mean(-1, keepdims=True)) / r
#
#
# check(my_rms_norm)
# ```
#
# </details>
#
# **3. When do pairs cost more?** A block of ViT-B, a transformer of common size, has $C = 768$, and after attention an
# MLP of two linear layers with $4C$ numbers in between. For how many tokens $N$ do the pairs, $2N^2C$, cost as much as
# all linear layers together?

# %%
equal_at = None  # your number of tokens
check(equal_at=equal_at)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The MLP needs $2 \cdot 4 N C^2$, all linear layers $12 N C^2$. From $2 N^2 C = 12 N C^2$ follows $N = 6C$.
#
# ```python
# check(equal_at=6 * 768)
# ```
#
# An image of 224 × 224 pixels has 196 patches of 16 × 16. There, most of what few tokens save is in the linear layers.
#
# </details>

# %% [markdown]
# ## What you can do now
#
# - Derive the gradients of softmax, LayerNorm and GELU, and that of attention in three steps.
# - Say why attention's backward needs only $A$, $q$, $k$ and $v$, and why scores are divided by $\sqrt{d}$.
# - Draw an attention map, count it against chance, and test whether the model needs it.
#
# **Next:** [A ViT small enough to train](05_vit.ipynb), where these parts become a model that learns.
