"""What ``--data`` names."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from pathlib import Path

from cifarnet.classifier import Classifier
from cifarnet.datasets import (
    CIFAR10_CLASSES,
    SYNTHETIC_CLASSES,
    DatasetSplits,
    find_cifar10,
    load_cifar10,
    load_image_folder,
    make_synthetic,
)
from cifarnet.errors import DatasetNotFoundError, InputError, SettingError
from cifarnet.report import load_report

__all__ = ["load_data", "source_of"]


def source_of(run: Path, classifier: Classifier) -> str | None:
    """Where a run's own data are: what ``--data`` was, as its report says.

    Args:
        run: Its directory, or its best checkpoint.
        classifier: What it trained.

    Raises:
        InputError: If nothing is known of them but that they are not CIFAR-10.
    """
    report = (run if run.is_dir() else run.parent) / "report.json"
    told = load_report(report).get("data") if report.exists() else None
    source = told.get("source") if isinstance(told, dict) else None
    if isinstance(source, str) and (source == "synthetic" or Path(source).exists()):
        return source
    if classifier.classes == SYNTHETIC_CLASSES:
        return "synthetic"
    if classifier.classes and classifier.classes != CIFAR10_CLASSES:
        raise InputError(
            f"{run} tells {', '.join(classifier.classes[:3])}, ... apart; name images of these with --data"
        )
    return None


def load_data(source: str | None, *, size: int = 32, tell: bool = True) -> DatasetSplits:
    """Load it; a folder that holds something else is not taken for a place to download to.

    Args:
        source: A folder, ``"synthetic"``, or ``None`` for CIFAR-10 wherever it is.
        size: Of photos and of images that are drawn: the network's, in pixels.
        tell: Say on stderr where CIFAR-10 is.
    """
    if source == "synthetic":
        return make_synthetic(size=size)
    if source is not None and not Path(source).exists() and get_close_matches(source, ["synthetic"]):
        raise SettingError(f'--data {source}: there is no such folder; did you mean "synthetic"?')
    if source is not None and (Path(source) / "train").is_dir():
        return load_image_folder(source, size=size)
    found = find_cifar10(source)
    elsewhere = source is not None and (found is None or not found.resolve().is_relative_to(Path(source).resolve()))
    if source is not None and elsewhere and Path(source).is_dir() and any(Path(source).iterdir()):
        raise DatasetNotFoundError(
            f"--data {source}: the folder holds neither CIFAR-10 nor train/CLASS/ and test/CLASS/; name the folder "
            'that does, a new one to download CIFAR-10 to, or "synthetic"'
        )
    if tell:
        where = "CIFAR-10 is not here; downloading 170 MB" if found is None else f"CIFAR-10 from {found}"
        print(where, file=sys.stderr)
    return load_cifar10(source)
