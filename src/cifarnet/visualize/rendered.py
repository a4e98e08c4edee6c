"""Figures as PNG bytes, small enough to lie inside a page, for light and for dark surroundings."""

from __future__ import annotations

import inspect
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from cifarnet.visualize._style import NotebookFigure

__all__ = ["Rendering", "render"]

_CSS_PIXELS = 96  # an inch has so many, whatever the screen


@dataclass(frozen=True)
class Rendering:
    """A figure as it is shown.

    Args:
        light: A PNG file's content; the same figure gives the same bytes.
        dark: The same on a dark background, if that was asked for.
        width: In pixels of CSS, of which an inch has 96.
        height: Likewise.
    """

    light: bytes
    dark: bytes | None
    width: int
    height: int


def render(plot: Callable[..., Figure], *, dark: str | None = None) -> Rendering:
    """Draw a figure, and encode it with at most 256 colours: a third of the size of all of them.

    Args:
        plot: Draws on ``ax=``, or on a figure of its own without; `functools.partial` makes one of any ``plot_``
            function.
        dark: Colour of a second, dark background; ``None`` for none. Figures of several panels have none.

    Returns:
        One picture or two, in the size that ``plot`` gives its own figure.
    """
    with warnings.catch_warnings():
        # matplotlib's own font lacks many scripts. It draws boxes, and the page has the names as text.
        warnings.filterwarnings("ignore", "No installed font has the letters|Glyph .* missing from")
        figure = plot()
        width, height = figure.get_size_inches()
        light, other = _png(figure), None
        if dark is not None and "ax" in inspect.signature(plot).parameters:  # figures of one panel
            figure = NotebookFigure(figsize=(width, height), dpi=figure.dpi, layout="constrained", facecolor=dark)
            other = _png(plot(ax=figure.add_subplot()))
    return Rendering(light, other, round(_CSS_PIXELS * width), round(_CSS_PIXELS * height))


def _png(figure: Figure) -> bytes:
    """Without ``savefig``, which draws twice and writes metadata."""
    canvas: Any = FigureCanvasAgg(figure)  # whose methods have no types
    canvas.draw()
    pixels = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba())
    content = io.BytesIO()
    few = pixels.convert("RGB").quantize(256, kmeans=1, dither=Image.Dither.NONE)
    few.save(content, "PNG", optimize=True)
    return content.getvalue()
