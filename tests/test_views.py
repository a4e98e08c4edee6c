"""Test-time augmentation, held to averages that numpy computes view by view."""

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
from cifarnet.engine import predict_logits, resolve_precision
from cifarnet.errors import InputError, SettingError, SettingTypeError
from cifarnet.metrics import Evaluation
from cifarnet.transforms import VIEWS, ViewName, Views

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

    def expected(self, image: np.ndarray[Any, Any], views: str) -> np.ndarray[Any, Any]:
        """Of one image ``(C, H, W)``: the weighted mean, written out."""
        height, width = image.shape[1:]
        around = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="reflect")
        shifted_by = {
            d: around[:, 1 - d : 1 - d + height, 1 - d : 1 - d + width]  # pixel (y, x) comes from (y - d, x - d)
            for d in (0, 1, -1)
        }
        weight_of = {"mirror": {0: 0.5}, "multi-crop": {0: 0.25, 1: 0.125, -1: 0.125}}[views]
        total = np.zeros(4)
        for d, weight in weight_of.items():
            for view in (shifted_by[d], shifted_by[d][:, :, ::-1]):
                total += weight * 3 * np.tanh(view.reshape(-1) @ self.weights)
        return total


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@settings(max_examples=40, deadline=None)
@given(
    views=st.sampled_from(VIEWS),
    num_images=st.integers(1, 5),
    channels=st.integers(1, 4),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
)
def test_logits_are_the_weighted_mean_over_the_views(
    views: ViewName, num_images: int, channels: int, height: int, width: int
) -> None:
    images = random_images(num_images, channels, height, width)
    scorer = Scorer((channels, height, width))
    logits = Views(views).average(scorer, images)
    expected = np.stack([scorer.expected(image, views) for image in images.numpy()])
    assert logits.dtype == torch.float64
    np.testing.assert_allclose(logits.numpy(), expected, rtol=0, atol=1e-12)
    assert scorer.num_images == num_images * {"mirror": 2, "multi-crop": 6}[views]


def test_an_image_and_its_mirror_image_get_the_same_logits() -> None:
    images, scorer = random_images(6, 3, 8, 8), Scorer((3, 8, 8))
    mirrored = Views("mirror").average(scorer, images.flip(-1))
    assert torch.equal(Views("mirror").average(scorer, images), mirrored)


@pytest.mark.parametrize("views", VIEWS)
def test_only_images_that_the_network_is_unsure_of_get_further_views(views: ViewName) -> None:
    images, scorer = random_images(40, 3, 8, 8), Scorer((3, 8, 8))
    plain, full = scorer(images), Views(views).average(scorer, images)
    sure = np.sort(plain.softmax(1).amax(1).numpy())
    below = float(sure[14] + sure[15]) / 2  # between two of them
    unsure = plain.softmax(1).amax(1) < below
    assert int(unsure.sum()) == 15
    scorer.num_images = 0
    logits = Views(views, unsure_below=below).average(scorer, images)
    assert scorer.num_images == 40 + 15 * {"mirror": 1, "multi-crop": 5}[views]
    assert torch.equal(logits[~unsure], plain[~unsure])
    torch.testing.assert_close(logits[unsure], full[unsure], rtol=0, atol=1e-12)
    alone = torch.cat([Views(views, unsure_below=below).average(scorer, image[None]) for image in images])
    torch.testing.assert_close(alone, logits, rtol=0, atol=1e-12)


def test_a_threshold_of_1_views_all_images_and_a_tiny_one_none() -> None:
    images, scorer = random_images(10, 3, 8, 8), Scorer((3, 8, 8))
    everywhere = Views("multi-crop", unsure_below=1).average(scorer, images)
    torch.testing.assert_close(everywhere, Views("multi-crop").average(scorer, images), rtol=0, atol=1e-12)
    assert torch.equal(Views("multi-crop", unsure_below=0.1).average(scorer, images), scorer(images))


def test_logits_that_are_not_finite_stay_so() -> None:
    def broken(images: Tensor) -> Tensor:
        return torch.full((len(images), 3), math.nan)

    for below in (None, 0.9):
        assert bool(Views("mirror", unsure_below=below).average(broken, random_images(2, 3, 4, 4)).isnan().all())


def small_network() -> CifarCNN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CifarCNN(image_size=SIZE, widths=(4, 8), hidden=16)


@torch.no_grad()
@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("precision_name", ["bf16", "float32", "float64"])
def test_views_are_averaged_in_the_dtype_of_the_weights(views: ViewName, precision_name: str) -> None:
    """Of bf16 logits there are 3 digits, of their mean as many as float32 has."""
    precision = resolve_precision(precision_name, CPU)
    model = small_network().to(precision.weights).eval()
    images = random_images(8, 3, SIZE, SIZE)

    def score(images: Tensor, views: Views | None = None) -> Tensor:
        return predict_logits(model, images, preprocess=Preprocess(SIZE), precision=precision, views=views)

    logits = score(images, Views(views))
    padded = nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
    weight_of = {0: 0.5} if views == "mirror" else {0: 0.25, 1: 0.125, -1: 0.125}
    expected = torch.zeros(8, 10, dtype=torch.float64)
    for d, weight in weight_of.items():
        shifted = padded[:, :, 1 - d : 1 - d + SIZE, 1 - d : 1 - d + SIZE]
        expected += weight * (score(shifted).double() + score(shifted.flip(-1)).double())
    assert logits.dtype == precision.weights
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-12 if precision_name == "float64" else 1e-6)


