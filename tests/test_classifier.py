from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cifarnet import (
    Checkpointer,
    CifarCNN,
    Classifier,
    DatasetSplits,
    ImageDataset,
    Prediction,
    Preprocess,
    Trainer,
    build_transforms,
    load_image_folder,
    make_synthetic,
)
from cifarnet.data import resize_images
from cifarnet.errors import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    InputError,
    NonFiniteLogitsError,
    SettingError,
    UnsafeCheckpointError,
)

SIZE = 16  # pixels, as those of `synthetic`

MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def trained(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> tuple[Trainer, Path]:
    trainer = make_trainer(precision="float32")
    trainer.fit(
        synthetic.train, synthetic.test, max_epochs=2, checkpointer=Checkpointer(tmp_path / "run"), progress_bar=False
    )
    return trainer, tmp_path / "run"


def test_a_classifier_scores_what_its_trainer_scored(trained: tuple[Trainer, Path], synthetic: DatasetSplits) -> None:
    trainer, run = trained
    for path in (run, run / "best.safetensors"):
        classifier = Classifier.load(path, device="cpu")
        assert classifier.evaluate(synthetic.test) == trainer.evaluate(synthetic.test)
        assert classifier.classes == synthetic.train.classes
        assert classifier.preprocess == trainer.transforms.preprocess
        assert classifier.precision.name == "float32"
        assert not classifier.model.training
    pairs = [(synthetic.test.images, synthetic.test.labels)]
    assert classifier.evaluate(pairs).num_correct == trainer.evaluate(synthetic.test).num_correct


def test_loading_does_not_touch_the_random_state(trained: tuple[Trainer, Path]) -> None:
    before = torch.get_rng_state()
    Classifier.load(trained[1], device="cpu")
    assert torch.equal(before, torch.get_rng_state())


def test_a_network_of_the_users_own_is_given_to_load(synthetic: DatasetSplits, tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))

    model = build()
    trainer = Trainer(
        model, torch.optim.SGD(model.parameters(), lr=0.1), transforms=build_transforms(size=16), device="cpu"
    )
    trainer.fit(synthetic.train, max_epochs=1, checkpointer=Checkpointer(tmp_path), progress_bar=False)
    with pytest.raises(CheckpointMismatchError, match="holds a Sequential, which is not one of the library's networks"):
        Classifier.load(tmp_path)
    classifier = Classifier.load(tmp_path, build(), device="cpu")
    assert classifier.evaluate(synthetic.test) == trainer.evaluate(synthetic.test)


