"""Checks of the answers to the exercises: ``check(my_softmax)`` for a function, ``check(largest=54)`` for a value.

A check says whether the answer is right, and if not, what was expected, what came, where, and a hint.
"""

import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minitl import Tensor, check_gradients, flops, nn

EXERCISES = {}  # name of an answer -> Exercise
NO_ANSWER = "There is no answer yet: it is None. A function needs a return."


@dataclass
class Exercise:
    """What a right answer is.

    ``expected`` takes the arguments of the answer and returns what it should return: an array, a number, or a tuple of
    them. ``inputs(rng)`` returns a list of tuples of arguments; without it the answer is a value. An answer that is an
    op takes Tensors, and its gradient is checked as well.
    """

    expected: Callable
    hint: str
    inputs: Callable | None = None
    is_op: bool = False


def check(answer=None, **values):
    """Print whether the answer to an exercise is right; if not, what was expected, what came, where, and a hint."""
    [(name, answer)] = values.items() if values else [(getattr(answer, "__name__", answer), answer)]
    if name not in EXERCISES:
        raise ValueError(f"no exercise asks for {name}; keep the name that the exercise gives")
    exercise = EXERCISES[name]
    problem = (_of_function if exercise.inputs else _of_value)(exercise, answer)
    print(f"{name} is not right yet. {problem}\nHint: {exercise.hint}" if problem else f"{name} is right.")


def _of_value(exercise, answer):
    """Return what is wrong with a value, in words that do not give it away, or None."""
    expected = exercise.expected()
    if answer is None or answer is ...:
        return "There is no answer yet."
    if not _difference(expected, answer):
        return None
    if any(np.ndim(value) or np.asarray(value).dtype.kind not in "iuf" for value in (expected, answer)):
        return f"{answer!r} is not the answer."
    return f"{answer} is too {'small' if answer < expected else 'large'}."


def _of_function(exercise, answer):
    """Return what is wrong with a function, in words, or None."""
    plain = exercise.is_op and not hasattr(answer, "__wrapped__")
    for arguments in exercise.inputs(np.random.default_rng(0)):
        for array in arguments:
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
        try:
            if hasattr(answer, "__wrapped__") and answer.__wrapped__(*arguments) is None:
                return NO_ANSWER
            result = answer(*map(Tensor, arguments)) if exercise.is_op else answer(*arguments)
        except Exception as error:
            question = " Is there an @op above it?" if plain else ""
            return f"It stops with {type(error).__name__}: {error}{_line_of(error, answer)}{question}"
        if plain and isinstance(result, tuple):
            return "It returns a value and a backward, so it needs an @op above it."
        result = result.data if isinstance(result, Tensor) else result
        if problem := _difference(exercise.expected(*arguments), result):
            return problem if problem == NO_ANSWER else f"For {', '.join(map(_brief, arguments))}: {problem}"
        if exercise.is_op:
            try:
                check_gradients(answer, *arguments)
            except Exception as error:
                return f"The value is right. The gradient is not: {error}{_line_of(error, answer)}"
    return None


def _difference(expected, got):
    """Return how a result differs from what was expected, in words, or None."""
    if got is None or got is ...:
        return NO_ANSWER
    if isinstance(expected, tuple):
        if not isinstance(got, tuple | list) or len(got) != len(expected):
            count = f"{len(got)} results" if isinstance(got, tuple | list) else _brief(got)
            return f"expected {len(expected)} results, got {count}."
        pairs = enumerate(zip(expected, got, strict=True), 1)
        return next((f"result {i}: {problem}" for i, (e, g) in pairs if (problem := _difference(e, g))), None)
    expected, got = np.asarray(expected), np.asarray(got)
    if expected.shape != got.shape:
        return f"expected shape {expected.shape}, got {got.shape}."
    if {expected.dtype.kind, got.dtype.kind} - set("biuf"):  # words, sets
        return None if (expected == got).all() else f"expected another answer than {got}."
    wrong = ~np.isclose(got, expected, rtol=1e-6, atol=1e-8)
    if not wrong.any():
        return None
    if not expected.ndim:
        return f"expected {expected:.6g}, got {got:.6g}."
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    many = f"{wrong.sum()} of {wrong.size} entries differ"
    return f"at {index} expected {expected[index]:.6g}, got {got[index]:.6g}; {many}."


