"""A cost model of a training step on a GPU, which needs no GPU: launches, bytes, multiply-adds and estimated time.

The stand-in for CuPy (tests/fake_cupy.py) records the step as a graph, so launches, sizes of arrays and sizes of
products are those of the real step. The estimated time is a sum over the launches: each takes the time of its bytes or
of its multiply-adds, whichever is longer, plus NODE_SECONDS. The model ignores caches, assumes that each argument is
read or written once, and counts no arithmetic but products. So the estimate is too high for small models, whose arrays
fit in the caches, and too low for kernels that compute a lot.
"""

import collections
import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

from . import contestant_cuda, measure, measure_cuda
from .contestant import side_of

STEPS = [("vit-tiny-tl", "tf32"), ("cifar-r1", "tf32"), ("cifar-r1", "bf16")]  # estimated by default
SHARE = 0.8  # of the bandwidth of a copy that kernels reach: typically 0.72 to 0.85
NODE_SECONDS = 1e-6  # from the end of one kernel in a graph to the start of the next


@dataclass(frozen=True)
class Rates:
    """Bytes per second in a copy, and operations per second in large products by the kind of their factors."""

    copy: float
    products: dict


PRODUCTS = {"fp64": 50e12, "fp32": 45e12, "tf32": 300e12, "bf16": 550e12}
PRODUCTS["kernel"] = 30e12  # in kernels without tensor cores: half of the peak, as a factor is used only 4 times
PRODUCTS["tiles"] = 100e12  # in kernels on tensor cores, which mostly wait for shared memory
GPUS = {"H100": Rates(3.0e12, PRODUCTS), "H200": Rates(4.3e12, PRODUCTS)}  # SXM; the H200 has only faster memory


def costs(names=(), precision="fp32", quick=False):
    """Yield a dict for each model, ``names`` in a precision or by default STEPS: ``launches``, ``bytes``, ``macs``.

    ``seconds`` is {GPU: estimated seconds of a step}, and ``kernels`` has such a dict for each kernel, the slowest
    first. Raises InputError for an unknown name.
    """
    for name, kind in [(name, precision) for name in dict.fromkeys(names)] or STEPS:
        config, spec, batch = measure.lookup(name, quick, measure_cuda.MODELS)
        launches = recorded(config, spec, batch, kind)
        groups = collections.defaultdict(list)
        for launch in launches:
            groups[launch.name].append(launch)
        kernels = [{"name": kernel} | cost(group) for kernel, group in groups.items()]
        kernels.sort(key=lambda row: -row["seconds"]["H100"])
        yield {"name": name, "precision": kind, "batch": batch} | cost(launches) | {"kernels": kernels}


def recorded(config, spec, batch, precision):
    """Return the launches of a captured training step, as ``fake_cupy.Launch``; nothing is computed."""
    with stand_in() as fake:
        side = side_of(contestant_cuda.Minitl, config, spec, batch, 1, precision=precision)
        captured = side.take_step.compute
        captured.warmup = 0  # there is nothing to compile
        with fake.counting():
            side.step()
        (recording,) = captured.graphs.values()
        return recording.graph.work


@contextlib.contextmanager
def stand_in():
    """Replace CuPy by the stand-in, even if CuPy is installed, and yield its module."""
    folder = str(Path(__file__).parents[1])
    sys.path.insert(0, folder)
    try:
        import fake_cupy
    finally:
        sys.path.remove(folder)
    with fake_cupy.installed():
        yield fake_cupy


def cost(launches):
    """Return a dict of the number, bytes, multiply-adds and estimated seconds of some launches."""
    seconds = {gpu: sum(_seconds(launch, rates) for launch in launches) for gpu, rates in GPUS.items()}
    moved, macs = (sum(getattr(launch, key) for launch in launches) for key in ("bytes", "macs"))
    return {"launches": len(launches), "bytes": moved, "macs": macs, "seconds": seconds}


def _seconds(launch, rates):
    products = 2 * launch.macs / rates.products[launch.kind] if launch.macs else 0
    return NODE_SECONDS + max(launch.bytes / (SHARE * rates.copy), products)
