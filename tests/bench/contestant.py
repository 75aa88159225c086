"""One framework's side of the benchmark, in a process of its own: it makes a model and times it on request."""

import collections
import contextlib
import functools
import itertools
import os
import pickle
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from minitl import data, nn, ops
from minitl.autograd import OPS, OVERRIDES, Accumulator, Node, Tensor, form, no_grad, plain
from minitl.fast.threads import in_shards, keep_memory, one_blas_thread
from minitl.train import TrainConfig
from minitl.train.step import build_model, training_step

TRAINING = {"lr": 1e-4, "decay": 0.05, "clip": 1.0}  # a learning rate at which rounding errors stay small


class Minitl:
    """The training step and the inference of `minitl train` on one batch."""

    def __init__(self, model, images, labels, threads, lr, decay, clip, **options):
        keep_memory()
        one_blas_thread()
        self.model, self.images, self.labels = model, images, labels
        training = {"lr": lr, "weight_decay": decay, "clip": clip, "threads": threads} | options
        self.config = TrainConfig(model=model.config, batch_size=len(images), **training)
        self.make_step()

    def make_step(self, **changes):
        self.take_step = training_step(self.model, np.random.default_rng(0), replace(self.config, **changes))
        self.numbers = itertools.count()

    @property
    def optimizer(self):
        return self.take_step.optimizer

    def mode(self, training):
        self.model.train(training)

    def step(self):
        self.take_step(self.images, self.labels, self.labels, next(self.numbers))

    def loss(self):
        """Take a step and return its mean loss."""
        self.step()
        loss, *_ = self.take_step.read()[-1]
        return loss / len(self.labels)

    def infer(self):
        return in_shards(self.model, self.images, self.take_step.threads)

    def update(self):
        self.optimizer.step()

    def layer(self, layer, options, arrays):
        """Return two functions: the forward pass of a layer or op, and the forward and backward pass."""
        dy = np.ones_like(layer(*map(Tensor, arrays), **options).data)

        def forward():
            with no_grad():
                layer(*map(Tensor, arrays), **options)

        def backward():
            layer(*(_inner(x) if x.dtype.kind == "f" else Tensor(x) for x in arrays), **options).backward(dy)

        return forward, backward

    def profile(self, steps):
        """Return the seconds of a training step in one thread by op, {name: (forward, backward)}; "rest" is all else.

        "data" is the time before the step: to take a batch from a data set, crop, flip and normalize it.
        """
        seconds = collections.defaultdict(lambda: [0, 0])

        def timed(name, i, call, *args, **options):
            began = time.perf_counter()
            result = call(*args, **options)
            seconds[name][i] += time.perf_counter() - began
            return result

        try:
            self.make_step(threads=1)
            with stopwatches("cpu", timed):
                began = time.perf_counter()
                for _ in range(steps):
                    self.step()
                whole = time.perf_counter() - began
        finally:
            self.make_step()
        seconds = {name: (forward / steps, backward / steps) for name, (forward, backward) in seconds.items()}
        rest = whole / steps - sum(map(sum, seconds.values()))
        return seconds | {"rest": (rest, 0), "data": (self._data(steps), 0)}

    def _data(self, steps):
        rng, (batch, *shape) = np.random.default_rng(0), self.images.shape
        images = rng.integers(256, size=(5 * batch, *shape), dtype="uint8")
        dataset = data.Dataset(images, np.zeros(len(images), "int64"), ("all",))
        began = time.perf_counter()
        for images, _ in itertools.islice(data.Loader(dataset, batch, shuffle=True, rng=rng), steps):
            data.normalize(data.random_crop(images, 4, rng, flip=True), (0.5,) * 3, (0.2,) * 3)
        return (time.perf_counter() - began) / min(steps, 5)


def _inner(x):
    """Return a Tensor inside a graph, whose gradient is passed on to an op; that of a leaf would be copied."""
    tensor = Tensor(x, requires_grad=True)
    tensor.node = Node("input", [], lambda dy: (), x.shape)
    return tensor


@contextlib.contextmanager
def stopwatches(device, timed):
    """Run each op by ``timed(name, i, call, *args, **options)`` inside ``with``; i is 0 forward and 1 backward."""

    def stopwatch(fn, timed):
        def op(*args, **options):
            y, backward = timed(0, fn, *args, **options)

            def pull(dy):
                grads = timed(1, backward, dy)
                grads = grads if isinstance(grads, tuple) else (grads,)
                return tuple(later(g)(timed, 1, g) if callable(g) else g for g in grads)

            return y, pull

        return op

    def later(gradient):
        return Accumulator if isinstance(gradient, Accumulator) else functools.partial

    forms = OVERRIDES[device]
    before, names = dict(forms), OPS.keys() - ({"linear_gelu"} - forms.keys())  # which else is measured by its parts
    try:
        forms.update({name: stopwatch(form(name, device), functools.partial(timed, name)) for name in names})
        yield
    finally:
        forms.clear()
        forms.update(before)


