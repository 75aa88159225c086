"""README.md and the two pages in notebooks/: their Python code runs, their commands, options and links exist."""

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import test_layout
import tyro

from minitl import cli, ops
from minitl.paper import ablate
from tests.bench import measure
from tests.bench.__main__ import BenchOptions

ROOT = Path(__file__).resolve().parents[1]
README, COURSE, RESULTS = ROOT / "README.md", ROOT / "notebooks" / "README.md", ROOT / "notebooks" / "RESULTS.md"
TEXTS = {path: path.read_text(encoding="utf-8") for path in (README, COURSE, RESULTS)}
TEXT = "\n".join(TEXTS.values())
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXTS[README], re.M | re.S)
SHELL = "\n".join(re.findall(r"^```sh\n(.*?)^```", TEXT, re.M | re.S))
PROSE = re.sub(r"^```.*?^```", "", TEXT, flags=re.M | re.S)
LINES = re.findall(r"(?:^|&& )minitl (\w+) *([^#\n]*)", SHELL, re.M) + re.findall(r"`minitl (\w+)\s*([^`]*)`", PROSE)
COMMANDS = sorted({(name, " ".join(options.split())) for name, options in LINES if "--help" not in options})
BENCH = sorted(set(re.findall(r"python -m tests\.bench ?([^#\n`]*)", TEXT)))
LINKS = [(path, link) for path, text in TEXTS.items() for link in re.findall(r"\]\((?!https?:)([^)#]*)[^)]*\)", text)]
SMALL = "from minitl import data; data.load = lambda name: {'clutter': data.clutter(400, 100)}[name]\n"
PARTS = "from minitl.autograd import op; from minitl.backend import array_module\n"


def test_the_readme_is_short():
    assert len(TEXTS[README].splitlines()) <= 150


def test_the_two_commands_of_the_first_screen():
    for command in ("pip install -e . && minitl train", 'pip install -e ".[test]" && pytest'):
        assert f"\n```sh\n{command}\n```\n" in TEXTS[README]


def test_the_lines_to_read_are_counted():
    """As in test_layout.py; a change of more than 50 lines, or of 10 in the engine, asks for new figures."""
    ((stated, stated_engine),) = re.findall(r"about ([\d,]+) lines to read, (\d+) of them the autograd", TEXTS[README])
    to_read = test_layout.lines("backend", "errors", "autograd", "ops", "gradcheck", "nn", "optim")
    to_read -= test_layout.lines("nn.baselines", "nn.bottleneck", "nn.reduce")
    assert abs(int(stated.replace(",", "")) - to_read) <= 50, to_read
    assert abs(int(stated_engine) - test_layout.lines("autograd")) <= 10


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.partition("\n")[0])
def test_python_blocks_run(block, tmp_path):
    """On fewer images, and with the imports of the file that an op is from."""
    before = SMALL if "data.load" in block else PARTS
    run = subprocess.run([sys.executable, "-c", before + block], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert ("print(" in block) == bool(re.fullmatch(r"test accuracy \d+\.\d%\n", run.stdout)), run.stdout


def test_softmax_is_the_one_of_the_package():
    (block,) = (block for block in BLOCKS if "def softmax" in block)
    assert block == inspect.getsource(ops.softmax)


def test_the_homework_is_right(tmp_path):
    """It is graded by the command that the README gives."""
    (block,) = (block for block in BLOCKS if "def relu" in block)
    (file,) = re.findall(r"^pytest --student (\S+)$", SHELL, re.M)
    (tmp_path / file).write_text(block)
    grade = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--student={tmp_path / file}"]
    run = subprocess.run(grade, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and "3 of 3" in run.stdout, run.stdout + run.stderr


def test_all_commands_are_shown():
    assert {name for name, _ in COMMANDS} == cli.COMMANDS.keys()


@pytest.mark.parametrize(("name", "options"), COMMANDS)
def test_options_exist(name, options):
    args = shlex.split(options)
    if name == "flops":
        return cli.flops_command(args)
    if name == "train" and "--resume" not in args:
        assert cli._train_options(args)
    found = cli._parse(getattr(cli, f"{name.title()}Options"), name, args)
    if name == "ablate":
        assert found.kind in ablate.KINDS


@pytest.mark.parametrize("options", BENCH)
def test_options_of_the_benchmark_exist(options):
    found = tyro.cli(BenchOptions, args=shlex.split(options))
    assert set(found.names) <= measure.MODELS.keys()


@pytest.mark.parametrize(("path", "link"), LINKS)
def test_links_lead_somewhere(path, link):
    """A link to a heading of the same file has nothing before its #."""
    assert (path.parent / link).exists()


def test_links_to_headings():
    headings = re.findall(r"^#+ (.*)$", TEXTS[RESULTS], re.M)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    found = re.findall(r"\]\(#([^)]*)\)", TEXTS[RESULTS])
    assert found and set(found) <= anchors


def test_files_exist():
    """Files and folders of the repository or the package that the texts name in code style."""
    names = set(re.findall(r"`((?:[a-z]+/)+(?:\w+\.py)?|\w+\.py)`", PROSE)) - {"hw.py"}
    assert len(names) > 10
    assert not [name for name in names if not any((folder / name).exists() for folder in (ROOT, ROOT / "minitl"))]


def test_all_pictures_are_used():
    used = {(path.parent / link).resolve() for path, link in LINKS}
    assert set((ROOT / "notebooks" / "images").iterdir()) <= used
