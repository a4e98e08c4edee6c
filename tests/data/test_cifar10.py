from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiny_cifar import BINARY, PICKLED, ROWS, TINY, write_archive, write_folder

from cifarnet.data import find_cifar10, load_cifar10
from cifarnet.data.cifar10 import ADDRESSES
from cifarnet.data.cifar10_files import Layout
from cifarnet.errors import DataError

LOOSE = "CIFAR-10, loose files (not checked against the official archive)"
NAME = BINARY.archive


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache in a home without data. Batches have four rows, and no test reaches the internet."""
    home = tmp_path_factory.mktemp("home")
    for name in ("CIFARNET_DATA", "CIFARNET_MIRROR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    expect(monkeypatch, *TINY)
    monkeypatch.setattr("cifarnet.data.cifar10.ADDRESSES", ())
    return home / ".cache" / "cifarnet"


def expect(monkeypatch: pytest.MonkeyPatch, *layouts: Layout) -> None:
    monkeypatch.setattr("cifarnet.data.cifar10.LAYOUTS", layouts)


def test_folders_and_archives_of_both_layouts_hold_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect(monkeypatch, *(write_archive(tmp_path / layout.archive, layout) for layout in TINY))
    folders = [write_folder(tmp_path / layout.folder, layout) for layout in TINY]
    copies = [*folders, write_folder(tmp_path / "renamed"), *(tmp_path / layout.archive for layout in TINY)]
    loaded = [load_cifar10(path) for path in copies]
    assert len({data.train.fingerprint for data in loaded}) == len({data.test.fingerprint for data in loaded}) == 1
    assert [data.train.name for data in loaded] == [LOOSE] * 3 + ["CIFAR-10"] * 2
    assert [data.test.name for data in loaded] == [data.train.name for data in loaded]


def test_a_damaged_copy_is_not_skipped(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(cache / BINARY.folder)
    folder = write_folder(tmp_path / PICKLED.folder, PICKLED)
    monkeypatch.setenv("CIFARNET_DATA", str(tmp_path))
    (folder / "data_batch_3").unlink()
    with pytest.raises(DataError, match=f"{re.escape(str(folder))}: data_batch_3 missing. Add them"):
        load_cifar10()


def test_a_named_place_is_the_only_place(tmp_path: Path, cache: Path) -> None:
    write_folder(cache / BINARY.folder)
    assert find_cifar10() == find_cifar10("~/.cache/cifarnet") == cache / BINARY.folder
    other = tmp_path / "cifar-100-python"
    for _ in ("absent", "empty"):
        with pytest.raises(DataError) as caught:
            load_cifar10(other, download=False)
        for words in (f"is not in {other}", "--data DIR", "set CIFARNET_DATA", f"put {NAME} in {other}", "synthetic"):
            assert words in str(caught.value)
        assert find_cifar10(other) is None
        other.mkdir(exist_ok=True)
    (other / "train").write_bytes(b"another data set")
    with pytest.raises(DataError, match=r"does not hold CIFAR-10\. Name the folder that does"):
        load_cifar10(other, download=True)
    for name in ("train", "cifar-10-python.tar.gz"):
        with pytest.raises(DataError, match=rf"{name} is not an archive of CIFAR-10"):
            load_cifar10(other / name)


def test_cifarnet_data_goes_before_the_cache(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(cache / BINARY.folder)
    monkeypatch.setenv("CIFARNET_DATA", str(tmp_path))
    assert find_cifar10() == cache / BINARY.folder
    (tmp_path / PICKLED.archive).write_bytes(b"found, not read")
    assert find_cifar10() == tmp_path / PICKLED.archive
    monkeypatch.setenv("CIFARNET_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert find_cifar10() is None


class Server:
    """A web server on this machine. ``requests`` are the paths, whose first part says what to answer."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.requests: list[str] = []
        self.release = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                server.answer(self, self.path.split("/")[1])

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def answer(self, request: BaseHTTPRequestHandler, kind: str) -> None:
        if kind == "404":
            return request.send_error(404)
        if kind == "silent":
            self.release.wait(timeout=30)
            return None
        content = b"<html>please log in</html>" if kind == "page" else self.content
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[: len(content) // 2] if kind == "cut" else content)
        return None

    def address(self, kind: str) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/{kind}/{NAME}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A mirror whose first answer is that of ``CIFARNET_MIRROR``, and whose second one is good."""
    expect(monkeypatch, write_archive(tmp_path / "published" / NAME))
    server = Server((tmp_path / "published" / NAME).read_bytes())
    monkeypatch.setattr("cifarnet.data.cifar10.ADDRESSES", (server.address("good"),))
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.release.set()
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.mark.parametrize("progress_bar", [False, True])
def test_a_download_arrives_whole_and_is_found_again(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str], progress_bar: bool
) -> None:
    root = tmp_path / "not" / "yet" / "there"
    data = load_cifar10(root, progress_bar=progress_bar)
    printed = capfd.readouterr()
    assert (printed.out, "100%" in printed.err) == ("", progress_bar)
    assert (len(data.train), len(data.test), data.train.name) == (5 * ROWS, ROWS, "CIFAR-10")
    assert [file.name for file in root.iterdir()] == [NAME]
    assert load_cifar10(root).train.fingerprint == data.train.fingerprint
    assert server.requests == [f"/good/{NAME}"]
    assert ADDRESSES[0] == f"https://www.cs.toronto.edu/~kriz/{NAME}"


@pytest.mark.parametrize("kind", ["404", "page", "cut", "silent"])
def test_the_official_host_is_next_if_the_mirror_fails(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("cifarnet.data.cifar10.SILENCE_S", 0.3)
    monkeypatch.setenv("CIFARNET_MIRROR", server.address(kind))
    load_cifar10(tmp_path / "new", progress_bar=False)
    assert server.requests == [f"/{kind}/{NAME}", f"/good/{NAME}"]
    assert [file.name for file in (tmp_path / "new").iterdir()] == [NAME]
    assert socket.getdefaulttimeout() is None


def test_a_failed_download_names_every_reason_and_the_remedy(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {
        server.address("404"): "HTTP Error 404",
        server.address("page"): "invalid hash value",
        "file:///nowhere": "No such file",
        "http://host.invalid:bad/": "nonnumeric port",
    }
    monkeypatch.setattr("cifarnet.data.cifar10.ADDRESSES", tuple(bad))
    monkeypatch.setenv("CIFARNET_MIRROR", "/a/path")
    root = tmp_path / "new"
    with pytest.raises(DataError) as caught:
        load_cifar10(root, progress_bar=False)
    for address, reason in {"/a/path": "an address begins with https://", **bad}.items():
        assert re.search(rf"{re.escape(address)}: .*{reason}", str(caught.value))
    assert f"Put {NAME} in {root}, name a folder" in str(caught.value)
    assert list(root.iterdir()) == []
