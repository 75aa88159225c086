"""The process that runs a notebook for ``core``: ``python -m minitl.teach.worker``.

It reads a line of JSON with the cells from stdin, and writes a line for each cell when it starts and when it ended.
Prints go nowhere else. Tests run in a namespace of their own, which has the names of the teacher's cells and of the
answers; before each, what the notebook replaced in NumPy, minitl or the teacher's names is put back and named.
"""

import contextlib
import importlib
import io
import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

from .source import bound

BYTES = 4 << 30  # of memory
FILE_BYTES = 10 << 20
PROCESSES = 64  # and threads, more than there are
OUTPUT = 1_000_000  # characters that one cell prints
PICTURE = 2_000_000  # characters of one figure
KEPT = 20_000  # characters of a cell's prints that are kept
STARTS = 20  # other programs that a notebook starts
NOBODY = 65534
PACKAGE = str(Path(__file__).resolve().parents[1]) + os.sep


class Refused(Exception):
    """What a cell does that is not allowed while it is graded; the message says it in words."""


class Limited(io.StringIO):
    """What a cell prints."""

    def write(self, text):
        if self.tell() + len(text) > OUTPUT:
            raise Refused(f"the cell prints more than {OUTPUT:,} characters")
        return super().write(text)


class Worker:
    """The state of a notebook that runs, and what was seen that should not be."""

    def __init__(self, cells, secret_folders):
        self.secret, self.key, self.starts, self.seen = tuple(secret_folders), "", 0, []
        self.answers = {c["id"]: c for c in cells if c["kind"] == "answer"}
        self.forbidden = {name for cell in self.answers.values() for name in cell.get("forbids", ())}
        self.handed_on, self.watching = {}, False  # handed_on: id of an answer -> what it runs
        self.ours, self.given = {}, {}  # names that tests see: those of tests, and those of given cells
        self.process = os.getpid()

    def prepare(self):
        """Import what notebooks use, and remember it as it is."""
        from IPython.core.displayhook import CapturingDisplayHook
        from IPython.core.displaypub import CapturingDisplayPublisher
        from IPython.core.interactiveshell import InteractiveShell

        import minitl.data
        import minitl.metrics
        import minitl.train

        self.shell = shell = InteractiveShell.instance()
        shell.history_manager.enabled = False
        shell.compile.get_code_name = lambda *_: f"<{self.key}>"
        shell.showtraceback = shell.showsyntaxerror = lambda *_, **__: None  # the outcome has the error
        shell.display_pub = CapturingDisplayPublisher(shell=shell)
        self.hook = CapturingDisplayHook(shell=shell, outputs=shell.display_pub.outputs)
        shell.display_trap.hook = self.hook
        shell.enable_gui = lambda *_: None
        shell.enable_matplotlib("inline")
        importlib.import_module("numpy.testing")
        self.modules = {name: m for name, m in sys.modules.items() if _guarded(name) and m is not None}
        self.originals, self.ops = {}, dict(minitl.OPS)
        for name, module in self.modules.items():
            for attribute, value in list(vars(module).items()):
                if callable(value):
                    self.originals[name, attribute] = module, value
                if isinstance(value, type) and name.startswith("minitl") and value.__module__ == name:
                    for method, function in list(vars(value).items()):
                        if callable(function):
                            self.originals[f"{name}.{attribute}", method] = value, function
        sys.path.insert(0, os.getcwd())  # for lesson.py
        sys.addaudithook(self._audit)

    def run(self, cell):
        """Run a cell; return its outcome: an error or None, outputs, and what else was seen."""
        self.key, self.seen = cell["id"], []
        self._restore()
        out, err, start = Limited(), Limited(), time.process_time()
        self.shell.display_pub.outputs.clear()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            error = self._test(cell) if cell["kind"] in ("test", "hidden") else self._shell(cell)
        if os.getpid() != self.process:
            os._exit(0)  # a copy of this process, made by the notebook
        seconds = time.process_time() - start
        if cell["kind"] == "given":
            names = _bound(cell["source"]) - {n for c in self.answers.values() for n in c["defines"]}
            self.given.update({n: self.shell.user_ns[n] for n in names if n in self.shell.user_ns})
        outputs = [_stream("stdout", out), *map(_picture, self.shell.display_pub.outputs)]
        outputs += [] if cell["kind"] in ("test", "hidden") else [_stream("stderr", err)]
        return {"error": error, "outputs": [o for o in outputs if o], "seen": self.seen, "seconds": seconds}

    def _shell(self, cell):
        """Run a cell as Jupyter does."""
        self.watching = cell["kind"] != "given"
        try:
            result = self.shell.run_cell(cell["source"], store_history=False)
        finally:
            self.watching = False
        if cell["kind"] == "answer":
            self.handed_on.pop(cell["id"], None)
            for name in cell["defines"]:
                if _is_ours(self.shell.user_ns.get(name)):
                    self.handed_on[cell["id"]] = f"{name} is minitl's own: write it yourself"
        error = result.error_before_exec or result.error_in_exec
        return self._told(error) if error is not None else None

    def _test(self, cell):
        """Run a test: plain Python with the teacher's names and the answers."""
        import numpy as np

        answers = {n for c in self.answers.values() for n in c["defines"]}
        names = {**self.given, **self.ours, "__name__": "__main__"}
        names |= {n: self.shell.user_ns[n] for n in answers if n in self.shell.user_ns}
        before = {*names}
        if self.handed_on.get(cell["task"]):
            self.seen.append(self.handed_on[cell["task"]])
            return ["AssertionError", self.handed_on[cell["task"]], []]
        self.watching = True
        sys.setprofile(self._profile if self.forbidden else None)
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                exec(compile(cell["source"], f"<{cell['id']}>", "exec"), names)
            told = None
        except BaseException as error:
            told = self._told(error)
        finally:
            sys.setprofile(None)
            self.watching = False
            self.ours.update({n: names[n] for n in {*names} - before - answers})
        if cell["task"] in self.handed_on:
            self.seen.append(self.handed_on[cell["task"]])
            return ["AssertionError", self.handed_on.pop(cell["task"]), []]
        return told

    def _restore(self):
        """Put back what the notebook replaced, and name it."""
        import minitl

        for name, module in self.modules.items():
            if sys.modules.get(name) is not module:
                sys.modules[name] = module
                self.seen.append(f"replaces the module {name}")
        for (owner, attribute), (holder, value) in self.originals.items():
            if vars(holder).get(attribute) is not value:
                setattr(holder, attribute, value)
                self.seen.append(f"replaces {owner}.{attribute}")
        minitl.OPS.update(self.ops)
        self.shell.user_ns.update(self.given)

    def _profile(self, frame, event, _):
        """Note a call of minitl's own answer by the student's code."""
        code = frame.f_code
        if event != "call" or code.co_qualname.split(".")[0] not in self.forbidden:
            return
        if not code.co_filename.startswith(PACKAGE):
            return
        name, caller = code.co_qualname.split(".")[0], frame.f_back
        while caller is not None:
            answer = self.answers.get(caller.f_code.co_filename[1:-1])
            if answer and name in answer["forbids"]:
                self.handed_on[answer["id"]] = f"{answer['defines'][-1]} runs minitl's own {name}: write it yourself"
                return
            caller = caller.f_back

    def _audit(self, event, args):
        """Refuse copies of the process, many programs, and the files of the teacher."""
        if not self.watching:
            return
        if event in ("os.fork", "os.forkpty"):
            raise Refused("the notebook starts a copy of its process, which is not allowed while it is graded")
        if event in ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "pty.spawn"):
            self.starts -= 1
            if self.starts < 0 or event == "os.exec":
                raise Refused("the notebook starts other programs, which is not allowed while it is graded")
        elif event == "open" and isinstance(args[0], str) and args[0]:
            path = os.path.abspath(args[0])
            if self.secret and path.startswith(self.secret):
                self.seen.append(f"reads the teacher's file {Path(path).name}")
                raise Refused("the notebook reads the teacher's files, which is not allowed")

    def _told(self, error):
        """Return an error as its type, a sentence, and the lines of the notebook that led to it."""
        if isinstance(error, SystemExit):
            return ["SystemExit", "the cell calls sys.exit: remove that line", []]
        if isinstance(error, MemoryError):
            return ["MemoryError", f"the cell needs more than {BYTES >> 30} GiB of memory", []]
        if isinstance(error, SyntaxError):
            return [type(error).__name__, f"{error.msg}, in line {error.lineno}", []]
        try:
            text = str(error)[:2000] or type(error).__name__
        except BaseException:
            text = "an error without a readable message"
        lines = []
        for frame in traceback.extract_tb(error.__traceback__)[-40:]:
            if frame.filename[:1] == "<" and frame.filename[1:-1] in self.known:
                source = self.known[frame.filename[1:-1]].split("\n")
                code = source[frame.lineno - 1].strip() if 0 < (frame.lineno or 0) <= len(source) else ""
                lines.append(f"{frame.filename[1:-1]}, line {frame.lineno}: {code}"[:300])
        return [type(error).__name__, text, lines]


