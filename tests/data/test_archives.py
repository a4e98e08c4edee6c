from __future__ import annotations

import contextlib
import functools
import gzip
import io
import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_cifar import TINY_BINARY, TINY_PICKLED, expecting, member, official_members, write_archive

from cifarnet.data.archives import read_archive
from cifarnet.errors import DatasetError, DatasetFormatError, DatasetIntegrityError, DatasetNotFoundError

Members = list[tuple[tarfile.TarInfo, bytes]]

FOLDER = TINY_BINARY.folder
BATCH = f"{FOLDER}/data_batch_3.bin"


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Where the archive goes; afterwards nothing else may have appeared beside or above it."""
    folder = tmp_path / "inner"
    folder.mkdir()
    yield folder / TINY_BINARY.archive
    assert sorted(os.listdir(tmp_path)) == ["inner"]
    assert os.listdir(folder) == [TINY_BINARY.archive]


def read(path: Path, members: Members) -> None:
    """Read an archive whose hash is right, so that what is in it is looked at."""
    read_archive(path, write_archive(path, TINY_BINARY, members))


def replaced(new: tuple[tarfile.TarInfo, bytes]) -> Members:
    return [new if info.name == BATCH else (info, content) for info, content in official_members(TINY_BINARY)]


def test_another_hash_is_refused_before_anything_is_unpacked(path: Path) -> None:
    path.write_bytes(b"no archive at all")
    with pytest.raises(DatasetIntegrityError, match=r"SHA-256 \w{64}, expected \w{64}; delete it and try again"):
        read_archive(path, TINY_BINARY)


@pytest.mark.parametrize(
    "extra",
    [
        member("../evil.bin", b"x"),
        member("/tmp/evil.bin", b"x"),
        member(f"{FOLDER}/../../evil.bin", b"x"),
        member(f"{FOLDER}/extra.bin", b"x"),
        member("other/data_batch_1.bin", b"x"),
        member(f"{FOLDER}/sub/data_batch_1.bin", b"x"),
        member("elsewhere", type=tarfile.DIRTYPE),
        member(BATCH, b"x"),
    ],
    ids=lambda extra: extra[0].name,
)
def test_a_member_too_many_is_refused(path: Path, extra: tuple[tarfile.TarInfo, bytes]) -> None:
    with pytest.raises(DatasetIntegrityError, match=r"member .* is not as in the official archive; delete it"):
        read(path, [*official_members(TINY_BINARY), extra])


@pytest.mark.parametrize(
    "new",
    [
        member(BATCH, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member(BATCH, type=tarfile.LNKTYPE, linkname=f"{FOLDER}/data_batch_2.bin"),
        member(BATCH, type=tarfile.FIFOTYPE),
        member(BATCH, type=tarfile.CHRTYPE),
        member(BATCH, type=tarfile.DIRTYPE),
        member(BATCH, bytes(4 * 3073 + 1)),
        member(BATCH, pax_headers={"GNU.sparse.major": "0", "GNU.sparse.map": "0,1", "GNU.sparse.size": "12292"}),
    ],
    ids=["symlink", "hardlink", "fifo", "device", "folder", "too large", "sparse"],
)
def test_a_batch_that_is_no_regular_file_of_its_size_is_refused(path: Path, new: tuple[tarfile.TarInfo, bytes]) -> None:
    with pytest.raises(DatasetIntegrityError, match=r"data_batch_3.bin.* is not as in the official archive"):
        read(path, replaced(new))


@pytest.mark.parametrize("folder", ["other", f"{FOLDER}/../{FOLDER}", f"/{FOLDER}", f"./{FOLDER}", f"{FOLDER}/"])
def test_a_batch_in_another_folder_is_refused(path: Path, folder: str) -> None:
    with pytest.raises(DatasetIntegrityError, match=r"member .* is not as in the official archive"):
        read(path, replaced(member(f"{folder}/data_batch_3.bin", bytes(4 * 3073))))


def test_a_batch_that_is_too_short_is_refused(path: Path) -> None:
    with pytest.raises(DatasetFormatError, match=r"data_batch_3.bin: 5 bytes, expected 12,292"):
        read(path, replaced(member(BATCH, b"12345")))


def test_a_missing_batch_is_named(path: Path) -> None:
    members = [entry for entry in official_members(TINY_BINARY) if entry[0].name != BATCH]
    with pytest.raises(DatasetIntegrityError, match=r"no data_batch_3.bin is not as in the official archive"):
        read(path, members)


def test_a_header_that_unpacks_to_gigabytes_is_stopped(path: Path) -> None:
    header = tarfile.TarInfo("bomb")
    header.type = tarfile.XHDTYPE  # tarfile reads such a header's whole content into memory
    header.size = 2**33
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(8):
            file.write(bytes(2**20))
    with pytest.raises(DatasetIntegrityError, match="its unpacked size is not as in the official archive"):
        read_archive(path, expecting(path, TINY_BINARY))


def test_an_archive_that_is_a_folder_is_a_typed_error(path: Path) -> None:
    path.mkdir()
    with pytest.raises(DatasetNotFoundError, match=r"cannot read .*: Is a directory"):
        read_archive(path, TINY_BINARY)


@functools.cache
def published(pickled: bool) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "archive.tar.gz"
        write_archive(path, TINY_PICKLED if pickled else TINY_BINARY)
        return path.read_bytes()


@settings(max_examples=60, deadline=None)
@given(pickled=st.booleans(), share=st.floats(0, 1))
def test_an_archive_cut_anywhere_gives_a_typed_error(pickled: bool, share: float) -> None:
    whole = published(pickled)
    content = whole[: int(share * (len(whole) - 100))]  # the last bytes are the end marker, which is not needed
    with pytest.raises(DatasetError):
        read_bytes(content, pickled)


@settings(max_examples=150, deadline=None)
@given(pickled=st.booleans(), place=st.floats(0, 1), value=st.integers(0, 255), packed=st.booleans())
def test_a_changed_byte_gives_a_typed_error_or_is_read(pickled: bool, place: float, value: int, packed: bool) -> None:
    content = bytearray(published(pickled) if packed else gzip.decompress(published(pickled)))
    content[int(place * (len(content) - 1))] = value
    with contextlib.suppress(DatasetError):
        read_bytes(bytes(content) if packed else gzip.compress(bytes(content), 1), pickled)


def read_bytes(content: bytes, pickled: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "archive.tar.gz"
        path.write_bytes(content)
        read_archive(path, expecting(path, TINY_PICKLED if pickled else TINY_BINARY))


def test_the_published_kind_is_read_whole() -> None:
    with tarfile.open(fileobj=io.BytesIO(published(False))) as archive:
        assert len(archive.getnames()) == 9
    read_bytes(published(False), pickled=False)
    read_bytes(published(True), pickled=True)
