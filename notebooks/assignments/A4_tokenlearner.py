# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A4 · TokenLearner
#
# You write TokenLearner in both versions, derive the gradients of its pooling by hand, count what it costs, place it in
# a Vision Transformer, train that to name shapes with eight tokens, and measure where its maps look.
#
# | | |
# |---|---|
# | **Points** | 18 by checks (10 visible, 8 hidden), 2 for written answers |
# | **Time** | 5 to 7 hours |
# | **You need** | NumPy, softmax and its gradient, lessons 05 to 08 of the course |
#
# Write only where a cell says `your code here`; you may add cells of your own. The tasks do not depend on each other: a
# wrong answer in one costs no points in another.
#
# | letter | meaning | letter | meaning |
# |---|---|---|---|
# | $B$ | images | $x$ | tokens on a grid, $(B, H, W, C)$, or in a row, $(B, N, C)$ |
# | $H, W$ | rows and columns, $N = HW$ places | $A$ | maps, weights of the places, $(B, S, H, W)$ or $(B, S, N)$ |
# | $C$ | width of a token | $Z$ | learned tokens, $(B, S, C)$ |
# | $S$ | learned tokens, one for each map | $dx$ | ∂L/∂x, where L is the loss; likewise $dZ$ and so on |

# %%
import itertools

import numpy as np
from lesson import bars, curves, graph, images, load_model

from minitl import Tensor, check_gradients, data, flops, nn, no_grad, ops, optim
from minitl.autograd import op
from minitl.nn import vit

rng = np.random.default_rng(0)
few = data.sample(rng, 4)  # four images of CLUTTER with one red object each
patches = vit.patchify(few.images / 255, 4).reshape(4, 8, 8, 48)  # each place: 4 x 4 pixels, row by row, of 3 colors

# %% [markdown]
# ## Task 1 · Version 1.0: convolutions and a sigmoid
#
# Each map is computed from the grid by convolutions, so that a place sees its neighbors. Each token is the mean over
# all places, each multiplied by the weight that its map gives to it.
#
# There are $n$ kernels, $K_1$ of shape $(3, 3, C, S)$ and all others $(3, 3, S, S)$. Every convolution keeps the grid
# (one row and column of zeros around it) and has no bias. GELU stands *between* convolutions, a sigmoid at the end:
#
# $$y_0 = x \qquad y_i = \text{gelu}(\text{conv}(y_{i-1}, K_i)) \;\text{ for } i < n \qquad
# l = \text{conv}(y_{n-1}, K_n) \quad (B, H, W, S)$$
#
# $$A_{bshw} = \frac{1}{1 + e^{-l_{bhws}}} \qquad\qquad Z_{bsc} = \frac{1}{HW} \sum_{h,w} A_{bshw}\, x_{bhwc}$$

# %%
edges = [("x", "convolutions, sigmoid"), ("convolutions, sigmoid", "maps A")]
edges += [("maps A", "tokens Z: mean of A x"), ("x", "tokens Z: mean of A x")]
alt = "A graph: x leads through convolutions and a sigmoid to the maps A; A and x lead to the tokens Z."
graph(edges, alt, size=(8, 2.4))
x, A = np.arange(6.0).reshape(2, 3), np.array([[0, 0.5, 1], [0, 0, 1]])  # a grid of 2 x 3 places, C = 1, and one map
print("x", x.tolist(), " A", A.tolist(), " token", (A * x).sum() / 6)


# %% answer="a4-v10" forbids="TokenLearner, token_pool"
def maps_v10(x, kernels):
    """Return the maps A, a Tensor (B, S, H, W), for a Tensor x (B, H, W, C) and a list of kernels.

    Use ops.conv2d(x, K, padding=1), ops.gelu and ops.sigmoid; Tensors take reshape, transpose and @ as arrays do.
    About four lines.
    """
    ### BEGIN SOLUTION
    for kernel in kernels[:-1]:
        x = ops.gelu(ops.conv2d(x, kernel, padding=1))
    logits = ops.conv2d(x, kernels[-1], padding=1)
    return ops.sigmoid(logits).transpose(0, 3, 1, 2)
    ### END SOLUTION


def tokens_v10(A, x):
    """Return the tokens Z, a Tensor (B, S, C), for Tensors A (B, S, H, W) and x (B, H, W, C).

    Tensors have no einsum: use reshape and @. About two lines.
    """
    ### BEGIN SOLUTION
    (B, S, H, W), C = A.shape, x.shape[3]
    return A.reshape(B, S, H * W) @ x.reshape(B, H * W, C) / (H * W)
    ### END SOLUTION


# %% test="a4-v10-1" points=2
x = Tensor(np.random.default_rng(1).standard_normal((2, 4, 4, 3)))
A = maps_v10(x, [np.zeros((3, 3, 3, 5)), np.zeros((3, 3, 5, 5))])
assert isinstance(A, Tensor), f"maps_v10: expected a Tensor, got {type(A).__name__}"
assert A.shape == (2, 5, 4, 4), f"maps_v10: expected the shape (B, S, H, W) = (2, 5, 4, 4), got {A.shape}"
assert np.allclose(A.data, 0.5), (
    f"with kernels of zeros every weight is 1/2; got {A.data.min():.3g} to {A.data.max():.3g}"
)
center = np.zeros((3, 3, 3, 1))
center[1, 1, 2] = 1  # this kernel returns the last channel
A = maps_v10(x, [center])
want = 1 / (1 + np.exp(-x.data[..., 2]))
assert np.allclose(A.data[:, 0], want), "with one kernel that returns channel 2, A is the sigmoid of x[..., 2]"
learner = nn.TokenLearner(3, 5, version="1.0", pre_norm=False, rng=np.random.default_rng(2)).to(dtype="float64")
A, want = maps_v10(x, [conv.weight.data for conv in learner.convs]), learner.maps(x).data
assert np.allclose(A.data, want), f"the maps differ from minitl's by up to {np.abs(A.data - want).max():.3g}"
A = Tensor(np.random.default_rng(3).random((2, 5, 4, 4)))
Z, want = tokens_v10(A, x), np.zeros((2, 5, 3))
for b, s, h, w in np.ndindex(A.shape):
    want[b, s] += A.data[b, s, h, w] * x.data[b, h, w] / 16
