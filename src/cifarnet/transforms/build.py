"""Training and evaluation pipelines of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torchvision.transforms import v2

from cifarnet._validation import check_choice, check_count
from cifarnet.errors import SettingError
from cifarnet.transforms.augment import Cutout, RandomCrop, RandomFlip
from cifarnet.transforms.preprocess import CIFAR10_MEAN, CIFAR10_STD, Preprocess, Preprocessing
from cifarnet.transforms.resolution import ProgressiveResize

__all__ = ["Transforms", "build_transforms"]


@dataclass(frozen=True)
class Transforms:
    """Transforms of images on their way into a network.

    Args:
        augment: Augmentation of uint8 images, for training only.
        preprocess: Preprocessing that the network needs, in training and evaluation.
        resize: Smaller images in some epochs, for training only. ``None`` always trains at full size.

    Raises:
        SettingError: If ``resize`` has a side above the full size.
    """

    augment: v2.Transform
    preprocess: Preprocess
    resize: ProgressiveResize | None = None

    def __post_init__(self) -> None:
        if max(self.train_sizes) > self.preprocess.size:
            raise SettingError(
                f"sizes must be at most {self.preprocess.size} pixels, the size of evaluation, got "
                f"{max(self.train_sizes)}. Pass size={max(self.train_sizes)} too"
            )

    @property
    def steps(self) -> list[Callable[..., Any]]:
        """Transforms that ``augment`` is composed of, in order."""
        return list(_flatten(self.augment))

    @property
    def train(self) -> v2.Compose:
        """Training pipeline of ``augment``, ``preprocess`` and ``resize``. Any ``DataLoader`` loop can use it."""
        resize = [] if self.resize is None else [self.resize]
        return v2.Compose([self.augment, Preprocessing(self.preprocess), *resize])

    @property
    def train_sizes(self) -> tuple[int, ...]:
        """Sides in pixels of the training images, in ascending order."""
        return (self.preprocess.size,) if self.resize is None else tuple(sorted({*self.resize.sizes.values()}))

    @property
    def eval(self) -> v2.Compose:
        """Evaluation pipeline, which applies ``preprocess`` alone."""
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
    """Build the usual augmentation of CIFAR-10 and its normalisation.

    Args:
        crop_padding: Pixels of padding around a random crop; 0 does not crop.
        crop_mode: Content of the padding, see `RandomCrop`.
        flip: Horizontal flip, see `RandomFlip`; ``"none"`` does not flip.
        cutout: Side of the square of `Cutout` in pixels, filled with ``mean``; 0 paints no square.
        size: Side in pixels of the images that the network takes.
        sizes: Side in pixels of training images by the first epoch that has it, counted from 0, for networks that take
            images of any size: ``{0: 24, 3: 28, 6: 32}``, see `ProgressiveResize`. Evaluation is always at ``size``.
        mean: Mean of each channel on a scale of 0 to 1.
        std: Standard deviation of each channel on a scale of 0 to 1.

    Returns:
        Both pipelines; ``.train`` and ``.eval`` are each a `torchvision.transforms.v2.Compose`.

    Raises:
        SettingError: If a value is outside its range.

    Example:
        >>> import torch
        >>> transforms = build_transforms(crop_padding=4, flip="alternating")
        >>> transforms.train(torch.zeros(8, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([8, 3, 32, 32])
    """
    check_choice("flip", flip, ("random", "alternating", "none"))
    check_count("crop_padding", crop_padding, "0 does not crop", least=0)
    check_count("cutout", cutout, "0 paints no square", least=0)
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
