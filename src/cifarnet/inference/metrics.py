"""Accuracy, and how far it can be trusted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cifarnet._types import Labels, Logits
from cifarnet.errors import SettingError

__all__ = ["top_k_accuracy", "true_class_ranks", "wilson_interval"]


def top_k_accuracy(logits: Logits, labels: Labels, *, k: int = 1) -> float:
    """Share of images whose true class is among the ``k`` highest logits; of equal ones the first is the highest.

    Args:
        logits: Unnormalised scores, shape ``(N, K)``, any floating dtype.
        labels: Class indices in ``[0, K)``, shape ``(N,)``.
        k: How many guesses count, ``1 <= k <= K``.

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
        raise SettingError(f"k must be in [1, {num_classes}], got {k}; 1 is the usual accuracy")
    return float((true_class_ranks(logits, labels) < k).double().mean())


def true_class_ranks(logits: Logits, labels: Labels) -> Tensor:
    """How many classes each image is rather taken for than for its own: 0 where the network is right.

    Of equal logits the first is the higher one, and NaN is as high as infinity, as ``argmax`` has it.

    Args:
        logits: Shape ``(N, K)``.
        labels: Class indices in ``[0, K)``, shape ``(N,)``.

    Returns:
        int64, shape ``(N,)``, each in ``[0, K)``; on the device of the logits, without waiting for it.

    Example:
        >>> true_class_ranks(torch.tensor([[0.3, 0.1, 0.6], [0.2, 0.2, 0.2]]), torch.tensor([1, 0])).tolist()
        [2, 0]
    """
    logits = logits.masked_fill(logits.isnan(), math.inf)
    own = logits.gather(1, labels[:, None])  # (N, 1)
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]  # (N, K)
    return ((logits > own) | ((logits == own) & earlier)).sum(dim=1)


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
