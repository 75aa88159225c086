"""nbgrader's part: the gradebook, where a person gives the points of written answers, and the pages for students."""

import contextlib
import importlib.util
import os
import sys
import warnings
from pathlib import Path

from ..errors import InputError
from . import source

CONFIG = """\
# For nbgrader's own commands and for its pages in JupyterLab, where written answers get their points.
c = get_config()
c.CourseDirectory.course_id = "minitl"
"""


def installed():
    """Return whether nbgrader is there."""
    return importlib.util.find_spec("nbgrader") is not None


@contextlib.contextmanager
def _gradebook(folder):
    from nbgrader.api import Gradebook

    path = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), path])  # nbgrader looks for alembic there
    try:
        with warnings.catch_warnings(), Gradebook(f"sqlite:///{(folder / 'gradebook.db').resolve()}") as book:
            warnings.simplefilter("ignore")  # of SQLAlchemy, about nbgrader
            yield book
    finally:
        os.environ["PATH"] = path


def record(folder, student, name, master, result):
    """Put the Result of a student into the gradebook, if nbgrader is installed. Points by hand are kept."""
    if not installed():
        return
    with _gradebook(folder) as book:
        book.update_or_create_assignment(name)
        book.update_or_create_notebook(name, name)
        for cell in master["cells"]:
            kind = source.kind(cell)
            if kind in ("test", "hidden", "written"):
                points = cell["metadata"]["minitl"]["points"]
                book.update_or_create_grade_cell(cell["id"], name, name, max_score=points, cell_type=cell["cell_type"])
            if kind in ("answer", "written"):
                book.update_or_create_solution_cell(cell["id"], name, name)
            if kind != "given":
                locked = {"locked": kind in ("test", "hidden"), "cell_type": cell["cell_type"]}
                book.update_or_create_source_cell(cell["id"], name, name, source=cell["source"], **locked)
        book.update_or_create_student(student)
        book.update_or_create_submission(name, student)
        for key, points in result.points.items():
            grade = book.find_grade(key, name, name, student)
            grade.auto_score, grade.needs_manual_grade = points, False
        for key in result.written:
            grade = book.find_grade(key, name, name, student)
            grade.needs_manual_grade = grade.manual_score is None
        book.db.commit()


def feedback(folder, names):
    """Write feedback pages for all students, and yield where they are. Raises InputError without nbgrader."""
    if not installed():
        raise InputError("feedback pages need nbgrader: pip install 'minitl[teach]'")
    from nbgrader.converters import GenerateFeedback
    from nbgrader.coursedir import CourseDirectory
    from traitlets.config import Config

    if not (folder / "gradebook.db").exists():
        raise InputError(f"{folder} has no points yet; first: minitl course grade {folder}")
    for name in names:
        config = Config()
        config.CourseDirectory.root = str(folder.resolve())
        config.CourseDirectory.db_url = f"sqlite:///{(folder / 'gradebook.db').resolve()}"
        config.CourseDirectory.assignment_id = name
        config.GenerateFeedback.force = True
        GenerateFeedback(coursedir=CourseDirectory(config=config), config=config).start()
        pages = sorted((folder / "feedback").glob(f"*/{name}/*.html"))
        yield f"{name}: {len(pages)} pages, {folder / 'feedback'}/NAME/{name}/{name}.html"
