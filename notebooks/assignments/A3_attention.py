# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A3 · Attention and a Vision Transformer
#
# You write attention with its gradients, split it into heads, put it into an encoder block, build a Vision Transformer
# around the block, and train it until it names shapes.
#
# | | |
# |---|---|
# | **Points** | 16 by checks (9 visible, 7 hidden), 2 for written answers |
# | **Time** | 5 to 7 hours |
# | **You need** | NumPy, softmax and its gradient, lessons 03 to 05 of the course |
#
# Write only where a cell says `your code here`; you may add cells of your own. The tasks do not depend on each other: a
# wrong answer in one costs no points in another.
#
# Letters: `B` images, `N` tokens, `C` width of a token, `h` heads, `d = C / h` width of a head. `dx` means ∂L/∂x, where
# L is the loss.

# %%
import itertools

import numpy as np
from lesson import bars, curves, graph, images, load_model, matrices

import minitl
from minitl import Tensor, check_gradients, data, nn, no_grad, ops, optim
from minitl.autograd import op
from minitl.nn import vit

rng = np.random.default_rng(0)

# %% [markdown]
# ## Task 1 · Heads
#
# One linear layer makes the queries, keys and values of all heads at once, as one array `qkv` of shape $(B, N, 3C)$.
# You bring it into a form in which `@` works on each image and each head for itself, and bring the results back.
#
# The last axis of `qkv` holds three parts, all queries, then all keys, then all values. Each part holds the heads side
# by side, and each head holds its $d$ numbers:
#
# $$q_{b,i,n,c} = \text{qkv}_{b,\;n,\;i d + c}, \qquad k_{b,i,n,c} = \text{qkv}_{b,\;n,\;C + i d + c}, \qquad
# v_{b,i,n,c} = \text{qkv}_{b,\;n,\;2C + i d + c}$$
#
# with $i$ for the head, and $q$, $k$, $v$ of shape $(B, h, N, d)$. On the way back, $y$ $(B, h, N, d)$ becomes an array
# $(B, N, C)$ whose entry at $(b, n, id + c)$ is $y_{b,i,n,c}$. The figure shows the columns for $h = 2$ and $d = 2$.
#
# A worked example of moving axes, with other sizes: the numbers 0 to 5 stand for two rows of three. `reshape` reads
# them in order and never moves a number past another. `transpose` does.

# %%
columns = np.arange(12) // 2
matrices(
    {"0 and 1: queries of head 0 and 1,  2 and 3: keys,  4 and 5: values": columns[None].repeat(3, 0)},
    xlabel="column of qkv",
    ylabel="token",
    alt="Twelve columns in pairs: query of head 0, of head 1, keys of both heads, values of both heads.",
    side=5,
    text="{:.0f}",
)
six = np.arange(6).reshape(2, 3)
print("as 3 rows of 2, by reshape:  ", six.reshape(3, 2).tolist())
print("as 3 rows of 2, by transpose:", six.transpose(1, 0).tolist())


