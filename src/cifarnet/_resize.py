"""Images of any size brought to the size that a network takes: one way for files, data sets and pipelines."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from cifarnet._types import Images
from cifarnet.errors import InputError, SettingError, SettingTypeError

__all__ = ["check_size", "crop_square", "resize_images"]


def resize_images(images: Images, size: int) -> Images:
    """Bring images to ``size`` x ``size`` by antialiased bilinear interpolation.

    What is not square is first cropped to the square in its centre: a stretched picture would show things in
    proportions that no training image has.

    Args:
        images: uint8 or floating, shape ``(N, C, H, W)`` or ``(C, H, W)``.
        size: Height and width of the result, at least 2.

    Returns:
        The same dtype, shape ``(N, C, size, size)`` or ``(C, size, size)``; the same tensor if it has that size.

    Raises:
        InputError: If the images have another dtype or rank, or no pixels.
        SettingError: If ``size`` is not a whole number of at least 2.

    Example:
        >>> resize_images(torch.zeros(3, 48, 64, dtype=torch.uint8), 32).shape
        torch.Size([3, 32, 32])
    """
    check_size(size)
    right = images.dtype == torch.uint8 or images.is_floating_point()
    if not right or images.ndim not in (3, 4) or 0 in images.shape:
        raise InputError(
            f"expected uint8 or floating images (N, C, H, W) or (C, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    height, width = images.shape[-2:]
    if height == width == size:
        return images
    resized: Tensor = F.resize(crop_square(images), [size, size], InterpolationMode.BILINEAR, antialias=True)
    return resized.contiguous()


def crop_square(images: Images) -> Images:
    """The largest square in the centre: what `resize_images` leaves of an image.

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
    """Refuse what is no size of an image.

    Args:
        size: Pixels a side.

    Raises:
        SettingError: If ``size`` is not a whole number of at least 2.
    """
    if isinstance(size, bool) or not isinstance(size, int):
        raise SettingTypeError(f"size must be a whole number of pixels, got {size!r}")
    if size < 2:  # torch 2.15 has a broken assertion where three channels become one pixel
        raise SettingError(f"size must be at least 2 pixels, got {size}; CIFAR-10's networks take 32")
