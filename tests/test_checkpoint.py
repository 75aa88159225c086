"""A checkpoint is bit-exact, whole or absent, and every way in which it can be wrong has its message."""

import errno
import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from minitl.autograd import Tensor
from minitl.errors import InputError
from minitl.optim import EMA, AdamW
from minitl.train import checkpoint, files

ARRAYS = {
    "model.weight": np.array([[np.nan, -0.0, 1e-45], [np.inf, 1 / 3, -1.5]], "float32"),
    "model.mean": np.random.default_rng(0).standard_normal((3, 4)),
    "count": np.asarray(2**62 + 1),
    "pixels": np.arange(256, dtype="uint8").reshape(2, -1),
    "mask": np.array([True, False, True]),
    "none": np.zeros((0, 5), "float32"),
}
META = {"epoch": 3, "config": {"name": "größe", "size": [32, 32]}, "metrics": [[1, 0.1 + 0.2]], "big": 2**127 + 1}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, ARRAYS, META)
    return path


class Net:
    """The part of a module that a checkpoint needs."""

    def __init__(self, rng):
        self.params = {"weight": rng.standard_normal((4, 3)), "bias": rng.standard_normal(3)}
        self.params = {name: Tensor(x.astype("float32"), requires_grad=True) for name, x in self.params.items()}

    def state_dict(self):
        return {name: p.data for name, p in self.params.items()}

    def load_state_dict(self, state):
        for name, p in self.params.items():
            p.data[...] = state[name]


