# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A2 · Layers
#
# You write what a Vision Transformer is made of, forward and backward: the linear layer, LayerNorm, GELU and the
# cross-entropy loss. With AdamW, which moves the weights, these are all that you need to train one, but for attention.
# At the end a model is trained with your parts in place of minitl's.
#
# | | |
# |---|---|
# | **Points** | 16 by checks (9 visible, 7 hidden), 2 for written answers |
# | **Time** | 4 to 6 hours |
# | **You need** | NumPy, the chain rule, assignment A1 or lessons 01 and 02 of the course; paper |
#
# Write only where a cell says `your code here`; you may add cells of your own. The tasks do not depend on each other: a
# wrong answer in one costs no points in another.
#
# L is the loss, one number, and `dx` means ∂L/∂x, an array of the shape of x. An operation takes arrays and returns two
# things: its value `y`, and a function `backward(dy)` that returns the gradients. None of them writes into an argument.
# Inputs are float64 or float32, and results have the dtype of the inputs. To keep it, take the constants from Python:
# `math.sqrt(2)` is a number without a dtype of its own, `np.sqrt(2)` is float64.

# %%
import math

import lesson
import numpy as np

import minitl
from minitl import check_gradients, data, nn, ops, optim
from minitl.autograd import op

rng = np.random.default_rng(0)


def compare(what, got, want, tolerance=1e-9):
    """Raise AssertionError unless ``got`` is an array with the shape and the numbers of ``want``."""
    want = np.asarray(want)
    assert isinstance(got, np.ndarray | np.generic), f"{what}: expected an array, got {type(got).__name__}"
    assert got.shape == want.shape, f"{what}: expected the shape {want.shape}, got {got.shape}"
    assert np.isfinite(got).all(), f"{what}: some numbers are infinite or not numbers (nan)"
    error = np.abs(got - want).max()
    assert error <= tolerance, f"{what}: the shape {got.shape} is right, but entries are off by up to {error:.3g}"


def run(fn, dy, *arrays, **options):
    """Call an operation and, twice, its backward; return y and the gradients. Nothing may be written into."""
    name, kept = fn.__name__, [array.copy() for array in (dy, *arrays)]
    made = fn(*arrays, **options)
    assert isinstance(made, tuple) and len(made) == 2, f"{name}: expected (y, backward), got {type(made).__name__}"
    first, second = (g if isinstance(g, tuple | list) else (g,) for g in (made[1](dy), made[1](dy)))
    count = sum(array.dtype.kind == "f" for array in arrays)
    assert len(first) == count, f"{name}: backward returns {len(first)} arrays, expected {count}: one for each input"
    same = all(a is b or np.allclose(a, b, equal_nan=True) for a, b in zip(first, second, strict=True))
    assert same, f"{name}: backward gives another result when it is called a second time; does it change an array?"
    same = all((a == b).all() for a, b in zip((dy, *arrays), kept, strict=True))
    assert same, f"{name} writes into an argument or into dy; make a new array in place of -=, *= or out="
    return made[0], *first


# %% [markdown]
# ## Task 1 · The linear layer
#
# A linear layer multiplies each vector of `in` numbers by a matrix and adds a vector. Most of the weights of a network,
# and most of its work, are in such layers.
#
# With $x$ of shape $(\dots, \text{in})$, $W$ $(\text{in}, \text{out})$, $b$ $(\text{out},)$ and $y$
# $(\dots, \text{out})$, where the dots stand for any number of axes, or none:
#
# $$y_{no} = \sum_i x_{ni} W_{io} + b_o$$
#
# Here $n$ counts all vectors, whatever the axes in front are. Find $dx$, $dW$ and $db$: ask in which entries of $y$ one
# $W_{io}$ occurs, and with which factor; add up, and recognize a product of matrices. Do the same for $x_{ni}$ and
# for $b_o$.

# %%
x, b = np.array([[1.0, 2.0, 3.0], [0.0, 1.0, -1.0]]), np.array([10.0, 20.0])
W = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
print("y[0, 1] =", sum(x[0, i] * W[i, 1] for i in range(3)) + b[1])
W[2, 1] += 0.01
print("with W[2, 1] larger by 0.01, column 1 of y is", x @ W[:, 1] + b[1], "in place of [25. 20.]")


