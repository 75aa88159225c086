"""`python -m tests.bench`: both sides compute the same, the statistics are right, and the processes behave."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minitl import Tensor, nn
from minitl.autograd import OVERRIDES
from minitl.autograd import PLAIN as PLAIN_FORMS
from minitl.errors import InputError
from minitl.fast import threads as sharing
from tests.bench import contestant, measure, report
from tests.bench.__main__ import check_folder, main

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes in /proc, which Linux has")
QUICK_TO_COMPILE = "XLA_FLAGS", "--xla_backend_optimization_level=0"
IMAGES = nn.ViTConfig(patch_size=8, dim=8, heads=2, mlp_dim=16, hidden=8, num_tokens=2, loc=1, zero_head=False)
PLAIN = replace(IMAGES, tokenizer="none")
LEARNER = replace(IMAGES, version="1.1", pre_norm=False)
CONFIGS = {
    "all tokens": PLAIN,
    "learner 1.1": LEARNER,
    "learner 1.1 with norm": replace(LEARNER, pre_norm=True),
    "learner 1.0": IMAGES,
    "learner 1.0, sum": replace(IMAGES, pool="sum"),
    "clips": replace(LEARNER, tubelet=2),
    "clips with norm": replace(LEARNER, tubelet=2, pre_norm=True),
    "grid": replace(IMAGES, tokenizer="pool"),
    "convolutional stem": replace(LEARNER, stem="conv", stem_width=6, head_pool="sequence"),
    "bottleneck": nn.X21DConfig(widths=(4, 6), num_tokens=3),
    "bottleneck, conv": nn.X21DConfig(widths=(4, 6), last="conv"),
}
SPEC = nn.DataSpec()  # of all but these
SPECS = {"clips": nn.DataSpec(frames=4), "clips with norm": nn.DataSpec(frames=4)}
SPECS |= {"bottleneck": nn.DataSpec((16, 12), frames=2), "bottleneck, conv": nn.DataSpec((16, 12), frames=3)}


def sides(framework, name, **options):
    """minitl's side and the framework's, with the same model and batch."""
    config, spec = CONFIGS[name], SPECS.get(name, SPEC)
    ours = contestant.side_of(contestant.Minitl, config, spec, 4, 1)
    return ours, contestant.side_of(framework, config, spec, 4, 1, **options)


def same_losses(ours, theirs):
    """Of five training steps, which takes both gradients and updates; and of what inference makes of the result."""
    np.testing.assert_allclose([ours.loss() for _ in range(5)], [theirs.step() for _ in range(5)], rtol=1e-5)
    for side in (ours, theirs):
        side.mode(False)
    np.testing.assert_allclose(ours.infer().data, np.asarray(theirs.infer()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "layout"),
    [(name, "contiguous_format") for name in CONFIGS] + [("bottleneck", "channels_last_3d")],
)
def test_pytorch_computes_the_same(name, layout):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from tests.bench.torch_twin import Torch

    same_losses(*sides(Torch, name, memory_format=layout))


def test_jax_computes_the_same(monkeypatch):
    """Clips by a learner with norm; a learner without one is in ``test_command``."""
    monkeypatch.setenv(*QUICK_TO_COMPILE)
    pytest.importorskip("jax", reason="JAX is not installed")
    from tests.bench.jax_twin import Jax

    same_losses(*sides(Jax, "clips with norm"))


def test_layers_compute_the_same():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from tests.bench.torch_twin import Torch

    ours, theirs = sides(Torch, "learner 1.1")
    table = contestant.layers(LEARNER, SPEC, 4)
    assert len(table) == 9
    for label, (layer, options, arrays) in table.items():
        forward, backward = theirs.layer(layer, options, arrays)
        y = layer(*map(Tensor, arrays), **options)
        np.testing.assert_allclose(y.data, forward().numpy(), rtol=1e-4, atol=1e-5, err_msg=label)
        backward()
        for call in ours.layer(layer, options, arrays):
            call()
        if isinstance(layer, nn.Module):
            assert all(p.grad.any() for p in layer.parameters() if p.ndim == 2), label
    assert torch.get_num_threads() == 1


# --- statistics ---


class InProcess:
    """A contestant without a process of its own."""

    def __init__(self, label, framework, config, spec, batch, threads=1, options=None, by_layer=False, device="cpu"):
        job = {"framework": framework, "config": config, "spec": spec, "batch": batch, "threads": threads}
        self.job = job | {"options": options or {}, "by_layer": by_layer, "device": device}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def request(self, name, times=0):
        if not hasattr(self, "calls"):
            self.calls = contestant.prepare(self.job)
        return self.calls[name](times)


class Fake:
    """A contestant that takes ``seconds`` for a step, and says so in ``log``."""

    def __init__(self, name, seconds, log):
        self.name, self.seconds, self.log = name, seconds, log

    def request(self, name, steps):
        self.log.append((self.name, name))
        return [self.seconds] * steps


def test_they_take_turns(monkeypatch):
    monkeypatch.setattr(measure, "PAUSE_SECONDS", 0)
    log = []
    a, b = Fake("a", 1.0, log), Fake("b", 2.0, log)
    times = measure.in_turns([a, b], ["train", "infer"], 2, 3, lambda text: None, "")
    forth = [("a", "train"), ("b", "train"), ("a", "infer"), ("b", "infer")]
    back = [("b", "train"), ("a", "train"), ("b", "infer"), ("a", "infer")]
    assert log == forth + back
    np.testing.assert_array_equal(times[b, "infer"], np.full((2, 3), 2.0))


def test_ratio_by_hand():
    """Medians 3 and 2; medians of blocks 2, 3, 4 against 2, and 6 against them; the faster variant counts."""
    ours = np.array([[2, 2, 9], [3, 3, 3], [1, 4, 4.0]])
    slow, quick = np.full((3, 3), 2.0), np.full((3, 3), 1.0)
    values = {
        "minitl": {"infer": ours},
        "minitl, plain": {"infer": np.full((3, 3), 6.0)},
        "PyTorch, slow": {"infer": slow, "train": quick},
        "PyTorch, quick": {"infer": quick, "train": slow},
        "JAX": {"infer": 5 * slow},
    }
    row = measure._row(values, "infer", "train")
    assert row == {"minitl": 3, "PyTorch": 2, "variant": "slow", "ratio": 1.5, "low": 1.25, "high": 1.75} | {
        "plain": 6,
        "plain_ratio": 2,
        "JAX": 10,
    }
    assert measure._row(values, "infer", "infer")["variant"] == "quick"


def test_losses_must_agree():
    losses = {"minitl": [2.0, 1.0], "PyTorch, tanh GELU": [2.0001, 1.0], "PyTorch, exact GELU": [2.01, 1.1]}
    measure.check_losses("vit-tiny", losses)
    with pytest.raises(InputError, match=r"vit-tiny: .* in minitl and .* in JAX; these are two different"):
        measure.check_losses("vit-tiny", losses | {"JAX": [2.0, 1.001]})


def test_pairs_are_measured_together():
    assert measure._groups(measure.MODELS) == [
        ["vit-tiny", "vit-tiny-tl"],
        ["vit-384", "vit-tl-384"],
        ["cifar-cpu"],
        ["video-tl"],
        ["bottleneck"],
    ]
    assert measure._groups(["vit-tl-384", "bottleneck", "vit-tl-384"]) == [["vit-tl-384"], ["bottleneck"]]


def test_profile():
    """Each op of a step and the rest add up; afterwards the ops are themselves again."""
    side, before = contestant.side_of(contestant.Minitl, LEARNER, SPEC, 4, 1), dict(OVERRIDES["cpu"])
    seconds = side.profile(3)
    assert before == OVERRIDES["cpu"]
    assert {"linear", "attention", "gelu", "softmax", "token_pool", "cross_entropy", "rest"} <= seconds.keys()
    assert "conv2d" not in seconds and min(seconds["linear"]) > 0 and seconds["rest"][0] > 0


@pytest.mark.parametrize("plainly", [False, True])
def test_plain_forms(monkeypatch, plainly):
    """They are what the contestant "minitl, plain" computes, in its threads too, forward and in training."""
    calls = []

    def fast(x, **options):
        calls.append(threading.get_ident())
        return PLAIN_FORMS["softmax"](x, **options)

    monkeypatch.setitem(OVERRIDES["cpu"], "softmax", fast)
    job = {"framework": "minitl", "config": LEARNER, "spec": SPEC, "batch": 4, "threads": 2, "device": "cpu"}
    answers = contestant.prepare(job | {"by_layer": False, "options": {"plain": True} if plainly else {}})
    calls.clear()  # of a model that was only to be loaded
    assert len(answers["train"](1)) == len(answers["infer"](1)) == 1
    assert (calls == []) == plainly and threading.get_ident() not in calls


PEAK = """
import numpy as np
from tests.bench.contestant import _forget_peak, _peak
_forget_peak()
before = _peak()
np.ones(5_000_000)  # 40 MB, gone at once
largest = _peak()
_forget_peak()
print(largest - before, _peak() - before)
"""


@LINUX
def test_peak_memory():
    """In a process of its own: in this one, memory may be kept for the next array."""
    printed = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, check=True, text=True).stdout
    largest, afterwards = map(int, printed.split())
    assert 39e6 < largest < 60e6 and afterwards < 20e6


class Silent:
    """A contestant whose system does not say how large it is."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def request(self, name, times=0):
        return {} if name == "memory" else [1.0] * times


