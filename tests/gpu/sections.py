"""The sections of `python -m tests.gpu`, in the order of the plan. Each returns a phrase for the table and figures.

A check that fails raises an exception. CuPy is imported only inside the sections, because the supervising process must
survive if CuPy crashes. Times are medians, measured by CUDA events.
"""

import contextlib
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import types
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS)]  # for test_cuda.py and what it imports

from minitl import Tensor, data, nn, ops, train  # noqa: E402
from minitl.backend import to_numpy  # noqa: E402
from minitl.errors import InputError  # noqa: E402
from minitl.train.augmentation import training_batch  # noqa: E402
from minitl.train.presets import preset  # noqa: E402
from tests.bench import contestant, contestant_cuda, measure, measure_cuda  # noqa: E402
from tests.bench import model as bench_model  # noqa: E402

RTOL = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 2e-2}  # of products: largest error / largest value
ATTENTIONS = [(5, 9, 3, 6), (5, 49, 3, 16), (3, 65, 3, 8), (2, 197, 3, 64)]  # B, N, heads, d
ATTENTIONS += [(5, 48, 2, 24), (3, 16, 4, 64), (3, 64, 4, 64)]  # on tensor cores
SUMS = [(65536, 768), (100_003, 33), (8192, 128), (4097, 1021), (257, 1)]  # rows and columns of the arrays to sum
FOLLOWED_STEPS = 20  # captured and eager
REPLAYS = 100  # during which memory use must not grow
SCRIBBLES = (10**4, 10**6, 10**7)  # sizes of the arrays that are written between replays
DATA = {  # small sets, as generating a whole one takes long
    "clutter": lambda: data.clutter(400, 200),
    "actors": lambda: data.actors(80, 40),
    "cifar10": lambda: noise(LOOP_STEPS * LOOP.batch_size, 32),
}
RUNS = {  # training runs of 20 steps, and the tolerated relative difference of a loss from the CPU's
    "images": (train.TrainConfig(batch_size=100, epochs=5, warmup=0.2), 1e-3),
    # larger for a convolutional model: near 0, a ReLU amplifies rounding errors
    "clips": (train.TrainConfig("actors", nn.X21DConfig(), batch_size=20, epochs=5, lr=1e-3, warmup=0.2), 1e-2),
}
LOOP = replace(preset("cifar-r1"), epochs=1, mix_until=1.0, device="cuda", precision="tf32")
LOOP_STEPS = 60  # the first third is not timed
FORMS = {
    "plain": "cuda-plain",
    "cuda": "cuda and not cuda-plain",
}  # forms of ops on CuPy, as `pytest -k` selects them in test_ops.py

earlier = {}  # results of earlier sections, by name


class NotRun(Exception):
    """Raised with the reason why a section cannot run on this machine."""


# --- tools ---


def model(name):
    """Return the configuration, DataSpec and batch size of a model of the benchmark."""
    return measure_cuda.MODELS[name]


def make(config, spec, batch, device="cuda", lr=1e-3, **options):
    """Return a contestant of `python -m tests.bench` with a learning rate large enough to move the weights."""
    kind = contestant.Minitl if device == "cpu" else contestant_cuda.Minitl
    side = contestant.side_of(kind, config, spec, batch, 1, **options)
    side.optimizer.lr = lr
    return side


@contextlib.contextmanager
def computing_in(precision):
    """Use this precision inside, and fp32 afterwards."""
    from minitl.fast import cuda

    cuda.use(precision)
    try:
        yield cuda
    finally:
        cuda.use("fp32")


def from_bf16(x):
    """Return a host array, in float32 if ``x`` holds bfloat16 as uint16."""
    x = to_numpy(x)
    return (x.astype("uint32") << 16).view("float32") if x.dtype == "uint16" else x


def close(own, expected, rtol, what):
    """Return the largest error / the largest value. Raises AssertionError if that is above ``rtol``."""
    own, expected = from_bf16(own), np.asarray(expected)
    error = float(np.abs(own - expected).max() / max(np.abs(expected).max(), 1e-30)) if own.size else 0.0
    assert error <= rtol, f"{what}: error {error:.2e}, allowed {rtol:.0e}"
    return error


