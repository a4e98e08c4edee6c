"""Batches: the interfaces of all loaders, and the loader of a data set in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cifarnet import randomness
from cifarnet._types import Images, Labels
from cifarnet.inference.out_of_memory import out_of_memory_advice

__all__ = ["EVAL_BATCH_SIZE", "Batch", "EvaluationLoader", "Loader", "TensorLoader"]

#: Images per batch in evaluation. It is fixed, because the last digits of the logits depend on the batch. A new process
#: then counts exactly the same correct predictions as the run.
EVAL_BATCH_SIZE = 500


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


class Loader(EvaluationLoader, Protocol):
    """Source of batches for training and evaluation."""

    @property
    def num_steps(self) -> int | None:
        """Number of steps per epoch; ``None`` if it is unknown."""

    @property
    def starts_anywhere(self) -> bool:
        """Whether an epoch can start at any step."""

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch in its order, from the step ``first_step`` on.

        Args:
            epoch: Epoch, counted from 0.
            first_step: Number of completed steps of the epoch.
        """


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

    def __init__(
        self, images: Images, labels: Labels, ids: Tensor, *, batch_size: int, device: torch.device, seed: int
    ) -> None:
        def explain() -> str:
            return (
                f"{len(images):,} images ({images.nbytes / 1e6:,.0f} MB) do not fit into the memory of {device}. "
                "Pass a DataLoader, which moves one batch at a time"
            )

        with out_of_memory_advice(device, explain):
            self._images = images.to(device)
            self._labels = labels.to(device)
            self._ids = ids.to(device)
        #: Images per step.
        self.batch_size = batch_size
        self._seed = seed

    @property
    def num_steps(self) -> int:
        """Number of steps per epoch."""
        return -(-len(self._labels) // self.batch_size)

    @property
    def starts_anywhere(self) -> bool:
        """Whether an epoch can start at any step: always ``True``."""
        return True

    @property
    def num_images(self) -> int:
        """Number of images per epoch."""
        return len(self._labels)

    @property
    def channels(self) -> int:
        """Number of channels of an image."""
        return self._images.shape[1]

    def order(self, epoch: int) -> Tensor:
        """Return the indices of the images in the order of an epoch: int64, shape ``(num_images,)``.

        Args:
            epoch: Epoch, counted from 0.
        """
        return randomness.permutation(self._seed, epoch, self._ids)

    def select(self, index: Tensor) -> Batch:
        """Return the images at ``index`` as a batch.

        Args:
            index: Indices of the images, int64, shape ``(N,)``, on their device.
        """
        # index_select copies whole images; indexing with [] computes the address of every pixel.
        images, labels, ids = (x.index_select(0, index) for x in (self._images, self._labels, self._ids))
        return Batch(images, labels, ids)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch in its order, from the step ``first_step`` on.

        Args:
            epoch: Epoch, counted from 0.
            first_step: Number of completed steps of the epoch.
        """
        order = self.order(epoch)
        for start in range(first_step * self.batch_size, len(order), self.batch_size):
            yield self.select(order[start : start + self.batch_size])

    def in_order(self) -> Iterator[Batch]:
        """Yield every image once, in batches. The batches are views, not copies."""
        yield from map(Batch, *(torch.split(x, self.batch_size) for x in (self._images, self._labels, self._ids)))
