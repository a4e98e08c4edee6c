"""Evaluations of made-up answers, and how tests read figures."""

from __future__ import annotations

from typing import Any, cast

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor, nn

from cifarnet import Classifier, Evaluation, ImageDataset, Preprocess

LONG = tuple(f"a remarkably long name of a class, of which this is number {i:03}" for i in range(100))
DARK: dict[Any, Any] = {
    "axes.facecolor": "black",
    "text.color": "white",
    "xtick.color": "white",
    "axes.labelcolor": "white",
}


class Answers(nn.Module):
    """Gives each image the logits that stand for its first pixel: images are told apart by their number there."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        number = (images[:, 0, 0, 0] * 255).round().long() + 256 * (images[:, 0, 0, 1] * 255).round().long()
        return self.logits[number.clamp(max=len(self.logits) - 1)]


def judged(
    num_classes: int, *, num_images: int = 400, names: tuple[str, ...] | None = None, skill: float = 2.0
) -> tuple[Evaluation, ImageDataset, Classifier]:
    """An evaluation of answers that are mostly right, and whose they are; the last class has no images."""
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
    classifier = Classifier(Answers(logits), plain, names, device="cpu", precision="float32")
    return classifier.evaluate(data), data, classifier


def panels(ax: Axes) -> list[Axes]:
    """The axes that were put into its place."""
    return [cast("Axes", panel) for panel in ax.child_axes]


def told(ax: Axes) -> list[str]:
    """Every text that is drawn in the place of some axes, but for the empty ones."""
    return [text.get_text() for text in texts(ax)]


def texts(ax: Axes) -> list[Text]:
    """Likewise; the axis of axes whose frame is switched off has labels too, which are not drawn."""
    hidden = [axis for each in axes_in(ax) if not each.axison for axis in (each.xaxis, each.yaxis)]
    undrawn = {id(text) for axis in hidden for text in axis.findobj(Text)}
    found = cast("list[Text]", ax.findobj(Text))
    return [text for text in found if text.get_visible() and text.get_text() and id(text) not in undrawn]


def axes_in(ax: Axes) -> list[Axes]:
    """The axes, and all that were put into their place, at any depth."""
    return [ax, *(inner for panel in panels(ax) for inner in axes_in(panel))]


def inks(figure: Figure) -> set[str]:
    """The colours of all that is written."""
    figure.draw_without_rendering()
    return {to_hex(text.get_color()) for ax in figure.axes for text in texts(ax)}
