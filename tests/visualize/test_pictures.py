from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from sample_evaluation import make_classifier, make_evaluation, pixels_of, tiles_of
from torchvision.transforms import v2

from cifarnet import (
    CifarCNN,
    DatasetSplits,
    ImageDataset,
    Preprocess,
    Trainer,
    Transforms,
    build_transforms,
    randomness,
)
from cifarnet.data import ImageLike
from cifarnet.visualize import plot_augmentations, plot_predictions, plot_top_losses

BLUE, VERMILION = "#0072b2", "#d55e00"


def cells(figure: Figure) -> list[tuple[Axes, Axes]]:
    return list(zip(figure.axes[::2], figure.axes[1::2], strict=True))


def image_of(panel: Axes) -> torch.Tensor:
    return torch.from_numpy(pixels_of(panel).copy()).permute(2, 0, 1)


def bars_of(panel: Axes) -> list[tuple[float, str]]:
    """Return width and colour of each probability's bar, each of which lies on a grey one of full width."""
    bars = (bar for bar in panel.patches[1::2] if isinstance(bar, Rectangle))
    return [(bar.get_width(), to_hex(bar.get_facecolor())) for bar in bars]


def frame_of(panel: Axes) -> tuple[bool, str]:
    """Return whether the frame is solid, and its colour."""
    return panel.spines["left"].get_linestyle() == "-", to_hex(panel.spines["left"].get_edgecolor())


@pytest.mark.parametrize("num_classes", [2, 100])
def test_predictions_have_bars_marks_and_frames(num_classes: int, synthetic: DatasetSplits) -> None:
    classifier = make_classifier(num_classes)
    classes = tuple(f"kind {i}" for i in range(num_classes))
    data = ImageDataset(synthetic.test.images, synthetic.test.labels % num_classes, classes)
    drawn = cells(plot_predictions(classifier, data, num_images=30))
    assert len(drawn) == 30
    for left, right in drawn:
        index = next(i for i in range(len(data)) if torch.equal(data.images[i], image_of(left)))
        truth, prediction = classes[int(data.labels[index])], classifier.predict(data.images[index], top_k=3)
        assert [width for width, _ in bars_of(right)] == pytest.approx([p for _, p in prediction.top], abs=1e-6)
        texts = [text.get_text() for text in right.texts]
        assert texts[::2] == [label for label, _ in prediction.top]
        assert texts[1::2] == [f"{100 * p:.0f} %" for _, p in prediction.top]
        if truth == prediction.label:
            assert left.get_title("left") == f"✓ {truth}"
            assert frame_of(left) == (True, BLUE)
            assert bars_of(right)[0][1] == BLUE
        else:
            assert left.get_title("left") == f"✗ {prediction.label} (truth: {truth})"
            assert frame_of(left) == (False, VERMILION)
            assert bars_of(right)[0][1] == VERMILION
            for (label, _), (_, colour) in zip(prediction.top[1:], bars_of(right)[1:], strict=True):
                assert (colour == BLUE) == (label == truth)
    marks = [left.get_title("left")[0] for left, _ in drawn]
    assert marks.count("✗") > 0
    assert marks.count("✓") > 0 or num_classes == 100


def test_the_seed_chooses_the_images(synthetic: DatasetSplits) -> None:
    classifier = make_classifier(names=synthetic.test.classes)

    def shown(seed: int) -> list[bytes]:
        return [pixels_of(left).tobytes() for left, _ in cells(plot_predictions(classifier, synthetic.test, seed=seed))]

    assert shown(0) == shown(0)
    assert set(shown(0)) != set(shown(1))
    assert len(set(shown(0))) == 9


def test_photos_without_a_true_class_have_no_mark(tmp_path: Path) -> None:
    classifier = make_classifier()
    Image.new("RGB", (900, 600), "red").save(tmp_path / "red.png")
    images: list[ImageLike] = [tmp_path / "red.png", torch.rand(3, 16, 16), Image.new("L", (5, 9))]
    drawn = cells(plot_predictions(classifier, images))
    for (left, right), image in zip(drawn, images, strict=True):
        assert left.get_title("left") == classifier.predict(image).label
        assert not {BLUE, VERMILION} & {colour for _, colour in bars_of(right)}
        assert not left.axison
    assert pixels_of(drawn[0][0]).shape == (256, 256, 3)  # what the network sees, with the pixels of a panel


@pytest.mark.parametrize("num_classes", [2, 100])
def test_top_losses_start_with_the_highest(num_classes: int) -> None:
    evaluation, data, _ = make_evaluation(num_classes)
    drawn = cells(plot_top_losses(evaluation, data, num_images=20))
    assert len(drawn) == 20
    for (left, right), one in zip(drawn, evaluation.top_losses, strict=False):
        assert torch.equal(image_of(left), data.images[one.index])
        assert one.label != one.predicted
        assert left.get_title("left") == f"✗ kind {one.predicted} (truth: kind {one.label})"
        lines = [f"loss {one.loss:.2f}", "confidence", f"{100 * one.probability:.1f} %", f"image {7000 + one.index}"]
        assert right.texts[0].get_text().splitlines() == lines
        assert frame_of(left) == (False, VERMILION)
    losses = [one.loss for one in evaluation.top_losses[:20]]
    assert losses == sorted(losses, reverse=True)


def augmented_in_training(transforms: Transforms, data: ImageDataset, *, seed: int) -> list[dict[int, torch.Tensor]]:
    """Return the augmented images of three epochs of training, by image id."""
    seen: list[dict[int, torch.Tensor]] = [{}, {}, {}]

    class Recording(v2.Transform):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            augmented: torch.Tensor = transforms.augment(images)
            current = randomness._current.get()
            assert current is not None
            seen[int(current.epoch)].update(zip(current.ids.tolist(), augmented, strict=True))
            return augmented

    model = CifarCNN(image_size=16, widths=(4, 4), hidden=8)
    recording = Transforms(Recording(), Preprocess(16))
    trainer = Trainer(model, torch.optim.SGD(model.parameters()), transforms=recording, seed=seed, device="cpu")
    trainer.fit(data, max_epochs=3, batch_size=2, progress_bar=False)
    return seen


def test_augmentations_are_those_of_a_run_with_that_seed(synthetic: DatasetSplits) -> None:
    data = synthetic.train.subset([7, 3, 5])
    transforms = build_transforms(crop_padding=3, cutout=4)
    trained_on = augmented_in_training(transforms, data, seed=11)

    def shown(seed: int) -> list[np.ndarray]:
        figure = plot_augmentations(transforms, data, num_images=2, num_epochs=3, seed=seed)
        assert [label.get_text() for label in figure.axes[0].get_xticklabels()[:2]] == ["original", "epoch 1"]
        tiles = tiles_of(figure.axes[0])
        return [np.rint(255 * tile[2::4, 2::4].transpose(2, 0, 1)) for tile in tiles]  # 4 x 4 for each pixel

    tiles = shown(11)
    assert len(tiles) == 2 * 4
    for row in range(2):
        np.testing.assert_array_equal(tiles[4 * row], data.images[row])
        for epoch in range(3):
            np.testing.assert_array_equal(tiles[4 * row + 1 + epoch], trained_on[epoch][int(data.ids[row])])
    assert not all(np.array_equal(a, b) for a, b in zip(tiles, shown(12), strict=True))


def test_external_transforms_leave_the_random_state_alone(synthetic: DatasetSplits) -> None:
    before = torch.get_rng_state()
    erasing = v2.RandomErasing(p=1.0)
    first, again = (tiles_of(plot_augmentations(erasing, synthetic.train, num_images=1).axes[0]) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[1], first[2])
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
