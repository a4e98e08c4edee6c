"""Temperature scaling: one divisor of all logits, so that a probability equals the share of correct predictions."""

from __future__ import annotations

import math

import torch

from cifarnet._types import Labels, Logits
from cifarnet.errors import DataError, NonFiniteError, SettingError

__all__ = ["TEMPERATURE_RANGE", "check_temperature", "fit_temperature"]

#: Smallest and largest temperature. Those of real networks are between 0.5 and 4.
TEMPERATURE_RANGE = (1e-3, 1e3)

_MAX_STEPS = 200  # bisection needs 50, Newton's method about 8


def check_temperature(temperature: object) -> None:
    """Raise an error unless the value is a valid temperature.

    Args:
        temperature: Any value.

    Raises:
        SettingError: If it is not a number in ``[0.001, 1000]``.
    """
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise SettingError(f"temperature must be a number, got {temperature!r}. Use 1 for unchanged logits")
    low, high = TEMPERATURE_RANGE
    if not low <= temperature <= high:
        raise SettingError(f"temperature must be in [{low:g}, {high:g}], got {temperature}. Use 1 for unchanged logits")


@torch.no_grad()
def fit_temperature(logits: Logits, labels: Labels) -> float:
    """Return the temperature that maximizes the likelihood of the labels (Guo et al., 2017).

    The probabilities are ``softmax(logits / temperature)``. Their mean negative log-likelihood is convex in
    ``1 / temperature`` (arXiv:1706.04599, section 4.2), so it is smallest at the zero of its slope. Newton's method
    finds the zero. If a Newton step leaves the bracket, bisection replaces it.

    Args:
        logits: Logits of images that the network was not trained on, shape ``(N, K)``. They are converted to float64
            on the CPU.
        labels: Class indices in ``[0, K)``, shape ``(N,)``.

    Returns:
        A value above 1 if the network is overconfident, below 1 if it is underconfident.

    Raises:
        NonFiniteError: If a logit is NaN or infinite.
        DataError: If there are no images, a label is outside ``[0, K)``, or ``[0.001, 1000]`` has no minimum because
            all images are classified correctly, the accuracy is at the level of guessing, or its logits are equal.

    Example:
        >>> logits = 3 * torch.tensor([0.8, 0.2]).log().repeat(5, 1)  # 4 of 5 images correct, and overconfident
        >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 0, 1])), 6)
        3.0
    """
    if not len(logits):
        raise DataError("There are no images to fit a temperature on. Pass at least a few hundred")
    logits, labels = logits.detach().cpu().double(), labels.cpu()
    if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise DataError(
            f"labels must be in [0, {logits.shape[1]}), got {int(labels.min())} to {int(labels.max())}. Leave out "
            "images of other classes"
        )
    if not bool(logits.isfinite().all()):
        raise NonFiniteError("The logits contain NaN or infinity, so no temperature fits them. Check the weights")
    gaps = logits - logits.gather(1, labels[:, None])  # (N, K), 0 at the true class

    def slope(inverse: float) -> tuple[float, float]:
        """Return the first and second derivative of the mean negative log-likelihood by ``1 / temperature``."""
        shares = (gaps * inverse).softmax(dim=1)
        mean = (shares * gaps).sum(dim=1, keepdim=True)  # (N, 1)
        return float(mean.mean()), float((shares * (gaps - mean).square()).sum(dim=1).mean())

    low, high = (1 / end for end in reversed(TEMPERATURE_RANGE))
    reason = None
    if not gaps.any():
        reason = "the logits of each image are equal. Train the network first"
    elif not slope(high)[0] > 0:
        reason = "all or nearly all of them are classified correctly. Pass more images, none of them from training"
    elif not slope(low)[0] < 0:
        reason = "the accuracy is at the level of guessing. Train the network first, or pass images of its classes"
    if reason is not None:
        raise DataError(f"No temperature fits these {len(labels):,} images, because {reason}")
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
