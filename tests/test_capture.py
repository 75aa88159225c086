"""Captured training steps on the stand-in for CuPy, whose pools reuse freed memory, and what cannot be captured."""

import dataclasses
import gc

import fake_cupy
import numpy as np
import pytest
from fake_cupy import MEMORIES, MemoryPool, State, cupy

from minitl import Tensor, nn, ops, optim, train
from minitl.backend import to_numpy
from minitl.errors import InputError
from minitl.train import step
from minitl.train.presets import R1


@pytest.fixture
def cuda(monkeypatch):
    """``minitl.fast.cuda`` on the stand-in, with NumPy references of the kernels, which are faster."""
    monkeypatch.setattr(fake_cupy.RawModule, "emulate", False)
    with fake_cupy.installed() as module:
        yield module
        module.use("fp32")


def numbers(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


# --- captured against eager ---

SMALL = nn.ViTConfig(dim=24, heads=2, mlp_dim=40, version="1.1", pre_norm=False, zero_head=False)
MINIATURE = dataclasses.replace(R1, dim=24, heads=2, layers=3, loc=1, mlp_dim=24, hidden=8, stem_width=6)


def changed(**options):
    return dataclasses.replace(SMALL, **options)


STEPS = {  # model, options of the TrainConfig, DataSpec and batch size
    "ViT 1.0": (changed(version="1.0", pre_norm=True), {}, {}, 4),
    "ViT 1.1": (SMALL, {}, {}, 4),
    "dropped": (changed(dropout=0.2, drop_path=0.3), {}, {}, 4),
    "convolutional stem": (changed(stem="conv", stem_width=6, head_pool="sequence"), {}, {}, 4),
    "fuser": (changed(back="fuser"), {}, {}, 4),
    "queries": (changed(tokenizer="query"), {}, {}, 4),
    "merged": (changed(tokenizer="merge", num_tokens=9, dropout=0.2), {}, {}, 4),
    "merged in bf16": (changed(tokenizer="merge", num_tokens=9), {"precision": "bf16"}, {}, 4),
    "top-k of clips": (changed(tokenizer="topk", num_tokens=3), {}, {"frames": 2}, 4),
    "X21D": (nn.X21DConfig(widths=(4, 6), num_tokens=3), {}, {"frames": 2}, 4),
    "Muon, 10 layers": (changed(dim=8, layers=10, mlp_dim=8, hidden=8), {"optimizer": "muon"}, {}, 2),
    "recomputed": (changed(dropout=0.2, recompute=True), {}, {}, 4),
    "odd batch, 3 heads": (changed(heads=3), {}, {}, 5),
    "odd batch, 3 heads in bf16": (changed(heads=3), {"precision": "bf16"}, {}, 5),
    "49 tokens": (changed(tokenizer="none"), {}, {"image_size": (28, 28)}, 3),
    "81 tokens, 3 heads": (changed(heads=3, tokenizer="none"), {}, {"image_size": (36, 36)}, 3),
    "R1 in miniature": (dataclasses.replace(MINIATURE, drop_path=0.3), {}, {}, 4),
}


def training_step(config, options, spec, size, graph):
    spec = nn.DataSpec(**{"image_size": (16, 16), "num_classes": 8} | spec)
    rng = np.random.default_rng(0)
    model = step.build_model(config, spec, rng).to("cuda")
    options = {"precision": "tf32", "ema": 0.9, "label_smoothing": 0.1} | options
    settings = train.TrainConfig("made up", config, device="cuda", batch_size=size, graph=graph, **options)
    return step.training_step(model, rng, settings)


def batches(spec, size):
    """Batches with labels and with mixed labels, alternating once both are recorded; the last one is smaller."""
    rng, frames = np.random.default_rng(1), [spec["frames"]] if "frames" in spec else []
    for i, mixed in enumerate([0, 0, 1, 1, 0, 1, 0]):
        n = size - 1 if i == 6 else size
        images = rng.standard_normal((n, *frames, *spec.get("image_size", (16, 16)), 3), "float32")
        labels = rng.integers(8, size=n)
        yield images, rng.dirichlet(np.ones(8), n).astype("float32") if mixed else labels, labels


@pytest.mark.parametrize("name", STEPS)
def test_a_captured_step_equals_an_eager_one(name, cuda):
    """Bit for bit, with new learning rates, masks and inputs in each step, and garbage in all free memory."""
    *_, spec, size = STEPS[name]
    eager, captured = (training_step(*STEPS[name], graph) for graph in (False, True))
    captured.compute.warmup = 1
    for i, batch in enumerate(batches(spec, size)):
        for one in (eager, captured):
            one.optimizer.lr = 1e-3 / (1 + i)
            fake_cupy.spoil(MemoryPool.current if one is eager else captured.compute.pool)
            inputs, targets, labels = batch
            given = (inputs, targets) if one is captured and i % 2 else map(cupy.asarray, (inputs, targets))
            one(*given, labels, i)
        assert captured.read() == eager.read()
    assert len(captured.compute.graphs) == 2
    for own, other in ((captured.optimizer, eager.optimizer), (captured.ema, eager.ema)):
        arrays = own.state_dict() | {"weights": own.flat.data}
        expected = other.state_dict() | {"weights": other.flat.data}
        assert all((to_numpy(arrays[key]) == to_numpy(expected[key])).all() for key in arrays)


# --- what a graph owns ---


def attention(x):
    return ops.attention(x, num_heads=3).data


def test_tables_of_addresses_are_made_at_each_replay(cuda):
    """For the heads of attention over more tokens than one kernel takes; their memory is reused within a step."""
    x = numbers(3, 70, 36).astype("float32")
    captured = cuda.capture(attention, warmup=1)
    for i in range(1, 4):
        y = to_numpy(captured(i * x))
        np.testing.assert_allclose(y, ops.attention(i * x, num_heads=3).data, rtol=1e-4, atol=1e-5)
        fake_cupy.spoil(captured.pool)
    (recording,) = captured.graphs.values()
    assert [node.name for node in recording.graph.work].count("addresses") == 1


def test_a_graph_and_its_caller_wait_for_one_another(cuda, monkeypatch):
    """It reads what the caller wrote before, and its results are read afterwards."""
    waits = []
    monkeypatch.setattr(fake_cupy.Stream, "record", lambda stream: stream)
    monkeypatch.setattr(fake_cupy.Stream, "wait_event", lambda *streams: waits.append(streams))
    captured = cuda.capture(lambda x: x + 1, warmup=1)
    for _ in range(3):
        captured(cupy.asarray(np.ones(5)))
    outside = cupy.cuda.get_current_stream()
    assert waits == 3 * [(captured.stream, outside), (outside, captured.stream)]


def test_a_full_gpu_takes_no_memory_from_a_graph(cuda):
    """If an allocation fails, CuPy frees all unused memory of a pool, to which recorded steps would still write."""
    captured = cuda.capture(lambda x: (x + 1) * x, warmup=1)
    for _ in range(2):
        captured(np.ones(1000))
    captured.pool.set_limit(1)
    with pytest.raises(MemoryError):
        captured(np.ones(100_000))
    assert (to_numpy(captured(np.full(1000, 2.0))) == 6).all()


def test_a_captured_step_owns_its_handle_and_counters(cuda, monkeypatch):
    """They are freed with it, and the next step inherits nothing through a reused address."""
    blas, x = cuda.gemm.library(), numbers(700, 33)
    sums = ops.linear(x, x.T[:, :5]).data.sum(0)

    def make():
        def compute(x):
            return cuda.kernels.column_sums(ops.linear(x, cupy.ascontiguousarray(x.T[:, :5])).data)

        return cuda.capture(compute, warmup=1)

    found = []
    for _ in range(3):
        captured = make()
        for _ in range(3):
            np.testing.assert_allclose(to_numpy(captured(x)), sums)
        found.append((len(blas.handles), len(MEMORIES)))
        with captured._on_own_stream():
            cuda.kernels._counts().host[:] = 77  # as if a kernel had been aborted
        del captured
        gc.collect()
    assert found[0] == found[1] == found[2]
    assert len(blas.handles) < found[0][0] and len(MEMORIES) < found[0][1]


# --- products for which tensor cores cannot be used ---


def heads(B, N, count, d, dtype="float32"):
    """Two arrays (B, heads, N, d), views of one array (B, N, 2, heads, d), at two distances."""
    x = cupy.asarray(numbers(B, N, 2 * count * d).astype(dtype)).reshape(B, N, 2, count, d)
    return x.transpose(2, 0, 3, 1, 4)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("sizes", [(3, 8, 3, 8), (2, 9, 3, 8), (2, 8, 3, 6), (3, 7, 5, 5), (2, 6, 3, 8)], ids=str)
def test_matrices_at_odd_addresses(sizes, precision, cuda):
    """With odd numbers of matrices and rows, and few columns, cuBLAS must not get misaligned addresses."""
    cuda.use(precision)
    q, k = map(cuda.gemm.to_precision, heads(*sizes))
    q, k = (x.reshape(sizes[0], sizes[1], 1, sizes[2], -1).transpose(2, 0, 3, 1, 4)[0] for x in (packed(q), packed(k)))
    expected = from_bf16(q) @ from_bf16(k).swapaxes(2, 3)
    own = cuda.gemm.product(q, k.swapaxes(2, 3))
    np.testing.assert_allclose(to_numpy(own), expected, rtol=1e-4, atol=1e-4)
    if precision == "bf16":
        narrow = cuda.gemm.product(q, k.swapaxes(2, 3), cupy.empty(own.shape, np.uint16))
        np.testing.assert_allclose(from_bf16(narrow), expected, rtol=0.01, atol=1e-4)


def packed(x):
    """Return (B, heads, N, d) as a contiguous array (B, N, heads, d)."""
    return cupy.ascontiguousarray(x.swapaxes(1, 2))


def from_bf16(x):
    x = to_numpy(x)
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x


def test_tensor_cores_compute_aligned_products(cuda, monkeypatch):
    """Alignment matters only for tables of addresses."""
    kinds, launch = [], fake_cupy.launch

    def noted(name, work, arrays, macs=0, kind=None):
        kinds.append(kind)
        launch(name, work, arrays, macs, kind)

    monkeypatch.setattr(fake_cupy, "launch", noted)
    cuda.use("tf32")
    for sizes, expected in (
        ((2, 8, 3, 8), "tf32"),
        ((2, 9, 3, 8), "fp32"),
        ((2, 8, 3, 6), "fp32"),
        ((6, 9, 1, 6), "tf32"),
    ):
        q, k = heads(*sizes)
        kinds.clear()
        cuda.gemm.product(q, k.swapaxes(2, 3))
        assert kinds[-1] == expected


def test_an_output_with_gaps_along_both_axes(cuda):
    """Refused, because a copy would be filled and lost."""
    a, b = (cupy.asarray(numbers(*shape)) for shape in ((5, 3), (3, 4)))
    for out in (cupy.empty((10, 8))[::2, ::2], cupy.empty((4, 5)).T):
        with pytest.raises(ValueError, match="the rows of out are not contiguous"):
            cuda.gemm.product(a, b, out)


def test_a_bias_with_gaps(cuda):
    x, W, b = numbers(4, 3), numbers(3, 5), numbers(10)
    own = ops.linear(*map(cupy.asarray, (x, W)), cupy.asarray(b)[::2])
    np.testing.assert_allclose(to_numpy(own.data), x @ W + b[::2])
    own = ops.residual(*(cupy.asarray(numbers(4, 5)) for _ in range(2)), cupy.asarray(b)[::2])
    np.testing.assert_allclose(to_numpy(own.data), 2 * numbers(4, 5) + b[::2])


# --- the stand-in ---


def test_freed_memory_goes_to_the_next_array_that_fits(cuda):
    pool = MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        x, y = cupy.empty(1000), cupy.empty(1000)
        at, other, view = x.data.ptr, y.data.ptr, x[10:].reshape(2, -1)
        assert (at - other) % 512 == 0
        del x
        assert cupy.empty(1000).data.ptr not in (at, other)  # a view holds it
        del view
        z = cupy.empty(500)  # half of it
        assert z.data.ptr == at and cupy.empty(300).data.ptr == at + 4096
        with cupy.cuda.Stream():
            assert not at <= cupy.empty(300).data.ptr < at + 8192  # another stream has other memory
    assert not at <= cupy.empty(300).data.ptr < at + 8192  # and another pool
    assert pool.used_bytes() == 4096 + 8192 and pool.total_bytes() == 3 * 8192 + 2560
    del z
    pool.free_all_blocks()
    assert pool.used_bytes() == pool.total_bytes() == 8192


def test_a_graph_works_in_memory_that_was_freed_since(cuda):
    """Its temporaries and results keep their addresses, which hold what was written last."""
    addresses = []

    def compute(x):
        for _ in range(2):
            y = x + 1
            addresses.append(y.data.ptr)
            del y
        return x * 2

    captured = cuda.capture(compute, warmup=1)
    captured(np.ones(5))
    x = captured(np.ones(5))
    assert len(set(addresses[2:])) == 1 and (to_numpy(x) == 2).all()
    table = {}

    def wrong(x):
        """Reads memory that it has freed."""
        table["at"] = (x + 1).data.ptr
        freed = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_double * 5).from_address(table["at"]))
        y = x * 3
        return y + fake_cupy.ndarray(freed)

    captured = cuda.capture(wrong, warmup=1)
    captured(np.ones(5))
    assert not (to_numpy(captured(np.ones(5))) == 5).all()


