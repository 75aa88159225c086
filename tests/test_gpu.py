"""`python -m tests.gpu`: the whole run on the stand-in for CuPy, and sections that fail, die or hang."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.gpu import __main__ as gpu
from tests.gpu import plan

ROOT = Path(__file__).parents[1]
# makes packages that may be missing on a machine with a GPU unimportable; matplotlib also takes a second to load
BARE = """
import sys

class Refuse:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ("tyro", "pooch", "matplotlib", "jupytext", "cupy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse)
"""
# child.py with made-up sections
CHILD = """
import os, sys, time

from tests.gpu import child, plan, sections

def loses():
    sys.modules["cupy"] = None  # which does not answer
    raise ValueError("as intended")

def hangs():
    time.sleep(60)

CALLS = {"fine": lambda: ("so it is", os.getpid()), "same": lambda: (sections.earlier["fine"]["words"], os.getpid())}
CALLS |= {"new": CALLS["same"], "fails": lambda: 1 / 0, "aborts": os.abort, "exits": lambda: os._exit(3)}
CALLS |= {"loses": loses, "hangs": hangs, "late": hangs}
child.cuda_problem, child.measure_cuda.machine = lambda: None, lambda: MACHINE
sections.estimate = lambda model, precision: print(model) if precision == "tf32" else 1 / 0
plan.START_SECONDS = 0
plan.PLAN.clear()
for process, parts in MADE_UP.items():
    plan.PLAN[process] = [plan.Section(*part[:2], CALLS[part[0]], part[2]) for part in parts if part[0] in CALLS]
child.main(*sys.argv[1:])
"""
MACHINE = {"gpu": "made up", "driver": 1, "runtime": 2}
SECONDS = {"hangs": 0.3, "late": 999}  # expected time of a section; 10 for all others


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """A function that runs a plan {process: names of sections}; a ! marks those that the rest needs.

    Returns the exit status, the results and what was printed.
    """

    def main(made_up, *options, steps=()):
        parts = {
            process: [(name.strip("!"), SECONDS.get(name, 10), name.endswith("!")) for name in names.split()]
            for process, names in made_up.items()
        }
        sections = {name: [plan.Section(n, s, None, needed) for n, s, needed in part] for name, part in parts.items()}
        text = CHILD.replace("MADE_UP", repr(parts)).replace("MACHINE", repr(MACHINE))
        (tmp_path / "child.py").write_text(text)
        monkeypatch.setattr(gpu, "CHILD", [sys.executable, str(tmp_path / "child.py")])
        monkeypatch.setattr(gpu, "STEPS", list(steps))
        monkeypatch.setattr(gpu, "PLAN", sections)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        path = tmp_path / "gpu.json"
        with pytest.raises(SystemExit) as end:
            gpu.main([*options, str(path)])
        return end.value.code, json.loads(path.read_text()), capfd.readouterr().out

    return main


def test_all_of_it_on_the_stand_in(tmp_path):
    """Without the packages that a machine with a GPU may lack."""
    (tmp_path / "sitecustomize.py").write_text(BARE)
    command = [sys.executable, "-m", "tests.gpu", "--stand-in", str(tmp_path / "gpu.json")]
    env = os.environ | {"PYTHONPATH": str(tmp_path), "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    results = json.loads((tmp_path / "gpu.json").read_text())
    states = {name: entry["state"] for name, entry in results["sections"].items()}
    assert list(states) == [section.name for process in plan.PLAN.values() for section in process]
    others = {name: results["sections"][name]["words"] for name in states if states[name] != "ok"}
    assert set(others) == {"op tests", *({name for name in states if "PyTorch" in name} & others.keys())}, others
    assert "skipped" in others.pop("op tests") and set(others.values()) <= {"PyTorch is not installed"}
    assert run.returncode == 0 and len(results["sections"]["training on images"]["figures"]["losses"]) == 20
    assert sum(section.seconds for process in plan.PLAN.values() for section in process) <= 7 * 60  # the default
    lines = run.stdout.splitlines()
    table = lines[lines.index("") + 1 :]
    assert len(table) <= 40 and table[-1].endswith(f"all figures are in {tmp_path / 'gpu.json'}")
    assert [line[:34].rstrip() for line in table[1 : 1 + len(states)]] == list(states)
    assert not any("No module" in line for line in lines), run.stdout


def test_sections_that_fail_die_or_hang(run):
    """Each is reported, and the next one runs, in a new process if the old one is unusable."""
    names = {"checks": "aborts fine fails same loses new", "more": "exits hangs late"}
    status, results, out = run(names, steps=[("one", "tf32"), ("two", "bf16")])
    found = results["sections"]
    assert re.fullmatch(r"out of time: it takes 999 s, and \d+ s are left", found["late"].pop("words"))
    assert {name: (entry["state"], entry.get("words")) for name, entry in found.items()} == {
        "aborts": ("died", "by signal SIGABRT"),
        "fine": ("ok", "so it is"),
        "fails": ("failed", "ZeroDivisionError: division by zero"),
        "same": ("ok", "so it is"),
        "loses": ("failed", "ValueError: as intended"),
        "new": ("ok", "so it is"),
        "exits": ("died", "with exit status 3"),
        "hangs": ("hung", "killed after 1 s"),
        "late": ("not run", None),
    }
    assert "Fatal Python error: Aborted" in found["aborts"]["traceback"]
    assert "in hangs" in found["hangs"]["traceback"] and "1 / 0" in found["fails"]["traceback"]
    assert found["fine"]["figures"] == found["same"]["figures"] != found["new"]["figures"]  # processes
    assert results["estimates"] == {"one tf32": "one", "two bf16": "ZeroDivisionError: division by zero"}
    assert status == 1 and len(out.splitlines()) == 2 * len(found) + 5
    assert "Of 9 sections, 3 passed, 5 failed and 1 did not run. " in out.splitlines()[-1]


def test_what_is_needed_stops_the_run(run):
    status, results, out = run({"checks": "fine fails! same", "more": "exits"})
    assert list(results["sections"]) == ["fine", "fails"] and status == 1
    assert (
        "fails failed: fix this first; the rest needs it. Of 4 sections, 1 passed, 1 failed and 2 did not run. " in out
    )


def test_an_interrupted_run_resumes(run, tmp_path):
    """With the sections without a result, and the one that stopped the run."""
    entries = {"late": {"state": "not run"}, "same": {"state": "running"}, "new": {"state": "failed"}}
    entries |= {"fine": {"state": "ok", "words": "before"}, "aborts": {"state": "died", "words": "by signal SIGABRT"}}
    (tmp_path / "gpu.json").write_text(json.dumps({"sections": entries, "estimates": {"one tf32": "before"}}))
    status, results, _ = run({"checks": "fine aborts new! same", "more": "late"}, "--go-on")
    assert results["estimates"] == {"one tf32": "before"}
    found = {name: (entry["state"], entry["words"]) for name, entry in results["sections"].items()}
    assert found.pop("late")[0] == "not run" and found.pop("aborts") == ("died", "by signal SIGABRT")
    assert found == dict.fromkeys(("fine", "new", "same"), ("ok", "before")) and status == 1


class Waiting:
    """A process that never ends by itself."""

    returncode, pid = -9, 2**30

    def poll(self):
        pass

    def wait(self, seconds):
        pass

    def send_signal(self, number):
        pass


def test_a_process_without_progress(tmp_path, monkeypatch):
    """It hangs in a section or before its first one, or the time limit of the run has passed."""
    path, now = tmp_path / "gpu.json", time.time()
    path.write_text(json.dumps({"sections": {"one": {"state": "running", "began": now - 9, "limit": 8}}}))
    assert gpu.watch(Waiting(), path, now + 99) == ("hung", "killed after 8 s")
    assert gpu.watch(Waiting(), path, now - 1) == ("hung", "killed after 8 s, because time was up")
    path.write_text('{"sections": {}}')
    monkeypatch.setattr(gpu, "START_SECONDS", 0)
    assert gpu.watch(Waiting(), path, now + 99) == ("hung", "killed after 0 s")


def test_a_process_that_does_not_begin(run):
    """Its sections are marked one by one, so the run ends."""
    status, results, _ = run({"checks": "unknown others"})
    words = {name: entry["words"] for name, entry in results["sections"].items()}
    assert words == {"unknown": "with exit status 0", "others": "with exit status 0"} and status == 1


@pytest.mark.parametrize("text", [None, "{", "[]", '{"sections": {"fine": {}}}'])
def test_no_results_to_resume_from(text, tmp_path):
    path = tmp_path / "gpu.json"
    if text:
        path.write_text(text)
    with pytest.raises(SystemExit, match=r"gpu\.json has no results of an earlier run \(.*; omit"):
        gpu.main(["--go-on", str(path)])
