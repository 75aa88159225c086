"""A training step as one CUDA graph: recorded once, then replayed by a single call.

A tiny model computes for microseconds where Python takes milliseconds to ask for it: hundreds of launches, each with
its own checks. ``capture`` has the GPU record what a step launches; from then on a step is one launch of that record.

What a record fixes, and how it stays correct all the same:

- The addresses of all arrays. The step works in a pool of memory that nothing else uses, reads its inputs from places
  of its own, and leaves its results in the same place each time.
- All numbers that were passed by value. What changes from step to step (the learning rate, the key of a dropout mask)
  is asked for by ``changing``, lies in device memory, and is written there before each replay.
- All decisions. Python is not run again: no ``if`` on a loss, no ``float(...)``, no ``print`` of a number.
"""

import collections
import contextlib
import gc

import cupy
import cupyx
import numpy as np

from ...errors import InputError

_recording = None  # the Recording of the step that is being captured
_notes, _noted = None, None  # what `changing` writes down, and what it reads
ROOM = 1 << 16  # bytes for numbers that change


def changing(compute, count, dtype):
    """A device array with the ``count`` numbers that ``compute()`` returns; a captured step asks anew at each replay.

    ``compute`` runs on the host, once for each step and in the order of the calls, captured or not. So a captured run
    draws the same random numbers as an eager one.
    """
    if _noted is not None:
        return next(_noted)
    if _recording is not None:
        numbers = _recording.slot(compute, count, dtype)
    else:
        numbers = cupy.asarray(np.array(compute(), dtype, ndmin=1))
    if _notes is not None:
        _notes.append(numbers)
    return numbers


def constant(array, compute):
    """``array``, filled by ``compute()``; a captured step fills it once, and not again at each replay.

    It may say where arrays lie, for in a graph they stay there.
    """
    if _recording is None:
        compute()
    else:
        _recording.constants.append((array, compute))
    return array


@contextlib.contextmanager
def remembering(notes=None):
    """Gives a list of what ``changing`` returns inside; with the list of an earlier block, it returns that again."""
    global _notes, _noted
    before = _notes, _noted
    _notes, _noted = ([], None) if notes is None else (None, iter(notes))
    try:
        yield _notes
    finally:
        _notes, _noted = before


def capture(step, warmup=2):
    """``step`` itself, faster: a function with the same arguments and results that replays a CUDA graph.

    ``step`` takes arrays and returns an array, or a tuple of them, on the GPU. The arrays it is called with may be
    NumPy's or CuPy's. The first ``warmup`` calls with arrays of a shape run as they are (what is loaded and
    compiled at first use must not be recorded), the next one records, and those after it replay. Arrays of another
    shape get their own graph. Results are overwritten by the next call: copy what you keep.

    Parameters must be updated in place, and must stay the arrays they are. Raises InputError where the step does
    something that cannot be recorded, such as a look at a number on the host.
    """
    return Captured(step, warmup)


class Captured:
    """What ``capture`` returns. ``graphs`` holds a Recording for each kind of input; ``pool`` is their memory."""

    def __init__(self, step, warmup):
        if warmup < 1:
            raise ValueError(f"warmup is at least 1, got {warmup}")
        self.step, self.warmup = step, warmup
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.pool = cupy.cuda.MemoryPool()
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
        outside = cupy.cuda.get_current_stream()
        self.stream.wait_event(outside.record())
        with cupy.cuda.using_allocator(self.pool.malloc), self.stream:
            yield
        outside.wait_event(self.stream.record())


class Recording:
    """One graph, the places of its inputs and of the numbers that change, and its results."""

    def __init__(self, step, inputs, stream):
        global _recording
        self.stream, self.slots, self.used, self.constants = stream, [], 0, []
        self.inputs = [cupy.empty(x.shape, x.dtype) for x in inputs]
        self.numbers = cupy.empty(ROOM, np.uint8)
        self.uploads = [None] * len(inputs)
        _recording = self
        gc.collect()
        gc.disable()  # nothing may be destroyed while the GPU listens
        try:
            stream.begin_capture()
            try:
                self.results = step(*self.inputs)
            except Exception:
                with contextlib.suppress(Exception):  # the stream must leave capture; what it says of it is no news
                    stream.end_capture()
                raise
            self.graph = stream.end_capture()
        except MemoryError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(
                f"this step cannot be captured ({reason}); run it without a graph, by --no-graph"
            ) from error
        finally:
            gc.enable()
            _recording = None
        for _, compute in self.constants:
            compute()
        self.upload = Upload(self.numbers[: self.used]) if self.slots else None

    def slot(self, compute, count, dtype):
        """Room for ``count`` numbers, aligned to 16 bytes."""
        start, size = self.used, count * np.dtype(dtype).itemsize
        self.used = -(-(start + size) // 16) * 16
        if self.used > ROOM:
            raise RuntimeError(f"a captured step has room for {ROOM} bytes of changing numbers")
        self.slots.append((compute, dtype, slice(start, start + size)))
        return self.numbers[start : start + size].view(dtype)

    def replay(self, inputs):
        """Bring in the inputs and the numbers of this step, and run the graph; returns without waiting for it."""
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
    """Copies host arrays to one place on the GPU without waiting, through two buffers that the GPU can read itself.

    While one is being read, the other is filled; only who is two steps ahead has to wait.
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
