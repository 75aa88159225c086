"""All checks and measurements that need a GPU, in one command with a time limit:

    python -m tests.gpu [RESULTS.json] [--minutes 7] [--stand-in]
    python -m tests.gpu --go-on RESULTS.json

The most valuable sections come first (plan.py). This process supervises child processes, which run the sections
(child.py) and write each result to RESULTS.json (gpu.json by default) at once. If a child dies or hangs, its section is
marked, and a new child continues with the next section. If a section that the others depend on fails, such as products
or captured steps, the run stops there. The output ends with a table; the exit status is 1 if a section failed.

``--go-on`` runs the sections that have no result in RESULTS.json yet, and the one that stopped the run, once it is
fixed. ``--stand-in`` runs everything on a CPU, in seconds, to test these files.

The run needs a checkout, CuPy, NumPy, tqdm, threadpoolctl, safetensors and pytest, whose tests some sections share, and
PyTorch for the comparison if it is installed. Pillow, matplotlib, tyro and pooch are not needed.
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
from .plan import PLAN, START_SECONDS, STEPS
from .stand_in import merge

ROOT = Path(__file__).resolve().parents[2]
CHILD = [sys.executable, "-m", "tests.gpu.child"]
FAULTS = ("failed", "died", "hung")  # states of sections
CONTESTANTS = ("minitl", "PyTorch compiled", "PyTorch eager")


def start(*args, **options):
    """Start child.py in a process group of its own, so that ``end`` reaches everything that it starts."""
    return subprocess.Popen([*CHILD, *args], cwd=ROOT, process_group=0, **options)


def end(process):
    """Kill a process and everything that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)  # a process that waits for the driver may survive even SIGKILL


def contents(file):
    """Return the whole text of an open file."""
    file.seek(0)
    return file.read()


def supervise(name, path, until, *options):
    """Run the sections of a process of the plan until all have results, or one that the rest needs has failed."""
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
    """Wait until a process ends, or kill it when it makes no progress.

    Returns the state of the section that it was running, "died" or "hung", and a phrase that says what happened.
    """
    began = time.time()
    while child.poll() is None:
        time.sleep(0.05)
        results = read(path)
        if section := running(results):
            entry = results["sections"][section]
            since, limit = entry["began"], entry["limit"]
        else:
            since, limit = max(began, path.stat().st_mtime), START_SECONDS
        if time.time() > since + limit:
            child.send_signal(signal.SIGUSR1)  # prints a traceback of where it hangs
            time.sleep(0.1)
            end(child)
            return "hung", f"killed after {limit:.0f} s{', because time was up' if time.time() > until else ''}"
    status = child.returncode
    return "died", f"by signal {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"


def running(results):
    """Return the name of the section that was started but has not finished, or None."""
    return next((name for name, entry in results["sections"].items() if entry["state"] == "running"), None)


def unfinished(name, results):
    """Return the names of the sections of a process that have no result yet."""
    done = {section for section, entry in results["sections"].items() if entry["state"] != "running"}
    return [section.name for section in PLAN[name] if section.name not in done]


def stopped_by(results):
    """Return the name of a failed section that the rest needs, or None."""
    needed = [section.name for sections in PLAN.values() for section in sections if section.needed]
    states = {name: entry["state"] for name, entry in results["sections"].items()}
    return next((name for name in needed if states.get(name) in FAULTS), None)


@contextlib.contextmanager
def estimating(steps, found, *options):
    """Estimate the time of ``steps`` (models and precisions), and compile PyTorch's, in the background.

    The outcome of each is stored in ``found``, as a phrase.
    """
    with contextlib.ExitStack() as stack:
        processes = {}
        for step in steps:
            out, errors = (stack.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in range(2))
            process = start("estimate", *step, *options, stdout=out, stderr=errors)
            stack.callback(end, process)
            processes[" ".join(step)] = process, out, errors
        yield
        for name, (process, out, errors) in processes.items():
            status = process.poll()
            last = contents(errors).strip().splitlines()[-1:] if status else []
            ending = ["not compiled in time"] if status is None else last
            found[name] = ", ".join([*contents(out).splitlines(), *ending])


