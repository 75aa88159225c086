"""Data: generated images, CIFAR from a local server, archives of images, batches; and every bad input."""

import functools
import gzip
import hashlib
import http.server
import io
import itertools
import os
import socket
import struct
import sys
import tarfile
import threading
import warnings
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pooch  # noqa: F401  here, so that its log keeps one stream for all tests
import pytest
from PIL import Image

from minitl import data
from minitl.data import cifar
from minitl.data import images as image_files
from minitl.data.clutter import masks
from minitl.errors import InputError

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10-images.tar.xz"


def rng(seed=0):
    return np.random.default_rng(seed)


def small(n=10, classes=3, side=4, seed=0):
    images = rng(seed).integers(256, size=(n, side, side, 3), dtype="uint8")
    return data.Dataset(images, np.arange(n) % classes, tuple("abcdefghij"[:classes]))


def same(a, b):
    boxes = a.boxes is b.boxes is None or np.array_equal(a.boxes, b.boxes)
    return (
        np.array_equal(a.images, b.images) and np.array_equal(a.labels, b.labels) and a.classes == b.classes and boxes
    )


# --- Dataset, load ---


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": np.zeros((10, 4, 4, 3), "float32")}, "uint8 array"),
        ({"images": np.zeros((10, 4, 4), "uint8")}, "uint8 array"),
        ({"images": [1, 2]}, "uint8 array"),
        ({"labels": np.zeros(9, "int64")}, r"labels .* \(10,\)"),
        ({"labels": np.zeros(10, "int32")}, "int64"),
        ({"labels": np.full(10, 3)}, r"label 3 is out of range.* 0\.\.2"),
        ({"labels": np.full(10, -1)}, "label -1 is out of range"),
        ({"boxes": np.zeros((10, 3), "int64")}, "boxes"),
    ],
)
def test_dataset_refuses_parts_that_do_not_fit(change, message):
    with pytest.raises(InputError, match=message):
        replace(small(), **change)


def test_subset_is_balanced_and_repeatable():
    labels = np.repeat([0, 1, 2], [100, 50, 3])
    full = data.Dataset(rng().integers(256, size=(153, 2, 2, 3), dtype="uint8"), labels, ("a", "b", "c"))
    part = full.subset(31, rng())
    assert sorted(np.bincount(part.labels)) == [3, 14, 14]  # the small class gives all it has
    assert same(part, full.subset(31, rng())) and not same(part, full.subset(31, rng(1)))
    assert (np.diff(part.labels) >= 0).all()  # the order is kept
    assert same(full.subset(1000, rng()), full)
    with pytest.raises(InputError, match="at least 1"):
        full.subset(0, rng())


@pytest.mark.parametrize(
    "name, message",
    [
        ("cluter", "did you mean clutter"),
        ("cifar-10", "did you mean cifar10 "),
        ("qqq", "choose clutter"),
        ("/x/y.zip", "no file is called '/x/y.zip'; check the path; if a run was trained on it, put it back$"),
    ],
)
def test_unknown_name(name, message):
    with pytest.raises(InputError, match=message):
        data.load(name)


def test_unknown_path_names_its_neighbours(tmp_path):
    (tmp_path / "photos.zip").touch()
    with pytest.raises(InputError, match=r"did you mean .*photos\.zip"):
        data.load(tmp_path / "photo.zip")


def test_load_generates_clutter_once(monkeypatch):
    data._generated.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(data.GENERATED, "clutter", lambda: data.clutter(20, 10))
        (train, test), (again, _) = data.load("clutter"), data.load("clutter")
    data._generated.cache_clear()
    assert train.images is again.images and same(test, data.clutter(20, 10)[1])
    with pytest.raises(ValueError, match="read-only"):
        train.images[0] = 0


class Screen(io.StringIO):
    """A terminal that keeps what is written to it."""

    def isatty(self):
        return True


@pytest.mark.parametrize("generate, what", [(data.clutter, "600 images"), (data.actors, "600 clips")])
def test_a_bar_is_there_for_those_who_wait(monkeypatch, generate, what):
    """On a terminal, if generating takes more than a second by the clock; at the end it disappears."""
    for screen, tick, shown in ((Screen(), 1.5, True), (Screen(), 0.0, False), (io.StringIO(), 1.5, False)):
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setattr("tqdm.std.time", functools.partial(next, itertools.count(0, tick)))
        generate(600, 50)
        text = screen.getvalue()
        assert (f"/{what.split()[0]} [" in text and what.split()[1] in text and "generating" in text) == shown, text
        assert text.split("\r")[-1].strip() == "" if shown else text == ""


