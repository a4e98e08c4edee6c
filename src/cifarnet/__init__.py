"""Train, judge and use CIFAR-10 classifiers: exact resume, honest numbers, files that cannot execute code."""

from __future__ import annotations

from cifarnet.checkpoint import Checkpointer
from cifarnet.classifier import Classifier
from cifarnet.datasets import DatasetSplits, ImageDataset, load_cifar10, load_image_folder, make_synthetic
from cifarnet.errors import CifarnetError
from cifarnet.history import EpochRecord, History
from cifarnet.metrics import Evaluation
from cifarnet.models import CifarCNN
from cifarnet.trainer import Trainer
from cifarnet.transforms import Preprocess, Transforms, build_transforms

__all__ = [
    "Checkpointer",
    "CifarCNN",
    "CifarnetError",
    "Classifier",
    "DatasetSplits",
    "EpochRecord",
    "Evaluation",
    "History",
    "ImageDataset",
    "Preprocess",
    "Trainer",
    "Transforms",
    "build_transforms",
    "load_cifar10",
    "load_image_folder",
    "make_synthetic",
]

__version__ = "0.1.0"
