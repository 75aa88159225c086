# %% [markdown]
# # 09 · TokenFuser
#
# TokenLearner makes eight tokens of 64 places, and the places are gone. TokenFuser is the way back: each place takes
# from the eight tokens what it can use. You write it, derive its gradient through every part, and train it on a task
# that has no answer without places: to paint the object.
#
# | | |
# |---|---|
# | **Goal** | build TokenFuser, know why it starts as the identity, and when you can do without it |
# | **Time** | 45 minutes to read, 60 seconds to run on two cores of an AMD EPYC |
# | **You need** | [04](04_attention.ipynb): LayerNorm, attention; [07](07_tokenlearner_softmax.ipynb): TokenLearner |

# %%
import itertools
from pathlib import Path

import numpy as np
from checks import check
from lesson import FAST, bars, curves, graph, images

from minitl import Tensor, check_gradients, data, flops, nn, no_grad, ops, optim
from minitl.autograd import op
from minitl.nn.vit import patchify
from minitl.paper import tables

rng = np.random.default_rng(0)

# %% [markdown]
# ## Why want the places back?
#
# To name the shape in an image, eight tokens are enough. But
#
# - the answer may be wanted **at each place**: which patches belong to the object?
# - the next layer may need a grid: a convolution, or another TokenLearner that looks again, elsewhere.
#
# So in a second form of the network (paper, Section 3.2) the tokens are few only inside a layer: TokenLearner comes
# before a block, and TokenFuser after it brings all places back. The grid itself is carried along by a residual, and
# the three can be repeated.

# %%
chain = ["grid x", "TokenLearner", "block, 8 tokens", "TokenFuser", "grid o"]
edges = [*itertools.pairwise(chain), ("grid x", "TokenFuser")]
alt = "A chain from grid x by TokenLearner, block and TokenFuser to grid o; x also leads to TokenFuser."
graph(edges, alt, size=(7.5, 1.4))

# %% [markdown]
# ## The formula
#
# | letter | meaning | shape |
# |---|---|---|
# | $Y$ | tokens, as they come from the block | $(B, S, C)$ |
# | $x$ | the grid that they were made from, flattened to $N$ places | $(B, N, C)$ |
# | $M$, $b$ | learned: mixes the tokens | $(S, S)$, $(S)$ |
# | $V$ | learned: what a place wants of each token | $(C, S)$ |
# | $W$ | weights at each place (not the columns of the grid) | $(B, N, S)$ |
# | $o$ | the new grid | $(B, N, C)$ |
#
# 1. **Mix the tokens**: $U = M^\top\, \text{norm}(Y) + b$, then $Y' = \text{norm}(U)$, both $(B, S, C)$, where norm is
#    LayerNorm. Each new token is a weighted sum of all tokens, with the same weights for each of the $C$ channels, and
#    one number $b_s$ added to all of them.
# 2. **Weights at each place**: $W = \sigma(\text{norm}(x)\, V)$. $W_{ns}$ says how much of token $s$ the place $n$
#    takes.
# 3. **Paint**: $o = x + W\, Y'$, that is $(N, C) + (N, S)\,(S, C)$.
#
# The norms are in the authors' code alone; minitl can leave out the two of step 1 (`normalize=False`). Apart from its
# norm, $W$ is the paper's; the authors' code has an MLP in place of $V$ (`beta="mlp"`).


# %%
def token_fuser(y, x, w):
    """y (B, S, C), x (B, N, C) -> (B, N, C)"""
    y = ops.layer_norm(y, w["mix_norm1.weight"], w["mix_norm1.bias"])
    u = w["mix.weight"].T @ y + w["mix.bias"][:, None]
    y = ops.layer_norm(u, w["mix_norm2.weight"], w["mix_norm2.bias"])
    W = ops.sigmoid(ops.layer_norm(x, w["norm.weight"], w["norm.bias"]) @ w["beta.weight"])
    return x + W @ y


# %%
B, H, C, S = 4, 8, 48, 8
N = H * H
few = data.sample(rng, B)
x = patchify(few.images / 255, 4)  # patches as tokens, (B, 64, 48)
y = rng.standard_normal((B, S, C))

fuser = nn.TokenFuser(C, S, rng=rng).to(dtype="float64")
w = fuser.state_dict()
for name, array in w.items():
    print(f"{name:16} {array.shape}")

