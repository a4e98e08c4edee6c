"""Data sets in memory: CIFAR-10, folders of pictures, and a synthetic stand-in.

The only modules of the package that read data files. Each loader returns a `DatasetSplits` of two
`ImageDataset`, which hold uint8 images and know nothing of devices, batches or augmentation.
"""

from __future__ import annotations

from cifarnet.data.cifar10 import find_cifar10, load_cifar10
from cifarnet.data.dataset import DatasetSplits, ImageDataset, check_split
from cifarnet.data.folder import load_image_folder
from cifarnet.data.layouts import CLASSES as CIFAR10_CLASSES
from cifarnet.data.synthetic import CLASSES as SYNTHETIC_CLASSES
from cifarnet.data.synthetic import make_synthetic

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
