"""Augmentation that draws for each image, of one image or of a batch.

torchvision's v2 transforms draw once per batch. These draw once per image, on the device of the batch and without a
Python loop. They are `torchvision.transforms.v2.Transform` s: they compose with those of torchvision and accept
``(image, label)`` samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

from cifarnet import randomness
from cifarnet._types import Images
from cifarnet._validation import check_choice
from cifarnet.errors import DataError, SettingError
from cifarnet.transforms.preprocess import channel_constant

__all__ = ["Cutout", "RandomCrop", "RandomFlip", "draws_per_image"]


class _PerImage(v2.Transform):
    """Transform that draws ``columns`` numbers per image, then transforms all images at once."""

    columns = 1
    every_epoch = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw for every image. v2 passes the inputs that it transforms."""
        for image in flat_inputs:
            if type(image) not in (Tensor, tv_tensors.Image):
                raise DataError(
                    f"{type(self).__name__} takes a tensor, got {type(image).__name__}. Put v2.PILToTensor() before it"
                )
            if image.ndim not in (3, 4):
                raise DataError(
                    f"{type(self).__name__} takes (C, H, W) or (N, C, H, W), got shape {tuple(image.shape)}. Reshape "
                    "the images first"
                )
        images = flat_inputs[0]
        draws = randomness.draw(
            self.name,
            num_images=1 if images.ndim == 3 else images.shape[0],
            columns=self.columns,
            device=images.device,
            every_epoch=self.every_epoch,
        )
        return {"draws": draws}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply the draws to one image or batch."""
        batch = inpt if inpt.ndim == 4 else inpt[None]
        output = self._augment(batch.as_subclass(Tensor), params["draws"])
        output = output if inpt.ndim == 4 else output[0]
        return tv_tensors.wrap(output, like=inpt) if isinstance(inpt, tv_tensors.TVTensor) else output

    def _augment(self, images: Images, draws: Tensor) -> Images:
        """Transform ``images`` ``(N, C, H, W)`` by ``draws`` ``(N, columns)``. Shape and dtype are unchanged."""
        raise NotImplementedError


def draws_per_image(transform: object) -> bool:
    """Return whether the result for an image is known not to depend on the other images of its batch.

    Args:
        transform: Any transform. The result is ``True`` only for transforms of this module and `v2.Identity`.
    """
    return isinstance(transform, _PerImage | v2.Identity)


class RandomCrop(_PerImage):
    """Pad each image on all sides and crop it to its original size at a drawn position.

    Args:
        padding: Pixels on each side, at least 1 and, for ``"reflect"``, less than the sides of the image.
        mode: Content of the padding: ``"reflect"`` mirrors the image without repeating its edge, ``"zero"`` is black.
        name: Name of the draw. Two crops in one pipeline need two names.

    Raises:
        SettingError: If ``padding`` or ``mode`` is outside its range.

    Example:
        >>> RandomCrop(4)(torch.zeros(8, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([8, 3, 32, 32])
    """

    columns = 2

    def __init__(self, padding: int, *, mode: Literal["reflect", "zero"] = "reflect", name: str = "crop") -> None:
        super().__init__(name)
        if padding < 1:
            raise SettingError(f"padding must be at least 1, got {padding}. Leave the crop out for no cropping")
        check_choice("mode", mode, ("reflect", "zero"))
        self.padding = padding
        self.mode = mode

    def _augment(self, images: Images, draws: Tensor) -> Images:
        num_images, channels, height, width = images.shape
        if self.mode == "reflect" and self.padding >= min(height, width):
            raise DataError(f"padding {self.padding} does not fit images of {height}x{width}. It must be smaller")
        # 2 * padding + 1 positions with equal probability. A draw is below 1, so the floor is at most 2 * padding.
        position = (draws * (2 * self.padding + 1)).long()  # (N, 2)
        padded = _padded(images, self.padding, reflected=self.mode == "reflect")
        tall, wide = padded.shape[-2:]
        # A row of the output is part of one padded row. Copying rows takes half the time of gathering pixels.
        of_image = tall * torch.arange(num_images * channels, device=images.device).view(num_images, channels, 1)
        rows = of_image + position[:, :1, None] + torch.arange(height, device=images.device)  # (N, C, H)
        starts = rows * wide + position[:, 1:, None]
        windows = padded.flatten().as_strided((padded.numel() - width + 1, width), (1, 1))
        return windows.index_select(0, starts.flatten()).view(images.shape)


class RandomFlip(_PerImage):
    """Flip images horizontally.

    Args:
        mode: ``"random"`` flips each image with probability 1/2 in every epoch. ``"alternating"`` draws once per
            image, then flips it in every other epoch, so that two epochs show both sides (Jordan, 2024,
            arXiv:2404.00498, section 3.6). It depends on image ids: outside a scope, and for a user-supplied iterable
            that shuffles, it equals ``"random"``.
        name: Name of the draw.

    Raises:
        SettingError: If ``mode`` is unknown.

    Example:
        >>> image = torch.arange(4).view(1, 2, 2)
        >>> RandomFlip()(image).sum()
        tensor(6)
    """

    def __init__(self, mode: Literal["random", "alternating"] = "random", *, name: str = "flip") -> None:
        super().__init__(name)
        check_choice("mode", mode, ("random", "alternating"))
        self.mode = mode
        self.every_epoch = mode == "random"

    def _augment(self, images: Images, draws: Tensor) -> Images:
        flipped = draws[:, 0] < 0.5  # (N,)
        epoch = randomness.current_epoch()
        if self.mode == "alternating" and epoch is not None:
            # An int stays on the host, because the conversion to a tensor would synchronize with the GPU.
            flipped = flipped ^ (epoch % 2 == 1)
        # Copying whole images from both sides is faster than gathering every pixel.
        source = torch.arange(len(images), device=images.device) + len(images) * flipped
        return torch.cat([images, images.flip(3)]).index_select(0, source)


class Cutout(_PerImage):
    """Paint a square at a position drawn for each image (DeVries and Taylor, 2017, arXiv:1708.04552).

    The centre is uniform over the pixels. A square at the edge is cut off.

    Args:
        size: Side of the square in pixels, at least 1.
        fill: Value of each channel on a scale of 0 to 255. Floating images in ``[0, 1]`` are filled with 1/255 of it.
        name: Name of the draw.

    Raises:
        SettingError: If ``size`` is below 1.

    Example:
        >>> images = torch.full((2, 3, 8, 8), 255, dtype=torch.uint8)
        >>> bool((Cutout(2, fill=(0, 0, 0))(images) == 0).any())
        True
    """

    columns = 2

    def __init__(self, size: int, *, fill: Sequence[float] = (125, 123, 114), name: str = "cutout") -> None:
        super().__init__(name)
        if size < 1:
            raise SettingError(f"size must be at least 1, got {size}. Leave the cutout out for no square")
        self.size = size
        self.fill = tuple(map(float, fill))

    def _augment(self, images: Images, draws: Tensor) -> Images:
        _, channels, height, width = images.shape
        if len(self.fill) != channels:
            raise DataError(f"fill has {len(self.fill)} values, the images {channels} channels. Pass one per channel")
        top = (draws[:, :1] * height).long() - self.size // 2  # (N, 1)
        left = (draws[:, 1:] * width).long() - self.size // 2
        rows = torch.arange(height, device=images.device) - top  # (N, H)
        columns = torch.arange(width, device=images.device) - left
        inside = ((rows >= 0) & (rows < self.size))[:, :, None] & ((columns >= 0) & (columns < self.size))[:, None, :]
        scale = 255 if images.is_floating_point() else 1
        fill = channel_constant(tuple(value / scale for value in self.fill), images.device, images.dtype)
        return torch.where(inside[:, None], fill, images)


def _padded(images: Images, padding: int, *, reflected: bool) -> Images:
    """Return padded images, shape ``(N, C, H + 2 padding, W + 2 padding)``. torch cannot reflect uint8 images."""
    if not reflected:
        return F.pad(images, (padding,) * 4).contiguous()
    for dim in (3, 2):
        length = images.shape[dim]
        before, after = images.narrow(dim, 1, padding), images.narrow(dim, length - padding - 1, padding)
        images = torch.cat([before.flip(dim), images, after.flip(dim)], dim)
    return images.contiguous()
