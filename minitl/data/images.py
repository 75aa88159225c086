"""Your own images: a folder, a zip or a tar of files named ``split/class/image``, decoded to RGB.

The splits are ``train`` and ``test``; one folder may lie around both. Files elsewhere, and hidden ones, are left
alone. Nothing is ever extracted to the disk. An archive may come from anywhere, so what it claims is checked
before it is believed: names, links, sizes, and the number of pixels before a picture is decoded.
"""

import io
import os
import stat
import tarfile
import warnings
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path, PureWindowsPath

import numpy as np

from ..errors import InputError
from .dataset import Dataset, balanced

SPLITS = ("train", "test")
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # the formats that Pillow decodes without other programs
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # 8 bits per channel
MAX_FILE = 64 * 2**20  # bytes of one image file
MAX_PIXELS = 4096 * 4096  # of one image
MAX_BYTES = 8 * 2**30  # of all decoded images
MAX_HEADER = 2**20  # bytes of what a tar says about one file
MAX_TAIL = 16 * 2**20  # bytes after the last file of a tar


def read(path, subset=None):
    """``(train, test)`` of the images at ``path``, sorted by class and file name; the classes by name.

    Only the images that ``subset`` leaves (see ``minitl.data.load``) are decoded, and the archive is read as a
    stream, twice: once for the names, once for the images. Raises ``InputError`` for anything that cannot be used.
    """
    path = Path(path)
    classes, splits = _index(path)
    index = {c: i for i, c in enumerate(classes)}
    labels, chosen = {}, {}  # chosen: file name -> split, place in it
    for split, files in splits.items():
        labels[split] = np.array([index[c] for c, _ in files], "int64")
        if split == "train" and subset is not None:
            keep = balanced(labels[split], subset, np.random.default_rng(0))
            files, labels[split] = [files[i] for i in keep], labels[split][keep]
        chosen |= {name: (split, i) for i, (_, name) in enumerate(files)}
    images = _decode_all(path, chosen, {split: len(x) for split, x in labels.items()})
    return tuple(Dataset(images[split], labels[split], classes) for split in SPLITS)


def _index(path):
    """The names of all images, first pass: ``classes``, and for each split its sorted ``(class, file name)``."""
    splits = {split: [] for split in SPLITS}
    seen, outer = Counter(), set()  # seen: the names, each in its plainest spelling
    for name, size, plain, _ in _files(path):
        parts = PureWindowsPath(name).parts  # knows / and \ and drive letters alike
        if PureWindowsPath(name).anchor or ".." in parts:
            raise InputError(f"{path}: the name {name!r} points outside of the archive; do not trust this file")
        if not plain:
            raise InputError(f"{path}: {name!r} is a link or a device; put the file itself there, or take it out")
        if size > MAX_FILE:
            raise InputError(f"{path}: {name!r} has {size} bytes, more than any image here ({MAX_FILE}); take it out")
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            continue
        depth = next((i for i, part in enumerate(parts[:2]) if part in SPLITS), None)
        if depth is None or len(parts) == depth + 1:
            continue
        if len(parts) != depth + 3:
            raise InputError(f"{path}: {name!r} is not of the form {parts[depth]}/class/image; move it or take it out")
        label = parts[depth + 1].encode(errors="replace").decode()  # a name that is not UTF-8 cannot be printed
        splits[parts[depth]].append((label, name))
        seen["/".join(parts)] += 1
        outer.add("/".join(parts[:depth]) or "the outermost")
    if twice := [name for name, count in seen.items() if count > 1]:
        raise InputError(f"{path}: holds {twice[0]!r} more than once; make the archive anew")
    if len(outer) > 1:
        raise InputError(
            f"{path}: has train or test in more than one folder ({', '.join(sorted(outer))}); keep one of them"
        )
    for split, files in splits.items():
        if not files:
            raise InputError(f"{path}: has no images {split}/class/image; both train and test are needed")
        files.sort(key=lambda file: (file[0], PureWindowsPath(file[1]).name))
    classes = tuple(sorted({c for c, _ in splits["train"]}))
    if len(classes) < 2:
        raise InputError(f"{path}: train has the single class {classes[0]!r}; at least two classes are needed")
    if extra := sorted({c for c, _ in splits["test"]} - set(classes)):
        raise InputError(f"{path}: test has classes that train does not have: {', '.join(extra)}")
    return classes, splits


