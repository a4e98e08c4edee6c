"""Loaders of batches: of a data set in memory, and of a user-supplied iterable."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from cifarnet import randomness
from cifarnet._types import Images, Labels
from cifarnet.errors import CheckpointMismatchError, DataError
from cifarnet.inference.device import out_of_memory_advice

__all__ = ["EVAL_BATCH_SIZE", "Batch", "EvaluationLoader", "IterableLoader", "Loader", "TensorLoader", "check_labels"]

#: Images per batch in evaluation. It is fixed, because the last digits of the logits depend on the batch. A new process
#: then counts exactly the same correct predictions as the run.
EVAL_BATCH_SIZE = 500

# Pixels normalised by the mean and standard deviation of CIFAR-10 are in [-2.2, 2.2], and half of them are negative.
_HIGHEST_OF_READY_IMAGES = 20


class Batch(NamedTuple):
    """Images, uint8 or preprocessed, with their labels and image ids."""

    images: Images
    labels: Labels
    ids: Tensor  # (N,) int64
    highest_label: int | None = None  # None if checked before, or unknown on the CPU


class EvaluationLoader(Protocol):
    """Source of batches for evaluation."""

    def in_order(self) -> Iterator[Batch]:
        """Yield every image once, in batches."""


class TensorLoader:
    """Loader of a data set in the memory of the device. The order is a function of (seed, epoch).

    Args:
        images: uint8 images, shape ``(N, C, H, W)``.
        labels: Class indices, int64, shape ``(N,)``.
        ids: Image ids, int64, shape ``(N,)``.
        batch_size: Images per step. The last batch of an epoch has the remaining images.
        device: Device that holds the images.
        seed: Seed of the run.

    Raises:
        DeviceMemoryError: If the images do not fit into memory.
    """

    #: An epoch can start at any step.
    starts_anywhere = True

    def __init__(
        self, images: Images, labels: Labels, ids: Tensor, *, batch_size: int, device: torch.device, seed: int
    ) -> None:
        def explain() -> str:
            return (
                f"{len(images):,} images ({images.nbytes / 1e6:,.0f} MB) do not fit into the memory of {device}. "
                "Pass a DataLoader, which moves one batch at a time"
            )

        with out_of_memory_advice(device, explain):
            self._data = images.to(device), labels.to(device), ids.to(device)
        self.batch_size = batch_size
        self._seed = seed

    @property
    def num_steps(self) -> int:
        """Number of steps per epoch."""
        return -(-len(self._data[1]) // self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """Return the indices of the images in the order of an epoch: int64, shape ``(num_images,)``.

        Args:
            epoch: Epoch, counted from 0.
        """
        return randomness.permutation(self._seed, epoch, self._data[2])

    def select(self, index: Tensor) -> Batch:
        """Return the images at ``index`` as a batch.

        Args:
            index: Indices of the images, int64, shape ``(N,)``, on their device.
        """
        # index_select copies whole images; indexing with [] computes the address of every pixel.
        images, labels, ids = (column.index_select(0, index) for column in self._data)
        return Batch(images, labels, ids)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch in its order, from the step ``first_step`` on.

        Args:
            epoch: Epoch, counted from 0.
            first_step: Number of completed steps of the epoch.
        """
        for index in torch.split(self.order(epoch), self.batch_size)[first_step:]:
            yield self.select(index)

    def in_order(self) -> Iterator[Batch]:
        """Yield every image once, in batches. The batches are views, not copies."""
        yield from map(Batch, *(torch.split(column, self.batch_size) for column in self._data))