def layers(config, spec, batch):
    """Return layers and ops of a ViT with TokenLearner and their inputs: {label: (layer or op, options, arrays)}."""
    rng = np.random.default_rng(0)
    _, H, W = config.grid(spec)
    B, N, S, d, m = batch, H * W, config.num_tokens, config.dim, config.mlp_dim

    def learner(version):
        return nn.TokenLearner(d, S, version, hidden=config.hidden, rng=rng), {}, [(B, H, W, d)]

    rows = {
        f"linear {d} -> {3 * d}": (nn.Linear(d, 3 * d, rng=rng), {}, [(B, N, d)]),
        f"linear {d} -> {m}": (nn.Linear(d, m, rng=rng), {}, [(B, N, d)]),
        "gelu": (ops.gelu, {}, [(B, N, m)]),
        "layer_norm": (nn.LayerNorm(d), {}, [(B, N, d)]),
        "attention": (ops.attention, {"num_heads": config.heads}, [(B, N, 3 * d)]),
        "TokenLearner 1.1": learner("1.1"),
        "TokenLearner 1.0": learner("1.0"),
        "token_pool": (ops.token_pool, {}, [(B, S, N), (B, N, d)]),
        "cross_entropy": (ops.cross_entropy, {}, [(B, spec.num_classes)]),
    }
    table = {}
    for label, (layer, options, shapes) in rows.items():
        arrays = [rng.standard_normal(shape, "float32") for shape in shapes]
        targets = [rng.integers(spec.num_classes, size=B)] if layer is ops.cross_entropy else []
        table[label] = layer, options, arrays + targets
    return table


def serve():
    """Read a job for ``prepare`` from stdin, then answer requests, pairs (name, times), until there are no more.

    Requests and answers are pickled; answers go to stdout.
    """
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is not an answer
    try:
        calls = prepare(pickle.load(requests))
        while True:
            name, times = pickle.load(requests)
            pickle.dump(calls[name](times), answers)
            answers.flush()
    except EOFError:
        pass
    except MemoryError as error:
        sys.exit(f"its model and batch do not fit into memory: {error}")


def prepare(job):
    """Return {name of a request: function of the number of times}. A job has the arguments of ``measure.Contestant``.

    The option ``plain`` makes minitl run the plain forms of its ops.
    """
    if job["device"] == "cuda":
        from . import contestant_cuda

        return contestant_cuda.prepare(job)
    framework, options = _framework(job["framework"]), dict(job["options"])
    plainly = options.pop("plain", False)
    small = nn.ViTConfig(layers=1, tokenizer="none")
    side_of(framework, small, nn.DataSpec(), 2, job["threads"]).step()  # loads what any first step loads
    _forget_peak()
    before = _peak()
    side = side_of(framework, job["config"], job["spec"], job["batch"], job["threads"], **options)
    loss = side.loss if framework is Minitl else side.step
    timed = _layer_calls(side, job) if job["by_layer"] else {"train": side.step, "infer": side.infer}

    def seconds(name, times):
        side.mode(name != "infer")
        return [_seconds(timed[name]) for _ in range(times + 1)][1:]  # the first fills the caches again

    calls = {name: functools.partial(seconds, name) for name in timed} | {
        "layers": lambda _: list(timed),
        "losses": lambda times: [float(loss()) for _ in range(times)],
        "memory": lambda _: {} if before is None else {"memory": _peak() - before, "process": _peak()},
        "profile": lambda times: side.profile(times),
    }
    return {name: plain()(call) for name, call in calls.items()} if plainly else calls


def _framework(name):
    if name == "PyTorch":
        from .torch_twin import Torch

        return Torch
    if name == "JAX":
        from .jax_twin import Jax

        return Jax
    return Minitl


def side_of(framework, config, spec, batch, threads, **options):
    """Make a model and a batch in a framework; weights and data are the same in all of them."""
    rng = np.random.default_rng(0)
    model = build_model(config, spec, rng)
    frames = (spec.frames,) if isinstance(config, nn.X21DConfig) or spec.frames > 1 else ()
    images = rng.standard_normal((batch, *frames, *spec.image_size, spec.channels), "float32")
    labels = rng.integers(spec.num_classes, size=batch)
    return framework(model, images, labels, threads, **TRAINING, **options)


def _layer_calls(side, job):
    calls = {}
    for label, arguments in layers(job["config"], job["spec"], job["batch"]).items():
        calls[label, "forward"], calls[label, "forward and backward"] = side.layer(*arguments)
    side.step()  # for the gradients
    return calls | {("AdamW", "step"): side.update}


def _seconds(call):
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _forget_peak():
    """Reset the peak memory of this process on Linux; elsewhere it remains that since the start."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak():
    """Return the peak memory of this process in bytes, or None if the system does not report it, like Windows."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
