"""Reads an official archive as a stream: hash first, then members by exact name, and nothing is unpacked."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Final, cast

from cifarnet.data.dataset import DatasetSplits
from cifarnet.data.layouts import Layout, read_splits
from cifarnet.errors import DatasetError, DatasetIntegrityError, DatasetNotFoundError

__all__ = ["read_archive"]

_LARGEST_EXTRA: Final = 2**20  # bytes of tar headers and of the files that are not read


def read_archive(path: Path, layout: Layout) -> DatasetSplits:
    """Read the batches out of an archive of known SHA-256.

    Args:
        path: The archive.
        layout: What it must hold.

    Returns:
        The training and the test images, named ``CIFAR-10``.

    Raises:
        DatasetIntegrityError: If the archive is not the one that the layout names: another hash, a member
            missing, too many, too large, twice, or no regular file.
        DatasetFormatError: If a batch does not hold what its layout says.
        DatasetNotFoundError: If it cannot be opened.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DatasetNotFoundError(f"cannot read {path}: {error.strerror}") from error
    with file:  # hashed and read through one descriptor: what was checked is what is read
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != layout.sha256:
            raise DatasetIntegrityError(f"{path}: SHA-256 {digest}, expected {layout.sha256}; delete it and try again")
        file.seek(0)
        try:
            splits = read_splits(layout, _batches(file, path, layout))
        except DatasetError:
            raise
        except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
            raise DatasetIntegrityError(f"{path}: not a whole archive ({error}); delete it and try again") from error
    splits.train.name = splits.test.name = "CIFAR-10"
    return splits


def _batches(file: BinaryIO, path: Path, layout: Layout) -> Iterator[tuple[str, str, BinaryIO]]:
    """Every batch of the archive once, in the archive's order: name, name for messages, open member."""
    limits = dict.fromkeys(layout.batches, layout.largest_batch) | dict.fromkeys(layout.extras, _LARGEST_EXTRA)
    stream = cast(IO[bytes], _Limited(gzip.GzipFile(fileobj=file), sum(limits.values()) + _LARGEST_EXTRA, path))
    seen = set()
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            if member.isdir() and member.name == layout.folder:
                continue
            folder, _, name = member.name.rpartition("/")
            if folder != layout.folder or name not in limits or name in seen:
                raise _unexpected(path, f"member {member.name!r:.80}")
            if not member.isreg() or member.issparse() or member.size > limits[name]:
                raise _unexpected(path, f"{name}: type {member.type!r}, {member.size:,} bytes")
            seen.add(name)
            batch = archive.extractfile(member)
            if name in layout.batches and batch is not None:
                yield name, f"{path}: {name}", cast(BinaryIO, batch)
    missing = [name for name in layout.batches if name not in seen]
    if missing:
        raise _unexpected(path, f"no {missing[0]}")


def _unexpected(path: Path, what: str) -> DatasetIntegrityError:
    return DatasetIntegrityError(f"{path}: {what} is not as in the official archive; delete it and try again")


@dataclass
class _Limited:
    """A stream that refuses to give more than ``left`` bytes, so that no header can ask for all memory."""

    stream: gzip.GzipFile
    left: int
    path: Path

    def read(self, size: int) -> bytes:
        content = self.stream.read(min(size, self.left + 1))
        self.left -= len(content)
        if self.left < 0:
            raise _unexpected(self.path, "its unpacked size")
        return content
