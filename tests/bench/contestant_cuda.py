"""One framework's side of the benchmark on a GPU, in a process of its own: steps timed by the GPU's own clock."""

import collections
import ctypes
import functools
import itertools
import math
import statistics
import time

from minitl import ops, optim
from minitl.backend import to_device

from .contestant import side_of, stopwatches

WARMUP = 3  # steps before those that count: the first ones of a graph are not replays
LARGE = 8192  # rows and columns of the matrices whose product is the measure of products
LONG = 2**28  # numbers of the array whose copy is the measure of bandwidth


class Minitl:
    """minitl on a GPU: training steps on one batch that lies there, each one graph or (``graph=False``) eager."""

    def __init__(self, model, images, labels, threads, lr, decay, clip, precision="fp32", graph=True):
        self.model = model.to("cuda")
        import cupy

        from minitl.fast import cuda

        cuda.use(precision)
        self.optimizer = optim.AdamW(self.model.parameters(), lr, weight_decay=decay)
        self.zero_grad = functools.partial(cuda.zero_grad, self.optimizer)
        self.update = functools.partial(cuda.update, self.optimizer, clip)
        self.inputs = to_device(images, "cuda"), to_device(labels, "cuda")
        self.captured = cuda.capture(self._step)
        self.run = self.captured if graph else self._step
        self.event, self.between = cupy.cuda.Event, cupy.cuda.get_elapsed_time

    def step(self):
        return self.run(*self.inputs)

    def _step(self, images, labels):
        loss = ops.cross_entropy(self.model(images), labels)
        self.zero_grad()
        loss.backward()
        self.update()
        return loss.data

    def launches(self):
        """How many kernels and copies a step is, or None."""
        while not self.captured.graphs:
            self.captured(*self.inputs)
        (recording,) = self.captured.graphs.values()
        return nodes(recording.graph)

    def profile(self, steps):
        """Seconds of an eager step by op, {name: (forward, backward)}; those of all else are "rest".

        The GPU gets other work first, so that the host is ahead of it, and only what the GPU does is measured.
        """
        spans, whole = collections.defaultdict(lambda: ([], [])), []

        def timed(name, i, call, *args, **options):
            start, end = self.event(), self.event()
            start.record()
            result = call(*args, **options)
            end.record()
            spans[name][i].append((start, end))
            return result

        update = self.update
        with stopwatches("cuda", timed):
            self.update = functools.partial(timed, "AdamW", 0, update)
            try:
                other_work = self._work_for(1.5 * self._host_seconds())
                spans.clear()
                for _ in range(steps):
                    other_work()
                    start, end = self.event(), self.event()
                    start.record()
                    self._step(*self.inputs)
                    end.record()
                    end.synchronize()
                    whole.append((start, end))
            finally:
                self.update = update
        found = {name: tuple(self._mean(part, steps) for part in parts) for name, parts in spans.items()}
        return found | {"rest": (self._mean(whole, steps) - sum(map(sum, found.values())), 0.0)}

    def _host_seconds(self):
        """How long the host is busy with a step."""
        began = time.perf_counter()
        self._step(*self.inputs)
        return time.perf_counter() - began

    def _work_for(self, wanted):
        """A function that has the GPU multiply large matrices for so many seconds."""
        import cupy

        from minitl.fast.cuda.gemm import product

        x = cupy.ones((LARGE // 2, LARGE // 2), "float32")
        once = statistics.median(seconds(lambda: product(x, x), 3, self))
        return lambda: [product(x, x) for _ in range(math.ceil(wanted / once))]

    def _mean(self, spans, steps):
        """Seconds for each of so many steps."""
        return sum(self.between(*span) for span in spans) / 1000 / steps


def seconds(step, times, side):
    """Seconds of each of ``times`` calls by the GPU's clock: between events, with nothing waited for in between."""
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
    """What this GPU can do: (bytes per second of a copy, read and written; operations per second of large products)."""
    import cupy

    from minitl.fast.cuda.gemm import product, to_precision

    x = cupy.ones(LONG, "float32")
    y = cupy.empty_like(x)
    copy = 2 * x.nbytes / statistics.median(seconds(lambda: cupy.copyto(y, x), times, side))
    a = cupy.sin(cupy.arange(LARGE**2, dtype="float32")).reshape(LARGE, LARGE)  # ones would cost less power
    a = to_precision(a)
    return copy, 2 * LARGE**3 / statistics.median(seconds(lambda: product(a, a), times, side))


def nodes(graph):
    """How many nodes a ``cupy.cuda.Graph`` has, by the driver, for CuPy does not say it; None if it will not say it."""
    count = ctypes.c_size_t()
    failed = ctypes.CDLL("libcuda.so.1").cuGraphGetNodes(ctypes.c_void_p(graph.graph), None, ctypes.byref(count))
    return None if failed else count.value


def prepare(job):
    """{name of a request: function of the number of times}, see ``contestant.prepare``."""
    if job["framework"] == "PyTorch":
        from .torch_twin import TorchOnGPU as Side
    else:
        Side = Minitl
    side = side_of(Side, job["config"], job["batch"], job["threads"], **job["options"])
    calls = {
        "losses": lambda times: [float(side.step()) for _ in range(times)],
        "train": lambda times: seconds(side.step, times, side),
    }
    if Side is Minitl:
        calls |= {"launches": lambda _: side.launches(), "rates": lambda times: rates(times, side)}
        calls["profile"] = lambda times: side.profile(times)
    return calls
