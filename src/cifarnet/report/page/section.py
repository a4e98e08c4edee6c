"""What the parts of a page have in common: a run that was judged, and how a figure stands in the page."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cifarnet.data import ImageDataset
from cifarnet.inference import Evaluation
from cifarnet.report.page.markup import Markup, element
from cifarnet.report.run import Run

__all__ = ["DARK", "Judged", "figure", "note"]

#: What is behind the figures in the dark theme; page.css has it too.
DARK = "#1c2024"

#: CSS pixels. A figure that is wider is not shrunk to the width of a phone, where nobody could read it: it scrolls.
_READABLE = 544


@dataclass(frozen=True)
class Judged:
    """A run and its scores.

    Args:
        run: With its best weights.
        test: The images that it was scored on.
        evaluation: As the classifier is used: with its temperature.
        uncalibrated: At temperature 1; the same object where that is the classifier's.
        remarks: What is missing or does not agree, in sentences.
    """

    run: Run
    test: ImageDataset
    evaluation: Evaluation
    uncalibrated: Evaluation
    remarks: tuple[str, ...]

    @property
    def is_calibrated(self) -> bool:
        """Whether there is a temperature other than 1."""
        return self.evaluation.temperature != 1


def figure(plot: Callable[..., Any], caption: str, *, alt: str, themes: bool = True) -> Markup:
    """A figure inside the page, drawn for the light and for the dark theme.

    Args:
        plot: Draws it on ``ax=``, or on its own figure without.
        caption: Below it.
        alt: What it shows, for those who do not see it.
        themes: Whether its letters can be light; else it stays on white.
    """
    from cifarnet.visualize.rendered import render  # matplotlib: for those alone who want a page

    drawn = render(plot, dark=DARK if themes else None)
    picture = [element("img", src=_data(drawn.light), alt=alt, width=drawn.width, height=drawn.height)]
    if drawn.dark is not None:
        picture.insert(0, element("source", media="(prefers-color-scheme: dark)", srcset=_data(drawn.dark)))
    wide = drawn.width > _READABLE
    frame = element(
        "div",
        element("picture", *picture),
        class_=" ".join(["picture", *(["wide"] if wide else []), *([] if themes else ["white"])]),
        role="region" if wide else None,
        tabindex=0 if wide else None,
        aria_label="figure, scrolls sideways where it is narrow" if wide else None,
    )
    return element("figure", frame, element("figcaption", caption))


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"


def note(*parts: str) -> Markup:
    """A paragraph of explanation."""
    return element("p", *parts, class_="note")