# %% answer="a3-heads"
def split_heads(qkv, h):
    """Return q, k and v, each (B, h, N, d), for ``qkv`` (B, N, 3 h d). About three lines."""
    ### BEGIN SOLUTION
    B, N, width = qkv.shape
    q, k, v = qkv.reshape(B, N, 3, h, width // (3 * h)).transpose(2, 0, 3, 1, 4)
    return q, k, v
    ### END SOLUTION


def merge_heads(y):
    """Return (B, N, h d) for ``y`` (B, h, N, d). About two lines."""
    ### BEGIN SOLUTION
    B, h, N, d = y.shape
    return y.transpose(0, 2, 1, 3).reshape(B, N, h * d)
    ### END SOLUTION


# %% test="a3-heads-1" points=2
qkv = np.arange(24.0).reshape(1, 2, 12)  # one image, two tokens, two heads of width 2
q, k, v = split_heads(qkv, 2)
for name, got in (("q", q), ("k", k), ("v", v)):
    assert np.shape(got) == (1, 2, 2, 2), f"{name}: expected the shape (B, h, N, d) = (1, 2, 2, 2), got {np.shape(got)}"
assert np.array_equal(q[0, 0], [[0, 1], [12, 13]]), f"q of head 0: expected [[0, 1], [12, 13]], got {q[0, 0].tolist()}"
assert np.array_equal(q[0, 1], [[2, 3], [14, 15]]), f"q of head 1: expected [[2, 3], [14, 15]], got {q[0, 1].tolist()}"
assert np.array_equal(k[0, 0], [[4, 5], [16, 17]]), f"k of head 0: expected [[4, 5], [16, 17]], got {k[0, 0].tolist()}"
assert np.array_equal(v[0, 1], [[10, 11], [22, 23]]), f"v of head 1: expected [[10, 11], [22, 23]], got {v[0, 1]}"
y = np.array([[[[1.0, 2.0], [3.0, 4.0]], [[10.0, 20.0], [30.0, 40.0]]]])  # (1, 2, 2, 2)
merged = merge_heads(y)
assert np.shape(merged) == (1, 2, 4), f"merge_heads: expected the shape (B, N, C) = (1, 2, 4), got {np.shape(merged)}"
assert np.array_equal(merged, [[[1, 2, 10, 20], [3, 4, 30, 40]]]), (
    f"merge_heads: expected [[[1, 2, 10, 20], [3, 4, 30, 40]]], got {merged.tolist()}"
)
print("visible checks passed (2 of 3 points of this task); hidden checks run at grading")

# %% hidden="a3-heads-2" points=1
for B, N, h, d in ((2, 5, 3, 4), (1, 1, 1, 3), (3, 2, 4, 1), (4, 3, 2, 5)):
    sizes = f"B={B}, N={N}, h={h}, d={d}"
    qkv = np.asfortranarray(np.random.default_rng(N).standard_normal((B, N, 3 * h * d)).astype(np.float32))
    qkv.flags.writeable = False
    parts = split_heads(qkv, h)
    assert qkv.shape == (B, N, 3 * h * d), "split_heads changes the shape of its argument"
    for p, (name, got) in enumerate(zip("qkv", parts, strict=True)):
        assert np.shape(got) == (B, h, N, d), f"{name}: expected {(B, h, N, d)}, got {np.shape(got)}, for {sizes}"
        assert got.dtype == np.float32, f"{name}: float32 in, float32 out; got {got.dtype}"
        for b, i, n, c in np.ndindex(B, h, N, d):
            want = qkv[b, n, p * h * d + i * d + c]
            assert got[b, i, n, c] == want, (
                f"{name}[{b}, {i}, {n}, {c}]: expected {want}, got {got[b, i, n, c]}: {sizes}"
            )
    merged = merge_heads(parts[1])
    assert np.array_equal(merged, qkv[:, :, h * d : 2 * h * d]), f"merge_heads does not undo the split, for {sizes}"

# %% [markdown]
# **Look.** The columns of the figure above, after your split: in each of these arrays all numbers must be the same, 0
# and 1 for the queries, 2 and 3 for the keys, 4 and 5 for the values.

# %%
parts = split_heads(columns[None, None].repeat(3, 1), 2)
matrices(
    {f"{name}, head {i}": array[0, i] for name, array in zip("qkv", parts, strict=True) for i in range(2)},
    xlabel="c",
    ylabel="token",
    alt="Six matrices of three tokens by two numbers, each filled with one number: 0, 1, 2, 3, 4 and 5.",
    side=0.9,
    text="{:.0f}",
    low=0,
    high=5,
)

# %% [markdown]
# ## Task 2 · Attention, forward and backward
#
# Each token asks with its query, is found by its key, and hands out its value. You write this for one head; leading
# axes (images, heads) come along by themselves. Queries and keys need not come from the same tokens, so let there be
# $N$ queries and $M$ keys:
#
# $$l_{nm} = \frac{1}{\sqrt d} \sum_c q_{nc}\, k_{mc} \qquad A_{nm} = \frac{e^{l_{nm}}}{\sum_{j} e^{l_{nj}}} \qquad
# y_{nc} = \sum_m A_{nm}\, v_{mc}$$
#
# | array | shape | array | shape |
# |---|---|---|---|
# | $q$, $dq$ | $(\dots, N, d)$ | $l$, $A$, $dl$, $dA$ | $(\dots, N, M)$ |
# | $k$, $dk$, $v$, $dv$ | $(\dots, M, d)$ | $y$, $dy$ | $(\dots, N, d)$ |
#
# Backward, softmax passes on $dl_{nm} = A_{nm} \bigl( dA_{nm} - \sum_j A_{nj}\, dA_{nj} \bigr)$. Find the other four:
# $dA$ and $dv$ from $dy$, then $dq$ and $dk$ from $dl$. Write one entry of the forward formula out, take its
# derivative, and look for a matrix product of the right shape.
#
# Subtract the largest score of each row before `np.exp`, so that large scores do not overflow. Write softmax yourself.
# Inputs of float32 must give float32: `np.sqrt(d)` is a float64 and makes everything float64, `d**0.5` does not.

# %%
q, k = np.array([[1.0, 0, 2], [0, 1, 0]]), np.array([[1.0, 1, 0], [0, 0, 3]])
scores = q @ k.T / 3**0.5
print("scores:\n", scores.round(2))
print("row 0 of A:", (np.exp(scores[0]) / np.exp(scores[0]).sum()).round(2), "- the first query reads the second value")


# %% answer="a3-attention" forbids="attention, vector_attention, softmax, log_softmax, CrossAttention"
def my_attention(q, k, v):
    """Return y (..., N, d), and backward: dy (..., N, d) -> dq (..., N, d), dk (..., M, d), dv (..., M, d).

    q (..., N, d), k and v (..., M, d) are arrays with the same leading axes. About eight lines.
    """
    ### BEGIN SOLUTION
    root = q.shape[-1] ** 0.5
    scores = q @ k.swapaxes(-1, -2) / root
    e = np.exp(scores - scores.max(-1, keepdims=True))
    A = e / e.sum(-1, keepdims=True)

    def backward(dy):
        dA, dv = dy @ v.swapaxes(-1, -2), A.swapaxes(-1, -2) @ dy
        dl = A * (dA - (A * dA).sum(-1, keepdims=True))
        return dl @ k / root, dl.swapaxes(-1, -2) @ q / root, dv

    return A @ v, backward
    ### END SOLUTION


# %% test="a3-attention-1" points=3
q = np.array([[2 * np.log(3), 0, 0, 0]])  # one query, two keys, d = 4: the scores are ln 3 and 0
k = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0]])
v = np.array([[4.0, 0, 8, 0], [0, 4, 0, 8]])
y, backward = my_attention(q, k, v)
assert np.shape(y) == (1, 4), f"y: expected the shape (N, d) = (1, 4), got {np.shape(y)}"
assert np.allclose(y, [[3, 1, 6, 2]]), f"the weights are 3/4 and 1/4, so y is [[3, 1, 6, 2]]; got {np.round(y, 3)}"
shapes = [np.shape(array) for array in backward(np.ones((1, 4)))]
assert shapes == [(1, 4), (2, 4), (2, 4)], f"dq, dk, dv: expected (1, 4), (2, 4), (2, 4); got {shapes}"
q, k, v = (np.random.default_rng(n).standard_normal((2, n, 4)) for n in (3, 5, 5))
y, backward = my_attention(q, k, v)
dq, dk, dv = backward(np.random.default_rng(6).standard_normal(y.shape))
for name, got, want in (("dq", dq, q), ("dk", dk, k), ("dv", dv, v)):
    assert np.shape(got) == want.shape, f"{name}: expected the shape {want.shape}, got {np.shape(got)}"
