"""Confusion matrix, scores of the classes, and reliability diagram of an evaluation."""

from __future__ import annotations

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from cifarnet.errors import DataError
from cifarnet.inference import ClassScores, Evaluation, wilson_interval
from cifarnet.visualize import _style
from cifarnet.visualize._style import BLUE, GREEN, GREY, INK, ORANGE, PLAIN, SKY, SMALL, VERMILION, percent, shorten

__all__ = ["plot_class_scores", "plot_confusion_matrix", "plot_reliability"]

_SMALLEST_FONT = 4.5  # points
_MAX_CLASSES, _NUM_ENDS = 40, 15  # class scores: of more classes, so many from each end of the ranking


def plot_confusion_matrix(evaluation: Evaluation, *, ax: Axes | None = None) -> Figure:
    """Draw the number of images per true class (rows) and predicted class (columns).

    The colour is the share of the row's images. Its scale is a square root, so that confusions of a few per cent are
    visible. Counts are written if a square has room for them: up to about 20 classes in a new figure. If rows are too
    low for letters, only every second, third... class has its name. Rows of classes without images are grey. The
    title names the two classes that are confused most often.

    Args:
        evaluation: Result of ``evaluate``.
        ax: Axes to draw on; ``None`` makes a new figure.

    Returns:
        The figure.

    Example:
        >>> from cifarnet import CifarCNN, Classifier, Preprocess, make_synthetic
        >>> data = make_synthetic(num_train=10, num_test=10)
        >>> classifier = Classifier(CifarCNN(), Preprocess(), data.test.classes)
        >>> figure = plot_confusion_matrix(classifier.evaluate(data.test))
        >>> figure.axes[0].get_ylabel()
        'true class'
    """
    counts = np.array(evaluation.confusion_matrix)  # (K, K)
    side = min(max(3.2, 0.42 * len(counts)), 9.0)
    ax = _style.open_axes(ax, width=side + 2.2, height=side + 1.5)
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(axis=1, keepdims=True)  # NaN for a class without images
    colours = colormaps["Blues"].with_extremes(bad=GREY)
    image = ax.imshow(shares, cmap=colours, norm=PowerNorm(0.5, 0, 1), aspect="auto", interpolation="nearest")
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.set_title(_most_confused(evaluation, counts), loc="left")
    _style.finish(ax)
    ax.spines[:].set_visible(True)
    place = ax.get_window_extent()
    # Side of a square in points, less the room that names and colour bar will take.
    square = 0.72 * 72 * min(place.width, place.height) / _style.figure_of(ax).dpi / len(counts)
    _write_names(ax, [shorten(evaluation.class_name(i), 22) for i in range(len(counts))], square)
    _write_counts(ax, counts, shares, square)
    ticks = [0, 0.01, 0.05, 0.2, 0.5, 1]
    bar = _style.figure_of(ax).colorbar(image, cax=ax.inset_axes((1.03, 0, 0.035, 1)), ticks=ticks)
    _style.set_percent(bar.ax.yaxis)
    bar.ax.set_ylabel("share of the true class")
    _style.finish(bar.ax)
    bar.ax.tick_params(labelsize=SMALL - 1)
    bar.outline.set_edgecolor(_style.ink_on(ax))
    return _style.figure_of(ax)


def _most_confused(evaluation: Evaluation, counts: np.ndarray) -> str:
    """Return accuracy and the most frequent confusion, as a title."""
    wrong = counts * (1 - np.eye(len(counts), dtype=int))
    row, column = np.unravel_index(int(wrong.argmax()), wrong.shape)
    title = f"{evaluation.num_images:,} images, {percent(evaluation.accuracy)} correct"
    if not wrong[row, column]:
        return title
    true, predicted = (shorten(evaluation.class_name(int(i)), 24) for i in (row, column))
    between = " " if len(true) + len(predicted) <= 24 else "\n"
    often = f"{wrong[row, column]:,} of {counts[row].sum():,}"
    return f"{title}\nmost often: {true}{between}predicted as {predicted} ({often})"


