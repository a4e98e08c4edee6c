"""Running metrics of an epoch, kept on the device so that no step synchronizes with it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cifarnet._types import Logits

__all__ = ["MetricTotals", "RunningMetrics"]


class MetricTotals(NamedTuple):
    """Running metrics, read from the device."""

    loss: float  # sum over the images
    num_correct: int
    num_images: int
    first_bad_step: int  # first step of the epoch with a NaN or infinite loss; -1 without one

    @property
    def mean_loss(self) -> float:
        """Mean loss per image; NaN without images."""
        return self.loss / self.num_images if self.num_images else float("nan")

    @property
    def accuracy(self) -> float:
        """Share of images that are classified correctly; NaN without images."""
        return self.num_correct / self.num_images if self.num_images else float("nan")


class RunningMetrics:
    """Sums of loss, correct predictions and images, and the first step with a NaN or infinite loss.

    Args:
        device: Device that holds the metrics.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # mps does not support float64.
        self._loss = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        self._num_correct = torch.zeros((), dtype=torch.int64, device=device)
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._num_images = torch.zeros((), dtype=torch.int64, device=device)

    def reset(self) -> None:
        """Set all metrics to their start, in place, because captured graphs add to the same tensors."""
        for total in (self._loss, self._num_correct, self._num_images):
            total.zero_()
        self._first_bad_step.fill_(-1)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """0-d tensors of the metrics, in the order of `MetricTotals`."""
        return self._loss, self._num_correct, self._num_images, self._first_bad_step

    def add(self, loss: Tensor, logits: Logits, labels: Tensor, step: int | Tensor) -> None:
        """Add one batch without synchronizing with the device.

        Args:
            loss: Mean loss of the batch, 0-d.
            logits: Logits of the batch, shape ``(N, K)``.
            labels: Class indices, shape ``(N,)``, or soft labels, shape ``(N, K)``. The class with the largest share
                counts as the true one.
            step: Step of the epoch, counted from 0; a 0-d int64 tensor if it is only on the device.
        """
        num_images = len(labels)
        labels = labels.argmax(dim=1) if labels.ndim > 1 else labels
        self._loss += loss.detach().to(self._loss.dtype) * num_images
        self._num_correct += (logits.detach().argmax(dim=1) == labels).sum()
        first_bad = ~loss.detach().isfinite() & (self._first_bad_step < 0)
        # Arithmetic, because `masked_fill_` with a tensor as value synchronizes with CUDA, and a graph forbids that.
        self._first_bad_step += (step - self._first_bad_step) * first_bad
        self._num_images += num_images

    def read(self) -> MetricTotals:
        """Synchronize with the device and return the metrics."""
        # float64 holds counts up to 2**53 exactly. The float32 of mps holds them up to 2**24 images.
        loss, *counts = torch.stack([total.to(self._loss.dtype) for total in self.tensors]).tolist()
        return MetricTotals(loss, *map(int, counts))

    def state_dict(self) -> dict[str, Any]:
        """Return the metrics as plain values."""
        return self.read()._asdict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore saved metrics.

        Args:
            state: Result of `state_dict`.
        """
        self._loss.fill_(state["loss"])
        self._num_correct.fill_(state["num_correct"])
        self._first_bad_step.fill_(state["first_bad_step"])
        self._num_images.fill_(state["num_images"])