# The arrays of w are those of the module. M and b start as zeros, with which the test would prove little.
w["mix.weight"][...] = rng.standard_normal((S, S))
w["mix.bias"][...] = rng.standard_normal(S)
expected = fuser(Tensor(y), Tensor(x.reshape(B, H, H, C))).data  # minitl's version
assert np.allclose(token_fuser(y, x, w).data, expected.reshape(B, N, C))

# %%
W = ops.sigmoid(fuser.beta(fuser.norm(Tensor(x)))).data
rows = {"at the start": [few.images[0], *W[0].T.reshape(S, H, H)]}
titles = ["", *(f"token {s + 1}" for s in range(S))]
images(rows, "An image and eight maps before training, of uneven gray that follows the patches.", titles, low=0, high=1)

# %% [markdown]
# The weights $W$ of each token as a map, before training: random. They look like TokenLearner's maps, but work in
# reverse. There a map said what a token takes from the places; here it says where the token goes.
#
# ## The gradient, part by part
#
# Given is $do$, $(N, C)$. We take one image and leave $B$ out; the gradients of learned arrays are added up over
# images. Entry by entry, $o_{nc} = x_{nc} + \sum_s W_{ns}\, Y'_{sc}$.
#
# **The residual.** $x_{nc}$ is in $o_{nc}$ with the factor 1, so $dx$ gets $do$. More will come.
#
# **Weights and tokens.** $W_{ns}$ is in $o_{nc}$ for each $c$ with the factor $Y'_{sc}$; $Y'_{sc}$ is in $o_{nc}$ for
# each $n$ with the factor $W_{ns}$. So
#
# $$dW_{ns} = \sum_c do_{nc}\, Y'_{sc} \qquad dY'_{sc} = \sum_n W_{ns}\, do_{nc} \qquad\text{or}\qquad
# \underset{(N, S)}{dW} = do\, Y'^\top \qquad \underset{(S, C)}{dY'} = W^\top do$$
#
# **Through the sigmoid.** Let $\hat x = \text{norm}(x)$ and $l = \hat x V$, a linear layer (lesson 03), with the slope
# of the sigmoid from lesson 06:
#
# $$\underset{(N, S)}{dl} = dW \odot W \odot (1 - W) \qquad \underset{(C, S)}{dV} = \hat x^\top dl \qquad
# \underset{(N, C)}{d\hat x} = dl\, V^\top$$
#
# The gradient of LayerNorm (lesson 04) leads from $\hat x$ back to $x$. Its result is *added* to $dx$: $x$ acts twice,
# by the residual and by the weights.
#
# **Through the mixing matrix.** LayerNorm takes $dY'$ back to $dU$. With $\hat Y = \text{norm}(Y)$,
# $U_{tc} = \sum_s M_{st}\, \hat Y_{sc} + b_t$. $M_{st}$ is in $U_{tc}$ for each $c$ with the factor $\hat Y_{sc}$;
# $\hat Y_{sc}$ is in $U_{tc}$ for each $t$ with the factor $M_{st}$:
#
# $$dM_{st} = \sum_c \hat Y_{sc}\, dU_{tc} \qquad d\hat Y_{sc} = \sum_t M_{st}\, dU_{tc} \qquad\text{or}\qquad
# \underset{(S, S)}{dM} = \hat Y\, dU^\top \qquad \underset{(S, C)}{d\hat Y} = M\, dU$$
#
# A last LayerNorm leads from $d\hat Y$ to $dY$. And $b$? It adds the same number $b_t$ to all channels of a token, and
# the norm that follows takes the mean over the channels away. So $b$ has no effect, and we leave it out.


# %%
def norm(x):
    """LayerNorm without learned numbers, and its backward from lesson 04."""
    std = np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    n = (x - x.mean(-1, keepdims=True)) / std
    return n, lambda g: (g - g.mean(-1, keepdims=True) - n * (g * n).mean(-1, keepdims=True)) / std


def fuse(y, x, M, V):
    """o = x + σ(norm(x) V) norm(Mᵀ norm(y)):  y (B, S, C), x (B, N, C), M (S, S), V (C, S)"""
    y_hat, back_y = norm(y)
    y_new, back_u = norm(M.T @ y_hat)
    x_hat, back_x = norm(x)
    W = 1 / (1 + np.exp(-x_hat @ V))

    def backward(do):
        dW = do @ y_new.swapaxes(1, 2)  # (B, N, S)
        dl = dW * W * (1 - W)
        dV = np.einsum("bnc,bns->cs", x_hat, dl)
        dx = do + back_x(dl @ V.T)  # by the residual and by the weights
        du = back_u(W.swapaxes(1, 2) @ do)  # (B, S, C)
        dM = np.einsum("bsc,btc->st", y_hat, du)
        return back_y(M @ du), dx, dM, dV

    return x + W @ y_new, backward


