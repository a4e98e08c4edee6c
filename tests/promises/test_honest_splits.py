"""The test set chooses nothing, and equal images never lie on both sides of a split."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cifarnet import Classifier, DatasetSplits, ImageDataset, Trainer
from cifarnet.errors import SettingError
from cifarnet.training.history import is_better
from runs import equal, fit, metrics_of, second_epoch_is_best, weights_of

MakeTrainer = Callable[..., Trainer]


def test_no_run_is_selected_by_the_test_set(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    with pytest.raises(SettingError, match="The test set chooses nothing"):
        fit(make_trainer(), synthetic.train, synthetic.test, test=synthetic.test, monitor="test_accuracy")
    for name in ("test_accuracy", "train_accuracy"):
        with pytest.raises(SettingError, match=f'cannot be selected by "{name}"'):
            is_better(name, 0.9, 0.1)
    assert inspect.signature(Trainer.fit).parameters["monitor"].default == "val_accuracy"


def test_test_images_change_nothing(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    train, val = synthetic.train.split(0.3, seed=0)
    runs: list[Trainer] = []
    for test in (None, synthetic.test):
        trainer = make_trainer(lr=0.03, ema_decay=0.9)
        settings: dict[str, Any] = {"max_epochs": 4, **second_epoch_is_best()}
        settings["metrics"] = {"rank": lambda logits, labels, trainer=trainer: -abs(trainer.state.epoch - 1)}
        runs.append(fit(trainer, train, val, tmp_path / str(len(runs)), test=test, **settings))
    first, other = runs
    assert equal(weights_of(other.model), weights_of(first.model))
    assert equal(other.state_dict()["model"], first.state_dict()["model"])
    assert other.best.epoch == first.best.epoch == 2
    assert "test_accuracy" in metrics_of(other)[0]
    chosen = [Classifier.load(tmp_path / name, device="cpu").selected_by for name in ("0", "1")]
    assert chosen[0] == chosen[1] == {"monitor": "val_rank", "epoch": 2, "value": 0.0}


def test_without_validation_the_last_wins(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    for number, settings in enumerate(({}, {"ema_decay": 0.9})):
        directory = tmp_path / str(number)
        trainer = fit(make_trainer(**settings), synthetic.train, None, directory, test=synthetic.test, max_epochs=2)
        classifier = Classifier.load(directory, device="cpu")
        assert classifier.selected_by == {"monitor": "final", "epoch": 2, "value": None}
        assert equal({**classifier.model.state_dict()}, weights_of(trainer.model))
        if trainer.ema is not None:
            assert equal(weights_of(trainer.model), {**trainer.ema.weights})


def test_a_split_keeps_equal_images_on_one_side(synthetic: DatasetSplits) -> None:
    data = synthetic.train
    images = torch.cat([data.images, data.images[:100], data.images[:50]])
    labels = torch.cat([data.labels, data.labels[:100], data.labels[:50]])
    train, val = ImageDataset(images, labels, data.classes).split(0.3, seed=0)
    sides = [{image.numpy().tobytes() for image in part.images} for part in (train, val)]
    assert sides[0].isdisjoint(sides[1])
    assert len(train) + len(val) == 450


@pytest.mark.parametrize("split", ["val", "test"])
def test_shared_images_are_counted_in_a_warning(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, split: str
) -> None:
    train, val_images = synthetic.train.split(0.2, seed=0)
    held: dict[str, Any] = {split: val_images}
    fit(make_trainer(), train, **held)
    message = f"{len(val_images)} of {len(val_images)} {split} images are training images too"
    with pytest.warns(UserWarning, match=message):
        fit(make_trainer(), synthetic.train, **held)
    images = torch.cat([val_images.images[:1], synthetic.test.images])
    held[split] = ImageDataset(
        images, torch.cat([val_images.labels[:1], synthetic.test.labels]), synthetic.train.classes
    )
    fit(make_trainer(), synthetic.train, **held)  # 1 % is tolerated
