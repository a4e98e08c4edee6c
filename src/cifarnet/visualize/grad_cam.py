"""Where a network looks."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cifarnet._validation import check_count
from cifarnet.classifier import Classifier
from cifarnet.images import ImageLike
from cifarnet.inspection import grad_cam
from cifarnet.visualize.canvas import figure_of, percent, shorten, show_image
from cifarnet.visualize.cells import open_cells, write_title

__all__ = ["plot_grad_cam"]


def plot_grad_cam(
    classifier: Classifier,
    image_or_images: ImageLike | Sequence[ImageLike],
    *,
    layer: str | None = None,
    target: int | str | None = None,
    columns: int = 2,
    ax: Axes | None = None,
) -> Figure:
    """Draw images beside where the evidence for a class is in them.

    Grad-CAM of Selvaraju et al. (2017, arXiv:1610.02391). The brighter and more opaque the colour on the grey image,
    the more a place speaks for the class. Each map is scaled by its own largest value: compare places within an image,
    not images with each other. Both pictures are what the network gets, in its resolution.
    `cifarnet.inspection.grad_cam` gives the maps themselves.

    Args:
        classifier: Whose network.
        image_or_images: What `Classifier.predict` takes: one image, or a list of them.
        layer: Dotted path of a module that gives maps; ``None`` is the last one.
        target: Index or name of the class; ``None`` is, for each image, the class it is taken for.
        columns: How many images side by side.
        ax: Axes whose place is drawn in; a new figure without.

    Returns:
        The figure.

    Raises:
        InputError: If something is no image, there is none, or the network has no layer that gives maps.
        SettingError: If there is no such layer or class, or ``columns`` is below 1.
        NonFiniteLogitsError: If the network gives NaN or infinity.

    Example:
        >>> from cifarnet import CifarCNN, Preprocess
        >>> classifier = Classifier(CifarCNN(num_classes=2), Preprocess(), ("cat", "dog"))
        >>> figure = plot_grad_cam(classifier, torch.rand(3, 32, 32), target="dog")
        >>> figure.savefig("grad_cam.png")  # doctest: +SKIP
    """
    check_count("columns", columns, "2 is the default")
    maps = grad_cam(classifier, image_or_images, layer=layer, target=target)
    pixels = classifier.to_pixels(image_or_images)
    predictions = classifier.predict(list(pixels), top_k=1)
    ax, cells, scale = open_cells(ax, len(pixels), columns, width=2.9, height=1.75)
    for cell, image, evidence, prediction in zip(cells, pixels, maps, predictions, strict=True):
        left, right = cell.inset_axes((0, 0, 0.49, 1)), cell.inset_axes((0.51, 0, 0.49, 1))
        show_image(left, image)
        show_image(right, _overlay(image, evidence))
        title = f"{shorten(prediction.label, 28)} {percent(prediction.probability)}"
        if target is not None:
            asked = target if isinstance(target, str) else classifier.class_name(target)
            title = f"evidence for {shorten(asked, 28)}\n(taken for {title})"
        write_title(cell, title if evidence.any() else f"{title}: nothing speaks for it", size=8 * scale)
    return figure_of(ax)


def _overlay(image: Tensor, evidence: Tensor) -> Tensor:
    """Colours laid on the image in grey: uint8, shape ``(3, H, W)``."""
    largest = float(evidence.max())
    share = (evidence / largest if largest > 0 else evidence).double()  # (H, W) in [0, 1]
    heat = torch.from_numpy(mpl.colormaps["inferno"](share.numpy())[..., :3]).permute(2, 0, 1)
    grey = (image[:3].double() / 255).mean(dim=0, keepdim=True)
    opacity = 0.15 + 0.6 * share
    return (255 * (opacity * heat + (1 - opacity) * grey)).round().to(torch.uint8)