# %%
my_fuser = op(fuse)
M, V = w["mix.weight"], w["beta.weight"]
assert np.allclose(my_fuser(y, x, M, V).data, token_fuser(y, x, w).data)  # although w has a mix.bias
check_gradients(my_fuser, y, x, M, V)


@op
def forgetful_fuse(y, x, M, V):
    o, backward = fuse(y, x, M, V)

    def only_residual(do):
        dy, _, dM, dV = backward(do)
        return dy, do, dM, dV  # x acts twice!

    return o, only_residual


try:
    check_gradients(forgetful_fuse, y, x, M, V)
except AssertionError as error:
    print(error)

# %% [markdown]
# ## It starts as the identity
#
# As in the authors' code, $M$ and $b$ start as zeros. Then $U = 0$, its norm is 0, and $o = x$: **the new
# layer is the identity**, whatever tokens come. We check this, and then follow a gradient that is given at one place
# only, back through the fuser and through a TokenLearner before it: once with $M = 0$, once with a random $M$.

# %%
newborn = nn.TokenFuser(C, S, rng=rng).to(dtype="float64")
grid = Tensor(x.reshape(B, H, H, C), requires_grad=True)
tokens = Tensor(100 * y, requires_grad=True)
o = newborn(tokens, grid)
assert np.array_equal(o.data, grid.data)

do = rng.standard_normal(o.shape)
o.backward(do)
assert np.allclose(grid.grad, do) and np.allclose(tokens.grad, 0)

learner = nn.TokenLearner(C, S, version="1.1", rng=rng).to(dtype="float64")
one_place, reached = np.zeros((1, H, H, C)), {}
one_place[0, 2, 5] = rng.standard_normal(C)
for name, layer in (("M = 0", newborn), ("random M", fuser)):
    grid = Tensor(x[:1].reshape(1, H, H, C), requires_grad=True)
    layer(learner(grid), grid).backward(one_place)
    reached[name] = np.abs(grid.grad[0]).mean(-1)
assert (reached["M = 0"] > 0).sum() == 1 and (reached["random M"] > 0).all()

# %%
alt = "The gradient of the output is at one place. With M = 0 it stays there; with a random M it reaches all places."
pictures = [few.images[0], np.abs(one_place[0]).mean(-1), *reached.values()]
images({"": pictures}, alt, ["image", "do", *(f"dx, {name}" for name in reached)], low=0)

# %% [markdown]
# A layer put between others should do no harm at first. The network begins as it would without the fuser, and the
# gradient goes through the residual unchanged (`grid.grad` equals `do`).
#
# The price: with $M = 0$ we have $d\hat Y = M\, dU = 0$. In the first step nothing comes back to the tokens, to the
# block, or to TokenLearner. Only when $M$ has moved do they begin to learn. Then one place reaches all others through
# the tokens, as the last picture shows.
#
# ## Two other ways back
#
# All ways back have the form $o = x + R\, Y'$ with a matrix $R$ of shape $(N, S)$. They differ in where it comes from.
#
# | | $R$ | $Y'$ | learned |
# |---|---|---|---|
# | **unpooling** | $A^\top$, the maps of TokenLearner: a token returns where it came from | $Y$ | nothing |
# | **TokenFuser** | $\sigma(\text{norm}(x) V)$: by the place alone | mixed tokens | $M$, $V$, norms |
# | **re-projection** | $\text{softmax}(q k^\top / \sqrt C)$: attention from places to tokens | values | four matrices |
#
# Here re-projection has one head; a last linear layer follows.


# %%
def unpool(y, x, A):
    """y (B, S, C), x (B, N, C), A (B, S, N) -> (B, N, C)"""
    return x + A.swapaxes(1, 2) @ y


