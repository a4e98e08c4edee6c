"""Ten shapes and textures drawn by arithmetic, to learn from without a data set.

Every image has random colours, position, size, rotation, background gradient, clutter and noise, so that no
single pixel reveals the class. A linear classifier fails, a small convolutional network does not.

Numbers come from Philox counters as raw 64-bit words, and images from ``+ - * / sqrt floor``, which IEEE 754
rounds the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from cifarnet._validation import check_count
from cifarnet.data.dataset import DatasetSplits, ImageDataset

__all__ = ["SYNTHETIC_CLASSES", "make_synthetic"]

_NUM_DRAWS: Final = 24  # random numbers per image; fixed, so that image i never depends on its neighbours
_CHUNK: Final = 500  # images at a time: their planes stay in the processor's cache

Floats: TypeAlias = npt.NDArray[np.floating[Any]]  # always float32; numpy's types lose that beside a number
Plane: TypeAlias = Floats  # (N, H, W), or broadcastable to it

#: Signed distance to the edge of a shape of radius 1, negative within, at the coordinates ``u`` and ``v``.
_SHAPES: Final[dict[str, Callable[[Plane, Plane], Plane]]] = {
    "circle": lambda u, v: np.sqrt(u * u + v * v) - 0.95,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.9,
    "triangle": lambda u, v: np.maximum(np.abs(u) * 0.894 + v * 0.447, -v) - 0.447,
    "cross": lambda u, v: np.maximum(np.maximum(np.abs(u), np.abs(v)) - 1, np.minimum(np.abs(u), np.abs(v)) - 0.3),
    "ring": lambda u, v: np.abs(np.sqrt(u * u + v * v) - 0.75) - 0.25,
}
#: Signed distance, in periods, to the edges of an endless pattern that a ``wave`` makes of coordinates.
_TEXTURES: Final[dict[str, Callable[[Plane, Plane, Callable[[Plane], Plane]], Plane]]] = {
    "horizontal stripes": lambda u, v, wave: wave(v),
    "vertical stripes": lambda u, v, wave: wave(u),
    "diagonal stripes": lambda u, v, wave: wave((u + v) * 0.7071),
    "checkerboard": lambda u, v, wave: np.maximum(np.minimum(wave(u), -wave(v)), np.minimum(-wave(u), wave(v))),
    "dots": lambda u, v, wave: np.sqrt((wave(u) + 0.25) ** 2 + (wave(v) + 0.25) ** 2) - 0.3,
}
SYNTHETIC_CLASSES: Final = (*_SHAPES, *_TEXTURES)


def make_synthetic(num_train: int = 5000, num_test: int = 1000, *, seed: int = 0, size: int = 32) -> DatasetSplits:
    """Draw a deterministic ten-class set of shapes and textures.

    Image ``i`` of a part depends on (seed, part, i, size) alone, so a longer set begins with a shorter one.
    Its class is ``i % 10``: classes are balanced to within one image.

    Args:
        num_train: Number of training images, at least 1.
        num_test: Number of test images, at least 1.
        seed: Seed of the set, in ``[0, 2**64)``.
        size: Height and width in pixels, at least 8.

    Returns:
        Two parts of uint8 RGB images, named ``synthetic shapes``.

    Raises:
        SettingError: If a number is too small or no whole number.
        OverflowError: If the seed is too large.

    Example:
        >>> data = make_synthetic(num_train=20, num_test=10)
        >>> data.train
        ImageDataset('synthetic shapes', 20 images of 3x32x32, 10 classes)
    """
    check_count("num_train", num_train, "Use num_train=5000, for example")
    check_count("num_test", num_test, "Use num_test=1000, for example")
    check_count("seed", seed, "Use seed=0, for example", least=0)
    check_count("size", size, "Use size=32, for example", least=8)
    return DatasetSplits(train=_draw_part(num_train, seed, 0, size), test=_draw_part(num_test, seed, 1, size))


def _draw_part(num_images: int, seed: int, part: int, size: int) -> ImageDataset:
    numbers = np.random.Philox(key=np.array([seed, 2 * part], dtype=np.uint64))
    grain = np.random.Philox(key=np.array([seed, 2 * part + 1], dtype=np.uint64))
    labels = np.arange(num_images) % len(SYNTHETIC_CLASSES)
    images = np.empty((num_images, 3, size, size), dtype=np.uint8)
    for start in range(0, num_images, _CHUNK):
        chunk = images[start : start + _CHUNK]
        raw = numbers.random_raw(len(chunk) * _NUM_DRAWS).reshape(len(chunk), _NUM_DRAWS)
        draws = ((raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)).T  # (24, N), in [0, 1)
        chunk[:] = _compose(draws, labels[start : start + _CHUNK], _noise(grain, len(chunk), size))
    return ImageDataset(
        torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), SYNTHETIC_CLASSES, name="synthetic shapes"
    )


def _noise(grain: np.random.Philox, num_images: int, size: int) -> Floats:
    """Return triangular noise in [-15, 15] per pixel and channel, shape ``(N, 3, H, W)``."""
    words_each = -(-3 * size * size // 8)  # whole words per image, or image i would depend on the chunk
    raw = grain.random_raw(num_images * words_each).astype("<u8").view(np.uint8)
    grains = raw.reshape(num_images, -1)[:, : 3 * size * size].reshape(num_images, 3, size, size)
    return (grains & 15).astype(np.float32) + (grains >> 4) - 15


def _compose(draws: Floats, labels: npt.NDArray[np.intp], noise: Floats) -> npt.NDArray[np.uint8]:
    """Paint foreground, clutter and noise over a gradient: shape ``(N, 3, H, W)``."""
    size = noise.shape[-1]
    d = draws[:, :, None, None]  # (24, N, 1, 1)
    line = ((2 * np.arange(size) + 1 - size) / size).astype(np.float32)  # pixel centres in (-1, 1)
    y, x = line[None, :, None], line[None, None, :]
    slope = (d[14] - 0.5) * x + (d[15] - 0.5) * y  # (N, H, W)
    background, foreground = _colours(draws)  # (N, 3, 1, 1) each
    image = background + 90 * slope[:, None]
    # A bar across the image, of another colour. Its edges belong to no class.
    bar = np.clip((0.1 - np.abs((d[16] * 2 - 1) * x + (d[17] * 2 - 1) * y + d[18] - 0.5)) * size, 0, 1)
    image += bar[:, None] * (draws[19:22].T[:, :, None, None] * 255 - image)
    image += _masks(d, labels, x, y)[:, None] * (foreground - image)
    image += noise * (0.5 + 1.5 * d[13])[:, None]
    pixels: npt.NDArray[np.uint8] = np.clip(np.floor(image + 0.5), 0, 255).astype(np.uint8)
    return pixels


def _colours(draws: Floats) -> tuple[Floats, Floats]:
    """Return two colours per image, at least 70 of 255 apart in every channel, either one the brighter."""
    background = draws[6:9].T * 255
    distance = 70 + 57 * draws[9:12].T
    # Away from the nearer end of the range, so that the colour needs no clipping and keeps its distance.
    foreground = background + np.where(background < 127.5, distance, -distance)
    return background[:, :, None, None], foreground[:, :, None, None]


def _masks(d: Floats, labels: npt.NDArray[np.intp], x: Plane, y: Plane) -> Floats:
    """Return the share of the figure in each pixel, in [0, 1], shape ``(N, H, W)``."""
    size = x.shape[-1]
    radius = 0.45 + 0.3 * d[0]
    u, v = x - (d[1] - 0.5) * 0.7, y - (d[2] - 0.5) * 0.7
    turn = (d[3] - 0.5) * 0.4  # tan of half the angle: at most 0.2, which is 23 degrees
    cos, sin = (1 - turn * turn) / (1 + turn * turn), 2 * turn / (1 + turn * turn)
    u, v = (cos * u + sin * v) / radius, (cos * v - sin * u) / radius
    masks: Plane = np.empty_like(u)
    for label, name in enumerate(SYNTHETIC_CLASSES):
        rows = labels == label
        outside = _outside(name, u[rows], v[rows], d[4, rows], d[5, rows])
        masks[rows] = np.clip(0.5 - outside * radius[rows] * (size / 2), 0, 1)  # one pixel of soft edge
    return masks


def _outside(name: str, u: Plane, v: Plane, phase: Plane, frequency: Plane) -> Plane:
    """Return the signed distance to the figure's edge in units of its radius, negative within: shape ``(n, H, W)``."""
    if name in _SHAPES:
        return _SHAPES[name](u, v)
    frequency = 1 + frequency * 0.8
    pattern = _TEXTURES[name](u, v, lambda t: _wave(t * frequency + phase)) / frequency
    outside: Plane = np.maximum(_SHAPES["square"](u, v), pattern)
    return outside


def _wave(t: Plane) -> Plane:
    """Return a triangle wave of period 1 between -0.25 and 0.25."""
    wave: Plane = np.abs(t - np.floor(t) - 0.5) - 0.25
    return wave