class Run:
    """A small run with everything that has a state."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.net = Net(self.rng)
        self.optimizer = AdamW(self.net.params.values(), lr=0.1)
        self.ema = EMA(self.optimizer, 0.9)
        self.parts = {"model": self.net, "optimizer": self.optimizer, "ema": self.ema}

    def train(self, steps):
        for _ in range(steps):
            for p in self.net.params.values():
                p.grad[...] = p.data + self.rng.standard_normal(p.shape)
            self.optimizer.step()
            self.ema.update()
        return self


# --- save and load ---


def test_round_trip_is_bit_exact(saved):
    arrays, meta = checkpoint.load(saved)
    assert meta == META
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape), name
        assert arrays[name].tobytes() == array.tobytes(), name
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_values_not_memory_order_are_saved(tmp_path):
    x = np.arange(24.0).reshape(2, 3, 4)
    views = {"transposed": x.T, "strided": x[:, ::2, ::-1], "broadcast": np.broadcast_to(x[0], (5, 3, 4))}
    checkpoint.save(tmp_path / "c", views, {})
    arrays, _ = checkpoint.load(tmp_path / "c")
    assert all(np.array_equal(arrays[name], view) for name, view in views.items())


def test_an_interrupted_run_goes_on_bit_exactly(tmp_path):
    path, whole = tmp_path / "c", Run(0).train(20)
    first = Run(0).train(8)
    meta = {"config": {"lr": 0.1, "size": (3, 4)}, "rng": first.rng.bit_generator.state}
    checkpoint.save(path, checkpoint.collect(first.parts), meta)

    second = Run(1).train(3)
    arrays, meta = checkpoint.load(path)
    checkpoint.compare_config(meta["config"], {"lr": 0.1, "size": (3, 4)})
    checkpoint.restore(arrays, second.parts)
    second.rng.bit_generator.state = meta["rng"]
    second.train(12)
    ends = [checkpoint.collect(run.parts) for run in (whole, second)]
    assert ends[0].keys() == ends[1].keys()
    assert all(array.tobytes() == ends[1][name].tobytes() for name, array in ends[0].items())


@pytest.mark.parametrize("array", [np.ones(2, "int8"), np.ones(2, "complex64"), np.array(["a"]), np.ones(2, ">f4")])
def test_other_dtypes_are_refused(saved, array):
    before = saved.read_bytes()
    with pytest.raises(TypeError, match=r"x is .*; a checkpoint holds float16, float32, float64, int64, uint8, bool"):
        checkpoint.save(saved, {"x": array}, {})
    with pytest.raises(TypeError, match="JSON"):
        checkpoint.save(saved, {}, {"x": np.ones(2)})
    assert saved.read_bytes() == before


# --- a disk that fills, and other trouble while writing ---


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullFile:
    """A file that takes half of what is written, then the disk is full."""

    def __init__(self, path, mode):
        self.file = open(path, mode)  # noqa: SIM115

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        full()


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
@pytest.mark.parametrize("existing", [True, False])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch, where, existing):
    path = tmp_path / "checkpoint.safetensors"
    if existing:
        checkpoint.save(path, ARRAYS, META)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    if where == "write":
        monkeypatch.setattr(files, "open", FullFile, raising=False)
    else:
        monkeypatch.setattr(os, where, full)
    with pytest.raises(InputError) as caught:
        checkpoint.save(path, {"x": np.zeros(500_000, "float32")}, {})
    for part in (str(path), "No space left on device", "takes 2.0 MB", "MB are free there", "make room"):
        assert part in str(caught.value)
    assert ("the old file is unchanged" in str(caught.value)) == existing
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_write_that_the_system_cuts_off(saved):
    resource = pytest.importorskip("resource", reason="file size limits exist on POSIX only")
    before, limits = saved.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write .*File too large"):
            checkpoint.save(saved, {"x": np.zeros(500_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.read_bytes() == before and len(list(saved.parent.iterdir())) == 1


def test_an_interrupt_while_saving_leaves_the_old_checkpoint(saved, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    before = saved.read_bytes()
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(saved, {}, {})
    assert saved.read_bytes() == before and len(list(saved.parent.iterdir())) == 1


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*missing.c \(No such file or directory\)"):
        checkpoint.save(tmp_path / "missing" / "c", {}, {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*irectory"):
        checkpoint.save(tmp_path / "folder", {}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


# --- files that cannot be loaded ---


def test_every_truncation_is_noticed(saved):
    content = saved.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    lengths = {0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, len(content) // 2, len(content) - 1}
    for length in sorted(lengths):
        saved.write_bytes(content[:length])
        with pytest.raises(InputError, match="is damaged, truncated or not a checkpoint"):
            checkpoint.load(saved)
    for foreign in (content + b"\0", b"PK\x03\x04" + bytes(1000), b"epoch,loss\n" * 100):
        saved.write_bytes(foreign)
        with pytest.raises(InputError, match="is damaged, truncated or not a checkpoint"):
            checkpoint.load(saved)


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match="there is no checkpoint"):
            checkpoint.load(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "pt", "minitl": "1", "meta": "{}"}])
def test_a_file_of_another_program(tmp_path, metadata):
    save_file({"x": np.ones(2)}, tmp_path / "c", metadata)
    with pytest.raises(InputError, match="is a safetensors file, but not a checkpoint of minitl"):
        checkpoint.load(tmp_path / "c")


def test_a_later_format_and_a_broken_meta(tmp_path):
    header = {"format": str(checkpoint.FORMAT + 1), "minitl": "9.1", "meta": "{}"}
    save_file({"x": np.ones(2)}, tmp_path / "c", header)
    with pytest.raises(InputError, match=r"saved by minitl 9\.1 in format 3.*formats up to 2; update minitl"):
        checkpoint.load(tmp_path / "c")
    save_file({"x": np.ones(2)}, tmp_path / "c", {"format": "1", "minitl": "0.1.0", "meta": "{"})
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load(tmp_path / "c")


# --- restore ---


def test_restore_lists_everything_at_once_and_changes_nothing():
    run = Run(0).train(2)
    before = {name: array.copy() for name, array in checkpoint.collect(run.parts).items()}
    arrays = checkpoint.collect(Run(1).train(1).parts)
    del arrays["model.bias"]
    arrays |= {"model.more": np.ones((2, 2)), "stray": np.asarray(1)}
    arrays["model.weight"] = arrays["model.weight"].T
    arrays["ema.average"] = arrays["ema.average"].astype("float64")
    with pytest.raises(InputError) as caught:
        checkpoint.restore(arrays, run.parts)
    assert str(caught.value).split("\n  ") == [
        "the checkpoint does not fit; nothing was loaded",
        "missing: model.bias float32[3]",
        "unknown: model.more float64[2, 2]",
        "unknown: stray int64[]",
        "different: model.weight is float32[3, 4] in the checkpoint, float32[4, 3] here",
        "different: ema.average is float64[15] in the checkpoint, float32[15] here",
    ]
    assert all(np.array_equal(array, before[name]) for name, array in checkpoint.collect(run.parts).items())


def test_restore_of_some_parts_says_which_to_ignore():
    run, other = Run(0), Run(1).train(1)
    arrays = checkpoint.collect(other.parts)
    with pytest.raises(InputError, match=r"unknown: optimizer\.exp_avg"):
        checkpoint.restore(arrays, {"model": run.net})
    checkpoint.restore(arrays, {"model": run.net}, ignore=("optimizer", "ema"))
    assert np.array_equal(run.optimizer.flat.data, other.optimizer.flat.data)
    assert not run.optimizer.exp_avg.any()


# --- configuration and generators ---


def test_configurations_are_compared_field_by_field():
    saved = json.loads(json.dumps({"lr": 1, "size": (32, 32), "model": {"width": 48, "old": None}, "name": "a"}))
    wanted = {"lr": 1.0, "size": (32, 32), "model": {"width": 64}, "name": "b", "new": False}
    checkpoint.compare_config(saved, saved | {"size": (32, 32), "lr": 1.0})
    with pytest.raises(InputError) as caught:
        checkpoint.compare_config(saved, wanted)
    assert str(caught.value).split("\n  ") == [
        "the checkpoint has another configuration; use its options, or start a new run",
        "model.width: 48 in the checkpoint, 64 here",
        "model.old: None in the checkpoint, absent here",
        "name: a in the checkpoint, b here",
        "new: absent in the checkpoint, False here",
    ]
