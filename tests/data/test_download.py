from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cifarnet.data.download import ADDRESSES, download_addresses, download_archive
from cifarnet.errors import DatasetDownloadError

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "cifar-10-binary.tar.gz"


class Server:
    """A web server on this machine; ``asked`` lists what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.release = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                server.answer(self)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        kind = request.path.split("/")[1]
        if kind == "404":
            request.send_error(404)
            return
        if kind == "silent":
            self.release.wait(timeout=30)
            return
        if kind == "together":  # until both processes have asked
            if len(self.asked) == 2:
                self.release.set()
            self.release.wait(timeout=30)
        content = b"<html>please log in</html>" if kind == "page" else CONTENT
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[: len(content) // 2] if kind == "cut" else content)

    def address(self, kind: str) -> str:
        return f"{self.base}/{kind}/{NAME}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture
def download(tmp_path: Path) -> Callable[..., Path]:
    """Download from addresses into a folder that is not there yet."""

    def run(*addresses: str, progress: bool = False) -> Path:
        path = tmp_path / "new" / "folder" / NAME
        download_archive(path, SHA256, addresses=addresses, progress_bar=progress)
        return path

    return run


def nobody_listens() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/{NAME}"


def test_a_whole_file_arrives_and_nothing_else_stays(server: Server, download: Callable[..., Path]) -> None:
    path = download(server.address("good"))
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == [NAME]


@pytest.mark.parametrize("kind", ["404", "page", "cut"])
def test_the_next_address_is_asked_when_one_fails(server: Server, download: Callable[..., Path], kind: str) -> None:
    path = download(server.address(kind), server.address("good"), server.address("never"))
    assert path.read_bytes() == CONTENT
    assert server.asked == [f"/{kind}/{NAME}", f"/good/{NAME}"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("404", "HTTP Error 404"), ("page", "invalid hash value"), ("cut", "invalid hash value|IncompleteRead")],
)
def test_the_last_failure_says_what_was_tried_and_what_to_do(
    server: Server, download: Callable[..., Path], tmp_path: Path, kind: str, reason: str
) -> None:
    with pytest.raises(DatasetDownloadError, match=reason) as caught:
        download(server.address(kind))
    message = str(caught.value)
    assert message.startswith(f"tried 1 address ({server.address(kind)}: ")
    assert f"Put {NAME} in {tmp_path / 'new' / 'folder'} and run again" in message
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_a_silent_host_is_left_for_the_next(
    server: Server, download: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifarnet.data.download.SILENCE_S", 0.3)
    before = socket.getdefaulttimeout()
    assert download(server.address("silent"), server.address("good")).read_bytes() == CONTENT
    assert socket.getdefaulttimeout() == before
    server.release.set()


def test_offline_each_address_has_its_reason(download: Callable[..., Path], tmp_path: Path) -> None:
    closed = nobody_listens()
    with pytest.raises(DatasetDownloadError) as caught:
        download(closed, "no address", "file:///nowhere/at/all", "http://host.invalid:bad/")
    assert str(caught.value).startswith(f"tried 4 addresses ({closed}: ")
    for reason in (
        "refused",
        "no address: not an address, which begins with https://",
        "No such file",
        "nonnumeric port",
    ):
        assert reason in str(caught.value)
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_asked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DatasetDownloadError, match=r"cannot write to .*/file/data .*give another root"):
        download_archive(
            tmp_path / "file" / "data" / NAME, SHA256, addresses=[server.address("good")], progress_bar=False
        )
    assert server.asked == []


def test_a_failed_download_keeps_the_file_that_was_there(server: Server, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"old")
    with pytest.raises(DatasetDownloadError):
        download_archive(tmp_path / NAME, SHA256, addresses=[server.address("cut")], progress_bar=False)
    assert (tmp_path / NAME).read_bytes() == b"old"


def test_two_processes_at_once_both_end_with_the_whole_file(server: Server, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cifarnet.data.download import download_archive;"
        "download_archive(Path(sys.argv[1]), sys.argv[2], addresses=[sys.argv[3]], progress_bar=False)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / NAME), SHA256, server.address("together")]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert len(server.asked) == 2, "they did not meet"
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("progress", [False, True])
def test_the_bar_goes_to_stderr_and_can_be_silenced(
    server: Server, download: Callable[..., Path], capfd: pytest.CaptureFixture[str], progress: bool
) -> None:
    download(server.address("good"), progress=progress)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert ("100%" in printed.err) == progress
    assert progress or printed.err == ""


def test_the_official_address_is_first_unless_a_mirror_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CIFARNET_MIRROR", raising=False)
    assert download_addresses() == ADDRESSES
    assert ADDRESSES[0] == f"https://www.cs.toronto.edu/~kriz/{NAME}"
    monkeypatch.setenv("CIFARNET_MIRROR", "http://mirror.local/x")
    assert download_addresses() == ("http://mirror.local/x", *ADDRESSES)
