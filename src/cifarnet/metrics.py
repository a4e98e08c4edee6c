"""Scores of a classifier, and how far they can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cifarnet._types import Labels, Logits
from cifarnet.errors import SettingError

__all__ = ["Evaluation", "top_k_accuracy", "wilson_interval"]


@dataclass(frozen=True)
class Evaluation:
    """What a network scores on a data set.

    Args:
        loss: Mean loss an image, in nats for cross-entropy.
        num_correct: Images whose true class has the highest logit.
        num_images: Images in all.
        test_time_augmentation: Which views of an image were averaged, in words; ``None``: the image as it is.
    """

    loss: float
    num_correct: int
    num_images: int
    test_time_augmentation: str | None = None

    @property
    def accuracy(self) -> float:
        """Share of images classified right, a fraction in ``[0, 1]``."""
        return self.num_correct / self.num_images

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson_interval(self.num_correct, self.num_images)

    def __str__(self) -> str:
        low, high = self.interval
        views = self.test_time_augmentation
        return (
            f"accuracy {self.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%}), "
            f"loss {self.loss:.4f}, {self.num_images:,} images"
            + ("" if views is None else f", with test-time augmentation ({views})")
        )


def top_k_accuracy(logits: Logits, labels: Labels, *, k: int = 1) -> float:
    """Share of images whose true class is among the ``k`` highest logits.

    Args:
        logits: Unnormalised scores, shape ``(N, K)``, any floating dtype.
        labels: Class indices in ``[0, K)``, shape ``(N,)``.
        k: How many guesses count, ``1 <= k <= K``.

    Returns:
        A fraction in ``[0, 1]``, not a percentage.

    Raises:
        SettingError: If ``k`` is outside ``[1, K]``.

    Example:
        >>> import torch
        >>> top_k_accuracy(torch.tensor([[0.1, 0.9]]), torch.tensor([1]))
        1.0
    """
    num_classes = logits.shape[1]
    if not 1 <= k <= num_classes:
        raise SettingError(f"k must be in [1, {num_classes}], got {k}; 1 is the usual accuracy")
    guesses = logits.topk(k, dim=1).indices  # (N, k)
    return float((guesses == labels[:, None]).any(dim=1).double().mean())


def wilson_interval(num_correct: int, num_images: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Confidence interval of an accuracy (Wilson, 1927, doi:10.1080/01621459.1927.10502953).

    Unlike the usual +- it stays inside ``[0, 1]`` and is right for few images and extreme accuracies.

    Args:
        num_correct: Images classified right, in ``[0, num_images]``.
        num_images: Images in all, at least 1.
        z: Quantile of the normal distribution; 1.96 gives 95 %.

    Returns:
        Lower and upper end, fractions in ``[0, 1]``.

    Raises:
        SettingError: If the counts contradict each other.

    Example:
        >>> [round(end, 4) for end in wilson_interval(80, 100)]
        [0.7112, 0.8666]
    """
    if not (num_images >= 1 and 0 <= num_correct <= num_images):
        raise SettingError(f"{num_correct} of {num_images} images cannot be right; count at least one image")
    share = num_correct / num_images
    centre = share + z * z / (2 * num_images)
    spread = z * math.sqrt(share * (1 - share) / num_images + z * z / (4 * num_images**2))
    scale = 1 + z * z / num_images
    # At 0 and at all right the exact ends are 0 and 1; rounding can step past them.
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
