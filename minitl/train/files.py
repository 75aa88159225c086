"""What must not end half done: a file that is written, and a run that somebody interrupts."""

import contextlib
import errno
import os
import shutil
import signal
import tempfile
from pathlib import Path

from ..errors import InputError


def write(path, content):
    """Write the bytes ``content`` to the file ``path``.

    They are first written beside ``path`` and then take its place, so that at every moment ``path`` is either the old
    file or the new one, whole. Raises InputError when it cannot be written, for instance because the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with writing(path, len(content)):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path, size=0):
    """Inside, what the system has against writing ``path``, of ``size`` bytes, becomes an InputError."""
    try:
        yield
    except OSError as error:
        path, reason, remedy = Path(path), error.strerror or error, "mend that"
        if size and error.errno in (errno.ENOSPC, errno.EDQUOT):
            free, remedy = shutil.disk_usage(path.parent).free, "make room"
            reason = f"{reason}: it takes {size / 1e6:.1f} MB and {free / 1e6:.1f} MB are free there"
        old = "; the old file is unchanged" if path.is_file() else ""
        raise InputError(f"cannot write {path} ({reason}); {remedy}, or choose another place{old}") from error


def check_folder(path):
    """Raise InputError unless files can be written in the folder ``path``. One that is missing stays so."""
    with writing(path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        try:
            if missing:
                path.mkdir(parents=True)
            tempfile.TemporaryFile(dir=path).close()
        finally:
            for folder in missing:
                with contextlib.suppress(OSError):
                    folder.rmdir()


@contextlib.contextmanager
def ctrl_c():
    """Gives a list that is not empty after Ctrl-C; the second Ctrl-C interrupts as usual."""
    pressed = []

    def on_signal(*_):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)

    try:
        before = signal.signal(signal.SIGINT, on_signal)
    except ValueError:  # only the main thread may ask for signals
        yield pressed
        return
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
