"""What a model is worth on a data set, and what it looks at there."""

import contextlib

import numpy as np

from .. import data, metrics
from ..autograd import Tensor, no_grad
from ..backend import to_device, to_numpy
from ..errors import InputError
from ..fast.threads import in_shards, one_blas_thread
from ..metrics import confusion_counts
from . import activations, files, pictures
from .step import hits, mean_loss, thread_count


def evaluate(model, dataset, mean, std, batch_size=200, stop=(), threads=None, flip=False):
    """What a model is worth on a data set, as a dict; None as soon as ``stop`` is not empty.

    loss           the mean over the images
    accuracy       where images have several labels, the mean average precision
    confusion      where they have one: how many of each class were taken for which, see ``metrics.confusion_counts``
    map_mass       where the data set has boxes and the model maps: see ``metrics.map_mass``
    flip_accuracy  if ``flip``: with flip averaging, by the mean of the logits of an image and of its mirror image

    ``mean`` and ``std`` (channels,) are those of the training images. ``threads`` is as many as there is work for where
    it is not given. Raises InputError for ``flip`` where there are clips: mirrored motions are others.
    """
    if flip and dataset.images.ndim == 5:
        raise InputError("flip averaging needs images; mirrored clips show other motions, so leave it out")
    loss, mass, scores, mirrored = 0.0, 0.0, [], []
    with_maps = dataset.boxes is not None and model.has_maps
    with _evaluating(model) as device, one_blas_thread():
        share = {"shard": None} if device == "cuda" else {"threads": threads or thread_count(model.config, batch_size)}
        for first in range(0, len(dataset), batch_size):
            if stop:
                return None
            part = dataset.take(slice(first, first + batch_size))
            images = to_device(data.normalize(part.images, mean, std), device)
            labels = to_device(part.labels, device)
            logits = in_shards(model, images, **share)
            loss += mean_loss(Tensor(logits), labels).item() * len(part)
            scores.append(to_numpy(logits))
            if flip:
                mirrored.append(to_numpy(in_shards(model, images[:, :, ::-1].copy(), **share)))
            if with_maps:
                maps = in_shards(model.maps, images, **share)
                mass += float(metrics.map_mass(maps, part.boxes, part.images.shape[-3:-1]).sum())
    scores, n = np.concatenate(scores), len(dataset)
    found = {"loss": loss / n, "accuracy": hits(scores, dataset.labels) / n}
    if not dataset.multi_label:
        found["confusion"] = confusion_counts(dataset.labels, scores.argmax(1), len(dataset.classes))
    if with_maps:
        found["map_mass"] = mass / n
    if flip:
        found["flip_accuracy"] = hits((scores + np.concatenate(mirrored)) / 2, dataset.labels) / n
    return found


def draw_maps(path, model, dataset, mean, std, count=None, stages=False):
    """Save a PNG of the model's maps over ``count`` images, as far apart in the data set as can be.

    (Files are sorted by class, so the first images are often all of one.) By default 8 images, or 2 clips. ``stages``
    shows how strongly each stage of the model acts, and where, in place of what the tokens look at.
    Raises InputError when there are no maps.
    """
    if not (stages or model.has_maps):
        raise InputError("the tokens of this model do not come from maps, so there are none to draw; try --stages")
    clips = dataset.images.ndim == 5
    some = dataset.take(np.unique(np.linspace(0, len(dataset) - 1, count or (2 if clips else 8), dtype=int)))
    with _evaluating(model) as device:
        images = to_device(data.normalize(some.images, mean, std), device)
        maps = activations.activation_maps(model, images) if stages else model.maps(images)
    if stages:
        show = pictures.show_clip_stages if clips else pictures.show_stages
    else:
        show = pictures.show_clip_maps if clips else pictures.show_maps
    files.write(path, pictures.png(show(some.images, maps, some.boxes)))


@contextlib.contextmanager
def _evaluating(model):
    """The model in evaluation mode, without gradients; gives the device it is on."""
    before = model.training
    model.eval()
    try:
        with no_grad():
            yield "cpu" if isinstance(model.head.weight.data, np.ndarray) else "cuda"
    finally:
        model.train(before)
