"""Is minitl as fast as PyTorch? The same models, weights, batches and threads in both, measured in turns.

Each framework has a process of its own (contestant.py). They take turns in blocks of a few steps, so that whatever
else the machine does disturbs all alike. Before each block there is a pause in which the threads of the one before
fall asleep, and the first step of a block, which has to fill the caches again, does not count.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import pickle
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from minitl import flops, train
from minitl.errors import InputError, did_you_mean
from minitl.fast.threads import cores, default_threads
from minitl.nn import DataSpec, ViTConfig
from minitl.paper import ablate
from minitl.train.step import shard_size

ROUNDS, STEPS = 7, 3  # blocks of each contestant, and steps in one that count
PAUSE = 0.1  # seconds
CHECKED, AGREE = 3, 1e-4  # training steps whose losses must agree, and up to which share
TINY = ViTConfig(dim=128, layers=6, heads=4, mlp_dim=256, tokenizer="none", zero_head=False)
WIDE = replace(TINY, dim=384, heads=6, mlp_dim=1536)
LEARNER = {"tokenizer": "learner", "version": "1.1", "pre_norm": False, "num_tokens": 8, "loc": 3}
IMAGES, CLIPS = DataSpec(), DataSpec(frames=8)
MODELS = {  # name: configuration, DataSpec, batch size
    "vit-tiny": (TINY, IMAGES, 128),
    "vit-tiny-tl": (replace(TINY, **LEARNER), IMAGES, 128),
    "vit-384": (WIDE, IMAGES, 32),
    "vit-tl-384": (replace(WIDE, **LEARNER), IMAGES, 32),
    "video-tl": (train.default_config("actors").model, CLIPS, 64),
    "bottleneck": (ablate.KINDS["video"]["bottleneck, tokens"].model, CLIPS, 32),
}
PAIRS = {"vit-tiny-tl": "vit-tiny", "vit-tl-384": "vit-384"}  # with TokenLearner and without, measured together
SCALES = {  # of vit-tiny: what grows, and {its value: changes of the configuration}
    "images in a batch": {n: {"batch": n} for n in (8, 16, 32, 64, 128, 256)},
    "tokens": {(n // 4) ** 2: {"image_size": (n, n)} for n in (16, 24, 32, 40, 48, 64)},
    "blocks": {n: {"layers": n} for n in (1, 2, 4, 6, 9, 12)},
    "blocks, recomputed": {n: {"layers": n, "recompute": True} for n in (1, 2, 4, 6, 9, 12)},
}
SCALE_BATCH = 32
TIMES = ("train", "infer")  # a training step, inference
SIZES = ("memory", "process")  # peak memory, without what the framework takes at its start and with it
PACKAGES = {"PyTorch": "torch", "JAX": "jax"}


def compare(names=(), threads=None, quick=False, tick=lambda text: None):
    """Yield a dict for each model and each of TIMES (seconds) and SIZES (bytes): what ``minitl`` and ``PyTorch`` take.

    ``names`` are some of MODELS, all by default. ``ratio``, ``low`` and ``high`` are the median and the quartiles of
    minitl by PyTorch in single blocks. ``form`` says which form of the PyTorch model was the fastest and counts;
    ``JAX`` is there if JAX is installed, SIZES where the system says how large a process is. ``macs`` are the
    multiply-adds of one image or clip. ``tick(text)`` is called now and then.

    Raises InputError for an unknown name, without PyTorch, when the frameworks compute different losses, and when a
    process fails.
    """
    rounds, steps = (2, 2) if quick else (ROUNDS, STEPS)
    for group in _groups(names or MODELS):
        with contextlib.ExitStack() as stack:
            teams = {name: _team(stack, *model(name, quick), threads) for name in group}
            for name, team in teams.items():
                tick(f"{name}: do all compute the same?")
                check(name, {label: one.ask("losses", CHECKED) for label, one in team.items()})
            everyone = [one for team in teams.values() for one in team.values()]
            times = in_turns(everyone, TIMES, rounds, steps, tick, ", ".join(group))
            for name, team in teams.items():
                found = {label: {what: times[one, what] for what in TIMES} for label, one in team.items()}
                for label, one in team.items():
                    found[label] |= {what: np.array([[n]]) for what, n in one.ask("memory").items()}
                macs = flops.total(flops.count(*model(name, quick)[:2])).macs
                for what in found["minitl"]:
                    decides = what if what in TIMES else "train"
                    yield {"model": name, "what": what, "macs": macs} | _against(found, what, decides)


def by_op(threads=None, quick=False, tick=lambda text: None):
    """What single ops of vit-tiny-tl take, and what they contribute to a training step.

    Returns two lists of dicts: those of ``compare`` for each layer, by ``model`` and ``what``; and for each op of
    minitl ``name``, seconds ``forward`` and ``backward`` in a training step, and their ``share`` of it.
    """
    rounds, steps = (2, 2) if quick else (ROUNDS, 4 * STEPS)
    with contextlib.ExitStack() as stack:
        team = _team(stack, *model("vit-tiny-tl", quick), threads, by_layer=True)
        whats = team["minitl"].ask("names")
        times = in_turns(list(team.values()), whats, rounds, steps, tick, "ops")
        profile = team["minitl"].ask("profile", rounds)
    rows = []
    for what in whats:
        found = {label: {what: times[one, what]} for label, one in team.items()}
        rows.append(dict(zip(("model", "what"), what, strict=True)) | _against(found, what, what))
    return rows, shares(profile)


def shares(profile):
    """{name: seconds (forward, backward)} as dicts, with the ``share`` of the whole that each has, largest first."""
    whole = sum(map(sum, profile.values()))
    rows = [{"name": name, "forward": f, "backward": b, "share": (f + b) / whole} for name, (f, b) in profile.items()]
    return sorted(rows, key=lambda row: -row["share"])


def scale(threads=None, quick=False, tick=lambda text: None):
    """How a training step of vit-tiny in minitl grows, without PyTorch: a list of dicts, one for each of SCALES.

    ``axis`` and ``value`` say what grew; ``seconds``, ``low`` and ``high`` are the median and the quartiles of a step,
    SIZES are as in ``compare``; ``macs`` and ``kept`` are multiply-adds and bytes of activations, as counted: those of
    a forward and a backward pass (two forward passes for blocks that are recomputed), and those of the samples that
    the threads work on at a time.
    """
    rounds, steps = (2, 2) if quick else (ROUNDS // 2, STEPS)
    threads, rows = threads or default_threads(), []
    for axis, values in SCALES.items():
        with contextlib.ExitStack() as stack:
            points = {value: _point(changes, quick) for value, changes in values.items()}
            alone = {
                value: stack.enter_context(Contestant("minitl", "minitl", *point, threads))
                for value, point in points.items()
            }
            times = in_turns(list(alone.values()), ["train"], rounds, steps, tick, axis)
            for value, (config, spec, batch) in points.items():
                low, median, high = np.quantile(times[alone[value], "train"], (0.25, 0.5, 0.75))
                row = {"axis": axis, "value": value, "seconds": median, "low": low, "high": high}
                row |= alone[value].ask("memory")
                cost, passes = flops.total(flops.count(config, spec)), 4 if config.recompute else 3
                held = batch / -(-batch // (shard_size(config, spec) * threads))  # samples at a time
                rows.append(row | {"macs": passes * batch * cost.macs, "kept": 4 * held * cost.kept})
    return rows


def _point(changes, quick):
    """vit-tiny with these changes: (configuration, DataSpec, batch size)."""
    config, spec, _ = model("vit-tiny", quick)
    batch, size = changes.get("batch", SCALE_BATCH), changes.get("image_size", spec.image_size)
    options = {name: value for name, value in changes.items() if name not in ("batch", "image_size")}
    return replace(config, **options), replace(spec, image_size=size), batch


def model(name, quick=False, models=MODELS):
    """(configuration, DataSpec, batch size) of one of ``models``; a tiny one of its kind for ``quick``."""
    if name not in models:
        raise InputError(f"there is no configuration {name!r}; {did_you_mean(name, models)}")
    config, spec, batch = models[name]
    if not quick:
        return config, spec, batch
    if isinstance(config, ViTConfig):
        sizes = {"dim": 4 * config.heads, "layers": 2, "loc": min(config.loc, 1), "mlp_dim": 16, "hidden": 8}
    else:
        sizes = {"widths": (4, 8)}
    return replace(config, **sizes), replace(spec, frames=min(spec.frames, 2)), 4


def machine(threads=None):
    """What the figures depend on: processor, cores, threads, versions of Python, NumPy, its BLAS, PyTorch and JAX.

    ``load`` is how many threads of other programs wanted a core in the last minute; near 0 the figures are fair. It is
    missing where the system does not say.
    """
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    versions = {"Python": platform.python_version(), "NumPy": np.__version__}
    versions["BLAS"] = f"{blas.get('name')} {blas.get('version')}"
    versions |= {name: importlib.metadata.version(package) for name, package in PACKAGES.items() if installed(name)}
    found = {"cpu": cpu, "cores": cores(), "threads": threads or default_threads()}
    with contextlib.suppress(AttributeError, OSError):
        found["load"] = os.getloadavg()[0]
    return found | versions


class Contestant:
    """A process with one model in one framework, from ``with`` to its end."""

    def __init__(self, label, framework, config, spec, batch, threads=None, options=None, by_layer=False, device="cpu"):
        self.label, threads = label, threads or default_threads()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115, closed in __exit__
        limits = dict.fromkeys(("OPENBLAS", "OMP", "MKL"), str(threads))
        settings = {f"{library}_NUM_THREADS": n for library, n in limits.items()} | {"JAX_PLATFORMS": "cpu"}
        with _on_cores(threads):
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from tests.bench.contestant import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                env=os.environ | settings,
                cwd=Path(__file__).parents[2],  # where minitl and tests are found
                start_new_session=True,  # so that Ctrl-C reaches this process alone, which then ends the others
            )
        job = {"framework": framework, "config": config, "spec": spec, "batch": batch, "threads": threads}
        job["device"] = device
        self._send(job | {"options": options or {}, "by_layer": by_layer})

    def ask(self, what, times=0):
        """The answer of ``contestant.prepare``. Raises InputError with the process's last words if it is no more."""
        self._send((what, times))
        try:
            return pickle.load(self.process.stdout)
        except EOFError:
            self._fail()

    def _send(self, request):
        try:
            pickle.dump(request, self.process.stdin)
            self.process.stdin.flush()
        except BrokenPipeError:
            self._fail()

    def _fail(self):
        status = self.process.wait()
        self.errors.seek(0)
        words = self.errors.read().decode(errors="replace").strip() or "it said nothing; was there too little memory?"
        raise InputError(f"the process of {self.label} ended with status {status}:\n{words}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):  # of a request that nobody read
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self.errors.close()


@contextlib.contextmanager
def _on_cores(n):
    """Processes that start inside may use ``n`` cores, where the system lets one say so. JAX has no other setting."""
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:n])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _team(stack, config, spec, batch, threads, by_layer=False):
    """The contestants for one model, {label: Contestant}, running until ``stack`` is closed."""
    if not installed("PyTorch"):
        wanted = "install minitl[bench], or try `python -m tests.bench --scale`, which measures minitl alone"
        raise InputError(f"the benchmark compares with PyTorch, which is not installed; {wanted}")
    if isinstance(config, ViTConfig):
        forms = {"tanh GELU": {"gelu": "tanh"}, "exact GELU": {"gelu": "none"}}
    else:
        forms = {"channels first": {}, "channels last": {"memory_format": "channels_last_3d"}}
    found = [("minitl", "minitl", {})]
    found += [(f"PyTorch, {form}", "PyTorch", options) for form, options in forms.items()]
    found += [("JAX", "JAX", {})] * (isinstance(config, ViTConfig) and not by_layer and installed("JAX"))
    return {
        label: stack.enter_context(Contestant(label, framework, config, spec, batch, threads, options, by_layer))
        for label, framework, options in found
    }


