"""Data sets in memory: CIFAR-10, folders of pictures, and a synthetic stand-in.

The only modules of the package that read data files. Each loader returns a `DatasetSplits` of two
`ImageDataset`, which hold uint8 images and know nothing of devices, batches or augmentation.
"""

from __future__ import annotations

from cifarnet.datasets.cifar10 import find_cifar10, load_cifar10
from cifarnet.datasets.dataset import DatasetSplits, ImageDataset, check_split
from cifarnet.datasets.folder import load_image_folder
from cifarnet.datasets.layouts import CLASSES as CIFAR10_CLASSES
from cifarnet.datasets.synthetic import CLASSES as SYNTHETIC_CLASSES
from cifarnet.datasets.synthetic import make_synthetic

__all__ = [
    "CIFAR10_CLASSES",
    "SYNTHETIC_CLASSES",
    "DatasetSplits",
    "ImageDataset",
    "check_split",
    "find_cifar10",
    "load_cifar10",
    "load_image_folder",
    "make_synthetic",
]