def _write_names(ax: Axes, names: list[str], square: float) -> None:
    size = min(9.0, max(_SMALLEST_FONT, 0.7 * square))
    every = max(1, math.ceil(_SMALLEST_FONT / square))
    shown = range(0, len(names), every)
    labels = [names[i] for i in shown]
    is_narrow = max(map(len, labels)) * 0.62 * size > square * every
    ax.set_xticks(shown, labels, fontsize=size, rotation=90 if is_narrow else 0, **PLAIN)
    ax.set_yticks(shown, labels, fontsize=size, **PLAIN)


def _write_counts(ax: Axes, counts: np.ndarray, shares: np.ndarray, square: float) -> None:
    size = min(9.0, square / (0.75 * max(2, len(f"{counts.max():,}"))))
    if size < _SMALLEST_FONT:
        return
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.45 else INK  # contrast at least 4:1 on both sides
            ax.text(column, row, f"{count:,}", ha="center", va="center", fontsize=size, color=colour)


def plot_class_scores(evaluation: Evaluation, *, ax: Axes | None = None) -> Figure:
    """Draw precision, recall and F1 of each class as bars, from the lowest F1 to the highest.

    F1 and the number of images are written beside the bars. If there are more than 40 classes, the 15 with the lowest
    and the 15 with the highest F1 are drawn, and a note counts the others.

    Args:
        evaluation: Result of ``evaluate``.
        ax: Axes to draw on; ``None`` makes a new figure, whose height grows with the classes.

    Returns:
        The figure.

    Example:
        >>> from cifarnet import CifarCNN, Classifier, Preprocess, make_synthetic
        >>> data = make_synthetic(num_train=10, num_test=10)
        >>> classifier = Classifier(CifarCNN(), Preprocess(), data.test.classes)
        >>> figure = plot_class_scores(classifier.evaluate(data.test))
        >>> figure.savefig("class_scores.png")  # doctest: +SKIP
    """
    ranked = sorted(evaluation.per_class, key=lambda scores: (not scores.num_images, scores.f1))
    note = ""
    if len(ranked) > _MAX_CLASSES:
        all_classes, ranked = len(ranked), [scores for scores in ranked if scores.num_images]
        note = f"classes not shown: {all_classes - len(ranked):,} without images"
    if len(ranked) > _MAX_CLASSES:
        note += f", {len(ranked) - 2 * _NUM_ENDS:,} in the middle"
        ranked = ranked[:_NUM_ENDS] + ranked[-_NUM_ENDS:]
    ax = _style.open_axes(ax, width=6.5, height=0.9 + 0.34 * max(3, len(ranked)))
    rows = np.arange(len(ranked))
    for offset, name, colour in ((-0.27, "precision", ORANGE), (0, "recall", BLUE), (0.27, "F1", GREEN)):
        widths = [getattr(scores, name.lower()) for scores in ranked]
        ax.barh(rows + offset, widths, height=0.24, color=colour, label=name, linewidth=0)
    ax.set_yticks(rows, [shorten(scores.name, 28) for scores in ranked], **PLAIN)
    ax.set(xlim=(0, 1), ylim=(len(ranked) - 0.4, -0.6), xlabel=note)
    _style.set_percent(ax.xaxis)
    ax.grid(axis="x", linewidth=0.5, alpha=0.4)
    ax.set_axisbelow(True)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, handlelength=1.2)
    _style.finish(ax)
    ax.tick_params(axis="y", length=0)
    right = ax.secondary_yaxis("right")
    right.set_yticks(rows, [_summarize(scores) for scores in ranked])
    right.tick_params(length=0, labelsize=SMALL, colors=_style.ink_on(ax))
    right.spines[:].set_visible(False)
    return _style.figure_of(ax)


def _summarize(scores: ClassScores) -> str:
    if not scores.num_images:
        return "no images"
    return f"F1 {percent(scores.f1)}, {scores.num_images:,} image{'s' if scores.num_images > 1 else ''}"