def relative(pairs):
    """Return the largest relative difference within pairs of numbers; NaN if any of them is NaN."""
    a, b = np.array(pairs, dtype="float64").T
    return float((abs(a - b) / abs(a)).max())


def largest(errors):
    """Return the phrase and the figures of a check from {what: error}."""
    what = max(errors, key=errors.get)
    return f"largest error {errors[what]:.1e} ({what})", errors


def median_ms(call, count=50):
    """Return the median time of a call in milliseconds."""
    import cupy

    clock = types.SimpleNamespace(event=cupy.cuda.Event, between=cupy.cuda.get_elapsed_time)
    return 1e3 * statistics.median(contestant_cuda.seconds(call, count, clock))


def noise(count, size, channels=3):
    """Return a training and a test set of random images."""
    rng, names = np.random.default_rng(0), tuple("abcdefghij")
    sets = [(rng.integers(256, size=(n, size, size, channels), dtype="uint8"), n) for n in (count, 200)]
    return [data.Dataset(images, rng.integers(len(names), size=n), names) for images, n in sets]


@contextlib.contextmanager
def small_runs():
    """Train on DATA inside, without pictures, which need matplotlib; yields a temporary folder."""
    small = mock.patch.object(data, "load", lambda name, *_, **__: DATA[name]())
    with small, mock.patch.object(train.Trainer, "_draw"), tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


# --- kernels and products ---


def kernels_equal_their_references():
    """Check every row of test_cuda.py in float32 and, where the kernel supports it, in float64."""
    import cuda_reference
    import cupy
    from test_cuda import ROWS, prepared

    from minitl.fast.cuda import kernels

    worst = {}
    for name, args, blocks, *constants in ROWS:
        sizes = constants[0] if constants else {}
        stored = any(getattr(a, "dtype", None) == "uint16" for a in args)
        single = stored or sizes.get("TOKENS", 0) > 32  # not compiled for double in test_cuda.py either
        for dtype, rtol in (("float32", 3e-5), ("float64", 1e-10))[: 1 if single else 2]:
            expected, own = prepared(args, dtype), prepared(args, dtype)
            with np.errstate(all="ignore"):
                getattr(cuda_reference, name)(*expected, **sizes)
            own = [cupy.asarray(a) if np.ndim(a) else a for a in own]
            kernels.launch(name, blocks, *own, **sizes)
            for a, b in zip(own, expected, strict=True):
                if not np.ndim(b):
                    continue
                what, allowed = f"{name} bf16" if stored else name, rtol
                if b.dtype == "uint16":  # the last bit may be rounded differently
                    allowed = 0 if name == "to_bf16" else 2**-7
                a, b = from_bf16(a), from_bf16(b)
                np.testing.assert_allclose(a, b, rtol=allowed, atol=min(rtol, allowed), err_msg=f"{name} {dtype}")
                if b.dtype == "float32" and np.isfinite(b).all():
                    worst[what] = max(worst.get(what, 0), close(a, b, math.inf, what))
    return largest(worst)


def products_equal_numpys(precision):
    """Check the products of all layouts of test_cuda.py, and with bf16 those that are stored in bfloat16 as well."""
    import cupy
    from test_cuda import PRODUCTS, strided

    worst = {}
    with computing_in(precision) as cuda:
        for name, arrays in PRODUCTS.items():
            a, b = arrays()
            own = []
            for x in (a, b):
                flat, shape, strides = strided(x, "float32")
                if any(s < 0 for s in strides):  # CuPy has no as_strided of negative strides from a flat array
                    own.append(cupy.asarray(np.ascontiguousarray(x, "float32")))
                else:
                    own.append(cupy.lib.stride_tricks.as_strided(cupy.asarray(flat.copy()), shape, strides))
            own = list(map(cuda.gemm.to_precision, own))
            y = cuda.gemm.product(*own)
            worst[name] = close(y, a @ b, RTOL[precision], name)
            if precision == "bf16":
                y = cuda.gemm.product(*own, cupy.empty(y.shape, np.uint16))
                worst[f"{name}, stored in bfloat16"] = close(y, a @ b, RTOL[precision], name)
    return largest(worst)


