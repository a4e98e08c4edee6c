"""Train, judge and use CIFAR-10 classifiers: exact resume, honest numbers, files that cannot execute code."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cifarnet.checkpoint import Checkpointer
    from cifarnet.classifier import Classifier, Prediction
    from cifarnet.datasets import DatasetSplits, ImageDataset, load_cifar10, load_image_folder, make_synthetic
    from cifarnet.errors import CifarnetError
    from cifarnet.inference import Evaluation
    from cifarnet.models import BasicCNN, CifarCNN, FastCNN, ResNet18
    from cifarnet.training import EpochRecord, History, Trainer
    from cifarnet.transforms import Preprocess, Transforms, build_transforms

__all__ = [
    "BasicCNN",
    "Checkpointer",
    "CifarCNN",
    "CifarnetError",
    "Classifier",
    "DatasetSplits",
    "EpochRecord",
    "Evaluation",
    "FastCNN",
    "History",
    "ImageDataset",
    "Prediction",
    "Preprocess",
    "ResNet18",
    "Trainer",
    "Transforms",
    "build_transforms",
    "load_cifar10",
    "load_image_folder",
    "make_synthetic",
]

__version__ = "0.1.0"

#: Where each public name lives. A module is imported when a name of it is first asked for (PEP 562), so that
#: ``import cifarnet`` costs next to nothing; the imports above say the same to type checkers, and a test compares.
_HOMES = {
    "BasicCNN": "models",
    "Checkpointer": "checkpoint",
    "CifarCNN": "models",
    "CifarnetError": "errors",
    "Classifier": "classifier",
    "DatasetSplits": "datasets",
    "EpochRecord": "training",
    "Evaluation": "inference",
    "FastCNN": "models",
    "History": "training",
    "ImageDataset": "datasets",
    "Prediction": "classifier",
    "Preprocess": "transforms",
    "ResNet18": "models",
    "Trainer": "training",
    "Transforms": "transforms",
    "build_transforms": "transforms",
    "load_cifar10": "datasets",
    "load_image_folder": "datasets",
    "make_synthetic": "datasets",
}
_MODULES = {
    *_HOMES.values(),
    "bench",
    "export",
    "images",
    "inspection",
    "optim",
    "randomness",
    "recipes",
    "report",
    "visualize",
}

if not TYPE_CHECKING:  # type checkers would take any name for one that is there

    def __getattr__(name: str) -> object:
        """Import what is asked for the first time."""
        if name in _HOMES:
            value = getattr(importlib.import_module(f"cifarnet.{_HOMES[name]}"), name)
        elif name in _MODULES:
            value = importlib.import_module(f"cifarnet.{name}")
        else:
            raise AttributeError(f"module 'cifarnet' has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """Every public name, imported or not."""
        return sorted({*globals(), *_HOMES, *_MODULES})
