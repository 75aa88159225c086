"""A file from the web, whole and checked, or a message that says what to do; a broken download goes on where it ended.

Until the last byte is there and the SHA-256 is right the file has another name, so that nothing takes it for whole.
"""

import contextlib
import hashlib
import itertools
import shutil

from ..errors import InputError

TIMEOUT = 30  # seconds in which not one byte comes
ATTEMPTS = 3  # connections that may break before a person has to start it again


def fetch(url, path, sha256):
    """``path``, downloaded from ``url`` if it is not there; its ``sha256`` is checked either way.

    What has come when a download breaks is kept as ``path``.part, and the next one asks the server for the rest.
    Raises ``InputError`` when the file can neither be found nor downloaded nor written, or is not the right one.
    """
    import http.client

    if path.exists():
        if (found := _sha256(path)) != sha256:
            names = (f"{path.name}.wrong{i or ''}" for i in itertools.count())
            aside = path.replace(next(p for p in map(path.with_name, names) if not p.exists()))
            raise InputError(f"{_mismatch(path, found, sha256)}. It is now {aside}; run again for a download")
        return path

    part = path.with_name(path.name + ".part")
    with _writing(part):
        path.parent.mkdir(parents=True, exist_ok=True)
        begun = part.exists()
    try:
        _download(url, part)
        if begun and _sha256(part) != sha256:  # perhaps it began as another file
            part.unlink()
            _download(url, part)
        if (found := _sha256(part)) != sha256:
            part.unlink()
            raise InputError(f"{_mismatch(url, found, sha256)}. The download was deleted; try again later")
        return part.replace(path)
    except (OSError, http.client.HTTPException) as error:
        if path.exists():  # another process that downloads it was faster
            return fetch(url, path, sha256)
        kept = f"run again to go on after the {part.stat().st_size} bytes in {part}; or " if part.exists() else ""
        by_hand = f"download it by hand, put it at {path} (or in a folder given as data_dir), and run again"
        raise InputError(f"{url} cannot be downloaded ({error}); {kept}{by_hand}") from error


def _download(url, part):
    """Get what ``part`` lacks, over as many connections as it takes."""
    import http.client

    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _get_rest(url, part)
        except (ConnectionError, TimeoutError, http.client.IncompleteRead) as error:
            if attempt == ATTEMPTS:
                silent = isinstance(error, TimeoutError)
                raise OSError(f"nothing came for {TIMEOUT} seconds" if silent else error) from error


def _get_rest(url, part):
    """Get what ``part`` lacks over one connection, with a progress bar on a terminal."""
    import urllib.error
    import urllib.request

    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # there is nothing after what we have
            return error.close()
        raise
    with response:
        done = have if response.status == 206 else 0  # some servers can only send all of it
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        with _writing(part):
            free = shutil.disk_usage(part.parent).free
            part.touch()
        if total and total - have > free:
            raise InputError(
                f"{url} needs {total - have} bytes and {part.parent} has {free} left; "
                "make room, or choose another folder with data_dir"
            )
        name = url.rpartition("/")[2]
        progress = tqdm(total=total, initial=done, desc=name, unit="B", unit_scale=True, disable=None)
        # No "wb": two processes that download the same file write the same bytes to the same places.
        with open(part, "r+b", buffering=0) as file, progress:
            file.seek(done)
            while block := response.read1(2**16):  # what there is, not waiting for all of it
                progress.update(len(block))
                rest = memoryview(block)
                while rest:
                    with _writing(part):
                        rest = rest[file.write(rest) :]
            done = file.tell()
            if total and done < total:
                raise ConnectionError(f"it ended after {done} of {total} bytes")
            file.truncate()


def _mismatch(what, found, expected):
    return f"{what} is not the official file: its SHA-256 is {found}, expected {expected}"


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _writing(path):
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); mend that, or choose another folder with data_dir, "
            "and run again"
        ) from error
