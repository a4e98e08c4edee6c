"""Train, evaluate and use CIFAR-10 classifiers: exact resume, honest numbers, files that cannot execute code."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cifarnet.checkpoint import Checkpointer
    from cifarnet.classifier import Classifier, Prediction
    from cifarnet.data import DatasetSplits, ImageDataset, load_cifar10, load_image_folder, make_synthetic
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

#: Submodules, and the public names that each of them defines. The first use of a name imports its submodule (PEP 562),
#: so that ``import cifarnet`` does not import torch. Type checkers read the imports above; a test compares them.
_NAMES: dict[str, tuple[str, ...]] = {
    "checkpoint": ("Checkpointer",),
    "classifier": ("Classifier", "Prediction"),
    "data": ("DatasetSplits", "ImageDataset", "load_cifar10", "load_image_folder", "make_synthetic"),
    "errors": ("CifarnetError",),
    "export": (),
    "inference": ("Evaluation",),
    "inspection": (),
    "models": ("BasicCNN", "CifarCNN", "FastCNN", "ResNet18"),
    "optim": (),
    "randomness": (),
    "recipes": (),
    "report": (),
    "training": ("EpochRecord", "History", "Trainer"),
    "transforms": ("Preprocess", "Transforms", "build_transforms"),
    "visualize": (),
}

if not TYPE_CHECKING:  # with it, type checkers would accept any name

    def __getattr__(name: str) -> object:
        """Import a submodule or a name of one."""
        home = next((home for home, names in _NAMES.items() if name in (home, *names)), None)
        if home is None:
            raise AttributeError(f"module 'cifarnet' has no attribute {name!r}")
        module = importlib.import_module(f"cifarnet.{home}")
        globals()[name] = module if name == home else getattr(module, name)
        return globals()[name]

    def __dir__() -> list[str]:
        """Return every public name, imported or not."""
        return sorted({*globals(), *__all__, *_NAMES})