try:
    check_gradients(op(my_attention), q, k, v)
except AssertionError as error:
    raise AssertionError(f"{error} (input 0 is q, 1 is k, 2 is v)") from None
print("visible checks passed (3 of 5 points of this task); hidden checks run at grading")

# %% hidden="a3-attention-2" points=2
for lead, N, M, d in (((), 4, 3, 2), ((2, 3), 1, 5, 4), ((1,), 3, 1, 1), ((2,), 3, 3, 3)):
    sizes = f"q {(*lead, N, d)}, k and v {(*lead, M, d)}"
    draw = np.random.default_rng(M)
    q, k, v, dy = (np.asfortranarray(draw.standard_normal((*lead, n, d))) for n in (N, M, M, N))
    for array in (q, k, v, dy):
        array.flags.writeable = False
    y, backward = my_attention(q, k, v)
    first, second = backward(dy), backward(dy)
    want = np.zeros(y.shape)
    for at in np.ndindex(*lead, N):
        weights = np.exp([sum(q[at] * k[at[:-1]][m]) / d**0.5 for m in range(M)])
        want[at] = sum(w * v[at[:-1]][m] for m, w in enumerate(weights)) / weights.sum()
    assert np.shape(y) == q.shape, f"y: expected {q.shape}, got {np.shape(y)}, for {sizes}"
    assert np.allclose(y, want), f"y is off by up to {np.abs(y - want).max():.3g} for {sizes}"
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)), (
        "backward gives another result when it is called twice"
    )
    check_gradients(op(my_attention), q.copy(), k.copy(), v.copy())
    direct = [np.shape(a) for a in first]
    assert direct == [q.shape, k.shape, v.shape], f"dq, dk, dv: wrong shapes {direct} for {sizes}"
large = 1000 * np.eye(3)
y, backward = my_attention(large, large, np.arange(9.0).reshape(3, 3))
assert np.allclose(y, np.arange(9.0).reshape(3, 3)), "with scores of about 577,000 each query reads its own value alone"
assert np.isfinite(np.concatenate(backward(np.ones((3, 3))))).all(), "a gradient is not finite for large scores"
y, _ = my_attention(np.array([[1000.0], [-1000]]), np.array([[1000.0], [999]]), np.array([[1.0], [2]]))
assert np.allclose(y, [[1], [2]]), (
    f"a row of scores near 1,000,000 and one near -1,000,000: expected [[1], [2]], got {y}"
)
y, _ = my_attention(-large, large, np.arange(9.0).reshape(3, 3))
assert np.allclose(y[0], [4.5, 5.5, 6.5]), f"with scores of -577,000, 0 and 0: expected [4.5, 5.5, 6.5], got {y[0]}"
single = [np.random.default_rng(n).standard_normal((2, 3, 4)).astype(np.float32) for n in range(3)]
y, backward = my_attention(*single)
kinds = {str(a.dtype) for a in (y, *backward(single[0]))}
assert kinds == {"float32"}, f"float32 in, float32 out; got {' and '.join(sorted(kinds))}: np.sqrt(d) is a float64"

