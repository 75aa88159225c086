"""Your own images: a folder, a zip or a tar of files named ``split/class/image``, decoded to RGB.

The splits are ``train`` and ``test``; one folder may enclose both. Files elsewhere and hidden files are ignored.
Nothing is extracted to disk. An archive may come from anywhere, so its contents are checked before use: names,
links, sizes, and the number of pixels before an image is decoded.
"""

import contextlib
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
from .dataset import Dataset, balanced_indices

SPLITS = ("train", "test")
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # the formats that Pillow decodes without other programs
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # 8 bits per channel
MAX_FILE_BYTES = 64 * 2**20  # of one image file
MAX_PIXELS = 4096 * 4096  # of one image
MAX_BYTES = 8 * 2**30  # of all decoded images
MAX_HEADER_BYTES = 2**20  # of the headers of one file in a tar
MAX_TAIL_BYTES = 16 * 2**20  # after the last file of a tar


def read(path, subset=None):
    """Return ``(train, test)`` of the images at ``path``, sorted by class and file name; the classes by name.

    The archive is read twice, once for the names and once for the images; only the images that ``subset`` keeps (see
    ``minitl.data.load``) are decoded. Raises InputError for anything that cannot be used.
    """
    path = Path(path)
    classes, splits = _list_images(path)
    index = {c: i for i, c in enumerate(classes)}
    labels, chosen = {}, {}  # chosen: file name -> split, position in it
    for split, files in splits.items():
        labels[split] = np.array([index[c] for c, _ in files], "int64")
        if split == "train" and subset is not None:
            keep = balanced_indices(labels[split], subset, np.random.default_rng(0))
            files, labels[split] = [files[i] for i in keep], labels[split][keep]
        chosen |= {name: (split, i) for i, (_, name) in enumerate(files)}
    images = _decode_all(path, chosen, {split: len(x) for split, x in labels.items()})
    return tuple(Dataset(images[split], labels[split], classes) for split in SPLITS)


def _list_images(path):
    """Return the ``classes``, and for each split its sorted images as ``(class, file name)``: the first pass."""
    splits = {split: [] for split in SPLITS}
    spellings, outer = Counter(), set()  # spellings: how many names are the same once normalized
    for name, size, regular, _ in _files(path):
        parts = PureWindowsPath(name).parts  # splits at / and \ and knows drive letters
        if PureWindowsPath(name).anchor or ".." in parts:
            raise InputError(f"{path}: the name {name!r} points outside the archive; do not trust this file")
        if not regular:
            raise InputError(
                f"{path}: {name!r} is a link, a device or a sparse file; replace it with the file itself, or remove it"
            )
        if size > MAX_FILE_BYTES:
            raise InputError(f"{path}: {name!r} has {size} bytes, over the limit of {MAX_FILE_BYTES}; remove it")
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            continue
        depth = next((i for i, part in enumerate(parts[:2]) if part in SPLITS), None)
        if depth is None or len(parts) == depth + 1:
            continue
        if len(parts) != depth + 3:
            raise InputError(f"{path}: {name!r} is not of the form {parts[depth]}/class/image; move or remove it")
        label = parts[depth + 1].encode(errors="replace").decode()  # a name that is not UTF-8 cannot be printed
        splits[parts[depth]].append((label, name))
        spellings["/".join(parts)] += 1
        outer.add("/".join(parts[:depth]) or "the outermost")
    if repeated := [name for name, count in spellings.items() if count > 1]:
        raise InputError(f"{path}: contains {repeated[0]!r} more than once; remove the copies")
    if len(outer) > 1:
        raise InputError(
            f"{path}: train or test is in more than one folder ({', '.join(sorted(outer))}); keep one of them"
        )
    for split, files in splits.items():
        if not files:
            raise InputError(f"{path}: there are no images {split}/class/image; both train and test are needed")
        files.sort(key=lambda file: (file[0], PureWindowsPath(file[1]).name))
    classes = tuple(sorted({c for c, _ in splits["train"]}))
    if len(classes) < 2:
        raise InputError(f"{path}: train has the single class {classes[0]!r}; at least two classes are needed")
    if extra := sorted({c for c, _ in splits["test"]} - set(classes)):
        raise InputError(f"{path}: test has classes that train does not have: {', '.join(extra)}")
    return classes, splits


