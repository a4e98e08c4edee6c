from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cifarnet import (
    CifarCNN,
    Classifier,
    DatasetSplits,
    ImageDataset,
    Prediction,
    Preprocess,
    Trainer,
    load_image_folder,
    make_synthetic,
)
from cifarnet._resize import resize_images
from cifarnet.errors import DataError, NonFiniteError, SettingError

SIZE = 16
Run = tuple[Trainer, DatasetSplits, Path]


class Constant(nn.Module):
    """Network whose logits are constant."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.to(images.dtype).repeat(len(images), 1) + 0 * images.mean()


def small(num_classes: int = 3, **arguments: Any) -> CifarCNN:
    torch.manual_seed(0)
    return CifarCNN(num_classes, image_size=SIZE, widths=(4, 4), hidden=8, **arguments)


class TestPredict:
    def test_predictions_equal_those_of_evaluation(self, classifier: Classifier, synthetic: DatasetSplits) -> None:
        predictions = classifier.predict(list(synthetic.test.images))
        truths = [synthetic.test.classes[label] for label in synthetic.test.labels.tolist()]
        right = sum(p.label == truth for p, truth in zip(predictions, truths, strict=True))
        assert right == classifier.evaluate(synthetic.test).num_correct
        assert 10 < right < 100

    def test_probabilities_are_the_softmax_of_the_logits(
        self, classifier: Classifier, synthetic: DatasetSplits
    ) -> None:
        image = synthetic.test.images[:1]
        with torch.no_grad():
            logits = classifier.model(classifier.preprocess(image).double())[0]
        expected = dict(zip(classifier.classes, logits.softmax(0).tolist(), strict=True))
        prediction = classifier.predict(image[0], top_k=10)
        assert dict(prediction.top) == pytest.approx(expected, abs=1e-9)
        assert (prediction.label, prediction.probability) == prediction.top[0]
        shown = [probability for _, probability in prediction.top]
        assert shown == sorted(shown, reverse=True)

    @pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
    def test_ties_are_broken_as_in_evaluation(self, temperature: float) -> None:
        names = [f"name {i}" for i in range(100)]
        image = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)
        for logits, label in ((torch.zeros(100), 0), (torch.arange(100) * 1e-15, 99)):
            settings: Any = {"device": "cpu", "precision": "float64", "temperature": temperature}
            classifier = Classifier(Constant(logits), Preprocess(SIZE), names, **settings)
            assert classifier.predict(image[0]).label == names[label]
            assert classifier.evaluate([(image, torch.tensor([label]))]).num_correct == 1

    def test_prediction_does_not_restore_the_draws_of_other_threads(self, classifier: Classifier) -> None:
        image, drawn = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8), []
        with ThreadPoolExecutor(1) as threads:
            predictions = threads.submit(lambda: [classifier.predict(image) for _ in range(100)])
            while not predictions.done():
                drawn.append(float(torch.rand((), dtype=torch.float64)))
        assert len(set(drawn)) == len(drawn) > 100

    def test_logits_that_are_not_finite_are_an_error(self) -> None:
        broken = Classifier(Constant(torch.full((3,), math.nan)), None, (), device="cpu", precision="float32")
        broken.preprocess = Preprocess(SIZE)
        with pytest.raises(NonFiniteError, match="returns NaN or infinity in float32"):
            broken.predict(Image.new("RGB", (8, 8)))

    def test_a_list_gives_a_list(self, classifier: Classifier, synthetic: DatasetSplits) -> None:
        image = synthetic.test.images[7]
        one = classifier.predict(image)
        assert isinstance(one, Prediction)
        for images in ([image], (image,)):
            assert classifier.predict(images) == [one]
        assert classifier.predict([]) == []
        assert len(one.top) == 5
        with pytest.raises(SettingError, match="top_k must be"):
            classifier.predict(image, top_k=0)
        many = classifier.predict([image, Image.new("RGB", (50, 31)), image])
        assert [p.label for p in many] == [one.label, many[1].label, one.label]

    def test_files_are_predicted_as_training_reads_them(self, classifier: Classifier, tmp_path: Path) -> None:
        photo = make_synthetic(1, 1, size=160).test.images[0, :, :, 20:130]
        path = tmp_path / "data/train/a/photo.png"
        for folder in ("train/a", "train/b", "test/a", "test/b"):
            (tmp_path / "data" / folder).mkdir(parents=True)
            Image.fromarray(photo.permute(1, 2, 0).numpy()).save(tmp_path / "data" / folder / "photo.png")
        expected = classifier.predict(path)
        assert expected == classifier.predict(resize_images(photo, SIZE))
        assert expected == classifier.predict(load_image_folder(tmp_path / "data", size=SIZE).train.images[0])
        assert expected == classifier.predict(path.read_bytes())
        with path.open("rb") as file:
            assert expected == classifier.predict(file)
        assert [one.label for one in classifier.predict([path.read_bytes(), str(path)])] == [expected.label] * 2

    def test_the_mode_of_the_network_does_not_matter(self, classifier: Classifier, synthetic: DatasetSplits) -> None:
        image = synthetic.test.images[3]
        expected, statistics = classifier.predict(image), classifier.model.get_buffer("bn1.running_mean").clone()
        classifier.model.train()
        assert [classifier.predict(image) for _ in range(3)] == [expected] * 3
        assert classifier.model.training
        assert torch.equal(classifier.model.get_buffer("bn1.running_mean"), statistics)

    def test_other_inputs_than_images_are_refused(self, classifier: Classifier) -> None:
        with pytest.raises(DataError, match=r"max 255. Divide by 255 or pass uint8"):
            classifier.predict(np.full((32, 32, 3), 255.0))
        with pytest.raises(DataError, match=r"^Image 1 of the list: expected uint8 or float"):
            classifier.predict([torch.zeros(3, 8, 8), torch.ones(2, 2, 2)])
        with pytest.raises(DataError, match="There are no images"):
            classifier.to_pixels([])


class TestCalibrate:
    @pytest.mark.parametrize("tta", [None, "flip", "flip+shift"])
    def test_calibration_minimizes_the_log_loss(self, classifier: Classifier, trained_run: Run, tta: Any) -> None:
        val = trained_run[1].test
        plain, before = classifier.evaluate(val, tta=tta), classifier.predict(list(val.images), top_k=10, tta=tta)
        temperature = classifier.calibrate(val, tta=tta)
        assert classifier.temperature == temperature != 1
        found = classifier.evaluate(val, tta=tta)
        assert (plain.temperature, found.temperature) == (1, temperature)
        assert found.log_loss < plain.log_loss
        for name in ("loss", "confusion_matrix", "num_top_k"):
            assert getattr(found, name) == getattr(plain, name)
        after = classifier.predict(list(val.images), top_k=10, tta=tta)
        assert [[label for label, _ in one.top] for one in before] == [[label for label, _ in one.top] for one in after]
        for one, other in zip(before, after, strict=True):
            shares = np.array([probability for _, probability in one.top]) ** (1 / temperature)
            assert [probability for _, probability in other.top] == pytest.approx(shares / shares.sum(), rel=1e-9)
        for near in (temperature * 0.99, temperature * 1.01):
            classifier.temperature = near
            assert classifier.evaluate(val, tta=tta).log_loss > found.log_loss

    def test_calibration_takes_and_refuses_what_evaluation_does(self, classifier: Classifier, trained_run: Run) -> None:
        val = trained_run[1].test
        batches = [(val.images[i : i + 40], val.labels[i : i + 40]) for i in range(0, len(val), 40)]
        assert classifier.calibrate(batches) == pytest.approx(classifier.calibrate(val), rel=1e-9)
        classifier.temperature = 1
        with pytest.raises(DataError, match="label 10 at row 1"):
            classifier.calibrate([(val.images[:2], torch.tensor([0, 10]))])
        predictions = classifier.predict(list(val.images))
        right = [i for i, one in enumerate(predictions) if one.label == val.classes[val.labels[i]]]
        with pytest.raises(DataError, match=f"these {len(right)} images, because all or nearly all"):
            classifier.calibrate(val.subset(right))
        assert classifier.temperature == 1

    def test_an_invalid_temperature_is_refused(self) -> None:
        for temperature in (0, -1.0, 1e4, math.nan, "1", True):
            with pytest.raises(SettingError, match="temperature must be"):
                Classifier(small(), Preprocess(SIZE), (), device="cpu", temperature=temperature)  # type: ignore[arg-type]


def test_data_with_other_classes_is_refused(classifier: Classifier) -> None:
    other = make_synthetic(num_train=20, num_test=20, size=SIZE).test
    renamed = ImageDataset(other.images, other.labels, tuple("abcdefghij"))
    with pytest.raises(
        DataError, match=r"predicts 10 classes \(.*\), and the images have 10 classes \(a, b, c, \.\.\.\)"
    ):
        classifier.evaluate(renamed)
    three = Classifier(small(), Preprocess(SIZE), (), device="cpu")
    assert {label for label, _ in three.predict(other.images[0]).top} == {"class 0", "class 1", "class 2"}
    assert "unnamed classes" in repr(three)
    for use in (three.evaluate, three.calibrate):
        with pytest.raises(SettingError, match=r"must be \(1, 10\)\. Build it with num_classes=10"):
            use(other)


@pytest.mark.parametrize(
    ("model", "preprocess", "classes", "message"),
    [
        (CifarCNN(), Preprocess(), ("cat", "dog"), r"logits of shape \(1, 10\) .* must be \(1, 2\)"),
        (CifarCNN(2), Preprocess(64), ("cat", "dog"), r"CifarCNN cannot take the images of .* prepared to 64 pixels"),
        (nn.MaxPool2d(2, return_indices=True), Preprocess(), ("cat", "dog"), "The model returns a tuple"),
        (nn.AdaptiveAvgPool2d(1), Preprocess(), (), r"logits of shape \(1, 3, 1, 1\) .* must be \(1, K\)"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    model: nn.Module, preprocess: Preprocess, classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        Classifier(model, preprocess, classes, device="cpu")


@pytest.mark.parametrize("classes", [{"cat", "dog"}, "ab", ("cat", "cat"), ("cat", "")])
def test_class_names_without_an_order_are_refused(classes: Any) -> None:
    with pytest.raises(DataError, match=r"classes must be a list or tuple|must be distinct|must be non-empty"):
        Classifier(small(2), Preprocess(SIZE), classes, device="cpu")
