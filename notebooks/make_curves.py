"""Store the curves of runs that are too long for a lesson: ``python notebooks/make_curves.py [NAME ...]``.

Each file ``curves/NAME.csv`` is the metrics.csv of one ``minitl train`` command without the seconds, below a line with
that command. The runs of CIFAR-10 read ``cifar10-images.tar.xz``, an archive of ``train/CLASS/N.jpg`` and
``test/CLASS/N.jpg``, in the current folder. By default all are made, in about 15 minutes on two cores of an AMD EPYC.
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


def make(name):
    """Train one model and store its curve."""
    with tempfile.TemporaryDirectory() as parent:
        run = Path(parent) / "run"
        command = [sys.executable, "-m", "minitl", "train", *shlex.split(OPTIONS[name]), "--out", run]
        subprocess.run(command, check=True)
        store(name, (run / "metrics.csv").read_text())


def store(name, metrics):
    """Write the curve in the text of a metrics.csv, one row for each epoch."""
    rows, text = list(csv.DictReader(io.StringIO(metrics))), io.StringIO()
    writer = csv.DictWriter(
        text, [key for key in rows[0] if key != "seconds"], extrasaction="ignore", lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    (FOLDER / f"{name}.csv").write_text(f"# minitl train {OPTIONS[name]}\n{text.getvalue()}")


if __name__ == "__main__":
    names = sys.argv[1:] or list(OPTIONS)
    if unknown := set(names) - set(OPTIONS):
        sys.exit(f"no curve is called {' or '.join(sorted(unknown))}; choose from {', '.join(OPTIONS)}")
    FOLDER.mkdir(exist_ok=True)
    for name in names:
        make(name)