def attention_equals_the_cpus():
    """Check attention in each precision, forward and backward, also for odd batch sizes, heads and tokens."""
    import cupy

    worst = {}
    for precision, rtol in RTOL.items():
        with computing_in(precision):
            for B, N, heads, d in ATTENTIONS:
                rng, what = np.random.default_rng(N), f"{precision}, {B} x {N} tokens, {heads} heads of {d}"
                qkv, dy = rng.standard_normal((B, N, 3 * heads * d)), rng.standard_normal((B, N, heads * d))
                sides = []
                for x, g in ((qkv, dy), (cupy.asarray(qkv.astype("float32")), cupy.asarray(dy.astype("float32")))):
                    x = Tensor(x, requires_grad=True)
                    y = ops.attention(x, num_heads=heads)
                    y.backward(g)
                    sides.append((y.data, x.grad))
                pairs = zip(*sides, strict=True)
                worst[what] = max(close(own, expected, 2 * rtol, what) for expected, own in pairs)
    return largest(worst)


def sums_are_the_same_each_time():
    """Check that sums are equal bit for bit each time, eager and captured, and agree with NumPy's."""
    import cupy

    from minitl.fast import cuda
    from minitl.fast.cuda.kernels import column_sums

    def sums(x, dy):
        weight, bias = (Tensor(cupy.ones(x.shape[1], x.dtype), requires_grad=True) for _ in range(2))
        ops.layer_norm(x, weight, bias).backward(dy)
        return column_sums(x), weight.grad, bias.grad

    worst = {}
    for rows, C in SUMS:
        rng = np.random.default_rng(rows)
        x, dy = (rng.standard_normal((rows, C), "float32") for _ in range(2))
        given = cupy.asarray(x), cupy.asarray(dy)
        captured = cuda.capture(sums)
        found = [[a.copy() for a in sums(*given)] for _ in range(50)]
        found += [[a.copy() for a in captured(*given)] for _ in range(10)]
        own, *others = [[to_numpy(a) for a in arrays] for arrays in found]
        same = [(a == b).all() for arrays in others for a, b in zip(own, arrays, strict=True)]
        assert all(same), f"{rows} x {C}: {same.count(False)} of {len(same)} differ"
        n = x - x.mean(1, keepdims=True, dtype="float64")
        n /= np.sqrt((n * n).mean(1, keepdims=True) + 1e-6)
        for a, b in zip(own, (x.sum(0, dtype="float64"), (dy * n).sum(0), dy.sum(0, dtype="float64")), strict=True):
            worst[f"{rows} x {C}"] = max(worst.get(f"{rows} x {C}", 0), close(a, b, 1e-5, f"{rows} x {C}"))
    return largest(worst)


# --- captured steps ---


def follow(eager, captured, batches, graphs=1):
    """Take the same steps eager and captured, each with its own learning rate; compare losses and weights.

    ``batches`` are (inputs, targets, labels), and ``graphs`` is the expected number of graphs.
    """
    pairs = []
    for i, batch in enumerate(batches):
        eager.optimizer.lr = captured.optimizer.lr = 1e-3 / (1 + i)
        for side in (eager, captured):
            side.take_step(*batch, i)
        pairs.append([side.take_step.read()[-1] for side in (eager, captured)])
    worst = relative([(a, b) for (a, *_), (b, *_) in pairs])
    assert worst < 1e-4, f"the losses differ by {worst:.1e}: {pairs}"
    made = len(captured.take_step.compute.graphs)
    assert made == graphs, f"{made} graphs were recorded, expected {graphs}"
    own, expected = (to_numpy(side.optimizer.flat.data) for side in (captured, eager))
    weights = close(own, expected, 1e-2, "weights")
    same = "bit for bit" if worst == weights == 0 else f"losses within {worst:.1e}, weights within {weights:.1e}"
    return f"equal to eager steps, {same}" if same == "bit for bit" else f"like eager steps, {same}", {
        "losses": pairs,
        "worst": worst,
        "weights": weights,
    }


