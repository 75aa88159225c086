"""`python -m tests.bench --device cuda`, in one process on the stand-in for CuPy.

Each launch on it takes a millisecond.
"""

import contextlib
import json
from pathlib import Path

import fake_cupy
import numpy as np
import pytest
from test_bench import InProcess

from minitl import flops, nn
from minitl.backend import cuda_problem
from minitl.errors import InputError
from minitl.train import presets
from tests.bench import contestant, contestant_cuda, measure, measure_cuda, model, report
from tests.bench.__main__ import main


class Broken(InProcess):
    """PyTorch cannot be used; ``also`` is a second framework that cannot."""

    also = None

    def request(self, name, times=0):
        if self.job["framework"] in ("PyTorch", self.also):
            raise InputError("the process of PyTorch ended with status 1:\nTraceback\nAssertionError: not with CUDA")
        return super().request(name, times)


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """A function that runs `python -m tests.bench --device cuda --quick` in an empty folder: (status, out, err)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(measure, "Contestant", Broken)
    monkeypatch.setattr("tests.bench.__main__.cuda_problem", lambda: None)
    monkeypatch.setattr(fake_cupy.RawModule, "emulate", False)  # faster
    for size in ("LARGE", "LONG"):
        monkeypatch.setattr(contestant_cuda, size, 64)
    monkeypatch.setattr(contestant_cuda, "nodes", lambda graph: len(graph.work))

    def run(*args):
        status = 0
        try:
            main(["--device", "cuda", "--quick", *map(str, args)])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    with fake_cupy.installed() as cuda:
        yield run
        cuda.use("fp32")


SPEC = nn.DataSpec((8, 8))
TINY = nn.ViTConfig(dim=8, heads=2, layers=1, mlp_dim=8, hidden=8, num_tokens=2, version="1.1", zero_head=False)


@pytest.mark.parametrize(("precision", "names"), [("fp32", measure_cuda.MODELS), ("bf16", ["cifar-r1"])])
def test_command(command, precision, names):
    status, out, err = command("--json", "--precision", precision, *([] if precision == "fp32" else names))
    assert (status, err) == (0, f"wrote {Path('runs/bench-quick/bench-cuda.png')}\n")
    found = json.loads(out)
    assert found["machine"]["gpu"].startswith("a stand-in") and found["machine"]["CuPy"] == "14.2.0"
    assert [row["name"] for row in found["models"]] == list(names)
    for row in found["models"]:
        assert row["precision"] == precision and row["batch"] == 4
        assert row["times"].keys() == set(measure_cuda.MINITL) and row["missing"].keys() == set(measure_cuda.PYTORCH)
        eager, graph = (row["times"][f"minitl {kind}"]["seconds"] for kind in ("eager", "graph"))
        assert graph == 0.004  # two inputs are brought in, the graph is launched, its result is copied
        assert 0.8 * 1000 * eager < row["launches"] <= 1000 * eager  # constants are computed once
        assert sum(op["forward"] + op["backward"] for op in row["ops"]) == pytest.approx(eager, abs=0.003)
        assert sum(op["share"] for op in row["ops"]) == pytest.approx(1)
        ops = {op["name"]: op for op in row["ops"]}
        assert 0 < ops["rest"]["share"] < 0.2
        assert {"linear", "attention", "layer_norm", "AdamW", "rest"} < ops.keys() and ops["AdamW"]["backward"] == 0
        assert ops["attention"]["backward"] > ops["attention"]["forward"] > 0
        assert ("max_pool2d" in ops) == (row["name"] == "cifar-r1")
        assert row["copy"] == 2 * 4 * 64 / 1e-3 and row["products"] == 2 * 64**3 / 1e-3
    assert Path("runs/bench-quick/bench-cuda.png").read_bytes().startswith(b"\x89PNG")


def test_command_in_words(command):
    """With a PyTorch that knows no GPU, which is named as missing."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    status, out, _ = command("vit-tiny-tl", "--out", "a")
    lines = out.splitlines()
    assert status == 0 and lines[0].startswith("a stand-in whose times mean nothing, driver 13000, CUDA 12090; Python ")
    assert lines[3].split()[:6] == ["vit-tiny-tl", "4", "4", "ms", *lines[3].split()[4:6]] and " - " in lines[3]
    assert "vit-tiny-tl: no PyTorch compiled: AssertionError: not with CUDA" in lines
    assert (
        any(line.startswith("vit-tiny-tl, eager") for line in lines)
        and lines[-1] == f"wrote {Path('a/bench-cuda.png')}"
    )


