"""All checks and measurements that need a GPU, in one command of less than nine minutes:

    python -m tests.gpu [RESULTS.json]

Checks come first, then figures; what fails is written down, and the rest goes on, in a new process if the GPU answers
no more. A short table is printed last. RESULTS.json (gpu.json by default) is written after each part. The exit status
is 1 if a check failed. Times are medians over at least 50 runs by the GPU's clock, unless it says host.

What is compared with PyTorch is what `python -m tests.bench --device cuda` compares, see bench/measure_cuda.py.
"""

import contextlib
import importlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from dataclasses import replace
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from minitl import data, nn, ops, plain, train  # noqa: E402
from minitl.backend import cuda_problem, to_numpy  # noqa: E402
from minitl.errors import InputError  # noqa: E402
from tests.bench import contestant, contestant_cuda, measure_cuda, report  # noqa: E402

BUDGET = 520  # seconds
PRECISIONS = ("fp32", "tf32", "bf16")
TINY, SPEC, BATCH = measure_cuda.MODELS["vit-tiny-tl"]
STEPS = (  # the models and precisions whose steps are measured, the most wanted first, and seconds that each may take
    ("vit-tiny-tl", "tf32", 90),
    ("cifar-r1", "tf32", 120),
    ("cifar-r1", "bf16", 120),
    ("vit-tiny-tl", "fp32", 90),
    ("vit-tiny", "tf32", 90),
    ("vit-tiny-tl", "bf16", 90),
    ("cifar-r1", "fp32", 120),
)
RUNS = {  # training runs of 20 steps each, and which share of a loss may differ from the CPU's
    "images": (train.TrainConfig(batch_size=100, epochs=5, warmup=0.2), 1e-3),
    # in a convolutional model a ReLU at the edge makes more of a rounding error than it was
    "clips": (train.TrainConfig("actors", nn.X21DConfig(), batch_size=20, epochs=5, lr=1e-3, warmup=0.2), 1e-2),
}
# of the arrays of kernels; how often the host is asked; and numbers that are written between replays
SIZES = {"rows": 65536, "columns": 768, "calls": 300, "scribbles": (10**4, 10**6, 10**7)}
SIZES["sums"] = [(65536, 768), (100_003, 33), (8192, 128), (4097, 3077), (257, 1)]  # rows and columns that are added up
results = {"began": time.time(), "checks": {}, "figures": {}}


def left():
    """Seconds that are left."""
    return BUDGET - (time.time() - results["began"])


SECTIONS = []


def section(kind, seconds=5):
    """Run the function below as a check (it returns what it saw) or for figures, if ``seconds`` are left."""

    def register(fn):
        SECTIONS.append((kind, fn.__name__, fn, seconds))
        return fn

    return register


def run_sections(path):
    """Those that have no results yet; ``path`` is written after each."""
    for kind, name, fn, seconds in SECTIONS:
        if name in results[kind]:
            continue
        began = time.perf_counter()
        if left() < seconds:
            entry = {"ok": None, "seen": "not run: out of time"}
        else:
            try:
                with no_longer_than(left()):
                    entry = {"ok": True, "seen": fn()}
            except Exception as error:
                text = traceback.format_exc(limit=-4)
                entry = {"ok": False, "seen": f"{type(error).__name__}: {error}"[:600], "traceback": text[-2500:]}
        entry["seconds"] = round(time.perf_counter() - began, 1)
        results[kind][name] = entry
        path.write_text(json.dumps(results, indent=1, default=str))
        mark = {True: "ok", False: "FAILED", None: "-"}[entry["ok"]]
        print(f"[{BUDGET - left():5.0f} s] {name}: {mark}", flush=True)
        if entry["ok"] is False:
            expect_an_answer(path)


@contextlib.contextmanager
def no_longer_than(seconds):
    """Raises TimeoutError in what runs inside when the time is over."""

    def stop(*_):
        raise TimeoutError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    # to this thread, for a signal to the process may reach another one, and then nothing is interrupted
    timer = threading.Timer(seconds, signal.pthread_kill, (threading.main_thread().ident, signal.SIGALRM))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGALRM, before)


