from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch
from judged import DARK, LONG, inks, judged, panels
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from cifarnet.errors import InputError, SettingError
from cifarnet.visualize import plot_top_losses

BLUE, VERMILION = "#0072b2", "#d55e00"


def cells(figure: Figure) -> list[Axes]:
    return [cell for cell in panels(figure.axes[0]) if cell.child_axes]


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_cells_show_the_top_losses(num_classes: int) -> None:
    evaluation, data, _ = judged(num_classes)
    figure = plot_top_losses(evaluation, data, num_images=20)
    assert len(cells(figure)) == 20
    for cell, one in zip(cells(figure), evaluation.top_losses, strict=False):
        picture, side = panels(cell)
        shown = torch.from_numpy(np.asarray(picture.get_images()[0].get_array()).copy()).permute(2, 0, 1)
        assert torch.equal(shown, data.images[one.index])
        true, taken = f"kind {one.label}", f"kind {one.predicted}"
        assert true != taken
        assert cell.get_title("left") == f"✗ {taken} (truth: {true})"
        lines = [f"loss {one.loss:.2f}", f"{100 * one.probability:.1f} % sure", f"image {7000 + one.index}"]
        assert side.texts[0].get_text().splitlines() == lines
        assert to_hex(picture.spines["left"].get_edgecolor()) == VERMILION
    losses = [one.loss for one in evaluation.top_losses[:20]]
    assert losses == sorted(losses, reverse=True)


def test_right_but_unsure_is_told_from_wrong() -> None:
    evaluation, data, _ = judged(10, skill=9.0)
    (cell,) = cells(plot_top_losses(evaluation, data.subset(range(400)), num_images=1))
    assert evaluation.num_correct == 400
    assert cell.get_title("left") == f"✓ kind {evaluation.top_losses[0].label}"
    assert to_hex(panels(cell)[0].spines["left"].get_edgecolor()) == BLUE


def test_there_are_no_more_than_the_evaluation_keeps() -> None:
    evaluation, data, _ = judged(3, num_images=7, names=LONG[:3])
    figure = plot_top_losses(evaluation, data, num_images=100, columns=3)
    assert len(cells(figure)) == 7
    for cell in cells(figure):
        assert all(len(line) <= 42 for line in cell.get_title("left").splitlines())


def test_data_that_was_not_evaluated_is_refused() -> None:
    evaluation, data, _ = judged(10)
    with pytest.raises(InputError, match="of 400 images, the data set has 399"):
        plot_top_losses(evaluation, data.subset(range(399)))
    with pytest.raises(InputError, match=r"image \d+ has id 7\d+ and label \d, but id .* in the same order"):
        plot_top_losses(evaluation, data.subset(range(399, -1, -1)))
    other, _, _ = judged(10, names=LONG[:10])
    with pytest.raises(InputError, match="other class names"):
        plot_top_losses(other, data)
    with pytest.raises(InputError, match="expected an ImageDataset, got Tensor"):
        plot_top_losses(evaluation, data.images)  # type: ignore[arg-type]
    for name in ("num_images", "columns"):
        with pytest.raises(SettingError, match=f"{name} must be at least 1, got 0"):
            plot_top_losses(evaluation, data, **{name: 0})  # type: ignore[arg-type]


def test_it_draws_into_the_axes_it_is_given_and_on_a_dark_figure() -> None:
    evaluation, data, _ = judged(10)
    with matplotlib.rc_context(DARK):
        own = plot_top_losses(evaluation, data, num_images=2)
        figure = Figure(facecolor="black")
        assert plot_top_losses(evaluation, data, num_images=2, ax=figure.subplots()) is figure
    assert (inks(own), inks(figure)) == ({"#222222"}, {"#eeeeee"})
