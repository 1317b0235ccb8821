"""Fetching from a server of our own that misbehaves, on 127.0.0.1."""

import http.server
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from lib.data import download
from lib.data.download import DataError
from test_download import accept, flipped, make_official, only, same, small, truncated, web_page  # noqa: F401


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers each request as the next of `server.manners` says; the last one stays."""

    def do_GET(self):
        content, manners = self.server.content, self.server.manners
        manner = manners.pop(0) if len(manners) > 1 else manners[0]
        self.server.asked.append(manner)
        if manner == "no HTTP":
            self.wfile.write(b"\0\1\2\3")
            return
        damage = {"flipped": flipped, "web page": web_page}.get(manner, bytes)
        content = damage(content)
        begin = 0 if manner == "no ranges" else int(self.headers.get("Range", "bytes=0-")[len("bytes=") : -1])
        self.server.begins.append(begin)
        if begin >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        content = content[begin:]
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if manner == "truncated":
            self.wfile.write(truncated(content))
        elif manner == "stalled":
            self.wfile.write(truncated(content))
            self.server.over.wait(60)
        elif manner == "trickling":
            for i in range(len(content)):
                if self.server.over.wait(0.1):
                    return
                self.wfile.write(content[i : i + 1])
        else:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch, small):  # noqa: F811
    """An archive of the official form on a server; the first element of `server.manners` is how it behaves."""
    from torchvision.datasets import CIFAR10

    archive = tmp_path / "archive"
    make_official(archive, small)
    accept(monkeypatch, archive)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.content, server.manners, server.asked = archive.read_bytes(), ["whole"], []
    server.begins, server.over = [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/archive"
    monkeypatch.setattr(CIFAR10, "url", server.url)
    only(monkeypatch, the_server=download.from_official)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


SAYS = {
    "flipped": "checksum is wrong",
    "web page": "checksum is wrong (it is a web page)",
    "no HTTP": "archive: ",
}


@pytest.mark.fault(14, "a server that sends a flipped byte, a web page, no HTTP at all, and then the archive")
@pytest.mark.parametrize("manner", SAYS)
def test_a_damaged_download_is_named_and_the_next_call_fetches_again(server, small, tmp_path, seen, manner):  # noqa: F811
    times = download.TRIES if manner == "no HTTP" else 1
    server.manners = [*[manner] * times, "whole"]
    with pytest.raises(DataError) as refusal:
        download.cifar10(str(tmp_path / "data"))
    line = str(refusal.value).splitlines()[-1].strip()
    assert SAYS[manner] in line
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".fetch.lock"]
    assert same(download.cifar10(str(tmp_path / "data")), small)
    assert server.asked == [*[manner] * times, "whole"]
    seen(f"{manner}: '{line.rpartition('/')[2]}', then fetched")


@pytest.mark.fault(
    16, "a server that breaks off, stalls (time-out 1 s), sends all of it again; five times, then the rest"
)
@pytest.mark.parametrize("manner", ["truncated", "stalled"])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_from_where_it_was(server, small, tmp_path, monkeypatch, seen, manner, ranges):  # noqa: F811
    monkeypatch.setattr(download, "STALLED", 1)
    monkeypatch.setattr(download, "LEAST", 1)
    server.manners = [*[manner] * 5, "whole" if ranges else "no ranges"]
    data = tmp_path / "data"
    assert same(download.cifar10(str(data)), small)
    assert len(server.begins) == 6 and server.begins[0] == 0
    assert server.begins[1:5] == sorted(set(server.begins[1:5])) and server.begins[1] > 0
    assert (server.begins[5] > server.begins[4]) if ranges else (server.begins[5] == 0)
    assert sorted(path.name for path in data.iterdir()) == [".fetch.lock", download.COPY]
    seen(f"{manner}: asked from bytes {server.begins}")


@pytest.mark.fault(16, "given up, and the same command again; all of it there already; another's half there already")
@pytest.mark.parametrize("left", ["half", "all", "another's"])
def test_the_next_call_goes_on_too(server, small, tmp_path, seen, left):  # noqa: F811
    content = {"half": truncated(server.content), "all": server.content, "another's": b"x" * 99}[left]
    data = tmp_path / "data"
    data.mkdir()
    (data / f"{download.OFFICIAL}{download.UNFINISHED}").write_bytes(content)
    assert same(download.cifar10(str(data)), small)
    assert server.begins == [len(content), *([0] if left == "another's" else [])]
    assert sorted(path.name for path in data.iterdir()) == [".fetch.lock", download.COPY]
    seen(f"{left}: asked from bytes {server.begins}")


@pytest.mark.fault(16, "a server that stops in the middle (time-out 1 s), one that sends 10 bytes a second (limit 3 s)")
@pytest.mark.parametrize("manner, words", [("stalled", "timed out"), ("trickling", "bytes in 3 s")])
def test_a_stalled_server_is_given_up(server, tmp_path, monkeypatch, seen, manner, words):
    monkeypatch.setattr(download, "STALLED", 1)
    monkeypatch.setattr(download, "SLOWEST", 3)
    server.manners = [manner]
    begun = time.monotonic()
    with pytest.raises(DataError, match=words):
        download.cifar10(str(tmp_path / "data"))
    passed = time.monotonic() - begun
    assert passed < 60 and len(server.asked) == download.TRIES
    assert (tmp_path / "data" / f"{download.OFFICIAL}{download.UNFINISHED}").stat().st_size > 0
    seen(f"{manner}: '{words}', given up after {passed:.0f} s")


COLD = """
import sys
import numpy as np
from torchvision.datasets import CIFAR10
from lib.data import download

data, source, CIFAR10.url, download.OFFICIAL_SHA256 = sys.argv[1:]
arrays = np.load(source)
download.ARRAYS = {n: (arrays[n].shape, download.hashlib.sha256(arrays[n].tobytes()).hexdigest()) for n in arrays}
download.SOURCES = {"the server": download.from_official}
assert len(download.cifar10(data)["test_labels"]) == 20
"""


@pytest.mark.fault(15, "two cold processes at one server")
def test_two_cold_processes_fetch_once(server, small, tmp_path, seen):  # noqa: F811
    np.savez(tmp_path / "source.npz", **small)
    words = [str(tmp_path / "data"), str(tmp_path / "source.npz"), server.url, download.OFFICIAL_SHA256]
    processes = [subprocess.Popen([sys.executable, "-c", COLD, *words], stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert server.asked == ["whole"]
    seen("both succeed, one request")


@pytest.mark.fault(14, "a fetch killed in the middle")
def test_what_a_killed_fetch_leaves_is_used_or_swept_away(server, small, tmp_path, seen):  # noqa: F811
    np.savez(tmp_path / "source.npz", **small)
    data = tmp_path / "data"
    words = [str(data), str(tmp_path / "source.npz"), server.url, download.OFFICIAL_SHA256]
    server.manners = ["stalled", "whole"]
    with subprocess.Popen([sys.executable, "-c", COLD, *words], stderr=subprocess.DEVNULL) as process:
        while not server.asked:
            time.sleep(0.1)
        process.kill()
    (data / f"{download.PART}left").mkdir()  # as npm's or the hub's would be
    assert same(download.cifar10(str(data)), small)
    assert sorted(path.name for path in data.iterdir()) == [".fetch.lock", download.COPY]
    seen("killed: the next call fetches the rest, nothing is left over")
