"""A picture on its way through a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cifarnet._validation import check_count
from cifarnet.classifier import Classifier
from cifarnet.errors import InputError
from cifarnet.images import ImageLike
from cifarnet.inspection import feature_maps
from cifarnet.visualize.canvas import (
    PLAIN,
    divide,
    figure_of,
    ink_on,
    open_axes,
    percent,
    scale_of,
    shorten,
    show_image,
)
from cifarnet.visualize.cells import thumbnail

__all__ = ["plot_feature_maps"]

_MAX_LAYERS = 8  # of those that are chosen for the caller
_PICTURE = 1.7  # inches; a map is half as wide


def plot_feature_maps(
    classifier: Classifier,
    image: ImageLike,
    *,
    layers: Sequence[str] | None = None,
    num_maps: int = 8,
    ax: Axes | None = None,
) -> Figure:
    """Draw an image, and what layers of a network make of it: a row a layer, in running order.

    Of each layer those maps are drawn that vary most over the image, the most varied first, with the number of their
    channel below. Each is scaled from its own lowest value, dark, to its highest, bright. One that is the same
    everywhere is dark.

    Args:
        classifier: Whose network.
        image: One image, as `Classifier.predict` takes it.
        layers: Dotted paths of modules, see `cifarnet.inspection.feature_maps`; ``None`` is the last layer of each
            shape that the maps have on their way, at most 8 of them.
        num_maps: How many of a layer at most.
        ax: Axes whose place is drawn in; a new figure without.

    Returns:
        The figure.

    Raises:
        InputError: If it is no image, or the network has no layer that gives maps.
        SettingError: If a layer is unknown or gives no maps, or ``num_maps`` is below 1.
        NonFiniteLogitsError: If the network gives NaN or infinity.

    Example:
        >>> from cifarnet import CifarCNN, Preprocess
        >>> classifier = Classifier(CifarCNN(), Preprocess(), ())
        >>> figure = plot_feature_maps(classifier, torch.rand(3, 32, 32))
        >>> figure.savefig("feature_maps.png")  # doctest: +SKIP
    """
    check_count("num_maps", num_maps, "8 is the default")
    if isinstance(image, Sequence) and not isinstance(image, str | bytes):
        raise InputError(f"expected one image, got a {type(image).__name__}; give one of them")
    maps = {name: outputs[0] for name, outputs in feature_maps(classifier, image, layers=layers).items()}
    if not maps:
        raise InputError("the network has no module that gives maps of an image; there is nothing to draw")
    if layers is None:
        maps = _thinned(maps)
    columns = min(num_maps, max(map(len, maps.values())))
    cell = _PICTURE / 2
    width = _PICTURE + 0.2 + cell * 1.08 * columns
    ax = open_axes(ax, width=width, height=max(_PICTURE + 0.5, 1.32 * cell * len(maps) + 0.1))
    ax.set_axis_off()
    scale, ink = scale_of(ax, width), ink_on(ax)
    left = ax.inset_axes((0, 0, _PICTURE / width, 1))
    left.set_anchor("N")
    show_image(left, thumbnail(image, len(classifier.preprocess.mean)))
    left.set_title(_caption(classifier, image), fontsize=8 * scale, color=ink, **PLAIN)
    right = ax.inset_axes(((_PICTURE + 0.2) / width, 0, 1 - (_PICTURE + 0.2) / width, 1))
    panels = divide(right, len(maps), columns, gap_x=0.08, gap_y=0.42)
    for row, (name, outputs) in zip(panels, maps.items(), strict=True):
        _draw_row(row, name, outputs, 8 * scale, ink)
    return figure_of(ax)


def _thinned(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """The last of them, and others at even distances before it."""
    names = list(maps)
    if len(names) <= _MAX_LAYERS:
        return maps
    chosen = [names[round(i * (len(names) - 1) / (_MAX_LAYERS - 1))] for i in range(_MAX_LAYERS)]
    return {name: maps[name] for name in chosen}


def _caption(classifier: Classifier, image: ImageLike) -> str:
    prediction = classifier.predict(image, top_k=1)
    return f"{shorten(prediction.label, 18)} {percent(prediction.probability, 0)}"


def _draw_row(row: list[Axes], name: str, maps: Tensor, size: float, ink: str) -> None:
    """``maps`` ``(C, H, W)``; panels beyond their number stay empty."""
    channels, height, width = maps.shape
    order = torch.argsort(maps.float().flatten(1).std(dim=1), descending=True, stable=True)[: len(row)].tolist()
    text = f"{shorten(name, 40)}: {channels:,} maps of {height} x {width}"
    row[0].set_title(text, loc="left", fontsize=size, color=ink, pad=3, **PLAIN)
    for panel in row:
        panel.set_facecolor("none")
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines[:].set_visible(False)
    for panel, channel in zip(row, order, strict=False):
        panel.imshow(maps[channel].float().numpy(), cmap="viridis", interpolation="nearest")
        panel.set_xlabel(f"{channel}", fontsize=0.75 * size, color=ink, labelpad=1.5)
