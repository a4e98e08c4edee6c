"""CUDA graphs, recorded and replayed on the CPU by `tape`, without a fall-back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tape
from cifarnet import DatasetSplits, Trainer
from cifarnet.randomness import scope
from cifarnet.training import cuda_graph
from cifarnet.training.cuda_graph import GraphedUpdate, can_be_captured, windows
from cifarnet.training.run_settings import RunSettings

MakeTrainer = Callable[..., Trainer]


def test_windows_hold_the_images_of_the_loader(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()
    data = RunSettings(trainer, synthetic.train, None, None, 1, 64, None, False, None, "val_accuracy", None, None)
    monkeypatch.setattr(cuda_graph, "WINDOW_IMAGES", 150)
    for step in (0, 3, 5):
        trainer.state.step = step
        expected = list(data.train.epoch(0, step))
        found = list(windows(trainer, data.train))
        assert len(found) == len(expected) == 5 - step
        for one, other in zip(found, expected, strict=True):
            with scope(0, 0, other.ids):
                assert torch.equal(one.images, trainer.transforms.train(other.images))
            assert torch.equal(one.labels, other.labels)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The functions that were captured."""
    made: list[object] = []

    def capture(function: Callable[[], None]) -> Callable[[], None]:
        made.append(function)
        return tape.capture(function)

    monkeypatch.setattr("cifarnet.training.trainer.can_be_captured", lambda trainer: True)
    monkeypatch.setattr("cifarnet.training.loop.GraphedUpdate", lambda trainer: GraphedUpdate(trainer, capture))
    return made


def test_a_shape_is_captured_once(captures: list[object], make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    trainer = make_trainer(backend="cuda-graph")
    list(trainer.epochs(synthetic.train, max_epochs=4))
    assert len(captures) == 2  # whole batches, and the last one of an epoch


def test_graphs_follow_the_body(captures: list[object], make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    """Each shape is captured in its second batch. The small last batch of an epoch is trained eagerly once."""

    def train(backend: str) -> list[float]:
        donor = make_trainer(dropout=0.0)
        head, middle, body = (donor.model.get_parameter(name) for name in ("fc2.weight", "fc1.weight", "conv1.weight"))
        optimizer, loss = torch.optim.Adam([head, middle], lr=0.01), nn.CrossEntropyLoss()
        settings: dict[str, Any] = {"max_grad_norm": 10.0, "device": "cpu", "precision": "float64"}
        trainer = Trainer(donor.model, optimizer, transforms=donor.transforms, loss_fn=loss, **settings)
        trainer.cuda_graph = backend == "cuda-graph"
        losses = []
        for record in trainer.epochs(synthetic.train, max_epochs=11):
            losses.append(record.train_loss)
            if record.epoch in (1, 3):
                loss.label_smoothing = record.epoch / 10
            if record.epoch == 5:
                optimizer.add_param_group({"params": [body], "lr": 0.001})
            if record.epoch == 7:
                trainer.max_grad_norm = 1.0
            if record.epoch == 9:
                optimizer.param_groups[0].update(lr=0.001, weight_decay=0.1)
                middle.requires_grad_(False)
        return losses

    assert train("cuda-graph") == pytest.approx(train("eager"), abs=1e-6)
    assert len(captures) > 2


def test_graphs_follow_a_new_state(captures: list[object], make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    def train(backend: str) -> list[float]:
        trainer = make_trainer(backend=backend, precision="float64", dropout=0.0)
        losses, saved = [], None
        for record in trainer.epochs(synthetic.train, max_epochs=6):
            losses.append(record.train_loss)
            if saved is None and record.epoch == 3:
                saved = copy.deepcopy(trainer.state_dict())
            elif saved is not None and len(losses) == 4:  # the epoch that was just trained is trained again
                trainer.load_state_dict(saved)
        return losses

    assert train("cuda-graph") == pytest.approx(train("eager"), abs=1e-6)


def test_only_known_steps_are_captured(make_trainer: MakeTrainer) -> None:
    """A loss, a network or an optimizer of the user may read a value on the host."""
    trainer = make_trainer()
    assert not can_be_captured(trainer), "on a CPU"
    trainer.device = torch.device("cuda")
    assert can_be_captured(trainer)
    assert trainer.uses_cuda_graph is False, "the fixture has switched it off"
    lbfgs = torch.optim.LBFGS(trainer.model.parameters())
    for name, value in (("loss_fn", lambda logits, labels: 0), ("optimizer", lbfgs), ("model", nn.Linear(2, 2))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, name, value)
            assert not can_be_captured(trainer)
