"""``pytest --student FILE``: right answers get all points, wrong ones lose theirs, nothing fools the grader."""

import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_ops

import minitl
from minitl.nn import tokenlearner
from tests.student import grader, marks

ROOT = Path(__file__).resolve().parents[1]
SOFTMAX = """
import numpy as np

def softmax(x, *, axis=-1):
    y = np.exp(x - x.max(axis, keepdims=True))
    y = y / y.sum(axis, keepdims=True)
    return y, lambda dy: y * (dy - (dy * y).sum(axis, keepdims=True))
"""
RELU = "def relu(x):\n    return x * (x > 0), lambda dy: dy * (x > 0)\n"


def grade(tmp_path, source, *options, name="hw.py"):
    """Grade a student's file as a student does; return the exit status, what is printed, and the points as a dict."""
    homework = tmp_path / name
    if source is not None:
        homework.write_bytes(source.encode())
    points = tmp_path / "points.json"
    points.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--student={homework}", f"--json={points}"]
    run = subprocess.run([*command, *options], capture_output=True, text=True, cwd=ROOT)
    return run.returncode, run.stdout + run.stderr, json.loads(points.read_text()) if points.is_file() else None


def plain_forms(folder):
    """Write the package's plain forms as a student would hand them in: one file, and helpers beside it."""
    names = ["activations", "basic", "conv", "linear", "losses", "noise", "norm", "attention"]
    for name in names:
        text = (Path(minitl.__file__).parent / "ops" / f"{name}.py").read_text()
        text = re.sub(r"^from \.\.(\w+) import", r"from minitl.\1 import", text, flags=re.M)
        text = re.sub(r"^from \.(\w+) import", r"from \1 import", text, flags=re.M)
        (folder / f"{name}.py").write_text(re.sub(r"^Tensor\..*\n", "", text, flags=re.M))
    return "".join(f"from {name} import *\n" for name in names)


def test_right_answers_get_all_points(tmp_path):
    code, output, points = grade(tmp_path, "\ufeff" + plain_forms(tmp_path))
    assert code == 0, output
    assert points["points"] == points["of"] > 120
    assert set(points["graded"]) == {*minitl.OPS} - {"recompute"}
    assert points["graded"]["softmax"]["tests"].keys() == {*marks.COLUMNS}


def test_a_right_module_gets_all_points_and_a_wrong_one_does_not(tmp_path):
    source = inspect.getsource(tokenlearner).replace("from .. import ops", "from minitl import ops")
    source = re.sub(r"^from \.\.?(backend) import", r"from minitl.\1 import", source, flags=re.M)
    source = re.sub(r"^from \.(\w+) import", r"from minitl.nn.\1 import", source, flags=re.M)
    code, output, points = grade(tmp_path, source)
    assert code == 0 and set(points["graded"]) == {"TokenLearner", "TokenFuser"}, output
    mean_forgotten = source.replace("mean=mean)", "mean=False)")
    code, output, points = grade(tmp_path, mean_forgotten, "--only=TokenLearner")
    assert code == 1 and points["graded"]["TokenLearner"]["tests"]["value"] == {"passed": 2, "of": 3}, output


BATCH_NORM = """
def batch_norm(x, weight, bias, *, running_mean, running_var, training=True, momentum=0.1, eps=1e-5):
    mean, var, axes = running_mean, running_var, tuple(range(x.ndim - 1))
    if training:
        mean, var, n = x.mean(axes), x.var(axes), x.size // x.shape[-1]
        running_mean += momentum * (mean - running_mean)
        running_var += momentum * (n / (n - 1) * var - running_var)
    std = np.sqrt(var + eps)
    n = (x - mean) / std

    def backward(dy):
        g = dy * weight
        return (g - g.mean(axes) - n * (g * n).mean(axes)) / std if training else g / std, dy * n, dy

    return n * weight + bias, backward
"""
DROPOUT = """
def dropout(x, *, p, rng=None):
    keep = (np.random.default_rng(rng).random(x.shape) >= p).astype(x.dtype) / (1 - p)
    return x * keep, lambda dy: dy * keep
"""
WRONG = {  # an op with a classic mistake, and the points that it keeps
    "softmax": (SOFTMAX.replace("x.max(axis, keepdims=True)", "x.max()"), "3 of 4", "NaN or infinite"),
    "batch_norm": (BATCH_NORM.replace("n / (n - 1) * var", "var"), "3 of 4", "expected"),
    "dropout": (DROPOUT.replace("dy * keep", "dy"), "2 of 3", ""),
    "tanh": (
        "def tanh(x):\n    y = np.tanh(x) * np.float64(1)\n    return y, lambda dy: dy * (1 - y * y)\n",
        "2 of 4",
        "use Python's numbers, such as math.sqrt(d)",
    ),
    "maximum": (
        "def maximum(x, y):\n    return np.maximum(x, y), lambda dy: (dy * (x >= y), dy * (y >= x))\n",
        "2 of 3",
        "gradient, in maximum-3,3",
    ),
    "max": (
        "def max(x, *, axis=None, keepdims=False):\n"
        "    y = x.max(axis, keepdims=True)\n"
        "    return (y if keepdims else y.squeeze(axis)), lambda dy: (x == y) * dy.reshape(y.shape)\n",
        "2 of 3",
        "gradient, in max-2x3",
    ),
    "neg": ("def neg(x):\n    y = x\n    y *= -1\n    return y, lambda dy: -dy\n", "2 of 3", "instead of x *= 2"),
    "sqrt": ("def sqrt(x):\n    y = np.sqrt(x)\n    return y, lambda dy: dy / y\n", "2 of 3", "backward gives"),
    "exp": (
        "def exp(x):\n    y = np.exp(x)[..., None]\n    return y, lambda dy: dy * y\n",
        "0 of 3",
        "the shape is (3, 4",
    ),
    "relu": ("def relu(x):\n    return x * (x > 0)\n", "0 of 3", "an op returns two things"),
}


