"""The CUDA side without a GPU: kernels compile, compute what their references do, and a step equals NumPy's.

``fake_cupy`` takes CuPy's place and runs the kernels' own code on the CPU. What it cannot show (speed, races, the real
cuBLAS) is in ``python -m tests.gpu``, for a machine with a GPU.
"""

import ctypes
import dataclasses
import glob
import importlib.metadata
import importlib.util
import inspect
import itertools
import math
import re
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import cuda_reference
import fake_cupy
import numpy as np
import pytest
from cases import CASES
from fake_cupy import State, cupy, signatures, strict

import minitl
from minitl import OPS, Tensor, backend, data, nn, ops, optim, train
from minitl.autograd import OVERRIDES, PLAIN
from minitl.backend import to_numpy
from minitl.errors import InputError
from minitl.train import run, step

FOLDER = Path(minitl.__file__).parent / "fast" / "cuda"
COMMON = (FOLDER / "common.cuh").read_text()
SOURCES = {path.name: COMMON + path.read_text() for path in sorted(FOLDER.glob("*.cu"))}
SOURCES["attention.cu, TF32"] = SOURCES["attention.cu"]
CONSTANTS = {  # sizes for which a file is compiled, as an example
    "attention.cu": {"TOKENS": 64, "HEAD": 64, "HEADS": 3, "TF32": 0},
    "attention.cu, TF32": {"TOKENS": 64, "HEAD": 64, "HEADS": 3, "TF32": 1},
    "augment.cu": {"HEIGHT": 5, "WIDTH": 7, "CHANNELS": 3},
    "rows.cu": {"COLUMNS": 256},
    "conv.cu": {
        "IN_H": 32,
        "IN_W": 30,
        "OUT_H": 16,
        "OUT_W": 15,
        "KERNEL_H": 3,
        "KERNEL_W": 3,
        "STRIDE_H": 2,
        "STRIDE_W": 2,
        "PAD_H": 1,
        "PAD_W": 1,
        "CHANNELS": 16,
        "GROUPS": 4,
    },
}
KERNELS = signatures("".join(SOURCES.values()))
TYPES = [("float", "float"), ("float", "bf16"), ("double", "double")]  # of real and stored
HAVE_CPP = shutil.which("g++") is not None


@pytest.fixture(scope="module")
def cuda():
    """``minitl.fast.cuda`` on the stand-in."""
    with fake_cupy.installed() as module:
        yield module


@pytest.fixture(params=["code", "reference"])
def kernels(request, cuda, monkeypatch):
    """The kernels' own code, and their NumPy references in their place."""
    if request.param == "code" and not HAVE_CPP:
        pytest.skip("there is no g++ to compile kernels for the CPU")
    monkeypatch.setattr(fake_cupy.RawModule, "emulate", request.param == "code")


# --- kernels ---


