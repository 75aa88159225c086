"""Is minitl as fast as PyTorch? The same models, weights, batches and threads in both, measured in turns.

Each contestant has a process of its own (contestant.py). They take turns in blocks of a few steps, so that whatever
else the machine does disturbs all of them alike. Before each block there is a pause in which the threads of the last
one fall asleep, and the first step of a block, which has to fill the caches again, does not count.
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
from minitl.train.presets import preset
from minitl.train.step import shard_size

ROUNDS, STEPS = 7, 3  # blocks of each contestant, and steps in one that count
PAUSE_SECONDS = 0.1
CHECKED_STEPS, RTOL = 3, 1e-4  # the first training steps, whose losses must agree, and their relative tolerance
TINY = ViTConfig(dim=128, layers=6, heads=4, mlp_dim=256, tokenizer="none", zero_head=False)
WIDE = replace(TINY, dim=384, heads=6, mlp_dim=1536)
LEARNER = {"tokenizer": "learner", "version": "1.1", "pre_norm": False, "num_tokens": 8, "loc": 3}
CIFAR = preset("cifar-cpu")
IMAGES, CLIPS = DataSpec(), DataSpec(frames=8)
MODELS = {  # name: configuration, DataSpec, batch size
    "vit-tiny": (TINY, IMAGES, 128),
    "vit-tiny-tl": (replace(TINY, **LEARNER), IMAGES, 128),
    "vit-384": (WIDE, IMAGES, 32),
    "vit-tl-384": (replace(WIDE, **LEARNER), IMAGES, 32),
    "cifar-cpu": (replace(CIFAR.model, zero_head=False), IMAGES, CIFAR.batch_size),
    "video-tl": (train.default_config("actors").model, CLIPS, 64),
    "bottleneck": (ablate.KINDS["video"]["bottleneck, tokens"].model, CLIPS, 32),
}
PAIRS = {"vit-tiny-tl": "vit-tiny", "vit-tl-384": "vit-384"}  # with TokenLearner and without, measured together
SCALES = {  # of vit-tiny: what grows, and {its value: changes of the configuration}
    "images in a batch": {n: {"batch": n} for n in (8, 16, 32, 64, 128, 256)},
    "tokens": {(n // 4) ** 2: {"image_size": (n, n)} for n in (16, 24, 32, 40, 48, 64)},
    "blocks": {n: {"layers": n} for n in (1, 2, 4, 6, 9, 12)},
    "blocks, recomputed": {n: {"layers": n, "recompute": True} for n in (1, 2, 4, 6, 9, 12)},
    "blocks of 6 before TokenLearner": {n: LEARNER | {"layers": 6, "loc": n} for n in range(6)}
    | {6: {"layers": 6}},  # all tokens
}
SCALE_BATCH = 32
TIMES = ("train", "infer")  # a training step, inference
SIZES = ("memory", "process")  # peak memory, without what the framework takes at its start and with it
PACKAGES = {"PyTorch": "torch", "JAX": "jax"}


def compare(names=(), threads=None, quick=False, progress=lambda text: None):
    """Yield a dict for each model and each quantity: TIMES in seconds, and SIZES in bytes where the system tells them.

    ``names`` are keys of MODELS, all by default. ``minitl`` and ``PyTorch`` are the medians; ``ratio``, ``low`` and
    ``high`` the median and the quartiles, over the blocks, of minitl's time divided by PyTorch's. ``variant`` is the
    fastest variant of the PyTorch model, the one that counts. ``plain`` is the median of minitl's plain forms, and
    ``plain_ratio`` the median of their time divided by that of the fast forms. ``JAX`` is there if it is installed and
    has the model. ``macs`` are the multiply-adds of one image or clip. ``progress(text)`` is called now and then.

    Raises InputError without PyTorch, when the frameworks compute different losses, and when a process fails.
    """
    rounds, steps = (2, 2) if quick else (ROUNDS, STEPS)
    for group in _groups(names or MODELS):
        with contextlib.ExitStack() as stack:
            models = {name: _contestants(stack, *lookup(name, quick), threads) for name in group}
            for name, contestants in models.items():
                progress(f"{name}: do all compute the same?")
                check_losses(name, {label: one.request("losses", CHECKED_STEPS) for label, one in contestants.items()})
            everyone = [one for contestants in models.values() for one in contestants.values()]
            times = in_turns(everyone, TIMES, rounds, steps, progress, ", ".join(group))
            for name, contestants in models.items():
                values = {}
                for label, one in contestants.items():
                    values[label] = {quantity: times[one, quantity] for quantity in TIMES}
                    values[label] |= {quantity: np.array([[n]]) for quantity, n in one.request("memory").items()}
                macs = flops.total(flops.count(*lookup(name, quick)[:2])).macs
                for quantity in values["minitl"]:
                    decisive = quantity if quantity in TIMES else "train"
                    yield {"name": name, "quantity": quantity, "macs": macs} | _row(values, quantity, decisive)


def by_op(threads=None, quick=False, progress=lambda text: None):
    """Measure the layers of vit-tiny-tl alone, and what each op contributes to a training step.

    Returns two lists of dicts: those of ``compare`` for each layer (``name``) and quantity; and for each op of minitl
    (``name``) the seconds ``forward`` and ``backward`` in a training step, and their ``share`` of it.
    """
    rounds, steps = (2, 2) if quick else (ROUNDS, 4 * STEPS)
    with contextlib.ExitStack() as stack:
        contestants = _contestants(stack, *lookup("vit-tiny-tl", quick), threads, by_layer=True)
        calls = contestants["minitl"].request("layers")
        times = in_turns(list(contestants.values()), calls, rounds, steps, progress, "layers")
        profile = contestants["minitl"].request("profile", rounds)
    rows = []
    for name, quantity in calls:
        values = {label: {quantity: times[one, (name, quantity)]} for label, one in contestants.items()}
        rows.append({"name": name, "quantity": quantity} | _row(values, quantity, quantity))
    return rows, shares(profile)


def shares(profile):
    """{name: seconds (forward, backward)} as dicts, with the ``share`` of the whole that each has, largest first."""
    whole = sum(map(sum, profile.values()))
    rows = [{"name": name, "forward": f, "backward": b, "share": (f + b) / whole} for name, (f, b) in profile.items()]
    return sorted(rows, key=lambda row: -row["share"])


def scale(threads=None, quick=False, progress=lambda text: None):
    """Measure how a training step of vit-tiny in minitl grows: a list of dicts, one for each value of each of SCALES.

    ``axis`` and ``value`` are what grew; ``seconds``, ``low`` and ``high`` the median and the quartiles of a step,
    SIZES as in ``compare``. ``macs`` and ``kept`` are multiply-adds and bytes of activations, as counted: those of
    a forward and a backward pass (two forward passes for blocks that are recomputed), and those of the samples that
    the threads work on at a time.
    """
    rounds, steps = (2, 2) if quick else (ROUNDS // 2, STEPS)
    threads, rows = threads or default_threads(), []
    for axis, values in SCALES.items():
        with contextlib.ExitStack() as stack:
            points = {value: _point(quick, **changes) for value, changes in values.items()}
            contestants = {
                value: stack.enter_context(Contestant("minitl", "minitl", *point, threads))
                for value, point in points.items()
            }
            times = in_turns(list(contestants.values()), ["train"], rounds, steps, progress, axis)
            for value, (config, spec, batch) in points.items():
                row = {"axis": axis, "value": value} | spread(times[contestants[value], "train"])
                row |= contestants[value].request("memory")
                cost, passes = flops.total(flops.count(config, spec)), 4 if config.recompute else 3
                held = batch / -(-batch // (shard_size(config, spec) * threads))  # samples at a time
                rows.append(row | {"macs": passes * batch * cost.macs, "kept": 4 * held * cost.kept})
    return rows


def spread(seconds):
    """Median and quartiles of an array: ``seconds``, ``low`` and ``high``."""
    low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75))
    return {"seconds": float(median), "low": float(low), "high": float(high)}


def _point(quick, batch=SCALE_BATCH, image_size=None, **changes):
    config, spec, _ = lookup("vit-tiny", quick)
    return replace(config, **changes), replace(spec, image_size=image_size or spec.image_size), batch


def lookup(name, quick=False, models=MODELS):
    """Return ``(config, spec, batch)`` of one of ``models``; with ``quick``, of a tiny one of the same kind.

    Raises InputError for an unknown name.
    """
    if name not in models:
        raise InputError(f"there is no model {name!r}; {did_you_mean(name, models)}")
    config, spec, batch = models[name]
    if not quick:
        return config, spec, batch
    if isinstance(config, ViTConfig):
        sizes = {"dim": 4 * config.heads, "layers": 2, "loc": min(config.loc, 1), "mlp_dim": 16, "hidden": 8}
        sizes["stem_width"] = 8
    else:
        sizes = {"widths": (4, 8)}
    return replace(config, **sizes), replace(spec, frames=min(spec.frames, 2)), 4


def machine(threads=None):
    """Return what the figures depend on: processor, cores, threads and versions of the libraries.

    ``SIMD`` names the processor's instructions that NumPy found. ``load`` is the number of threads of other programs
    that wanted a core in the last minute: near 0, the figures are fair. Some systems do not report it.
    """
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    build = np.show_config(mode="dicts")
    blas = build["Build Dependencies"]["blas"]
    versions = {"Python": platform.python_version(), "NumPy": np.__version__}
    versions["SIMD"] = _simd(build["SIMD Extensions"], platform.machine())
    versions["BLAS"] = f"{blas.get('name')} {blas.get('version')}"
    versions |= {name: importlib.metadata.version(package) for name, package in PACKAGES.items() if installed(name)}
    facts = {"cpu": cpu, "cores": cores(), "threads": threads or default_threads()}
    with contextlib.suppress(AttributeError, OSError):
        facts["load"] = os.getloadavg()[0]
    return facts | versions


def _simd(extensions, architecture):
    """The highest of NumPy's SIMD ``extensions`` here, and on x86 whether they include AVX-512."""
    names = ["none", *extensions.get("baseline", []), *extensions.get("found", [])]  # NumPy leaves out empty lists
    if architecture.lower() not in ("x86_64", "amd64"):
        return names[-1]
    wide = any(name == "X86_V4" or name.startswith("AVX512") for name in names)
    return f"{names[-1]} ({'' if wide else 'no '}AVX-512)"