def table(results):
    """Return the results as text of at most 40 lines."""
    entries = results["sections"]
    lines = [report.cuda_heading(results["machine"])]
    for name in (section.name for sections in PLAN.values() for section in sections):
        entry = entries.get(name, {"state": "-", "words": ""})
        lines.append(f"{name:34} {entry['state']:8} {' '.join(entry['words'].split())[:115]}".rstrip())
    for name in (" ".join(step) for step in STEPS):
        ours, *theirs = (entries.get(f"{name}, {who}", {}).get("figures") for who in CONTESTANTS)
        times = {who: row["seconds"]["seconds"] for who, row in zip(CONTESTANTS[1:], theirs, strict=True) if row}
        ratios = [f"{ours['graph']['seconds'] / time:.2f} of {who}" for who, time in times.items() if ours]
        measured = f"; time of a graph: {', '.join(ratios)}" if ratios else ""
        lines.append(f"{name}: {results['estimates'].get(name, 'not estimated')}{measured}")
    return "\n".join(lines)


def verdict(results):
    """Return a sentence or two on how the run ended."""
    states = [entry["state"] for entry in results["sections"].values()]
    total = sum(map(len, PLAN.values()))
    failed, left = sum(map(states.count, FAULTS)), total - len(states) + states.count("not run")
    words = f"Of {total} sections, {states.count('ok')} passed, {failed} failed and {left} did not run."
    if name := stopped_by(results):
        words = f"{name} {results['sections'][name]['state']}: fix this first; the rest needs it. {words}"
    return words


def machine(*options):
    """Return the GPU and the versions as found by child.py; exit with its message if it finds no GPU."""
    try:
        with start("machine", *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                out, said = process.communicate(timeout=2 * START_SECONDS)
            finally:
                end(process)
    except subprocess.TimeoutExpired:
        sys.exit(f"no GPU can be used: it does not answer within {2 * START_SECONDS} s")
    if process.returncode:
        sys.exit(said.strip() or f"no GPU can be used: the process that asked ended with status {process.returncode}")
    return json.loads(out)


def results_in(path):
    """Return the results of an earlier run from a file, without those of sections to run again."""
    try:
        results = read(path)
        entries = results["sections"] = {
            name: entry for name, entry in results["sections"].items() if entry["state"] not in ("running", "not run")
        }
        entries.pop(stopped_by(results), None)
        return results
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{path} has no results of an earlier run ({error!r}); omit --go-on")


def main(args=None):
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__.partition(",")[0])
    parser.add_argument(
        "results",
        nargs="?",
        type=Path,
        default="gpu.json",
        metavar="RESULTS.json",
        help="file to write, gpu.json by default",
    )
    parser.add_argument(
        "--go-on", type=Path, metavar="RESULTS.json", help="continue that run: run the sections without a result"
    )
    parser.add_argument("--minutes", type=float, default=7, help="time limit of the whole run, 7 by default")
    parser.add_argument(
        "--stand-in", action="store_true", help="run everything on a CPU, without a GPU, to test these files"
    )
    args = parser.parse_args(args)
    if args.stand_in:
        merge(PLAN)
    began, path, options = time.time(), (args.go_on or args.results).resolve(), ["--stand-in"] * args.stand_in
    if not path.parent.is_dir():
        parser.error(f"there is no folder {path.parent}")
    results = results_in(path) if args.go_on else {"sections": {}}
    results |= {"began": began, "machine": machine(*options), "estimates": results.get("estimates", {})}
    write(path, results)
    until, estimates = began + 60 * args.minutes, results["estimates"]
    steps = STEPS[:1] if args.stand_in else STEPS
    with estimating(steps if unfinished("checks", results) else [], estimates, *options):
        supervise("checks", path, until, *options)
    write(path, read(path) | {"estimates": estimates})
    for name in PLAN:
        supervise(name, path, until, *options)
    results = read(path) | {"seconds": round(time.time() - began, 1)}
    write(path, results)
    print(f"\n{table(results)}\n{verdict(results)} {results['seconds']:.0f} s; all figures are in {path}")
    sys.exit(any(entry["state"] in FAULTS for entry in results["sections"].values()))


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM")
    )  # exit normally, so that no child is left behind
    main()