# %% answer="a2-linear" forbids="linear, Linear, linear_gelu"
def my_linear(x, W, b):
    """Return y (..., out) and backward for x (..., in), W (in, out), b (out,).

    backward: dy (..., out) -> dx (..., in), dW (in, out), db (out,). 5 to 8 lines.
    """
    ### BEGIN SOLUTION
    rows = x.reshape(-1, x.shape[-1])

    def backward(dy):
        flat = dy.reshape(-1, dy.shape[-1])
        return dy @ W.T, rows.T @ flat, flat.sum(0)

    return x @ W + b, backward
    ### END SOLUTION


# %% test="a2-linear-1" points=2
x, W = np.array([[1.0, 2.0, 3.0], [0.0, 1.0, -1.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
y, dx, dW, db = run(my_linear, np.array([[1.0, 0.0], [2.0, -1.0]]), x, W, np.array([10.0, 20.0]))
compare("my_linear: y", y, [[14, 25], [9, 20]])
compare("my_linear: dx", dx, [[1, 0, 1], [2, -1, 1]])
compare("my_linear: dW", dW, [[1, 0], [4, -1], [1, 1]])
compare("my_linear: db", db, [3, -1])
print("visible checks passed (2 of 3 points of this task); hidden checks run at grading")

# %% hidden="a2-linear-2" points=1
rng_linear = np.random.default_rng(1)
for front, n_in, n_out in (((2, 3), 4, 5), ((), 3, 2), ((1,), 2, 2), ((2, 1, 3), 3, 3), ((4,), 1, 6)):
    x, dy = rng_linear.standard_normal((*front, n_in)), rng_linear.standard_normal((*front, n_out))
    W, b = np.asfortranarray(rng_linear.standard_normal((n_in, n_out))), rng_linear.standard_normal(n_out)
    want = np.empty_like(dy), np.zeros_like(x), np.zeros_like(W), np.zeros_like(b)
    for n in np.ndindex(front):
        for o in range(n_out):
            want[0][(*n, o)] = sum(x[(*n, i)] * W[i, o] for i in range(n_in)) + b[o]
            want[3][o] += dy[(*n, o)]
            for i in range(n_in):
                want[1][(*n, i)] += dy[(*n, o)] * W[i, o]
                want[2][i, o] += x[(*n, i)] * dy[(*n, o)]
    for name, got, wanted in zip(("y", "dx", "dW", "db"), run(my_linear, dy, x, W, b), want, strict=True):
        compare(f"my_linear with x {x.shape} and W {W.shape}: {name}", got, wanted)
single = run(my_linear, *(a.astype(np.float32) for a in (dy, x, W, b)))
kinds = [str(a.dtype) for a in single]
assert set(kinds) == {"float32"}, f"float32 in, float32 out; got {', '.join(kinds)}"

# %%
# Look: a linear layer learns another one from 40 noisy examples, by steps against your gradients.
x, goal, noise = rng.standard_normal((40, 3)), rng.standard_normal((3, 2)), 0.1 * rng.standard_normal((40, 2))
W, b, losses = np.zeros((3, 2)), np.zeros(2), []
for _ in range(60):
    y, backward = my_linear(x, W, b)
    error = y - (x @ goal + 1 + noise)
    losses.append((error**2).mean())
    _, dW, db = backward(2 * error / error.size)
    W, b = W - 0.3 * dW, b - 0.3 * db
steps = np.arange(60)
lesson.curves(
    {"your layer": (steps, losses), "noise": (steps, np.full(60, (noise**2).mean()))},
    "step",
    "mean squared error",
    "The error falls within 30 steps from above 1 to the level of the noise, 0.01, and stays there.",
    yscale="log",
)

# %% [markdown]
# ## Task 2 · LayerNorm
#
# LayerNorm brings the C numbers of each token, a vector, to mean 0 and variance 1, then scales and shifts them by
# learned numbers. It keeps the numbers in a deep network from growing or dying out.
#
# With $x$ and $y$ of shape $(\dots, C)$, the weight $w$ and the bias $b$ of shape $(C,)$, and for each token
#
# $$y_i = n_i w_i + b_i \qquad n_i = \frac{x_i - \mu}{\sigma} \qquad \mu = \frac{1}{C} \sum_j x_j \qquad
# \sigma^2 = \frac{1}{C} \sum_j (x_j - \mu)^2 + \varepsilon$$
#
# Note where $\varepsilon$ stands: under the root. Find the gradients. $dw$ and $db$ are sums over all tokens. For $dx$,
# start from the gradient of $n$, and note that one $x_j$ acts on every $n_i$ of its token in three ways: directly (for
# $i = j$), through $\mu$, and through $\sigma$. The result becomes short when you write it with $n$. It has to be right
# for a large $\mu$ as well; the variance as the mean of squares minus the square of the mean is not exact enough then.

# %%
token = np.array([1.0, 2.0, 6.0])
variance = ((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 3
print(f"mean 3, variance {variance:.3f}, n =", ((token - 3) / math.sqrt(variance)).round(3))
token[2] += 0.5
print("with x[2] larger by 0.5, n =", ((token - token.mean()) / token.std()).round(3), "- all of it changes")


# %% answer="a2-norm" forbids="layer_norm, LayerNorm"
def my_layer_norm(x, weight, bias, *, eps=1e-6):
    """Return y (..., C) and backward for x (..., C), weight (C,), bias (C,).

    backward: dy (..., C) -> dx (..., C), dweight (C,), dbias (C,). 7 to 10 lines.
    """
    ### BEGIN SOLUTION
    centered = x - x.mean(-1, keepdims=True)
    sigma = np.sqrt((centered**2).mean(-1, keepdims=True) + eps)
    n = centered / sigma

    def backward(dy):
        g, front = dy * weight, tuple(range(x.ndim - 1))
        dx = (g - g.mean(-1, keepdims=True) - n * (g * n).mean(-1, keepdims=True)) / sigma
        return dx, (dy * n).sum(front), dy.sum(front)

    return n * weight + bias, backward
    ### END SOLUTION


# %% test="a2-norm-1" points=2
x, weight, bias = np.array([[1.0, 2.0, 3.0], [0.0, 6.0, 0.0]]), np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 10.0])
y, dx, dweight, dbias = run(my_layer_norm, np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]), x, weight, bias)
r, s = math.sqrt(3 / 2), math.sqrt(1 / 2)  # n is (-r, 0, r) in the first token and (-s, 2 s, -s) in the second
compare("my_layer_norm: y", y, [[-r, 0, 10 + 3 * r], [-s, 4 * s, 10 - 3 * s]], tolerance=1e-5)
compare("my_layer_norm: dweight", dweight, [-r, 2 * s, -s], tolerance=1e-5)
compare("my_layer_norm: dbias", dbias, [1, 1, 1])
compare("my_layer_norm: the sum of dx over each token", dx.sum(-1), [0, 0])
check_gradients(op(my_layer_norm), x, weight, bias)
print("visible checks passed (2 of 4 points of this task); hidden checks run at grading")

# %% hidden="a2-norm-2" points=2
rng_norm = np.random.default_rng(2)
for shape, scale, shift, eps in (((2, 3, 5), 1, 0, 0.5), ((1, 4), 1e-3, 0, 1e-6), ((2, 1, 3, 2), 1, 1e6, 1e-6)):
    x, dy = shift + scale * rng_norm.standard_normal(shape), rng_norm.standard_normal(shape)
    weight, bias, (*front, C) = rng_norm.standard_normal(shape[-1]), rng_norm.standard_normal(shape[-1]), shape
    want, want_dweight, want_dbias = np.empty(shape), np.zeros(C), np.zeros(C)
    for place in np.ndindex(*front):
        mean = math.fsum(x[place]) / C
        sigma = math.sqrt(math.fsum((v - mean) ** 2 for v in x[place]) / C + eps)
        for i in range(C):
            n = (x[(*place, i)] - mean) / sigma
            want[(*place, i)] = n * weight[i] + bias[i]
            want_dweight[i] += dy[(*place, i)] * n
            want_dbias[i] += dy[(*place, i)]
    y, dx, dweight, dbias = run(my_layer_norm, dy, np.asfortranarray(x), weight, bias, eps=eps)
    kind = f"my_layer_norm with x {shape} around {shift:g}, of the size {scale:g}, and eps = {eps:g}"
    compare(f"{kind}: y", y, want, tolerance=1e-6)
    compare(f"{kind}: dweight", dweight, want_dweight, tolerance=1e-6)
    compare(f"{kind}: dbias", dbias, want_dbias)
    if scale == 1 and shift == 0:
        check_gradients(lambda *arrays: op(my_layer_norm)(*arrays, eps=0.5), x, weight, bias)
y, dx, *_ = run(my_layer_norm, np.ones((1, 4)), np.full((1, 4), 3.0), np.ones(4), np.arange(4.0))
compare("my_layer_norm of a token of four equal numbers: y is the bias", y, [np.arange(4)])
compare("my_layer_norm of a token of four equal numbers: dx", dx, np.zeros((1, 4)))
single = run(my_layer_norm, *(np.float32(rng_norm.standard_normal(shape)) for shape in ((2, 3), (2, 3), 3, 3)))
kinds = [str(a.dtype) for a in single]
assert set(kinds) == {"float32"}, f"float32 in, float32 out; got {', '.join(kinds)}"

# %%
# Look: six tokens of 12 numbers, each with another mean and size, and what LayerNorm makes of them.
means, sizes = np.array([0, 4, 0, -4, 3, -2]), np.array([0.2, 1, 3, 1, 0.5, 2])
x = means[:, None] + sizes[:, None] * rng.standard_normal((6, 12))
y, backward = my_layer_norm(x, np.ones(12), np.zeros(12))
lesson.matrices(
    {"x": x, "y": y},
    "number in the token",
    "token",
    "Two matrices: the rows of x differ in brightness and contrast, those of y are alike.",
    side=2.6,
)
print("sums of dx over each token:", backward(rng.standard_normal((6, 12)))[0].sum(-1).round(12) + 0)

# %% [markdown]
# **Question 1** (1 point). All sums of dx over a token are 0, whatever dy is. In 2 to 4 sentences: why must that be so?
# Argue with what happens to y and the loss when the same number is added to all C numbers of a token, not with the
# formula. And what does it mean for the bias $b$ of a linear layer directly before a LayerNorm, when $b$ is trained by
# plain steps against $db$?

# %% [markdown] written="a2-q1" points=1
# The same number added to all x of a token changes the mean by this number and so leaves n, y and the loss as they are.
# The change of the loss to first order is this number times the sum of dx, so the sum is 0. The gradient of the bias
# is the sum of dx over all tokens, and its entries add up to 0 as well: plain steps never change the mean of the bias,
# which has no effect anyhow.
#
# Rubric: half a point for "y does not change, so neither does the loss, so the slope in this direction is 0"; half a
# point for "db adds up to 0, so the mean of the bias stays as it was".

# %% [markdown]
# ## Task 3 · GELU
#
# GELU is a smooth form of $\max(x, 0)$: it multiplies x by the probability that a standard normal number is below x.
# This is the approximation in the code of TokenLearner's authors.
#
# For each entry, with $x$, $y$, $dx$ and $dy$ of one shape:
#
# $$y = \tfrac{1}{2}\, x\, (1 + \tanh u) \qquad u = \sqrt{2 / \pi}\, \left( x + 0.044715\, x^3 \right)$$
#
# Find $dx$ by the product rule and the chain rule. The slope of $t = \tanh u$ is $1 - t^2$.

# %%
for value in (-2.0, -0.5, 0.0, 1.0):
    u = math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)
    print(f"x = {value:4}: u = {u:7.4f}, y = {value * (1 + math.tanh(u)) / 2:7.4f}, max(x, 0) = {max(value, 0)}")


