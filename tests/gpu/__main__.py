"""All checks and measurements that need a GPU, in one command that ends in the given time:

    python -m tests.gpu [RESULTS.json] [--minutes 7] [--stand-in]
    python -m tests.gpu --go-on RESULTS.json

What is most valuable comes first (plan.py). This process supervises others, which run the sections (child.py) and write
down each result at once. One that dies or makes no progress has its section marked, and a new one goes on with the next
section. If products or captured steps fail, all that follows would only show it again, so the run stops there.
A table ends the output; RESULTS.json (gpu.json by default) has every figure. The exit status is 1 if something failed.

``--go-on`` runs those sections that have no result in RESULTS.json yet, and what stopped the run, which then has been
mended. ``--stand-in`` runs all of it on a CPU, in seconds, as a test of these files.

It needs a checkout, CuPy, NumPy, tqdm, threadpoolctl and safetensors; PyTorch to compare with, and pytest, from whose
tests some sections take their rows. Where packages cannot be installed, carry the wheels of tqdm and threadpoolctl, 100
kB of pure Python. Pillow, matplotlib, tyro and pooch are not needed.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import report

from .child import note, read, say, write
from .plan import PLAN, START, STEPS
from .stand_in import join

ROOT = Path(__file__).resolve().parents[2]
CHILD = [sys.executable, "-m", "tests.gpu.child"]
FAULTS = ("failed", "died", "hung")  # states of sections
CONTESTANTS = ("minitl", "PyTorch compiled", "PyTorch eager")


def start(*args, **options):
    """Return a process of child.py, in a group of its own, which ends with all that it started."""
    return subprocess.Popen([*CHILD, *args], cwd=ROOT, process_group=0, **options)


def end(process):
    """End a process, if it has not ended, and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)  # one that waits for the driver may not even be killed


def contents(file):
    """Return what processes wrote to a file."""
    file.seek(0)
    return file.read()


def supervise(name, path, until, *options):
    """Run the sections of a process of the plan until all have a result or one that is needed by the rest failed."""
    while not stopped_by(read(path)) and (waiting := unfinished(name, read(path))):
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            child = start(name, str(path), str(until), *options, stderr=errors)
            try:
                state, words = watch(child, path, until)
            finally:
                end(child)
            said = contents(errors)
        print(said, end="", file=sys.stderr)
        results = read(path)
        section = running(results)
        if not section and unfinished(name, results) == waiting:
            section = waiting[0]  # the process did not even begin it
        if section:
            entry = {"state": state, "words": words, "traceback": said[-2500:]}
            note(path, section, **entry)
            say(section, entry, results["began"])


def watch(child, path, until):
    """Wait until a process ends, or end it when it makes no progress; return the state of the section that it was in.

    The second value says what happened, in words.
    """
    began = time.time()
    while child.poll() is None:
        time.sleep(0.05)
        results = read(path)
        if section := running(results):
            entry = results["sections"][section]
            since, limit = entry["began"], entry["limit"]
        else:
            since, limit = max(began, path.stat().st_mtime), START
        if time.time() > since + limit:
            child.send_signal(signal.SIGUSR1)  # it says in which line it hangs
            time.sleep(0.1)
            end(child)
            return "hung", f"killed after {limit:.0f} s{', as the time was over' if time.time() > until else ''}"
    status = child.returncode
    return "died", f"by signal {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"


def running(results):
    """Return the name of the section that a process began and did not finish, or None."""
    return next((name for name, entry in results["sections"].items() if entry["state"] == "running"), None)


def unfinished(name, results):
    """Return the names of those sections of a process that have no result."""
    done = {section for section, entry in results["sections"].items() if entry["state"] != "running"}
    return [section.name for section in PLAN[name] if section.name not in done]


def stopped_by(results):
    """Return the name of a section that failed and is needed by the rest, or None."""
    needed = [section.name for sections in PLAN.values() for section in sections if section.needed]
    states = {name: entry["state"] for name, entry in results["sections"].items()}
    return next((name for name in needed if states.get(name) in FAULTS), None)


@contextlib.contextmanager
def foreseeing(steps, found, *options):
    """Estimate and compile ``steps``, models and precisions, in the background; ``found`` says what came of each."""
    with contextlib.ExitStack() as stack:
        processes = {}
        for step in steps:
            out, errors = (stack.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in range(2))
            process = start("foresee", *step, *options, stdout=out, stderr=errors)
            stack.callback(end, process)
            processes[" ".join(step)] = process, out, errors
        yield
        for name, (process, out, errors) in processes.items():
            status = process.poll()
            last = contents(errors).strip().splitlines()[-1:] if status else []
            ending = ["not compiled in time"] if status is None else last
            found[name] = ", ".join([*contents(out).splitlines(), *ending])


