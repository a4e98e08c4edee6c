"""Evaluations of made-up logits, and readers of drawn figures."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor, nn

from cifarnet import CifarCNN, Classifier, Evaluation, ImageDataset, Preprocess

LONG_NAMES = tuple(f"a remarkably long name of a class, of which this is number {i:03}" for i in range(100))
DARK: dict[Any, Any] = dict.fromkeys(["text.color", "xtick.color", "axes.labelcolor"], "white") | {
    "axes.facecolor": "black"
}


class FixedLogits(nn.Module):
    """Returns row ``n`` of the logits for an image whose first two pixels encode ``n``."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        number = (images[:, 0, 0, 0] * 255).round().long() + 256 * (images[:, 0, 0, 1] * 255).round().long()
        return self.logits[number.clamp(max=len(self.logits) - 1)]


def make_evaluation(
    num_classes: int, *, num_images: int = 400, names: tuple[str, ...] | None = None, skill: float = 2.0
) -> tuple[Evaluation, ImageDataset, Classifier]:
    """Evaluate logits that are mostly right on random images; the last class has no images."""
    generator = torch.Generator().manual_seed(num_classes)
    labels = torch.randint(max(1, num_classes - 1), (num_images,), generator=generator)
    logits = torch.randn(num_images, num_classes, generator=generator)
    logits[torch.arange(num_images), labels] += skill
    images = torch.randint(256, (num_images, 3, 4, 4), generator=generator, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(num_images) % 256
    images[:, 0, 0, 1] = torch.arange(num_images) // 256
    names = tuple(f"kind {i}" for i in range(num_classes)) if names is None else names
    data = ImageDataset(images, labels, names, ids=torch.arange(num_images) + 7000)
    plain = Preprocess(4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    classifier = Classifier(FixedLogits(logits), plain, names, device="cpu", precision="float32")
    return classifier.evaluate(data), data, classifier


def make_classifier(num_classes: int = 10, names: tuple[str, ...] | None = None) -> Classifier:
    """Build a classifier of 16x16 images with a small untrained network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CifarCNN(num_classes, image_size=16, widths=(6, 12), hidden=8)
    names = tuple(f"kind {i}" for i in range(num_classes)) if names is None else names
    return Classifier(model, Preprocess(16), names, device="cpu", precision="float32")


def pixels_of(panel: Axes) -> np.ndarray:
    """Return the image that a panel shows."""
    return np.asarray(panel.get_images()[0].get_array())


def tiles_of(panel: Axes) -> list[np.ndarray]:
    """Cut a picture at its transparent gaps."""
    picture = pixels_of(panel)
    rows, columns = (_runs(picture[..., 3].max(axis=axis) > 0) for axis in (1, 0))
    tiles = [picture[top:bottom, left:right] for top, bottom in rows for left, right in columns]
    return [tile[..., :3] for tile in tiles if tile[0, 0, 3]]


def _runs(filled: np.ndarray) -> list[tuple[int, int]]:
    ends = np.flatnonzero(np.diff([0, *filled.astype(int), 0]))
    return list(zip(ends[::2].tolist(), ends[1::2].tolist(), strict=True))


def text_colours(figure: Figure) -> set[str]:
    """Return the colours of all texts that are drawn."""
    figure.draw_without_rendering()
    hidden = [axis for ax in figure.findobj(Axes) if not ax.axison for axis in (ax.xaxis, ax.yaxis)]
    undrawn = {id(text) for axis in hidden for text in axis.findobj(Text)}
    texts = [text for text in cast("list[Text]", figure.findobj(Text)) if id(text) not in undrawn]
    return {to_hex(text.get_color()) for text in texts if text.get_visible() and text.get_text()}
