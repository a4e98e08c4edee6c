"""Images with their predictions, images with the highest losses, and augmented images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms import v2

from cifarnet import randomness
from cifarnet._resize import crop_square, resize_images
from cifarnet._validation import check_count
from cifarnet.classifier import Classifier, Prediction
from cifarnet.data import ImageDataset, ImageLike, to_pixels
from cifarnet.errors import DataError
from cifarnet.inference import Evaluation
from cifarnet.transforms import Transforms
from cifarnet.visualize import _style
from cifarnet.visualize._style import BLUE, GREY, INK, PLAIN, SMALL, VERMILION, percent

__all__ = ["plot_augmentations", "plot_predictions", "plot_top_losses", "thumbnail"]

_MAX_SIDE = 256  # pixels of a large photo that a panel shows


def plot_predictions(
    classifier: Classifier,
    images: ImageDataset | Sequence[ImageLike],
    *,
    num_images: int = 9,
    columns: int = 3,
    top_k: int = 3,
    seed: int = 0,
) -> Figure:
    """Draw images, each with its most probable classes.

    If the true class is known, a correct prediction has a check mark and a solid blue frame, a wrong one a cross and a
    dashed vermilion frame. The bar of the true class is blue, that of a wrong prediction vermilion; others are grey.

    Args:
        classifier: Classifier that predicts.
        images: Data set, of which ``num_images`` random images are drawn, or a list of images, which are all drawn.
        num_images: Number of images of a data set.
        columns: Number of images side by side.
        top_k: Number of classes per image.
        seed: Seed of the choice of images.

    Returns:
        A figure of two panels per image.

    Raises:
        DataError: If there are no images, one cannot be read, or the data set has other classes.
        SettingError: If a number is below 1.
        NonFiniteError: If the logits are not finite.

    Example:
        >>> from cifarnet import CifarCNN, Preprocess, make_synthetic
        >>> data = make_synthetic(num_train=10, num_test=10)
        >>> classifier = Classifier(CifarCNN(), Preprocess(), data.test.classes)
        >>> figure = plot_predictions(classifier, data.test, num_images=4, columns=2)
        >>> figure.savefig("predictions.png")  # doctest: +SKIP
    """
    check_count("num_images", num_images, "9 is the default")
    truths: list[str | None]
    shown: list[ImageLike]
    if isinstance(images, ImageDataset):
        classifier.check_classes(images)
        chosen = randomness.permutation(seed, 0, images.ids)[:num_images]
        shown = list(images.images[chosen])
        truths = [classifier.class_name(label) for label in images.labels[chosen].tolist()]
    elif not isinstance(images, str) and isinstance(images, Sequence):
        shown, truths = list(images), [None] * len(images)
    else:
        raise DataError(
            f"images must be a data set or a list of images, got {type(images).__name__}. "
            "Pass [image] for one image, list(images) for a batch."
        )
    if not shown:
        raise DataError("images is empty. Pass at least one image.")
    predictions = classifier.predict(shown, top_k=top_k)
    figure, cells = _style.open_cells(len(shown), columns, width=2.9, height=1.55, ratios=(0.44, 0.5))
    for (left, right), image, prediction, truth in zip(cells, shown, predictions, truths, strict=True):
        correct = None if truth is None else prediction.label == truth
        _style.show_image(left, thumbnail(image, len(classifier.preprocess.mean)), correct=correct)
        left.set_title(_style.title_of(prediction.label, truth), loc="left", fontsize=SMALL, color=INK, **PLAIN)
        _draw_probabilities(right, prediction, truth)
    return figure


def _draw_probabilities(panel: Axes, prediction: Prediction, truth: str | None) -> None:
    for row, (label, probability) in enumerate(prediction.top):
        is_wrong = row == 0 and truth is not None
        colour = BLUE if label == truth else VERMILION if is_wrong else GREY
        panel.barh(row, 1, height=0.28, color="#EEEEEE")
        panel.barh(row, probability, height=0.28, color=colour)
        for x, text, side in ((0, _style.shorten(label, 20), "left"), (1, percent(probability, 0), "right")):
            panel.text(x, row - 0.24, text, ha=side, va="bottom", fontsize=6, color=INK, **PLAIN)
    panel.set(xlim=(0, 1), ylim=(len(prediction.top) - 0.7, -0.75))


def plot_top_losses(evaluation: Evaluation, data: ImageDataset, *, num_images: int = 12, columns: int = 4) -> Figure:
    """Draw the images with the highest losses, highest first, with predicted and true class.

    An evaluation keeps at most 25 of them. Correct predictions with a low confidence may be among them: they have a
    check mark and a solid blue frame, as in `plot_predictions`.

    Args:
        evaluation: Result of ``evaluate(data)``.
        data: The same data set.
        num_images: Number of images, at most.
        columns: Number of images side by side.

    Returns:
        A figure of two panels per image.

    Raises:
        DataError: If the evaluation is of other images, or keeps no top losses.
        SettingError: If a number is below 1.

    Example:
        >>> from cifarnet import CifarCNN, Classifier, Preprocess, make_synthetic
        >>> data = make_synthetic(num_train=10, num_test=10)
        >>> classifier = Classifier(CifarCNN(), Preprocess(), data.test.classes)
        >>> figure = plot_top_losses(classifier.evaluate(data.test), data.test, num_images=4)
        >>> figure.savefig("top_losses.png")  # doctest: +SKIP
    """
    check_count("num_images", num_images, "12 is the default")
    top_losses = evaluation.top_losses[:num_images]
    if not top_losses:
        raise DataError("The evaluation keeps no top losses. Evaluate the images once more.")
    ids = [(one.id, one.label) for one in top_losses]
    if evaluation.num_images != len(data) or ids != [
        (int(data.ids[one.index]), int(data.labels[one.index])) for one in top_losses
    ]:
        raise DataError("The data is not what was evaluated. Pass the same data set, in the same order.")
    names = evaluation.classes or data.classes
    figure, cells = _style.open_cells(len(top_losses), columns, width=2.3, height=1.4, ratios=(0.56, 0.38))
    for (left, right), one in zip(cells, top_losses, strict=True):
        title = _style.title_of(names[one.predicted], names[one.label])
        _style.show_image(left, _shrink(data.images[one.index]), correct=one.predicted == one.label)
        left.set_title(title, loc="left", fontsize=SMALL, color=INK, **PLAIN)
        lines = f"loss {one.loss:.2f}\nconfidence\n{percent(one.probability)}\nimage {one.id}"
        right.text(0, 1, lines, fontsize=7, va="top", linespacing=1.4, color=INK)
    return figure


def plot_augmentations(
    transforms: Transforms | v2.Transform,
    data: ImageDataset,
    *,
    num_images: int = 4,
    num_epochs: int = 8,
    seed: int = 0,
    ax: Axes | None = None,
) -> Figure:
    """Draw original images, and their augmentation in the epochs of a run with this seed.

    Draws are a function of seed, epoch and image id: these are the very images of a `Trainer` with the same seed,
    before they are resized and normalised. Transforms from elsewhere draw from torch's generator and are only examples.

    Args:
        transforms: Result of `build_transforms`, or a transform from uint8 to uint8.
        data: Data set whose first images are drawn.
        num_images: Number of images, a row each.
        num_epochs: Number of epochs, a column each.
        seed: Seed of the run.
        ax: Axes to draw on; ``None`` makes a new figure.

    Returns:
        The figure.

    Raises:
        SettingError: If a number is below 1.
        DataError: If the transforms do not return one uint8 image per image.

    Example:
        >>> from cifarnet import build_transforms, make_synthetic
        >>> data = make_synthetic(num_train=10, num_test=10)
        >>> figure = plot_augmentations(build_transforms(crop_padding=4), data.train)
        >>> figure.savefig("augmentations.png")  # doctest: +SKIP
    """
    check_count("num_images", num_images, "4 is the default")
    check_count("num_epochs", num_epochs, "8 is the default")
    augment = transforms.augment if isinstance(transforms, Transforms) else transforms
    images, ids = data.images[:num_images], data.ids[:num_images]
    cpu = torch.device("cpu")
    columns: list[Any] = [images]
    with randomness.isolated(cpu):
        for epoch in range(num_epochs):
            randomness.seed_torch(randomness.step_seed(seed, epoch, 0), cpu)
            with randomness.scope(seed, epoch, ids):
                columns.append(augment(images))
    if not all(isinstance(x, Tensor) and x.dtype == torch.uint8 and x.shape == images.shape for x in columns):
        raise DataError("transforms must return a uint8 image of the same size per image. Pass transforms.augment.")
    tiles = torch.stack(columns, dim=1).flatten(0, 1).permute(0, 2, 3, 1).numpy() / np.float32(255)
    ax = _style.open_axes(ax, width=0.9 * len(columns), height=0.9 * len(images) + 0.3)
    middles = _style.draw_tiles(ax, tiles.repeat(3, axis=-1) if tiles.shape[-1] == 1 else tiles[..., :3], len(columns))
    ax.set_xticks(middles, ["original", *(f"epoch {epoch + 1}" for epoch in range(num_epochs))])
    ax.tick_params(axis="x", top=False, bottom=False, labeltop=True, labelbottom=False)
    ax.tick_params(labelsize=SMALL, colors=_style.ink_on(ax))
    return _style.figure_of(ax)


def thumbnail(image: ImageLike, channels: int) -> Tensor:
    """Return the part of an image that a network sees, uint8 ``(channels, S, S)``, ``S`` at most 256."""
    return _shrink(to_pixels(image, channels=channels))


def _shrink(pixels: Tensor) -> Tensor:
    square = crop_square(pixels)
    return resize_images(square, _MAX_SIDE) if square.shape[-1] > _MAX_SIDE else square
