"""The tools of the course, and what can be said of each lesson without running it.

`python notebooks/build.py --fast` runs the lessons themselves, with the answers to their exercises.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest

import minitl.autograd
from minitl import data, no_grad
from minitl.autograd import op

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
sys.path.insert(0, str(FOLDER))
JUPYTER = "the course needs jupytext, nbclient, ipykernel and codespell: pip install 'minitl[test]'"
for name in ("jupytext", "nbclient", "ipykernel", "codespell_lib"):
    pytest.importorskip(name, reason=JUPYTER)
MODULES = "build", "checks", "lesson", "make_curves", "make_map", "proofread"
build, checks, lesson, make_curves, make_map, proofread = map(pytest.importorskip, MODULES)
Exercise = checks.Exercise

# --- each lesson and page ---


@pytest.mark.parametrize("source", build.sources(), ids=lambda source: source.stem)
def test_a_lesson_has_no_faults(source):
    assert proofread.faults(source) == []


@pytest.mark.parametrize("page", sorted(FOLDER.glob("*.md")), ids=lambda page: page.name)
def test_a_page_has_no_faults(page):
    assert proofread.faults_of_page(page) == []


def test_each_notebook_has_a_source():
    assert [source.stem for source in build.sources()] == sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def test_the_table_of_the_course():
    """It lists the notebooks there are, and says what their headers say."""
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    course = make_map.lessons()
    assert make_map.table(course) in page, "run python notebooks/make_map.py"
    notebooks = [path.name for path in sorted(FOLDER.glob("[0-9]*.ipynb"))]
    assert re.findall(r"^\| \[\d\d\]\((.*?)\) \|", page, re.M) == notebooks
    weeks = [
        int(number) for row in re.findall(r"^\| \d \| (\d.*?) \|", page, re.M) for number in re.findall(r"\d\d", row)
    ]
    assert (min(weeks), max(weeks)) == (0, 12)


def test_the_map_of_the_course():
    """Each lesson is a box in one of the columns, and each arrow leads from one that is needed to the next."""
    course = make_map.lessons()
    places = " ".join(make_map.PARTS.values()).split()
    assert len(set(places)) == len(places) and course.keys() <= set(places)
    (ax,) = make_map.draw(course).axes
    texts = "\n".join(text.get_text() for text in ax.texts)
    for number, one in course.items():
        assert number in texts and one.title.split()[-1] in texts and one.needs == [n for n in one.needs if n < number]
    assert len(ax.patches) == len(course)
    assert len(ax.texts) == len(make_map.PARTS) + 3 * len(course) + len(make_map.arrows(course))  # an arrow is a text


def test_arrows_that_follow_from_others_are_left_out():
    needs = {"01": [], "02": ["01"], "03": ["01", "02"], "04": ["01"], "05": ["01", "03", "04", "99"]}
    course = {n: make_map.Lesson(f"{n}.ipynb", n, "title", "goal", 1, 1, of) for n, of in needs.items()}
    assert make_map.arrows(course) == [("01", "02"), ("02", "03"), ("01", "04"), ("03", "05"), ("04", "05")]


def test_a_header_that_lacks_something(tmp_path):
    (tmp_path / "03_maps.ipynb").touch()
    header = GOOD.replace("| maps |", "| see maps |").replace("an hour", "5 minutes to read, 2 seconds to run")
    (tmp_path / "03_maps.py").write_text(header)
    (one,) = make_map.lessons(tmp_path).values()
    assert (one.title, one.goal, one.minutes, one.seconds) == ("Maps", "see maps", 5, 2)
    (tmp_path / "03_maps.py").write_text(header.replace("to read", ""))
    with pytest.raises(ValueError, match=r"03_maps\.py needs a header"):
        make_map.lessons(tmp_path)


def test_models():
    """They load, are small, and those that lessons load exist."""
    files = {file.stem: file for file in (FOLDER / "models").glob("*.safetensors")}
    text = "\n".join(source.read_text(encoding="utf-8") for source in build.sources())
    used = set(re.findall(r'"((?:learner|grid|static|all|late)-[\w-]+)"', text))
    assert files and used == files.keys()
    sizes = [file.stat().st_size for file in files.values()]
    assert max(sizes) <= 200_000 and sum(sizes) <= 1_000_000
    test = data.sample(np.random.default_rng(0), 200)
    for name in files:
        model, meta = lesson.load_model(name)
        with no_grad():
            logits = model(data.normalize(test.images, meta["mean"], meta["std"])).data
        least = 0.1 if name in ("grid-8", "grid-16", "static-8") else 0.9
        assert logits.dtype == np.float32 and (logits.argmax(1) == test.labels).mean() > least, name


def test_curves(tmp_path, monkeypatch):
    """Each names the commands that made it, and a lesson shows it."""
    text = "\n".join(source.read_text(encoding="utf-8") for source in build.sources())
    commands = {name: f"minitl train {options}" for name, options in make_curves.OPTIONS.items()}
    commands |= {name: "; ".join(f"minitl ablate {k}" for k in kinds) for name, kinds in make_curves.ABLATIONS.items()}
    for file in make_curves.FOLDER.glob("*.csv"):
        command, columns = lesson.load_curve(file.stem)
        accuracies = columns["accuracy" if "accuracy" in columns else "test_accuracy"]
        assert command == commands[file.stem] and f'"{file.stem}"' in text
        assert 0.1 < min(accuracies) < max(accuracies) < 1
    monkeypatch.setattr(make_curves, "FOLDER", tmp_path)
    make_curves.store("x", ["train x"], [{"epoch": 1, "accuracy": 0.5, "seconds": 7}])
    assert (tmp_path / "x.csv").read_text() == "# minitl train x\nepoch,accuracy\n1,0.5\n"


# --- proofread.py: a lesson without faults, and one change for each kind of fault ---

PART = f"""
# %% [markdown]
# ## Part
#
# {"A map follows the object wherever it goes. " * 16}

