"""What ``--data`` names."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from pathlib import Path

from cifarnet.datasets import DatasetSplits, find_cifar10, load_cifar10, load_image_folder, make_synthetic
from cifarnet.errors import DatasetNotFoundError, SettingError

__all__ = ["load_data"]


def load_data(source: str | None) -> DatasetSplits:
    """Load it; a folder that holds something else is not taken for a place to download to.

    Args:
        source: A folder, ``"synthetic"``, or ``None`` for CIFAR-10 wherever it is.
    """
    if source == "synthetic":
        return make_synthetic()
    if source is not None and not Path(source).exists() and get_close_matches(source, ["synthetic"]):
        raise SettingError(f'--data {source}: there is no such folder; did you mean "synthetic"?')
    if source is not None and (Path(source) / "train").is_dir():
        return load_image_folder(source)
    found = find_cifar10(source)
    elsewhere = source is not None and (found is None or not found.resolve().is_relative_to(Path(source).resolve()))
    if source is not None and elsewhere and Path(source).is_dir() and any(Path(source).iterdir()):
        raise DatasetNotFoundError(
            f"--data {source}: the folder holds neither CIFAR-10 nor train/CLASS/ and test/CLASS/; name the folder "
            'that does, a new one to download CIFAR-10 to, or "synthetic"'
        )
    if found is not None:
        print(f"CIFAR-10 from {found}", file=sys.stderr)
    return load_cifar10(source)