assert Z.shape == (2, 5, 3), f"tokens_v10: expected the shape (B, S, C) = (2, 5, 3), got {Z.shape}"
assert np.allclose(Z.data, want), f"tokens_v10 is off by up to {np.abs(Z.data - want).max():.3g}"
print("visible checks passed (2 of 4 points of this task); hidden checks run at grading")

# %% hidden="a4-v10-2" points=2
for B, H, W, C, S, n in ((1, 2, 5, 3, 4, 1), (3, 4, 2, 1, 2, 2), (1, 3, 1, 2, 1, 4)):
    sizes, draw = f"x {(B, H, W, C)}, S={S}, {n} kernels", np.random.default_rng(H)
    x = draw.standard_normal((B, H, W, C))
    kernels = [draw.standard_normal((3, 3, C if i == 0 else S, S)) for i in range(n)]
    y = x
    for i, kernel in enumerate(kernels):
        padded, out = np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0))), np.zeros((B, H, W, S))
        for b, h, w in np.ndindex(B, H, W):
            out[b, h, w] = np.tensordot(padded[b, h : h + 3, w : w + 3], kernel, 3)
        y = ops.gelu(out).data if i < n - 1 else 1 / (1 + np.exp(-out))
    x.flags.writeable = False
    A = maps_v10(Tensor(x), kernels)
    assert A.shape == (B, S, H, W), f"maps_v10: expected {(B, S, H, W)}, got {A.shape}, for {sizes}"
    error = np.abs(A.data - np.moveaxis(y, 3, 1)).max()
    assert error < 1e-9, f"maps_v10 is off by up to {error:.3g} for {sizes}"
    A, want = draw.random((B, S, H, W)), np.zeros((B, S, C))
    for b, s, h, w in np.ndindex(B, S, H, W):
        want[b, s] += A[b, s, h, w] * x[b, h, w] / (H * W)
    Z = tokens_v10(Tensor(A), Tensor(x))
    assert Z.shape == (B, S, C), f"tokens_v10: expected {(B, S, C)}, got {Z.shape}, for {sizes}"
    assert np.allclose(Z.data, want), f"tokens_v10 is off by up to {np.abs(Z.data - want).max():.3g} for {sizes}"
    check_gradients(lambda t, *k: maps_v10(t, k), x.copy(), *kernels)
    check_gradients(tokens_v10, A, x.copy())
single = [Tensor(draw.standard_normal(shape).astype(np.float32)) for shape in ((1, 2, 3, 4), (3, 3, 4, 2))]
A = maps_v10(single[0], single[1:])
kinds = {str(A.dtype), str(tokens_v10(A, single[0]).dtype)}
assert kinds == {"float32"}, f"float32 in, float32 out; got {' and '.join(sorted(kinds))}"

# %% [markdown]
# **Look.** Three kernels written by hand, with one convolution each: how red is a place, how red are the nine places
# around it, and how much redder is it than its left neighbor. A redness of 0 has the weight 1/2. Most places have less,
# and the zeros around the grid make the border of the second map brighter. In a TokenLearner, kernels are learned.

# %%
redness = np.tile([1.0, -0.8, -0.8], 16) / 2  # one number for each of the 48 channels of a place
by_hand = np.zeros((3, 3, 48, 3))
by_hand[1, 1, :, 0] = redness
by_hand[..., 1] = redness / 9
by_hand[1, 1, :, 2], by_hand[1, 0, :, 2] = redness / 2, -redness / 2
A = maps_v10(Tensor(patches), [by_hand]).data
images(
    {"image": few.images, "red": A[:, 0], "red around": A[:, 1], "left edge": A[:, 2]},
    alt="Four images and three maps of each: bright on all that is red, the same blurred, and bright on left edges.",
    low=0,
    high=1,
)

# %% [markdown]
# ## Task 2 · Version 1.1: an MLP and a softmax
#
# The second version looks at each place alone, through two linear layers, and lets the places of each map compete: the
# weights of a map are positive and add up to 1.
#
# With $W_1$ $(C, M)$, $b_1$ $(M)$, $W_2$ $(M, S)$, $b_2$ $(S)$, at each place
#
# $$l_{bhw} = \text{gelu}(x_{bhw} W_1 + b_1)\, W_2 + b_2 \quad (S) \qquad\qquad
# A_{bshw} = \frac{e^{l_{bhws}}}{\sum_{h', w'} e^{l_{bh'w's}}}$$

# %%
logits = np.array([[0.0, 1.0, 2.0], [0.0, 0.0, 3.0]])  # one map on a grid of 2 x 3 places
A = np.exp(logits) / np.exp(logits).sum()
print("A =", A.round(2).tolist(), " sum", A.sum().round(2))


# %% answer="a4-v11" forbids="TokenLearner, MLP"
def maps_v11(x, W1, b1, W2, b2):
    """Return the maps A, a Tensor (B, S, H, W), for a Tensor x (B, H, W, C) and the arrays or Tensors above.

    Use ops.linear, ops.gelu, ops.softmax(…, axis=…), reshape and transpose. About four lines.
    """
    ### BEGIN SOLUTION
    B, H, W, _ = x.shape
    logits = ops.linear(ops.gelu(ops.linear(x, W1, b1)), W2, b2)  # (B, H, W, S)
    rows = logits.reshape(B, H * W, -1).transpose(0, 2, 1)  # (B, S, H·W)
    return ops.softmax(rows, axis=-1).reshape(B, -1, H, W)
    ### END SOLUTION