# %%
assert np.pi > 3
"""
GOOD = """\
# %% [markdown]
# # 03 · Maps
#
# Where they are drawn: [the map](map.md).
#
# | **Goal** | maps |
# | **Time** | an hour |
# | **You need** | NumPy |

# %%
import numpy as np
"""
EXERCISE = """
# %%
two = None
check(two=two)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# check(two=2)
# ```
#
# </details>
"""
GOOD += 10 * PART + 2 * EXERCISE
GOOD += """
# %% [markdown]
# ## What you can do now
#
# - Read a map.
#
# **Next:** again, [the map](map.md).
"""
ASSERT = "assert np.pi > 3\n"
CHECK = "two = None\ncheck(two=two)\n"
FOLDED = "```python\n# check(two=2)\n# ```"


def picture(alt):
    return nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo="}, metadata={"image/png": {"alt": alt}})


def lesson_in(folder, text):
    """Write a lesson to a folder; return its file, and its notebook as a kernel would have filled it."""
    source = folder / "03_maps.py"
    source.write_text(text, encoding="utf-8")
    (folder / "map.md").touch()
    notebook = build.notebook(source)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, 1):
        cell.execution_count = count
    for cell in code[2:12]:
        cell.outputs = [picture("a map that follows an object")]
    return source, notebook


def add(output):
    return lambda notebook: notebook.cells[4].outputs.append(output)


def remove_pictures(notebook):
    for cell in notebook.cells[8:14]:
        cell.outputs = []


def swap_counts(notebook):
    notebook.cells[1].execution_count, notebook.cells[2].execution_count = 2, 1


FAULTS = {  # what is wrong -> what the proofreader says, and a replacement in the text or a change of the notebook
    "misspelling": ("thier ==> their", ("Where they", "Where thier")),
    "British spelling": ("colour ==> color", ("an hour", "a colour")),
    "dead link": ("links to plan.md, which is not there", ("(map.md)", "(plan.md)")),
    "insecure link": ("links to http:", ("(map.md)", "(http://map.org)")),
    "picture in a text without words": ("picture map.md has no alternative text", ("[the map]", "![map]")),
    "drawn picture without words": ("cell 4 has a picture without alternative text", add(picture(""))),
    "long cell": ("a cell has 31 lines, more than 30", (ASSERT, ASSERT * 31)),
    "long plotting cell": ("a plotting cell has 9 lines, more than 8", (ASSERT, "lesson.bars({})\n" + ASSERT * 8)),
    "long cells": ("the median code cell has 11 lines", (ASSERT, ASSERT * 11, -1)),
    "few words": (r"\d+ words; 900 to 2200", ("follows the object wherever it goes", "moves", -1)),
    "many words": (r"\d+ words; 900 to 2200", ("wherever", "and no other, without a word of help, wherever", -1)),
    "few cells": ("21 cells; 25 to 50", (PART, "", 3)),
    "many cells": ("51 cells; 25 to 50", (PART, "\n# %%\nx = 1\n" * 24 + PART)),
    "no picture for long": (r"a picture at least every 6 cells; they are at \[4, 6, 14", remove_pictures),
    "not run in order": ("not run once and in order", swap_counts),
    "error": (
        "cell 4 ends in ValueError: no",
        add(nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])),
    ),
    "stderr": (
        "cell 4 prints to stderr: slow",
        add(nbformat.v4.new_output("stream", name="stderr", text="slow")),
    ),
    "large": ("larger than 500 kB", add(nbformat.v4.new_output("stream", name="stdout", text="x" * 500_000))),
    "source changed": (r"the .py and the .ipynb differ at cells \[2\]", lambda nb: nb.cells[2].update(source="x = 1")),
    "foreign import": ("it imports matplotlib", ("import numpy", "import matplotlib.pyplot, numpy")),
    "foreign import from": ("it imports scipy", ("import numpy as np", "from scipy.special import erf")),
    "wrong number": ("title does not start with '# 03 · '", ("# 03 ·", "# 04 ·")),
    "no goal": ("the header lacks .*Goal", ("**Goal**", "Goal")),
    "no time": ("the header lacks .*Time", ("**Time**", "Time")),
    "no conditions": ("the header lacks .*You need", ("**You need**", "You need")),
    "no summary": ("the last cell is not", ("## What you can do now", "## The end")),
    "no next lesson": ("the last cell is not", ("**Next:**", "Next:")),
    "one exercise": ("1 folded answers; there are 2 or 3", (EXERCISE, "")),
    "exercise without check": ("1 cells call check.., for 2 folded answers", (CHECK, "two = 2\n")),
    "answer without check": ("a folded answer does not end with its check", (FOLDED, "2")),
    "few asserts": ("fewer than 4 asserts", (ASSERT, "x = 1\n", 7)),
}


def test_a_good_lesson_has_no_faults(tmp_path):
    source, notebook = lesson_in(tmp_path, GOOD)
    nbformat.validate(notebook)
    assert proofread.faults(source, notebook) == []
    assert proofread.faults(source) == [f"there is no 03_maps.ipynb; {proofread.REBUILD}"]
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    assert proofread.faults(source) == []


@pytest.mark.parametrize(("said", "change"), FAULTS.values(), ids=FAULTS)
def test_proofreading_sees_a_fault(said, change, tmp_path, monkeypatch):
    """That one, and no other."""
    if "==>" not in said:
        monkeypatch.setattr(proofread, "spelling", lambda file: [])  # a process for each row costs seconds
    old, new, count = ("", "", 0) if callable(change) else (*change, 1)[:3]
    assert old in GOOD
    source, notebook = lesson_in(tmp_path, GOOD.replace(old, new, count))
    if callable(change):
        change(notebook)
    found = proofread.faults(source, notebook)
    assert len(found) == 1 and re.search(said, found[0]), found


@pytest.mark.parametrize(
    ("text", "said"),
    [("[here](plan.md)", "plan.md"), ("![map](map.md)", "no alternative"), ("A colour.", "==> color")],
)
def test_proofreading_sees_the_faults_of_a_page(text, said, tmp_path):
    (tmp_path / "map.md").write_text(text)
    (found,) = proofread.faults_of_page(tmp_path / "map.md")
    assert said in found


# --- checks.py ---

SAMPLES = {
    "sample_number": Exercise(lambda: 54, "count again"),
    "sample_text": Exercise(lambda: "sigmoid", "look at the slope"),
    "sample_set": Exercise(lambda: {"q", "k"}, "two names"),
    "sample_row": Exercise(lambda: np.arange(4.0), "it is a row"),
    "sample_function": Exercise(lambda x: x.sum(0), "sum over rows", lambda rng: [(rng.random((3, 2)),)]),
    "sample_pair": Exercise(lambda x: (x.max(), x + 1), "two results", lambda rng: [(rng.random((3, 2)),)]),
    "sample_op": Exercise(lambda x: x * x, "the slope is 2 x", lambda rng: [(rng.standard_normal((3, 2)),)], True),
}
VALUES = [name for name, exercise in (checks.EXERCISES | SAMPLES).items() if not exercise.inputs]
FUNCTIONS = [name for name, exercise in (checks.EXERCISES | SAMPLES).items() if exercise.inputs]


@pytest.fixture(autouse=True)
def registers(monkeypatch):
    """The samples are exercises, and ops of a test are forgotten after it."""
    monkeypatch.setattr(checks, "EXERCISES", checks.EXERCISES | SAMPLES)
    for register in ("OPS", "PLAIN"):
        monkeypatch.setattr(minitl.autograd, register, dict(getattr(minitl.autograd, register)))


def said(capsys, *answer, **values):
    """What a check prints."""
    checks.check(*answer, **values)
    return capsys.readouterr().out


def each(change, result):
    """A result, or each of several, with a change."""
    return tuple(each(change, r) for r in result) if isinstance(result, tuple) else change(np.asarray(result))


def answer_of(name, change=lambda result: result, factor=1.0):
    """An answer made of the expected function, with a ``change`` of what it returns, or gradients off by ``factor``."""
    expected = checks.EXERCISES[name].expected

    def answer(*arguments):
        return change(expected(*arguments))

    def answer_with_gradient(*arrays):
        def backward(dy):
            return tuple(factor * d for d in numeric(expected, arrays, dy))

        value = change(expected(*arrays))
        return None if value is None else (value, backward)

    chosen = answer_with_gradient if checks.EXERCISES[name].is_op else answer
    chosen.__name__ = name
    return op(chosen) if checks.EXERCISES[name].is_op else chosen


def numeric(fn, arrays, dy):
    """The gradient with respect to each array, by finite differences."""
    grads = [np.zeros_like(array) for array in arrays]
    for i, array in enumerate(arrays):
        for index in np.ndindex(array.shape):
            step = np.zeros_like(array)
            step[index] = 1e-5
            up, down = (fn(*arrays[:i], array + s, *arrays[i + 1 :]) for s in (step, -step))
            grads[i][index] = (dy * (up - down)).sum() / 2e-5
    return grads


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_right_function_is_right(name, capsys):
    assert said(capsys, answer_of(name)) == f"{name} is right.\n"


WRONG = {
    "none": lambda result: None,
    "shape": lambda result: each(lambda a: a[None], result),
    "0.1 % more": lambda result: each(lambda a: "a guess" if a.dtype.kind == "U" else a * 1.001, result),
    "permuted": lambda result: each(lambda a: np.roll(a.ravel(), 1).reshape(a.shape), result),
}


@pytest.mark.parametrize("change", WRONG)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_wrong_function_is_not_right(name, change, capsys):
    exercise = checks.EXERCISES[name]
    results = [exercise.expected(*arguments) for arguments in exercise.inputs(np.random.default_rng(0))]
    if all(repr(WRONG[change](result)) == repr(each(np.copy, result)) for result in results):
        pytest.skip("there is nothing to permute in a number")
    text = said(capsys, answer_of(name, WRONG[change]))
    assert text.startswith(f"{name} is not right yet.") and text.endswith(f"\nHint: {exercise.hint}\n")
    assert ("no answer yet" if change == "none" else "expected") in text


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if (checks.EXERCISES | SAMPLES)[name].is_op])
def test_a_wrong_gradient_is_not_right(name, capsys):
    text = said(capsys, answer_of(name, factor=1.001))
    assert "The value is right. The gradient is not: input 0" in text and "finite differences" in text
    assert text.endswith(f"\nHint: {checks.EXERCISES[name].hint}\n")


@pytest.mark.parametrize("name", VALUES)
def test_a_value_is_not_given_away(name, capsys):
    exercise = checks.EXERCISES[name]
    value = exercise.expected()
    assert said(capsys, **{name: value}) == f"{name} is right.\n"
    large = 123456.5
    for wrong in (None, ..., "a guess", large, -large, (large, large), [large], np.full(np.shape(value), large)):
        text = said(capsys, **{name: wrong})
        problem, hint = text.split("\nHint: ")
        assert problem.startswith(f"{name} is not right yet. ") and hint == f"{exercise.hint}\n"
        assert not re.search(rf"(?<![\d.]){re.escape(str(value))}(?!\.?\d)", problem)


def test_a_value_is_too_small_or_too_large(capsys):
    assert "54.054 is too large." in said(capsys, sample_number=54.054)
    assert "53 is too small." in said(capsys, sample_number=53)
    assert "'softmax' is not the answer." in said(capsys, sample_text="softmax")
    assert "True is not the answer." in said(capsys, sample_number=True)
    assert "no answer yet" in said(capsys, sample_number=...)


def test_an_answer_that_stops_names_its_line(capsys):
    def sample_function(x):
        return x / undefined  # noqa: F821

    assert "NameError: name 'undefined'" in (text := said(capsys, sample_function))
    assert "(in the line `return x / undefined  # noqa: F821`)\nHint: sum over rows" in text


def test_an_answer_that_changes_its_input(capsys):
    def sample_function(x):
        x += 1
        return x.sum(0)

    assert "read-only (in the line `x += 1`)" in said(capsys, sample_function)


def test_ops_that_are_not_there_yet(capsys):
    @op
    def sample_op(x): ...

    assert "no answer yet" in said(capsys, sample_op)

    def sample_op(x):
        return np.square(x), lambda dy: 2 * x * dy

    assert "Is there an @op above it?" in said(capsys, sample_op)

    def sample_op(x):
        return x * x, lambda dy: 2 * x * dy

    assert "it needs an @op above it" in said(capsys, sample_op)

    @op
    def sample_op(x):
        return x * x, lambda dy: 2 * dy

    assert "The gradient is not: input 0" in said(capsys, sample_op)


@pytest.mark.parametrize(("answer", "values"), [((len,), {}), ((54,), {}), ((), {"largets": 54})])
def test_unknown_names(answer, values):
    with pytest.raises(ValueError, match=r"no exercise asks for (len|54|largets); keep the name"):
        checks.check(*answer, **values)


# --- the first cell ---


def run_first_cell():
    """Run it as Jupyter does, where ``await`` may stand outside of functions."""
    coroutine = eval(compile(build.FIRST_CELL, "cell", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), {})
    with pytest.raises(StopIteration):
        coroutine.send(None)


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """Colab, in an empty folder, with a pip that does nothing; returns a list whose entries answer the question."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pip").write_text('#!/bin/sh\ntest "$*" = "install -q ./minitl"\n')
    (tmp_path / "bin" / "pip").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    (tmp_path / "content").mkdir()
    monkeypatch.chdir(tmp_path / "content")
    answers = []
    monkeypatch.setattr("builtins.input", lambda question: answers.pop())
    return answers