# %% answer="a2-gelu" forbids="gelu, linear_gelu"
def my_gelu(x):
    """Return y and backward for x of any shape; y, dx and dy have the shape of x. 4 to 7 lines.

    Right for entries of ±1000 as well.
    """
    ### BEGIN SOLUTION
    c, k = math.sqrt(2 / math.pi), 0.044715
    t = np.tanh(c * (x + k * x**3))
    slope = (1 + t) / 2 + x * (1 - t**2) * c * (1 + 3 * k * x**2) / 2
    return x * (1 + t) / 2, lambda dy: dy * slope
    ### END SOLUTION


# %% test="a2-gelu-1" points=1
x = np.array([[0.0, 1.0, -1.0], [2.0, -2.0, 0.5]])
y, dx = run(my_gelu, np.array([[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), x)
compare("my_gelu: y", y, [[0, 0.841192, -0.158808], [1.954598, -0.045402, 0.345714]], tolerance=1e-6)
compare("my_gelu: dx where x = 0, y has the slope 1/2 and dy = 3, else 0", dx, [[1.5, 0, 0], [0, 0, 0]])
check_gradients(op(my_gelu), x)
print("visible checks passed (1 of 2 points of this task); hidden checks run at grading")

# %% hidden="a2-gelu-2" points=1
for x in (
    np.linspace(-6, 6, 41).reshape(1, 41, 1),
    np.asfortranarray(np.linspace(-3, 3, 12).reshape(3, 4)),
    np.ones(()),
):
    y, dx = run(my_gelu, np.full_like(x, 0.7), x)
    for place in np.ndindex(x.shape):
        v, (up, down) = float(x[place]), (float(x[place]) + h for h in (1e-5, -1e-5))
        here, above, below = (
            v / (1 + math.exp(-2 * math.sqrt(2 / math.pi) * (v + 0.044715 * v * v * v))) for v in (v, up, down)
        )
        compare(f"my_gelu of {v:.3f}: y", y[place], here)
        compare(f"my_gelu of {v:.3f}: dx for dy = 0.7", dx[place], 0.7 * (above - below) / 2e-5, tolerance=1e-8)
for dtype in (np.float64, np.float32):
    with np.errstate(all="ignore"):
        y, dx = run(my_gelu, np.ones(4, dtype), np.array([-1000, -30, 30, 1000], dtype))
    compare(f"my_gelu of -1000, -30, 30 and 1000 in {dtype.__name__}: y", y, [0, 0, 30, 1000])
    compare(f"my_gelu of -1000, -30, 30 and 1000 in {dtype.__name__}: dx", dx, [0, 0, 1, 1])
    assert y.dtype == dx.dtype == dtype, f"{dtype.__name__} in and out; got {y.dtype} and {dx.dtype}"

# %%
# Look: your GELU and its slope. Unlike that of max(x, 0), the slope has no jump, and it is not 0 left of 0.
x = np.linspace(-4, 4, 201)
y, backward = my_gelu(x)
lesson.curves(
    {"GELU": (x, y), "its slope": (x, backward(np.ones_like(x))), "max(x, 0)": (x, x.clip(0))},
    "x",
    "y",
    "GELU follows max(x, 0) with a shallow dip left of 0; its slope rises from 0 to 1 and overshoots a little.",
    ylim=(-0.5, 2),
)

# %% [markdown]
# ## Task 4 · Cross-entropy
#
# A classifier gives each of K classes a score, its *logit*. The loss is small if the right class gets nearly all of the
# probability.
#
# Logits $x$ are of shape $(B, K)$, and the classes of the B samples are integers $c$ of shape $(B,)$, from 0 to K - 1.
# L is one number, a mean over the samples:
#
# $$p_{bk} = \frac{e^{x_{bk}}}{\sum_j e^{x_{bj}}} \qquad L = -\frac{1}{B} \sum_b \ln p_{b, c_b}$$
#
# Find $dx$. It helps to write $\ln p$ as a difference first. Logits may be of any size: neither an infinite exponential
# nor the logarithm of 0 may occur, so do not compute $p$ before $\ln p$. The gradient that `backward` gets is $dL$, one
# number; it is 1 if the loss is the end of the computation, but do not rely on that.

# %%
p = np.array([[1 / 3, 1 / 3, 1 / 3], [1 / 2, 1 / 4, 1 / 4]])
print("p for logits [0, 0, 0] and [ln 2, 0, 0]:", p.round(3).tolist())
print(f"L for the classes [1, 0]: (ln 3 + ln 2) / 2 = {(math.log(3) + math.log(2)) / 2:.4f}")


# %% answer="a2-loss" forbids="cross_entropy, softmax, log_softmax"
def my_cross_entropy(logits, classes):
    """Return the loss L, one number, and backward for logits (B, K) and classes (B,), integers of any integer dtype.

    backward: dL, one number -> dlogits (B, K) alone, since classes have no gradient. 6 to 9 lines.
    """
    ### BEGIN SOLUTION
    B = len(classes)
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))

    def backward(dL):
        dlogits = np.exp(log_p)
        dlogits[np.arange(B), classes] -= 1
        return dlogits * (dL / B)

    return -log_p[np.arange(B), classes].mean(), backward
    ### END SOLUTION