def expect_an_answer(path):
    """After a fault of a kernel the GPU refuses all that this process wants; then a new one goes on."""
    import cupy

    from minitl.fast import cuda

    cuda.use("fp32")
    try:
        cupy.cuda.Device().synchronize()
    except Exception:
        os.execv(sys.executable, [sys.executable, str(HERE / "gpu.py"), "--go-on", str(path)])


# --- tools ---


def median_ms(step, count=50):
    """Milliseconds of a call, by the GPU's clock."""
    import cupy

    clock = types.SimpleNamespace(event=cupy.cuda.Event, between=cupy.cuda.get_elapsed_time)
    return round(1e3 * statistics.median(contestant_cuda.seconds(step, count, clock)), 5)


def host_us(call):
    """Microseconds that a call keeps the host busy."""
    import cupy

    for _ in range(20):
        call()
    cupy.cuda.Device().synchronize()
    began = time.perf_counter()
    for _ in range(SIZES["calls"]):
        call()
    spent = time.perf_counter() - began
    cupy.cuda.Device().synchronize()
    return round(1e6 * spent / SIZES["calls"], 2)


def close(own, expected, rtol, what):
    """The largest error over the largest value; raises where it is above ``rtol``."""
    own, expected = to_numpy(own), np.asarray(expected)
    error = float(np.abs(own - expected).max() / max(np.abs(expected).max(), 1e-30)) if own.size else 0.0
    if not error <= rtol:
        raise AssertionError(f"{what}: error {error:.2e}, allowed {rtol:.0e}")
    return error


def make(config, batch, device="cuda", lr=1e-3, **options):
    """A side of `python -m tests.bench` with a learning rate that moves the weights."""
    kind = contestant.Minitl if device == "cpu" else contestant_cuda.Minitl
    side = contestant.side_of(kind, config, SPEC, batch, 1, **options)
    side.optimizer.lr = lr
    return side


# --- checks ---


@section("figures")
def machine():
    from minitl.fast.cuda import gemm

    library = gemm.library()
    return measure_cuda.machine() | {"cublas": library and getattr(library, "_name", None)}


@section("checks")
def kernels_equal_their_references():
    """Every row of test_cuda.py, in float32 and float64."""
    import cuda_reference
    import cupy
    from test_cuda import ROWS, prepared

    from minitl.fast.cuda import kernels

    worst = {}
    for name, args, blocks in ROWS:
        for dtype, rtol in (("float32", 3e-5), ("float64", 1e-10)):
            if name == "to_bf16" and dtype == "float64":
                continue
            expected, own = prepared(args, dtype), prepared(args, dtype)
            with np.errstate(all="ignore"):
                getattr(cuda_reference, name)(*expected)
            own = [cupy.asarray(a) if np.ndim(a) else a for a in own]
            kernels.launch(name, blocks, *own)
            for a, b in zip(own, expected, strict=True):
                if np.ndim(b):
                    np.testing.assert_allclose(to_numpy(a), b, rtol=rtol, atol=rtol, err_msg=f"{name} {dtype}")
                    if b.dtype.kind == "f" and np.isfinite(b).all():
                        worst[name] = max(worst.get(name, 0), close(a, b, rtol, name) if dtype == "float32" else 0)
    return worst


