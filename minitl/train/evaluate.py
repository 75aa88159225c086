"""Evaluation of a model on a data set, and pictures of its maps."""

import contextlib
import functools

import numpy as np

from .. import data, metrics
from ..autograd import Tensor, no_grad
from ..backend import to_device, to_numpy
from ..errors import InputError
from ..fast.threads import in_shards, one_blas_thread
from ..metrics import confusion_counts
from . import activations, files, pictures
from .step import count_correct, mean_loss, thread_count


def evaluate(model, dataset, mean, std, batch_size=200, stop=(), threads=None, flip=False, forward=None):
    """Return the metrics of a model on a Dataset as a dict, or None as soon as ``stop`` is not empty.

    loss           mean over the images
    accuracy       for images with several labels, the mean average precision
    confusion      for images with one label: counts of true and predicted classes, see ``metrics.confusion_counts``
    map_mass       if the data set has boxes and the model has maps: see ``metrics.map_mass``
    flip_accuracy  if ``flip``: accuracy of the mean logits of each image and its mirror image

    ``mean`` and ``std`` (C,) are those of the training images; ``threads`` is by default as in training. ``forward``
    maps normalized images to the logits of the model, as arrays, such as the model captured in a CUDA graph.
    Raises InputError for ``flip`` with clips, whose mirror images show other motions.
    """
    if flip and dataset.images.ndim == 5:
        raise InputError("flip averaging needs images; mirrored clips show other motions, so leave it out")
    loss, mass, scores, mirrored = 0.0, 0.0, [], []
    with_maps = dataset.boxes is not None and model.has_maps
    with _evaluating(model) as device, one_blas_thread():
        threads = threads or thread_count(model.config, model.spec, batch_size)
        share = {"shard_size": None} if device == "cuda" else {"threads": threads}
        forward = forward or functools.partial(in_shards, model, **share)
        for first in range(0, len(dataset), batch_size):
            if stop:
                return None
            batch = dataset.take(slice(first, first + batch_size))
            images = data.normalize(to_device(batch.images, device), mean, std)
            labels = to_device(batch.labels, device)
            logits = forward(images)
            loss += mean_loss(Tensor(logits), labels).item() * len(batch)
            scores.append(to_numpy(logits))
            if flip:
                mirrored.append(to_numpy(forward(images[:, :, ::-1].copy())))
            if with_maps:
                maps = in_shards(model.maps, images, **share)
                mass += float(metrics.map_mass(maps, batch.boxes, batch.images.shape[-3:-1]).sum())
    scores, n = np.concatenate(scores), len(dataset)
    result = {"loss": loss / n, "accuracy": count_correct(scores, dataset.labels) / n}
    if not dataset.multi_label:
        result["confusion"] = confusion_counts(dataset.labels, scores.argmax(1), len(dataset.classes))
    if with_maps:
        result["map_mass"] = mass / n
    if flip:
        result["flip_accuracy"] = count_correct((scores + np.concatenate(mirrored)) / 2, dataset.labels) / n
    return result


def draw_maps(path, model, dataset, mean, std, count=None, stages=False):
    """Save a PNG of the model's maps over ``count`` images, evenly spaced in the data set; by default 8, or 2 clips.

    (The first images of a folder are often all of one class.) ``stages=True`` shows how strongly each stage of the
    model responds at each place instead. Raises InputError if the model has no maps.
    """
    if not (stages or model.has_maps):
        raise InputError("the tokens of this model do not come from maps, so there is nothing to draw; try --stages")
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
    """Set the model to evaluation mode without gradients; yield the device it is on."""
    before = model.training
    model.eval()
    try:
        with no_grad():
            yield "cpu" if isinstance(model.head.weight.data, np.ndarray) else "cuda"
    finally:
        model.train(before)
