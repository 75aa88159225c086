"""The course: each notebook runs top to bottom, is stored with its outputs, and keeps to what readers were promised.

A notebook is a percent ``.py`` file, the source, and an ``.ipynb`` with the same cells and their outputs beside it.
"""

import ast
import base64
import importlib.util
import itertools
import json
import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
IMPORTS = {"matplotlib", "minitl", "numpy", *sys.stdlib_module_names}
NO_JUPYTER = (
    "notebooks are run by jupytext, nbclient and ipykernel, which are not installed: pip install 'minitl[test]'"
)
BUILD = "; run python notebooks/build.py and look at the result"

every_notebook = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


@pytest.fixture
def build():
    """The functions of ``notebooks/build.py``."""
    for name in ("jupytext", "nbclient", "ipykernel"):
        pytest.importorskip(name, reason=NO_JUPYTER)
    spec = importlib.util.spec_from_file_location("build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stored(source):
    return json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))


def cells(notebook, kind):
    """The text of each cell of a kind."""
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def outputs(notebook):
    """(place of the cell, output) for each output."""
    return [(i, output) for i, cell in enumerate(notebook["cells"]) for output in cell.get("outputs", [])]


def complaints(notebook):
    """Return what no reader should see: errors and lines on stderr, each with the number of its cell."""
    found = outputs(notebook)
    errors = [f"cell {i}: {output['ename']}: {output['evalue']}" for i, output in found if "ename" in output]
    return errors + [f"cell {i}: {''.join(output['text'])}" for i, output in found if output.get("name") == "stderr"]


def test_there_are_notebooks():
    assert [source.name[:2] for source in SOURCES][:1] == ["00"]
    assert [source.stem for source in SOURCES] == sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@every_notebook
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Jupyter's own, not ours
def test_runs_top_to_bottom(source, build, monkeypatch):
    monkeypatch.setenv("MINITL_FAST", "1")
    notebook = build.execute(build.notebook(source))
    assert complaints(notebook) == []


@every_notebook
def test_source_and_notebook_have_equal_cells(source, build):
    fresh = [(cell["cell_type"], cell["source"]) for cell in build.notebook(source)["cells"]]
    kept = [(cell["cell_type"], "".join(cell["source"])) for cell in stored(source)["cells"]]
    differ = [i for i in range(max(len(fresh), len(kept))) if fresh[i : i + 1] != kept[i : i + 1]]
    assert not differ, f"{source.name} and its .ipynb differ at cells {differ}{BUILD}"


@every_notebook
def test_stored_outputs(source):
    notebook = stored(source)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), f"not run in order{BUILD}"
    assert complaints(notebook) == []
    pictures = [i for i, output in outputs(notebook) if "image/png" in output.get("data", {})]
    gaps = [after - before for before, after in itertools.pairwise(pictures)]
    assert pictures and max(gaps) <= 6, f"a picture at least every 6 cells; they are at {pictures}"
    for i, output in outputs(notebook):
        if "image/png" in output.get("data", {}):
            assert base64.b64decode(output["data"]["image/png"]).startswith(b"\x89PNG"), f"cell {i}"
    assert source.with_suffix(".ipynb").stat().st_size <= 500_000, "readers load the notebook over the network"


@every_notebook
def test_size(source):
    notebook = stored(source)
    code, text = cells(notebook, "code"), cells(notebook, "markdown")
    lines = sorted(len(cell.splitlines()) for cell in code)
    assert 25 <= len(notebook["cells"]) <= 45
    assert lines[-1] <= 30 and lines[len(lines) // 2] <= 10
    assert 900 <= sum(len(cell.split()) for cell in text) <= 2000
    assert 4 <= sum(len(re.findall(r"^ *assert\b", cell, re.M)) for cell in code) <= 8
    answers = "".join(text).count("<details><summary>Answer</summary>")
    assert 2 <= answers <= 3 and "".join(text).count("</details>") == answers


@every_notebook
def test_header_and_footer(source):
    text = cells(stored(source), "markdown")
    first, last = text[0], text[-1]
    assert first.startswith(f"# {source.name[:2]} · ")
    assert all(word in first for word in ("**Goal**", "**Time**", "**You need**"))
    assert last.startswith("## What you can do now") and "**Next:**" in last


@every_notebook
def test_imports(source):
    nodes = list(ast.walk(ast.parse(source.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} <= IMPORTS


@every_notebook
def test_links(source):
    """Files that a notebook links to, shows or loads exist."""
    notebook = stored(source)
    for target in re.findall(r"\]\(([^)]+)\)", "\n".join(cells(notebook, "markdown"))):
        if not target.startswith("https://"):
            assert (FOLDER / target).is_file(), f"{source.name} links to {target}"
    code = "\n".join(cells(notebook, "code"))
    for name in re.findall(r'"((?:learner|grid|static|all|late)-[\w-]+)"', code):
        assert (FOLDER / "models" / f"{name}.safetensors").is_file(), f"{source.name} loads {name}"


def test_models_are_small_and_load():
    from minitl.train import checkpoint, model_of

    files = sorted((FOLDER / "models").glob("*.safetensors"))
    assert files
    for file in files:
        arrays, meta = checkpoint.load(file)
        checkpoint.restore(arrays, {"model": model_of(meta)})
        assert file.stat().st_size <= 200_000, file.name
