"""Fixtures, and ``--student FILE``: the functions of that file take the place of the ops of the same name."""

import difflib
import functools
import importlib.util
import inspect
from pathlib import Path

import numpy as np
import pytest

import minitl
from minitl import backend


def pytest_addoption(parser):
    parser.addoption(
        "--student",
        metavar="FILE",
        help="grade the functions of FILE, named like ops and returning (value, pullback), by the tests of the ops",
    )


def pytest_configure(config):
    config.student_ops, config.student_unknown = [], []
    if not config.getoption("--student"):
        return
    config.option.tbstyle = "short"  # a student reads the message, not the harness
    for name, fn in functions(Path(config.getoption("--student"))).items():
        if name in minitl.OPS:
            config.student_ops.append(name)
            original = minitl.OPS[name]
            config.add_cleanup(lambda name=name, fn=original: minitl.OPS.__setitem__(name, fn))
            minitl.OPS[name] = two_things(fn)
        else:
            near = difflib.get_close_matches(name, minitl.OPS, 1)
            config.student_unknown.append(f"{name} (do you mean {near[0]}?)" if near else name)
    if not config.student_ops:
        unknown = f", but: {', '.join(config.student_unknown)}" if config.student_unknown else ""
        raise pytest.UsageError(f"--student: {config.getoption('--student')} has no function named like an op{unknown}")


def two_things(fn):
    """``fn``, with a clear message where it does not return both its value and its pullback."""

    @functools.wraps(fn)
    def call(*args, **options):
        made = fn(*args, **options)
        if not (isinstance(made, tuple) and len(made) == 2 and callable(made[1])):
            raise TypeError("an op returns two things: its value, and the function backward(dy)")
        return made

    return call


def functions(path):
    """The public functions that the Python file at ``path`` defines itself, by name."""
    if not path.is_file():
        raise pytest.UsageError(f"--student: there is no file {path}")
    spec = importlib.util.spec_from_file_location("student", path)
    module = importlib.util.module_from_spec(spec)
    before = dict(minitl.OPS)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a student's file may fail in any way
        raise pytest.UsageError(f"--student: {path} cannot be run: {type(error).__name__}: {error}") from error
    finally:  # a file that used @op has registered itself already
        minitl.OPS.clear()
        minitl.OPS.update(before)
    found = {name: inspect.unwrap(value) for name, value in vars(module).items() if inspect.isfunction(value)}
    return {name: fn for name, fn in found.items() if fn.__module__ == "student" and not name.startswith("_")}


def pytest_collection_modifyitems(config, items):
    """With ``--student``, rows of ops that the file does not have say nothing about it."""
    if config.student_ops:
        mine = [i for i in items if hasattr(i, "callspec") and op_of(i) in config.student_ops]
        mine = [i for i in mine if i.callspec.params.get("xp", "plain") == "plain"]  # a student's op has one form
        config.hook.pytest_deselected(items=[item for item in items if item not in mine])
        items[:] = mine


def op_of(item):
    return getattr(item.callspec.params.get("case"), "op", None)


def pytest_terminal_summary(terminalreporter, config):
    if config.student_ops:
        terminalreporter.write_line(f"graded from {config.getoption('--student')}: {', '.join(config.student_ops)}")
    if config.student_unknown:
        terminalreporter.write_line(f"not the name of an op, so not graded: {', '.join(config.student_unknown)}")


@pytest.fixture(params=["numpy", "cupy"])
def xp(request):
    """The array library: NumPy always, CuPy where a GPU can be used."""
    if request.param == "numpy":
        return np
    if problem := backend.cuda_problem():
        pytest.skip(problem)
    import cupy

    return cupy


@pytest.fixture
def rng():
    """A generator that starts anew in each test."""
    return np.random.default_rng(5)
