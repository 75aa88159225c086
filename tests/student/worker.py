"""Run a student's file in a process of its own, and call its functions for the grader, which judges what they return.

The grader sends pickles to stdin; the answers are a line of JSON and the bytes of arrays, on what was stdout. Prints of
the file go nowhere. Nothing that the file does here can change the grader, its tests or its copy of minitl.
"""

import contextlib
import importlib.util
import inspect
import json
import linecache
import os
import pickle
import sys
import traceback
from pathlib import Path

import numpy as np

import minitl
import minitl.nn
from minitl import OPS, Tensor

BYTES = 4 << 30  # of memory
FILE_BYTES = 10 << 20
PROCESSES = 256
PACKAGE = Path(minitl.__file__).parent
FORBIDDEN = tuple(str(PACKAGE / folder) + os.sep for folder in ("ops", "fast"))  # the answers
SOURCES = (*FORBIDDEN, str(Path(__file__).resolve().parents[1]) + os.sep)  # and the tests


class Mistake(Exception):
    """What the student did and what to do, in one sentence."""


class Watch:
    """Note when the file runs or reads the package's own answers, or removes this watch."""

    def __init__(self):
        self.seen, self.on, self.name = {}, False, ""  # seen: name -> what it did
        self.answers = None  # the identities of a module's methods; None: the files of the ops
        sys.addaudithook(self._audit)

    @contextlib.contextmanager
    def over(self, name):
        self.name = name
        sys.setprofile(self._profile)
        self.on = True
        try:
            yield
        finally:
            self.on = False
            sys.setprofile(None)
            if name in self.seen:
                raise Mistake(self.seen[name])

    def _profile(self, frame, event, _):
        code = frame.f_code
        ours = code.co_filename.startswith(FORBIDDEN) if self.answers is None else id(code) in self.answers
        if event == "call" and ours:
            self.seen[self.name] = (
                f"{self.name} runs minitl's own code ({Path(code.co_filename).name}): write it yourself"
            )

    def _audit(self, event, args):
        if not self.on:
            return
        if event == "open" and isinstance(args[0], str) and os.path.abspath(args[0]).startswith(SOURCES):
            self.seen[self.name] = (
                f"{self.name} reads minitl's own code or its tests ({Path(args[0]).name}): write it yourself"
            )
        elif event in ("sys.setprofile", "code.__new__"):
            self.seen[self.name] = f"{self.name} interferes with the grader"


