"""A training step as one CUDA graph: recorded once, then replayed by a single call.

A small model computes for less than a millisecond, but Python takes several to launch its hundreds of kernels.
``capture`` records the launches of a step as a graph; from then on, a step is a single launch of that graph.

A graph fixes three things:

- The addresses of all arrays. So the step has a memory pool of its own, reads its inputs from fixed places, and leaves
  its results in the same place each time.
- All numbers passed by value. So what changes from step to step (the learning rate, the key of a dropout mask) goes
  through ``host_values``: it lies in device memory and is written there before each replay.
- All decisions. Python does not run again: no ``if`` on a loss, no ``float(...)``, no ``print`` of a number.
"""

import collections
import contextlib
import functools
import gc

import cupy
import cupyx
import numpy as np

from ...errors import InputError

_recording = None  # the Recording of the step that is being captured
_remembered, _returned = None, None  # a list that `host_values` appends to, and an iterator that it returns from
HOST_VALUES_BYTES = 1 << 16  # capacity of a captured step
_makers, _made = [], {}  # functions under `per_stream`, and {(function, address of a stream): (stream, result)}


def host_values(compute, count, dtype):
    """Return a device array of the ``count`` numbers that ``compute()`` returns; each replay calls it again.

    ``compute`` runs on the host once per step and in the order of the calls, captured or not, so a captured run draws
    the same random numbers as an eager one.
    """
    if _returned is not None:
        return next(_returned)
    if _recording is not None:
        numbers = _recording.slot(compute, count, dtype)
    else:
        numbers = cupy.asarray(np.array(compute(), dtype, ndmin=1))
    if _remembered is not None:
        _remembered.append(numbers)
    return numbers


def per_stream(make):
    """Decorate ``make()`` so that each stream has its own result, made at the first call or before a capture.

    Kernels of two streams may run at the same time and must not share scratch memory. The results for the stream of a
    captured step are freed with that step.
    """

    @functools.wraps(make)
    def get():
        stream = cupy.cuda.get_current_stream()
        if (make, stream.ptr) not in _made:
            _made[make, stream.ptr] = stream, make()  # keeping the stream keeps its address unique
        return _made[make, stream.ptr][1]

    _makers.append(get)
    return get


@contextlib.contextmanager
def remember_host_values(values=None):
    """Yield a list of what ``host_values`` returns inside; given such a list, make it return the same arrays again."""
    global _remembered, _returned
    before = _remembered, _returned
    _remembered, _returned = ([], None) if values is None else (None, iter(values))
    try:
        yield _remembered
    finally:
        _remembered, _returned = before


def capture(step, warmup=2):
    """Return a function with the arguments and results of ``step`` that replays it as a CUDA graph.

    ``step`` takes NumPy or CuPy arrays and returns an array, or a tuple of them, on the GPU. For each shape of the
    arguments, the first ``warmup`` calls run eagerly (loading and compiling cannot be recorded), the next one
    records, and later ones replay. Each call overwrites the results of the one before: copy what you keep.

    Parameters must be updated in place and remain the same arrays. Raises InputError if the step does something that
    cannot be recorded, such as reading a number on the host.
    """
    return Captured(step, warmup)


class Captured:
    """Result of ``capture``: ``graphs`` has a Recording for each kind of input, and ``pool`` is their memory.

    A replay writes to the addresses of the recorded step's arrays, most of which have been freed since. So nothing else
    uses the pool, and it never returns memory to the GPU, even if an allocation fails: ``memory`` holds all of it.
    """

    def __init__(self, step, warmup):
        if warmup < 1:
            raise ValueError(f"warmup is at least 1, got {warmup}")
        self.step, self.warmup = step, warmup
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.memory, self.made = [], {}
        self.pool = cupy.cuda.MemoryPool(functools.partial(_allocate, self.memory))
        self.calls, self.graphs = collections.Counter(), {}

    def __call__(self, *inputs):
        kind = tuple((x.shape, x.dtype.str) for x in inputs)
        self.calls[kind] += 1
        with self._on_own_stream():
            if self.calls[kind] <= self.warmup:
                return self.step(*map(cupy.asarray, inputs))
            if kind not in self.graphs:
                self.graphs[kind] = Recording(self.step, inputs, self.stream)
            return self.graphs[kind].replay(inputs)

    @contextlib.contextmanager
    def _on_own_stream(self):
        """Use the graph's stream and memory inside, ordered after earlier and before later work of the caller."""
        global _made
        outside, made = cupy.cuda.get_current_stream(), _made
        self.stream.wait_event(outside.record())
        _made = self.made
        try:
            with cupy.cuda.using_allocator(self.pool.malloc), self.stream:
                yield
        finally:
            _made = made
        outside.wait_event(self.stream.record())


