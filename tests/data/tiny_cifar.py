"""CIFAR-10's files with four rows a batch, in the bytes of the published formats."""

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

from cifarnet.data.layouts import BINARY, PICKLED, Layout

ROWS = 4
Bytes = npt.NDArray[np.uint8]

TINY_BINARY = replace(BINARY, rows=ROWS, largest_batch=ROWS * 3073)
TINY_PICKLED = replace(PICKLED, rows=ROWS)
TINY = (TINY_BINARY, TINY_PICKLED)

_random = np.random.default_rng(7)
PIXELS: Bytes = _random.integers(0, 256, (6, ROWS, 3072), dtype=np.uint8)  # 6 batches, the last to test on
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


def write_folder(folder: Path, layout: Layout) -> Path:
    folder.mkdir(parents=True)
    for name, content in batch_files(layout).items():
        (folder / name).write_bytes(content)
    return folder


def member(name: str, content: bytes = b"", **attributes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def official_members(layout: Layout) -> list[tuple[tarfile.TarInfo, bytes]]:
    """What the published archives hold; their order is not that of the batches either."""
    files = batch_files(layout) | dict.fromkeys(layout.extras, b"text\n")
    named = [member(f"{layout.folder}/{name}", content) for name, content in sorted(files.items(), reverse=True)]
    return [member(layout.folder, type=tarfile.DIRTYPE), *named]


def write_archive(path: Path, layout: Layout, members: Iterable[tuple[tarfile.TarInfo, bytes]] | None = None) -> Layout:
    """Write an archive, the published kind by default, and return the layout that expects its hash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for info, content in official_members(layout) if members is None else members:
            archive.addfile(info, io.BytesIO(content))
    return expecting(path, layout)


def expecting(path: Path, layout: Layout) -> Layout:
    return replace(layout, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
