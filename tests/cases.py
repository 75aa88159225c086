"""One row per op, and more where options or shapes matter: inputs, options, and the value by another road.

The references are written for the eye: plain formulas, or loops over single numbers where the op uses a trick. Every
row is a test of the value, the gradient, strides, dtypes and more in ``test_ops.py``; a new op needs a row here.
"""

import itertools
import math
from dataclasses import dataclass, field

import numpy as np

from minitl import ops


@dataclass(frozen=True)
class Case:
    """``op(*inputs, **options)`` gives ``reference(*inputs, **options)``.

    ``inputs`` are shapes, filled with seeded normal numbers, or arrays. An option that is a function is called for each
    use of the row: a generator that must start anew, an array that the op writes into.
    """

    op: str
    inputs: tuple
    reference: object
    options: dict = field(default_factory=dict)

    def __str__(self):
        sizes = ["x".join(map(str, x.shape if isinstance(x, np.ndarray) else x)) or "number" for x in self.inputs]
        plain = [f"{k}={v}" for k, v in self.options.items() if isinstance(v, bool | int | float | str | tuple)]
        return "-".join([self.op, ",".join(sizes), *plain]).replace(" ", "")

    def arrays(self, xp=np, dtype="float64"):
        """The inputs as new arrays of the library ``xp``; integers stay integers."""
        rng = np.random.default_rng(3)
        host = [x if isinstance(x, np.ndarray) else rng.standard_normal(x) for x in self.inputs]
        return [xp.asarray(x.astype(dtype) if x.dtype.kind == "f" else x.copy()) for x in host]

    def fresh_options(self, xp=np, dtype="float64"):
        """The options for one call."""
        options = {name: value() if callable(value) else value for name, value in self.options.items()}
        for name, value in options.items():
            if isinstance(value, np.ndarray):
                options[name] = xp.asarray(value.astype(dtype) if value.dtype.kind == "f" else value)
        return options

    def expected(self):
        """The reference value, in float64."""
        return np.asarray(self.reference(*self.arrays(), **self.fresh_options()))


# --- references ---


def each(fn):
    """``fn`` of single numbers, applied to every entry."""

    def reference(x, **options):
        y = np.empty_like(x)
        for i in np.ndindex(x.shape):
            y[i] = fn(float(x[i]), **options)
        return y

    return reference


def softmax(x, axis=-1):
    e = np.exp(x)
    return e / e.sum(axis, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x, approximate="tanh"):
    if approximate == "none":
        return x * (1 + math.erf(x / math.sqrt(2))) / 2
    return x / (1 + math.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))  # (1 + tanh u)/2 = sigmoid(2u)


def matmul(x, y):
    return np.einsum("...ij,...jk->...ik", x, y)


def linear(x, W, b=0):
    y = np.zeros((*x.shape[:-1], W.shape[1]))
    for i in range(W.shape[0]):
        y += x[..., i, None] * W[i]
    return y + b


def token_pool(A, x, mean=False):
    B, P, C = x.shape
    S = A.shape[1]
    Z = np.zeros((B, S, C))
    for b, s, p in itertools.product(range(B), range(S), range(P)):
        Z[b, s] += A[b % len(A), s, p] * x[b, p]
    return Z / P if mean else Z


def attention(qkv, b=0, *, num_heads, dropout=0.0, rng=None):
    qkv = qkv + b
    B, N, C = *qkv.shape[:2], qkv.shape[2] // 3
    d, y = C // num_heads, np.zeros((B, N, C))
    keep = np.ones((B, num_heads, N, N))
    if dropout:
        keep = (uniform(rng, keep.shape) >= dropout) / (1 - dropout)
    for b, h in itertools.product(range(B), range(num_heads)):
        q, k, v = (qkv[b, :, part * C + h * d : part * C + (h + 1) * d] for part in range(3))
        for i in range(N):
            weights = softmax(np.array([q[i] @ k[j] / math.sqrt(d) for j in range(N)])) * keep[b, h, i]
            y[b, i, h * d : (h + 1) * d] = sum(weights[j] * v[j] for j in range(N))
    return y