def test_a_system_that_says_little(monkeypatch, tmp_path):
    """As Windows: which cores there are, how busy they are, and how large a process is."""
    monkeypatch.setattr(measure, "PAUSE_SECONDS", 0)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "getloadavg", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    machine = measure.machine()
    assert machine["cores"] == machine["threads"] == 1 and "load" not in machine
    assert "1 cores, 1 threads; Python" in report.heading(machine)

    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(contestant, "Path", lambda name: tmp_path / "nothing")
    job = {"framework": "minitl", "config": PLAIN, "spec": SPEC, "batch": 2, "threads": 1, "device": "cpu"}
    assert contestant.prepare(job | {"options": {}, "by_layer": False})["memory"](0) == {}

    labels = "minitl", "minitl, plain", "PyTorch, tanh GELU"
    monkeypatch.setattr(measure, "_contestants", lambda *_: {label: Silent() for label in labels})
    rows = list(measure.compare(["vit-tiny"], quick=True))
    assert [row["quantity"] for row in rows] == list(measure.TIMES)
    labels = [text.get_text() for text in report.picture(rows).legends[0].texts]
    assert labels == ["training step", "inference"]


def test_growth_without_sizes(monkeypatch):
    monkeypatch.setattr(measure, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(measure, "Contestant", Silent)
    rows = measure.scale(quick=True)
    assert "memory" not in rows[0] and rows[0]["seconds"] == 1
    kept = report.short(rows[0]["kept"], "B")
    assert report.scale_table(rows).splitlines()[1].rstrip().endswith(f" {kept}")
    few = [row for row in rows if "TokenLearner" in row["axis"]]
    macs = [row["macs"] for row in few]
    assert [row["value"] for row in few] == [0, 1, 2, 3, 4, 5, 6] and macs == sorted(macs)  # 6: all tokens
    measured, counted = report.scale_picture(rows).axes[-1].lines
    assert np.isnan(measured.get_ydata()).all() and not np.isnan(counted.get_ydata()).any()


# --- processes ---


@LINUX
def test_a_process_keeps_to_its_threads():
    with measure.Contestant("minitl", "minitl", PLAIN, SPEC, 2, threads=1) as one:
        sizes = one.request("memory")
        assert len(one.request("train", 3)) == 3 and 0 < sizes["memory"] < sizes["process"]
        settings = Path(f"/proc/{one.process.pid}/environ").read_text().split("\0")
        assert {"OPENBLAS_NUM_THREADS=1", "OMP_NUM_THREADS=1", "MKL_NUM_THREADS=1"} <= set(settings)
        assert len(os.sched_getaffinity(one.process.pid)) == 1
    assert one.process.returncode is not None and len(os.sched_getaffinity(0)) == sharing.cores()


@LINUX
def test_threads_by_default(monkeypatch):
    """As many as training takes, on any number of cores."""
    monkeypatch.setattr(measure, "default_threads", lambda: 1)
    with measure.Contestant("minitl", "minitl", PLAIN, SPEC, 2) as one:
        one.request("train", 1)
        assert "OMP_NUM_THREADS=1" in Path(f"/proc/{one.process.pid}/environ").read_text().split("\0")
        assert len(os.sched_getaffinity(one.process.pid)) == 1
    monkeypatch.undo()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    machine = measure.machine()
    assert (machine["cores"], machine["threads"]) == (64, sharing.MOST_THREADS)


def test_a_process_that_fails_says_why():
    with (
        measure.Contestant("minitl", "minitl", PLAIN, SPEC, -1, 1) as one,
        pytest.raises(InputError, match=r"(?s)the process of minitl ended with status 1:.*negative dimensions"),
    ):
        one.request("train", 1)


def test_a_batch_that_does_not_fit():
    with (
        measure.Contestant("minitl", "minitl", PLAIN, SPEC, 10**13, 1) as one,
        pytest.raises(InputError, match=r"with status 1:\nits model and batch do not fit into memory: .*allocate"),
    ):
        one.request("train", 1)


def test_a_process_that_is_killed():
    with measure.Contestant("minitl", "minitl", PLAIN, SPEC, 2, 1) as one:
        one.request("train", 1)
        one.process.kill()
        one.process.wait()
        with pytest.raises(InputError, match=r"the process of minitl ended with status -?[0-9]+:\nit said nothing"):
            one.request("train", 1)


@LINUX
def test_ctrl_c_ends_all(tmp_path):
    code = "from tests.bench.__main__ import main; main()"
    path = os.pathsep.join([str(Path(measure.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    started = subprocess.Popen(
        [sys.executable, "-c", code, "--scale", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
    )
    with started as process:
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            while not (pids := children.read_text().split()):
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate()
        finally:
            process.kill()
    assert process.returncode == 130 and err.startswith("minitl: interrupted")
    for _ in range(200):  # one that was just starting ends when it finds nobody to answer
        if not (left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]):
            break
        time.sleep(0.1)
    assert not left and not list(tmp_path.iterdir())


# --- the command ---


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """A function that runs `python -m tests.bench` in an empty folder: (status, out, err)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "PAUSE_SECONDS", 0)
    monkeypatch.setenv(*QUICK_TO_COMPILE)

    def run(*args):
        status = 0
        try:
            main([*map(str, args)])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


def test_command(command):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    status, out, err = command("vit-tiny-tl", "--quick", "--threads", 1, "--json", "--out", "a/b")
    assert (status, err) == (0, "wrote a/b/bench.png\n")
    found = json.loads(out)
    assert (
        found["machine"]["threads"] == 1
        and {"cpu", "load", "Python", "NumPy", "BLAS", "PyTorch"} < found["machine"].keys()
    )
    rows = found["models"]
    assert [row["name"] for row in rows] == ["vit-tiny-tl"] * 4
    assert [row["quantity"] for row in rows] == [*measure.TIMES, *measure.SIZES]
    for row in rows:
        assert row["minitl"] > 0 and row["low"] <= row["ratio"] <= row["high"]
        assert row["low"] <= row["high"] and row["variant"] in ("tanh GELU", "exact GELU") and row["macs"] > 0
    assert Path("a/b/bench.png").read_bytes().startswith(b"\x89PNG")


def test_command_by_op(command, monkeypatch):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.setattr(measure, "Contestant", InProcess)
    status, out, _ = command("--ops", "--quick", "--threads", 1)
    lines = out.splitlines()
    picture = Path("runs/bench-quick/ops.png")
    assert status == 0 and lines[-1] == f"wrote {picture}" and picture.is_file() and "was quick" in lines[-2]
    assert sum("forward and backward" in line for line in lines) == len(contestant.layers(LEARNER, SPEC, 2))
    start = next(i for i, line in enumerate(lines) if line.startswith("training step"))
    shares = [float(line.split()[-1].rstrip("%")) for line in lines[start + 1 : -3]]
    assert sum(shares) == pytest.approx(100, abs=1) and shares == sorted(shares, reverse=True)


def test_command_scale(command, monkeypatch):
    """It needs no PyTorch."""
    monkeypatch.setattr(measure, "installed", lambda framework: False)
    monkeypatch.setattr(measure, "SCALES", {"images in a batch": {n: {"batch": n} for n in (4, 8)}})
    status, out, _ = command("--scale", "--quick", "--threads", 1, "--json")
    small, large = json.loads(out)["scale"]
    assert status == 0 and Path("runs/bench-quick/scale.png").is_file()
    assert (small["value"], large["value"]) == (4, 8) and large["macs"] == 2 * small["macs"]
    assert small["low"] <= small["seconds"] <= small["high"] and 0 < small["memory"] < large["memory"]


def test_tables():
    """The table, the savings and the heading for given figures."""
    row = {"quantity": "train", "minitl": 0.15, "PyTorch": 0.2, "variant": "tanh GELU"}
    row |= {"ratio": 0.75, "low": 0.7, "high": 0.8, "plain": 0.18, "plain_ratio": 1.2}
    rows = [row | {"name": "vit-384", "macs": 4}, row | {"name": "vit-tl-384", "macs": 3, "minitl": 0.12}]
    line = " ".join(report.line(rows[0]).split())
    assert line == "vit-384 training step 150 ms 200 ms 0.75 0.70 to 0.80 tanh GELU 180 ms 1.20 -"
    assert report.line(rows[0] | {"JAX": 0.1}).endswith(" 100 ms")
    assert len(report.head()) == len(report.line(rows[0]))
    (saved,) = report.savings(rows, measure.PAIRS)
    assert saved == "vit-tl-384 / vit-384: multiply-adds 0.75, training step 0.80 in minitl, 1.00 in PyTorch"
    assert report.savings(rows[:1], measure.PAIRS) == []
    heading = report.heading(measure.machine(2))
    assert "2 threads" in heading and f"NumPy {np.__version__}, SIMD " in heading


def test_simd():
    """As NumPy names it before 2.4 and since, on x86 and on others."""
    old = {"baseline": ["SSE", "SSE2"], "found": ["AVX2", "AVX512F", "AVX512_SKX"]}
    assert measure._simd(old, "x86_64") == "AVX512_SKX (AVX-512)"
    assert measure._simd(old | {"found": ["AVX2"], "not found": ["AVX512F"]}, "AMD64") == "AVX2 (no AVX-512)"
    new = {"baseline": ["X86_V2"], "found": ["X86_V3", "X86_V4"]}
    assert measure._simd(new, "x86_64") == "X86_V4 (AVX-512)"
    assert measure._simd({"baseline": ["NEON", "ASIMD"]}, "aarch64") == "ASIMD"
    assert measure._simd({}, "riscv64") == "none"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["vit-tinny"], "there is no model 'vit-tinny'; did you mean vit-tiny"),
        (["vit-tiny", "all"], "there is no model 'all'; choose one of vit-tiny, "),
        (["vit-tiny", "--ops"], "choose one: names of models, --ops, or --scale"),
        (["--threads", 0], f"--threads must be from 1 to {sharing.cores()}, the number of cores, got 0"),
        (["--threads", 10_000], "the number of cores, got 10000"),
    ],
)
def test_wrong_options(command, args, message):
    status, out, err = command(*args)
    assert (status, out) == (2, "") and message in err and not list(Path().iterdir())


@pytest.mark.parametrize("out", ["mine", "mine/deeper", pytest.param("/proc", marks=LINUX)])
def test_a_folder_that_cannot_be_had(command, out):
    """It is refused at once, before anything is measured."""
    Path("mine").write_text("a file")
    status, text, err = command("--scale", "--quick", "--out", out)
    assert (status, text) == (2, "") and err.startswith(f"minitl: cannot write {out} (")
    assert [path.read_text() for path in Path().iterdir()] == ["a file"]


def test_looking_at_a_folder_leaves_it_as_it_is(tmp_path):
    (tmp_path / "old").mkdir()
    for name in ("old", "old/new/newer"):
        check_folder(tmp_path / name)
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]


def test_without_pytorch(command, monkeypatch):
    monkeypatch.setattr(measure, "installed", lambda framework: False)
    for args in (["vit-tiny"], ["--ops"]):
        status, _, err = command(*args)
        assert (
            status == 2
            and "PyTorch, which is not installed; install minitl[bench], or try `python -m tests.bench --scale`" in err
        )
