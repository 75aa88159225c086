"""One framework's side of the benchmark on a GPU, in a process of its own: steps timed by the GPU's own clock."""

import collections
import ctypes
import functools
import itertools
import math
import statistics
import time

from minitl.backend import to_device

from . import contestant
from .contestant import side_of, stopwatches

WARMUP = 3  # steps that do not count: the first ones of a graph are not replays
LARGE = 8192  # rows and columns of the matrices whose product is measured
LONG = 2**28  # numbers in the array whose copy is measured


class Minitl(contestant.Minitl):
    """The same on a GPU, on a batch in its memory: each step is one graph or, with ``graph=False``, eager."""

    def __init__(self, model, images, labels, *args, **options):
        images, labels = to_device(images, "cuda"), to_device(labels, "cuda")
        super().__init__(model.to("cuda"), images, labels, *args, device="cuda", **options)
        import cupy

        self.event, self.between = cupy.cuda.Event, cupy.cuda.get_elapsed_time

    def launches(self):
        """Return the number of kernels and copies in a captured step, or None if the driver does not tell it."""
        while not self.take_step.compute.graphs:
            self.step()
        (recording,) = self.take_step.compute.graphs.values()
        return nodes(recording.graph)

    def profile(self, steps):
        """Return the seconds of an eager step by op, {name: (forward, backward)}; "rest" is all else.

        The GPU gets other work first, so that the host is ahead of it and only the work of the GPU is measured.
        """
        spans, whole = collections.defaultdict(lambda: ([], [])), []

        def timed(name, i, call, *args, **options):
            start, end = self.event(), self.event()
            start.record()
            result = call(*args, **options)
            end.record()
            spans[name][i].append((start, end))
            return result

        update = self.take_step.update
        with stopwatches("cuda", timed):
            self.take_step.update = functools.partial(timed, "AdamW", 0, update)
            try:
                other_work = self._work_for(1.5 * self._host_seconds())
                spans.clear()
                for _ in range(steps):
                    other_work()
                    start, end = self.event(), self.event()
                    start.record()
                    self.step()
                    end.record()
                    end.synchronize()
                    whole.append((start, end))
            finally:
                self.take_step.update = update
        means = {name: tuple(self._mean(times, steps) for times in both) for name, both in spans.items()}
        return means | {"rest": (self._mean(whole, steps) - sum(map(sum, means.values())), 0.0)}

    def _host_seconds(self):
        """Return how long the host is busy with a step."""
        began = time.perf_counter()
        self.step()
        return time.perf_counter() - began

    def _work_for(self, wanted):
        """Return a function that keeps the GPU busy for ``wanted`` seconds by products of large matrices."""
        import cupy

        from minitl.fast.cuda.gemm import product

        x = cupy.ones((LARGE // 2, LARGE // 2), "float32")
        once = statistics.median(seconds(lambda: product(x, x), 3, self))
        return lambda: [product(x, x) for _ in range(math.ceil(wanted / once))]

    def _mean(self, spans, steps):
        """Return the mean seconds of a step."""
        return sum(self.between(*span) for span in spans) / 1000 / steps


def seconds(step, times, side):
    """Return the seconds of each of ``times`` calls by the GPU's clock: between events, without waiting in between."""
    for _ in range(WARMUP):
        step()
    events = [side.event() for _ in range(times + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    events[-1].synchronize()
    return [side.between(a, b) / 1000 for a, b in itertools.pairwise(events)]


def rates(times, side):
    """Measure the GPU: (bytes per second of a copy, read and written; operations per second of large products)."""
    import cupy

    from minitl.fast.cuda.gemm import product, to_precision

    x = cupy.ones(LONG, "float32")
    y = cupy.empty_like(x)
    copy = 2 * x.nbytes / statistics.median(seconds(lambda: cupy.copyto(y, x), times, side))
    a = cupy.sin(cupy.arange(LARGE**2, dtype="float32")).reshape(LARGE, LARGE)  # ones would cost less power
    a = to_precision(a)
    return copy, 2 * LARGE**3 / statistics.median(seconds(lambda: product(a, a), times, side))


def nodes(graph):
    """Return the number of nodes of a ``cupy.cuda.Graph``, which only the driver knows; None if it fails."""
    count = ctypes.c_size_t()
    failed = ctypes.CDLL("libcuda.so.1").cuGraphGetNodes(ctypes.c_void_p(graph.graph), None, ctypes.byref(count))
    return None if failed else count.value


def prepare(job):
    """{name of a request: function of the number of times}, see ``contestant.prepare``."""
    if job["framework"] == "PyTorch":
        from .torch_twin import TorchOnGPU as Side
    else:
        Side = Minitl
    side = side_of(Side, job["config"], job["spec"], job["batch"], job["threads"], **job["options"])
    loss = side.loss if Side is Minitl else side.step
    calls = {
        "losses": lambda times: [float(loss()) for _ in range(times)],
        "train": lambda times: seconds(side.step, times, side),
    }
    if Side is Minitl:
        calls |= {"launches": lambda _: side.launches(), "rates": lambda times: rates(times, side)}
        calls["profile"] = lambda times: side.profile(times)
    return calls
