from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import pytest
import torchvision
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle
from matplotlib.text import Text
from torch import nn

from cifarnet import CifarCNN, ResNet18
from cifarnet.errors import InputError, SettingError
from cifarnet.models.summary import summarize_model
from cifarnet.visualize.architecture import plot_architecture


def small_cnn() -> CifarCNN:
    return CifarCNN(4, image_size=8, widths=(2, 3), hidden=5)


def resnet18() -> nn.Module:
    model: nn.Module = torchvision.models.resnet18(num_classes=10)
    return model


def long_names() -> nn.Module:
    """Module and class names that no column has room for, and that mathematics or TeX would stumble over."""
    block = type("Squeeze_And_Excitation_Bottleneck_Block_With_Stochastic_Depth", (nn.Sequential,), {})
    model = nn.Sequential(nn.Flatten())
    model.add_module("the_$first$_of_the_many_blocks_that_this_network_has", block(nn.Linear(12, 8), nn.ReLU()))
    model.add_module("the_classification_head_for_one_hundred_classes", nn.Linear(8, 100))
    return model


def branches() -> nn.Module:
    return nn.Sequential(ResNet18().stage1, nn.Conv2d(64, 3, 1))


def texts_of(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_text()]


def words_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in texts_of(figure)]


def bars_of(figure: Figure) -> dict[int, float]:
    """Lengths by row; the input is row 0."""
    bars = [patch for patch in figure.findobj(Rectangle) if patch.get_gid()]
    return {int(str(bar.get_gid()).split()[-1]): bar.get_width() for bar in bars}


def draw(figure: Figure) -> None:
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]


def test_every_layer_is_written_with_kind_channels_shape_and_count() -> None:
    model = CifarCNN()
    figure = plot_architecture(model)
    words = words_of(figure)
    assert figure.axes[0].get_title() == "CifarCNN: 6,447,754 parameters"
    for layer in summarize_model(model).layers:
        shape = " × ".join(f"{size:,}" for size in layer.output_shape or ())  # noqa: RUF001
        kind = layer.kind.replace("3x3", "3×3").replace("2x2", "2×2")  # noqa: RUF001
        wanted = [layer.name, kind, layer.detail.replace("->", "→"), shape]
        wanted += [f"{layer.num_parameters:,}"] if layer.num_parameters else []
        assert set(filter(None, wanted)) <= set(words), layer
    assert words.count("ReLU") == 3
    assert {"input", "3 × 32 × 32", "99.6 %", "< 0.1 %"} <= set(words)  # noqa: RUF001


def test_rows_stand_in_running_order_from_the_top() -> None:
    figure = plot_architecture(CifarCNN())
    draw(figure)
    kinds = ["input", "conv 3×3", "ReLU", "batch norm"]  # noqa: RUF001
    heights = {text.get_text(): text.get_window_extent().y0 for text in reversed(texts_of(figure))}
    first = {name: max(t.get_window_extent().y0 for t in texts_of(figure) if t.get_text() == name) for name in kinds}
    assert sorted(first, key=lambda name: -first[name]) == kinds
    assert heights["fc1"] > heights["fc2"]


def test_bars_are_as_long_as_the_counts_are_large() -> None:
    model = CifarCNN()
    lengths = bars_of(plot_architecture(model))
    counts = {row: layer.num_parameters for row, layer in enumerate(summarize_model(model).layers, start=1)}
    assert lengths.keys() == {row for row, count in counts.items() if count}
    longest = max(lengths.values())
    for row, length in lengths.items():
        assert length / longest == pytest.approx(counts[row] / 6_423_040)


def test_a_deep_network_is_folded_to_max_rows() -> None:
    model = resnet18()
    figure = plot_architecture(model, max_rows=16)
    assert words_of(figure).count("BasicBlock") == 8
    assert {"layer4.1", "4,720,640", "512 × 1 × 1", "42.2 %"} <= set(words_of(figure))  # noqa: RUF001
    # A block is drawn as two boxes, one behind the other; the input is a row too.
    assert len(figure.findobj(FancyBboxPatch)) == 16 + 8
    assert "layer4" in words_of(plot_architecture(model, max_rows=11))


@pytest.mark.parametrize("build", [CifarCNN, resnet18, long_names, nn.Flatten, branches])
@pytest.mark.parametrize("own_axes", [False, True])
def test_no_text_overlaps_another_or_leaves_its_place(build: Any, own_axes: bool) -> None:
    ax = Figure(figsize=(9, 5), dpi=120).subplots(1, 2)[1] if own_axes else None
    figure = plot_architecture(build(), {long_names: (3, 2, 2), branches: (64, 8, 8)}.get(build), ax=ax)
    draw(figure)
    place = figure.axes[-1].get_window_extent() if own_axes else figure.bbox
    panel = figure.axes[-1].child_axes[0]
    boxes = [(text.get_text(), text.get_window_extent()) for text in panel.texts] + [
        (text.get_text(), text.get_window_extent()) for text in panel.artists if isinstance(text, Text)
    ]
    assert len(boxes) > 6
    for index, (text, box) in enumerate(boxes):
        assert place.x0 <= box.x0 < box.x1 <= place.x1, text
        assert place.y0 <= box.y0 < box.y1 <= place.y1, text
        for other, elsewhere in boxes[index + 1 :]:
            assert not box.overlaps(elsewhere), (text, other)


