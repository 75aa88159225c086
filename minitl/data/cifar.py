"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) from the official binary archives.

The binary form is plain bytes, so that its length can be checked exactly and nothing in it is ever run. The archive
is downloaded once, kept as it is, and checked against its SHA-256 each time before it is read.
"""

import os
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from . import download
from .dataset import Dataset

URL = "https://www.cs.toronto.edu/~kriz/"
PIXELS = 3 * 32 * 32  # bytes of an image: all of red, then green, then blue


class Archive(NamedTuple):
    """One official file and how its members are laid out."""

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
    """``(train, test)`` of "cifar10" or "cifar100", downloaded to ``data_dir`` (see ``minitl.data.load``) if need be.

    Raises ``InputError`` when the archive can neither be found nor downloaded, or is not the official one.
    """
    archive = ARCHIVES[name]
    folder = Path(data_dir or os.environ.get("MINITL_DATA") or "~/.cache/minitl").expanduser()
    path = download.fetch(URL + archive.file, folder / archive.file, archive.sha256)
    try:
        members = _members(path, {*archive.train, *archive.test, archive.names})
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); delete it and run again") from error
    if missing := {*archive.train, *archive.test, archive.names} - set(members):
        raise InputError(f"{path} has no plain files named {', '.join(sorted(missing))}; delete it and run again")
    classes = tuple(members[archive.names].decode().split())
    if len(classes) != archive.classes:
        raise InputError(f"{path}: {archive.names} has {len(classes)} class names, not {archive.classes}")
    return tuple(_split(path, archive, members, counts, classes) for counts in (archive.train, archive.test))


def _split(path, archive, members, counts, classes):
    row = archive.label_bytes + PIXELS
    for member, count in counts.items():
        if len(members[member]) != count * row:
            raise InputError(f"{path}: {member} has {len(members[member])} bytes, not {count} x {row}")
    rows = np.frombuffer(b"".join(members[member] for member in counts), "uint8").reshape(-1, row)
    images = rows[:, archive.label_bytes :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    try:
        return Dataset(np.ascontiguousarray(images), rows[:, archive.label_bytes - 1].astype("int64"), classes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _members(path, names):
    """The bytes of the plain files called ``names``, read in one pass and never extracted to the disk."""
    with tarfile.open(path, "r|gz") as file:
        return {info.name: file.extractfile(info).read() for info in file if info.name in names and info.isreg()}
