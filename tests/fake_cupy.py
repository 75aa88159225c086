"""A stand-in for CuPy on machines without a GPU, which computes with NumPy and is stricter than CuPy.

- It has no names that CuPy does not have. CuPy's are in ``cupy_names.txt``, written by

      python tests/fake_cupy.py > tests/cupy_names.txt      (with CuPy installed; needs no GPU)

- Within ``strict()`` nothing may be copied between host and device: no ``float(x)``, ``bool(x)``, ``x.item()``,
  ``np.asarray(x)``, and no ``cupy.asarray(host)`` of more than a table of addresses. On a GPU each of these waits, and
  none can be captured in a graph.
- It counts launches: each call that computes or copies is one. Views and allocations are free, as in CuPy.
- Its memory pools reuse freed memory for the next array that fits, also during a capture, as CuPy's do.
- ``RawModule`` checks the arguments of a kernel against its signature in the source, then runs that source, compiled
  for the CPU (``emulate.h``), or the kernel's NumPy reference where there is no C++ compiler.
- ``Cublas`` reads its matrices by address, leading dimension and flags, and checks their alignment.
- A stream that captures records launches with their addresses, and its graph runs them. It refuses what CuPy or CUDA
  cannot capture: CuPy's own matrix products, copies from and to the host, synchronization, joins of many arrays.
- Within ``counting()`` launches are counted but not run, so arrays may be larger than the memory.
"""

import bisect
import collections
import contextlib
import ctypes
import functools
import itertools
import math
import re
import shutil
import subprocess
import sys
import tempfile
import types
import weakref
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


NAMES = set((HERE / "cupy_names.txt").read_text().split())  # empty while the command above rewrites it


def expect(name):
    if NAMES and name not in NAMES:
        raise AttributeError(f"CuPy has no {name}")


class State:
    launches, strict, counting, recorded = 0, False, False, None


@contextlib.contextmanager
def strict():
    """Forbid copies to or from the host inside; yields an object with the number of ``launches``."""
    State.launches, State.strict = 0, True
    try:
        yield State
    finally:
        State.strict = False


@contextlib.contextmanager
def counting():
    """Count launches inside, and record those of a capture, but do not run them; arrays are not filled."""
    State.launches, State.counting = 0, True
    try:
        yield State
    finally:
        State.counting = False


def crossing(what):
    """Raise if ``what``, for which the host would wait for the GPU, is forbidden now."""
    if State.strict or State.recorded is not None:
        raise AssertionError(f"{what} within a step: the host would wait for the GPU")


def not_captured(what):
    """Raise if a stream is being captured, as CuPy or CUDA do for ``what``."""
    if State.recorded is not None:
        raise AssertionError(f"{what} cannot be captured")


Launch = collections.namedtuple("Launch", "name work bytes macs kind")
Launch.__doc__ = (
    """A node of a graph: ``work()`` runs it; ``kind`` is the type of a product's factors, such as "tf32"."""
)
PRODUCTS_INSIDE = {
    "attention": 2,
    "attention_dx": 5,
}  # products (TOKENS, HEAD) (HEAD, TOKENS) in each block of a kernel
TILE = 16  # TOKENS and HEAD are rounded up to a multiple


def launch(name, work, arrays, macs=0, kind=None):
    """Run ``work``, or record it during a capture; ``arrays`` are those that it reads and writes, or their bytes."""
    State.launches += 1
    if State.recorded is not None:
        State.recorded.append(Launch(name, work, sum(map(traffic, arrays)), macs, kind))
    elif not State.counting:
        with np.errstate(all="ignore"):  # a GPU does not warn
            work()


def traffic(x):
    """Return the bytes of a host array, in which a broadcast axis counts once; or ``x`` itself, a number of bytes."""
    if isinstance(x, int):
        return x
    return x.itemsize * math.prod(n for n, stride in zip(x.shape, x.strides, strict=True) if stride)


# --- memory ---

GRANULARITY_BYTES = 512
MEMORIES = weakref.WeakSet()  # all that exist


