"""The images that a network is most wrong about."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cifarnet._validation import check_count
from cifarnet.data import ImageDataset
from cifarnet.errors import InputError
from cifarnet.inference import Evaluation, TopLoss
from cifarnet.visualize.canvas import BLUE, PLAIN, VERMILION, figure_of, ink_on, percent, show_image
from cifarnet.visualize.cells import open_cells, shrink, title_of, write_title
from cifarnet.visualize.confusion import check_evaluation

__all__ = ["plot_top_losses"]


def plot_top_losses(
    evaluation: Evaluation,
    data: ImageDataset,
    *,
    num_images: int = 12,
    columns: int = 4,
    ax: Axes | None = None,
) -> Figure:
    """Draw the images with the highest losses, highest first, with true and predicted class.

    An evaluation keeps at most 25 of them. Of a network that is nearly always right some may be right, and merely
    unsure: those have a check mark and a solid blue frame, as in `plot_predictions`.

    Args:
        evaluation: What ``evaluate(data)`` returned.
        data: The same data set.
        num_images: How many at most.
        columns: How many side by side.
        ax: Axes whose place is drawn in; a new figure without.

    Returns:
        The figure.

    Raises:
        InputError: If the evaluation is of other images, or keeps no top losses.
        SettingError: If a number is below 1.

    Example:
        >>> from cifarnet import CifarCNN, Classifier, Preprocess, make_synthetic
        >>> data = make_synthetic(num_train=10, num_test=10)
        >>> classifier = Classifier(CifarCNN(), Preprocess(), data.test.classes)
        >>> figure = plot_top_losses(classifier.evaluate(data.test), data.test, num_images=4)
        >>> figure.savefig("top_losses.png")  # doctest: +SKIP
    """
    check_count("num_images", num_images, "12 is the default")
    check_count("columns", columns, "4 is the default")
    check_evaluation(evaluation)
    _check_same(evaluation, data)
    top_losses = evaluation.top_losses[:num_images]
    if not top_losses:
        raise InputError("the evaluation keeps no top losses; evaluate the images once more")
    ax, cells, scale = open_cells(ax, len(top_losses), columns, width=2.05, height=1.4)
    for cell, one in zip(cells, top_losses, strict=True):
        _draw_cell(cell, one, evaluation, data, scale)
    return figure_of(ax)


def _check_same(evaluation: Evaluation, data: object) -> None:
    if not isinstance(data, ImageDataset):
        raise InputError(f"expected an ImageDataset, got {type(data).__name__}; give the one that was evaluated")
    if evaluation.num_images != len(data):
        raise InputError(
            f"the evaluation is of {evaluation.num_images:,} images, the data set has {len(data):,}; give the one that "
            "was evaluated"
        )
    if evaluation.classes and evaluation.classes != data.classes:
        raise InputError("the evaluation has other class names than the data set; give the one that was evaluated")
    for one in evaluation.top_losses:
        found = int(data.ids[one.index]), int(data.labels[one.index])
        if found != (one.id, one.label):
            raise InputError(
                f"image {one.index} has id {found[0]} and label {found[1]}, but id {one.id} and label {one.label} in "
                "the evaluation; give the data set that was evaluated, in the same order; a loader of it gives no ids"
            )


def _draw_cell(cell: Axes, one: TopLoss, evaluation: Evaluation, data: ImageDataset, scale: float) -> None:
    picture, side = cell.inset_axes((0, 0, 0.56, 1)), cell.inset_axes((0.6, 0, 0.4, 1))
    side.set_axis_off()
    label, true = (_name(evaluation, data, label) for label in (one.predicted, one.label))
    right = one.predicted == one.label
    show_image(picture, shrink(data.images[one.index]), frame=BLUE if right else VERMILION, dashed=not right)
    write_title(cell, title_of(label, true), size=8 * scale)
    style: dict[str, Any] = {"color": ink_on(cell), "fontsize": 7 * scale, "va": "top", "linespacing": 1.4, **PLAIN}
    lines = [f"loss {one.loss:.2f}", f"{percent(one.probability)} sure", f"image {one.id}"]
    side.text(0, 1, "\n".join(lines), **style)


def _name(evaluation: Evaluation, data: ImageDataset, label: int) -> str:
    return evaluation.class_name(label) if evaluation.classes else data.classes[label]
