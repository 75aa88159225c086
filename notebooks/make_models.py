"""Train the models that the notebooks load: ``python notebooks/make_models.py [NAME ...]``, all of them by default.

Each is the result of one ``minitl train`` command. Only the weights of its checkpoint are kept, with what is needed to
use them (the configuration, the sizes of the images, the class names, the mean and standard deviation of the training
colors), the weights as float16, about 100 kB per model. Together they take about 12 minutes on two cores of an AMD
EPYC.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from minitl.train import checkpoint

OPTIONS = {
    "learner-8": "",
    "grid-8": "--tokenizer pool",
    "grid-16": "--tokenizer pool --num-tokens 16",
    "static-8": "--tokenizer static",
    "all-64": "--tokenizer none",
    "late-learner-8": "--loc 1",
    "late-grid-8": "--loc 1 --tokenizer pool",
}
FOLDER = Path(__file__).parent / "models"


def make(name):
    """Train one model and save it as ``models/NAME.safetensors``."""
    minitl = Path(sys.executable).with_name("minitl")
    with tempfile.TemporaryDirectory() as parent:
        run = Path(parent) / "run"
        subprocess.run([minitl, "train", "clutter", *OPTIONS[name].split(), "--out", run], check=True)
        arrays, meta = checkpoint.load(run / "checkpoint.safetensors")
    weights = {key: array.astype(np.float16) for key, array in arrays.items() if key.startswith("model.")}
    known = {key: meta[key] for key in ("config", "spec", "classes", "mean", "std")}
    checkpoint.save(FOLDER / f"{name}.safetensors", weights, known)


if __name__ == "__main__":
    names = sys.argv[1:] or list(OPTIONS)
    if unknown := set(names) - set(OPTIONS):
        sys.exit(f"no model is called {' or '.join(sorted(unknown))}; choose from {', '.join(OPTIONS)}")
    for name in names:
        make(name)
