"""Threads that share a batch give what one thread gives for the whole, again and again, and never wait in vain."""

import itertools
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from minitl import nn, no_grad, ops, optim
from minitl.fast import threads as sharing
from minitl.fast.threads import DataParallel, in_shards
from minitl.train import step

CONFIG = nn.ViTConfig(patch_size=4, dim=12, heads=2, mlp_dim=16, num_tokens=3)
CLIPS = nn.X21DConfig(widths=(4, 6), num_tokens=3)
SEED = np.random.SeedSequence(3)


def spec_of(config):
    return nn.DataSpec((8, 8), num_classes=5, frames=1 if isinstance(config, nn.ViTConfig) else 2)


def model_of(config, seed=0):
    """A model in float64 whose head does not start at zero, its generator, and its flat gradient."""
    rng = np.random.default_rng(seed)
    model = step.build_model(config, spec_of(config), rng).to(dtype="float64")
    for p in model.parameters():
        p.data += 0.1 * rng.standard_normal(p.shape)
    return model, rng, optim.SGD(model.parameters(), 0.1).flat


def batch_of(config, count, seed=1):
    rng, time = np.random.default_rng(seed), () if isinstance(config, nn.ViTConfig) else (2,)
    return rng.standard_normal((count, *time, 8, 8, 3)), rng.integers(5, size=count)


def gradients(runner, inputs, targets, seed=SEED, loss_of=ops.cross_entropy):
    """Add the gradient of the mean loss by a DataParallel. Returns (mean loss, outputs)."""

    def forward_backward(model, shard):
        outputs = model(inputs[shard])
        loss, share = loss_of(outputs, targets[shard]), len(outputs.data) / len(inputs)
        loss.backward(np.full_like(loss.data, share))
        return loss.item() * share, outputs.data

    losses, outputs = zip(*runner.run(forward_backward, len(inputs), seed), strict=True)
    return sum(losses), np.concatenate(outputs)


def found_by(config, count, threads, shard=3, seed=SEED):
    """(loss, outputs, flat gradient, model) of a batch."""
    model, rng, flat = model_of(config)
    runner = DataParallel(model, rng, threads, shard)
    loss, outputs = gradients(runner, *batch_of(config, count), np.random.SeedSequence(seed.entropy))
    return loss, outputs, flat.grad, model


