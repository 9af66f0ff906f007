"""Downloads from servers that break, forget ranges, fail for a while, or have another file."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.execution import download as module
from pipeline.execution.download import download

CONTENT = bytes(range(256)) * 5000
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()[:6]}"


class Server(ThreadingHTTPServer):
    """Serves CONTENT.

    Attributes:
        breaks: After how many bytes of an answer the connection is closed, by request.
        failures: Status of the first requests.
        ranges: Whether parts are served.
        asked: The Range of each request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.breaks: list[int] = []
        self.failures: list[int] = []
        self.ranges = True
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights/file.pth"


class Handler(BaseHTTPRequestHandler):
    """Answers as the server says."""

    server: Server  # type: ignore[assignment]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.server.failures:
            self.send_error(self.server.failures.pop(0))
            return
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if begin >= len(CONTENT):
            self.send_error(416)
            return
        part = wanted is not None and self.server.ranges
        body = CONTENT[begin:] if part else CONTENT
        self.send_response(206 if part else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.breaks.pop(0)] if self.server.breaks else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield serving
        serving.shutdown()


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    path = download(server.url, tmp_path / "new", MD5)
    assert path == tmp_path / "new/file.pth"
    assert path.read_bytes() == CONTENT
    assert download(server.url, tmp_path / "new", MD5) == path
    assert server.asked == [None]
    assert [each.name for each in path.parent.iterdir()] == ["file.pth"]


def test_a_broken_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.breaks = [300_000, 500_000]
    assert download(server.url, tmp_path, MD5).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=800000-"]


def test_a_later_call_goes_on(server: Server, tmp_path: Path) -> None:
    server.breaks = [100_000] * 5
    with pytest.raises(UserError, match=r"cannot be fetched \(the connection ended early\); run"):
        download(server.url, tmp_path, MD5)
    assert (tmp_path / "file.pth.part").stat().st_size == 500_000
    assert download(server.url, tmp_path, MD5).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=500000-"


def test_what_is_there_whole_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.pth.part").write_bytes(CONTENT)
    assert download(server.url, tmp_path, MD5).read_bytes() == CONTENT


def test_a_server_without_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    server.ranges, server.breaks = False, [300_000]
    assert download(server.url, tmp_path, MD5).read_bytes() == CONTENT


@pytest.mark.parametrize("failures", [[503], [500, 502, 503, 504]])
def test_a_server_that_fails_for_a_while(
    server: Server, tmp_path: Path, failures: list[int]
) -> None:
    server.failures = list(failures)
    assert download(server.url, tmp_path, MD5).read_bytes() == CONTENT


def test_a_file_that_is_not_there_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.failures = [404] * 5
    with pytest.raises(UserError, match=r"cannot be fetched \(Not Found\); run this again"):
        download(server.url, tmp_path, MD5)
    assert len(server.asked) == 1


def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    with pytest.raises(UserError, match="cannot be fetched"):
        download("http://127.0.0.1:9/file.pth", tmp_path, None)


@pytest.mark.parametrize("digest", ["md5:000000", "sha256:00000000"])
def test_other_bytes_are_refused_and_not_kept(server: Server, tmp_path: Path, digest: str) -> None:
    with pytest.raises(UserError, match="it is damaged or another file; remove it"):
        download(server.url, tmp_path, digest)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_changed_since_is_refused(server: Server, tmp_path: Path) -> None:
    path = download(server.url, tmp_path, MD5)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="it is damaged or another file"):
        download(server.url, tmp_path, MD5)


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check: Callable[[], Path] = lambda: download(server.url, tmp_path / "file", MD5)  # noqa: E731
    with pytest.raises(UserError, match="cannot be written"):
        check()
