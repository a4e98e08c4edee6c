"""Augmentation drawn per image, for one image or a batch, and the preprocessing that travels with weights.

torchvision's v2 transforms draw once for a whole batch; these draw for each of its images, on the batch's
device, without a Python loop. They are `torchvision.transforms.v2.Transform` s, so that they compose with
torchvision's own and take ``(image, label)`` samples. Inside `cifarnet.randomness.scope` the draws are a hash
of (seed, epoch, image id); outside one they come from torch's generator.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from cifarnet import randomness
from cifarnet._types import Images
from cifarnet.errors import InputError, SettingError, did_you_mean

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "BrightnessContrast",
    "Cutout",
    "Preprocess",
    "RandomCrop",
    "RandomFlip",
    "Transforms",
    "build_transforms",
]

#: Channel means of the 50,000 training images, on a scale of 0 to 1.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
#: Channel standard deviations over all pixels of the 50,000 training images, on a scale of 0 to 1.
CIFAR10_STD = (0.2470, 0.2435, 0.2616)

# ITU-R BT.601 luma, as torchvision's rgb_to_grayscale has it.
_LUMA = (0.2989, 0.587, 0.114)


class _PerImage(v2.Transform):
    """Draws ``columns`` numbers for each image, then transforms all of them at once."""

    columns = 1
    every_epoch = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        images = [x for x, chosen in zip(flat_inputs, self._needs_transform_list(flat_inputs), strict=True) if chosen]
        for image in images:
            known = isinstance(image, Tensor) and (type(image) in (Tensor, tv_tensors.Image))
            if not known:
                raise InputError(
                    f"{type(self).__name__} takes a tensor, got {type(image).__name__}; put v2.PILToTensor() before it"
                )
            if image.ndim not in (3, 4):
                raise InputError(
                    f"{type(self).__name__} takes (C, H, W) or (N, C, H, W), got shape {tuple(image.shape)}; "
                    "reshape the images first"
                )

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        images = flat_inputs[0]
        num_images = 1 if images.ndim == 3 else images.shape[0]
        draws = randomness.draw(
            self.name,
            num_images=num_images,
            columns=self.columns,
            device=images.device,
            every_epoch=self.every_epoch,
        )
        return {"draws": draws}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        batch = inpt if inpt.ndim == 4 else inpt[None]
        output = self._augment(batch.as_subclass(Tensor), params["draws"])
        output = output if inpt.ndim == 4 else output[0]
        return tv_tensors.wrap(output, like=inpt) if isinstance(inpt, tv_tensors.TVTensor) else output

    def _augment(self, images: Images, draws: Tensor) -> Images:
        """Transform ``images`` ``(N, C, H, W)`` by ``draws`` ``(N, columns)``; same shape and dtype."""
        raise AssertionError("every transform of this module applies its draws")


class RandomCrop(_PerImage):
    """Pad each image on all sides and cut its original size out at a place drawn for it.

    Args:
        padding: Pixels on each side, at least 1 and, for ``"reflect"``, less than the image's sides.
        mode: What the padding shows: ``"reflect"`` mirrors the image without repeating its edge, ``"zero"``
            is black.
        name: Names the draw; two crops in one pipeline need two names.

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
            raise SettingError(f"padding must be at least 1, got {padding}; leave the crop out for no cropping")
        _check_choice("mode", mode, ("reflect", "zero"))
        self.padding = padding
        self.mode = mode

    def _augment(self, images: Images, draws: Tensor) -> Images:
        num_images, channels, height, width = images.shape
        if self.mode == "reflect" and self.padding >= min(height, width):
            raise InputError(f"padding {self.padding} does not fit images of {height}x{width}; it must be smaller")
        # 2 * padding + 1 places, each equally likely; a draw is below 1, so the floor is at most 2 * padding.
        shift = (draws * (2 * self.padding + 1)).long() - self.padding  # (N, 2)
        rows = shift[:, :1] + torch.arange(height, device=images.device)  # (N, H)
        columns = shift[:, 1:] + torch.arange(width, device=images.device)  # (N, W)
        # One gather from the unpadded images: a padded copy and two indexings cost 5 times as much.
        source = _reflect(rows, height)[:, :, None] * width + _reflect(columns, width)[:, None, :]  # (N, H, W)
        flat = source.view(num_images, 1, height * width).expand(-1, channels, -1)
        output = images.reshape(num_images, channels, height * width).gather(2, flat).view(images.shape)
        if self.mode == "reflect":
            return output
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        return output * inside[:, None].to(output.dtype)


