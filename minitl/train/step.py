"""One training step: forward, loss, backward, clipping, update and moving average, on a CPU or on a GPU.

    take_step = training_step(model, rng, config)
    take_step(inputs, targets, labels, step)       # ``step`` counts from 0
    for loss, correct, norm in take_step.read(): ...  # one row per step since the last call

``config`` is a TrainConfig. ``rng`` is the generator that the model's dropout draws from; it is reseeded for each step,
so a resumed run drops the same activations. ``targets`` are the labels, or soft labels from augmentation. A row has the
sum of the losses over the batch, the number of correct predictions, and the norm of the gradient before clipping; if
the norm is not finite, the weights were not changed.

Reading waits for the GPU, so the trainer reads once per ``every`` steps. ``inference`` has the options of ``evaluate``
for this device, ``where`` describes it, and ``resident(dataset)`` is the Dataset to take batches from.
"""

import contextlib
import math

import numpy as np

from .. import flops, nn, ops, optim
from ..backend import to_numpy
from ..errors import InputError
from ..fast.threads import DataParallel, default_threads
from ..metrics import mean_average_precision

AUGMENTATION, DROPOUT = range(2)  # purposes of a step's random numbers
ELEMENTS_PER_SHARD = 2**18  # of one activation: 1 MB, about the size of a core's own cache
MACS_PER_SHARD = 2**30  # forward; with fewer, threads spend their time waiting for the GIL
MACS_PER_THREAD = 2**26  # forward, for a batch; with fewer, a second thread makes a step slower


def build_model(config, spec, rng=None):
    """Return the ViT or X21D of a ViTConfig or X21DConfig for a DataSpec."""
    return (nn.X21D if isinstance(config, nn.X21DConfig) else nn.ViT)(config, spec, rng)


def training_step(model, rng, config):
    """Return the step that trains ``model``, on the device of the TrainConfig ``config``."""
    return (OnGPU if config.device == "cuda" else OnCPU)(model, rng, config)


class TrainingStep:
    """Model, optimizer and moving average (None without one)."""

    def __init__(self, model, rng, config):
        self.model, self.rng, self.config = model, rng, config
        kind = optim.Muon if config.optimizer == "muon" else optim.AdamW
        self.optimizer = kind(model.parameters(), config.lr, weight_decay=config.weight_decay)
        self.ema = optim.EMA(self.optimizer, config.ema) if config.ema else None


class OnCPU(TrainingStep):
    """A step in threads that share the batch, see ``fast/threads.py``."""

    every = 1

    def __init__(self, model, rng, config):
        super().__init__(model, rng, config)
        self.threads = config.threads or thread_count(model.config, model.spec, config.batch_size)
        self.parallel = DataParallel(model, rng, self.threads, shard_size(model.config, model.spec))
        self.inference = {"threads": self.threads}
        several = f"{self.threads} threads of one BLAS thread each"
        self.where = f"cpu with {'1 thread' if self.threads == 1 else several}"

    def __call__(self, inputs, targets, labels, step):
        def forward_backward(model, shard):
            logits = model(inputs[shard])
            loss = mean_loss(logits, targets[shard], self.config.label_smoothing)
            share = len(logits.data) / len(inputs)
            loss.backward(np.full_like(loss.data, share))  # the shard's share of the batch's mean loss
            return loss.item() * share, logits.data

        self.optimizer.zero_grad()
        results = self.parallel.run(forward_backward, len(inputs), seed_of(self.config, DROPOUT, step))
        norm = self.optimizer.clip_grad_norm(self.config.clip)
        if math.isfinite(norm):
            self.optimizer.step()
            if self.ema:
                self.ema.update()
        losses, logits = zip(*results, strict=True)
        self.last = sum(losses) * len(labels), count_correct(np.concatenate(logits), labels), norm

    def read(self):
        return [self.last]

    def resident(self, dataset):
        return dataset


