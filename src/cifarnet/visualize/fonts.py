"""Fonts for class names in any script."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib import font_manager, rcParams
from matplotlib.figure import Figure
from matplotlib.text import Text

__all__ = ["fallback_fonts"]

#: Families of Linux, Windows and macOS that have the scripts which DejaVu Sans lacks.
FAMILIES = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Noto Sans SC",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Nirmala UI",
    "PingFang SC",
    "Hiragino Sans",
    "Apple SD Gothic Neo",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Bengali",
    "Noto Sans Tamil",
    "Noto Sans Thai",
)

_warned: set[str] = set()


@contextmanager
def fallback_fonts(figure: Figure) -> Iterator[None]:
    """Draw the texts of a figure with a font of their script, if there is one.

    Warns:
        UserWarning: Once for each letter that no font has.
    """
    family = [*rcParams["font.family"]]
    known = _letters(tuple(family))
    texts: list[Any] = [text for text in figure.findobj(Text) if not known.issuperset(text.get_text())]
    if not texts:
        yield
        return
    installed = {font.name for font in font_manager.fontManager.ttflist}
    others = [name for name in FAMILIES if name in installed]
    for text in texts:
        text.set_fontfamily([*family, *others])
    known |= _letters(tuple(others))
    letters = {letter for text in texts for letter in text.get_text() if letter.isprintable()}
    missing = letters - known - _warned
    if missing:
        _warned.update(missing)
        warnings.warn(
            f"No installed font has the letters {''.join(sorted(missing))[:20]!r}, which figures show as boxes. "
            "Install a font of their script, such as Noto Sans CJK",
            stacklevel=2,
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # matplotlib warns at each drawing
        yield


@functools.cache
def _letters(families: tuple[str, ...]) -> frozenset[str]:
    """Return the characters that are in one of the fonts; line breaks are in each."""
    letters = {"\n"}
    for family in families:
        font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties(family=[family])))
        letters.update(map(chr, font.get_charmap()))
    return frozenset(letters)
