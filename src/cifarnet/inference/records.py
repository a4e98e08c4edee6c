"""Parts of an evaluation: scores of a class, a confidence bin, an image with a high loss."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ClassScores", "ConfidenceBin", "TopLoss"]


@dataclass(frozen=True)
class ClassScores:
    """Precision, recall and F1 of one class against all others.

    If the denominator of a share is 0, the share is 0, as in scikit-learn. The counts show this case.

    Args:
        name: Name of the class.
        num_images: Number of images of the class, its support.
        num_predicted: Number of images that were predicted as the class.
        num_correct: Number of images of the class that were predicted as the class.

    Example:
        >>> cat = ClassScores("cat", num_images=10, num_predicted=8, num_correct=6)
        >>> cat.precision, cat.recall, round(cat.f1, 4)
        (0.75, 0.6, 0.6667)
    """

    name: str
    num_images: int
    num_predicted: int
    num_correct: int

    @property
    def precision(self) -> float:
        """Share of images of the class among those predicted as the class, in ``[0, 1]``."""
        return self.num_correct / max(1, self.num_predicted)

    @property
    def recall(self) -> float:
        """Share of images predicted as the class among those of the class, in ``[0, 1]``."""
        return self.num_correct / max(1, self.num_images)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, in ``[0, 1]``."""
        return 2 * self.num_correct / max(1, self.num_images + self.num_predicted)


@dataclass(frozen=True)
class ConfidenceBin:
    """Images with a similar probability of the predicted class: a bar of a reliability diagram.

    Args:
        num_images: Number of images in the bin.
        num_correct: Number of these images that are classified correctly.
        confidence: Mean probability of the predicted class, in ``(0, 1]``; ``None`` if the bin is empty.
    """

    num_images: int
    num_correct: int
    confidence: float | None

    @property
    def accuracy(self) -> float | None:
        """Share of images that are classified correctly; ``None`` if the bin is empty."""
        return self.num_correct / self.num_images if self.num_images else None


@dataclass(frozen=True)
class TopLoss:
    """Image with one of the highest losses.

    Args:
        index: Index of the image in the data, from 0.
        id: Image id, see `ImageDataset`; equal to ``index`` for external batches.
        label: Index of the true class.
        predicted: Index of the predicted class.
        probability: Probability of the predicted class, in ``(0, 1]``.
        loss: Negative logarithm of the true class's probability, in nats. It does not depend on the training loss.
    """

    index: int
    id: int
    label: int
    predicted: int
    probability: float
    loss: float