def _brief(value):
    return f"an array {value.shape}" if isinstance(value, np.ndarray) and value.size > 6 else str(value)


def _line_of(error, answer):
    """Return the line of the answer at which an error arose, in words."""
    cell = inspect.unwrap(answer).__code__.co_filename
    lines = [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.filename == cell]
    return f" (in the line `{lines[-1]}`)" if lines else ""


# --- 00 ---


def _saves(num_tokens):
    """Return whether TokenLearner before the first block costs fewer multiply-adds than all tokens do."""
    spec = nn.DataSpec((32, 32), 3, 8)
    with_all, few = nn.ViTConfig(tokenizer="none"), nn.ViTConfig(version="1.1", num_tokens=num_tokens)
    all_macs, few_macs = (flops.total(flops.count(config, spec)).macs for config in (with_all, few))
    return few_macs < all_macs


EXERCISES["largest"] = Exercise(
    expected=lambda: max(filter(_saves, range(1, 65))),
    hint="compare embed + learner(S) + 2 * block(S) with cost['all 64'] for each S from 1 to 64",
)
EXERCISES["where_to"] = Exercise(
    expected=lambda: "c",
    hint="draw the maps of a few painted images beside the images, and look at the colors where the maps are bright",
)
EXERCISES["same"] = Exercise(
    expected=lambda: 1.0,
    hint="exchange columns with `weight[:, [0, 1]] = weight[:, [1, 0]]`, in a copy of the model, and the biases too",
)

# --- 01 ---


def _matrix_inputs(rng):
    return [(rng.standard_normal((B, d)), rng.standard_normal(d), rng.standard_normal(B)) for B, d in ((4, 3), (2, 5))]


EXERCISES["gradient_of_matrix"] = Exercise(
    expected=lambda X, w, dy: dy[:, None] * w,
    inputs=_matrix_inputs,
    hint="dX has the shape of X, (B, d); its entry (i, k) is a product of one entry of dy and one of w",
)
EXERCISES["shares_backward"] = Exercise(
    expected=lambda x, dy: dy / x.sum() - (dy * x).sum() / x.sum() ** 2,
    inputs=lambda rng: [(1 + rng.random(n), rng.standard_normal(n)) for n in (7, 9)],
    hint="x_i reaches every y_j through s; each of them hands dy_j on, times the slope of y_j with respect to s",
)
EXERCISES["arrivals"] = Exercise(
    expected=lambda: 2**20,
    hint="how many paths lead from the last node to the first when there are 1, 2 and 3 additions?",
)

# --- 02 ---

EXERCISES["axes_of_b"] = Exercise(
    expected=lambda: (0, 2),
    hint="write the shapes under each other, aligned on the right; b is repeated where it has no axis, or length 1",
)
EXERCISES["my_logsumexp"] = Exercise(
    expected=lambda x: x.max(1) + np.log(np.exp(x - x.max(1, keepdims=True)).sum(1)),
    inputs=lambda rng: [(rng.standard_normal((3, 4)),), (1000 * rng.standard_normal((4, 5)),)],
    hint="under @autograd.op; dx is dy times a softmax; subtract the largest entry of each row before exp",
    is_op=True,
)

# --- 03 ---


def _tubelets(clips, tubelet, size):
    B, T, height, width, _ = clips.shape
    starts = [(t, h, w) for t in range(0, T, tubelet) for h in range(0, height, size) for w in range(0, width, size)]
    parts = [clips[:, t : t + tubelet, h : h + size, w : w + size].reshape(B, -1) for t, h, w in starts]
    return np.stack(parts, axis=1)


