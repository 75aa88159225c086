"""Run the notebooks and store them with their outputs: ``python notebooks/build.py [00 06 ...]``, by default all.

The ``.py`` files in percent format are the source; each gets an ``.ipynb`` beside it with the same cells. Edit the
``.py``, run this, and commit both. Needs ``pip install -e '.[notebooks]'``.
"""

import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent


def notebook(source):
    """The notebook of a percent file, without outputs. Cells are named by their place, so that diffs stay small."""
    nb = jupytext.read(source)
    for i, cell in enumerate(nb.cells):
        cell["id"] = f"cell-{i}"
    nb.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return nb


def execute(nb):
    """Run all cells in place, from the notebooks' folder. Raises ``CellExecutionError`` at the first that fails."""
    # Products of small matrices gain little from threads, and on a busy machine they wait for one another.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    options = {"timeout": 600, "record_timing": False, "extra_arguments": ["--log-level=ERROR"]}
    NotebookClient(nb, resources={"metadata": {"path": str(FOLDER)}}, **options).execute()
    return nb


def sources():
    """The percent files of all notebooks, in order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


if __name__ == "__main__":
    chosen = [s for s in sources() if not sys.argv[1:] or s.name[:2] in sys.argv[1:]]
    for source in chosen or sys.exit(f"no notebook is numbered {' or '.join(sys.argv[1:])}"):
        start, target = time.perf_counter(), source.with_suffix(".ipynb")
        nb = execute(notebook(source))
        nb.metadata["language_info"] = {"name": "python"}  # without the version of this Python
        nbformat.write(nb, target)
        print(f"{target.name}: {time.perf_counter() - start:.0f} s, {target.stat().st_size / 1000:.0f} kB")
