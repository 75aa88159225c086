"""Is minitl as fast as PyTorch on a GPU, and how far is it from what the GPU can do?

As in ``bench``, each contestant has a process of its own, and they take turns. Each step is timed by the GPU's clock.

The floor of a step is what its numbers need at least: each multiply-add at the rate of large products, three times
(forward, and twice backward); each kept activation written and read once, and 32 bytes for each parameter (gradient
written; gradient, weight and two moments read, the latter three written), at the bandwidth of a copy. Multiply-adds
and activations are counted by ``flops``, both rates are measured.
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
MINITL = {"minitl graph": {"graph": True}, "minitl eager": {"graph": False}}
PYTORCH = {"PyTorch eager": {"compiled": False}, "PyTorch compiled": {"compiled": True}}
ROUNDS, STEPS = 7, 10  # blocks of each contestant, and steps in one
AGREE = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 2e-2}  # up to which share losses must agree


def compare(names=(), precision="fp32", quick=False, tick=lambda text: None, against=tuple(PYTORCH)):
    """Yield a dict for each model: ``times`` is {contestant: {"seconds", "low", "high"}}, median and quartiles.

    ``names`` are some of MODELS, all by default; ``against`` some of PYTORCH. What cannot run here is not in ``times``
    but in ``missing``, {contestant: why}. ``launches`` are kernels and copies of minitl's step. ``floor`` is in
    seconds, for ``copy`` bytes and ``products`` operations per second. ``ops`` are dicts as ``measure.by_op`` has them.

    Raises InputError for an unknown name, when the frameworks compute different losses, and when minitl fails.
    """
    rounds, steps = (2, 2) if quick else (ROUNDS, STEPS)
    for name in names:
        measure.model(name, models=MODELS)  # says what is wrong with it
    for name in dict.fromkeys(names or MODELS):
        config, spec, batch = measure.model(name, quick, MODELS)
        with contextlib.ExitStack() as stack:
            tick(f"{name}: do all compute the same?")
            team, missing, losses = {}, {}, {}
            for label, options in MINITL.items():
                team[label] = _contestant(
                    stack, label, "minitl", config, spec, batch, options | {"precision": precision}
                )
            for label in against:
                options = PYTORCH[label] | {"precision": precision}
                if measure.installed("PyTorch"):
                    team[label] = _contestant(stack, label, "PyTorch", config, spec, batch, options)
                else:
                    missing[label] = "PyTorch is not installed"
            for label in list(team):
                try:
                    losses[label] = team[label].ask("losses", measure.CHECKED)
                except InputError as error:
                    if label in MINITL:
                        raise
                    lines = str(error).splitlines()[::-1]  # a CPU's PyTorch, no compiler, no memory
                    missing[label] = next((line for line in lines if "Error" in line), lines[0])
                    del team[label]
            measure.check(name, losses, AGREE[precision])
            measured = measure.in_turns(list(team.values()), ["train"], rounds, steps, tick, name)
            times = {label: measured[one, "train"] for label, one in team.items()}
            tick(f"{name}: ops")
            row = {"model": name, "precision": precision, "batch": batch, "missing": missing}
            row["times"] = {label: _spread(array) for label, array in times.items()}
            row["launches"] = team["minitl graph"].ask("launches")
            row["copy"], row["products"] = team["minitl eager"].ask("rates", rounds * STEPS)
            row |= floor(config, spec, batch, row["copy"], row["products"])
            row["ops"] = measure.shares(team["minitl eager"].ask("profile", rounds))
            yield row


def floor(config, spec, batch, copy, products):
    """``parameters``, ``macs`` of one image, and the ``floor`` of a training step in seconds."""
    cost = flops.total(flops.count(config, spec))
    seconds = 6 * batch * cost.macs / products + (8 * batch * cost.kept + 32 * cost.params) / copy
    return {"parameters": cost.params, "macs": cost.macs, "floor": seconds}


def machine():
    """What the figures depend on: the GPU, its driver, and the versions that compute."""
    import cupy

    runtime = cupy.cuda.runtime
    versions = {"Python": platform.python_version(), "NumPy": np.__version__, "CuPy": cupy.__version__}
    versions |= {"PyTorch": importlib.metadata.version("torch")} if measure.installed("PyTorch") else {}
    cuda = {"driver": runtime.driverGetVersion(), "runtime": runtime.runtimeGetVersion()}
    return {"gpu": runtime.getDeviceProperties(0)["name"].decode()} | cuda | versions


def _contestant(stack, label, framework, config, spec, batch, options):
    return stack.enter_context(
        measure.Contestant(label, framework, config, spec, batch, options=options, device="cuda")
    )


def _spread(seconds):
    low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75))
    return {"seconds": float(median), "low": float(low), "high": float(high)}
