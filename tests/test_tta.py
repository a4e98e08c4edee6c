"""Test-time augmentation, held to averages that numpy computes copy by copy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cifarnet import CifarCNN, Classifier, DatasetSplits, Preprocess, Trainer
from cifarnet.errors import InputError, SettingError
from cifarnet.inference import predict_logits, resolve_precision
from cifarnet.transforms import TTA, average_logits
from cifarnet.transforms.tta import TTA_NAMES, current_tta_name

MakeTrainer = Callable[..., Trainer]
CPU = torch.device("cpu")
SIZE = 16


class Scorer:
    """A network in numpy and in torch, sensitive to every pixel, that counts the images it is asked for."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        self.weights = np.random.default_rng(seed).normal(size=(math.prod(shape), 4)) / math.sqrt(math.prod(shape))
        self.num_images = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.num_images += len(images)
        return torch.tanh(images.flatten(1) @ torch.from_numpy(self.weights)) * 3

    def expected(self, image: np.ndarray[Any, Any], tta: str) -> np.ndarray[Any, Any]:
        """Of one image ``(C, H, W)``: the weighted mean, written out."""
        height, width = image.shape[1:]
        around = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="reflect")
        shifted_by = {
            d: around[:, 1 - d : 1 - d + height, 1 - d : 1 - d + width]  # pixel (y, x) comes from (y - d, x - d)
            for d in (0, 1, -1)
        }
        weight_of = {"flip": {0: 0.5}, "flip+shift": {0: 0.25, 1: 0.125, -1: 0.125}}[tta]
        total = np.zeros(4)
        for d, weight in weight_of.items():
            for copy in (shifted_by[d], shifted_by[d][:, :, ::-1]):
                total += weight * 3 * np.tanh(copy.reshape(-1) @ self.weights)
        return total


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


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
    images = random_images(num_images, channels, height, width)
    scorer = Scorer((channels, height, width))
    logits = average_logits(scorer, images, tta)
    expected = np.stack([scorer.expected(image, tta) for image in images.numpy()])
    assert logits.dtype == torch.float64
    np.testing.assert_allclose(logits.numpy(), expected, rtol=0, atol=1e-12)
    assert scorer.num_images == num_images * {"flip": 2, "flip+shift": 6}[tta]


def test_an_image_and_its_flip_get_the_same_logits() -> None:
    images, scorer = random_images(6, 3, 8, 8), Scorer((3, 8, 8))
    flipped = average_logits(scorer, images.flip(-1), "flip")
    assert torch.equal(average_logits(scorer, images, "flip"), flipped)


def test_logits_that_are_not_finite_stay_so() -> None:
    def broken(images: Tensor) -> Tensor:
        return torch.full((len(images), 3), math.nan)

    assert bool(average_logits(broken, random_images(2, 3, 4, 4), "flip").isnan().all())


def small_network() -> CifarCNN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CifarCNN(image_size=SIZE, widths=(4, 8), hidden=16)


@torch.no_grad()
@pytest.mark.parametrize("tta", TTA_NAMES)
@pytest.mark.parametrize("precision_name", ["bf16", "float32", "float64"])
def test_logits_are_averaged_in_the_dtype_of_the_weights(tta: TTA, precision_name: str) -> None:
    """Of bf16 logits there are 3 digits, of their mean as many as float32 has."""
    precision = resolve_precision(precision_name, CPU)
    model = small_network().to(precision.weights).eval()
    images = random_images(8, 3, SIZE, SIZE)

    def score(images: Tensor, tta: TTA | None = None) -> Tensor:
        return predict_logits(model, images, preprocess=Preprocess(SIZE), precision=precision, tta=tta)

    logits = score(images, tta)
    padded = nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
    weight_of = {0: 0.5} if tta == "flip" else {0: 0.25, 1: 0.125, -1: 0.125}
    expected = torch.zeros(8, 10, dtype=torch.float64)
    for d, weight in weight_of.items():
        shifted = padded[:, :, 1 - d : 1 - d + SIZE, 1 - d : 1 - d + SIZE]
        expected += weight * (score(shifted).double() + score(shifted.flip(-1)).double())
    assert logits.dtype == precision.weights
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-12 if precision_name == "float64" else 1e-6)


