"""The layers of a network from top to bottom, and where its parameters are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle
from matplotlib.text import Text
from matplotlib.textpath import TextPath
from matplotlib.transforms import Bbox
from torch import nn

from cifarnet.models.summary import summarize_model
from cifarnet.models.tracing import Layer
from cifarnet.models.wording import Family
from cifarnet.visualize._style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PLAIN,
    SKY,
    VERMILION,
    figure_of,
    open_axes,
)

__all__ = ["plot_architecture"]

_COLOURS: dict[Family, str] = {
    "convolution": BLUE,
    "linear": VERMILION,
    "norm": GREEN,
    "pooling": ORANGE,
    "block": SKY,
    "other": GREY,
}
_DIM = "#5A5A5A"  # small text: 6.9:1 on white, where GREY has 3.5:1

# All lengths are points at natural size; the axes scale them, letters included.
_TALL, _SLIM, _GAP = 20.0, 14.0, 9.0
_STACK = 2.5  # by which the box behind a folded block stands out
_HEAD, _TITLE, _EDGE = 18.0, 20.0, 8.0
_PADS = 6.0  # what constrained layout leaves free on both sides together
_BAR, _SHARE = 84.0, 34.0
_LANE = 6.0  # between arrows beside the boxes
_SPACE = 11.0  # between columns
_LARGE, _SMALL = 9.0, 7.5  # font sizes
_LONGEST_NAME, _LONGEST_KIND = 150.0, 180.0


def plot_architecture(
    model: nn.Module,
    image_shape: tuple[int, int, int] | None = None,
    *,
    max_rows: int = 24,
    ax: Axes | None = None,
) -> Figure:
    """Draw what a network does to an image: a box for each layer, its output and its share of the parameters.

    The network runs once, on one image of zeros, and is as before afterwards. Rows stand in running order; an
    arrow leads from what gives to what takes, beside the boxes where rows stand between the two. Layers without
    parameters are slim.

    Args:
        model: Any network that takes images ``(N, C, H, W)``.
        image_shape: ``(C, H, W)``; ``None`` is what the library's networks were built for, else ``(3, 32, 32)``.
        max_rows: Deeper networks are folded: each block of layers becomes one row, drawn as a stack. At least 3.
        ax: Axes whose place is drawn in, letters as large as fit; a new figure without.

    Returns:
        The figure.

    Raises:
        InputError: If the network cannot take such an image.
        SettingError: If ``image_shape`` is not three sizes, ``max_rows`` is below 3, or a parameter has no shape yet.
        SettingTypeError: If ``model`` is not a module.

    Example:
        >>> from cifarnet import CifarCNN
        >>> plot_architecture(CifarCNN()).axes[0].get_title()
        'CifarCNN: 6,447,754 parameters'
    """
    summary = summarize_model(model, image_shape).folded(max_rows)
    start = Layer("", "input", summary.image_shape, 0)
    rows = [_Row.of(layer) for layer in (start, *summary.layers)]
    detours = _detours(summary.links)
    columns = _Columns.around(rows, num_lanes=1 + max((detour.lane for detour in detours), default=-1))
    height = _HEAD + sum(_GAP + row.rise + row.height for row in rows) - _GAP + _EDGE
    ax = open_axes(ax, width=(columns.end + _PADS) / 72, height=(height + _TITLE + _PADS) / 72)
    title = f"{summary.name}: {summary.num_parameters:,} parameters"
    if summary.num_trainable < summary.num_parameters:
        title += f", {summary.num_trainable:,} trainable"
    ax.set_title(
        title,
        color=INK,
        fontsize=11 * min(1, 72 * ax.get_window_extent().width / figure_of(ax).dpi / _width(title, 11)),
        **PLAIN,
    )
    ax.set_axis_off()
    panel = ax.inset_axes((0, 0, 1, 1))
    panel.set_axis_off()
    panel.set_xlim(0, columns.end)
    panel.set_ylim(height, 0)
    panel.set_aspect("equal", anchor="N")
    _draw_heads(panel, columns)
    middles = _draw_rows(panel, rows, columns)
    _draw_arrows(panel, rows, middles, summary.links, columns)
    for detour in detours:
        _draw_detour(panel, detour, middles, columns)
    return figure_of(ax)


@dataclass(frozen=True)
class _Row:
    """A layer as it is written: with the signs of print, and not too long."""

    layer: Layer
    name: str
    kind: str
    detail: str
    output: str
    count: str

    @classmethod
    def of(cls, layer: Layer) -> _Row:
        name = _cut(layer.name, _SMALL, _LONGEST_NAME, from_start=True)  # the end of a path says more
        kind = _cut(layer.kind, _LARGE, _LONGEST_KIND)
        count = f"{layer.num_parameters:,}" if layer.num_parameters else ""
        return cls(layer, name, _typeset(kind), _typeset(layer.detail), _typeset(layer.output), count)

    @property
    def height(self) -> float:
        return _TALL if self.layer.num_parameters or self.layer.family == "block" else _SLIM

    @property
    def rise(self) -> float:
        """How far what stands above the box reaches."""
        return _STACK if self.layer.family == "block" else 0.0

    @property
    def font_size(self) -> float:
        return _LARGE if self.height == _TALL else _LARGE - 1


@dataclass(frozen=True)
class _Detour:
    """An arrow past the rows between two, in a lane beside the boxes; lane 0 is the nearest."""

    source: int
    target: int
    lane: int


def _detours(links: Sequence[tuple[int, int]]) -> list[_Detour]:
    """Links past other rows, short ones nearest to the boxes, and none over another. The input is row 0."""
    detours: list[_Detour] = []
    shown = [(source + 1, target + 1) for source, target in links if target - source > 1]
    for source, target in sorted(shown, key=lambda link: (link[1] - link[0], link)):
        taken = {other.lane for other in detours if other.source < target and source < other.target}
        lane = next(lane for lane in range(len(shown)) if lane not in taken)
        detours.append(_Detour(source, target, lane))
    return detours


@dataclass(frozen=True)
class _Columns:
    """Where the columns stand."""

    name_end: float
    box: float
    box_end: float
    output: float
    count_end: float
    bar: float
    end: float

    @classmethod
    def around(cls, rows: Sequence[_Row], *, num_lanes: int) -> _Columns:
        """Make them as wide as their longest text, with room for arrows left of the boxes."""
        name_end = _EDGE + max(_width("module", _SMALL), *(_width(row.name, _SMALL) for row in rows))
        box = name_end + _SPACE + _LANE * num_lanes
        inside = max(_width(row.kind, row.font_size) + _width(row.detail, _SMALL) + _SPACE for row in rows)
        box_end = box + inside + 2 * _SPACE
        output = box_end + _SPACE + 3
        output_end = output + max(_width("output", _SMALL), *(_width(row.output, _LARGE - 1) for row in rows))
        widest_count = max(_width("parameters", _SMALL), *(_width(row.count, _LARGE) for row in rows))
        count_end = output_end + 1.5 * _SPACE + widest_count
        bar = count_end + _SPACE
        return cls(name_end, box, box_end, output, count_end, bar, bar + _BAR + _SHARE + _EDGE)

    @property
    def middle(self) -> float:
        return (self.box + self.box_end) / 2


def _draw_heads(panel: Axes, columns: _Columns) -> None:
    style: dict[str, Any] = {"size": _SMALL, "color": _DIM}
    _write(panel, columns.name_end, _HEAD / 3, "module", ha="right", **style)
    _write(panel, columns.middle, _HEAD / 3, "layer", ha="center", **style)
    _write(panel, columns.output, _HEAD / 3, "output", **style)
    _write(panel, columns.count_end, _HEAD / 3, "parameters", ha="right", **style)
    _write(panel, columns.bar, _HEAD / 3, "share", **style)


def _draw_rows(panel: Axes, rows: Sequence[_Row], columns: _Columns) -> list[float]:
    """Draw all but the arrows; gives the height at which the middle of each row is."""
    total = sum(row.layer.num_parameters for row in rows)
    largest = max(row.layer.num_parameters for row in rows)
    y, middles = _HEAD, []
    for index, row in enumerate(rows):
        colour = _COLOURS[row.layer.family]
        y += row.rise
        _draw_box(panel, row, columns, y, colour, dashed=row.layer.output_shape is None)
        middle = y + row.height / 2
        middles.append(middle)
        _write(panel, columns.name_end, middle, row.name, size=_SMALL, color=_DIM, ha="right")
        _write(panel, columns.output, middle, row.output, size=_LARGE - 1, color=INK if row.count else _DIM)
        if row.count:
            share = row.layer.num_parameters / total
            length = _BAR * row.layer.num_parameters / largest
            _write(panel, columns.count_end, middle, row.count, size=_LARGE, color=INK, ha="right")
            # snap=False: rounded to whole pixels, a small share would be nothing or a whole pixel.
            bar = Rectangle((columns.bar, middle - 4), length, 8, facecolor=colour, linewidth=0, snap=False)
            bar.set_gid(f"share of row {index}")
            panel.add_patch(bar)
            _write(panel, columns.bar + length + 3, middle, _percent(share), size=_SMALL, color=_DIM)
        y += row.height + _GAP
    return middles


def _draw_box(panel: Axes, row: _Row, columns: _Columns, y: float, colour: str, *, dashed: bool) -> None:
    width, middle = columns.box_end - columns.box, y + row.height / 2
    for offset in (row.rise, 0.0) if row.rise else (0.0,):  # what is folded looks like a stack
        box = FancyBboxPatch(
            (columns.box + offset, y - offset), width, row.height,
            boxstyle="round,pad=0,rounding_size=4", facecolor=_tint(colour), edgecolor=colour, linewidth=0.9,
            linestyle=(0, (3, 2)) if dashed else "-",
        )  # fmt: skip
        panel.add_patch(box)
    _write(panel, columns.box + _SPACE, middle, row.kind, size=row.font_size, color=INK)
    _write(panel, columns.box_end - _SPACE, middle, row.detail, size=_SMALL, color=_DIM, ha="right")


def _draw_arrows(
    panel: Axes, rows: Sequence[_Row], middles: Sequence[float], links: Sequence[tuple[int, int]], columns: _Columns
) -> None:
    """Between rows that follow each other, where the second takes what the first gives."""
    for source, target in links:
        if target - source == 1:
            above, below = source + 1, target + 1  # the input is row 0
            top = middles[above] + rows[above].height / 2
            tip = middles[below] - rows[below].height / 2 - rows[below].rise - 0.7
            x = columns.middle
            _draw_stroke(panel, (x, top + 0.7), (x, tip - 3))
            _draw_head(panel, [(x, tip), (x - 2.2, tip - 4.2), (x + 2.2, tip - 4.2)])


def _draw_detour(panel: Axes, detour: _Detour, middles: Sequence[float], columns: _Columns) -> None:
    """Out of the lower left of one box, down, and into the upper left of another."""
    lane, edge = columns.box - 4 - _LANE * (detour.lane + 1), columns.box - 0.7
    top, bottom = middles[detour.source] + 3, middles[detour.target] - 3
    _draw_stroke(panel, (lane, top), (edge, top))
    _draw_stroke(panel, (lane, top), (lane, bottom))
    _draw_stroke(panel, (lane, bottom), (edge - 3, bottom))
    _draw_head(panel, [(edge, bottom), (edge - 4.2, bottom - 2.2), (edge - 4.2, bottom + 2.2)])


def _draw_stroke(panel: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A level or upright line, as an area: a line's width would not shrink with the boxes."""
    (left, top), (right, bottom) = start, end
    area = Rectangle(
        (left - 0.4, top - 0.4), right - left + 0.8, bottom - top + 0.8, facecolor=GREY, linewidth=0, snap=False
    )
    panel.add_patch(area)


