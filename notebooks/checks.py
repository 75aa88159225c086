"""Checks of the answers to the exercises: ``check(my_softmax)`` for a function, ``check(largest=54)`` for a value.

A check says whether the answer is right, and if not, what was expected, what came, where, and a hint.
"""

import traceback
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minitl import Tensor, check_gradients

EXERCISES = {}  # name of an answer -> Exercise


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
    [(name, answer)] = values.items() if values else [(answer.__name__, answer)]
    if name not in EXERCISES:
        raise ValueError(f"no exercise asks for {name}; keep the name that the exercise gives")
    exercise = EXERCISES[name]
    problem = (_of_function if exercise.inputs else _of_value)(exercise, answer)
    print(f"{name} is not right yet. {problem}\nHint: {exercise.hint}" if problem else f"{name} is right.")


def _of_value(exercise, answer):
    """Return what is wrong with a value, in words that do not give it away, or None."""
    expected = exercise.expected()
    if not (problem := _difference(expected, answer)) or answer is None or answer is ...:
        return problem
    if isinstance(expected, str) or not np.isscalar(answer) or isinstance(answer, str):
        return f"{answer!r} is not the answer."
    return f"{answer} is too {'small' if answer < expected else 'large'}."


def _of_function(exercise, answer):
    """Return what is wrong with a function, in words, or None."""
    for arguments in exercise.inputs(np.random.default_rng(0)):
        for array in arguments:
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
        given = [Tensor(a) for a in arguments] if exercise.is_op else arguments
        try:
            result = answer(*given)
        except Exception as error:
            return f"It stops with {type(error).__name__}: {error}{_line_of(error)}"
        result = result.data if isinstance(result, Tensor) else result
        if problem := _difference(exercise.expected(*arguments), result):
            return f"For {', '.join(map(_brief, arguments))}: {problem}"
        if exercise.is_op:
            try:
                check_gradients(answer, *arguments)
            except Exception as error:
                return f"The value is right. The gradient is not: {error}{_line_of(error)}"
    return None


def _difference(expected, got):
    """Return how a result differs from what was expected, in words, or None."""
    if got is None or got is ...:
        return "There is no answer yet: it is None. A function needs a return."
    if isinstance(expected, tuple):
        if not isinstance(got, tuple) or len(got) != len(expected):
            count = f"{len(got)} results" if isinstance(got, tuple) else _brief(got)
            return f"expected {len(expected)} results, got {count}."
        pairs = enumerate(zip(expected, got, strict=True), 1)
        return next((f"result {i}: {problem}" for i, (e, g) in pairs if (problem := _difference(e, g))), None)
    expected, got = np.asarray(expected), np.asarray(got)
    if expected.shape != got.shape:
        return f"expected shape {expected.shape}, got {got.shape}."
    if expected.dtype.kind in "US" or got.dtype.kind not in "biuf":
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


def _line_of(error):
    """Return the line of the answer at which an error arose, in words."""
    lines = [frame.line for frame in traceback.extract_tb(error.__traceback__) if "ipykernel" in frame.filename]
    return f" (in the line `{lines[-1]}`)" if lines else ""


# --- 00 ---

# --- 01 ---

# --- 02 ---

# --- 03 ---

# --- 04 ---

# --- 05 ---

# --- 06 ---

# --- 07 ---

# --- 08 ---

# --- 09 ---


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
