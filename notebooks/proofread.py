"""Proofread the course: ``python notebooks/proofread.py [00 06 ...]`` prints what is wrong with the stored notebooks.

It looks at spelling, links, alternative texts, the length of cells and texts, headers, exercises, and whether each
``.ipynb`` has the cells of its ``.py`` and the outputs of one clean run. Needs ``pip install -e '.[notebooks]'``.
"""

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parent))
import build

REBUILD = "run python notebooks/build.py and look at the result"
IMPORTS = {"checks", "lesson", "minitl", "numpy", *sys.stdlib_module_names}
DRAW = {"bars", "curves", "graph", "images", "matrices", "show"}
WORDS = 900, 2200
CELLS = 25, 50
MEDIAN_LINES, MOST_LINES, MOST_PLOTTING_LINES = 10, 30, 8
MOST_BYTES = 500_000


def faults(source, notebook=None):
    """Return what is wrong with a lesson, in words. ``notebook`` replaces the stored one."""
    target = source.with_suffix(".ipynb")
    if not notebook and not target.exists():
        return [f"there is no {target.name}; {REBUILD}"]
    stored = notebook or nbformat.read(target, as_version=4)
    texts = [cell.source for cell in stored.cells if cell.cell_type == "markdown"]
    codes = [cell.source for cell in stored.cells if cell.cell_type == "code"][1:]  # the first fetches the course
    found = [
        *_pairing(source, stored),
        *_outputs(source, stored),
        *_pictures(stored),
        *_sizes(texts, codes),
        *_frame(source, texts),
        *_exercises(texts, codes),
        *_imports(codes),
        *_links(source.parent, texts),
    ]
    return found + spelling(source)


def faults_of_page(page):
    """Return what is wrong with a text in Markdown, in words."""
    return [*spelling(page), *_links(page.parent, [page.read_text(encoding="utf-8")])]


def spelling(file):
    """Return misspelled words and British spellings of a file, with their lines."""
    options = ["--builtin", "clear,rare,en-GB_to_en-US", "--ignore-words-list", "thead,ans,nd,fo"]
    run = subprocess.run([sys.executable, "-m", "codespell_lib", *options, str(file)], capture_output=True, text=True)
    if run.stderr:
        raise RuntimeError(f"codespell does not run: {run.stderr}")
    return [f"spelling: {line.partition(':')[2]}" for line in run.stdout.splitlines()]


def _pairing(source, stored):
    fresh = [(cell.cell_type, cell.source) for cell in build.notebook(source).cells]
    kept = [(cell.cell_type, cell.source) for cell in stored.cells]
    differ = [i for i in range(max(len(fresh), len(kept))) if fresh[i : i + 1] != kept[i : i + 1]]
    return [f"the .py and the .ipynb differ at cells {differ}; {REBUILD}"] if differ else []


def _outputs(source, stored):
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        yield f"the cells were not run once and in order; {REBUILD}"
    for i, output in _each_output(stored):
        if output.output_type == "error":
            yield f"cell {i} ends in {output.ename}: {output.evalue}"
        if output.get("name") == "stderr":
            yield f"cell {i} prints to stderr: {output.text}"
    if len(nbformat.writes(stored)) > MOST_BYTES:
        yield f"the .ipynb is larger than {MOST_BYTES / 1000:.0f} kB, and readers load it over the network"


def _pictures(stored):
    pictures = [(i, output) for i, output in _each_output(stored) if "image/png" in output.get("data", {})]
    places = [i for i, _ in pictures]
    gaps = [after - before for before, after in itertools.pairwise([1, *places])]
    if not pictures or max(gaps) > 6:
        yield f"a picture at least every 6 cells; they are at {places}"
    for i, output in pictures:
        alt = output.metadata.get("image/png", {}).get("alt", "")
        if len(alt.split()) < 4:
            yield f"cell {i} has a picture without alternative text; draw with a function of lesson.py"


def _sizes(texts, codes):
    lengths = [len([line for line in code.splitlines() if line.strip()]) for code in codes]
    if not CELLS[0] <= len(texts) + len(codes) <= CELLS[1]:
        yield f"{len(texts) + len(codes)} cells; {CELLS[0]} to {CELLS[1]} fit an hour"
    if sorted(lengths)[len(lengths) // 2] > MEDIAN_LINES:
        yield f"the median code cell has {sorted(lengths)[len(lengths) // 2]} lines, more than {MEDIAN_LINES}"
    for code, length in zip(codes, lengths, strict=True):
        most = MOST_PLOTTING_LINES if _calls(code) & DRAW else MOST_LINES
        if length > most:
            kind = "plotting cell" if most < MOST_LINES else "cell"
            yield f"a {kind} has {length} lines, more than {most}: {code[:60]!r}"
    words = sum(len(text.split()) for text in texts)
    if not WORDS[0] <= words <= WORDS[1]:
        yield f"{words} words; {WORDS[0]} to {WORDS[1]} fit an hour"
    if sum(len(re.findall(r"^ *assert\b", code, re.M)) for code in codes) < 4:
        yield "fewer than 4 asserts"


def _frame(source, texts):
    first, last = texts[0], texts[-1]
    if not first.startswith(f"# {source.name[:2]} · "):
        yield f"the title does not start with '# {source.name[:2]} · '"
    for word in ("**Goal**", "**Time**", "**You need**"):
        if word not in first:
            yield f"the header lacks {word}"
    if not last.startswith("## What you can do now") or "**Next:**" not in last:
        yield "the last cell is not 'What you can do now', with '**Next:**'"


def _exercises(texts, codes):
    folded = len(build.ANSWER.findall("\n".join(texts)))
    checks = sum("check" in _calls(code) for code in codes)
    if not 2 <= folded <= 3:
        yield f"{folded} folded answers; there are 2 or 3 exercises"
    if checks != folded:
        yield f"{checks} cells call check(), for {folded} folded answers"
    if any("check(" not in answer for answer in build.ANSWER.findall("\n".join(texts))):
        yield "a folded answer does not end with its check"


def _imports(codes):
    nodes = [node for code in codes for node in ast.walk(ast.parse(code))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    for name in sorted({name.split(".")[0] for name in names} - IMPORTS):
        yield f"it imports {name}; a lesson needs numpy, minitl, lesson and checks alone"


def _links(folder, texts):
    for text in texts:
        for mark, label, target in re.findall(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", text):
            if mark and len(label.split()) < 4:
                yield f"the picture {target} has no alternative text"
            if not target.startswith("https://") and not (folder / target.partition("#")[0]).exists():
                yield f"it links to {target}, which is not there"


def _calls(code):
    """Return the names of the functions that a cell calls."""
    calls = [node.func for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    return {func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "") for func in calls}


def _each_output(stored):
    return [(i, output) for i, cell in enumerate(stored.cells) for output in cell.get("outputs", [])]


if __name__ == "__main__":
    lessons = [source for source in build.sources() if not sys.argv[1:] or source.name[:2] in sys.argv[1:]]
    found = {source.name: faults(source) for source in lessons}
    for page in build.FOLDER.glob("*.md"):
        found[page.name] = faults_of_page(page)
    for name, wrong in found.items():
        print("\n  ".join([f"{name}:" if wrong else f"{name}: good", *wrong]))
    sys.exit(any(found.values()))