def _guarded(name):
    return name in ("builtins", "numpy", "numpy.testing", "numpy.linalg", "math") or name.split(".")[0] == "minitl"


def _is_ours(value):
    """Return whether a value is a class or a function of minitl."""
    if isinstance(value, type):
        return value.__module__.split(".")[0] == "minitl"
    while hasattr(value, "__wrapped__"):
        value = value.__wrapped__
    return getattr(getattr(value, "__code__", None), "co_filename", "").startswith(PACKAGE)


def _bound(text):
    try:
        return {*bound(text)}
    except SyntaxError:  # IPython's own commands
        return set()


def _stream(name, stream):
    text = stream.getvalue()
    more = f"\n… {len(text) - KEPT:,} more characters" if len(text) > KEPT else ""
    return {"output_type": "stream", "name": name, "text": text[:KEPT] + more} if text else None


def _picture(output):
    data = {kind: value for kind, value in output["data"].items() if len(json.dumps(value, default=str)) <= PICTURE}
    return {"output_type": "display_data", "data": data, "metadata": {}}


def _become_nobody():
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def limit():
    """Limit memory, the size of files and the number of processes where the system can; root becomes nobody.

    Return how many other programs may be started: none where the number of processes cannot be limited.
    """
    try:
        import resource
    except ImportError:
        return 0
    if os.geteuid() == 0 and (child := os.fork()) == 0:  # root's processes are not limited
        try:
            folders = [path for path in sys.path if os.path.isdir(path)]
            _become_nobody()
            for folder in folders:
                os.listdir(folder)
            os._exit(0)
        finally:
            os._exit(1)
    elif os.geteuid() == 0 and os.waitpid(child, 0)[1] == 0:  # nobody can import what lies on sys.path
        _become_nobody()
    count = 0
    for task in Path("/proc").glob("[0-9]*/task/*") if os.path.isdir("/proc/self/task") else ():
        with contextlib.suppress(OSError):
            count += task.stat().st_uid == os.getuid()
    for kind, most in (("AS", BYTES), ("FSIZE", FILE_BYTES), ("NPROC", count + PROCESSES), ("CORE", 0)):
        with contextlib.suppress(ValueError, OSError, AttributeError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (most, most))
    return STARTS if os.geteuid() else 0


def main():
    with contextlib.suppress(AttributeError, OSError):  # not there, or it leads a group already
        os.setsid()  # so that a notebook that kills its group does not end `unshare` above it, and later itself
    asked = json.loads(sys.stdin.readline())
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")

    def reply(**line):
        replies.write(json.dumps({"token": asked["token"], **line}) + "\n")
        replies.flush()

    worker = Worker(asked["cells"], asked["secret"])
    worker.known = {cell["id"]: cell["source"] for cell in asked["cells"]}
    worker.prepare()
    worker.starts = limit()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    for i, cell in enumerate(asked["cells"]):
        reply(start=i)
        reply(end=i, **worker.run(cell))
    os._exit(0)  # without the functions that the notebook may have left for the end


if __name__ == "__main__":
    main()
