"""A data set cut into batches on the device: from memory, or from anybody's iterable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from cifarnet import randomness
from cifarnet._types import Images, Labels
from cifarnet.errors import InputError, ResumeMismatchError

__all__ = ["EVAL_BATCH_SIZE", "Batch", "BatchSource", "Batches", "ForeignBatches", "OrderedBatches"]

#: Images a batch in evaluation. Fixed, because logits change in the last digits with the batch they are in:
#: a fresh process then counts exactly what the run counted.
EVAL_BATCH_SIZE = 500


class Batch(NamedTuple):
    """Images as they lie in memory, their labels, and who they are."""

    images: Images
    labels: Labels
    ids: Tensor  # (N,) int64


class OrderedBatches(Protocol):
    """What evaluation takes batches from."""

    def in_order(self) -> Iterator[Batch]:
        """Every image once."""


class BatchSource(OrderedBatches, Protocol):
    """What training takes batches from, and evaluation too."""

    @property
    def num_steps(self) -> int | None:
        """Batches an epoch; ``None`` where nobody knows."""

    @property
    def starts_anywhere(self) -> bool:
        """Whether an epoch can be begun at any step."""

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch in its order, from the step ``first_step`` on."""


class Batches:
    """A data set in the device's memory; order is a function of (seed, epoch).

    Args:
        images: uint8, shape ``(N, C, H, W)``.
        labels: int64, shape ``(N,)``.
        ids: The identity of each image, int64, shape ``(N,)``.
        batch_size: Images a step; the last batch of an epoch has what is left.
        device: Where the images are kept.
        seed: The run's seed.
    """

    def __init__(
        self, images: Images, labels: Labels, ids: Tensor, *, batch_size: int, device: torch.device, seed: int
    ) -> None:
        self._images = images.to(device)
        self._labels = labels.to(device)
        self._ids = ids.to(device)
        self._batch_size = batch_size
        self._seed = seed

    @property
    def num_steps(self) -> int:
        """Batches an epoch."""
        return -(-len(self._labels) // self._batch_size)

    @property
    def starts_anywhere(self) -> bool:
        """An epoch can be begun at any step."""
        return True

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch in its order, from the step ``first_step`` on."""
        order = randomness.permutation(self._seed, epoch, self._ids)
        for start in range(first_step * self._batch_size, len(order), self._batch_size):
            index = order[start : start + self._batch_size]
            yield Batch(self._images[index], self._labels[index], self._ids[index])

    def in_order(self) -> Iterator[Batch]:
        """Every image once, for evaluation; batches are views, not copies."""
        yield from map(Batch, *(torch.split(x, self._batch_size) for x in (self._images, self._labels, self._ids)))


class ForeignBatches:
    """Anybody's iterable of ``(images, labels)`` batches, such as a ``DataLoader``.

    Its order is its own business: where it shuffles with torch's generator, that is seeded for each epoch.

    Args:
        batches: Gives the batches of an epoch each time it is iterated.
        device: Where they are moved.
    """

    def __init__(self, batches: Iterable[Any], *, device: torch.device) -> None:
        self._batches = batches
        self._device = device

    @property
    def num_steps(self) -> int | None:
        """Batches an epoch; ``None`` where the iterable has no length."""
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

        Raises:
            ResumeMismatchError: If ``first_step`` is not 0.
            InputError: If an item is not a batch of images and labels.
        """
        if first_step:
            raise ResumeMismatchError(
                f"the checkpoint is at step {first_step} of an epoch, and only an ImageDataset can be continued there; "
                "an iterable resumes at the end of an epoch"
            )
        yield from self.in_order()

    def in_order(self) -> Iterator[Batch]:
        """The batches as they come."""
        seen = 0
        for item in self._batches:
            images, labels = _check(item)
            ids = torch.arange(seen, seen + len(labels), device=self._device)
            seen += len(labels)
            yield Batch(
                images.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True).long(), ids
            )
        if not seen:
            raise InputError(
                "the iterable gave no batch; one that can be iterated only once, such as a generator, is used up "
                "after an epoch: give a DataLoader or a list"
            )


def _check(item: Any) -> tuple[Images, Labels]:
    if not (isinstance(item, tuple | list) and len(item) == 2 and all(isinstance(x, Tensor) for x in item)):
        raise InputError(f"expected batches of (images, labels) tensors, got {type(item).__name__}")
    images, labels = item
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise InputError(
            f"expected uint8 images, or floating ones that are ready for the network, got {images.dtype}; "
            "images.to(torch.uint8) suits values in [0, 255]"
        )
    if images.ndim != 4 or labels.shape != images.shape[:1] or labels.is_floating_point():
        raise InputError(
            f"expected images (N, C, H, W) and integer labels (N,), got {tuple(images.shape)} {images.dtype} and "
            f"{tuple(labels.shape)} {labels.dtype}"
        )
    return images, labels