class OnGPU(TrainingStep):
    """A step on the whole batch, with clipping, update and average in few launches, replayed as one CUDA graph."""

    every = 50

    def __init__(self, model, rng, config):
        super().__init__(model, rng, config)
        from ..fast import cuda

        use_precision(config.precision)
        self.zero_grad, self.update, self.concatenate = cuda.zero_grad, cuda.update, cuda.concatenate
        self.xp, self.unread = self.optimizer.flat.xp, []
        self.compute = cuda.capture(self._compute) if config.graph else self._compute
        self.inference = {"batch_size": config.batch_size}
        if config.graph:  # serves the whole run, as weights and their average stay in the same arrays
            self.inference["forward"] = cuda.capture(lambda images: model(images).data)
        self.where = f"cuda ({config.precision}, {'one graph a step' if config.graph else 'eager'})"

    def __call__(self, inputs, targets, labels, step):
        seed = seed_of(self.config, DROPOUT, step).spawn(1)[0]  # as for a single shard on a CPU
        self.rng.bit_generator.state = np.random.PCG64(seed).state
        self.unread.append((self.compute(inputs, targets).copy(), labels))  # the next step overwrites its result

    def _compute(self, inputs, targets):
        logits = self.model(inputs)
        loss = mean_loss(logits, targets, self.config.label_smoothing)
        self.zero_grad(self.optimizer)
        loss.backward()
        norm2 = self.update(self.optimizer, self.config.clip, self.ema)
        return self.concatenate((logits.data, loss.data, norm2))

    def read(self):
        rows = []
        for result, labels in self.unread:
            result, labels = to_numpy(result), to_numpy(labels)
            loss, norm2 = result[-2:].tolist()
            rows.append((loss * len(labels), count_correct(result[:-2].reshape(len(labels), -1), labels), norm2**0.5))
        self.unread = []
        return rows

    def resident(self, dataset):
        """Return the Dataset, on the GPU if it takes at most a quarter of the free memory; the step needs the rest."""
        free, _ = self.xp.cuda.runtime.memGetInfo()
        return dataset.to("cuda") if dataset.images.nbytes <= free / 4 else dataset


def use_precision(precision):
    """Set the precision on the GPU. Raises InputError if the GPU does not support it."""
    import cupy

    from ..fast import cuda

    capability = cupy.cuda.Device().compute_capability  # "75" for 7.5
    if precision != "fp32" and int(capability) < 80:
        raise InputError(
            f"precision {precision} needs a GPU of compute capability 8.0 or above, and this one has "
            f"{int(capability) / 10}; use fp32 there"
        )
    cuda.use(precision)


@contextlib.contextmanager
def enough_memory(config):
    """Turn an error of a GPU without memory into an InputError with its memory in use, batch size, and what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # CuPy's pools raise the first, CUDA itself the second
        if config.device == "cpu" or not (isinstance(error, MemoryError) or "MemoryAllocation" in str(error)):
            raise
        from ..fast import cuda

        less = "a smaller batch_size"
        if not getattr(config.model, "recompute", True):
            less += ", or recompute, which trades time for memory"
        raise InputError(
            f"the memory of the GPU is full at batch_size {config.batch_size}: {cuda.memory()} ({error}); choose {less}"
        ) from error


def seed_of(config, purpose, step):
    """Return the seed of all random numbers of a step for AUGMENTATION or DROPOUT."""
    return np.random.SeedSequence(config.seed, spawn_key=(purpose, step))


def thread_count(config, spec, batch_size):
    """Return the number of threads for batches of a model: one per processor, at most 8, if there is enough work."""
    work = batch_size * flops.total(flops.count(config, spec)).macs
    return max(1, min(default_threads(), work // MACS_PER_THREAD))


def shard_size(config, spec):
    """Return the number of samples that a thread takes at a time: what fits in its cache, or more if work is short."""
    if isinstance(config, nn.X21DConfig):
        pixels = math.prod(-(-side // 2) for side in spec.image_size)
        numbers = spec.frames * pixels * config.expansion * config.widths[0]
    else:
        numbers = math.prod(config.grid(spec)) * config.dim
    macs = flops.total(flops.count(config, spec)).macs
    return max(1, ELEMENTS_PER_SHARD // numbers, MACS_PER_SHARD // macs)


def mean_loss(logits, targets, label_smoothing=0.0):
    """Return the mean loss for classes (B,), soft targets (B, K), or in uint8 several labels per image (B, K)."""
    if targets.dtype == np.uint8:
        return ops.binary_cross_entropy_with_logits(logits, targets.astype(logits.dtype))
    return ops.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def count_correct(logits, labels):
    """Return the number of correct predictions; for several labels per image, the batch size times the mAP."""
    if labels.ndim == 1:
        return int((logits.argmax(1) == labels).sum())
    if not np.isfinite(logits).all():  # they cannot be ranked; the loss will report it
        return math.nan
    return len(labels) * mean_average_precision(logits, labels) if labels.any() else 0.0
