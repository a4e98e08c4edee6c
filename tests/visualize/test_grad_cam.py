from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch
from judged import DARK, inks, panels
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from test_feature_maps import make_classifier, picture
from torch import nn

from cifarnet import DatasetSplits
from cifarnet.errors import InputError, SettingError
from cifarnet.inspection import grad_cam
from cifarnet.visualize import plot_grad_cam


def cells(figure: Figure) -> list[Axes]:
    return [cell for cell in panels(figure.axes[0]) if cell.child_axes]


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_images_stand_beside_their_evidence(num_classes: int, synthetic: DatasetSplits) -> None:
    classifier, images = make_classifier(num_classes), list(synthetic.test.images[:4])
    figure = plot_grad_cam(classifier, images)
    maps = grad_cam(classifier, images)
    assert len(cells(figure)) == 4
    for cell, image, evidence in zip(cells(figure), images, maps, strict=True):
        left, right = panels(cell)
        np.testing.assert_array_equal(picture(left), image.permute(1, 2, 0).numpy())
        # Where there is no evidence the image is grey and darker; where there is most it has the map's last colour.
        share = (evidence / evidence.max().clamp(min=1e-30)).double().numpy()[..., None]
        heat = matplotlib.colormaps["inferno"](share[..., 0])[..., :3]
        grey = image.numpy().mean(axis=0)[..., None] / 255
        expected = 255 * ((0.15 + 0.6 * share) * heat + (0.85 - 0.6 * share) * grey)
        assert np.abs(picture(right) - expected).max() <= 0.51
        prediction = classifier.predict(image)
        title = f"{prediction.label} {100 * prediction.probability:.1f} %"
        assert cell.get_title("left").removesuffix(": nothing speaks for it") == title
    assert maps.any()


def test_a_class_that_is_asked_about_is_named(synthetic: DatasetSplits) -> None:
    classifier, image = make_classifier(), synthetic.test.images[0]
    prediction = classifier.predict(image)
    for target in (3, "kind 3"):
        (cell,) = cells(plot_grad_cam(classifier, image, target=target))
        title = f"evidence for kind 3\n(taken for {prediction.label} {100 * prediction.probability:.1f} %)"
        assert cell.get_title("left").removesuffix(": nothing speaks for it") == title
    other = cells(plot_grad_cam(classifier, image, target=4))[0]
    assert not np.array_equal(picture(panels(other)[1]), picture(panels(cell)[1]))


def test_without_evidence_the_figure_says_so(synthetic: DatasetSplits) -> None:
    classifier = make_classifier()
    nn.init.zeros_(classifier.model.fc2.weight)  # type: ignore[union-attr,arg-type]
    (cell,) = cells(plot_grad_cam(classifier, synthetic.test.images[0]))
    assert cell.get_title("left").endswith(": nothing speaks for it")


def test_it_draws_into_the_axes_it_is_given_and_on_a_dark_figure(synthetic: DatasetSplits) -> None:
    image = synthetic.test.images[0]
    with matplotlib.rc_context(DARK):
        own = plot_grad_cam(make_classifier(), image)
        figure = Figure(facecolor="black")
        assert plot_grad_cam(make_classifier(name="$a_{}$"), image, ax=figure.subplots()) is figure
    assert (inks(own), inks(figure)) == ({"#222222"}, {"#eeeeee"})


def test_what_cannot_be_drawn_is_refused(synthetic: DatasetSplits) -> None:
    with pytest.raises(SettingError, match="columns must be at least 1, got 0"):
        plot_grad_cam(make_classifier(), synthetic.test.images[0], columns=0)
    with pytest.raises(InputError, match="There are no images"):
        plot_grad_cam(make_classifier(), [])
    with pytest.raises(SettingError, match='did you mean "bn2"'):
        plot_grad_cam(make_classifier(), torch.rand(3, 8, 8), layer="bn")
