"""Images of any kind, decoded to uint8 pixels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cifarnet._files import to_path
from cifarnet.errors import DataError

__all__ = ["ImageLike", "ImageSource", "decode_image", "to_pixels"]

#: Path of a picture, its bytes, an open binary file, or a Pillow image.
ImageSource: TypeAlias = str | Path | bytes | BinaryIO | Image.Image

#: A path, bytes, an open file, a Pillow image, an array or a tensor.
ImageLike: TypeAlias = ImageSource | npt.NDArray[Any] | Tensor

_EXPECTED = "expected uint8 or float in [0, 1] of shape (H, W, 3), (3, H, W) or (H, W)"


def to_pixels(image: ImageLike, *, channels: int = 3) -> Tensor:
    """Convert one image to uint8 with the number of channels that a network needs.

    Files and Pillow images are decoded by Pillow. Arrays and tensors may have their channels first or last, and 1,
    3 (RGB), 4 (RGBA) or no channels. Floating values are rounded to the nearest of 256 levels, because networks are
    trained on those. Transparent pixels are composited on white. Grey becomes colour, and colour becomes grey (ITU-R
    BT.601), as the network needs.

    Args:
        image: A path, bytes, an open file, a Pillow image, or uint8 or floating values in ``[0, 1]`` on any device.
        channels: Number of channels of the result.

    Returns:
        uint8, shape ``(channels, H, W)``, on the CPU.

    Raises:
        DataError: If the file is missing or damaged, if the shape, dtype or range is another, if a value is not
            finite, or if the axis of the channels is ambiguous.

    Example:
        >>> to_pixels(np.ones((48, 64, 4), dtype=np.float32)).shape
        torch.Size([3, 48, 64])
    """
    if not isinstance(image, np.ndarray | Tensor):
        if not (isinstance(image, str | Path | bytes | Image.Image) or hasattr(image, "read")):
            raise DataError(
                f"expected a path, bytes, a file, a Pillow image, an array or a tensor, got {type(image).__name__}. "
                "Give one of these, or a list of them"
            )
        return _with_channels(decode_image(image), channels)
    given = f"{str(image.dtype).removeprefix('torch.')} {tuple(image.shape)}"
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 and image.dtype.kind != "f":
            raise DataError(f"{_EXPECTED}; got {given}. Convert values in 0 to 255 to uint8")
        kind = np.uint8 if image.dtype == np.uint8 else np.float64 if image.dtype.itemsize > 4 else np.float32
        image = torch.from_numpy(np.array(image, dtype=kind, order="C"))  # torch reads native byte order only
    pixels = _channels_first(image.detach().as_subclass(Tensor), channels, given)
    return _with_channels(_to_uint8(pixels, given), channels)


def _channels_first(image: Tensor, channels: int, given: str) -> Tensor:
    """Return a view of shape ``(C, H, W)``."""
    if image.ndim == 2 and 0 not in image.shape:
        return image[None]
    if image.ndim == 4:
        raise DataError(f"{_EXPECTED}; got a batch, {given}. Give its images as a list: list(images)")
    counts = {1, 3, 4, channels}
    if image.ndim != 3 or 0 in image.shape or (image.shape[0] in counts) == (image.shape[2] in counts):
        raise DataError(f"{_EXPECTED}; got {given}. Give a Pillow image instead")
    return image if image.shape[0] in counts else image.permute(2, 0, 1)


def _to_uint8(image: Tensor, given: str) -> Tensor:
    if image.dtype == torch.uint8:
        return image.cpu()
    if not image.is_floating_point():
        raise DataError(f"{_EXPECTED}; got {given}. Convert values in 0 to 255 to uint8")
    values = image.cpu()
    values = 255 * (values if values.dtype == torch.float64 else values.float())  # exact enough for 256 levels
    low, high = (float(end) for end in values.aminmax())
    if not (low >= -0.5 and high < 255.5):  # also if a value is NaN
        extremes = f"min {low / 255:.4g} and max {high / 255:.4g}"
        raise DataError(f"{_EXPECTED}; got {given} with {extremes}. Divide by 255 or pass uint8, and do not normalise")
    return values.round_().to(torch.uint8)


def _with_channels(pixels: Tensor, channels: int) -> Tensor:
    """Return a copy of ``pixels`` ``(C, H, W)`` with another number of channels."""
    if pixels.shape[0] == channels:
        return pixels.clone(memory_format=torch.contiguous_format)
    if channels not in (1, 3) or pixels.shape[0] not in (1, 3, 4):
        raise DataError(f"the network takes {channels} channels, got an image of shape {tuple(pixels.shape)}")
    array = pixels.permute(1, 2, 0).numpy()
    colour = _to_rgb(Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array))
    return _to_tensor(colour if channels == 3 else colour.convert("L"))


def decode_image(source: ImageSource) -> Tensor:
    """Decode one picture to RGB.

    The EXIF orientation of the camera is applied. Grey, palette, CMYK and 16-bit pictures become 8-bit RGB.
    Transparent pixels are composited on white. Of several frames, the first is decoded.

    Args:
        source: Path, bytes, open binary file, or Pillow image, which stays unchanged.

    Returns:
        uint8, shape ``(3, H, W)``.

    Raises:
        DataError: If the file is missing, damaged or no picture, if it has more than ``PIL.Image.MAX_IMAGE_PIXELS``
            pixels, or if its pixels are floating.

    Example:
        >>> decode_image(Image.new("L", (4, 2), 255)).shape
        torch.Size([3, 2, 4])
    """
    name = str(source) if isinstance(source, str | Path) else "the picture"
    try:
        if isinstance(source, str | Path):
            source = to_path(source).read_bytes()
        if isinstance(source, bytes):
            source = io.BytesIO(source)
        image = source if isinstance(source, Image.Image) else Image.open(source)
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:  # before a pixel is decoded
            raise ValueError(f"more than PIL.Image.MAX_IMAGE_PIXELS = {limit:,} pixels, perhaps a decompression bomb")
        if image.mode == "F":
            raise ValueError("the range of floating-point pixels is unknown")
        return _to_tensor(_to_rgb(ImageOps.exif_transpose(image)))
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file. Check the path") from error
    except Exception as error:  # Pillow's decoders raise nearly every type for a damaged file
        raise DataError(
            f"{name}: not a picture that Pillow reads ({type(error).__name__}: {error}). Save it again as PNG"
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, in "I" as 32: Pillow's own conversion would clip at 255
        grey = (np.asarray(image).astype(np.int64).clip(0, 65535) + 128) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1).contiguous()
