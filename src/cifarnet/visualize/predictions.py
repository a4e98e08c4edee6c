"""Images beside what a classifier takes them for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cifarnet import randomness
from cifarnet._validation import check_count
from cifarnet.classifier import Classifier, Prediction
from cifarnet.data import ImageDataset, ImageLike
from cifarnet.errors import InputError
from cifarnet.visualize.canvas import BLUE, GREY, PLAIN, VERMILION, figure_of, ink_on, shorten, show_image
from cifarnet.visualize.cells import open_cells, thumbnail, title_of, write_title

__all__ = ["plot_predictions"]


def plot_predictions(
    classifier: Classifier,
    images: ImageDataset | Sequence[ImageLike],
    *,
    num_images: int = 9,
    columns: int = 3,
    top_k: int = 3,
    seed: int = 0,
    ax: Axes | None = None,
) -> Figure:
    """Draw images, each with its likeliest classes, and tell right from wrong where the truth is known.

    Right is a check mark and a solid blue frame, wrong a cross and a dashed vermilion frame. The bar of the true class
    is blue, that of a wrong answer vermilion, the others are grey.

    Args:
        classifier: Who is asked.
        images: A data set, of which ``num_images`` are drawn at random; or a list of images, all of them shown.
        num_images: How many of a data set.
        columns: How many side by side.
        top_k: How many classes an image.
        seed: Of the choice of images.
        ax: Axes whose place is drawn in; a new figure without.

    Returns:
        The figure.

    Raises:
        InputError: If there are no images, one cannot be read, or the classes of the data set are others.
        SettingError: If a number is below 1.
        NonFiniteLogitsError: If the network gives NaN or infinity.

    Example:
        >>> from cifarnet import CifarCNN, Preprocess, make_synthetic
        >>> data = make_synthetic(num_train=10, num_test=10)
        >>> classifier = Classifier(CifarCNN(), Preprocess(), data.test.classes)
        >>> figure = plot_predictions(classifier, data.test, num_images=4, columns=2)
        >>> figure.savefig("predictions.png")  # doctest: +SKIP
    """
    for key, count, remedy in (("num_images", num_images, "9"), ("columns", columns, "3"), ("top_k", top_k, "3")):
        check_count(key, count, f"{remedy} is the default")
    check_count("seed", seed, "0 is the default", least=0)
    if not isinstance(classifier, Classifier):
        raise InputError(f"expected a Classifier, got {type(classifier).__name__}; Classifier.load(run) gives one")
    shown: list[ImageLike]
    truths: list[str | None]
    if isinstance(images, ImageDataset):
        classifier.check_classes(images)
        chosen = randomness.permutation(seed, 0, images.ids)[:num_images]
        shown = list(images.images[chosen])
        truths = [classifier.class_name(label) for label in images.labels[chosen].tolist()]
    elif not isinstance(images, str | bytes) and isinstance(images, Sequence):
        shown, truths = list(images), [None] * len(images)
    else:
        raise InputError(
            f"expected a data set or a list of images, got {type(images).__name__}; one image is [image], a batch is "
            "list(images)"
        )
    if not shown:
        raise InputError("there are no images to draw; give at least one")
    predictions = classifier.predict(shown, top_k=top_k)
    ax, cells, scale = open_cells(ax, len(shown), columns, width=2.9, height=1.55)
    for cell, image, prediction, truth in zip(cells, shown, predictions, truths, strict=True):
        _draw_cell(cell, thumbnail(image, len(classifier.preprocess.mean)), prediction, truth, scale)
    return figure_of(ax)


def _draw_cell(cell: Axes, pixels: Tensor, prediction: Prediction, truth: str | None, scale: float) -> None:
    picture, bars = cell.inset_axes((0, 0, 0.43, 1)), cell.inset_axes((0.48, 0, 0.52, 1))
    right = prediction.label == truth
    frame = GREY if truth is None else BLUE if right else VERMILION
    show_image(picture, pixels, frame=frame, dashed=truth is not None and not right)
    write_title(cell, title_of(prediction.label, truth), size=8 * scale)
    style: dict[str, Any] = {"color": ink_on(cell), **PLAIN}
    for row, (label, probability) in enumerate(prediction.top):
        colour = BLUE if label == truth else frame if row == 0 else GREY
        bars.barh(row, 1, height=0.28, color="#EEEEEE")
        bars.barh(row, probability, height=0.28, color=colour)
        text = {"y": row - 0.24, "fontsize": 6.5 * scale, "verticalalignment": "bottom", **style}
        bars.text(0, s=shorten(label, 28), **text)
        bars.text(1, s=f"{100 * probability:.0f} %", horizontalalignment="right", **text)
    bars.set_xlim(0, 1)
    bars.set_ylim(len(prediction.top) - 0.7, -0.75)
    bars.set_axis_off()
