"""What the README prints works: its Python blocks run, and its options exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from minitl import cli, train

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"(?:^|`|&& )minitl train ?([^`\n#]*)", README, re.M)))


def test_python_blocks_run(tmp_path):
    train.start(train.TrainConfig(subset=100), tmp_path / "runs" / "clutter")  # the second block wants a run
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    assert len(blocks) >= 4
    for block in blocks:
        run = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0, f"{block}\n{run.stderr}"


@pytest.mark.parametrize("line", [line for line in COMMANDS if "--resume" not in line and "--help" not in line])
def test_options_exist(line):
    assert cli._parse(cli.TrainOptions, "train", shlex.split(line.replace("DATASET", "clutter")))
