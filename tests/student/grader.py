"""The grader's side: the process of a student's file, and ops and modules that run there."""

import json
import math
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

SECONDS = 20  # for one call
START_SECONDS = 60  # for the file itself, with the imports of NumPy and minitl
BYTES = 1 << 30  # of one array that comes back
HEAD_BYTES = 100_000


class Mistake(Exception):
    """What a student did and what to do, in one sentence."""


class Student:
    """The process of a student's file. It starts anew after a call that did not return."""

    def __init__(self, path, seconds=SECONDS):
        self.path, self.seconds, self.process = Path(path).resolve(), seconds, None
        self.endless = set()  # what did not return once is not called again
        try:
            self.known, _ = self._ask("the file", "hello", str(self.path))
        except Mistake:
            self.close()
            raise

    def op(self, name):
        """Return an op that runs the student's function."""

        def call(*arrays, **options):
            head, (value, *written) = self._ask(name, "call", name, [packed(a) for a in arrays], packed(options))
            process, held = self.process, [o for o in options.values() if isinstance(o, np.ndarray)]
            for array, new in zip(held, written, strict=True):  # the running arrays of batch_norm
                if array.flags.writeable:
                    array[...] = new

            def backward(dy):
                if self.process is not process:
                    raise Mistake(f"the process of {name} ended before its backward was called")
                return _with_none(*self._ask(f"the backward of {name}", "pull", head["handle"], packed(dy)))

            return value, backward

        return call

    def module(self, name, options, state, inputs, dy):
        """Return the value and the gradients of the class ``name``: those of the inputs, then of the parameters."""
        head, (value, *grads) = self._ask(name, "module", name, options, state, inputs, dy)
        return value, _with_none(head, grads)

    def close(self):
        """End the process."""
        if self.process:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _ask(self, who, *request):
        """Send a request and return the reply: a dict, and arrays. Raises Mistake."""
        if who in self.endless:
            raise Mistake(f"{who} did not return before, so it is not called again")
        if self.process is None:
            worker = Path(__file__).with_name("worker.py")
            self.process = subprocess.Popen([sys.executable, worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            if request[0] != "hello":
                self._ask("the file", "hello", str(self.path))
        late = threading.Event()
        limit = START_SECONDS if request[0] == "hello" else self.seconds
        timer = threading.Timer(limit, lambda process: (late.set(), process.kill()), [self.process])
        timer.start()
        try:
            pickle.dump(request, self.process.stdin)
            self.process.stdin.flush()
            head = json.loads(self._read(line=True))
            arrays = [self._array(*about) for about in head.get("arrays", [])]
            if "mistake" not in head and not _complete(request[0], head, arrays):
                raise ValueError
        except (EOFError, BrokenPipeError):
            self.process.wait()
            code = self.process.returncode
            self.close()
            if late.is_set():
                self.endless.add(who)
                raise Mistake(f"{who} did not return within {limit} s: is there an endless loop?") from None
            raise Mistake(f"{who} ended its process (exit code {code}), so it could not be graded") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.close()
            raise Mistake(f"{who} interferes with the grader, so it could not be graded") from None
        finally:
            timer.cancel()
        if "mistake" in head:
            raise Mistake(head["mistake"])
        return head, arrays

    def _array(self, dtype, shape):
        dtype = np.dtype(dtype)
        if dtype.kind not in "biuf" or (count := math.prod(shape) * dtype.itemsize) > BYTES:
            raise ValueError
        return np.frombuffer(self._read(count), dtype).reshape(shape).copy()

    def _read(self, count=None, line=False):
        data = self.process.stdout.readline(HEAD_BYTES) if line else self.process.stdout.read(count)
        if (line and not data.endswith(b"\n")) or (not line and len(data) < count):
            raise EOFError
        return data


def _complete(kind, head, arrays):
    """Return whether a reply has all that it should have."""
    if kind == "hello":
        return {"ops", "classes", "unknown", "handed_on"} <= head.keys()
    if kind == "call":
        return isinstance(head["handle"], int) and len(arrays) > 0
    return head["none"].count(False) == len(arrays) - (kind == "module")


def packed(x):
    """Return arrays, alone or in a dict, as what the worker makes them of: with strides, and read-only if they are."""
    if isinstance(x, dict):
        return {name: packed(value) for name, value in x.items()}
    if not isinstance(x, np.ndarray):
        return x
    low, high = np.lib.array_utils.byte_bounds(x)
    data = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint8 * (high - low)).from_address(low)).tobytes()
    return ("array", data, x.shape, x.dtype, x.ctypes.data - low, x.strides, x.flags.writeable)


def _with_none(head, grads):
    grads = iter(grads)
    return tuple(None if none else next(grads) for none in head["none"])