@section("checks")
def sums_are_the_same_each_time():
    """Many times the same bits, whichever block is last, also in a graph; and NumPy's, for chunks that are not full."""
    import cupy

    from minitl.fast import cuda
    from minitl.fast.cuda.kernels import column_sums, norm_columns

    worst = {}
    for rows, C in SIZES["sums"]:
        rng = np.random.default_rng(rows)
        x, dy = (rng.standard_normal((rows, C), "float32") for _ in range(2))
        mean, inv_std = rng.standard_normal(rows, "float32"), rng.random(rows, "float32")
        given = [cupy.asarray(a) for a in (x, dy, mean, inv_std)]

        def sums(x, dy, mean, inv_std):
            return column_sums(x), norm_columns(dy, x, mean, inv_std)

        found = [sums(*given) for _ in range(50)]
        captured = cuda.capture(sums)
        found += [tuple(a.copy() for a in captured(*given)) for _ in range(10)]
        own, *others = [[to_numpy(a) for a in pair] for pair in found]
        same = [(a == b).all() for pair in others for a, b in zip(own, pair, strict=True)]
        assert all(same), f"{rows} x {C}: {same.count(False)} of {len(same)} are others"
        n = (x - mean[:, None].astype("float64")) * inv_std[:, None]
        expected = x.sum(0, dtype="float64"), np.concatenate([(dy * n).sum(0), dy.sum(0, dtype="float64")])
        pairs = zip(own, expected, strict=True)
        worst[f"{rows} x {C}"] = max(close(a, b, 1e-5, f"{rows} x {C}") for a, b in pairs)
    return worst


@section("checks")
def products_equal_numpys():
    """Every layout of test_cuda.py in all precisions."""
    import cupy
    from test_cuda import PRODUCTS, strided

    from minitl.fast import cuda

    worst = {}
    for precision, rtol in zip(PRECISIONS, (1e-5, 2e-3, 2e-2), strict=True):
        cuda.use(precision)
        for name, arrays in PRODUCTS.items():
            a, b = arrays()
            own = []
            for x in (a, b):
                flat, shape, strides = strided(x, "float32")
                if any(s < 0 for s in strides):  # CuPy has no as_strided of negative strides from a flat array
                    own.append(cupy.asarray(np.ascontiguousarray(x, "float32")))
                else:
                    own.append(cupy.lib.stride_tricks.as_strided(cupy.asarray(flat.copy()), shape, strides))
            y = cuda.gemm.product(*map(cuda.gemm.to_precision, own))
            worst[f"{precision} {name}"] = close(y, a @ b, rtol, f"{precision} {name}")
    cuda.use("fp32")
    return worst


@section("checks")
def masks_equal_numpys():
    import cupy

    x = np.ones((1000, 77), "float32")
    for op in (ops.dropout, ops.drop_path):
        own, host = (op(a, p=0.3, rng=np.random.default_rng(4)).data for a in (cupy.asarray(x), x))
        assert (to_numpy(own) == host).all(), op.__name__
    return "bit for bit"


@section("checks")
def losses_equal_the_cpus():
    """20 steps of the tiny model in fp32, relative difference of each loss."""
    host, device = make(TINY, 32, "cpu"), make(TINY, 32, graph=False)
    pairs = [(host.loss(), device.loss()) for _ in range(20)]
    worst = max(abs(a - b) / abs(a) for a, b in pairs)
    assert worst < 1e-3, pairs
    return {"worst": worst, "first and last loss": [pairs[0], pairs[-1]]}


