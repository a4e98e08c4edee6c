"""The files of CIFAR-10: six batches, as records of bytes or as pickles, in a folder or in an archive."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import pickletools
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from cifarnet._validation import shorten
from cifarnet.data.dataset import DatasetSplits, ImageDataset
from cifarnet.errors import DataError

__all__ = ["CIFAR10_CLASSES", "LAYOUTS", "Layout", "read_splits"]

CIFAR10_CLASSES: Final = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

Bytes: TypeAlias = npt.NDArray[np.uint8]

_LARGEST_BATCH: Final = 2**25  # bytes; the published batches have up to 31.0 MB


@dataclass(frozen=True)
class Layout:
    """Published form of the data set: five batches of training images and one of test images.

    Args:
        folder: Name of the folder that the archive unpacks to.
        archive: Name of the archive.
        sha256: SHA-256 of the archive, 64 hex digits.
        suffix: End of the names of the batches.
        read_batch: Function from content and ``rows`` to pixels ``(rows, 3072)`` and labels ``(rows,)``.
        rows: Images per batch.
    """

    folder: str
    archive: str
    sha256: str
    suffix: str
    read_batch: Callable[[bytes, int], tuple[Bytes, Bytes]]
    rows: int = 10_000

    @property
    def batches(self) -> tuple[str, ...]:
        """The names of the batches, the test batch last."""
        return (*(f"data_batch_{i}{self.suffix}" for i in range(1, 6)), f"test_batch{self.suffix}")


def read_splits(path: Path, layout: Layout) -> DatasetSplits:
    """Read the batches of a folder, or of an archive of known SHA-256, which is never unpacked.

    Args:
        path: The folder or archive.
        layout: Its layout.

    Returns:
        Training and test images.

    Raises:
        DataError: If a batch is missing or damaged, or the archive is not the published one.
    """
    rows = layout.rows
    images, labels = np.empty((6 * rows, 3, 32, 32), np.uint8), np.empty(6 * rows, np.int64)
    for name, content in (_read_folder if os.path.isdir(path) else _read_archive)(path, layout):
        batch = slice(layout.batches.index(name) * rows, (layout.batches.index(name) + 1) * rows)
        try:
            pixels, classes = layout.read_batch(content, rows)
            if classes.max() > 9:
                raise ValueError(f"label {classes.max()} at row {classes.argmax()}, expected 0 to 9")
        except ValueError as error:
            raise DataError(f"{path / name}: {error}. The copy is damaged. Get the file again") from error
        images[batch], labels[batch] = pixels.reshape(-1, 3, 32, 32), classes  # red, green and blue planes: CHW already
    parts = (slice(5 * rows), slice(5 * rows, None))
    tensors = [(torch.from_numpy(images[part]), torch.from_numpy(labels[part])) for part in parts]
    return DatasetSplits(*(ImageDataset(*part, CIFAR10_CLASSES) for part in tensors))


def _read_folder(folder: Path, layout: Layout) -> Iterator[tuple[str, bytes]]:
    missing = [name for name in layout.batches if not os.path.isfile(folder / name)]
    if missing:
        raise DataError(
            f"{folder}: {', '.join(missing)} missing. Add them, or move the folder away to use another copy"
        )
    for name in layout.batches:
        with (folder / name).open("rb") as file:
            yield name, file.read(_LARGEST_BATCH)


def _read_archive(path: Path, layout: Layout) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each batch. Known bytes cannot be hostile, so the hash is the only check."""
    with path.open("rb") as file:  # hashed and read through one descriptor
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != layout.sha256:
            raise DataError(f"{path}: SHA-256 {digest}, expected {layout.sha256}. Delete it and try again")
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:gz") as archive:
            for member in archive:
                name, content = member.name.rpartition("/")[2], archive.extractfile(member)
                if content is not None and name in layout.batches:
                    yield name, content.read()


