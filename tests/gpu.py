"""All checks and measurements that need a GPU, in one command of less than nine minutes:

    python -m tests.gpu [RESULTS.json]

Checks come first, then figures; what fails is written down, and the rest goes on. A short table is printed last, and
everything goes into RESULTS.json (gpu.json by default), which is also written when time runs out. The exit status is 1
if a check failed. Times are medians over at least 50 runs, between CUDA events unless it says host.

What is compared with PyTorch, where it is installed, is the same model, optimiser and precision, in a process of its
own. The floor of a step is what its numbers need at least: each multiply-add at the measured rate of large products,
each kept activation written and read once, and 32 bytes for each parameter, at the measured bandwidth of a copy.
"""

import contextlib
import itertools
import json
import math
import statistics
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
BUDGET = 520  # seconds
BEGAN = time.perf_counter()

from minitl import OPS, flops, nn, ops, optim  # noqa: E402
from minitl.backend import cuda_problem, to_numpy  # noqa: E402

LEARNER = {"version": "1.1", "pre_norm": False, "zero_head": False}
CONFIGS = {  # name: configuration, batch
    "tiny": (nn.ViTConfig(**LEARNER), 128),
    "5.5M": (nn.ViTConfig(dim=192, heads=3, layers=12, mlp_dim=768, loc=6, **LEARNER), 1024),
}
PRECISIONS = ("fp32", "tf32", "bf16")
results = {"checks": {}, "figures": {}}


def left():
    """Seconds that are left."""
    return BUDGET - (time.perf_counter() - BEGAN)


SECTIONS = []


def section(kind, seconds=5):
    """Run the function below as a check (it returns what it saw) or for figures, if ``seconds`` are left."""

    def register(fn):
        SECTIONS.append((kind, fn, seconds))
        return fn

    return register


def run_sections():
    for kind, fn, seconds in SECTIONS:
        began = time.perf_counter()
        if left() < seconds:
            entry = {"ok": None, "seen": "not run: out of time"}
        else:
            try:
                entry = {"ok": True, "seen": fn()}
            except Exception as error:
                text = traceback.format_exc(limit=-4)
                entry = {"ok": False, "seen": f"{type(error).__name__}: {error}"[:600], "traceback": text[-2500:]}
        entry["seconds"] = round(time.perf_counter() - began, 1)
        results[kind][fn.__name__] = entry
        mark = {True: "ok", False: "FAILED", None: "-"}[entry["ok"]]
        print(f"[{time.perf_counter() - BEGAN:5.0f} s] {fn.__name__}: {mark}", flush=True)


# --- tools ---


