"""What figures are drawn on: no pyplot, no global settings, and colours that everyone can tell apart."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from torch import Tensor

from cifarnet.errors import InputError
from cifarnet.visualize.fonts import fallback_fonts

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "PLAIN",
    "SKY",
    "VERMILION",
    "clear",
    "divide",
    "figure_of",
    "ink_on",
    "open_axes",
    "percent",
    "scale_of",
    "shorten",
    "show_image",
    "width_of",
]

# Okabe and Ito (2008), https://jfly.uni-koeln.de/color/: told apart with every kind of colour vision.
BLUE, SKY, GREEN = "#0072B2", "#56B4E9", "#009E73"
ORANGE, VERMILION = "#E69F00", "#D55E00"
INK, GREY = "#222222", "#8A8A8A"

#: For text made of other people's names, in which a dollar sign begins no formula.
PLAIN: dict[str, Any] = {"parse_math": False, "usetex": False}


class NotebookFigure(Figure):
    """A figure that a notebook shows as the value of a cell; pyplot, which would do that too, keeps global state."""

    def draw(self, renderer: RendererBase) -> None:
        """Draw, with fonts for all letters."""
        with fallback_fonts(self):
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def open_axes(ax: Axes | None, *, width: float, height: float) -> Axes:
    """``ax``, or the axes that fill a new figure.

    Args:
        ax: What the caller was given.
        width: Of a new figure, in inches.
        height: Likewise.

    Raises:
        InputError: If ``ax`` is something else.
    """
    if ax is not None and not isinstance(ax, Axes):
        raise InputError(f"ax must be one matplotlib Axes, got {type(ax).__name__}; figure.subplots() gives one")
    if ax is not None:
        return ax
    figure = NotebookFigure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    return figure.add_subplot()


def figure_of(ax: Axes) -> Figure:
    """The whole figure that ``ax`` is part of."""
    figure = ax.get_figure(root=True)
    assert figure is not None, "open_axes gives axes that are part of a figure"
    return figure


def ink_on(ax: Axes) -> str:
    """A colour for text and lines that can be read on the figure of ``ax``, whatever style its owner likes."""
    red, green, blue, alpha = to_rgba(figure_of(ax).get_facecolor())
    return "#EEEEEE" if alpha > 0 and 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else INK


def width_of(ax: Axes) -> float:
    """Inches of ``ax`` as it is now; a layout engine may still move its edges a little."""
    return float(ax.get_window_extent().width / figure_of(ax).dpi)


def scale_of(ax: Axes, natural_width: float) -> float:
    """By how much letters shrink where ``ax`` is narrower than ``natural_width`` inches; smaller ones nobody reads."""
    return max(0.55, min(1.0, width_of(ax) / natural_width))


def clear(panel: Axes, ink: str, *, size: float = 9.0) -> None:
    """Leave what a chart needs: two of four edges, no ground of its own, labels in ``ink`` whatever the style.

    Args:
        panel: Its labels are written already.
        ink: What `ink_on` gave.
        size: Of the letters, in points.
    """
    panel.set_facecolor("none")
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(ink)
    panel.tick_params(colors=ink, labelsize=size)
    for axis in (panel.xaxis, panel.yaxis):
        axis.label.set(color=ink, fontsize=size)


def percent(share: float, digits: int = 1) -> str:
    """A fraction as it is written in figures.

    Args:
        share: In ``[0, 1]``.
        digits: Behind the point.
    """
    return f"{100 * share:.{digits}f} %"


def shorten(name: str, length: int) -> str:
    """The ends of a name, which is where names differ.

    Args:
        name: Of a class, a layer or a run.
        length: The most letters it may have.
    """
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head].rstrip()}…{name[len(name) - (length - 1 - head) :].lstrip()}"


def divide(ax: Axes, rows: int, columns: int, *, gap_x: float = 0.0, gap_y: float = 0.0) -> list[list[Axes]]:
    """Cut the place of ``ax`` into panels, so that a figure of many panels fits into anybody's layout.

    Args:
        ax: Its own frame is switched off; its title stays.
        rows: How many, from the top.
        columns: How many, from the left.
        gap_x: Between columns, as a share of the panel's width.
        gap_y: Between rows, as a share of the panel's height.

    Returns:
        A list of panels for each row.
    """
    ax.set_axis_off()
    width, height = 1 / (columns + (columns - 1) * gap_x), 1 / (rows + (rows - 1) * gap_y)
    return [
        [
            ax.inset_axes((j * width * (1 + gap_x), 1 - height - i * height * (1 + gap_y), width, height))
            for j in range(columns)
        ]
        for i in range(rows)
    ]


def show_image(ax: Axes, pixels: Tensor, *, frame: str | None = None, dashed: bool = False) -> None:
    """Draw one image without ticks.

    Args:
        ax: Drawn on.
        pixels: uint8, shape ``(C, H, W)``; 1 channel is grey, of more the first 3 are shown.
        frame: Colour of a frame around it; none without.
        dashed: Whether the frame is dashed.
    """
    shown = pixels[:3] if pixels.shape[0] >= 3 else pixels[:1]
    ax.imshow(shown.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(frame is not None)
        spine.set_linewidth(2)
        spine.set_linestyle((0, (3, 1.5)) if dashed else "-")
        if frame is not None:
            spine.set_edgecolor(frame)
