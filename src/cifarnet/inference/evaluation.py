"""`Evaluation`: what a network scores on a data set, class by class and bin by bin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cifarnet._json import finite_json
from cifarnet._types import Json
from cifarnet.errors import InputError
from cifarnet.inference.calibration import check_temperature
from cifarnet.inference.evaluation_json import parse_evaluation, with_current_keys
from cifarnet.inference.metrics import wilson_interval
from cifarnet.inference.records import ClassScores, ConfidenceBin, TopLoss
from cifarnet.inference.tables import html_table, text_table

__all__ = ["NUM_BINS", "NUM_TOP_LOSSES", "Evaluation", "guesses_counted"]

#: Bins of confidence, all equally wide, as many as Guo et al. (2017) take in their section 4.
NUM_BINS = 15

#: Number of top losses kept at most.
NUM_TOP_LOSSES = 25


@dataclass(frozen=True)
class Evaluation:
    """What a network scores on a data set; ``str()`` is one line, `table` the whole of it.

    Probabilities, and what is computed from them, are those of ``softmax(logits / temperature)``. Loss and accuracies
    do not depend on the temperature.

    Args:
        loss: Mean loss an image, in nats for cross-entropy.
        confusion_matrix: Counts of images, ``K`` rows of ``K``: entry ``(i, j)`` counts the images of class ``i`` that
            were predicted as class ``j``.
        num_top_k: Images whose true class is among the `k` highest logits.
        log_loss: Mean negative logarithm of the true class's probability, in nats.
        brier: Squared error of the probabilities, summed over the classes, mean an image (Brier, 1950); in ``[0, 2]``.
        reliability_bins: Images by the probability of the predicted class, for a reliability diagram
            (arXiv:1706.04599): bin ``m`` of the `NUM_BINS`, from 0, has those in ``(m / 15, (m + 1) / 15]``.
        top_losses: Predictions with the highest loss, highest first, at most `NUM_TOP_LOSSES`.
        classes: The ``K`` class names; none where nobody knew them.
        temperature: What the logits were divided by, see `fit_temperature`; 1 leaves them as they are.
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
            raise InputError(f"{contradiction} of an evaluation contradicts its counts; take it as evaluate() gave it")

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
        """Images in all."""
        return sum(map(sum, self.confusion_matrix))

    @property
    def num_correct(self) -> int:
        """Images whose true class has the highest logit."""
        return sum(row[i] for i, row in enumerate(self.confusion_matrix))

    @property
    def accuracy(self) -> float:
        """Share of images classified right, a fraction in ``[0, 1]``."""
        return self.num_correct / self.num_images

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson_interval(self.num_correct, self.num_images)

    @property
    def k(self) -> int:
        """How many guesses `top_k_accuracy` counts: 5, or all where there are fewer classes."""
        return guesses_counted(len(self.confusion_matrix))

    @property
    def top_k_accuracy(self) -> float:
        """Share of images whose true class is among the `k` highest logits; 1 where there are no more classes."""
        return self.num_top_k / self.num_images

    @property
    def per_class(self) -> tuple[ClassScores, ...]:
        """Precision, recall, F1 and number of images of each class, in the order of the labels."""
        columns = [sum(column) for column in zip(*self.confusion_matrix, strict=True)]
        rows = enumerate(zip(self.confusion_matrix, columns, strict=True))
        return tuple(ClassScores(self.class_name(i), sum(row), column, row[i]) for i, (row, column) in rows)

    @property
    def expected_calibration_error(self) -> float:
        """How far confidence and accuracy are apart, in ``[0, 1]``: the mean over the bins, by their images."""
        gaps = [
            abs(one.num_correct - one.num_images * one.confidence)
            for one in self.reliability_bins
            if one.confidence is not None
        ]
        return math.fsum(gaps) / self.num_images

    def class_name(self, index: int) -> str:
        """The name of a class, or ``class 3`` where nobody knew the names.

        Args:
            index: Of the class, from 0.
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
        """All scores as text: the line of ``str()``, other scores of the whole, a row per class, the top losses.

        Args:
            max_classes: Show at most so many classes; of more, those with the lowest F1.
            num_top_losses: Number of top losses to show at most.

        Returns:
            Some lines, without a newline at the end.

        Raises:
            SettingError: If a number is below 0.
        """
        return text_table(self, max_classes=max_classes, num_top_losses=num_top_losses)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html_table(self)

    def to_dict(self) -> dict[str, Json]:
        """Everything as plain values that JSON has; NaN and infinity are words, as ``"nan"``.

        Returns:
            The arguments, and accuracies, interval, scores of each class and calibration error, which follow from them.
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
        """The inverse of `to_dict`.

        Args:
            document: What it gave, perhaps by way of JSON. The keys of earlier versions are accepted too.

        Raises:
            InputError: If a value is missing, unknown, of another type, or contradicts the others.
            SettingError: If the temperature is outside `TEMPERATURE_RANGE`.
        """
        document = with_current_keys(document)
        evaluation = cls(**parse_evaluation(document))
        given = finite_json(dict(document))
        for key, value in evaluation.to_dict().items():
            if given[key] != value:
                raise InputError(f"{key} contradicts the counts of the evaluation; take it as to_dict() gave it")
        return evaluation


def guesses_counted(num_classes: int) -> int:
    """How many guesses an evaluation counts beside the first: 5, or all where there are fewer classes.

    Args:
        num_classes: ``K``.
    """
    return min(5, num_classes)
