"""What an epoch adds up, on the device, so that no step waits for it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cifarnet._types import Logits

__all__ = ["MetricTotals", "RunningMetrics"]


class MetricTotals(NamedTuple):
    """Running sums, read from the device."""

    loss: float  # summed over images
    num_correct: int
    num_images: int
    first_bad_step: int  # of the epoch, where the loss was not finite; -1 while there is none

    @property
    def mean_loss(self) -> float:
        """Mean loss an image; NaN before the first."""
        return self.loss / self.num_images if self.num_images else float("nan")

    @property
    def accuracy(self) -> float:
        """Share classified right; NaN before the first."""
        return self.num_correct / self.num_images if self.num_images else float("nan")


class RunningMetrics:
    """Loss, correct answers and the first step that went wrong.

    Args:
        device: Where they are kept.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # mps has no float64
        self._loss = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        self._num_correct = torch.zeros((), dtype=torch.int64, device=device)
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._num_images = torch.zeros((), dtype=torch.int64, device=device)

    def reset(self) -> None:
        """Begin at nothing; the tensors stay where they are, as captured graphs add to them."""
        for total in (self._loss, self._num_correct, self._num_images):
            total.zero_()
        self._first_bad_step.fill_(-1)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Where the sums are kept; each is 0-d."""
        return self._loss, self._num_correct, self._num_images, self._first_bad_step

    def add(self, loss: Tensor, logits: Logits, labels: Tensor, step: int | Tensor) -> None:
        """Count one batch.

        Args:
            loss: Mean over the batch, 0-d.
            logits: Shape ``(N, K)``.
            labels: Shape ``(N,)``; or shares of the classes, ``(N, K)``, of which the largest counts.
            step: Counted from 0 within the epoch; a 0-d int64 tensor where the host does not know it.
        """
        num_images = len(labels)
        labels = labels.argmax(dim=1) if labels.ndim > 1 else labels
        self._loss += loss.detach().to(self._loss.dtype) * num_images
        self._num_correct += (logits.detach().argmax(dim=1) == labels).sum()
        first_bad = ~loss.detach().isfinite() & (self._first_bad_step < 0)
        # By arithmetic: on CUDA, `masked_fill_` would read a tensor of steps back, and no graph may do that.
        self._first_bad_step += (step - self._first_bad_step) * first_bad
        self._num_images += num_images

    def read(self) -> MetricTotals:
        """Wait for the device and fetch the sums."""
        # A double holds a count up to 2**53, and mps, which has none, one of images up to 2**24.
        loss, *counts = torch.stack([total.to(self._loss.dtype) for total in self.tensors]).tolist()
        return MetricTotals(loss, *map(int, counts))

    def state_dict(self) -> dict[str, Any]:
        """The sums as plain values."""
        return self.read()._asdict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved sums.

        Args:
            state: What ``state_dict`` gave.
        """
        self._loss.fill_(state["loss"])
        self._num_correct.fill_(state["num_correct"])
        self._first_bad_step.fill_(state["first_bad_step"])
        self._num_images.fill_(state["num_images"])
