"""Few-shot linear evaluation: accuracy of frozen features with a few labeled images of each class.

The paper's protocol: the representation before the head is frozen, and a ridge regression, solved in closed form, maps
it to targets of 1 for the class and -1 for all others; the largest output is the prediction.
"""

import numpy as np

from .. import data, train
from ..autograd import no_grad
from ..backend import array_module, to_numpy
from ..errors import InputError
from ..nn import Linear


def few_shot(folder, shots=5, draws=5, dataset=None, l2=100.0, seed=0):
    """Return test accuracies float64 (draws,) of the run in ``folder``, each with ``shots`` new images per class.

    ``dataset`` is another data set of images of the same size; by default the run's own. ``l2`` weighs the squared
    weights of the regression. Raises InputError for options out of range or a data set that does not fit.
    """
    for name, value in (("shots", shots), ("draws", draws)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if not 0 < l2 < np.inf:
        raise InputError(f"l2 must be above 0, got {l2}")
    model, test_set, mean, std = train.load_run(folder)
    config = train.load_config(folder)
    size = test_set.images.shape[1:]
    train_set, test_set = data.load(dataset or config.dataset, config.data_dir)
    if train_set.multi_label:
        raise InputError(f"few-shot evaluation needs one label per image, {dataset or config.dataset} has several")
    if train_set.images.shape[1:] != size:
        raise InputError(f"{folder} takes images of {size}, {dataset} has images of {train_set.images.shape[1:]}")
    K = len(train_set.classes)
    if (least := np.bincount(train_set.labels, minlength=K).min()) < shots:
        raise InputError(f"there are not {shots} training images of each class: one has {least}; choose fewer shots")

    test_features = features(model, data.normalize(test_set.images, mean, std))
    rng, accuracies = np.random.default_rng(seed), []
    for _ in range(draws):
        few = train_set.subset(shots * K, rng)
        weight, bias = ridge(features(model, data.normalize(few.images, mean, std)), data.one_hot(few.labels, K), l2)
        accuracies.append(((test_features @ weight + bias).argmax(1) == test_set.labels).mean())
    return np.array(accuracies)


def features(model, images, batch_size=200):
    """Return the input of the head of a ViT or X21D for normalized images: float64 (N, width)."""
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
    """Return the ``(weight, bias)`` that minimize ‖x W + b - (2 targets - 1)‖² + l2 ‖W‖².

    x (N, width); targets (N, K) are 1 for the class and 0 elsewhere. Features are scaled to a standard deviation of 1
    for the penalty.
    """
    mean, scale = x.mean(0), x.std(0) + 1e-5  # a constant feature stays 0
    z, y = (x - mean) / scale, 2 * targets - 1
    weight = np.linalg.solve(z.T @ z + l2 * np.eye(x.shape[1]), z.T @ (y - y.mean(0)))
    weight /= scale[:, None]
    return weight, y.mean(0) - mean @ weight
