from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from cifarnet import Checkpointer, Classifier, DatasetSplits, Trainer, build_transforms, make_synthetic
from cifarnet.errors import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    InputError,
    UnsafeCheckpointError,
)

MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def trained(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> tuple[Trainer, Path]:
    trainer = make_trainer(precision="float32")
    trainer.fit(
        synthetic.train, synthetic.test, max_epochs=2, checkpointer=Checkpointer(tmp_path / "run"), progress=False
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
    trainer.fit(synthetic.train, max_epochs=1, checkpointer=Checkpointer(tmp_path), progress=False)
    with pytest.raises(CheckpointMismatchError, match="holds a Sequential, which is not one of the library's networks"):
        Classifier.load(tmp_path)
    classifier = Classifier.load(tmp_path, build(), device="cpu")
    assert classifier.evaluate(synthetic.test) == trainer.evaluate(synthetic.test)


def test_classes_that_nobody_knew_are_none(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    batches = [(synthetic.train.images, synthetic.train.labels)]
    make_trainer().fit(batches, max_epochs=1, checkpointer=Checkpointer(tmp_path), progress=False)
    classifier = Classifier.load(tmp_path, device="cpu")
    assert classifier.classes == ()
    assert classifier.evaluate(synthetic.test).num_images == 100


def test_data_with_other_classes_is_refused(trained: tuple[Trainer, Path]) -> None:
    other = make_synthetic(num_train=20, num_test=20, size=16).test
    renamed = type(other)(other.images, other.labels, tuple("abcdefghij"))
    with pytest.raises(InputError, match=r"10 classes \(.*\) apart, the images are 10 classes \(a, b, c, \.\.\.\)"):
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
    with pytest.raises(CheckpointCorruptError, match="does not describe its weights: KeyError"):
        Classifier.load(trained[1])


@pytest.mark.parametrize("precision", ["float64", "bf16"])
def test_a_run_of_any_precision_can_be_loaded_in_any(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, precision: str
) -> None:
    trainer = make_trainer(precision=precision)
    trainer.fit(synthetic.train, max_epochs=1, checkpointer=Checkpointer(tmp_path), progress=False)
    own = Classifier.load(tmp_path, device="cpu").evaluate(synthetic.test)
    assert own == trainer.evaluate(synthetic.test)
    other = Classifier.load(tmp_path, device="cpu", precision="float32").evaluate(synthetic.test)
    assert abs(other.loss - own.loss) < 0.02
