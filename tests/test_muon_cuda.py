"""Muon on the stand-in for CuPy: the steps of the CPU, also captured, and none for gradients that are not finite."""

import math

import fake_cupy
import numpy as np
import pytest
from fake_cupy import cupy, strict

from minitl import Tensor, backend, optim
from minitl.backend import to_numpy

SHAPES = [(12, 20), (20,), (2, 3, 2, 20), (12, 20), (7, 5), (5,)]


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setattr(fake_cupy.RawModule, "emulate", False)  # faster
    with fake_cupy.installed() as module:
        yield module


class Run:
    """Parameters, and steps of Muon with given gradients."""

    def __init__(self, device, dtype="float64", shapes=SHAPES):
        rng, self.device = np.random.default_rng(0), device
        drawn = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
        self.params = [Tensor(backend.to_device(x, device), True) for x in drawn]
        self.optimizer = optim.Muon(self.params, 0.01, weight_decay=0.1)
        self.ema = optim.EMA(self.optimizer, 0.9)

    def step(self, grad):
        self.optimizer.flat.grad[...] = grad
        norm = self.optimizer.clip_grad_norm(1.0)
        self.optimizer.step()
        self.ema.update()
        return norm

    def state(self):
        flat, own = self.optimizer.flat, self.optimizer
        return [to_numpy(x) for x in (flat.data, own.exp_avg, own.exp_avg_sq, self.ema.average)]


def gradients(count, size):
    """Gradients below and above the clipping norm."""
    rng = np.random.default_rng(1)
    return [(0.01, 1.0, 5.0)[i % 3] * rng.standard_normal(size) / size**0.5 for i in range(count)]


@pytest.mark.parametrize("shapes", [SHAPES, SHAPES[:1], SHAPES[1:2]], ids=["all", "matrix", "vector"])
def test_update_equals_clipping_muon_and_ema(cuda, shapes):
    host, device = Run("cpu", shapes=shapes), Run("cuda", shapes=shapes)
    for g in gradients(4, host.optimizer.flat.data.size):
        norm, device.optimizer.flat.grad[...] = host.step(g), cupy.asarray(g)
        with strict():
            norm2 = cuda.update(device.optimizer, 1.0, device.ema)
        assert to_numpy(norm2)[0] ** 0.5 == pytest.approx(norm)
    for own, expected in zip(device.state(), host.state(), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-9, atol=1e-12)
    assert device.optimizer.steps == 4


def test_without_an_average_and_without_clipping(cuda):
    host, device = Run("cpu"), Run("cuda")
    for g in gradients(3, host.optimizer.flat.data.size):
        host.optimizer.flat.grad[...], device.optimizer.flat.grad[...] = g, cupy.asarray(g)
        host.optimizer.step()
        cuda.update(device.optimizer)
    for own, expected in zip(device.state()[:3], host.state()[:3], strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("place", [0, -1], ids=["matrix", "vector"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_moves_no_weight(cuda, bad, place):
    run = Run("cuda")
    before = to_numpy(run.optimizer.flat.data)
    run.optimizer.flat.grad[...] = 1.0
    run.optimizer.flat.grad[place] = bad
    assert not np.isfinite(to_numpy(cuda.update(run.optimizer, 1.0))[0])
    assert (to_numpy(run.optimizer.flat.data) == before).all()


def test_captured_equals_eager(cuda):
    """Bit for bit, with another learning rate at each step."""
    eager, captured = Run("cuda", "float32"), Run("cuda", "float32")

    def step(run):
        def one(grad):
            run.optimizer.flat.grad[...] = grad
            return cuda.update(run.optimizer, 1.0, run.ema)

        return one

    replay = cuda.capture(step(captured))
    for i, g in enumerate(gradients(6, eager.optimizer.flat.data.size)):
        eager.optimizer.lr = captured.optimizer.lr = 0.01 / (1 + i)
        g = cupy.asarray(g.astype("float32"))
        assert to_numpy(step(eager)(g)) == to_numpy(replay(g))
    for own, expected in zip(captured.state(), eager.state(), strict=True):
        assert (own == expected).all()