def reproject(y, x, w):
    """One head: y (B, S, C), x (B, N, C) -> (B, N, C)"""
    q = x @ w["attn.q.weight"] + w["attn.q.bias"]
    k, v = (y @ w[f"attn.{name}.weight"] + w[f"attn.{name}.bias"] for name in "kv")
    R = ops.softmax(q @ k.swapaxes(1, 2) / np.sqrt(C), axis=-1).data  # (B, N, S)
    return x + R @ v @ w["attn.proj.weight"] + w["attn.proj.bias"]


A = rng.random((B, S, N))
expected = nn.Unpool()(Tensor(y), Tensor(x.reshape(B, H, H, C)), Tensor(A.reshape(B, S, H, H))).data
assert np.allclose(unpool(y, x, A), expected.reshape(B, N, C))
attention = nn.Reproject(C, num_heads=1, rng=rng).to(dtype="float64")
expected = attention(Tensor(y), Tensor(x.reshape(B, H, H, C))).data
assert np.allclose(reproject(y, x, attention.state_dict()), expected.reshape(B, N, C))

# %% [markdown]
# ## A task that needs places
#
# So far the box around the red object served to judge maps. Now it is the target: for each of the 64 patches, **what
# share of it lies in the box?** A logit at each place becomes a probability by a sigmoid, and the loss is the *binary
# cross-entropy*, averaged over places and images. For a probability $p$ and a target $t$ between 0 and 1:
#
# $$L = -t \ln p - (1 - t) \ln(1 - p)$$
#
# Even a perfect answer $p = t$ does not bring it to 0 where $t$ lies between 0 and 1, at the edge of the box. We
# subtract this floor when we report.


# %%
def targets(boxes):
    """Share of each patch that a box covers: (B, 4) -> (B, 8, 8)"""
    edge = np.arange(8) * 4
    top, left, bottom, right = boxes.T[..., None]
    rows = (np.minimum(bottom, edge + 4) - np.maximum(top, edge)).clip(0) / 4
    columns = (np.minimum(right, edge + 4) - np.maximum(left, edge)).clip(0) / 4
    return (rows[:, :, None] * columns[:, None]).astype("float32")


def binary_cross_entropy(p, t):
    p = p.clip(1e-7, 1 - 1e-7)
    return (-t * np.log(p) - (1 - t) * np.log(1 - p)).mean()


STEPS = 20 if FAST else 300
train_set, test_set = data.clutter(1000, 200) if FAST else data.clutter(20_000, 1000)
mean, std = data.channel_stats(train_set.images)
test_inputs, shares = data.normalize(test_set.images, mean, std), targets(test_set.boxes)
floor = binary_cross_entropy(shares, shares)
print(f"{shares.mean():.1%} of all places are covered; the loss cannot be below {floor:.3f}")

# %%
alt = "Six images and their targets: bright where the box around the red object covers a patch, darker at its edges."
images({"image": test_set.images[:6], "target": shares[:6]}, alt, low=0, high=1)

# %% [markdown]
# The network: patches, positions, TokenLearner with 8 tokens, one block, a way back, and at each place a linear layer
# to one logit. We exchange the way back. There are two controls: `Nothing` throws the tokens away, so that each place
# must decide by its own patch, and `AllPlaces` applies a block to all 64 places instead.


# %%
class Painter(nn.Module):
    """Images (B, 32, 32, 3) -> a logit at each place (B, 8, 8)"""

    def __init__(self, back, rng):
        self.embed = nn.Linear(48, C, rng=rng)
        self.positions = nn.Parameter((0.02 * rng.standard_normal((N, C))).astype("float32"))
        self.learner = nn.TokenLearner(C, S, version="1.1", pre_norm=False, rng=rng)
        self.block = nn.EncoderBlock(C, 3, 96, rng=rng)
        self.back, self.norm, self.head = back, nn.LayerNorm(C), nn.Linear(C, 1, rng=rng)

    def parts(self, inputs):
        """The tokens after the block, the grid that they come from, and TokenLearner's maps."""
        grid = (self.embed(patchify(Tensor(inputs), 4)) + self.positions).reshape(-1, 8, 8, C)
        maps = self.learner.maps(grid)
        return self.block(self.learner(grid, maps)), grid, maps

    def forward(self, inputs):
        return self.head(self.norm(self.back(*self.parts(inputs)))).reshape(-1, 8, 8)


# %%
class Nothing(nn.Module):
    def forward(self, tokens, grid, maps):
        return grid


