"""Reads pictures that are sorted into folders by class."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from cifarnet.datasets.dataset import DatasetSplits, ImageDataset
from cifarnet.errors import DatasetFormatError, DatasetNotFoundError, InputError
from cifarnet.images import check_size, decode_image, resize_images

__all__ = ["load_image_folder"]


def load_image_folder(root: str | Path, *, size: int = 32) -> DatasetSplits:
    """Load pictures from ``root/train/<class>/*`` and ``root/test/<class>/*``.

    Anything that Pillow reads will do. Each picture is decoded by `decode_image`, cropped to its central square
    and resized to ``size``. Names that begin with a dot are ignored.

    Args:
        root: The folder that holds ``train`` and ``test``.
        size: Height and width in pixels that every image gets, at least 2.

    Returns:
        uint8 RGB images, named ``images in <root>``. The classes are the folders of ``train`` in the order of
        their names; an image's id is its place in the sorted list of its part's paths.

    Raises:
        DatasetNotFoundError: If ``root``, ``train`` or ``test`` is missing, or a folder has no pictures.
        DatasetFormatError: If there are fewer than two classes, ``test`` has a class that ``train`` lacks, or a
            file is out of place or no picture.
        SettingError: If ``size`` is not a whole number of at least 2.

    Example:
        >>> data = load_image_folder("flowers", size=64)  # doctest: +SKIP
        >>> data.train.classes  # doctest: +SKIP
        ('daisy', 'rose', 'tulip')
    """
    check_size(size)
    root = Path(root).expanduser()
    listed = {part: _list_part(root / part) for part in ("train", "test")}
    classes = tuple(listed["train"])
    if len(classes) < 2:
        raise DatasetFormatError(
            f"{root / 'train'}: one class only ({classes[0]!r}); expected a folder for each of two or more classes"
        )
    unknown = sorted(set(listed["test"]) - set(classes))
    if unknown:
        raise DatasetFormatError(
            f"{root / 'test'}: class {unknown[0]!r} is not in {root / 'train'} ({', '.join(classes)}); "
            "rename the folder, or give pictures to train on"
        )
    train, test = (_load_part(listed[part], classes, size, f"images in {root}") for part in ("train", "test"))
    return DatasetSplits(train, test)


def _list_part(folder: Path) -> dict[str, list[Path]]:
    """The picture files of each class, everything in the order of names."""
    if not folder.is_dir():
        raise DatasetNotFoundError(
            f"{folder}: no such folder; expected train/<class>/* and test/<class>/* under {folder.parent}"
        )
    listed = {}
    for class_folder in _visible(folder):
        if not class_folder.is_dir():
            raise DatasetFormatError(f"{class_folder}: a file outside a class folder; move it into its class")
        listed[class_folder.name] = files = _visible(class_folder)
        if not files:
            raise DatasetNotFoundError(f"{class_folder}: no pictures; put some there or remove the folder")
        for path in files:
            if not path.is_file():
                raise DatasetFormatError(f"{path}: not a file; pictures go directly into {class_folder}")
    if not listed:
        raise DatasetNotFoundError(f"{folder}: no class folders; expected one for each class, with its pictures")
    return listed


def _visible(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)


def _load_part(listed: dict[str, list[Path]], classes: tuple[str, ...], size: int, name: str) -> ImageDataset:
    labelled = [(path, classes.index(class_name)) for class_name, files in listed.items() for path in files]
    images = torch.empty(len(labelled), 3, size, size, dtype=torch.uint8)

    def load(row: int) -> None:
        images[row] = _load_picture(labelled[row][0], size)

    # Decoders release the GIL. Each thread writes rows of its own: the result does not depend on their timing.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for _ in threads.map(load, range(len(labelled))):
            pass
    return ImageDataset(images, torch.tensor([label for _, label in labelled]), classes, name=name)


def _load_picture(path: Path, size: int) -> Tensor:
    try:
        return resize_images(decode_image(path), size)
    except InputError as error:
        raise DatasetFormatError(f"{error} or remove it from the data set") from error
