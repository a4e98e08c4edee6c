"""Metrics of a network on a data set: in total, per class and per confidence bin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cifarnet._types import Json
from cifarnet._validation import finite_json
from cifarnet.errors import InputError
from cifarnet.inference.calibration import check_temperature
from cifarnet.inference.evaluation_json import parse_evaluation, with_current_keys
from cifarnet.inference.metrics import wilson_interval
from cifarnet.inference.records import ClassScores, ConfidenceBin, TopLoss
from cifarnet.inference.tables import html_table, text_table

__all__ = ["NUM_BINS", "NUM_TOP_LOSSES", "Evaluation", "guesses_counted"]

#: Number of confidence bins of equal width, as in section 4 of Guo et al. (2017).
NUM_BINS = 15

#: Largest number of top losses in an evaluation.
NUM_TOP_LOSSES = 25


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
            (arXiv:1706.04599). Bin ``m`` of the `NUM_BINS`, from 0, covers ``(m / 15, (m + 1) / 15]``.
        top_losses: Predictions with the highest loss, highest first, at most `NUM_TOP_LOSSES`.
        classes: The ``K`` class names; empty if they are unknown.
        temperature: Divisor of the logits, see `fit_temperature`. 1 leaves them unchanged.
        tta: Test-time augmentation; ``None`` if each image was predicted once.

    Raises:
        InputError: If the counts contradict each other.
        SettingError: If the temperature is outside `TEMPERATURE_RANGE`.
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
        contradiction = self._contradiction()
        if contradiction is not None:
            raise InputError(
                f"{contradiction} of an evaluation contradicts its counts. Pass the values that evaluate() returned"
            )

    def _contradiction(self) -> str | None:
        num_classes = len(self.confusion_matrix)
        if not num_classes or any(len(row) != num_classes for row in self.confusion_matrix) or not self.num_images:
            return "confusion_matrix"
        if len(self.classes) not in (0, num_classes):
            return "classes"
        if not self.num_correct <= self.num_top_k <= self.num_images:
            return "num_top_k"
        if (
            len(self.reliability_bins) != NUM_BINS
            or sum(one.num_images for one in self.reliability_bins) != self.num_images
            or sum(one.num_correct for one in self.reliability_bins) != self.num_correct
            or any((one.confidence is None) != (one.num_images == 0) for one in self.reliability_bins)
        ):
            return "reliability_bins"
        if any(max(one.label, one.predicted) >= num_classes for one in self.top_losses):
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
        return guesses_counted(len(self.confusion_matrix))

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
        gaps = [
            abs(one.num_correct - one.num_images * one.confidence)
            for one in self.reliability_bins
            if one.confidence is not None
        ]
        return math.fsum(gaps) / self.num_images

    def class_name(self, index: int) -> str:
        """Return the name of a class; ``class 3``, for example, if the names are unknown.

        Args:
            index: Index of the class, from 0.
        """
        return self.classes[index] if self.classes else f"class {index}"

    def __str__(self) -> str:
        low, high = self.accuracy_interval
        return (
            f"accuracy {self.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%}), "
            f"loss {self.loss:.4f}, {self.num_images:,} images"
            + ("" if self.tta is None else f", with test-time augmentation ({self.tta})")
        )

    def table(self, *, max_classes: int = 20, num_top_losses: int = 5) -> str:
        """Return all metrics as text: the line of ``str()``, the other totals, a row per class and the top losses.

        Args:
            max_classes: Largest number of classes. If there are more, those with the lowest F1 are shown.
            num_top_losses: Largest number of top losses.

        Returns:
            Several lines without a newline at the end.

        Raises:
            SettingError: If an argument is below 0.
            SettingTypeError: If an argument is not a whole number.
        """
        return text_table(self, max_classes=max_classes, num_top_losses=num_top_losses)

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows."""
        return html_table(self)

    def to_dict(self) -> dict[str, Json]:
        """Return all metrics as plain JSON values. NaN and infinity become strings such as ``"nan"``.

        Returns:
            Dictionary with the arguments and the values that follow from them, such as accuracies and scores per class.
        """
        shares = ("precision", "recall", "f1")
        return dict(
            finite_json(
                {
                    "accuracy": self.accuracy,
                    "accuracy_interval": self.accuracy_interval,
                    "num_correct": self.num_correct,
                    "num_images": self.num_images,
                    "k": self.k,
                    "top_k_accuracy": self.top_k_accuracy,
                    "expected_calibration_error": self.expected_calibration_error,
                    **asdict(self),
                    "reliability_bins": [{**asdict(one), "accuracy": one.accuracy} for one in self.reliability_bins],
                    "per_class": [
                        {**asdict(one), **{share: getattr(one, share) for share in shares}} for one in self.per_class
                    ],
                }
            )
        )

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Evaluation:
        """Build an evaluation from the result of `to_dict`.

        Args:
            document: Result of `to_dict`, also after a round trip through JSON. Keys of earlier versions are accepted.

        Raises:
            InputError: If a value is missing, is unknown, has another type, or contradicts the others.
            SettingError: If the temperature is outside `TEMPERATURE_RANGE`.
        """
        document = with_current_keys(document)
        evaluation = cls(**parse_evaluation(document))
        given = finite_json(dict(document))
        for key, value in evaluation.to_dict().items():
            if given[key] != value:
                raise InputError(
                    f"{key} contradicts the counts of the evaluation. Pass the values that to_dict() returned"
                )
        return evaluation


def guesses_counted(num_classes: int) -> int:
    """Return the number of guesses that the top-k accuracy counts: 5, or ``K`` if there are fewer than 5 classes.

    Args:
        num_classes: Number of classes, ``K``.
    """
    return min(5, num_classes)
