"""A stand-in for CuPy on machines without a GPU: it computes with NumPy, and is stricter than CuPy.

- It has only the names that the real CuPy has. They are in ``cupy_names.txt``, made by

      python tests/fake_cupy.py > tests/cupy_names.txt      (with CuPy installed; needs no GPU)

- Within ``strict()`` nothing may go from one side to the other: no ``float(x)``, ``bool(x)``, ``x.item()``,
  ``np.asarray(x)``, ``cupy.asarray(host)`` of more than a table of addresses. On a GPU each of them waits, and none
  can be captured into a graph.
- It counts launches: each call that computes or copies is one. Views and allocations are free, as they are in CuPy.
- ``RawModule`` checks the arguments of a kernel against its signature in the source, then runs that source, compiled
  for the CPU (``emulate.h``), or the kernel's NumPy reference where there is no C++ compiler.
- ``Cublas`` reads its matrices from the addresses, leading dimensions and flags that it is given.
- A captured stream notes what would be launched, and its graph does it. CuPy's own matrix products are refused there.
"""

import contextlib
import ctypes
import functools
import re
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import cuda_reference
import numpy as np

HERE = Path(__file__).parent
PLACES = ("cupy", "cupy.cuda", "cupy.lib.stride_tricks", "cupyx")
CLASSES = ("cupy.ndarray", "cupy.RawModule", "cupy.cuda.Stream", "cupy.cuda.Event", "cupy.cuda.MemoryPool")
CLASSES += ("cupy.cuda.Graph", "cupy.cuda.Memory")


def real_names():
    """The names of the CuPy that is installed, sorted."""
    import importlib

    names = set()
    for place in PLACES:
        module = importlib.import_module(place)
        names |= {f"{place}.{name}" for name in dir(module) if not name.startswith("_")}
    for path in CLASSES:
        module, _, name = path.rpartition(".")
        members = dir(getattr(importlib.import_module(module), name))
        names |= {f"{path}.{name}" for name in members if name.startswith("__") or not name.startswith("_")}
    return sorted(names)


NAMES = set((HERE / "cupy_names.txt").read_text().split())  # empty while the command above makes it anew


def expect(name):
    if NAMES and name not in NAMES:
        raise AttributeError(f"CuPy has no {name}")


class State:
    launches, strict, recorded, limit = 0, False, None, 0


@contextlib.contextmanager
def strict():
    """Nothing may be copied to or from the host within; gives an object whose ``launches`` counts."""
    State.launches, State.strict = 0, True
    try:
        yield State
    finally:
        State.strict = False


def crossing(what):
    """Called for everything at which the host and the GPU would wait for one another."""
    if State.strict or State.recorded is not None:
        raise AssertionError(f"{what} within a step: the host would wait for the GPU")


def launch(work):
    """Do it, or note it where a stream is captured."""
    State.launches += 1
    if State.recorded is None:
        with np.errstate(all="ignore"):  # a GPU does not warn
            work()
    else:
        State.recorded.append(work)


# --- arrays ---

BLAS = (np.matmul, np.dot, np.tensordot, np.ndarray.dot, np.ndarray.__matmul__, np.ndarray.__rmatmul__)


def wrap(x):
    return ndarray(np.asarray(x)) if isinstance(x, np.ndarray | np.generic) else x


