"""Prediction of the class of one image."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Prediction"]


@dataclass(frozen=True)
class Prediction:
    """Most probable classes of one image.

    Args:
        label: Name of the most probable class.
        probability: Softmax probability of that class, in ``[0, 1]``. It equals the expected accuracy only if the
            network is calibrated, see `Classifier.calibrate`.
        top: Names and probabilities of the most probable classes, in descending order.

    Example:
        >>> print(Prediction("cat", 0.71, (("cat", 0.71), ("dog", 0.2))))
        cat 71.0%, dog 20.0%
    """

    label: str
    probability: float
    top: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        return ", ".join(f"{label} {probability:.1%}" for label, probability in self.top)