# %% test="a2-loss-1" points=2
logits, classes = np.array([[0.0, 0.0, 0.0], [math.log(2), 0.0, 0.0]]), np.array([1, 0])
L, dx = run(my_cross_entropy, np.ones(()), logits, classes)
compare("my_cross_entropy: L", L, (math.log(3) + math.log(2)) / 2)
compare("my_cross_entropy: dlogits", dx, [[1 / 6, -1 / 3, 1 / 6], [-1 / 4, 1 / 8, 1 / 8]])
_, dx = run(my_cross_entropy, np.full((), 2.0), logits, classes)
compare("my_cross_entropy: dlogits for dL = 2", dx, [[1 / 3, -2 / 3, 1 / 3], [-1 / 2, 1 / 4, 1 / 4]])
check_gradients(lambda logits: op(my_cross_entropy)(logits, classes), logits)
print("visible checks passed (2 of 3 points of this task); hidden checks run at grading")

# %% hidden="a2-loss-2" points=1
rng_loss = np.random.default_rng(3)
for B, K, dtype in ((5, 3, np.int64), (1, 4, np.uint8), (3, 3, np.int32), (2, 1, np.int16)):
    logits, classes = np.asfortranarray(rng_loss.standard_normal((B, K))), rng_loss.integers(0, K, B).astype(dtype)
    p = [[math.exp(v) / sum(math.exp(other) for other in row) for v in row] for row in logits]
    want = [[-3 * (p[b][k] - (k == classes[b])) / B for k in range(K)] for b in range(B)]
    L, dx = run(my_cross_entropy, np.array(-3.0), logits, classes)
    compare(f"my_cross_entropy with logits {B, K}: L", L, -sum(math.log(p[b][classes[b]]) for b in range(B)) / B)
    compare(f"my_cross_entropy with logits {B, K} and dL = -3: dlogits", dx, want)
