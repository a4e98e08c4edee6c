from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from cifarnet import CifarCNN, Classifier, DatasetSplits, ImageDataset, Preprocess
from cifarnet.data import ImageLike
from cifarnet.errors import InputError, SettingError
from cifarnet.visualize import plot_predictions

SIZE = 16
BLUE, VERMILION = "#0072b2", "#d55e00"


def make_classifier(classes: tuple[str, ...]) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CifarCNN(len(classes), image_size=SIZE, widths=(4, 4), hidden=16)
    return Classifier(model, Preprocess(SIZE), classes, device="cpu", precision="float32")


def cells(figure: Figure) -> list[Axes]:
    return [cast("Axes", cell) for cell in figure.axes[0].child_axes if cell.child_axes]


def bars(cell: Axes) -> list[tuple[float, str]]:
    """Width and colour of each probability's bar."""
    shapes = cell.child_axes[1].patches[1::2]  # each lies on a grey one of full width
    return [(shape.get_width(), to_hex(shape.get_facecolor())) for shape in shapes]  # type: ignore[attr-defined]


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_bars_labels_and_marks_are_those_of_the_predictions(num_classes: int, synthetic: DatasetSplits) -> None:
    classes = tuple(f"kind {i}" for i in range(num_classes))
    classifier = make_classifier(classes)
    data = ImageDataset(synthetic.test.images, synthetic.test.labels % num_classes, classes)
    figure = plot_predictions(classifier, data, num_images=30)
    assert len(cells(figure)) == 30
    right = 0
    for cell in cells(figure):
        shown = torch.from_numpy(np.asarray(cell.child_axes[0].get_images()[0].get_array()).copy()).permute(2, 0, 1)
        index = next(i for i in range(len(data)) if torch.equal(data.images[i], shown))
        truth, prediction = classes[int(data.labels[index])], classifier.predict(data.images[index], top_k=3)
        assert [width for width, _ in bars(cell)] == pytest.approx([p for _, p in prediction.top], abs=1e-6)
        texts = [text.get_text() for text in cell.child_axes[1].texts]
        assert texts[::2] == [label for label, _ in prediction.top]
        assert texts[1::2] == [f"{100 * p:.0f} %" for _, p in prediction.top]
        picture = cell.child_axes[0].spines["left"]
        if truth == prediction.label:
            right += 1
            assert cell.get_title("left") == f"✓ {truth}"
            assert (picture.get_linestyle(), to_hex(picture.get_edgecolor())) == ("-", BLUE)
            assert bars(cell)[0][1] == BLUE
        else:
            assert cell.get_title("left") == f"✗ {prediction.label} (truth: {truth})"
            assert picture.get_linestyle() != "-"
            assert to_hex(picture.get_edgecolor()) == VERMILION
            assert bars(cell)[0][1] == VERMILION
            for (label, _), (_, colour) in zip(prediction.top[1:], bars(cell)[1:], strict=True):
                assert (colour == BLUE) == (label == truth)
    assert right < 30
    assert right > 0 or num_classes == 100


def test_which_images_is_a_function_of_the_seed(synthetic: DatasetSplits) -> None:
    classifier = make_classifier(synthetic.test.classes)

    def shown(seed: int) -> list[bytes]:
        figure = plot_predictions(classifier, synthetic.test, seed=seed)
        return [np.asarray(cell.child_axes[0].get_images()[0].get_array()).tobytes() for cell in cells(figure)]

    assert shown(0) == shown(0)
    assert set(shown(0)) != set(shown(1))
    assert len(set(shown(0))) == 9