def table(results):
    """Return the results as at most 40 lines."""
    entries = results["sections"]
    lines = [report.cuda_heading(results["machine"])]
    for name in (section.name for sections in PLAN.values() for section in sections):
        entry = entries.get(name, {"state": "-", "words": ""})
        lines.append(f"{name:34} {entry['state']:8} {' '.join(entry['words'].split())[:115]}".rstrip())
    for name in (" ".join(step) for step in STEPS):
        ours, *theirs = (entries.get(f"{name}, {who}", {}).get("figures") for who in CONTESTANTS)
        times = {who: row["seconds"]["seconds"] for who, row in zip(CONTESTANTS[1:], theirs, strict=True) if row}
        ratios = [f"{ours['graph']['seconds'] / time:.2f} of {who}" for who, time in times.items() if ours]
        measured = f"; a graph takes {', '.join(ratios)}" if ratios else ""
        lines.append(f"{name}: {results['foreseen'].get(name, 'not estimated')}{measured}")
    return "\n".join(lines)


def verdict(results):
    """Return in a sentence or two how the run ended."""
    states = [entry["state"] for entry in results["sections"].values()]
    total = sum(map(len, PLAN.values()))
    words = f"{states.count('ok')} of {total} sections passed"
    words += (
        f", {sum(map(states.count, FAULTS))} did not, {total - len(states) + states.count('not run')} were not run."
    )
    if name := stopped_by(results):
        words = f"{name} {results['sections'][name]['state']}: mend this first; the rest needs it. {words}"
    return words


def machine(*options):
    """Return what the figures depend on, as a process of child.py finds it; end with its words if it finds no GPU."""
    try:
        with start("machine", *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                out, said = process.communicate(timeout=2 * START)
            finally:
                end(process)
    except subprocess.TimeoutExpired:
        sys.exit(f"no GPU can be used: it does not answer within {2 * START} s")
    if process.returncode:
        sys.exit(said.strip() or f"no GPU can be used: the process that asked ended with status {process.returncode}")
    return json.loads(out)


def results_in(path):
    """Return the results that a run left in a file, without those of sections that are to run again."""
    try:
        results = read(path)
        entries = results["sections"] = {
            name: entry for name, entry in results["sections"].items() if entry["state"] not in ("running", "not run")
        }
        entries.pop(stopped_by(results), None)
        return results
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{path} has no results of an earlier run to go on from ({error!r}); leave out --go-on")


def main(args=None):
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__.partition(",")[0])
    parser.add_argument("results", nargs="?", type=Path, default="gpu.json", metavar="RESULTS.json")
    parser.add_argument("--go-on", type=Path, metavar="RESULTS.json", help="run what has no result there yet")
    parser.add_argument("--minutes", type=float, default=7, help="time for all of it")
    parser.add_argument("--stand-in", action="store_true", help="run it on a CPU, to see that all of it can run")
    args = parser.parse_args(args)
    if args.stand_in:
        join(PLAN)
    began, path, options = time.time(), (args.go_on or args.results).resolve(), ["--stand-in"] * args.stand_in
    if not path.parent.is_dir():
        parser.error(f"there is no folder {path.parent}")
    results = results_in(path) if args.go_on else {"sections": {}}
    results |= {"began": began, "machine": machine(*options), "foreseen": results.get("foreseen", {})}
    write(path, results)
    until, foreseen = began + 60 * args.minutes, results["foreseen"]
    steps = STEPS[:1] if args.stand_in else STEPS
    with foreseeing(steps if unfinished("checks", results) else [], foreseen, *options):
        supervise("checks", path, until, *options)
    write(path, read(path) | {"foreseen": foreseen})
    for name in PLAN:
        supervise(name, path, until, *options)
    results = read(path) | {"seconds": round(time.time() - began, 1)}
    write(path, results)
    print(f"\n{table(results)}\n{verdict(results)} {results['seconds']:.0f} s; everything is in {path}")
    sys.exit(any(entry["state"] in FAULTS for entry in results["sections"].values()))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))  # so that no process is left behind
    main()