def test_classic_mistakes_lose_their_points(tmp_path):
    code, output, points = grade(tmp_path, "import numpy as np\n" + "".join(source for source, *_ in WRONG.values()))
    assert code == 1
    for name, (_, kept, said) in WRONG.items():
        entry = points["graded"][name]
        assert f"{entry['points']} of {entry['of']}" == kept, output
        assert said in entry["first_failure"][-1] or said in output, entry
        assert output.count(f"\n{name}, ") == 1  # one failure in full, the others as a number
    assert points["of"] == sum(entry["of"] for entry in points["graded"].values())


def in_ops(monkeypatch, source):
    """Put the functions of a student's source into OPS, in this process."""
    module = {"np": np}
    exec(source, module)
    for name in minitl.OPS.keys() & module.keys():
        monkeypatch.setitem(minitl.OPS, name, module[name])


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("running_mean +=", "running_mean +"),
        ("+= momentum", "+= (1 - momentum)"),
        ("if training:", "if True:"),
        ("n / (n - 1) * var", "var"),
    ],
    ids=["the mean stays", "wrong momentum", "evaluation moves them", "biased"],
)
def test_running_arrays(monkeypatch, right, wrong):
    in_ops(monkeypatch, BATCH_NORM)
    for case in test_ops.STATE:
        test_ops.test_batch_norm_moves_the_running_arrays(case, np)
    in_ops(monkeypatch, BATCH_NORM.replace(right, wrong))
    with pytest.raises(AssertionError):
        for case in test_ops.STATE:
            test_ops.test_batch_norm_moves_the_running_arrays(case, np)


def test_masks_may_be_drawn_in_any_way(monkeypatch):
    case = next(case for case in test_ops.MASKED if case.op == "dropout")
    tests = test_ops.test_dropping_keeps_the_mean, test_ops.test_the_gradient_is_dropped_where_the_value_is
    in_ops(monkeypatch, DROPOUT)
    for test in tests:
        test(case, np)
    for test, right, wrong in zip(tests, (" / (1 - p)", "dy * keep"), ("", "dy"), strict=True):
        in_ops(monkeypatch, DROPOUT.replace(right, wrong))
        with pytest.raises(AssertionError):
            test(case, np)


MISTAKES = [  # the body of relu(x), and what is said when it or its backward is called
    ("x * (x > 0)", "relu returns nothing: end it with `return y, backward`"),
    ("return x * (x > 0)", "an op returns two things, its value and the function backward"),
    ("return x, x, x", "relu returns 3 things"),
    ("return 'x', lambda dy: dy", "the value is str, not an array of numbers"),
    ("return x, lambda dy: print(dy)", "the backward of relu returns nothing: end it with `return dx`"),
    ("return x, lambda dy: (dy, dy)", "returns 2 gradients for 1 inputs"),
    ("x *= 2", r"in line \d+, `.*x \*= 2`: output array is read-only; an op never writes"),
    ("return x[::0], None", r"stops with ValueError in line \d+, `.*return x"),
    ("return np.float64(2) * x, lambda dy: dy", "an array of float64 did that; use Python's numbers"),
    ("return x, lambda dy: dy * np.ones(2)", "a gradient is float64"),
    ("sys.exit(0)", "relu calls sys.exit: remove that line"),
    ("os._exit(0)", r"relu ended its process \(exit code 0\), so it could not be graded"),
    ("os.kill(os.getpid(), 9)", "relu ended its process"),
    ("return np.ones(1 << 33), None", "relu needs more than 4 GiB of memory"),
    (r"os.write(4, b'{}\n'); os._exit(0)", "relu interferes with the grader, so it could not be graded"),
    (r"os.write(4, b'x' * 9); os._exit(0)", "relu ended its process"),
    (
        "y = minitl.ops.relu(x); return y.data, None",
        r"relu runs minitl's own code \(activations.py\): write it yourself",
    ),
    ("return minitl.OPS['relu'](x)", "relu runs minitl's own code"),
    ("return minitl.ops.relu.__wrapped__(x)", "relu runs minitl's own code"),
    ("open(minitl.ops.activations.__file__).read(); return x, None", "relu reads minitl's own code or its tests"),
    ("sys.setprofile(None); return x, None", "relu interferes with the grader"),
]


