"""Test assignments: the solution has all points, the release none, and wrong answers lose what they should.

All of an assignment runs in one process: first the solution, then each stored wrong answer with the tests of its task,
then the blank stubs.
"""

import ast
import runpy

from . import core, source

TEST_SECONDS = 5  # of CPU time
FEWEST_WRONG = 8


def trial(name):
    """Return what is wrong with an assignment, in words, a line about it, and Results of its wrong answers."""
    teacher = source.teacher(name)
    master, release = source.master(teacher), source.release(teacher)
    task, tests = source.tasks(teacher), source.points(teacher, "test", "hidden")
    wrong = stored(name)
    cells = core.plan(teacher)
    answers = {cell["id"]: cell for cell in cells if cell["kind"] == "answer"}
    faults = [f"{key} needs no answer {k}" for key, k in _dependencies(cells)]
    faults += _unclear(name, wrong, answers, tests, task)
    if tests and len(wrong) < FEWEST_WRONG:
        faults.append(f"it has {len(wrong)} stored wrong answers; at least {FEWEST_WRONG} are asked for")
    runs = [*cells]
    for i, (_, changed, _) in enumerate(wrong):
        runs += [_as(answers[key], f"wrong{i}", text) for key, text in changed.items() if key in answers]
        runs += [_as(c, f"wrong{i}") for c in cells if c["id"] in tests and task[c["id"]] in changed]
        runs += [_as(answers[key], f"right{i}") for key in changed if key in answers]
    blank = [c for c in core.plan(master) if c["kind"] == "answer" or c["id"] in tests]
    runs += [_as(c, "blank") for c in blank]
    files = source.files(teacher)
    outcomes, remarks = core.run(runs, files)
    errors = {key: outcome["error"] for key, outcome in outcomes.items()}
    faults += [f"the solution fails in {c['id']}: {core.message(errors[c['id']])}" for c in cells if errors[c["id"]]]
    faults += [f"the release passes {key}" for key in tests if not errors[f"blank/{key}"]]
    faults += [f"{key} prints to stderr" for key in (c["id"] for c in cells) if _stderr(outcomes[key])]
    faults += [text for text in (_says(key, teacher, outcomes[key]) for key in tests) if text]
    results = {}
    for i, (what, changed, lost) in enumerate(wrong):
        asked = [key for key in tests if task[key] in changed]
        really = {key: tests[key] for key in asked if errors[f"wrong{i}/{key}"]}
        told = {key: core.message(errors[f"wrong{i}/{key}"]) for key in really}
        points = {key: 0 if key in really else most for key, most in tests.items()}
        results[what] = core.Result(points, tests, told, source.points(teacher, "written"))
        if really != lost:
            why = "; ".join(f"{key}: {text}" for key, text in told.items())
            faults.append(f"the wrong answer {what!r} loses {really or 'nothing'}, and should lose {lost}. {why}")
    slow = {key: outcomes[key]["seconds"] for key in tests if outcomes[key]["seconds"] > TEST_SECONDS}
    faults += [f"{key} takes {seconds:.1f} s of CPU time; a test has {TEST_SECONDS}" for key, seconds in slow.items()]
    faults += remarks
    public = {line for cell in release["cells"] for line in cell["source"].split("\n")}
    faults += [f"the release has a line of a solution: {line}" for line in secrets(teacher) & public]
    points = f"{sum(tests.values())} points by tests, {sum(source.points(teacher, 'written').values())} written"
    return faults, f"{name}: {len(teacher['cells'])} cells, {points}, {len(wrong)} wrong answers", results


def stored(name):
    """Return the stored wrong answers, the list in ``wrong/A1.py`` of (name, answers, lost points)."""
    path = source.FOLDER / "wrong" / f"{name.split('_')[0]}.py"
    found = [v for v in runpy.run_path(str(path)).values() if isinstance(v, list)] if path.is_file() else []
    return found[0] if found else []


def _as(cell, prefix, text=None):
    task = f"{prefix}/{cell['task']}" if prefix.startswith(("wrong", "blank")) else cell["task"]
    return {**cell, "id": f"{prefix}/{cell['id']}", "task": task, "source": cell["source"] if text is None else text}


def _dependencies(cells):
    """Yield tests and answers that use the answer of another task."""
    owner = {name: c["id"] for c in cells if c["kind"] == "answer" for name in source.defined(c["source"])}
    for cell in cells:
        if cell["kind"] in ("answer", "test", "hidden"):
            names = {n.id for n in ast.walk(ast.parse(cell["source"])) if isinstance(n, ast.Name)}
            own = {*source.bound(cell["source"])}
            for key in sorted({owner[n] for n in names - own if n in owner} - {cell["task"], cell["id"]}):
                yield cell["id"], key


def _unclear(name, wrong, answers, tests, task):
    """Yield what is wrong with the list of wrong answers."""
    for what, changed, lost in wrong:
        for key in changed:
            if key not in answers:
                yield f"the wrong answer {what!r} names {key}, which is no answer of {name}"
        for key, points in lost.items():
            if tests.get(key) != points or task[key] not in changed:
                yield f"the wrong answer {what!r} cannot lose {points} points of {key}"


def _stderr(outcome):
    return any(output.get("name") == "stderr" for output in outcome["outputs"])


def _says(key, teacher, outcome):
    """Return a fault if a visible test does not say how many points of the task it gave."""
    task, tests, visible = (
        source.tasks(teacher),
        source.points(teacher, "test", "hidden"),
        source.points(teacher, "test"),
    )
    if key not in visible:
        return None
    total = sum(points for other, points in tests.items() if task[other] == task[key])
    said = "".join(output.get("text", "") for output in outcome["outputs"])
    wanted = f"visible checks passed ({visible[key]} of {total} points of this task); hidden checks run at grading"
    return None if wanted in said or outcome["error"] else f"{key} should print: {wanted}"


def secrets(teacher):
    """Return the lines of solutions that are long enough to give something away."""
    texts = [cell["source"] for cell in teacher["cells"] if source.kind(cell) == "answer"]
    lines = {line for text in texts for part in source.SOLUTION.finditer(text) for line in part[0].split("\n")[1:-1]}
    return {line for line in lines if len(line.strip()) > 20}