# %% test="a4-v11-1" points=2
learner = nn.TokenLearner(3, 5, version="1.1", pre_norm=False, hidden=6, rng=np.random.default_rng(4)).to(
    dtype="float64"
)
W1, b1, W2, b2 = (array for name, array in learner.state_dict().items())
x = Tensor(np.random.default_rng(5).standard_normal((2, 4, 4, 3)))
A = maps_v11(x, W1, b1, 0 * W2, b2)
assert isinstance(A, Tensor), f"maps_v11: expected a Tensor, got {type(A).__name__}"
assert A.shape == (2, 5, 4, 4), f"maps_v11: expected the shape (B, S, H, W) = (2, 5, 4, 4), got {A.shape}"
assert np.allclose(A.data, 1 / 16), f"with W2 = 0 each of 16 places has the weight 1/16; got {A.data[0, 0, 0, 0]:.4f}"
sums = maps_v11(x, W1, b1, 20 * W2, b2).data.sum((2, 3))
assert np.allclose(sums, 1), f"the weights of each map add up to 1; got sums from {sums.min():.3g} to {sums.max():.3g}"
learner.mlp.fc2.weight.data[...] *= 20
want = learner.maps(x).data
A = maps_v11(x, W1, b1, W2, b2)
assert np.allclose(A.data, want), f"the maps differ from minitl's by up to {np.abs(A.data - want).max():.3g}"
print("visible checks passed (2 of 3 points of this task); hidden checks run at grading")

# %% hidden="a4-v11-2" points=1
for B, H, W, C, M, S in ((1, 2, 5, 3, 4, 7), (3, 4, 2, 1, 5, 2), (2, 1, 3, 2, 1, 1)):
    sizes, draw = f"x {(B, H, W, C)}, {M} hidden units, S={S}", np.random.default_rng(W)
    x, W1, b1, W2, b2 = (draw.standard_normal(shape) for shape in ((B, H, W, C), (C, M), (M,), (M, S), (S,)))
    want = np.zeros((B, S, H, W))
    for b, h, w in np.ndindex(B, H, W):
        want[b, :, h, w] = np.exp(ops.gelu(x[b, h, w] @ W1 + b1).data @ W2 + b2)
    want = want / want.sum((2, 3), keepdims=True)
    x.flags.writeable = False
    A = maps_v11(Tensor(x), W1, b1, W2, b2)
    assert A.shape == (B, S, H, W), f"expected {(B, S, H, W)}, got {A.shape}, for {sizes}"
    assert np.allclose(A.data, want), f"the maps are off by up to {np.abs(A.data - want).max():.3g} for {sizes}"
    check_gradients(maps_v11, x.copy(), W1, b1, W2, b2)
A = maps_v11(
    Tensor(np.array([[[[1.0], [-2.0], [0.5]]]])), np.ones((1, 1)), np.zeros(1), np.full((1, 1), 5000.0), np.zeros(1)
)
assert np.allclose(A.data, [[[[1, 0, 0]]]]), (
    f"with logits up to 4,000, expected the weights 1, 0, 0; got {A.data.ravel()}"
)
single = [draw.standard_normal(shape).astype(np.float32) for shape in ((1, 2, 3, 4), (4, 5), (5,), (5, 2), (2,))]
A = maps_v11(Tensor(single[0]), *single[1:])
assert A.dtype == np.float32, f"float32 in, float32 out; got {A.dtype}"

# %% [markdown]
# **Look.** A model that was trained on CLUTTER, and the maps of its eight tokens as your function computes them.

# %%
trained, meta = load_model("learner-8")
inputs = data.normalize(few.images, meta["mean"], meta["std"])
with no_grad():
    x = trained.patch_embed(Tensor(vit.patchify(inputs, 4))) + trained.pos_embed
    A = maps_v11(x.reshape(4, 8, 8, 48), *trained.tokenizer.state_dict().values()).data
images(
    {f"image {b}": [few.images[b], *A[b]] for b in range(3)},
    alt="Three images and eight maps of each: dark, with a few bright places on the red object in nearly all of them.",
    titles=["", *(f"map {s}" for s in range(8))],
)

# %% [markdown]
# ## Task 3 · The gradient of the pooling, by hand
#
# All that a map learns comes back through the pooling. You derive its gradients for both versions, from logits to
# tokens in one step. The places stand in a row here: $l$ $(B, S, N)$, $x$ $(B, N, C)$, $Z$ $(B, S, C)$.
#
# $$\text{version 1.0:} \quad Z_{sc} = \frac1N \sum_n \sigma(l_{sn})\, x_{nc} \qquad\qquad
# \text{version 1.1:} \quad Z_{sc} = \sum_n A_{sn}\, x_{nc}, \quad A_{sn} = \frac{e^{l_{sn}}}{\sum_m e^{l_{sm}}}$$
#
# Given $dZ$ $(B, S, C)$, find $dl$ $(B, S, N)$ and $dx$ $(B, N, C)$. You may use the two slopes $\sigma' = \sigma (1 -
# \sigma)$ and, for $A = \text{softmax}(l)$, $dl_{sn} = A_{sn} (dA_{sn} - \sum_m A_{sm}\, dA_{sm})$. Write one entry of
# $Z$ out, take its derivative by one weight and by one entry of $x$, add up over all entries of $Z$ in which they
# occur, and look for matrix products. Subtract the largest logit of each map before `np.exp` in version 1.1.