def captured_equals_eager(config, spec, batch, **options):
    eager, captured = (make(config, spec, batch, graph=graph, **options) for graph in (False, True))
    return follow(eager, captured, FOLLOWED_STEPS * [(eager.images, eager.labels, eager.labels)])


def captured_tiny(precision):
    """Check captured steps with dropout."""
    config, spec, batch = model("vit-tiny-tl")
    return captured_equals_eager(replace(config, dropout=0.1, drop_path=0.1), spec, batch // 2, precision=precision)


def captured_r1():
    """Check captured steps of a recipe: with and without mixed labels, and with a smaller last batch."""
    config, spec, batch = model("cifar-r1")
    config, batch = replace(config, drop_path=0.1), min(batch, 256)
    eager, captured = (make(config, spec, batch, precision="tf32", graph=graph) for graph in (False, True))
    hot = data.one_hot(eager.labels, spec.num_classes)
    soft, few = 0.7 * hot + 0.3 * hot[::-1], -(-batch // 3)
    kinds = [
        (eager.images[:n], targets[:n], eager.labels[:n]) for targets in (soft, eager.labels) for n in (batch, few)
    ]
    batches = [kind for kind in kinds for _ in range(3)]
    return follow(eager, captured, batches + kinds[::-1] + kinds, graphs=4)


def captured_muon():
    """Check captured steps with Muon; ten layers, so that ten matrices of one shape are updated together."""
    config, spec, batch = model("vit-tiny-tl")
    return captured_equals_eager(replace(config, layers=10), spec, batch // 2, optimizer="muon")


# --- training as `minitl train` does it ---


def augmentation_equals_the_cpus():
    """Check augmented images bit for bit, and the batch that the recipe makes from them."""
    import cupy

    from minitl.fast import cuda  # noqa: F401  (registers the kernels)

    (train_set, _), rng = noise(64, 32), np.random.default_rng
    images, labels = train_set.images, train_set.labels
    for name, op in {
        "RandAugment": lambda x: data.rand_augment(x, rng(3), 2, 27.0, 0.9),
        "AutoAugment": lambda x: data.auto_augment(x, rng(3)),
        "crop and flip": lambda x: data.random_crop(x, 4, rng(3), flip=True),
    }.items():
        own, expected = to_numpy(op(cupy.asarray(images))), op(images)
        wrong = [i for i, (a, b) in enumerate(zip(own, expected, strict=True)) if (a != b).any()]
        assert not wrong, f"{name}: images {wrong[:9]} differ, {len(wrong)} of {len(images)}"
    batches, stats = [], data.channel_stats(images)
    for x, y in ((images, labels), (cupy.asarray(images), cupy.asarray(labels))):
        batches.append(training_batch(x, y, preset("cifar-r1"), 10, *stats, rng(5)))
    for what, expected, own in zip(("images", "targets"), *batches, strict=True):
        close(own, expected, 1e-6, what)
    return "bit for bit", {}


def losses_of(trainer):
    """Train to the end of the run and return the loss of each step."""
    found, read = [], trainer.take_step.read

    def reading():
        rows = read()
        found.extend(loss for loss, *_ in rows)
        return rows

    trainer.take_step.read = reading
    assert trainer.fit()
    return found


def a_run_equals_the_cpus(name):
    """Check a run of 20 captured steps and the evaluation of its checkpoint."""
    config, allowed = RUNS[name]
    with small_runs() as folder:
        host, device = (train.start(replace(config, device=where), folder / where) for where in ("cpu", "cuda"))
        pairs = list(zip(losses_of(host), losses_of(device), strict=True))
        worst = relative(pairs)
        assert len(pairs) == 20 and worst < allowed, f"the losses differ by {worst:.1e}, allowed {allowed}: {pairs}"
        tests = [trainer.rows[-1]["test_loss"] for trainer in (host, device)]
        assert abs(tests[0] - tests[1]) < 10 * allowed * tests[0], f"losses on the test set: {tests}"
        again = train.evaluate(*train.load_run(device.folder))["loss"]
        assert abs(again - tests[1]) < 1e-5 * tests[1], f"evaluated again, the loss is {again} instead of {tests[1]}"
        return f"20 losses within {worst:.1e} of the CPU's", {"worst": worst, "losses": pairs, "test losses": tests}


def a_run_resumes():
    """Check a run stopped after 7 of 20 steps and resumed, whose first steps are eager again, so bits may differ."""
    with small_runs() as folder:
        config = replace(RUNS["images"][0], device="cuda")
        whole, parts = (train.start(config, folder / name) for name in ("whole", "parts"))
        assert whole.fit()
        kind = type(parts.take_step)
        call = kind.__call__

        def stopping(take_step, *batch):
            if parts.step == 6:
                signal.raise_signal(signal.SIGINT)
            call(take_step, *batch)

        with mock.patch.object(kind, "__call__", stopping):
            assert not parts.fit() and parts.step == 7
        parts = train.resume(parts.folder)
        assert parts.fit()
        a, b = (to_numpy(trainer.optimizer.flat.data) for trainer in (whole, parts))
        error = close(b, a, 1e-3, "weights")
        return f"weights within {error:.1e} of an uninterrupted run", {"weights": error}


def full_memory_raises():
    """Check the error message of a step whose memory is limited."""
    with small_runs() as folder:
        trainer = train.start(replace(RUNS["images"][0], device="cuda"), folder / "run")
        trainer.take_step.compute.pool.set_limit(size=1 << 10)
        try:
            trainer.fit()
        except InputError as error:
            start = f"the memory of the GPU is full at batch_size {trainer.config.batch_size}: "
            assert re.match(f"{start}.* choose a smaller batch_size, or recompute", str(error)), error
            return "raises the intended error", {"error": str(error)}
    raise AssertionError("a step fits into 1 kB")


# --- memory, rates, and what a step consists of ---


def replays_leave_memory_constant():
    """Check that memory use is constant over many replays, and that other arrays written in between do no harm."""
    import cupy

    def memory(side):
        cupy.cuda.Device().synchronize()
        pool = side.take_step.compute.pool
        return pool.total_bytes(), pool.used_bytes(), cupy.cuda.runtime.memGetInfo()[0]

    clean, scribbled = (make(*model("vit-tiny-tl")) for _ in range(2))
    for _ in range(5):
        clean.loss(), scribbled.loss()
    before = memory(clean)
    for _ in range(REPLAYS):
        x = clean.loss()
    after = memory(clean)
    assert before == after, f"bytes of the pool, in use, and free on the GPU: {before}, later {after}"
    for _ in range(REPLAYS):
        for n in SCRIBBLES:
            cupy.full(n, np.nan, "float32")  # takes and frees memory that a graph must not share
        y = scribbled.loss()
    assert x == y, f"with other arrays written in between, the loss is {y} instead of {x}"
    return f"a pool of {after[0] / 1e6:.0f} MB", {"pool bytes": after[0], "used bytes": after[1], "loss": x}


def rates():
    """Measure the bandwidth of a copy (bytes read and written) and the rate of large products."""
    found = {}
    for precision in RTOL:
        copy, products = contestant_cuda.rates(30, make(*model("vit-tiny-tl"), precision=precision))
        found |= {"copy TB/s": copy / 1e12, f"{precision} TFLOP/s": products / 1e12}
    copy, *products = (f"{value:.3g}" for value in found.values())
    return f"copy {copy} TB/s; products {', '.join(RTOL)}: {', '.join(products)} TFLOP/s", found


def parts_of_a_step(precision, fn, key):
    """Time each kind of call of ``fn`` in an eager step of cifar-r1.

    ``key(*args)`` returns the kind of a call and its work. Returns {kind: {"calls", "us", "work per s"}}, the most
    expensive kind first. A call shorter than its launch is measured as the time of the launch.
    """
    side, found = make(*model("cifar-r1"), precision=precision, graph=False), {}
    for _ in range(2):
        side.step()  # compile all kernels

    def timed(*args, **options):
        kind, work = key(*args)
        result = fn(*args, **options)
        if kind not in found:
            us = 1e3 * median_ms(lambda: fn(*args, **options), 10)
            found[kind] = {"calls": 0, "us": us, "work per s": 1e6 * work / us}
        found[kind]["calls"] += 1
        return result

    users = [module for name, module in sys.modules.items() if name.startswith("minitl.fast.cuda")]
    with contextlib.ExitStack() as stack:
        for module in users:
            for name in [name for name, value in vars(module).items() if value is fn]:
                stack.enter_context(mock.patch.object(module, name, timed))
        side.step()
    assert found, f"no step calls {fn.__name__}"
    return dict(sorted(found.items(), key=lambda item: -item[1]["calls"] * item[1]["us"]))


def in_all(parts, unit, scale):
    """Return the phrase and the figures of a section, from what ``parts_of_a_step`` returned."""
    ms = sum(part["calls"] * part["us"] for part in parts.values()) / 1e3
    (first, most), *_ = parts.items()
    share = most["calls"] * most["us"] / 1e3 / ms
    rate = f"{most['work per s'] / scale:.3g} {unit}"
    calls = sum(part["calls"] for part in parts.values())
    return f"{ms:.3g} ms in {calls} calls; most, {share:.0%}, in {most['calls']} of {first} at {rate}", parts


def kernels_of_a_step(precision):
    """Time each of minitl's kernels in a step of R1, at each size; its work is the bytes that it reads and writes."""
    import cupy

    from minitl.fast.cuda import kernels

    def key(name, blocks, *args):
        arrays = [a for a in args if isinstance(a, cupy.ndarray)]
        return f"{name} {max(arrays, key=lambda a: a.size).shape}", sum(a.nbytes for a in arrays)

    return in_all(parts_of_a_step(precision, kernels.launch, key), "TB/s", 1e12)


def products_of_a_step(precision):
    """Time R1's matrix products by shape and by layout of the factors (N row-major, T transposed)."""
    from minitl.fast.cuda import gemm

    def key(a, b, *_):
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        flags = "".join("N" if x.strides[-1] <= x.strides[-2] else "T" for x in (a, b))
        (M, K), N = a.shape[-2:], b.shape[-1]
        return f"{batch or ''}{M}x{K}x{N} {flags}", 2 * math.prod(batch) * M * K * N

    return in_all(parts_of_a_step(precision, gemm.product, key), "TFLOP/s", 1e12)


# --- steps against PyTorch ---


def job(framework, name, **options):
    """Return what ``contestant_cuda.prepare`` takes."""
    config, spec, batch = model(name)
    return {"framework": framework, "config": config, "spec": spec, "batch": batch, "threads": 1, "options": options}


def block(calls):
    """Return the median and the quartiles of the time of a step in seconds."""
    return measure.spread(np.array([calls["train"](measure_cuda.STEPS) for _ in range(measure_cuda.ROUNDS)]))


def minitl_step(model, precision):
    """Measure a step as a graph and eager, with its launches, its floor and the time of each op."""
    graph, eager = (
        contestant_cuda.prepare(job("minitl", model, precision=precision, graph=graph)) for graph in (True, False)
    )
    losses = {"graph": graph["losses"](measure.CHECKED_STEPS), "eager": eager["losses"](measure.CHECKED_STEPS)}
    measure.check_losses(model, losses, measure_cuda.RTOL[precision])
    row = {"losses": losses["graph"], "graph": block(graph), "eager": block(eager), "launches": graph["launches"](0)}
    row["copy"], row["products"] = eager["rates"](30)
    row |= measure_cuda.floor(*measure_cuda.MODELS[model], row["copy"], row["products"])
    row["ops"] = measure.shares(eager["profile"](measure_cuda.ROUNDS))
    ms = {name: f"{1e3 * row[name]['seconds']:.3g} ms" for name in ("graph", "eager")}
    words = f"graph {ms['graph']} ({row['launches']} launches), eager {ms['eager']}, floor {1e3 * row['floor']:.3g} ms"
    return words, row


def pytorch_step(model, precision, compiled):
    """Measure the same step in PyTorch, and check that it has the same losses."""
    if not measure.installed("PyTorch"):
        raise NotRun("PyTorch is not installed")
    try:
        calls = contestant_cuda.prepare(job("PyTorch", model, precision=precision, compiled=compiled))
        losses = calls["losses"](measure.CHECKED_STEPS)
    except Exception as error:  # PyTorch built without CUDA, no compiler, no memory
        raise NotRun(f"PyTorch fails: {type(error).__name__}: {error}"[:300]) from error
    ours = earlier.get(f"{model} {precision}, minitl", {}).get("figures", {}).get("losses")
    if ours:
        measure.check_losses(model, {"minitl": ours, "PyTorch": losses}, measure_cuda.RTOL[precision])
    row = {"losses": losses, "seconds": block(calls)}
    same = "same losses as minitl" if ours else "losses not compared, as minitl's are missing"
    return f"{1e3 * row['seconds']['seconds']:.3g} ms, {same}", row


def estimate(model, precision):
    """Print the estimated time of a step, then fill the cache of PyTorch's compiler."""
    (row,) = bench_model.costs([model], precision)
    times = (f"{1e3 * seconds:.3g} ms on an {gpu}" for gpu, seconds in row["seconds"].items())
    print(f"estimated {', '.join(times)}", flush=True)
    if not measure.installed("PyTorch"):
        print("PyTorch is not installed")
        return
    began = time.time()
    contestant_cuda.prepare(job("PyTorch", model, precision=precision, compiled=True))["losses"](1)
    print(f"PyTorch's compiled in {time.time() - began:.0f} s")


# --- the loop, and the op tests ---


def loop():
    """Measure the images per second of R1's training, from data to update, after compilation and capture."""
    with small_runs() as folder:
        trainer, marks = train.start(LOOP, folder / "run"), []
        read, every = trainer.take_step.read, LOOP_STEPS // 6
        trainer.take_step.every = every

        def reading():
            rows = read()  # waits for the GPU
            marks.append((trainer.step, time.perf_counter()))
            return rows

        trainer.take_step.read = reading
        began = time.perf_counter()
        assert trainer.fit()
        spent = time.perf_counter() - began
    (start, then), (end, now) = (next(mark for mark in marks if mark[0] == step) for step in (2 * every, LOOP_STEPS))
    ms = 1e3 * (now - then) / (end - start)
    images = 1e3 * LOOP.batch_size / ms
    words = f"{images:,.0f} images/s, {ms:.3g} ms a step; evaluation and files {began + spent - now:.2g} s"
    return words, {"images/s": images, "ms": ms, "marks": [(step, at - began) for step, at in marks]}


def op_tests():
    """Run tests/test_ops.py on CuPy with the plain forms and with the CUDA forms, both at the same time."""
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "--tb=short", "-p", "no:cacheprovider"]
    how = {"cwd": TESTS.parent, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    how["env"] = os.environ | {"CUPY_NVRTC_USE_PCH": "1"}  # halves the time to compile each of hundreds of kernels
    running = {
        name: subprocess.Popen([*command, "tests/test_ops.py", "-k", form], **how) for name, form in FORMS.items()
    }
    ends = {name: process.communicate()[0].strip().splitlines()[-40:] for name, process in running.items()}
    for name, process in running.items():
        assert process.returncode == 0, f"{name}: " + "\n".join(ends[name][-25:])
        if "passed" not in ends[name][-1]:
            raise NotRun(f"{name}: {ends[name][-1]}")
    return "; ".join(f"{name}: {lines[-1]}" for name, lines in ends.items()), ends
