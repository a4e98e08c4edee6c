from __future__ import annotations

import io
import warnings
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cifarnet.visualize._style import figure_of, ink_on, open_axes
from cifarnet.visualize.rendered import render


def plot_shades(title: str, *, ax: Axes | None = None) -> Figure:
    """A thousand shades, and a title in the ink of the figure."""
    ax = open_axes(ax, width=4, height=2.5)
    ax.imshow(np.linspace(0, 1, 1000).reshape(20, 50), cmap="viridis")
    ax.set_title(title, color=ink_on(ax))
    ax.set_axis_off()
    return figure_of(ax)


def pixels(png: bytes | None) -> np.ndarray:
    assert png is not None
    with Image.open(io.BytesIO(png)) as picture:
        assert (picture.format, picture.mode, picture.info) == ("PNG", "P", {})  # neither time nor version
        return np.asarray(picture.convert("RGB"))


def test_a_figure_is_drawn_light_and_dark_in_one_size_and_few_colours() -> None:
    drawn = render(partial(plot_shades, "title"), dark="#1c2024")
    assert (drawn.width, drawn.height) == (384, 240)  # CSS pixels of 4 x 2.5 inches
    light, dark = pixels(drawn.light), pixels(drawn.dark)
    assert light.shape == dark.shape == (375, 600, 3)
    assert light[0, 0].tolist() == [255, 255, 255]
    assert dark[0, 0].tolist() == [0x1C, 0x20, 0x24]
    assert light[:60].min() < 60  # the letters of the title
    assert dark[:60].max() > 200
    for shown in (light, dark):
        assert 100 < len(np.unique(shown.reshape(-1, 3), axis=0)) <= 256
    assert render(partial(plot_shades, "title"), dark="#1c2024") == drawn
    assert render(partial(plot_shades, "title")).dark is None


def test_few_colours_are_near_the_true_ones() -> None:
    drawn = pixels(render(partial(plot_shades, "")).light).astype(int)
    exact = io.BytesIO()
    plot_shades("").savefig(exact, format="png")
    with Image.open(exact) as picture:
        true = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(drawn - true).max() < 24
    assert np.abs(drawn - true).mean() < 1


def test_letters_that_the_font_lacks_are_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        render(partial(plot_shades, "\N{CJK UNIFIED IDEOGRAPH-732B}"))