class RandomFlip(_PerImage):
    """Mirror images left to right.

    Args:
        mode: ``"random"``: each image with chance 1/2 in every epoch. ``"alternating"``: drawn once for each
            image, then mirrored every other epoch, so that two epochs show both sides (Jordan, 2024,
            arXiv:2404.00498, section 3.6). Outside a scope there is no epoch, and both are the same.
        name: Names the draw.

    Raises:
        SettingError: If ``mode`` is unknown.

    Example:
        >>> image = torch.arange(4).view(1, 2, 2)
        >>> RandomFlip()(image).sum()
        tensor(6)
    """

    def __init__(self, mode: Literal["random", "alternating"] = "random", *, name: str = "flip") -> None:
        super().__init__(name)
        _check_choice("mode", mode, ("random", "alternating"))
        self.mode = mode
        self.every_epoch = mode == "random"

    def _augment(self, images: Images, draws: Tensor) -> Images:
        flipped = draws[:, 0] < 0.5  # (N,)
        epoch = randomness.current_epoch()
        if self.mode == "alternating" and epoch is not None:
            flipped = flipped ^ torch.as_tensor(epoch % 2 == 1, device=images.device)
        return torch.where(flipped[:, None, None, None], images.flip(-1), images)


class Cutout(_PerImage):
    """Paint a square at a place drawn for each image (DeVries and Taylor, 2017, arXiv:1708.04552).

    The centre is uniform over the pixels, so that a square at the edge is cut off by it.

    Args:
        size: Side of the square in pixels, at least 1.
        fill: Value of each channel, on the scale of the images.
        name: Names the draw.

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
            raise SettingError(f"size must be at least 1, got {size}; leave the cutout out for none")
        self.size = size
        self.fill = tuple(fill)

    def _augment(self, images: Images, draws: Tensor) -> Images:
        _, channels, height, width = images.shape
        if len(self.fill) != channels:
            raise InputError(f"fill has {len(self.fill)} values, the images {channels} channels; give one a channel")
        top = (draws[:, :1] * height).long() - self.size // 2  # (N, 1)
        left = (draws[:, 1:] * width).long() - self.size // 2
        rows = torch.arange(height, device=images.device) - top  # (N, H)
        columns = torch.arange(width, device=images.device) - left
        inside = ((rows >= 0) & (rows < self.size))[:, :, None] & ((columns >= 0) & (columns < self.size))[:, None, :]
        fill = _constant(self.fill, images.device, images.dtype)
        return torch.where(inside[:, None], fill, images)


class BrightnessContrast(_PerImage):
    """Scale each image's brightness, then its contrast about its mean grey, by factors drawn for it.

    Args:
        brightness: Largest relative change, in ``[0, 1]``: factors are uniform in ``1 -+ brightness``.
        contrast: The same for the contrast.
        name: Names the draw.

    Raises:
        SettingError: If a value is outside its range.

    Example:
        >>> images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
        >>> int(BrightnessContrast(0.2, 0.2)(images).max())
        0
    """

    columns = 2

    def __init__(self, brightness: float, contrast: float, *, name: str = "brightness_contrast") -> None:
        super().__init__(name)
        for key, value in (("brightness", brightness), ("contrast", contrast)):
            if not 0 <= value <= 1:
                raise SettingError(f"{key} must be in [0, 1], got {value}; 0.1 changes it by up to a tenth")
        self.brightness = brightness
        self.contrast = contrast

    def _augment(self, images: Images, draws: Tensor) -> Images:
        factors = 1 + (2 * draws - 1) * _constant((self.brightness, self.contrast), images.device, draws.dtype).view(2)
        top = 255.0 if images.dtype == torch.uint8 else 1.0
        brightness, contrast = (factors[:, i, None, None, None] for i in (0, 1))  # (N, 1, 1, 1)
        # Rounded down after each of the two, as torchvision's adjust_brightness and adjust_contrast do.
        bright = (images * brightness).clamp(0, top).to(images.dtype)
        mean = _grey(bright).to(torch.float32).mean(dim=(1, 2, 3), keepdim=True)  # (N, 1, 1, 1)
        return (bright * contrast + mean * (1 - contrast)).clamp(0, top).to(images.dtype)


@dataclass(frozen=True)
class Preprocess:
    """From images in memory to the input of a network: the three values that travel with its weights.

    Args:
        size: Side in pixels that the network takes; other images are resized (bilinear, antialiased).
        mean: Mean of each channel on a scale of 0 to 1.
        std: Standard deviation of each channel on the same scale, above 0.

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
        if self.size < 1:
            raise SettingError(f"size must be at least 1 pixel, got {self.size}; CIFAR-10 has 32")
        if len(self.mean) != len(self.std):
            raise SettingError(f"mean has {len(self.mean)} values, std {len(self.std)}; give one of each a channel")
        if not all(value > 0 for value in self.std):
            raise SettingError(f"std must be above 0, got {self.std}; use 1.0 for a channel that does not vary")

    def __call__(self, images: Images) -> Images:
        """Resize where needed, scale to 0..1, normalise.

        Args:
            images: uint8 in ``[0, 255]`` or floating in ``[0, 1]``, shape ``(N, C, H, W)`` or ``(C, H, W)``.

        Returns:
            float32 (float64 stays), shape ``(N, C, size, size)`` or ``(C, size, size)``.

        Raises:
            InputError: If the number of channels is not that of ``mean``.
        """
        if images.shape[-3] != len(self.mean):
            raise InputError(
                f"the images have {images.shape[-3]} channels (shape {tuple(images.shape)}), the preprocessing "
                f"{len(self.mean)}; convert them, or build the transforms with one mean and std a channel"
            )
        if images.shape[-2:] != (self.size, self.size):
            images = v2.functional.resize(images, [self.size, self.size], antialias=True)
        dtype = images.dtype if images.is_floating_point() else torch.float32
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        factor = _constant(tuple(1 / (scale * std) for std in self.std), images.device, dtype)
        shift = _constant(tuple(-m / s for m, s in zip(self.mean, self.std, strict=True)), images.device, dtype)
        return torch.addcmul(shift, images.to(dtype), factor)  # (x / scale - mean) / std in one pass