def installed(framework):
    return importlib.util.find_spec(PACKAGES[framework]) is not None


def _groups(names):
    """``names`` without repeats, in groups to be measured together."""
    for name in names:
        model(name)  # says what is wrong with it
    groups = {}
    for name in names:
        groups.setdefault(PAIRS.get(name, name), {})[name] = True
    return [sorted(group, key=list(MODELS).index) for group in groups.values()]


def check(name, losses, agree=AGREE):
    """Raise InputError when a contestant's losses are not those of the first; the exact GELU's differ, and may."""
    first, ours = next(iter(losses.items()))
    for label, theirs in losses.items():
        if "exact" not in label and not np.allclose(ours, theirs, rtol=agree, atol=0):
            raise InputError(
                f"{name}: the losses of the first steps are {ours} in {first} and {theirs} in {label}; these are two "
                "different computations, so their times say nothing"
            )


def in_turns(contestants, whats, rounds, steps, tick, text):
    """Seconds of each contestant doing each of ``whats``: {(contestant, what): array (rounds, steps)}."""
    times = {}
    for i in range(rounds):
        tick(f"{text}: round {i + 1} of {rounds}")
        for what in whats:
            for one in contestants[:: 1 if i % 2 == 0 else -1]:
                time.sleep(PAUSE)
                times.setdefault((one, what), []).append(one.ask(what, steps))
    return {key: np.array(blocks) for key, blocks in times.items()}


def _against(found, what, decides):
    """minitl against that form of PyTorch which was faster in ``decides``. ``found``: {label: {what: array}}."""
    best = min((label for label in found if label.startswith("PyTorch")), key=lambda it: np.median(found[it][decides]))
    ours, theirs = found["minitl"][what], found[best][what]
    low, middle, high = np.quantile(np.median(ours, 1) / np.median(theirs, 1), (0.25, 0.5, 0.75))
    row = {"minitl": np.median(ours), "PyTorch": np.median(theirs), "form": best.removeprefix("PyTorch, ")}
    row |= {"ratio": middle, "low": low, "high": high}
    row |= {"JAX": np.median(found["JAX"][what])} if "JAX" in found else {}
    return {name: value if isinstance(value, str) else float(value) for name, value in row.items()}
