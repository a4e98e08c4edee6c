"""Data that ``--data`` names."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from cifarnet._console import write_line
from cifarnet._files import to_path
from cifarnet.classifier import Classifier
from cifarnet.data import (
    CIFAR10_CLASSES,
    SYNTHETIC_CLASSES,
    DatasetSplits,
    find_cifar10,
    load_cifar10,
    load_image_folder,
    make_synthetic,
)
from cifarnet.errors import DataError, SettingError
from cifarnet.report import load_report

__all__ = ["load_data", "source_of"]


def source_of(run: Path, classifier: Classifier) -> str | None:
    """Return the ``--data`` that a run was trained with, from its report.

    Args:
        run: Directory of the run, or its best checkpoint.
        classifier: Classifier of the run.

    Raises:
        DataError: If the data are unknown and not CIFAR-10.
    """
    report = (run if run.is_dir() else run.parent) / "report.json"
    data = load_report(report).get("data") if report.exists() else None
    source = data.get("source") if isinstance(data, dict) else None
    if isinstance(source, str) and (source == "synthetic" or to_path(source).exists()):
        return source
    if classifier.classes == SYNTHETIC_CLASSES:
        return "synthetic"
    if classifier.classes and classifier.classes != CIFAR10_CLASSES:
        raise DataError(
            f"{run} was trained on {', '.join(classifier.classes[:3])}, ... . Name images of these classes with --data"
        )
    return None


def load_data(source: str | None, *, size: int = 32, tell: bool = True) -> DatasetSplits:
    """Load the data that ``--data`` names. A named place is the only place.

    Args:
        source: Folder or archive, ``"synthetic"``, or ``None`` for CIFAR-10 in ``$CIFARNET_DATA`` or the cache.
        size: Height and width of photos and synthetic images in pixels.
        tell: Whether to write on stderr where CIFAR-10 is.

    Raises:
        SettingError: If there is no such folder.
        DataError: If the folder holds other data, or a file is damaged.
    """
    if source == "synthetic":
        return make_synthetic(size=size)
    if source is not None:
        path = to_path(source)
        if not path.exists():
            siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            near = get_close_matches(path.name, [*siblings, "synthetic"], n=1)
            hint = f'Did you mean "{near[0]}"?' if near else "Make the folder to download CIFAR-10 into it."
            raise SettingError(f"--data {source}: there is no such folder. {hint} Without --data, the cache is used")
        if (path / "train").is_dir():
            return load_image_folder(path, size=size)
        if path.is_dir() and any(path.iterdir()) and find_cifar10(path) is None:
            raise DataError(
                f"--data {source}: the folder holds neither CIFAR-10 nor train/CLASS/ and test/CLASS/. Name the "
                'folder that does, an empty folder to download CIFAR-10 into, or "synthetic"'
            )
    found = find_cifar10(source)
    if tell:
        where = "Downloading CIFAR-10 (170 MB)" if found is None else f"CIFAR-10 from {found}"
        write_line(where)
    return load_cifar10(source)
