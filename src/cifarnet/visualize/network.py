"""Filters of a network, its feature maps of an image, and Grad-CAM."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from cifarnet._validation import check_count, did_you_mean
from cifarnet.classifier import Classifier
from cifarnet.data import ImageLike
from cifarnet.errors import DataError, SettingError
from cifarnet.inspection import feature_maps, grad_cam
from cifarnet.models._modules import unwrapped
from cifarnet.visualize import _style
from cifarnet.visualize._style import INK, PLAIN, SMALL, percent, shorten
from cifarnet.visualize.pictures import thumbnail

__all__ = ["plot_feature_maps", "plot_filters", "plot_grad_cam"]

_MAX_FILTERS = 64
_MAX_ROWS = 12  # filters of many input channels: a row each
_MAX_LAYERS = 8
_PICTURE = 1.7  # inches; a feature map is half as wide


def plot_filters(model: nn.Module, *, layer: str | None = None, ax: Axes | None = None) -> Figure:
    """Draw the filters of a convolution as small images.

    Filters of 3 input channels are drawn in colour and those of 1 channel in grey, at most 64 of them. Of other
    convolutions the first 12 filters are drawn, a row each, and the first 12 channels of each, in grey.

    Each filter is scaled by its largest absolute weight and middle grey is 0: the figure shows patterns, not strengths.
    Colours are the normalised channels that the network gets.

    Args:
        model: Any network; ``classifier.model`` for a `Classifier`.
        layer: Dotted path of an `torch.nn.Conv2d`; ``None`` for the first one.
        ax: Axes to draw on; ``None`` makes a new figure.

    Returns:
        The figure.

    Raises:
        DataError: If ``model`` has no such convolution.
        SettingError: If ``layer`` is not one of them.

    Example:
        >>> from cifarnet import CifarCNN
        >>> plot_filters(CifarCNN()).axes[0].get_title()
        'conv1: 32 filters of 3 x 3'
    """
    model = unwrapped(model)
    convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    if not convs:
        raise DataError(f"{type(model).__name__} has no nn.Conv2d whose filters could be drawn.")
    name = next(iter(convs)) if layer is None else layer
    if name not in convs:
        raise SettingError(f'Layer "{name}" is not a convolution of the network; {did_you_mean(name, convs)}')
    weights = convs[name].weight.detach().to("cpu", torch.float32)  # (filters, channels, h, w)
    count, channels = weights.shape[:2]
    title = f"{shorten(name or 'Conv2d', 40)}: {count:,} filters of {' x '.join(map(str, weights.shape[2:]))}"
    weights = weights[: _MAX_FILTERS if channels in (1, 3) else _MAX_ROWS]
    largest = weights.abs().amax(dim=(1, 2, 3), keepdim=True)
    tiles = 0.5 + 0.5 * weights / torch.where(largest > 0, largest, 1)
    if channels in (1, 3):
        columns = min(len(tiles), _num_columns(len(tiles)))
        title += f", the first {len(tiles)}" if len(tiles) < count else ""
    else:
        tiles = tiles[:, :_MAX_ROWS]
        columns = tiles.shape[1]
        title += f" on {channels:,} channels"
        if tiles.shape[:2] != (count, channels):
            title += f"\nthe first {len(tiles)} filters, a row each, and {columns} channels"
    if channels != 3:
        tiles = tiles.flatten(0, 1)[:, None].expand(-1, 3, -1, -1)
    rows = -(-len(tiles) // columns)
    ax = _style.open_axes(ax, width=max(3.5, 0.58 * columns), height=0.58 * rows + 0.5)
    _style.draw_tiles(ax, tiles.permute(0, 2, 3, 1).numpy(), columns)
    ax.set_title(title, fontsize=SMALL + 1, color=_style.ink_on(ax), **PLAIN)
    return _style.figure_of(ax)


def _num_columns(count: int) -> int:
    """Return a number of columns for a picture wider than high, a divisor of ``count`` if there is one."""
    wide = math.ceil(math.sqrt(1.6 * count))
    return next((columns for columns in range(wide, 2 * wide) if count % columns == 0), wide)


def plot_feature_maps(
    classifier: Classifier, image: ImageLike, *, layers: Sequence[str] | None = None, num_maps: int = 8
) -> Figure:
    """Draw an image and its feature maps: a row per layer, in running order.

    The maps with the highest standard deviation over the image are drawn, highest first, with the index of their
    channel below. Each is scaled from its own lowest value, dark, to its highest, bright. Constant maps are dark.

    Args:
        classifier: Classifier with the network.
        image: One image, as `Classifier.predict` takes it.
        layers: Dotted paths of modules, see `cifarnet.inspection.feature_maps`. ``None`` takes the last layer of each
            shape of maps, the last 8 of them.
        num_maps: Number of maps per layer, at most.

    Returns:
        A figure of a panel for the image and a panel per layer.

    Raises:
        DataError: If ``image`` is not one image, or the network has no layer with feature maps.
        SettingError: If a layer is unknown or has no maps, or ``num_maps`` is below 1.
        NonFiniteError: If the logits are not finite.

    Example:
        >>> from cifarnet import CifarCNN, Preprocess
        >>> classifier = Classifier(CifarCNN(), Preprocess(), ())
        >>> figure = plot_feature_maps(classifier, torch.rand(3, 32, 32))
        >>> figure.savefig("feature_maps.png")  # doctest: +SKIP
    """
    check_count("num_maps", num_maps, "8 is the default")
    prediction = classifier.predict([image], top_k=1)[0]
    maps = {name: outputs[0].float() for name, outputs in feature_maps(classifier, [image], layers=layers).items()}
    if not maps:
        raise DataError("The network has no module with feature maps. There is nothing to draw.")
    if layers is None:
        maps = dict([*maps.items()][-_MAX_LAYERS:])
    columns = min(num_maps, max(map(len, maps.values())))
    right = 0.92 * columns
    figure = _style.new_figure(_PICTURE + right + 0.3, max(_PICTURE + 0.4, 1.2 * len(maps)))
    grid = figure.add_gridspec(len(maps), 2, width_ratios=(_PICTURE, right))
    left = figure.add_subplot(grid[:, 0])
    left.set_axis_off()
    _style.show_image(left, thumbnail(image, len(classifier.preprocess.mean)))
    caption = f"{shorten(prediction.label, 18)} {percent(prediction.probability, 0)}"
    left.set_title(caption, loc="left", fontsize=SMALL, color=INK, **PLAIN)
    for row, (name, outputs) in enumerate(maps.items()):
        _draw_maps(figure.add_subplot(grid[row, 1]), name, outputs, columns)
    return figure


def _draw_maps(panel: Axes, name: str, maps: Tensor, columns: int) -> None:
    """Draw one row of maps ``(C, H, W)``."""
    channels, height, width = maps.shape
    order = torch.argsort(maps.flatten(1).std(dim=1), descending=True, stable=True)[:columns]
    values = maps[order] - maps[order].amin(dim=(1, 2), keepdim=True)
    largest = values.amax(dim=(1, 2), keepdim=True)
    shades = (values / torch.where(largest > 0, largest, 1)).numpy()
    middles = _style.draw_tiles(panel, mpl.colormaps["viridis"](shades)[..., :3], columns)
    panel.set_anchor("NW")
    panel.set_xticks(middles[: len(order)], [f"{channel}" for channel in order.tolist()])
    panel.tick_params(axis="x", length=0, pad=1.5, labelsize=0.75 * SMALL, colors=INK)
    text = f"{shorten(name, 40)}: {channels:,} maps of {height} x {width}"
    panel.set_title(text, loc="left", fontsize=SMALL, color=INK, pad=3, **PLAIN)


def plot_grad_cam(
    classifier: Classifier,
    image_or_images: ImageLike | Sequence[ImageLike],
    *,
    layer: str | None = None,
    target: int | str | None = None,
    columns: int = 2,
) -> Figure:
    """Draw images beside the evidence for a class in them.

    Grad-CAM of Selvaraju et al. (2017, arXiv:1610.02391). The brighter and more opaque the colour on the grey image,
    the more positive evidence is there for the class. Each map is scaled by its own largest value: compare positions
    within an image, not images. Both pictures have the network's resolution. `cifarnet.inspection.grad_cam` returns
    the maps.

    Args:
        classifier: Classifier with the network.
        image_or_images: Argument of `Classifier.predict`: one image, or a list of them.
        layer: Dotted path of a module with feature maps; ``None`` for the last one.
        target: Index or name of the class; ``None`` for the predicted class of each image.
        columns: Number of images side by side.

    Returns:
        A figure of two panels per image.

    Raises:
        DataError: If an image cannot be read, there is none, or the network has no layer with feature maps.
        SettingError: If there is no such layer or class, or ``columns`` is below 1.
        NonFiniteError: If the logits are not finite.

    Example:
        >>> from cifarnet import CifarCNN, Preprocess
        >>> classifier = Classifier(CifarCNN(num_classes=2), Preprocess(), ("cat", "dog"))
        >>> figure = plot_grad_cam(classifier, torch.rand(3, 32, 32), target="dog")
        >>> figure.savefig("grad_cam.png")  # doctest: +SKIP
    """
    maps = grad_cam(classifier, image_or_images, layer=layer, target=target)
    pixels = classifier.to_pixels(image_or_images)
    predictions = classifier.predict(list(pixels), top_k=1)
    figure, cells = _style.open_cells(len(pixels), columns, width=2.9, height=1.75, ratios=(0.48, 0.48))
    for (left, right), image, evidence, prediction in zip(cells, pixels, maps, predictions, strict=True):
        title = f"{shorten(prediction.label, 28)} {percent(prediction.probability)}"
        if target is not None:
            asked = target if isinstance(target, str) else classifier.class_name(target)
            title = f"evidence for {shorten(asked, 28)}\n(predicted: {title})"
        title += "" if evidence.any() else ": no positive evidence"
        _style.show_image(left, image)
        left.set_title(title, loc="left", fontsize=SMALL, color=INK, **PLAIN)
        _style.show_image(right, _overlay(image, evidence))
    return figure


def _overlay(image: Tensor, evidence: Tensor) -> Tensor:
    """Lay colours on the grey image: uint8, shape ``(3, H, W)``."""
    largest = float(evidence.max())
    share = (evidence / largest if largest > 0 else evidence).double()  # (H, W) in [0, 1]
    heat = torch.from_numpy(mpl.colormaps["inferno"](share.numpy())[..., :3]).permute(2, 0, 1)
    grey = (image[:3].double() / 255).mean(dim=0, keepdim=True)
    opacity = 0.15 + 0.6 * share
    return (255 * (opacity * heat + (1 - opacity) * grey)).round().to(torch.uint8)