class _Preprocessing(v2.Transform):
    """`Preprocess` as a step of a pipeline."""

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.preprocess = preprocess

    def transform(self, inpt: Any, params: dict[str, Any]) -> Tensor:
        return self.preprocess(inpt.as_subclass(Tensor))

    def extra_repr(self) -> str:
        return repr(self.preprocess)


@dataclass(frozen=True)
class Transforms:
    """What happens to images on their way into a network, in training and otherwise.

    Args:
        augment: Draws and changes, uint8 to uint8; for training only.
        preprocess: What a trained network always needs.
    """

    augment: v2.Transform
    preprocess: Preprocess

    @property
    def train(self) -> v2.Compose:
        """``augment``, then ``preprocess``: what any ``DataLoader`` loop can apply to its batches."""
        return v2.Compose([self.augment, _Preprocessing(self.preprocess)])

    @property
    def eval(self) -> v2.Compose:
        """``preprocess`` alone."""
        return v2.Compose([_Preprocessing(self.preprocess)])


def build_transforms(
    *,
    crop_padding: int = 2,
    crop_mode: Literal["reflect", "zero"] = "reflect",
    flip: Literal["random", "alternating", "none"] = "random",
    cutout: int = 0,
    brightness: float = 0.0,
    contrast: float = 0.0,
    size: int = 32,
    mean: Sequence[float] = CIFAR10_MEAN,
    std: Sequence[float] = CIFAR10_STD,
) -> Transforms:
    """The usual augmentation of CIFAR-10, and its normalisation.

    Args:
        crop_padding: Pixels of padding around a random crop; 0 leaves it out.
        crop_mode: What the padding shows, see `RandomCrop`.
        flip: Mirroring, see `RandomFlip`; ``"none"`` leaves it out.
        cutout: Side of the square of `Cutout` in pixels, filled with ``mean``; 0 leaves it out.
        brightness: Largest relative change of brightness in ``[0, 1]``; see `BrightnessContrast`.
        contrast: Largest relative change of contrast in ``[0, 1]``.
        size: Side in pixels that the network takes.
        mean: Mean of each channel on a scale of 0 to 1.
        std: Standard deviation of each channel on a scale of 0 to 1.

    Returns:
        One object: ``.train`` and ``.eval`` are `torchvision.transforms.v2.Compose` pipelines.

    Raises:
        SettingError: If a value is outside its range.

    Example:
        >>> transforms = build_transforms(crop_padding=4, flip="alternating")
        >>> transforms.train(torch.zeros(8, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([8, 3, 32, 32])
    """
    _check_choice("flip", flip, ("random", "alternating", "none"))
    for key, value in (("crop_padding", crop_padding), ("cutout", cutout)):
        if value < 0:
            raise SettingError(f"{key} must be 0 or more pixels, got {value}; 0 leaves it out")
    steps: list[v2.Transform] = []
    if crop_padding:
        steps.append(RandomCrop(crop_padding, mode=crop_mode))
    if flip != "none":
        steps.append(RandomFlip(flip))
    if brightness or contrast:
        steps.append(BrightnessContrast(brightness, contrast))
    if cutout:
        steps.append(Cutout(cutout, fill=[round(255 * value) for value in mean]))
    augment = v2.Compose(steps) if steps else v2.Identity()
    return Transforms(augment, Preprocess(size, tuple(mean), tuple(std)))


def _check_choice(key: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise SettingError(f'{key} "{value}" is unknown; {did_you_mean(str(value), options)}')


def _reflect(index: Tensor, size: int) -> Tensor:
    """Fold indices in ``(-size, 2 * size - 1)`` back into ``[0, size)``, the edge not repeated."""
    return (size - 1) - ((size - 1) - index.abs()).abs()


def _grey(images: Images) -> Tensor:
    """Luma of colour images, shape ``(N, 1, H, W)``, same dtype; grey images as they are."""
    if images.shape[1] != 3:
        return images
    weights = _constant(_LUMA, images.device, torch.float32)
    return (images * weights).sum(dim=1, keepdim=True).to(images.dtype)


@functools.lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """One value a channel, shape ``(C, 1, 1)``, kept on the device: making it anew would wait for the GPU."""
    return torch.tensor(values, device=device, dtype=dtype).view(-1, 1, 1)
