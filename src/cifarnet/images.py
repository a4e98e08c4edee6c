"""From a picture in any file that Pillow reads to uint8 pixels of the size that a network wants."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from cifarnet._types import Images
from cifarnet.errors import InputError, SettingError, SettingTypeError

__all__ = ["ImageSource", "check_size", "decode_image", "resize_images"]

#: What can be decoded: the path of a picture, or one that Pillow has opened.
ImageSource: TypeAlias = "str | Path | Image.Image"


def decode_image(source: ImageSource) -> Tensor:
    """Decode one picture to RGB.

    The camera's EXIF orientation is applied. Grey, palette, CMYK and 16-bit pictures become 8-bit RGB;
    transparency is laid on white; of several frames the first is taken.

    Args:
        source: A path, or a Pillow image, which is left as it is.

    Returns:
        uint8, shape ``(3, H, W)``.

    Raises:
        InputError: If there is no such file, or it is no picture, is damaged, has more pixels than
            ``PIL.Image.MAX_IMAGE_PIXELS``, or has floating-point pixels.

    Example:
        >>> decode_image(Image.new("L", (4, 2), 255)).shape
        torch.Size([3, 2, 4])
    """
    if isinstance(source, Image.Image):
        return _decode(source, "the picture")
    if not isinstance(source, str | Path):
        raise InputError(f"expected a path or a Pillow image, got {type(source).__name__}")
    path = Path(source)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}; expected a picture that Pillow reads (PNG, JPEG, WebP, ...)")
    try:
        image = Image.open(path)
    except Exception as error:
        raise _unreadable(str(path), error) from error
    with image:
        return _decode(image, str(path))


def resize_images(images: Images, size: int) -> Images:
    """Bring images to ``size`` x ``size`` by antialiased bilinear interpolation.

    What is not square is first cropped to the square in its centre: a stretched picture would show things in
    proportions that no training image has.

    Args:
        images: uint8, shape ``(N, C, H, W)`` or ``(C, H, W)``.
        size: Height and width of the result, at least 2.

    Returns:
        uint8, shape ``(N, C, size, size)`` or ``(C, size, size)``; the same tensor if it has that size.

    Raises:
        InputError: If the images have another dtype or rank, or no pixels.
        SettingError: If ``size`` is not a whole number of at least 2.

    Example:
        >>> resize_images(torch.zeros(3, 48, 64, dtype=torch.uint8), 32).shape
        torch.Size([3, 32, 32])
    """
    check_size(size)
    if images.dtype != torch.uint8 or images.ndim not in (3, 4) or 0 in images.shape:
        raise InputError(f"expected uint8 images (N, C, H, W) or (C, H, W), got {images.dtype} {tuple(images.shape)}")
    height, width = images.shape[-2:]
    if height == width == size:
        return images
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[..., top : top + side, left : left + side]
    resized: Tensor = F.resize(square, [size, size], InterpolationMode.BILINEAR, antialias=True)
    return resized.contiguous()


def check_size(size: int) -> None:
    """Refuse what is no size of an image.

    Raises:
        SettingError: If ``size`` is not a whole number of at least 2.
    """
    if isinstance(size, bool) or not isinstance(size, int):
        raise SettingTypeError(f"size must be a whole number of pixels, got {size!r}")
    if size < 2:  # torch 2.15 has a broken assertion where three channels become one pixel
        raise SettingError(f"size must be at least 2 pixels, got {size}; CIFAR-10's networks take 32")


def _decode(image: Image.Image, name: str) -> Tensor:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:  # before a pixel is decoded
        raise InputError(
            f"{name}: {image.width} x {image.height} pixels are more than {limit:,} and may be a decompression "
            "bomb; make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        )
    if image.mode == "F":
        raise InputError(f"{name}: floating-point pixels have no agreed range; save it with 8 or 16 bits first")
    try:
        pixels = np.array(_to_rgb(ImageOps.exif_transpose(image)))  # (H, W, 3)
    except Exception as error:
        raise _unreadable(name, error) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, in "I" as 32: Pillow's own conversion would clip at 255
        grey = (np.asarray(image).astype(np.int64).clip(0, 65535) + 128) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _unreadable(name: str, error: Exception) -> InputError:
    """What becomes of any exception within Pillow, whose decoders raise nearly every type on a damaged file."""
    return InputError(
        f"{name}: not a picture that Pillow reads ({type(error).__name__}: {error}); "
        "open it in another program, or save it anew as PNG"
    )
