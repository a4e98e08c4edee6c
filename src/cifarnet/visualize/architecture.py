"""Diagram of a network: its layers from top to bottom and their share of the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import nn

from cifarnet.models import summarize_model
from cifarnet.models._modules import unwrapped
from cifarnet.models.fast_cnn import ConvGroup
from cifarnet.models.resnet18 import ResidualBlock
from cifarnet.models.summary import Layer
from cifarnet.visualize import _style as style

__all__ = ["plot_architecture"]

#: Colours by a part of the class name.
_COLOURS = {"Conv": style.BLUE, "Linear": style.VERMILION, "Norm": style.GREEN, "Pool": style.ORANGE}
_DIM = "#5A5A5A"  # small text, with a contrast of 6.9:1 on white
_MAX_ROWS = 24

# All lengths are points at natural size. The left edge of the boxes is at 0.
_BOX, _GAP, _PITCH, _HEAD = 20.0, 12.0, 32.0, 18.0
_NAME_END, _LANE = -20.0, -10.0
_BAR, _SHARE = 84.0, 44.0
_LETTER = 0.62  # width of an average letter, as a share of its font size


def plot_architecture(
    model: nn.Module, image_shape: tuple[int, int, int] | None = None, *, ax: Axes | None = None
) -> Figure:
    """Draw a box for each layer of a network, with its output and its share of the parameters.

    An arrow on the left shows a shortcut of the library's networks. Residual blocks, and the modules of a network with
    more than 24 layers, are folded into one box each.

    Args:
        model: Any network that takes images ``(N, C, H, W)``.
        image_shape: Shape ``(C, H, W)``. ``None`` uses the shape that a network of the library was built for, and
            ``(3, 32, 32)`` for any other network.
        ax: Axes to draw in. ``None`` makes a new figure.

    Returns:
        The figure.

    Raises:
        DataError: If the network cannot take such an image.
        SettingError: If ``model`` is not a module.

    Example:
        >>> from cifarnet import CifarCNN
        >>> plot_architecture(CifarCNN()).axes[0].get_title()
        'CifarCNN: 6,447,754 parameters'
    """
    summary = summarize_model(model, image_shape)
    model = unwrapped(model)
    rows = [Layer("", "input", summary.image_shape, 0, 0), *_fold(model, summary.layers)]
    start = _NAME_END - 8 - _width(["module", *(row.name for row in rows)], 7.5)
    box_end = 30 + _width([row.kind for row in rows], 9)
    count_end = (
        box_end + 24 + _width([row.output for row in rows], 8) + max(50, _width([f"{summary.num_parameters:,}"], 9))
    )
    end, height = count_end + 11 + _BAR + _SHARE, _HEAD + len(rows) * _PITCH
    panel = style.open_axes(ax, width=(end - start) / 72, height=(height + 24) / 72)
    title = f"{summary.name}: {summary.num_parameters:,} parameters"
    if summary.num_trainable < summary.num_parameters:
        title += f", {summary.num_trainable:,} trainable"
    panel.set_title(title, color=style.INK, fontsize=11, **style.PLAIN)
    panel.set_axis_off()
    panel.set(xlim=(start, end), ylim=(height, 0))
    panel.set_aspect("equal", anchor="N")
    _draw_rows(panel, rows, box_end, count_end)
    for first, last in _find_shortcuts(model, [row.name for row in rows]):
        above, below = _top(first) - 0.6 * _GAP, _top(last) + _BOX + 0.2 * _GAP
        middle = box_end / 2
        _draw_arrow(panel, [(middle, above), (_LANE, above), (_LANE, below), (middle, below)])
    if ax is not None:
        _shrink(panel, end - start, height)
    return style.figure_of(panel)


def _fold(model: nn.Module, layers: Sequence[Layer]) -> list[Layer]:
    """Fold residual blocks, and the deepest modules until the rows fit."""
    blocks = [name for name, module in model.named_modules() if name and isinstance(module, ResidualBlock)]
    owners = [next((block for block in blocks if row.name.startswith(f"{block}.")), row.name) for row in layers]
    depth = max((owner.count(".") + 1 for owner in owners), default=1)
    while True:
        names = [".".join(owner.split(".")[:depth]) for owner in owners]
        groups = groupby(zip(names, layers, strict=True), key=itemgetter(0))
        rows = [_merge(model, name, [row for _, row in group]) for name, group in groups]
        if len(rows) <= _MAX_ROWS or depth == 1:
            return rows
        depth -= 1


def _merge(model: nn.Module, name: str, rows: Sequence[Layer]) -> Layer:
    if len(rows) == 1:
        return rows[0]
    kind = f"{type(model.get_submodule(name)).__name__}, {len(rows)} layers"
    return replace(rows[-1], name=name, kind=kind, num_parameters=sum(row.num_parameters for row in rows))


def _find_shortcuts(model: nn.Module, names: list[str]) -> list[tuple[int, int]]:
    """Find the first and the last row beside each shortcut of the library's networks."""
    spans = []
    for path, module in model.named_modules():
        if isinstance(module, ResidualBlock):
            spans.append((path, path))
        elif isinstance(module, ConvGroup) and module.num_convs == 3:
            spans.append((f"{path}.conv2", f"{path}.norm3"))
    return [(names.index(first), names.index(last)) for first, last in spans if first in names[1:]]


