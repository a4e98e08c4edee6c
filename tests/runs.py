"""What lies in the directory of a run, for tests that compare two of them."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path
from typing import Any

import torch

from cifarnet import Checkpointer, Trainer
from cifarnet.checkpoint import read_checkpoint


def read_state(directory: Path) -> dict[str, Any]:
    """Return the state that a resume starts from."""
    state = Checkpointer(directory).read_last()
    assert state is not None
    return state


def assert_equal_runs(one: Path, other: Path) -> None:
    """Every tensor of ``best`` and of ``last`` is equal, to the last bit."""
    for name in ("best", "last"):
        a, b = (read_checkpoint(directory / f"{name}.safetensors").tensors for directory in (one, other))
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            assert torch.equal(a[key], b[key]), f"{name}: {key}"


def second_epoch_is_best() -> dict[str, Any]:
    """Return arguments of `Trainer.fit` that select the second epoch on any processor."""
    values = itertools.chain([0.0, 1.0], itertools.count(-1.0, -1.0))
    return {"metrics": {"rank": lambda logits, labels: next(values)}, "monitor": "val_rank"}


def interrupt_at(trainer: Trainer, step: int) -> None:
    """Let Ctrl-C arrive during a step, counted from 1 over the whole run."""
    complete_step = trainer.state.complete_step

    def complete_and_interrupt(train_s: float) -> None:
        complete_step(train_s)
        if trainer.global_step == step:
            signal.raise_signal(signal.SIGINT)

    trainer.state.complete_step = complete_and_interrupt  # type: ignore[method-assign]
