"""The source of an assignment, a percent file with solutions and hidden tests, and the notebooks that are made of it.

A cell's header says what it is: ``answer="a9-add"``, ``test="a9-add-1" points=3``, ``hidden="a9-add-2" points=2``,
``[markdown] written="a9-q1" points=2``; any other cell is given. In an answer, the lines between ``### BEGIN SOLUTION``
and ``### END SOLUTION`` are the solution; ``forbids="softmax, LayerNorm"`` names what of minitl it must not run, by
default that with the answer's own name, without ``my_``.

Notebooks are the dicts of their JSON. ``teacher`` has everything, ``master`` lacks the solutions and model answers,
``release`` also lacks the hidden tests.
"""

import ast
import copy
import json
import re
from pathlib import Path

from ..errors import InputError, did_you_mean

FOLDER = Path(__file__).resolve().parents[2] / "notebooks" / "assignments"
SOLUTION = re.compile(r"^([ \t]*)### BEGIN SOLUTION[ \t]*\n.*?^[ \t]*### END SOLUTION[ \t]*$", re.M | re.S)
KINDS = ("answer", "test", "hidden", "written")
HIDDEN = "# hidden checks run here at grading ({points} points)"
WRITTEN = "YOUR ANSWER HERE"


def names():
    """Return the names of all assignments, such as "A1_autograd". Raises InputError without a clone."""
    found = sorted(path.stem for path in FOLDER.glob("[A-Za-z]*_*.py"))
    if not found:
        raise InputError(
            f"there are no assignments in {FOLDER}; they are not part of the installed package: clone the repository, "
            "and install it with pip install -e '.[teach]'"
        )
    return found


def find(name):
    """Return the full name of the assignment ``name``, which may be its first part, such as "A1"."""
    found = [full for full in names() if name in (full, full.split("_")[0])]
    if not found:
        raise InputError(f"there is no assignment {name!r}; {did_you_mean(name, names())}")
    return found[0]


def teacher(name):
    """Return the notebook of the assignment ``name`` with solutions and all tests. Raises InputError."""
    import jupytext

    prefix, cells = name.split("_")[0].lower(), []
    for i, read in enumerate(jupytext.read(FOLDER / f"{name}.py").cells):
        marks = dict(read.metadata)
        kind = next((kind for kind in KINDS if kind in marks), "given")
        key = marks.get(kind, f"{prefix}-cell-{i}")
        if not key.startswith(f"{prefix}-"):
            raise InputError(f"{name}: the id {key!r} must start with {prefix}-")
        if (kind == "written") != (read.cell_type == "markdown") and kind != "given":
            raise InputError(f"{name}: {key} is a {read.cell_type} cell, which cannot be marked {kind}")
        cell = {"cell_type": read.cell_type, "id": key, "metadata": {}, "source": read.source}
        cell |= {"execution_count": None, "outputs": []} if read.cell_type == "code" else {}
        cell["metadata"]["minitl"] = about = {"id": key, "kind": kind}
        if kind in ("test", "hidden", "written"):
            about["points"] = int(marks["points"])
        if kind == "answer":
            about["defines"] = bound(read.source, imports=False)
            forbidden = marks.get("forbids", ",".join(n.removeprefix("my_") for n in defined(read.source)))
            about["forbids"] = [n.strip() for n in forbidden.split(",") if n.strip()]
            if not SOLUTION.search(read.source):
                raise InputError(f"{name}: {key} has no lines ### BEGIN SOLUTION and ### END SOLUTION")
        if kind != "given":
            cell["metadata"]["nbgrader"] = _for_nbgrader(key, kind, about)
            cell["metadata"] |= {"deletable": False} | ({"editable": False} if kind in ("test", "hidden") else {})
        cells.append(cell)
    ids = [cell["id"] for cell in cells]
    if twice := {key for key in ids if ids.count(key) > 1}:
        raise InputError(f"{name}: the id {' and '.join(twice)} occurs twice")
    spec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": spec, "language_info": {"name": "python"}, "minitl": {"assignment": name}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _for_nbgrader(key, kind, about):
    graded, solution = kind != "answer", kind in ("answer", "written")
    about = {"points": about["points"]} if graded else {}
    flags = {"grade": graded, "solution": solution, "locked": not solution, "task": False, "schema_version": 3}
    return {"grade_id": key, "cell_type": "markdown" if kind == "written" else "code", **flags, **about}


