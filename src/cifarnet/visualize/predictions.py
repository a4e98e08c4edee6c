"""Images beside what a classifier takes them for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cifarnet import randomness
from cifarnet._checks import check_count
from cifarnet.classifier import Classifier, Prediction
from cifarnet.datasets import ImageDataset
from cifarnet.errors import InputError
from cifarnet.images import ImageLike, crop_square, resize_images, to_pixels
from cifarnet.visualize.canvas import (
    BLUE,
    GREY,
    PLAIN,
    VERMILION,
    divide,
    figure_of,
    ink_on,
    open_axes,
    show_image,
    width_of,
)

__all__ = ["plot_predictions"]

_CELL_WIDTH = 2.9  # inches
_MAX_SIDE = 256  # pixels shown of a large photo: a panel has no more


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
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    ax = open_axes(ax, width=_CELL_WIDTH * columns, height=1.55 * rows)
    scale = max(0.55, min(1.0, width_of(ax) / (_CELL_WIDTH * columns)))  # smaller letters nobody reads
    cells = [cell for row in divide(ax, rows, columns, gap_x=0.08, gap_y=0.28) for cell in row]
    for cell, image, prediction, truth in zip(cells, shown, predictions, truths, strict=False):
        _draw_cell(cell, _thumbnail(image, len(classifier.preprocess.mean)), prediction, truth, scale)
    for cell in cells[len(shown) :]:
        cell.set_axis_off()
    return figure_of(ax)


def _draw_cell(cell: Axes, pixels: Tensor, prediction: Prediction, truth: str | None, scale: float) -> None:
    cell.set_axis_off()
    picture, bars = cell.inset_axes((0, 0, 0.43, 1)), cell.inset_axes((0.48, 0, 0.52, 1))
    right = prediction.label == truth
    frame = GREY if truth is None else BLUE if right else VERMILION
    show_image(picture, pixels, frame=frame, dashed=truth is not None and not right)
    # Few fonts have a check mark: the one that comes with matplotlib does.
    fonts = [*rcParams["font.family"], "DejaVu Sans"]
    style: dict[str, Any] = {"color": ink_on(cell), **PLAIN}
    title = _title(prediction.label, truth)
    cell.set_title(title, loc="left", fontsize=8 * scale, pad=4, fontfamily=fonts, **style)
    for row, (label, probability) in enumerate(prediction.top):
        colour = BLUE if label == truth else frame if row == 0 else GREY
        bars.barh(row, 1, height=0.28, color="#EEEEEE")
        bars.barh(row, probability, height=0.28, color=colour)
        text = {"y": row - 0.24, "fontsize": 6.5 * scale, "verticalalignment": "bottom", **style}
        bars.text(0, s=_shorten(label, 28), **text)
        bars.text(1, s=f"{100 * probability:.0f} %", horizontalalignment="right", **text)
    bars.set_xlim(0, 1)
    bars.set_ylim(len(prediction.top) - 0.7, -0.75)
    bars.set_axis_off()


def _title(label: str, truth: str | None) -> str:
    """In one line where there is room for it, so that long names still tell classes apart."""
    if truth is None:
        return _shorten(label, 40)
    if label == truth:
        return f"✓ {_shorten(label, 38)}"
    between = " " if len(label) + len(truth) < 30 else "\n"
    return f"✗ {_shorten(label, 38)}{between}(truth: {_shorten(truth, 30)})"


def _thumbnail(image: ImageLike, channels: int) -> Tensor:
    """What the network saw of an image, in its own resolution as far as that shows."""
    square = crop_square(to_pixels(image, channels=channels))
    return resize_images(square, _MAX_SIDE) if square.shape[-1] > _MAX_SIDE else square


def _shorten(name: str, length: int) -> str:
    """The ends of a name, which is where names differ."""
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head].rstrip()}…{name[len(name) - (length - 1 - head) :].lstrip()}"
