"""Augmentation drawn per image, preprocessing that is saved with the weights, and test-time augmentation.

Inside `cifarnet.randomness.scope`, a draw is a hash of (seed, epoch, image id). Outside a scope, it comes from torch's
generator.
"""

from __future__ import annotations

from cifarnet.transforms.augment import Cutout, RandomCrop, RandomFlip
from cifarnet.transforms.build import Transforms, build_transforms
from cifarnet.transforms.preprocess import CIFAR10_MEAN, CIFAR10_STD, Preprocess
from cifarnet.transforms.resolution import ProgressiveResize
from cifarnet.transforms.tta import TTA

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "TTA",
    "Cutout",
    "Preprocess",
    "ProgressiveResize",
    "RandomCrop",
    "RandomFlip",
    "Transforms",
    "build_transforms",
]