def master(notebook):
    """Return a teacher's notebook without solutions and model answers: what grades, and what fills gaps."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook["cells"]:
        if kind(cell) == "answer":
            cell["source"] = stub(cell["source"], cell["id"])
        elif kind(cell) == "written":
            cell["source"] = WRITTEN
    return notebook


def release(notebook):
    """Return what students get: a master without hidden tests."""
    notebook = master(notebook)
    for cell in notebook["cells"]:
        about = cell["metadata"]["minitl"]
        if about["kind"] == "hidden":
            cell["source"] = HIDDEN.format(**about)
        about.pop("forbids", None)
    return notebook


def for_nbgrader(notebook):
    """Return a teacher's notebook with nbgrader's markers around hidden tests."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook["cells"]:
        if kind(cell) == "hidden":
            cell["source"] = f"### BEGIN HIDDEN TESTS\n{cell['source']}\n### END HIDDEN TESTS"
    return notebook


def without_markers(notebook):
    """Return a notebook of ``for_nbgrader`` as it was."""
    for cell in notebook["cells"]:
        lines = cell["source"].split("\n")
        if kind(cell) == "hidden" and lines[0] == "### BEGIN HIDDEN TESTS":
            cell["source"] = "\n".join(lines[1:-1])
    return notebook


def stub(source, key):
    """Return an answer without its solution."""
    return SOLUTION.sub(rf'\1raise NotImplementedError("{key}: your code here")', source)


def kind(cell):
    """Return what a cell of a teacher's, master's or release's notebook is: given, answer, test, hidden or written."""
    return cell["metadata"]["minitl"]["kind"]


def points(notebook, *kinds):
    """Return the points of each cell of these kinds, by id."""
    return {c["id"]: c["metadata"]["minitl"]["points"] for c in notebook["cells"] if kind(c) in kinds}


def tasks(notebook):
    """Return which answer each test and each cell with code belongs to: the last one above it, by id."""
    task, found = None, {}
    for cell in notebook["cells"]:
        task = cell["id"] if kind(cell) == "answer" else task
        found[cell["id"]] = task
    return found


def defined(code):
    """Return the names of functions and classes that code defines at its top."""
    return [n.name for n in ast.parse(code).body if isinstance(n, ast.FunctionDef | ast.ClassDef)]


def bound(code, imports=True):
    """Return all names that code binds at its top, with loops and ``imports``. Raises SyntaxError."""
    found = []
    for node in _top(ast.parse(code)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            found.append(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.append(node.id)
        elif isinstance(node, ast.alias) and imports:
            found.append((node.asname or node.name).split(".")[0])
    return list(dict.fromkeys(found))


def _top(node):
    """Yield the nodes below ``node`` that run in its scope."""
    for child in ast.iter_child_nodes(node):
        yield child
        inner = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef
        if not isinstance(child, inner | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            yield from _top(child)


def read(path):
    """Return the notebook in a file. Raises InputError if it is none."""
    try:
        notebook = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
            cell["cell_type"], cell["metadata"] = str(cell["cell_type"]), dict(cell.get("metadata", {}))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{Path(path).name} is not a notebook: {error}") from error
    return notebook


def write(path, notebook):
    """Write a notebook to a new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def files(notebook):
    """Return what lies beside a notebook: lesson.py, what is in the assignments' ``files``, and saved models."""
    text, lessons = "\n".join(cell["source"] for cell in notebook["cells"]), FOLDER.parent
    name = notebook["metadata"]["minitl"]["assignment"]
    found = [lessons / "lesson.py", *sorted((FOLDER / "files" / name).glob("*"))]
    return [*found, *([lessons / "models"] if "load_model" in text else [])]
