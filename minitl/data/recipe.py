"""What a training run does to a batch of images before its model sees them, in which order."""

from . import augment, policies


def training_batch(images, labels, config, mean, std, rng, mixing=True):
    """uint8 images (B, H, W, C) and labels -> float32 images, normalised and augmented, and labels or soft targets.

    ``config`` is a TrainConfig; ``mean`` and ``std`` are for each channel. Without ``mixing`` its mixup and cutmix are
    left out, so that the labels stay what they are.
    """
    if config.flip or config.crop:
        images = augment.random_crop(images, config.crop, rng, flip=config.flip)
    if config.rand_augment:
        images = policies.rand_augment(images, rng, config.rand_augment, config.magnitude, config.rand_augment_p)
    if config.auto_augment:
        images = policies.auto_augment(images, rng)
    images = augment.normalize(images, mean, std)
    if config.erasing:
        images = augment.random_erasing(images, rng, config.erasing)
    if config.cutout:
        images = augment.cutout(images, config.cutout, rng)
    mixes = [(mix, alpha) for mix, alpha in ((augment.mixup, config.mixup), (augment.cutmix, config.cutmix)) if alpha]
    if not (mixing and mixes):
        return images, labels
    mix, alpha = mixes[rng.integers(len(mixes))]
    return mix(images, augment.one_hot(labels, config.model.num_classes), alpha, rng)
