"""Preprocessing that travels with the weights of a network."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from cifarnet._resize import check_size, resize_images
from cifarnet._types import Images
from cifarnet.errors import DataError, SettingError

__all__ = ["CIFAR10_MEAN", "CIFAR10_STD", "Preprocess", "Preprocessing", "channel_constant"]

#: Channel means of the 50,000 training images, on a scale of 0 to 1.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
#: Channel standard deviations over all pixels of the 50,000 training images, on a scale of 0 to 1.
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Preprocess:
    """Conversion of uint8 images to the input of a network. Its three values travel with the weights.

    Args:
        size: Side in pixels of the images that the network takes, at least 2. Images of another size are cropped to
            the square in their centre and resized (bilinear, antialiased).
        mean: Mean of each channel on a scale of 0 to 1, finite.
        std: Standard deviation of each channel on the same scale, above 0 and finite.

    Raises:
        SettingError: If a value is outside its range.

    Example:
        >>> Preprocess(32)(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).dtype
        torch.float32
    """

    size: int = 32
    mean: tuple[float, ...] = CIFAR10_MEAN
    std: tuple[float, ...] = CIFAR10_STD

    def __post_init__(self) -> None:
        check_size(self.size)
        object.__setattr__(self, "size", int(self.size))
        for key in ("mean", "std"):  # numbers of numpy and torch cannot be saved
            object.__setattr__(self, key, tuple(float(value) for value in getattr(self, key)))
        if len(self.mean) != len(self.std):
            raise SettingError(f"mean has {len(self.mean)} values, std {len(self.std)}. Pass one of each per channel")
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise SettingError(f"mean and std must be finite, got {self.mean} and {self.std}. Use those of the images")
        if not all(value > 0 for value in self.std):
            raise SettingError(f"std must be above 0, got {self.std}. Use 1.0 for a constant channel")

    def __call__(self, images: Images) -> Images:
        """Crop and resize if needed, scale to 0..1, and normalise.

        Args:
            images: uint8 in ``[0, 255]`` or floating in ``[0, 1]``, shape ``(N, C, H, W)`` or ``(C, H, W)``.

        Returns:
            float32, or float64 for float64 images, shape ``(N, C, size, size)`` or ``(C, size, size)``.

        Raises:
            DataError: If the number of channels differs from that of ``mean``, or the dtype is another integer.
        """
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise DataError(
                f"expected uint8 images, or floating images in [0, 1], got {images.dtype}. Use images.to(torch.uint8) "
                "for values in [0, 255]"
            )
        if images.shape[-3] != len(self.mean):
            raise DataError(
                f"the images have {images.shape[-3]} channels (shape {tuple(images.shape)}), the preprocessing "
                f"{len(self.mean)}. Convert them, or build the transforms with one mean and std per channel"
            )
        images = resize_images(images, self.size)
        dtype = images.dtype if images.is_floating_point() else torch.float32
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        factor = channel_constant(tuple(1 / (scale * std) for std in self.std), images.device, dtype)
        shift = channel_constant(tuple(-m / s for m, s in zip(self.mean, self.std, strict=True)), images.device, dtype)
        return torch.addcmul(shift, images.to(dtype), factor)  # (x / scale - mean) / std in one pass


class Preprocessing(v2.Transform):
    """`Preprocess` as a step of a pipeline."""

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.preprocess = preprocess

    def transform(self, inpt: Any, params: dict[str, Any]) -> Tensor:
        """Preprocess one image or batch."""
        return self.preprocess(inpt.as_subclass(Tensor))

    def extra_repr(self) -> str:
        """Return the text between the parentheses of ``repr``."""
        return repr(self.preprocess)


@functools.lru_cache(maxsize=64)
def channel_constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return one value per channel, shape ``(C, 1, 1)``, cached because a copy to the GPU synchronizes with it."""
    return torch.tensor(values, device=device, dtype=dtype).view(-1, 1, 1)