# %%
logit, place = np.zeros(2), np.array([[1.0, 0, 2], [3, 0, 4]])  # one map, two places, C = 3
print("version 1.0: Z =", (0.5 * place).sum(0) / 2, " version 1.1: Z =", (0.5 * place).sum(0))


# %% answer="a4-pool" forbids="token_pool, softmax, sigmoid"
def sigmoid_pool(logits, x):
    """Return Z of version 1.0, and backward: dZ (B, S, C) -> dl (B, S, N), dx (B, N, C).

    logits (B, S, N) and x (B, N, C) are arrays; never write into them or into dZ. About six lines.
    """
    ### BEGIN SOLUTION
    A, N = 1 / (1 + np.exp(-logits)), x.shape[1]

    def backward(dZ):
        dA, dx = dZ @ x.swapaxes(1, 2) / N, A.swapaxes(1, 2) @ dZ / N
        return dA * A * (1 - A), dx

    return A @ x / N, backward
    ### END SOLUTION


def softmax_pool(logits, x):
    """Return Z of version 1.1, and backward, with the same shapes. About eight lines."""
    ### BEGIN SOLUTION
    e = np.exp(logits - logits.max(-1, keepdims=True))
    A = e / e.sum(-1, keepdims=True)

    def backward(dZ):
        dA, dx = dZ @ x.swapaxes(1, 2), A.swapaxes(1, 2) @ dZ
        return A * (dA - (A * dA).sum(-1, keepdims=True)), dx

    return A @ x, backward
    ### END SOLUTION


# %% test="a4-pool-1" points=2
logits, x = np.zeros((1, 1, 2)), np.array([[[1.0], [3.0]]])  # two places, C = 1
wanted = {sigmoid_pool: (1, [0.125, 0.375], [0.25, 0.25]), softmax_pool: (2, [-0.5, 0.5], [0.5, 0.5])}
for pool, (Z_want, dl_want, dx_want) in wanted.items():
    name = pool.__name__
    Z, backward = pool(logits, x)
    dl, dx = backward(np.ones((1, 1, 1)))
    shapes = [np.shape(array) for array in (Z, dl, dx)]
    assert shapes == [(1, 1, 1), (1, 1, 2), (1, 2, 1)], f"{name}: shapes of Z, dl, dx: {shapes}"
    assert np.allclose(Z, Z_want), f"{name}, logits 0, 0, x = 1, 3: expected Z = {Z_want}, got {Z.ravel()}"
    assert np.allclose(dl.ravel(), dl_want), f"{name}, dZ = 1: expected dl = {dl_want}, got {dl.ravel()}"
    assert np.allclose(dx.ravel(), dx_want), f"{name}, dZ = 1: expected dx = {dx_want}, got {dx.ravel()}"
    try:
        draw = np.random.default_rng(6)
        check_gradients(op(pool), draw.standard_normal((2, 3, 5)), draw.standard_normal((2, 5, 4)))
    except AssertionError as error:
        raise AssertionError(f"{name}: {error} (input 0 is logits, 1 is x)") from None
print("visible checks passed (2 of 4 points of this task); hidden checks run at grading")

# %% hidden="a4-pool-2" points=2
for B, S, N, C in ((1, 4, 3, 2), (3, 1, 5, 4), (2, 3, 3, 3), (1, 2, 1, 5)):
    draw, sizes = np.random.default_rng(S), f"logits {(B, S, N)}, x {(B, N, C)}"
    logits, x, dZ = (np.asfortranarray(draw.standard_normal(s)) for s in ((B, S, N), (B, N, C), (B, S, C)))
    for array in (logits, x, dZ):
        array.flags.writeable = False
    for pool in (sigmoid_pool, softmax_pool):
        name, want = pool.__name__, np.zeros((B, S, C))
        for b, s in np.ndindex(B, S):
            e = np.exp(logits[b, s])
            weights = e / (1 + e) / N if pool is sigmoid_pool else e / e.sum()
            want[b, s] = sum(weights[n] * x[b, n] for n in range(N))
        Z, backward = pool(logits, x)
        first, second = backward(dZ), backward(dZ)
        assert np.allclose(Z, want), f"{name}: Z is off by up to {np.abs(Z - want).max():.3g} for {sizes}"
        assert all(np.array_equal(a, c) for a, c in zip(first, second, strict=True)), (
            f"{name}: backward gives another result when it is called twice"
        )
        shapes = [np.shape(a) for a in first]
        assert shapes == [logits.shape, x.shape], f"{name}: dl and dx have shapes {shapes} for {sizes}"
        try:
            check_gradients(op(pool), logits.copy(), x.copy())
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None
logits, x = np.array([[[1e4, 0, -1e4], [-1e4, -1e4, -2e4]]]), np.arange(3.0).reshape(1, 3, 1)
Z, backward = softmax_pool(logits, x)
assert np.allclose(Z.ravel(), [0, 0.5]), f"softmax_pool with logits up to 10,000: expected Z = 0, 0.5, got {Z.ravel()}"
assert np.isfinite(np.concatenate([a.ravel() for a in backward(np.ones((1, 2, 1)))])).all(), "a gradient is not finite"
single = [np.random.default_rng(n).standard_normal((2, 3, 3)).astype(np.float32) for n in range(3)]
for pool in (sigmoid_pool, softmax_pool):
    Z, backward = pool(*single[:2])
    kinds = {str(a.dtype) for a in (Z, *backward(single[2]))}
    assert kinds == {"float32"}, f"{pool.__name__}: float32 in, float32 out; got {' and '.join(sorted(kinds))}"