class IterableLoader:
    """Loader of a user-supplied iterable of ``(images, labels)`` batches, such as a ``DataLoader``.

    The iterable determines the order. If it shuffles with torch's generator, the `Trainer` seeds it for each epoch.
    Values on the CPU are checked. Values on another device are not, because a check would synchronize with it.

    Args:
        batches: Iterable that yields the batches of an epoch on each iteration.
        device: Device that the batches are moved to.
    """

    #: An epoch can only start at its first step.
    starts_anywhere = False

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

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from its first step on.

        Args:
            epoch: Epoch, counted from 0.
            first_step: First step, which must be 0, because an iterable cannot skip batches.

        Raises:
            CheckpointMismatchError: If ``first_step`` is not 0.
            DataError: If an item is not a batch of images and labels, or a pixel or label is invalid.

        Warns:
            UserWarning: If persistent workers start in a later epoch than the first.
        """
        if first_step:
            raise CheckpointMismatchError(
                f"The checkpoint is at step {first_step} of an epoch. An iterable can only resume at the end of an "
                "epoch. Pass an ImageDataset, which can resume at any step"
            )
        # The random states of persistent workers cannot be saved. The restart also changes the draw of the order.
        kept = getattr(self._batches, "persistent_workers", False)
        if epoch and kept and getattr(self._batches, "_iterator", None) is None:
            warnings.warn(
                "persistent_workers=True restarts the workers on resume. The run is correct, but not bit-identical to "
                "an uninterrupted one. Use persistent_workers=False for bit-identical runs",
                UserWarning,
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
            except DataError as error:
                raise DataError(f"Batch {number} {error}") from None
            ids = torch.arange(seen, seen + len(labels), device=self._device)
            seen += len(labels)
            yield Batch(self._to_device(images), self._to_device(labels).long(), ids, highest_label)
        if not seen:
            raise DataError(
                "The iterable has no batches. A generator can be iterated only once, so it is empty after one epoch. "
                "Pass a DataLoader or a list"
            )

    def _to_device(self, tensor: Tensor) -> Tensor:
        """Copy a tensor without synchronizing. From unpinned memory, CUDA would synchronize."""
        if self._device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)


#: Source of batches for training and evaluation.
Loader = TensorLoader | IterableLoader


def check_labels(batch: Batch, num_classes: int, step: int) -> None:
    """Raise an error if a label has no logit. Labels that were never on the CPU are not checked.

    Args:
        batch: Batch on the device.
        num_classes: Number of logits per image.
        step: Step of the epoch, counted from 0.

    Raises:
        DataError: If the highest label is at least ``num_classes``.
    """
    if batch.highest_label is not None and batch.highest_label >= num_classes:
        raise DataError(
            f"Batch {step + 1} has label {batch.highest_label} at row {int(batch.labels.argmax())}. Labels must be in "
            f"[0, {num_classes}) for this network. Number the classes from 0, or build it with "
            f"num_classes={batch.highest_label + 1}"
        )


def _check_shapes(item: Any) -> tuple[Images, Labels]:
    if not (isinstance(item, tuple | list) and len(item) == 2 and all(isinstance(x, Tensor) for x in item)):
        raise DataError(f"must be two tensors (images, labels), got {type(item).__name__}. Yield only these two")
    images, labels = item
    is_float = images.is_floating_point() and images.itemsize > 1  # torch cannot compute with float8
    is_integer = not (labels.is_floating_point() or labels.is_complex())
    if not (images.dtype == torch.uint8 or is_float) or images.ndim != 4 or 0 in images.shape:
        raise DataError(
            f"must have uint8 images or preprocessed floating images, got {images.dtype} {tuple(images.shape)}. The "
            "shape must be (N, C, H, W). Use images.to(torch.uint8) for values in [0, 255]"
        )
    if labels.shape != images.shape[:1] or not is_integer:
        raise DataError(f"must have {len(images)} integer labels, got {labels.dtype} {tuple(labels.shape)}")
    return images, labels


def _check_pixels(images: Images) -> None:
    if not images.is_floating_point() or images.device.type != "cpu":
        return
    low, high = (float(end) for end in images.aminmax())  # one pass: about 40 us for 64 images of 32x32
    if not (math.isfinite(low) and math.isfinite(high)):  # both ends are NaN if a pixel is NaN
        image, *position = (~images.isfinite()).nonzero()[0].tolist()
        raise DataError(
            f"has the value {float(images[image][tuple(position)])} in the image at row {image}. Pixels must be "
            "finite. Leave it out, or check the divisions of its transform"
        )
    if low >= 0 and high > _HIGHEST_OF_READY_IMAGES:
        raise DataError(
            f"has floating images with min {low:.4g} and max {high:.4g}. Floating images must be preprocessed. Pass "
            "uint8 images, which the trainer preprocesses, or divide by 255 and normalise"
        )


def _check_signs(labels: Labels) -> int | None:
    """Return the highest label if the labels are on the CPU, else ``None``."""
    if labels.device.type != "cpu":
        return None
    low, high = (int(end) for end in labels.long().aminmax())  # torch has no aminmax for types such as uint16
    if low < 0:
        raise DataError(
            f"has label {low} at row {int(labels.long().argmin())}. Labels count the classes from 0. Leave out images "
            "without a class"
        )
    return high
