"""What the filters of a convolution look for."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from cifarnet._validation import did_you_mean
from cifarnet.errors import InputError, SettingError
from cifarnet.models import unwrapped
from cifarnet.visualize.canvas import PLAIN, figure_of, ink_on, open_axes, scale_of, shorten

__all__ = ["plot_filters"]

_MAX_FILTERS = 64
_MAX_ROWS = 12  # where a filter has many input channels, a row each
_CELL = 0.5  # inches
_ZOOM = 8  # pixels a weight


def plot_filters(model: nn.Module, *, layer: str | None = None, ax: Axes | None = None) -> Figure:
    """Draw the filters of a convolution as small images.

    Filters of 3 input channels are drawn in colour, of 1 channel in grey, at most 64 of them. Of other numbers of
    channels the first 12 filters are drawn, a row each, and of each the first 12 channels, in grey.

    Each filter is scaled by the largest of its own absolute weights: middle grey is 0, so that the pattern shows and
    its strength does not. Colours are those of the channels as the network gets them, which are normalised.

    Args:
        model: Any network, of a `Classifier` its ``model``.
        layer: Dotted path of an `torch.nn.Conv2d`; ``None`` is the first one.
        ax: Axes whose place is drawn in; a new figure without.

    Returns:
        The figure.

    Raises:
        InputError: If ``model`` is no network, or has no such convolution.
        SettingError: If ``layer`` is none of them.

    Example:
        >>> from cifarnet import CifarCNN
        >>> plot_filters(CifarCNN()).axes[0].get_title()
        'conv1: 32 filters of 3 x 3'
    """
    name, conv = _find(model, layer)
    weights = conv.weight.detach().to("cpu", torch.float32)  # (filters, channels, h, w)
    if not bool(weights.isfinite().all()):
        raise InputError(f"{name} has NaN or infinity among its weights; train the network anew")
    count, channels = weights.shape[:2]
    images = _as_images(weights)
    columns = min(channels, _MAX_ROWS) if channels not in (1, 3) else min(len(images), _columns(len(images)))
    rows = -(-len(images) // columns)
    ax = open_axes(ax, width=max(3.5, _CELL * columns * 1.15), height=_CELL * rows * 1.15 + 0.5)
    title = (
        f"{shorten(name or type(conv).__name__, 40)}: {count:,} filters of {' x '.join(map(str, weights.shape[2:]))}"
    )
    if channels not in (1, 3):
        title += f" on {channels:,} channels"
        if len(images) < count * channels:
            title += f"\nthe first {rows} filters, a row each, and {columns} channels"
    elif len(images) < count:
        title += f", the first {len(images)}"
    ax.set_title(title, fontsize=9 * scale_of(ax, 3.5), color=ink_on(ax), **PLAIN)
    ax.set_axis_off()
    ax.imshow(_mosaic(images, columns), interpolation="nearest")
    return figure_of(ax)


def _find(model: nn.Module, layer: str | None) -> tuple[str, nn.Conv2d]:
    if not isinstance(model, nn.Module):
        raise InputError(f"expected a network, got {type(model).__name__}; of a Classifier give classifier.model")
    modules = unwrapped(model).named_modules()
    convs = {
        name: module
        for name, module in modules
        if isinstance(module, nn.Conv2d) and not isinstance(module.weight, nn.UninitializedParameter)
    }
    if not convs:
        raise InputError(f"{type(unwrapped(model)).__name__} has no nn.Conv2d whose filters could be drawn")
    if layer is None:
        layer = next(iter(convs))
    if layer not in convs:
        raise SettingError(f'layer "{layer}" is no convolution of the network; {did_you_mean(layer, convs)}')
    return layer, convs[layer]


def _as_images(weights: Tensor) -> Tensor:
    """Values in ``[0, 1]``, shape ``(images, h, w, 3)``."""
    channels = weights.shape[1]
    weights = weights[: _MAX_FILTERS if channels in (1, 3) else _MAX_ROWS]
    largest = weights.abs().amax(dim=(1, 2, 3), keepdim=True)
    scaled = 0.5 + 0.5 * weights / torch.where(largest > 0, largest, 1)
    if channels == 3:
        return scaled.permute(0, 2, 3, 1)
    return scaled[:, :_MAX_ROWS].flatten(0, 1)[..., None].expand(-1, -1, -1, 3)


def _columns(count: int) -> int:
    """Wider than high, and a divisor where there is one."""
    wide = math.ceil(math.sqrt(1.6 * count))
    return next((c for c in range(wide, 2 * wide) if count % c == 0), wide)


def _mosaic(images: Tensor, columns: int) -> np.ndarray:
    """One picture of them all, nothing between them: shape ``(H, W, 4)``. Axes for each would take seconds."""
    height, width = images.shape[1] * _ZOOM, images.shape[2] * _ZOOM
    gap = max(1, round(0.12 * width))
    rows = -(-len(images) // columns)
    mosaic = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4))
    for i, image in enumerate(images.numpy()):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        tile = mosaic[top : top + height, left : left + width]
        tile[..., :3] = image.repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1)
        tile[..., 3] = 1
    return mosaic