EXERCISES["my_tubelets"] = Exercise(
    expected=_tubelets,
    inputs=lambda rng: [(rng.random((2, 6, 8, 20, 3)), 3, 4), (rng.random((1, 4, 6, 4, 1)), 1, 2)],
    hint="split time, row and column; bring the three numbers of the tubelet to the front, the others behind them",
)
EXERCISES["my_tied"] = Exercise(
    expected=lambda x, W: x @ W @ W.T,
    inputs=lambda rng: [(rng.standard_normal((5, 4)), rng.standard_normal((4, 3)))],
    hint="W is used twice, so its gradient is a sum of two products, each of the shape of W",
    is_op=True,
)
EXERCISES["tokens_factor"] = Exercise(lambda: 4, hint="how many small patches fit into a large one?")
EXERCISES["entries_factor"] = Exercise(lambda: 1 / 2, hint="W has a row for each number of a patch, C columns")
EXERCISES["work_factor"] = Exercise(lambda: 2, hint="N times the numbers of a patch times C")

# --- 04 ---

EXERCISES["my_log_softmax"] = Exercise(
    expected=lambda x: x - np.logaddexp.reduce(x, axis=-1, keepdims=True),
    inputs=lambda rng: [(rng.standard_normal((2, 3, 4)),), (np.array([[1000.0, 0.0, -1000.0], [-1e3, -1e3, -1e3]]),)],
    hint="subtract the largest entry before exp, never take the log of a softmax; each score changes all results",
    is_op=True,
)
EXERCISES["my_rms_norm"] = Exercise(
    expected=lambda x: x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6),
    inputs=lambda rng: [(1 + 3 * rng.standard_normal((2, 3, 5)),), (0.1 * rng.standard_normal((2, 4)),)],
    hint="r is one number for each token and depends on all its entries, so its slope is part of dx",
    is_op=True,
)
EXERCISES["equal_at"] = Exercise(lambda: 6 * 768, hint="attention has 4 N C², each layer of the MLP N · C · 4C")

# --- 05 ---


def _squared_error(x, t):
    e = np.exp(x - x.max(1, keepdims=True))
    return ((e / e.sum(1, keepdims=True) - t) ** 2).sum() / len(x)


EXERCISES["squared_error"] = Exercise(
    expected=_squared_error,
    inputs=lambda rng: [(rng.standard_normal((3, 5)), np.eye(5)[[1, 4, 1]]), (800 * np.eye(2, 4), np.eye(4)[[3, 1]])],
    hint="subtract the largest logit of each row; dL is a factor of both gradients; each p depends on all x of its row",
    is_op=True,
)
EXERCISES["times_larger"] = Exercise(
    expected=lambda: (1 - 0.9) / (1 - 0.999) ** 0.5,
    hint="write down m and v after one step from 0, and both step sizes; g cancels in their ratio",
)
EXERCISES["parameters_of_block"] = Exercise(
    expected=lambda: nn.EncoderBlock(48, 3, 96).num_parameters(),
    hint="two LayerNorms with a weight and a bias each, and four linear layers: C to 3C, C to C, C to M, M to C",
)

# --- 06 ---


def _causal_conv(x, K):
    y = np.zeros((*x.shape[:2], K.shape[2]))
    for n, i in np.ndindex(x.shape[1], 3):
        if n >= i:
            y[:, n] += x[:, n - i] @ K[i]
    return y


EXERCISES["places_that_change"] = Exercise(
    expected=lambda: 25,
    hint="one convolution of 3 x 3 passes a change on by one place in each direction, also diagonally; there are four",
)
EXERCISES["causal_conv"] = Exercise(
    expected=_causal_conv,
    inputs=lambda rng: [(rng.standard_normal((2, 5, 3)), rng.standard_normal((3, 3, 4)))],
    hint="put two zeros before the first token, K[0] sees the token itself; add up dx where the parts overlap",
    is_op=True,
)
EXERCISES["multiply_adds_of_maps"] = Exercise(
    expected=lambda: flops.learner(nn.ViTConfig(), 64, 8, 48).macs - flops.pooling(64, 8, 48).macs,
    hint="a product of (N, C) and (C, S) takes N C S multiply-adds; a convolution of 3 x 3 is nine such products",
)

