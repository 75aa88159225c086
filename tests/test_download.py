"""Downloads from a local server that breaks off, stalls and errs as told: no partial file may look complete."""

import hashlib
import http.server
import io
import itertools
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pooch  # noqa: F401  here, so that its log keeps one stream for all tests
import pytest

import minitl
from minitl.data import cifar
from minitl.data.cifar import download
from minitl.errors import InputError

BODY = np.random.default_rng(0).bytes(1000)
SHA256 = hashlib.sha256(BODY).hexdigest()


class Site(http.server.ThreadingHTTPServer):
    """Serves ``body``, whatever is asked for.

    cuts       number of bytes after which each of the next connections breaks; None for not at all
    length     whether it tells how long the file is
    pause      a function called when the bytes up to a cut are out, before the connection ends
    continues  whether the rest is sent after the pause
    requests   number of requests so far
    """

    daemon_threads = True

    def __init__(self, body):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.cuts, self.length, self.requests = body, [], True, 0
        self.pause, self.continues = lambda: None, False
        self.url = f"http://127.0.0.1:{self.server_port}/some/file.tar"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        site = self.server
        site.requests += 1
        self.send_response(200)
        if site.length:
            self.send_header("Content-Length", str(len(site.body)))
        self.end_headers()
        cut = site.cuts.pop(0) if site.cuts else None
        self.wfile.write(site.body[:cut])
        if cut is not None:
            site.pause()
            if site.continues:
                self.wfile.write(site.body[cut:])

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


@pytest.fixture(autouse=True)
def no_wait_between_attempts(monkeypatch):
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)


def left(path):
    return sorted(p.name for p in path.parent.iterdir())


def expect_whole(site, path):
    assert download(site.url, path, SHA256) == path
    assert path.read_bytes() == BODY and left(path) == ["file.tar"]


def test_a_file_is_downloaded_once(site, path):
    expect_whole(site, path)
    expect_whole(site, path)
    assert site.requests == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_the_progress_is_shown_on_a_terminal(site, path, monkeypatch, terminal):
    class Screen(io.StringIO):
        def isatty(self):
            return terminal

    monkeypatch.setattr(sys, "stderr", Screen())
    expect_whole(site, path)
    assert ("1.00k/1.00k" in sys.stderr.getvalue()) == terminal


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("cuts", [[], [400], [400, 0]])
def test_a_broken_download_is_repeated(site, path, length, cuts):
    site.length, site.cuts = length, cuts.copy()
    expect_whole(site, path)
    assert site.requests == 1 + len(cuts)


def test_a_connection_that_breaks_again_and_again(site, path):
    site.cuts = [200] * 3
    with pytest.raises(InputError) as error:
        download(site.url, path, SHA256)
    for part in (
        f"{site.url} cannot be downloaded to {path} (",
        "200 bytes read",
        "by hand and put it there",
        "data_dir",
    ):
        assert part in str(error.value)
    assert left(path) == []
    expect_whole(site, path)


def test_a_wrong_checksum(site, path):
    site.body = BODY[:-1] + b"!"
    with pytest.raises(InputError, match=f"expected {SHA256} but got .*Deleted download.*by hand"):
        download(site.url, path, SHA256)
    assert left(path) == []
    site.body = BODY
    expect_whole(site, path)


def test_a_wrong_file_that_is_there_already(site, path):
    path.parent.mkdir()
    path.write_bytes(BODY[:-1])
    found = hashlib.sha256(BODY[:-1]).hexdigest()
    with pytest.raises(InputError, match=f"file.tar is not the official file: .*{found}, expected {SHA256}; move"):
        download(site.url, path, SHA256)
    assert path.read_bytes() == BODY[:-1] and site.requests == 0


def test_a_server_that_falls_silent(site, path, monkeypatch):
    done = threading.Event()
    site.pause, site.cuts = done.wait, [300] * 3
    with monkeypatch.context() as patch:
        patch.setattr(cifar, "TIMEOUT_SECONDS", 0.2)
        with pytest.raises(InputError, match="Read timed out"):
            download(site.url, path, SHA256)
    done.set()
    assert left(path) == []
    expect_whole(site, path)


def run_download(site, path, before=""):
    """A process of its own that downloads ``path``, after the Python code ``before``."""
    imports = "from pathlib import Path; from minitl.data.cifar import download"
    call = f"{imports}; download({site.url!r}, Path({str(path)!r}), {SHA256!r})"
    return subprocess.Popen(
        [sys.executable, "-c", f"{before}\n{call}"], cwd=Path(minitl.__file__).parents[1], stderr=-1
    )


def test_a_disk_that_fills_up(site, path):
    pytest.importorskip("resource")
    limit = "import resource, pooch.core; resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))"
    with run_download(site, path, f"import sys; sys.dont_write_bytecode = True; {limit}") as process:
        message = process.stderr.read().decode()
    assert "InputError" in message and "File too large" in message and "choose another folder" in message
    assert left(path) == []


def test_no_network(path):
    with socket.socket() as taken:  # bound but not listening: a connection to it is refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/file.tar"
        with pytest.raises(InputError, match=r"cannot be downloaded .*refused.* by hand and put it there"):
            download(url, path, SHA256)
    assert left(path) == []


def test_killed_in_the_middle(site, path):
    """Nothing can be tidied up then, but what is left has another name."""
    halfway, over = threading.Event(), threading.Event()
    site.pause, site.cuts = lambda: (halfway.set(), over.wait()), [400]
    with run_download(site, path) as process:
        halfway.wait()
        process.kill()
    over.set()
    assert len(left(path)) == 1 and not path.exists() and process.returncode != 1
    assert download(site.url, path, SHA256) == path and path.read_bytes() == BODY


@pytest.mark.parametrize("continues", [True, False])
def test_two_downloads_at_once(site, path, continues):
    """The second begins in the middle of the first, which it overtakes."""
    turns, found = itertools.count(), []
    halfway, over = threading.Event(), threading.Event()

    def pause():
        if next(turns) == 0:
            halfway.set()
            over.wait()

    site.continues, site.cuts, site.pause = continues, [400], pause
    first = threading.Thread(target=lambda: found.append(download(site.url, path, SHA256)))
    first.start()
    halfway.wait()
    assert download(site.url, path, SHA256) == path and path.read_bytes() == BODY
    over.set()
    first.join()
    assert found == [path] and path.read_bytes() == BODY and left(path) == ["file.tar"]
