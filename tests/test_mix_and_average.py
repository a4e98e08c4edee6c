"""Runs that mix their images, and runs whose weights are averaged or pulled back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from cifarnet import Checkpointer, CifarCNN, Classifier, DatasetSplits, Trainer
from cifarnet.checkpoint import read_checkpoint, snapshot
from cifarnet.engine import EagerBackend, ForeignBatches, RunningSums, StepSettings, resolve_precision
from cifarnet.errors import ResumeMismatchError, SettingError
from cifarnet.optim import ExponentialMovingAverage, Lookahead, polynomial
from cifarnet.transforms import Transforms

CPU = torch.device("cpu")
MakeTrainer = Callable[..., Trainer]


def copies(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in weights.items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_mixed_step_is_the_textbook_step_on_mixed_images(small_transforms: Transforms) -> None:
    """Half of each image and half of its neighbour, in float64: the gradient of the mean of both losses."""
    torch.manual_seed(0)
    ours = CifarCNN(image_size=8, widths=(2, 4), hidden=8, dropout=0.0).double()
    plain = CifarCNN(image_size=8, widths=(2, 4), hidden=8, dropout=0.0).double()
    plain.load_state_dict(ours.state_dict())
    images, labels = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.randint(10, (6,))

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        shares = nn.functional.one_hot(labels, 10).float()
        return (images + images.roll(1, 0)) / 2, 0.7 * shares + 0.3 * shares.roll(1, 0)

    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    optimizer.param_groups[0]["initial_lr"] = 0.1
    precision = resolve_precision("float64", CPU)
    settings = StepSettings(ours, optimizer, nn.CrossEntropyLoss(), small_transforms, precision, 0, mix=mix)
    sums = RunningSums(CPU)
    source = ForeignBatches([(images, labels)], device=CPU)
    list(EagerBackend(settings).epoch(source, 0, first_step=0, multipliers=[1.0], sums=sums))

    textbook = torch.optim.SGD(plain.parameters(), lr=0.1)
    logits = plain((images + images.roll(1, 0)) / 2)
    cross_entropy = nn.functional.cross_entropy
    loss = 0.7 * cross_entropy(logits, labels) + 0.3 * cross_entropy(logits, labels.roll(1, 0))
    loss.backward()  # type: ignore[no-untyped-call]
    textbook.step()
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)  # mix gave float32 shares
    totals = sums.read()
    assert totals.loss == pytest.approx(6 * loss.item(), rel=1e-6)
    assert totals.num_correct == int((logits.argmax(dim=1) == labels).sum())  # 0.7 is the larger share


@pytest.mark.parametrize("precision", ["float32", "bf16", "float64"])
@pytest.mark.parametrize("mix", [v2.MixUp(num_classes=10), v2.CutMix(num_classes=10)], ids=["mixup", "cutmix"])
def test_torchvisions_mixing_changes_the_run_and_is_drawn_from_its_seed(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, mix: v2.Transform, precision: str
) -> None:
    def losses(mix: v2.Transform | None, noise: int, seed: int = 0) -> list[float]:
        torch.manual_seed(noise)
        trainer = make_trainer(mix=mix, precision=precision, seed=seed, dropout=0.0)
        return [record.train_loss for record in trainer.epochs(synthetic.train, max_epochs=2)]

    assert losses(mix, noise=1) == losses(mix, noise=2)
    assert losses(mix, noise=1) != losses(None, noise=1)
    assert losses(mix, noise=1) != losses(mix, noise=1, seed=1)


def test_labels_that_are_no_shares_are_refused(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    trainer = make_trainer(mix=lambda images, labels: (images, labels))
    with pytest.raises(SettingError, match=r"mix gave labels of shape \(64,\).*it must give the shares of the classes"):
        trainer.fit(synthetic.train, max_epochs=1, progress=False)


def test_the_average_is_what_is_evaluated_selected_kept_and_left_in_the_model(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    """Beside a run without average, whose weights it must not touch, and an average taken by hand."""
    train, val = synthetic.train.split(0.3, seed=0)
    plain = make_trainer(lr=0.01)
    by_hand = ExponentialMovingAverage(plain.model, decay=0.9)
    accuracies, averages, own_weights = [], [], []
    for _ in plain._run(plain._make_plan(train, None, None, max_epochs=8, batch_size=64)):
        if plain._state.step:
            by_hand.update()
        else:
            with by_hand.applied():
                accuracies.append(plain.evaluate(val).accuracy)
            averages.append(copies(by_hand.weights))
            own_weights.append(copies(plain.model.state_dict()))

    trainer = make_trainer(lr=0.01, ema_decay=0.9)
    history = trainer.fit(train, val, max_epochs=8, checkpointer=Checkpointer(tmp_path), progress=False)
    assert [record.val_accuracy for record in history] == accuracies
    best = trainer.selection.epoch
    assert best < 8, "a best that is the last would show less"
    assert equal(copies(trainer.model.state_dict()), averages[best - 1])
    assert equal(read_checkpoint(tmp_path / "best.safetensors").tensors, averages[best - 1])
    assert equal(trainer.state_dict()["model"], own_weights[-1])
    assert trainer.average is not None
    assert equal(trainer.average.weights, averages[-1])
    assert trainer.evaluate(val).accuracy == accuracies[best - 1]
    assert not equal(averages[-1], own_weights[-1]), "the control"


def test_without_validation_the_average_of_the_last_epoch_is_the_best(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    trainer = make_trainer(ema_decay=0.9)
    trainer.fit(synthetic.train, test=synthetic.test, max_epochs=2, checkpointer=Checkpointer(tmp_path), progress=False)
    classifier = Classifier.load(tmp_path, device="cpu")
    assert classifier.evaluate(synthetic.test).accuracy == trainer.history[-1].test_accuracy
    assert trainer.average is not None
    assert equal(copies(classifier.model.state_dict()), trainer.average.weights)
    trainer.fit(synthetic.train, test=synthetic.test, max_epochs=3, progress=False)
    straight = make_trainer(ema_decay=0.9)
    straight.fit(synthetic.train, max_epochs=3, progress=False)
    assert equal(copies(trainer.model.state_dict()), copies(straight.model.state_dict()))


def test_a_run_without_average_is_not_continued_with_one_and_the_other_way_round(
    make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    state = make_trainer(ema_decay=0.9).state_dict()
    with pytest.raises(ResumeMismatchError, match=r"ema_decay 0\.9 in the run, None now"):
        make_trainer().load_state_dict(state)
    with pytest.raises(ResumeMismatchError, match=r"ema_decay None in the run, 0\.9 now"):
        make_trainer(ema_decay=0.9).load_state_dict(make_trainer().state_dict())


@pytest.mark.parametrize("forgotten", [None, "num_updates", "weights"])
def test_a_resumed_average_goes_on_where_it_was(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, forgotten: str | None
) -> None:
    """And would end elsewhere if it had forgotten its past."""

    def finished(trainer: Trainer) -> dict[str, Tensor]:
        for _ in trainer.epochs(synthetic.train, max_epochs=3):
            pass
        assert trainer.average is not None
        return trainer.average.weights

    expected = finished(make_trainer(ema_decay=0.9))
    first = make_trainer(ema_decay=0.9)
    next(iter(first.epochs(synthetic.train, max_epochs=3)))
    state = snapshot(first.state_dict())
    if forgotten == "weights":
        state["average"]["weights"] = state["model"]
    second = make_trainer(ema_decay=0.9, init_seed=7)
    second.load_state_dict(state)
    if forgotten == "num_updates":
        assert second.average is not None
        second.average.num_updates = 1
    assert equal(finished(second), expected) == (forgotten is None)


def test_a_run_with_lookahead_is_the_run_pulled_back_by_hand(
    make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    """From the weights that the training begins with, not from those at construction; it ends at the slow ones."""
    decay = polynomial(power=2, end=0.9)
    plain = make_trainer(dropout=0.0)
    trainer = make_trainer(dropout=0.0, lookahead_every=4, lookahead_decay=decay)
    for model in (plain.model, trainer.model):
        with torch.no_grad():
            next(model.parameters()).mul_(2)
    by_hand = Lookahead(plain.model, total_steps=15, every=4, decay=decay)
    for _ in plain._run(plain._make_plan(synthetic.train, None, None, max_epochs=3, batch_size=64)):
        if plain._state.step:
            by_hand.update()
    assert plain.global_step == 15
    trainer.fit(synthetic.train, max_epochs=3, progress=False)
    weights = copies(trainer.model.state_dict())
    assert equal(weights, copies(plain.model.state_dict()))
    assert equal(weights, by_hand.weights)
    without = make_trainer(dropout=0.0)
    without.fit(synthetic.train, max_epochs=3, progress=False)
    assert not equal(weights, copies(without.model.state_dict())), "the control"


def test_a_run_is_not_continued_with_another_lookahead(make_trainer: MakeTrainer) -> None:
    state = make_trainer(lookahead_every=5).state_dict()
    with pytest.raises(ResumeMismatchError, match=r"lookahead.every 5 in the run, 6 now"):
        make_trainer(lookahead_every=6).load_state_dict(state)
    with pytest.raises(ResumeMismatchError, match=r"lookahead \{.*\} in the run, None now"):
        make_trainer().load_state_dict(state)
    old = make_trainer().state_dict()
    del old["run"]["lookahead"]  # of a version that had none
    make_trainer().load_state_dict(old)
    with pytest.raises(ResumeMismatchError, match=r"lookahead None in the run, \{.*\} now"):
        make_trainer(lookahead_every=5).load_state_dict(old)


def test_lookahead_wants_to_know_how_long_the_training_is(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    batches = (batch for batch in [(synthetic.train.images[:8], synthetic.train.labels[:8])])
    with pytest.raises(SettingError, match="lookahead needs the number of steps"):
        make_trainer(lookahead_every=5).fit(batches, max_epochs=1, progress=False)
    with pytest.raises(SettingError, match=r"decay must be in \[0, 1\], got 1.5"):
        make_trainer(lookahead_every=5, lookahead_decay=1.5)
