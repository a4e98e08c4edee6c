"""How well each class is told from the others."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from cifarnet.inference import ClassScores, Evaluation
from cifarnet.visualize.canvas import (
    BLUE,
    GREEN,
    ORANGE,
    PLAIN,
    clear,
    divide,
    figure_of,
    ink_on,
    open_axes,
    percent,
    scale_of,
    shorten,
)
from cifarnet.visualize.confusion import check_evaluation

__all__ = ["plot_class_scores"]

_MAX_CLASSES = 40  # of more the middle is left out
_EACH_END = 15
_BARS = (("precision", ORANGE), ("recall", BLUE), ("F1", GREEN))  # from the top; also from light to dark and back


def plot_class_scores(evaluation: Evaluation, *, ax: Axes | None = None) -> Figure:
    """Draw precision, recall and F1 of each class as bars, the class with the lowest F1 first.

    A figure of its own grows with the classes. Of more than 40 classes the 15 with the lowest and the 15 with the
    highest F1 are drawn, and lines say how many are left out. F1 and the number of images are written beside the bars;
    classes without images come last, and say so.

    Args:
        evaluation: What ``evaluate`` returned.
        ax: Axes whose place is drawn in; a new figure without.

    Returns:
        The figure.

    Raises:
        InputError: If it is no evaluation.

    Example:
        >>> from cifarnet import CifarCNN, Classifier, Preprocess, make_synthetic
        >>> data = make_synthetic(num_train=10, num_test=10)
        >>> classifier = Classifier(CifarCNN(), Preprocess(), data.test.classes)
        >>> figure = plot_class_scores(classifier.evaluate(data.test))
        >>> figure.savefig("class_scores.png")  # doctest: +SKIP
    """
    check_evaluation(evaluation)
    rows = _rows(evaluation.per_class)
    ax = open_axes(ax, width=6.5, height=0.9 + 0.34 * max(3, len(rows)))
    panel = divide(ax, 1, 1)[0][0]
    ink, size = ink_on(ax), 8 * scale_of(ax, 6.5)
    for y, row in enumerate(rows):
        if isinstance(row, ClassScores):
            _draw_row(panel, y, row, ink, size)
        else:
            panel.text(0.5, y, row, ha="center", va="center", fontsize=size, color=ink)
    named = {y: shorten(row.name, 28) for y, row in enumerate(rows) if isinstance(row, ClassScores)}
    panel.yaxis.set_major_locator(FixedLocator(list(named)))
    panel.yaxis.set_ticklabels(list(named.values()), **PLAIN)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_xlim(0, 1)
    panel.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    clear(panel, ink, size=size)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", linewidth=0.5, alpha=0.4)
    panel.set_axisbelow(True)
    for x, head in ((1.09, "F1"), (1.22, "images")):
        panel.text(x, -0.7, head, ha="right", va="bottom", fontsize=size, color=ink)
    panel.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, labelcolor=ink, fontsize=size,
        handlelength=1.2,
    )  # fmt: skip
    return figure_of(ax)


def _rows(scores: tuple[ClassScores, ...]) -> list[ClassScores | str]:
    """Classes from the lowest F1 on; of many the ends, and a line for those that are left out."""
    ranked = sorted(scores, key=lambda one: (not one.num_images, one.f1))
    if len(ranked) <= _MAX_CLASSES:
        return [*ranked]
    rows: list[ClassScores | str] = [one for one in ranked if one.num_images]
    without = len(ranked) - len(rows)
    if len(rows) > _MAX_CLASSES:
        rows[_EACH_END:-_EACH_END] = [f"{len(rows) - 2 * _EACH_END:,} classes between"]
    return [*rows, f"{without:,} without images"] if without else rows


def _draw_row(panel: Axes, y: int, scores: ClassScores, ink: str, size: float) -> None:
    shares = (scores.precision, scores.recall, scores.f1)
    for place, ((name, colour), share) in enumerate(zip(_BARS, shares, strict=True)):
        label = name if y == 0 else f"_{name}"
        panel.barh(y + 0.27 * (place - 1), share, height=0.24, color=colour, label=label, linewidth=0)
    f1 = percent(scores.f1) if scores.num_images or scores.num_predicted else "-"
    for x, text in ((1.09, f1), (1.22, f"{scores.num_images:,}" if scores.num_images else "none")):
        panel.text(x, y, text, ha="right", va="center_baseline", fontsize=size, color=ink)