def test_classes_that_nobody_knew_are_none(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    batches = [(synthetic.train.images, synthetic.train.labels)]
    make_trainer().fit(batches, max_epochs=1, checkpointer=Checkpointer(tmp_path), progress_bar=False)
    classifier = Classifier.load(tmp_path, device="cpu")
    assert classifier.classes == ()
    assert classifier.evaluate(synthetic.test).num_images == 100
    two = Classifier(CifarCNN(2, image_size=16), Preprocess(16), (), device="cpu")
    for use in (two.evaluate, two.calibrate):
        with pytest.raises(SettingError, match=r"must be \(1, 10\)\. Build it with num_classes=10"):
            use(synthetic.test)


def test_data_with_other_classes_is_refused(trained: tuple[Trainer, Path]) -> None:
    other = make_synthetic(num_train=20, num_test=20, size=16).test
    renamed = type(other)(other.images, other.labels, tuple("abcdefghij"))
    with pytest.raises(
        InputError, match=r"predicts 10 classes \(.*\), and the images have 10 classes \(a, b, c, \.\.\.\)"
    ):
        Classifier.load(trained[1], device="cpu").evaluate(renamed)


def test_what_cannot_be_loaded_says_why(trained: tuple[Trainer, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="nowhere"):
        Classifier.load(tmp_path / "nowhere")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsafeCheckpointError, match="never unpickles"):
        Classifier.load(tmp_path / "model.safetensors")
    checkpointer = Checkpointer(trained[1])
    weights, description = checkpointer.read_best()
    del description["preprocess"]
    checkpointer.save_best(weights, description)
    with pytest.raises(CheckpointCorruptError, match="has invalid metadata: it has no 'preprocess'"):
        Classifier.load(trained[1])


@pytest.mark.parametrize("precision", ["float64", "bf16"])
def test_a_run_of_any_precision_can_be_loaded_in_any(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, precision: str
) -> None:
    trainer = make_trainer(precision=precision)
    trainer.fit(synthetic.train, max_epochs=1, checkpointer=Checkpointer(tmp_path), progress_bar=False)
    own = Classifier.load(tmp_path, device="cpu").evaluate(synthetic.test)
    assert own == trainer.evaluate(synthetic.test)
    other = Classifier.load(tmp_path, device="cpu", precision="float32").evaluate(synthetic.test)
    assert abs(other.loss - own.loss) < 0.02


@pytest.fixture(scope="module")
def classifier(synthetic: DatasetSplits) -> Classifier:
    """Trained just enough to be surer of some classes than of others."""
    torch.manual_seed(0)
    model = CifarCNN(image_size=SIZE, widths=(8, 16), hidden=32)
    trainer = Trainer(
        model, torch.optim.Adam(model.parameters(), lr=3e-3), transforms=build_transforms(size=SIZE), device="cpu"
    )
    trainer.fit(synthetic.train, max_epochs=12, batch_size=32, progress_bar=False)
    return Classifier(model, trainer.transforms.preprocess, synthetic.train.classes, device="cpu", precision="float32")


class TestPredict:
    def test_predictions_are_those_that_evaluation_counts(
        self, classifier: Classifier, synthetic: DatasetSplits
    ) -> None:
        predictions = classifier.predict(list(synthetic.test.images))
        truths = [synthetic.test.classes[label] for label in synthetic.test.labels.tolist()]
        right = sum(p.label == truth for p, truth in zip(predictions, truths, strict=True))
        assert right == classifier.evaluate(synthetic.test).num_correct
        assert 10 < right < 100

    def test_it_is_the_softmax_of_the_networks_logits(self, classifier: Classifier, synthetic: DatasetSplits) -> None:
        image = synthetic.test.images[:1]
        with torch.no_grad():
            logits = classifier.model(classifier.preprocess(image))[0]
        expected = dict(zip(classifier.classes, logits.double().softmax(0).tolist(), strict=True))
        prediction = classifier.predict(image[0], top_k=10)
        assert dict(prediction.top) == pytest.approx(expected, abs=1e-5)
        assert sum(probability for _, probability in prediction.top) == pytest.approx(1)
        assert (prediction.label, prediction.probability) == prediction.top[0]
        shown = [probability for _, probability in prediction.top]
        assert shown == sorted(shown, reverse=True)

    def test_of_equal_logits_the_class_wins_that_evaluation_counts(self) -> None:
        class Equal(nn.Module):
            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return torch.zeros(len(images), 100) + 0 * images.mean()

        names = [f"class {i}" for i in range(100)]
        classifier = Classifier(Equal(), Preprocess(SIZE), names, device="cpu")
        image = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
        assert [label for label, _ in classifier.predict(image, top_k=3).top] == names[:3]
        assert classifier.evaluate(ImageDataset(image[None], torch.tensor([0]), names)).num_correct == 1

    def test_it_leaves_the_random_numbers_of_other_threads_alone(self, classifier: Classifier) -> None:
        stop = threading.Event()
        image = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)

        def predict() -> None:
            while not stop.is_set():
                classifier.predict(image)

        threads = [threading.Thread(target=predict) for _ in range(2)]
        for thread in threads:
            thread.start()
        drawn = [float(torch.rand(())) for _ in range(2000)]
        stop.set()
        for thread in threads:
            thread.join()
        assert len(set(drawn)) > 1990

    def test_long_lists_are_prepared_a_batch_at_a_time(self, classifier: Classifier) -> None:
        sizes: list[int] = []
        hook = classifier.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        images = make_synthetic(1, 1100, size=SIZE).test.images
        try:
            assert len(classifier.predict(list(images))) == 1100
        finally:
            hook.remove()
        assert sizes == [500, 500, 100]

    def test_broken_weights_are_an_error_and_no_label(self) -> None:
        model = CifarCNN(3, image_size=SIZE, widths=(4, 4), hidden=8)
        with torch.no_grad():
            model.fc2.bias.fill_(float("nan"))
        broken = Classifier(model, Preprocess(SIZE), ("a", "b", "c"), device="cpu", precision="float32")
        with pytest.raises(NonFiniteLogitsError, match="returns NaN or infinity in float32"):
            broken.predict(Image.new("RGB", (8, 8)))

    def test_one_in_one_out_and_a_list_in_a_list_out(self, classifier: Classifier, synthetic: DatasetSplits) -> None:
        image = synthetic.test.images[7]
        one = classifier.predict(image)
        assert isinstance(one, Prediction)
        for images in ([image], (image,)):
            (same,) = classifier.predict(images)
            assert same == one
        assert classifier.predict([]) == []
        many = classifier.predict([image, Image.new("RGB", (50, 31)), image])
        assert [p.label for p in many] == [one.label, many[1].label, one.label]

    def test_a_photo_of_any_size_is_seen_as_training_sees_it(
        self, classifier: Classifier, synthetic: DatasetSplits, tmp_path: Path
    ) -> None:
        photo = make_synthetic(1, 1, size=160).test.images[0, :, :, 20:130]
        path = tmp_path / "photo.png"
        Image.fromarray(photo.permute(1, 2, 0).numpy()).save(path)
        assert classifier.predict(path) == classifier.predict(resize_images(photo, SIZE))
        (tmp_path / "data/train/a").mkdir(parents=True)
        (tmp_path / "data/test/b").mkdir(parents=True)
        for folder in ("train/a", "train/b", "test/a", "test/b"):
            (tmp_path / "data" / folder).mkdir(exist_ok=True)
            Image.fromarray(photo.permute(1, 2, 0).numpy()).save(tmp_path / "data" / folder / "photo.png")
        in_a_folder = load_image_folder(tmp_path / "data", size=SIZE).train.images[0]
        assert classifier.predict(path) == classifier.predict(in_a_folder)
        as_data = ImageDataset(photo[None], torch.tensor([0]), classifier.classes)
        assert classifier.evaluate(as_data).num_correct == (classifier.predict(path).label == classifier.classes[0])

    def test_the_modes_of_the_network_do_not_matter_and_are_put_back(
        self, classifier: Classifier, synthetic: DatasetSplits
    ) -> None:
        image = synthetic.test.images[3]
        expected = classifier.predict(image)
        statistics = classifier.model.get_buffer("bn1.running_mean").clone()
        classifier.model.train()
        try:
            assert [classifier.predict(image) for _ in range(3)] == [expected] * 3
            assert classifier.model.training
        finally:
            classifier.model.eval()
        assert torch.equal(classifier.model.get_buffer("bn1.running_mean"), statistics)
        before = torch.get_rng_state()
        classifier.predict(image)
        assert torch.equal(before, torch.get_rng_state())

    def test_a_grey_network_takes_colour_and_a_colour_network_grey(self, classifier: Classifier) -> None:
        grey = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
        torch.manual_seed(0)
        model = CifarCNN(2, in_channels=1, image_size=SIZE, widths=(4, 4), hidden=8)
        of_grey = Classifier(model, Preprocess(SIZE, (0.5,), (0.25,)), ("a", "b"), device="cpu", precision="float32")
        assert of_grey.predict(grey) == of_grey.predict(np.dstack([grey] * 3))
        assert classifier.predict(grey) == classifier.predict(np.dstack([grey] * 3))

    def test_no_more_classes_than_there_are_and_not_fewer_than_one(
        self, classifier: Classifier, synthetic: DatasetSplits
    ) -> None:
        image = synthetic.test.images[0]
        assert len(classifier.predict(image).top) == 5
        assert len(classifier.predict(image, top_k=99).top) == 10
        for wrong in (0, -1, 1.5, True):
            with pytest.raises(SettingError, match="top_k must be"):
                classifier.predict(image, top_k=wrong)  # type: ignore[arg-type]

    def test_what_is_no_image_is_refused_and_its_place_told(self, classifier: Classifier) -> None:
        with pytest.raises(InputError, match=r"max 255. Divide by 255 or pass uint8"):
            classifier.predict(np.full((32, 32, 3), 255.0))
        with pytest.raises(InputError, match=r"^Image 1 of the list: expected uint8 or float"):
            classifier.predict([torch.zeros(3, 8, 8), torch.ones(2, 2, 2)])
        with pytest.raises(InputError, match=r"^none.png: no such file"):
            classifier.predict([Image.new("RGB", (8, 8)), "none.png"])
        with pytest.raises(InputError, match=r"a batch, uint8 \(4, 3, 8, 8\). Give its images as a list"):
            classifier.predict(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))

    def test_classes_that_nobody_named_have_numbers(self) -> None:
        model = CifarCNN(3, image_size=SIZE, widths=(4, 4), hidden=8)
        nameless = Classifier(model, Preprocess(SIZE), (), device="cpu")
        labels = {label for label, _ in nameless.predict(Image.new("RGB", (8, 8))).top}
        assert labels == {"class 0", "class 1", "class 2"}
        assert "unnamed classes" in repr(nameless)

    def test_it_prints_as_a_line(self) -> None:
        assert str(Prediction("cat", 0.876, (("cat", 0.876), ("dog", 0.1)))) == "cat 87.6%, dog 10.0%"

    def test_bf16_gives_whole_probabilities(self, synthetic: DatasetSplits, classifier: Classifier) -> None:
        in_bf16 = Classifier(classifier.model, classifier.preprocess, classifier.classes, precision="bf16")
        image = synthetic.test.images[0]
        prediction = in_bf16.predict(image, top_k=10)
        assert sum(p for _, p in prediction.top) == pytest.approx(1, abs=1e-6)
        assert prediction.probability == pytest.approx(classifier.predict(image).probability, abs=0.05)


