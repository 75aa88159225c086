"""A step of training: forward, backward, clipping, AdamW and the moving average, on a CPU or on a GPU.

    take = (OnGPU if config.device == "cuda" else OnCPU)(model, optimizer, ema, rng, config)
    take(inputs, targets, labels, step)       # number ``step`` of the run, from 0 on
    for loss, hits, norm in take.read(): ...  # of each step since the last time

``config`` is a TrainConfig, ``ema`` an EMA or None, and ``rng`` the generator that the model's dropout draws from: it
is set anew for each step, so that a step drops the same whatever was before it. ``targets`` are the labels, or what
augmentation made of them. ``read`` gives the sum of the losses over the batch, the number of hits, and the norm of the
gradient before clipping; where that is no finite number, the weights have stayed as they were.

To read is to wait for the GPU, so it is done once in ``every`` steps; in between the host may be ahead of it.
``threads`` and ``where`` (in words) say what computes.
"""

import contextlib
import functools
import math

import numpy as np

from .. import flops, ops
from ..backend import to_numpy
from ..errors import InputError
from ..fast.threads import DataParallel, default_threads
from ..metrics import mean_average_precision
from ..nn import X21DConfig

AUGMENTATION, DROPOUT = range(2)  # what a step draws random numbers for
CACHED = 2**18  # numbers in an activation of a shard: 1 MB, about what a core's own cache holds
ENOUGH = 2**26  # multiply-adds of a batch, forward, for one thread: with fewer, a second one makes it slower
WORTHWHILE = 2**30  # multiply-adds of a shard, forward: with fewer, threads spend their time on taking turns


class OnCPU:
    """By threads that share the batch, see threads.py."""

    every = 1

    def __init__(self, model, optimizer, ema, rng, config):
        self.optimizer, self.ema, self.config = optimizer, ema, config
        self.threads = config.threads or thread_count(config.model, config.batch_size)
        self.parallel = DataParallel(model, rng, self.threads, shard_size(config.model))
        self.loss = functools.partial(mean_loss, label_smoothing=config.label_smoothing)
        several = f"{self.threads} threads of one BLAS thread each"
        self.where = f"cpu with {'1 thread' if self.threads == 1 else several}"

    def __call__(self, inputs, targets, labels, step):
        self.optimizer.zero_grad()
        loss, logits = self.parallel.gradients(self.loss, inputs, targets, seed_of(self.config, DROPOUT, step))
        norm = self.optimizer.clip_grad_norm(self.config.clip)
        if math.isfinite(norm):
            self.optimizer.step()
            if self.ema:
                self.ema.update()
        self.found = loss * len(labels), hits(logits, labels), norm

    def read(self):
        return [self.found]


class OnGPU:
    """All at once: clipping, AdamW and average in few launches, and the whole step as one CUDA graph."""

    every = 50
    threads = 1

    def __init__(self, model, optimizer, ema, rng, config):
        from ..fast import cuda

        cuda.use(config.precision)
        self.model, self.optimizer, self.ema, self.rng, self.config = model, optimizer, ema, rng, config
        self.zero_grad, self.update, self.xp, self.found = cuda.zero_grad, cuda.update, optimizer.flat.xp, []
        self.step = cuda.capture(self._step) if config.graph else self._step
        self.where = f"cuda ({config.precision}, {'one graph a step' if config.graph else 'eager'})"

    def __call__(self, inputs, targets, labels, step):
        seed = seed_of(self.config, DROPOUT, step).spawn(1)[0]  # as for a single shard on a CPU
        self.rng.bit_generator.state = np.random.PCG64(seed).state
        found, logits = self.step(inputs, targets, labels)
        found = found.copy()  # the next step overwrites it
        if labels.ndim == 2:  # average precision is made out on the host
            found[1] = hits(logits, labels)
        self.found.append(found)

    def _step(self, inputs, targets, labels):
        logits = self.model(inputs)
        loss = mean_loss(logits, targets, self.config.label_smoothing)
        self.zero_grad(self.optimizer)
        loss.backward()
        norm2 = self.update(self.optimizer, self.config.clip, self.ema)
        right = (logits.data.argmax(1) == labels).sum() if labels.ndim == 1 else 0 * loss.data
        return self.xp.stack((loss.data * len(labels), right.astype(loss.dtype), norm2[0] ** 0.5)), logits.data

    def read(self):
        found, self.found = to_numpy(self.xp.stack(self.found)), []
        return found.tolist()


@contextlib.contextmanager
def enough_memory(config):
    """Inside, a GPU whose memory is full becomes an InputError that says how full, with which batch, and what to do."""
    try:
        yield
    except MemoryError as error:
        if config.device == "cpu":
            raise
        from ..fast import cuda

        less = "a smaller batch_size"
        if not getattr(config.model, "recompute", True):
            less += ", or recompute, which takes time for memory"
        raise InputError(
            f"the memory of the GPU is full at batch_size {config.batch_size}: {cuda.memory()} ({error}); choose {less}"
        ) from error


def seed_of(config, purpose, step):
    """What decides all that is random in a step, for AUGMENTATION or DROPOUT."""
    return np.random.SeedSequence(config.seed, spawn_key=(purpose, step))


def thread_count(model, batch_size):
    """How many threads share a batch, by a model's config: up to one for each processor, but each gets enough work."""
    work = batch_size * flops.total(flops.count(model)).macs
    return max(1, min(default_threads(), work // ENOUGH))


def shard_size(model):
    """How many samples a thread takes at a time, by a model's config: as many as its cache holds, or are worth it."""
    if isinstance(model, X21DConfig):
        size = model.frames * math.prod(model.image_size) // 4 * model.expansion * model.widths[0]
    else:
        size = model.time_steps * math.prod(model.grid) * model.dim
    return max(1, CACHED // size, WORTHWHILE // flops.total(flops.count(model)).macs)


def mean_loss(logits, targets, label_smoothing=0.0):
    """The mean loss for labels as a Dataset has them, or for soft targets (B, K) of a single label each."""
    if targets.dtype == np.uint8:
        return ops.binary_cross_entropy_with_logits(logits, targets.astype(logits.dtype))
    return ops.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def hits(logits, labels):
    """How many of the images are classified rightly; if they have several labels, as many times their mAP."""
    if labels.ndim == 1:
        return int((logits.argmax(1) == labels).sum())
    if not np.isfinite(to_numpy(logits)).all():  # nothing can be ranked; the loss tells what happened
        return math.nan
    return len(labels) * mean_average_precision(logits, labels) if labels.any() else 0.0
