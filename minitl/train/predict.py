"""Predictions of a run for picture files: the most likely classes, and the maps of its tokens."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import data
from ..autograd import no_grad
from ..backend import to_device, to_numpy
from ..data.images import decode
from ..errors import InputError
from ..nn import ViT
from . import pictures
from .run import load_model

MAX_PICTURE_PIXELS = 2**26  # 200 MB when decoded
SHOWN_PIXELS = 128  # of the longer side of a picture in the figure


@dataclass(frozen=True, eq=False)
class Prediction:
    """Result of ``predict`` for B pictures."""

    names: tuple[str, ...]
    """names of the files"""
    classes: tuple[str, ...]
    pictures: list[np.ndarray]
    """uint8 (h, w, C), cropped as for the model but at higher resolution"""
    probabilities: np.ndarray
    """(B, K), rows add up to 1"""
    maps: np.ndarray | None
    """(B, S, rows, columns), or None if the tokens do not come from maps"""

    def table(self, top=5):
        """Return the most likely classes of each picture as lines of text."""
        width, lines = max(len(name) for name in self.classes), []
        for name, odds in zip(self.names, self.probabilities, strict=True):
            best = np.argsort(-odds, kind="stable")[:top]
            lines += [name, *(f"  {self.classes[k]:{width}} {odds[k]:7.1%}" for k in best)]
        return "\n".join(lines)

    def figure(self):
        """Return a figure with a row per picture: its class, the maps over it. Raises ValueError without maps."""
        if self.maps is None:
            raise ValueError("the tokens of this model do not come from maps, so there is nothing to draw")
        best = self.probabilities.argmax(1)
        rows = [f"{self.classes[k]}\n{self.probabilities[i, k]:.1%}" for i, k in enumerate(best)]
        return pictures.show_maps(self.pictures, self.maps, rows=rows)


def predict(folder, files):
    """Return the Prediction of the run in ``folder`` for picture files.

    Files may have any size up to 67 megapixels: the largest central part with the aspect ratio of the run's images is
    resized and converted to their size and colors. Raises InputError if the run was not trained on pictures, or a file
    is not a picture.
    """
    if not files:
        raise InputError("give at least one picture file")
    model, meta = load_model(folder)
    if not isinstance(model, ViT) or model.spec.frames > 1:
        raise InputError(f"{folder} was trained on clips; predict takes pictures")
    seen, shown = zip(*(_read(Path(file), model.spec) for file in files), strict=True)
    images = data.normalize(np.stack(seen), np.float32(meta["mean"]), np.float32(meta["std"]))
    images = to_device(images, "cpu" if isinstance(model.head.weight.data, np.ndarray) else "cuda")
    with no_grad():
        logits = to_numpy(model(images)).astype("float64")
        maps = to_numpy(model.maps(images)) if model.has_maps else None
    odds = np.exp(logits - logits.max(1, keepdims=True))
    names = tuple(str(file) for file in files)
    return Prediction(names, tuple(meta["classes"]), list(shown), odds / odds.sum(1, keepdims=True), maps)


def _read(file, spec):
    """Read a picture file, uint8 (H, W, C) of a DataSpec; return it as the model sees it and as the figure shows it."""
    from PIL import Image, ImageOps

    if not file.is_file():
        raise InputError(f"{file} is {'a folder' if file.is_dir() else 'not there'}; give picture files")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.fromarray(decode(str(file), file.read_bytes, MAX_PICTURE_PIXELS))
    image = image.convert("L" if spec.channels == 1 else "RGB")
    H, W = spec.image_size

    def resized(times):
        size = times * H, times * W
        picture = ImageOps.fit(image, size[::-1], Image.Resampling.BICUBIC)
        return np.asarray(picture).reshape(*size, spec.channels)

    return resized(1), resized(max(1, min(SHOWN_PIXELS // max(H, W), image.height // H, image.width // W)))
