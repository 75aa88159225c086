"""Store the curves of runs that are too long for a lesson: ``python notebooks/make_curves.py [NAME ...]``.

Each file ``curves/NAME.csv`` is the metrics.csv of one ``minitl train`` command without the seconds, or the results.csv
of some ``minitl ablate`` commands, below a line with the commands. The runs of CIFAR-10 read
``cifar10-images.tar.xz``, an archive of ``train/CLASS/N.jpg`` and ``test/CLASS/N.jpg``, in the current folder. By
default all are made, in about two hours on two cores of an AMD EPYC. (The stored ``cifar-recipe.csv`` has the rounded
figures of RESULTS.md, from an earlier run of its command.)
"""

import csv
import io
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent / "curves"
FEW = "cifar10-images.tar.xz --preset cifar-cpu --stem patch --subset 5000 --epochs 20"
OPTIONS = {
    "actors": "actors",
    "actors-grid": "actors --tokenizer pool",
    "actors-mean": "actors --tokenizer pool --num-tokens 1",
    "cifar-cpu": "cifar10-images.tar.xz --preset cifar-cpu",
    "cifar-few": FEW,
    "cifar-few-no-flip": f"{FEW} --no-flip",
    "cifar-few-crop": f"{FEW} --crop 4",
}
ABLATIONS = {"reductions": ["tokens", "reduce"], "cifar-recipe": ["recipe --dataset cifar10-images.tar.xz"]}


def make(name):
    """Train the models of a file and store it."""
    commands = [f"train {OPTIONS[name]}"] if name in OPTIONS else [f"ablate {kind}" for kind in ABLATIONS[name]]
    rows = []
    for command in commands:
        with tempfile.TemporaryDirectory() as parent:
            run = Path(parent) / "run"
            subprocess.run([sys.executable, "-m", "minitl", *shlex.split(command), "--out", run], check=True)
            table = run / ("metrics.csv" if name in OPTIONS else "results.csv")
            rows += csv.DictReader(io.StringIO(table.read_text()))
    store(name, commands, rows)


def store(name, commands, rows):
    """Write rows of a metrics.csv, one for each epoch, or of results.csv, one for each model and seed."""
    text = io.StringIO()
    writer = csv.DictWriter(
        text, [key for key in rows[0] if key != "seconds"], extrasaction="ignore", lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    line = "; ".join(f"minitl {command}" for command in commands)
    (FOLDER / f"{name}.csv").write_text(f"# {line}\n{text.getvalue()}")


if __name__ == "__main__":
    known = [*OPTIONS, *ABLATIONS]
    names = sys.argv[1:] or known
    if unknown := set(names) - set(known):
        sys.exit(f"no curve is called {' or '.join(sorted(unknown))}; choose from {', '.join(known)}")
    FOLDER.mkdir(exist_ok=True)
    for name in names:
        make(name)
