"""Crop and resize: one geometry for files, data sets and transforms."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from cifarnet._types import Images
from cifarnet._validation import check_count
from cifarnet.errors import DataError

__all__ = ["check_size", "crop_square", "resize_images"]


def resize_images(images: Images, size: int) -> Images:
    """Bring images to ``size`` x ``size`` by antialiased bilinear interpolation.

    An image that is not square is first cropped to the square in its centre, because a stretched image has
    proportions that no training image has.

    Args:
        images: uint8 or floating, shape ``(N, C, H, W)`` or ``(C, H, W)``.
        size: Height and width of the result, at least 2.

    Returns:
        The same dtype, shape ``(N, C, size, size)`` or ``(C, size, size)``; the same tensor if it has that size.

    Raises:
        DataError: If the images have another dtype or rank, or no pixels.
        SettingError: If ``size`` is not a whole number of at least 2.

    Example:
        >>> resize_images(torch.zeros(3, 48, 64, dtype=torch.uint8), 32).shape
        torch.Size([3, 32, 32])
    """
    check_size(size)
    if (
        not (images.dtype == torch.uint8 or images.is_floating_point())
        or images.ndim not in (3, 4)
        or 0 in images.shape
    ):
        raise DataError(f"expected uint8 or float images (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
    height, width = images.shape[-2:]
    if height == width == size:
        return images
    resized: Tensor = F.resize(crop_square(images), [size, size], InterpolationMode.BILINEAR, antialias=True)
    return resized.contiguous()


def crop_square(images: Images) -> Images:
    """Crop images to the largest square in the centre, as ``resize_images`` does.

    Args:
        images: Any dtype, shape ``(..., H, W)``.

    Returns:
        A view, shape ``(..., S, S)`` with ``S = min(H, W)``.

    Example:
        >>> crop_square(torch.arange(5).expand(3, 5)).tolist()[0]
        [1, 2, 3]
    """
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


def check_size(size: int) -> None:
    """Check the height and width of an image.

    Args:
        size: Pixels per side.

    Raises:
        SettingError: If ``size`` is not a whole number of at least 2.
    """
    # At least 2, because torch 2.15 has a broken assertion where three channels become one pixel.
    check_count("size", size, "Use 32, as in CIFAR-10, for example", least=2)