def event_times(step, count=50, warmup=5):
    """Milliseconds of each of ``count`` calls, between events on the current stream."""
    import cupy

    for _ in range(warmup):
        step()
    events = [cupy.cuda.Event() for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    events[-1].synchronize()
    return [cupy.cuda.get_elapsed_time(a, b) for a, b in itertools.pairwise(events)]


def median_ms(step, count=50, warmup=5):
    return round(statistics.median(event_times(step, count, warmup)), 5)


def host_us(call, count=300):
    """Microseconds that a call keeps the host busy."""
    import cupy

    for _ in range(20):
        call()
    cupy.cuda.Device().synchronize()
    began = time.perf_counter()
    for _ in range(count):
        call()
    spent = time.perf_counter() - began
    cupy.cuda.Device().synchronize()
    return round(1e6 * spent / count, 2)


def close(own, expected, rtol, what):
    """The largest error over the largest value; raises where it is above ``rtol``."""
    own, expected = to_numpy(own), np.asarray(expected)
    error = float(np.abs(own - expected).max() / max(np.abs(expected).max(), 1e-30)) if own.size else 0.0
    if not error <= rtol:
        raise AssertionError(f"{what}: error {error:.2e}, allowed {rtol:.0e}")
    return error


def make(config, batch, seed=0, dtype="float32", device="cuda"):
    """(model, optimizer, step, images, labels) on a device; the step is the one that is captured."""
    from minitl import cuda

    model = nn.ViT(config, np.random.default_rng(seed)).to(device, dtype)
    optimizer = optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    rng = np.random.default_rng(1)
    images = rng.standard_normal((batch, *config.image_size, config.channels), "float32").astype(dtype)
    labels = rng.integers(config.num_classes, size=batch)

    def step(images, labels):
        loss = ops.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        if device == "cuda":
            cuda.update(optimizer, 1.0)
        else:
            optimizer.clip_grad_norm(1.0)
            optimizer.step()
        return loss.data

    if device == "cuda":
        import cupy

        images, labels = cupy.asarray(images), cupy.asarray(labels)
    return model, optimizer, step, images, labels


# --- checks ---


@section("figures")
def machine():
    import cupy

    from minitl.cuda import gemm

    properties = cupy.cuda.runtime.getDeviceProperties(0)
    versions = {"cupy": cupy.__version__, "numpy": np.__version__, "python": sys.version.split()[0]}
    versions["cuda runtime"], versions["driver"] = (
        cupy.cuda.runtime.runtimeGetVersion(),
        cupy.cuda.runtime.driverGetVersion(),
    )
    library = gemm.library()
    return {"gpu": properties["name"].decode(), "cublas": library and library._name, **versions}


@section("checks")
def kernels_equal_their_references():
    """Every row of test_cuda.py, in float32 and float64."""
    import cupy
    from test_cuda import ROWS, prepared

    from minitl.cuda import kernels, reference

    worst = {}
    for name, args, blocks in ROWS:
        for dtype, rtol in (("float32", 3e-5), ("float64", 1e-10)):
            if name == "to_bf16" and dtype == "float64":
                continue
            expected, own = prepared(args, dtype), prepared(args, dtype)
            with np.errstate(all="ignore"):
                getattr(reference, name)(*expected)
            own = [cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in own]
            kernels.launch(name, blocks, *own)
            for a, b in zip(own, expected, strict=True):
                if isinstance(b, np.ndarray):
                    np.testing.assert_allclose(to_numpy(a), b, rtol=rtol, atol=rtol, err_msg=f"{name} {dtype}")
                    if b.dtype.kind == "f" and np.isfinite(b).all():
                        worst[name] = max(worst.get(name, 0), close(a, b, rtol, name) if dtype == "float32" else 0)
    return worst


@section("checks")
def products_equal_numpys():
    """Every layout of test_cuda.py in all precisions."""
    import cupy
    from test_cuda import PRODUCTS, strided

    from minitl import cuda

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
            y = cuda.gemm.product(*map(cuda.gemm.operand, own))
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
    config = CONFIGS["tiny"][0]
    host, device = (make(config, 32, device=where)[2:] for where in ("cpu", "cuda"))
    pairs = [(float(host[0](*host[1:])), device[0](*device[1:]).item()) for _ in range(20)]
    worst = max(abs(a - b) / abs(a) for a, b in pairs)
    assert worst < 1e-3, pairs
    return {"worst": worst, "first and last loss": [pairs[0], pairs[-1]]}


@section("checks")
def captured_equals_eager():
    """20 steps with dropout and other learning rates at each, in each precision."""
    from dataclasses import replace

    from minitl import cuda

    config, seen = replace(CONFIGS["tiny"][0], dropout=0.1, drop_path=0.1), {}
    for precision in PRECISIONS:
        cuda.use(precision)
        (_, a, eager, *inputs), (_, b, step, *_) = make(config, 64), make(config, 64)
        captured, worst = cuda.capture(step), 0
        for i in range(20):
            a.lr = b.lr = 1e-3 / (1 + i)
            x, y = eager(*inputs).item(), captured(*inputs).item()
            worst = max(worst, abs(x - y) / abs(x))
        assert worst < 1e-4 and len(captured.graphs) == 1, (precision, worst)
        seen[precision] = {"worst": worst, "weights": close(b.flat.data, to_numpy(a.flat.data), 1e-2, precision)}
    cuda.use("fp32")
    return seen


@section("checks")
def replays_leave_memory_constant():
    """100 replays, with other memory scribbled over in between; also new captures."""
    import cupy

    from minitl import cuda

    _, _, step, *inputs = make(*CONFIGS["tiny"])
    captured = cuda.capture(step)
    for _ in range(5):
        captured(*inputs)
    cupy.cuda.Device().synchronize()
    before = captured.pool.total_bytes(), captured.pool.used_bytes(), cupy.cuda.runtime.memGetInfo()[0]
    for _ in range(100):
        captured(*inputs)
    cupy.cuda.Device().synchronize()
    after = captured.pool.total_bytes(), captured.pool.used_bytes(), cupy.cuda.runtime.memGetInfo()[0]
    assert before == after, (before, after)
    clean, scribbled = make(*CONFIGS["tiny"]), make(*CONFIGS["tiny"])
    a, b = cuda.capture(clean[2]), cuda.capture(scribbled[2])
    for _ in range(20):
        x = a(*clean[3:]).item()
        for n in (1000, 100_000, 1_000_000):
            cupy.full((10, n), np.nan, "float32")  # takes and frees memory that a graph must not share
        y = b(*scribbled[3:]).item()
        assert x == y, (x, y)
    return {"pool bytes": after[0], "used bytes": after[1]}


@section("checks", 60)
def op_tests_with_cupy():
    """tests/test_ops.py on CuPy: with the generic ops, and with their CUDA versions. Both at the same time."""
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
        "cupy",
    ]
    ways = {"generic": options, "overrides": [*options, "-p", "minitl.cuda"]}
    running = {
        name: subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for name, command in ways.items()
    }
    seen, failed, until = {}, [], max(200, left() - 170)  # seconds that must be left for the figures
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
    import cupy

    from minitl import cuda

    def copy():
        x = cupy.ones(2**28, "float32")
        y = cupy.empty_like(x)
        return 2 * x.nbytes / median_ms(lambda: cupy.copyto(y, x)) / 1e6

    found = {"copy GB/s": round(copy(), 1)}
    a, b = (cupy.random.standard_normal((8192, 8192), dtype="float32") for _ in range(2))
    for precision in PRECISIONS:
        cuda.use(precision)
        p, q = cuda.gemm.operand(a), cuda.gemm.operand(b)
        ms = median_ms(lambda p=p, q=q: cuda.gemm.product(p, q), 50 if precision != "fp32" else 10, 2)
        found[f"{precision} TFLOP/s"] = round(2 * 8192**3 / ms / 1e9, 1)
    cuda.use("fp32")
    return found


