"""Tables of an evaluation, as text and as HTML for a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from cifarnet._validation import check_count
from cifarnet.inference.records import ClassScores

if TYPE_CHECKING:
    from cifarnet.inference.evaluation import Evaluation

__all__ = ["html_table", "text_table"]

_MAX_NAME = 24  # characters of a class name in a column
_MAX_HTML_CLASSES = 100
_MAX_HTML_CONFUSION = 20  # classes; a wider matrix does not fit a page


def text_table(evaluation: Evaluation, *, max_classes: int, num_top_losses: int) -> str:
    """Return all metrics of an evaluation as text; see `Evaluation.table`."""
    check_count("max_classes", max_classes, "20 is the default", least=0)
    check_count("num_top_losses", num_top_losses, "5 is the default", least=0)
    shown, left_out = _choose(evaluation, max_classes)
    width = max(len(name) for name, _ in _scores(evaluation))
    parts = [[str(evaluation), *(f"{name:<{width}}  {value}" for name, value in _scores(evaluation))]]
    if shown:
        parts.append([*_aligned(_class_rows(evaluation, shown), left=(0, 5)), *left_out])
    if evaluation.top_losses[:num_top_losses]:
        parts.append(_aligned(_top_loss_rows(evaluation, num_top_losses), left=(2, 3)))
    return "\n\n".join("\n".join(lines) for lines in parts)


def html_table(evaluation: Evaluation) -> str:
    """Return all metrics of an evaluation as HTML, with the confusion matrix for up to 20 classes."""
    shown, left_out = _choose(evaluation, _MAX_HTML_CLASSES)
    parts = [
        f"<p>{escape(str(evaluation))}</p>",
        _html([("score", "value"), *_scores(evaluation)]),
        _html(_class_rows(evaluation, shown)),
        *(f"<p>{escape(line)}</p>" for line in left_out),
    ]
    if len(evaluation.confusion_matrix) <= _MAX_HTML_CONFUSION:
        names = [_shortened(evaluation.class_name(i)) for i in range(len(evaluation.confusion_matrix))]
        counts = [(name, *map(_number, row)) for name, row in zip(names, evaluation.confusion_matrix, strict=True)]
        parts.append(_html([("class, and what it was taken for", *names), *counts]))
    if evaluation.top_losses:
        parts.append(_html(_top_loss_rows(evaluation, len(evaluation.top_losses))))
    return "\n".join(parts)


def _choose(evaluation: Evaluation, max_classes: int) -> tuple[list[int], list[str]]:
    """Return the classes to show, in the order of the labels, and a line about the others."""
    scores = evaluation.per_class
    if len(scores) <= max_classes:
        return list(range(len(scores))), []
    # Classes without images come last, because they have no recall.
    ranked = sorted(range(len(scores)), key=lambda i: (not scores[i].num_images, scores[i].f1))
    left_out = f"{len(scores) - max_classes:,} more classes, none of them with a lower F1"
    return sorted(ranked[:max_classes]), [left_out] if max_classes else []


def _scores(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return name and value of each total metric that the line of ``str()`` does not have."""
    rows = [
        (f"top-{evaluation.k} accuracy", f"{evaluation.top_k_accuracy:.2%}"),
        ("log loss", f"{evaluation.log_loss:.4f}"),
        ("Brier score", f"{evaluation.brier:.4f}"),
        ("calibration error", f"{evaluation.expected_calibration_error:.2%}"),
        ("temperature", f"{evaluation.temperature:.3f}"),
    ]
    # With k = K the top-k accuracy is always 1, and a temperature of 1 changes nothing.
    shown = (evaluation.k < len(evaluation.confusion_matrix), True, True, True, evaluation.temperature != 1)
    return [row for row, show in zip(rows, shown, strict=True) if show]


def _class_rows(evaluation: Evaluation, shown: Iterable[int]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("class", "images", "precision", "recall", "F1", "most often taken for")]
    scores = evaluation.per_class
    return rows + [(*_class_row(scores[i]), _taken_for(evaluation, i)) for i in shown]


def _class_row(scores: ClassScores) -> tuple[str, ...]:
    """Return the cells of a class, with a dash for each share whose denominator is 0."""
    return (
        _shortened(scores.name),
        _number(scores.num_images),
        f"{scores.precision:.1%}" if scores.num_predicted else "-",
        f"{scores.recall:.1%}" if scores.num_images else "-",
        f"{scores.f1:.1%}" if scores.num_images or scores.num_predicted else "-",
    )


def _taken_for(evaluation: Evaluation, index: int) -> str:
    """Return the class that a class is most often confused with, and the number of these images."""
    others = [0 if j == index else count for j, count in enumerate(evaluation.confusion_matrix[index])]
    count = max(others)
    return f"{_shortened(evaluation.class_name(others.index(count)))} ({count:,})" if count else "-"


def _top_loss_rows(evaluation: Evaluation, num_top_losses: int) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("top losses: image", "id", "class", "taken for", "probability", "log loss")]
    return rows + [
        (
            str(one.index),
            str(one.id),
            _shortened(evaluation.class_name(one.label)),
            _shortened(evaluation.class_name(one.predicted)),
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


def _html(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in body]
    return (
        f"<table><thead><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr></thead>"
        f"<tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"
    )


def _number(count: int) -> str:
    return f"{count:,}"


def _shortened(name: str) -> str:
    """Shorten a long name to its start and its end, because names differ there."""
    half = (_MAX_NAME - 1) // 2
    return name if len(name) <= _MAX_NAME else f"{name[:half]}…{name[-half:]}"