# --- 07 ---


def _warm_pool(logits, x, tau):
    e = np.exp((logits - logits.max(-1, keepdims=True)) / tau)
    return e / e.sum(-1, keepdims=True) @ x


EXERCISES["logits_and_weights"] = Exercise(
    expected=lambda: (1, 64),
    hint="the MLP works at one place; the softmax divides by a sum over all places",
)
EXERCISES["idle_array"] = Exercise(
    expected=lambda: "mlp.fc2.bias",
    hint="which array adds the same number to the logits of all places of a map?",
)
EXERCISES["warm_pool"] = Exercise(
    expected=_warm_pool,
    inputs=lambda rng: [
        (rng.standard_normal((2, 7, 5)), rng.standard_normal((2, 5, 4)), 0.5 + rng.random((7, 1))),
        (900 + rng.standard_normal((1, 8, 6)), rng.standard_normal((1, 6, 3)), 0.5 + rng.random((8, 1))),
    ],
    hint="let u = logits / tau: du is the gradient of softmax_pool; then dlogits = du / tau, dtau = -du logits / tau²",
    is_op=True,
)

# --- 08 ---

EXERCISES["reducing_block"] = Exercise(
    expected=lambda N, S, C, M: 4 * N * C**2 + 2 * N**2 * C + 2 * S * C * M,
    inputs=lambda rng: [(64, 8, 48, 96), (10, 3, 7, 5)],
    hint="attention and the layer behind its heads come before the reduction, the MLP after it",
)


def _keep_and_fuse(received, x, S):
    kept, rest = np.split(np.argsort(-received), [S - 1])
    return np.concatenate([x[kept], np.average(x[rest], axis=0, weights=received[rest])[None]])


EXERCISES["keep_and_fuse"] = Exercise(
    expected=_keep_and_fuse,
    inputs=lambda rng: [(rng.random(N), rng.standard_normal((N, 3)), S) for N, S in ((7, 4), (12, 1), (5, 5))],
    hint="S - 1 tokens stay and one is made of all others; its weights are their attention, divided by its sum",
)
EXERCISES["blocks_needed"] = Exercise(expected=lambda: 3, hint="each block can at most halve what it gets")

# --- 09 ---


def _soft_fuse(y, x, V):
    e = np.exp(x @ V - (x @ V).max(-1, keepdims=True))
    return x + e / e.sum(-1, keepdims=True) @ y


EXERCISES["first_to_learn"] = Exercise(
    expected=lambda: ("mix.weight", "mix_norm2.bias"),
    hint="M = 0 makes Y' and dŶ = M dU zero; go through the formulas that contain them, and keep the order of the list",
)
EXERCISES["soft_fuse"] = Exercise(
    expected=_soft_fuse,
    inputs=lambda rng: [
        (rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 5, 4)), rng.standard_normal((4, 3))),
        (rng.standard_normal((1, 4, 3)), 300 * rng.standard_normal((1, 5, 3)), rng.standard_normal((3, 4))),
    ],
    hint="the last axis of x V is the tokens; dx is do, plus what comes back from x V",
    is_op=True,
)
EXERCISES["reproject_cost"] = Exercise(
    expected=lambda N, C, S: flops.reproject(nn.ViTConfig(), 1, N, S, C).macs,
    inputs=lambda rng: [(64, 48, 8), (196, 30, 7)],
    hint="four linear layers, two of them at the places and two at the tokens; then scores and weighted sums",
)


# --- 10 ---
def _average_precision(score, target):
    precisions = [target[score >= score[i]].mean() for i in np.flatnonzero(target)]
    return np.mean(precisions)