@pytest.mark.parametrize("count", [1, 2, 7, 12])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("config", [CONFIG, CLIPS], ids=["ViT", "X21D, whose batch norms see the whole batch"])
def test_equals_the_whole_batch(config, threads, count):
    model, _, flat = model_of(config)
    images, labels = batch_of(config, count)
    outputs = model(images)
    loss = ops.cross_entropy(outputs, labels)
    loss.backward()
    shared = found_by(config, count, threads)
    assert shared[0] == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose(shared[1], outputs.data, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(shared[2], flat.grad, rtol=1e-9, atol=1e-12)
    for name, value in model.state_dict().items():  # running means too
        np.testing.assert_allclose(shared[3].state_dict()[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("threads", [1, 3])
def test_two_runs_are_equal_bit_for_bit(threads):
    config = nn.ViTConfig(**vars(CONFIG) | {"dropout": 0.3, "drop_path": 0.2})
    first, second = (found_by(config, 11, threads) for _ in range(2))
    assert first[0] == second[0] and (first[1] == second[1]).all() and (first[2] == second[2]).all()
    other = found_by(config, 11, threads, seed=np.random.SeedSequence(4))
    assert other[0] != first[0]


def test_each_shard_drops_something_else():
    config = nn.ViTConfig(**vars(CONFIG) | {"dropout": 0.5})
    model, rng, _ = model_of(config)
    same = np.repeat(batch_of(config, 1)[0], 4, axis=0)
    runner = DataParallel(model, rng, threads=2, shard_size=1)
    _, outputs = gradients(runner, same, np.zeros(4, int))
    assert len(np.unique(outputs.round(9), axis=0)) == 4


def test_gradients_are_added_to_what_is_there():
    model, rng, flat = model_of(CONFIG)
    runner, batch = DataParallel(model, rng, 2, 3), batch_of(CONFIG, 8)
    gradients(runner, *batch)
    once = flat.grad.copy()
    gradients(runner, *batch)
    np.testing.assert_allclose(flat.grad, 2 * once, rtol=1e-12)


def test_weights_are_shared_and_the_mode_is_followed():
    config = nn.ViTConfig(**vars(CONFIG) | {"dropout": 0.5})
    model, rng, flat = model_of(config)
    runner, (images, labels) = DataParallel(model, rng, 2, 3), batch_of(config, 8)
    flat.data *= 0.9
    model.eval()
    _, outputs = gradients(runner, images, labels)
    np.testing.assert_allclose(outputs, model(images).data, rtol=1e-10)


@pytest.mark.parametrize("config", [CONFIG, CLIPS], ids=["ViT", "X21D"])
def test_an_error_in_one_thread_ends_all(config):
    """A batch norm of the other threads must not wait for the one that failed."""
    model, rng, _ = model_of(config)
    runner, (images, labels) = DataParallel(model, rng, 3, 2), batch_of(config, 9)
    runner.replicas[1][0].head.weight.data = np.zeros((3, 3))
    with pytest.raises(ValueError, match=r"^linear.*needs x"):
        gradients(runner, images, labels)


def test_a_model_is_as_before_afterwards():
    """Its batch norms wait for nobody."""
    *_, model = found_by(CLIPS, 6, 2)
    assert model(batch_of(CLIPS, 4)[0]).shape == (4, 5)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_predict(threads):
    model, _, _ = model_of(CONFIG)
    images = batch_of(CONFIG, 10)[0]
    with no_grad():
        expected = model(images).data
    np.testing.assert_allclose(in_shards(model, images, threads, shard_size=2), expected, rtol=1e-12)
    assert in_shards(model.maps, images, threads, shard_size=2).shape == (10, 3, 2, 2)


def test_threads_keep_the_callers_settings():
    """A warning that is silenced outside is silenced in the threads."""
    model, rng, _ = model_of(CONFIG)
    images, labels = batch_of(CONFIG, 8)
    with np.errstate(all="ignore"):
        gradients(DataParallel(model, rng, 2, 3), images * np.inf, labels)


PAGES = """
import resource, sys
import numpy as np
from minitl.fast.threads import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
def use():
    for _ in range(20):
        arrays = [np.ones(1_000_000) for _ in range(5)]
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the C library of GNU, which is Linux's")
def test_memory_is_kept():
    fresh, kept = (
        int(subprocess.run([sys.executable, "-c", PAGES, how], capture_output=True, check=True, text=True).stdout)
        for how in ("fresh", "keep")
    )
    assert kept < 100 < fresh


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (3, 3), (64, 8)])
def test_default_threads(monkeypatch, cores, threads):
    monkeypatch.setattr(sharing.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert sharing.default_threads() == threads


def test_threads_for_the_work(monkeypatch):
    """A second thread has to be worth it: the model of CLUTTER takes one, a larger one takes all."""
    monkeypatch.setattr(step, "default_threads", lambda: 4)
    small, large = nn.ViTConfig(), nn.ViTConfig(dim=384, heads=6, mlp_dim=1536)
    spec = nn.DataSpec()
    assert (step.thread_count(small, spec, 100), step.thread_count(large, spec, 100)) == (1, 4)
    assert step.thread_count(small, spec, 1) == 1, "at least"
    assert 1 <= step.shard_size(large, spec) < step.shard_size(small, spec)


def test_a_thread_that_cannot_be_started(monkeypatch):
    """The others, which would wait for it, are told."""
    submit, told = sharing.ThreadPoolExecutor.submit, threading.Event()

    def full(self, fn, *args):
        if args[-1] == 1:
            raise RuntimeError("can't start new thread")
        return submit(self, fn, *args)

    monkeypatch.setattr(sharing.ThreadPoolExecutor, "submit", full)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        sharing._in_threads(lambda k: told.wait(), 2, on_error=told.set)


LATE = """
import signal, sys, threading, time
sys.path.insert(0, {tests!r})
from test_parallel import CLIPS, batch_of, gradients, model_of
from minitl.fast.threads import DataParallel

model, rng, _ = model_of(CLIPS)
runner = DataParallel(model, rng, 2)
replica = runner.replicas[1][0]
forward = replica.forward

def late(clips):
    time.sleep(0.5)  # the other thread waits in its first batch norm
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    time.sleep(0.5)
    return forward(clips)

replica.forward = late
try:
    gradients(runner, *batch_of(CLIPS, 4))
except KeyboardInterrupt:
    print("interrupted", threading.active_count())
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system cannot send a signal to a thread")
def test_ctrl_c_ends_threads_that_wait_for_each_other():
    program = [sys.executable, "-c", LATE.format(tests=str(Path(__file__).parent))]
    done = subprocess.run(program, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "interrupted 1\n"), done.stderr


def test_an_interrupted_call_leaves_nothing_in_the_next_gradient():
    whole = found_by(CONFIG, 9, 3)[2]
    model, rng, flat = model_of(CONFIG)
    runner, calls = DataParallel(model, rng, 3, 3), itertools.count()

    def failing(outputs, targets):
        if next(calls) == 2:
            raise MemoryError
        return ops.cross_entropy(outputs, targets)

    with pytest.raises(MemoryError):
        gradients(runner, *batch_of(CONFIG, 9), np.random.SeedSequence(SEED.entropy), failing)
    flat.grad[...] = 0
    gradients(runner, *batch_of(CONFIG, 9), np.random.SeedSequence(SEED.entropy))
    np.testing.assert_array_equal(flat.grad, whole)


def test_no_samples_at_all():
    model, _, _ = model_of(CONFIG)
    with pytest.raises(ValueError, match="there are no samples"):
        in_shards(model, batch_of(CONFIG, 3)[0][:0])
