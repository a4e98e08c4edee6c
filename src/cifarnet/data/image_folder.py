"""Pictures that are sorted into folders by class."""

from __future__ import annotations

import os
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from cifarnet._files import to_path
from cifarnet._resize import check_size, resize_images
from cifarnet.data.dataset import DatasetSplits, ImageDataset
from cifarnet.data.images import decode_image
from cifarnet.errors import DataError

__all__ = ["load_image_folder"]


def load_image_folder(root: str | Path, *, size: int = 32) -> DatasetSplits:
    """Load pictures from ``root/train/<class>/*``, ``root/test/<class>/*`` and, if it exists, ``root/val/<class>/*``.

    The pictures may have any format that Pillow reads. Each one is decoded, cropped to its central
    square and resized to ``size``. Names that begin with a dot are ignored. Two names that differ in their Unicode
    normalisation only, as macOS and Linux write them, are one class.

    Args:
        root: Folder that holds ``train`` and ``test``, and perhaps ``val``.
        size: Height and width of every image in pixels, at least 2.

    Returns:
        uint8 RGB images, named ``images in <root>``. The classes are the folders of ``train`` in the order of their
        names, in normalisation form C. The id of an image is its index in the sorted list of the paths of its part.

    Raises:
        DataError: If ``root``, ``train`` or ``test`` is missing, a folder has no pictures, ``test`` or ``val`` has a
            class that ``train`` lacks, there are fewer than two classes, or a file is no picture or outside the class
            folders.
        SettingError: If ``size`` is not a whole number of at least 2.

    Example:
        >>> data = load_image_folder("flowers", size=64)  # doctest: +SKIP
        >>> data.train.classes  # doctest: +SKIP
        ('daisy', 'rose', 'tulip')
    """
    check_size(size)
    root = to_path(root)
    parts = ("train", "test", "val") if (root / "val").is_dir() else ("train", "test")
    listed = {part: _list_part(root / part) for part in parts}
    classes = tuple(listed["train"])
    for part in parts[1:]:
        unknown = sorted(set(listed[part]) - set(classes))
        if unknown:
            raise DataError(f"{root / part}: class {unknown[0]!r} is not in {root / 'train'}. Rename it")
    return DatasetSplits(*(_load_part(listed[part], classes, size, f"images in {root}") for part in parts))


def _list_part(folder: Path) -> dict[str, list[Path]]:
    """Return the picture files of each class in the order of names."""
    class_folders = _visible(folder) if folder.is_dir() else []
    if not class_folders:
        raise DataError(f"{folder}: no class folders. Put pictures into train/<class>/ and test/<class>/")
    listed: dict[str, list[Path]] = {}
    for class_folder in class_folders:
        if not class_folder.is_dir():
            raise DataError(f"{class_folder}: a file outside a class folder. Move it into its class")
        files = _visible(class_folder)
        if not files:
            raise DataError(f"{class_folder}: no pictures. Add some or remove the folder")
        listed.setdefault(unicodedata.normalize("NFC", class_folder.name), []).extend(files)
    return listed


def _visible(folder: Path) -> list[Path]:
    """Return files and folders in the order of their normalised names."""
    paths = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(paths, key=lambda path: unicodedata.normalize("NFC", path.name))


def _load_part(listed: dict[str, list[Path]], classes: tuple[str, ...], size: int, name: str) -> ImageDataset:
    files = [path for class_files in listed.values() for path in class_files]
    labels = [classes.index(class_name) for class_name, class_files in listed.items() for _ in class_files]
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8, device="cpu")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:  # decoders release the GIL
        for row, pixels in enumerate(threads.map(lambda path: resize_images(decode_image(path), size), files)):
            images[row] = pixels
    return ImageDataset(images, torch.tensor(labels, device="cpu"), classes, name=name)