def plot_reliability(evaluation: Evaluation, *, calibrated: Evaluation | None = None) -> Figure:
    """Draw accuracy against confidence (reliability diagram, arXiv:1706.04599, figure 1).

    Each bar is the accuracy of the images whose confidence, the probability of the predicted class, is in its bin. The
    line on it is the 95 % Wilson interval. The hatched part leads from the accuracy to the mean confidence: above the
    bar if the network is overconfident, within it if the network is underconfident. On the dashed diagonal both are
    equal. The panel below has the number of images per bin. The title has the expected calibration error, which is the
    mean gap.

    Args:
        evaluation: Result of ``evaluate``.
        calibrated: Evaluation of the same images after `Classifier.calibrate`, drawn beside it.

    Returns:
        A figure of two panels per evaluation.

    Raises:
        DataError: If the two evaluations are not of the same images.

    Example:
        >>> from cifarnet import CifarCNN, Classifier, Preprocess, make_synthetic
        >>> data = make_synthetic(num_train=10, num_test=10)
        >>> classifier = Classifier(CifarCNN(), Preprocess(), data.test.classes)
        >>> figure = plot_reliability(classifier.evaluate(data.test))
        >>> figure.savefig("reliability.png")  # doctest: +SKIP
    """
    shown = {"": evaluation}
    if calibrated is not None:
        if [sum(row) for row in calibrated.confusion_matrix] != [sum(row) for row in evaluation.confusion_matrix]:
            raise DataError("The evaluations are not of the same images. Evaluate both on the same data.")
        shown = {"before: ": evaluation, "calibrated: ": calibrated}
    figure = _style.new_figure(4 * len(shown), 4.8)
    panels = figure.subplots(2, len(shown), squeeze=False, sharex="col", height_ratios=(7, 2))
    for (name, one), (above, below) in zip(shown.items(), panels.T, strict=True):
        _draw_gaps(above, one)
        _draw_bin_counts(below, one)
        title = f"{name}calibration error {percent(one.expected_calibration_error)}"
        above.set_title(title if one.temperature == 1 else f"{title}, temperature {one.temperature:.2f}")
        above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        below.set(yticks=[], ylabel="images", xlabel="confidence: probability of the predicted class")
        for axis in (above.yaxis, below.xaxis):
            _style.set_percent(axis)
        _style.finish(above)
        _style.finish(below)
    names = panels[0, 0].get_legend_handles_labels()
    columns = 2 * len(shown) - 1
    figure.legend(*names, loc="outside lower center", ncols=columns, frameon=False, fontsize=SMALL, labelcolor=INK)
    return figure


def _draw_gaps(panel: Axes, evaluation: Evaluation) -> None:
    num_bins = len(evaluation.reliability_bins)
    bins = [(i, one) for i, one in enumerate(evaluation.reliability_bins) if one.num_images]
    middles = [(i + 0.5) / num_bins for i, _ in bins]
    accuracies = np.array([one.num_correct / one.num_images for _, one in bins])
    gaps = np.array([one.confidence for _, one in bins], dtype=float) - accuracies
    intervals = np.array([wilson_interval(one.num_correct, one.num_images) for _, one in bins])
    width = 0.94 / num_bins
    panel.bar(middles, accuracies, width, color=SKY, linewidth=0, label="accuracy, with 95 % interval")
    panel.bar(
        middles, gaps, width, accuracies, color="none", edgecolor=VERMILION, hatch="////", linewidth=0.8,
        label="gap to the mean confidence",
    )  # fmt: skip
    panel.vlines(middles, *intervals.T, color=BLUE, linewidth=1.2)
    panel.plot([0, 1], [0, 1], linestyle=(0, (4, 3)), linewidth=1, color=INK, label="perfect calibration")


def _draw_bin_counts(panel: Axes, evaluation: Evaluation) -> None:
    counts = [one.num_images for one in evaluation.reliability_bins]
    width = 1 / len(counts)
    bars = panel.bar([(i + 0.5) * width for i in range(len(counts))], counts, width=0.94 * width, color=GREY)
    panel.bar_label(bars, [f"{count:,}" if count else "" for count in counts], fontsize=0.62 * SMALL, color=INK)
    panel.set_ylim(0, 1.2 * max(counts))
