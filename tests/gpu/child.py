"""A process that runs sections of the plan and writes down each result, for the process that watches over it.

    python -m tests.gpu.child PROCESS RESULTS.json UNTIL [--stand-in]

PROCESS is a key of PLAN, and UNTIL the time at which all must end. Before each section its name is written, so that it
is known where the process died or hung. Two other words are for the beginning: ``machine`` prints what the figures
depend on, and ``foresee MODEL PRECISION`` works in the background.
"""

import contextlib
import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from minitl.backend import cuda_problem
from tests.bench import measure_cuda

from . import sections
from .plan import PLAN
from .stand_in import join, stand_in


def read(path):
    """Return all results so far."""
    return json.loads(path.read_text())


def write(path, results):
    """Replace the results in one step, as this process may die at any time."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(results, indent=1, default=str))
    os.replace(temporary, path)


def note(path, name, **entry):
    """Write the result of one section, or that it is running."""
    results = read(path)
    results["sections"][name] = entry
    write(path, results)


def say(name, entry, began):
    """Print a section's result as one line."""
    print(f"[{time.time() - began:4.0f} s] {name}: {entry['state']}, {entry['words']}", flush=True)


def run_sections(process, path, until):
    """Run the sections of a process that have no result yet, as long as the GPU answers."""
    for section in PLAN[process]:
        results = read(path)
        if section.name in results["sections"]:
            continue
        now = time.time()
        if now + section.seconds > until:
            words = f"out of time: it takes {section.seconds} s, and {max(0, until - now):.0f} s are left"
            entry = {"state": "not run", "words": words}
        else:
            note(path, section.name, state="running", began=now, limit=min(section.limit, until - now))
            sections.earlier = results["sections"]
            entry = outcome(section.call) | {"seconds": round(time.time() - now, 1)}
        note(path, section.name, **entry)
        say(section.name, entry, results["began"])
        if entry["state"] == "failed" and (section.needed or not answers()):
            os._exit(0)  # at a normal end, libraries would wait for a GPU that may not answer


def outcome(call):
    """Return the result of a section as a dict."""
    try:
        words, figures = call()
    except sections.NotRun as reason:
        return {"state": "not run", "words": str(reason)}
    except Exception as error:
        text = traceback.format_exc(limit=-4)
        return {"state": "failed", "words": f"{type(error).__name__}: {error}"[:600], "traceback": text[-2500:]}
    return {"state": "ok", "words": words, "figures": figures}


def answers():
    """Return whether the GPU still works for this process; after a fault of a kernel it refuses everything."""
    if "cupy" not in sys.modules:
        return True
    cupy = sys.modules["cupy"]
    try:
        cupy.cuda.Device().synchronize()
        return True
    except Exception:
        return False


def machine():
    """Print what the figures depend on as JSON; without a GPU, end with a sentence that says why."""
    if problem := cuda_problem():
        sys.exit(f"no GPU can be used: {problem}")
    print(json.dumps(measure_cuda.machine()))


def main(what, *args):
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # to say where it hangs
    args, dry = [a for a in args if a != "--stand-in"], "--stand-in" in args
    if dry:
        join(PLAN)
    with stand_in() if dry else contextlib.nullcontext():
        if what == "machine":
            machine()
        elif what == "foresee":
            sections.foresee(*args)
        else:
            run_sections(what, Path(args[0]), float(args[1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