# %% [markdown]
# **Look.** If $v$ is the unit matrix, then $y = A$. So your function can show its own weights. Below are those of a
# trained ViT, for the third head of its first block: the mean over all tokens that read, laid over the image.

# %%
few = data.sample(rng, 4)
trained, meta = load_model("all-64")
inputs = data.normalize(few.images, meta["mean"], meta["std"])
with no_grad():
    x = trained.patch_embed(Tensor(vit.patchify(inputs, 4))) + trained.pos_embed
    qkv = trained.blocks[0].attn.qkv(trained.blocks[0].norm1(x)).data  # (4, 64, 144)
q, k = qkv[:, :, 32:48], qkv[:, :, 80:96]  # the last of three heads of width 16
A = my_attention(q, k, np.eye(64, dtype="float32")[None].repeat(4, 0))[0]  # (4, 64, 64)
images(
    {"image": few.images, "attention": A.mean(1).reshape(4, 8, 8)},
    alt="Four images and the attention that each patch receives: mostly on red patches, in two images elsewhere too.",
)

# %% [markdown]
# **Question 1** (1 point). In two to four sentences: what happens to $A$ and to the gradients $dq$ and $dk$ if the
# division by $\sqrt d$ is left out and $d$ is large? Argue with the formula for $dl$.

# %% [markdown] written="a3-q1" points=1
# Scores are sums of d products, so without the division their spread grows as √d, and softmax puts nearly all weight on
# one key. In dl = A (dA - Σ A dA) every entry with A near 0 vanishes, and where A is near 1 the sum is nearly dA
# itself, so dl, and with it dq and dk, is nearly 0. The layer hardly learns.
#
# Rubric: half a point for "scores grow with d, so A becomes nearly one-hot"; half a point for "dl is then nearly 0",
# with a reason from the formula.

# %% [markdown]
# ## Task 3 · The encoder block
#
# A block adds two branches to its input: attention, then an MLP, each with a LayerNorm before it (*pre-LN*):
#
# $$u = x + \text{attn}(\text{norm}_1(x)) \qquad\qquad y = u + \text{mlp}(\text{norm}_2(u))$$
#
# $x$, $u$, $y$ and all results in between have the shape $(B, N, C)$. You write the block and the way back through it
# by hand, from four parts that are given.
#
# A **part** is a function of an array that returns its value and its `backward`, which takes the gradient of the value
# and returns that of the array. `triple` and `squares` below are two made-up parts; `part` makes one of a layer of
# minitl.
#
# When an array goes two ways, as $x$ and $u$ do, two gradients come back, and they add. Call each part once in the
# forward pass and each `backward` once on the way back; the real ones are expensive.

# %%
first = [("x", "norm 1"), ("norm 1", "attn"), ("attn", "u"), ("x", "u")]
second = [("u", "norm 2"), ("norm 2", "mlp"), ("mlp", "y"), ("u", "y")]
alt = "A graph: x leads to u directly and through norm and attention; u to y directly and through norm and MLP."
graph(first + second, alt, size=(6.5, 1))


# %%
def triple(x):
    return 3 * x, lambda dy: 3 * dy


def squares(x):
    return x * x, lambda dy: 2 * x * dy


def part(layer):
    """Return a layer of minitl, from Tensor to Tensor, as a part; its backward also adds to the weights' gradients."""

    def run(x):
        x = Tensor(x, requires_grad=True)
        y = layer(x)

        def backward(dy):
            y.backward(np.ascontiguousarray(dy))
            return x.grad

        return y.data, backward

    return run


y, back = squares(np.array([[1.0, 2.0, 3.0], [0.0, -1.0, 0.5]]))
print("values:", y.tolist(), " gradient for dy = 1:", back(np.ones((2, 3))).tolist())


# %% answer="a3-block" forbids="EncoderBlock"
def my_block(x, norm1, attn, norm2, mlp):
    """Return y, and backward: dy -> dx; x, y, dy and dx are arrays (B, N, C), and the others are parts.

    About eight lines. Never write into x, dy or what a part returns.
    """
    ### BEGIN SOLUTION
    n, back_norm1 = norm1(x)
    a, back_attn = attn(n)
    u = x + a
    n, back_norm2 = norm2(u)
    m, back_mlp = mlp(n)

    def backward(dy):
        du = dy + back_norm2(back_mlp(dy))
        return du + back_norm1(back_attn(du))

    return u + m, backward
    ### END SOLUTION


# %% test="a3-block-1" points=2
def plus_one(x):
    return x + 1, lambda dy: dy.copy()


