"""What the README prints works: its Python blocks run and are what it says, and its commands and options exist."""

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from minitl import cli, ops, train
from minitl.paper import ablate
from tests.bench import measure
from tests.bench.__main__ import BenchOptions

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
SHELL = "\n".join(re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S))
PROSE = re.sub(r"^```.*?^```", "", README, flags=re.M | re.S)
LINES = re.findall(r"(?:^|&& )minitl (\w+) *([^#\n]*)", SHELL, re.M) + re.findall(r"`minitl (\w+)\s*([^`]*)`", PROSE)
BENCH = sorted(set(re.findall(r"python -m tests\.bench ?([^#\n`]*)", README)))
COMMANDS = sorted({(name, " ".join(options.split())) for name, options in LINES if options and "--help" not in options})


def test_python_blocks_run(tmp_path):
    train.start(train.TrainConfig(subset=100), tmp_path / "runs" / "clutter")  # the second block wants a run
    assert len(BLOCKS) >= 4
    for block in BLOCKS:
        run = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0, f"{block}\n{run.stderr}"


def test_softmax_is_the_one_of_the_package():
    (block,) = (block for block in BLOCKS if "def softmax" in block)
    assert block.endswith(inspect.getsource(ops.softmax))


def test_the_homework_is_right(tmp_path):
    """It is graded by the command that stands above it."""
    before, (block,) = README.partition("def relu")[0], (block for block in BLOCKS if "def relu" in block)
    command = re.findall(r"^pytest (\S+) --student (hw\.py)$", before, re.M)
    assert command == [("tests/test_ops.py", "hw.py")]
    (tmp_path / "hw.py").write_text(block)
    grade = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", command[0][0], "--student", tmp_path / "hw.py"]
    run = subprocess.run(grade, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and ": relu\n" in run.stdout, run.stdout + run.stderr


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
