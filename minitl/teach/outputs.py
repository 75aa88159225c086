"""The points of a Result for others: Gradescope's results.json, Classroom 50's result.json, and tests of pytest.

``bundle`` makes what these services run: the teacher's notebook without solutions, minitl itself, and a few lines that
call ``grade_files`` here. So all outputs have the same points.
"""

import datetime
import json
import os
import shutil
import time
import zipfile
from pathlib import Path

from ..errors import InputError
from . import core, source, submission

PACKAGE = Path(__file__).resolve().parents[1]
SETUP = """\
#!/usr/bin/env bash
# Gradescope runs this once, when it builds the image; choose an image with Python 3.11 or newer, such as Ubuntu 24.04.
set -e
python3 -m pip --version || { apt-get update && apt-get install -y python3-pip; }
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install -q /autograder/source/minitl ipython
"""
RUN = """\
#!/usr/bin/env bash
cd /autograder/source && exec python3 grade.py gradescope /autograder/submission /autograder/results
"""
GRADE = '''\
"""Grade what was handed in: python grade.py gradescope|classroom50 SUBMISSION RESULTS"""

import sys

from minitl.teach.outputs import grade_files

grade_files(sys.argv[1], "master.ipynb", sys.argv[2], sys.argv[3])
'''
AUTOGRADER = '''\
"""Classroom 50 runs this in the student's repository; nothing but Python 3.11 or newer with pip is needed."""

import pathlib
import subprocess
import sys
import tempfile

here, venv = pathlib.Path(__file__).resolve().parent, pathlib.Path(tempfile.mkdtemp())
subprocess.run([sys.executable, "-m", "venv", venv], check=True)
subprocess.run([venv / "bin/pip", "install", "-q", here / "minitl", "ipython"], check=True)
repository = pathlib.Path.cwd()
subprocess.run([venv / "bin/python", "grade.py", "classroom50", repository, repository], check=True, cwd=here)
'''
PYTEST = '''\
"""Grade the notebooks beside this file, one test for each check: pytest test_submission.py"""

from pathlib import Path

import pytest

from minitl.teach.outputs import cases

HERE = Path(__file__).parent


@pytest.mark.parametrize("result, key", cases(HERE / "master.ipynb", HERE))
def test_check(result, key, record_property):
    record_property("points", result.of[key])
    assert key not in result.messages, result.messages[key]
'''


