"""Batches of a user-supplied iterable, checked on the CPU and moved to the device."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from cifarnet._types import Images, Labels
from cifarnet.errors import CheckpointWarning, InputError, ResumeMismatchError
from cifarnet.inference.loader import Batch

__all__ = ["IterableLoader", "check_labels"]

# Pixels normalised by the mean and standard deviation of CIFAR-10 are in [-2.2, 2.2], and half of them are negative.
_HIGHEST_OF_READY_IMAGES = 20


class IterableLoader:
    """Batches of a user-supplied iterable of ``(images, labels)``, such as a ``DataLoader``.

    The iterable determines the order. If it shuffles with torch's generator, the `Trainer` seeds it for each epoch.
    Values on the CPU are checked. Values on another device are not, because a check would synchronize with it.

    Args:
        batches: Iterable that yields the batches of an epoch on each iteration.
        device: Device that the batches are moved to.
    """

    def __init__(self, batches: Iterable[Any], *, device: torch.device) -> None:
        self._batches = batches
        self._device = device

    @property
    def num_steps(self) -> int | None:
        """Number of steps per epoch; ``None`` if the iterable has no length."""
        try:
            return len(self._batches)  # type: ignore[arg-type]  # an iterable may have a length
        except TypeError:
            return None

    @property
    def starts_anywhere(self) -> bool:
        """Whether an epoch can start at any step: always ``False``."""
        return False

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from its first step on.

        Args:
            epoch: Epoch, counted from 0.
            first_step: First step, which must be 0, because an iterable cannot skip batches.

        Raises:
            ResumeMismatchError: If ``first_step`` is not 0.
            InputError: If an item is not a batch of images and labels, or a pixel or label is invalid.

        Warns:
            CheckpointWarning: If persistent workers start in a later epoch than the first.
        """
        if first_step:
            raise ResumeMismatchError(
                f"The checkpoint is at step {first_step} of an epoch. An iterable can only resume at the end of an "
                "epoch. Pass an ImageDataset, which can resume at any step"
            )
        # The random states of persistent workers cannot be saved. The restart also changes the draw of the order.
        kept = getattr(self._batches, "persistent_workers", False)
        if epoch and kept and getattr(self._batches, "_iterator", None) is None:
            warnings.warn(
                "persistent_workers=True restarts the workers on resume. The run is correct, but not bit-identical to "
                "an uninterrupted one. Use persistent_workers=False for bit-identical runs",
                CheckpointWarning,
                stacklevel=2,
            )
        yield from self.in_order()

    def in_order(self) -> Iterator[Batch]:
        """Yield the batches in the order of the iterable."""
        seen = 0
        for number, item in enumerate(self._batches, 1):
            try:
                images, labels = _check_shapes(item)
                _check_pixels(images)
                highest_label = _check_signs(labels)
            except InputError as error:
                raise InputError(f"Batch {number} {error}") from None
            ids = torch.arange(seen, seen + len(labels), device=self._device)
            seen += len(labels)
            yield Batch(
                _sent(images, self._device),
                _sent(labels, self._device).long(),
                ids,
                highest_label,
            )
        if not seen:
            raise InputError(
                "The iterable has no batches. A generator can be iterated only once, so it is empty after one epoch. "
                "Pass a DataLoader or a list"
            )


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device without synchronizing. From unpinned memory, CUDA would synchronize."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def check_labels(batch: Batch, num_classes: int, step: int) -> None:
    """Raise an error if a label has no logit. Labels that were never on the CPU are not checked.

    Args:
        batch: Batch on the device.
        num_classes: Number of logits per image.
        step: Step of the epoch, counted from 0.

    Raises:
        InputError: If the highest label is at least ``num_classes``.
    """
    if batch.highest_label is not None and batch.highest_label >= num_classes:
        raise InputError(
            f"Batch {step + 1} has label {batch.highest_label} at row {int(batch.labels.argmax())}. Labels must be in "
            f"[0, {num_classes}) for this network. Number the classes from 0, or build it with "
            f"num_classes={batch.highest_label + 1}"
        )


def _check_shapes(item: Any) -> tuple[Images, Labels]:
    if not (isinstance(item, tuple | list) and len(item) == 2 and all(isinstance(x, Tensor) for x in item)):
        raise InputError(f"must be two tensors (images, labels), got {type(item).__name__}. Yield only these two")
    images, labels = item
    is_float8 = images.is_floating_point() and images.itemsize == 1
    if is_float8 or (images.dtype != torch.uint8 and not images.is_floating_point()):
        raise InputError(
            f"must have uint8 images or preprocessed floating images, got {images.dtype}. "
            "Use images.to(torch.uint8) for values in [0, 255]"
        )
    if images.ndim != 4 or labels.shape != images.shape[:1] or not _are_integers(labels) or 0 in images.shape:
        raise InputError(
            f"must have images (N, C, H, W) and integer labels (N,), got {tuple(images.shape)} {images.dtype} and "
            f"{tuple(labels.shape)} {labels.dtype}. N, C, H and W must be at least 1"
        )
    return images, labels


def _are_integers(labels: Tensor) -> bool:
    return not (labels.is_floating_point() or labels.is_complex())


def _check_pixels(images: Images) -> None:
    if not images.is_floating_point() or images.device.type != "cpu":
        return
    low, high = (float(end) for end in images.aminmax())  # one pass: about 40 us for 64 images of 32x32
    if not (math.isfinite(low) and math.isfinite(high)):  # both ends are NaN if a pixel is NaN
        row = int((~images.isfinite()).flatten(1).any(1).nonzero()[0])
        value = float(images[row][~images[row].isfinite()][0])
        raise InputError(
            f"has the value {value} in the image at row {row}. Pixels must be finite. Leave it out, or check the "
            "divisions of its transform"
        )
    if low >= 0 and high > _HIGHEST_OF_READY_IMAGES:
        raise InputError(
            f"has floating images with min {low:.4g} and max {high:.4g}. Floating images must be preprocessed. Pass "
            "uint8 images, which the trainer preprocesses, or divide by 255 and normalise"
        )


def _check_signs(labels: Labels) -> int | None:
    """Return the highest label if the labels are on the CPU, else ``None``."""
    if labels.device.type != "cpu":
        return None
    low, high = (int(end) for end in labels.long().aminmax())  # torch has no aminmax for types such as uint16
    if low < 0:
        raise InputError(
            f"has label {low} at row {int(labels.long().argmin())}. Labels count the classes from 0. Leave out images "
            "without a class"
        )
    return high
