"""Runs that mix their images, and runs whose weights are averaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from cifarnet import Checkpointer, CifarCNN, Classifier, DatasetSplits, Trainer
from cifarnet.checkpoint import read_checkpoint
from cifarnet.checkpoint.background import snapshot
from cifarnet.errors import ResumeMismatchError, SettingError
from cifarnet.optim import ExponentialMovingAverage
from cifarnet.transforms import Transforms
from runs import second_epoch_is_best

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
    trainer = Trainer(
        ours, optimizer, transforms=small_transforms, batch_transform=mix, device="cpu", precision="float64"
    )
    [record] = trainer.epochs([(images, labels)], max_epochs=1)

    textbook = torch.optim.SGD(plain.parameters(), lr=0.1)
    logits = plain((images + images.roll(1, 0)) / 2)
    cross_entropy = nn.functional.cross_entropy
    loss = 0.7 * cross_entropy(logits, labels) + 0.3 * cross_entropy(logits, labels.roll(1, 0))
    loss.backward()  # type: ignore[no-untyped-call]
    textbook.step()
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)  # mix gave float32 shares
    assert record.train_loss == pytest.approx(loss.item(), rel=1e-6)
    assert record.train_accuracy == float((logits.argmax(dim=1) == labels).double().mean())  # 0.7 is the larger share


@pytest.mark.parametrize("precision", ["float32", "bf16", "float64"])
@pytest.mark.parametrize("mix", [v2.MixUp(num_classes=10), v2.CutMix(num_classes=10)], ids=["mixup", "cutmix"])
def test_torchvisions_mixing_changes_the_run_and_is_drawn_from_its_seed(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, mix: v2.Transform, precision: str
) -> None:
    def losses(mix: v2.Transform | None, noise: int, seed: int = 0) -> list[float]:
        torch.manual_seed(noise)
        trainer = make_trainer(batch_transform=mix, precision=precision, seed=seed, dropout=0.0)
        return [record.train_loss for record in trainer.epochs(synthetic.train, max_epochs=2)]

    assert losses(mix, noise=1) == losses(mix, noise=2)
    assert losses(mix, noise=1) != losses(None, noise=1)
    assert losses(mix, noise=1) != losses(mix, noise=1, seed=1)


def test_labels_that_are_no_shares_are_refused(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    trainer = make_trainer(batch_transform=lambda images, labels: (images, labels))
    with pytest.raises(
        SettingError, match=r"batch_transform returned labels of shape \(64,\).*It must return soft labels"
    ):
        trainer.fit(synthetic.train, max_epochs=1, progress_bar=False)


def test_the_average_is_what_is_evaluated_selected_kept_and_left_in_the_model(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    """Beside a run without average, whose weights it must not touch, and an average taken by hand."""
    train, val = synthetic.train.split(0.3, seed=0)
    plain = make_trainer(lr=0.01)
    by_hand = ExponentialMovingAverage(plain.model, decay=0.9)
    accuracies, averages, own_weights = [], [], []
    plain.optimizer.register_step_post_hook(lambda *_: by_hand.update())
    for _ in plain.epochs(train, max_epochs=8):
        with by_hand.applied():
            accuracies.append(plain.evaluate(val).accuracy)
        averages.append(copies(by_hand.weights))
        own_weights.append(copies(plain.model.state_dict()))

    trainer = make_trainer(lr=0.01, ema_decay=0.9)
    selection = second_epoch_is_best()
    history = trainer.fit(
        train, val, max_epochs=8, checkpointer=Checkpointer(tmp_path), progress_bar=False, **selection
    )
    assert [record.val_accuracy for record in history] == accuracies
    best = trainer.best.epoch
    assert best == 2, "a best that is the last would show less"
    assert equal(copies(trainer.model.state_dict()), averages[best - 1])
    assert equal(read_checkpoint(tmp_path / "best.safetensors").tensors, averages[best - 1])
    assert equal(trainer.state_dict()["model"], own_weights[-1])
    assert trainer.ema is not None
    assert equal(trainer.ema.weights, averages[-1])
    assert trainer.evaluate(val).accuracy == accuracies[best - 1]
    assert not equal(averages[-1], own_weights[-1]), "the control"


def test_without_validation_the_average_of_the_last_epoch_is_the_best(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    trainer = make_trainer(ema_decay=0.9)
    trainer.fit(
        synthetic.train, test=synthetic.test, max_epochs=2, checkpointer=Checkpointer(tmp_path), progress_bar=False
    )
    classifier = Classifier.load(tmp_path, device="cpu")
    assert classifier.evaluate(synthetic.test).accuracy == trainer.history[-1].test_accuracy
    assert trainer.ema is not None
    assert equal(copies(classifier.model.state_dict()), trainer.ema.weights)
    trainer.fit(synthetic.train, test=synthetic.test, max_epochs=3, progress_bar=False)
    straight = make_trainer(ema_decay=0.9)
    straight.fit(synthetic.train, max_epochs=3, progress_bar=False)
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
        assert trainer.ema is not None
        return trainer.ema.weights

    expected = finished(make_trainer(ema_decay=0.9))
    first = make_trainer(ema_decay=0.9)
    next(iter(first.epochs(synthetic.train, max_epochs=3)))
    state = snapshot(first.state_dict())
    if forgotten == "weights":
        state["ema"]["weights"] = state["model"]
    second = make_trainer(ema_decay=0.9, init_seed=7)
    second.load_state_dict(state)
    if forgotten == "num_updates":
        assert second.ema is not None
        second.ema.num_updates = 1
    assert equal(finished(second), expected) == (forgotten is None)