def test_photos_without_a_truth_are_neither_right_nor_wrong(synthetic: DatasetSplits, tmp_path: Path) -> None:
    classifier = make_classifier(synthetic.test.classes)
    Image.new("RGB", (900, 600), "red").save(tmp_path / "red.png")
    images: list[ImageLike] = [tmp_path / "red.png", synthetic.test.images[0], Image.new("L", (5, 9))]
    figure = plot_predictions(classifier, images)
    for cell, image in zip(cells(figure), images, strict=True):
        assert cell.get_title("left") == classifier.predict(image).label
        assert not {BLUE, VERMILION} & {colour for _, colour in bars(cell)}
    first = np.asarray(cells(figure)[0].child_axes[0].get_images()[0].get_array())
    assert first.shape == (256, 256, 3)  # what the network saw of it, and no more pixels than a panel shows


def test_long_names_are_shortened_and_stay_different(synthetic: DatasetSplits) -> None:
    classes = tuple(f"a remarkably long name of a class, of which this is number {i:02}" for i in range(10))
    data = ImageDataset(synthetic.test.images, synthetic.test.labels, classes)
    figure = plot_predictions(make_classifier(classes), data, num_images=12, columns=4)
    for cell in cells(figure):
        lines = cell.get_title("left").splitlines()
        assert len(lines) == 1 or lines[1].startswith("(truth: a remar")
        assert all(len(line) <= 42 for line in lines)
        names = [text.get_text() for text in cell.child_axes[1].texts[::2]]
        assert len(set(names)) == 3
        assert all(len(name) <= 28 for name in names)


def test_names_are_no_mathematics(synthetic: DatasetSplits, tmp_path: Path) -> None:
    classes = (r"$\frac$", "a $x_1$ b", *map(str, range(8)))
    data = ImageDataset(synthetic.test.images, synthetic.test.labels, classes)
    figure = plot_predictions(make_classifier(classes), data, num_images=20, top_k=10)
    figure.savefig(tmp_path / "a.png")
    texts = [text.get_text() for cell in cells(figure) for text in cast("Axes", cell.child_axes[1]).texts]
    assert {r"$\frac$", "a $x_1$ b"} <= set(texts)


def test_a_layout_has_as_many_panels_as_images(synthetic: DatasetSplits) -> None:
    classifier = make_classifier(synthetic.test.classes)
    for count, columns in ((1, 3), (4, 3), (7, 2)):
        figure = plot_predictions(classifier, synthetic.test, num_images=count, columns=columns)
        figure.draw_without_rendering()
        assert len(cells(figure)) == count
        lefts = {round(cell.get_position().x0, 3) for cell in cells(figure)}
        assert len(lefts) == min(count, columns)


def test_it_draws_into_the_axes_it_is_given(synthetic: DatasetSplits) -> None:
    figure = Figure(figsize=(4, 3))
    ax = figure.subplots(1, 2)[1]
    assert plot_predictions(make_classifier(synthetic.test.classes), synthetic.test, ax=ax) is figure
    drawn = [cell for cell in ax.child_axes if cell.child_axes]
    assert len(drawn) == 9
    sizes = [text.get_fontsize() for text in cast("Axes", drawn[0].child_axes[1]).texts]
    assert max(map(float, sizes)) < 4  # the axes are less than half as wide as a figure of its own


def test_other_classes_wrong_counts_and_what_is_no_list_are_refused(synthetic: DatasetSplits) -> None:
    classifier = make_classifier(("a", "b"))
    with pytest.raises(InputError, match="tells 2 classes"):
        plot_predictions(classifier, synthetic.test)
    with pytest.raises(InputError, match=r"expected a Classifier, got CifarCNN; Classifier.load"):
        plot_predictions(classifier.model, synthetic.test)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"got Tensor; .* a batch is list\(images\)"):
        plot_predictions(classifier, synthetic.test.images)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"got str; one image is \[image\]"):
        plot_predictions(classifier, "cat.png")
    with pytest.raises(InputError, match="no images to draw"):
        plot_predictions(classifier, [])
    for name in ("num_images", "columns", "top_k"):
        with pytest.raises(SettingError, match=f"{name} must be at least 1, got 0"):
            plot_predictions(classifier, [Image.new("RGB", (8, 8))], **{name: 0})  # type: ignore[arg-type]