def _decode_all(path, chosen, counts):
    """The ``chosen`` images, second pass: uint8 (N, H, W, 3) for each split of ``counts``."""
    from PIL import Image
    from tqdm import tqdm

    images, first = {}, None
    progress = tqdm(total=len(chosen), desc=f"reading {path.name}", unit="image", disable=None)
    with warnings.catch_warnings(), progress:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for name, _, _, load in _files(path):
            if name not in chosen:
                continue
            image = decode(f"{path}: {name!r}", load)
            if first is None:
                first = name
                if len(chosen) * image.nbytes > MAX_BYTES:
                    size = f"{len(chosen)} images of {image.shape[1]} x {image.shape[0]} pixels"
                    raise InputError(f"{path}: {size} take more than {MAX_BYTES / 2**30:g} GiB; use a subset of them")
                images = {split: np.empty((n, *image.shape), "uint8") for split, n in counts.items()}
                shape = image.shape
            if image.shape != shape:
                sizes = [f"{n!r} has {s[1]} x {s[0]}" for n, s in ((first, shape), (name, image.shape))]
                raise InputError(f"{path}: {sizes[0]} pixels but {sizes[1]}; bring all images to one size first")
            split, i = chosen[name]
            images[split][i] = image
            progress.update()
    return images


def decode(name, load, most=MAX_PIXELS):
    """The image file whose bytes ``load()`` gives, as an RGB array (H, W, 3).

    Raises InputError, which begins with ``name``, for more than ``most`` pixels and for what is no readable image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(load()), formats=FORMATS)
        if image.width * image.height > most:
            raise Image.DecompressionBombError
        if image.mode in MODES:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))  # cameras store how they were held
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"{name} has more than {most} pixels; make it smaller, or take it out") from None
    except UnidentifiedImageError:
        raise InputError(f"{name} is not a readable image of a kind that Pillow knows; take it out") from None
    except Exception as error:  # Pillow raises many kinds for broken files
        raise InputError(f"{name} is not a readable image ({error}); repair it or take it out") from error
    raise InputError(f"{name} has pixels of the kind {image.mode}; save it with 8 bits per channel")


# --- the three containers, each as a stream of files ---


def _files(path):
    """Every file at ``path``, in its own order: name, bytes, whether it is a plain file, and a function that reads it.

    That function works only until the next file is asked for.
    """
    if path.is_dir():
        yield from _folder(path)
    elif zipfile.is_zipfile(path):
        yield from _zip(path)
    else:
        yield from _tar(path)


def _folder(path):
    def refuse(error):
        raise InputError(f"{path}: a folder cannot be read ({error})")

    for folder, folders, files in os.walk(path, onerror=refuse):
        for file in (Path(folder, name) for name in folders + files):
            mode = file.lstat().st_mode
            if not stat.S_ISDIR(mode):
                yield file.relative_to(path).as_posix(), file.lstat().st_size, stat.S_ISREG(mode), file.read_bytes


def _zip(path):
    try:
        with zipfile.ZipFile(path) as file:
            for info in file.infolist():
                if not info.is_dir():
                    link = stat.S_ISLNK(info.external_attr >> 16)
                    yield info.filename, info.file_size, not link, partial(file.read, info)
    except Exception as error:  # BadZipFile, and others for what Python cannot unpack
        raise InputError(f"{path} cannot be read as a zip archive ({error}); get it again") from error


class _Header(tarfile.TarInfo):
    """The header of one member, without the parts that tarfile would read into memory at any length."""

    def _proc_member(self, file):
        if self.size > MAX_HEADER and not self.isreg():  # a long name, or the like
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(file)

    def _refuse(self, *_):
        raise tarfile.ReadError("a file with holes")  # the list of which has no limit

    _proc_sparse = _proc_gnusparse_10 = _refuse


def _tar(path):
    try:
        with open(path, "rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise zipfile.BadZipFile("it is a zip archive whose end is missing or damaged")
        with tarfile.open(path, tarinfo=_Header) as file:
            for info in file:
                file.members.clear()  # tarfile remembers all of them
                if not info.isdir():
                    yield info.name, info.size, info.isreg(), lambda info=info: file.extractfile(info).read()
            # tarfile takes a broken header, or none, for the end; the true end is a block of zeros.
            file.fileobj.seek(file.offset)
            if file.fileobj.read(512) != bytes(512):
                raise tarfile.ReadError("it ends too early")
            end = file.offset + MAX_TAIL
            while file.fileobj.read(2**20):  # to its end, where the compression's own checksum is
                if file.fileobj.tell() > end:
                    raise tarfile.ReadError(f"more than {MAX_TAIL} bytes follow its last file")
    except Exception as error:  # tarfile and each decompressor raise their own kinds
        raise InputError(f"{path} cannot be read as a zip or tar archive ({error}); get it again") from error