def vector_attention(q, k, v):
    y = np.zeros(q.shape)
    for b, i, c in np.ndindex(q.shape):
        y[b, i, c] = softmax(q[b, i, c] * k[b, :, c]) @ v[b, :, c]
    return y


def layer_norm(x, weight, bias, eps=1e-6):
    y = np.empty_like(x)
    for i in np.ndindex(x.shape[:-1]):
        y[i] = (x[i] - x[i].mean()) / math.sqrt(x[i].var() + eps) * weight + bias
    return y


def batch_norm(x, weight, bias, running_mean, running_var, training=True, momentum=0.1, eps=1e-5):
    y = np.empty_like(x)
    for c in range(x.shape[-1]):
        mean, var = (x[..., c].mean(), x[..., c].var()) if training else (running_mean[c], running_var[c])
        y[..., c] = (x[..., c] - mean) / math.sqrt(var + eps) * weight[c] + bias[c]
    return y


def pair(value):
    return (value, value) if isinstance(value, int) else value


def windows(x, kernel, stride, padding, fill):
    """(b, i, j, window) for each output position, with windows (kh, kw, C) of the padded image."""
    (kh, kw), (sh, sw), (ph, pw) = kernel, stride, padding
    B, H, W, C = x.shape
    image = np.full((B, H + 2 * ph, W + 2 * pw, C), fill)
    image[:, ph : ph + H, pw : pw + W] = x
    out = ((H + 2 * ph - kh) // sh + 1, (W + 2 * pw - kw) // sw + 1)
    for b, i, j in np.ndindex(B, *out):
        yield b, i, j, image[b, i * sh : i * sh + kh, j * sw : j * sw + kw]


def conv2d(x, W, b=None, stride=1, padding=0, groups=1):
    kh, kw, Cg, out = W.shape
    values = {}
    for n, i, j, window in windows(x, (kh, kw), pair(stride), pair(padding), 0.0):
        for o in range(out):
            g = o // (out // groups)
            total = sum(window[u, v, g * Cg + c] * W[u, v, c, o] for u, v, c in np.ndindex(kh, kw, Cg))
            values[n, i, j, o] = total + (0 if b is None else b[o])
    return gather(values)


def pool2d(reduce, fill):
    def reference(x, kernel_size, stride=None, padding=0):
        values, kernel = {}, pair(kernel_size)
        for b, i, j, window in windows(x, kernel, pair(stride or kernel), pair(padding), fill):
            for c in range(x.shape[3]):
                values[b, i, j, c] = reduce(window[:, :, c])
        return gather(values)

    return reference


def gather(values):
    """An array from {index: number}, the last index being the largest."""
    y = np.empty([n + 1 for n in max(values)])
    for index, value in values.items():
        y[index] = value
    return y


def cross_entropy(logits, targets, label_smoothing=0.0):
    B, K = logits.shape
    total = 0.0
    for b in range(B):
        t = np.eye(K)[targets[b]] if targets.ndim == 1 else targets[b]
        t = t * (1 - label_smoothing) + label_smoothing / K
        total -= sum(t[k] * math.log(softmax(logits[b])[k]) for k in range(K))
    return total / B


def binary_cross_entropy(logits, targets):
    p = sigmoid(logits)
    return np.mean(-targets * np.log(p) - (1 - targets) * np.log(1 - p))


def dropped(per_sample=False):
    def reference(x, p, rng=None):
        shape = (len(x),) + (1,) * (x.ndim - 1) if per_sample else x.shape
        return x if p == 0 else np.where(uniform(rng, shape) < p, 0, x / (1 - p))

    return reference


def residual(x, y, b=0, p=0.0, rng=None):
    return x + (dropped(per_sample=True)(y + b, p=p, rng=rng) if p else y + b)


def uniform(rng, shape):
    """The numbers that masks are made of: those of Philox with a key of 64 bits."""
    key = rng.integers(2**64, dtype="uint64")
    return np.random.Generator(np.random.Philox(key=np.array([key, 0], "uint64"))).random(shape, dtype="float32")


# --- values that rows need ---


def normal(*shape, seed=7):
    return np.random.default_rng(seed).standard_normal(shape)


def positive(*shape):
    return 0.3 + np.abs(normal(*shape))


def apart(*shape):
    """Distinct numbers at least 0.1 apart, in random order: a maximum that no small step moves elsewhere."""
    size = math.prod(shape)
    return np.random.default_rng(7).permutation(size).reshape(shape) * 0.1 - 0.05 * size


def generator():
    return np.random.default_rng(11)


def running(training):
    return {"running_mean": lambda: 0.2 * normal(3), "running_var": lambda: positive(3), "training": training}


ROWS = np.array([[2, 0], [0, 2]])  # picks entries twice
MASK = normal(3, 4) > 0
LABELS = np.array([2, 0, 4, 2])
SOFT = softmax(normal(4, 5))  # rows of probabilities
UNEVEN = positive(4, 5)  # rows that do not add up to 1

CASES = [
    # element by element, with every way to broadcast
    Case("add", ((3, 4), (3, 4)), lambda x, y: x + y),
    Case("add", ((2, 3, 4), (3, 1)), lambda x, y: x + y),
    Case("add", ((1, 4), (3, 1)), lambda x, y: x + y),
    Case("sub", ((3, 4), (4,)), lambda x, y: x - y),
    Case("sub", ((1, 1, 4), (2, 3, 1)), lambda x, y: x - y),
    Case("mul", ((3, 4), (3, 4)), lambda x, y: x * y),
    Case("mul", ((2, 1, 4), (3, 1)), lambda x, y: x * y),
    Case("mul", ((3, 4), ()), lambda x, y: x * y),
    Case("div", ((3, 4), positive(3, 4)), lambda x, y: x / y),
    Case("div", ((4,), -positive(3, 1)), lambda x, y: x / y),
    Case("neg", ((3, 4),), lambda x: -x),
    Case("power", ((3, 4),), lambda x, exponent: x * x * x, {"exponent": 3}),
    Case("power", (np.array([0.0, 2.0]),), lambda x, exponent: np.ones(2), {"exponent": 0}),
    Case("power", (positive(3, 4),), lambda x, exponent: np.exp(exponent * np.log(x)), {"exponent": -1.5}),
    Case("power", ((3, 4),), lambda x, exponent: x * x, {"exponent": np.float64(2)}),
    Case("exp", ((3, 4),), each(math.exp)),
    Case("log", (positive(3, 4),), each(math.log)),
    Case("sqrt", (positive(3, 4),), each(math.sqrt)),
    Case("maximum", (apart(3, 4), apart(4) + 0.04), lambda x, y: x + np.where(y > x, y - x, 0)),
    Case("maximum", (apart(3, 1), apart(2, 1, 4) + 0.04), lambda x, y: x + np.where(y > x, y - x, 0)),
    Case("where", ((3, 4), (3, 4)), lambda x, y, condition: x * condition + y * ~condition, {"condition": MASK}),
    Case("where", ((3, 1), (4,)), lambda x, y, condition: x * condition + y * ~condition, {"condition": MASK}),
    # matrix products
    Case("matmul", ((3, 4), (4, 2)), matmul),
    Case("matmul", ((2, 3, 4), (4, 5)), matmul),
    Case("matmul", ((2, 1, 3, 4), (5, 4, 2)), matmul),
    Case("linear", ((3, 4), (4, 5), (5,)), linear),
    Case("linear", ((2, 3, 4), (4, 5)), linear),
    Case("linear", ((4,), (4, 5), (5,)), linear),
    Case("linear_gelu", ((3, 4), (4, 5), (5,)), lambda x, W, b: each(gelu)(linear(x, W, b))),
    Case("linear_gelu", ((2, 3, 4), (4, 5), (5,)), lambda x, W, b: each(gelu)(linear(x, W, b))),
    Case("token_pool", ((2, 3, 6), (2, 6, 4)), token_pool),
    Case("token_pool", ((2, 3, 6), (2, 6, 4)), token_pool, {"mean": True}),
    Case("token_pool", ((1, 3, 6), (2, 6, 4)), token_pool),
    # reductions
    Case("sum", ((2, 3, 4),), lambda x: math.fsum(x.ravel())),
    Case("sum", ((2, 3, 4),), lambda x, axis: x[:, 0] + x[:, 1] + x[:, 2], {"axis": 1}),
    Case(
        "sum",
        ((2, 3, 4),),
        lambda x, axis, keepdims: np.einsum("ijk->j", x).reshape(1, 3, 1),
        {"axis": (0, -1), "keepdims": True},
    ),
    Case("mean", ((2, 3, 4),), lambda x: math.fsum(x.ravel()) / 24),
    Case("mean", ((2, 3, 4),), lambda x, axis: (x[:, 0] + x[:, 1] + x[:, 2]) / 3, {"axis": -2}),
    Case(
        "mean",
        ((2, 3, 4),),
        lambda x, axis, keepdims: np.einsum("ijk->j", x).reshape(1, 3, 1) / 8,
        {"axis": (0, 2), "keepdims": True},
    ),
    Case("max", (apart(2, 3, 4),), lambda x: sorted(x.ravel())[-1]),
    Case("max", (apart(2, 3, 4),), lambda x, axis: np.sort(x, axis)[:, -1], {"axis": 1}),
    Case(
        "max",
        (apart(2, 3, 4),),
        lambda x, axis, keepdims: np.array([[[sorted(x[:, j].ravel())[-1]] for j in range(3)]]),
        {"axis": (0, 2), "keepdims": True},
    ),
    # shapes
    Case("reshape", ((2, 3, 4),), lambda x, shape: np.array([x.ravel()[:12], x.ravel()[12:]]), {"shape": (2, -1)}),
    Case("transpose", ((2, 3, 4),), lambda x: np.einsum("ijk->kji", x)),
    Case("transpose", ((2, 3, 4),), lambda x, axes: np.einsum("ijk->kij", x), {"axes": (2, 0, -2)}),
    Case("getitem", ((3, 4),), lambda x, index: x[1], {"index": 1}),
    Case(
        "getitem",
        ((3, 4),),
        lambda x, index: np.array([x[2, ::2], x[1, ::2]])[:, None],
        {"index": np.s_[:0:-1, None, ::2]},
    ),
    Case(
        "getitem", ((3, 4),), lambda x, index: np.stack([x[i] for i in (2, 0, 0, 2)]).reshape(2, 2, 4), {"index": ROWS}
    ),
    Case(
        "getitem", ((3, 4),), lambda x, index: np.array([x[0, 3], x[0, 3], x[2, 1]]), {"index": ([0, 0, 2], [3, 3, 1])}
    ),
    Case("getitem", ((3, 4),), lambda x, index: np.array([x[i] for i in np.ndindex(3, 4) if MASK[i]]), {"index": MASK}),
    Case("concatenate", ((2, 3), (1, 3), (4, 3)), lambda *xs: np.array([row for x in xs for row in x])),
    Case(
        "concatenate",
        ((2, 1), (2, 3)),
        lambda x, y, axis: np.array([[*a, *b] for a, b in zip(x, y, strict=True)]),
        {"axis": -1},
    ),
    Case("recompute", ((2, 3),), lambda x, fn: np.tanh(x * x), {"fn": lambda: lambda x: ops.tanh(x * x)}),
    # activations
    Case("relu", (apart(3, 4) + 0.04,), each(lambda x: x if x > 0 else 0.0)),
    Case("sigmoid", ((3, 4),), sigmoid),
    Case("tanh", ((3, 4),), lambda x: 2 * sigmoid(2 * x) - 1),
    Case("gelu", ((3, 4),), each(gelu)),
    Case("gelu", ((3, 4),), each(gelu), {"approximate": "none"}),
    Case("gelu", ((),), each(gelu)),
    Case("gelu", ((),), each(gelu), {"approximate": "none"}),
    Case("softmax", ((3, 4),), softmax),
    Case("softmax", ((2, 3, 4),), softmax, {"axis": 1}),
    Case("log_softmax", ((3, 4),), lambda x: np.log(softmax(x))),
    Case("log_softmax", ((2, 3, 4),), lambda x, axis: np.log(softmax(x, axis)), {"axis": 0}),
    # attention and normalisation
    Case("attention", ((2, 5, 18),), attention, {"num_heads": 1}),
    Case("attention", ((2, 5, 18),), attention, {"num_heads": 3}),
    Case("attention", ((2, 5, 12),), attention, {"num_heads": 2, "dropout": 0.4, "rng": generator}),
    Case("attention", ((2, 5, 12), (12,)), attention, {"num_heads": 2}),
    Case("vector_attention", ((2, 5, 4),) * 3, vector_attention),
    Case("vector_attention", ((1, 3, 2),) * 3, vector_attention),
    Case("layer_norm", ((3, 4), (4,), (4,)), layer_norm),
    Case("layer_norm", ((2, 3, 4), (4,), (4,)), layer_norm, {"eps": 0.1}),
    Case("batch_norm", ((5, 3), (3,), (3,)), batch_norm, running(True)),
    Case("batch_norm", ((2, 2, 4, 3), (3,), (3,)), batch_norm, running(True) | {"eps": 0.1}),
    Case("batch_norm", ((2, 2, 4, 3), (3,), (3,)), batch_norm, running(False)),
    # convolution and pooling
    Case("conv2d", ((2, 4, 5, 3), (3, 3, 3, 2)), conv2d, {"padding": 1}),
    Case("conv2d", ((2, 4, 5, 3), (1, 1, 3, 2), (2,)), conv2d),
    Case("conv2d", ((1, 7, 6, 2), (3, 2, 2, 3), (3,)), conv2d, {"stride": (2, 3), "padding": (2, 1)}),
    Case("conv2d", ((2, 5, 4, 6), (3, 3, 2, 9)), conv2d, {"padding": 1, "groups": 3}),
    Case("conv2d", ((1, 4, 4, 3), (3, 3, 1, 3), (3,)), conv2d, {"stride": 2, "padding": 1, "groups": 3}),
    Case("max_pool2d", (apart(2, 4, 6, 2),), pool2d(np.max, -math.inf), {"kernel_size": 2}),
    Case(
        "max_pool2d",
        (apart(1, 5, 6, 2),),
        pool2d(np.max, -math.inf),
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": 1},
    ),
    Case("avg_pool2d", ((2, 4, 6, 2),), pool2d(np.mean, 0.0), {"kernel_size": (2, 3)}),
    Case("avg_pool2d", ((1, 5, 6, 2),), pool2d(np.mean, 0.0), {"kernel_size": 3, "stride": 2, "padding": 1}),
    Case("global_avg_pool", ((2, 3, 4, 5),), lambda x: np.einsum("bhwc->bc", x) / 12),
    Case("global_avg_pool", ((2, 3, 5),), lambda x: np.einsum("bnc->bc", x) / 3),
    # losses
    Case("cross_entropy", ((4, 5), LABELS), cross_entropy),
    Case("cross_entropy", ((4, 5), LABELS), cross_entropy, {"label_smoothing": 0.1}),
    Case("cross_entropy", ((4, 5), SOFT), cross_entropy),
    Case("cross_entropy", ((4, 5), UNEVEN), cross_entropy, {"label_smoothing": 0.2}),
    Case("binary_cross_entropy_with_logits", ((4, 5), sigmoid(normal(4, 5))), binary_cross_entropy),
    # random ops
    Case("dropout", ((3, 4),), dropped(), {"p": 0.4, "rng": generator}),
    Case("dropout", ((3, 4),), dropped(), {"p": 0.0}),
    Case("drop_path", ((6, 2, 3),), dropped(per_sample=True), {"p": 0.4, "rng": generator}),
    Case("drop_path", ((6, 2),), dropped(per_sample=True), {"p": 0.0}),
    Case("residual", ((6, 2, 3), (6, 2, 3), (3,)), residual, {"p": 0.4, "rng": generator}),
    Case("residual", ((6, 2, 3), (6, 2, 3), (3,)), residual),
    Case("residual", ((1, 2, 3), (6, 2, 3)), residual, {"p": 0.4, "rng": generator}),
    Case("residual", ((1, 2, 3), (6, 2, 3), (3,)), residual),
]
