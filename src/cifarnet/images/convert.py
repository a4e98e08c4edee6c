"""Whatever somebody calls an image, as the uint8 pixels that networks are trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from cifarnet.errors import InputError
from cifarnet.images.decode import ImageSource, decode_image

__all__ = ["ImageLike", "to_pixels"]

#: A path, a Pillow image, an array or a tensor.
ImageLike: TypeAlias = ImageSource | npt.NDArray[Any] | Tensor

_EXPECTED = "expected uint8 or float in [0, 1] of shape (H, W, 3), (3, H, W) or (H, W)"


def to_pixels(image: ImageLike, *, channels: int = 3) -> Tensor:
    """Bring one image to uint8 with the channels that a network takes.

    Files and Pillow images are decoded by `decode_image`. Arrays and tensors may have their channels first or last,
    1, 3 (RGB) or 4 (RGBA) of them or none; floating values are rounded to the nearest of 256 levels, which is what
    networks are trained on. Transparency is laid on white; grey becomes colour and colour grey (ITU-R BT.601) as
    the network needs.

    Args:
        image: A path, a Pillow image, or uint8 or floating values in ``[0, 1]`` on any device.
        channels: How many channels the network takes.

    Returns:
        uint8, shape ``(channels, H, W)``, on the CPU.

    Raises:
        InputError: If it is no image: the file is missing or damaged; the shape, dtype or range is another;
            a value is not finite; there are no pixels; or it cannot be told which axis holds the channels.

    Example:
        >>> to_pixels(np.ones((48, 64, 4), dtype=np.float32)).shape
        torch.Size([3, 48, 64])
    """
    if not isinstance(image, np.ndarray | Tensor) and (
        isinstance(image, str | Path | Image.Image | bytes) or hasattr(image, "read")
    ):
        return _with_channels(decode_image(image), channels)
    if isinstance(image, np.ndarray):
        tensor = _from_array(image)
    elif isinstance(image, Tensor):
        tensor = image.detach()
        tensor = tensor.as_subclass(Tensor) if type(tensor) is not Tensor else tensor
    else:
        remedy = "Give its images as a list: list(images)" if isinstance(image, Iterable) else "Give one of these"
        raise InputError(
            "expected a path, bytes, a file, a Pillow image, an array or a tensor, got "
            f"{type(image).__name__}. {remedy}"
        )
    given = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
    return _with_channels(_to_uint8(_channels_first(tensor, channels, given), given), channels)


def _from_array(array: npt.NDArray[Any]) -> Tensor:
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        remedies = {
            "i": "array.astype(np.uint8) suits values in 0 to 255",
            "u": "(array >> 8 * (array.itemsize - 1)).astype(np.uint8) suits the whole range of the dtype",
            "b": "255 * array.astype(np.uint8) makes a mask a picture",
        }
        raise InputError(
            f"{_EXPECTED}; got {array.dtype} {array.shape}. {remedies.get(array.dtype.kind, 'Convert it')}"
        )
    kind = np.uint8 if array.dtype == np.uint8 else np.float64 if array.dtype.itemsize > 4 else np.float32
    return torch.from_numpy(np.array(array, dtype=kind, order="C"))  # a copy: torch takes no foreign byte order


def _channels_first(image: Tensor, channels: int, given: str) -> Tensor:
    """Shape ``(C, H, W)``, wherever the channels were."""
    if image.layout is not torch.strided or image.is_nested or image.is_meta or image.is_quantized:
        raise InputError(f"{_EXPECTED}; got a tensor without pixels to read, {image.layout} on {image.device}")
    if image.ndim == 4:
        raise InputError(f"{_EXPECTED}; got a batch, {given}. Give its images as a list: list(images)")
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise InputError(f"{_EXPECTED}; got {given}")
    if image.ndim == 2:
        return image[None]
    counts = {1, 3, 4, channels}
    first, last = image.shape[0] in counts, image.shape[2] in counts
    if first == last:
        which = "either end may be" if first else "neither end is"
        raise InputError(f"{_EXPECTED}; got {given}, where {which} the channels. Give a Pillow image instead")
    return image if first else image.permute(2, 0, 1)


def _to_uint8(image: Tensor, given: str) -> Tensor:
    if image.dtype == torch.uint8:
        return image.cpu()
    if not image.is_floating_point():
        whole = image.dtype in (torch.int8, torch.int16, torch.int32, torch.int64)
        remedy = "image.to(torch.uint8) suits values in 0 to 255" if whole else "Convert it to uint8"
        raise InputError(f"{_EXPECTED}; got {given}. {remedy}")
    values = image.cpu()
    values = values if values.dtype == torch.float64 else values.float()  # exact enough for 256 levels
    low, high = (float(end) for end in values.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):  # a NaN is both
        raise InputError(f"{_EXPECTED}; got {given} with NaN or infinity among its values")
    if round(255 * low) < 0 or round(255 * high) > 255:
        remedy = (
            "It looks normalised; give it as it was before, preprocessing is the classifier's business"
            if low < 0
            else "Divide by 255 or pass uint8"
        )
        raise InputError(f"{_EXPECTED}; got {given} with min {low:.4g} and max {high:.4g}. {remedy}")
    return (values * 255).round_().to(torch.uint8)


def _with_channels(pixels: Tensor, channels: int) -> Tensor:
    """``pixels`` ``(C, H, W)`` with another number of channels; Pillow knows how, also for files."""
    if pixels.shape[0] == channels:
        return pixels.clone(memory_format=torch.contiguous_format)  # never the caller's own
    if channels not in (1, 3) or pixels.shape[0] not in (1, 3, 4):
        raise InputError(
            f"the network takes {channels} channels, the image has {pixels.shape[0]} (shape {tuple(pixels.shape)}); "
            "give one like those it was trained on"
        )
    if pixels.shape[0] == 1:
        return pixels.expand(3, -1, -1).contiguous()
    colour = decode_image(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
    if channels == 3:
        return colour
    return torch.from_numpy(np.array(Image.fromarray(colour.permute(1, 2, 0).numpy()).convert("L")))[None]