def test_letters_shrink_with_the_boxes_when_the_figure_does() -> None:
    figure = Figure(figsize=(8, 8))
    plot_architecture(small_cnn(), ax=figure.add_subplot())
    draw(figure)
    text = next(text for text in texts_of(figure) if text.get_text() == "dropout 0.5")
    large = float(text.get_fontsize())
    figure.set_size_inches(4, 4)
    draw(figure)
    assert text.get_fontsize() == pytest.approx(large / 2)


def test_names_that_look_like_mathematics_are_written_as_they_are() -> None:
    with mpl.rc_context({"text.usetex": True}):
        figure = plot_architecture(long_names(), (3, 2, 2))
    figure.axes[0].set_title("")  # the user's own settings hold for titles
    draw(figure)
    words = words_of(figure)
    assert "100" in words
    assert any(word.startswith("…") and word.endswith("this_network_has.0") for word in words)


def test_arrows_join_what_gives_with_what_takes_past_the_rows_between() -> None:
    figure = plot_architecture(ResNet18().stage2, (64, 32, 32), max_rows=30)
    draw(figure)
    panel = figure.axes[0].child_axes[0]
    boxes = [patch.get_bbox() for patch in panel.patches if isinstance(patch, FancyBboxPatch)]
    tips = [patch.get_xy()[0] for patch in panel.patches if isinstance(patch, Polygon)]
    entered = sorted(
        min(range(len(boxes)), key=lambda row: abs((boxes[row].y0 + boxes[row].y1) / 2 - y)) for _, y in tips
    )
    # The first block: two rows of shortcut, then conv1, which takes the input; the shortcut is added in row 8.
    assert entered == [1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 10, 11, 12, 13, 14, 15, 16, 16, 17]
    from_left = [(x, y) for x, y in tips if x < boxes[0].x0]
    assert len(from_left) == 3  # input to conv1, two shortcuts
    strokes = [patch.get_bbox() for patch in panel.patches if isinstance(patch, Rectangle) and not patch.get_gid()]
    upright = [box for box in strokes if abs(box.y1 - box.y0) > 20]
    assert len(upright) == 3
    assert len({round(box.x0, 3) for box in upright}) == 2  # those of the first block cross, in lanes of their own


def test_an_arrow_ends_where_the_box_begins() -> None:
    for model, max_rows in ((CifarCNN(), 24), (resnet18(), 16)):
        panel = plot_architecture(model, max_rows=max_rows).axes[0].child_axes[0]
        boxes = [patch.get_bbox() for patch in panel.patches if isinstance(patch, FancyBboxPatch)]
        tips = [patch.get_xy()[0][1] for patch in panel.patches if isinstance(patch, Polygon)]
        tops = sorted(min(box.y0, box.y1) for box in boxes)
        assert all(any(0 < top - tip < 1 for top in tops) for tip in tips)


def test_given_axes_are_drawn_in_and_their_figure_is_returned() -> None:
    figure = Figure(figsize=(10, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    right.plot([0, 1], [2, 3])
    limits = right.get_xlim(), right.get_ylim()
    assert plot_architecture(CifarCNN(), ax=left) is figure
    draw(figure)
    assert left.get_title() == "CifarCNN: 6,447,754 parameters"
    assert right.get_title() == ""
    assert (right.get_xlim(), right.get_ylim()) == limits
    assert right.axison


def test_frozen_and_unused_parameters_are_said() -> None:
    model = small_cnn()
    model.requires_grad_(False)
    model.fc2.requires_grad_(True)
    model.add_module("auxiliary", nn.Linear(2, 2))
    figure = plot_architecture(model)
    assert figure.axes[0].get_title().endswith("parameters, 30 trainable")
    assert {"auxiliary", "linear, not used"} <= set(words_of(figure))


def test_errors_name_the_setting() -> None:
    with pytest.raises(InputError, match="image_shape="):
        plot_architecture(small_cnn(), (1, 32, 32))
    with pytest.raises(SettingError, match="max_rows must be at least 3"):
        plot_architecture(small_cnn(), max_rows=0)


def test_it_saves_to_every_format() -> None:
    for kind in ("png", "pdf", "svg"):
        buffer = io.BytesIO()
        plot_architecture(small_cnn()).savefig(buffer, format=kind, bbox_inches="tight")
        assert buffer.tell() > 1000
