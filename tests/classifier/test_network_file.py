from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from cifarnet import Checkpointer, CifarCNN, Classifier, DatasetSplits, Preprocess, Trainer
from cifarnet.checkpoint import load_best
from cifarnet.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    SettingError,
)

SIZE = 16
MakeTrainer = Callable[..., Trainer]
Run = tuple[Trainer, DatasetSplits, Path]


def build_own() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 10))


def fit(trainer: Trainer, data: DatasetSplits, directory: Path, max_epochs: int = 1) -> None:
    checkpointer = Checkpointer(directory)
    trainer.fit(data.train, max_epochs=max_epochs, checkpointer=checkpointer, resume=True, progress_bar=False)


def test_a_loaded_run_evaluates_like_its_trainer(trained_run: Run, synthetic: DatasetSplits) -> None:
    trainer, data, directory = trained_run
    state = torch.get_rng_state()
    for path in (directory, directory / "best.safetensors"):
        classifier = Classifier.load(path, device="cpu")
        record = trainer.history[classifier.selected_by["epoch"] - 1]
        assert classifier.evaluate(data.test).accuracy == record.val_accuracy
        assert classifier.classes == data.train.classes
        assert classifier.preprocess == trainer.transforms.preprocess
        assert classifier.precision.name == "float64"
        assert not classifier.model.training
    assert torch.equal(state, torch.get_rng_state())
    pairs = [(synthetic.test.images, synthetic.test.labels)]
    assert classifier.evaluate(pairs).num_correct == classifier.evaluate(synthetic.test).num_correct
    shown = "<Classifier: CifarCNN, 10 classes (circle, square, triangle, ...), 16x16 pixels, float64 on cpu>"
    assert repr(classifier) == shown


def test_a_run_can_be_loaded_in_another_precision(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    trainer = make_trainer(precision="bf16")
    fit(trainer, synthetic, tmp_path)
    own = Classifier.load(tmp_path, device="cpu").evaluate(synthetic.test)
    assert own == trainer.evaluate(synthetic.test)
    other = Classifier.load(tmp_path, device="cpu", precision="float32").evaluate(synthetic.test)
    assert abs(other.loss - own.loss) < 0.02


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="nowhere"):
        Classifier.load(tmp_path / "nowhere")
    with pytest.raises(SettingError, match='device "gpu"'):  # before the file is read
        Classifier.load(tmp_path / "nowhere", device="gpu")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="never unpickles"):
        Classifier.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("model", "first"),
    [(CifarCNN(100, image_size=SIZE, widths=(8, 16), hidden=32), "fc2.weight"), (CifarCNN(), "bn1")],
)
def test_a_model_that_does_not_fit_is_refused(trained_run: Run, model: nn.Module, first: str) -> None:
    with pytest.raises(CheckpointMismatchError, match=first) as caught:
        Classifier.load(trained_run[2], model, device="cpu")
    assert 1 <= str(caught.value).count(" in the model") <= 5
    assert "The file holds CifarCNN(" in str(caught.value)


def test_a_saved_classifier_equals_its_original(
    classifier: Classifier, trained_run: Run, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    original_weights, original = load_best(trained_run[2])
    unchanged = classifier.save(tmp_path / "unchanged")
    assert load_best(unchanged)[1] == original  # without a temperature, so that an older version reads it
    classifier.calibrate(trained_run[1].test)
    path = classifier.save(tmp_path / "new" / "run")
    assert path == tmp_path / "new" / "run" / "best.safetensors"
    weights, description = load_best(path)
    assert description == {**original, "temperature": classifier.temperature}
    assert all(torch.equal(weights[name], tensor) for name, tensor in original_weights.items())
    loaded = Classifier.load(path, device="cpu")
    assert (loaded.temperature, loaded.selected_by) == (classifier.temperature, classifier.selected_by)
    assert loaded.evaluate(synthetic.test) == classifier.evaluate(synthetic.test)
    assert loaded.predict(synthetic.test.images[0]) == classifier.predict(synthetic.test.images[0])
    loaded.calibrate(trained_run[1].test, tta="flip")
    loaded.save(path.parent)  # over itself: the weights are equal
    assert Classifier.load(path, device="cpu").temperature == loaded.temperature != classifier.temperature


def test_a_classifier_of_the_user_can_be_saved(synthetic: DatasetSplits, tmp_path: Path) -> None:
    own = Classifier(build_own(), Preprocess(SIZE), synthetic.test.classes, device="cpu", temperature=2)
    own.save(tmp_path)
    with pytest.raises(CheckpointMismatchError, match="holds a Sequential, which is not one of the library's networks"):
        Classifier.load(tmp_path)
    loaded = Classifier.load(tmp_path, build_own(), device="cpu")
    assert loaded.temperature == 2
    assert loaded.selected_by == {"monitor": "unknown", "epoch": 0, "value": None}
    assert loaded.evaluate(synthetic.test) == own.evaluate(synthetic.test)
    odd = Classifier(build_own(), Preprocess(SIZE), (), device="cpu", selected_by={"monitor": 5})
    with pytest.raises(CheckpointCorruptError, match=r"the metadata.selected_by.monitor must be a string, got 5"):
        odd.save(tmp_path / "odd")
    assert not (tmp_path / "odd").exists()


def test_save_does_not_replace_other_weights(
    classifier: Classifier, trained_run: Run, synthetic: DatasetSplits, tmp_path: Path, make_trainer: MakeTrainer
) -> None:
    fit(make_trainer(precision="float32"), synthetic, tmp_path)
    content = (tmp_path / "best.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="holds a run with other weights, or in another precision"):
        classifier.save(tmp_path)
    assert (tmp_path / "best.safetensors").read_bytes() == content
    with pytest.raises(CheckpointError):  # equal weights in another dtype
        Classifier.load(tmp_path, device="cpu", precision="float64").save(tmp_path)


def test_a_resumed_run_keeps_the_temperature_of_its_weights(
    synthetic: DatasetSplits, tmp_path: Path, make_trainer: MakeTrainer
) -> None:
    fit(make_trainer(lr=3e-3, precision="float32"), synthetic, tmp_path, 3)
    classifier = Classifier.load(tmp_path, device="cpu")
    classifier.temperature = 1.5
    classifier.save(tmp_path)
    for max_epochs, temperature in ((3, 1.5), (4, 1)):  # the fourth epoch changes the weights
        fit(make_trainer(lr=3e-3, precision="float32"), synthetic, tmp_path, max_epochs)
        assert Classifier.load(tmp_path, device="cpu").temperature == temperature