def unwrap(x):
    if isinstance(x, ndarray):
        return x.host
    if isinstance(x, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return type(x)(map(unwrap, x)) if isinstance(x, list | tuple) else x


def call(fn, *args, **options):
    """``fn`` of host arrays, on device arrays; what it writes to is ``out``."""
    for name in ("where", "initial"):
        if name in options:
            raise TypeError(f"Wrong arguments: {name}")
    if State.recorded is not None and any(fn is one for one in BLAS):
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    out = options.get("out")
    args, options = unwrap(args), {name: unwrap(x) for name, x in options.items()}
    if out is not None:
        launch(lambda: fn(*args, **options))
        return out
    with np.errstate(all="ignore"):
        result = fn(*args, **options)
    if isinstance(result, list | tuple):
        return type(result)(map(wrap, result))
    result = np.asarray(result)
    if not any(isinstance(a, np.ndarray) and np.may_share_memory(a, result) for a in args):
        launch(lambda: np.copyto(result, fn(*args, **options)))
    return wrap(result)


class ndarray:
    """A device array; ``host`` is what it stands for."""

    __array_ufunc__ = None
    __hash__ = None

    def __init__(self, host):
        self.host = host

    def __getattr__(self, name):
        expect(f"cupy.ndarray.{name}")
        value = getattr(self.host, name)
        if callable(value) and not isinstance(value, np.dtype):
            return functools.partial(call, getattr(np.ndarray, name), self)
        return wrap(value)

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __len__(self):
        return len(self.host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __setitem__(self, index, value):
        index, value = unwrap(index), unwrap(value)
        launch(lambda: self.host.__setitem__(index, value))

    def get(self):
        crossing("get")
        return self.host.copy()

    data = property(lambda self: types.SimpleNamespace(ptr=self.host.__array_interface__["data"][0]))
    device = property(lambda self: "<CUDA Device 0>")

    def set(self, source, stream=None):
        assert State.recorded is None and source.shape == self.shape and source.dtype == self.dtype
        self.host[...] = source

    def astype(self, dtype, copy=True):
        return self if not copy and self.dtype == dtype else call(np.ndarray.astype, self, dtype)


def _reading(name):
    def method(self, *args):
        crossing(name)
        return getattr(self.host, name)(*args)

    return method


def _computing(name, in_place=False):
    fn = getattr(np.ndarray, name)

    def method(self, *args):
        if not in_place:
            return call(fn, self, *args)
        hosts = unwrap(args)
        launch(lambda: fn(self.host, *hosts))
        return self

    return method


ARITHMETIC = "add sub mul truediv floordiv mod pow matmul and or xor".split()  # noqa: SIM905
for _name in ("float", "int", "bool", "complex"):
    setattr(ndarray, f"__{_name}__", _reading(f"__{_name}__"))
for _name in ("item", "tolist"):
    setattr(ndarray, _name, _reading(_name))
for _name in (*ARITHMETIC, *(f"r{name}" for name in ARITHMETIC), "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(ndarray, f"__{_name}__", _computing(f"__{_name}__"))
for _name in ("neg", "abs", "invert", "getitem"):
    setattr(ndarray, f"__{_name}__", _computing(f"__{_name}__"))
for _name in ("add", "sub", "mul", "truediv", "pow"):
    setattr(ndarray, f"__i{_name}__", _computing(f"__i{_name}__", in_place=True))


# --- kernels ---


def signatures(source):
    """{kernel: [(type, name), ...]} of a .cu file; a pointer's type ends in ``*``."""
    found = re.findall(r"KERNEL (\w+)\((.*?)\)\s*{", source, re.DOTALL)
    return {
        name: [tuple(p.removeprefix("const ").rsplit(maxsplit=1)) for p in re.split(r",\s*", ps)] for name, ps in found
    }


KINDS = {"int": "int32", "u64": "uint64", "long long": "int64", "float": "float32"}
KINDS |= {"unsigned": "uint32", "bf16": "uint16", "unsigned char": "uint8"}


def structures(source):
    """{structure: dtype} of a .cu file; its fields are arrays of one type."""
    found = re.findall(r"struct (\w+) { (\w+) (.*?); };", source)
    fields = {name: (KINDS[kind], re.findall(r"(\w+)\[(\d+)\]", fields)) for name, kind, fields in found}
    return {name: np.dtype([(f, kind, int(n)) for f, n in parts]) for name, (kind, parts) in fields.items()}


@functools.cache
def compiled(source, types, constants=()):
    """The kernels of a .cu file as a library for the CPU, or None without g++.

    ``types`` are those of real and stored; the names in ``constants`` become variables, so that one library does for
    all sizes.
    """
    if shutil.which("g++") is None:
        return None
    starts = ""
    for name, parameters in signatures(source).items():
        passed = ", ".join(f"*({kind}*)a[{i}]" for i, (kind, _) in enumerate(parameters))
        starts += f'static void call_{name}(void** a) {{ {name}({passed}); }}\nextern "C" void run_{name}'
        starts += f"(int x, int y, int n, void** a) {{ run(call_{name}, x, y, n, a); }}\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cpp"
        macros = "".join(f"#define {name} {kind}\n" for name, kind in zip(("real", "stored"), types, strict=True))
        variables = "".join(f'extern "C" {{ int {name}; }}\n' for name in constants)
        path.write_text(f'#include "emulate.h"\n{macros}{variables}{source}\n{starts}')
        command = [
            "g++",
            "-O1",
            "-std=c++17",
            "-ffp-contract=off",
            "-shared",
            "-fPIC",
            f"-I{HERE}",
            "-o",
            folder + "/k.so",
        ]
        run = subprocess.run([*command, str(path)], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return ctypes.CDLL(folder + "/k.so")


class RawModule:
    """``launched`` notes the names of all kernels that ran; ``emulate = False`` runs the references instead."""

    emulate, launched = True, set()

    def __init__(self, *, code, options):
        macros = dict(option[2:].split("=") for option in options if option.startswith("-D"))
        self.code, self.types = code, (macros.pop("real"), macros.pop("stored"))
        numbers = {"float": "float32", "double": "float64", "bf16": "uint16"}
        self.kinds = KINDS | structures(code)
        self.kinds |= {name: numbers[kind] for name, kind in zip(("real", "stored"), self.types, strict=True)}
        self.constants = {name: int(value) for name, value in macros.items()}

    def get_function(self, name):
        return functools.partial(self._launch, name, signatures(self.code)[name])

    def _launch(self, name, parameters, grid, block, args):
        assert len(args) == len(parameters), f"{name} takes {len(parameters)} arguments, got {len(args)}"
        for (kind, parameter), a in zip(parameters, args, strict=True):
            wanted = self.kinds[kind.rstrip("*")]
            if kind.endswith("*") and not isinstance(a, ndarray):
                assert a.dtype == "uint64", f"{name}: {parameter} is a number, not a pointer"
                wanted = "uint64"
            assert a.dtype == wanted, f"{name}: {parameter} is {a.dtype}, not {wanted}"
            assert kind.endswith("*") or not np.ndim(a), f"{name}: {parameter} is an array"
        RawModule.launched.add(name)
        hosts = [a.copy() if isinstance(a, np.ndarray) else unwrap(a) for a in args]  # a structure goes by its value
        library = compiled(self.code, self.types, tuple(self.constants)) if self.emulate else None
        if library is None:
            pointers = [kind.endswith("*") for kind, _ in parameters]
            hosts = [None if p and not isinstance(a, np.ndarray) else a for p, a in zip(pointers, hosts, strict=True)]
            return launch(lambda: getattr(cuda_reference, name)(*hosts, **self.constants))
        pointer = [isinstance(a, np.ndarray) and not a.dtype.names for a in hosts]
        values = [np.array(a.ctypes.data if p else a) for p, a in zip(pointer, hosts, strict=True)]
        places = (ctypes.c_void_p * len(args))(*(v.ctypes.data for v in values))
        x, y = (*grid, 1)[:2]

        def run():
            for constant, value in self.constants.items():
                ctypes.c_int.in_dll(library, constant).value = value
            getattr(library, f"run_{name}")(x, y, block[0], places)

        launch(lambda: (hosts, values, run()))


class Cublas:
    """The part of libcublas that is used, on host addresses: everything lies in columns, as cuBLAS counts."""

    def cublasCreate_v2(self, handle):
        return 0

    cublasSetStream_v2 = cublasSetWorkspace_v2 = lambda self, handle, *what: 0

    def cublasGemmEx(
        self, handle, ta, tb, m, n, k, alpha, A, At, lda, B, Bt, ldb, beta, C, Ct, ldc, compute, algorithm
    ):
        matrices = ((A, At, lda, 0), (B, Bt, ldb, 0), (C, Ct, ldc, 0))
        return self._run(ta, tb, m, n, k, alpha, beta, *matrices, 1, compute)

    def cublasGemmStridedBatchedEx(
        self, handle, ta, tb, m, n, k, alpha, A, At, lda, sA, B, Bt, ldb, sB, beta, C, Ct, ldc, sC, count, compute, _
    ):
        matrices = ((A, At, lda, sA.value), (B, Bt, ldb, sB.value), (C, Ct, ldc, sC.value))
        return self._run(ta, tb, m, n, k, alpha, beta, *matrices, count, compute)

    def cublasGemmBatchedEx(
        self, handle, ta, tb, m, n, k, alpha, A, At, lda, B, Bt, ldb, beta, C, Ct, ldc, count, compute, _
    ):
        matrices = ((A, At, lda, None), (B, Bt, ldb, None), (C, Ct, ldc, None))
        return self._run(ta, tb, m, n, k, alpha, beta, *matrices, count, compute)

    def _run(self, ta, tb, m, n, k, alpha, beta, A, B, C, count, compute):
        assert compute == (70 if C[1] == 1 else compute) and compute in (68, 70, 77) and beta._obj.value == 0
        number, alpha = (ctypes.c_double if C[1] == 1 else ctypes.c_float), alpha._obj
        assert isinstance(alpha, number)
        alpha = alpha.value

        def work():
            for i in range(count):
                a = self._matrix(*A, i, *((k, m) if ta else (m, k)))
                b = self._matrix(*B, i, *((n, k) if tb else (k, n)))
                self._write(*C, i, alpha * ((a.T if ta else a) @ (b.T if tb else b)))

        launch(work)
        return 0

    def _write(self, start, kind, step, offset, i, x):
        """Write the i-th matrix."""
        place = self._place(start, kind, step, offset, i, *x.shape)
        if kind == 14:
            rounded = np.empty(x.shape, np.uint16)
            cuda_reference.to_bf16(rounded, np.ascontiguousarray(x), x.size)
            x = rounded
        place[...] = x

    def _matrix(self, *where):
        """The i-th matrix (rows, columns), or for bfloat16 a copy in float32."""
        return cuda_reference.wide(self._place(*where))

    def _place(self, start, kind, step, offset, i, rows, columns):
        """A view of the i-th matrix (rows, columns)."""
        assert step >= max(1, rows), f"leading dimension {step} of {rows} rows"
        dtype = np.dtype({0: "float32", 1: "float64", 14: "uint16"}[kind])
        address = start.value + i * (offset or 0) * dtype.itemsize
        if offset is None:
            address = ctypes.cast(start.value, ctypes.POINTER(ctypes.c_uint64))[i]
        size = (columns - 1) * step + rows
        memory = (ctypes.c_char * (size * dtype.itemsize)).from_address(address)
        return np.ndarray((rows, columns), dtype, memory, strides=(dtype.itemsize, step * dtype.itemsize))


# --- streams, graphs, memory ---


class Stream:
    ptr = 1

    def __init__(self, non_blocking=False):
        self.before = []

    def __enter__(self):
        self.before.append(cuda.current)
        cuda.current = self

    def __exit__(self, *_):
        cuda.current = self.before.pop()

    def record(self, event=None):
        assert State.recorded is None
        return event or Event()

    def wait_event(self, event):
        assert isinstance(event, Event)

    def begin_capture(self):
        State.recorded, State.memory = [], []

    def end_capture(self):
        graph, State.recorded = Graph(State.recorded, State.memory), None
        return graph


class Graph:
    def __init__(self, work, memory):
        self.work, self.memory = work, memory

    def launch(self, stream=None):
        State.launches += 1
        with np.errstate(all="ignore"):
            for do in self.work:
                do()


class Event:
    """Its clock is the number of launches: each takes a millisecond."""

    def __init__(self, disable_timing=False):
        pass

    def record(self, stream=None):
        self.at = State.launches

    def synchronize(self):
        pass


class Device:
    def synchronize(self):
        crossing("synchronize")


class MemoryPool:
    """It holds nothing; with a limit it is full."""

    limit = 0

    def malloc(self, size):
        pass

    def set_limit(self, size):
        self.limit = size

    def total_bytes(self):
        return 0

    used_bytes = total_bytes
    free_all_blocks = total_bytes


@contextlib.contextmanager
def using_allocator(allocator):
    before, State.limit = State.limit, allocator.__self__.limit
    try:
        yield
    finally:
        State.limit = before


class Memory:
    def __init__(self, size):
        self.host = np.full(min(size, 1 << 20), 99, np.uint8)  # nobody writes to the workspace of cuBLAS
        self.ptr = self.host.ctypes.data


class Module(types.ModuleType):
    """Names that are set, or else NumPy's of the same name, as long as the real module has them."""

    def __init__(self, name, numpy=None, **own):
        super().__init__(name)
        self.__dict__.update(own, _numpy=numpy)
        for one in own:
            expect(f"{name}.{one}")

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        expect(f"{self.__name__}.{name}")
        value = getattr(self._numpy, name)
        return functools.partial(call, value) if callable(value) and not isinstance(value, type) else value


def asarray(x, dtype=None):
    if not isinstance(x, ndarray):
        if np.size(x) > 1000:
            crossing("asarray of a host array")
        assert State.recorded is None, "a host array cannot be uploaded while a step is captured"
        return ndarray(np.array(x, dtype))
    return x if dtype is None or x.dtype == dtype else x.astype(dtype)


def ascontiguousarray(x):
    return x if x.host.flags.c_contiguous else call(np.copy, x, order="C")


def empty(shape, dtype=float):
    host = np.empty(shape, dtype)
    if host.nbytes > State.limit > 0:
        raise MemoryError(f"Out of memory allocating {host.nbytes} bytes")
    host[...] = 1e30 if host.dtype.kind == "f" else 99  # whoever reads it before writing shall notice
    if State.recorded is not None:
        State.memory.append(host)  # a graph's memory stays as long as the graph
    return ndarray(host)


cuda = Module(
    "cupy.cuda",
    Stream=Stream,
    Event=Event,
    Graph=Graph,
    MemoryPool=MemoryPool,
    Memory=Memory,
    Device=Device,
    get_elapsed_time=lambda start, end: float(end.at - start.at),
    runtime=types.SimpleNamespace(
        memGetInfo=lambda: (1 << 30, 4 << 30),
        getDeviceProperties=lambda i: {"name": b"made up"},
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 12090,
        memset=ctypes.memset,
        streamSynchronize=lambda stream: None,
    ),
    nvrtc=types.SimpleNamespace(getVersion=lambda: (13, 0)),
    get_current_stream=lambda: cuda.current,
    using_allocator=using_allocator,
)
cuda.current = Stream()
strides = Module("cupy.lib.stride_tricks", np.lib.stride_tricks)
lib = types.SimpleNamespace(stride_tricks=strides)
cupy = Module(
    "cupy",
    np,
    ndarray=ndarray,
    RawModule=RawModule,
    cuda=cuda,
    lib=lib,
    asarray=asarray,
    ascontiguousarray=ascontiguousarray,
    array=lambda x: call(np.array, x) if isinstance(x, ndarray) else asarray(x),
    asnumpy=lambda x: x.get(),
    empty=empty,
    empty_like=lambda x: empty(x.shape, x.dtype),
    zeros=lambda shape, dtype=float: call(np.zeros, shape, dtype),
)
cupy.__version__ = "14.2.0"
cupyx = Module("cupyx", empty_pinned=np.empty)


@contextlib.contextmanager
def installed():
    """The stand-in takes CuPy's place, and ``minitl.fast.cuda`` is loaded with it; all is as before afterwards."""
    import importlib

    import minitl.fast
    from minitl import backend
    from minitl.autograd import OVERRIDES

    def mine(name):
        return name.split(".")[0] in ("cupy", "cupyx") or name.startswith("minitl.fast.cuda")

    before = {name: sys.modules.pop(name) for name in list(sys.modules) if mine(name)}
    saved = dict(OVERRIDES["cuda"])
    backend._require_cuda.cache_clear()
    sys.modules.update({"cupy": cupy, "cupy.cuda": cuda, "cupyx": cupyx})
    try:
        module = importlib.import_module("minitl.fast.cuda")
        blas = Cublas()
        module.gemm.library = lambda: blas
        yield module
    finally:
        for name in [name for name in sys.modules if mine(name)]:
            del sys.modules[name]
        del minitl.fast.cuda
        sys.modules.update(before)
        if "minitl.fast.cuda" in before:
            minitl.fast.cuda = before["minitl.fast.cuda"]
        OVERRIDES["cuda"].clear()
        OVERRIDES["cuda"].update(saved)
        backend._require_cuda.cache_clear()


if __name__ == "__main__":
    print("\n".join(real_names()))