def test_the_first_cell_does_nothing_in_a_clone(monkeypatch):
    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr(os, "system", None)
    run_first_cell()
    monkeypatch.setitem(sys.modules, "google.colab", sys)  # nor in Colab, when it is run again
    run_first_cell()
    assert Path.cwd() == FOLDER


def test_the_first_cell_fetches_the_course_in_colab(colab, tmp_path):
    def git(*arguments):
        author = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", *author, *arguments], check=True, capture_output=True, cwd=tmp_path)

    (tmp_path / "work" / "notebooks").mkdir(parents=True)
    (tmp_path / "work" / "notebooks" / "lesson.py").touch()
    git("init", "-q", "work")
    git("-C", "work", "add", ".")
    git("-C", "work", "commit", "-qm", "the course")
    git("clone", "-q", "--bare", "work", "bare.git")
    colab.append(str(tmp_path / "bare.git"))
    run_first_cell()
    assert Path.cwd() == tmp_path / "content" / "minitl" / "notebooks" and Path("lesson.py").is_file()


def test_the_first_cell_with_a_wrong_address(colab, tmp_path, capfd):
    colab.append(str(tmp_path / "nothing.git"))
    with pytest.raises(SystemExit, match="could not be fetched; check the address and run this cell again"):
        run_first_cell()
    assert Path.cwd() == tmp_path / "content"


