"""Downloads from a server of our own, which cuts, stalls and errs as it is told; what is left must never look whole."""

import hashlib
import http.server
import io
import itertools
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from minitl.data import download
from minitl.errors import InputError

BODY = np.random.default_rng(0).bytes(1000)
SHA256 = hashlib.sha256(BODY).hexdigest()


class Site(http.server.ThreadingHTTPServer):
    """Serves ``body``, whatever is asked for.

    cuts    after how many bytes each of the next connections breaks; None for not at all
    ranges  whether it can send the rest of a file
    length  whether it says how long the file is
    pause   a function called when the bytes up to a cut are out, before the connection ends
    goes_on whether the rest is sent after the pause
    asked   the ranges that were asked for, None for the whole file
    """

    daemon_threads = True

    def __init__(self, body):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.cuts, self.ranges, self.length, self.asked = body, [], True, True, []
        self.pause, self.goes_on = lambda: None, False
        self.url = f"http://127.0.0.1:{self.server_port}/some/file.tar"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        site, header = self.server, self.headers.get("Range")
        site.asked.append(header)
        start = int(header.removeprefix("bytes=").removesuffix("-")) if header and site.ranges else 0
        if start >= len(site.body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if site.length:
            self.send_header("Content-Length", str(len(site.body) - start))
        self.end_headers()
        cut = site.cuts.pop(0) if site.cuts else None
        self.wfile.write(site.body[start:][:cut])
        if cut is not None:
            site.pause()
            if site.goes_on:
                self.wfile.write(site.body[start:][cut:])

    def log_message(self, *args):
        pass


@pytest.fixture
def site():
    with Site(BODY) as site:
        thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield site
        site.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "file.tar"


@pytest.fixture
def part(path):
    path.parent.mkdir()
    return path.with_name("file.tar.part")


def left(path):
    return sorted(p.name for p in path.parent.iterdir())


def expect_whole(site, path):
    assert download.fetch(site.url, path, SHA256) == path
    assert path.read_bytes() == BODY and left(path) == ["file.tar"]


def test_a_file_is_downloaded_once(site, path):
    expect_whole(site, path)
    expect_whole(site, path)
    assert site.asked == [None]


def test_the_progress_is_shown_on_a_terminal(site, path, part, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    part.write_bytes(BODY[:400])
    monkeypatch.setattr(sys, "stderr", Terminal())
    expect_whole(site, path)
    shown = sys.stderr.getvalue()
    assert "file.tar:  40%" in shown and "1.00k/1.00k" in shown


@pytest.mark.parametrize("length", [True, False])
def test_a_file_of_unknown_length(site, path, length):
    site.length = length
    expect_whole(site, path)


def test_a_cut_connection_is_taken_up_again(site, path):
    site.cuts = [400, 300]
    expect_whole(site, path)
    assert site.asked == [None, "bytes=400-", "bytes=700-"]


def test_a_server_that_cannot_send_parts(site, path):
    site.ranges, site.cuts = False, [400, 700]
    expect_whole(site, path)
    assert site.asked == [None, "bytes=400-", "bytes=700-"]


def test_a_connection_that_is_cut_again_and_again(site, path):
    site.cuts = [200] * download.ATTEMPTS
    with pytest.raises(InputError, match=r"ended after 600 of 1000 bytes\); run again to go on after the 600 bytes in"):
        download.fetch(site.url, path, SHA256)
    assert left(path) == ["file.tar.part"]
    expect_whole(site, path)
    assert site.asked[-1] == "bytes=600-"


def test_a_cut_connection_without_a_length(site, path):
    site.length, site.cuts = False, [400]
    with pytest.raises(InputError, match="SHA-256"):
        download.fetch(site.url, path, SHA256)
    assert left(path) == []


@pytest.mark.parametrize(
    "begun, asked",
    [
        (b"", [None]),
        (BODY[:1], ["bytes=1-"]),
        (BODY[:999], ["bytes=999-"]),
        (BODY, ["bytes=1000-"]),
        (bytes(400), ["bytes=400-", None]),  # of another file
        (bytes(1000), ["bytes=1000-", None]),
        (BODY + b"!", ["bytes=1001-", None]),
    ],
    ids=lambda x: f"{len(x)}",
)
def test_a_partial_file_is_completed(site, path, part, begun, asked):
    part.write_bytes(begun)
    expect_whole(site, path)
    assert site.asked == asked


def test_a_partial_file_and_a_server_that_cannot_send_parts(site, path, part):
    site.ranges = False
    part.write_bytes(bytes(2000))
    expect_whole(site, path)
    assert site.asked == ["bytes=2000-"]


@pytest.mark.parametrize("begun", [None, BODY[:400]])
def test_a_wrong_checksum(site, path, part, begun):
    if begun:
        part.write_bytes(begun)
    site.body = BODY[:-1] + b"!"
    with pytest.raises(InputError, match=f"is not the official file: .* expected {SHA256}.*was deleted"):
        download.fetch(site.url, path, SHA256)
    assert left(path) == []
    site.body = BODY
    expect_whole(site, path)


def test_a_server_that_falls_silent(site, path, monkeypatch):
    done = threading.Event()
    site.pause, site.cuts = done.wait, [300]
    monkeypatch.setattr(download, "TIMEOUT", 1)
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    with pytest.raises(InputError, match=r"nothing came for 1 seconds\); run again to go on after the 300 bytes"):
        download.fetch(site.url, path, SHA256)
    done.set()
    assert left(path) == ["file.tar.part"]
    monkeypatch.undo()
    expect_whole(site, path)
    assert site.asked == [None, "bytes=300-"]


def test_too_little_room(site, path, part, monkeypatch):
    part.write_bytes(BODY[:400])
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6 - 599, 599))
    with pytest.raises(InputError, match=r"needs 600 bytes and .*cache has 599 left; make room"):
        download.fetch(site.url, path, SHA256)
    monkeypatch.undo()
    expect_whole(site, path)
    assert site.asked == ["bytes=400-"] * 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full, which is a disk without room")
