from __future__ import annotations

import itertools
import math
import random
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cifarnet import Checkpointer, CifarCNN, Classifier, DatasetSplits, EpochRecord, Trainer, build_transforms
from cifarnet.errors import (
    InputError,
    NonFiniteLossError,
    ResumeMismatchError,
    RunExistsError,
    SettingError,
    SettingTypeError,
)
from cifarnet.optim import linear
from runs import second_epoch_is_best

MakeTrainer = Callable[..., Trainer]


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_network_overfits_32_images(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    few = synthetic.train.subset(torch.arange(32))
    trainer = make_trainer(lr=1e-2, dropout=0.0, transforms=build_transforms(crop_padding=0, flip="none", size=16))
    history = trainer.fit(few, max_epochs=30, batch_size=32, progress_bar=False)
    assert history[-1].train_accuracy == 1.0
    assert trainer.evaluate(few).accuracy == 1.0


def test_a_step_moves_every_parameter(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    trainer = make_trainer()
    before = weights_of(trainer)
    trainer.fit(synthetic.train, max_epochs=1, batch_size=300, progress_bar=False)
    assert trainer.global_step == 1
    for name, parameter in trainer.model.named_parameters():
        assert not torch.equal(before[name], parameter.detach()), name


def test_a_run_is_a_function_of_its_seed(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    runs = []
    for seed, noise in ((1, 0), (1, 5), (2, 0)):
        torch.manual_seed(noise)  # the caller's own state has no say
        trainer = make_trainer(seed=seed)
        trainer.fit(synthetic.train, max_epochs=2, progress_bar=False)
        runs.append(weights_of(trainer))
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


def test_the_callers_random_state_is_untouched_between_records(
    make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    torch.manual_seed(11)
    random.seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    python, numpy_state = random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index]
    drawn = [torch.rand(1) for _ in make_trainer().epochs(synthetic.train, max_epochs=4)]
    assert torch.equal(torch.cat(drawn), expected)
    assert random.getstate() == python
    assert bool((np.random.get_state()[1] == numpy_state).all())  # type: ignore[index]


def test_epochs_is_a_loop_that_break_ends(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    trainer = make_trainer()
    train, val = synthetic.train.split(0.2, seed=0)
    for record in trainer.epochs(train, val, max_epochs=10):
        assert isinstance(record, EpochRecord)
        if record.epoch == 2:
            break
    assert [record.epoch for record in trainer.history] == [1, 2]
    # The rest of the run, where it is wanted after all.
    rest = list(trainer.epochs(train, val, max_epochs=3))
    assert [record.epoch for record in rest] == [3]

    unbroken = make_trainer()
    list(unbroken.epochs(train, val, max_epochs=3))
    assert equal(weights_of(trainer), weights_of(unbroken))


def test_a_record_says_what_was_measured(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    train, val = synthetic.train.split(0.2, seed=0)
    trainer = make_trainer()
    record = next(iter(trainer.epochs(train, val, test=synthetic.test, max_epochs=1)))
    assert record.global_step == trainer.global_step == 4
    assert record.val_accuracy == trainer.evaluate(val).accuracy
    assert record.test_loss == trainer.evaluate(synthetic.test).loss
    assert record.images_per_s == pytest.approx(len(train) / record.train_s)
    assert record.learning_rate == 1e-3
    assert 0 < record.train_accuracy < 1
    without = next(iter(make_trainer().epochs(train, max_epochs=1)))
    assert without.val_loss is without.test_accuracy is None
    assert without.train_loss == record.train_loss  # looking at images does not change what is learnt


def test_fit_ends_with_the_best_weights_and_goes_on_from_the_last(
    make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    train, val = synthetic.train.split(0.3, seed=0)
    plain = make_trainer(lr=0.03)
    by_epoch = [weights_of(plain) for _ in plain.epochs(train, val, max_epochs=8)]
    trainer = make_trainer(lr=0.03)
    selection = second_epoch_is_best()
    history = trainer.fit(train, val, max_epochs=5, progress_bar=False, **selection)
    best = history.best("val_rank")
    assert best is not None
    assert trainer.best.epoch == best.epoch == 2  # a best that is the last would show nothing
    assert equal(weights_of(trainer), by_epoch[best.epoch - 1])
    assert trainer.evaluate(val).accuracy == best.val_accuracy
    assert equal(trainer.state_dict()["model"], by_epoch[4])  # a save keeps what training had reached
    trainer.fit(train, val, max_epochs=8, progress_bar=False, **selection)
    assert [r.val_accuracy for r in history] == [r.val_accuracy for r in plain.history]
    assert equal(trainer.state_dict()["model"], by_epoch[7])


def test_without_validation_the_last_epoch_is_the_best_and_says_so(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    trainer = make_trainer()
    trainer.fit(
        synthetic.train, test=synthetic.test, max_epochs=2, checkpointer=Checkpointer(tmp_path), progress_bar=False
    )
    classifier = Classifier.load(tmp_path, device="cpu")
    assert classifier.selected_by == {"monitor": "final", "epoch": 2, "value": None}
    assert equal({**classifier.model.state_dict()}, weights_of(trainer))


@pytest.mark.parametrize("monitor", ["val_accuracy", "val_loss"])
def test_early_stopping_waits_for_patience_epochs(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, monitor: str
) -> None:
    train, val = synthetic.train.split(0.2, seed=0)
    history = make_trainer(lr=0.05).fit(train, val, max_epochs=40, monitor=monitor, patience=2, progress_bar=False)
    best = history.best(monitor)
    assert best is not None
    assert len(history) == min(best.epoch + 2, 40) < 40


def test_a_schedule_sets_the_rate_of_every_step(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    trainer = make_trainer(lr_schedule=linear(), lr=0.1)
    history = trainer.fit(synthetic.train, max_epochs=3, batch_size=100, progress_bar=False)
    assert history["learning_rate"] == pytest.approx([0.1 * (1 - step / 9) for step in (2, 5, 8)])


def test_a_dataloaders_shuffling_is_seeded_too(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    trainers = [make_trainer(), make_trainer()]
    for trainer, noise in zip(trainers, (0, 9), strict=True):
        torch.manual_seed(noise)
        loader = DataLoader(synthetic.train, batch_size=64, shuffle=True)
        trainer.fit(loader, DataLoader(synthetic.test, batch_size=50), max_epochs=2, progress_bar=False)
    assert equal(weights_of(trainers[0]), weights_of(trainers[1]))
    assert trainers[0].history[0].train_loss != trainers[0].history[1].train_loss
    assert trainers[0].global_step == 10


def test_floating_batches_are_taken_as_they_are(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    trainer = make_trainer()
    images = trainer.transforms.preprocess(synthetic.test.images)
    assert trainer.evaluate([(images, synthetic.test.labels)]) == trainer.evaluate(
        [(synthetic.test.images, synthetic.test.labels)]
    )


def test_a_generator_that_is_used_up_is_refused_in_the_second_epoch(
    make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    once = ((synthetic.train.images[i : i + 50], synthetic.train.labels[i : i + 50]) for i in (0, 50))
    trainer = make_trainer()
    with pytest.raises(ValueError, match="it is empty after one epoch"):
        trainer.fit(once, max_epochs=2, progress_bar=False)
    assert len(trainer.history) == 1


def test_a_schedule_needs_to_know_the_number_of_steps(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    endless = itertools.repeat((synthetic.train.images[:8], synthetic.train.labels[:8]))
    with pytest.raises(SettingError, match="the iterable of batches has no length"):
        make_trainer(lr_schedule=linear()).fit(endless, max_epochs=1, progress_bar=False)


def test_label_smoothing_and_clipping_change_the_run(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    losses = [
        make_trainer(**settings).fit(synthetic.train, max_epochs=2, progress_bar=False)[-1].train_loss
        for settings in ({}, {"loss_fn": nn.CrossEntropyLoss(label_smoothing=0.2)}, {"max_grad_norm": 0.1})
    ]
    assert len(set(losses)) == 3


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_its_files_alone(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    countdowns: dict[int, int] = {}

    class Explodes(nn.Module):
        def __init__(self, at_step: int) -> None:
            super().__init__()
            countdowns[id(self)] = at_step

        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            countdowns[id(self)] -= 1
            return nn.functional.cross_entropy(logits, labels) * (math.nan if countdowns[id(self)] == 0 else 1)

    good, checkpointer = make_trainer(loss_fn=Explodes(-1)), Checkpointer(tmp_path)
    good.fit(synthetic.train, max_epochs=1, checkpointer=checkpointer, progress_bar=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    trainer = make_trainer(loss_fn=Explodes(4))
    with pytest.raises(NonFiniteLossError, match=r"since step 4 of epoch 2 .*learning rate 0.001.*Try a tenth"):
        trainer.fit(synthetic.train, max_epochs=2, checkpointer=checkpointer, resume=True, progress_bar=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert len(trainer.history) == 1


def test_weights_that_explode_in_the_last_step_are_not_saved(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    """The loss of the only step is finite; the gradient of its square root at 0 is not."""

    def loss_fn(logits: Tensor, labels: Tensor) -> Tensor:
        return (logits - logits).sum().sqrt() + 1

    trainer = make_trainer(loss_fn=loss_fn)
    with pytest.raises(NonFiniteLossError, match="A weight is not finite after step 1 of epoch 1"):
        trainer.fit(
            synthetic.train, max_epochs=1, batch_size=300, checkpointer=Checkpointer(tmp_path), progress_bar=False
        )
    assert list(tmp_path.iterdir()) == []


def test_a_validation_that_is_nan_never_becomes_the_best(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    def loss_fn(logits: Tensor, labels: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(logits, labels)
        return loss if logits.requires_grad else loss * math.nan

    trainer = make_trainer(loss_fn=loss_fn)
    with pytest.warns(UserWarning, match="val_loss is nan at epoch 1. Such an epoch cannot become the best"):
        trainer.fit(synthetic.train, synthetic.test, max_epochs=1, monitor="val_loss", progress_bar=False)
    assert trainer.best.epoch == 0


def test_float64_trains_in_float64(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    trainer = make_trainer(precision="float64")
    trainer.fit(synthetic.train, max_epochs=1, progress_bar=False)
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float64}


def test_bf16_and_float32_give_close_gradients_from_the_same_weights(
    make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    gradients = []
    for precision in ("float32", "bf16"):
        trainer = make_trainer(precision=precision, dropout=0.0)
        trainer.fit(synthetic.train, max_epochs=1, batch_size=300, progress_bar=False)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]))
    # 8 bits an operation; and where two activations agree in those, ReLU and pooling choose another way.
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 0.15
    assert not torch.equal(gradients[0], gradients[1])


class TestRefusals:
    """Everything wrong is told before anything is trained or written."""

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"max_epochs": 0}, "max_epochs must be at least 1, got 0"),
            ({"max_epochs": 1, "batch_size": 0}, "batch_size must be at least 1, got 0"),
            ({"max_epochs": 1, "batch_size": -5}, "batch_size must be at least 1, got -5"),
            ({"max_epochs": 1, "patience": 0}, "patience must be at least 1, got 0"),
            ({"max_epochs": 1, "patience": 1}, "patience and metrics need validation images"),
            ({"max_epochs": 1, "metrics": {"top5": max}}, "patience and metrics need validation images"),
            ({"max_epochs": 1, "monitor": "val_top5"}, 'monitor "val_top5" is unknown'),
            ({"max_epochs": 1, "monitor": "val_acuracy"}, 'monitor "val_acuracy" is unknown; did you mean "val_acc'),
            ({"max_epochs": 1, "monitor": "test_accuracy"}, "The test set chooses nothing"),
        ],
    )
    def test_of_fit(
        self,
        make_trainer: MakeTrainer,
        synthetic: DatasetSplits,
        tmp_path: Path,
        settings: dict[str, object],
        message: str,
    ) -> None:
        trainer = make_trainer()
        before = weights_of(trainer)
        with pytest.raises(SettingError, match=message):
            trainer.fit(synthetic.train, checkpointer=Checkpointer(tmp_path / "run"), **settings)  # type: ignore[arg-type]
        assert equal(before, weights_of(trainer))
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"seed": -1}, SettingError, "seed must be at least 0, got -1"),
            ({"seed": 0.5}, SettingTypeError, "seed must be a whole number, got 0.5"),
            ({"max_grad_norm": 0.0}, SettingError, "max_grad_norm must be above 0, got 0.0"),
            ({"precision": "fp16"}, SettingError, 'precision "fp16" is unknown'),
            ({"device": "tpu9"}, SettingError, 'device "tpu9" cannot be used'),
        ],
    )
    def test_of_trainer(
        self, make_trainer: MakeTrainer, settings: dict[str, object], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            make_trainer(**settings)

    def test_of_counts_that_are_no_whole_numbers(self, make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
        for value in (2.0, True, "3"):
            with pytest.raises(SettingTypeError, match="max_epochs must be a whole number"):
                make_trainer().fit(synthetic.train, max_epochs=value)  # type: ignore[arg-type]

    def test_of_an_optimizer_of_another_model(self) -> None:
        model, other = CifarCNN(image_size=8), CifarCNN(image_size=8)
        with pytest.raises(SettingError, match="parameters that are not the model's"):
            Trainer(model, torch.optim.SGD(other.parameters(), lr=0.1))

    def test_of_a_negative_learning_rate(self) -> None:
        model = CifarCNN(image_size=8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.param_groups[0]["lr"] = -0.1  # torch itself refuses it in the constructor only
        with pytest.raises(SettingError, match=r"learning rate must not be negative, got -0.1. 1e-3 suits Adam"):
            Trainer(model, optimizer)

    def test_of_a_network_for_other_classes(self, make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
        with pytest.raises(SettingError, match=r"logits of shape \(1, 7\) for one image.*num_classes=10"):
            make_trainer(num_classes=7).fit(synthetic.train, max_epochs=1)

    def test_of_a_network_for_other_images(self, make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
        with pytest.raises(SettingError, match=r"CifarCNN cannot take the images of .*prepared to 32 pixels"):
            make_trainer(transforms=build_transforms()).fit(synthetic.train, max_epochs=1)

    def test_of_a_directory_that_holds_a_run(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
    ) -> None:
        make_trainer().fit(synthetic.train, max_epochs=1, checkpointer=Checkpointer(tmp_path), progress_bar=False)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(RunExistsError, match=r"holds a run\. Continue it with resume=True"):
            make_trainer().fit(synthetic.train, max_epochs=2, checkpointer=Checkpointer(tmp_path))
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_training_warns_of_nothing(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_trainer(deterministic=True).fit(synthetic.train, synthetic.test, max_epochs=1, progress_bar=False)


def test_a_tail_batch_of_one_image_is_trained_on(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    history = make_trainer().fit(
        synthetic.train.subset(torch.arange(65)), max_epochs=1, batch_size=64, progress_bar=False
    )
    assert history[-1].global_step == 2


def test_modules_that_come_frozen_stay_frozen(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    donor = make_trainer()
    model = donor.model
    assert isinstance(model, CifarCNN)
    model.bn1.eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    trainer = Trainer(model, optimizer, transforms=donor.transforms, device="cpu")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer.fit(synthetic.train, synthetic.test, max_epochs=1, progress_bar=False)
    assert torch.equal(model.state_dict()["bn1.running_mean"], before["bn1.running_mean"])
    assert not torch.equal(model.state_dict()["bn2.running_mean"], before["bn2.running_mean"])
    trainer.evaluate(synthetic.test)
    assert not model.bn1.training
    assert model.bn2.training


def test_an_optimizer_with_moments_goes_on_as_if_the_weights_had_not_moved(
    make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    """Contiguous moments beside channels-last weights: fused Adam reads them in the wrong order."""
    results = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = CifarCNN(image_size=16, widths=(8, 16), hidden=32, dropout=0.0)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
        images = torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        nn.functional.cross_entropy(model(images), torch.arange(32) % 10).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        trainer = Trainer(model, optimizer, transforms=make_trainer().transforms, device="cpu", precision="float64")
        trainer.fit(synthetic.train, max_epochs=1, progress_bar=False)
        results.append(weights_of(trainer))
    for name, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][name], rtol=0, atol=1e-6)


def test_a_learning_rate_set_before_a_second_trainer_is_its_base_rate(
    make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    first = make_trainer(lr_schedule=linear())
    first.fit(synthetic.train, max_epochs=1, progress_bar=False)
    first.optimizer.param_groups[0]["lr"] = 5e-4
    second = Trainer(first.model, first.optimizer, transforms=first.transforms, device="cpu")
    assert second.fit(synthetic.train, max_epochs=1, progress_bar=False)[-1].learning_rate == 5e-4


def test_an_error_in_the_bar_gives_generator_and_flags_back(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("cifarnet.training.progress.Progress.show_step", fail)
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError) as caught:
        make_trainer(deterministic=True).fit(synthetic.train, max_epochs=1)
    assert caught.traceback  # the frames are still alive here
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.are_deterministic_algorithms_enabled()


def test_data_with_other_classes_is_refused(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    permuted = type(synthetic.test)(synthetic.test.images, synthetic.test.labels, synthetic.test.classes[::-1])
    with pytest.raises(SettingError, match="Pass images with the same classes in the same order"):
        make_trainer().fit(synthetic.train, permuted, max_epochs=1)
    more = type(permuted)(permuted.images, permuted.labels, (*permuted.classes, "eleventh"))
    with pytest.raises(SettingError, match="Build it with num_classes=11"):
        make_trainer().evaluate(more)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.bool])
def test_images_of_another_integer_type_are_refused(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, dtype: torch.dtype
) -> None:
    batches = [(synthetic.train.images.to(dtype), synthetic.train.labels)]
    with pytest.raises(InputError, match=f"must have uint8 images or preprocessed floating images, got {dtype}"):
        make_trainer().fit(batches, max_epochs=1, progress_bar=False)
    with pytest.raises(InputError, match=f"got {dtype}"):
        make_trainer().transforms.preprocess(batches[0][0])


def test_a_model_that_comes_in_evaluation_mode_is_trained_in_training_mode(
    make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    donor = make_trainer()
    model = donor.model.eval()
    trainer = Trainer(model, torch.optim.Adam(model.parameters(), lr=1e-3), transforms=donor.transforms, device="cpu")
    before = model.state_dict()["bn1.running_mean"].clone()
    trainer.fit(synthetic.train, max_epochs=1, progress_bar=False)
    assert not torch.equal(model.state_dict()["bn1.running_mean"], before)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.float32), ("float64", torch.float64)])
def test_the_loss_is_computed_in_the_weights_number_format(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, precision: str, dtype: torch.dtype
) -> None:
    seen = set()

    def loss_fn(logits: Tensor, labels: Tensor) -> Tensor:
        seen.add(logits.dtype)
        return nn.functional.cross_entropy(logits, labels)

    trainer = make_trainer(precision=precision, loss_fn=loss_fn)
    trainer.fit(synthetic.train, synthetic.test, max_epochs=1, progress_bar=False)
    assert seen == {dtype}


def test_a_run_keeps_its_batch_size_and_data_in_one_process_too(
    make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    trainer = make_trainer()
    trainer.fit(synthetic.train, max_epochs=1, progress_bar=False)
    with pytest.raises(ResumeMismatchError, match="batch_size 64 in the run, 32 now"):
        trainer.fit(synthetic.train, max_epochs=2, batch_size=32, progress_bar=False)
    with pytest.raises(ResumeMismatchError, match=r"data\.fingerprint"):
        list(trainer.epochs(synthetic.test, max_epochs=2))
    assert len(trainer.fit(synthetic.train, max_epochs=2, progress_bar=False)) == 2


def test_parts_of_a_data_set_are_asked_for_by_name(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    with pytest.raises(InputError, match=r"got DatasetSplits. Pass its .train or .test"):
        make_trainer().evaluate(synthetic)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"got DatasetSplits. Pass its .train or .test"):
        make_trainer(lr_schedule=linear()).fit(synthetic, max_epochs=1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"data.subset\(range\(500\)\)"):
        synthetic.train[:5]  # type: ignore[index]