# %% [markdown]
# **Look.** A loss that asks for a redder token: $dZ$ is minus the redness of each of the 48 channels of a place.
# Training moves logits by $-dl$. Below, a place is bright where its logit grows: from even maps (all logits 0), and
# from a map that has nearly all of its weight in the upper left corner (a logit of 10). The scale is the same for both.

# %%
x, dZ = patches.reshape(4, 64, 48), -np.tile(redness, (4, 1, 1))
even, corner = np.zeros((4, 1, 64)), np.zeros((4, 1, 64))
corner[:, :, 0] = 10
pools, starts, gains = {"1.0": sigmoid_pool, "1.1": softmax_pool}, {"even": even, "corner": corner}, {}
for version, pool in pools.items():
    found = {start: -pool(logits, x)[1](dZ)[0].reshape(4, 8, 8) for start, logits in starts.items()}
    gains |= {f"{version}, {start}": gain / found["even"].max() for start, gain in found.items()}
images(
    {"image": few.images, **gains},
    alt="Red places gain weight, in version 1.0 from both starts, in version 1.1 only from even maps.",
    low=0,
    high=1,
)

# %% [markdown]
# **Question 1** (1 point). In two to four sentences: the corner has nearly all the weight of a map. Explain from your
# formulas for $dl$ why no place gains weight in version 1.1, while red places do in version 1.0. What follows for the
# initial weights of version 1.1?

# %% [markdown] written="a4-q1" points=1
# In version 1.1, dl = A dZ · (x - Z). At all places but the corner the factor A is nearly 0, and at the corner x is
# nearly Z, so every gradient is nearly 0. In version 1.0 the factor is σ(1 - σ) of the place's own logit, which is 1/4
# at logit 0, whatever the weight at the corner is. So the logits of version 1.1 should start nearly equal, with small
# weights in the last layer, or a map that starts at the wrong place stays there.
#
# Rubric: half a point for the factor A in version 1.1 against the factor σ(1 - σ) of each place alone in 1.0; half a
# point for "start nearly even" or "small last layer".

# %% [markdown]
# ## Task 4 · What it costs
#
# TokenLearner costs something and saves more. You count multiply-adds: a product of matrices $(n, i)$ and $(i, o)$
# takes $n \cdot i \cdot o$. Nothing else counts: no additions of biases, no GELU, norms, sigmoids or softmaxes.
#
# - **Maps of version 1.0**: four convolutions of 3 × 3, the first from $C$ to $S$ channels, the others from $S$ to $S$.
#   A convolution is a sum of nine products of matrices at each place.
# - **Maps of version 1.1**: two linear layers at each place, from $C$ to $M$ and from $M$ to $S$.
# - **Pooling**, in both: the product $A x$ of $(S, N)$ and $(N, C)$.
# - **An encoder block** on $n$ tokens: linear layers from $C$ to $3C$, from $C$ to $C$, from $C$ to $D$ and from $D$ to
#   $C$, and, of all heads together, $q k^\top$ and $A v$ with $n \cdot n \cdot C$ each.
#
# $D$ is the width of the hidden layer of a block's MLP. In the network, the first `loc` of `layers` blocks see all $N$
# tokens, then TokenLearner makes $S$ of them, and the remaining blocks see these.

# %%
print("a linear layer from 2 to 3 numbers on 5 tokens:", 5 * 2 * 3, "multiply-adds")


# %% answer="a4-cost" forbids="count, learner, block"
def learner_cost(H, W, C, S, version, M=64):
    """Return the multiply-adds of maps and pooling of one image, an int; ``version`` is "1.0" or "1.1"."""
    ### BEGIN SOLUTION
    N = H * W
    maps = 9 * N * (C * S + 3 * S * S) if version == "1.0" else N * (C * M + M * S)
    return maps + S * N * C
    ### END SOLUTION


def network_cost(N, C, D, S, layers, loc, learner):
    """Return the multiply-adds of all blocks and of the TokenLearner, which takes ``learner`` of them."""
    ### BEGIN SOLUTION
    total = learner
    for blocks, n in ((loc, N), (layers - loc, S)):
        total += blocks * (n * (4 * C * C + 2 * C * D) + 2 * n * n * C)
    return total
    ### END SOLUTION


# %% test="a4-cost-1" points=1
for version, want in (("1.0", 356_352), ("1.1", 253_952)):
    got = learner_cost(8, 8, 48, 8, version)
    assert got == want, f"version {version} on 8 x 8 places with C = 48, S = 8: expected {want:,}, got {got:,}"
got = network_cost(64, 48, 96, 8, layers=2, loc=0, learner=1000)
assert got == 308_200, f"two blocks on 8 tokens of width 48, D = 96, and 1,000 more: expected 308,200, got {got:,}"
print("visible checks passed (1 of 2 points of this task); hidden checks run at grading")

# %% hidden="a4-cost-2" points=1
for H, W, C, S, M in ((3, 5, 7, 2, 4), (1, 6, 10, 12, 64), (14, 7, 16, 1, 3)):
    for version in ("1.0", "1.1"):
        want = flops.learner(nn.ViTConfig(version=version, hidden=M), H * W, S, C).macs
        got = learner_cost(H, W, C, S, version, M)
        assert got == want, f"version {version}, {H} x {W} places, C={C}, S={S}, M={M}: expected {want:,}, got {got:,}"
for N, C, D, S, layers, loc in ((64, 12, 40, 8, 5, 0), (30, 8, 4, 3, 6, 5), (16, 4, 16, 2, 4, 1)):
    parts = loc * flops.block(N, C, D, 2) + (layers - loc) * flops.block(S, C, D, 2)
    want, got = parts.macs + 77, network_cost(N, C, D, S, layers, loc, 77)
    assert got == want, f"N={N}, C={C}, D={D}, S={S}, {layers} blocks, loc={loc}: expected {want:,}, got {got:,}"

