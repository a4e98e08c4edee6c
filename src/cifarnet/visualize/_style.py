"""Colours, fonts, figures and grids of images that all figures share."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backend_bases import RendererBase
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from cifarnet._validation import check_count

# Okabe and Ito (2008), https://jfly.uni-koeln.de/color/: distinct with every kind of colour vision.
BLUE, SKY, GREEN, PURPLE = "#0072B2", "#56B4E9", "#009E73", "#CC79A7"
ORANGE, VERMILION = "#E69F00", "#D55E00"
INK, GREY = "#222222", "#8A8A8A"

#: Keywords of texts with names in them, in which a dollar sign starts no formula.
PLAIN: dict[str, Any] = {"parse_math": False, "usetex": False}
#: Font size in points of everything but tick and axis labels, which are a point larger.
SMALL = 8.0

# DejaVu Sans has the check mark. The others have scripts that it lacks, on Linux, Windows and macOS.
_FALLBACK_FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Nirmala UI",
    "PingFang SC",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
)


class NotebookFigure(Figure):
    """Figure that notebooks show without pyplot, with fonts for names in any script."""

    def draw(self, renderer: RendererBase) -> None:
        """Draw, with fallback fonts for all texts."""
        installed = {font.name for font in font_manager.fontManager.ttflist}
        fallback = [name for name in _FALLBACK_FONTS if name in installed]
        texts: list[Any] = self.findobj(Text)
        for text in texts:
            text.set_fontfamily(list(dict.fromkeys([*text.get_fontfamily(), *fallback])))
        super().draw(renderer)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """Return an empty white figure of ``width`` by ``height`` inches."""
    return NotebookFigure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")


def open_axes(ax: Axes | None, *, width: float, height: float) -> Axes:
    """Return ``ax``, or the axes of a new figure of ``width`` by ``height`` inches."""
    return new_figure(width, height).add_subplot() if ax is None else ax


def figure_of(ax: Axes) -> Figure:
    """Return the whole figure that ``ax`` is part of."""
    figure = ax.get_figure(root=True)
    assert figure is not None, "axes that a caller passes are part of a figure"
    return figure


def ink_on(ax: Axes) -> str:
    """Return a colour for text and lines that is readable on the figure of ``ax``."""
    red, green, blue, alpha = to_rgba(figure_of(ax).get_facecolor())
    return "#EEEEEE" if alpha > 0 and 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else INK


def finish(ax: Axes) -> None:
    """Set sizes and colours of the frame, labels, titles and legend, which are there already."""
    ink = ink_on(ax)
    ax.set_facecolor("none")
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[:].set_color(ink)
    ax.tick_params(colors=ink, labelsize=SMALL + 1)
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set(color=ink, fontsize=SMALL + 1)
    for loc in ("left", "center", "right"):
        ax.set_title(ax.get_title(loc), loc=loc, color=ink, fontsize=SMALL, **PLAIN)
    legend = ax.get_legend()
    for text in legend.get_texts() if legend else ():
        text.set(color=ink, fontsize=SMALL, **PLAIN)


def percent(share: float, digits: int = 1) -> str:
    """Format a fraction in ``[0, 1]`` with ``digits`` decimals."""
    return f"{100 * share:.{digits}f} %"


def set_percent(axis: Axis) -> None:
    """Format the ticks of an axis of fractions in ``[0, 1]``."""
    axis.set_major_formatter(lambda share, _: f"{100 * share:g} %")


def shorten(name: str, length: int) -> str:
    """Cut the middle out of a name that has more than ``length`` characters: names differ at their ends."""
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head].rstrip()}…{name[len(name) - (length - 1 - head) :].lstrip()}"


def title_of(label: str, truth: str | None) -> str:
    """Return a prediction, marked as correct or wrong if the true class is known."""
    if truth is None:
        return shorten(label, 28)
    if label == truth:
        return f"✓ {shorten(label, 28)}"
    between = " " if len(label) + len(truth) <= 20 else "\n"
    return f"✗ {shorten(label, 28)}{between}(truth: {shorten(truth, 22)})"


def open_cells(
    count: int, columns: int, *, width: float, height: float, ratios: tuple[float, float]
) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """Open a figure with a grid of cells of two panels without frames.

    Args:
        count: Number of cells, at least 1.
        columns: Number of cells side by side, at most.
        width: Width of a cell in inches.
        height: Height of a cell in inches.
        ratios: Widths of the two panels, as shares of the cell; the rest stays empty.

    Returns:
        The figure, and the panels of each cell, row by row.
    """
    check_count("columns", columns, "3 is a usual number")
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = new_figure(width * columns, height * rows)
    grid = figure.add_gridspec(rows, 3 * columns, width_ratios=(*ratios, 1 - sum(ratios)) * columns)
    cells = []
    for i in range(count):
        row, column = i // columns, 3 * (i % columns)
        cells.append((figure.add_subplot(grid[row, column]), figure.add_subplot(grid[row, column + 1])))
        for panel in cells[-1]:
            panel.set_axis_off()
    return figure, cells


def show_image(ax: Axes, pixels: Tensor, *, correct: bool | None = None) -> None:
    """Draw one image.

    Args:
        ax: Axes without a frame.
        pixels: uint8, shape ``(C, H, W)``. One channel is grey; of more than three the first three are shown.
        correct: If given, draw a frame: solid blue for a correct prediction, dashed vermilion for a wrong one.
    """
    shown = pixels[:3] if pixels.shape[0] >= 3 else pixels[:1]
    ax.imshow(shown.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.set_anchor("NW")
    if correct is not None:
        ax.set_axis_on()
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(linewidth=2, linestyle="-" if correct else (0, (3, 1.5)), color=BLUE if correct else VERMILION)


def draw_tiles(ax: Axes, tiles: np.ndarray, columns: int) -> list[float]:
    """Draw many small images as one picture: separate axes for each would take seconds.

    Args:
        ax: Axes to draw on; their frame and ticks are removed.
        tiles: RGB in ``[0, 1]``, shape ``(N, H, W, 3)``.
        columns: Number of tiles side by side.

    Returns:
        The horizontal position of the middle of each column.
    """
    zoom = max(1, 64 // tiles.shape[2])  # fine enough for the gaps between the tiles
    tiles = tiles.repeat(zoom, axis=1).repeat(zoom, axis=2)
    _, height, width, _ = tiles.shape
    gap = max(1, round(0.1 * width))
    rows = -(-len(tiles) // columns)
    picture = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), dtype=np.float32)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        picture[top : top + height, left : left + width] = np.concatenate([tile, np.ones((height, width, 1))], axis=2)
    ax.imshow(picture, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return [column * (width + gap) + width / 2 - 0.5 for column in range(columns)]
