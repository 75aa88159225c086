"""Draw the map of the course and write its table: ``python notebooks/make_map.py``, when a header has changed.

The picture is images/course.png, the table is in README.md. Both say what the headers of the lessons say: an arrow
leads to a lesson from each one that it links to under "You need", unless other arrows already lead there from it.
"""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from minitl.train.pictures import png

FOLDER = Path(__file__).resolve().parent
PARTS = {
    "Start, gradients": "00 01 02",
    "Transformers": "03 04 05",
    "TokenLearner": "06 07 08",
    "Beyond": "09 10 11 12",
}
HEADER = re.compile(
    r"# # (?P<number>\d\d) · (?P<title>.+)\n(?:.*\n)+?"
    r"# \| \*\*Goal\*\* \| (?P<goal>.+) \|\n"
    r"# \| \*\*Time\*\* \| (?P<minutes>\d+) minutes to read, (?P<seconds>\d+) seconds to run.*\n"
    r"# \| \*\*You need\*\* \| (?P<needs>.+) \|\n"
)


@dataclass
class Lesson:
    """What the header of a lesson says. ``needs`` are the numbers of the lessons that it links to."""

    file: str
    number: str
    title: str
    goal: str
    minutes: int
    seconds: int
    needs: list[str]


def lessons(folder=FOLDER):
    """Return all lessons that have a notebook, by number. Raises ValueError for a header that lacks something."""
    found = {}
    for notebook in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        source = notebook.with_suffix(".py")
        header = HEADER.search(source.read_text(encoding="utf-8"))
        if not header:
            raise ValueError(f"{source.name} needs a header with its title, Goal, Time and You need, as in 00")
        parts = header.groupdict()
        needs = re.findall(r"\]\((\d\d)_", parts.pop("needs"))
        parts |= {"minutes": int(parts["minutes"]), "seconds": int(parts["seconds"])}
        found[parts["number"]] = Lesson(notebook.name, needs=needs, **parts)
    return found


def arrows(course):
    """Return pairs (lesson, one that needs it), without those that follow from others."""

    def behind(number):
        return {number}.union(*(behind(need) for need in course[number].needs if need in course))

    pairs = []
    for number, lesson in course.items():
        needs = [need for need in lesson.needs if need in course]
        pairs += [(need, number) for need in needs if not any(need in behind(o) for o in needs if o != need)]
    return pairs


def table(course):
    """Return the table of the lessons in Markdown."""
    rows = ["| | Lesson | You will | Read | Run |", "|---|---|---|---|---|"]
    for lesson in course.values():
        link = f"[{lesson.number}]({lesson.file})"
        rows.append(f"| {link} | {lesson.title} | {lesson.goal} | {lesson.minutes} min | {lesson.seconds} s |")
    return "\n".join(rows) + "\n"


def draw(course):
    """Return the map as a matplotlib figure: a column for each part, and arrows from what a lesson needs."""
    width, height = 0.82, 0.74  # of a box, where columns and rows are 1 apart
    at = {n: (x, -y) for x, part in enumerate(PARTS.values()) for y, n in enumerate(part.split())}
    figure = Figure(figsize=(9, 4.2), layout="constrained", dpi=110)
    ax = figure.subplots()
    ax.set(xlim=(-0.5, len(PARTS) - 0.5), ylim=(-3.5, 0.75))
    ax.set_axis_off()
    for x, part in enumerate(PARTS):
        ax.text(x, 0.6, part, ha="center", va="center", fontsize=11, fontweight="bold")
    for number, lesson in course.items():
        x, y = at[number]
        corner, style = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=0.05"
        alone = not lesson.needs
        ax.add_patch(FancyBboxPatch(corner, width, height, style, facecolor="#f2f2f2" if alone else "white", lw=0.8))
        title = "\n".join(textwrap.wrap(lesson.title, 19))
        ax.text(x - width / 2 + 0.04, y + 0.05, lesson.number, va="center", fontsize=11, fontweight="bold")
        ax.text(x - width / 2 + 0.17, y + 0.05, title, va="center", fontsize=9)
        ax.text(
            x + width / 2 - 0.03,
            y - 0.27,
            f"{lesson.minutes} min",
            ha="right",
            va="center",
            fontsize=8,
            color="#404040",
        )
    for a, b in arrows(course):
        (xa, ya), (xb, yb) = at[a], at[b]
        below = xa == xb
        start = (xa, ya - height / 2) if below else (xa + width / 2, ya)
        end = (xb, yb + height / 2) if below else (xb - width / 2, yb)
        ax.annotate(
            "", end, start, arrowprops={"arrowstyle": "-|>", "color": "black", "lw": 1, "shrinkA": 0, "shrinkB": 0}
        )
    return figure


if __name__ == "__main__":
    course, page = lessons(), FOLDER / "README.md"
    (FOLDER / "images" / "course.png").write_bytes(png(draw(course)))
    text = page.read_text(encoding="utf-8")
    page.write_text(re.sub(r"\| \| Lesson \|.*\n(\|.*\n)*", lambda _: table(course), text), encoding="utf-8")
    print(f"{len(course)} lessons, {sum(lesson.minutes for lesson in course.values())} minutes to read")
