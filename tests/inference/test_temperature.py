"""Temperature scaling, held to a search by golden section in numpy that knows nothing of slopes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scored import answers, scored
from torch import Tensor, nn

from cifarnet import Checkpointer, CifarCNN, Classifier, DatasetSplits, Preprocess, Trainer
from cifarnet.checkpoint import load_best
from cifarnet.errors import (
    CheckpointCorruptError,
    InputError,
    NonFiniteLogitsError,
    RunDirectoryBusyError,
    RunExistsError,
    SettingError,
    SettingTypeError,
)
from cifarnet.inference import fit_temperature

MakeTrainer = Callable[..., Trainer]
Answers = tuple[Tensor, Tensor]
SIZE = 16


def mean_loss(logits: Tensor, labels: Tensor, temperature: float) -> float:
    scaled = logits.double().numpy() / temperature
    return float((np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(labels)), labels.numpy()]).mean())


def searched(logits: Tensor, labels: Tensor) -> float:
    """By golden section over the logarithm, on which the loss has one valley unless all are right."""
    assume(bool((logits.argmax(1) != labels).any()))
    ratio, low, high = (math.sqrt(5) - 1) / 2, math.log(1e-3), math.log(1e3)
    while high - low > 1e-9:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if mean_loss(logits, labels, math.exp(left)) < mean_loss(logits, labels, math.exp(right)):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


@settings(max_examples=60, deadline=None)
@given(given_=answers(least=5))
def test_the_temperature_is_the_one_that_a_search_finds(given_: Answers) -> None:
    expected = searched(*given_)
    assume(2e-3 < expected < 5e2)
    found = fit_temperature(*given_)
    # Where the valley is flat, losses differ by rounding alone: the slope sees more than the search.
    assert mean_loss(*given_, found) <= mean_loss(*given_, expected) + 1e-13
    assert found == pytest.approx(expected, rel=1e-3)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(given_=answers(least=20), factor=st.sampled_from([0.1, 0.5, 2.0, 10.0]), shift=st.floats(-100, 100))
def test_scaled_logits_have_a_scaled_temperature_and_shifted_ones_the_same(
    given_: Answers, factor: float, shift: float
) -> None:
    logits, labels = given_
    expected = searched(*given_)
    assume(2e-2 < expected < 5e1)
    assert fit_temperature(logits * factor, labels) == pytest.approx(expected * factor, rel=1e-3)
    assert fit_temperature(logits * factor, labels) == pytest.approx(fit_temperature(*given_) * factor, rel=1e-6)
    assert fit_temperature(logits + shift, labels) == pytest.approx(fit_temperature(*given_), rel=1e-4)


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_labels_drawn_at_a_temperature_give_it_back(num_classes: int, truth: float) -> None:
    generator = torch.Generator().manual_seed(num_classes)
    logits = torch.randn(20_000, num_classes, generator=generator) * 3
    labels = torch.multinomial((logits / truth).softmax(1), 1, generator=generator)[:, 0]
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(truth, rel=0.05)
    plain, scaled = scored(logits, labels, batch_size=1000), scored(logits, labels, batch_size=1000, temperature=found)
    assert scaled.expected_calibration_error < 0.02
    assert scaled.log_loss <= plain.log_loss
    if truth != 1:
        assert scaled.log_loss < plain.log_loss - 0.005
        assert plain.expected_calibration_error > 0.02
        assert scaled.brier < plain.brier


RIGHT = torch.eye(3)[torch.tensor([0, 1, 2, 0])]


@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        (RIGHT, [0, 1, 2, 0], InputError, r"these 4 images, because all or nearly all .*correctly\. Pass more"),
        (RIGHT, [1, 2, 0, 1], InputError, r"these 4 images, because .* no better than guessing\. Train it first"),
        (torch.zeros(4, 3), [0, 1, 2, 0], InputError, "No temperature fits"),
        (RIGHT * math.nan, [0, 1, 2, 1], NonFiniteLogitsError, "NaN or infinity, so no temperature fits them"),
        (RIGHT / 0, [0, 1, 2, 1], NonFiniteLogitsError, "NaN or infinity"),
        (RIGHT, [0, 1, 2, 3], InputError, r"labels must be in \[0, 3\), got 0 to 3"),
        (RIGHT, [0, 1, 2, -100], InputError, r"labels must be in \[0, 3\), got -100 to 2"),
        (RIGHT[:0], [], InputError, "There are no images to fit a temperature on"),
    ],
)
def test_what_has_no_best_temperature_is_refused(
    logits: Tensor, labels: list[int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit_temperature(logits, torch.tensor(labels, dtype=torch.int64))


@pytest.fixture(scope="module")
def trained(synthetic: DatasetSplits, tmp_path_factory: pytest.TempPathFactory) -> tuple[DatasetSplits, Path]:
    """A run that is better than chance and far from perfect."""
    from cifarnet import build_transforms

    train, val = synthetic.train.split(0.3, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CifarCNN(image_size=SIZE, widths=(8, 16), hidden=32)
    trainer = Trainer(
        model,
        torch.optim.Adam(model.parameters(), lr=3e-3),
        transforms=build_transforms(size=SIZE),
        device="cpu",
        precision="float64",
    )
    directory = tmp_path_factory.mktemp("run")
    trainer.fit(train, val, max_epochs=6, batch_size=32, checkpointer=Checkpointer(directory), progress_bar=False)
    return DatasetSplits(train, val), directory


def load(directory: Path, **settings_: Any) -> Classifier:
    return Classifier.load(directory, device="cpu", **settings_)


@pytest.mark.parametrize("tta", [None, "flip", "flip+shift"])
def test_calibration_lowers_the_log_loss_and_leaves_labels_and_loss(
    trained: tuple[DatasetSplits, Path], synthetic: DatasetSplits, tta: Any
) -> None:
    data, directory = trained
    classifier, val = load(directory), data.test
    plain, images = classifier.evaluate(val, tta=tta), list(synthetic.test.images)
    before = classifier.predict(images, top_k=10, tta=tta)
    assert classifier.temperature == plain.temperature == 1
    temperature = classifier.calibrate(val, tta=tta)
    assert classifier.temperature == temperature != 1
    found = classifier.evaluate(val, tta=tta)
    assert found.temperature == temperature
    assert found.log_loss < plain.log_loss
    assert (found.loss, found.confusion_matrix, found.num_top_k) == (
        plain.loss,
        plain.confusion_matrix,
        plain.num_top_k,
    )
    # The least log loss of all temperatures.
    for near in (temperature * 0.99, temperature * 1.01):
        other = Classifier(
            classifier.model,
            classifier.preprocess,
            classifier.classes,
            device="cpu",
            precision="float64",
            temperature=near,
        )
        assert other.evaluate(val, tta=tta).log_loss > found.log_loss
    after = classifier.predict(images, top_k=10, tta=tta)
    assert [[label for label, _ in one.top] for one in before] == [[label for label, _ in one.top] for one in after]
    for one, other_ in zip(before, after, strict=True):
        shares = np.array([probability for _, probability in one.top]) ** (1 / temperature)
        assert [probability for _, probability in other_.top] == pytest.approx(shares / shares.sum(), rel=1e-9)


def test_batches_of_anybody_calibrate_as_a_data_set_does(trained: tuple[DatasetSplits, Path]) -> None:
    (data, directory), val = trained, trained[0].test
    batches = [(val.images[i : i + 40], val.labels[i : i + 40]) for i in range(0, len(val), 40)]
    expected = load(directory).calibrate(val)
    assert load(directory).calibrate(batches) == pytest.approx(expected, rel=1e-9)
    assert data.train.classes == val.classes


def test_at_any_temperature_labels_are_those_that_evaluation_counts() -> None:
    """A temperature so high that all probabilities are equal to the last digit."""

    class Close(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.arange(5).repeat(len(images), 1) * 1e-14 + 0 * images.mean()

    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    names = [f"class {i}" for i in range(5)]
    for temperature in (1e-3, 1.0, 1e3):
        classifier = Classifier(
            Close(), Preprocess(8), names, device="cpu", precision="float64", temperature=temperature
        )
        assert classifier.predict(image[0]).label == "class 4"
        assert classifier.evaluate([(image, torch.tensor([4]))]).num_correct == 1


def test_a_saved_classifier_is_the_same_when_it_is_loaded(
    trained: tuple[DatasetSplits, Path], synthetic: DatasetSplits, tmp_path: Path
) -> None:
    data, directory = trained
    classifier = load(directory)
    unchanged = classifier.save(tmp_path / "unchanged")
    assert "temperature" not in load_best(unchanged)[1]  # so that an older cifarnet reads it
    assert load_best(unchanged)[1] == load_best(directory)[1]
    classifier.calibrate(data.test)
    path = classifier.save(tmp_path / "new" / "run")
    assert path == tmp_path / "new" / "run" / "best.safetensors"
    weights, description = load_best(path)
    assert description == {**load_best(directory)[1], "temperature": classifier.temperature}
    assert all(torch.equal(weights[name], tensor) for name, tensor in load_best(directory)[0].items())
    loaded = load(path)
    assert loaded.temperature == classifier.temperature
    assert loaded.selected_by == classifier.selected_by
    assert loaded.evaluate(synthetic.test) == classifier.evaluate(synthetic.test)
    image = synthetic.test.images[0]
    assert loaded.predict(image) == classifier.predict(image)
    loaded.calibrate(data.test, tta="flip")
    loaded.save(path.parent)  # over itself: the weights are the same
    assert load(path).temperature == loaded.temperature != classifier.temperature


def test_a_classifier_of_ones_own_can_be_saved(synthetic: DatasetSplits, tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 10))

    own = Classifier(build(), Preprocess(SIZE), synthetic.test.classes, device="cpu", temperature=2)
    own.save(tmp_path)
    loaded = Classifier.load(tmp_path, build(), device="cpu")
    assert loaded.temperature == 2
    assert loaded.selected_by == {"monitor": "unknown", "epoch": 0, "value": None}
    assert loaded.evaluate(synthetic.test) == own.evaluate(synthetic.test)
    odd = Classifier(build(), Preprocess(SIZE), (), device="cpu", selected_by={"monitor": 5})
    with pytest.raises(CheckpointCorruptError, match=r"has invalid metadata: selected_by\.monitor is 5"):
        odd.save(tmp_path / "odd")
    assert not (tmp_path / "odd").exists()


def test_a_run_with_other_weights_is_not_replaced(
    trained: tuple[DatasetSplits, Path], synthetic: DatasetSplits, tmp_path: Path, make_trainer: MakeTrainer
) -> None:
    classifier = load(trained[1])
    trainer = make_trainer()
    trainer.fit(synthetic.train, max_epochs=1, checkpointer=Checkpointer(tmp_path), progress_bar=False)
    content = (tmp_path / "best.safetensors").read_bytes()
    with pytest.raises(RunExistsError, match="holds a run with other weights, or in another precision"):
        classifier.save(tmp_path)
    assert (tmp_path / "best.safetensors").read_bytes() == content
    with pytest.raises(RunExistsError):  # float64 weights are more than float32 ones
        load(trained[1], precision="float32").save(trained[1])
    with pytest.raises(RunExistsError):  # equal, and in another format
        load(tmp_path, precision="float64").save(tmp_path)
    with Checkpointer(tmp_path / "busy"), pytest.raises(RunDirectoryBusyError):
        classifier.save(tmp_path / "busy")
    own_loop = Checkpointer(tmp_path / "own")
    own_loop.save(trainer)
    classifier.save(tmp_path / "own")  # beside what such a loop saves
    assert load(tmp_path / "own").evaluate(synthetic.test) == classifier.evaluate(synthetic.test)
    assert own_loop.read_last() is not None


def test_a_resumed_run_keeps_the_temperature_with_its_weights(
    synthetic: DatasetSplits, tmp_path: Path, make_trainer: MakeTrainer
) -> None:
    def fit(max_epochs: int) -> None:
        make_trainer(lr=3e-3, precision="float32").fit(
            synthetic.train, max_epochs=max_epochs, checkpointer=Checkpointer(tmp_path), resume=True, progress_bar=False
        )

    fit(3)
    classifier = load(tmp_path)
    classifier.temperature = 1.5
    classifier.save(tmp_path)
    fit(3)
    assert load(tmp_path).temperature == 1.5  # the same weights
    fit(4)
    assert load(tmp_path).temperature == 1  # other ones
    fit(4)


def test_calibration_refuses_what_evaluation_refuses(trained: tuple[DatasetSplits, Path]) -> None:
    (data, directory) = trained
    classifier = load(directory)
    wrong = [(data.test.images[:2], torch.tensor([0, 10]))]
    with pytest.raises(InputError, match="label 10 at row 1"):
        classifier.calibrate(wrong)
    seen = classifier.predict(list(data.test.images))
    right = [i for i, one in enumerate(seen) if one.label == data.test.classes[data.test.labels[i]]]
    with pytest.raises(InputError, match=f"these {len(right)} images, because all or nearly all"):
        classifier.calibrate(data.test.subset(right))
    with pytest.raises(SettingError, match='tta "mirror" is unknown'):
        classifier.calibrate(data.test, tta="mirror")  # type: ignore[arg-type]
    assert classifier.temperature == 1


@pytest.mark.parametrize("temperature", [0, -1.0, 1e-4, 1e4, math.nan, math.inf, "1", True, None])
def test_a_temperature_that_is_none_is_refused(temperature: Any) -> None:
    number = type(temperature) in (int, float)
    with pytest.raises(SettingError if number else SettingTypeError, match="temperature must be"):
        Classifier(
            CifarCNN(2, image_size=8, widths=(4, 4), hidden=4), Preprocess(8), (), device="cpu", temperature=temperature
        )
