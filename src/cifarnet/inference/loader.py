"""A data set in memory cut into batches on the device, and what every source of batches gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cifarnet import randomness
from cifarnet._types import Images, Labels
from cifarnet.inference.out_of_memory import out_of_memory_advice

__all__ = ["EVAL_BATCH_SIZE", "Batch", "EvaluationLoader", "Loader", "TensorLoader"]

#: Images a batch in evaluation. Fixed, because logits change in the last digits with the batch they are in:
#: a fresh process then counts exactly what the run counted.
EVAL_BATCH_SIZE = 500


class Batch(NamedTuple):
    """Images as they lie in memory, their labels, and who they are."""

    images: Images
    labels: Labels
    ids: Tensor  # (N,) int64
    highest_label: int | None = None  # known without waiting for the device; None: checked before, or nobody knows


class EvaluationLoader(Protocol):
    """What evaluation takes batches from."""

    def in_order(self) -> Iterator[Batch]:
        """Every image once."""


class Loader(EvaluationLoader, Protocol):
    """What training takes batches from, and evaluation too."""

    @property
    def num_steps(self) -> int | None:
        """TensorLoader an epoch; ``None`` where nobody knows."""

    @property
    def starts_anywhere(self) -> bool:
        """Whether an epoch can be begun at any step."""

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch in its order, from the step ``first_step`` on.

        Args:
            epoch: Counted from 0.
            first_step: Steps of the epoch that are done already.
        """


class TensorLoader:
    """A data set in the device's memory; order is a function of (seed, epoch).

    Args:
        images: uint8, shape ``(N, C, H, W)``.
        labels: int64, shape ``(N,)``.
        ids: The identity of each image, int64, shape ``(N,)``.
        batch_size: Images a step; the last batch of an epoch has what is left.
        device: Where the images are kept.
        seed: The run's seed.

    Raises:
        DeviceMemoryError: If the device has no room for them.
    """

    def __init__(
        self, images: Images, labels: Labels, ids: Tensor, *, batch_size: int, device: torch.device, seed: int
    ) -> None:
        def explain() -> str:
            return (
                f"{len(images):,} images ({images.nbytes / 1e6:,.0f} MB) did not fit into the memory of {device}; "
                "give a DataLoader, which moves one batch at a time"
            )

        with out_of_memory_advice(device, explain):
            self._images = images.to(device)
            self._labels = labels.to(device)
            self._ids = ids.to(device)
        #: Images a step.
        self.batch_size = batch_size
        self._seed = seed

    @property
    def num_steps(self) -> int:
        """TensorLoader an epoch."""
        return -(-len(self._labels) // self.batch_size)

    @property
    def starts_anywhere(self) -> bool:
        """An epoch can be begun at any step."""
        return True

    @property
    def num_images(self) -> int:
        """Images an epoch."""
        return len(self._labels)

    @property
    def channels(self) -> int:
        """Of an image."""
        return self._images.shape[1]

    def order(self, epoch: int) -> Tensor:
        """Where the images of an epoch lie, one after the other: int64, shape ``(num_images,)``.

        Args:
            epoch: Counted from 0.
        """
        return randomness.permutation(self._seed, epoch, self._ids)

    def select(self, index: Tensor) -> Batch:
        """The images that lie at ``index``.

        Args:
            index: int64, shape ``(N,)``, on their device.
        """
        # index_select copies whole images; indexing computes the place of every pixel.
        images, labels, ids = (x.index_select(0, index) for x in (self._images, self._labels, self._ids))
        return Batch(images, labels, ids)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch in its order, from the step ``first_step`` on.

        Args:
            epoch: Counted from 0.
            first_step: Steps of the epoch that are done already.
        """
        order = self.order(epoch)
        for start in range(first_step * self.batch_size, len(order), self.batch_size):
            yield self.select(order[start : start + self.batch_size])

    def in_order(self) -> Iterator[Batch]:
        """Every image once, for evaluation; batches are views, not copies."""
        yield from map(Batch, *(torch.split(x, self.batch_size) for x in (self._images, self._labels, self._ids)))