def test_ops_are_themselves_again(command):
    from minitl.autograd import OVERRIDES

    before = dict(OVERRIDES["cuda"])
    side = contestant.side_of(contestant_cuda.Minitl, *measure.lookup("vit-tiny", True)[:2], 2, 1, graph=False)
    side.profile(2)
    assert before == OVERRIDES["cuda"]


def test_pytorch_computes_the_same(command, monkeypatch):
    """Its side of the GPU, on the CPU and without its compiler."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from tests.bench.torch_twin import TorchOnGPU

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def elapsed_time(self, later):
            return 2.0

        record = synchronize = lambda self: None

    compiled = []
    monkeypatch.setattr(measure, "Contestant", InProcess)
    monkeypatch.setattr(TorchOnGPU, "device", "cpu")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "compile", lambda fn, mode: compiled.append(mode) or fn)
    threads = torch.get_num_threads()
    try:
        status, out, err = command("cifar-r1", "--json", "--precision", "bf16")
    finally:
        torch.set_num_threads(threads)
    assert status == 0, err
    (row,) = json.loads(out)["models"]
    assert row["missing"] == {} and compiled == ["reduce-overhead"]
    assert [row["times"][label]["seconds"] for label in measure_cuda.PYTORCH] == [0.002, 0.002]


def test_without_pytorch(command, monkeypatch):
    """And with a driver that does not say how many nodes a graph has."""
    monkeypatch.setattr(measure, "installed", lambda framework: False)
    monkeypatch.setattr(contestant_cuda, "nodes", lambda graph: None)
    status, out, _ = command("vit-tiny")
    assert status == 0 and "vit-tiny: no PyTorch eager: PyTorch is not installed\n" in out
    assert next(line for line in out.splitlines() if line.startswith("vit-tiny ")).endswith(" -")


def test_minitl_must_not_fail(command, monkeypatch):
    monkeypatch.setattr(Broken, "also", "minitl")
    status, _, err = command("vit-tiny")
    assert status == 2 and "ended with status 1" in err and not Path("runs").exists()


@pytest.mark.parametrize("fault", ["dies", "wrong"])
def test_a_graph_that_fails_is_missing(command, monkeypatch, fault):
    """The other timings are not lost with it; also if only its replays are wrong."""

    class Faulty(Broken):
        def request(self, name, times=0):
            if self.job["options"].get("graph"):
                if fault == "dies":
                    raise InputError(
                        "the process of minitl ended with status 1:\nRuntimeError: an illegal memory access"
                    )
                return [x + (i == 4) for i, x in enumerate(super().request(name, times))]
            return super().request(name, times)

    monkeypatch.setattr(measure, "Contestant", Faulty)
    status, out, err = command("vit-tiny", "--json")
    assert status == 0, err
    (row,) = json.loads(out)["models"]
    why = {"dies": "RuntimeError: an illegal memory access", "wrong": "two different computations"}[fault]
    assert why in row["missing"]["minitl graph"] and row["times"].keys() == {"minitl eager"}
    assert row["launches"] is None and row["ops"]
    lines = [report.cuda_line(row), *report.cuda_notes([row])]
    assert lines[0].split()[2] == lines[0].split()[-1] == lines[0].split()[-2] == "-"
    assert f"vit-tiny: no minitl graph: {row['missing']['minitl graph']}" in lines
    report.cuda_picture([row])


def test_floor_by_hand():
    """Six operations for each multiply-add, eight bytes for each activation kept, 32 for each parameter."""
    config = nn.ViTConfig(tokenizer="none")
    cost = flops.total(flops.count(config, SPEC))
    expected = 60 * cost.macs / 1e12 + (80 * cost.kept + 32 * cost.params) / 1e9
    found = measure_cuda.floor(config, SPEC, 10, copy=1e9, products=1e12)
    assert found == {"parameters": cost.params, "macs": cost.macs, "floor": expected}


BUDGETS = {  # launches and GB of a training step
    ("vit-tiny-tl", "tf32"): (180, 1.22),
    ("cifar-r1", "tf32"): (300, 49.5),
    ("cifar-r1", "bf16"): (360, 30),
}


def test_cost_of_the_steps_that_are_measured():
    """At their real sizes, although nothing is computed."""
    for row in model.costs():
        launches, gigabytes = BUDGETS[row["name"], row["precision"]]
        assert row["launches"] <= launches and row["bytes"] <= gigabytes * 1e9
        for key in ("launches", "bytes", "macs"):
            assert sum(kernel[key] for kernel in row["kernels"]) == row[key]
        assert sum(kernel["seconds"]["H100"] for kernel in row["kernels"]) == pytest.approx(row["seconds"]["H100"])
        assert row["seconds"]["H200"] < row["seconds"]["H100"] < 3 * row["bytes"] / 3e12


def test_products_are_those_that_flops_counts():
    """Forward, and twice backward: without the gradient of the pixels, and with the scores computed once more."""
    config, spec, batch = measure_cuda.MODELS["vit-tiny"]
    found = sum(launch.macs for launch in model.recorded(config, spec, batch, "tf32"))
    pixels = config.patch_size**2 * spec.channels * config.dim
    scores = config.layers * 64 * config.dim
    assert found == batch * (3 * flops.total(flops.count(config, spec)).macs + 64 * (scores - pixels))


def test_cost_by_hand():
    """Products by their operands, kernels by their arguments; what is broadcast is read once."""
    with model.stand_in() as fake, fake.counting():
        from minitl.fast import cuda

        cuda.use("bf16")
        x, W, row = (fake.cupy.empty(shape, dtype) for shape, dtype in (((64, 96), "H"), ((96, 32), "H"), (32, "f")))
        stream = fake.Stream()
        with stream:
            cuda.gemm._handle()
            stream.begin_capture()
            y = cuda.gemm.product(x, W)
            y + row
            fake.cupy.broadcast_to(row, (64, 32)) + 1
            product, add, broadcast = stream.end_capture().work
    assert (product.bytes, product.macs, product.kind) == (2 * (64 * 96 + 96 * 32) + 4 * 64 * 32, 64 * 96 * 32, "bf16")
    assert (add.name, add.bytes, add.macs) == ("add", 4 * (2 * 64 * 32 + 32), 0)
    assert broadcast.bytes == 4 * (32 + 64 * 32)
    found = model.cost([product, add, product._replace(bytes=0)])
    expected = 3 * 1e-6 + (product.bytes + add.bytes) / (0.8 * 3e12) + 2 * 64 * 96 * 32 / 550e12
    assert (found["launches"], found["seconds"]["H100"]) == (3, pytest.approx(expected))


def test_command_without_a_gpu(monkeypatch, capsys):
    """The sum comes first, then the kernels, the slowest first."""
    monkeypatch.setattr("tests.bench.__main__.cuda_problem", lambda: pytest.fail("no GPU is needed"))
    main(["--device", "cuda", "--model", "--quick", "vit-tiny", "--precision", "tf32"])
    title, total, *kernels = capsys.readouterr().out.rstrip().splitlines()
    assert title.split()[:4] == ["vit-tiny,", "batch", "4,", "tf32"]
    assert title.endswith("launches     bytes   multiply-adds   H100, est.   H200, est.")
    assert sum(int(line[34:44]) for line in kernels) == int(total[34:44])
    times = [float(line[73:80]) for line in kernels]
    assert times == sorted(times, reverse=True) and sum(times) == pytest.approx(float(total[73:80]), abs=0.02)
    main(["--device", "cuda", "--model", "--quick", "--json"])
    rows = json.loads(capsys.readouterr().out)["models"]
    assert [(row["name"], row["precision"]) for row in rows] == model.STEPS


def test_the_large_model_is_that_of_the_recipe():
    config, spec, batch = measure_cuda.MODELS["cifar-r1"]
    parameters = flops.total(flops.count(config, spec)).params
    assert batch == presets.PRESETS["cifar-r1"]["batch_size"] == 1024 and 5.4e6 < parameters < 5.6e6


def made_up(name, *ms, floor=1.0):
    labels = report.COLORS
    times = {
        label: dict(zip(("low", "seconds", "high"), np.array([0.9, 1, 1.2]) * x / 1e3, strict=True))
        for label, x in zip(labels, ms, strict=True)
        if x
    }
    missing = {label: "no compiler" for label, x in zip(labels, ms, strict=True) if not x}
    row = {"name": name, "batch": 128, "precision": "tf32", "times": times, "missing": missing, "launches": 401}
    return row | {"floor": floor / 1e3, "products": 3.5e14, "copy": 4e12}


def test_tables_and_picture():
    rows = [made_up("vit-tiny", 2, 6, 5, 0), made_up("cifar-r1", 40, 60, 80, 50, floor=25)]
    line = " ".join(report.cuda_line(rows[0]).split())
    assert line == "vit-tiny 128 2 ms 6 ms 5 ms - 1 ms 50% 401"
    assert len(report.cuda_head()) == len(report.cuda_line(rows[1]))
    assert report.cuda_notes(rows) == [
        "vit-tiny: time of minitl graph: 0.33 of minitl eager, 0.40 of PyTorch eager",
        "vit-tiny: no PyTorch compiled: no compiler",
        "cifar-r1: time of minitl graph: 0.67 of minitl eager, 0.50 of PyTorch eager, 0.80 of PyTorch compiled",
        "floor: 350 TFLOP/s in large tf32 products, 4 TB/s in a copy; activations as counted by minitl.flops",
    ]
    upper, lower = report.cuda_picture(rows).axes
    assert [bar.get_width() for bar in upper.patches] == [2, 6, 5] and len(lower.patches) == 4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["vit-tinny"], "there is no model 'vit-tinny'; did you mean vit-tiny"),
        (["vit-tiny", "all"], "there is no model 'all'; choose one of vit-tiny, "),
        (["vit-384"], "there is no model 'vit-384'; "),
        (["--ops"], "--ops, --scale and --threads are for a CPU; omit them with --device cuda"),
        (["--threads", 1], "--ops, --scale and --threads are for a CPU"),
        (["--model", "vit-tinny"], "there is no model 'vit-tinny'; did you mean vit-tiny"),
        (["--device", "cpu", "--model"], "--model counts what a GPU does; add --device cuda"),
        (["--device", "cpu", "--precision", "tf32"], "--precision tf32 needs --device cuda; a CPU computes in fp32"),
    ],
)
def test_wrong_options(command, args, message):
    status, out, err = command(*args)
    assert (status, out) == (2, "") and message in err and not list(Path().iterdir())


def test_without_a_gpu(command, monkeypatch):
    """The same sentence as that of `minitl train`."""
    monkeypatch.setattr("tests.bench.__main__.cuda_problem", lambda: "CuPy finds no GPU")
    status, _, err = command()
    assert (status, err) == (2, "minitl: device cuda cannot be used: CuPy finds no GPU\n")


def test_a_job_of_a_gpu_fails_where_there_is_none():
    """A process of its own says why."""
    if cuda_problem() is None:
        pytest.skip("a GPU can be used here")
    with contextlib.ExitStack() as stack:
        tiny = measure.lookup("vit-tiny", True)[:2]
        one = stack.enter_context(measure.Contestant("minitl", "minitl", *tiny, 2, 1, device="cuda"))
        with pytest.raises(
            InputError, match=r"(?s)the process of minitl ended with status 1:.*device 'cuda' cannot be"
        ):
            one.request("train", 1)


def test_nodes_of_a_graph(monkeypatch):
    """The driver is asked by its C interface."""

    class Driver:
        def __init__(self, name):
            assert name == "libcuda.so.1"

        def cuGraphGetNodes(self, graph, nodes, count):
            count._obj.value = 287
            return 0 if graph.value == 7 and nodes is None else 1

    class Graph:
        graph = 7

    monkeypatch.setattr(contestant_cuda.ctypes, "CDLL", Driver)
    assert contestant_cuda.nodes(Graph) == 287
    Graph.graph = 0
    assert contestant_cuda.nodes(Graph) is None