@section("checks")
def captured_equals_eager():
    """20 steps with dropout and another learning rate at each, in each precision; and the model of a recipe."""
    configs = {"tiny": replace(TINY, dropout=0.1, drop_path=0.1), "cifar-r1": measure_cuda.MODELS["cifar-r1"][0]}
    seen = {}
    for name, precision in (*(("tiny", precision) for precision in PRECISIONS), ("cifar-r1", "tf32")):
        eager, captured = (make(configs[name], BATCH // 2, precision=precision, graph=graph) for graph in (False, True))
        worst = 0
        for i in range(20):
            eager.optimizer.lr = captured.optimizer.lr = 1e-3 / (1 + i)
            x, y = eager.loss(), captured.loss()
            worst = max(worst, abs(x - y) / abs(x))
        assert worst < 1e-4 and len(captured.take_step.compute.graphs) == 1, (name, precision, worst)
        weights = close(captured.optimizer.flat.data, to_numpy(eager.optimizer.flat.data), 1e-2, precision)
        seen[f"{name} {precision}"] = {"worst": worst, "weights": weights}
    return seen


@section("checks")
def replays_leave_memory_constant():
    """100 replays. And other memory is scribbled over between replays, to no effect."""
    import cupy

    def memory(side):
        cupy.cuda.Device().synchronize()
        pool = side.take_step.compute.pool
        return pool.total_bytes(), pool.used_bytes(), cupy.cuda.runtime.memGetInfo()[0]

    clean, scribbled = make(TINY, BATCH), make(TINY, BATCH)
    for _ in range(5):
        clean.loss()
    before = memory(clean)
    for _ in range(100):
        clean.loss()
    after = memory(clean)
    assert before == after, (before, after)
    clean = make(TINY, BATCH)
    for _ in range(20):
        x = clean.loss()
        for n in SIZES["scribbles"]:
            cupy.full(n, np.nan, "float32")  # takes and frees memory that a graph must not share
        y = scribbled.loss()
        assert x == y, (x, y)
    return {"pool bytes": after[0], "used bytes": after[1]}


# --- training runs, as `minitl train` does them ---


@contextlib.contextmanager
def small_data():
    """A folder, and few images or clips in place of a whole data set, which takes long to draw."""
    whole = data.load
    small = {"clutter": lambda: data.clutter(400, 200), "actors": lambda: data.actors(80, 40)}
    data.load = lambda name, *_, **__: small[name]()
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    finally:
        data.load = whole


def losses(trainer):
    """That of each step, from here to the end of the run."""
    found, read = [], trainer.take_step.read

    def reading():
        rows = read()
        found.extend(loss for loss, *_ in rows)
        return rows

    trainer.take_step.read = reading
    assert trainer.fit()
    return found


def run_equals_the_cpus(name):
    config, allowed = RUNS[name]
    with small_data() as folder:
        host, device = (train.start(replace(config, device=where), folder / where) for where in ("cpu", "cuda"))
        pairs = list(zip(losses(host), losses(device), strict=True))
        worst = max(abs(a - b) / abs(a) for a, b in pairs)
        tests = [trainer.rows[-1]["test_loss"] for trainer in (host, device)]
        assert len(pairs) == 20 and worst < allowed, (worst, pairs)
        assert abs(tests[0] - tests[1]) < 10 * allowed * tests[0], tests
        again = train.evaluate(*train.load_run(device.folder))["loss"]
        assert abs(again - tests[1]) < 1e-5 * tests[1], (again, tests)
        return {"worst": worst, "test losses": tests, "first and last loss": [pairs[0], pairs[-1]]}


@section("checks", 20)
def a_training_run_equals_the_cpus():
    """Captured, 20 steps of the tiny ViT on CLUTTER, and `minitl eval` of what it left."""
    return run_equals_the_cpus("images")


@section("checks", 30)
def a_convolutional_run_equals_the_cpus():
    """The same of the X(2+1)D model on ACTORS: convolutions, batch norm, vector attention, several labels."""
    return run_equals_the_cpus("clips")


@section("checks", 20)
def a_run_goes_on():
    """Stopped after 7 of 20 steps and resumed. Its first steps are then eager, so it need not be equal bit for bit."""
    with small_data() as folder:
        config = replace(RUNS["images"][0], device="cuda")
        whole, parts = (train.start(config, folder / name) for name in ("whole", "parts"))
        assert whole.fit()
        step = parts._train_batch

        def stopping(*batch):
            if parts.step == 6:
                signal.raise_signal(signal.SIGINT)
            step(*batch)

        parts._train_batch = stopping
        assert not parts.fit() and parts.step == 7
        parts = train.resume(parts.folder)
        assert parts.fit()
        a, b = (to_numpy(trainer.optimizer.flat.data) for trainer in (whole, parts))
        return {"weights": close(b, a, 1e-3, "weights"), "bit for bit": bool((a == b).all())}


@section("checks")
def a_batch_that_does_not_fit_says_so():
    """With a limit to the memory of a step."""
    with small_data() as folder:
        trainer = train.start(replace(RUNS["images"][0], device="cuda"), folder / "run")
        trainer.take_step.compute.pool.set_limit(size=1 << 10)
        try:
            trainer.fit()
        except InputError as error:
            size = trainer.config.batch_size
            wanted = (
                rf"the memory of the GPU is full at batch_size {size}: .* choose a smaller batch_size, or recompute"
            )
            assert re.search(wanted, str(error)), error
            return str(error)
    raise AssertionError("1 kB was enough")


@section("checks", 60)
def op_tests_with_cupy():
    """tests/test_ops.py on CuPy: with the plain forms, and with the CUDA forms. Both at the same time."""
    options = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        "tests/test_ops.py",
        "-k",
    ]
    ways = {"plain": [*options, "cuda-plain"], "cuda": [*options, "cuda and not cuda-plain"]}
    running = {
        name: subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for name, command in ways.items()
    }
    seen, failed, until = {}, [], max(200, left() - 120)  # seconds that must be left for the figures
    for name, process in running.items():
        try:
            output = process.communicate(timeout=max(1, left() - until))[0]
        except subprocess.TimeoutExpired:
            process.kill()
            output = process.communicate()[0] + "\nstopped: out of time"
        seen[name] = output.strip().splitlines()[-40:] if process.returncode else output.strip().splitlines()[-1:]
        failed += [name] if process.returncode else []
    assert not failed, json.dumps({name: seen[name][-25:] for name in failed})[:3000]
    return seen


# --- figures ---


@section("figures")
def rates():
    """Bandwidth of a copy (bytes read and written) and rate of large products."""
    found = {}
    for precision in PRECISIONS:
        side = make(TINY, 2, precision=precision)
        copy, products = contestant_cuda.rates(50, side)
        found |= {"copy GB/s": round(copy / 1e9, 1), f"{precision} TFLOP/s": round(products / 1e12, 1)}
    return found


@section("figures")
def launches():
    """Microseconds of host time for one launch, by every road."""
    import cupy

    from minitl.fast.cuda.gemm import product
    from minitl.fast.cuda.kernels import launch

    x, y = cupy.ones((64, 64), "float32"), cupy.empty((64, 64), "float32")
    three = cupy.ones((4, 64, 64), "float32")
    heads = cupy.ones((4, 64, 3, 16), "float32").swapaxes(1, 2)
    twice = cupy.ElementwiseKernel("T x", "T y", "y = 2 * x", "twice")
    graph_step = captured_nothing()
    return {
        "ufunc": host_us(lambda: cupy.add(x, x, out=y)),
        "sum": host_us(lambda: x.sum()),
        "ElementwiseKernel": host_us(lambda: twice(x, y)),
        "kernels.launch": host_us(lambda: launch("gelu", 16, y, x, 4096, 0)),
        "matmul 2-D": host_us(lambda: x @ x),
        "matmul 3-D": host_us(lambda: three @ three),
        "product 2-D": host_us(lambda: product(x, x)),
        "product of a batch": host_us(lambda: product(three, three)),
        "product of heads": host_us(lambda: product(heads, heads.swapaxes(2, 3))),
        "replay of a graph": host_us(graph_step),
    }


def captured_nothing():
    """A call that replays a graph of one small kernel."""
    import cupy

    from minitl.fast import cuda

    x = cupy.ones(64, "float32")
    step = cuda.capture(lambda x: x + 1)
    return lambda: step(x)


@section("figures")
def kernels():
    """Microseconds and GB/s of the memory-bound kernels and of other ways to the same."""
    import cupy

    from minitl.fast.cuda.gemm import product
    from minitl.fast.cuda.kernels import blocks_for, blocks_for_rows, column_sums, launch

    R, C = SIZES["rows"], SIZES["columns"]
    n = R * C
    x, y, w = cupy.ones((R, C), "float32"), cupy.empty((R, C), "float32"), cupy.ones(C, "float32")
    mean, inv, ones = cupy.zeros(R, "float32"), cupy.ones(R, "float32"), cupy.ones((1, R), "float32")
    key, now, norm2 = cupy.ones(1, "uint64"), cupy.ones(3, "float32"), cupy.ones(1, "float32")
    m, v, half = cupy.zeros_like(x), cupy.ones_like(x), cupy.empty((R, C), "uint16")
    numbers = (1.0, 0.1, 0.9, 0.1, 0.99, 0.01, 1e-8, 0.9, 0.1)
    calls = {  # name: passes over the array, call
        "layer_norm": (2, lambda: launch("layer_norm", blocks_for_rows(R), y, mean, inv, x, w, w, R, C, 1e-6)),
        "layer_norm_dx": (3, lambda: launch("layer_norm_dx", blocks_for_rows(R), y, x, x, w, mean, inv, R, C)),
        "softmax": (2, lambda: launch("softmax", blocks_for_rows(R), y, x, R, C)),
        "softmax of 64": (2, lambda: launch("softmax", blocks_for_rows(n // 64), y, x, n // 64, 64)),
        "batch_norm": (2, lambda: launch("batch_norm", blocks_for(n), y, x, w, w, w, w, R, C)),
        "gelu": (2, lambda: launch("gelu", blocks_for(n), y, x, n, 0)),
        "bias": (2, lambda: launch("bias_drop_path", blocks_for(n), y, x, w, None, n, C, 1)),
        "dropout": (2, lambda: launch("dropout", blocks_for(n // 8), y, x, key, 0.1, 1.1, n)),
        "to_bf16": (1.5, lambda: launch("to_bf16", blocks_for(n), half, x, n)),
        "adamw": (7, lambda: launch("adamw", blocks_for(n), y, m, v, None, x, norm2, now, n, n, *numbers)),
        "column_sums": (1, lambda: column_sums(x)),
        "sum(axis=0) of CuPy": (1, lambda: x.sum(0)),
        "ones times x": (1, lambda: product(ones, x)),
    }
    found = {}
    for name, (passes, call) in calls.items():
        ms = median_ms(call)
        found[name] = {"us": round(1e3 * ms, 1), "GB/s": round(passes * 4 * n / ms / 1e6)}
    return found


@section("figures", 20)
def generic():
    """Milliseconds of an eager step of the tiny model with the generic ops alone, as CuPy computes them."""
    with plain():
        side = make(TINY, BATCH, graph=False)
        return {"ms": median_ms(side.step)}


def step_section(name, precision, seconds):
    def step():
        """Against PyTorch, with launches, floor and ops."""
        (row,) = measure_cuda.compare([name], precision)
        return row

    SECTIONS.append(("figures", f"{name} {precision}", step, seconds))


for one in STEPS:
    step_section(*one)


# --- the end ---


def table():
    """Return the most important results as lines of text."""
    lines = []
    for name, entry in results["checks"].items():
        mark = {True: "ok", False: "FAILED", None: "not run"}[entry["ok"]]
        lines.append(f"{name:38} {mark:8} {'' if entry['ok'] else str(entry['seen'])[:150]}".rstrip())
    lines += [
        f"{name:38} FAILED   {entry['seen'][:150]}" for name, entry in results["figures"].items() if not entry["ok"]
    ]
    rows = [entry["seen"] for entry in results["figures"].values() if entry["ok"] and "times" in entry["seen"]]
    lines += ["", report.cuda_head()]
    for row in rows:
        lines.append(f"{report.cuda_line(row)}  {row['precision']}")
    for row in rows:
        lines += report.cuda_notes([row])
    return "\n".join(lines)


def main(path="gpu.json"):
    if problem := cuda_problem():
        sys.exit(f"no GPU can be used: {problem}")
    importlib.import_module("minitl.fast.cuda")  # so that ops have their CUDA versions
    path = Path(path)
    run_sections(path)
    results["seconds"] = round(BUDGET - left(), 1)
    path.write_text(json.dumps(results, indent=1, default=str))
    print(f"\n{table()}\n\n{results['seconds']:.0f} s; everything is in {path}")
    sys.exit(any(entry["ok"] is False for entry in results["checks"].values()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--go-on"]:
        results |= json.loads(Path(sys.argv[2]).read_text())
        main(sys.argv[2])
    else:
        main(*sys.argv[1:2])