def test_the_first_cell_installs_minitl_in_the_browser(monkeypatch):
    installed = []

    class Piplite:
        async def install(self, name):
            installed.append(name)

    monkeypatch.setitem(sys.modules, "piplite", Piplite())
    monkeypatch.setattr(sys, "platform", "emscripten")
    run_first_cell()
    assert installed == ["minitl"]


# --- lesson.py ---


@pytest.mark.parametrize(
    ("draw", "arguments"),
    [
        (lesson.images, ({"image": [np.zeros((4, 4, 3)), np.ones((4, 4, 3))], "map": [np.eye(4)]},)),
        (lesson.curves, ({"loss": (range(3), [3, 2, 1]), "other": (range(3), [3, 3, 3])}, "step", "loss")),
        (lesson.bars, ({"8 learned": 0.9, "grid": 0.2}, "accuracy")),
        (lesson.matrices, ({"A": np.eye(2), "B": np.ones((2, 2))}, "to", "from")),
        (lesson.graph, ([("x", "y"), ("y", "L"), ("x", "L")],)),
    ],
)
def test_drawing(draw, arguments, monkeypatch):
    shown = []
    monkeypatch.setattr(lesson, "display", shown.append)
    draw(*arguments, alt="what can be seen")
    (image,) = shown
    assert image.data.startswith(b"\x89PNG") and image.alt == "what can be seen"


