"""Data in memory: CIFAR-10, folders of pictures, synthetic images, and the decoding of single images.

The only modules of the package that read data files. Each loader returns `DatasetSplits` of `ImageDataset`, which
hold uint8 images and know nothing of devices, batches or augmentation.
"""

from cifarnet.data.cifar10 import find_cifar10, load_cifar10
from cifarnet.data.cifar10_files import CIFAR10_CLASSES
from cifarnet.data.dataset import DatasetSplits, ImageDataset
from cifarnet.data.image_folder import load_image_folder
from cifarnet.data.images import ImageLike, to_pixels
from cifarnet.data.synthetic import SYNTHETIC_CLASSES, make_synthetic

__all__ = [
    "CIFAR10_CLASSES",
    "SYNTHETIC_CLASSES",
    "DatasetSplits",
    "ImageDataset",
    "ImageLike",
    "find_cifar10",
    "load_cifar10",
    "load_image_folder",
    "make_synthetic",
    "to_pixels",
]