@pytest.mark.parametrize("tta", TTA_NAMES)
def test_an_evaluation_counts_averaged_logits_and_says_so(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tta: TTA
) -> None:
    trainer = make_trainer(precision="float64")
    trainer.fit(synthetic.train, max_epochs=1, progress_bar=False)
    test, preprocess = synthetic.test, trainer.transforms.preprocess
    found = trainer.evaluate(test, tta=tta)
    ready = preprocess(test.images.double() / 255)
    padded = np.pad(ready.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    weight_of = {0: 0.5} if tta == "flip" else {0: 0.25, 1: 0.125, -1: 0.125}
    with torch.no_grad():
        model = trainer.model.eval()
        logits = torch.zeros(100, 10, dtype=torch.float64)
        for d, weight in weight_of.items():
            shifted = torch.from_numpy(padded[:, :, 1 - d : 1 - d + SIZE, 1 - d : 1 - d + SIZE].copy())
            logits += weight * (model(shifted) + model(shifted.flip(-1)))
    assert found.num_correct == int((logits.argmax(1) == test.labels).sum())
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, test.labels)), abs=1e-6)
    assert str(found).endswith(f"100 images, with test-time augmentation ({tta})")
    plain = trainer.evaluate(test)
    assert plain.loss != found.loss
    assert plain.tta is None
    assert str(plain).endswith("100 images")
    # Floating batches of anybody's, and the same network as a classifier.
    loader = DataLoader(TensorDataset(ready, test.labels), batch_size=32)
    assert trainer.evaluate(loader, tta=tta).loss == pytest.approx(found.loss, abs=1e-6)
    classifier = Classifier(trainer.model, preprocess, test.classes, device="cpu", precision="float64")
    assert classifier.evaluate(test, tta=tta) == found


def test_a_prediction_is_made_from_averaged_logits(synthetic: DatasetSplits) -> None:
    classifier = Classifier(
        small_network(), Preprocess(SIZE), synthetic.test.classes, device="cpu", precision="float64"
    )
    images = list(synthetic.test.images[:3])
    together = classifier.predict(images, tta="flip+shift", top_k=10)
    with torch.no_grad():
        ready = Preprocess(SIZE)(synthetic.test.images[:3]).double()
        expected = average_logits(classifier.model, ready, "flip+shift").softmax(1)
    for image, prediction, row in zip(images, together, expected, strict=True):
        assert [p for _, p in prediction.top] == pytest.approx(sorted(row.tolist(), reverse=True), abs=1e-9)
        alone = classifier.predict(image, tta="flip+shift", top_k=10)
        assert alone.label == prediction.label
        assert alone.probability == pytest.approx(prediction.probability, abs=1e-9)
        assert classifier.predict(image).probability != pytest.approx(prediction.probability, abs=1e-9)


def test_unknown_tta_is_refused_before_anything_is_predicted(
    make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    trainer = make_trainer()
    classifier = Classifier(trainer.model, trainer.transforms.preprocess, synthetic.test.classes, device="cpu")
    uses: list[Any] = [trainer.evaluate, classifier.evaluate, classifier.predict, classifier.calibrate]
    for use in uses:
        with pytest.raises(SettingError, match='tta "flip_shift" is unknown; did you mean "flip\\+shift"'):
            use("no data", tta="flip_shift")
        with pytest.raises(SettingError, match='tta "2" is unknown'):
            use("no data", tta=2)


def test_images_of_one_row_cannot_be_shifted() -> None:
    with pytest.raises(
        InputError, match=r'tta="flip\+shift" needs images of at least 2x2 pixels, got 1x4. Use tta="flip"'
    ):
        average_logits(Scorer((3, 1, 4)), random_images(2, 3, 1, 4), "flip+shift")


@pytest.mark.parametrize(
    ("earlier", "now"),
    [("none", None), ("mirror", "flip"), ("multi-crop", "flip+shift"), ("flip", "flip"), (None, None), ([], [])],
)
def test_names_of_earlier_versions_are_translated(earlier: Any, now: Any) -> None:
    assert current_tta_name(earlier) == now
