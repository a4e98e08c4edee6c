"""The loop: what it records, selects and leaves in the model, and what its caller may do in the body."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from cifarnet import Checkpointer, CifarCNN, Classifier, DatasetSplits, Trainer
from cifarnet.checkpoint import read_checkpoint
from cifarnet.errors import DeviceMemoryError
from cifarnet.inference import top_k_accuracy
from cifarnet.optim import ExponentialMovingAverage, cosine, linear
from runs import (
    Tripwire,
    assert_equal_runs,
    equal,
    fit,
    metrics_of,
    read_state,
    second_epoch_is_best,
    weights_of,
)

MakeTrainer = Callable[..., Trainer]


def test_a_run_is_a_function_of_its_seed(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    runs = []
    for seed, noise in ((1, 0), (1, 5), (2, 0)):
        torch.manual_seed(noise)  # the caller's own state does not matter
        loader = DataLoader(synthetic.train, batch_size=64, shuffle=True)
        runs.append([weights_of(fit(make_trainer(seed=seed), data).model) for data in (synthetic.train, loader)])
    for one, same, other in zip(*runs, strict=True):
        assert equal(one, same)
        assert not equal(one, other)


def test_the_callers_random_state_is_untouched_in_the_body(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    torch.manual_seed(11)
    random.seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    python, numpy_state = random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index]
    drawn = [torch.rand(1) for _ in make_trainer(deterministic=True).epochs(synthetic.train, max_epochs=4)]
    assert torch.equal(torch.cat(drawn), expected)
    assert random.getstate() == python
    assert bool((np.random.get_state()[1] == numpy_state).all())  # type: ignore[index]
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_record_holds_what_was_measured(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    train, val = synthetic.train.split(0.2, seed=0)
    trainer = make_trainer()
    record = next(iter(trainer.epochs(train, val, test=synthetic.test, max_epochs=1)))
    assert record.global_step == trainer.global_step == 4
    assert record.val_accuracy == trainer.evaluate(val).accuracy
    assert record.test_loss == trainer.evaluate(synthetic.test).loss
    assert record.images_per_s == pytest.approx(len(train) / record.train_s)
    assert record.learning_rate == 1e-3
    assert 0 < record.train_accuracy < 1


def test_fit_leaves_the_best_and_continues_from_the_last(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    train, val = synthetic.train.split(0.3, seed=0)
    plain, trainer, selection = make_trainer(lr=0.03), make_trainer(lr=0.03), second_epoch_is_best()
    by_epoch = [weights_of(plain.model) for _ in plain.epochs(train, val, max_epochs=6)]
    fit(trainer, train, val, max_epochs=4, **selection)
    assert trainer.best.epoch == 2  # a best that is the last would show nothing
    assert equal(weights_of(trainer.model), by_epoch[1])
    assert trainer.evaluate(val).accuracy == trainer.history[1].val_accuracy
    assert equal(trainer.state_dict()["model"], by_epoch[3])  # a save keeps what training had reached
    fit(trainer, train, val, max_epochs=6, **selection)
    assert trainer.history["val_accuracy"] == plain.history["val_accuracy"]
    assert equal(trainer.state_dict()["model"], by_epoch[5])


@pytest.mark.parametrize("last", [2, 4])
def test_weights_the_caller_replaces_are_trained(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, last: int
) -> None:
    """Neither the best epoch nor the average of the replaced weights comes back."""
    train, val = synthetic.train.split(0.3, seed=0)
    trainer, selection = make_trainer(lr=0.03, ema_decay=0.999), second_epoch_is_best()
    fit(trainer, train, val, max_epochs=last, **selection)
    assert trainer.best.epoch == 2  # the model holds what training reached, or other weights
    for parameter in trainer.model.parameters():
        nn.init.zeros_(parameter)
    trainer.optimizer.param_groups[0]["lr"] = 0.0
    fit(trainer, train, val, max_epochs=last + 1, **selection)
    assert trainer.best.epoch == last + 1
    assert not any(parameter.any() for parameter in trainer.model.parameters())


def test_the_average_is_evaluated_and_kept(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    train, val = synthetic.train.split(0.3, seed=0)
    plain = make_trainer(lr=0.01)
    by_hand = ExponentialMovingAverage(plain.model, decay=0.9)
    accuracies, averages, own_weights = [], [], []
    plain.optimizer.register_step_post_hook(lambda *_: by_hand.update())
    for _ in plain.epochs(train, max_epochs=5):
        with by_hand.applied():
            accuracies.append(plain.evaluate(val).accuracy)
        averages.append({name: tensor.clone() for name, tensor in by_hand.weights.items()})
        own_weights.append(weights_of(plain.model))
    trainer = make_trainer(lr=0.01, ema_decay=0.9)
    fit(trainer, train, val, tmp_path, max_epochs=5, **second_epoch_is_best())
    assert trainer.history["val_accuracy"] == accuracies
    assert equal(weights_of(trainer.model), averages[1])
    assert equal({**read_checkpoint(tmp_path / "best.safetensors").tensors}, averages[1])
    assert equal(trainer.state_dict()["model"], own_weights[-1])


@pytest.mark.parametrize("monitor", ["val_accuracy", "val_loss"])
def test_early_stopping_waits_for_patience_epochs(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, capsys: Any, monitor: str
) -> None:
    train, val = synthetic.train.split(0.2, seed=0)
    settings: dict[str, Any] = {"max_epochs": 40, "monitor": monitor, "patience": 2}
    history = fit(make_trainer(lr=0.05), train, val, tmp_path, **settings).history
    best = history.best(monitor)
    assert best is not None
    assert len(history) == best.epoch + 2 < 40
    fit(make_trainer(lr=0.05), train, val, tmp_path, progress_bar=True, **settings)
    message = f"Run already finished: the best {monitor} was 2 epochs ago ({len(history)}/40)\n"
    assert capsys.readouterr().err == message


def test_epochs_does_all_that_fit_does(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    train, val = synthetic.train.split(0.2, seed=0)
    settings: dict[str, Any] = {"max_epochs": 20, "patience": 2}
    by_fit, by_loop = fit(make_trainer(lr=0.05), train, val, tmp_path / "fit", **settings), make_trainer(lr=0.05)
    records = list(by_loop.epochs(train, val, checkpointer=tmp_path / "loop", **settings))
    assert [record.metrics for record in records] == metrics_of(by_fit)
    assert equal(weights_of(by_loop.model), weights_of(by_fit.model)), "both end with the best weights"
    assert_equal_runs(tmp_path / "fit", tmp_path / "loop")


@pytest.mark.parametrize("how", ["break", "error"])
def test_a_body_that_ends_the_loop_saves_the_run(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, how: str
) -> None:
    trainer, checkpointer = make_trainer(lr=0.05), Checkpointer(tmp_path, save_every_s=1e9)
    with contextlib.suppress(ZeroDivisionError):
        for record in trainer.epochs(synthetic.train, synthetic.test, max_epochs=9, checkpointer=checkpointer):
            if record.epoch == 3 and how == "error":
                raise ZeroDivisionError
            if record.epoch == 3:
                break
    assert read_state(tmp_path)["position"]["epoch"] == 3
    if how == "break":
        best = trainer.history.best()
        assert best is not None
        assert trainer.evaluate(synthetic.test).accuracy == best.val_accuracy
        assert equal(weights_of(trainer.model), checkpointer.read_best()[0])


def test_metrics_of_the_caller_select(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    trainer = make_trainer(lr=0.01, precision="float32")
    settings: dict[str, Any] = {
        "test": synthetic.test.subset(range(50)),
        "metrics": {"top5": lambda logits, labels: top_k_accuracy(logits, labels, k=5)},
        "monitor": "val_top5",
        "checkpointer": tmp_path,
    }
    for record in trainer.epochs(synthetic.train, synthetic.test, max_epochs=3, **settings):
        with torch.no_grad():
            logits = trainer.model.eval()(trainer.transforms.preprocess(synthetic.test.images))
        expected = top_k_accuracy(logits, synthetic.test.labels, k=5)
        assert record.metrics["val_top5"] == pytest.approx(expected, abs=0.02)
        assert set(record.metrics) > {"test_top5", "test_loss"}
    best = trainer.history.best("val_top5")
    assert best is not None
    assert trainer.best.epoch == best.epoch
    assert Classifier.load(tmp_path, device="cpu").selected_by["monitor"] == "val_top5"


def test_a_schedule_sets_the_rate_of_every_step(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    donor = make_trainer(lr=0.1)
    settings: dict[str, Any] = {"transforms": donor.transforms, "lr_schedule": linear(), "device": "cpu"}
    for _ in range(2):
        trainer = fit(Trainer(donor.model, donor.optimizer, **settings), synthetic.train, max_epochs=3, batch_size=100)
        assert trainer.history["learning_rate"] == pytest.approx([0.1 * (1 - step / 9) for step in (2, 5, 8)])
        assert donor.optimizer.param_groups[0]["lr"] == 0.1, "the base rate is back"
    assert "initial_lr" not in donor.optimizer.param_groups[0]


def test_changes_in_the_body_stay_on_resume(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    for max_epochs in (2, 3, 4):
        trainer = make_trainer()
        for _ in trainer.epochs(synthetic.train, max_epochs=max_epochs, checkpointer=tmp_path, resume=True):
            trainer.optimizer.param_groups[0]["lr"] = 1e-4
            trainer.optimizer.param_groups[0]["weight_decay"] = 0.01 * max_epochs
        assert trainer.resume_differences == []
    assert trainer.history["learning_rate"] == [1e-3, 1e-4, 1e-4, 1e-4]


@pytest.mark.parametrize(("schedule", "stop"), [(None, 1), (cosine(), 2)])
def test_a_run_with_an_added_group_resumes(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, schedule: Any, stop: int
) -> None:
    def make(*, has_both: bool) -> Trainer:
        donor = make_trainer()
        head, body = (donor.model.get_parameter(name) for name in ("fc2.weight", "conv1.weight"))
        optimizer = torch.optim.Adam([head], lr=torch.tensor(0.01))
        if has_both:
            optimizer.add_param_group({"params": [body], "lr": 0.001})
        settings: dict[str, Any] = {"lr_schedule": schedule, "device": "cpu", "ema_decay": 0.9}
        return Trainer(donor.model, optimizer, transforms=donor.transforms, **settings)

    def train(trainer: Trainer, directory: str, last: int) -> None:
        body = trainer.model.get_parameter("conv1.weight")
        for record in trainer.epochs(synthetic.train, max_epochs=3, checkpointer=tmp_path / directory, resume=True):
            if record.epoch == 1:
                trainer.optimizer.add_param_group({"params": [body], "lr": 0.001})
            if record.epoch == last:
                break

    train(make(has_both=False), "whole", 3)
    train(make(has_both=False), "stopped", stop)
    resumed = make(has_both=True)
    train(resumed, "stopped", 3)
    assert resumed.resume_differences == []
    assert_equal_runs(tmp_path / "whole", tmp_path / "stopped")


def test_a_loop_body_may_train_another_model(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    alone, outer = fit(make_trainer(), synthetic.train, max_epochs=2), make_trainer()
    for _ in outer.epochs(synthetic.train, max_epochs=2):
        fit(make_trainer(), synthetic.train)
    assert metrics_of(outer) == metrics_of(alone)


def test_frozen_modules_stay_frozen(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    trainer = make_trainer()
    model = trainer.model
    assert isinstance(model, CifarCNN)
    model.bn1.eval()  # after the Trainer was built
    before = weights_of(model)
    fit(trainer, synthetic.train, synthetic.test)
    assert torch.equal(model.state_dict()["bn1.running_mean"], before["bn1.running_mean"])
    assert not torch.equal(model.state_dict()["bn2.running_mean"], before["bn2.running_mean"])
    assert not model.bn1.training
    assert model.bn2.training


def test_a_batch_that_does_not_fit_gets_advice(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    trainer = make_trainer(loss_fn=Tripwire(1, lambda: torch.empty(2**58)))  # which no machine has
    message = r"^batch_size=128 does not fit into the memory of cpu. Use 64 or accumulate_grad_batches=2 \("
    with pytest.raises(DeviceMemoryError, match=message):
        fit(trainer, synthetic.train, batch_size=128)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert len(fit(trainer, synthetic.train, batch_size=64).history) == 1  # as the message advises