@section("figures")
def launches():
    """Microseconds of host time for one launch, by every road."""
    import cupy

    from minitl.cuda.gemm import product
    from minitl.cuda.kernels import launch

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

    from minitl import cuda

    x = cupy.ones(64, "float32")
    step = cuda.capture(lambda x: x + 1)
    return lambda: step(x)


@section("figures")
def kernels():
    """Microseconds and GB/s of the memory-bound kernels at 65,536 rows of 768, and of other ways to the same."""
    import cupy

    from minitl.cuda.gemm import product
    from minitl.cuda.kernels import column_sums, each, launch, rows

    R, C = 65536, 768
    n = R * C
    x, y, w = (
        cupy.random.standard_normal((R, C), dtype="float32"),
        cupy.empty((R, C), "float32"),
        cupy.ones(C, "float32"),
    )
    mean, inv, ones = cupy.zeros(R, "float32"), cupy.ones(R, "float32"), cupy.ones((1, R), "float32")
    key, now, norm2 = cupy.ones(1, "uint64"), cupy.ones(3, "float32"), cupy.ones(1, "float32")
    m, v, half = cupy.zeros_like(x), cupy.ones_like(x), cupy.empty((R, C), "uint16")
    numbers = (1.0, 0.1, 0.9, 0.1, 0.99, 0.01, 1e-8, 0.9, 0.1)
    calls = {  # name: passes over the array, call
        "layer_norm": (2, lambda: launch("layer_norm", rows(R), y, mean, inv, x, w, w, R, C, 1e-6)),
        "layer_norm_dx": (3, lambda: launch("layer_norm_dx", rows(R), y, x, x, w, mean, inv, R, C)),
        "softmax": (2, lambda: launch("softmax", rows(R), y, x, R, C)),
        "softmax of 64": (2, lambda: launch("softmax", rows(n // 64), y, x, n // 64, 64)),
        "gelu": (2, lambda: launch("gelu", each(n), y, x, n, 0)),
        "bias": (2, lambda: launch("bias_drop_path", each(n), y, x, w, None, n, C, 1)),
        "dropout": (2, lambda: launch("dropout", each(n // 8), y, x, key, 0.1, 1.1, n)),
        "to_bf16": (1.5, lambda: launch("to_bf16", each(n), half, x, n)),
        "adamw": (7, lambda: launch("adamw", each(n), y, m, v, None, x, norm2, now, n, n, *numbers)),
        "column_sums": (1, lambda: column_sums(x)),
        "sum(axis=0) of CuPy": (1, lambda: x.sum(0)),
        "ones times x": (1, lambda: product(ones, x)),
    }
    found = {}
    for name, (passes, call) in calls.items():
        ms = median_ms(call)
        found[name] = {"us": round(1e3 * ms, 1), "GB/s": round(passes * 4 * n / ms / 1e6)}
    return found


@contextlib.contextmanager
def generic_ops():
    """Without the overrides."""
    registered = [getattr(ops, name).register.__self__ for name in OPS]
    before = [dict(one) for one in registered]
    for one in registered:
        one.clear()
    try:
        yield
    finally:
        for one, overrides in zip(registered, before, strict=True):
            one.update(overrides)


@section("figures", 60)
def steps():
    """Milliseconds of a training step: CuPy with generic ops, with overrides, and captured; launches; the floor."""
    import cupy

    from minitl import cuda
    from minitl.cuda import adamw, gemm, overrides
    from minitl.cuda import kernels as kernels_module

    found, rate = {}, results["figures"]["rates"]["seen"]
    for name, (config, batch) in CONFIGS.items():
        cost = flops.total(flops.count(config))
        size = (8 * cost.kept * batch + 32 * cost.params) / rate["copy GB/s"] / 1e6  # ms
        for precision in PRECISIONS:
            cuda.use(precision)
            model, _, step, *inputs = make(config, batch)
            floor = size + 6 * cost.macs * batch / rate[f"{precision} TFLOP/s"] / 1e9
            entry = {"parameters": model.num_parameters(), "floor ms": round(floor, 4)}
            if precision == "fp32":
                with generic_ops():
                    entry["generic ops ms"] = median_ms(lambda step=step, inputs=inputs: step(*inputs))
            entry["eager ms"] = median_ms(lambda step=step, inputs=inputs: step(*inputs))
            captured = cuda.capture(step)
            entry["captured ms"] = median_ms(lambda captured=captured, inputs=inputs: captured(*inputs), 100)
            entry["share of floor"] = round(floor / entry["captured ms"], 3)
            entry["pool MB"] = captured.pool.total_bytes() >> 20
            count = [0]

            def counting(fn, count=count):
                def call(*args, **options):
                    count[0] += 1
                    return fn(*args, **options)

                return call

            places = [
                (overrides, "launch"),
                (overrides, "product"),
                (kernels_module, "launch"),
                (gemm, "launch"),
                (adamw, "launch"),
            ]
            before = [getattr(*place) for place in places]
            for (module, what), fn in zip(places, before, strict=True):
                setattr(module, what, counting(fn))
            step(*inputs)
            for (module, what), fn in zip(places, before, strict=True):
                setattr(module, what, fn)
            entry["kernels and products"] = count[0]
            found[f"{name} {precision}"] = entry
            del model, step, captured, inputs
            cupy.get_default_memory_pool().free_all_blocks()
    cuda.use("fp32")
    return found


@section("figures", 20)
def by_kernel():
    """Where an eager step of the 5.5M model spends its time, in ms, tf32: by kernel and kind of product."""
    import cupy

    from minitl import cuda
    from minitl.cuda import adamw, overrides
    from minitl.cuda import kernels as kernels_module

    cuda.use("tf32")
    _, _, step, *inputs = make(*CONFIGS["5.5M"])
    for _ in range(3):
        step(*inputs)
    spans = []

    def timed(fn, name_of):
        def call(*args, **options):
            start, end = cupy.cuda.Event(), cupy.cuda.Event()
            start.record()
            made = fn(*args, **options)
            end.record()
            spans.append((name_of(*args), start, end))
            return made

        return call

    def product_name(a, b, *_):
        return "product of heads" if a.ndim == 4 else "product of a batch" if a.ndim == 3 else "product"

    launch, product = overrides.launch, overrides.product
    places = [(overrides, "launch"), (kernels_module, "launch"), (adamw, "launch")]
    for module, what in places:
        setattr(module, what, timed(launch, lambda name, *_: name))
    overrides.product = timed(product, product_name)
    try:
        whole = median_ms(lambda: step(*inputs), 10, 1)
    finally:
        for module, what in places:
            setattr(module, what, launch)
        overrides.product = product
        cuda.use("fp32")
    cupy.cuda.Device().synchronize()
    total = {}
    for name, start, end in spans:
        total[name] = total.get(name, 0) + cupy.cuda.get_elapsed_time(start, end) / 11
    table = {name: round(ms, 3) for name, ms in sorted(total.items(), key=lambda item: -item[1])}
    return {"whole": whole, **table}


@section("figures", 40)
def pytorch():
    """PyTorch's steps, in a process of its own that writes after each figure, as long as there is time."""
    return torch_results(["eager"], 60) | torch_results(["compiled"], left() - 15)


def torch_results(kinds, seconds):
    path = HERE / "torch_steps.tmp.json"
    command = [sys.executable, str(HERE / "gpu.py"), "--torch", str(path), *kinds]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=max(1, seconds))
        note = {} if run.returncode == 0 else {"stopped": run.stderr[-500:]}
    except subprocess.TimeoutExpired:
        note = {"stopped": f"out of time after {seconds:.0f} s"}
    found = json.loads(path.read_text()) if path.exists() else {}
    path.unlink(missing_ok=True)
    return found | {f"{'+'.join(kinds)} {name}": text for name, text in note.items()}


def torch_main(path, kinds):
    """Measure PyTorch's steps; the most wanted figures first."""
    import torch
    from torch import nn as tnn
    from torch.nn import functional as F

    class Block(tnn.Module):
        def __init__(self, config):
            super().__init__()
            d = config.dim
            self.heads = config.heads
            self.norm1, self.norm2 = tnn.LayerNorm(d, eps=1e-6), tnn.LayerNorm(d, eps=1e-6)
            self.qkv, self.proj = tnn.Linear(d, 3 * d), tnn.Linear(d, d)
            self.fc1, self.fc2 = tnn.Linear(d, config.mlp_dim), tnn.Linear(config.mlp_dim, d)

        def forward(self, x):
            B, N, C = x.shape
            q, k, v = self.qkv(self.norm1(x)).reshape(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C))
            return x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))

    class Model(tnn.Module):
        def __init__(self, config):
            super().__init__()
            self.config, d, p = config, config.dim, config.patch_size
            self.embed = tnn.Linear(p * p * config.channels, d)
            self.positions = tnn.Parameter(0.02 * torch.randn(1, math.prod(config.grid), d))
            self.fc1, self.fc2 = tnn.Linear(d, config.hidden), tnn.Linear(config.hidden, config.num_tokens)
            self.blocks = tnn.ModuleList(Block(config) for _ in range(config.layers))
            self.norm, self.head = tnn.LayerNorm(d, eps=1e-6), tnn.Linear(d, config.num_classes)

        def forward(self, x):
            p, (B, H, W, C) = self.config.patch_size, x.shape
            x = x.reshape(B, H // p, p, W // p, p, C).permute(0, 1, 3, 2, 4, 5).reshape(B, -1, p * p * C)
            x = self.embed(x) + self.positions
            for i, block in enumerate(self.blocks):
                if i == self.config.loc:
                    maps = self.fc2(F.gelu(self.fc1(x), approximate="tanh")).transpose(1, 2).softmax(-1)
                    x = maps @ x
                x = block(x)
            return self.head(self.norm(x).mean(1))

    found = {}
    for precision in ("tf32", "bf16", "fp32"):
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        for name, (config, batch) in CONFIGS.items():
            for kind in kinds:
                torch.manual_seed(0)
                model = Model(config).cuda()
                optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05, fused=True)
                images = torch.randn(batch, *config.image_size, config.channels, device="cuda")
                labels = torch.randint(config.num_classes, (batch,), device="cuda")
                run = torch.compile(model, mode="reduce-overhead") if kind == "compiled" else model

                def step(run=run, model=model, optimizer=optimizer, images=images, labels=labels, precision=precision):
                    optimizer.zero_grad(set_to_none=True)
                    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
                        loss = F.cross_entropy(run(images), labels)
                    loss.backward()
                    tnn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()

                for _ in range(10):
                    step()
                events = [torch.cuda.Event(enable_timing=True) for _ in range(101)]
                events[0].record()
                for event in events[1:]:
                    step()
                    event.record()
                torch.cuda.synchronize()
                times = [a.elapsed_time(b) for a, b in itertools.pairwise(events)]
                found[f"{name} {precision} {kind}"] = round(statistics.median(times), 4)
                Path(path).write_text(json.dumps(found))
                del model, run, optimizer, step


# --- the end ---


def table():
    """What matters most, as lines of text."""
    lines = []
    for name, entry in results["checks"].items():
        mark = {True: "ok", False: "FAILED", None: "not run"}[entry["ok"]]
        lines.append(f"{name:34} {mark:8} {'' if entry['ok'] else str(entry['seen'])[:150]}")
    lines += [
        f"{name:34} FAILED   {entry['seen'][:150]}" for name, entry in results["figures"].items() if not entry["ok"]
    ]
    torch_steps = results["figures"].get("pytorch", {}).get("seen", {})
    torch_steps = torch_steps if isinstance(torch_steps, dict) else {}
    lines.append(f"\n{'step, ms':14}{'eager':>9}{'graph':>9}{'floor':>9}{'torch':>9}{'compiled':>9}")
    steps_seen = results["figures"].get("steps", {}).get("seen", {})
    for name, entry in steps_seen.items() if isinstance(steps_seen, dict) else ():
        cells = [entry["eager ms"], entry["captured ms"], entry["floor ms"]]
        cells += [torch_steps.get(f"{name} {kind}", math.nan) for kind in ("eager", "compiled")]
        lines.append(f"{name:14}" + "".join(f"{cell:9.3f}" for cell in cells))
    return "\n".join(lines)


def main(path="gpu.json"):
    if problem := cuda_problem():
        sys.exit(f"no GPU can be used: {problem}")
    try:
        run_sections()
    finally:
        results["seconds"] = round(time.perf_counter() - BEGAN, 1)
        Path(path).write_text(json.dumps(results, indent=1, default=str))
    print(f"\n{table()}\n\n{results['seconds']:.0f} s; everything is in {path}")
    sys.exit(any(entry["ok"] is False for entry in results["checks"].values()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--torch"]:
        torch_main(sys.argv[2], sys.argv[3:])
    else:
        main(*sys.argv[1:2])
