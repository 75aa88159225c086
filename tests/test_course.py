"""``minitl course``: a release without solutions, repairs, a grader that gets to the end, one score in all outputs.

`minitl course test` tries the assignments themselves. What needs nbgrader is skipped here without it.
"""

import ast
import copy
import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import minitl
from minitl.autograd import PLAIN
from minitl.errors import InputError

NEEDED = "grading notebooks needs jupytext and IPython: pip install 'minitl[test]'"
for library in ("jupytext", "IPython"):
    pytest.importorskip(library, reason=NEEDED)

from minitl.teach import (  # noqa: E402
    core,
    course,
    gradebook,
    handout,
    outputs,
    source,
    submission,
    trial,
)

NAME = "A1_autograd"
nbgrader = pytest.mark.skipif(not gradebook.installed(), reason="needs nbgrader: pip install 'minitl[teach]'")
teacher = source.teacher(NAME)
master, release = source.master(teacher), source.release(teacher)
SOLUTION = {  # as a student would write it
    cell["id"]: "\n".join(line for line in cell["source"].split("\n") if "### " not in line)
    for cell in teacher["cells"]
    if source.kind(cell) == "answer"
}
ORDER = "a1-order"


def handed_in(**answers):
    """A notebook that a student hands in, with the solution but for the answers given."""
    notebook = copy.deepcopy(release)
    for cell in notebook["cells"]:
        cell["source"] = {**SOLUTION, **{f"a1-{k}": text for k, text in answers.items()}}.get(
            cell["id"], cell["source"]
        )
    return notebook


def at(notebook, key):
    return next(i for i, cell in enumerate(notebook["cells"]) if cell["id"] == key)


def changed(key, change, **answers):
    """A notebook with a change of its cells: ``change(cells, place of key)``."""
    notebook = handed_in(**answers)
    change(notebook["cells"], at(notebook, key))
    return notebook


def copy_cell(cells, i):
    cells.insert(i + 1, copy.deepcopy(cells[i]))


def copy_and_try(cells, i):
    copy_cell(cells, i)
    cells[i + 1]["source"] = cells[i + 1]["source"].replace("found[::-1]", "found")


def split_cell(cells, i):
    copy_cell(cells, i)
    cut = cells[i]["source"].index("def my_matmul")
    cells[i]["source"], cells[i + 1]["source"] = cells[i]["source"][:cut], cells[i]["source"][cut:]


def retype(cells, i):
    cells[i]["cell_type"] = "markdown"


def delete(cells, i):
    del cells[i]


def edit(cells, i):
    cells[i]["source"] = "print('all good')"


def lose_labels(cells, _):
    for cell in cells:
        cell["metadata"] = {}
        del cell["id"]


# --- sources and what is made of them ---


@pytest.mark.parametrize("name", source.names())
def test_a_release_has_no_solution(name):
    made = source.teacher(name)
    text = json.dumps(source.release(made), ensure_ascii=False)
    assert trial.secrets(made)
    for line in trial.secrets(made):
        assert f'"{json.dumps(line, ensure_ascii=False)[1:-1]}' not in text.replace(r"\n", '"')
    for cell in made["cells"]:
        if source.kind(cell) in ("hidden", "written"):
            assert json.dumps(cell["source"], ensure_ascii=False)[1:-1] not in text
    for marker in ("BEGIN SOLUTION", "END SOLUTION", "HIDDEN TESTS", "Rubric", "forbids"):
        assert marker not in text


@nbgrader  # which stands for the environment of the teacher and of CI: pip builds the wheel
def test_the_wheel_has_no_solution(tmp_path):
    root, folder = Path(minitl.__file__).parents[1], tmp_path / "clone"
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, folder)
    for name in ("minitl", "notebooks/assignments", "tests/student"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, folder], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        text = "\n".join(archive.read(name).decode(errors="replace") for name in names)
    assert "minitl/teach/core.py" in names
    assert not [name for name in names if "assignments" in name or name.endswith(".ipynb")]
    for name in source.names():
        marks = [cell["id"] for cell in source.teacher(name)["cells"] if source.kind(cell) != "given"]
        assert marks and not [key for key in marks if f'"{key}"' in text]


