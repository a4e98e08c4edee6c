"""Figures as PNG bytes, small enough to lie inside a page, for light and for dark surroundings."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure
from PIL import Image

from cifarnet.visualize.canvas import NotebookFigure

__all__ = ["Rendering", "render"]

_CSS_PIXELS = 96  # an inch has so many, whatever the screen


@dataclass(frozen=True)
class Rendering:
    """A figure as it is shown.

    Args:
        png: The file's content; the same figure gives the same bytes.
        width: In pixels of CSS, of which an inch has 96.
        height: Likewise.
    """

    png: bytes
    width: int
    height: int


def render(plot: Callable[..., Figure], *, background: str | None = None) -> Rendering:
    """Draw a figure and encode it with at most 256 colours, a third of the size of all of them.

    Args:
        plot: Draws on ``ax=``, or on a figure of its own without; `functools.partial` makes one of any ``plot_``
            function.
        background: Colour of the figure; ``None`` leaves it to the function, which takes white.

    Returns:
        The picture; on a background it has the size that it has without.
    """
    with warnings.catch_warnings():
        # matplotlib's own font lacks many scripts. It draws boxes, and the page has the names as text.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure = plot()
        if background is not None:
            figure = _on(background, plot, like=figure)
        content = io.BytesIO()
        figure.savefig(content, format="png")
    width, height = figure.get_size_inches()
    return Rendering(_with_few_colours(content), round(_CSS_PIXELS * width), round(_CSS_PIXELS * height))


def _on(background: str, plot: Callable[..., Figure], *, like: Figure) -> Figure:
    width, height = like.get_size_inches()
    figure = NotebookFigure(figsize=(width, height), dpi=like.dpi, layout="constrained", facecolor=background)
    return plot(ax=figure.add_subplot())


def _with_few_colours(png: io.BytesIO) -> bytes:
    """Also without metadata, in which the version of matplotlib would be."""
    small = io.BytesIO()
    with Image.open(png) as picture:
        few = picture.convert("RGB").quantize(256, kmeans=1, dither=Image.Dither.NONE)
        few.save(small, "PNG", optimize=True)
    return small.getvalue()