def bundle(kind, name, folder):
    """Write what ``kind`` (gradescope, classroom50 or pytest) needs for an assignment, and return where.

    Raises InputError if it exists already.
    """
    name, folder = source.find(name), Path(folder)
    target = folder / f"{name}-{kind}"
    made = target.with_name(f"{target.name}.zip") if kind == "gradescope" else target
    if made.exists() or target.exists():
        raise InputError(f"{made} exists already, and nothing in it is replaced; move it away first")
    notebook = source.teacher(name)
    source.write(target / "master.ipynb", source.master(notebook))
    for file in source.files(notebook):
        (shutil.copytree if file.is_dir() else shutil.copy)(file, target / file.name)
    if kind == "pytest":
        (target / "test_submission.py").write_text(PYTEST, encoding="utf-8")
        return made
    (target / "grade.py").write_text(GRADE, encoding="utf-8")
    root = PACKAGE.parent
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        (target / "minitl").mkdir(exist_ok=True)
        shutil.copy(root / file, target / "minitl" / file)
    shutil.copytree(PACKAGE, target / "minitl" / "minitl", ignore=shutil.ignore_patterns("__pycache__"))
    if kind == "classroom50":
        (target / "autograder.py").write_text(AUTOGRADER, encoding="utf-8")
        return made
    for file, text in (("setup.sh", SETUP), ("run_autograder", RUN)):
        (target / file).write_text(text, encoding="utf-8")
        (target / file).chmod(0o755)
    with zipfile.ZipFile(made, "x", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(target.rglob("*")):
            archive.write(file, file.relative_to(target))
    shutil.rmtree(target)
    return made


def grade_files(kind, master, submitted, results):
    """Grade the notebook in the folder ``submitted``, and write the file of ``kind`` into the folder ``results``."""
    start, master = time.monotonic(), Path(master).resolve()
    result = _graded(master, Path(submitted))
    results = Path(results)
    if kind == "gradescope":
        made = gradescope(result, time.monotonic() - start)
        (results / "results.json").write_text(json.dumps(made, indent=1), encoding="utf-8")
        return
    made = classroom50(result, os.environ)
    (results / "result.json").write_text(json.dumps(made, indent=1), encoding="utf-8")
    (results / "release-body.md").write_text(as_markdown(result), encoding="utf-8")


def _graded(path, folder):
    master = source.read(path)
    name = master["metadata"]["minitl"]["assignment"]
    notebook, remarks = submission.find(folder, name, master, but=path)
    if notebook is None:
        return core.nothing(master, "; ".join(remarks) or f"there is no notebook {name}.ipynb")
    others = {"master.ipynb", "grade.py", "autograder.py", "test_submission.py", "setup.sh", "run_autograder", "minitl"}
    beside = [
        p for p in path.parent.iterdir() if p.name not in others and p.suffix != ".ipynb" and p.name[0] not in "._"
    ]
    result = core.grade(master, notebook, beside, [path.parent])
    result.remarks = remarks + result.remarks
    return result


def gradescope(result, seconds=0.0):
    """Return a Result as Gradescope's results.json."""
    tests = []
    for number, (key, most) in enumerate(result.of.items(), 1):
        test = {"name": key, "number": str(number), "score": result.points[key], "max_score": most}
        test |= {"status": "failed" if key in result.messages or not result.points[key] else "passed"}
        test |= {"output": result.messages.get(key, ""), "output_format": "text"}
        tests.append(test | {"visibility": "visible" if key in result.visible else "after_published"})
    written = "".join(f"{key}: up to {most} points by hand\n" for key, most in result.written.items())
    return {
        "execution_time": round(seconds, 1),
        "output": "\n".join([*result.remarks, written]).strip(),
        "stdout_visibility": "hidden",
        "tests": tests,
    }


def classroom50(result, environment):
    """Return a Result as Classroom 50's result.json, with what the runner says about the submission."""
    names = {
        "classroom": "CLASSROOM",
        "assignment": "ASSIGNMENT",
        "assignment_type": "ASSIGNMENT_TYPE",
        "owner": "OWNER",
    }
    names |= {"submission": "SUBMISSION_TAG", "commit": "COMMIT_URL", "release": "RELEASE_URL", "review": "REVIEW_URL"}
    said = {key: environment.get(name, "") for key, name in names.items()}
    said["assignment_type"] = said["assignment_type"] or "individual"
    said["owner"] = said["owner"] or environment.get("USERNAME", "")
    said["review"] = said["review"] or said["commit"]
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    tests = [
        {"test-name": key, "passed": result.points[key] == most, "score": result.points[key], "max-score": most}
        for key, most in result.of.items()
    ]
    total = {"score": result.total, "max-score": result.most, "tests": tests}
    return {"schema": "classroom50/result/v1", **said, "datetime": now, **total}


def as_markdown(result):
    """Return a Result as a page for its student."""
    rows = [f"| {key} | {result.points[key]} of {most} |" for key, most in result.of.items()]
    remarks = [f"- {remark}" for remark in result.remarks]
    told = [f"**{key}**: {text}" for key, text in result.messages.items() if key in result.visible]
    table = [f"### {result.total} of {result.most} points", "", "| check | points |", "|---|---|", *rows]
    return "\n".join([*table, "", *remarks, "", "\n\n".join(told)]) + "\n"


def cases(master, folder):
    """Return (Result, id of a check) for each check of the notebook in ``folder``, as parameters for pytest."""
    result = _graded(Path(master).resolve(), Path(folder))
    return [(result, key) for key in result.of]
