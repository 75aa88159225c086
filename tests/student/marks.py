"""What is asked of a student's file, and the points that it earns."""

import difflib
import json
import re
from pathlib import Path

import pytest

from minitl import OPS
from tests.student.grader import Mistake, Student

CATEGORIES = {  # a test of the ops or modules -> what it grades; other tests say nothing about a student's file
    "test_value": "value",
    "test_batch_norm_moves_the_running_arrays": "value",
    "test_dropping_keeps_the_mean": "value",
    "test_module_value": "value",
    "test_gradient": "gradient",
    "test_one_gradient_per_argument": "gradient",
    "test_ties": "gradient",
    "test_the_gradient_is_dropped_where_the_value_is": "gradient",
    "test_module_gradient": "gradient",
    "test_no_overflow": "stability",
    "test_strides": "dtype and strides",
    "test_arguments_are_not_written_to": "dtype and strides",
    "test_float32_stays_float32": "dtype and strides",
}
COLUMNS = "value", "gradient", "stability", "dtype and strides"


class Marks:
    """The process of a student's file, what it is graded in, and the result of each test.

    A name earns a point for each category in which all of its tests pass. ``only`` limits the names. Raises
    pytest.UsageError if there is nothing to grade.
    """

    def __init__(self, path, modules, only=None):
        self.path, self.results = Path(path), {}
        if not self.path.is_file():
            raise pytest.UsageError(f"--student: there is no file {path}")
        try:
            self.student = Student(path)
        except Mistake as mistake:
            raise pytest.UsageError(f"--student: {path}: {mistake}") from None
        known = self.student.known
        possible = {*OPS, *modules}
        self.names = known["ops"] + [name for name in known["classes"] if name in modules]
        self.notes = [f"{name} is minitl's own, so it is not graded: write it yourself" for name in known["handed_on"]]
        others = [*known["unknown"], *(name for name in known["classes"] if name not in modules)]
        near = {name: difflib.get_close_matches(name, possible, 1) for name in others}
        others = [f"{name} (did you mean {near[name][0]}?)" if near[name] else name for name in others]
        if others:
            self.notes.append(f"not the name of an op or a module, so not graded: {', '.join(others)}")
        if only:
            wanted = only.split(",")
            if missing := [name for name in wanted if name not in self.names]:
                self.student.close()
                raise pytest.UsageError(f"--only: {path} has no {' or '.join(missing)}")
            self.names = wanted
        if not self.names:
            self.student.close()
            raise pytest.UsageError("; ".join([f"--student: {path} has nothing to grade", *self.notes]))

    def asks(self, item):
        """Return whether a test grades this file."""
        case = getattr(item, "callspec", None) and item.callspec.params.get("case")
        if item.originalname not in CATEGORIES or getattr(case, "op", None) not in self.names:
            return False
        # Masks may be drawn in any way, so only their properties are asked for.
        private = ("rng" in case.options and case.reference is not None) or case.op == "recompute"
        return item.callspec.params.get("xp", "plain") == "plain" and not private

    def note(self, item, message):
        """Keep the result of a test: ``message`` says why it failed, or is None."""
        tests = self.results.setdefault(item.callspec.params["case"].op, {})
        tests.setdefault(CATEGORIES[item.originalname], []).append((str(item.callspec.params["case"]), message))

    def points(self, name):
        """Return the points of a name, and how many there are."""
        tests = self.results.get(name, {})
        return sum(all(message is None for _, message in rows) for rows in tests.values()), len(tests)

    def lines(self):
        """Return the result as lines of text."""
        width = max(map(len, [*self.names, "total"])) + 2
        yield " " * width + "".join(f"{column:>19}" for column in COLUMNS) + f"{'points':>10}"
        for name in self.names:
            cells = [self._share(self.results.get(name, {}).get(column)) for column in COLUMNS]
            got, most = self.points(name)
            yield f"{name:{width}}" + "".join(f"{cell:>19}" for cell in cells) + f"{f'{got} of {most}':>10}"
        if len(self.names) > 1:
            got, most = map(sum, zip(*map(self.points, self.names), strict=True))
            yield f"{'total':{width}}" + " " * 19 * len(COLUMNS) + f"{f'{got} of {most}':>10}"
        for name in self.names:
            if failed := self._failed(name):
                column, row, message = failed[0]
                more = f"\n  ({len(failed) - 1} more tests of {name} fail)" if len(failed) > 1 else ""
                yield f"\n{name}, {column}, in {row}:\n  {message}{more}"
        yield from ("", *self.notes) if self.notes else ()

    def write(self, path):
        """Write the result as JSON."""
        ops = {}
        for name in self.names:
            (got, most), failed = self.points(name), self._failed(name)
            rows = self.results.get(name, {})
            tests = {
                c: {"passed": sum(m is None for _, m in rows[c]), "of": len(rows[c])} for c in COLUMNS if c in rows
            }
            ops[name] = {"points": got, "of": most, "tests": tests, "first_failure": failed[0] if failed else None}
        total = {key: sum(entry[key] for entry in ops.values()) for key in ("points", "of")}
        Path(path).write_text(
            json.dumps({"file": self.path.name, **total, "graded": ops, "notes": self.notes}, indent=2)
        )

    def _share(self, rows):
        return f"{sum(message is None for _, message in rows)}/{len(rows)}" if rows else "-"

    def _failed(self, name):
        tests = self.results.get(name, {})
        return [(c, row, message) for c in COLUMNS for row, message in tests.get(c, []) if message is not None]


def told(error):
    """Return why a test failed, without the harness around it."""
    text = str(error)
    if not (isinstance(error, AssertionError) and "Not equal to tolerance" in text):
        return text or type(error).__name__
    what = "".join(f"{name}: " for name in re.findall(r"the gradient of \S+", text))
    if shapes := re.search(r"\(shapes (\(.*?\)), (\(.*?\)) mismatch\)", text):
        return f"{what}the shape is {shapes[1]}, expected {shapes[2]}"
    if "location mismatch" in text:
        return f"{what}some entries are NaN or infinite where numbers are expected, or the other way round"
    count, place = (
        re.search(r"Mismatched elements: (\d+ / \d+)", text),
        re.search(r"\[(.*?)\]: (\S+) .*?, (\S+) \(", text),
    )
    where = f"at ({place[1]}) it is {place[2]}, expected {place[3]}" if place else "it is another number"
    return f"{what}{where}; {count[1].replace(' / ', ' of ')} entries are wrong"
