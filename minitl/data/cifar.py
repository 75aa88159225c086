"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) from the official binary archives.

The binary form is plain bytes: its length can be checked exactly, and nothing in it is ever executed. The archive is
downloaded once, kept as it is, and its SHA-256 is checked before each use.
"""

import os
import sys
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .dataset import Dataset

URL = "https://www.cs.toronto.edu/~kriz/"
TIMEOUT_SECONDS = 30  # without a byte from the site
IMAGE_BYTES = 3 * 32 * 32  # all of red, then green, then blue


class Archive(NamedTuple):
    """Name, checksum and layout of one official file."""

    file: str
    sha256: str
    train: dict[str, int]  # member -> number of images in it
    test: dict[str, int]
    names: str  # the member with a class name on each line
    classes: int
    label_bytes: int  # before each image; the last one is the label


ARCHIVES = {
    "cifar10": Archive(
        "cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        train={f"cifar-10-batches-bin/data_batch_{i}.bin": 10_000 for i in range(1, 6)},
        test={"cifar-10-batches-bin/test_batch.bin": 10_000},
        names="cifar-10-batches-bin/batches.meta.txt",
        classes=10,
        label_bytes=1,
    ),
    "cifar100": Archive(
        "cifar-100-binary.tar.gz",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        train={"cifar-100-binary/train.bin": 50_000},
        test={"cifar-100-binary/test.bin": 10_000},
        names="cifar-100-binary/fine_label_names.txt",
        classes=100,
        label_bytes=2,  # of 20 coarse classes, then of the 100
    ),
}


def read(name, data_dir=None):
    """Return ``(train, test)`` of "cifar10" or "cifar100", downloading the archive to ``data_dir`` if necessary.

    Raises InputError if the archive can be neither found nor downloaded, or is not the official one.
    """
    archive = ARCHIVES[name]
    folder = Path(data_dir or os.environ.get("MINITL_DATA") or "~/.cache/minitl").expanduser()
    path = download(URL + archive.file, folder / archive.file, archive.sha256)
    wanted = {*archive.train, *archive.test, archive.names}
    try:
        members = _members(path, wanted)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); delete it and run again") from error
    if missing := wanted - set(members):
        raise InputError(f"{path} has no regular files named {', '.join(sorted(missing))}; delete it and run again")
    classes = tuple(members[archive.names].decode().split())
    if len(classes) != archive.classes:
        raise InputError(f"{path}: {archive.names} has {len(classes)} class names, not {archive.classes}")
    return tuple(_split(path, archive, members, counts, classes) for counts in (archive.train, archive.test))


def download(url, path, sha256):
    """Return ``path``, downloaded from ``url`` if it does not exist; its SHA-256 is checked either way.

    A download has a temporary name until it is complete and checked. If it breaks off or is wrong, it starts again, up
    to twice. Raises InputError if the file cannot be downloaded or written, or has another SHA-256.
    """
    import pooch

    try:
        if not path.exists():
            files, urls = {path.name: sha256}, {path.name: url}
            site = pooch.create(path.parent, base_url="", registry=files, urls=urls, retry_if_failed=2)
            options = {"progressbar": sys.stderr.isatty(), "chunk_size": 2**16, "timeout": TIMEOUT_SECONDS}
            site.fetch(path.name, downloader=pooch.HTTPDownloader(**options))
    except (OSError, ValueError) as error:  # ValueError: the download has another SHA-256, and was deleted
        raise InputError(
            f"{url} cannot be downloaded to {path} ({error}); download it by hand and put it there, "
            "or choose another folder with data_dir, and run again"
        ) from error
    try:
        found = pooch.file_hash(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); make it readable, or delete it and run again") from error
    if found != sha256:
        raise InputError(
            f"{path} is not the official file: its SHA-256 is {found}, expected {sha256}; "
            "move it away and run again to download it"
        )
    return path


def _members(path, names):
    """Return the content of each regular file in ``names``, read in one pass and never extracted to disk."""
    with tarfile.open(path, "r|gz") as file:
        return {info.name: file.extractfile(info).read() for info in file if info.name in names and info.isreg()}


def _split(path, archive, members, counts, classes):
    row = archive.label_bytes + IMAGE_BYTES
    for member, count in counts.items():
        if len(members[member]) != count * row:
            raise InputError(f"{path}: {member} has {len(members[member])} bytes, not {count} x {row}")
    rows = np.frombuffer(b"".join(members[member] for member in counts), "uint8").reshape(-1, row)
    images = rows[:, archive.label_bytes :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    try:
        return Dataset(np.ascontiguousarray(images), rows[:, archive.label_bytes - 1].astype("int64"), classes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