class Worker:
    """The functions and classes of a student's file, and the results that still wait for a backward call."""

    def __init__(self, path):
        self.path, self.watch, self.waiting = path, Watch(), []
        module = self._run(path)
        folder = str(path.parent) + os.sep
        self.functions, self.classes, self.handed_on = {}, {}, []
        for name, value in vars(module).items():
            if inspect.isclass(value) and value.__module__ == "student":
                self.classes[name] = value
            elif callable(value) and not inspect.isclass(value) and not name.startswith("_"):
                code = getattr(inspect.unwrap(value), "__code__", None)
                if code and code.co_filename.startswith(folder):
                    self.functions[name] = inspect.unwrap(value)
                elif code and code.co_filename.startswith(FORBIDDEN) and name in OPS:
                    self.handed_on.append(name)

    def _run(self, path):
        """Return the module of the file; Mistake if it cannot be run."""
        sys.path.insert(0, str(path.parent))  # for `from helper import *`
        module = importlib.util.module_from_spec(importlib.util.spec_from_file_location("student", path))
        sys.modules["student"] = module
        try:
            code = compile(path.read_text(encoding="utf-8-sig"), str(path), "exec")
            with self.watch.over("the file"):
                exec(code, module.__dict__)
        except Mistake:
            raise
        except SyntaxError as error:
            raise Mistake(f"the file is not valid Python: {error.msg}, in line {error.lineno}") from error
        except UnicodeDecodeError as error:
            raise Mistake("the file is not text in UTF-8: save it as UTF-8") from error
        except SystemExit as error:
            raise Mistake("the file calls sys.exit when it is imported: remove that line") from error
        except BaseException as error:
            raise Mistake(f"the file cannot be run: {self._told(error)}") from error
        return module

    def hello(self):
        unknown = [name for name in self.functions if name not in OPS]
        known = {"ops": [n for n in self.functions if n in OPS], "classes": list(self.classes), "unknown": unknown}
        return known | {"handed_on": self.handed_on}, []

    def call(self, name, arrays, options):
        """Return the value of the op ``name``, and the arrays among its options, which it may have written to."""
        made = self._student(name, self.functions[name], *arrays, **options)
        if made is None:
            raise Mistake(f"{name} returns nothing: end it with `return y, backward`")
        if not (isinstance(made, tuple) and len(made) == 2 and callable(made[1])):
            got = f"{len(made)} things" if isinstance(made, tuple) else type(made).__name__
            raise Mistake(f"an op returns two things, its value and the function backward(dy); {name} returns {got}")
        value = self._array(made[0], "the value")
        floats = {a.dtype.name for a in arrays if isinstance(a, np.ndarray) and a.dtype.kind == "f"}
        if floats == {"float32"} and value.dtype == np.float64:
            raise Mistake(
                "the inputs are float32 and the value is float64: a NumPy number such as np.sqrt(d) or an array of "
                "float64 did that; use Python's numbers, such as math.sqrt(d)"
            )
        self.waiting.append((name, made[1], len(arrays), floats))
        state = [option for option in options.values() if isinstance(option, np.ndarray)]
        return {"handle": len(self.waiting) - 1}, [value, *state]

    def pull(self, handle, dy):
        """Return the gradients that a backward gives for dy."""
        name, backward, count, floats = self.waiting[handle]
        grads = self._student(f"the backward of {name}", backward, dy)
        grads = grads if isinstance(grads, tuple) else (grads,)
        grads = tuple(self._student(f"the backward of {name}", g) if callable(g) else g for g in grads)
        if all(g is None for g in grads):
            raise Mistake(f"the backward of {name} returns nothing: end it with `return dx`")
        if len(grads) < count or any(g is not None for g in grads[count:]):  # None for an input that is left out
            raise Mistake(f"the backward of {name} returns {len(grads)} gradients for {count} inputs: one for each")
        grads = [None if g is None else self._array(g, "a gradient") for g in grads]
        if floats == {"float32"} and any(g is not None and g.dtype == np.float64 for g in grads):
            raise Mistake(
                f"the inputs of {name} are float32 and a gradient is float64: a NumPy number or an array of float64 "
                "in backward did that"
            )
        return {"none": [g is None for g in grads]}, [g for g in grads if g is not None]

    def module(self, name, options, state, inputs, dy):
        """Build the class ``name``, load ``state``, and return its value and all gradients, inputs first."""
        owner = getattr(minitl.nn, name)
        self.watch.answers = {id(f.__code__) for f in vars(owner).values() if inspect.isfunction(f)}
        try:
            module = self._student(name, self.classes[name], **options)
            shapes = {key: array.shape for key, array in module.to(dtype="float64").state_dict().items()}
            if shapes != (right := {key: array.shape for key, array in state.items()}):
                raise Mistake(f"the learned arrays of {name} are {_listed(shapes)}; expected {_listed(right)}")
            module.load_state_dict(state)
            tensors = [Tensor(x, requires_grad=True) for x in inputs]
            out = self._student(f"{name}.forward", module, *tensors)
            if not isinstance(out, Tensor):
                raise Mistake(f"{name}.forward returns {type(out).__name__}, not a Tensor")
            if out.shape == dy.shape:
                self._student(f"{name}.forward", out.backward, dy)
            grads = [t.grad for t in (*tensors, *dict(module.named_parameters()).values())]
        finally:
            self.watch.answers = None
        return {"none": [g is None for g in grads]}, [out.data, *(g for g in grads if g is not None)]

    def _student(self, name, fn, *args, **options):
        """Call a student's function; Mistake says in a sentence what went wrong in it."""
        try:
            with self.watch.over(name), np.errstate(all="ignore"):
                return fn(*args, **options)
        except Mistake:
            raise
        except SystemExit as error:
            raise Mistake(f"{name} calls sys.exit: remove that line") from error
        except MemoryError as error:
            raise Mistake(f"{name} needs more than {BYTES >> 30} GiB of memory") from error
        except BaseException as error:
            raise Mistake(f"{name} stops with {self._told(error)}") from error

    def _told(self, error):
        """Return an error as a sentence with the line of the student's file, and a remedy for the usual ones."""
        place, folder = "", str(self.path.parent) + os.sep
        for frame in traceback.extract_tb(error.__traceback__):
            if frame.filename.startswith(folder):
                place = f" in line {frame.lineno}, `{linecache.getline(frame.filename, frame.lineno).strip()}`"
        text = f"{type(error).__name__}{place}: {error}"
        if "read-only" in str(error):
            text += "; an op never writes into its arguments or dy: make a new array, y = x * 2 instead of x *= 2"
        return text

    def _array(self, value, what):
        if isinstance(value, Tensor):
            raise Mistake(f"{what} is a Tensor: an op is a function of arrays, and returns arrays")
        value = np.asarray(value) if isinstance(value, np.generic | float | int) else value
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
            raise Mistake(f"{what} is {type(value).__name__}, not an array of numbers")
        return value


def _listed(shapes):
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none"


def unpacked(x):
    """Return arrays as the grader had them: with their strides, and read-only if they were."""
    if isinstance(x, list):
        return [unpacked(item) for item in x]
    if isinstance(x, dict):
        return {name: unpacked(value) for name, value in x.items()}
    if not (isinstance(x, tuple) and x and x[0] == "array"):
        return x
    _, data, shape, dtype, offset, strides, writeable = x
    array = np.ndarray(shape, dtype, bytearray(data), offset, strides)
    array.flags.writeable = writeable
    return array


def limit():
    """Limit memory, the size of files and the number of processes where the system can."""
    try:
        import resource
    except ImportError:
        return
    for kind, most in (("RLIMIT_AS", BYTES), ("RLIMIT_FSIZE", FILE_BYTES), ("RLIMIT_NPROC", PROCESSES)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(getattr(resource, kind), (most, most))


def main():
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    limit()

    def reply(head, arrays=()):
        arrays = [np.ascontiguousarray(a).reshape(np.shape(a)) for a in arrays]
        head = head | {"arrays": [[a.dtype.str, list(a.shape)] for a in arrays]}
        replies.write(json.dumps(head).encode() + b"\n" + b"".join(a.tobytes() for a in arrays))
        replies.flush()

    worker = None
    while True:
        try:
            what, *args = pickle.load(requests)
        except EOFError:
            return
        try:
            if what == "hello":
                worker = Worker(Path(args[0]))
                reply(*worker.hello())
            else:
                reply(*getattr(worker, what)(*map(unpacked, args)))
        except Mistake as mistake:
            reply({"mistake": str(mistake)})


if __name__ == "__main__":
    main()