def _read_binary_batch(content: bytes, rows: int) -> tuple[Bytes, Bytes]:
    """Read records of 3,073 bytes: a label, then the pixels."""
    if len(content) != rows * 3073:
        raise ValueError(f"expected {rows * 3073:,} bytes ({rows:,} records of 3,073), got {len(content):,} or more")
    records = np.frombuffer(content, np.uint8).reshape(rows, 3073)
    return records[:, 1:], records[:, 0]


def _read_pickled_batch(content: bytes, rows: int) -> tuple[Bytes, Bytes]:
    """Read ``{"data": array, "labels": list, ...}``. Nothing that the file names is imported or called."""
    try:
        _check_opcodes(content)
        batch = _BatchUnpickler(io.BytesIO(content), encoding="latin-1").load()
        _, shape, dtype, is_fortran, pixels = batch["data"].state
        labels = batch["labels"]
        if dtype.arguments[:1] != ("u1",) or shape != (rows, 3072):
            raise ValueError(f"data must be uint8 of shape ({rows}, 3072)")
        if type(labels) is not list or len(labels) != rows:
            raise ValueError(f"labels must be a list of {rows:,} numbers")
        pixels = pixels.encode("latin-1") if isinstance(pixels, str) else pixels  # str as Python 2 wrote it
        data = np.frombuffer(pixels, np.uint8).reshape(shape, order="F" if is_fortran else "C")
        return data, np.frombuffer(bytes(labels), np.uint8)
    except Exception as error:  # a damaged pickle raises nearly every type
        raise ValueError(f"not a batch as published ({type(error).__name__}: {error})") from error


def _check_opcodes(content: bytes) -> None:
    """Bound the time and memory of unpickling, which `Unpickler.find_class` does not.

    CPython sizes its memo by a number in the file (32 GB from five bytes), and hashes a tuple that holds another one
    twice, and so on, in exponential time. A published batch has about 60,000 opcodes, 6 of them for tuples.
    """
    num_tuples_and_gets = 0
    for position, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        num_tuples_and_gets += opcode.name.startswith("TUPLE") or opcode.name.endswith("BINGET")
        index = (argument or 0) if opcode.name.endswith("BINPUT") else position
        if not _OPCODES.fullmatch(opcode.name) or index > 500_000 or num_tuples_and_gets > 32:
            raise pickle.UnpicklingError(f"opcode {opcode.name}, which no batch needs, is refused")


class _BatchUnpickler(pickle.Unpickler):
    """Unpickler that knows three names of numpy, and gives a `_Record` for each.

    The functions themselves would be too much: from a few bytes of the file they make arrays of any size and of
    any dtype, ``object`` among them, and ``__setstate__`` reads a memory layout out of the file.
    """

    def find_class(self, module: str, name: str) -> _Record:
        if not _NAMES.fullmatch(f"{module}.{name}"):
            raise pickle.UnpicklingError(f"the name {shorten(f'{module}.{name}')}, which no batch needs, is refused")
        return _Record()


class _Record:
    """The arguments of a call and the state that the file sets. It does nothing with them."""

    __slots__ = ("arguments", "state")  # no __dict__, which the file could fill

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __call__(self, *arguments: Any) -> _Record:
        return _Record(*arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state


_NAMES: Final = re.compile(r"numpy\.(ndarray|dtype|_?core\.multiarray\._reconstruct)")  # _core: numpy 2
_OPCODES: Final = re.compile(
    "PROTO|FRAME|STOP|MARK|(STACK_)?GLOBAL|REDUCE|BUILD|(LONG_)?BIN(PUT|GET)|MEMOIZE|EMPTY_(DICT|LIST|TUPLE)|"
    "SETITEMS?|APPENDS?|TUPLE[123]?|NONE|NEWTRUE|NEWFALSE|BININT[12]?|LONG1|(SHORT_)?BIN(STRING|UNICODE|BYTES)"
)

LAYOUTS: Final = (
    Layout(
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ".bin",
        _read_binary_batch,
    ),
    Layout(
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        "",
        _read_pickled_batch,
    ),
)
