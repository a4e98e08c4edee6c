"""Comparison of the settings of two runs by value."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from cifarnet import Checkpointer, DatasetSplits, ImageDataset, Trainer, Transforms, build_transforms
from cifarnet.errors import CheckpointMismatchError
from cifarnet.optim import one_cycle
from cifarnet.training.describe import describe_value
from runs import equal, fit, read_state, weights_of

MakeTrainer = Callable[..., Trainer]


def focal(logits: Tensor, labels: Tensor, power: float = 2.0) -> Tensor:
    return nn.functional.cross_entropy(logits, labels) * power


class Focal(nn.Module):
    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return focal(logits, labels, self.power)


def augmented(augment: v2.Transform) -> dict[str, Any]:
    return {"transforms": Transforms(augment, build_transforms(size=16).preprocess)}


@pytest.mark.filterwarnings("ignore:.*draws once per batch")
@pytest.mark.parametrize(
    ("saved", "changes", "message"),
    [
        ({}, {"seed": 4}, "seed 0 in the run, 4 now"),
        ({}, {"lr": 0.5}, r"optimizer.groups\[0\].lr 0.001 in the run, 0.5 now"),
        ({}, {"dropout": 0.25}, "model.arguments.dropout 0.5 in the run, 0.25 now"),
        ({}, {"transforms": build_transforms(size=16, mean=(0, 0, 0))}, r"preprocess.mean\[0\] 0.4914 in the run, 0"),
        ({}, {"transforms": build_transforms(size=16)}, r"augment.transforms .* in the run"),
        ({}, {"max_grad_norm": 1.0}, "max_grad_norm None in the run, 1.0 now"),
        ({}, {"ema_decay": 0.9}, "ema_decay None in the run, 0.9 now"),
        ({}, {"batch_transform": v2.MixUp(num_classes=10)}, "batch_transform None in the run, .*MixUp.* now"),
        ({}, {"lr_schedule": one_cycle()}, "lr_schedule None in the run, .*WarmupThenDecay now"),
        ({}, {"loss_fn": nn.CrossEntropyLoss(label_smoothing=0.1)}, r"loss_fn.label_smoothing 0\.0 in the run, 0\.1"),
        ({"loss_fn": Focal(2.0)}, {"loss_fn": Focal(5.0)}, "loss_fn.power 2.0 in the run, 5.0 now"),
        ({"loss_fn": focal}, {"loss_fn": Focal(2.0)}, "loss_fn focal in the run, Focal now"),
        ({"loss_fn": focal}, {"loss_fn": lambda logits, labels: 0}, "loss_fn focal in the run, a lambda now"),
        (augmented(v2.ColorJitter(0.1)), augmented(v2.ColorJitter(0.2)), "augment.brightness"),
    ],
)
def test_a_run_with_other_settings_is_refused(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, saved: Any, changes: Any, message: str
) -> None:
    few = synthetic.train.subset(range(64))
    fit(make_trainer(**saved), few, None, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert fit(make_trainer(**saved), few, None, tmp_path).resume_differences == []
    trainer = make_trainer(**{**saved, **changes})
    weights = weights_of(trainer.model)
    with pytest.raises(CheckpointMismatchError, match=message):
        fit(trainer, few, None, tmp_path, max_epochs=2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert equal(weights_of(trainer.model), weights)


def test_a_run_with_other_data_is_refused(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    train, val = synthetic.train, synthetic.test.subset(range(50))
    trainer = fit(make_trainer(), train, val, tmp_path)
    for other_train, other_val, settings, message in (
        (train.subset(range(200)), val, {}, "data.fingerprint"),
        (train, synthetic.test, {}, "val_data.fingerprint"),
        (train, None, {}, "val_data .* in the run, None now"),
        (train, val, {"batch_size": 32}, "batch_size 64 in the run, 32 now"),
        (train, val, {"monitor": "val_loss"}, "selected by val_accuracy, not by val_loss"),
    ):
        with pytest.raises(CheckpointMismatchError, match=message):
            fit(make_trainer(), other_train, other_val, tmp_path, max_epochs=2, **settings)
    with pytest.raises(CheckpointMismatchError, match="batch_size 64 in the run, 32 now"):
        fit(trainer, train, val, max_epochs=2, batch_size=32)  # in the same process too
    renamed = ImageDataset(train.images, train.labels, train.classes, ids=train.ids, name="another name")
    assert fit(make_trainer(), renamed, val, tmp_path, max_epochs=2).resume_differences == []


def test_another_dataloader_is_refused(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    fit(make_trainer(), DataLoader(synthetic.train, 64, shuffle=True), None, tmp_path)
    for loader, message in (
        (DataLoader(synthetic.train, 50), "data.batch_size 64 in the run, 50 now"),
        (DataLoader(synthetic.test, 64), "data.fingerprint"),
        (DataLoader(synthetic.train, 64, drop_last=True), "data.num_batches 5 in the run, 4 now"),
    ):
        with pytest.raises(CheckpointMismatchError, match=message):
            fit(make_trainer(), loader, None, tmp_path, max_epochs=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "bf16"}, "precision float32 in the run, bf16 now"),
        ({"deterministic": True}, "deterministic False in the run, True now"),
        ({"fused": False}, r"optimizer\[0\].fused True in the run, False now"),
        ({"loss_fn": lambda logits, labels: focal(logits, labels)}, "loss_fn is a lambda, which cannot be compared"),
        ({"loss_fn": Focal(2.0).forward}, "loss_fn is a method of a Focal, which cannot be compared"),
    ],
)
def test_a_warning_names_each_loss_of_equality(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    plain = {"precision": "float32", "loss_fn": changes.get("loss_fn")}
    fit(make_trainer(**plain), synthetic.train, None, tmp_path)
    with pytest.warns(UserWarning, match=message):
        fit(make_trainer(**{**plain, **changes}), synthetic.train, None, tmp_path, max_epochs=2)


def test_differences_keep_their_steps(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    def differences(max_epochs: int) -> list[str]:
        trainer = make_trainer(lr_schedule=one_cycle())
        return fit(trainer, synthetic.train, None, tmp_path, max_epochs=max_epochs).resume_differences

    assert differences(1) == []
    first = "max_epochs 1 epochs in the run, 2 epochs now, from step 5"
    with pytest.warns(UserWarning, match="1 epochs in the run"):
        assert differences(2) == [first]
    assert differences(2) == [first], "kept, though nothing is new"
    with pytest.warns(UserWarning, match="2 epochs in the run"):
        assert differences(3) == [first, "max_epochs 2 epochs in the run, 3 epochs now, from step 10"]
    with pytest.raises(CheckpointMismatchError, match="has 3 epochs, and max_epochs is 1"):
        differences(1)


def test_a_newer_torch_warns_and_never_refuses(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version may print a transform differently, and give it one field more or less."""
    settings = {"transforms": Transforms(v2.RandomInvert(1.0), build_transforms(size=16).preprocess)}
    fit(make_trainer(**settings), synthetic.train, None, tmp_path)
    monkeypatch.setattr(v2.RandomInvert, "extra_repr", lambda self: "another text")
    monkeypatch.setattr("torch.__version__", "99.0")
    state = read_state(tmp_path)
    state["settings"]["augment"]["fields"]["new_field"] = 3
    Checkpointer(tmp_path).save_state(state)
    with pytest.warns(UserWarning, match=r"torch .* in the run, 99\.0 now") as caught:
        fit(make_trainer(**settings), synthetic.train, None, tmp_path, max_epochs=2)
    assert sum(issubclass(one.category, UserWarning) for one in caught) == 1


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (functools.partial(focal, power=2.0), functools.partial(focal, power=5.0)),
        (nn.CrossEntropyLoss(weight=torch.ones(10)), nn.CrossEntropyLoss(weight=torch.arange(10.0))),
        (np.ones(2), np.ones(3)),
        (np.float32(1), 2.0),
        ({"a": [1, (2,)]}, {"a": [1, (3,)]}),
        (nn.Linear(2, 2), nn.Linear(2, 2)),
        (torch.float32, torch.float64),
        (focal, Focal),
        (Path("a"), Path("b")),
        (Image.Resampling.BILINEAR, Image.Resampling.NEAREST),
        (build_transforms(), build_transforms(crop_padding=1)),
    ],
)
def test_descriptions_are_equal_if_values_are(value: Any, other: Any) -> None:
    assert describe_value(value) == describe_value(value)
    assert describe_value(value) != describe_value(other)


def test_a_setting_is_described_without_the_model_it_holds() -> None:
    model = nn.Linear(2, 2)
    described = describe_value({"model": model, "weight": [model.weight], "alpha": 0.1}, model=model)
    assert described == {"model": {"global": "the model"}, "weight": [{"global": "the model"}], "alpha": 0.1}


def test_a_value_that_contains_itself_is_incomparable() -> None:
    class Loop:
        def __init__(self) -> None:
            self.own = self

    assert "contains itself" in str(describe_value(Loop()))
    assert describe_value(object()) == {"incomparable": "a object"}
    assert "local to a function" in str(describe_value(Loop))