# --- CLUTTER ---


@pytest.fixture(scope="module")
def clutter():
    return data.clutter(1200, 300)


def test_clutter_is_the_same_every_time(clutter):
    train, test = data.clutter(1200, 300)
    assert same(train, clutter[0]) and same(test, clutter[1])
    assert not np.array_equal(train.images[:300], test.images)
    # Known sums: integers drawn by the generator are exact everywhere, rounded pixels nearly.
    assert train.labels[:12].tolist() == [7, 4, 4, 2, 4, 5, 7, 7, 5, 6, 4, 0]
    assert train.boxes.sum(0).tolist() == [14309, 14512, 23900, 24103]
    np.testing.assert_allclose(train.images.mean((0, 1, 2)), [121.0358, 128.9952, 128.2696], atol=1e-3)


def test_clutter_is_what_it_says(clutter):
    train, _ = clutter
    assert train.images.shape == (1200, 32, 32, 3) and len(train.classes) == 8
    assert np.bincount(train.labels, minlength=8).min() > 100
    top, left, bottom, right = train.boxes.T
    assert min(top.min(), left.min()) == 0 and max(bottom.max(), right.max()) == 32
    assert set(bottom - top) == {7, 8, 9} and (bottom - top == right - left).all()
    assert abs(((bottom - top) * (right - left)).mean() / 1024 - 0.063) < 0.001


def test_clutter_boxes_hold_the_target(clutter):
    """The target lies on top, so its colour stands unmixed wherever its shape covers a pixel whole."""
    train, _ = clutter
    shapes = masks()
    for image, label, (top, left, bottom, right) in zip(train.images, train.labels, train.boxes, strict=True):
        window = image[top:bottom, left:right].astype(int)
        cover = shapes[label, (bottom - top) - 7, : bottom - top, : right - left]
        core = window[cover == 1]
        assert len(core) >= 5 and (core == core[0]).all()
        red, green, blue = core[0] / 255
        assert red > 0.84 and 0.14 < green < 0.36 and 0.09 < blue < 0.31


@pytest.mark.parametrize("sizes", [(0, 0), (5, 0), (-1, 5)])
def test_clutter_has_images(sizes):
    with pytest.raises(InputError, match="at least 1 image"):
        data.clutter(*sizes)


def test_shapes_differ_and_fill_their_boxes():
    table = masks()
    assert table.min() == 0 and table.max() == 1
    for i, a in enumerate(table):
        assert not a[0, 7:].any() and not a[0, :, 7:].any()  # size 7 leaves the rest empty
        assert (a[2].any(0).sum(), a[0].any(0).sum()) == (9, 7)  # as wide as it says
        assert all(abs(a[1] - b[1]).sum() > 6 for b in table[:i])  # by at least six pixels


# --- Loader ---


def test_loader_covers_each_image_once_in_a_seeded_order():
    full = small(10)
    loader = data.Loader(full, 4, shuffle=True, rng=rng(3))
    assert len(loader) == 3
    first, second = list(loader), list(loader)
    assert [len(labels) for _, labels in first] == [4, 4, 2]
    assert first[0][0].dtype == np.uint8 and first[0][1].dtype == np.int64
    images = [np.concatenate([x for x, _ in epoch]) for epoch in (first, second)]
    assert not np.array_equal(*images)
    for epoch in images:
        assert sorted(map(bytes, epoch)) == sorted(map(bytes, full.images))
    again = np.concatenate([x for x, _ in data.Loader(full, 4, shuffle=True, rng=rng(3))])
    assert np.array_equal(again, images[0])


def test_loader_labels_belong_to_their_images():
    full = small(10)
    known = {bytes(x): y for x, y in zip(full.images, full.labels, strict=True)}
    for images, labels in data.Loader(full, 3, shuffle=True, rng=rng()):
        assert [known[bytes(x)] for x in images] == labels.tolist()