huge = np.array([[2000.0, 0.0, -2000.0], [-5000.0, -5000.0, -5000.0], [1e5, 0.0, 1e5]])
with np.errstate(all="ignore"):
    L, dx = run(my_cross_entropy, np.ones(()), huge, np.array([2, 0, 0]))
compare("my_cross_entropy of logits from -5000 to 100000: L", L, (4000 + math.log(3) + math.log(2)) / 3)
want = [[1 / 3, 0, -1 / 3], [-2 / 9, 1 / 9, 1 / 9], [-1 / 6, 0, 1 / 6]]
compare("my_cross_entropy of logits from -5000 to 100000: dlogits", dx, want)
L, dx = run(my_cross_entropy, np.ones((), np.float32), np.float32(huge), np.array([0, 1, 2]))
assert L.dtype == dx.dtype == np.float32, f"float32 logits, float32 results; got L {L.dtype}, dlogits {dx.dtype}"

# %%
# Look: the gradient for five samples. It is negative only at the right class, and each row adds up to 0.
logits, classes = 2 * rng.standard_normal((5, 8)), np.array([3, 0, 7, 3, 5])
L, backward = my_cross_entropy(logits, classes)
one_hot = np.eye(8)[classes]
lesson.matrices(
    {"right class": one_hot, "dlogits times B": 5 * backward(np.ones(()))},
    "class",
    "sample",
    "Two matrices: ones at the right classes; the gradient, negative there and positive or near zero elsewhere.",
    side=3,
    text="{:.1f}",
)