def test_bad_sources_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "FOLDER", tmp_path)
    with pytest.raises(InputError, match="clone the repository"):
        source.names()
    for text, problem in {
        '# %% answer="b-1"\n### BEGIN SOLUTION\nx = 1\n### END SOLUTION\n': "must start with a9-",
        '# %% answer="a9-1"\nx = 1\n': "no lines ### BEGIN SOLUTION",
        '# %% test="a9-1" points=1\nx = 1\n\n# %% hidden="a9-1" points=1\nx = 2\n': "occurs twice",
        '# %% written="a9-1" points=1\nx = 1\n': "is a code cell",
    }.items():
        (tmp_path / "A9_x.py").write_text(text)
        with pytest.raises(InputError, match=problem):
            source.teacher("A9_x")
    with pytest.raises(InputError, match="no assignment 'A8'"):
        source.find("A8")


def test_build_never_overwrites(tmp_path):
    folder = tmp_path / "course"
    list(course.build(folder, ["A1"]))
    assert {path.name for path in (folder / "release" / NAME).iterdir()} == {f"{NAME}.ipynb", "lesson.py", "AGENTS.md"}
    assert source.read(folder / "release" / NAME / f"{NAME}.ipynb") == release
    assert course.masters(folder) == {NAME: master}  # through nbgrader's markers and back
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="exists already"):
        list(course.build(folder, ["A1"]))
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(InputError, match="is not the folder of a course"):
        course.masters(tmp_path)


# --- repairs ---


@pytest.mark.parametrize(
    "key, change, remark, kept",
    [
        (ORDER, copy_cell, "the first of its 2 changed cells is graded", True),
        (ORDER, copy_and_try, "the first of its 2 changed cells is graded", True),
        ("a1-ops", split_cell, "its 2 cells are graded as one", True),
        (ORDER, retype, "changed to another type of cell; it is graded as code", True),
        (ORDER, delete, "was deleted; it has no points", False),
        ("a1-order-1", delete, "deleted; the copy of the teacher runs", True),
        ("a1-order-1", edit, "was changed; the copy of the teacher runs", True),
        ("a1-order-2", edit, "was changed; the copy of the teacher runs", True),
        ("a1-q1", delete, "was deleted; it is blank", True),
        (ORDER, lose_labels, "the cell that defines walk_order is graded", True),
    ],
)
def test_what_students_do_to_cells_is_repaired_and_named(key, change, remark, kept):
    restored, remarks = submission.restore(master, changed(key, change))
    assert any(remark in text for text in remarks), remarks
    cells = {cell["id"]: cell for cell in restored["cells"]}
    assert {cell["id"] for cell in master["cells"]} <= cells.keys()
    for cell in master["cells"]:
        wanted = cell["source"]
        if cell["id"] in SOLUTION and (kept or cell["id"] != key):
            wanted = SOLUTION[cell["id"]]
        assert ast.dump(parsed(cells[cell["id"]], cell)) == ast.dump(parsed({**cell, "source": wanted}, cell))


def parsed(cell, like):
    assert cell["cell_type"] == like["cell_type"]
    return ast.parse(cell["source"] if cell["cell_type"] == "code" else "")


def test_an_untouched_copy_does_not_win():
    def add_stub(cells, i):
        copy_cell(cells, i)
        cells[i]["source"] = release["cells"][at(release, ORDER)]["source"]

    restored, _ = submission.restore(master, changed(ORDER, add_stub))
    assert restored["cells"][at(restored, ORDER)]["source"] == SOLUTION[ORDER]


def test_nothing_is_said_of_a_proper_notebook():
    restored, remarks = submission.restore(master, handed_in())
    assert remarks == [] and len(restored["cells"]) == len(master["cells"])


def test_own_cells_stay_where_they_were():
    def add(cells, i):
        cells.insert(i, {"cell_type": "code", "id": "x", "metadata": {}, "source": "helper = 1\n%time 1"})

    restored, remarks = submission.restore(master, changed(ORDER, add))
    assert remarks == [] and restored["cells"][at(restored, ORDER) - 1]["source"].startswith("helper")


def test_syntax_errors_name_the_line():
    _, remarks = submission.restore(master, handed_in(order="def walk_order(loss):\n    return [loss"))
    assert remarks == ["a1-order is not valid Python: '[' was never closed, in line 2"]


# --- the grader ---


