from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from judged import DARK, inks, panels, told
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from cifarnet import CifarCNN, Classifier, DatasetSplits, Preprocess
from cifarnet.errors import InputError, SettingError
from cifarnet.inspection import feature_maps
from cifarnet.visualize import plot_feature_maps

SIZE = 16


def make_classifier(num_classes: int = 10, name: str = "kind {}") -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CifarCNN(num_classes, image_size=SIZE, widths=(6, 12), hidden=8)
    classes = [name.format(i) for i in range(num_classes)]
    return Classifier(model, Preprocess(SIZE), classes, device="cpu", precision="float32")


def rows(figure: Figure, num_maps: int) -> list[list[Axes]]:
    cells = panels(panels(figure.axes[0])[1])
    return [cells[i : i + num_maps] for i in range(0, len(cells), num_maps)]


def picture(panel: Axes) -> np.ndarray:
    return np.asarray(panel.get_images()[0].get_array())


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_rows_are_the_most_varied_maps_of_each_layer(num_classes: int, synthetic: DatasetSplits) -> None:
    classifier, image = make_classifier(num_classes), synthetic.test.images[0]
    figure = plot_feature_maps(classifier, image, num_maps=5)
    expected = feature_maps(classifier, image)
    assert list(expected) == ["bn1", "conv2", "bn2"]
    for row, (name, maps) in zip(rows(figure, 5), expected.items(), strict=True):
        height, width = maps.shape[2:]
        assert row[0].get_title("left") == f"{name}: {maps.shape[1]} maps of {height} x {width}"
        shown = [int(panel.get_xlabel()) for panel in row]
        spread = maps[0].flatten(1).std(dim=1)
        assert shown == spread.sort(descending=True, stable=True).indices[:5].tolist()
        for panel, channel in zip(row, shown, strict=True):
            np.testing.assert_array_equal(picture(panel), maps[0, channel].numpy())
    left = panels(figure.axes[0])[0]
    np.testing.assert_array_equal(picture(left), image.permute(1, 2, 0).numpy())
    prediction = classifier.predict(image)
    assert left.get_title() == f"{prediction.label} {100 * prediction.probability:.0f} %"


def test_chosen_layers_are_drawn_and_places_without_a_map_stay_empty(synthetic: DatasetSplits) -> None:
    figure = plot_feature_maps(make_classifier(), synthetic.test.images[0], layers=["bn1", "bn2"], num_maps=20)
    first, second = rows(figure, 12)
    assert [len(panel.get_images()) for panel in first] == [1] * 6 + [0] * 6
    assert [len(panel.get_images()) for panel in second] == [1] * 12


def test_of_many_sizes_some_are_chosen_and_the_last_is_among_them() -> None:
    widths = range(3, 18)
    layers = [nn.Conv2d(width, width + 1, 1) for width in widths]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(18, 2))
    classifier = Classifier(model, Preprocess(8), ("a", "b"), device="cpu", precision="float32")
    figure = plot_feature_maps(classifier, torch.rand(3, 8, 8), num_maps=2)
    titles = [row[0].get_title("left") for row in rows(figure, 2)]
    assert titles == [f"{i}: {i + 4} maps of 8 x 8" for i in (0, 2, 4, 6, 8, 10, 12, 14)]


def test_any_image_that_predict_takes_is_drawn(tmp_path: Path) -> None:
    Image.new("RGB", (900, 600), "red").save(tmp_path / "red.png")
    figure = plot_feature_maps(make_classifier(name="a remarkably long name, number {}"), tmp_path / "red.png")
    assert picture(panels(figure.axes[0])[0]).shape == (256, 256, 3)
    assert len(panels(figure.axes[0])[0].get_title()) <= 18 + len(" 100 %")


def test_it_draws_into_the_axes_it_is_given_and_on_a_dark_figure(synthetic: DatasetSplits) -> None:
    image = synthetic.test.images[0]
    with matplotlib.rc_context(DARK):
        own = plot_feature_maps(make_classifier(), image, num_maps=2)
        figure = Figure(facecolor="black")
        assert plot_feature_maps(make_classifier(name="$a_{}$"), image, num_maps=2, ax=figure.subplots()) is figure
    assert (inks(own), inks(figure)) == ({"#222222"}, {"#eeeeee"})
    assert any(text.startswith("$a_") for text in told(figure.axes[0]))


def test_lists_and_wrong_numbers_are_refused(synthetic: DatasetSplits) -> None:
    with pytest.raises(InputError, match="expected one image, got a list"):
        plot_feature_maps(make_classifier(), list(synthetic.test.images[:2]))  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="num_maps must be at least 1, got 0"):
        plot_feature_maps(make_classifier(), synthetic.test.images[0], num_maps=0)
    with pytest.raises(SettingError, match='did you mean "conv'):
        plot_feature_maps(make_classifier(), synthetic.test.images[0], layers=["conv"])