def nvrtc():
    """The library NVRTC, from CUDA's wheels or a toolkit."""
    found = []
    for package in ("nvidia.cuda_nvrtc", "nvidia.cu13"):
        spec = importlib.util.find_spec("nvidia") and importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            found += glob.glob(f"{folder}/lib/libnvrtc.so.*")
    for name in (*(path for path in found if ".alt." not in path), "libnvrtc.so.13", "libnvrtc.so.12"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    pytest.skip("NVRTC is not installed; `pip install nvidia-cuda-nvrtc-cu12` (about 90 MB) brings it")


def compile_kernels(file, types, arch):
    """The PTX or machine code of all kernels of a file; fails with the compiler's log."""
    library, program = nvrtc(), ctypes.c_void_p()
    source = SOURCES[file].encode()
    assert not library.nvrtcCreateProgram(ctypes.byref(program), source, file.encode(), 0, None, None)
    macros = {"real": types[0], "stored": types[1]} | CONSTANTS.get(file, {})
    options = [f"-arch={arch}", "-std=c++17", "-ftz=true", *(f"-D{name}={value}" for name, value in macros.items())]
    options = (ctypes.c_char_p * len(options))(*map(str.encode, options))
    failed = library.nvrtcCompileProgram(program, len(options), options)

    def read(what):
        size = ctypes.c_size_t()
        getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        getattr(library, f"nvrtcGet{what}")(program, text)
        return text.raw

    log = read("ProgramLog").decode().strip("\0")
    assert not failed, log
    code = read("PTX" if arch.startswith("compute") else "CUBIN")
    library.nvrtcDestroyProgram(ctypes.byref(program))
    assert "warning" not in log, log
    return code


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("types", TYPES, ids="-".join)
@pytest.mark.parametrize("file", SOURCES)
def test_kernels_compile(file, types, arch):
    assert len(compile_kernels(file, types, arch)) > 4000


@pytest.mark.parametrize("types", TYPES[:2], ids="-".join)
@pytest.mark.parametrize("file", SOURCES)
def test_float_kernels_compute_in_float(file, types):
    """0.5 is a double in C++ and would make the whole expression one, at a fraction of the speed."""
    assert b".f64" not in compile_kernels(file, types, "compute_90")


def test_augmentation_rounds_each_step():
    """A multiply-add would round once, and not give the CPU's numbers."""
    code = compile_kernels("augment.cu", TYPES[0], "compute_90")
    assert b"mul.rn" in code and b"fma" not in code


@pytest.mark.parametrize("file", ["attention.cu", "conv.cu"])
def test_sizes_known_at_compilation_are_never_divided_by(file):
    """A multiplication does it; that is why they are known."""
    assert not re.findall(rb"(?:div|rem)\.[su]\d+", compile_kernels(file, TYPES[0], "compute_90"))


def test_a_kernel_that_does_not_compile_is_seen(monkeypatch):
    monkeypatch.setitem(SOURCES, "kernels.cu", SOURCES["kernels.cu"].replace("int row = ROW;", "int row = ROW", 1))
    with pytest.raises(AssertionError, match=r"kernels\.cu.*error"):
        compile_kernels("kernels.cu", TYPES[0], "sm_80")


def ptxas():
    """The assembler of CUDA, from a toolkit or its wheel."""
    spec = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.cuda_nvcc")
    places = [f"{folder}/bin" for folder in (spec and spec.submodule_search_locations) or ()]
    found = shutil.which("ptxas") or shutil.which("ptxas", path=":".join(places))
    return found or pytest.skip("ptxas is not installed; `pip install nvidia-cuda-nvcc-cu12` (about 40 MB) brings it")


@pytest.mark.parametrize("arch", ["80", "90"])
@pytest.mark.parametrize("types", TYPES[:2], ids="-".join)
@pytest.mark.parametrize("file", SOURCES)
def test_numbers_of_a_thread_lie_in_registers(file, types, arch, tmp_path, monkeypatch):
    """What does not fit there would go to the GPU's memory. `pytest -rP` prints the registers of each kernel."""
    monkeypatch.setitem(CONSTANTS, "rows.cu", {"COLUMNS": 1024})  # the widest
    (tmp_path / "k.ptx").write_bytes(compile_kernels(file, types, f"compute_{arch}").rstrip(b"\0"))
    command = [ptxas(), "-v", f"-arch=sm_{arch}", "k.ptx", "-o", "k.cubin"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    names, frames = re.findall(r"Compiling entry function '(\w+)'", run.stderr), run.stderr.count("bytes stack frame")
    registers = dict(zip(names, map(int, re.findall(r"Used (\d+) registers", run.stderr)), strict=True))
    print(registers)
    assert frames == len(names) == run.stderr.count("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads")
    assert max(n for name, n in registers.items() if name != "layer_norm_dx") <= 128  # 2 blocks on a processor


def test_every_kernel_has_a_reference_of_its_signature(cuda):

    for name, parameters in KERNELS.items():
        signature = inspect.signature(getattr(cuda_reference, name)).parameters.values()
        own = [p.name for p in signature if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]  # sizes are keywords
        assert own == [parameter for _, parameter in parameters], name


def numbers(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def nothing(*shape):
    return np.full(shape, 7.0)


def with_nan(*shape):
    """In the upper left corner, which several windows may see."""
    x = numbers(*shape)
    x[0, 0, 0] = math.nan
    return x


KEY = np.array([2**63 + 5], "uint64")
SIZES = "IN_H IN_W OUT_H OUT_W KERNEL_H KERNEL_W STRIDE_H STRIDE_W PAD_H PAD_W CHANNELS GROUPS".split()  # noqa: SIM905
CONVOLUTIONS = [  # B, and the sizes
    (2, dict(zip(SIZES, (4, 5, 4, 5, 3, 3, 1, 1, 1, 1, 3, 1), strict=True))),
    (1, dict(zip(SIZES, (7, 6, 5, 3, 3, 2, 2, 3, 3, 2, 2, 2), strict=True))),
]
POOLINGS = [(B, sizes | {"CHANNELS": 3, "GROUPS": 1}) for B, sizes in CONVOLUTIONS]


def images(B, s):
    return numbers(B, s["IN_H"], s["IN_W"], s["GROUPS"] * s["CHANNELS"])


def columns(B, s):
    """The shape of a group's columns."""
    return B * s["OUT_H"] * s["OUT_W"], s["KERNEL_H"] * s["KERNEL_W"] * s["CHANNELS"]


def pooled(B, s):
    return B, s["OUT_H"], s["OUT_W"], s["CHANNELS"]


LABELS = np.array([2, 0, 39, 2, 40])
TICKETS, GROUPS = (
    np.zeros(3, "uint32"),
    np.zeros(4, "uint32"),
)  # for the strips, or groups, of a sum: 0 again afterwards
HEADS = np.array(
    tuple(np.arange(15, dtype="uint64").reshape(3, 5)), fake_cupy.structures(SOURCES["kernels.cu"])["Matrices"]
)
ATTENTIONS = [  # B, TOKENS, HEAD, HEADS; is there a bias, and a mask
    (1, 1, 1, 1, True, False),
    (2, 5, 6, 3, True, True),
    (1, 16, 7, 2, False, True),
    (2, 17, 32, 1, True, True),
    (1, 32, 64, 1, True, True),
    (1, 33, 7, 2, True, True),
    (1, 49, 64, 1, False, False),
    (1, 64, 64, 1, True, True),
    (2, 64, 1, 1, True, True),
]
STATE = [numbers(700), numbers(700) / 9, abs(numbers(700)) / 9]
FACTORS = (0.9, 0.1, 0.99, 0.01, 1e-8, 0.9, 0.1)
PICTURES = np.random.default_rng(0).integers(60, 200, size=(24, 5, 7, 3), dtype="uint8")
CHOSEN = np.zeros((24, 7), "int32")  # each operation, with the numbers of a crop, those of a warp, or a float
CHOSEN[:, 0] = np.append(np.arange(23) % 12, 2)
CHOSEN[[1, 13], 1:4] = (4, -6, 1), (-3, 2, 0)
CHOSEN[23, 1:] = 60000, -9000, 70000, 20000, 65536, -50000
CHOSEN[[2, 14], 1:] = (0, 65536, -1, -65536, 0, 6 * 65536), (65536, 0, 0, 0, 65536, -1)  # 1 more or less is seen
CHOSEN[3:7, 1], CHOSEN[15:19, 1] = np.float32([0.3, 1.9]).view("int32")
CHOSEN[[7, 8, 19, 20], 1] = np.float32([3, 99, 8, 128]).view("int32")
ROWS = [  # kernel, arguments: results first; blocks; and sizes for which it is compiled
    *(
        ("layer_norm", (nothing(rows, C), *nothing(2, rows), numbers(rows, C), *numbers(2, C), rows, eps), 2,
         {"COLUMNS": C})
        for rows, C, eps in ((9, 70, 1e-6), (9, 5, 0.1))
    ),
    *(
        ("layer_norm_dx", (nothing(rows, C), dx_bf16, nothing(3 * C), nothing(blocks, 3 * C), GROUPS,
         numbers(C, rows).T.copy(), numbers(rows, C), accumulated, numbers(C), numbers(rows), abs(numbers(rows)), rows),
         blocks, {"COLUMNS": C})
        for rows, C, blocks, dx_bf16, accumulated in (
            (9, 70, 2, None, numbers(9, 70)), (300, 33, 35, nothing(300, 33), None), (3, 64, 1, None, None)
        )
    ),
    ("column_sums", (nothing(70), nothing(3, 70), TICKETS, numbers(50, 70), None, 50, 70, 20), (3, 3)),
    ("column_sums", (nothing(3), None, None, numbers(5, 3), None, 5, 3, 5), (1, 1)),
    ("column_sums", (nothing(70), nothing(17, 70), TICKETS, numbers(50, 70), numbers(70), 50, 70, 3), (3, 17)),
    *(
        ("norm_columns", (nothing(80), parts, TICKETS, *numbers(2, 50, 40), *numbers(2, 40), 50, 40, chunk), (2, count))
        for parts, count, chunk in ((nothing(17, 80), 17, 3), (nothing(3, 80), 3, 20), (None, 1, 50))
    ),
    ("batch_statistics", (nothing(5), *numbers(4, 5)[:3], abs(numbers(5)), 20, 5, 0.3, 0.1), 1),
    ("batch_norm", (nothing(50, 7), numbers(50, 7), *numbers(4, 7), 50, 7), 2),
    ("batch_norm_dx", (nothing(50, 7), *numbers(2, 50, 7), *numbers(3, 7), numbers(14), 50, 7), 2),
    ("softmax", (nothing(9, 70), 30 * numbers(9, 70), 9, 70), 2),
    ("softmax_dx", (nothing(9, 70), numbers(9, 70), abs(numbers(9, 70)), 9, 70), 2),
    ("relu", (nothing(300), np.append(numbers(299), math.nan), 300), 2),
    ("relu_dx", (nothing(300), numbers(300), numbers(301)[1:], 300), 2),
    ("gelu", (nothing(300), 3 * numbers(300), 300, 0), 2),
    ("gelu", (nothing(300), 3 * numbers(300), 300, 1), 2),
    ("gelu_dx", (nothing(300), numbers(300), 3 * numbers(300), 300, 0), 2),
    ("gelu_dx", (nothing(300), numbers(300), 3 * numbers(300), 300, 1), 2),
    ("bias_gelu", (nothing(9, 70), 3 * numbers(9, 70), numbers(70), 9, 70), 2),
    *(
        ("bias_gelu_dx", (nothing(40), parts, TICKETS, nothing(50, 40), *numbers(2, 50, 40), numbers(40), 50, 40, chunk
         ), (2, count))
        for parts, count, chunk in ((nothing(3, 40), 3, 20), (None, 1, 50))
    ),
    ("residual", (nothing(10, 7), numbers(10, 7), numbers(7, 10).T.copy(), numbers(7), numbers(5), 10, 7, 10, 2), 2),
    ("residual", (nothing(10, 70), numbers(5, 70), numbers(10, 70), None, None, 10, 70, 5, 5), 2),
    *(
        ("residual_dx", (nothing(40), parts, TICKETS, nothing(50, 40), numbers(50, 40), numbers(5), 10, 50, 40, chunk),
         (2, count))
        for parts, count, chunk in ((nothing(3, 40), 3, 20), (None, 1, 50))
    ),
    ("to_fp32", (nothing(300), numbers(300), 300), 2),
    ("vector_attention", (*nothing(2, 2, 9, 20), *9 * numbers(3, 2, 9, 20), 360, 9, 20), 2),
    ("vector_attention_dx", (*nothing(3, 2, 9, 20), *numbers(5, 2, 9, 20), 3 + numbers(2, 9, 20), 360, 9, 20), 2),
    *(("attention", (nothing(B, N, h * d), numbers(B, N, 3 * h * d), numbers(3 * h * d) if b else None,
       *((KEY, 0.3, 1 / 0.7) if m else (None, 0.0, 1.0))), B * h, {"TOKENS": N, "HEAD": d, "HEADS": h, "TF32": 0})
      for B, N, d, h, b, m in ATTENTIONS),
    *(("attention_dx", (nothing(B, N, 3 * h * d), nothing(B, 3 * h * d) if b else None, numbers(B, N, h * d),
       numbers(B, N, 3 * h * d), numbers(3 * h * d) if b else None,
       *((KEY, 0.3, 1 / 0.7) if m else (None, 0.0, 1.0))), B * h, {"TOKENS": N, "HEAD": d, "HEADS": h, "TF32": 0})
      for B, N, d, h, b, m in ATTENTIONS),
    ("bias_drop_path", (nothing(300), numbers(300), numbers(30), numbers(5), 300, 30, 60), 2),
    ("bias_drop_path", (nothing(300), numbers(300), numbers(30), None, 300, 30, 1), 2),
    ("bias_drop_path", (nothing(300), numbers(300), None, numbers(5), 300, 1, 60), 2),
    ("dropout", (nothing(2999), numbers(2999), KEY, 0.3, 1 / 0.7, 2999), 2),
    ("dropout", (nothing(7), None, np.array([5], "uint64"), 0.9, 10.0, 7), 1),
    *(
        ("cross_entropy", (nothing(1), nothing(B), TICKETS, nothing(B), 9 * numbers(B, 40), labels, soft, B, 40, *rest),
         -(-B // 8))
        for B, labels, soft, *rest in (
            (5, LABELS, None, 0.9, 0.1 / 40), (21, np.arange(21), None, 0.9, 0.1 / 40),
            (5, None, abs(numbers(5, 40)), 1.0, 0.0)
        )
    ),
    (
        "cross_entropy_dx",
        (nothing(5, 40), None, numbers(1), numbers(5, 40), 3 + numbers(5), LABELS, None, 5, 40, 0.9, 0.1 / 40),
        1,
    ),
    (
        "cross_entropy_dx",
        (*nothing(2, 5, 40), numbers(1), numbers(5, 40), 3 + numbers(5), None, abs(numbers(5, 40)), 5, 40, 0.9, 0.0025),
        1,
    ),
    ("squares", (nothing(1), nothing(3), TICKETS, numbers(2000), 2000), (1, 3)),
    ("squares", (nothing(1), nothing(1), TICKETS, numbers(5), 5), (1, 1)),
    ("gather", (nothing(900), np.array([0, 300, 600, 0, 0, 5], "uint64"), 2), (2, 2)),  # no sources: zeros
    *(
        ("adamw", (*STATE, average, numbers(700), np.array([norm2]), np.array([0.1, 0.5, 0.3]), 700, 400, *rest), 3)
        for average, norm2, rest in (
            (numbers(700), 4.0, (1.0, 0.1, *FACTORS)),
            (None, 4.0, (3.0, 0.0, *FACTORS)),
            (None, math.inf, (3.0, 0.1, *FACTORS)),
            (None, math.nan, (3.0, 0.1, *FACTORS)),
        )
    ),
    *(("im2col", (nothing(s["GROUPS"], *(k := columns(B, s))), images(B, s), math.prod(k)), (5, s["GROUPS"]), s)
      for B, s in CONVOLUTIONS),
    *(("col2im", (nothing(*images(B, s).shape), numbers(s["GROUPS"], *columns(B, s)), images(B, s).size, B), 1, s)
      for B, s in CONVOLUTIONS),
    *(("max_pool", (nothing(*pooled(B, s)), np.zeros(pooled(B, s), "uint8"), with_nan(*images(B, s).shape),
       math.prod(pooled(B, s))), 1, s) for B, s in POOLINGS),
    *(("max_pool_dx", (nothing(*images(B, s).shape), numbers(*pooled(B, s)),
       np.arange(math.prod(pooled(B, s)), dtype="uint8").reshape(pooled(B, s)) % 6, images(B, s).size), 1, s)
      for B, s in POOLINGS),
    ("to_bf16", (nothing(304), np.append(numbers(300), [math.inf, math.nan, 1 + 2.0**-8, 1 + 3 * 2.0**-8]), 304), 2),
    ("addresses", (np.zeros((5, 12), "uint64"), HEADS, 4, 12), 1),
    ("augment", (np.zeros((24, 5, 7, 3), "uint8"), PICTURES, CHOSEN), 24, {"HEIGHT": 5, "WIDTH": 7, "CHANNELS": 3}),
]  # fmt: skip


def test_every_kernel_has_a_row():
    assert {name for name, *_ in ROWS} == set(KERNELS)


def prepared(args, dtype, name=None):
    """New arrays of ``dtype`` where they hold fractions; for "bf16", activations of the kernel ``name`` in bfloat16."""
    if dtype == "bf16":
        kinds = [kind for kind, _ in KERNELS[name]]
        args = prepared(args, "float32")
        return [rounded(a) if k == "stored*" and np.ndim(a) else a for k, a in zip(kinds, args, strict=True)]
    return [a.astype(dtype) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else
            a.copy() if isinstance(a, np.ndarray) else a for a in args]  # fmt: skip


ROWS = [(*row, {})[:4] for row in ROWS]
MOST_TOKENS = {"float32": 64, "float64": 32, "bf16": 64}  # of a fused attention
KERNEL_RUNS = [
    pytest.param(*row, dtype, id=f"{row[0]}-{i}-{dtype}")
    for i, row in enumerate(ROWS)
    for dtype, most in MOST_TOKENS.items()
    if row[3].get("TOKENS", 0) <= most and (dtype != "bf16" or "stored*" in dict(KERNELS[row[0]]))
]


@pytest.mark.parametrize("name, args, blocks, sizes, dtype", KERNEL_RUNS)
def test_kernel_computes_its_reference(cuda, name, args, blocks, sizes, dtype):
    """The kernels' own code, on a CPU; numbers stored in bfloat16 may differ by a rounding."""
    if not HAVE_CPP:
        pytest.skip("there is no g++ to compile kernels for the CPU")
    from minitl.fast.cuda import kernels

    expected, own = prepared(args, dtype, name), prepared(args, dtype, name)
    with np.errstate(all="ignore"):
        getattr(cuda_reference, name)(*expected, **sizes)
    kernels.launch(name, blocks, *(fake_cupy.wrap(a) if np.ndim(a) else a for a in own), **sizes)
    close = {"float32": 2e-5, "float64": 1e-11, "bf16": 1e-4}[dtype]
    for (kind, parameter), a, b in zip(KERNELS[name], own, expected, strict=True):
        if kind == "stored*" and dtype == "bf16" and np.ndim(a) and name != "to_bf16":
            np.testing.assert_allclose(*map(cuda_reference.from_bf16, (a, b)), rtol=2**-7, atol=2e-5)
        elif np.ndim(a) and parameter != "parts":  # scratch
            np.testing.assert_allclose(a, b, **({} if a.dtype.kind == "u" else {"rtol": close, "atol": close}))


def rounded(x):
    """Return ``x`` in bfloat16, as uint16."""
    y = np.empty(x.shape, "uint16")
    cuda_reference.to_bf16(y, x, x.size)
    return y


@pytest.mark.parametrize("rows, C", [(256, 3), (257, 33), (1000, 64), (3001, 70)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_down_columns(rows, C, dtype, kernels, cuda):
    """In one launch, also for incomplete chunks and strips; and twice, as the counters must be left at 0."""
    x, dy, mean = (a.astype(dtype) for a in (numbers(rows, C), numbers(C, rows).T, numbers(C)))
    x, dy, mean, inv_std = map(cupy.asarray, (x, np.ascontiguousarray(dy), mean, 1 + mean * mean))
    n = (to_numpy(x) - to_numpy(mean)) * to_numpy(inv_std)
    tolerance = {"rtol": 1e-4, "atol": 2e-4} if dtype == "float32" else {"rtol": 1e-11, "atol": 1e-10}
    for _ in range(2):
        State.launches = 0
        own = [cuda.kernels.column_sums(x), cuda.kernels.column_sums(x, mean)]
        own.append(cuda.kernels.norm_columns(dy, x, mean, inv_std))
        assert State.launches == 3
        expected = [to_numpy(x).sum(0), ((to_numpy(x) - to_numpy(mean)) ** 2).sum(0)]
        expected.append(np.concatenate([(to_numpy(dy) * n).sum(0), to_numpy(dy).sum(0)]))
        for a, b in zip(own, expected, strict=True):
            np.testing.assert_allclose(to_numpy(a), b, **tolerance)


def test_more_columns_than_are_counted(kernels, cuda, monkeypatch):
    """Each strip then has one block, and there is nothing to count."""
    grids, launch = [], cuda.kernels.launch
    monkeypatch.setattr(cuda.kernels, "launch", lambda name, *args: (grids.append(args[0]), launch(name, *args)))
    x = numbers(300, 33)
    for strips in (1, 2):
        monkeypatch.setattr(cuda.kernels, "MAX_STRIPS", strips)
        np.testing.assert_allclose(to_numpy(cuda.kernels.column_sums(cupy.asarray(x))), x.sum(0))
    assert grids == [(2, 1), (2, 5)]


def test_sums_do_not_depend_on_which_block_is_last(cuda):
    """Not even their last bit."""
    if not HAVE_CPP:
        pytest.skip("there is no g++ to compile kernels for the CPU")
    libraries = (
        fake_cupy.compiled(SOURCES["kernels.cu"], TYPES[0]),
        fake_cupy.compiled(SOURCES["rows.cu"], TYPES[0], ("COLUMNS",)),
    )
    orders = [ctypes.c_uint.in_dll(library, "stride") for library in libraries]
    x, dy, mean, inv_std = (cupy.asarray(a.astype("float32")) for a in (*numbers(2, 2000, 40), *numbers(2, 2000)))
    params = [Tensor(cupy.asarray(numbers(9000).astype("float32")), True)]
    found = []
    try:
        for number in (1, 7919, 2**32 - 5):
            for order in orders:
                order.value = number
            params[0].grad, optimizer = x.reshape(-1)[:9000], optim.AdamW(params)
            sums = cuda.kernels.column_sums(x), cuda.kernels.norm_columns(dy, x, mean, inv_std), cuda.update(optimizer)
            norm = cuda.kernels.layer_norm_dx(dy, x, None, inv_std[:40], mean, inv_std)
            found.append(np.concatenate([to_numpy(a) for a in (*sums, norm)]))
    finally:
        for order in orders:
            order.value = 1
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()


def test_counts_of_a_stream(kernels, cuda):
    """They exist also if a graph is recorded first, and a graph leaves them at 0."""
    x, calls, sums = numbers(700, 33), [], cuda.kernels.column_sums

    def step(x):
        calls.append(x)
        return sums(x) if len(calls) > 1 else x

    captured = cuda.capture(step, warmup=1)
    captured(x)
    for i in range(1, 4):
        np.testing.assert_allclose(to_numpy(captured(i * x)), i * x.sum(0))
        np.testing.assert_allclose(to_numpy(sums(cupy.asarray(i * x))), i * x.sum(0))
    assert len(calls) == 2


def test_philox_known_answers(cuda):
    """From the authors' own list (Random123, kat_vectors); NumPy's generator counts once before its first block."""
    zero = ["16554d9eca36314c", "db20fe9d672d0fdc", "d7e772cee186176b", "7e68b68aec7ba23b"]
    assert [f"{x:016x}" for x in np.random.Philox(counter=2**256 - 1, key=0).random_raw(4)] == zero


# --- ops ---

FUSED = ("add", "mean", "relu", "gelu", "linear", "linear_gelu", "token_pool", "softmax", "layer_norm", "attention",
         "dropout", "drop_path", "residual", "cross_entropy", "conv2d", "matmul", "recompute", "batch_norm",
         "vector_attention", "max_pool2d")  # fmt: skip


def test_these_ops_have_overrides(cuda):
    assert OVERRIDES["cuda"].keys() == set(FUSED)


def evaluate(case, xp, dtype, layout=lambda x: x):
    """The value of a row of ``cases.py``, and its gradients for a random cotangent."""
    tensors = [Tensor(layout(xp.asarray(x)), requires_grad=x.dtype.kind == "f") for x in case.arrays(np, dtype)]
    out = getattr(ops, case.op)(*tensors, **case.fresh_options(xp, dtype))
    dy = np.random.default_rng(9).standard_normal(out.shape).astype(dtype)
    out.backward(layout(xp.asarray(dy)))
    return [to_numpy(out), *(to_numpy(t.grad) for t in tensors if t.requires_grad)]


def permuted(x):
    return x.T.copy().T


@pytest.mark.parametrize("layout", [lambda x: x, permuted], ids=["dense", "permuted"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", [case for case in CASES if case.op in FUSED], ids=str)
def test_override_equals_the_generic_op(case, dtype, layout, kernels):
    tolerance = {"rtol": 2e-5, "atol": 2e-5} if dtype == "float32" else {"rtol": 1e-11, "atol": 1e-11}
    for own, generic in zip(evaluate(case, cupy, dtype, layout), evaluate(case, np, dtype), strict=True):
        assert own.dtype == generic.dtype == dtype
        np.testing.assert_allclose(own, generic, **tolerance)


def not_to_run(*_, **__):
    pytest.fail("the plain form ran")


@pytest.mark.parametrize("op", FUSED)
def test_override_runs(op, cuda, monkeypatch):
    """Not the plain form, which would give the same numbers."""
    elsewhere = {"p": 0, "axis": 1, "training": False}  # options with which the generic op is right
    rows = [case for case in CASES if case.op == op and not elsewhere.items() & case.options.items() and op != "add"]
    for table in (OPS, PLAIN):
        monkeypatch.setitem(table, op, not_to_run)
    if op == "add":
        x, y = (Tensor(cupy.asarray(x), requires_grad=True) for x in (numbers(4, 3, 2), numbers(1, 3, 2)))
        ops.add(x, y).sum().backward()
        assert (to_numpy(y.grad) == 4).all()
    for case in rows:
        evaluate(case, cupy, "float32")


@pytest.mark.parametrize("N, d", [(33, 2), (65, 2), (5, 65)])
@pytest.mark.parametrize("bias", [False, True])
def test_attention_by_products(N, d, bias, kernels):
    """Tokens or heads that do not fit in the buffers of a block, in float64."""
    arrays = [numbers(2, N, 6 * d), numbers(6 * d)][: 1 + bias]
    found = []
    for xp in (cupy, np):
        tensors = [Tensor(xp.asarray(a), requires_grad=True) for a in arrays]
        fake_cupy.RawModule.launched.clear()
        y = ops.attention(*tensors, num_heads=2, dropout=0.3, rng=np.random.default_rng(4))
        (y * y).sum().backward()
        assert "attention" not in fake_cupy.RawModule.launched
        found.append([to_numpy(y), *(to_numpy(t.grad) for t in tensors)])
    for own, generic in zip(*found, strict=True):
        np.testing.assert_allclose(own, generic, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
@pytest.mark.parametrize("B, N, d, h", [(1, 16, 8, 2), (1, 32, 24, 1), (1, 48, 64, 1), (2, 64, 64, 1)])
def test_attention_on_tensor_cores(B, N, d, h, dtype, cuda):
    """The kernels multiply as their references do, but for factors of 10 bits; with bias and dropout."""
    if not HAVE_CPP:
        pytest.skip("there is no g++ to compile kernels for the CPU")
    sizes, mask = {"TOKENS": N, "HEAD": d, "HEADS": h}, (KEY, 0.3, 1 / 0.7)
    qkv, b, dy = numbers(B, N, 3 * h * d), numbers(3 * h * d), numbers(N, B, h * d).reshape(B, N, h * d)
    for name, args in (
        ("attention", (nothing(B, N, h * d), qkv, b, *mask)),
        ("attention_dx", (nothing(B, N, 3 * h * d), nothing(B, 3 * h * d), dy, qkv, b, *mask)),
    ):
        expected, own, exact = (prepared(args, dtype, name) for _ in range(3))
        getattr(cuda_reference, name)(*expected, **sizes)
        for tf32, args in ((1, own), (0, exact)):
            arrays = (fake_cupy.wrap(a) if np.ndim(a) else a for a in args)
            cuda.kernels.launch(name, B * h, *arrays, **sizes, TF32=tf32)
        found = [cuda_reference.from_bf16(a[0]) for a in (own, exact, expected)]
        assert abs(found[0] - found[2]).max() < (4e-3 if dtype == "float32" else 2e-2) * abs(found[2]).max()
        assert (found[0] != found[1]).any()


def test_attention_of_few_tokens_is_accurate(cuda):
    """In float32, to the precision of its sums, also for large scores."""
    qkv, b = numbers(2, 49, 3 * 64).astype("float32"), numbers(3 * 64).astype("float32")
    for factor in (1, 3):
        found = []
        for xp, dtype in ((cupy, "float32"), (np, "float64")):
            x, bias = (Tensor(xp.asarray(a.astype(dtype)), requires_grad=True) for a in (np.float32(factor) * qkv, b))
            y = ops.attention(x, bias, num_heads=1)
            y.backward(xp.asarray(numbers(2, 49, 64).astype(dtype)))
            found.append([to_numpy(a) for a in (y.data, x.grad, bias.grad)])
        for own, exact in zip(*found, strict=True):
            assert own.dtype == "float32" and abs(own - exact).max() < 2e-6 * factor * abs(exact).max()


def test_what_does_not_fit_a_kernel_is_told(cuda, caplog):
    """Once, to those who ask by `minitl train --verbose`."""
    cuda.overrides._log_once.cache_clear()
    with caplog.at_level("INFO", "minitl"):
        for _ in range(2):
            ops.attention(numbers_on(1, 65, 6), num_heads=1)
            ops.attention(numbers_on(1, 5, 6), num_heads=1)
            ops.layer_norm(numbers_on(2, 1025), numbers_on(1025), numbers_on(1025))
            ops.tanh(numbers_on(2, 3))  # has no CUDA form
    first, second = (record.message for record in caplog.records)
    assert first.startswith(
        "attention over 65 tokens, with heads of 2, runs as matrix products; one kernel takes up to 32"
    )
    assert second.startswith(
        "layer_norm(float64[2, 1025], float64[1025], float64[1025]) does not fit its CUDA form and"
    )


@pytest.mark.parametrize("left", [1e15, math.nan])
def test_what_an_earlier_block_left_in_shared_memory_does_not_count(left, cuda):
    """It lies beside the tokens and columns of a smaller attention."""

    def attend(qkv):
        x = Tensor(cupy.asarray(qkv.astype("float32")), requires_grad=True)
        y = ops.attention(x, num_heads=1)
        y.backward(y.data)
        return np.concatenate([to_numpy(y).ravel(), to_numpy(x.grad).ravel()])

    before = attend(numbers(1, 33, 3 * 7))
    attend(np.full((1, 64, 3 * 64), left))
    assert np.isfinite(before).all() and (attend(numbers(1, 33, 3 * 7)) == before).all()


@pytest.mark.parametrize("op", ["dropout", "drop_path"])
def test_masks_are_those_of_numpy(op, kernels):
    """The same masks, bit for bit, from the same generator."""
    x = numbers(70, 31).astype("float32")
    own, generic = (getattr(ops, op)(a, p=0.3, rng=np.random.default_rng(4)) for a in (cupy.asarray(x), x))
    assert (to_numpy(own) == generic.data).all() and 0.6 < (generic.data != 0).mean() < 0.8


def test_what_kernels_cannot_do_is_left_to_the_generic_op(cuda):
    x = cupy.asarray(numbers(3, 4))
    np.testing.assert_allclose(to_numpy(ops.softmax(x, axis=0)), ops.softmax(to_numpy(x), axis=0).data)
    with pytest.raises(ValueError, match=r"linear\(float64\[3, 4\], float64\[3, 4\]\).*\(in, out\)"):
        ops.linear(x, x)
    for op in (ops.dropout, ops.drop_path, lambda x, p: ops.residual(x, x, p=p)):
        with pytest.raises(ValueError, match=r"probability must lie in \[0, 1\), got 1.0"):
            op(x, p=1.0)
    with pytest.raises(TypeError, match="to one dtype"):
        ops.linear(x, cupy.asarray(numbers(4, 2).astype("float32")))
    with pytest.raises(ValueError, match=r"conv2d\(.*larger than the padded image"):
        ops.conv2d(cupy.asarray(numbers(1, 2, 2, 1)), cupy.asarray(numbers(3, 3, 1, 1)))
    empty = ops.layer_norm(cupy.asarray(np.zeros((0, 4))), cupy.asarray(np.ones(4)), cupy.asarray(np.ones(4)))
    assert empty.shape == (0, 4)


def test_batch_norm_moves_its_running_statistics(kernels):
    """As in the plain form; columns far from zero, and more rows than a block adds up."""
    x, weight, bias = 100 + numbers(60, 5, 3), numbers(3), numbers(4)[1:]
    options = {"momentum": 0.3, "eps": 0.1}
    own, generic = ([xp.asarray(a) for a in (x, weight, bias, numbers(3), abs(numbers(3)))] for xp in (cupy, np))
    for _ in range(2):
        for *arrays, mean, var in (own, generic):
            ops.batch_norm(*arrays, running_mean=mean, running_var=var, **options)
    for a, b in zip(own[3:], generic[3:], strict=True):
        np.testing.assert_allclose(to_numpy(a), b, rtol=1e-11)
        assert not np.allclose(b, numbers(3))


def test_a_gradient_that_nobody_needs_is_not_computed(cuda):
    """That of the pixels, in the first layer."""
    for op, shapes in ((ops.linear, ((4, 3), (3, 2))), (ops.conv2d, ((2, 4, 4, 3), (3, 3, 3, 2)))):
        launches = []
        for wanted in (False, True):
            x, W = (Tensor(cupy.asarray(numbers(*shape)), requires_grad=True) for shape in shapes)
            x.requires_grad = wanted
            y = op(x, W).sum()
            State.launches = 0
            y.backward()
            launches.append(State.launches)
            assert W.grad is not None and (x.grad is not None) == wanted
        assert launches[0] < launches[1]


# --- matrix products ---

PRODUCTS = {
    "plain": lambda: (numbers(5, 3), numbers(3, 4)),
    "transposed": lambda: (numbers(3, 5).T, numbers(4, 3).T),
    "columns of a larger array": lambda: (numbers(5, 9)[:, 2:5], numbers(3, 8)[:, 4:]),
    "reversed": lambda: (numbers(5, 3)[:, ::-1], numbers(3, 4)[::-1]),
    "one row": lambda: (numbers(1, 3), numbers(3, 1)),
    "one number": lambda: (numbers(1, 1), numbers(1, 1)),
    "broadcast rows": lambda: (np.broadcast_to(numbers(3), (5, 3)), numbers(3, 4)),
    "batch": lambda: (numbers(6, 5, 3), numbers(6, 4, 3).swapaxes(1, 2)),
    "one for all": lambda: (numbers(1, 5, 3), numbers(6, 3, 4)),
    "two axes": lambda: (numbers(2, 3, 5, 3), numbers(2, 3, 3, 4)),
    "heads": lambda: (numbers(2, 7, 3, 4).swapaxes(1, 2), numbers(2, 7, 3, 4).transpose(0, 2, 3, 1)),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("given", [False, True], ids=["new", "out"])
def test_product(name, dtype, given, cuda):
    a, b = PRODUCTS[name]()
    expected = 0.5 * (a @ b)
    a, b = (with_strides(*strided(x, dtype)) for x in (a, b))
    out = None
    if given:  # a part of a larger array, with the heads inside as attention writes them
        B, M, N = expected.shape[:-2], *expected.shape[-2:]
        out = cupy.empty((*B[:1], M, *B[1:], N + 2), dtype)[..., :N]
        out = out.swapaxes(1, 2) if len(B) == 2 else out
    y = cuda.gemm.product(a, b, out, alpha=0.5)
    assert y.dtype == dtype and (out is None or y is out)
    np.testing.assert_allclose(to_numpy(y), expected, rtol=1e-4, atol=1e-5)


def with_strides(memory, shape, strides):
    """A device array with the strides given, which ``asarray`` would not keep; some go back from where it starts."""
    whole = cupy.asarray(memory.base).ravel()
    return cupy.lib.stride_tricks.as_strided(whole[whole.size - memory.size :], shape, strides)


def strided(x, dtype):
    """The arguments of ``as_strided`` for ``x`` in another dtype with the same strides."""
    base = x
    while base.base is not None and base.base.dtype == x.dtype and base.base.ndim:
        base = base.base
    offset = (x.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // 8
    flat = np.ascontiguousarray(base).astype(dtype).ravel()
    return flat[offset:], x.shape, tuple(s // 8 * flat.itemsize for s in x.strides)


@pytest.fixture
def bf16(cuda):
    cuda.use("bf16")
    yield cuda
    cuda.use("fp32")


def test_bf16_rounds_what_is_multiplied(bf16):
    x, W = (cupy.asarray(numbers(*shape).astype("float32")) for shape in ((5, 3), (3, 4)))
    y = ops.linear(Tensor(x, requires_grad=True), Tensor(W, requires_grad=True))
    exact = to_numpy(x) @ to_numpy(W)
    assert y.dtype == "float32" and 1e-4 < abs(to_numpy(y) - exact).max() / abs(exact).max() < 1e-2
    y.sum().backward()
    heads = cupy.asarray(numbers(2, 65, 18).astype("float32"))
    np.testing.assert_allclose(
        to_numpy(ops.attention(heads, num_heads=3)), ops.attention(to_numpy(heads), num_heads=3).data, atol=0.05
    )
    double = x.astype("float64"), W.astype("float64")
    assert (to_numpy(ops.linear(*double)) == to_numpy(double[0]) @ to_numpy(double[1])).all()


def test_bf16_gradients_add_up(bf16):
    """Of a layer norm's output that two layers use; a sum of uint16 would be nonsense."""
    x, W = (Tensor(cupy.asarray(numbers(*shape).astype("float32")), True) for shape in ((6, 8), (8, 4)))
    ones, zeros = (Tensor(cupy.asarray(np.full(8, i, "float32"))) for i in (1, 0))
    y = ops.layer_norm(x, ones, zeros)
    assert y.dtype == "uint16"
    loss = (ops.linear(y, W) * 1 + ops.gelu(ops.linear(y, W)) + y.sum(axis=1, keepdims=True)).sum()
    loss.backward()
    own = [to_numpy(x.grad), to_numpy(W.grad)]
    x, W = (Tensor(to_numpy(t).copy(), True) for t in (x, W))
    y = ops.layer_norm(x, Tensor(np.ones(8, "float32")), Tensor(np.zeros(8, "float32")))
    (ops.linear(y, W) * 1 + ops.gelu(ops.linear(y, W)) + y.sum(axis=1, keepdims=True)).sum().backward()
    for a, b in zip(own, (x.grad, W.grad), strict=True):
        np.testing.assert_allclose(a, b, atol=0.03 * abs(b).max())


def test_ops_that_do_not_know_bf16(bf16, monkeypatch):
    """A new op, a person's own form and the plain forms get float32; a function that is recomputed returns bfloat16."""
    monkeypatch.setitem(OPS, "square", None)  # so that they are gone after the test
    monkeypatch.setitem(PLAIN, "square", None)
    monkeypatch.setitem(OPS, "relu", lambda x: (3 * x, lambda dy: 3 * dy))

    @minitl.autograd.op
    def square(x):
        return x * x, lambda dy: 2 * x * dy

    def plain_gelu(x):
        with minitl.plain():
            return ops.gelu(x)

    found = []
    for xp in (cupy, np):
        x, ones, zeros = (
            Tensor(xp.asarray(a.astype("float32")), True) for a in (numbers(6, 8), np.ones(8), np.zeros(8))
        )

        def norm(x, ones=ones, zeros=zeros):
            return ops.layer_norm(x, ones, zeros)

        y = norm(x)
        spread = (y * xp.asarray(numbers(2, 6, 8).astype("float32"))).sum(axis=0)
        z = spread + square(y) + ops.relu(y) + plain_gelu(y) + ops.recompute(x, fn=norm) * y + ops.gelu(y)
        z.backward(xp.asarray(numbers(6, 8).astype("float32")[::-1].copy()))
        found.append(to_numpy(x.grad))
    np.testing.assert_allclose(*found, atol=0.03 * abs(found[1]).max())


@pytest.mark.parametrize("name", ["1.1", "1.0", "dropped", "convolutional stem", "X21D"])
def test_bf16_step_is_close(name, bf16):
    """To the step in float32: losses, and the direction of the gradient."""
    host, device = Run("cpu", MODELS[name]), Run("cuda", MODELS[name], bf16)
    for images, labels in batches(name, 1 if name == "X21D" else 2):  # a step magnifies rounding before batch norms
        loss = device.step(cupy.asarray(images), cupy.asarray(labels))
        assert loss.item() == pytest.approx(float(host.step(images, labels)), rel=0.02)
    own, generic = (run.state()[1] for run in (device, host))
    cosine = own @ generic / np.linalg.norm(own) / np.linalg.norm(generic)
    assert cosine > (0.9 if name == "X21D" else 0.99)  # batch norm over few numbers makes more of a rounding


def test_what_a_layer_norm_found_out_goes_with_its_gradient(cuda):
    """Not with a sum that it is only a part of."""
    x, b = (Tensor(cupy.asarray(numbers(*shape)), True) for shape in ((6, 8), (8,)))
    weight, bias = (Tensor(cupy.asarray(numbers(8 + i)[i:]), True) for i in (0, 1))
    W = Tensor(cupy.asarray(numbers(8, 8)), True)

    def loss(x, W, b, weight, bias):
        y = ops.linear(x, W, b)
        return ((y * 3 + ops.layer_norm(y, weight, bias)) * y * y).sum()

    tensors = (x, W, b, weight, bias)
    loss(*tensors).backward()
    host = [Tensor(to_numpy(t).copy(), True) for t in tensors]
    loss(*host).backward()
    for own, generic in zip(tensors, host, strict=True):
        np.testing.assert_allclose(to_numpy(own.grad), generic.grad, rtol=1e-11)


def test_a_gradient_that_is_not_contiguous_arrives_at_a_layer_norm(cuda):
    """That of a sum, which is the same number everywhere, or that of a transpose."""
    for other in (lambda x: x.sum(), lambda x: (x.transpose(1, 0) * x.transpose(1, 0)).sum()):
        found = []
        for xp in (cupy, np):
            x, weight, bias = (Tensor(xp.asarray(numbers(*shape)), True) for shape in ((6, 8), (8,), (8,)))
            y = x * 2
            ((ops.layer_norm(y, weight, bias) * weight).sum() + other(y)).backward()
            found.append(to_numpy(x.grad))
        np.testing.assert_allclose(*found, rtol=1e-11)


def test_a_persons_form_runs_inside_another_op(cuda, monkeypatch):
    """On a GPU as on a CPU."""
    monkeypatch.setitem(OPS, "gelu", lambda x: (0 * x + 7, lambda dy: 0 * dy))
    assert (to_numpy(ops.linear_gelu(numbers_on(4, 3), numbers_on(3, 2), numbers_on(2))) == 7).all()


def test_precision_has_three_names(cuda):
    with pytest.raises(InputError, match="precision must be one of fp32, tf32, bf16, got 'fp8'"):
        cuda.use("fp8")
    assert cuda.gemm._precision == "fp32"


def test_without_cublas_cupy_multiplies(cuda, monkeypatch):
    monkeypatch.setattr(cuda.gemm, "library", lambda: None)
    x = numbers(2, 65, 18)
    own, generic = ops.attention(cupy.asarray(x), num_heads=3), ops.attention(x, num_heads=3)
    np.testing.assert_allclose(to_numpy(own), generic.data)


# --- a training step ---

TINY = {"dim": 24, "heads": 2, "mlp_dim": 40, "zero_head": False}
MODELS = {
    "1.1": nn.ViTConfig(**TINY, version="1.1", pre_norm=False),
    "1.0": nn.ViTConfig(**TINY, version="1.0"),
    "dropped": nn.ViTConfig(**TINY, version="1.1", dropout=0.2, drop_path=0.3),
    "convolutional stem": nn.ViTConfig(**TINY, version="1.1", stem="conv", stem_width=6, head_pool="sequence"),
    "X21D": nn.X21DConfig(widths=(4, 6), num_tokens=3),
}
BUDGETS = {"X21D": 300}  # launches of a step that is not captured; 300 for the others


class Run:
    """A tiny model with all that a step needs; on "cuda" the step is ``minitl.fast.cuda``'s."""

    def __init__(self, device, config, cuda=None):
        self.rng = np.random.default_rng(0)
        spec = nn.DataSpec((16, 16), num_classes=8, frames=2 if isinstance(config, nn.X21DConfig) else 1)
        self.model = step.build_model(config, spec, self.rng).to(device)
        self.optimizer = optim.AdamW(self.model.parameters(), 1e-3, weight_decay=0.05)
        self.ema = optim.EMA(self.optimizer, 0.9)
        self.cuda = cuda

    def step(self, images, labels):
        loss = ops.cross_entropy(self.model(images), labels, label_smoothing=0.1)
        self.cuda.zero_grad(self.optimizer) if self.cuda else self.optimizer.zero_grad()
        loss.backward()
        if self.cuda:
            self.cuda.update(self.optimizer, 1.0, self.ema)
        else:
            self.optimizer.clip_grad_norm(1.0)
            self.optimizer.step()
            self.ema.update()
        return loss.data

    def state(self):
        flat = self.optimizer.flat
        return [to_numpy(x) for x in (flat.data, self.optimizer.exp_avg, self.ema.average)]


def batches(name, count, size=4):
    rng, shape = np.random.default_rng(1), (2, 16, 16, 3) if name == "X21D" else (16, 16, 3)
    return [(rng.standard_normal((size, *shape), "float32"), rng.integers(8, size=size)) for _ in range(count)]


@pytest.mark.parametrize("name", MODELS)
def test_step_equals_numpys_within_the_budget(name, kernels, cuda):
    """The same losses and gradients; few launches; nothing the host would have to wait for."""
    host, device = Run("cpu", MODELS[name]), Run("cuda", MODELS[name], cuda)
    for images, labels in batches(name, 3):
        expected, inputs = host.step(images, labels), (cupy.asarray(images), cupy.asarray(labels))
        with strict() as counted:
            loss = device.step(*inputs)
        assert loss.item() == pytest.approx(float(expected), rel=1e-4)
        assert counted.launches <= BUDGETS.get(name, 300)
    for own, generic in zip(device.state()[1:2], host.state()[1:2], strict=True):
        np.testing.assert_allclose(own, generic, atol=1e-3 * abs(generic).max())
    assert device.optimizer.steps == 3 and host.rng.random() == device.rng.random()


def test_update_equals_clipping_adamw_and_ema(kernels, cuda):
    def make(device):
        params = [Tensor(backend.to_device(x.astype("float64"), device), True) for x in (numbers(6, 50), numbers(50))]
        optimizer = optim.AdamW(params, 0.01, weight_decay=0.1)
        return params, optimizer, optim.EMA(optimizer, 0.9)

    (host, optimizer, ema), (device, fused, fused_ema) = make("cpu"), make("cuda")
    for factor in (0.01, 1.0, 5.0):
        for a, b in zip(host, device, strict=True):
            g = factor * numbers(a.size + 1)[1:].reshape(a.shape)
            a.grad, b.grad = g, cupy.asarray(g)
        norm = optimizer.clip_grad_norm(1.0)
        optimizer.step()
        ema.update()
        assert to_numpy(cuda.update(fused, 1.0, fused_ema))[0] ** 0.5 == pytest.approx(norm)
    for a, b in zip([*host, ema.average], [*device, fused_ema.average], strict=True):
        np.testing.assert_allclose(to_numpy(b), to_numpy(a), rtol=1e-9)
    before = to_numpy(device[0])
    device[0].grad[0, 0] = math.nan
    cuda.update(fused, 1.0)
    assert (to_numpy(device[0]) == before).all()


def test_gradients_wait_for_the_update(kernels, cuda):
    """One launch for all; two for one parameter add up, a transposed one is made contiguous, a missing one is 0."""
    params = [Tensor(cupy.asarray(numbers(*shape)), True) for shape in ((3, 4), (4, 3), (5,), (2,))]
    optimizer = optim.AdamW(params, 0.01)
    before = to_numpy(optimizer.flat.data)
    cuda.zero_grad(optimizer)
    x, y, z, _ = params
    (ops.transpose(x) * numbers_on(4, 3)).sum().backward()
    for _ in range(2):
        (y * numbers_on(4, 3) + z.sum()).sum().backward()
    State.launches = 0
    cuda.update(optimizer)
    assert State.launches == 4  # a copy of what is turned, the gathering, the norm, AdamW
    expected = [numbers(4, 3).T, 2 * numbers(4, 3), np.full(5, 24.0), np.zeros(2)]
    for p, grad in zip(params, expected, strict=True):
        np.testing.assert_allclose(to_numpy(p.grad), grad)
    assert (to_numpy(optimizer.flat.data) != before)[:-2].all() and optimizer.flat.check() is None
    optimizer.zero_grad()  # the usual way still works
    x.sum().backward()
    assert (to_numpy(optimizer.flat.grad)[:12] == 1).all()


def numbers_on(*shape):
    return Tensor(cupy.asarray(numbers(*shape)))


# --- capture ---


def test_recording_a_step_does_nothing_yet(cuda):
    """A captured launch runs only when it is replayed, and once."""
    total = cupy.asarray(np.zeros(1))

    def step(x):
        nonlocal total
        total += x
        return total

    step = cuda.capture(step, warmup=1)
    for i in range(1, 6):
        assert step(np.ones(1)).item() == i


def launches_of_an_attention(B, N, heads, bias):
    x, b = numbers_on(B, N, 6 * heads), numbers_on(6 * heads)
    x.requires_grad = b.requires_grad = True
    State.launches = 0
    y = ops.attention(*((x, b) if bias else (x,)), num_heads=heads)
    forward, dy, State.launches = State.launches, cupy.asarray(numbers(*y.shape)), 0
    y.backward(dy)
    return forward, State.launches - 1 - bias  # to copy a gradient is one


def test_launches_of_an_attention(cuda):
    """One in each direction for few tokens, and one for the gradient of a bias."""
    assert launches_of_an_attention(2, 5, 3, bias=False) == (1, 1)
    assert launches_of_an_attention(2, 5, 3, bias=True) == (1, 2)


@pytest.mark.parametrize("B, heads, spread", [(2, 3, 1), (1, 3, 0), (2, 1, 0)])
def test_launches_of_an_attention_over_many_tokens(B, heads, spread, cuda):
    """One in each direction for the addresses of the heads; none if these lie at a single distance."""
    assert launches_of_an_attention(B, 65, heads, bias=False) == (3 + spread, 5 + spread)
    assert launches_of_an_attention(B, 65, heads, bias=True) == (4 + spread, 6 + spread)


def test_launches_of_the_step_that_is_measured(cuda):
    """Of `python -m tests.bench --device cuda vit-tiny-tl`, eager and in a graph. They are counted, and not done."""
    from tests.bench import contestant, contestant_cuda, measure_cuda

    side = contestant.side_of(contestant_cuda.Minitl, *measure_cuda.MODELS["vit-tiny-tl"], 1)
    with fake_cupy.counting() as counted:
        side.step()  # to warm up
        assert 180 < counted.launches <= 225
        for _ in range(2):
            side.step()
    (recording,) = side.take_step.compute.graphs.values()
    assert 160 < len(recording.graph.work) <= 180


def test_a_step_that_looks_at_a_number_cannot_be_captured(cuda):
    step = cuda.capture(lambda x: x if float(x.sum()) > 0 else -x, warmup=1)
    step(np.ones(2))
    with pytest.raises(
        InputError, match=r"cannot be captured \(AssertionError: __float__ within a step.*without a graph"
    ):
        step(np.ones(2))
    assert State.recorded is None and cuda.graph._recording is None


@pytest.mark.parametrize(
    "error", [MemoryError("allocating 512 bytes"), RuntimeError("cudaErrorMemoryAllocation: full")]
)
def test_no_memory_is_no_failed_capture(error, cuda):
    calls = []

    def step(x):
        calls.append(x)
        if len(calls) > 1:
            raise error
        return x + 1

    step = cuda.capture(step, warmup=1)
    step(np.ones(2))
    with pytest.raises(type(error), match=r"^(allocating 512 bytes|cudaErrorMemoryAllocation: full)$"):
        step(np.ones(2))
    assert State.recorded is None and cuda.memory() == "3.0 of the GPU's 4.0 GB are in use"


def test_cublas_without_memory(cuda, monkeypatch):
    monkeypatch.setattr(fake_cupy.Cublas, "cublasCreate_v2", lambda *_: 3)
    with pytest.raises(MemoryError, match="cublasCreate_v2 failed with status 3"):
        cuda.gemm.Handle()


def test_warm_up_is_needed(cuda):
    with pytest.raises(ValueError, match="warmup is at least 1, got 0"):
        cuda.capture(lambda x: x, warmup=0)


# --- a training run ---

SMALL = nn.ViTConfig(
    version="1.1", pre_norm=False, dim=24, heads=2, layers=1, mlp_dim=24, num_tokens=2, zero_head=False
)
SETTINGS = train.TrainConfig("made up", SMALL, epochs=2, batch_size=12, ema=0.9, threads=1)  # 40 images: 4 steps
SETTINGS = dataclasses.replace(SETTINGS, save_every=1)
DROPS = {"layers": 2, "dropout": 0.2, "drop_path": 0.3}


@pytest.fixture
def start(cuda, monkeypatch, tmp_path):
    """``start(device, **settings)`` is a Trainer for 40 images, or for clips with several labels."""
    rng = np.random.default_rng(0)
    images = [
        data.Dataset(rng.integers(256, size=(n, 8, 8, 3), dtype="uint8"), np.arange(n) % 3, "abc") for n in (40, 9)
    ]
    clips = [
        data.Dataset(
            rng.integers(256, size=(n, 4, 8, 8, 3), dtype="uint8"), np.eye(3, dtype="uint8")[np.arange(n) % 3], "abc"
        )
        for n in (40, 9)
    ]
    monkeypatch.setattr(data, "load", lambda name, *_, **__: clips if name == "clips" else images)
    monkeypatch.setattr(train.Trainer, "_draw", lambda _: None)
    monkeypatch.setattr(step.OnGPU, "every", 3)
    monkeypatch.setattr(fake_cupy.RawModule, "emulate", False)  # faster
    numbers = itertools.count()
    yield lambda device, **settings: train.start(
        dataclasses.replace(SETTINGS, device=device, **settings), tmp_path / str(next(numbers))
    )
    cuda.use("fp32")


def model_with(**options):
    return {"model": dataclasses.replace(SMALL, **options)}


RUNS = {
    "plain": {},
    "augmented": {"flip": True, "crop": 2, "cutout": 2, "mixup": 0.3, "cutmix": 1.0, "label_smoothing": 0.1},
    "dropped": model_with(**DROPS),
    "muon": {"optimizer": "muon", "ema": 0.9} | model_with(**DROPS),
    "recomputed": model_with(**DROPS, recompute=True),
    "queries": model_with(tokenizer="query"),
    "fuser": model_with(back="fuser"),
    "convolutional stem": model_with(stem="conv", stem_width=6, head_pool="sequence"),
    "clips": {"dataset": "clips"} | model_with(tubelet=2),
    "X21D": {"dataset": "clips", "model": nn.X21DConfig(widths=(4, 6), num_tokens=2)},
}


@pytest.mark.parametrize("graph", [True, False], ids=["graph", "eager"])
@pytest.mark.parametrize("name", RUNS)
def test_a_training_run_equals_the_cpus(name, graph, start):
    """From data to checkpoint, with a smaller last batch, and read at other steps than the last."""
    host, device = start("cpu", **RUNS[name]), start("cuda", graph=graph, **RUNS[name])
    assert ("on cuda (fp32, one graph a step); " if graph else "on cuda (fp32, eager); ") in device.describe()
    assert host.fit() and device.fit() and train.resume(device.folder).step == device.step == 8
    for own, expected in zip(device.rows, host.rows, strict=True):
        assert own.pop("seconds") > 0 and expected.pop("seconds") > 0
        assert own == pytest.approx(expected, rel=1e-4)
    own, expected = to_numpy(device.optimizer.exp_avg), host.optimizer.exp_avg
    error = 0.03 if name == "X21D" else 1e-3  # of which a ReLU at the edge turns rounding into
    np.testing.assert_allclose(own, expected, atol=error * abs(expected).max())


@pytest.mark.parametrize("name", ["dropped", "recomputed", "muon"])
def test_a_run_on_a_gpu_goes_on_bit_for_bit(name, start):
    whole, parts = start("cuda", **RUNS[name]), start("cuda", **RUNS[name])
    assert whole.fit()
    for stop in (1, 6):
        step = parts._train_batch

        def stopped(*batch, step=step, trainer=parts, stop=stop):
            if trainer.step + 1 == stop:
                signal.raise_signal(signal.SIGINT)
            step(*batch)

        parts._train_batch = stopped
        assert not parts.fit() and parts.step == stop
        parts = train.resume(parts.folder)
    assert parts.fit() and [row["train_loss"] for row in parts.rows] == [row["train_loss"] for row in whole.rows]
    assert (to_numpy(parts.optimizer.flat.data) == to_numpy(whole.optimizer.flat.data)).all()


@pytest.mark.parametrize("name", ["plain", "fuser", "X21D"])
def test_captured_evaluation_equals_eager(name, start):
    """Bit for bit, in two kinds of batch, with and without the average, while weights and running means move on."""
    trainer = start("cuda", **RUNS[name] | {"batch_size": 4, "flip": name == "plain"})  # 9 images: 4, 4 and 1
    forward = trainer.take_step.inference["forward"]
    arguments = trainer.model, trainer.test_set, trainer.mean, trainer.std
    found = []
    for batch in itertools.islice(trainer._rest_of_epoch(), 4):
        trainer._train_batch(*batch)
        with trainer._evaluated_weights():
            expected = train.evaluate(*arguments, batch_size=4, flip=trainer.config.flip)
            given = train.evaluate(*arguments, flip=trainer.config.flip, **trainer.take_step.inference)
        np.testing.assert_equal(given, expected)
        found.append(given["loss"])
        assert trainer.model.training
    assert len(set(found)) == 4 and len(forward.graphs) == 2
    np.testing.assert_equal(train.evaluate(*arguments, **trainer.take_step.inference)["loss"] in found, False)
    assert "forward" not in start("cuda", graph=False).take_step.inference


@pytest.mark.parametrize("name", ["augmented", "clips"])
def test_training_images_stay_on_the_gpu(name, start):
    """The batches are those of a CPU, in its order, and no step brings images or labels from the host."""
    host, device = start("cpu", **RUNS[name]), start("cuda", **RUNS[name])
    assert isinstance(device.resident.images, cupy.ndarray) and device.resident.images.dtype == "uint8"
    for epoch in range(2):
        host.step = device.step = 4 * epoch + 1  # in the middle of an epoch, as after Ctrl-C
        for ours, theirs in zip(host._rest_of_epoch(), device._rest_of_epoch(), strict=True):
            assert all(isinstance(x, cupy.ndarray) for x in theirs)
            assert all((x == to_numpy(y)).all() and x.dtype == y.dtype for x, y in zip(ours, theirs, strict=True))
    batches = device._rest_of_epoch()
    next(batches)  # which brings the order of the epoch
    with strict() as counted:
        next(batches)
    assert counted.launches == 2  # a gather of images, and one of labels


def test_training_images_that_take_too_much_memory_stay_on_the_host(start, monkeypatch):
    nbytes = start("cpu").train_set.images.nbytes
    for free, kind in ((4 * nbytes, cupy.ndarray), (4 * nbytes - 1, np.ndarray)):
        monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda free=free: (free, 4 << 30))
        trainer = start("cuda")
        assert isinstance(trainer.resident.images, kind) and trainer.fit()
    assert isinstance(trainer.train_set.images, np.ndarray)


def test_a_gpu_saves_by_the_clock(start, monkeypatch, capsys):
    """Each epoch takes 25 seconds: it saves after three of them, at Ctrl-C and in the end; weights are the same."""
    usual = start("cuda", epochs=8)
    assert usual.fit()
    now = 0.0
    step = train.Trainer._train_batch

    def slow(trainer, *batch):
        nonlocal now
        now += 25 / 4
        if trainer.step == stop:
            signal.raise_signal(signal.SIGINT)
        step(trainer, *batch)

    monkeypatch.setattr(run, "time", types.SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(train.Trainer, "_train_batch", slow)
    stop, saves = 17, []
    trainer = start("cuda", epochs=8, save_every=0)
    save = train.Trainer.save
    monkeypatch.setattr(train.Trainer, "save", lambda self: saves.append(self.step) or save(self))
    assert not trainer.fit()
    trainer = train.resume(trainer.folder)
    assert trainer.step == 18 and trainer.fit() and saves == [12, 18, 24, 32]
    assert [(row["epoch"], row["step"], row["seconds"]) for row in trainer.rows] == [
        (3, 12, 75.0),
        (6, 24, 150.0),
        (8, 32, 200.0),
    ]
    expected = {row["epoch"]: row for row in usual.rows}
    assert all(row | {"seconds": 0} == expected[row["epoch"]] | {"seconds": 0} for row in trainer.rows)
    assert (to_numpy(trainer.ema.average) == to_numpy(usual.ema.average)).all()


def test_minutes_on_a_gpu(start, monkeypatch):
    """An epoch takes 40 seconds and an evaluation 10. Every second one is evaluated, so that 5 take 230 seconds."""
    now, step = [0], train.Trainer._train_batch
    monkeypatch.setattr(run, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))

    def slow(trainer, images, labels):
        now[0] += len(labels)
        step(trainer, images, labels)

    def evaluate(*_, **__):
        now[0] += 10 if trials else 1000  # the first one compiles
        return trials.append(1) or {"loss": 1.0, "accuracy": 0.5}

    trials = []
    monkeypatch.setattr(train.Trainer, "_train_batch", slow)
    monkeypatch.setattr(run, "evaluate", evaluate)
    trainer = start("cuda", minutes=4, save_every=0)
    assert trainer.describe().endswith("\n5 epochs fit into 4 minutes (1 images per second)")
    assert trainer.fit() and [row["seconds"] for row in trainer.rows] == [90, 180, 230]
    for flip, epochs in ((False, 5), (True, 4)):  # mirror images are one more evaluation
        assert start("cuda", minutes=3.9, save_every=0, flip=flip).config.epochs == epochs


@pytest.mark.parametrize("name", ["augmented", "muon", "X21D"])
def test_minutes_on_a_gpu_leave_no_trace(name, start, monkeypatch):
    """Steps and evaluations that are timed, before and after capture, change nothing: bit for bit."""
    whole = start("cuda", **RUNS[name])
    assert whole.fit()
    monkeypatch.setattr(run, "TIMED_STEPS", 8)
    seconds = itertools.count()
    monkeypatch.setattr(run, "time", types.SimpleNamespace(perf_counter=lambda: next(seconds) / 10))
    trainer = start("cuda", minutes=0.01, **RUNS[name])
    assert trainer.take_step.compute.graphs and trainer.step == 0 and trainer.rows == []
    trainer.config, trainer.total = whole.config, whole.total
    assert trainer.fit()
    assert (to_numpy(trainer.optimizer.flat.data) == to_numpy(whole.optimizer.flat.data)).all()
    assert [row | {"seconds": 0} for row in trainer.rows] == [row | {"seconds": 0} for row in whole.rows]


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_card_without_the_precision_says_so(precision, start, monkeypatch):
    trainer = start("cuda", precision=precision)
    monkeypatch.setattr(cupy.cuda.Device, "compute_capability", "75")
    words = (
        f"precision {precision} needs a GPU of compute capability 8.0 or above, and this one has 7.5; use fp32 there"
    )
    for use in (lambda: start("cuda", precision=precision), lambda: train.load_run(trainer.folder)):
        with pytest.raises(InputError, match=re.escape(words)):
            use()
    assert start("cuda").fit()


def test_a_model_that_cannot_be_captured_says_so(start, monkeypatch):
    """Without its override, a linear layer multiplies by CuPy's own products."""
    monkeypatch.delitem(OVERRIDES["cuda"], "linear")
    with pytest.raises(InputError, match=r"cannot be captured \(NotImplementedError.* without a graph .--no-graph"):
        start("cuda", **RUNS["X21D"]).fit()
    assert start("cuda", graph=False, **RUNS["X21D"]).fit()


def test_the_step_that_is_not_finite_is_named(start):
    """Although results are not read before step 6."""
    trainer = start("cuda")
    step = trainer.take_step.compute

    def poisoned(*batch):
        if trainer.step == 4:
            trainer.model.head.weight.data[0, 0] = math.nan
        return step(*batch)

    trainer.take_step.compute = poisoned
    with pytest.raises(InputError, match=r"the loss of step 5 of 8 is nan, so training .*smaller learning rate"):
        trainer.fit()
    trainer = start("cuda", graph=False)
    update = trainer.take_step.update

    def infinite(optimizer, *options):
        if trainer.step == 1:
            trainer.model.head.bias.grad += cupy.asarray(np.full(3, math.inf, "float32"))
        return update(optimizer, *options)

    trainer.take_step.update = infinite
    with pytest.raises(InputError, match="the norm of the gradient in step 2 of 8 is inf"):
        trainer.fit()
    assert np.isfinite(to_numpy(trainer.optimizer.flat.data)).all()


@pytest.mark.parametrize("place", ["step", "evaluation", "resident images", "minutes", "CUDA"])
def test_a_batch_that_does_not_fit(place, start, monkeypatch):
    def full(*_):
        kind = RuntimeError if place == "CUDA" else MemoryError
        raise kind(text)

    trainer = start("cuda")
    text = "Out of memory allocating 512 bytes (so far: 9 bytes)."
    text = "cudaErrorMemoryAllocation: out of memory" if place == "CUDA" else text
    if place in ("step", "minutes", "CUDA"):
        monkeypatch.setattr(trainer.take_step, "update", full)
    elif place == "evaluation":
        trainer.take_step.inference["forward"] = full
    else:
        monkeypatch.setattr(data.Loader, "__iter__", full)
    sentence = (
        f"the memory of the GPU is full at batch_size 12: 3.0 of the GPU's 4.0 GB are in use ({text}); choose a "
        "smaller batch_size, or recompute, which trades time for memory"
    )
    with pytest.raises(InputError, match=re.escape(sentence)):
        trainer.choose_epochs() if place == "minutes" else trainer.fit()


def test_a_run_is_looked_at_in_its_own_precision(start, cuda):
    trainer = start("cuda", precision="bf16")
    assert "on cuda (bf16, one graph a step); " in trainer.describe() and cuda.gemm._precision == "bf16"
    assert trainer.fit()
    cuda.use("fp32")
    assert train.evaluate(*train.load_run(trainer.folder))["loss"] == trainer.rows[-1]["test_loss"]
    assert cuda.gemm._precision == "bf16"


# --- the stand-in ---


def test_the_stand_in_is_strict():
    x = cupy.asarray(np.ones(8))
    for read in (
        float,
        int,
        bool,
        np.asarray,
        lambda x: x.item(),
        lambda x: x.get(),
        lambda _: cupy.asarray(np.ones(2000)),
    ):
        with pytest.raises((AssertionError, TypeError), match=r"within a step|not allowed"), strict():
            read(x[:1])
    for refused in (lambda: x + np.ones(8), lambda: cupy.exp(np.ones(8)), lambda: cupy.sum(x, where=True)):
        with pytest.raises(TypeError):
            refused()
    for missing in ("errstate", "einsum_path", "vecdot"):
        with pytest.raises(AttributeError, match=f"CuPy has no cupy.{missing}"):
            getattr(cupy, missing)
    with pytest.raises(AttributeError, match=r"CuPy has no cupy\.ndarray\.__index__|no cupy\.ndarray\.to_device"):
        x.to_device("cpu")


def test_the_stand_in_counts_launches():
    x = cupy.asarray(np.ones((8, 3)))
    with strict() as counted:
        x.reshape(24)[None].transpose(1, 0)[::2]
        cupy.empty(3), cupy.ascontiguousarray(x)
        assert counted.launches == 0
        x += 1
        y = x @ x.T
        y[0] = 0
        x.T.reshape(24), x.sum(0), cupy.exp(x)
        assert counted.launches == 6


def test_the_stand_in_checks_the_arguments_of_kernels(cuda):
    x = cupy.asarray(np.ones(8, "float32"))
    for args, message in (
        ((x, x, 8), "gelu takes 4 arguments, got 3"),
        ((x, x, 8, 1.0), "gelu: exact is float32, not int32"),
        ((x, cupy.asarray(np.ones(8)), 8, 0), "gelu: y is float32, not float64"),
        ((x, 8, 8, 0), "gelu: x is a number, not a pointer"),
    ):
        with pytest.raises(AssertionError, match=message):
            cuda.kernels.launch("gelu", 1, *args)
    with pytest.raises(ValueError, match="gelu needs contiguous arrays"):
        cuda.kernels.launch("gelu", 1, x[::2], x, 4, 0)


def test_the_names_are_those_of_the_real_cupy():
    """If the release that the list was made from is installed; it need not find a GPU."""
    try:
        version = importlib.metadata.version("cupy-cuda12x")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("cupy-cuda12x is not installed, whose names cupy_names.txt lists")
    if version != "14.2.0":
        pytest.skip(f"cupy_names.txt lists the names of CuPy 14.2.0, {version} is installed")
    command = [sys.executable, "-W", "ignore", fake_cupy.__file__]
    run = subprocess.run(command, capture_output=True, text=True)
    assert set(run.stdout.split()) == fake_cupy.NAMES, run.stderr


# --- machines where no GPU can be used ---


class Broken:
    """A ``cupy`` whose compiler or product fails with the error given."""

    def __init__(self, nvrtc=None, compute=None):
        def raising(error):
            def call(*_):
                raise error

            return call

        self.cuda = types.SimpleNamespace(nvrtc=types.SimpleNamespace(getVersion=raising(nvrtc) if nvrtc else int))
        self.eye = raising(compute)


@pytest.mark.parametrize(
    "cupy, message",
    [
        (None, r"\(ModuleNotFoundError: .*cupy.*\); `nvidia-smi` should list a GPU, and `pip install .*cuda12.*cuda13"),
        (
            Broken(compute=RuntimeError("no driver")),
            r"^CuPy cannot use a GPU \(RuntimeError: no driver\); `nvidia-smi`",
        ),
        (Broken(nvrtc=RuntimeError("no libnvrtc.so.12")), r"\(RuntimeError: no libnvrtc.so.12\); .* the CUDA toolkit"),
        (
            Broken(compute=ImportError("no libcublas.so.13")),
            r"\(ImportError: no libcublas.so.13\); .* the CUDA toolkit",
        ),
        (Broken(compute=MemoryError("out of memory")), r"\(MemoryError: out of memory\)"),
    ],
    ids=["no CuPy", "no driver", "no NVRTC", "no toolkit", "no memory"],
)
def test_cuda_problem(cupy, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    backend._require_cuda.cache_clear()
    problem = backend.cuda_problem()
    assert re.search(message, problem), problem
    with pytest.raises(RuntimeError, match="device 'cuda' cannot be used: CuPy"):
        backend.to_device(np.ones(2), "cuda")


def test_the_checks_that_need_a_gpu_say_so():
    """`python -m tests.gpu` without a GPU: a sentence, no traceback."""
    python, options = [sys.executable, "-W", "ignore"], {"capture_output": True, "text": True, "cwd": FOLDER.parents[2]}
    question = "from minitl.backend import cuda_problem; print(cuda_problem())"  # in here the stand-in would answer
    if subprocess.run([*python, "-c", question], **options).stdout == "None\n":
        pytest.skip("a GPU can be used here, and then the command runs for minutes")
    run = subprocess.run([*python, "-m", "tests.gpu"], **options)
    assert run.returncode == 1 and run.stderr.startswith("no GPU can be used: CuPy ") and "\n" not in run.stderr.strip()


def test_two_wheels_are_named(monkeypatch):
    found = {"cupy-cuda12x": ["one"], "cupy-cuda13x": ["other"]}
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: found.get(name, []))
    assert "installed 2 times (cupy-cuda12x, cupy-cuda13x)" in backend.cuda_problem()