def _draw_rows(panel: Axes, rows: Sequence[Layer], box_end: float, count_end: float) -> None:
    _write(panel, _NAME_END, 6, "module", ha="right")
    _write(panel, box_end / 2, 6, "layer", ha="center")
    _write(panel, box_end + 12, 6, "output")
    _write(panel, count_end, 6, "parameters", ha="right")
    _write(panel, count_end + 11, 6, "share")
    largest = max(1, *(row.num_parameters for row in rows))
    total = sum(row.num_parameters for row in rows)
    for index, row in enumerate(rows):
        top, middle = _top(index), _top(index) + _BOX / 2
        other = style.SKY if row.kind.endswith(" layers") else style.GREY
        colour = next((colour for part, colour in _COLOURS.items() if part in row.kind.partition(",")[0]), other)
        shape = "round,pad=0,rounding_size=4"
        panel.add_patch(FancyBboxPatch((0, top), box_end, _BOX, boxstyle=shape, fc=f"{colour}29", ec=colour))
        _write(panel, _NAME_END, middle, row.name, ha="right")
        _write(panel, 10, middle, row.kind, size=9, color=style.INK)
        _write(panel, box_end + 12, middle, row.output.replace("x", "\N{MULTIPLICATION SIGN}"), size=8, color=style.INK)
        if index:
            _draw_arrow(panel, [(box_end / 2, top - _GAP), (box_end / 2, top)])
        if row.num_parameters:
            share, length = row.num_parameters / total, _BAR * row.num_parameters / largest
            _write(panel, count_end, middle, f"{row.num_parameters:,}", size=9, color=style.INK, ha="right")
            bar = Rectangle((count_end + 11, middle - 4), length, 8, facecolor=colour, linewidth=0, snap=False)
            bar.set_gid(f"share of row {index}")
            panel.add_patch(bar)
            text = f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"
            _write(panel, count_end + 14 + length, middle, text)


def _draw_arrow(panel: Axes, path: Sequence[tuple[float, float]]) -> None:
    """Draw straight lines, the last of them with a head."""
    for start, stop in pairwise(path):
        head = "-|>" if stop == path[-1] else "-"
        line = FancyArrowPatch(start, stop, arrowstyle=head, mutation_scale=7, color=style.GREY, shrinkA=0, shrinkB=0)
        panel.add_patch(line)


def _write(panel: Axes, x: float, y: float, text: str, *, size: float = 7.5, color: str = _DIM, **options: Any) -> None:
    panel.text(x, y, text, fontsize=size, color=color, va="center_baseline", **style.PLAIN, **options)


def _shrink(panel: Axes, width: float, height: float) -> None:
    """Scale letters and lines to axes of another size than the natural one."""
    window = panel.get_window_extent()
    scale = 72 / style.figure_of(panel).dpi * min(window.width / width, window.height / height)
    for text in (panel.title, *panel.texts):
        text.set_fontsize(float(text.get_fontsize()) * scale)
    for patch in panel.patches:
        patch.set_linewidth(patch.get_linewidth() * scale)
        if isinstance(patch, FancyArrowPatch):
            patch.set_mutation_scale(7 * scale)


def _top(index: int) -> float:
    return _HEAD + index * _PITCH


def _width(texts: Sequence[str], size: float) -> float:
    return _LETTER * size * max(map(len, texts))
