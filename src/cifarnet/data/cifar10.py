"""Search for CIFAR-10 on this machine, and its download."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from cifarnet._files import to_path
from cifarnet.data.archives import read_archive
from cifarnet.data.dataset import DatasetSplits
from cifarnet.data.download import download_addresses, download_archive
from cifarnet.data.layouts import BINARY, PICKLED, Layout, read_splits
from cifarnet.errors import DatasetFormatError, DatasetNotFoundError

__all__ = ["find_cifar10", "load_cifar10", "load_from"]

_LAYOUTS: Final = (BINARY, PICKLED)

#: Copies that are known by the fingerprints of their training and test images.
_KNOWN_COPIES: Final = {
    # A public lossless repack in which 109 images survive only as JPEG copies and 9,000 test images are in
    # another order; every label agrees with the published list.
    (
        "8de7456ef7ffacfa284b9ead85280d94b29089a0f4e17a4c23e5827748b826d7",
        "688c496a10ed9e92a74eb04aa78243f12666325e02a841a6e8a77bfa216009aa",
    ): "CIFAR-10, 59,891 of 60,000 images bit-exact",
}
_UNKNOWN_COPY: Final = "CIFAR-10, loose files (not checked against the official archive)"


def load_cifar10(root: str | Path | None = None, *, download: bool = True, progress_bar: bool = True) -> DatasetSplits:
    """Load CIFAR-10 from a folder, or download it.

    If ``root`` is given, it is the only place. Otherwise the places are ``$CIFARNET_DATA`` and then the cache
    (``$XDG_CACHE_HOME/cifarnet`` or ``~/.cache/cifarnet``). Each may hold ``cifar-10-batches-bin/``,
    ``cifar-10-batches-py/``, ``cifar-10-binary.tar.gz`` or ``cifar-10-python.tar.gz``. The first copy that is found
    is used and must be complete. Archives are checked against their published SHA-256 and never unpacked. Pickled
    batches are read and never executed.

    If there is no copy, ``cifar-10-binary.tar.gz`` (170 MB) is downloaded into the first place. The environment
    variable ``CIFARNET_MIRROR`` may hold one more address, which is tried first.

    Args:
        root: Folder that holds one of the four, the unpacked folder itself, or an archive. A download needs a folder
            that is new or empty.
        download: Whether to download what is found nowhere.
        progress_bar: Whether a download shows a bar on stderr.

    Returns:
        50,000 training and 10,000 test images, uint8 ``(N, 3, 32, 32)``, the same from every layout. Their name
        says whether the copy is the published one.

    Raises:
        DatasetNotFoundError: If there is no copy and ``download`` is ``False``, if ``root`` holds other files, or if a
            file of the copy is missing.
        DatasetFormatError: If a file is damaged.
        DatasetIntegrityError: If an archive is not the published one.
        DatasetDownloadError: If no address gave it.

    Example:
        >>> data = load_cifar10("data")  # doctest: +SKIP
        >>> data.train  # doctest: +SKIP
        ImageDataset('CIFAR-10', 50,000 images of 3x32x32, 10 classes)
    """
    places = _places(root)
    folder = places[0]
    if root is not None and _find(places, _LAYOUTS) is None and folder.is_dir() and any(folder.iterdir()):
        raise DatasetNotFoundError(
            f"{folder} does not hold CIFAR-10. Name the folder that does, a new folder to download it into, or no "
            "folder to use the cache"
        )
    return load_from(
        places, layouts=_LAYOUTS, addresses=download_addresses() if download else (), progress_bar=progress_bar
    )


def find_cifar10(root: str | Path | None = None) -> Path | None:
    """Return the path that `load_cifar10` would read, without reading it.

    Args:
        root: As in `load_cifar10`.

    Returns:
        The folder or archive; ``None`` if there is no copy.

    Raises:
        DatasetNotFoundError: If ``root`` names an archive that is not there.
        DatasetFormatError: If ``root`` is a file of another name.

    Example:
        >>> find_cifar10("data")  # doctest: +SKIP
        PosixPath('data/cifar-10-batches-bin')
    """
    found = _find(_places(root), _LAYOUTS)
    return None if found is None else found[0]


def load_from(
    places: Sequence[Path], *, layouts: Sequence[Layout], addresses: Sequence[str], progress_bar: bool
) -> DatasetSplits:
    """Read the first copy in ``places``, or download one into the first of them.

    Args:
        places: Folders or archives, at least one.
        layouts: The layouts to look for; the archive of the first is what is downloaded.
        addresses: Where to download from; none means not to.
        progress_bar: Whether a download shows a bar on stderr.

    Returns:
        The training and the test images.
    """
    found = _find(places, layouts)
    if found is not None:
        path, layout = found
        return _read_folder(path, layout) if os.path.isdir(path) else read_archive(path, layout)
    wanted = layouts[0]
    if not addresses:
        raise DatasetNotFoundError(
            f"CIFAR-10 is not in {' or '.join(map(str, places))}. Give the folder that holds it as root (--data DIR), "
            f"set CIFARNET_DATA to it, or put {wanted.archive} in {places[-1]}; "
            "make_synthetic() (--data synthetic) needs no files"
        )
    archive = places[0] / wanted.archive
    download_archive(archive, wanted.sha256, addresses=addresses, progress_bar=progress_bar)
    return read_archive(archive, wanted)


def _places(root: str | Path | None) -> list[Path]:
    if root:
        return [to_path(root)]
    cache = os.environ.get("XDG_CACHE_HOME") or to_path("~/.cache")
    if str(cache).startswith("~"):  # a user id without a home directory, as in some containers
        cache = tempfile.gettempdir()
    return [to_path(place) for place in (os.environ.get("CIFARNET_DATA"), Path(cache) / "cifarnet") if place]


def _find(places: Sequence[Path], layouts: Sequence[Layout]) -> tuple[Path, Layout] | None:
    """The first folder or archive that is meant to be a copy, whole or not: a broken one is never passed over."""
    archives = {layout.archive: layout for layout in layouts}
    for place in places:
        if os.path.isfile(place) or (place.name in archives and not os.path.isdir(place)):
            if place.name not in archives:
                raise DatasetFormatError(f"{place} is a file; expected a folder, or one of {', '.join(archives)}")
            if not os.path.isfile(place):
                raise DatasetNotFoundError(f"{place}: no such file; put the archive there, or name another place")
            return place, archives[place.name]
        for layout in layouts:
            for folder in (place / layout.folder, place):
                if _is_copy(folder, layout):
                    return folder, layout
        for name, layout in archives.items():
            if os.path.isfile(place / name):
                return place / name, layout
    return None


def _is_copy(folder: Path, layout: Layout) -> bool:
    """Whether this is meant to be the layout's folder: by its name, or by any of its files."""
    named = folder.name == layout.folder
    return os.path.isdir(folder) and (named or any(os.path.isfile(folder / name) for name in layout.batches))


def _read_folder(folder: Path, layout: Layout) -> DatasetSplits:
    missing = [name for name in layout.batches if not os.path.isfile(folder / name)]
    if missing:
        raise DatasetNotFoundError(
            f"{folder}: {', '.join(missing)} missing; put back what is missing, or move the folder away "
            "so that the data is looked for elsewhere"
        )
    splits = read_splits(layout, _open_batches(folder, layout))
    fingerprints = splits.train.fingerprint, splits.test.fingerprint
    splits.train.name = splits.test.name = _KNOWN_COPIES.get(fingerprints, _UNKNOWN_COPY)
    return splits


def _open_batches(folder: Path, layout: Layout) -> Iterator[tuple[str, str, BinaryIO]]:
    for name in layout.batches:
        path = folder / name
        try:
            file = path.open("rb")
        except OSError as error:
            raise DatasetNotFoundError(f"cannot read {path}: {error.strerror}") from error
        with file:
            yield name, str(path), file
