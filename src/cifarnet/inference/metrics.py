"""Accuracy, its confidence interval, and running metrics of an epoch."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cifarnet._types import Labels, Logits
from cifarnet.errors import SettingError

__all__ = ["MetricTotals", "RunningMetrics", "top_k_accuracy", "true_class_ranks", "wilson_interval"]


def top_k_accuracy(logits: Logits, labels: Labels, *, k: int = 1) -> float:
    """Compute the share of images whose true class is among the ``k`` highest logits.

    Of equal logits, the first is the highest.

    Args:
        logits: Unnormalised scores, shape ``(N, K)``, any floating dtype.
        labels: Class indices in ``[0, K)``, shape ``(N,)``.
        k: Number of guesses, ``1 <= k <= K``.

    Returns:
        A fraction in ``[0, 1]``, not a percentage.

    Raises:
        SettingError: If ``k`` is outside ``[1, K]``.

    Example:
        >>> top_k_accuracy(torch.tensor([[0.1, 0.9]]), torch.tensor([1]))
        1.0
    """
    num_classes = logits.shape[1]
    if not 1 <= k <= num_classes:
        raise SettingError(f"k must be in [1, {num_classes}], got {k}. Use 1 for the usual accuracy")
    return float((true_class_ranks(logits, labels) < k).double().mean())


def true_class_ranks(logits: Logits, labels: Labels) -> Tensor:
    """Count the classes that rank above the true class of each image. A correct prediction has rank 0.

    Of equal logits, the first ranks higher. NaN equals infinity, as in ``argmax``. The function does not synchronize
    with the device.

    Args:
        logits: Unnormalised scores, shape ``(N, K)``.
        labels: Class indices in ``[0, K)``, shape ``(N,)``.

    Returns:
        Ranks in ``[0, K)``, int64, shape ``(N,)``, on the device of the logits.

    Example:
        >>> true_class_ranks(torch.tensor([[0.3, 0.1, 0.6], [0.2, 0.2, 0.2]]), torch.tensor([1, 0])).tolist()
        [2, 0]
    """
    logits = logits.masked_fill(logits.isnan(), math.inf)
    own = logits.gather(1, labels[:, None])  # (N, 1)
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]  # (N, K)
    return ((logits > own) | ((logits == own) & earlier)).sum(dim=1)


def wilson_interval(num_correct: int, num_images: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Compute the confidence interval of an accuracy (Wilson, 1927, doi:10.1080/01621459.1927.10502953).

    Unlike an interval of the form accuracy ± error, it stays inside ``[0, 1]`` and is valid for few images and for
    accuracies near 0 and 1.

    Args:
        num_correct: Number of images that are classified correctly, in ``[0, num_images]``.
        num_images: Number of images, at least 1.
        z: Quantile of the normal distribution; 1.96 is a 95 % interval.

    Returns:
        Lower and upper end, fractions in ``[0, 1]``.

    Raises:
        SettingError: If a count is outside its range.

    Example:
        >>> [round(end, 4) for end in wilson_interval(80, 100)]
        [0.7112, 0.8666]
    """
    if not (num_images >= 1 and 0 <= num_correct <= num_images):
        raise SettingError(
            f"num_correct must be in [0, num_images], and num_images at least 1, got {num_correct} and {num_images}. "
            "Pass the counts of one evaluation"
        )
    share = num_correct / num_images
    centre = share + z * z / (2 * num_images)
    spread = z * math.sqrt(share * (1 - share) / num_images + z * z / (4 * num_images**2))
    scale = 1 + z * z / num_images
    # If no image or every image is correct, one end is exactly 0 or 1. Rounding can exceed it.
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


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
        self.load_state_dict({"loss": 0, "num_correct": 0, "num_images": 0, "first_bad_step": -1})

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