def test_loader_continues_from_a_saved_state():
    generator = rng(5)
    loader = data.Loader(small(20), 6, shuffle=True, rng=generator)
    list(loader)
    state = generator.bit_generator.state
    expected = list(loader)
    generator = rng()
    generator.bit_generator.state = state
    for (a, b), (c, d) in zip(data.Loader(small(20), 6, True, generator), expected, strict=True):
        assert np.array_equal(a, c) and np.array_equal(b, d)


@pytest.mark.parametrize("batch_size, sizes", [(1, [1] * 10), (4, [4, 4, 2]), (5, [5, 5]), (11, [10])])
def test_loader_in_order(batch_size, sizes):
    full = small(10)
    batches = list(data.Loader(full, batch_size))
    assert [len(x) for x, _ in batches] == sizes and len(data.Loader(full, batch_size)) == len(sizes)
    assert np.array_equal(np.concatenate([x for x, _ in batches]), full.images)


def test_loader_refuses():
    with pytest.raises(InputError, match="batch_size is at least 1, got 0"):
        data.Loader(small(10), 0)
    with pytest.raises(InputError, match="no images"):
        data.Loader(small(10).take([]), 4)


# --- CIFAR, from made-up archives on a server of our own ---


@pytest.fixture(autouse=True)
def no_wait_between_attempts(monkeypatch):
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """``(folder, hits)``: the files that the official site has, and the list of what was asked for."""
    hits = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            hits.append(self.path)

    root = tmp_path / "site"
    root.mkdir()
    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=root))
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(cifar, "URL", f"http://127.0.0.1:{site.server_port}/")
    yield root, hits
    site.shutdown()
    thread.join()
    site.server_close()


CIFAR10 = {"cifar-10-batches-bin/batches.meta.txt": b"\n".join(b"class%d" % i for i in range(10)) + b"\n\n"}
PIXELS = rng(4).integers(256, size=(40, 3072), dtype="uint8")


