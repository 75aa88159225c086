"""A training step as one CUDA graph: recorded once, then replayed by a single call.

A tiny model computes for microseconds, but Python takes milliseconds to launch its hundreds of kernels. ``capture``
has the GPU record what a step launches; from then on a step is one launch of that record.

A record fixes three things, and stays correct all the same:

- The addresses of all arrays. The step works in a memory pool of its own, reads its inputs from fixed places, and
  leaves its results in the same place each time.
- All numbers passed by value. What changes from step to step (the learning rate, the key of a dropout mask) goes
  through ``host_values``, lies in device memory, and is written there before each replay.
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
HOST_VALUES_BYTES = 1 << 16  # room for them in a captured step
_makers, _made = [], {}  # functions under `per_stream`, and {(function, address of a stream): (stream, result)}


def host_values(compute, count, dtype):
    """Return a device array with the ``count`` numbers that ``compute()`` returns; each replay calls it again.

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
    """Decorate ``make()`` so that each stream has its own result, made at the first call or before a recording.

    Kernels of two streams may run at the same time and must not share scratch memory. What belongs to the stream of a
    captured step is freed with that step.
    """

    @functools.wraps(make)
    def get():
        stream = cupy.cuda.get_current_stream()
        if (make, stream.ptr) not in _made:
            _made[make, stream.ptr] = stream, make()  # as long as the stream is kept, no other has its address
        return _made[make, stream.ptr][1]

    _makers.append(get)
    return get


@contextlib.contextmanager
def remember_host_values(values=None):
    """List what ``host_values`` returns inside, or let it return again what an earlier block listed in ``values``."""
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
    arguments, the first ``warmup`` calls run as they are (what is loaded and compiled at first use must not be
    recorded), the next one records, and later ones replay. The next call overwrites the results: copy what you keep.

    Parameters must be updated in place and remain the same arrays. Raises InputError if the step does something that
    cannot be recorded, such as reading a number on the host.
    """
    return Captured(step, warmup)


class Captured:
    """Result of ``capture``: ``graphs`` has a Recording for each kind of input, ``pool`` their memory.

    A replay writes where the recorded step had its arrays, most of which are free by then. So the pool is used for
    nothing else, and never returns memory to the GPU, not even where an allocation fails: ``memory`` holds all of it.
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
        """Work on the graph's stream and memory, after what the caller has started and before what comes next."""
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
    """Return new memory for a pool, and keep it in the list ``kept``."""
    kept.append(cupy.cuda.Memory(size))
    return cupy.cuda.MemoryPointer(kept[-1], 0)


class Recording:
    """One graph, with the places of its inputs, of its host values and of its results."""

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
        gc.disable()  # nothing may be destroyed while the GPU listens
        try:
            stream.begin_capture()
            try:
                self.results = step(*self.inputs)
            except Exception:
                with contextlib.suppress(Exception):  # the stream must leave capture; its own error adds nothing
                    stream.end_capture()
                raise
            self.graph = stream.end_capture()
        except MemoryError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"this step cannot be captured ({reason}); run it without a graph (--no-graph)") from error
        finally:
            gc.enable()
            _recording = None
        self.upload = Upload(self.numbers[: self.used]) if self.slots else None

    def slot(self, compute, count, dtype):
        """Reserve room for ``count`` numbers, aligned to 16 bytes."""
        start, size = self.used, count * np.dtype(dtype).itemsize
        self.used = -(-(start + size) // 16) * 16
        if self.used > HOST_VALUES_BYTES:
            raise RuntimeError(f"a captured step has room for {HOST_VALUES_BYTES} bytes of host values")
        self.slots.append((compute, dtype, slice(start, start + size)))
        return self.numbers[start : start + size].view(dtype)

    def replay(self, inputs):
        """Copy in the inputs and host values of this step and launch the graph; returns without waiting for it."""
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
    """Copying of host arrays to one place on the GPU without waiting, through two pinned buffers.

    While one is being read, the other is filled; only a caller two steps ahead has to wait.
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
