from __future__ import annotations

from collections import OrderedDict

import pytest
import torchvision
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import nn

from cifarnet import BasicCNN, CifarCNN, FastCNN, ResNet18
from cifarnet.models import summarize_model
from cifarnet.visualize.architecture import plot_architecture


def words_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def num_boxes(figure: Figure) -> int:
    return sum(isinstance(patch, FancyBboxPatch) for patch in figure.axes[0].patches)


def num_shortcuts(figure: Figure) -> int:
    """A shortcut is three arrows. Each row below the input has one arrow."""
    arrows = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyArrowPatch)]
    return (len(arrows) - num_boxes(figure) + 1) // 3


@pytest.mark.parametrize("build", [CifarCNN, BasicCNN, FastCNN])
def test_every_layer_has_a_box_with_its_output(build: type[nn.Module]) -> None:
    figure = plot_architecture(build())
    words, layers = words_of(figure), summarize_model(build()).layers
    assert num_boxes(figure) == 1 + len(layers)
    for layer in layers:
        assert {layer.name, layer.kind, layer.output.replace("x", "\N{MULTIPLICATION SIGN}")} <= set(words)
    assert num_shortcuts(figure) == 0
    figure.draw_without_rendering()


def test_bars_are_proportional_to_parameters() -> None:
    model = CifarCNN(image_size=8, widths=(2, 3), hidden=5)
    rows = summarize_model(model).layers
    bars = {
        int(str(patch.get_gid()).split()[-1]): patch.get_width()
        for patch in plot_architecture(model).axes[0].patches
        if isinstance(patch, Rectangle)
    }
    largest = max(row.num_parameters for row in rows)
    counts = {number: row.num_parameters for number, row in enumerate(rows, start=1) if row.num_parameters}
    assert bars == pytest.approx({number: 84 * count / largest for number, count in counts.items()})


def test_residual_blocks_are_boxes_with_an_arrow() -> None:
    figure = plot_architecture(ResNet18())
    words = words_of(figure)
    assert words.count("ResidualBlock, 4 layers") == 5
    assert words.count("ResidualBlock, 6 layers") == 3
    assert {"stage1.0", "4,720,640", "42.2 %"} <= set(words)
    assert num_shortcuts(figure) == 8
    assert num_shortcuts(plot_architecture(FastCNN(widths=(4, 8, 8), convs_per_group=3))) == 3


def test_a_deep_network_is_folded_by_its_modules() -> None:
    figure = plot_architecture(torchvision.models.resnet18(num_classes=10))
    assert num_boxes(figure) <= 25
    assert {"layer4.1", "BasicBlock, 6 layers"} <= set(words_of(figure))
    deep = nn.Sequential(OrderedDict({f"$\\frac${i}": nn.ReLU() for i in range(30)}))  # no formulas
    figure = plot_architecture(deep)
    figure.draw_without_rendering()
    assert num_boxes(figure) == 31


def test_trainable_parameters_are_named_if_fewer() -> None:
    assert plot_architecture(FastCNN()).axes[0].get_title() == "FastCNN: 1,972,792 parameters, 1,971,352 trainable"


def test_letters_shrink_with_given_axes() -> None:
    figure = Figure(figsize=(4, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    assert plot_architecture(CifarCNN(), ax=left) is figure
    figure.draw_without_rendering()
    frame = left.get_tightbbox()
    assert frame is not None
    assert frame.x1 <= right.get_window_extent().x1
    natural = plot_architecture(CifarCNN()).axes[0].texts[0].get_fontsize()
    assert left.texts[0].get_fontsize() < natural