def test_the_solution_has_all_points_and_what_fails_loses_only_its_own():
    """In one notebook: a right answer, one that replaces a checker, one handed on, one that exits, and a wrong one."""
    notebook = handed_in(
        order="import os\n\ndef walk_order(loss):\n    os._exit(0)",
        ops="def my_mul(x, z):\n    return x * z, None\n\ndef my_matmul(x, W):\n    return minitl.OPS['matmul'](x, W)",
        unbroadcast="np.allclose = lambda *a, **k: True\nsum = 3\nunbroadcast = lambda dy, shape: np.zeros(shape)",
    )
    result = core.grade(master, notebook, source.files(master))
    points = {key: most for key, most in result.of.items() if key.startswith(("a1-accumulate", "a1-numeric"))}
    assert {key: value for key, value in result.points.items() if value} == points, result.messages
    for remark in (
        "a1-order-1 ended the process",
        "runs minitl's own matmul: write it yourself",
        "a1-unbroadcast replaces numpy.allclose",
    ):
        assert any(remark in text for text in result.remarks), result.remarks
    assert result.written == {"a1-q1": 1, "a1-q2": 1}


def test_endless_loops_and_processes_that_end():
    """A cell that does not return is left out, and so is what belongs to it; the rest is graded."""

    def cell(key, text, kind="test", task="t"):
        return {"id": key, "kind": kind, "task": task, "source": text, "defines": [], "forbids": []}

    cells = [
        cell("given", "kept = 5", "given", None),
        cell("before", "assert kept == 5", task="s"),
        cell("loop", "while True: pass"),
        cell("same", "pass"),
        cell("exit", "import os; os._exit(3)", task="u"),
        cell("after", "assert kept == 5\nprint('here')", task="v"),
    ]
    outcomes, remarks = core.run(cells, seconds=2)
    assert {key: outcome["error"] is None for key, outcome in outcomes.items()} == {
        **dict.fromkeys(["given", "before", "after"], True),
        **dict.fromkeys(["loop", "same", "exit"], False),
    }
    assert outcomes["after"]["outputs"][0]["text"] == "here\n"
    assert outcomes["same"]["error"][1].startswith("not run: loop did not return within 2 s")
    assert remarks == [
        "loop did not return within 2 s: is there an endless loop?",
        "exit ended the process that runs the notebook, so it could not be graded",
    ]


def test_a_worker_that_cannot_start_is_no_fault_of_the_student(monkeypatch):
    monkeypatch.setattr(core, "apart", lambda: [sys.executable, "-c", "raise SystemExit('no room')"])
    with pytest.raises(RuntimeError, match="cannot start: no room"):
        core.grade(master, handed_in())


# --- outputs ---


def fixed_result():
    of = {"a1-order-1": 2, "a1-order-2": 1}
    written, visible = {"a1-q1": 1}, {"a1-order-1"}
    return core.Result(
        {"a1-order-1": 2, "a1-order-2": 0}, of, {"a1-order-2": "expected 3"}, written, visible, ["a remark"]
    )


def test_gradescope_and_classroom50():
    made = outputs.gradescope(fixed_result(), 1.25)
    assert [(t["score"], t["max_score"], t["status"], t["visibility"]) for t in made["tests"]] == [
        (2, 2, "passed", "visible"),
        (0, 1, "failed", "after_published"),
    ]
    assert made["tests"][1]["output"] == "expected 3" and "a1-q1: up to 1 points by hand" in made["output"]
    made = outputs.classroom50(fixed_result(), {"CLASSROOM": "ml", "USERNAME": "ada", "COMMIT_URL": "c"})
    assert (made["schema"], made["score"], made["max-score"]) == ("classroom50/result/v1", 2, 3)
    assert (made["classroom"], made["owner"], made["review"]) == ("ml", "ada", "c")
    assert "expected 3" not in outputs.as_markdown(fixed_result())  # of a hidden test


def test_the_table_of_points(tmp_path):
    rows = [course.row(name, NAME, fixed_result()) for name in ("Ada Ångström, jr", "=cmd()")]
    course.write_table(tmp_path / "grades.csv", rows)
    with open(tmp_path / "grades.csv", encoding="utf-8-sig", newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["student"] for row in read] == ["Ada Ångström, jr", "'=cmd()"]
    assert read[0]["points"] == "2" and read[0]["of"] == "3" and read[0]["written (by hand)"] == ""
    with pytest.raises(FileExistsError):
        course.write_table(tmp_path / "grades.csv", rows)


