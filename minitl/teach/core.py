"""Grade a notebook: run it in a process with limits, and count the points of its tests.

All outputs, nbgrader's gradebook, Gradescope, Classroom 50 and pytest, take their points from ``grade``.
"""

import contextlib
import functools
import json
import os
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from . import source, submission

SECONDS = 120  # for one cell, by the clock: a busy machine may need several times its own
START_SECONDS = 120  # for the imports
TOTAL_SECONDS = 900  # for a notebook
TOLD = ("SyntaxError", "IndentationError", "Stopped")  # elsewhere
RESTARTS = 12
LINE = 20_000_000  # characters of one reply
APART = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]


@dataclass
class Result:
    """The points of a notebook by the ids of its tests, and why some are missing."""

    points: dict  # id -> points
    of: dict  # id -> most points
    messages: dict  # id -> what was wrong
    written: dict  # id -> most points, which a person gives
    visible: set = frozenset()  # ids of the tests that students have
    remarks: list = field(default_factory=list)  # on the notebook as a whole
    notebook: dict | None = None  # as it ran

    @property
    def total(self):
        return sum(self.points.values())

    @property
    def most(self):
        return sum(self.of.values())


def grade(master, submitted, files=(), secret=(), seconds=SECONDS):
    """Return the Result of the notebook ``submitted``, graded by the teacher's ``master``.

    ``files`` are put beside it, it may not open what lies in the folders ``secret``, and a cell has ``seconds``.
    """
    notebook, remarks = submission.restore(master, submitted)
    outcomes, more = run(plan(notebook), files, secret, seconds)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = _outputs(outcomes[cell["id"]])
    of = source.points(master, "test", "hidden")
    messages = {key: message(outcomes[key]["error"]) for key in of if outcomes[key]["error"]}
    points = {key: 0 if key in messages else most for key, most in of.items()}
    written, visible = source.points(master, "written"), {*source.points(master, "test")}
    failed = {c["id"]: outcomes[c["id"]]["error"] for c in plan(notebook) if c["kind"] == "answer" or c["task"] is None}
    task = source.tasks(master)
    for key in messages:
        if messages[key].startswith("NameError") and failed.get(task[key]):
            messages[key] = f"{task[key]} cannot be run: {message(failed[task[key]])}"
    told = [f"{key}: {message(error)}" for key, error in failed.items() if error and error[0] not in TOLD]
    remarks += [text.split("\n")[0] for text in told]
    return Result(points, of, messages, written, visible, remarks + more, notebook)


def nothing(master, remark):
    """Return the Result of a submission that cannot be read."""
    of = source.points(master, "test", "hidden")
    return Result(dict.fromkeys(of, 0), of, {}, source.points(master, "written"), frozenset(), [remark])


def plan(notebook):
    """Return the code cells of a restored notebook as the worker takes them."""
    task, cells = None, []
    for cell in notebook["cells"]:
        about = cell["metadata"]["minitl"]
        task = cell["id"] if about["kind"] == "answer" else task
        if cell["cell_type"] == "code":
            forbids = {"defines": about.get("defines", []), "forbids": about.get("forbids", [])}
            cells.append({"id": cell["id"], "kind": about["kind"], "task": task, "source": cell["source"], **forbids})
    return cells


def run(cells, files=(), secret=(), seconds=SECONDS):
    """Run cells in order; return the outcome of each by its id, and remarks.

    A cell that ends its process or does not return is left out when the rest runs again, and so are the cells below it
    that belong to the same answer.
    """
    stopped, deadline = {}, time.monotonic() + TOTAL_SECONDS
    while True:
        left = [cell for cell in cells if cell["id"] not in stopped]
        outcomes, last, reason = _attempt(left, files, secret, seconds, deadline)
        if reason is None:
            break
        here = next(i for i, cell in enumerate(cells) if cell["id"] == last) if last else -1
        give_up = last is None or len(stopped) > RESTARTS * 3 or time.monotonic() > deadline
        for i, cell in enumerate(cells[max(here, 0) :]):
            same = cells[here]["task"] is not None and cell["task"] == cells[here]["task"]
            if give_up or i == 0 or (same and cell["kind"] != "answer"):
                stopped[cell["id"]] = reason if i == 0 or give_up else f"not run: {last} {reason}"
        if give_up:
            break
    for key, why in stopped.items():
        outcomes[key] = {"error": ["Stopped", why, []], "outputs": [], "seen": [], "seconds": 0}
    remarks = [
        f"{c['id']} {stopped[c['id']]}" for c in cells if c["id"] in stopped and "not run" not in stopped[c["id"]]
    ]
    seen = {f"{key} {what}" for key, outcome in outcomes.items() for what in outcome["seen"]}
    before = dict(zip([c["id"] for c in cells[1:]], [c["id"] for c in cells], strict=False))
    return outcomes, remarks + sorted(_of_previous(text, before) for text in seen)


