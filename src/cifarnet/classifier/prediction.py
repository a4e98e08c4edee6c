"""`Prediction`: what is said of one image."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Prediction"]


@dataclass(frozen=True)
class Prediction:
    """What a classifier takes one image for.

    Args:
        label: Name of the likeliest class.
        probability: Its softmax probability, in ``[0, 1]``: how sure the network is. How often it is right then, only a
            calibrated one says, see `Classifier.calibrate`.
        top: The likeliest classes and their probabilities, likeliest first.

    Example:
        >>> print(Prediction("cat", 0.71, (("cat", 0.71), ("dog", 0.2))))
        cat 71.0%, dog 20.0%
    """

    label: str
    probability: float
    top: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        return ", ".join(f"{label} {probability:.1%}" for label, probability in self.top)