def _draw_head(panel: Axes, corners: list[tuple[float, float]]) -> None:
    panel.add_patch(Polygon(corners, facecolor=GREY, linewidth=0))


class _ScaledText(Text):
    """Text whose size is in units of its axes, as that of the boxes is: it fits whatever size the axes get."""

    def __init__(self, x: float, y: float, text: str, *, size: float, **style: Any) -> None:
        # Names are no mathematics, whatever the user's settings: TeX would stumble over an underscore.
        super().__init__(x, y, text, va="center_baseline", **PLAIN, **style)
        self.natural_size = size

    def draw(self, renderer: RendererBase) -> None:
        self._fit()
        super().draw(renderer)

    def get_window_extent(self, renderer: RendererBase | None = None, dpi: float | None = None) -> Bbox:
        self._fit()
        return super().get_window_extent(renderer, dpi)

    def _fit(self) -> None:
        if self.axes is not None and self.figure is not None:
            points = abs(self.axes.transData.get_matrix()[0, 0]) * 72 / self.figure.dpi
            if abs(self.get_fontsize() - self.natural_size * points) > 1e-6:
                self.set_fontsize(self.natural_size * points)


def _write(panel: Axes, x: float, y: float, text: str, **style: Any) -> None:
    if text:
        panel.add_artist(_ScaledText(x, y, text, **style))


def _width(text: str, size: float) -> float:
    """Of a text in points, and a little more: fitted to pixels, small letters grow by up to 6 %."""
    if not text:
        return 0.0
    outline = TextPath((0, 0), text, size=size, prop=FontProperties()).vertices
    return 1.06 * float(outline[:, 0].max())


def _cut(text: str, size: float, longest: float, *, from_start: bool = False) -> str:
    """A text that is not wider than ``longest`` points."""
    width = _width(text, size)
    while width > longest:
        keep = min(len(text) - 2, int(len(text) * longest / width))
        text = "…" + text[-keep:] if from_start else text[:keep] + "…"
        width = _width(text, size)
    return text


def _typeset(text: str) -> str:
    """Arrows and multiplication signs, where the summary keeps to plain letters."""
    return re.sub(r"(?<=\d)( ?)x( ?)(?=\d)", "\\1\N{MULTIPLICATION SIGN}\\2", text.replace("->", "→"))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"


def _tint(colour: str) -> tuple[float, ...]:
    """A light shade, on which dark text is easy to read."""
    return tuple(1 - 0.16 * (1 - int(colour[i : i + 2], 16) / 255) for i in (1, 3, 5))
