"""Table of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cifarnet._validation import check_count

if TYPE_CHECKING:
    from cifarnet.inference.evaluation import Evaluation

__all__ = ["text_table"]

_MAX_NAME = 24  # characters of a class name in a column


def text_table(evaluation: Evaluation, *, max_classes: int, num_top_losses: int) -> str:
    """Return all metrics of an evaluation as text; see `Evaluation.table`."""
    check_count("max_classes", max_classes, "20 is the default", least=0)
    check_count("num_top_losses", num_top_losses, "5 is the default", least=0)
    shown, left_out = _choose(evaluation, max_classes)
    scores = _scores(evaluation)
    parts = [[str(evaluation), *(f"{name:<{max(map(len, scores))}}  {value}" for name, value in scores.items())]]
    if shown:
        parts.append([*_aligned(_class_rows(evaluation, shown), left=(0, 5)), *left_out])
    if evaluation.top_losses[:num_top_losses]:
        parts.append(_aligned(_top_loss_rows(evaluation, num_top_losses), left=(2, 3)))
    return "\n\n".join("\n".join(lines) for lines in parts)


def _choose(evaluation: Evaluation, max_classes: int) -> tuple[list[int], list[str]]:
    """Return the classes to show, in the order of the labels, and a line about the others."""
    scores = evaluation.per_class
    if len(scores) <= max_classes:
        return list(range(len(scores))), []
    # Classes without images come last, because they have no recall.
    ranked = sorted(range(len(scores)), key=lambda i: (not scores[i].num_images, scores[i].f1))
    left_out = f"{len(scores) - max_classes:,} more classes, none of them with a lower F1"
    return sorted(ranked[:max_classes]), [left_out] if max_classes else []


def _scores(evaluation: Evaluation) -> dict[str, str]:
    """Return name and value of each total metric that the line of ``str()`` does not have."""
    top_k = {f"top-{evaluation.k} accuracy": f"{evaluation.top_k_accuracy:.2%}"}
    temperature = {"temperature": f"{evaluation.temperature:.3f}"}
    return {
        **(top_k if evaluation.k < len(evaluation.confusion_matrix) else {}),  # else it is always 1
        "log loss": f"{evaluation.log_loss:.4f}",
        "Brier score": f"{evaluation.brier:.4f}",
        "calibration error": f"{evaluation.expected_calibration_error:.2%}",
        **(temperature if evaluation.temperature != 1 else {}),
    }


def _class_rows(evaluation: Evaluation, shown: Iterable[int]) -> list[tuple[str, ...]]:
    """Return a row per class, with a dash for each share whose denominator is 0."""
    rows: list[tuple[str, ...]] = [("class", "images", "precision", "recall", "F1", "most confused with")]
    per_class = evaluation.per_class
    for i in shown:
        scores = per_class[i]
        precision = f"{scores.precision:.1%}" if scores.num_predicted else "-"
        recall = f"{scores.recall:.1%}" if scores.num_images else "-"
        f1 = f"{scores.f1:.1%}" if scores.num_images or scores.num_predicted else "-"
        confused = _most_confused(evaluation, i)
        rows.append((_shorten(scores.name), f"{scores.num_images:,}", precision, recall, f1, confused))
    return rows


def _most_confused(evaluation: Evaluation, index: int) -> str:
    """Return the class that a class is most often confused with, and the number of these images."""
    others = [0 if j == index else count for j, count in enumerate(evaluation.confusion_matrix[index])]
    count = max(others)
    return f"{_shorten(evaluation.class_name(others.index(count)))} ({count:,})" if count else "-"


def _top_loss_rows(evaluation: Evaluation, num_top_losses: int) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("top losses: image", "id", "class", "predicted", "probability", "log loss")]
    return rows + [
        (
            str(one.index),
            str(one.id),
            _shorten(evaluation.class_name(one.label)),
            _shorten(evaluation.class_name(one.predicted)),
            f"{one.probability:.1%}",
            f"{one.loss:.2f}",
        )
        for one in evaluation.top_losses[:num_top_losses]
    ]


def _aligned(rows: Sequence[Sequence[str]], *, left: tuple[int, ...]) -> list[str]:
    """Return a line per row with aligned columns: those in ``left`` to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<" if i in left else ">" for i in range(len(widths))]
    template = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    return [template.format(*row).rstrip() for row in rows]


def _shorten(name: str) -> str:
    """Shorten a long name to its start and its end, because names differ there."""
    half = (_MAX_NAME - 1) // 2
    return name if len(name) <= _MAX_NAME else f"{name[:half]}…{name[-half:]}"