# %% [markdown]
# **Look.** Twelve blocks on the 196 patches of a photograph, $C = 192$: where TokenLearner stands matters more than how
# many tokens it makes.

# %%
locs = np.arange(13)
lines = {}
for S in (4, 8, 16, 64):
    cost = learner_cost(14, 14, 192, S, "1.1")
    lines[f"{S} tokens"] = locs, [network_cost(196, 192, 768, S, 12, loc, cost) / 1e9 for loc in locs]
alt = "Four lines rise from near 0 to 1.2; those of 4, 8 and 16 tokens nearly coincide, that of 64 starts higher."
curves(lines, "blocks before TokenLearner", "multiply-adds, billions", alt, marks=True)

# %% [markdown]
# ## Task 5 · Place it, train it, look at its maps
#
# The last task has two parts. First you place a tokenizer inside the network, and write the score that says how much of
# a map lies on the object. Then you find settings with which a network of eight tokens learns CLUTTER.
#
# **Part one.** The tokens $x$ $(B, N, C)$ go through the first `loc` blocks. They then stand on their grid, row by row,
# $(B, H, W, C)$, for the tokenizer, which returns $(B, S, C)$ for the remaining blocks.
#
# The score of a map: its weight at a place is spread evenly over the $p \times p$ pixels of that place, and the score
# is the share of all its weight that lies on pixels in the box of the object. A box is (top, left, bottom, right) in
# pixels; the rows top to bottom - 1 and the columns left to right - 1 are in it. A map of zeros has the score 0.

# %%
weights = np.array([[1.0, 0, 1], [0, 2, 0]])  # one map of 2 x 3 places, each of 2 x 2 pixels
pixels = weights.repeat(2, axis=0).repeat(2, axis=1) / 4
print(pixels)
print("box (0, 4, 3, 6): score", pixels[0:3, 4:6].sum() / pixels.sum())


def spy(calls, name, fewer=None):
    """Return a function, used by the checks, that adds its name and the shape of its input to the list ``calls``."""

    def run(x):
        calls.append((name, x.shape))
        return Tensor(x.data.reshape(len(x.data), -1, x.shape[-1])[:, :fewer] + len(calls))

    return run


# %% answer="a4-place" forbids="ViT, map_mass"
def with_few_tokens(x, blocks, tokenizer, grid, loc):
    """Return the tokens after all blocks, a Tensor (B, S, C); x is a Tensor (B, N, C), ``grid`` is (H, W).

    ``blocks`` is a list of functions from Tensor to Tensor. About five lines.
    """
    ### BEGIN SOLUTION
    for block in blocks[:loc]:
        x = block(x)
    x = tokenizer(x.reshape(x.shape[0], *grid, x.shape[2]))
    for block in blocks[loc:]:
        x = block(x)
    return x
    ### END SOLUTION


def score(A, boxes, p):
    """Return the score of each map, (B, S), for arrays A (B, S, H, W) >= 0 and boxes (B, 4). About six lines."""
    ### BEGIN SOLUTION
    found = np.zeros(A.shape[:2])
    for b, (top, left, bottom, right) in enumerate(boxes):
        spread = A[b].repeat(p, axis=1).repeat(p, axis=2)
        total = spread.sum((1, 2))
        found[b] = spread[:, top:bottom, left:right].sum((1, 2)) / np.where(total == 0, 1, total)
    return found
    ### END SOLUTION


# %% test="a4-place-1" points=2
calls, x = [], Tensor(np.random.default_rng(7).standard_normal((2, 16, 3)))
result = with_few_tokens(
    x, [spy(calls, "block 0"), spy(calls, "block 1"), spy(calls, "block 2")], spy(calls, "tokenizer", 5), (4, 4), 1
)
want = [("block 0", (2, 16, 3)), ("tokenizer", (2, 4, 4, 3)), ("block 1", (2, 5, 3)), ("block 2", (2, 5, 3))]
assert calls == want, f"with loc = 1, these calls are expected:\n{want}\ngot:\n{calls}"
assert result.shape == (2, 5, 3), f"expected the result of the last block, (2, 5, 3), got {result.shape}"
assert np.allclose(result.data, x.data[:, :5] + 10), "the result is not that of the last block"
A = np.array([[[[1.0, 0, 1], [0, 2, 0]], [[0, 0, 0], [3, 0, 0]]]])  # one image, two maps of 2 x 3 places
got = score(A, np.array([[0, 4, 3, 6]]), 2)
assert np.shape(got) == (1, 2), f"score: expected the shape (B, S) = (1, 2), got {np.shape(got)}"
assert np.allclose(got, [[0.25, 0]]), f"score: expected 0.25 and 0 for box (0, 4, 3, 6), got {got}"
got = score(A, np.array([[2, 1, 4, 3]]), 2)
assert np.allclose(got, [[0.25, 0.5]]), (
    f"score: half of two places lies in box (2, 1, 4, 3), so 0.25 and 0.5; got {got}"
)
print("visible checks passed (2 of 3 points of this task); hidden checks run at grading")

# %% hidden="a4-place-2" points=1
for loc in (0, 2, 3):
    calls = []
    x = Tensor(np.random.default_rng(8).standard_normal((1, 10, 4)))
    result = with_few_tokens(x, [spy(calls, str(i)) for i in range(4)], spy(calls, "tokenizer", 3), (2, 5), loc)
    names = [name for name, _ in calls]
    want = [*map(str, range(loc)), "tokenizer", *map(str, range(loc, 4))]
    assert names == want, f"loc = {loc}: expected the calls {want}, got {names}"
    assert calls[loc][1] == (1, 2, 5, 4), f"a grid of 2 x 5: the tokenizer takes (1, 2, 5, 4), got {calls[loc][1]}"
    assert np.allclose(result.data, x.data[:, :3] + 15), f"loc = {loc}: the result is not that of the last block"
