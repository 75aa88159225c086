"""Few-shot linear evaluation: how good are frozen features with a handful of labelled images of each class?

The paper's protocol: the representation in front of the head is kept as it is, and a ridge regression, solved in
closed form, maps it to targets of 1 for the class and -1 for all others; the largest output is the answer.
"""

import numpy as np

from .. import data, train
from ..autograd import no_grad
from ..backend import array_module, to_numpy
from ..errors import InputError
from ..nn import Linear


def few_shot(folder, shots=5, draws=5, dataset=None, l2=100.0, seed=0):
    """Test accuracies float64 (draws,) of the run in ``folder``, each with other ``shots`` training images per class.

    ``dataset`` is another data set of images of the same size; the run's own by default. ``l2`` weighs the squared
    weights of the regression. Raises InputError for options out of range, or a data set that does not fit.
    """
    for name, value in (("shots", shots), ("draws", draws)):
        if value < 1:
            raise InputError(f"{name} is at least 1, got {value}")
    if not 0 < l2 < np.inf:
        raise InputError(f"l2 is above 0, got {l2}")
    model, test_set, mean, std = train.load_run(folder)
    config = train.load_config(folder)
    size = test_set.images.shape[1:]
    train_set, test_set = data.load(dataset or config.dataset, config.data_dir)
    if train_set.multi_label:
        raise InputError(f"few-shot evaluation needs one label each, those of {dataset or config.dataset} are several")
    if train_set.images.shape[1:] != size:
        raise InputError(f"{folder} takes images of {size}, those of {dataset} are {train_set.images.shape[1:]}")
    K = len(train_set.classes)
    if (few := np.bincount(train_set.labels, minlength=K).min()) < shots:
        raise InputError(f"there are not {shots} training images of each class: one has {few}; choose fewer shots")

    test_features = features(model, data.normalize(test_set.images, mean, std))
    rng, accuracies = np.random.default_rng(seed), []
    for _ in range(draws):
        few = train_set.subset(shots * K, rng)
        weight, bias = ridge(features(model, data.normalize(few.images, mean, std)), data.one_hot(few.labels, K), l2)
        accuracies.append(((test_features @ weight + bias).argmax(1) == test_set.labels).mean())
    return np.array(accuracies)


def features(model, images, batch_size=200):
    """What the head of a ViT or X21D reads, the mean over its tokens: normalised images -> float64 (N, width)."""
    head, xp = model.head, array_module(model.head.weight.data)
    width = head.weight.shape[0]
    model.eval()
    model.head = Linear(width, width, rng=np.random.default_rng(0))
    model.head.weight.data = xp.eye(width, dtype=head.weight.dtype)  # the bias starts at 0: it changes nothing
    model.head.bias.data = xp.zeros(width, head.weight.dtype)
    try:
        with no_grad():
            parts = (model(xp.asarray(images[i : i + batch_size])) for i in range(0, len(images), batch_size))
            return np.concatenate([to_numpy(part).astype("float64") for part in parts])
    finally:
        model.head = head


def ridge(x, targets, l2):
    """``(weight, bias)`` of the outputs x W + b that come nearest to 1 for the class and to -1 for all others.

    x (N, width), targets (N, K) 1 for the class and 0 elsewhere. The squares of W are added to those of the errors with
    the factor ``l2``; for this each feature is scaled to a deviation of 1.
    """
    mean, scale = x.mean(0), x.std(0) + 1e-5  # a feature that never varies stays 0
    z, y = (x - mean) / scale, 2 * targets - 1
    weight = np.linalg.solve(z.T @ z + l2 * np.eye(x.shape[1]), z.T @ (y - y.mean(0)))
    weight /= scale[:, None]
    return weight, y.mean(0) - mean @ weight
