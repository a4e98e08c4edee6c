"""Grids of images with something said beside each."""

from __future__ import annotations

from matplotlib import rcParams
from matplotlib.axes import Axes
from torch import Tensor

from cifarnet.data import ImageLike, crop_square, resize_images, to_pixels
from cifarnet.visualize.canvas import PLAIN, divide, ink_on, open_axes, scale_of, shorten

__all__ = ["open_cells", "shrink", "thumbnail", "title_of", "write_title"]

_MAX_SIDE = 256  # pixels shown of a large photo: a panel has no more


def open_cells(
    ax: Axes | None, count: int, columns: int, *, width: float, height: float
) -> tuple[Axes, list[Axes], float]:
    """Cut the place of ``ax``, or a new figure, into a cell for each image.

    Args:
        ax: What the caller was given.
        count: How many images, at least 1.
        columns: How many side by side at most.
        width: Of a cell of a new figure, in inches.
        height: Likewise.

    Returns:
        The axes drawn on, ``count`` cells without a frame, row by row, and the scale of letters in them.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    ax = open_axes(ax, width=width * columns, height=height * rows)
    cells = [cell for row in divide(ax, rows, columns, gap_x=0.08, gap_y=0.28) for cell in row]
    for cell in cells:
        cell.set_axis_off()
    return ax, cells[:count], scale_of(ax, width * columns)


def thumbnail(image: ImageLike, channels: int) -> Tensor:
    """What a network saw of an image, in the image's own resolution as far as that shows.

    Args:
        image: Whatever `cifarnet.data.to_pixels` takes.
        channels: How many the network takes.

    Returns:
        uint8, shape ``(channels, S, S)``, ``S`` at most 256.
    """
    return shrink(to_pixels(image, channels=channels))


def shrink(pixels: Tensor) -> Tensor:
    """The square in the centre, in its own resolution as far as that shows.

    Args:
        pixels: uint8, shape ``(C, H, W)``.

    Returns:
        uint8, shape ``(C, S, S)``, ``S`` at most 256.
    """
    square = crop_square(pixels)
    return resize_images(square, _MAX_SIDE) if square.shape[-1] > _MAX_SIDE else square


def title_of(label: str, truth: str | None) -> str:
    """What a network said, with a mark that tells right from wrong where the truth is known.

    In one line where there is room for it, so that long names still tell classes apart.
    """
    if truth is None:
        return shorten(label, 40)
    if label == truth:
        return f"✓ {shorten(label, 38)}"
    between = " " if len(label) + len(truth) < 30 else "\n"
    return f"✗ {shorten(label, 38)}{between}(truth: {shorten(truth, 30)})"


def write_title(cell: Axes, text: str, *, size: float) -> None:
    """Write above a cell; few fonts have a check mark: the one that comes with matplotlib does."""
    fonts = [*rcParams["font.family"], "DejaVu Sans"]
    cell.set_title(text, loc="left", fontsize=size, pad=4, fontfamily=fonts, color=ink_on(cell), **PLAIN)