def five_times(x):
    return 5 * x, lambda dy: 5 * dy


y, backward = my_block(np.array([[[1.0]]]), plus_one, triple, squares, five_times)
# norm1(1) = 2, attn(2) = 6, u = 7, norm2(7) = 49, mlp(49) = 245, y = 252
assert np.allclose(y, 252), f"from x = 1 and these parts, y = 7 + 5 · 7² = 252; got {np.ravel(y)[0]:g}"
dx = backward(np.array([[[1.0]]]))
assert np.allclose(dx, 284), f"from dy = 1: du = 1 + 5 · 2 · 7 = 71, dx = 71 + 3 · 71 = 284; got {np.ravel(dx)[0]:g}"
layer = nn.EncoderBlock(dim=6, num_heads=2, mlp_dim=12, rng=np.random.default_rng(3)).to(dtype="float64")
x, dy = (np.random.default_rng(n).standard_normal((2, 5, 6)) for n in (1, 2))
t = Tensor(x.copy(), requires_grad=True)
want = layer(t)
want.backward(dy.copy())
y, backward = my_block(x.copy(), part(layer.norm1), part(layer.attn), part(layer.norm2), part(layer.mlp))
dx = backward(dy.copy())
assert np.shape(y) == (2, 5, 6), f"y: expected the shape of x, (2, 5, 6), got {np.shape(y)}"
assert np.allclose(y, want.data), f"y differs from minitl's block by up to {np.abs(y - want.data).max():.3g}"
assert np.shape(dx) == (2, 5, 6), f"dx: expected the shape of x, (2, 5, 6), got {np.shape(dx)}"
assert np.allclose(dx, t.grad), f"dx differs from minitl's block by up to {np.abs(dx - t.grad).max():.3g}"
print("visible checks passed (2 of 4 points of this task); hidden checks run at grading")


# %% hidden="a3-block-2" points=2
class Counted:
    """A part x -> tanh(x M), with a count of calls; what it returns is read-only."""

    def __init__(self, seed):
        self.M, self.calls, self.backs = np.random.default_rng(seed).standard_normal((4, 4)), 0, 0

    def __call__(self, x):
        self.calls += 1
        y = np.tanh(x @ self.M)
        y.flags.writeable = False

        def backward(dy):
            self.backs += 1
            dx = (dy * (1 - y * y)) @ self.M.T
            dx.flags.writeable = False
            return dx

        return y, backward


x, dy = np.random.default_rng(7).standard_normal((2, 1, 3, 4))
x.flags.writeable = dy.flags.writeable = False
four = [Counted(seed) for seed in range(4)]
y, backward = my_block(x, *four)
dx = backward(dy)
u = x + np.tanh(np.tanh(x @ four[0].M) @ four[1].M)
assert np.allclose(y, u + np.tanh(np.tanh(u @ four[2].M) @ four[3].M)), "y is wrong for parts x -> tanh(x M)"
for i in np.ndindex(x.shape):
    step = np.zeros(x.shape)
    step[i] = 1e-5
    ends = []
    for end in (x + step, x - step):
        u = end + np.tanh(np.tanh(end @ four[0].M) @ four[1].M)
        ends.append((dy * (u + np.tanh(np.tanh(u @ four[2].M) @ four[3].M))).sum())
    want = (ends[0] - ends[1]) / 2e-5
    assert abs(dx[i] - want) < 1e-5 * max(1, abs(want)), f"dx at {i}: expected {want:.6g}, got {dx[i]:.6g}"
counts = [(p.calls, p.backs) for p in four]
assert counts == [(1, 1)] * 4, f"each part runs once forward and once backward; got (forward, backward) {counts}"
same = (lambda x: (x, lambda dy: dy),) * 4  # parts that return what they get
x, dy = np.ones((1, 1, 2), np.float32), np.ones((1, 1, 2), np.float32)
y, backward = my_block(x, *same)
dx = backward(dy)
assert np.allclose(y, 4) and np.allclose(dx, 4), f"with parts that change nothing, y = 4 x and dx = 4 dy; got {y}, {dx}"
assert np.all(x == 1) and np.all(dy == 1), "my_block writes into x or dy"
assert y.dtype == dx.dtype == np.float32, f"float32 in, float32 out; got {y.dtype} and {dx.dtype}"

# %% [markdown]
# **Look.** What is left of a gradient after many blocks? A random gradient enters twelve blocks with random weights,
# once as you wrote them, and once without the two additions. After each block on the way back we compare it with the
# one that entered: a cosine of 1 means the same direction, 0 means that nothing of it is left.