for B, S, H, W, p in ((3, 2, 4, 3, 2), (1, 5, 2, 6, 3), (4, 1, 3, 3, 1)):
    draw = np.random.default_rng(p)
    A = draw.random((B, S, H, W))
    A[0, 0] = 0
    top, left = draw.integers(0, H * p - 1, B), draw.integers(0, W * p - 1, B)
    boxes = np.stack([top, left, draw.integers(top + 1, H * p + 1), draw.integers(left + 1, W * p + 1)], axis=1)
    A.flags.writeable = boxes.flags.writeable = False
    got, want = score(A, boxes, p), np.zeros((B, S))
    for b, s, i, j in np.ndindex(B, S, H * p, W * p):
        inside = boxes[b, 0] <= i < boxes[b, 2] and boxes[b, 1] <= j < boxes[b, 3]
        want[b, s] += inside * A[b, s, i // p, j // p] / p**2
    want = want / np.maximum(A.sum((2, 3)), 1e-9)
    assert np.shape(got) == (B, S), f"score: expected {(B, S)}, got {np.shape(got)}"
    assert np.isfinite(got).all(), "score: a map of zeros has the score 0; got nan or infinity"
    assert np.allclose(got, want), f"score is off by up to {np.abs(got - want).max():.3g}: A {A.shape}, p = {p}"

# %% [markdown]
# **Look.** The scores of saved models by your function: one with TokenLearner, one that averages over the eight cells
# of a fixed grid, and one with *static* maps, which are learned but the same for every image. An even map has the score
# marked as chance.

# %%
train_set, test_set = data.clutter(8000, 500)
mean, std = data.channel_stats(train_set.images)
names = {"TokenLearner": "learner-8", "grid of 2 x 4": "grid-8", "static maps": "static-8"}
scores, right = {}, {}
for name, file in names.items():
    model, meta = load_model(file)
    inputs = data.normalize(test_set.images, meta["mean"], meta["std"])
    with no_grad():
        scores[name] = score(model.maps(inputs).data, test_set.boxes, 4).mean()
        right[name] = (model(inputs).data.argmax(1) == test_set.labels).mean()
even = score(np.ones((500, 1, 8, 8)), test_set.boxes, 4).mean()
alt = "Bars: most of the weight of learned maps lies on the object; that of grid and static maps is at chance."
bars(scores, "score, mean over test images and maps", alt, chance=even, xlim=(0, 1))

# %% [markdown]
# **Part two.** A ViT of two blocks and width 48, with eight tokens from TokenLearner, is trained for 600 steps of 100
# images, which takes about 15 seconds on a core that is free. It must name at least **90 %** of new test images, and
# cost at most half of the multiply-adds of the network that keeps all 64 tokens. `settings` returns what you choose:
#
# | key | choices |
# |---|---|
# | `version` | `"1.0"` or `"1.1"` |
# | `pre_norm` | `True` or `False`: a LayerNorm before the maps are computed |
# | `pool` | `"mean"` or `"sum"`, for version 1.0 |
# | `loc` | `0` or `1`: blocks that see all 64 tokens |
# | `lr` | the highest learning rate, a float from 1e-4 to 0.1 |
#
# Try in cells of your own below the next one, two or three times at most: `model, losses = train(version="1.0",
# lr=0.01)`, then `accuracy(model, test_set)`. Think first: Task 2 and Task 4 say how the versions differ and what
# `loc=1` costs. The optimizer is Muon, which takes larger learning rates than AdamW. The last look trains with your
# settings; the hidden check then counts what that network names of 1,000 images that it has never met. Delete your
# trials before you hand in.


# %%
def new_model(seed, **choices):
    """Return a ViT with eight tokens."""
    config = nn.ViTConfig(num_tokens=8, **choices)
    return nn.ViT(config, nn.DataSpec((32, 32), 3, 8), np.random.default_rng(seed))


def train(lr, steps=600, seed=0, **choices):
    """Return a trained model, and its loss at each step."""
    model = new_model(seed, **choices)
    optimizer = optim.Muon(model.parameters(), weight_decay=0.05)
    loader = data.Loader(train_set, 100, shuffle=True, rng=np.random.default_rng(seed))
    losses = []
    for step, (pixels, labels) in zip(
        range(steps), itertools.chain.from_iterable(itertools.repeat(loader)), strict=False
    ):
        loss = ops.cross_entropy(model(data.normalize(pixels, mean, std)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.clip_grad_norm(1.0)
        optimizer.lr = optim.warmup_cosine(step, steps, steps // 10, lr)
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def accuracy(model, dataset):
    """Return the share of a data set that the model names rightly."""
    with no_grad():
        logits = model(data.normalize(dataset.images, mean, std)).data
    return (logits.argmax(1) == dataset.labels).mean()


# %% answer="a4-train" forbids=""
def settings():
    """Return a dict with the keys version, pre_norm, pool, loc and lr."""
    ### BEGIN SOLUTION
    return {"version": "1.1", "pre_norm": False, "pool": "mean", "loc": 0, "lr": 0.01}
    ### END SOLUTION


# %% test="a4-train-1" points=1
asked = settings()
keys = ["loc", "lr", "pool", "pre_norm", "version"]
assert isinstance(asked, dict) and sorted(asked) == keys, (
    f"expected a dict with the keys {', '.join(keys)}; got {asked}"
)
assert 1e-4 <= asked["lr"] <= 0.1, f"lr is from 1e-4 to 0.1, got {asked['lr']}"
spec, choices = nn.DataSpec((32, 32), 3, 8), {key: asked[key] for key in keys if key != "lr"}
cost = flops.total(flops.count(nn.ViTConfig(num_tokens=8, **choices), spec)).macs
most = flops.total(flops.count(nn.ViTConfig(tokenizer="none"), spec)).macs // 2
assert cost <= most, f"your network takes {cost:,} multiply-adds, and may take {most:,}: see Task 4"
_, losses = train(**{**asked, "steps": 20})
assert np.isfinite(losses).all(), "the loss is not finite after a few steps: is lr too large?"
print("visible checks passed (1 of 2 points of this task); hidden checks run at grading")

# %% [markdown]
# **Look.** Your network, beside the two controls. These were trained longer than yours, and it does not help them.

# %%
chosen = settings()
yours, losses = train(**chosen)
with no_grad():
    A = yours.maps(data.normalize(few.images, mean, std)).data
reached = accuracy(yours, test_set)
print(f"Your network names {reached:.1%} of the test images; it must name 90 % of the new ones.")
bars(
    {"yours": reached} | {name: right[name] for name in ("grid of 2 x 4", "static maps")},
    "accuracy on test images",
    "Bars: the network with learned maps is far above both controls, which are little above chance.",
    chance=1 / 8,
    xlim=(0, 1.1),
)
images(
    {f"image {b}": [few.images[b], *A[b]] for b in range(3)},
    alt="Three images and the eight maps of the trained network, bright at the red object in most of them.",
    titles=["", *(f"map {s}" for s in range(8))],
)

# %% hidden="a4-train-2" points=1
assert settings() == chosen, "the network above was trained with other settings: run the whole notebook again"
cost = flops.total(flops.count(yours.config, yours.spec)).macs
most = flops.total(flops.count(nn.ViTConfig(tokenizer="none"), yours.spec)).macs // 2
assert cost <= most, f"your network takes {cost:,} multiply-adds, and may take {most:,}"
found = accuracy(yours, data.sample(np.random.default_rng(77), 1000))
assert found >= 0.9, f"after 600 steps with your settings the network names {found:.1%} of new images, below 90 %"

# %% [markdown]
# **Question 2** (1 point). In two to four sentences: what does the control with static maps rule out that the control
# with a grid does not? And if one block stands before the reduction (`loc=1`), even a grid of cells names most images:
# why?

# %% [markdown] written="a4-q2" points=1
# A grid is neither learned nor dependent on the image, so a better result of TokenLearner could come from learning
# alone. Static maps are learned as well, so what is left as an explanation is that the maps depend on the image. After
# a block, attention has brought the evidence about the object to many or all tokens, so the mean over a cell contains
# it wherever the object is.
#
# Rubric: half a point for "static maps are learned but do not depend on the image, so they isolate that dependence";
# half a point for "attention has spread what is known about the object over the tokens".

# %% [markdown]
# ## Plug in
#
# Now the network runs with your parts: both versions of the maps, the gradients of the pooling, and the placement. A
# few steps with minitl's TokenLearner and with yours must give the same losses.


# %%
def with_parts(model, tokenizer):
    """Return a function from images to logits that runs ``model`` with your placement and a tokenizer of yours."""

    def forward(inputs):
        x = model.patch_embed(Tensor(vit.patchify(inputs, 4))) + model.pos_embed
        x = with_few_tokens(x, model.blocks, tokenizer, (8, 8), model.config.loc)
        return model.head(model.norm(x).mean(axis=1))

    return forward


def tokenizer_10(learner):
    kernels = [conv.weight for conv in learner.convs]
    return lambda x: tokens_v10(maps_v10(x, kernels), x)


def tokenizer_11(learner):
    """Return a tokenizer of your maps, and minitl's pooling."""
    first, second = learner.mlp.fc1, learner.mlp.fc2

    def run(x):
        A = maps_v11(x, first.weight, first.bias, second.weight, second.bias)
        return ops.token_pool(A.reshape(len(x.data), 8, 64), x.reshape(-1, 64, 48))

    return run


def tokenizer_pool(learner):
    """Return a tokenizer of minitl's logits, and your pooling with its gradients."""
    pool = op(softmax_pool)
    return lambda x: pool(learner.mlp(x).reshape(-1, 64, 8).transpose(0, 2, 1), x.reshape(-1, 64, 48))


def some_steps(forward, model, n=8):
    """Return the losses of a few steps with ``forward``."""
    optimizer, losses = optim.AdamW(model.parameters()), []
    for pixels, labels in itertools.islice(data.Loader(train_set, 50), n):
        loss = ops.cross_entropy(forward(data.normalize(pixels, mean, std)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# %%
for name, version, make in (
    ("maps and tokens of version 1.0", "1.0", tokenizer_10),
    ("maps of version 1.1", "1.1", tokenizer_11),
    ("pooling of version 1.1", "1.1", tokenizer_pool),
):
    theirs, ours = (new_model(3, version=version, pre_norm=False, zero_head=False) for _ in range(2))
    expected, found = some_steps(theirs, theirs), some_steps(with_parts(ours, make(ours.tokenizer)), ours)
    same = "the same as minitl's" if np.allclose(expected, found, atol=1e-3) else "NOT the same as minitl's"
    print(f"{name}: losses {found[0]:.4f} … {found[-1]:.4f}, {same}")

# %% [markdown]
# ## Before you hand in
#
# 1. *Kernel → Restart and run all*: every visible check prints its line.
# 2. Both written answers are there.
# 3. The file is still called `A4_tokenlearner.ipynb`. Hand in this file alone.
