"""Which classes are taken for which."""

from __future__ import annotations

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from cifarnet.errors import InputError
from cifarnet.inference import Evaluation
from cifarnet.visualize.canvas import GREY, INK, PLAIN, figure_of, ink_on, open_axes, percent, shorten

__all__ = ["check_evaluation", "plot_confusion_matrix"]

_SMALLEST, _LARGEST = 4.5, 9.0  # letters, in points
_SIDE = (3.2, 9.0)  # of the matrix in a new figure, in inches: at least, at most
_MAX_NAME = 22  # letters


def plot_confusion_matrix(evaluation: Evaluation, *, ax: Axes | None = None) -> Figure:
    """Draw what the images of each class were taken for: a row a true class, a column a predicted one.

    Colour is the share of the row's images, by the square root, so that a few confused images in a hundred show.
    Counts are written where a square has room for them: up to about 20 classes in a figure of its own. So are names;
    where rows are too low for letters every second, third... one has its name. Classes without images have a grey row.
    Above stand the two classes that are confused most often.

    Args:
        evaluation: What ``evaluate`` returned.
        ax: Axes that are drawn on; a new figure without.

    Returns:
        The figure.

    Raises:
        InputError: If it is no evaluation.

    Example:
        >>> from cifarnet import CifarCNN, Classifier, Preprocess, make_synthetic
        >>> data = make_synthetic(num_train=10, num_test=10)
        >>> classifier = Classifier(CifarCNN(), Preprocess(), data.test.classes)
        >>> figure = plot_confusion_matrix(classifier.evaluate(data.test))
        >>> figure.axes[0].get_ylabel()
        'true class'
    """
    check_evaluation(evaluation)
    counts = np.array(evaluation.confusion_matrix)  # (K, K)
    num_classes = len(counts)
    side = min(max(_SIDE[0], 0.42 * num_classes), _SIDE[1])
    ax = open_axes(ax, width=side + 2.2, height=side + 1.5)
    ink, square = ink_on(ax), _square_of(ax, num_classes)
    colours = colormaps["Blues"].with_extremes(bad=GREY)
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(axis=1, keepdims=True)  # NaN where a class has no images
    image = ax.imshow(shares, cmap=colours, norm=PowerNorm(0.5, 0, 1), aspect="auto", interpolation="nearest")
    _write_names(ax, [evaluation.class_name(i) for i in range(num_classes)], square, ink)
    _write_counts(ax, counts, shares, square)
    ax.set_ylabel("true class", color=ink, fontsize=9)
    ax.set_xlabel("taken for", color=ink, fontsize=9)
    ax.set_title(_summary(evaluation, counts), fontsize=8.5, color=ink, loc="left", **PLAIN)
    ax.spines[:].set_color(ink)
    bar = figure_of(ax).colorbar(image, cax=ax.inset_axes((1.03, 0, 0.035, 1)), ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels([f"{100 * tick:g} %" for tick in (0, 0.01, 0.05, 0.2, 0.5, 1)])
    bar.ax.tick_params(colors=ink, labelsize=7)
    bar.ax.set_ylabel("share of the true class", color=ink, fontsize=8)
    bar.outline.set_edgecolor(ink)
    return figure_of(ax)


def check_evaluation(evaluation: object) -> None:
    """Refuse what is no evaluation.

    Raises:
        InputError: If it is not.
    """
    if not isinstance(evaluation, Evaluation):
        raise InputError(
            f"expected an Evaluation, got {type(evaluation).__name__}; classifier.evaluate(data.test) gives one"
        )


def _square_of(ax: Axes, num_classes: int) -> float:
    """Side of a square in points; a layout engine will take room for names and colours off what there is now."""
    figure, place = figure_of(ax), ax.get_window_extent()
    left = 0.72 if figure.get_layout_engine() is not None else 1.0
    return float(left * 72 * min(place.width, place.height) / figure.dpi / num_classes)


def _write_names(ax: Axes, names: list[str], square: float, ink: str) -> None:
    size = min(_LARGEST, max(_SMALLEST, 0.7 * square))
    every = max(1, math.ceil(_SMALLEST / square))
    shown = list(range(0, len(names), every))
    labels = [shorten(names[i], _MAX_NAME) for i in shown]
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(FixedLocator(shown))
        axis.set_ticklabels(labels, fontsize=size, color=ink, **PLAIN)
    # Level names need as much width as their letters, and a short one beside the other looks calmer.
    fits = max(map(len, labels)) * 0.62 * size < square * every
    ax.tick_params(axis="x", rotation=0 if fits else 90, color=ink)
    ax.tick_params(axis="y", color=ink)


def _write_counts(ax: Axes, counts: np.ndarray, shares: np.ndarray, square: float) -> None:
    longest = max(len(f"{count:,}") for count in counts.flat)
    size = min(_LARGEST, square / (0.75 * max(2, longest)))
    if size < _SMALLEST:
        return
    for (row, column), count in np.ndenumerate(counts):
        if count:
            # There the blue is as far from white as from INK: 4:1.
            colour = "white" if shares[row, column] > 0.45 else INK
            ax.text(column, row, f"{count:,}", ha="center", va="center", fontsize=size, color=colour)


def _summary(evaluation: Evaluation, counts: np.ndarray) -> str:
    """Accuracy, and the classes that are confused most often."""
    others = counts * (1 - np.eye(len(counts), dtype=int))
    row, column = np.unravel_index(int(others.argmax()), others.shape)
    first = f"{evaluation.num_images:,} images, {percent(evaluation.accuracy)} right"
    if not others[row, column]:
        return first
    true, taken = (shorten(evaluation.class_name(int(i)), 24) for i in (row, column))
    then = " " if len(true) + len(taken) <= 24 else "\n"
    return f"{first}\nmost often: {true}{then}taken for {taken} ({others[row, column]:,} of {counts[row].sum():,})"
