"""Test-time augmentation, compared with averages that numpy computes copy by copy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cifarnet import Classifier, DatasetSplits, Trainer
from cifarnet.errors import DataError, SettingError
from cifarnet.transforms import TTA
from cifarnet.transforms.tta import TTA_NAMES, average_logits, current_tta_name

MakeTrainer = Callable[..., Trainer]
#: Weight of each copy, by the shift in both directions.
WEIGHTS: dict[str, dict[int, float]] = {"flip": {0: 0.5}, "flip+shift": {0: 0.25, 1: 0.125, -1: 0.125}}


class Network:
    """Network that is sensitive to every pixel, and counts its images."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.weights = torch.from_numpy(np.random.default_rng(0).normal(size=(math.prod(shape), 4)))
        self.num_images = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.num_images += len(images)
        return torch.tanh(images.flatten(1) @ self.weights / len(self.weights) ** 0.5) * 3


def average(predict: Callable[[Tensor], Tensor], images: Tensor, tta: str) -> Tensor:
    """Average the logits of the copies of images ``(N, C, H, W)``."""
    height, width = images.shape[2:]
    around = np.pad(images.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    total = torch.zeros(())
    for d, weight in WEIGHTS[tta].items():
        shifted = around[:, :, 1 - d : 1 - d + height, 1 - d : 1 - d + width]  # pixel (y, x) comes from (y - d, x - d)
        for copy in (shifted, shifted[..., ::-1]):
            total = total + weight * predict(torch.from_numpy(copy.copy())).double()
    return total


def random_images(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape))


@settings(max_examples=40, deadline=None)
@given(
    tta=st.sampled_from(TTA_NAMES),
    num_images=st.integers(1, 5),
    channels=st.integers(1, 4),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
)
def test_logits_are_the_weighted_mean_over_the_copies(
    tta: TTA, num_images: int, channels: int, height: int, width: int
) -> None:
    images, network = random_images(num_images, channels, height, width), Network((channels, height, width))
    logits = average_logits(network, images, tta)
    assert network.num_images == num_images * {"flip": 2, "flip+shift": 6}[tta]
    torch.testing.assert_close(logits, average(network, images, tta), rtol=0, atol=1e-12)


@pytest.mark.parametrize("tta", TTA_NAMES)
def test_evaluation_and_prediction_use_averaged_logits(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tta: TTA
) -> None:
    trainer = make_trainer(precision="float64")
    trainer.fit(synthetic.train, max_epochs=1, progress_bar=False)
    test, preprocess = synthetic.test, trainer.transforms.preprocess
    found = trainer.evaluate(test, tta=tta)
    with torch.no_grad():
        logits = average(trainer.model.eval(), preprocess(test.images.double() / 255), tta)
    assert found.num_correct == int((logits.argmax(1) == test.labels).sum())
    assert found.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, test.labels)), abs=1e-6)
    assert str(found).endswith(f"100 images, with test-time augmentation ({tta})")
    assert trainer.evaluate(test).tta is None
    classifier = Classifier(trainer.model, preprocess, test.classes, device="cpu", precision="float64")
    assert classifier.evaluate(test, tta=tta) == found
    predictions = classifier.predict(list(test.images[:3]), tta=tta, top_k=10)
    for prediction, row in zip(predictions, logits.softmax(1), strict=False):
        assert [p for _, p in prediction.top] == pytest.approx(sorted(row.tolist(), reverse=True), abs=1e-6)


def test_unknown_tta_is_refused_before_a_prediction(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    trainer = make_trainer()
    classifier = Classifier(trainer.model, trainer.transforms.preprocess, synthetic.test.classes, device="cpu")
    uses: list[Any] = [trainer.evaluate, classifier.evaluate, classifier.predict, classifier.calibrate]
    for use in uses:
        with pytest.raises(SettingError, match='tta "flip_shift" is unknown; did you mean "flip\\+shift"'):
            use("no data", tta="flip_shift")


def test_images_of_one_row_cannot_be_shifted() -> None:
    with pytest.raises(DataError, match=r'tta="flip\+shift" needs images of at least 2x2 pixels, got 1x4'):
        average_logits(Network((3, 1, 4)), random_images(2, 3, 1, 4), "flip+shift")


@pytest.mark.parametrize(
    ("earlier", "now"),
    [("none", None), ("mirror", "flip"), ("multi-crop", "flip+shift"), ("flip", "flip"), (None, None), ([], [])],
)
def test_names_of_earlier_versions_are_translated(earlier: Any, now: Any) -> None:
    assert current_tta_name(earlier) == now