class Contestant:
    """A process with one model in one framework, for the time of a ``with`` block."""

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
                start_new_session=True,  # so that Ctrl-C reaches the parent alone, which then ends this process
            )
        job = {"framework": framework, "config": config, "spec": spec, "batch": batch, "threads": threads}
        job["device"] = device
        self._send(job | {"options": options or {}, "by_layer": by_layer})

    def request(self, name, times=0):
        """Return the answer to one of the requests of ``contestant.prepare``.

        Raises InputError with the last words of the process if it has ended.
        """
        self._send((name, times))
        try:
            return pickle.load(self.process.stdout)
        except EOFError:
            self._fail()

    def _send(self, message):
        try:
            pickle.dump(message, self.process.stdin)
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
    """Let processes that start inside use ``n`` cores, where the system can do that. JAX has no other setting."""
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:n])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _contestants(stack, config, spec, batch, threads, by_layer=False):
    """The contestants for one model, {label: Contestant}, running until ``stack`` is closed."""
    if not installed("PyTorch"):
        advice = "install minitl[bench], or try `python -m tests.bench --scale`, which measures minitl alone"
        raise InputError(f"the benchmark compares with PyTorch, which is not installed; {advice}")
    entries = [("minitl", "minitl", {}), ("minitl, plain", "minitl", {"plain": True})]
    if isinstance(config, ViTConfig):
        variants = {"tanh GELU": {"gelu": "tanh"}, "exact GELU": {"gelu": "none"}}
    else:
        variants = {"channels first": {}, "channels last": {"memory_format": "channels_last_3d"}}
    entries += [(f"PyTorch, {variant}", "PyTorch", options) for variant, options in variants.items()]
    if isinstance(config, ViTConfig) and config.stem == "patch" and not by_layer and installed("JAX"):
        entries.append(("JAX", "JAX", {}))
    return {
        label: stack.enter_context(Contestant(label, framework, config, spec, batch, threads, options, by_layer))
        for label, framework, options in entries
    }