# %%
deep = [nn.EncoderBlock(48, 3, 96, rng=rng) for _ in range(12)]
parts = [[part(layer) for layer in (b.norm1, b.attn, b.norm2, b.mlp)] for b in deep]
entered, left = rng.standard_normal((2, 16, 48)).astype("float32"), {"your blocks": [], "without additions": []}
for name, found in left.items():
    value, backs = rng.standard_normal((2, 16, 48)).astype("float32"), []
    for four in parts:
        for f in [lambda x, four=four: my_block(x, *four)] if name == "your blocks" else four:
            value, back = f(value)
            backs.append(back)
    gradient = entered
    for back in backs[::-1]:
        gradient = back(gradient)
        found.append((gradient * entered).sum() / np.linalg.norm(gradient) / np.linalg.norm(entered))
left["without additions"] = left["without additions"][3::4]  # after whole blocks
curves(
    {name: (np.arange(1, 13), found) for name, found in left.items()},
    "blocks on the way back",
    "cosine to the first gradient",
    "With additions the cosine falls slowly from 1 to about 0.2 over twelve blocks; without them it is 0 at once.",
    marks=True,
)

# %% [markdown]
# **Question 2** (1 point). In two to four sentences: explain the two curves from your `backward`. What would change if
# the norm stood after each addition, $u = \text{norm}_1(x + \text{attn}(x))$?

# %% [markdown] written="a3-q2" points=1
# In backward, each addition passes dy on unchanged and adds what comes through the branch. So a part of the gradient
# crosses any number of blocks as it is, and the cosine falls only as the parts from the branches come in. Without the
# additions, everything goes through the derivatives of attention, MLP and norms, and none of its direction is left
# after one block. With the norm after the addition, the direct way goes through the derivative of a norm twice in each
# block, so nothing crosses unchanged.
#
# Rubric: half a point for the direct way in du = dy + … or dx = du + …; half a point for "the direct way then passes
# through the norms".

# %% [markdown]
# ## Task 4 · A tiny ViT, and a step of its training
#
# Images become patches, patches become tokens, blocks let them exchange what they know, and a linear layer reads the
# answer from their mean. You write this, and the step that trains it.
#
# Images $(B, H, W, c)$ are cut into patches of $p \times p$ pixels, row by row of the grid; with $N = (H/p)(W/p)$,
# patch number $n = r \cdot W/p + s$ covers the rows $rp$ to $rp + p - 1$ and the columns $sp$ to $sp + p - 1$, and is a
# vector of $p \cdot p \cdot c$ numbers in the order row, column, color. Then
#
# $$x = \text{patches}\; E + b + \text{positions} \quad (B, N, C) \qquad x \leftarrow \text{block}_j(x) \qquad
# \text{logits} = \Bigl( \frac1N \sum_n \text{norm}(x)_n \Bigr) W_{head} + b_{head} \quad (B, K)$$
#
# A training step computes the loss, which is the cross-entropy of the logits and the labels; sets old gradients to
# zero; computes new ones; scales them so that their common norm is at most 1 (`optimizer.clip_grad_norm(1.0)`); sets
# the learning rate (`optimizer.lr = …`); and moves the weights (`optimizer.step()`).

# %%
grid = np.arange(24).reshape(4, 6)  # 4 x 6 pixels of one color: patches of 2 x 2 in a grid of 2 x 3
print(grid)
print("the patch in row 1, column 2 of the grid, number 1 · 3 + 2 = 5:", grid[2:4, 4:6].ravel().tolist())