class Memory:
    """Memory outside of pools, filled with garbage and aligned as on a GPU."""

    def __init__(self, size):
        if not MemoryPool.growing:
            not_captured("an allocation outside of the pools")
        host = np.empty(size + GRANULARITY_BYTES, np.uint8)  # the system allocates pages when they are written
        start = -host.ctypes.data % GRANULARITY_BYTES
        self.host, self.size, self.leased = host[start : start + size], size, 0
        self.ptr = self.host.ctypes.data
        MEMORIES.add(self)
        if size <= 1 << 20 and not State.counting:
            self.host[...] = 99


class MemoryPointer:
    def __init__(self, mem, offset):
        self.mem, self.ptr = mem, mem.ptr + offset


class Lease:
    """A part of a pool's memory, the base of the arrays in it; once they are gone, the pool reuses it."""

    __slots__ = ("__array_interface__", "part", "pool")

    def __init__(self, pool, part, interface):
        self.pool, self.part, self.__array_interface__ = pool, part, interface

    def __del__(self):
        self.pool.returned.append(self.part)


class MemoryPool:
    """A pool like CuPy's: an array gets the smallest free part of its stream that fits, the last freed one first.

    Parts are (stream, memory, offset, size). ``free`` is {stream: (sizes in order, {size: parts})}.
    """

    growing = False  # True while a pool allocates memory

    def __init__(self, allocator=None):
        self.allocator = allocator or (lambda size: MemoryPointer(Memory(size), 0))
        self.memories, self.limit = [], 0
        self.free, self.returned = {}, collections.deque()

    def malloc(self, size):
        raise NotImplementedError("the stand-in takes memory from a pool by `using_allocator` only")

    def lease(self, shape, dtype, strides=None):
        """Return a new host array, whose memory is not cleared."""
        dtype, shape = np.dtype(dtype), (shape,) if isinstance(shape, int) else tuple(map(int, shape))
        part = self._take(-(-math.prod(shape) * dtype.itemsize // GRANULARITY_BYTES) * GRANULARITY_BYTES)
        place = {"data": (part[1].ptr + part[2], False), "strides": strides, "version": 3}
        return np.asarray(Lease(self, part, {"shape": shape, "typestr": dtype.str} | place))

    def _take(self, size):
        self._collect()
        size, stream = max(size, GRANULARITY_BYTES), cuda.current.ptr
        sizes, parts = self.free.setdefault(stream, ([], collections.defaultdict(list)))
        for i in range(bisect.bisect_left(sizes, size), len(sizes)):
            if parts[sizes[i]]:
                _, memory, offset, found = parts[sizes[i]].pop()
                if found > size:
                    self._put((stream, memory, offset + size, found - size))
                break
        else:
            memory, offset = self._grow(size), 0
        memory.leased += size
        return stream, memory, offset, size

    def _put(self, part):
        sizes, parts = self.free[part[0]]
        if part[3] not in parts:
            bisect.insort(sizes, part[3])
        parts[part[3]].append(part)

    def _collect(self):
        """Take back returned parts: later than they were returned, as arrays may be freed at any time."""
        while self.returned:
            part = self.returned.popleft()
            part[1].leased -= part[3]
            self._put(part)

    def _grow(self, size):
        if 0 < self.limit < self.total_bytes() + size:
            self.free_all_blocks()
            if self.limit < self.total_bytes() + size:
                raise MemoryError(f"Out of memory allocating {size} bytes")
        MemoryPool.growing = True
        try:
            self.memories.append(self.allocator(size).mem)
        finally:
            MemoryPool.growing = False
        return self.memories[-1]

    def free_all_blocks(self):
        """Free all memory without arrays."""
        self._collect()
        self.memories = [memory for memory in self.memories if memory.leased]
        for _, parts in self.free.values():
            for size in parts:
                parts[size] = [part for part in parts[size] if part[1].leased]

    def set_limit(self, size):
        self.limit = size

    def total_bytes(self):
        return sum(memory.size for memory in self.memories)

    def used_bytes(self):
        self._collect()
        return sum(memory.leased for memory in self.memories)


def spoil(pool):
    """Overwrite all free memory of a pool."""
    pool._collect()
    for _, parts in pool.free.values():
        for _, memory, offset, size in itertools.chain(*parts.values()):
            memory.host[offset : offset + size] = 99


@contextlib.contextmanager
def using_allocator(allocator):
    before, MemoryPool.current = MemoryPool.current, allocator.__self__
    try:
        yield
    finally:
        MemoryPool.current = before


MemoryPool.current = MemoryPool()


class Address:
    """The memory of an array as a graph knows it, by address: it may have been freed since."""

    def __init__(self, x):
        self.__array_interface__ = x.__array_interface__


def by_address(x):
    """Return host arrays, also in lists, by address if a stream is being captured."""
    if isinstance(x, list | tuple):
        return type(x)(map(by_address, x))
    return np.asarray(Address(x)) if isinstance(x, np.ndarray) and State.recorded is not None else x


# --- arrays ---

BLAS = np.matmul, np.dot, np.tensordot, np.inner, np.vdot, np.einsum
BLAS += np.ndarray.dot, np.ndarray.__matmul__, np.ndarray.__rmatmul__
OF_UNKNOWN_SIZE = np.nonzero, np.flatnonzero, np.argwhere, np.unique, np.extract, np.compress
OF_UNKNOWN_SIZE += np.ndarray.nonzero, np.ndarray.compress
JOINING = np.concatenate, np.stack, np.hstack, np.vstack, np.column_stack
POINTERS = 8  # CuPy joins more arrays than these by a list of pointers copied from the host


def wrap(x):
    return ndarray(np.asarray(x)) if isinstance(x, np.ndarray | np.generic) else x


def unwrap(x):
    if isinstance(x, ndarray):
        return x.host
    if isinstance(x, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return type(x)(map(unwrap, x)) if isinstance(x, list | tuple) else x


def arrays_in(*values):
    """Yield all host arrays among the values, also in lists."""
    for x in values:
        if isinstance(x, list | tuple):
            yield from arrays_in(*x)
        elif isinstance(x, np.ndarray):
            yield x


def is_one_of(fn, functions):
    return any(fn is one for one in functions)


def call(fn, *args, **options):
    """Launch ``fn``, a function of host arrays, on device arrays."""
    for name in ("where", "initial"):
        if name in options:
            raise TypeError(f"Wrong arguments: {name}")
    if State.recorded is not None and is_one_of(fn, BLAS):
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    if is_one_of(fn, OF_UNKNOWN_SIZE) or (fn is np.where and len(args) == 1):
        crossing(fn.__name__)
    if fn is np.ndarray.__getitem__:
        check_index(args[1])
    if is_one_of(fn, JOINING) and len(args[0]) > POINTERS:
        not_captured(f"{fn.__name__} of {len(args[0])} arrays, whose pointers come from the host,")
    out, title = options.get("out"), fn.__name__.strip("_")
    args, options = unwrap(args), {name: unwrap(x) for name, x in options.items()}
    inputs = list(arrays_in(args))
    fixed, fixed_options = by_address(args), {name: by_address(x) for name, x in options.items()}
    if out is not None or fn is np.copyto:
        launch(title, lambda: fn(*fixed, **fixed_options), [*inputs, *arrays_in(options.get("out"))])
        return out
    with np.errstate(all="ignore"):
        result = outline(fn, args, options) if State.recorded is not None or State.counting else fn(*args, **options)
    if isinstance(result, list | tuple):
        return type(result)(map(wrap, result))
    result = np.asarray(result)
    if any(np.may_share_memory(a, result) for a in inputs):
        return ndarray(result)
    strides = None if is_elementwise(fn) else result.strides  # CuPy's results are C-contiguous
    y = MemoryPool.current.lease(result.shape, result.dtype, strides)
    if State.recorded is None:
        launch(title, lambda: np.copyto(y, result), [*inputs, y])
    else:
        place = by_address(y)
        launch(title, lambda: np.copyto(place, fn(*fixed, **fixed_options)), [*inputs, y])
    if is_one_of(fn, JOINING) and len(args[0]) <= POINTERS:
        for _ in args[0][1:]:  # CuPy copies each by its own launch
            launch(title, lambda: None, [])
    return ndarray(y)


def is_elementwise(fn):
    return isinstance(fn, np.ufunc) or fn in ELEMENTWISE


def outline(fn, args, options):
    """Return an array with the shape and dtype of the result."""
    if not is_elementwise(fn):
        return fn(*args, **options)
    one = [np.ones((1,) * a.ndim, a.dtype) if isinstance(a, np.ndarray) else a for a in args]
    return np.empty(np.broadcast_shapes(*map(np.shape, args)), np.asarray(fn(*one, **options)).dtype)


def check_index(index):
    """Refuse indices whose number of entries only the GPU knows, and lists, which the host would copy."""
    for i in index if isinstance(index, tuple) else (index,):
        if isinstance(i, list | np.ndarray):
            not_captured("a list of indices from the host")
        if isinstance(i, ndarray) and i.dtype == bool:
            crossing("boolean indexing")


class ndarray:
    """A device array, whose numbers are in the array ``host``."""

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
        if isinstance(value, ndarray) and value.ndim:
            check_index(index)  # a number may be written by a mask: how often need not be known
        index, value = unwrap(index), unwrap(value)
        host, fixed, given = by_address(self.host), by_address(index), by_address(value)
        arrays = [self.host[index], *arrays_in(index, value)]
        launch("setitem", lambda: host.__setitem__(fixed, given), arrays)

    def get(self):
        crossing("get")
        return self.host.copy()

    data = property(lambda self: types.SimpleNamespace(ptr=self.host.__array_interface__["data"][0]))
    device = property(lambda self: "<CUDA Device 0>")

    def set(self, source, stream=None):
        not_captured("a copy from the host")
        assert source.shape == self.shape and source.dtype == self.dtype
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
        host, fixed = by_address(self.host), by_address(hosts)
        launch(name.strip("_"), lambda: fn(host, *fixed), [self.host, self.host, *arrays_in(hosts)])
        return self

    return method


ARITHMETIC = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift".split()  # noqa: SIM905
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
ELEMENTWISE = {getattr(np.ndarray, f"__{name}__") for name in (*ARITHMETIC, *(f"r{name}" for name in ARITHMETIC))}
ELEMENTWISE -= {*BLAS}


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

    ``types`` are those of real and stored; the names in ``constants`` become variables, so that one library serves all
    sizes.
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
    """``launched`` has the names of all kernels that ran; ``emulate = False`` runs their NumPy references instead."""

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
        # structures are passed by value
        hosts = [a.copy() if isinstance(a, np.ndarray) else by_address(unwrap(a)) for a in args]
        arrays = [a.host for a in args if isinstance(a, ndarray)]
        tokens, head = (-(-self.constants.get(size, 0) // TILE) * TILE for size in ("TOKENS", "HEAD"))
        macs = PRODUCTS_INSIDE.get(name, 0) * grid[0] * tokens**2 * head
        kind = "tiles" if self.constants.get("TF32") else "kernel"
        emulated = self.emulate and not State.counting
        library = compiled(self.code, self.types, tuple(self.constants)) if emulated else None
        if library is None:
            pointers = [kind.endswith("*") for kind, _ in parameters]
            hosts = [None if p and not isinstance(a, np.ndarray) else a for p, a in zip(pointers, hosts, strict=True)]
            work = functools.partial(getattr(cuda_reference, name), *hosts, **self.constants)
            return launch(name, work, arrays, macs, kind)
        pointer = [isinstance(a, np.ndarray) and not a.dtype.names for a in hosts]
        values = [np.array(a.ctypes.data if p else a) for p, a in zip(pointer, hosts, strict=True)]
        places = (ctypes.c_void_p * len(args))(*(v.ctypes.data for v in values))
        x, y = (*grid, 1)[:2]

        def run():
            for constant, value in self.constants.items():
                ctypes.c_int.in_dll(library, constant).value = value
            getattr(library, f"run_{name}")(x, y, block[0], places)

        launch(name, lambda: (values, run()), arrays, macs, kind)  # keeps the values alive


class Cublas:
    """The part of libcublas that minitl uses, on host addresses; matrices are column-major, as in cuBLAS.

    ``handles`` has the stream and the workspace of each handle.
    """

    def __init__(self):
        self.handles, self.created = {}, 0

    def cublasCreate_v2(self, handle):
        not_captured("the creation of a cuBLAS handle")
        self.created += 1
        handle._obj.value, self.handles[self.created] = self.created, [None, None]
        return 0

    def cublasDestroy_v2(self, handle):
        del self.handles[handle.value]
        return 0

    def cublasSetStream_v2(self, handle, stream):
        self.handles[handle.value] = [stream.value or 0, None]  # the workspace is lost
        return 0

    def cublasSetWorkspace_v2(self, handle, workspace, size):
        self.handles[handle.value][1] = workspace.value
        return 0

    def cublasGemmEx(
        self, handle, ta, tb, m, n, k, alpha, A, At, lda, B, Bt, ldb, beta, C, Ct, ldc, compute, algorithm
    ):
        matrices = ((A, At, lda, 0), (B, Bt, ldb, 0), (C, Ct, ldc, 0))
        return self._run("gemm", handle, ta, tb, m, n, k, alpha, beta, *matrices, 1, compute)

    def cublasGemmStridedBatchedEx(
        self, handle, ta, tb, m, n, k, alpha, A, At, lda, sA, B, Bt, ldb, sB, beta, C, Ct, ldc, sC, count, compute, _
    ):
        matrices = ((A, At, lda, sA.value), (B, Bt, ldb, sB.value), (C, Ct, ldc, sC.value))
        return self._run("gemm strided", handle, ta, tb, m, n, k, alpha, beta, *matrices, count, compute)

    def cublasGemmBatchedEx(
        self, handle, ta, tb, m, n, k, alpha, A, At, lda, B, Bt, ldb, beta, C, Ct, ldc, count, compute, _
    ):
        matrices = ((A, At, lda, None), (B, Bt, ldb, None), (C, Ct, ldc, None))
        return self._run("gemm batched", handle, ta, tb, m, n, k, alpha, beta, *matrices, count, compute)

    def _run(self, name, handle, ta, tb, m, n, k, alpha, beta, A, B, C, count, compute):
        assert compute == (70 if C[1] == 1 else compute) and compute in (68, 70, 77) and beta._obj.value == 0
        assert self.handles[handle.value][0] == cuda.current.ptr and self.handles[handle.value][1]
        number, alpha = (ctypes.c_double if C[1] == 1 else ctypes.c_float), alpha._obj
        assert isinstance(alpha, number)
        alpha = alpha.value

        def work():
            for matrices in (A, B, C) if name == "gemm batched" else ():
                self._check_addresses(matrices[0].value, count)
                self._check_alignment(*matrices, count, compute)
            for i in range(count):
                a = self._matrix(*A, i, *((k, m) if ta else (m, k)))
                b = self._matrix(*B, i, *((n, k) if tb else (k, n)))
                self._write(*C, i, alpha * ((a.T if ta else a) @ (b.T if tb else b)))

        sizes = [(A, m * k), (B, k * n), (C, m * n)]
        moved = [size * ITEMSIZES[x[1]] * (1 if x[3] == 0 else count) for x, size in sizes]
        kind = {70: "fp64", 77: "tf32", 68: "bf16" if A[1] == 14 else "fp32"}[compute]
        launch(name, work, moved, count * m * n * k, kind)
        return 0

    def _check_addresses(self, table, count):
        """Raise for addresses outside of all memory, which would crash the process."""
        addresses = np.ctypeslib.as_array(ctypes.cast(table, ctypes.POINTER(ctypes.c_uint64)), (count,))
        memories = sorted((memory.ptr, memory.size) for memory in MEMORIES)
        starts, sizes = np.array(memories, np.uint64).T
        i = np.searchsorted(starts, addresses, "right") - 1
        assert (i >= 0).all() and (addresses < (starts + sizes)[i]).all(), "an illegal memory access was encountered"

    def _check_alignment(self, table, kind, step, _, count, compute):
        """Raise for a table of pointers, or matrices in it, whose alignment does not suffice for tensor cores."""
        assert table.value % 16 == 0, "CUBLAS_STATUS_NOT_SUPPORTED: the table of pointers is not aligned to 16 bytes"
        addresses = np.ctypeslib.as_array(ctypes.cast(table.value, ctypes.POINTER(ctypes.c_uint64)), (count,))
        fine = compute not in (68, 77) or (compute == 68 and kind != 14)
        assert fine or not (addresses % 16).any(), "misaligned address: matrices are not aligned to 16 bytes"
        assert fine or step * ITEMSIZES[kind] % 16 == 0, "misaligned address: rows are not aligned to 16 bytes"

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
        return cuda_reference.from_bf16(self._place(*where))

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


ITEMSIZES = {0: 4, 1: 8, 14: 2}  # of cudaDataType


# --- streams and graphs ---


class Stream:
    """A stream; its ``ptr`` may be that of an earlier stream that was freed."""

    def __init__(self, non_blocking=False):
        self.before, self.ptr = [], id(self)

    def __enter__(self):
        self.before.append(cuda.current)
        cuda.current = self

    def __exit__(self, *_):
        cuda.current = self.before.pop()

    def record(self, event=None):
        not_captured("an event")
        return event or Event()

    def wait_event(self, event):
        assert isinstance(event, Event)

    def synchronize(self):
        crossing("synchronize")

    def begin_capture(self):
        assert cuda.current is self and State.recorded is None
        State.recorded = []

    def end_capture(self):
        graph, State.recorded = Graph(State.recorded, MemoryPool.current), None
        return graph


class Graph:
    """A graph, which keeps neither arrays nor memory alive."""

    def __init__(self, work, pool):
        self.work, self.memories = work, [weakref.ref(memory) for memory in pool.memories]

    def launch(self, stream=None):
        assert all(memory() for memory in self.memories), "a graph writes to memory that was freed"
        State.launches += 1
        if not State.counting:
            with np.errstate(all="ignore"):
                for node in self.work:
                    node.work()


class Event:
    """An event, whose clock is the number of launches: each takes a millisecond."""

    def __init__(self, disable_timing=False):
        pass

    def record(self, stream=None):
        self.at = State.launches

    def synchronize(self):
        not_captured("waiting for an event")


class Device:
    compute_capability = "90"

    def synchronize(self):
        crossing("synchronize")


class Module(types.ModuleType):
    """A module with its own names, or NumPy's functions of the same name, if the real module has them."""

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
        not_captured("the upload of a host array")
        return on_device(np.asarray(x, dtype))
    return x if dtype is None or x.dtype == dtype else x.astype(dtype)


def ascontiguousarray(x):
    return x if x.host.flags.c_contiguous else call(np.copy, x, order="C")


def on_device(x):
    """Return a device array with the numbers of a host array."""
    y = MemoryPool.current.lease(x.shape, x.dtype)
    y[...] = x
    return ndarray(y)


def empty(shape, dtype=float):
    host = MemoryPool.current.lease(shape, dtype)
    if not State.counting:
        host[...] = 1e30 if host.dtype.kind == "f" else 99  # reading it before writing shall be noticed
    return ndarray(host)


cuda = Module(
    "cupy.cuda",
    Stream=Stream,
    Event=Event,
    Graph=Graph,
    MemoryPool=MemoryPool,
    Memory=Memory,
    MemoryPointer=MemoryPointer,
    Device=Device,
    get_elapsed_time=lambda start, end: float(end.at - start.at),
    runtime=types.SimpleNamespace(
        memGetInfo=lambda: (1 << 30, 4 << 30),
        getDeviceProperties=lambda i: {"name": b"a stand-in whose times mean nothing"},
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
cuda.current.ptr = 0  # the default stream
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
    from minitl.autograd import OVERRIDES, WRAPPERS

    def mine(name):
        return name.split(".")[0] in ("cupy", "cupyx") or name.startswith("minitl.fast.cuda")

    before = {name: sys.modules.pop(name) for name in list(sys.modules) if mine(name)}
    saved, wrappers = dict(OVERRIDES["cuda"]), dict(WRAPPERS)
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
        WRAPPERS.clear()
        WRAPPERS.update(wrappers)
        backend._require_cuda.cache_clear()


if __name__ == "__main__":
    print("\n".join(real_names()))
