"""Files that are written whole or not at all, and Ctrl-C that lets a run save its state."""

import contextlib
import csv
import errno
import io
import os
import shutil
import signal
from pathlib import Path

from ..errors import InputError


def write(path, content):
    """Write the bytes ``content`` to the file ``path``.

    They are written to a file beside ``path`` that then replaces it, so at every moment ``path`` is either the old file
    or the new one, whole. Raises InputError if it cannot be written, for instance because the disk is full.
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


def write_csv(path, columns, rows):
    """Write ``rows``, dicts with the keys ``columns``, as a table to the file ``path``, see ``write``."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(path, os.fsencode(text.getvalue()))


@contextlib.contextmanager
def writing(path, size=0):
    """Turn an OSError from writing ``size`` bytes to ``path`` into an InputError."""
    try:
        yield
    except OSError as error:
        path, reason, remedy = Path(path), error.strerror or error, "fix that"
        if size and error.errno in (errno.ENOSPC, errno.EDQUOT):
            free, remedy = shutil.disk_usage(path.parent).free, "make room"
            reason = f"{reason}: it takes {size / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free there"
        old = "; the old file is unchanged" if path.is_file() else ""
        raise InputError(f"cannot write {path} ({reason}); {remedy}, or choose another place{old}") from error


@contextlib.contextmanager
def ctrl_c():
    """Yield a list that is not empty after Ctrl-C; a second Ctrl-C interrupts as usual."""
    pressed = []

    def on_signal(*_):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)

    try:
        before = signal.signal(signal.SIGINT, on_signal)
    except ValueError:  # only the main thread can handle signals
        yield pressed
        return
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
