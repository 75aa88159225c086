"""A batch cut into shards that threads work through, each thread with a copy of the model that shares its weights.

NumPy lets go of Python's lock while it computes, so threads really run side by side, with one BLAS thread each. And a
shard is so small that what one op wrote is mostly still in the cache when the next one reads it. (Two processes instead
of two threads took 0.92 to 0.96 of the time for a step: too little for models, batches and errors to be sent around.)
"""

import contextvars
import copy
import ctypes
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np

from ..autograd import OVERRIDES, form, no_grad
from ..backend import array_module
from ..nn import BatchNorm2d
from . import cpu

MOST_THREADS = 8  # what Python does between two ops takes turns anyway


def cores():
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads():
    """One for each processor that this process may use, at most 8."""
    return min(MOST_THREADS, cores())


class DataParallel:
    """Gradients of ``model`` for whole batches, by ``threads`` threads in shards of up to ``shard`` samples.

    ``rng`` is the generator that the model's dropout draws from; it is set anew for each shard. A thread adds up the
    gradients of its shards, and those of the threads are added in order, so two runs are equal bit for bit. A model
    with batch norm gets one shard for each thread, and its batch norms see the whole batch.
    """

    def __init__(self, model, rng, threads=1, shard=32):
        self.model, self.threads = model, threads
        self.replicas = [(model, rng), *(_replica(model, rng) for _ in range(threads - 1))]
        self.has_norms, self.shard = any(isinstance(m, BatchNorm2d) for m in model.modules()), shard

    def gradients(self, loss, inputs, targets, seed):
        """Add the gradient of the mean loss to ``grad`` of the model's parameters. Returns (mean loss, outputs).

        ``loss`` maps outputs and targets of a shard to their mean loss. ``seed``, a ``numpy.random.SeedSequence``,
        decides what is dropped out.
        """
        threads, shard = self.threads, None if self.has_norms else self.shard
        if self.has_norms and form("batch_norm", "cpu") is not OVERRIDES["cpu"].get("batch_norm"):
            threads = 1  # other forms know nothing of a meeting
        parts = _parts(len(inputs), threads, shard)
        seeds, found = seed.spawn(len(parts)), [None] * len(parts)
        threads = min(threads, len(parts))
        meeting = Meeting(threads)
        for replica, _ in self.replicas[1:]:
            replica.train(self.model.training)
            for p in replica.parameters():
                p.grad = None  # what an interrupted call has left

        def work(k):
            replica, rng = self.replicas[k]
            if threads > 1:
                meeting.attend(k)
            for i in range(k, len(parts), threads):
                rng.bit_generator.state = np.random.PCG64(seeds[i]).state
                outputs = replica(inputs[parts[i]])
                mean = loss(outputs, targets[parts[i]])
                share = len(outputs.data) / len(inputs)
                mean.backward(mean.data * 0 + mean.dtype.type(share))
                found[i] = mean.item() * share, outputs.data

        _run(work, threads, on_error=meeting.barrier.abort)
        for replica, _ in self.replicas[1:threads]:
            for mine, other in zip(self.model.parameters(), replica.parameters(), strict=True):
                if other.grad is not None:
                    mine.grad += other.grad
                    other.grad = None
        losses, outputs = zip(*found, strict=True)
        return sum(losses), np.concatenate(outputs)


def in_shards(fn, inputs, threads=1, shard=32):
    """``fn`` of all inputs, an array in and a Tensor out, computed shard by shard without gradients; an array."""
    parts = _parts(len(inputs), threads, shard)
    found = [None] * len(parts)

    def work(k):
        with no_grad():
            for i in range(k, len(parts), threads):
                found[i] = fn(inputs[parts[i]]).data

    _run(work, min(threads, len(parts)))
    return array_module(found[0]).concatenate(found)


def _parts(count, threads, shard):
    """As many slices of at most ``shard`` samples as the threads can share evenly; one for each where it is None."""
    if count < 1:
        raise ValueError("there are no samples; a batch has at least one")
    rounds = 1 if shard is None else -(-count // (shard * threads))
    ends = [count * i // (rounds * threads) for i in range(rounds * threads + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(ends) if a < b]


def _run(work, threads, on_error=lambda: None):
    """Call ``work(k)`` for each thread k, in the caller's context. Raises the first error, when all have ended."""
    if threads == 1:
        return work(0)
    errors = []

    def run(k):
        try:
            work(k)
        except BaseException as error:
            errors.append(error)
            on_error()

    with ThreadPoolExecutor(threads) as pool:
        try:
            wait([pool.submit(contextvars.copy_context().run, run, k) for k in range(threads)])
        except BaseException:  # no more threads to be had, or Ctrl-C: none shall wait for the others any longer
            on_error()
            raise
    if errors:
        raise errors[0]


def _replica(model, rng):
    """A copy of a model and its generator that shares the weights, and has gradients of its own."""
    shared = {id(p.data): p.data for p in model.parameters()}
    replica, rng = copy.deepcopy((model, rng), shared)
    for p in replica.parameters():
        p.grad = None
    return replica, rng


class Meeting:
    """A place where ``count`` threads exchange the statistics of their batch norms; all come equally often."""

    def __init__(self, count):
        self.barrier = threading.Barrier(count)
        self.rounds = [[None] * count, [None] * count]  # two: a slow thread still reads while a fast one writes again

    def attend(self, k):
        """Let batch norms in this context, that of thread ``k``, see the statistics of all threads, in order."""
        turns = itertools.cycle(self.rounds)

        def gather(x):
            brought = next(turns)
            brought[k] = x
            self.barrier.wait()
            return list(brought)

        cpu.meeting.set(gather)


def one_blas_thread():
    """From now on, or inside if used by ``with``, a matrix product takes one thread.

    Threads that share a product wait for each other; those that share a batch do not.
    """
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, "blas")


def keep_memory():
    """Ask the C library to keep freed memory for the next array, and not to give it back to the system.

    Each step allocates the same arrays again. Without this the system hands them out as fresh pages full of zeros,
    which takes a fifth of a step. Only the C library of GNU knows the question; elsewhere nothing happens.
    """
    M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for option, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
        mallopt(option, value)