def many(x):
    return [x] * 9


REFUSED = {
    "stack of 9 arrays": lambda x: cupy.stack(many(x)),
    "concatenate of 9 arrays": lambda x: cupy.concatenate(many(x)),
    "upload": lambda x: x + cupy.asarray(np.ones(5)),
    "copy from the host": lambda x: x.set(np.ones(5)),
    "get": lambda x: x.get(),
    "number": lambda x: x.sum().item(),
    "mask": lambda x: x[x > 0],
    "written by a mask": lambda x: x.__setitem__(x > 0, x),
    "nonzero": lambda x: cupy.nonzero(x),
    "where": lambda x: cupy.where(x > 0),
    "list of indices": lambda x: x[[0, 2]],
    "synchronize": lambda x: cupy.cuda.Device().synchronize(),
    "stream": lambda x: cupy.cuda.get_current_stream().synchronize(),
    "event": lambda x: cupy.cuda.Event().synchronize(),
    "memory of its own": lambda x: cupy.cuda.Memory(512),
    "matmul": lambda x: x @ x,
    "einsum": lambda x: cupy.einsum("i,i", x, x),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured(name, cuda):
    calls = []

    def compute(x):
        calls.append(x)
        if len(calls) > 1:
            REFUSED[name](x)
        return x + 1

    captured = cuda.capture(compute, warmup=1)
    captured(np.ones(5))
    with pytest.raises(InputError, match="this step cannot be captured"):
        captured(np.ones(5))
    assert State.recorded is None
    assert (to_numpy(cupy.stack([cupy.asarray(np.ones(5))] * 9)) == 1).all()


def test_an_address_outside_of_all_memory_raises(cuda):
    table = cupy.asarray(np.full(2, 4096, "uint64"))
    c = fake_cupy.ctypes
    one, zero, at = c.c_float(1), c.c_float(0), (c.c_void_p(table.data.ptr), 0, 4)
    with pytest.raises(AssertionError, match="illegal memory access"):
        cuda.gemm.library().cublasGemmBatchedEx(
            cuda.gemm._handle().pointer, 0, 0, 4, 4, 4, c.byref(one), *at, *at, c.byref(zero), *at, 2, 68, -1
        )


def test_muons_matrices_in_one_array():
    """Matrices of one shape are orthogonalized together, with the result of each alone."""
    params = [Tensor(numbers(4, 6 + i // 10), True) for i in range(11)]
    optimizer = optim.Muon(params, 0.1)
    for p in params:
        p.grad[...] = numbers(*p.shape) + 1
    before = [p.data.copy() for p in params]
    optimizer.step()
    for p, old in zip(params, before, strict=True):
        u = (1 - 0.95) * (numbers(*p.shape) + 1)
        u = (numbers(*p.shape) + 1) + 0.95 * (u - (numbers(*p.shape) + 1))
        move = 0.2 * max(p.shape) ** 0.5 * 0.1 * optim.orthogonal(u)
        np.testing.assert_allclose(p.data, (1 - 0.1 * 0.01) * old - move)
