"""The two layouts in which CIFAR-10 is published, and how their batch files become one array.

Both hold six batches of 10,000 rows, a row being 1,024 red, then green, then blue bytes: CHW already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import BinaryIO, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from cifarnet.data.dataset import DatasetSplits, ImageDataset
from cifarnet.data.pickles import LARGEST_BATCH, read_pickled_batch
from cifarnet.errors import DatasetFormatError

__all__ = ["BINARY", "CLASSES", "PICKLED", "Layout", "read_splits"]

CLASSES: Final = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

Bytes: TypeAlias = npt.NDArray[np.uint8]

#: From an open file, its name for messages, and the rows it must have: pixels ``(rows, 3072)``, labels ``(rows,)``.
BatchReader: TypeAlias = Callable[[BinaryIO, str, int], tuple[Bytes, Bytes]]


@dataclass(frozen=True)
class Layout:
    """One published form of the data set.

    Args:
        folder: The name of the folder that the archive unpacks to.
        archive: The name of the archive.
        sha256: The archive's SHA-256, 64 hex digits.
        suffix: How the names of batch files end.
        extras: Files of the folder that are not read.
        read_batch: Reads one batch file.
        largest_batch: More bytes than this is no batch file.
        rows: Images in each batch file.
    """

    folder: str
    archive: str
    sha256: str
    suffix: str
    extras: tuple[str, ...]
    read_batch: BatchReader
    largest_batch: int
    rows: int = 10_000

    @property
    def batches(self) -> tuple[str, ...]:
        """The names of the batch files: five to train on, then the test batch."""
        return (*(f"data_batch_{i}{self.suffix}" for i in range(1, 6)), f"test_batch{self.suffix}")


def read_splits(layout: Layout, files: Iterable[tuple[str, str, BinaryIO]]) -> DatasetSplits:
    """Read every batch file into its place; no second copy of all images is ever made.

    Args:
        layout: What the files hold.
        files: Each batch once, in any order: its name, its path for messages, and the open file.

    Returns:
        The training and the test images.

    Raises:
        DatasetFormatError: If a file does not hold what its layout says.
    """
    images = {name: np.empty((layout.rows * n, 3, 32, 32), np.uint8) for name, n in (("train", 5), ("test", 1))}
    labels = {name: np.empty(len(rows), np.int64) for name, rows in images.items()}
    for name, where, file in files:
        part, position = ("test", 0) if name == layout.batches[-1] else ("train", layout.batches.index(name))
        rows = slice(position * layout.rows, (position + 1) * layout.rows)
        pixels, row_labels = layout.read_batch(file, where, layout.rows)
        images[part][rows] = pixels.reshape(-1, 3, 32, 32)
        labels[part][rows] = row_labels
    train, test = (
        ImageDataset(torch.from_numpy(images[part]), torch.from_numpy(labels[part]), CLASSES)
        for part in ("train", "test")
    )
    return DatasetSplits(train, test)


def _read_binary_batch(file: BinaryIO, where: str, rows: int) -> tuple[Bytes, Bytes]:
    """Records of 3,073 bytes: a label, then the pixels."""
    expected = rows * 3073
    content = file.read(expected + 1)
    if len(content) != expected:
        size = f"{len(content):,} bytes" if len(content) < expected else f"more than {expected:,} bytes"
        raise DatasetFormatError(
            f"{where}: {size}, expected {expected:,} ({rows:,} records of 3,073); "
            "the copy is damaged, get the file again"
        )
    records = np.frombuffer(content, np.uint8).reshape(rows, 3073)
    labels = records[:, 0]
    wrong = np.flatnonzero(labels > 9)
    if len(wrong):
        raise DatasetFormatError(
            f"{where}: label {labels[wrong[0]]} at row {wrong[0]} (0 to 9); the copy is damaged, get the file again"
        )
    return records[:, 1:], labels


BINARY: Final = Layout(
    folder="cifar-10-batches-bin",
    archive="cifar-10-binary.tar.gz",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    suffix=".bin",
    extras=("batches.meta.txt", "readme.html"),
    read_batch=_read_binary_batch,
    largest_batch=30_730_000,
)

PICKLED: Final = Layout(
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    suffix="",
    extras=("batches.meta", "readme.html"),
    read_batch=read_pickled_batch,
    largest_batch=LARGEST_BATCH,
)