@pytest.mark.parametrize("views", VIEWS)
def test_an_evaluation_counts_averaged_logits_and_says_so(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, views: ViewName
) -> None:
    trainer = make_trainer(precision="float64")
    trainer.fit(synthetic.train, max_epochs=1, progress=False)
    test, preprocess = synthetic.test, trainer.transforms.preprocess
    found = trainer.evaluate(test, views=views)
    ready = preprocess(test.images.double() / 255)
    padded = np.pad(ready.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    weight_of = {0: 0.5} if views == "mirror" else {0: 0.25, 1: 0.125, -1: 0.125}
    with torch.no_grad():
        model = trainer.model.eval()
        logits = torch.zeros(100, 10, dtype=torch.float64)
        for d, weight in weight_of.items():
            shifted = torch.from_numpy(padded[:, :, 1 - d : 1 - d + SIZE, 1 - d : 1 - d + SIZE].copy())
            logits += weight * (model(shifted) + model(shifted.flip(-1)))
    assert found.num_correct == int((logits.argmax(1) == test.labels).sum())
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, test.labels)), abs=1e-6)
    assert str(found).endswith(f"100 images, with test-time augmentation ({views})")
    plain = trainer.evaluate(test)
    assert plain.loss != found.loss
    assert plain.test_time_augmentation is None
    assert str(plain).endswith("100 images")
    # Floating batches of anybody's, and the same network as a classifier.
    loader = DataLoader(TensorDataset(ready, test.labels), batch_size=32)
    assert trainer.evaluate(loader, views=Views(views)).loss == pytest.approx(found.loss, abs=1e-6)
    classifier = Classifier(trainer.model, preprocess, test.classes, device="cpu", precision="float64")
    assert classifier.evaluate(test, views=views) == found


def test_an_evaluation_names_the_threshold(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    found = make_trainer().evaluate(synthetic.test, views=Views("mirror", unsure_below=0.9))
    assert found.test_time_augmentation == "mirror where less sure than 0.9"
    assert isinstance(found, Evaluation)


def test_a_prediction_is_made_from_averaged_logits(synthetic: DatasetSplits) -> None:
    classifier = Classifier(
        small_network(), Preprocess(SIZE), synthetic.test.classes, device="cpu", precision="float64"
    )
    images = list(synthetic.test.images[:3])
    together = classifier.predict(images, views="multi-crop", top_k=10)
    with torch.no_grad():
        ready = Preprocess(SIZE)(synthetic.test.images[:3]).double()
        expected = Views("multi-crop").average(classifier.model, ready).softmax(1)
    for image, prediction, row in zip(images, together, expected, strict=True):
        assert [p for _, p in prediction.top] == pytest.approx(sorted(row.tolist(), reverse=True), abs=1e-9)
        alone = classifier.predict(image, views=Views("multi-crop"), top_k=10)
        assert alone.label == prediction.label
        assert alone.probability == pytest.approx(prediction.probability, abs=1e-9)
        assert classifier.predict(image).probability != pytest.approx(prediction.probability, abs=1e-9)


@pytest.mark.parametrize(
    ("views", "below", "error", "message"),
    [
        ("mirorr", None, SettingError, 'views "mirorr" is unknown; did you mean "mirror"?'),
        ("mirror", 0, SettingError, r"unsure_below must be in \(0, 1\], got 0; leave it out"),
        ("mirror", 1.5, SettingError, r"unsure_below must be in \(0, 1\], got 1.5"),
        ("mirror", math.nan, SettingError, r"unsure_below must be in \(0, 1\], got nan"),
        ("mirror", True, SettingTypeError, "unsure_below must be a probability, got True"),
        ("mirror", "0.9", SettingTypeError, "unsure_below must be a probability, got '0.9'"),
    ],
)
def test_settings_out_of_range_are_refused(views: Any, below: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Views(views, unsure_below=below)


def test_what_are_no_views_is_refused_before_anything_is_scored(
    make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    trainer = make_trainer()
    classifier = Classifier(trainer.model, trainer.transforms.preprocess, synthetic.test.classes, device="cpu")
    uses: list[Any] = [trainer.evaluate, classifier.evaluate, classifier.predict]
    for use in uses:
        with pytest.raises(SettingError, match='views "multicrop" is unknown; did you mean "multi-crop"'):
            use("no data", views="multicrop")
        with pytest.raises(SettingTypeError, match="views must be Views or their name, got 2"):
            use("no data", views=2)
    with pytest.raises(InputError, match=r'"multi-crop" shifts images by a pixel, and these have 1x4; "mirror" takes'):
        Views("multi-crop").average(Scorer((3, 1, 4)), random_images(2, 3, 1, 4))
