"""Temperature scaling: one number by which logits are divided, so that probabilities say how often they are right."""

from __future__ import annotations

import math

import torch

from cifarnet._types import Labels, Logits
from cifarnet.errors import InputError, NonFiniteLogitsError, SettingError, SettingTypeError

__all__ = ["TEMPERATURE_RANGE", "check_temperature", "fit_temperature"]

#: What a temperature can be, far beyond those of real networks, which lie between 0.5 and 4.
TEMPERATURE_RANGE = (1e-3, 1e3)

_MAX_STEPS = 200  # bisection alone needs 50, Newton's method about 8


def check_temperature(temperature: object) -> None:
    """Refuse what logits cannot be divided by.

    Args:
        temperature: What somebody gave.

    Raises:
        SettingTypeError: If it is no number.
        SettingError: If it is outside `TEMPERATURE_RANGE`.
    """
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise SettingTypeError(f"temperature must be a number, got {temperature!r}; 1 leaves logits as they are")
    low, high = TEMPERATURE_RANGE
    if not low <= temperature <= high:
        raise SettingError(
            f"temperature must be in [{low:g}, {high:g}], got {temperature}; 1 leaves logits as they are"
        )


@torch.no_grad()
def fit_temperature(logits: Logits, labels: Labels) -> float:
    """The temperature at which ``softmax(logits / temperature)`` makes the labels likeliest (Guo et al., 2017).

    The mean negative log-likelihood is convex in ``1 / temperature`` (arXiv:1706.04599, section 4.2). Its minimum is
    where its slope is 0: found by Newton's method, and by bisection where that would leave the bracket.

    Args:
        logits: Of images that the network did not learn from, shape ``(N, K)``; computed with in float64 on the CPU.
        labels: Class indices in ``[0, K)``, shape ``(N,)``.

    Returns:
        Above 1 where the network is too sure of itself, below 1 where it is not sure enough.

    Raises:
        NonFiniteLogitsError: If a logit is NaN or infinite.
        InputError: If there is no image, a label of no class, or no minimum within `TEMPERATURE_RANGE`: all images are
            right, or the network does no better than guessing.

    Example:
        >>> logits = 3 * torch.tensor([0.8, 0.2]).log().repeat(5, 1)  # right of 4 images in 5, and too sure of it
        >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 0, 1])), 6)
        3.0
    """
    if not len(logits):
        raise InputError("there are no images to find a temperature on; give at least a few hundred")
    logits, labels = logits.detach().cpu().double(), labels.cpu()
    if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise InputError(
            f"labels must be in [0, {logits.shape[1]}), got {int(labels.min())} to {int(labels.max())}; leave out "
            "images of no class"
        )
    if not bool(logits.isfinite().all()):
        raise NonFiniteLogitsError("the network gives NaN or infinity, for which there is no temperature")
    gaps = logits - logits.gather(1, labels[:, None])  # (N, K), 0 at the true class

    def slope(inverse: float) -> tuple[float, float]:
        """Of the mean negative log-likelihood at ``1 / temperature``, and the slope of that."""
        shares = (gaps * inverse).softmax(dim=1)
        mean = (shares * gaps).sum(dim=1, keepdim=True)  # (N, 1)
        return float(mean.mean()), float((shares * (gaps - mean).square()).sum(dim=1).mean())

    low, high = (1 / end for end in reversed(TEMPERATURE_RANGE))
    for inverse, sign, reason in (
        (high, 1, "it is right about all of them, or nearly; give more images, none of which it has learnt"),
        (low, -1, "it does no better than guessing; train it first, or give images of its own classes"),
    ):
        if not sign * slope(inverse)[0] > 0:
            raise InputError(f"no temperature suits what the network says of these {len(labels):,} images: {reason}")
    inverse = 1.0
    for _ in range(_MAX_STEPS):
        first, second = slope(inverse)
        low, high = (inverse, high) if first < 0 else (low, inverse)
        step = inverse - first / second if second > 0 else math.inf
        following = step if low < step < high else math.sqrt(low * high)
        if math.isclose(following, inverse, rel_tol=1e-12):
            break
        inverse = following
    return 1 / inverse
