"""What students hand in: the cells of the assignment found again, and repaired where they were changed by accident."""

import ast
import copy

from ..errors import InputError
from . import source

COPIED = "was copied or split"


def restore(master, submitted):
    """Return a notebook with the teacher's cells, the student's answers and additional cells, and remarks in words.

    Every cell that is not an answer is the teacher's. A student's own cells stay after the cell that they followed.
    """
    known = {cell["id"]: cell for cell in master["cells"]}
    found, own, here, remarks = {}, {}, None, []
    for cell in submitted["cells"]:
        key = id_of(cell)
        answers = key in known and source.kind(known[key]) in ("answer", "written")
        if key in known and (answers or key not in found):
            found.setdefault(key, []).append(cell)
            here = key
        elif cell["cell_type"] == "code":
            own.setdefault(here, []).append(cell)
    _relabel(known, found, own, remarks)
    cells = []
    for key, cell in known.items():
        kind, cell = source.kind(cell), copy.deepcopy(cell)
        if kind in ("answer", "written") and key in found:
            cell["source"] = _answer(cell, found[key], remarks)
        elif kind != "given":
            _compare(cell, found.get(key), remarks)
        cells += [cell, *(_own(cell["id"], i, c) for i, c in enumerate(own.get(key, [])))]
    if deleted := [key for key, cell in known.items() if key not in found and source.kind(cell) in ("test", "hidden")]:
        remarks.append(f"{', '.join(deleted)} deleted; the copy of the teacher runs")
    first = [_own("start", i, c) for i, c in enumerate(own.get(None, []))]
    for cell in first + cells:
        wrong = _wrong_syntax(cell)
        if wrong and source.kind(cell) in ("answer", "own"):
            place = cell["id"] if source.kind(cell) == "answer" else f"an own cell, {cell['id']},"
            remarks.append(f"{place} is not valid Python: {wrong}")
    return {**copy.deepcopy(master), "cells": first + cells}, remarks


def find(path, name, master, but=None):
    """Return the notebook that a student handed in for an assignment, or None, and remarks in words."""
    files = (
        [path] if path.is_file() else sorted(p for p in path.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    )
    ids, fitting, remarks = {cell["id"] for cell in master["cells"]}, [], []
    for file in files:
        if but is not None and file.resolve() == but:
            continue
        try:
            notebook = source.read(file)
        except (InputError, OSError) as error:
            if name in file.stem or file.parent.name == name:
                remarks.append(str(error))
            continue
        if file.stem == name or any(id_of(cell) in ids for cell in notebook["cells"]):
            fitting.append((file.stem == name, file.stat().st_mtime, file.name, notebook))
    if len(fitting) > 1:
        remarks.append(f"{len(fitting)} notebooks fit; {max(fitting, key=lambda f: f[:3])[2]} is graded")
    return (max(fitting, key=lambda f: f[:3])[3] if fitting else None), remarks


def id_of(cell):
    """Return the label of a cell, or None."""
    about, graded = cell["metadata"].get("minitl"), cell["metadata"].get("nbgrader")
    for owner, name in ((about, "id"), (graded, "grade_id"), (cell, "id")):
        if isinstance(owner, dict) and isinstance(owner.get(name), str):
            return owner[name]
    return None


def _own(after, i, cell):
    key = f"own-{after}-{i}"
    about = {"minitl": {"id": key, "kind": "own"}}
    empty = {"execution_count": None, "outputs": []}
    return {"cell_type": "code", "id": key, "metadata": about, "source": cell["source"], **empty}


def _relabel(known, found, own, remarks):
    """Take an unlabeled cell for a missing answer if it defines all of its names."""
    for key, cell in known.items():
        names = set(cell["metadata"]["minitl"].get("defines", ()))
        if key in found or not names:
            continue
        for cells in own.values():
            for other in cells:
                if _wrong_syntax(other) is None and names <= {*source.bound(other["source"])}:
                    found[key] = [other]
                    remarks.append(f"{key} was deleted; the cell that defines {' and '.join(sorted(names))} is graded")
            cells[:] = [c for c in cells if key not in found or c is not found[key][0]]
            if key in found:
                break


def _answer(cell, given, remarks):
    """Return the source of an answer, from one or several cells with its label."""
    key, texts = cell["id"], [c["source"] for c in given]
    if any(c["cell_type"] != cell["cell_type"] for c in given):
        remarks.append(f"{key} was changed to another type of cell; it is graded as {cell['cell_type']}")
    if len(texts) == 1:
        return texts[0]
    changed = [text for text in texts if text.strip() != cell["source"].strip()] or texts
    joined = "\n".join(texts)
    if cell["cell_type"] == "markdown":
        remarks.append(f"{key} {COPIED}: its {len(texts)} cells are read as one")
        return joined
    defined = [name for text in texts if _syntax_of(text) is None for name in source.defined(text)]
    if _syntax_of(joined) is None and len(defined) == len({*defined}):
        remarks.append(f"{key} {COPIED}: its {len(texts)} cells are graded as one")
        return joined
    remarks.append(f"{key} {COPIED}: the first of its {len(changed)} changed cells is graded")
    return changed[0]


def _compare(cell, found, remarks):
    kind, key = source.kind(cell), cell["id"]
    if not found and kind in ("answer", "written"):
        remarks.append(f"{key} was deleted; it {'has no points' if kind == 'answer' else 'is blank'}")
    elif found and (found[0]["cell_type"], found[0]["source"]) != (cell["cell_type"], _released(cell)):
        remarks.append(f"{key} was changed; the copy of the teacher runs in its place")


def _released(cell):
    """Return the text of a test as students have it."""
    return source.HIDDEN.format(**cell["metadata"]["minitl"]) if source.kind(cell) == "hidden" else cell["source"]


def _wrong_syntax(cell):
    return _syntax_of(cell["source"]) if cell["cell_type"] == "code" else None


def _syntax_of(text):
    """Return what is wrong with the syntax of a cell, or None. Lines with IPython's own commands do not count."""
    lines = ["pass" if line.lstrip()[:1] in ("%", "!") else line for line in text.split("\n")]
    if text.startswith("%%"):
        return None
    try:
        ast.parse("\n".join(lines))
    except (SyntaxError, ValueError) as error:
        return f"{getattr(error, 'msg', error)}, in line {getattr(error, 'lineno', 1)}"
    return None
