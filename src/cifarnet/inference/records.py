"""The parts of an evaluation: a class, a bin of confidence, a prediction that went wrong."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ClassScores", "ConfidenceBin", "TopLoss"]


@dataclass(frozen=True)
class ClassScores:
    """How well one class is told from all others.

    Where there is nothing to divide by, a share is 0, as scikit-learn has it; the counts tell.

    Args:
        name: Of the class.
        num_images: Images of it, its support.
        num_predicted: Images that were taken for it.
        num_correct: Images that are both.

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
        """Share of the images taken for the class that are of it, in ``[0, 1]``."""
        return self.num_correct / max(1, self.num_predicted)

    @property
    def recall(self) -> float:
        """Share of the class's images that are taken for it, in ``[0, 1]``."""
        return self.num_correct / max(1, self.num_images)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, in ``[0, 1]``."""
        return 2 * self.num_correct / max(1, self.num_images + self.num_predicted)


@dataclass(frozen=True)
class ConfidenceBin:
    """The images whose prediction is about equally sure: a bar of a reliability diagram.

    Args:
        num_images: How many they are.
        num_correct: How many of them are classified right.
        confidence: Mean probability of the predicted class, in ``(0, 1]``; ``None`` where there is no image.
    """

    num_images: int
    num_correct: int
    confidence: float | None

    @property
    def accuracy(self) -> float | None:
        """Share classified right; ``None`` where there is no image."""
        return self.num_correct / self.num_images if self.num_images else None


@dataclass(frozen=True)
class TopLoss:
    """An image with one of the highest losses.

    Args:
        index: Place of the image in the data, from 0.
        id: Identity of the image, see `ImageDataset`; of foreign batches, ``index``.
        label: Its true class.
        predicted: The class it is taken for.
        probability: Of that class, in ``(0, 1]``.
        loss: Minus the logarithm of the true class's probability, in nats, whatever loss the network was trained with.
    """

    index: int
    id: int
    label: int
    predicted: int
    probability: float
    loss: float