def _decode_all(path, chosen, counts):
    """Return the ``chosen`` images, uint8 (N, H, W, 3) for each split of ``counts``: the second pass."""
    from PIL import Image
    from tqdm import tqdm

    images, first, missing = {}, None, set(chosen)
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
                    raise InputError(f"{path}: {size} take more than {MAX_BYTES / 2**30:g} GiB; use a subset")
                images = {split: np.empty((n, *image.shape), "uint8") for split, n in counts.items()}
                shape = image.shape
            if image.shape != shape:
                sizes = [f"{n!r} has {s[1]} x {s[0]}" for n, s in ((first, shape), (name, image.shape))]
                raise InputError(f"{path}: {sizes[0]} pixels but {sizes[1]}; resize all images to one size")
            split, i = chosen[name]
            images[split][i] = image
            missing.remove(name)
            progress.update()
    if missing:
        raise InputError(f"{path} changed while it was read: {missing.pop()!r} is gone; run again")
    return images


def decode(name, load, max_pixels=MAX_PIXELS):
    """Return the image file whose bytes ``load()`` returns as an RGB array, uint8 (H, W, 3).

    Raises InputError, its message beginning with ``name``, if the file is not a readable image or has more than
    ``max_pixels`` pixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(load()), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise Image.DecompressionBombError
        if image.mode in MODES:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))  # EXIF: how the camera was held
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"{name} has more than {max_pixels} pixels; make it smaller or remove it") from None
    except UnidentifiedImageError:
        raise InputError(f"{name} is not a readable image of a format that Pillow knows; remove it") from None
    except Exception as error:  # Pillow raises many kinds for broken files
        raise InputError(f"{name} is not a readable image ({error}); repair or remove it") from error
    raise InputError(f"{name} has pixels of mode {image.mode}; save it with 8 bits per channel")


# --- the three containers, each as a stream of files ---


def _files(path):
    """Yield every file at ``path`` in its own order: name, bytes, True for a regular file, a function that reads it.

    That function works only until the next file is requested.
    """
    if path.is_dir():
        yield from _folder(path)
    elif not _is_tar(path) and zipfile.is_zipfile(path):
        yield from _zip(path)
    else:
        yield from _tar(path)


def _is_tar(path):
    """Return True for a tar, compressed or not; its last file may be a zip, at whose end a zip is recognized."""
    with contextlib.suppress(Exception), _decompressed(path) as stream:  # _zip or _tar will report what is wrong
        return stream.read(265)[257:262] == b"ustar"
    return False


def _decompressed(path):
    """Open a file for reading, decompressed; some Pythons come without bz2 or lzma."""
    with open(path, "rb") as file:
        magic = file.read(6)
    if magic.startswith(b"\x1f\x8b"):
        import gzip

        return gzip.open(path)
    if magic.startswith(b"BZh") and magic[3:4].isdigit():
        import bz2

        return bz2.open(path)
    if magic.startswith((b"\xfd7zXZ", b"\x5d\x00\x00")):
        import lzma

        return lzma.open(path)
    return open(path, "rb")


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


class _Limited:
    """A stream that reads at most ``limit`` bytes, until reset: tarfile loads headers of any length into memory."""

    def __init__(self, stream):
        self.stream, self.seek, self.tell, self.limit = stream, stream.seek, stream.tell, MAX_HEADER_BYTES

    def read(self, size):
        self.limit -= size
        if self.limit < 0:
            raise tarfile.ReadError("a header is too long")
        return self.stream.read(size)


def _tar(path):
    try:
        with open(path, "rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise zipfile.BadZipFile("it is a zip archive whose end is missing or damaged")
        with _decompressed(path) as stream:
            limited = _Limited(stream)
            with tarfile.open(fileobj=limited, mode="r:") as file:
                for info in file:
                    file.members.clear()  # tarfile remembers all of them
                    if not info.isdir():
                        limited.limit = MAX_FILE_BYTES
                        regular = info.isreg() and not info.issparse()
                        yield info.name, info.size, regular, lambda info=info: file.extractfile(info).read()
                    limited.limit = MAX_HEADER_BYTES
            # tarfile takes a broken or missing header for the end; the true end is a block of zeros.
            stream.seek(file.offset)
            if stream.read(512) != bytes(512):
                raise tarfile.ReadError("it ends too early")
            end = file.offset + MAX_TAIL_BYTES
            while stream.read(2**20):  # to the end, where a compressed file has its checksum
                if stream.tell() > end:
                    raise tarfile.ReadError(f"more than {MAX_TAIL_BYTES} bytes follow its last file")
    except Exception as error:  # tarfile and each decompressor raise their own kinds
        raise InputError(f"{path} cannot be read as a zip or tar archive ({error}); get it again") from error
