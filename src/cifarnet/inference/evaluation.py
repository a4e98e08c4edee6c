"""Metrics of a network on a data set: in total, per class and per confidence bin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from cifarnet._types import Json
from cifarnet._validation import finite_json, from_json, shorten
from cifarnet.errors import DataError, SettingError
from cifarnet.inference.calibration import check_temperature
from cifarnet.inference.evaluation_tables import text_table
from cifarnet.inference.metrics import wilson_interval
from cifarnet.transforms.tta import current_tta_name

__all__ = ["NUM_BINS", "NUM_TOP_LOSSES", "ClassScores", "ConfidenceBin", "Evaluation", "TopLoss"]

#: Number of confidence bins of equal width, as in section 4 of Guo et al. (2017).
NUM_BINS = 15

#: Largest number of top losses in an evaluation.
NUM_TOP_LOSSES = 25

#: Number of guesses that the top-k accuracy counts.
NUM_GUESSES = 5

#: Keys of earlier versions and their current names.
_RENAMED = {
    "interval": "accuracy_interval",
    "confusion": "confusion_matrix",
    "nll": "log_loss",
    "bins": "reliability_bins",
    "worst": "top_losses",
    "test_time_augmentation": "tta",
}


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


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a network on a data set. ``str()`` returns one line, `table` returns all metrics.

    Probabilities are ``softmax(logits / temperature)``. The log loss, the Brier score, the bins and the top losses
    are computed from them. Loss and accuracies do not depend on the temperature.

    Args:
        loss: Mean loss per image, in nats for cross-entropy.
        confusion_matrix: Numbers of images, ``K`` rows of ``K``. Entry ``(i, j)`` counts the images of class ``i`` that
            were predicted as class ``j``.
        num_top_k: Number of images whose true class is among the `k` highest logits.
        log_loss: Mean negative logarithm of the true class's probability, in nats.
        brier: Squared error of the probabilities, summed over the classes and averaged over the images (Brier, 1950),
            in ``[0, 2]``.
        reliability_bins: Bins of the images by the probability of the predicted class, for a reliability diagram
            (arXiv:1706.04599). Bin ``m`` of 15, from 0, covers ``(m / 15, (m + 1) / 15]``.
        top_losses: Predictions with the highest loss, highest first, at most 25.
        classes: The ``K`` class names; empty if they are unknown.
        temperature: Divisor of the logits, see `fit_temperature`. 1 leaves them unchanged.
        tta: Test-time augmentation; ``None`` if each image was predicted once.

    Raises:
        DataError: If the counts contradict each other.
        SettingError: If the temperature is outside ``[0.001, 1000]``.
    """

    loss: float
    confusion_matrix: tuple[tuple[int, ...], ...]
    num_top_k: int
    log_loss: float
    brier: float
    reliability_bins: tuple[ConfidenceBin, ...]
    top_losses: tuple[TopLoss, ...] = ()
    classes: tuple[str, ...] = ()
    temperature: float = 1.0
    tta: str | None = None

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        name = self._find_contradiction()
        if name is not None:
            raise DataError(f"{name} of an evaluation contradicts its counts. Pass the values that evaluate() returned")

    def _find_contradiction(self) -> str | None:
        rows, bins = self.confusion_matrix, self.reliability_bins
        if any(len(row) != len(rows) or min(row) < 0 for row in rows) or not self.num_images:
            return "confusion_matrix"
        if len(self.classes) not in (0, len(rows)):
            return "classes"
        if not self.num_correct <= self.num_top_k <= self.num_images:
            return "num_top_k"
        counts = [sum(one.num_images for one in bins), sum(one.num_correct for one in bins), len(bins)]
        if counts != [self.num_images, self.num_correct, NUM_BINS] or any(
            not 0 <= one.num_correct <= one.num_images or (one.confidence is None) != (one.num_images == 0)
            for one in bins
        ):
            return "reliability_bins"
        if any(not 0 <= label < len(rows) for one in self.top_losses for label in (one.label, one.predicted)):
            return "top_losses"
        return None

    @property
    def num_images(self) -> int:
        """Number of images."""
        return sum(map(sum, self.confusion_matrix))

    @property
    def num_correct(self) -> int:
        """Number of images whose true class has the highest logit."""
        return sum(row[i] for i, row in enumerate(self.confusion_matrix))

    @property
    def accuracy(self) -> float:
        """Share of images that are classified correctly, a fraction in ``[0, 1]``."""
        return self.num_correct / self.num_images

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson_interval(self.num_correct, self.num_images)

    @property
    def k(self) -> int:
        """Number of guesses that `top_k_accuracy` counts: 5, or ``K`` if there are fewer than 5 classes."""
        return min(NUM_GUESSES, len(self.confusion_matrix))

    @property
    def top_k_accuracy(self) -> float:
        """Share of images whose true class is among the `k` highest logits; 1 if there are only `k` classes."""
        return self.num_top_k / self.num_images

    @property
    def per_class(self) -> tuple[ClassScores, ...]:
        """Precision, recall, F1 and number of images of each class, in the order of the labels."""
        columns = [sum(column) for column in zip(*self.confusion_matrix, strict=True)]
        rows = enumerate(zip(self.confusion_matrix, columns, strict=True))
        return tuple(ClassScores(self.class_name(i), sum(row), column, row[i]) for i, (row, column) in rows)

    @property
    def expected_calibration_error(self) -> float:
        """Mean difference of confidence and accuracy, in ``[0, 1]``. Each bin is weighted by its number of images."""
        gaps = (abs(one.num_correct - one.num_images * (one.confidence or 0)) for one in self.reliability_bins)
        return math.fsum(gaps) / self.num_images

    def class_name(self, index: int) -> str:
        """Return the name of a class; ``class 3``, for example, if the names are unknown.

        Args:
            index: Index of the class, from 0.
        """
        return self.classes[index] if self.classes else f"class {index}"

    def __str__(self) -> str:
        low, high = self.accuracy_interval
        tta = "" if self.tta is None else f", with test-time augmentation ({self.tta})"
        accuracy = f"accuracy {self.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%})"
        return f"{accuracy}, loss {self.loss:.4f}, {self.num_images:,} images{tta}"

    def table(self, *, max_classes: int = 20, num_top_losses: int = 5) -> str:
        """Return all metrics as text: the line of ``str()``, the other totals, a row per class and the top losses.

        Args:
            max_classes: Largest number of classes. If there are more, those with the lowest F1 are shown.
            num_top_losses: Largest number of top losses.

        Raises:
            SettingError: If an argument is not a whole number of at least 0.
        """
        return text_table(self, max_classes=max_classes, num_top_losses=num_top_losses)

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        return f"<pre>{escape(self.table())}</pre>"

    def to_dict(self) -> dict[str, Json]:
        """Return the arguments and all properties as plain JSON values. NaN and infinity become strings."""
        bins = [{**asdict(one), "accuracy": one.accuracy} for one in self.reliability_bins]
        shares = [{"precision": one.precision, "recall": one.recall, "f1": one.f1} for one in self.per_class]
        per_class = [asdict(one) | share for one, share in zip(self.per_class, shares, strict=True)]
        document = {
            "accuracy": self.accuracy,
            "accuracy_interval": self.accuracy_interval,
            "num_correct": self.num_correct,
            "num_images": self.num_images,
            "k": self.k,
            "top_k_accuracy": self.top_k_accuracy,
            "expected_calibration_error": self.expected_calibration_error,
            **asdict(self),
            "reliability_bins": bins,
            "per_class": per_class,
        }
        return dict(finite_json(document))

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Evaluation:
        """Build an evaluation from the result of `to_dict`.

        Args:
            document: Result of `to_dict`, also after a round trip through JSON. Keys of earlier versions are accepted.
                Values that follow from the others, such as the accuracy, are ignored and computed again.

        Raises:
            DataError: If a value is missing, is unknown, has another type, or contradicts the others.
        """
        if not isinstance(document, Mapping):
            raise DataError(f"The evaluation must be a dictionary, got {shorten(document)}")
        values = {_RENAMED.get(key, key): value for key, value in document.items()}
        bins = values.get("reliability_bins")
        if isinstance(bins, list) and all(isinstance(one, Mapping) for one in bins):
            values["reliability_bins"] = [{key: one[key] for key in one if key != "accuracy"} for one in bins]
        values["tta"] = current_tta_name(values.get("tta"))
        values = {key: values[key] for key in values if not isinstance(getattr(cls, str(key), None), property)}
        try:
            return from_json(cls, values, "The evaluation")
        except SettingError as error:
            raise DataError(f"{error}. Pass the values that Evaluation.to_dict() returned") from None
