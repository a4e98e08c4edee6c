"""Whether a classifier is right as often as it says."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cifarnet.errors import InputError
from cifarnet.inference import Evaluation, wilson_interval
from cifarnet.visualize.canvas import (
    BLUE,
    GREY,
    SKY,
    VERMILION,
    clear,
    divide,
    figure_of,
    ink_on,
    open_axes,
    percent,
    scale_of,
)
from cifarnet.visualize.confusion import check_evaluation

__all__ = ["plot_reliability"]

_WIDTH = 4.0  # inches a diagram


def plot_reliability(evaluation: Evaluation, *, calibrated: Evaluation | None = None, ax: Axes | None = None) -> Figure:
    """Draw how often predictions are right against how sure they are (reliability diagram, arXiv:1706.04599, figure 1).

    Each bar is the accuracy of the images whose confidence, the probability of the predicted class, lies in its bin,
    with the 95 % Wilson interval as a line. The hatched part leads from there to their mean confidence: above the bar
    where the network is too sure, within it where it is not sure enough. On the dashed diagonal both are equal. Below
    stands how many images each bin has; the title tells the expected calibration error, which is the mean gap.

    Args:
        evaluation: What ``evaluate`` returned.
        calibrated: The same images after `Classifier.calibrate`, drawn beside it.
        ax: Axes whose place is drawn in; a new figure without.

    Returns:
        The figure.

    Raises:
        InputError: If one is no evaluation, or the two are not of the same images.

    Example:
        >>> from cifarnet import CifarCNN, Classifier, Preprocess, make_synthetic
        >>> data = make_synthetic(num_train=10, num_test=10)
        >>> classifier = Classifier(CifarCNN(), Preprocess(), data.test.classes)
        >>> figure = plot_reliability(classifier.evaluate(data.test))
        >>> figure.savefig("reliability.png")  # doctest: +SKIP
    """
    check_evaluation(evaluation)
    shown = [("", evaluation)]
    if calibrated is not None:
        check_evaluation(calibrated)
        if [sum(row) for row in calibrated.confusion_matrix] != [sum(row) for row in evaluation.confusion_matrix]:
            raise InputError("the two evaluations are not of the same images; evaluate both on the same data")
        shown = [("before: ", evaluation), ("calibrated: ", calibrated)]
    ax = open_axes(ax, width=_WIDTH * len(shown), height=4.4)
    scale = scale_of(ax, _WIDTH * len(shown))
    for (name, one), place in zip(shown, divide(ax, 1, len(shown), gap_x=0.22)[0], strict=True):
        _draw_diagram(place, one, name, ink_on(ax), 8 * scale)
    return figure_of(ax)


def _draw_diagram(place: Axes, evaluation: Evaluation, name: str, ink: str, size: float) -> None:
    place.set_axis_off()
    above, below = place.inset_axes((0, 0.29, 1, 0.71)), place.inset_axes((0, 0, 1, 0.2))
    _draw_gaps(above, evaluation, ink)
    _draw_counts(below, evaluation, ink, size)
    title = f"{name}calibration error {percent(evaluation.expected_calibration_error)}"
    if evaluation.temperature != 1:
        title += f", temperature {evaluation.temperature:.2f}"
    above.set_title(title, fontsize=size + 0.5, color=ink)
    above.set_ylabel("share right")
    below.set_ylabel("images")
    below.set_xlabel("confidence: probability of the predicted class")
    for panel in (above, below):
        clear(panel, ink, size=size)
        panel.set_xlim(0, 1)
        panel.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    above.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    above.set_ylim(0, 1)
    above.legend(loc="upper left", frameon=False, labelcolor=ink, fontsize=size)


def _draw_gaps(panel: Axes, evaluation: Evaluation, ink: str) -> None:
    width, told = 1 / len(evaluation.reliability_bins), False
    for i, one in enumerate(evaluation.reliability_bins):
        if one.accuracy is None or one.confidence is None:
            continue
        middle = (i + 0.5) * width
        labels = ("", "") if told else ("accuracy, with 95 % interval", "gap to the mean confidence")
        panel.bar(middle, one.accuracy, width=0.94 * width, color=SKY, label=labels[0], linewidth=0)
        panel.bar(
            middle, one.confidence - one.accuracy, bottom=one.accuracy, width=0.94 * width, label=labels[1],
            facecolor="none", edgecolor=VERMILION, hatch="////", linewidth=0.8,
        )  # fmt: skip
        panel.vlines(middle, *wilson_interval(one.num_correct, one.num_images), color=BLUE, linewidth=1.2)
        told = True
    panel.plot([0, 1], [0, 1], linestyle=(0, (4, 3)), linewidth=1, color=ink, label="right as often as sure")


def _draw_counts(panel: Axes, evaluation: Evaluation, ink: str, size: float) -> None:
    width, small = 1 / len(evaluation.reliability_bins), 0.62 * size
    counts = [one.num_images for one in evaluation.reliability_bins]
    for i, count in enumerate(counts):
        panel.bar((i + 0.5) * width, count, width=0.94 * width, color=GREY, linewidth=0)
        if count:
            panel.text((i + 0.5) * width, count, f"{count:,}", ha="center", va="bottom", fontsize=small, color=ink)
    panel.set_ylim(0, 1.15 * max(counts))
    panel.set_yticks([])
