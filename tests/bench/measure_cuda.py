"""Is minitl as fast as PyTorch on a GPU, and how far is it from what the GPU can do?

As on a CPU (measure.py), each contestant has a process of its own, and they take turns. Each step is timed by the
GPU's clock.

The floor of a step is the least time that its numbers need: each multiply-add at the rate of large products, three
times (forward, and twice backward); each kept activation written and read once, and 32 bytes for each parameter
(gradient written; gradient, weight and two moments read; the latter three written), at the bandwidth of a copy.
Multiply-adds and activations are counted by ``flops``; both rates are measured.
"""

import contextlib
import importlib.metadata
import platform
from dataclasses import replace

import numpy as np

from minitl import flops
from minitl.errors import InputError
from minitl.train.presets import R1

from . import measure

MODELS = {  # name: configuration, DataSpec, batch size
    "vit-tiny": measure.MODELS["vit-tiny"],
    "vit-tiny-tl": measure.MODELS["vit-tiny-tl"],
    "cifar-r1": (replace(R1, drop_path=0.0, zero_head=False), measure.IMAGES, 1024),
}
EAGER, GRAPH = "minitl eager", "minitl graph"
MINITL = {EAGER: {"graph": False}, GRAPH: {"graph": True}}
PYTORCH = {"PyTorch eager": {"compiled": False}, "PyTorch compiled": {"compiled": True}}
ROUNDS, STEPS = 7, 10  # blocks of each contestant, and steps in one
CHECKED_STEPS = 5  # whose losses must agree: those of a graph include three replays
RTOL = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 2e-2}  # relative tolerance of the losses, which must agree


def compare(names=(), precision="fp32", quick=False, progress=lambda text: None):
    """Yield a dict for each model: ``times`` is {contestant: {"seconds", "low", "high"}}, median and quartiles.

    ``names`` are keys of MODELS, all by default. What cannot run here is not in ``times`` but in ``missing``,
    {contestant: why}, and so is a graph of minitl's that fails or computes other losses. ``launches`` are kernels and
    copies of minitl's step. ``floor`` is in seconds, for ``copy`` bytes and ``products`` operations per second. ``ops``
    are dicts as ``measure.by_op`` has them.

    Raises InputError for an unknown name, when the frameworks compute different losses, and when minitl fails even
    without a graph.
    """
    rounds, steps = (2, 2) if quick else (ROUNDS, STEPS)
    for name in dict.fromkeys(names or MODELS):
        config, spec, batch = measure.lookup(name, quick, MODELS)
        with contextlib.ExitStack() as stack:
            progress(f"{name}: do all compute the same?")
            contestants, missing, losses = {}, {}, {}
            for label, options in (MINITL | PYTORCH).items():
                framework, options = label.split()[0], options | {"precision": precision}
                if framework == "PyTorch" and not measure.installed("PyTorch"):
                    missing[label] = "PyTorch is not installed"
                    continue
                one = measure.Contestant(label, framework, config, spec, batch, options=options, device="cuda")
                contestants[label] = stack.enter_context(one)
            for label in list(contestants):
                try:
                    losses[label] = contestants[label].request("losses", CHECKED_STEPS)
                    if label == GRAPH:
                        measure.check_losses(name, {one: losses[one] for one in (EAGER, GRAPH)}, RTOL[precision])
                except InputError as error:
                    if label == EAGER:
                        raise
                    lines = str(error).splitlines()[::-1]  # PyTorch built without CUDA, no compiler, no memory
                    missing[label] = next((line for line in lines if "Error" in line), lines[0])
                    del contestants[label]
                    losses.pop(label, None)
            measure.check_losses(name, losses, RTOL[precision])
            times = measure.in_turns(list(contestants.values()), ["train"], rounds, steps, progress, name)
            progress(f"{name}: ops")
            row = {"name": name, "precision": precision, "batch": batch, "missing": missing}
            row["times"] = {label: measure.spread(times[one, "train"]) for label, one in contestants.items()}
            row["launches"] = contestants[GRAPH].request("launches") if GRAPH in contestants else None
            row["copy"], row["products"] = contestants[EAGER].request("rates", rounds * STEPS)
            row |= floor(config, spec, batch, row["copy"], row["products"])
            row["ops"] = measure.shares(contestants[EAGER].request("profile", rounds))
            yield row


def floor(config, spec, batch, copy, products):
    """Number of ``parameters``, ``macs`` of one image, and the ``floor`` of a training step in seconds."""
    cost = flops.total(flops.count(config, spec))
    seconds = 6 * batch * cost.macs / products + (8 * batch * cost.kept + 32 * cost.params) / copy
    return {"parameters": cost.params, "macs": cost.macs, "floor": seconds}


def machine():
    """Return what the figures depend on: the GPU, its driver and the versions of the libraries."""
    import cupy

    runtime = cupy.cuda.runtime
    versions = {"Python": platform.python_version(), "NumPy": np.__version__, "CuPy": cupy.__version__}
    versions |= {"PyTorch": importlib.metadata.version("torch")} if measure.installed("PyTorch") else {}
    cuda = {"driver": runtime.driverGetVersion(), "runtime": runtime.runtimeGetVersion()}
    return {"gpu": runtime.getDeviceProperties(0)["name"].decode()} | cuda | versions