class AllPlaces(nn.Module):
    def __init__(self, rng):
        self.block = nn.EncoderBlock(C, 3, 96, rng=rng)

    def forward(self, tokens, grid, maps):
        return self.block(grid.reshape(-1, N, C)).reshape(grid.shape)


def train(back, stop=None, look=lambda model: None):
    """Train a Painter with a way back; `look` sees it before each step."""
    model = Painter(back, np.random.default_rng(0))
    optimizer, choose = optim.AdamW(model.parameters(), weight_decay=0.05), np.random.default_rng(0)
    for step in range(stop or STEPS):
        look(model)
        some = choose.integers(len(train_set.images), size=100)
        logits = model(data.normalize(train_set.images[some], mean, std))
        loss = ops.binary_cross_entropy_with_logits(logits, targets(train_set.boxes[some]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.clip_grad_norm(1.0)
        optimizer.lr = optim.warmup_cosine(step, STEPS, STEPS // 10, 3e-3)
        optimizer.step()
    return model


# %% [markdown]
# How good is a painting? Besides the loss above its floor we take the **intersection over union**: of the places where
# the target or the answer is above 1/2, the share in which both are.

# %%
ways = {
    "no way back": Nothing(),
    "unpooling": nn.Unpool(),
    "TokenFuser": nn.TokenFuser(C, S, rng=rng),
    "re-projection": nn.Reproject(C, num_heads=3, rng=rng),
    "block on all 64": AllPlaces(rng),
}
models, painted, overlap = {}, {}, {}
for name, back in ways.items():
    models[name] = train(back)
    with no_grad():
        p = painted[name] = ops.sigmoid(models[name](test_inputs)).data
    hit, aim = p > 0.5, shares > 0.5
    overlap[name] = (hit & aim).sum() / (hit | aim).sum()
    print(f"{name:16} loss above the floor {binary_cross_entropy(p, shares) - floor:.3f}")

# %%
alt = "Without a way back about 0.3; unpooling, TokenFuser, re-projection and the block on all 64 about 0.65."
bars(overlap, "intersection over union", alt, text="{:.2f}", xlim=(0, 1))
if not FAST:
    three = [overlap[name] for name in ("unpooling", "TokenFuser", "re-projection")]
    assert min(three) > overlap["no way back"] + 0.15 and min(three) > overlap["block on all 64"] - 0.1

# %%
rows = {"image": test_set.images[:8], "target": shares[:8]}
rows |= {name: painted[name][:8] for name in ("no way back", "TokenFuser", "block on all 64")}
alt = "Eight images, targets and answers: without tokens only the red patches are found, with the fuser the whole box."
images(rows, alt, low=0, high=1)

# %% [markdown]
# A place that sees its own patch knows whether it is red. It cannot know whether the red is the object or background,
# or whether it lies in a corner of the box that the shape leaves free. All three ways back bring that news, and with
# eight tokens they come close to a block in which all 64 places talk to each other. The differences between the three,
# from one seed, cannot rank them.
#
# ## The tokens, painted back
#
# What does each token contribute? We look at its weights $W$ as a map, and at the answer when this one token is left
# out of the sum $W\, Y'$.

# %%
model, look_at = models["TokenFuser"], [0, 2]
with no_grad():
    tokens, grid, _ = model.parts(test_inputs[look_at])
    W = ops.sigmoid(model.back.beta(model.back.norm(grid))).data  # (2, 8, 8, S)
    # step 1 of the formula; the layer `mix` works on the last axis, so the tokens are brought there and back
    y_new = model.back.mix_norm2(
        model.back.mix(model.back.mix_norm1(tokens).transpose(0, 2, 1)).transpose(0, 2, 1)
    ).data

    def answer(W):
        o = grid + Tensor((W.reshape(-1, N, S) @ y_new).reshape(grid.shape))
        return ops.sigmoid(model.head(model.norm(o))).data[..., 0]

    full = answer(W)
    without = [answer(W * (np.arange(S) != s)) for s in range(S)]
assert np.allclose(full, painted["TokenFuser"][look_at], atol=1e-4)

# %%
titles = ["", "answer", *(f"token {s + 1}" for s in range(S))]
alt = "Patchy weights of eight tokens, and answers without each: without some, reddish background is painted too."
for b, i in enumerate(look_at):
    rows = {"weights W": [test_set.images[i], full[b], *W[b].transpose(2, 0, 1)]}
    rows |= {"without it": [test_set.images[i], full[b], *(p[b] for p in without)]}
    images(rows, alt, titles, low=0, high=1)

# %% [markdown]
# The weights alone tell us little: unlike in TokenLearner's maps, many are far from 0. The second row says more:
# without some of the tokens, patches of reddish background are painted as well. These tokens hold other red places
# back.
#
# ## How long does it remain the identity?
#
# We measure the size of what the fuser adds, relative to the grid, over the first steps, with the norms of the authors'
# code and without.

# %%
added = {}
for name, normalize in (("with norms", True), ("without", False)):
    sizes = added[name] = []

    def measure(model, sizes=sizes):
        with no_grad():
            tokens, grid, _ = model.parts(test_inputs[:100])
            sizes.append(np.linalg.norm(model.back(tokens, grid).data - grid.data) / np.linalg.norm(grid.data))

    train(nn.TokenFuser(C, S, normalize=normalize, rng=np.random.default_rng(0)), min(STEPS, 40), measure)
assert added["with norms"][0] == 0 and added["with norms"][1] > max(10 * added["without"][1], 1)

# %%
lines = {name: (np.arange(len(sizes)), sizes) for name, sizes in added.items()}
alt = "With norms the added part jumps from 0 to more than the grid at step 1; without it grows slowly over 20 steps."
curves(lines, "step", "size of W Y', relative to x", alt)

# %% [markdown]
# One step. AdamW moves each entry of $M$ by about the learning rate, however large its gradient is (lesson 05), so $U$
# is small after it. But the norm behind $M$ divides by a standard deviation, at first $\sqrt{\varepsilon}=1/1000$, and
# scales $U$ up to a good part of full size at once. Without norms the fuser grows gently, with $M$. A likely reason for
# the norms: with the authors' sum pooling, tokens are far larger than the grid (lesson 06).
#
# ## What it costs
#
# In multiply-adds for one image: mixing is a product of $(S, S)$ and $(S, C)$, the weights one of $(N, C)$ and
# $(C, S)$, painting one of $(N, S)$ and $(S, C)$:
#
# $$S^2 C + N C S + N S C$$

# %%
config = nn.ViTConfig(version="1.1", pre_norm=False)
assert flops.fuser(config, 1, N, S, C).macs == S * S * C + N * C * S + N * S * C
few_tokens = (flops.learner(config, N, S, C) + flops.block(S, C, 96, 3)).macs  # TokenLearner and its block
cost = {"no way back": few_tokens}
for title, name in (("unpooling", "unpool"), ("TokenFuser", "fuser"), ("re-projection", "reproject")):
    cost[title] = few_tokens + flops.BACKS[name](config, 1, N, S, C).macs
cost["block on all 64"] = flops.block(N, C, 96, 3).macs
assert cost["TokenFuser"] < cost["block on all 64"] / 3

# %%
millions = {name: macs / 1e6 for name, macs in cost.items()}
alt = "Multiply-adds: TokenLearner and block need 0.41, with a way back 0.43 to 0.79, a block on all 64 1.57."
bars(millions, "millions of multiply-adds", alt, text="{:.2f}")

# %% [markdown]
# TokenLearner, a block and the fuser together need less than a third of a block on all 64 places. Of the three ways
# back re-projection costs most, since two of its matrices $(C, C)$ work at every place.
#
# ## When you do not need it
#
# To classify, a network takes the mean over its tokens. Places are of no use then, and the fuser can only help
# indirectly: the next TokenLearner sees a grid that has learned something. The paper's Table 4: accuracy on ImageNet
# without and with the fuser, to which we add the cost, two FLOPs for a multiply-add. `B/16-8at6` is a ViT with 12
# layers (L has 24), patches of 16 × 16 pixels, and 8 tokens after layer 6; `10+11` has patches of 10 × 10 and 11 more
# layers.

# %%
published = {  # paper, Table 4: top-1 accuracy in percent without and with TokenFuser
    "B/16-8at6": (83.2, 83.7),
    "B/16-16at6": (83.2, 83.9),
    "L/16-16at12": (87.6, 87.6),
    "L/16-8at18": (87.9, 88.2),
    "L/10+11-16at18": (88.5, 88.5),
}
for name, (off, on) in published.items():
    giga = [flops.total(flops.count(*tables.preset(model))).flops / 1e9 for model in (name, f"{name}-fuser")]
    print(f"{name:16} {off} -> {on} %   {giga[0]:5.1f} -> {giga[1]:5.1f} GFLOPs ({giga[1] / giga[0] - 1:+.1%})")

# %% [markdown]
# Half a point or more for the smaller model, little or nothing for the larger ones, for less than two percent more
# computation. Here is the same question on CLUTTER, for four blocks, from [RESULTS.md](RESULTS.md). "Off, on" is
# without the fuser and with it, "from ½ on" after two blocks; then come multiply-adds, and accuracy (± standard
# deviation, two seeds):

# %%
results = Path("RESULTS.md").read_text(encoding="utf-8").splitlines()
start = next(i for i, line in enumerate(results) if "| `minitl ablate fuser`" in line)
for row in results[start : start + 6]:
    print("   ".join(cell.strip(" *") for cell in row.strip("|").split("|")))

# %% [markdown]
# Most differences are about as large as those between two seeds. In the first row the fuser doubles the cost: each
# layer now has a TokenLearner on all 64 places. For a class per image, spend the computation elsewhere; for an answer
# per place, a way back is needed.
#
# ## Exercises
#
# **1. Who learns first?** A new `nn.TokenFuser` gets its first gradient. Which of its arrays get one that is not zero
# (or rounding)? Say it first: it is 0 where a factor of the formula is 0.

# %%
first_to_learn = None  # names in the order of the list above: ("...", "...")
check(first_to_learn=first_to_learn)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# newborn.zero_grad()
# newborn(Tensor(y), Tensor(x.reshape(B, H, H, C))).backward(rng.standard_normal((B, H, H, C)))
# for name, array in newborn.named_parameters():
#     print(f"{name:16} {np.abs(array.grad).max():.2g}")
# first_to_learn = ("mix.weight", "mix_norm2.bias")
# check(first_to_learn=first_to_learn)
# ```
#
# $Y' = 0$ stops all that goes through $dW$, and $M = 0$ stops all that lies before $M$. The scale of the second norm is
# multiplied by $\text{norm}(U) = 0$; its shift is added, so it learns. `mix.bias` never has an effect: rounding.
#
# </details>
#
# **2. A place that has to choose.** Replace the sigmoid by a softmax over the *tokens*, so that each place distributes
# one unit: $o = x + \text{softmax}(x V)\, Y$, without norms and mixing. Write it as an op.


# %%
@op
def soft_fuse(y, x, V):
    """y (B, S, C), x (B, N, C), V (C, S) -> (B, N, C)"""
    o = np.zeros(x.shape)  # your grid

    def backward(do):
        return np.zeros_like(y), np.zeros_like(x), np.zeros_like(V)  # your dy, dx and dV

    return o, backward


check(soft_fuse)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# @op
# def soft_fuse(y, x, V):
#     l = x @ V
#     e = np.exp(l - l.max(-1, keepdims=True))
#     W = e / e.sum(-1, keepdims=True)
#
#     def backward(do):
#         dW = do @ y.swapaxes(1, 2)
#         dl = W * (dW - (dW * W).sum(-1, keepdims=True))
#         return W.swapaxes(1, 2) @ do, do + dl @ V.T, np.einsum("bnc,bns->cs", x, dl)
#
#     return x + W @ y, backward
#
#
# check(soft_fuse)
# ```
#
# With queries from the places and keys from the tokens in place of $xV$, this is re-projection.
#
# </details>
#
# **3. What does re-projection cost?** Write its multiply-adds for one image, as a function of $N$, $C$ and $S$.


# %%
def reproject_cost(N, C, S):
    return 0  # your count


check(reproject_cost)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# def reproject_cost(N, C, S):
#     return 2 * N * C * C + 2 * S * C * C + 2 * N * S * C
#
#
# check(reproject_cost)
# ```
#
# Queries and the last layer work at $N$ places, keys and values at $S$ tokens, all with a matrix $(C, C)$; scores and
# weighted sums are two products of $N S C$.
#
# </details>

# %% [markdown]
# ## What you can do now
#
# - Write TokenFuser, and derive its gradient through the residual, the weights, the tokens and the mixing matrix.
# - Say why it starts as the identity, and why it does not stay one.
# - Choose a way back by what it uses and costs, and do without one when the answer belongs to the whole image.
#
# **Next:** [Eight tokens per frame](10_video.ipynb) takes all this to clips, where tokens also have a time.
