"""TensorLoader from anybody's iterable: checked where they lie, and moved to the device."""

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

# Normalised by the mean and the deviation of CIFAR-10 pixels lie within 2.2 of 0, and half of them below it.
_HIGHEST_OF_READY_IMAGES = 20


class IterableLoader:
    """Batches of a user-supplied iterable of ``(images, labels)``, such as a ``DataLoader``.

    The iterable decides about the order. If it shuffles with torch's generator, the Trainer seeds that for each epoch.
    Values on the CPU are checked. Values on another device are not, because that would synchronize with it.

    Args:
        batches: Iterable that gives the batches of an epoch each time.
        device: Device that the batches are moved to.
    """

    def __init__(self, batches: Iterable[Any], *, device: torch.device) -> None:
        self._batches = batches
        self._device = device

    @property
    def num_steps(self) -> int | None:
        """TensorLoader an epoch; ``None`` where the iterable has no length."""
        try:
            return len(self._batches)  # type: ignore[arg-type]  # an iterable may have a length
        except TypeError:
            return None

    @property
    def starts_anywhere(self) -> bool:
        """An epoch can only be begun at its first step."""
        return False

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch; it can only begin at the first.

        Args:
            epoch: Counted from 0.
            first_step: 0, as nobody knows what lies behind the first step of another one.

        Raises:
            ResumeMismatchError: If ``first_step`` is not 0.
            InputError: If an item is not a batch of images and labels, or a value cannot be one of them.

        Warns:
            CheckpointWarning: If workers that are kept from epoch to epoch start in a later one than the first.
        """
        if first_step:
            raise ResumeMismatchError(
                f"the checkpoint is at step {first_step} of an epoch, and only an ImageDataset can be continued there; "
                "an iterable resumes at the end of an epoch"
            )
        # Kept workers go on with random states that nobody can save, and even the order is drawn after another number.
        kept = getattr(self._batches, "persistent_workers", False)
        if epoch and kept and getattr(self._batches, "_iterator", None) is None:
            warnings.warn(
                "persistent_workers=True: they start anew in mid-run, so that the resumed run will be sound, but not "
                "equal to an unbroken one bit for bit; persistent_workers=False makes it equal",
                CheckpointWarning,
                stacklevel=2,
            )
        yield from self.in_order()

    def in_order(self) -> Iterator[Batch]:
        """The batches as they come."""
        seen = 0
        for number, item in enumerate(self._batches, 1):
            try:
                images, labels = _check_shapes(item)
                _check_pixels(images)
                highest_label = _check_signs(labels)
            except InputError as error:
                raise InputError(f"batch {number}: {error}") from None
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
                "the iterable gave no batch; one that can be iterated only once, such as a generator, is used up "
                "after an epoch: give a DataLoader or a list"
            )


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device, without a wait: of memory that is not pinned, CUDA would first end all work that was begun."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def check_labels(batch: Batch, num_classes: int, step: int) -> None:
    """Refuse labels that the network has no logit for, where they are known on the CPU.

    Args:
        batch: On the device.
        num_classes: How many logits there are.
        step: Counted from 0 within the epoch.

    Raises:
        InputError: Naming the batch, the label and its row.
    """
    if batch.highest_label is not None and batch.highest_label >= num_classes:
        raise InputError(
            f"batch {step + 1}: label {batch.highest_label} at row {int(batch.labels.argmax())}, and the network tells "
            f"{num_classes} classes apart (0 to {num_classes - 1}); number the classes from 0, or build it with "
            f"num_classes={batch.highest_label + 1}"
        )


def _check_shapes(item: Any) -> tuple[Images, Labels]:
    if not (isinstance(item, tuple | list) and len(item) == 2 and all(isinstance(x, Tensor) for x in item)):
        raise InputError(f"expected batches of (images, labels) tensors, got {type(item).__name__}")
    images, labels = item
    is_float8 = images.is_floating_point() and images.itemsize == 1
    if is_float8 or (images.dtype != torch.uint8 and not images.is_floating_point()):
        raise InputError(
            f"expected uint8 images, or floating ones that are ready for the network, got {images.dtype}; "
            "images.to(torch.uint8) suits values in [0, 255]"
        )
    if images.ndim != 4 or labels.shape != images.shape[:1] or not _are_integers(labels) or 0 in images.shape:
        raise InputError(
            f"expected images (N, C, H, W) and integer labels (N,), got {tuple(images.shape)} {images.dtype} and "
            f"{tuple(labels.shape)} {labels.dtype}"
        )
    return images, labels


def _are_integers(labels: Tensor) -> bool:
    return not (labels.is_floating_point() or labels.is_complex())


def _check_pixels(images: Images) -> None:
    if not images.is_floating_point() or images.device.type != "cpu":
        return
    low, high = (float(end) for end in images.aminmax())  # one pass: about 40 us for 64 images of 32x32
    if not (math.isfinite(low) and math.isfinite(high)):  # a NaN is both
        row = int((~images.isfinite()).flatten(1).any(1).nonzero()[0])
        value = float(images[row][~images[row].isfinite()][0])
        raise InputError(
            f"the image at row {row} has {value} among its values; leave it out, or see what its transform divides by"
        )
    if low >= 0 and high > _HIGHEST_OF_READY_IMAGES:
        raise InputError(
            f"floating images must be ready for the network, and these have min {low:.4g} and max {high:.4g}, as "
            "pixels have; pass them as uint8, which the trainer prepares, or divide by 255 and normalise them"
        )


def _check_signs(labels: Labels) -> int | None:
    """The highest label, where that is known without waiting for a device."""
    if labels.device.type != "cpu":
        return None
    low, high = (int(end) for end in labels.long().aminmax())  # for uint16 and the like, torch has no aminmax
    if low < 0:
        raise InputError(
            f"label {low} at row {int(labels.long().argmin())}; labels count the classes from 0, so leave out images "
            "that have none"
        )
    return high