EXERCISES["my_average_precision"] = Exercise(
    expected=_average_precision,
    inputs=lambda rng: [
        (np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([1, 0, 1, 1, 0])),
        (np.array([2.0, 1.0, 2.0, 1.0, 1.0, 3.0]), np.array([0, 1, 1, 0, 0, 0])),
        (np.zeros(4), np.array([0, 1, 0, 0])),
        (rng.integers(5, size=30).astype(float), rng.integers(2, size=30)),
    ],
    hint="for each hit, take the clips with score >= its own score; the precision is the mean of their targets",
)
EXERCISES["swap"] = Exercise(
    expected=lambda: [1, 0, 3, 2, 5, 4, 7, 6, 8, 9],
    hint="think of each motion as a film of eight pictures and read them from the last to the first",
)
EXERCISES["affordable"] = Exercise(
    expected=lambda: 64,
    hint="the price depends on the number of tokens alone: set it equal for both and solve for T",
)

# --- 11 ---
EXERCISES["my_avg_pool"] = Exercise(
    expected=lambda x: (x[:, ::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, ::2] + x[:, 1::2, 1::2]) / 4,
    inputs=lambda rng: [(rng.standard_normal((2, 4, 6, 3)),), (rng.standard_normal((3, 2, 8, 1)),)],
    hint="split H into (H/2, 2) and W into (W/2, 2); each of the four entries of a window gets a quarter of its dy",
    is_op=True,
)
EXERCISES["fold"] = Exercise(
    expected=lambda W, w, b, mean, var: (W * (w / np.sqrt(var + 1e-5)), b - mean * (w / np.sqrt(var + 1e-5))),
    inputs=lambda rng: [
        (rng.standard_normal((3, 8)), *rng.standard_normal((3, 8)), rng.random(8)),
        (rng.standard_normal((2, 2)), *rng.standard_normal((3, 2)), np.array([0, 1e-5])),
    ],
    hint="write w (x W - mean) / sqrt(var + eps) + b, and collect what is multiplied by x and what is not",
)

# --- 12 ---


def patients():
    """Return the maps (S, H, W) of five models, one of them healthy, for the same image."""
    S, H, W = 8, 8, 8
    rng = np.random.default_rng(12)
    h, w = np.ogrid[:H, :W]
    peaks = rng.uniform(2, 6, (S, 2))[..., None, None]
    logits = -((h - peaks[:, 0]) ** 2 + (w - peaks[:, 1]) ** 2) / 3 + rng.standard_normal((S, H, W)) / 3
    e = np.exp(logits)
    maps = e / e.sum((1, 2), keepdims=True)
    return {
        "P": e / e.sum(0),
        "Q": np.repeat(maps[:1], S, axis=0),
        "R": maps.transpose(1, 2, 0).reshape(S, H, W),
        "T": 1 / (1 + np.exp(-20 * (logits + 2))),
        "U": maps,
    }


EXERCISES["diagnosis"] = Exercise(
    expected=lambda: ("wrong axis", "equal", "reshape", "saturated", "healthy"),
    hint="a softmax leaves sums of 1 along its axis; a reshape keeps the sum of all maps, not that of each",
)


def _masked_softmax(x, mask):
    e = np.where(mask, np.exp(np.minimum(x - np.where(mask, x, -1e9).max(-1, keepdims=True), 0)), 0)
    return e / np.maximum(e.sum(-1, keepdims=True), 1)


EXERCISES["masked_softmax"] = Exercise(
    expected=_masked_softmax,
    inputs=lambda rng: [
        (rng.standard_normal((2, 3, 4)), np.array([[1, 1, 0, 1], [0, 1, 0, 0], [1, 1, 1, 1]], bool)),
        (np.array([[1000.0, 999, -1000], [-1000, -1001, 2000]]), np.array([[1, 1, 1], [1, 1, 0]], bool)),
        (np.ones((2, 3)), np.array([[0, 0, 0], [1, 0, 1]], bool)),
    ],
    hint="-inf minus -inf is NaN, and so is 0 / 0; take the maximum over the entries that count",
)
