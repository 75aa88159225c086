"""The setting of `python -m tests.gpu --stand-in`: the stand-in for CuPy, and tiny models and data.

Each section runs the code that it runs on a GPU, so that a mistake in it costs no time on one.
"""

import contextlib
from dataclasses import replace
from unittest import mock

import numpy as np

from minitl import data, nn
from tests.bench import contestant_cuda, measure, measure_cuda

from . import sections

TINY = nn.ViTConfig(dim=8, heads=2, layers=1, mlp_dim=8, hidden=8, num_tokens=2, version="1.1", zero_head=False)


@contextlib.contextmanager
def stand_in():
    """Run sections on a CPU inside."""
    import fake_cupy

    models = {name: measure.lookup(name, True, measure_cuda.MODELS) for name in measure_cuda.MODELS}
    prepare = contestant_cuda.prepare

    def prepare_on_cpu(job):
        if job["framework"] == "PyTorch":
            pytorch_on_cpu(stack)
        return prepare(job)

    with contextlib.ExitStack() as stack:
        for change in (
            mock.patch.dict(measure_cuda.MODELS, models),
            mock.patch.multiple(measure_cuda, ROUNDS=1, STEPS=1),
            mock.patch.multiple(contestant_cuda, LARGE=64, LONG=64, nodes=lambda graph: len(graph.work)),
            mock.patch.object(contestant_cuda, "prepare", prepare_on_cpu),
            mock.patch.dict(sections.DATA, {name: small(*shape) for name, shape in SHAPES.items()}),
            mock.patch.dict(sections.RUNS, {name: (run(name), 1e-3) for name in sections.RUNS}),
            mock.patch.multiple(sections, SUMS=[(300, 33)], SCRIBBLES=(10,), ATTENTIONS=sections.ATTENTIONS[:2]),
            mock.patch.multiple(sections, LOOP=replace(sections.LOOP, model=TINY, batch_size=10), LOOP_STEPS=6),
            mock.patch.multiple(sections, FOLLOWED_STEPS=4, REPLAYS=5, FORMS={"cuda": sections.FORMS["cuda"]}),
            mock.patch.object(fake_cupy.RawModule, "emulate", False),  # the references are faster
        ):
            stack.enter_context(change)
        stack.enter_context(fake_cupy.installed())
        yield


def merge(plan):
    """Merge the processes after the checks into one: on a GPU they are separate, but each takes seconds to start."""
    plan["all else"] = [section for name in list(plan) if name != "checks" for section in plan.pop(name)]


SHAPES = {"clutter": (40, 8, 8, 3), "actors": (40, 4, 8, 8, 3), "cifar10": (60, 16, 16, 3)}


def small(*shape):
    """Return a function that makes both splits of a data set of this shape; clips have several labels."""
    labels = np.arange(shape[0]) % 3
    labels = np.eye(3, dtype="uint8")[labels] if len(shape) == 5 else labels
    pixels = np.random.default_rng(0).integers(256, size=shape, dtype="uint8")
    return lambda: [data.Dataset(pixels, labels, "abc")] * 2


def run(name):
    """Return the entry of RUNS with a tiny model and small batches."""
    config, _ = sections.RUNS[name]
    small_model = {"images": TINY, "clips": nn.X21DConfig(widths=(4, 6), num_tokens=2)}[name]
    return replace(config, model=small_model, batch_size=10)


def pytorch_on_cpu(stack):
    """Run PyTorch on the CPU and without its compiler until the ``stack`` is closed."""
    import torch

    from tests.bench.torch_twin import TorchOnGPU

    class Event:
        def __init__(self, enable_timing):
            pass

        def elapsed_time(self, later):
            return 2.0

        record = synchronize = lambda self: None

    for place, name, value in (
        (TorchOnGPU, "device", "cpu"),
        (torch.cuda, "Event", Event),
        (torch, "compile", lambda fn, mode: fn),
    ):
        stack.enter_context(mock.patch.object(place, name, value))
