"""Augmentation drawn per image, the preprocessing that travels with weights, and views to evaluate with.

Inside `cifarnet.randomness.scope` the draws are a hash of (seed, epoch, image id); outside one they come from
torch's generator.
"""

from __future__ import annotations

from cifarnet.transforms.augment import BrightnessContrast, Cutout, RandomCrop, RandomFlip, draws_per_image
from cifarnet.transforms.build import Transforms, build_transforms
from cifarnet.transforms.preprocess import CIFAR10_MEAN, CIFAR10_STD, Preprocess
from cifarnet.transforms.resolution import ProgressiveResize
from cifarnet.transforms.views import VIEWS, ViewName, Views

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "VIEWS",
    "BrightnessContrast",
    "Cutout",
    "Preprocess",
    "ProgressiveResize",
    "RandomCrop",
    "RandomFlip",
    "Transforms",
    "ViewName",
    "Views",
    "build_transforms",
    "draws_per_image",
]
