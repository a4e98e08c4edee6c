from __future__ import annotations

from collections.abc import Callable

import matplotlib
import numpy as np
import pytest
import torch
from judged import DARK, inks
from matplotlib.figure import Figure
from torch import nn

from cifarnet import CifarCNN, FastCNN, ResNet18
from cifarnet.errors import InputError, SettingError
from cifarnet.visualize import plot_filters


def drawn(figure: Figure) -> list[np.ndarray]:
    """The filters, cut out of their picture at the places that nothing is drawn on, a pixel a weight."""
    mosaic = np.asarray(figure.axes[0].get_images()[0].get_array())
    rows, columns = (_runs(mosaic[..., 3].max(axis=axis) > 0) for axis in (1, 0))
    tiles = [mosaic[top:bottom, left:right] for top, bottom in rows for left, right in columns]
    assert all((tile[..., 3] == tile[0, 0, 3]).all() for tile in tiles)
    return [tile[4::8, 4::8, :3] for tile in tiles if tile[0, 0, 3]]


def _runs(filled: np.ndarray) -> list[tuple[int, int]]:
    ends = np.flatnonzero(np.diff([0, *filled.astype(int), 0]))
    return list(zip(ends[::2].tolist(), ends[1::2].tolist(), strict=True))


def scaled(weight: torch.Tensor) -> np.ndarray:
    """Middle grey is 0, the largest absolute weight white or black."""
    values = weight.detach().numpy()
    return np.asarray(0.5 + 0.5 * values / np.abs(values).max())


@pytest.mark.parametrize(("make", "name", "count"), [
    (CifarCNN, "conv1", 32), (ResNet18, "conv", 64), (FastCNN, "whitening", 24), (lambda: CifarCNN(100), "conv1", 32),
])  # fmt: skip
def test_the_first_convolution_is_drawn_in_colour_filter_by_filter(
    make: Callable[[], nn.Module], name: str, count: int
) -> None:
    model = make()
    figure = plot_filters(model)
    weight = model.get_submodule(name).weight
    assert isinstance(weight, nn.Parameter)
    size = " x ".join(map(str, weight.shape[2:]))
    assert figure.axes[0].get_title() == f"{name}: {count} filters of {size}"
    assert len(drawn(figure)) == count
    for picture, each in zip(drawn(figure), weight, strict=True):
        np.testing.assert_allclose(picture, scaled(each).transpose(1, 2, 0), atol=1e-6)


def test_one_channel_is_grey_and_other_numbers_have_a_row_a_filter() -> None:
    grey = CifarCNN(in_channels=1, widths=(5, 20))
    assert [picture.shape for picture in drawn(plot_filters(grey))] == [(3, 3, 3)] * 5
    for picture, each in zip(drawn(plot_filters(grey)), grey.conv1.weight, strict=True):
        np.testing.assert_allclose(picture, np.stack([scaled(each)[0]] * 3, axis=-1), atol=1e-6)
    figure = plot_filters(grey, layer="conv2")
    title = "conv2: 20 filters of 3 x 3 on 5 channels\nthe first 12 filters, a row each, and 5 channels"
    assert figure.axes[0].get_title() == title
    pictures = drawn(figure)
    assert len(pictures) == 12 * 5
    np.testing.assert_allclose(pictures[5 * 3 + 2][..., 1], scaled(grey.conv2.weight[3])[2], atol=1e-6)


def test_of_many_filters_the_first_are_drawn() -> None:
    figure = plot_filters(nn.Conv2d(3, 70, 2))
    assert len(drawn(figure)) == 64
    assert figure.axes[0].get_title().endswith(": 70 filters of 2 x 2, the first 64")


def test_a_filter_of_zeros_is_grey() -> None:
    conv = nn.Conv2d(3, 2, 3)
    nn.init.zeros_(conv.weight)
    assert all((picture == 0.5).all() for picture in drawn(plot_filters(conv)))


def test_weights_stay_as_they_are() -> None:
    model = CifarCNN()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plot_filters(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training


def test_it_draws_into_the_axes_it_is_given_and_on_a_dark_figure() -> None:
    with matplotlib.rc_context(DARK):
        own = plot_filters(CifarCNN())
        figure = Figure(facecolor="black")
        assert plot_filters(CifarCNN(), ax=figure.subplots()) is figure
    assert (inks(own), inks(figure)) == ({"#222222"}, {"#eeeeee"})


def test_what_has_no_filters_is_refused() -> None:
    with pytest.raises(SettingError, match='layer "conv" is no convolution of the network; did you mean "conv'):
        plot_filters(CifarCNN(), layer="conv")
    with pytest.raises(InputError, match=r"Linear has no nn.Conv2d"):
        plot_filters(nn.Linear(2, 2))
    with pytest.raises(InputError, match="expected a network, got str"):
        plot_filters("run")  # type: ignore[arg-type]
    broken = nn.Conv2d(3, 2, 3)
    nn.init.constant_(broken.weight, float("nan"))
    with pytest.raises(InputError, match="NaN or infinity among its weights"):
        plot_filters(broken)