def installed(framework):
    return importlib.util.find_spec(PACKAGES[framework]) is not None


def _groups(names):
    """``names`` without repeats, in groups to be measured together."""
    groups = {}
    for name in names:
        groups.setdefault(PAIRS.get(name, name), {})[name] = True
    return [sorted(group, key=list(MODELS).index) for group in groups.values()]


def check_losses(name, losses, rtol=RTOL):
    """Raise InputError when a contestant's losses are not those of the first; those of the exact GELU may differ."""
    first, ours = next(iter(losses.items()))
    for label, theirs in losses.items():
        if "exact" not in label and not np.allclose(ours, theirs, rtol=rtol, atol=0):
            raise InputError(
                f"{name}: the losses of the first steps are {ours} in {first} and {theirs} in {label}; these are two "
                "different computations, so their times cannot be compared"
            )


def in_turns(contestants, requests, rounds, steps, progress, title):
    """Seconds that each contestant takes for each of ``requests``: {(contestant, request): array (rounds, steps)}."""
    times = {}
    for i in range(rounds):
        progress(f"{title}: round {i + 1} of {rounds}")
        for request in requests:
            for one in contestants[:: 1 if i % 2 == 0 else -1]:
                time.sleep(PAUSE_SECONDS)
                times.setdefault((one, request), []).append(one.request(request, steps))
    return {key: np.array(blocks) for key, blocks in times.items()}


def _row(values, quantity, decisive):
    """Return a row of ``compare`` for a quantity; ``values`` is {label: {quantity: array (rounds, steps)}}.

    The variant of PyTorch that is compared is the one with the smallest ``decisive`` quantity.
    """
    labels = [label for label in values if label.startswith("PyTorch")]
    best = min(labels, key=lambda label: np.median(values[label][decisive]))
    ours, plain, theirs = (values[label][quantity] for label in ("minitl", "minitl, plain", best))
    low, ratio, high = np.quantile(np.median(ours, 1) / np.median(theirs, 1), (0.25, 0.5, 0.75))
    row = {"minitl": np.median(ours), "PyTorch": np.median(theirs), "ratio": ratio, "low": low, "high": high}
    row |= {"plain": np.median(plain), "plain_ratio": np.median(np.median(plain, 1) / np.median(ours, 1))}
    row |= {"JAX": np.median(values["JAX"][quantity])} if "JAX" in values else {}
    return {key: float(value) for key, value in row.items()} | {"variant": best.removeprefix("PyTorch, ")}
