"""A child process of `python -m tests.gpu`: runs sections of the plan and writes each result to a file.

    python -m tests.gpu.child PROCESS RESULTS.json UNTIL [--stand-in]

PROCESS is a key of PLAN, and UNTIL the time, as in ``time.time()``, when the run must end. The name of each section is
written before it starts, so the file shows where a process died or hung. In place of PROCESS, ``machine`` prints
the GPU and the versions, and ``estimate MODEL PRECISION`` estimates and compiles a step in the background.
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
from .stand_in import merge, stand_in


def read(path):
    """Return all results so far."""
    return json.loads(path.read_text())


def write(path, results):
    """Write the results atomically, because this process may die at any time."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(results, indent=1, default=str))
    os.replace(temporary, path)


def note(path, name, **entry):
    """Write the result of one section, or the state "running"."""
    results = read(path)
    results["sections"][name] = entry
    write(path, results)


def say(name, entry, began):
    """Print a section's result as one line."""
    print(f"[{time.time() - began:4.0f} s] {name}: {entry['state']}, {entry['words']}", flush=True)


def run_sections(process, path, until):
    """Run the sections of a process that have no result yet, until one that the rest needs fails or the GPU is lost."""
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
        if entry["state"] == "failed" and (section.needed or not responds()):
            os._exit(0)  # a normal exit would let libraries wait for a GPU that may not respond


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


def responds():
    """Return True if the GPU still works for this process; after an illegal access in a kernel, every call fails."""
    if "cupy" not in sys.modules:
        return True
    cupy = sys.modules["cupy"]
    try:
        cupy.cuda.Device().synchronize()
        return True
    except Exception:
        return False


def machine():
    """Print the GPU and the versions as JSON; exit with the reason if there is no usable GPU."""
    if problem := cuda_problem():
        sys.exit(f"no GPU can be used: {problem}")
    print(json.dumps(measure_cuda.machine()))


def main(what, *args):
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # prints a traceback when it hangs
    args, dry = [a for a in args if a != "--stand-in"], "--stand-in" in args
    if dry:
        merge(PLAN)
    with stand_in() if dry else contextlib.nullcontext():
        if what == "machine":
            machine()
        elif what == "estimate":
            sections.estimate(*args)
        else:
            run_sections(what, Path(args[0]), float(args[1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
