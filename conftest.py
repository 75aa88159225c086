"""``pytest --student FILE``; it is here because without a path to the tests, pytest reads options only from here."""

from pathlib import Path

import minitl

TESTS = Path(__file__).resolve().parent / "tests"


def pytest_addoption(parser):
    group = parser.getgroup("grading")
    group.addoption("--student", metavar="FILE", help="grade the ops and modules that FILE defines under their names")
    group.addoption("--only", metavar="NAMES", help="with --student, grade only these, separated by commas")
    group.addoption("--json", metavar="FILE", help="with --student, write the points to FILE as well")


def pytest_configure(config):
    config.marks = None
    if config.getoption("--student"):
        from tests.student.marks import Marks
        from tests.student.modules import NAMES

        config.marks = marks = Marks(config.getoption("--student"), NAMES, config.getoption("--only"))
        config.add_cleanup(marks.student.close)
        for name in set(marks.names) & {*minitl.OPS}:
            config.add_cleanup(lambda name=name, fn=minitl.OPS[name]: minitl.OPS.__setitem__(name, fn))
            minitl.OPS[name] = marks.student.op(name)
        config.args = [str(TESTS / "test_ops.py"), str(TESTS / "student" / "modules.py")]
        config.option.reportchars, config.option.tbstyle, config.option.verbose = "", "no", -2


def pytest_collection_modifyitems(config, items):
    """Keep the tests that grade the file."""
    if config.marks:
        config.hook.pytest_deselected(items=[item for item in items if not config.marks.asks(item)])
        items[:] = [item for item in items if config.marks.asks(item)]


def pytest_runtest_makereport(item, call):
    if item.config.marks and (call.excinfo or call.when == "call"):
        from tests.student.marks import told

        item.config.marks.note(item, told(call.excinfo.value) if call.excinfo else None)


def pytest_terminal_summary(terminalreporter, config):
    if config.marks:
        for line in config.marks.lines():
            terminalreporter.write_line(line)
        if config.getoption("--json"):
            config.marks.write(config.getoption("--json"))