def test_a_disk_that_fills_up(site, path, part):
    part.symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"file.tar.part cannot be written \(No space left on device\)"):
        download.fetch(site.url, path, SHA256)
    assert not path.exists()
    part.unlink()
    expect_whole(site, path)


def test_no_network(path, part):
    part.write_bytes(BODY[:400])
    with socket.socket() as taken:  # bound but not listening: a connection to it is refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/file.tar"
        with pytest.raises(InputError, match=r"cannot be downloaded .*refused.* the 400 bytes .* by hand, put it"):
            download.fetch(url, path, SHA256)
    assert left(path) == ["file.tar.part"] and part.read_bytes() == BODY[:400]


def test_killed_in_the_middle(site, path):
    """Nothing can be tidied up then, so what is there must do."""
    done = threading.Event()
    site.pause, site.cuts = done.wait, [400]
    code = f"""
from pathlib import Path
from minitl.data.download import fetch
fetch({site.url!r}, Path({str(path)!r}), {SHA256!r})
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(download.__file__).parents[2]) as process:
        part = path.with_name("file.tar.part")
        while process.poll() is None and not (part.exists() and part.stat().st_size == 400):
            time.sleep(0.01)
        process.kill()
    done.set()
    assert left(path) == ["file.tar.part"] and process.returncode != 1
    expect_whole(site, path)
    assert site.asked == [None, "bytes=400-"]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("goes_on", [True, False])
def test_two_downloads_at_once(site, path, ranges, goes_on):
    """The second begins in the middle of the first, which it overtakes."""
    turns, found = itertools.count(), []
    halfway, over = threading.Event(), threading.Event()

    def pause():
        if next(turns) == 0:
            halfway.set()
            over.wait()

    site.ranges, site.goes_on, site.cuts, site.pause = ranges, goes_on, [400], pause
    first = threading.Thread(target=lambda: found.append(download.fetch(site.url, path, SHA256)))
    first.start()
    halfway.wait()
    expect_whole(site, path)
    over.set()
    first.join()
    assert found == [path] and path.read_bytes() == BODY and left(path) == ["file.tar"]
