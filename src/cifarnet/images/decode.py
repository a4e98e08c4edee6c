"""From a picture in any file that Pillow reads to uint8 pixels."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cifarnet._files import to_path
from cifarnet.errors import InputError

__all__ = ["ImageSource", "decode_image"]


#: Path of a picture, its bytes, an open binary file, or a picture that Pillow has opened.
ImageSource: TypeAlias = str | Path | bytes | BinaryIO | Image.Image


def decode_image(source: ImageSource) -> Tensor:
    """Decode one picture to RGB.

    The camera's EXIF orientation is applied. Grey, palette, CMYK and 16-bit pictures become 8-bit RGB;
    transparency is laid on white; of several frames the first is taken.

    Args:
        source: Path, bytes, open binary file, or Pillow image, which is left as it is.

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
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    if not isinstance(source, str | Path):
        if not hasattr(source, "read"):
            raise InputError(f"expected a path, a file, bytes or a Pillow image, got {type(source).__name__}")
        try:
            opened = Image.open(source)
        except Exception as error:
            raise _unreadable("the picture", error) from error
        return _decode(opened, "the picture")
    path = to_path(source)
    if not os.path.isfile(path):  # unlike Path.is_file, no error for a name too long or a folder that is closed
        what = "is a folder" if os.path.isdir(path) else "no such file"
        raise InputError(f"{path}: {what}; expected a picture that Pillow reads (PNG, JPEG, WebP, ...)")
    try:
        image = Image.open(path)
    except Exception as error:
        raise _unreadable(str(path), error) from error
    with image:
        return _decode(image, str(path))


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
