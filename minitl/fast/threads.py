"""Threads that share a batch, each with a copy of the model that shares its weights.

NumPy releases the GIL while it computes, so threads run in parallel, with one BLAS thread each. A batch is cut
into shards so small that the output of one op is mostly still in the cache when the next op reads it.
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

MOST_THREADS = 8  # Python code between two ops runs in one thread at a time


def cores():
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads():
    """Return the number of processors that this process may use, at most 8."""
    return min(MOST_THREADS, cores())


class DataParallel:
    """A model whose batches are shared by ``threads`` threads, in shards of at most ``shard_size`` samples.

    ``rng`` is the generator that the model's dropout draws from; it is reseeded for each shard. Each thread adds up the
    gradients of its shards, and then the threads' gradients are added in order, so two runs with the same number of
    threads agree bit for bit. A model with batch norm gets one shard per thread, and its batch norms see the whole
    batch.
    """

    def __init__(self, model, rng, threads=1, shard_size=32):
        self.model, self.threads = model, threads
        self.replicas = [(model, rng), *(_replica(model, rng) for _ in range(threads - 1))]
        self.has_norms = any(isinstance(m, BatchNorm2d) for m in model.modules())
        self.shard_size = None if self.has_norms else shard_size

    def run(self, forward_backward, batch_size, seed):
        """Call ``forward_backward(model, shard)`` for each shard and return the results in the shards' order.

        ``shard`` is a slice of the batch. The gradients are added to ``grad`` of the model's parameters. ``seed``, a
        ``numpy.random.SeedSequence``, determines what is dropped out.
        """
        threads = self.threads
        if self.has_norms and form("batch_norm", "cpu") is not OVERRIDES["cpu"].get("batch_norm"):
            threads = 1  # only the fast form can see the statistics of other threads
        shards = _shards(batch_size, threads, self.shard_size)
        seeds, results = seed.spawn(len(shards)), [None] * len(shards)
        threads = min(threads, len(shards))
        exchange = Exchange(threads)
        for replica, _ in self.replicas[1:]:
            replica.train(self.model.training)
            for p in replica.parameters():
                p.grad = None  # an interrupted call may have left one

        def work(k):
            replica, rng = self.replicas[k]
            if threads > 1:
                exchange.join(k)
            for i in range(k, len(shards), threads):
                rng.bit_generator.state = np.random.PCG64(seeds[i]).state
                results[i] = forward_backward(replica, shards[i])

        _in_threads(work, threads, on_error=exchange.barrier.abort)
        for replica, _ in self.replicas[1:threads]:
            for mine, other in zip(self.model.parameters(), replica.parameters(), strict=True):
                if other.grad is not None:
                    mine.grad += other.grad
                    other.grad = None
        return results


def in_shards(fn, inputs, threads=1, shard_size=32):
    """Return ``fn(inputs)`` as an array, computed in shards without gradients; ``fn`` maps an array to a Tensor."""
    shards = _shards(len(inputs), threads, shard_size)
    outputs = [None] * len(shards)

    def work(k):
        with no_grad():
            for i in range(k, len(shards), threads):
                outputs[i] = fn(inputs[shards[i]]).data

    _in_threads(work, min(threads, len(shards)))
    return array_module(outputs[0]).concatenate(outputs)


def _shards(batch_size, threads, shard_size):
    """Cut a batch into slices of at most ``shard_size`` samples, equally many per thread; one per thread if None."""
    if batch_size < 1:
        raise ValueError("there are no samples; a batch has at least one")
    rounds = 1 if shard_size is None else -(-batch_size // (shard_size * threads))
    ends = [batch_size * i // (rounds * threads) for i in range(rounds * threads + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(ends) if a < b]


def _in_threads(work, threads, on_error=lambda: None):
    """Call ``work(k)`` in each thread k, in the caller's context. Raises the first error after all threads ended."""
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
        except BaseException:  # a thread could not be started, or Ctrl-C: the others must not wait for each other
            on_error()
            raise
    if errors:
        raise errors[0]


def _replica(model, rng):
    """Copy a model and its generator; the copy shares the weights and has gradients of its own."""
    shared = {id(p.data): p.data for p in model.parameters()}
    replica, rng = copy.deepcopy((model, rng), shared)
    for p in replica.parameters():
        p.grad = None
    return replica, rng


class Exchange:
    """Exchange of statistics among the batch norms of ``count`` threads, which must all call it equally often."""

    def __init__(self, count):
        self.barrier = threading.Barrier(count)
        # two, so that a fast thread can write while a slow one still reads
        self.rounds = [[None] * count, [None] * count]

    def join(self, k):
        """Let the batch norms of this thread, number ``k``, exchange their statistics with those of all threads."""
        turns = itertools.cycle(self.rounds)

        def gather(x):
            slots = next(turns)
            slots[k] = x
            self.barrier.wait()
            return list(slots)

        cpu.exchange.set(gather)


def one_blas_thread():
    """Limit matrix products to one thread from now on or, as a context manager, inside its block.

    Threads that share a product wait for each other; those that share a batch do not.
    """
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, "blas")


def keep_memory():
    """Ask the C library to keep freed memory for the next array instead of returning it to the system.

    Each step allocates the same arrays again. Otherwise the system provides them as fresh pages full of zeros, which
    takes a fifth of a step. Only glibc has this setting; elsewhere nothing happens.
    """
    M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for option, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
        mallopt(option, value)
