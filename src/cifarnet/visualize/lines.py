"""Charts of several named lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from cifarnet.visualize.canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    VERMILION,
    clear,
    divide,
    figure_of,
    ink_on,
    open_axes,
    scale_of,
    shorten,
)

__all__ = ["Chart"]

_PURPLE = "#CC79A7"  # of Okabe and Ito
_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, SKY, _PURPLE, GREY)
_DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LEGEND = 0.31  # of the width


class Chart:
    """Axes for lines that colour, dashes and marker tell apart, with their names beside them.

    Args:
        ax: What the caller was given; a new figure without.
        beside: Whether there are names to write: they stand right of the lines, where no line can run through them.
    """

    def __init__(self, ax: Axes | None, *, beside: bool) -> None:
        ax = open_axes(ax, width=7.5 if beside else 5.5, height=3.4)
        place = divide(ax, 1, 1)[0][0]
        place.set_axis_off()
        self.figure = figure_of(ax)
        self.ink = ink_on(ax)
        self.size = 9 * scale_of(ax, 7.5 if beside else 5.5)
        self.beside = beside
        self.panel = place.inset_axes((0, 0, 1 - _LEGEND if beside else 1, 1))
        self.num_lines = 0

    def draw(self, name: str, x: Sequence[float], y: Sequence[float]) -> None:
        """Add a line; of the next eight each has another marker, and with colour and dashes they differ for long."""
        i = self.num_lines
        self.num_lines += 1
        self.panel.plot(
            x, y, label=name, linewidth=1.5, markersize=4,
            color=_COLOURS[i % len(_COLOURS)], linestyle=_DASHES[i % len(_DASHES)], marker=_MARKERS[i % len(_MARKERS)],
            markevery=max(1, len(x) // 10),  # a marker at each of 1,000 points would hide the line
        )  # fmt: skip

    def finish(self, order: Sequence[int], notes: Sequence[str] = ()) -> None:
        """Write the names, and bring the axes into shape.

        Args:
            order: Of the names from the top, as indices of the lines.
            notes: What stands behind each name, in the order of the lines.
        """
        panel = self.panel
        clear(panel, self.ink, size=self.size)
        panel.grid(axis="y", linewidth=0.5, alpha=0.4)
        if not self.beside:
            return
        lines = panel.get_lines()
        texts = [f"{shorten(str(line.get_label()), 26)}" for line in lines]
        if notes:
            texts = [f"{text}: {note}" for text, note in zip(texts, notes, strict=True)]
        legend = panel.legend(
            [lines[i] for i in order], [texts[i] for i in order], loc="upper left", bbox_to_anchor=(1.01, 1.03),
            frameon=False, labelcolor=self.ink, fontsize=0.85 * self.size, handlelength=3.2, borderaxespad=0,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)
            text.set_usetex(False)