# %% answer="a3-vit" forbids="patchify, ViT"
def tiny_vit(images, w, blocks, p):
    """Return logits, a Tensor (B, K), for ``images``, an array (B, H, W, c) of floats.

    ``w`` holds arrays or Parameters by name: "patch_embed.weight" (p·p·c, C) and "patch_embed.bias" (C,), "pos_embed"
    (1, N, C), "norm.weight" and "norm.bias" (C,), "head.weight" (C, K) and "head.bias" (K,). ``blocks`` is a list of
    functions from Tensor to Tensor. Use ops.linear and ops.layer_norm; a Tensor has x.mean(axis=…). About seven lines.
    """
    ### BEGIN SOLUTION
    B, H, W, c = images.shape
    cut = images.reshape(B, H // p, p, W // p, p, c).transpose(0, 1, 3, 2, 4, 5)
    x = ops.linear(cut.reshape(B, -1, p * p * c), w["patch_embed.weight"], w["patch_embed.bias"]) + w["pos_embed"]
    for block in blocks:
        x = block(x)
    x = ops.layer_norm(x, w["norm.weight"], w["norm.bias"])
    return ops.linear(x.mean(axis=1), w["head.weight"], w["head.bias"])
    ### END SOLUTION


def train_step(forward, optimizer, images, labels, lr):
    """Take one training step with learning rate ``lr``; return the loss before the step, a float.

    ``forward(images)`` returns logits, a Tensor; ``optimizer`` is one of minitl.optim. About seven lines.
    """
    ### BEGIN SOLUTION
    loss = ops.cross_entropy(forward(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.clip_grad_norm(1.0)
    optimizer.lr = lr
    optimizer.step()
    return loss.item()
    ### END SOLUTION


# %% test="a3-vit-1" points=1
spec, config = nn.DataSpec((8, 8), 3, 5), nn.ViTConfig(tokenizer="none", dim=6, heads=2, mlp_dim=8, zero_head=False)
model = nn.ViT(config, spec, np.random.default_rng(1)).to(dtype="float64")
pixels = np.random.default_rng(2).standard_normal((2, 8, 8, 3))
logits = tiny_vit(pixels, model.state_dict(), model.blocks, 4)
assert isinstance(logits, Tensor), f"expected a Tensor, got {type(logits).__name__}"
assert logits.shape == (2, 5), f"expected logits of shape (B, K) = (2, 5), got {logits.shape}"
error = np.abs(logits.data - model(pixels).data).max()
assert error < 1e-9, f"the logits differ from those of minitl's ViT by up to {error:.3g}"
print("visible checks passed (1 of 4 points of this task); hidden checks run at grading")

# %% test="a3-vit-2" points=1
weight = nn.Parameter(np.array([[0.0, 0.0], [0.5, -0.5]]))
inputs, labels = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])
expected = weight.data.copy()
optimizer = optim.SGD([weight], lr=5.0)
for step in range(2):
    e = np.exp(inputs @ expected)
    gradient = inputs.T @ (e / e.sum(1, keepdims=True) - np.eye(2)[labels]) / 2
    want = float(-np.log((e / e.sum(1, keepdims=True))[[0, 1], labels]).mean())
    loss = train_step(lambda x: ops.matmul(x, weight), optimizer, inputs, labels, 0.1)
    expected = expected - 0.1 * gradient  # its norm is below 1, so clipping changes nothing
    assert isinstance(loss, float), f"expected the loss as a float, got {type(loss).__name__}: use .item()"
    assert abs(loss - want) < 1e-9, f"step {step + 1}: expected the loss before the step, {want:.6f}; got {loss:.6f}"
    error = np.abs(weight.data - expected).max()
    assert error < 1e-9, (
        f"the weights after step {step + 1} are off by up to {error:.3g}: w - 0.1 · gradient is expected"
    )
print("visible checks passed (1 of 4 points of this task); hidden checks run at grading")

# %% hidden="a3-vit-3" points=1
for B, H, W, c, p in ((1, 4, 6, 3, 2), (3, 9, 3, 1, 3), (2, 2, 8, 2, 2)):
    draw, N, C, K = np.random.default_rng(H), (H // p) * (W // p), 5, 4
    sizes = {"patch_embed.weight": (p * p * c, C), "patch_embed.bias": (C,), "pos_embed": (1, N, C)}
    sizes |= {"norm.weight": (C,), "norm.bias": (C,), "head.weight": (C, K), "head.bias": (K,)}
    w = {name: draw.standard_normal(shape) for name, shape in sizes.items()}
    pixels = draw.standard_normal((B, H, W, c))
    pixels.flags.writeable = False
    steps = [lambda x: ops.tanh(x), lambda x: x * 2.0]
    want = np.zeros((B, K))
    for b in range(B):
        total = np.zeros(C)
        for r, s in np.ndindex(H // p, W // p):
            patch = [pixels[b, r * p + i, s * p + j, z] for i in range(p) for j in range(p) for z in range(c)]
            x = np.array(patch) @ w["patch_embed.weight"] + w["patch_embed.bias"] + w["pos_embed"][0, r * (W // p) + s]
            x = 2 * np.tanh(x)
            total += (x - x.mean()) / np.sqrt(x.var() + 1e-6) * w["norm.weight"] + w["norm.bias"]
        want[b] = total / N @ w["head.weight"] + w["head.bias"]
    got = tiny_vit(pixels, w, steps, p)
    assert got.shape == (B, K), f"images {(B, H, W, c)}, p = {p}: expected logits {(B, K)}, got {got.shape}"
    error = np.abs(got.data - want).max()
    assert error < 1e-9, f"images {(B, H, W, c)}, p = {p}: the logits are off by up to {error:.3g}"

# %% hidden="a3-vit-4" points=1
weight = nn.Parameter(np.zeros((3, 4)))
inputs = 10 * np.random.default_rng(5).standard_normal((6, 3))
labels, expected = np.array([0, 1, 2, 3, 3, 0]), np.zeros((3, 4))
optimizer = optim.SGD([weight], lr=1.0)
for rate in (0.3, 0.1, 0.02):
    e = np.exp(inputs @ expected - (inputs @ expected).max(1, keepdims=True))
    gradient = inputs.T @ (e / e.sum(1, keepdims=True) - np.eye(4)[labels]) / 6
    assert np.linalg.norm(gradient) > 1
    expected = expected - rate * gradient / np.linalg.norm(gradient)
    train_step(lambda x: ops.matmul(x, weight), optimizer, inputs, labels, rate)
    error = np.abs(weight.data - expected).max()
    assert error < 1e-5, f"gradients with a norm above 1 are scaled to norm 1: the weights are off by {error:.3g}"
shapes, _ = data.clutter(64, 1)
pixels = data.normalize(shapes.images, [0.4] * 3, [0.2] * 3).reshape(64, -1)
model = nn.MLP(pixels.shape[1], 16, 8, rng=np.random.default_rng(0))
optimizer = optim.AdamW(model.parameters())
losses = [train_step(model, optimizer, pixels, shapes.labels, 0.01) for _ in range(40)]
assert losses[-1] < losses[0] - 0.3, (
    f"40 steps on 64 images: the loss should fall clearly, {losses[0]:.2f} -> {losses[-1]:.2f}"
)

# %% [markdown]
# **Look.** Your network learns CLUTTER: in each image, name the shape of the one red object. This takes about ten
# seconds. Chance is an accuracy of 1/8.

# %%
train_set, test_set = data.clutter(6000, 500)
mean, std = data.channel_stats(train_set.images)


def new_weights():
    """Return minitl's ViT of one block with new weights, and its Parameters by name."""
    model = nn.ViT(nn.ViTConfig(tokenizer="none", layers=1, zero_head=False), train_set.spec, np.random.default_rng(0))
    return model, dict(model.named_parameters())


def batches(seed):
    """Yield normalized images and labels, 100 at a time, without end."""
    loader = data.Loader(train_set, 100, shuffle=True, rng=np.random.default_rng(seed))
    for pixels, labels in itertools.chain.from_iterable(itertools.repeat(loader)):
        yield data.normalize(pixels, mean, std), labels


# %%
STEPS = 200
model, w = new_weights()
optimizer, losses = optim.Muon(model.parameters(), weight_decay=0.05), []  # as AdamW, but needs fewer steps
for step, (pixels, labels) in zip(range(STEPS), batches(0), strict=False):
    rate = optim.warmup_cosine(step, STEPS, STEPS // 10, 0.02)
    losses.append(train_step(lambda x: tiny_vit(x, w, model.blocks, 4), optimizer, pixels, labels, rate))
    if (step + 1) % (STEPS // 5) == 0:
        print(f"step {step + 1}   loss {np.mean(losses[-25:]):.2f}")
with no_grad():
    logits = tiny_vit(data.normalize(test_set.images, mean, std), w, model.blocks, 4).data
right = logits.argmax(1) == test_set.labels

# %%
bars(
    {name: right[test_set.labels == i].mean() for i, name in enumerate(test_set.classes)},
    "accuracy on test images, by shape",
    "Bars of the accuracy for each of the eight shapes, all of them longer than chance.",
    chance=1 / 8,
    xlim=(0, 1.1),
)

# %% [markdown]
# ## Plug in
#
# Now all four parts are yours: the network, its blocks, attention and heads in them, and the steps. `minitl.plug` puts
# your attention in the place of minitl's. A few steps with minitl's parts and with yours must give the same losses.


# %%
def attention(qkv, b=None, *, num_heads, dropout=0.0, rng=None):
    """Compute what minitl's attention does, from your functions."""
    y, backward = my_attention(*split_heads(qkv + b, num_heads))

    def dqkv(dy):
        gradients = backward(split_heads(np.concatenate([dy] * 3, -1), num_heads)[0])
        return (np.concatenate([merge_heads(g) for g in gradients], -1),) * 2  # for qkv and b

    return merge_heads(y), dqkv


@op
def whole_block(x, *, layer):
    """Compute what an encoder block of minitl does, from your function."""
    return my_block(x, part(layer.norm1), part(layer.attn), part(layer.norm2), part(layer.mlp))


# %%
def some_steps(forward, model, n=8):
    """Return the losses of a few steps with ``forward``."""
    optimizer = optim.AdamW(model.parameters(), weight_decay=0.05)
    return [train_step(forward, optimizer, *batch, 2e-3) for batch in itertools.islice(batches(1), n)]


theirs, _ = new_weights()
ours, w = new_weights()
blocks = [lambda x, layer=layer: whole_block(x, layer=layer) for layer in ours.blocks]
expected = some_steps(theirs, theirs)
with minitl.plug(attention=attention):
    found = some_steps(lambda x: tiny_vit(x, w, blocks, 4), ours)
print("minitl's parts:", *(f"{loss:.4f}" for loss in expected))
print("your parts:    ", *(f"{loss:.4f}" for loss in found))
print("the same" if np.allclose(expected, found, atol=1e-3) else "not the same: look for the first check that fails")

# %% [markdown]
# ## Before you hand in
#
# 1. *Kernel → Restart and run all*: every visible check prints its line.
# 2. Both written answers are there.
# 3. The file is still called `A3_attention.ipynb`. Hand in this file alone.
