"""A state that no trainer has written is refused by name, before anything of it is loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from cifarnet import DatasetSplits, Trainer
from cifarnet.errors import CheckpointMismatchError

MakeTrainer = Callable[..., Trainer]


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    return {}


@pytest.fixture
def saved(make_trainer: MakeTrainer, synthetic: DatasetSplits, state: dict[str, Any]) -> dict[str, Any]:
    """Of one epoch, validated and averaged; trained once for all tests."""
    if not state:
        trainer = make_trainer(ema_decay=0.9, lookahead_every=3)
        trainer.fit(synthetic.train, synthetic.test, max_epochs=1, progress=False)
        state.update(trainer.state_dict())
    return copy.deepcopy(state)


def put(state: dict[str, Any], path: str, value: object) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        state = state[parent]
    state[name] = value


WRONG: list[tuple[str, object, str]] = [
    ("position.epoch", 1.0, r"its position.epoch is 1.0"),
    ("position.epoch", True, r"its position.epoch is True"),
    ("position.epoch", -1, r"its position.epoch is -1"),
    ("position.step", 2**70, r"its position.step is 1180591620717411303424"),
    ("position.train_s", float("nan"), r"its position.train_s is nan"),
    ("position.extra", 1, r"its position lacks \[\] and has \['extra'\] besides"),
    ("position", [1, 2], "its position is a list"),
    ("lookahead.num_updates", 1000, "its lookahead took 1000 of 5 steps"),
    ("average.num_updates", 0, "its average took 0 of 5 steps"),
    ("position.epoch", 7, "it has done 7 epochs and has records of 1"),
    ("sums.loss", "0", r"its sums.loss is '0'"),
    ("sums.first_bad_step", -2, "its sums.first_bad_step is -2"),
    ("history", {}, "its history is a dict"),
    ("history", [1], "its history: "),
    ("history", [{"epoch": 1}], "its history: epoch 1: missing columns"),
    ("selection.monitor", "test_accuracy", "it is selected by 'test_accuracy'"),
    ("selection.epoch", 9, "its best is epoch 9"),
    ("selection.value", None, "its best is epoch 1 with None"),
    ("selection.value", "x" * 1000, "its best is epoch 1 with 'xxx"),
    ("optimizer", None, "its optimizer is None"),
    ("optimizer.state", {0: 1}, "its optimizer.state is not a dict a parameter"),
    ("optimizer.param_groups", [3], "its optimizer.param_groups are not dicts"),
    ("optimizer.param_groups", [{"params": "all", "lr": 0.1}], "its optimizer.param_groups are not dicts"),
    ("optimizer.param_groups", [{"params": [0], "lr": "fast"}], "its optimizer.param_groups are not dicts"),
    ("run", None, "its run is None"),
    ("run.ema_decay", None, "it has average weights without ema_decay"),
    ("environment", 1, "its environment is 1"),
    ("environment.changes", "no", "its environment.changes is 'no'"),
    ("average.num_updates", -1, "its average.num_updates is -1"),
    ("average", None, "its average is None"),
    ("model", [torch.ones(2)], "its model is a list"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG, ids=[f"{path}-{i}" for i, (path, *_) in enumerate(WRONG)])
def test_what_is_wrong_is_named_and_nothing_is_changed(
    make_trainer: MakeTrainer, saved: dict[str, Any], path: str, value: object, message: str
) -> None:
    trainer = make_trainer(ema_decay=0.9, lookahead_every=3, init_seed=1)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    put(saved, path, value)
    with pytest.raises(CheckpointMismatchError, match=f"not the state of a Trainer: {message}") as caught:
        trainer.load_state_dict(saved)
    assert len(str(caught.value)) < 600
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.model.state_dict().items())
    assert (trainer.global_step, len(trainer.history)) == (0, 0)


@pytest.mark.parametrize("part", [None, "position", "sums", "selection", "optimizer", "lookahead"])
def test_every_missing_part_is_named(make_trainer: MakeTrainer, saved: dict[str, Any], part: str | None) -> None:
    inner = saved if part is None else saved[part]
    for key in inner.keys() - {"notes"}:  # an older version had none
        damaged = copy.deepcopy(saved)
        del (damaged if part is None else damaged[part])[key]
        words = (
            f"{key} weights without|without {key} weights" if key in ("average", "lookahead") else rf"lacks \['{key}'\]"
        )
        with pytest.raises(CheckpointMismatchError, match=words):
            make_trainer(ema_decay=0.9, lookahead_every=3).load_state_dict(damaged)


def test_the_state_itself_is_taken(make_trainer: MakeTrainer, saved: dict[str, Any]) -> None:
    trainer = make_trainer(ema_decay=0.9, lookahead_every=3)
    trainer.load_state_dict(saved)
    assert trainer.global_step == 5


@pytest.mark.parametrize("state", [None, [], 3, {"epoch": 3, "weights": torch.ones(2)}, {}])
def test_anything_else_is_refused(make_trainer: MakeTrainer, state: Any) -> None:
    with pytest.raises(CheckpointMismatchError, match="not the state of a Trainer"):
        make_trainer().load_state_dict(state)