@pytest.fixture(scope="module")
def clumsy(tmp_path_factory):
    """The process of a file in which each op makes one of the mistakes."""
    path = tmp_path_factory.mktemp("student") / "hw.py"
    ops = [f"def {name}(x): {body}\n" for name, (body, _) in zip(minitl.OPS, MISTAKES, strict=False)]
    path.write_text("import os, sys, minitl\nimport numpy as np\n" + "".join(ops))
    student = grader.Student(path)
    yield student
    student.close()


@pytest.mark.parametrize("i", range(len(MISTAKES)), ids=[body for body, _ in MISTAKES])
def test_a_mistake_is_told_in_a_sentence(clumsy, i):
    name, said = list(minitl.OPS)[i], MISTAKES[i][1]
    x = np.ones(2, "float32")
    x.flags.writeable = False
    for _ in range(1 + ("own" in said)):  # also when Python has cached what was read
        with pytest.raises(grader.Mistake, match=said.replace("relu", name)):
            clumsy.op(name)(x)[1](x)


@pytest.mark.parametrize(
    "source, said",
    [
        (None, "there is no file"),
        ("import sys\nsys.exit(0)\n" + RELU, "calls sys.exit when it is imported: remove that line"),
        ("import os\nprint('1 passed')\nos._exit(0)\n" + RELU, "ended its process (exit code 0)"),
        ("import no_such_module\n", "ModuleNotFoundError in line 1, `import no_such_module`"),
        ("def relu(x)\n", "not valid Python: expected ':', in line 1"),
        ("def sofmax(x):\n    pass\n", "sofmax (did you mean softmax?)"),
        ("from minitl.ops import relu\n", "relu is minitl's own, so it is not graded: write it yourself"),
        ("raise KeyboardInterrupt\n", "KeyboardInterrupt in line 1"),
    ],
    ids=["missing", "exit", "os._exit", "import", "syntax", "typo", "ours", "interrupt"],
)
def test_files_that_cannot_be_graded(tmp_path, source, said):
    if source is not None:
        (tmp_path / "hw.py").write_text(source)
    with pytest.raises(pytest.UsageError, match=re.escape(said)):
        marks.Marks(tmp_path / "hw.py", ["TokenLearner"])


def test_only_and_notes(tmp_path):
    source = SOFTMAX + RELU + "def sofmax(x):\n    return x\n\nprint('printed')\n"
    code, output, points = grade(tmp_path, source, "--only=relu")
    assert code == 0 and list(points["graded"]) == ["relu"] and "printed" not in output
    assert "sofmax (did you mean softmax?)" in output
    code, output, _ = grade(tmp_path, source, "--only=gelu")
    assert code == 4 and "has no gelu" in output


def test_the_clone_is_the_place_of_a_file_without_a_path(tmp_path):
    """``pytest --student hw.py``, as README.md has it."""
    for name in ("tests", "conftest.py", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "minitl").symlink_to(ROOT / "minitl")
    (tmp_path / "hw.py").write_text(RELU)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--student", "hw.py"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0 and "relu" in run.stdout, run.stdout + run.stderr


def test_what_does_not_return_is_called_once(tmp_path):
    (tmp_path / "hw.py").write_text(RELU + "import time\ndef neg(x):\n    time.sleep(600)\n")
    student = grader.Student(tmp_path / "hw.py", seconds=5)
    with pytest.raises(grader.Mistake, match="neg did not return within 5 s: is there an endless loop"):
        student.op("neg")(np.ones(2))
    with pytest.raises(grader.Mistake, match="not called again"):
        student.op("neg")(np.ones(2))
    value, backward = student.op("relu")(np.array([-1.0, 2.0]))  # in a new process
    assert value.tolist() == [0, 2] and backward(np.ones(2))[0].tolist() == [0, 1]
    student.close()


def test_arrays_arrive_with_their_strides(tmp_path):
    (tmp_path / "hw.py").write_text("import numpy as np\ndef neg(x):\n    return np.array(x.strides), lambda dy: dy\n")
    student = grader.Student(tmp_path / "hw.py")
    for x in (np.ones((2, 3, 4)).T, np.arange(12.0)[::-2], np.ones((3, 4))[:, 1:3], np.float32(3) * np.ones(())):
        assert tuple(student.op("neg")(x)[0]) == x.strides
    student.close()