# %% [markdown]
# ## Task 5 · AdamW
#
# A plain step $w \leftarrow w - \eta\, g$ is too large for some weights and too small for others, because gradients
# differ in size by orders of magnitude. AdamW divides each gradient by its usual size, and lets weights
# shrink that no gradient holds up.
#
# For each weight, with its gradient $g$, learning rate $\eta$, decay $\lambda$ and running means $m$ and $v$ that start
# at 0, in step $t$ = 1, 2, …:
#
# $$m \leftarrow \beta_1 m + (1 - \beta_1)\, g \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2 \qquad
# \hat m = \frac{m}{1 - \beta_1^t} \qquad \hat v = \frac{v}{1 - \beta_2^t}$$
#
# $$w \leftarrow (1 - \eta \lambda)\, w - \eta\, \frac{\hat m}{\sqrt{\hat v} + \epsilon}$$
#
# The decay is *decoupled*: it acts on w itself and is no part of $g$. $m$ and $v$ are carried from step to step as they
# are, without the correction; $\hat m$ and $\hat v$ are used in this step only.

# %%
w, g = np.array([[1.0, -2.0, 4.0]]), np.array([[0.5, -0.001, 0.0]])
print("after the first step m =", 0.1 * g, "and v =", 0.001 * g**2)
print("m̂ / √v̂ =", np.sign(g), ": at first each weight with a gradient moves by the learning rate, whatever its size")


