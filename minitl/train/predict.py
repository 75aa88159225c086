"""What a run says about somebody's own pictures: the likeliest classes, and where its tokens look."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import data
from ..autograd import no_grad
from ..backend import to_device, to_numpy
from ..data.images import decode
from ..errors import InputError
from ..nn import ViTConfig
from . import pictures
from .run import load_model

MAX_PIXELS = 2**26  # of a picture: a camera has fewer, and 200 MB hold them
SHOWN = 128  # pixels of a picture's longer side where it is shown


@dataclass(frozen=True, eq=False)
class Prediction:
    """What ``predict`` found, picture by picture."""

    names: tuple[str, ...]
    """of the files"""
    classes: tuple[str, ...]
    pictures: list[np.ndarray]
    """uint8 (h, w, C), cropped as the model sees them but sharper"""
    probabilities: np.ndarray
    """(B, K), each row adds up to 1"""
    maps: np.ndarray | None
    """(B, S, rows, columns), or None where the tokens do not come from maps"""

    def table(self, top=5):
        """The likeliest classes of each picture, as lines of text."""
        width, lines = max(len(name) for name in self.classes), []
        for name, odds in zip(self.names, self.probabilities, strict=True):
            best = np.argsort(-odds, kind="stable")[:top]
            lines += [name, *(f"  {self.classes[k]:{width}} {odds[k]:7.1%}" for k in best)]
        return "\n".join(lines)

    def figure(self):
        """A row for each picture: its likeliest class, the picture, and the maps over it. ValueError without maps."""
        if self.maps is None:
            raise ValueError("the tokens of this model do not come from maps, so there are none to draw")
        best = self.probabilities.argmax(1)
        rows = [f"{self.classes[k]}\n{self.probabilities[i, k]:.1%}" for i, k in enumerate(best)]
        return pictures.show_maps(self.pictures, self.maps, rows=rows)


def predict(folder, files):
    """The Prediction of the run in ``folder`` for picture files.

    A file may be of any size and format: its middle is cut out with the sides' ratio of the run's images, and brought
    to their size and to their colours. Raises InputError for a run that was not trained on pictures, and for a file
    that is none.
    """
    model, meta = load_model(folder)
    config = model.config
    if not isinstance(config, ViTConfig) or config.frames > 1:
        raise InputError(f"{folder} was trained on clips; predict takes pictures")
    seen, shown = zip(*(_read(Path(file), config) for file in files), strict=True)
    images = data.normalize(np.stack(seen), np.float32(meta["mean"]), np.float32(meta["std"]))
    images = to_device(images, "cpu" if isinstance(model.head.weight.data, np.ndarray) else "cuda")
    with no_grad():
        logits = to_numpy(model(images)).astype("float64")
        maps = to_numpy(model.maps(images)) if model.has_maps else None
    odds = np.exp(logits - logits.max(1, keepdims=True))
    names = tuple(str(file) for file in files)
    return Prediction(names, tuple(meta["classes"]), list(shown), odds / odds.sum(1, keepdims=True), maps)


def _read(file, config):
    """A picture file as the model sees it, uint8 (H, W, channels), and as it is shown."""
    from PIL import Image, ImageOps

    if not file.is_file():
        raise InputError(f"{file} is {'a folder' if file.is_dir() else 'not there'}; give picture files")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.fromarray(decode(str(file), file.read_bytes, MAX_PIXELS))
    image = image.convert("L" if config.channels == 1 else "RGB")
    H, W = config.image_size

    def fitted(times):
        size = times * H, times * W
        picture = ImageOps.fit(image, size[::-1], Image.Resampling.BICUBIC)
        return np.asarray(picture).reshape(*size, config.channels)

    return fitted(1), fitted(max(1, min(SHOWN // max(H, W), image.height // H, image.width // W)))
