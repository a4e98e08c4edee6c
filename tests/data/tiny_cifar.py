"""CIFAR-10's files with four rows per batch, in the bytes of the published formats."""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cifarnet.data.cifar10_files import LAYOUTS, Layout

ROWS = 4
Bytes = npt.NDArray[np.uint8]

BINARY, PICKLED = TINY = tuple(replace(layout, rows=ROWS) for layout in LAYOUTS)

_random = np.random.default_rng(7)
PIXELS: Bytes = _random.integers(0, 256, (6, ROWS, 3072), dtype=np.uint8)  # 6 batches, the last one for the test images
LABELS: Bytes = _random.integers(0, 10, (6, ROWS), dtype=np.uint8)


def binary_batch(pixels: Bytes, labels: Bytes) -> bytes:
    return np.concatenate([labels[:, None], pixels], axis=1).tobytes()


def pickled_batch(pixels: Bytes, labels: Iterable[int]) -> bytes:
    """Protocol 2 as Python 2.7 wrote it: its ``str`` for text and pixels, numpy's three names."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85q\x07U\x01bq\x08\x87q\tRq\n(K\x01"
        + b"".join(b"M" + struct.pack("<H", length) for length in pixels.shape)
        + b"\x86q\x0bcnumpy\ndtype\nq\x0cU\x02u1q\rK\x00K\x01\x87q\x0eRq\x0f(K\x03U\x01|q\x10NNN"
        + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x11b\x89"
        + (b"T" + struct.pack("<i", pixels.size) + pixels.tobytes())
        + b"q\x12tq\x13b"
    )
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    return (
        b"\x80\x02}q\x00(U\x0bbatch_labelq\x01U\x15training batch 1 of 5q\x02U\x06labelsq\x03]q\x04("
        + numbers
        + b"eU\x04dataq\x14"
        + array
        + b"u."
    )


def batch_files(layout: Layout) -> dict[str, bytes]:
    write = binary_batch if layout.suffix else pickled_batch
    return {name: write(PIXELS[i], LABELS[i]) for i, name in enumerate(layout.batches)}


def write_folder(folder: Path, layout: Layout = BINARY) -> Path:
    folder.mkdir(parents=True)
    for name, content in batch_files(layout).items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(path: Path, layout: Layout = BINARY) -> Layout:
    """Write an archive as published, whose order is not that of the batches. Return the layout with its hash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        folder = tarfile.TarInfo(layout.folder)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in sorted((batch_files(layout) | {"readme.html": b"text"}).items(), reverse=True):
            member = tarfile.TarInfo(f"{layout.folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return replace(layout, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