def _of_previous(text, before):
    """What was replaced is noticed when the next cell starts, so it is the previous cell that did it."""
    key, _, what = text.partition(" ")
    return f"{before.get(key, key)} {what}" if what.startswith("replaces") else text


def _attempt(cells, files, secret, seconds, deadline):
    """Run cells in one process; return outcomes, and if it stopped, the id of the cell and what happened."""
    folder = Path(tempfile.mkdtemp(prefix="minitl-"))
    try:
        for file in files:
            (shutil.copytree if Path(file).is_dir() else shutil.copy)(file, folder / Path(file).name)
        for cache in _fonts():
            shutil.copy(cache, folder)
        folder.chmod(0o777)
        return _talk(cells, folder, secret, seconds, deadline)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _fonts():
    """Return matplotlib's list of fonts, which takes it long to make."""
    import matplotlib.font_manager  # makes it

    return [*Path(matplotlib.get_cachedir()).glob("fontlist-*.json")]


def _talk(cells, folder, secret, seconds, deadline):
    environment = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "SYSTEMROOT", "PYTHONPATH")}
    environment |= {name: str(folder) for name in ("HOME", "MPLCONFIGDIR", "IPYTHONDIR", "XDG_CACHE_HOME", "TMPDIR")}
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", "PYTHONSAFEPATH": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])  # this minitl, not one of the student
    command = [*apart(), sys.executable, "-m", "minitl.teach.worker"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=os.name == "posix", **pipes)
    token, lines = secrets.token_hex(8), queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    outcomes, here, limit = {}, None, START_SECONDS
    try:
        asked = {"token": token, "cells": cells, "secret": [os.path.abspath(path) + os.sep for path in secret]}
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(asked).encode() + b"\n")
            process.stdin.flush()
        while len(outcomes) < len(cells):
            try:
                line = lines.get(timeout=max(0.1, min(limit, deadline - time.monotonic())))
            except queue.Empty:
                if time.monotonic() > deadline:
                    return outcomes, here, f"did not return within {TOTAL_SECONDS} s for the whole notebook"
                return outcomes, here, f"did not return within {limit} s: is there an endless loop?"
            if line is None and here is None:
                why = process.stderr.read().decode(errors="replace").strip().splitlines() or ["it says nothing"]
                raise RuntimeError(f"the process that runs notebooks cannot start: {why[-1]}")
            if line is None:
                return outcomes, here, "ended the process that runs the notebook, so it could not be graded"
            reply = _reply(line, token)
            if reply is None:
                return outcomes, here, "interferes with the grader, so it could not be graded"
            if "start" in reply:
                here, limit = cells[reply["start"]]["id"], seconds
            else:
                outcomes[here] = reply
        return outcomes, None, None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError, AttributeError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):
                pipe.close()


def _read(stream, lines):
    with contextlib.suppress(ValueError, OSError):
        while line := stream.readline(LINE):
            lines.put(line)
    lines.put(None)


def _reply(line, token):
    """Return a line of the worker as a dict; None if it is not the worker's."""
    try:
        reply = json.loads(line)
        error = reply.get("error")
        right = reply["token"] == token and ("start" in reply or isinstance(reply["outputs"], list))
        return reply if right and (error is None or len(error) == 3) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


@functools.cache
def apart():
    """Return the command that runs another one without network, in a space of its own for processes; or none."""
    for command in (APART, [APART[0], "--map-root-user", *APART[1:]]):
        with contextlib.suppress(OSError):
            if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
                return command
    return []


def message(error):
    """Return an error of an outcome in words, with the last lines that led to it."""
    kind, text, lines = error
    text = text if kind in ("AssertionError", "Stopped", "Refused", "NotImplementedError") else f"{kind}: {text}"
    return "\n".join([text, *lines[-3:]])


def _outputs(outcome):
    error = outcome["error"]
    if not error:
        return outcome["outputs"]
    told = {"output_type": "error", "ename": error[0], "evalue": error[1], "traceback": [*error[2], message(error)]}
    return [*outcome["outputs"], told]
