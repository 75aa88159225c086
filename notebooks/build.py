"""Run the notebooks and store them with their outputs: ``python notebooks/build.py [00 06 ...]``, by default all.

The ``.py`` files in percent format are the source; each gets an ``.ipynb`` beside it with the same cells, and a first
cell that fetches the course where it is not there yet. Edit the ``.py``, run this, and commit both.

``python notebooks/build.py --fast [00 06 ...]`` stores nothing: it runs each notebook with fewer images and steps, then
the folded answers to its exercises, whose checks must approve of them. Needs ``pip install -e '.[notebooks]'``.
"""

import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).resolve().parent
FIRST_CELL = """\
# Fetches the course where it is not there yet: in the browser and in Colab. In a clone this cell does nothing.
import os
import sys

if sys.platform == "emscripten":
    import piplite

    await piplite.install("minitl")
elif "google.colab" in sys.modules and not os.path.exists("lesson.py"):
    address = input("address of the repository that this notebook is from: ")
    if os.system(f"git clone -q '{address}' minitl && pip install -q ./minitl"):
        raise SystemExit("the course could not be fetched; check the address and run this cell again")
    os.chdir("minitl/notebooks")"""
ANSWER = re.compile(r"<details><summary>Answer</summary>(.*?)</details>", re.S)
CODE = re.compile(r"```python\n(.*?)```", re.S)


def notebook(source):
    """Return the notebook of a percent file, without outputs.

    The cell that fetches the course comes after the title. Cells are named by their place, so that diffs stay small.
    """
    nb = jupytext.read(source)
    nb.cells.insert(1, nbformat.v4.new_code_cell(FIRST_CELL))
    for i, cell in enumerate(nb.cells):
        cell["id"] = f"cell-{i}"
    nb.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return nb


def execute(nb, **environment):
    """Run all cells in place, from the notebooks' folder. Raises ``CellExecutionError`` at the first that fails."""
    # Products of small matrices gain little from threads, and on a busy machine they wait for one another.
    env = {"OPENBLAS_NUM_THREADS": "1", **os.environ, **environment}
    options = {"timeout": 900, "record_timing": False, "extra_arguments": ["--log-level=ERROR"]}
    client = NotebookClient(nb, resources={"metadata": {"path": str(FOLDER)}}, **options)
    client.execute(env=env)
    nb.metadata["language_info"] = {"name": "python"}  # without the version of this Python
    return nb


def answers(nb):
    """Return the code of the folded answers, one text each."""
    text = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    return ["\n".join(CODE.findall(answer)) for answer in ANSWER.findall(text)]


def printed(cell):
    """Return what a cell printed, on stdout and stderr."""
    return "".join(output.text for output in cell.get("outputs", []) if output.output_type == "stream")


def rehearse(nb):
    """Run a notebook with few images and steps, then its answers; return what went wrong, in words."""
    length = len(nb.cells)
    nb.cells += [nbformat.v4.new_code_cell(code) for code in answers(nb)]
    try:
        execute(nb, MINITL_FAST="1")
    except CellExecutionError as error:
        return [str(error)]
    outputs = [(i, output) for i, cell in enumerate(nb.cells) for output in cell.get("outputs", [])]
    stderr = [f"cell {i} prints to stderr: {output.text}" for i, output in outputs if output.get("name") == "stderr"]
    said = [printed(cell) for cell in nb.cells[length:]]
    wrong = [text or "(nothing)" for text in said if "is right." not in text or "not right" in text]
    wrong = [f"the check does not approve of a folded answer: {text}" for text in wrong]
    blind = [f"cell {i} is approved of without an answer" for i in range(length) if "is right." in printed(nb.cells[i])]
    return stderr + wrong + blind


def sources():
    """Return the percent files of all notebooks, in order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def build(source):
    """Run one notebook and store it; return a line that says so."""
    start, target = time.perf_counter(), source.with_suffix(".ipynb")
    nbformat.write(execute(notebook(source)), target)
    return f"{target.name}: {time.perf_counter() - start:.0f} s, {target.stat().st_size / 1000:.0f} kB"


def rehearsal(source):
    """Rehearse one notebook; return its name with what went wrong."""
    return "\n  ".join([f"{source.name}:", *(rehearse(notebook(source)) or ["runs, and its answers are right"])])


if __name__ == "__main__":
    fast, numbers = "--fast" in sys.argv, [a for a in sys.argv[1:] if a != "--fast"]
    chosen = [s for s in sources() if not numbers or s.name[:2] in numbers]
    if not chosen:
        sys.exit(f"no notebook is numbered {' or '.join(numbers)}")
    with ThreadPoolExecutor(2) as pool:  # each runs in a process of its own
        lines = [print(line, flush=True) or line for line in pool.map(rehearsal if fast else build, chosen)]
    if fast and not all(line.endswith("are right") for line in lines):
        sys.exit(1)
