"""Augmentation and preprocessing put together: the two pipelines of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torchvision.transforms import v2

from cifarnet._validation import check_choice
from cifarnet.errors import SettingError
from cifarnet.transforms.augment import Cutout, RandomCrop, RandomFlip
from cifarnet.transforms.preprocess import CIFAR10_MEAN, CIFAR10_STD, Preprocess, Preprocessing
from cifarnet.transforms.resolution import ProgressiveResize

__all__ = ["Transforms", "build_transforms"]


@dataclass(frozen=True)
class Transforms:
    """What happens to images on their way into a network, in training and otherwise.

    Args:
        augment: Draws and changes, uint8 to uint8; for training only.
        preprocess: What a trained network always needs.
        resize: To smaller sides in some epochs, for training only; ``None`` trains at full size throughout.

    Raises:
        SettingError: If ``resize`` has a side above the full size.
    """

    augment: v2.Transform
    preprocess: Preprocess
    resize: ProgressiveResize | None = None

    def __post_init__(self) -> None:
        largest = max(self.train_sizes)
        if largest > self.preprocess.size:
            raise SettingError(
                f"sizes has {largest} pixels, and images are prepared to {self.preprocess.size}, at which the network "
                f"is evaluated; train at {self.preprocess.size} at most, or give size={largest}"
            )

    @property
    def steps(self) -> list[Callable[..., Any]]:
        """What ``augment`` is composed of, in order."""
        return list(_flatten(self.augment))

    @property
    def train(self) -> v2.Compose:
        """``augment``, ``preprocess``, ``resize``: what any ``DataLoader`` loop can apply to its batches."""
        resize = [] if self.resize is None else [self.resize]
        return v2.Compose([self.augment, Preprocessing(self.preprocess), *resize])

    @property
    def train_sizes(self) -> tuple[int, ...]:
        """Every side in pixels that training has."""
        return (self.preprocess.size,) if self.resize is None else tuple(sorted({*self.resize.sizes.values()}))

    @property
    def eval(self) -> v2.Compose:
        """``preprocess`` alone."""
        return v2.Compose([Preprocessing(self.preprocess)])


def _flatten(transform: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    if isinstance(transform, v2.Compose):
        for step in transform.transforms:
            yield from _flatten(step)
    else:
        yield transform


def build_transforms(
    *,
    crop_padding: int = 2,
    crop_mode: Literal["reflect", "zero"] = "reflect",
    flip: Literal["random", "alternating", "none"] = "random",
    cutout: int = 0,
    size: int = 32,
    sizes: Mapping[int, int] | None = None,
    mean: Sequence[float] = CIFAR10_MEAN,
    std: Sequence[float] = CIFAR10_STD,
) -> Transforms:
    """The usual augmentation of CIFAR-10, and its normalisation.

    Args:
        crop_padding: Pixels of padding around a random crop; 0 leaves it out.
        crop_mode: What the padding shows, see `RandomCrop`.
        flip: Mirroring, see `RandomFlip`; ``"none"`` leaves it out.
        cutout: Side of the square of `Cutout` in pixels, filled with ``mean``; 0 leaves it out.
        size: Side in pixels that the network takes.
        sizes: Side in pixels of training images by the first epoch that has it, counted from 0, for networks that take
            images of any size: ``{0: 24, 3: 28, 6: 32}``, see `ProgressiveResize`. Evaluation is always at ``size``;
            ``None`` trains at it too.
        mean: Mean of each channel on a scale of 0 to 1.
        std: Standard deviation of each channel on a scale of 0 to 1.

    Returns:
        Both pipelines in one object; ``.train`` and ``.eval`` are each a `torchvision.transforms.v2.Compose`.

    Raises:
        SettingError: If a value is outside its range.

    Example:
        >>> import torch
        >>> transforms = build_transforms(crop_padding=4, flip="alternating")
        >>> transforms.train(torch.zeros(8, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([8, 3, 32, 32])
    """
    check_choice("flip", flip, ("random", "alternating", "none"))
    for key, value in (("crop_padding", crop_padding), ("cutout", cutout)):
        if value < 0:
            raise SettingError(f"{key} must be 0 or more pixels, got {value}; 0 leaves it out")
    steps: list[v2.Transform] = []
    if crop_padding:
        steps.append(RandomCrop(crop_padding, mode=crop_mode))
    if flip != "none":
        steps.append(RandomFlip(flip))
    if cutout:
        steps.append(Cutout(cutout, fill=[round(255 * value) for value in mean]))
    augment = v2.Compose(steps) if steps else v2.Identity()
    resize = None if sizes is None else ProgressiveResize(sizes)
    return Transforms(augment, Preprocess(size, tuple(mean), tuple(std)), resize)