def _allocate(kept, size):
    """Allocate memory for a pool, and keep it alive in the list ``kept``."""
    kept.append(cupy.cuda.Memory(size))
    return cupy.cuda.MemoryPointer(kept[-1], 0)


class Recording:
    """A graph with the arrays of its inputs, host values and results."""

    def __init__(self, step, inputs, stream):
        global _recording
        self.stream, self.slots, self.used = stream, [], 0
        self.inputs = [cupy.empty(x.shape, x.dtype) for x in inputs]
        self.numbers = cupy.empty(HOST_VALUES_BYTES, np.uint8)
        self.uploads = [None] * len(inputs)
        for get in _makers:
            get()
        _recording = self
        gc.collect()
        gc.disable()  # freeing objects of CUDA would break the capture
        try:
            stream.begin_capture()
            try:
                self.results = step(*self.inputs)
            except Exception:
                with contextlib.suppress(Exception):  # the stream must stop capturing; its own error adds nothing
                    stream.end_capture()
                raise
            self.graph = stream.end_capture()
        except MemoryError:
            raise
        except Exception as error:
            if "MemoryAllocation" in str(error):  # of CUDA itself
                raise
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"this step cannot be captured ({reason}); run it without a graph (--no-graph)") from error
        finally:
            gc.enable()
            _recording = None
        self.upload = Upload(self.numbers[: self.used]) if self.slots else None

    def slot(self, compute, count, dtype):
        """Reserve ``count`` numbers, aligned to 16 bytes, for ``host_values``."""
        start, size = self.used, count * np.dtype(dtype).itemsize
        self.used = -(-(start + size) // 16) * 16
        if self.used > HOST_VALUES_BYTES:
            raise RuntimeError(f"a captured step has room for {HOST_VALUES_BYTES} bytes of host values")
        self.slots.append((compute, dtype, slice(start, start + size)))
        return self.numbers[start : start + size].view(dtype)

    def replay(self, inputs):
        """Upload the inputs and host values of this step and launch the graph; returns without waiting for it."""
        for i, (place, x) in enumerate(zip(self.inputs, inputs, strict=True)):
            if isinstance(x, np.ndarray):
                self.uploads[i] = self.uploads[i] or Upload(place)
                self.uploads[i](x, self.stream)
            else:
                place[...] = x
        if self.slots:
            numbers = np.zeros(self.used, np.uint8)
            for compute, dtype, part in self.slots:
                numbers[part] = np.array(compute(), dtype, ndmin=1).view(np.uint8)
            self.upload(numbers, self.stream)
        self.graph.launch(self.stream)
        return self.results


class Upload:
    """Asynchronous copies of host arrays to one device array, through two pinned buffers.

    While one buffer is being read, the other is filled; only a caller two steps ahead has to wait.
    """

    def __init__(self, place):
        self.place = place
        pair = [(cupyx.empty_pinned(place.shape, place.dtype), cupy.cuda.Event(disable_timing=True)) for _ in range(2)]
        self.buffers = collections.deque(pair)

    def __call__(self, x, stream):
        buffer, copied = self.buffers[0]
        self.buffers.rotate()
        copied.synchronize()
        buffer[...] = x
        self.place.set(buffer, stream=stream)
        copied.record(stream)