# %% answer="a2-adamw" forbids="AdamW"
def my_adamw(w, g, m, v, t, lr, *, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    """Return the new w, m and v, three new arrays, after step t (1, 2, ...) with the gradient g.

    w, g, m and v have one shape, any; none of them is changed. 5 to 8 lines.
    """
    ### BEGIN SOLUTION
    beta1, beta2 = betas
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    w = (1 - lr * weight_decay) * w - lr * m_hat / (np.sqrt(v_hat) + eps)
    return w, m, v
    ### END SOLUTION


# %% test="a2-adamw-1" points=2
state = [np.array([[1.0, -2.0, 4.0]]), np.array([[0.5, -0.001, 0.0]]), np.zeros((1, 3)), np.zeros((1, 3))]
kept = [array.copy() for array in state]
w, m, v = my_adamw(*state, 1, 0.1, weight_decay=0.5)
assert all((a == b).all() for a, b in zip(state, kept, strict=True)), "my_adamw writes into w, g, m or v"
compare("my_adamw: m after step 1", m, [[0.05, -0.0001, 0]])
compare("my_adamw: v after step 1", v, [[0.00025, 1e-9, 0]])
compare("my_adamw: w after step 1 with lr 0.1 and weight_decay 0.5", w, [[0.85, -1.8, 3.8]], tolerance=2e-6)
print("visible checks passed (2 of 4 points of this task); hidden checks run at grading")

# %% hidden="a2-adamw-2" points=2
rng_adamw = np.random.default_rng(4)
for shape, betas, eps in (((2, 1, 3), (0.9, 0.999), 1e-8), ((4,), (0.5, 0.8), 0.1), ((), (0.0, 0.9), 1e-8)):
    w, m, v = np.asarray(rng_adamw.standard_normal(shape)), np.zeros(shape), np.zeros(shape)
    want = [[value, 0.0, 0.0] for value in w.ravel().tolist()]
    for t, lr in enumerate((0.1, 0.02, 0.3, 0.1, 0.5), 1):
        g = np.asarray(rng_adamw.standard_normal(shape) * 10.0**-t)
        for one, slope in zip(want, g.ravel().tolist(), strict=True):
            one[1] = betas[0] * one[1] + (1 - betas[0]) * slope
            one[2] = betas[1] * one[2] + (1 - betas[1]) * slope * slope
            move = one[1] / (1 - betas[0] ** t) / (math.sqrt(one[2] / (1 - betas[1] ** t)) + eps)
            one[0] = one[0] - lr * 0.2 * one[0] - lr * move
        w, m, v = my_adamw(w, g, m, v, t, lr, betas=betas, eps=eps, weight_decay=0.2)
        for name, got, k in (("w", w, 0), ("m", m, 1), ("v", v, 2)):
            wanted = np.reshape([one[k] for one in want], shape)
            compare(f"my_adamw: {name} of shape {shape} after step {t}, betas {betas}, eps {eps}", got, wanted)
w, *_ = my_adamw(np.ones(3), np.zeros(3), np.zeros(3), np.zeros(3), 10**6, 0.1, weight_decay=0.0)
compare("my_adamw: without gradient and decay w stays as it is", w, np.ones(3))
single = my_adamw(*(np.float32([[1, 2]]) for _ in range(4)), 3, 0.1)
kinds = [str(a.dtype) for a in single]
assert set(kinds) == {"float32"}, f"float32 in, float32 out; got {', '.join(kinds)}"

# %%
# Look: two weights whose gradients push to and fro, the one with size 10, the other with size 0.001, and decay.
# Decoupled, both decay alike. The other two lines put the decay into the gradient, g + λ w, as was usual before AdamW.
size, steps, paths = np.array([10.0, 0.001]), np.arange(1, 301), []
decoupled = coupled = np.ones(2), np.zeros(2), np.zeros(2)  # w, m and v of both weights
for t in range(1, 301):
    g, (w, m, v) = size * (-1) ** t, decoupled
    decoupled = my_adamw(w, g, m, v, t, 0.01, weight_decay=0.2)
    w, m, v = coupled
    coupled = my_adamw(w, g + 0.2 * w, m, v, t, 0.01, weight_decay=0)
    paths.append([*decoupled[0], *coupled[0]])
names = [f"{kind}, gradients of {number:g}" for kind in ("AdamW", "g + λ w") for number in size]
lesson.curves(
    {name: (steps, path) for name, path in zip(names, np.transpose(paths), strict=True)},
    "step",
    "weight",
    "With AdamW both weights fall alike; with the decay in the gradient one hardly moves and the other soon is 0.",
)

# %% [markdown]
# **Question 2** (1 point). In 2 to 4 sentences: why does the weight with gradients of size 10 hardly decay, and the
# other fall to 0 so fast, when the decay is a part of the gradient? How large is then the first step of a weight that
# has no gradient of its own, for a small $\lambda$ and for a large one?

# %% [markdown] written="a2-q2" points=1
# AdamW divides the whole of g + λ w by the usual size of the gradient. With gradients of 10 the decay is divided by 10
# and hardly counts; with gradients of 0.001 it is the larger part, so the quotient is near 1 at first and the weight
# moves by the full learning rate. The first step of a weight without a gradient of its own is the learning rate as
# well, however large or small λ is, since λ w is divided by its own size.
#
# Rubric: half a point for "the decay is divided by the size of the gradients, too", half a point for "the
# learning rate, whatever λ is".

# %% [markdown]
# ## Plug in
#
# A small Vision Transformer with TokenLearner learns to name the shape of the red object in an image, one of eight. It
# is trained twice from the same start and on the same images: with your parts, and with minitl's. `minitl.plug` puts
# your operations in place of minitl's; attention is minitl's in both. The losses agree at first. Later they part a
# little, because training makes rounding errors grow. If they differ from the start, take your parts out of `parts` one
# at a time to find out which one it is.


# %%
train_set = data.clutter(3000, 8)[0]
images = data.normalize(train_set.images, *data.channel_stats(train_set.images))


def train(parts, mine, steps=150):
    """Train a small model; return the loss of each step. ``mine``: by my_adamw, else by minitl's."""
    config = nn.ViTConfig(version="1.1", pre_norm=False, dim=24, layers=1, mlp_dim=48, hidden=16)
    model = nn.ViT(config, train_set.spec, np.random.default_rng(0))
    params = list(model.parameters())
    theirs = optim.AdamW(params, weight_decay=0.05)
    means = [(np.zeros_like(p.data), np.zeros_like(p.data)) for p in params]
    order, losses = np.random.default_rng(1), []
    with minitl.plug(**parts):
        for t in range(1, steps + 1):
            batch = order.integers(0, len(images), 40)
            loss = ops.cross_entropy(model(images[batch]), train_set.labels[batch])
            theirs.zero_grad()
            loss.backward()
            theirs.lr = optim.warmup_cosine(t - 1, steps, 20, 8e-3)
            if not mine:
                theirs.step()
            for i, p in enumerate(params if mine else []):
                decay = 0.05 if p.ndim > 1 else 0  # matrices alone decay
                p.data[...], *means[i] = my_adamw(p.data, p.grad, *means[i], t, theirs.lr, weight_decay=decay)
            losses.append(loss.item())
    return np.array(losses)


# %%
def linear(x, W, b=None):  # some layers have no bias
    return my_linear(x, W, np.zeros(W.shape[1], W.dtype) if b is None else b)


def linear_gelu(x, W, b):  # minitl has one operation for both
    u, back_to_x = my_linear(x, W, b)
    y, back_to_u = my_gelu(u)
    return y, lambda dy: back_to_x(back_to_u(dy))


parts = {"linear": linear, "linear_gelu": linear_gelu, "gelu": my_gelu}
parts |= {"layer_norm": my_layer_norm, "cross_entropy": my_cross_entropy}
yours, minitls = train(parts, mine=True), train({}, mine=False)
means = [np.convolve(losses, np.ones(10) / 10, "valid") for losses in (yours, minitls)]
steps = np.arange(len(means[0])) + 10
lesson.curves(
    {"your parts": (steps, means[0]), "minitl's": (steps, means[1])},
    "step",
    "loss, mean of 10 steps",
    "Both losses start at 2.1 and fall alike to about 1.8, with small differences at the end.",
)
print(f"largest difference in the first 10 steps: {np.abs(yours - minitls)[:10].max():.1g}")
print(f"mean of the last 10: yours {yours[-10:].mean():.2f}, minitl's {minitls[-10:].mean():.2f}")

# %% [markdown]
# ## Before you hand in
#
# 1. *Kernel → Restart and run all*: every visible check prints its line.
# 2. Both written answers are there.
# 3. The file is still called `A2_layers.ipynb`. Hand in this file alone.
