from __future__ import annotations

from collections.abc import Callable

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from sample_evaluation import make_classifier, pixels_of, tiles_of
from torch import nn

from cifarnet import CifarCNN, Classifier, DatasetSplits, FastCNN, Preprocess, ResNet18
from cifarnet.inspection import feature_maps, grad_cam
from cifarnet.visualize import plot_feature_maps, plot_filters, plot_grad_cam


def filters_of(panel: Axes, size: int = 3) -> list[np.ndarray]:
    """Return the filters as images of a pixel per weight."""
    return [tile[:: tile.shape[0] // size, :: tile.shape[1] // size] for tile in tiles_of(panel)]


def scaled(weight: torch.Tensor) -> np.ndarray:
    """Middle grey is 0, the largest absolute weight white or black."""
    values = weight.detach().numpy()
    return np.asarray(0.5 + 0.5 * values / np.abs(values).max())


@pytest.mark.parametrize(("make", "name", "count"), [
    (CifarCNN, "conv1", 32), (ResNet18, "conv", 64), (FastCNN, "whitening", 24), (lambda: nn.Conv2d(3, 70, 2), "", 70),
])  # fmt: skip
def test_the_first_convolution_is_drawn_in_colour(make: Callable[[], nn.Module], name: str, count: int) -> None:
    model = make()
    panel = plot_filters(model).axes[0]
    weight = model.get_submodule(name).weight
    assert isinstance(weight, nn.Parameter)
    note = ", the first 64" if count > 64 else ""
    assert panel.get_title() == f"{name or 'Conv2d'}: {count} filters of {weight.shape[2]} x {weight.shape[3]}{note}"
    drawn = filters_of(panel, weight.shape[2])
    assert len(drawn) == min(count, 64)
    for picture, each in zip(drawn, weight, strict=False):
        np.testing.assert_allclose(picture, scaled(each).transpose(1, 2, 0), atol=1e-6)


def test_filters_of_one_channel_are_drawn_grey() -> None:
    grey = CifarCNN(in_channels=1, widths=(5, 20))
    drawn = filters_of(plot_filters(grey).axes[0])
    assert [picture.shape for picture in drawn] == [(3, 3, 3)] * 5
    for picture, each in zip(drawn, grey.conv1.weight, strict=True):
        np.testing.assert_allclose(picture, np.stack([scaled(each)[0]] * 3, axis=-1), atol=1e-6)


def test_filters_of_many_channels_have_a_row_each() -> None:
    model = CifarCNN(widths=(5, 20))
    panel = plot_filters(model, layer="conv2").axes[0]
    title = "conv2: 20 filters of 3 x 3 on 5 channels\nthe first 12 filters, a row each, and 5 channels"
    assert panel.get_title() == title
    drawn = filters_of(panel)
    assert len(drawn) == 12 * 5
    np.testing.assert_allclose(drawn[5 * 3 + 2][..., 1], scaled(model.conv2.weight[3])[2], atol=1e-6)


@pytest.mark.parametrize("num_classes", [2, 100])
def test_rows_show_the_most_varied_maps_of_a_layer(num_classes: int, synthetic: DatasetSplits) -> None:
    classifier, image = make_classifier(num_classes), synthetic.test.images[0]
    left, *rows = plot_feature_maps(classifier, image, num_maps=5).axes
    expected = feature_maps(classifier, image)
    assert list(expected) == ["bn1", "conv2", "bn2"]
    for row, (name, maps) in zip(rows, expected.items(), strict=True):
        height, width = maps.shape[2:]
        assert row.get_title("left") == f"{name}: {maps.shape[1]} maps of {height} x {width}"
        channels = [int(label.get_text()) for label in row.get_xticklabels()]
        spread = maps[0].flatten(1).std(dim=1)
        assert channels == spread.sort(descending=True, stable=True).indices[:5].tolist()
        for tile, channel in zip(tiles_of(row), channels, strict=True):
            values = maps[0, channel] - maps[0, channel].min()
            shades = matplotlib.colormaps["viridis"]((values / values.max()).numpy())[..., :3]
            np.testing.assert_allclose(tile[:: len(tile) // height, :: len(tile) // height], shades, atol=1e-6)
    np.testing.assert_array_equal(pixels_of(left), image.permute(1, 2, 0).numpy())
    prediction = classifier.predict(image)
    assert left.get_title("left") == f"{prediction.label} {100 * prediction.probability:.0f} %"


def test_the_last_eight_shapes_are_drawn() -> None:
    layers = [nn.Conv2d(width, width + 1, 1) for width in range(3, 18)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(18, 2))
    classifier = Classifier(model, Preprocess(8), ("a", "b"), device="cpu", precision="float32")
    figure = plot_feature_maps(classifier, torch.rand(3, 8, 8), num_maps=2)
    assert [row.get_title("left") for row in figure.axes[1:]] == [f"{i}: {i + 4} maps of 8 x 8" for i in range(7, 15)]


@pytest.mark.parametrize("num_classes", [2, 100])
def test_evidence_is_drawn_beside_each_image(num_classes: int, synthetic: DatasetSplits) -> None:
    classifier, images = make_classifier(num_classes), list(synthetic.test.images[:4])
    axes = plot_grad_cam(classifier, images).axes
    maps = grad_cam(classifier, images)
    assert maps.any()
    for left, right, image, evidence in zip(axes[::2], axes[1::2], images, maps, strict=True):
        np.testing.assert_array_equal(pixels_of(left), image.permute(1, 2, 0).numpy())
        share = (evidence / evidence.max().clamp(min=1e-30)).double().numpy()[..., None]
        heat = matplotlib.colormaps["inferno"](share[..., 0])[..., :3]
        grey = image.numpy().mean(axis=0)[..., None] / 255
        expected = 255 * ((0.15 + 0.6 * share) * heat + (0.85 - 0.6 * share) * grey)
        assert np.abs(pixels_of(right) - expected).max() <= 0.51
        prediction = classifier.predict(image)
        title = f"{prediction.label} {100 * prediction.probability:.1f} %"
        assert left.get_title("left").removesuffix(": no positive evidence") == title


def test_evidence_for_a_chosen_class_names_it(synthetic: DatasetSplits) -> None:
    classifier, image = make_classifier(), synthetic.test.images[0]
    prediction = classifier.predict(image)
    by_index, by_name, other = (plot_grad_cam(classifier, image, target=target).axes for target in (3, "kind 3", 4))
    title = f"evidence for kind 3\n(predicted: {prediction.label} {100 * prediction.probability:.1f} %)"
    for left, _ in (by_index, by_name):
        assert left.get_title("left").removesuffix(": no positive evidence") == title
    assert np.array_equal(pixels_of(by_index[1]), pixels_of(by_name[1]))
    assert not np.array_equal(pixels_of(by_index[1]), pixels_of(other[1]))


def test_a_title_reports_missing_evidence(synthetic: DatasetSplits) -> None:
    classifier = make_classifier()
    nn.init.zeros_(classifier.model.fc2.weight)  # type: ignore[union-attr,arg-type]
    panel = plot_grad_cam(classifier, synthetic.test.images[0]).axes[0]
    assert panel.get_title("left").endswith(": no positive evidence")