def test_each_drawing_function_is_proofread():
    own = {name for name, thing in vars(lesson).items() if getattr(thing, "__module__", "") == "lesson"}
    assert {name for name in own if not name.startswith(("_", "load_"))} == proofread.DRAW


# --- build.py ---

TINY = """\
# %% [markdown]
# # 03 · Two

# %%
import checks

checks.EXERCISES["two"] = checks.Exercise(lambda: 2, "count")
two = None
checks.check(two=two)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# checks.check(two=2)
# ```
#
# </details>
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Jupyter's own, not ours
@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ((), []),
        ((("two = None", "1 / 0"),), ["ZeroDivisionError"]),
        (
            (
                ("import checks", "import checks, sys\n\nprint('slow', file=sys.stderr)"),
                ("two = None", "two = 2"),
                ("check(two=2)", "check(two=3)"),
            ),
            [
                "cell 2 prints to stderr: slow",
                "approve of a folded answer: two is not",
                "cell 2 is approved of without",
            ],
        ),
    ],
    ids=["good", "stops", "wrong"],
)
def test_rehearsal(changes, found, tmp_path):
    text = TINY
    for old, new in changes:
        text = text.replace(old, new)
    (tmp_path / "03_two.py").write_text(text)
    problems = build.rehearse(build.notebook(tmp_path / "03_two.py"))
    assert len(problems) == len(found)
    assert all(said in problem for said, problem in zip(found, problems, strict=True)), problems