def test_what_a_classifier_is_can_be_read(classifier: Classifier) -> None:
    assert repr(classifier) == (
        "<Classifier: CifarCNN, 10 classes (circle, square, triangle, ...), 16x16 pixels, float32 on cpu>"
    )


@pytest.mark.parametrize(
    ("model", "preprocess", "classes", "message"),
    [
        (CifarCNN(), Preprocess(), ("cat", "dog"), r"logits of shape \(1, 10\) .* must be \(1, 2\)"),
        (CifarCNN(2), Preprocess(), ("cat", "dog", "cow"), r"logits of shape \(1, 2\) .* must be \(1, 3\)"),
        (CifarCNN(2), Preprocess(64), ("cat", "dog"), r"CifarCNN cannot take the images of .* prepared to 64 pixels"),
        (CifarCNN(2, in_channels=1), Preprocess(), ("cat", "dog"), "cannot take the images"),
        (nn.Flatten(0), Preprocess(), ("cat", "dog"), r"logits of shape \(3072,\)"),
        (nn.MaxPool2d(2, return_indices=True), Preprocess(), ("cat", "dog"), "The model returns a tuple"),
        (nn.AdaptiveAvgPool2d(1), Preprocess(), (), r"logits of shape \(1, 3, 1, 1\) .* must be \(1, K\)"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    model: nn.Module, preprocess: Preprocess, classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        Classifier(model, preprocess, classes, device="cpu")


def test_a_file_whose_parts_do_not_belong_together_is_refused(trained: tuple[Trainer, Path]) -> None:
    checkpointer = Checkpointer(trained[1])
    weights, description = checkpointer.read_best()
    checkpointer.save_best(weights, {**description, "classes": ["cat", "dog"]})
    with pytest.raises(CheckpointMismatchError, match=r"one image of the classifier\. The shape must be \(1, 2\)"):
        Classifier.load(trained[1], device="cpu")


def test_settings_are_refused_before_the_file_is_read(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match='device "gpu"'):
        Classifier.load(tmp_path / "nowhere", device="gpu")
    with pytest.raises(SettingError, match='precision "fp8"'):
        Classifier.load(tmp_path / "nowhere", precision="fp8")


def test_a_network_for_other_classes_is_refused_with_the_first_five_differences(
    trained: tuple[Trainer, Path],
) -> None:
    for model, first in (
        (CifarCNN(100, image_size=SIZE, widths=(8, 16), hidden=32), "fc2.weight"),
        (CifarCNN(), "bn1"),
    ):
        with pytest.raises(CheckpointMismatchError, match=first) as caught:
            Classifier.load(trained[1], model, device="cpu")
        assert 1 <= str(caught.value).count(" in the model") <= 5
        assert "The file holds CifarCNN(num_classes=10, image_size=16, widths=(8, 16), hidden=32)" in str(caught.value)


@pytest.mark.parametrize("classes", [{"cat", "dog"}, "ab", ("cat", "cat"), ("cat", "")])
def test_class_names_without_an_order_are_refused(classes: Any) -> None:
    with pytest.raises(InputError, match=r"classes must be a list or tuple|must be distinct|must be non-empty"):
        Classifier(CifarCNN(2), Preprocess(), classes, device="cpu")


def test_bytes_and_open_files_are_predicted(classifier: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (20, 20), "red").save(path)
    expected = classifier.predict(path)
    assert classifier.predict(path.read_bytes()) == expected
    with path.open("rb") as file:
        assert classifier.predict(file) == expected
    assert [prediction.label for prediction in classifier.predict([path.read_bytes(), path])] == [expected.label] * 2
