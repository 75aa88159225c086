"""Preparation of a training batch: augmentation and normalization, in this order."""

from .. import data


def training_batch(images, labels, config, num_classes, mean, std, rng, mixing=True):
    """Augment and normalize a batch according to the TrainConfig ``config``.

    Maps uint8 images (B, H, W, C) and labels to float32 images and labels, or soft labels (B, num_classes) if images
    are mixed. ``mean`` and ``std`` (C,) are those of the training images. ``mixing=False`` omits mixup and cutmix.
    """
    if config.flip or config.crop:
        images = data.random_crop(images, config.crop, rng, flip=config.flip)
    if config.rand_augment:
        images = data.rand_augment(images, rng, config.rand_augment, config.magnitude, config.rand_augment_p)
    if config.auto_augment:
        images = data.auto_augment(images, rng)
    images = data.normalize(images, mean, std)
    if config.erasing:
        images = data.random_erasing(images, rng, config.erasing)
    if config.cutout:
        images = data.cutout(images, config.cutout, rng)
    mixes = [(mix, alpha) for mix, alpha in ((data.mixup, config.mixup), (data.cutmix, config.cutmix)) if alpha]
    if not (mixing and mixes):
        return images, labels
    mix, alpha = mixes[rng.integers(len(mixes))]
    return mix(images, data.one_hot(labels, num_classes), alpha, rng)
