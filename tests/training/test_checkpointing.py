"""Saves beside the training: by time, on disks that fail, and of finite states only."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from cifarnet import Checkpointer, DatasetSplits, Trainer
from cifarnet.errors import CheckpointError, NonFiniteError
from runs import Tripwire, assert_equal_runs, fit, read_state, send

MakeTrainer = Callable[..., Trainer]

#: Every call by which a save changes the disk.
CALLS = ("mkdir", "open", "write", "fsync", "link", "replace")


class KthCallFails:
    """Let the k-th call to the disk fail within the block, in any thread."""

    def __init__(self, k: int) -> None:
        self.k, self.calls = k, 0
        self._patch = pytest.MonkeyPatch()
        self._counting = threading.Lock()

    def __enter__(self) -> KthCallFails:
        for name in CALLS:
            self._patch.setattr(os, name, self._wrap(getattr(os, name)))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self._counting:
                self.calls += 1
                hit = self.calls == self.k
            if hit:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*args, **kwargs)

        return wrapped


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_survives_a_failure_of_each_call_to_the_disk(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    def train(directory: str) -> None:
        checkpointer = Checkpointer(tmp_path / directory, save_every_s=0)
        few, trainer = synthetic.train.subset(range(100)), make_trainer(lr=0.01)
        fit(trainer, few, synthetic.test, max_epochs=2, checkpointer=checkpointer, resume=True)

    train("whole")
    messages: list[str] = []
    for k in range(1, 400, 5):
        with KthCallFails(k) as faults:
            try:
                train(str(k))
            except CheckpointError as error:
                messages.append(str(error))
        train(str(k))
        assert_equal_runs(tmp_path / "whole", tmp_path / str(k))
        if faults.calls < k:
            break
    assert len(messages) > 10
    assert all("No space left" in message or "MB free" in message for message in messages)
    assert faults.calls < k, "as far as to a run with no fault left"


def test_a_run_saves_by_time_in_mid_epoch(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    saved: list[tuple[int, int]] = []

    class Noting(Checkpointer):
        def save_state(self, state: Mapping[str, Any]) -> Path:
            saved.append((state["position"]["epoch"], state["position"]["step"]))
            return super().save_state(state)

    fit(make_trainer(), synthetic.train, max_epochs=6, checkpointer=Noting(tmp_path / "a", save_every_s=0))
    assert saved == sorted(set(saved))
    assert saved[-1] == (6, 0)
    assert any(step for _, step in saved)
    saved.clear()
    fit(make_trainer(), synthetic.train, max_epochs=6, checkpointer=Noting(tmp_path / "b", save_every_s=1e9))
    assert saved == [(6, 0)]


class Failing(Checkpointer):
    def save_state(self, state: Mapping[str, Any]) -> Path:
        time.sleep(0.05)
        raise CheckpointError("no space")


def test_a_failed_save_ends_the_run(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    trainer, checkpointer = make_trainer(), Failing(tmp_path, save_every_s=0)
    with pytest.raises(CheckpointError, match="no space"):
        fit(trainer, synthetic.train, max_epochs=50, checkpointer=checkpointer)
    assert len(trainer.history) < 50


def test_an_error_notes_a_failed_save(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        fit(make_trainer(loss_fn=Tripwire(2, fail)), synthetic.train, checkpointer=Failing(tmp_path, save_every_s=0))
    assert caught.value.__notes__ == ["A save failed too: no space"]


def test_closing_raises_a_failed_save(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    records = make_trainer().epochs(synthetic.train, max_epochs=9, checkpointer=Failing(tmp_path, save_every_s=1e9))
    next(records)
    with pytest.raises(CheckpointError, match="no space"), contextlib.closing(records):
        pass


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_second_ctrl_c_waits_for_no_disk(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    """The directory stays locked until the write has ended."""
    disk = threading.Event()

    class Slow(Checkpointer):
        def save_state(self, state: Mapping[str, Any]) -> Path:
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)  # the second: the main thread waits for this save
            assert disk.wait(30)
            return super().save_state(state)

    trainer = make_trainer(loss_fn=Tripwire(1, send(signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt):
        fit(trainer, synthetic.train, checkpointer=Slow(tmp_path))
    assert not disk.is_set()
    assert not (tmp_path / "last.safetensors").exists()
    with pytest.raises(CheckpointError), Checkpointer(tmp_path):
        pass
    disk.set()
    for thread in threading.enumerate():
        if thread.name == "cifarnet-save":
            thread.join()
    assert read_state(tmp_path)["position"]["global_step"] == 1


def test_a_nan_loss_leaves_the_files_alone(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    def explode() -> None:
        with torch.no_grad():
            trainer.model.get_parameter("fc2.bias").fill_(float("nan"))

    fit(make_trainer(loss_fn=Tripwire(0)), synthetic.train, None, tmp_path)
    before = (tmp_path / "last.safetensors").read_bytes()
    trainer = make_trainer(loss_fn=Tripwire(3, explode))
    message = rf"since step 4 of epoch 2 .*learning rate 0.001.*Try a tenth .*checkpoint: {tmp_path}/last\.safetensors"
    with pytest.raises(NonFiniteError, match=message):
        fit(trainer, synthetic.train, None, tmp_path, max_epochs=50)
    assert (tmp_path / "last.safetensors").read_bytes() == before
    assert len(trainer.history) == 1


def test_nan_statistics_are_not_saved(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    def explode(*_: object) -> None:
        if trainer.global_step == 6:
            trainer.model.get_buffer("bn1.running_mean").fill_(torch.nan)

    trainer = make_trainer(precision="float32")
    trainer.optimizer.register_step_post_hook(explode)
    trainer.model.register_buffer("mask", torch.full((2,), -torch.inf))  # other buffers may be infinite
    with pytest.raises(NonFiniteError, match=r"A weight is not finite after step \d of epoch 2 .*norm=1\.0"):
        fit(trainer, synthetic.train, max_epochs=3, checkpointer=Checkpointer(tmp_path, save_every_s=0))
    assert read_state(tmp_path)["model"]["bn1.running_mean"].isfinite().all()