def test_a_handout_compiles_and_gives_no_gradient_away():
    text = handout.handout(PLAIN)
    names = [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    assert names == [*PLAIN]
    assert "y = A v,  A = softmax(S)" in text and "dq =" not in text and "dx" not in text
    with pytest.raises(InputError, match="did you mean softmax"):
        handout.handout(["sofmax"])


def test_the_zip_for_gradescope(tmp_path):
    made = outputs.bundle("gradescope", "A1", tmp_path)
    assert made.name == f"{NAME}-gradescope.zip" and [*tmp_path.iterdir()] == [made]
    with zipfile.ZipFile(made) as archive:
        names = archive.namelist()
        assert {"setup.sh", "run_autograder", "master.ipynb", "lesson.py", "minitl/pyproject.toml"} <= {*names}
        assert archive.getinfo("run_autograder").external_attr >> 16 & 0o100
        assert len(archive.read("setup.sh").splitlines()) <= 10
        assert "### BEGIN SOLUTION" not in archive.read("master.ipynb").decode()
    with pytest.raises(InputError, match="exists already"):
        outputs.bundle("gradescope", "A1", tmp_path)


# --- with nbgrader: a class, and all outputs of all wrong answers ---

STUDENTS = {  # name -> (notebook, points lost, what is said)
    "Ada Right": (handed_in(), 0, ""),
    "Bo Blank": (release, 16, ""),
    "Cy Copied": (changed("a1-ops", copy_cell), 0, "copied or split"),
    "Di Deleted": (changed("a1-order-1", delete), 0, "deleted"),
    "Ed Syntax": (handed_in(order="def walk_order(loss:\n"), 3, "is not valid Python"),
    "Fay Loop": (
        handed_in(numeric="def numeric_gradient(f, x, h=1):\n    while True:\n        pass"),
        2,
        "endless loop",
    ),
    "Gus sys.exit": (handed_in(order="import sys\nsys.exit(0)"), 3, "calls sys.exit"),
    "Hal os._exit": (handed_in(order="import os\nos._exit(0)"), 3, "ended the process"),
    "Ida Forks": (handed_in(order="import os\nwhile True:\n    os.fork()"), 3, "starts a copy of its process"),
    "Jon Shell": (
        handed_in(order="import os\nfor _ in range(50):\n    os.system('sleep 99 &')"),
        3,
        "starts other programs",
    ),
    "Kim Output": (handed_in(order="while True:\n    print('x' * 100_000)"), 3, "prints more than 1,000,000"),
    "Lea Stderr": (
        handed_in(order=f"import sys, warnings\nwarnings.warn('!')\nprint(1, file=sys.stderr)\n{SOLUTION[ORDER]}"),
        0,
        "",
    ),
    "Max Memory": (handed_in(order="np.ones(1 << 29) + 1"), 3, "more than 4 GiB"),
    # what it kills is only itself, or nothing at all where it has a space of its own for processes
    "Ned Kills": (handed_in(order="import os\nos.kill(os.getppid(), 9)\nos.kill(0, 9)"), 3, ""),
    "Oda Replaces": (
        handed_in(numeric="np.allclose = lambda *a, **k: True\nnumeric_gradient = lambda f, x, h=1: x"),
        2,
        "replaces numpy.allclose",
    ),
    "Pam Hands On": (handed_in(unbroadcast="from minitl.autograd import unbroadcast"), 4, "minitl's own"),
    "Quin Retyped": (changed(ORDER, retype), 0, "another type"),
    "Rob File": (handed_in(order="open('big', 'wb').write(bytes(20 << 20))"), 3, "OSError"),
    "Sue No Labels": (changed(ORDER, lose_labels), 0, "the cell that defines"),
    "Tim Edits": (changed("a1-order-1", edit, order="def walk_order(loss):\n    return []"), 3, "was changed"),
    "Uma Nothing": (None, 16, "nothing was handed in"),
    "Vic No Notebook": ("oops", 16, "is not a notebook"),
}


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """The folder of a course whose students did all sorts of things, graded."""
    folder = tmp_path_factory.mktemp("class") / "course"
    list(course.build(folder, ["A1"]))
    for student, (notebook, _, _) in STUDENTS.items():
        target = folder / "submitted" / student / NAME
        target.mkdir(parents=True)
        if notebook is not None:
            text = notebook if isinstance(notebook, str) else json.dumps(notebook)
            (target / f"{NAME}.ipynb").write_text(text, encoding="utf-8")
    before = {path: path.read_bytes() for path in (folder / "submitted").rglob("*.ipynb")}
    checked, lines = list(course.check(folder)), list(course.grade(folder, seconds=8))
    assert {path: path.read_bytes() for path in (folder / "submitted").rglob("*.ipynb")} == before
    with open(folder / "grades.csv", encoding="utf-8-sig", newline="") as file:
        return folder, checked, lines, {row["student"]: row for row in csv.DictReader(file)}


@nbgrader
@pytest.mark.parametrize("student", STUDENTS)
def test_each_has_a_mark_and_a_reason(graded, student):
    _, _, lines, rows = graded
    _, lost, said = STUDENTS[student]
    if student == "Rob File" and os.name != "posix":
        pytest.skip("this system does not limit the size of files")
    assert int(rows[student]["points"]) == 16 - lost, rows[student]
    assert said in rows[student]["remarks"] and any(line.startswith(student) for line in lines)


@nbgrader
def test_check_names_student_and_cell(graded):
    _, checked, _, _ = graded
    assert f"Ed Syntax, {NAME}: a1-order is not valid Python: '(' was never closed, in line 1" in checked
    assert not [line for line in checked if line.startswith("Ada Right")]


@nbgrader
def test_gradebook_and_feedback(graded):
    folder, _, _, rows = graded
    with gradebook._gradebook(folder) as book:
        for student, row in rows.items():
            found = book.find_submission(NAME, student)
            assert (found.score, found.max_score, found.needs_manual_grade) == (int(row["points"]), 18, True)
        grade = book.find_grade("a1-q1", NAME, NAME, "Ada Right")
        grade.manual_score, grade.needs_manual_grade = 1, False
        book.db.commit()
    list(course.feedback(folder))
    pages = {path.parent.parent.name: path.read_text() for path in (folder / "feedback").glob("*/*/*.html")}
    assert pages.keys() == STUDENTS.keys()
    assert "Score: 17.0 / 18.0" in pages["Ada Right"]
    assert "replaces numpy.allclose" in pages["Oda Replaces"]
    assert "BEGIN SOLUTION" not in "".join(pages.values())


@nbgrader
@pytest.mark.parametrize("name", source.names())
def test_all_outputs_have_the_same_points(name, tmp_path):
    """And the assignment is as intended: solution, release and wrong answers."""
    faults, _, results = trial.trial(name)
    assert faults == []
    made = source.master(source.teacher(name))
    for i, result in enumerate(results.values()):
        points = {test["name"]: test["score"] for test in outputs.gradescope(result)["tests"]}
        assert points == result.points
        assert {t["test-name"]: t["score"] for t in outputs.classroom50(result, {})["tests"]} == result.points
        gradebook.record(tmp_path, f"student {i}", name, made, result)
    with gradebook._gradebook(tmp_path) as book:
        for i, result in enumerate(results.values()):
            assert book.find_submission(name, f"student {i}").score == result.total


@nbgrader
def test_the_services_grade_as_the_course_does(tmp_path):
    """The commands that Gradescope, Classroom 50 and pytest run, and nbgrader's own, on one notebook."""
    wrong = {key: text for _, answers, _ in trial.stored(NAME)[3::4] for key, text in answers.items()}
    notebook = handed_in(**{key.removeprefix("a1-"): text for key, text in wrong.items()})
    here = core.grade(master, notebook, source.files(master))
    assert 0 < here.total < here.most
    source.write(tmp_path / "in" / f"{NAME}.ipynb", notebook)
    for kind, file, score in (("gradescope", "results.json", "score"), ("classroom50", "result.json", "score")):
        made = outputs.bundle(kind, "A1", tmp_path)
        folder = tmp_path / f"{kind}-run"
        if kind == "gradescope":
            zipfile.ZipFile(made).extractall(folder)
        else:
            made.rename(folder)
        command = [sys.executable, "grade.py", kind, tmp_path / "in", tmp_path]
        subprocess.run(command, cwd=folder, check=True, env={**os.environ, "PYTHONPATH": str(folder / "minitl")})
        tests = json.loads((tmp_path / file).read_text())["tests"]
        assert [test[score] for test in tests] == [*here.points.values()], kind
    folder = outputs.bundle("pytest", "A1", tmp_path)
    source.write(folder / f"{NAME}.ipynb", notebook)
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            folder,
            folder,
            "--junitxml",
            tmp_path / "x.xml",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(minitl.__file__).parents[1])},
    )
    passed = sum(points > 0 for points in here.points.values())
    assert f"{len(here.points) - passed} failed, {passed} passed" in run.stdout, run.stdout