def cifar10_files():
    """Four images in each of five training members and in the test member."""
    files, names = dict(CIFAR10), [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for k, name in enumerate(names):
        labels = (np.arange(4, dtype="uint8") + 4 * k) % 10
        rows = np.concatenate([labels[:, None], PIXELS[4 * k : 4 * k + 4]], axis=1)
        files[f"cifar-10-batches-bin/{name}.bin"] = rows.tobytes()
    return files


def publish(root, monkeypatch, files, name="cifar10", links=()):
    """Put a tar.gz of ``files`` on the server and expect just that one, with few images in each member."""
    kind = cifar.ARCHIVES[name]
    path = root / kind.file
    write_tar(path, files, links)
    counts = {"train": dict.fromkeys(kind.train, 4), "test": dict.fromkeys(kind.test, 4)}
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(cifar.ARCHIVES, name, kind._replace(sha256=sha256, **counts))
    return path


def write_tar(path, files, links=()):
    mode = {".gz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}.get(Path(path).suffix, "w")
    with tarfile.open(path, mode) as file:
        for name, raw in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            file.addfile(info, io.BytesIO(raw))
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            file.addfile(info)


def test_cifar10_is_downloaded_once_and_read(server, tmp_path, monkeypatch, capfd):
    root, hits = server
    publish(root, monkeypatch, cifar10_files())
    cache = tmp_path / "cache"
    train, test = data.load("cifar10", data_dir=cache)
    assert train.labels.tolist() == [i % 10 for i in range(20)] and test.labels.tolist() == [0, 1, 2, 3]
    assert train.classes == tuple(f"class{i}" for i in range(10))
    for k, image in enumerate([*train.images, *test.images]):
        assert image.shape == (32, 32, 3)
        assert image[5, 7].tolist() == [PIXELS[k, c * 1024 + 5 * 32 + 7] for c in range(3)]
    assert [p.name for p in cache.iterdir()] == ["cifar-10-binary.tar.gz"]
    monkeypatch.setenv("MINITL_DATA", str(cache))
    assert same(data.load("cifar10")[0], train) and len(hits) == 1
    assert len(data.load("cifar10", subset=10)[0]) == 10
    assert capfd.readouterr() == ("", "")  # no progress bar without a terminal


def test_cifar100_takes_the_fine_labels(server, tmp_path, monkeypatch):
    names = b"\n".join(b"fine%d" % i for i in range(100))
    rows = np.concatenate([np.full((4, 1), 3, "uint8"), np.uint8([[99], [0], [50], [7]]), PIXELS[:4]], 1).tobytes()
    folder = "cifar-100-binary/"
    files = {folder + "fine_label_names.txt": names, folder + "train.bin": rows, folder + "test.bin": rows}
    publish(server[0], monkeypatch, files, "cifar100")
    train, _ = data.load("cifar100", data_dir=tmp_path)
    assert train.labels.tolist() == [99, 0, 50, 7] and train.classes[99] == "fine99"
    assert train.images[1, 0, 0].tolist() == PIXELS[1, [0, 1024, 2048]].tolist()


def test_the_official_checksums_are_in_the_table():
    kinds = cifar.ARCHIVES
    assert kinds["cifar10"].sha256.startswith("c4a38c50") and kinds["cifar100"].sha256.startswith("58a81ae1")
    assert sum(kinds["cifar10"].train.values()) == sum(kinds["cifar100"].train.values()) == 50_000


def broken_member(change):
    files = cifar10_files()
    change(files, "cifar-10-batches-bin/data_batch_3.bin")
    return files


@pytest.mark.parametrize(
    "files, links, message",
    [
        (broken_member(lambda f, m: f.update({m: f[m][:-1]})), (), "data_batch_3.bin has 12291 bytes, not 4 x 3073"),
        (broken_member(lambda f, m: f.update({m: b"\x0a" + f[m][1:]})), (), "label 10 is out of range"),
        (broken_member(lambda f, m: f.pop(m)), (), "no regular files named .*data_batch_3.bin"),
        (
            broken_member(lambda f, m: f.pop(m)),
            [("cifar-10-batches-bin/data_batch_3.bin", "data_batch_2.bin")],
            "no regular files named .*data_batch_3.bin",
        ),
        (cifar10_files() | {"cifar-10-batches-bin/batches.meta.txt": b"one two"}, (), "2 class names, not 10"),
    ],
)
def test_cifar_refuses_wrong_members(server, tmp_path, monkeypatch, files, links, message):
    publish(server[0], monkeypatch, files, links=links)
    with pytest.raises(InputError, match=message):
        data.load("cifar10", data_dir=tmp_path)


def test_cifar_wrong_checksum(server, tmp_path, monkeypatch):
    path = publish(server[0], monkeypatch, cifar10_files())
    expected = cifar.ARCHIVES["cifar10"].sha256
    cache = tmp_path / "cache"
    path.write_bytes(path.read_bytes() + b"!")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(InputError, match=f"expected {expected} but got {found}"):
        data.load("cifar10", data_dir=cache)
    assert not list(cache.iterdir())  # nothing left that could be taken for the archive
    (cache / path.name).write_bytes(path.read_bytes())  # a wrong file put there by hand is left alone
    with pytest.raises(InputError, match=f"{found}, expected {expected}; move it away"):
        data.load("cifar10", data_dir=cache)
    assert (cache / path.name).read_bytes() == path.read_bytes()


def test_cifar_truncated(server, tmp_path, monkeypatch):
    """With the right checksum of a cut file, so that it is the archive reader that has to notice."""
    path = publish(server[0], monkeypatch, cifar10_files())
    path.write_bytes(path.read_bytes()[:30_000])
    kind = cifar.ARCHIVES["cifar10"]
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(cifar.ARCHIVES, "cifar10", kind._replace(sha256=sha256))
    with pytest.raises(InputError, match=r"cannot be read.*delete it"):
        data.load("cifar10", data_dir=tmp_path / "cache")


def test_cifar_offline_says_what_to_do(tmp_path, monkeypatch):
    with socket.socket() as taken:  # bound but not listening: a connection to it is refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(cifar, "URL", f"http://127.0.0.1:{taken.getsockname()[1]}/")
        with pytest.raises(InputError, match=r"downloaded to .*cifar-10-binary\.tar\.gz \(.* by hand and put it there"):
            data.load("cifar10", data_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_cifar_folder_that_cannot_be_written(server, tmp_path, monkeypatch):
    publish(server[0], monkeypatch, cifar10_files())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"to .*file.cifar-10-binary.*Not a directory.* choose another folder"):
        data.load("cifar10", data_dir=tmp_path / "file")


def test_cifar_not_on_the_site(server, tmp_path):
    with pytest.raises(InputError, match=r"cannot be downloaded .*404"):
        data.load("cifar100", data_dir=tmp_path / "cache")


# --- folders and archives of images ---


def encode(array, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


def picture(seed, shape=(5, 6, 3)):
    return encode(rng(seed).integers(256, size=shape, dtype="uint8"))


def good():
    """Two classes, five training images and three for testing, in an order that is not the sorted one."""
    names = ["train/dog/2", "train/cat/1", "test/dog/1", "train/cat/0", "train/dog/0", "test/cat/0", "test/dog/0"]
    return {f"{name}.png": picture(i) for i, name in enumerate([*names, "train/dog/1"])}


def write_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of names that come twice
        for name, raw in files.items():
            file.writestr(name, raw)


def write_folder(path, files):
    for name, raw in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(raw)


WRITERS = {
    "folder": write_folder,
    "x.zip": write_zip,
    "x.tar": write_tar,
    "x.tar.gz": write_tar,
    "x.tar.bz2": write_tar,
    "x.tar.xz": write_tar,
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("prefix", ["", "photos/", "./"])
def test_every_container_gives_the_same(tmp_path, kind, prefix, capfd):
    files = {prefix + name: raw for name, raw in good().items()}
    files |= {prefix + "README.txt": b"read me", prefix + "train/cat/.DS_Store": b"?", "__MACOSX/train/cat/0.png": b"?"}
    WRITERS[kind](tmp_path / kind, files)
    train, test = data.load(str(tmp_path / kind))
    assert train.classes == test.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 1, 1, 1] and test.labels.tolist() == [0, 1, 1]
    for split, names in (
        ("train", ["cat/0", "cat/1", "dog/0", "dog/1", "dog/2"]),
        ("test", ["cat/0", "dog/0", "dog/1"]),
    ):
        for image, name in zip({"train": train, "test": test}[split].images, names, strict=True):
            expected = Image.open(io.BytesIO(good()[f"{split}/{name}.png"]))
            assert np.array_equal(image, np.asarray(expected))
    assert capfd.readouterr() == ("", "")  # no progress bar without a terminal


def test_large_images_in_a_tar(tmp_path):
    files = {name: picture(i, (640, 640, 3)) for i, name in enumerate(good())}
    assert min(map(len, files.values())) > image_files.MAX_HEADER_BYTES
    write_tar(tmp_path / "x.tar", files)
    assert data.load(tmp_path / "x.tar")[0].images.shape == (5, 640, 640, 3)


def test_a_subset_decodes_only_what_it_needs(tmp_path, monkeypatch):
    write_zip(tmp_path / "x.zip", good())
    full, whole_test = data.load(tmp_path / "x.zip")
    decoded = []
    decode = image_files.decode
    monkeypatch.setattr(image_files, "decode", lambda name, load: decoded.append(name) or decode(name, load))
    train, test = data.load(tmp_path / "x.zip", subset=2)
    assert same(train, full.subset(2, rng())) and same(test, whole_test)
    assert train.labels.tolist() == [0, 1] and len(decoded) == 5


def test_other_kinds_of_pixels_become_rgb(tmp_path):
    files = good()
    grey = rng().integers(256, size=(5, 6), dtype="uint8")
    files["train/cat/0.png"] = encode(grey)
    files["train/cat/1.png"] = encode(np.dstack([grey, grey, grey, grey]))  # with transparency
    write_folder(tmp_path, files)
    train, _ = data.load(tmp_path)
    assert np.array_equal(train.images[0], np.dstack([grey] * 3)) and np.array_equal(train.images[1], train.images[0])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_class_whose_name_is_not_utf8_can_be_printed(tmp_path):
    files = {name.replace("train/cat", os.fsdecode(b"train/caf\xe9")): x for name, x in good().items()}
    files = {name.replace("test/cat", os.fsdecode(b"test/caf\xe9")): x for name, x in files.items()}
    write_folder(tmp_path, files)
    train, _ = data.load(tmp_path)
    assert "caf?" in train.classes and " ".join(train.classes).encode()


def test_pictures_are_turned_as_the_camera_says(tmp_path):
    files = good()
    image = rng().integers(256, size=(6, 5, 3), dtype="uint8")
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # its top is at the right
    Image.fromarray(image).save(file, "PNG", exif=exif)
    files["train/cat/0.png"] = file.getvalue()
    write_folder(tmp_path, files)
    assert np.array_equal(data.load(tmp_path)[0].images[0], np.rot90(image, -1))


def png_header(width, height):
    """A small file that claims to be a large picture."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def without(prefix):
    return {name: raw for name, raw in good().items() if not name.startswith(prefix)}


BAD = {
    "no test split": (without("test"), "no images test/class/image"),
    "no train split": (without("train"), "no images train/class/image"),
    "one class": (without("train/dog"), "single class 'cat'"),
    "test class not in train": (good() | {"test/emu/0.png": picture(9)}, "test has classes .*: emu"),
    "not an image": (good() | {"train/cat/7.png": b"hello"}, r"'train/cat/7\.png' is not a readable image"),
    "image cut short": (good() | {"train/cat/7.png": picture(0)[:-40]}, r"'train/cat/7\.png' is not a readable image"),
    "an empty image": (good() | {"train/cat/7.png": b""}, r"'train/cat/7\.png' is not a readable image"),
    "mixed sizes": (
        good() | {"train/cat/7.png": picture(0, (8, 7, 3))},
        r"\.png' has (6 x 5 pixels but 'train/cat/7.png' has 7 x 8|7 x 8 pixels but .*\.png' has 6 x 5)",
    ),
    "16 bits": (good() | {"train/cat/7.png": encode(np.zeros((5, 6), "uint16"))}, "8 bits per channel"),
    "bomb, large": (good() | {"train/cat/7.png": png_header(5000, 5000)}, "more than 16777216 pixels"),
    "bomb, huge": (good() | {"train/cat/7.png": png_header(50000, 50000)}, "more than 16777216 pixels"),
    "too deep": (good() | {"train/cat/old/7.png": picture(0)}, "not of the form train/class/image"),
    "no class": (good() | {"train/7.png": picture(0)}, "not of the form train/class/image"),
    "two sets": (good() | {"more/" + name: raw for name, raw in good().items()}, "more than one folder"),
    "empty": ({}, "no images train/class/image"),
    "nothing of use": ({"README.txt": b"hello"}, "no images train/class/image"),
}


@pytest.mark.parametrize("kind", ["folder", "x.zip", "x.tar.gz"])
@pytest.mark.parametrize("bad", BAD)
def test_archive_refuses(tmp_path, kind, bad):
    files, message = BAD[bad]
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    WRITERS[kind](path, files)
    with pytest.raises(InputError, match=message) as error:
        data.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kind", ["x.zip", "x.tar"])
@pytest.mark.parametrize("name", ["../train/cat/7.png", "train/../../7.png", "/train/cat/7.png", "C:/train/cat/7.png"])
def test_archive_refuses_names_that_point_outside(tmp_path, kind, name):
    WRITERS[kind](tmp_path / kind, good() | {name: picture(0)})
    with pytest.raises(InputError, match="points outside"):
        data.load(tmp_path / kind)


def test_archive_refuses_backslashes_that_point_outside(tmp_path):
    write_tar(tmp_path / "x.tar", good() | {"train\\..\\..\\7.png": picture(0)})
    with pytest.raises(InputError, match="points outside"):
        data.load(tmp_path / "x.tar")


@pytest.mark.parametrize("kind", ["folder", "x.zip", "x.tar"])
def test_archive_refuses_links(tmp_path, kind):
    path = tmp_path / kind
    if kind == "x.tar":
        write_tar(path, good(), links=[("train/cat/7.png", "/etc/hostname")])
    elif kind == "x.zip":
        write_zip(path, good())
        with zipfile.ZipFile(path, "a") as file:
            info = zipfile.ZipInfo("train/cat/7.png")
            info.external_attr = 0o120777 << 16
            file.writestr(info, "/etc/hostname")
    else:
        write_folder(path, good())
        os.symlink(path / "train/cat", path / "train/emu")
    with pytest.raises(InputError, match=r"'train/(cat/7\.png|emu)' is a link"):
        data.load(path)


def test_archive_refuses_a_name_twice(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        for name, raw in [*good().items(), *good().items()]:
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            file.addfile(info, io.BytesIO(raw))
    with pytest.raises(InputError, match="more than once"):
        data.load(tmp_path / "x.tar")


@pytest.mark.parametrize("kind", ["x.zip", "x.tar"])
@pytest.mark.parametrize("other", ["./train/cat/0.png", "train\\cat\\0.png", "train//cat/./0.png"])
def test_archive_refuses_two_spellings_of_a_name(tmp_path, kind, other):
    WRITERS[kind](tmp_path / kind, good() | {other: picture(0)})
    with pytest.raises(InputError, match=r"contains 'train/cat/0\.png' more than once"):
        data.load(tmp_path / kind)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
@pytest.mark.parametrize("first", [True, False])
def test_archive_refuses_a_long_header_unread(tmp_path, kind, first):
    """The header's bytes are missing: tarfile would notice only after trying to read them."""
    path = tmp_path / "x.tar"
    write_tar(path, {} if first else good())
    with tarfile.open(path) as file:
        file.getmembers()
        end = file.offset
    header = tarfile.TarInfo("long")
    header.type, header.size = kind, 2**20 + 1
    path.write_bytes(path.read_bytes()[:end] + header.tobuf() + bytes(1024))
    with pytest.raises(InputError, match="a header is too long"):
        data.load(path)


def write_sparse_tar(path, old, size):
    """A tar.gz of one sparse file, whose list of holes has ``size`` bytes: in GNU's old format or its format 1.0."""
    info = tarfile.TarInfo("train/cat/9.png")
    if old:
        info.type = tarfile.GNUTYPE_SPARSE
        header, block = bytearray(info.tobuf(tarfile.GNU_FORMAT)), bytearray(b"00000000001 " * 42 + bytes(8))
        header[482] = block[504] = 1  # another block follows
        content = header + block * (size // 512) + bytes(512)
        content[148:156] = b"%06o\0 " % sum(b"        " + content[:148] + content[156:512])  # the checksum
    else:
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        info.size = size
        pairs = (size - 16) // 4
        content = info.tobuf(tarfile.PAX_FORMAT) + (b"%d\n" % pairs + b"1\n" * 2 * pairs).ljust(size, b"\0")
    path.write_bytes(gzip.compress(content + bytes(1024)))


@pytest.mark.parametrize("old", [True, False])
def test_archive_refuses_sparse_files(tmp_path, old):
    write_sparse_tar(tmp_path / "x.tar.gz", old, 1024)
    with pytest.raises(InputError, match=r"'train/cat/9\.png' is a link, a device or a sparse file"):
        data.load(tmp_path / "x.tar.gz")
    write_sparse_tar(tmp_path / "x.tar.gz", old, 2**21)
    with pytest.raises(InputError, match="a header is too long"):
        data.load(tmp_path / "x.tar.gz")


def test_archive_refuses_a_long_tail(tmp_path, monkeypatch):
    write_tar(tmp_path / "x.tar.gz", good())
    assert len(data.load(tmp_path / "x.tar.gz")[0]) == 5
    monkeypatch.setattr(image_files, "MAX_TAIL_BYTES", 1000)
    with pytest.raises(InputError, match="more than 1000 bytes follow"):
        data.load(tmp_path / "x.tar.gz")


@pytest.mark.parametrize("kind", ["folder", "x.zip", "x.tar"])
@pytest.mark.parametrize("name", ["README.txt", "train/cat/.hidden"])
def test_archive_refuses_large_files_that_are_no_images(tmp_path, monkeypatch, kind, name):
    monkeypatch.setattr(image_files, "MAX_FILE_BYTES", 1000)
    WRITERS[kind](tmp_path / kind, good() | {name: bytes(1001)})
    with pytest.raises(InputError, match=f"{name}' has 1001 bytes"):
        data.load(tmp_path / kind)


@pytest.mark.parametrize("kind", ["x.tar.gz", "x.tar.xz", "x.tar.bz2"])
def test_archive_refuses_a_damaged_end(tmp_path, kind):
    """All files are whole, but the checksum after the last one is not."""
    write_tar(tmp_path / kind, good())
    raw = bytearray((tmp_path / kind).read_bytes())
    raw[-6] ^= 255
    (tmp_path / kind).write_bytes(raw)
    with pytest.raises(InputError, match="cannot be read as a zip or tar archive"):
        data.load(tmp_path / kind)


def test_archive_refuses_a_cut_zip_as_a_zip(tmp_path):
    write_zip(tmp_path / "x.zip", good())
    (tmp_path / "x.zip").write_bytes((tmp_path / "x.zip").read_bytes()[:-100])
    with pytest.raises(InputError, match="it is a zip archive whose end is missing") as error:
        data.load(tmp_path / "x.zip")
    assert "method" not in str(error.value)


@pytest.mark.parametrize("kind", ["x.zip", "x.tar", "x.tar.gz", "x.tar.xz", "x.tar.bz2"])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
def test_archive_refuses_when_truncated(tmp_path, kind, share):
    files = good() | {f"train/dog/{i}.png": picture(i) for i in range(10, 40)}
    WRITERS[kind](tmp_path / kind, files)
    raw = (tmp_path / kind).read_bytes()
    (tmp_path / kind).write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(InputError, match="cannot be read as a zip or tar archive"):
        data.load(tmp_path / kind)


def test_archive_refuses_a_tar_cut_between_two_files(tmp_path):
    path = tmp_path / "x.tar"
    write_tar(path, good() | {"train/dog/9.png": picture(9)})
    with tarfile.open(path) as file:
        end = file.getmembers()[-1].offset
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(InputError, match="ends too early"):
        data.load(path)


def test_archive_refuses_a_damaged_file_in_a_zip(tmp_path):
    path = tmp_path / "x.zip"
    write_zip(path, good())
    raw = bytearray(path.read_bytes())
    raw[60] ^= 255  # inside of the first image
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"'train/dog/2\.png' is not a readable image"):
        data.load(path)


def test_archive_refuses_what_is_none(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"hello" * 1000)
    with pytest.raises(InputError, match="cannot be read as a zip or tar archive"):
        data.load(tmp_path / "x.tar")


def test_archive_refuses_too_many_bytes(tmp_path, monkeypatch):
    write_zip(tmp_path / "x.zip", good())
    monkeypatch.setattr(image_files, "MAX_BYTES", 8 * 90 - 1)
    with pytest.raises(InputError, match="8 images of 6 x 5 pixels take more than"):
        data.load(tmp_path / "x.zip")
    monkeypatch.setattr(image_files, "MAX_BYTES", 8 * 90)
    assert len(data.load(tmp_path / "x.zip")[0]) == 5
    monkeypatch.setattr(image_files, "MAX_FILE_BYTES", 100)
    with pytest.raises(InputError, match="over the limit of 100"):
        data.load(tmp_path / "x.zip")


@pytest.mark.skipif(not PHOTOS.exists(), reason="the shared CIFAR-10 photographs are not on this machine")
def test_real_photographs():
    train, test = data.load(PHOTOS, subset=100)
    assert len(train) == 100 and len(test) == 10_000 and train.images.shape[1:] == (32, 32, 3)
    assert np.bincount(train.labels).tolist() == [10] * 10 and np.bincount(test.labels).tolist() == [1000] * 10
    assert train.classes[0] == "airplane" and train.classes[9] == "truck"
    np.testing.assert_allclose(data.channel_stats(test.images)[0], [0.494, 0.485, 0.450], atol=0.005)


def test_a_tar_whose_first_name_looks_compressed(tmp_path):
    """Its first bytes are those of a name, BZ, and not of bzip2."""
    write_tar(tmp_path / "x.tar", {f"BZ/{name}": raw for name, raw in good().items()})
    assert len(data.load(tmp_path / "x.tar")[0]) == 5


def test_a_tar_that_ends_in_a_zip(tmp_path):
    """A zip is recognized by its end, which is also the end of a tar whose last file is a zip."""
    notes = io.BytesIO()
    with zipfile.ZipFile(notes, "w") as file:
        file.writestr("a", "b")
    write_tar(tmp_path / "x.tar", good() | {"notes.zip": notes.getvalue()})
    assert len(data.load(tmp_path / "x.tar")[0]) == 5


def test_a_file_that_disappears_while_it_is_read(tmp_path, monkeypatch):
    """Its place is not filled with whatever was in memory."""
    write_zip(tmp_path / "x.zip", good())
    once = [(*file[:3], lambda: None) for file in image_files._files(tmp_path / "x.zip")]
    passes = iter([once, once[1:]])
    monkeypatch.setattr(image_files, "_files", lambda _: iter(next(passes)))
    monkeypatch.setattr(image_files, "decode", lambda name, load: np.zeros((4, 4, 3), "uint8"))
    with pytest.raises(InputError, match=r"changed while it was read: .* is gone; run again"):
        data.load(tmp_path / "x.zip")
