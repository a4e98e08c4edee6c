"""Signals that end a run; that it resumes from them is in `tests/promises/test_exact_resume.py`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cifarnet import Checkpointer, DatasetSplits, Trainer
from runs import Tripwire, assert_equal_runs, fit, metrics_of, read_state, send

MakeTrainer = Callable[..., Trainer]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_saves_after_the_current_step(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, capsys: Any, name: str
) -> None:
    signum = getattr(signal, name)
    trainer = make_trainer(loss_fn=Tripwire(4, send(signum)))
    with pytest.raises(SystemExit) as caught:
        fit(trainer, synthetic.train, None, tmp_path, progress_bar=True)
    assert caught.value.code == 128 + signum
    assert f"Stopped at epoch 1 step 4; saved {tmp_path}/last.safetensors\n" in capsys.readouterr().err
    assert read_state(tmp_path)["position"]["global_step"] == 4
    assert signal.getsignal(signum) == signal.SIG_DFL


def stop_in_evaluation(trainer: Trainer, at: int) -> list[int]:
    """Let Ctrl-C arrive in a batch of 20 images in eval mode, counted from 1, and return the list of these batches."""
    evaluated: list[int] = []

    def note(model: nn.Module, inputs: tuple[Tensor]) -> None:
        if not model.training and len(inputs[0]) == 20:
            evaluated.append(20)
            if len(evaluated) == at:
                signal.raise_signal(signal.SIGINT)

    trainer.model.register_forward_pre_hook(note)
    return evaluated


def test_a_signal_ends_an_evaluation_early(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    val, settings = DataLoader(synthetic.test, 20), {"max_epochs": 2, "test": synthetic.test}
    whole, stopped = fit(make_trainer(), synthetic.train, val, tmp_path / "whole", **settings), make_trainer()
    evaluated = stop_in_evaluation(stopped, 7)  # the second of five batches of the second epoch
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, synthetic.train, val, tmp_path / "stopped", **settings)
    assert len(evaluated) == 7
    position = read_state(tmp_path / "stopped")["position"]
    assert (position["epoch"], position["step"]) == (1, 5)
    resumed = fit(make_trainer(), synthetic.train, val, tmp_path / "stopped", **settings)
    assert metrics_of(resumed) == metrics_of(whole)
    assert_equal_runs(tmp_path / "whole", tmp_path / "stopped")


def test_a_dataloader_run_ends_its_epoch(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    """A run on a DataLoader resumes at the end of an epoch only. It would have to train the epoch again."""
    trainer = make_trainer()
    evaluated = stop_in_evaluation(trainer, 2)
    with pytest.raises(KeyboardInterrupt):
        fit(trainer, DataLoader(synthetic.train, 64), DataLoader(synthetic.test, 20), tmp_path, max_epochs=2)
    assert len(evaluated) == 5
    assert read_state(tmp_path)["position"]["epoch"] == 1


def test_a_second_signal_acts_at_once(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    trainer = make_trainer(loss_fn=Tripwire(3, send(signal.SIGINT, signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(trainer, synthetic.train, None, tmp_path, max_epochs=2)
    assert any(entry.name == "forward" for entry in caught.traceback)  # in the middle of the step
    assert not (tmp_path / "last.safetensors").exists()


def test_a_signal_at_the_end_is_not_lost(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    class Late(Checkpointer):
        def save_best(self, weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> Path:
            signal.raise_signal(signal.SIGINT)
            return super().save_best(weights, description)

    trainer = make_trainer()
    with pytest.raises(KeyboardInterrupt):
        fit(trainer, synthetic.train, checkpointer=Late(tmp_path))
    assert Checkpointer(tmp_path).read_best()[1]["selected_by"]["epoch"] == 1
    assert len(trainer.history) == 1


def test_a_signal_outlives_a_step_that_fails(
    backend: str, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    def fail() -> None:
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("in the same step")

    loader = DataLoader(synthetic.train, 100)  # whose workers a signal ends too
    for number, data in enumerate((synthetic.train, loader)):
        with pytest.raises(SystemExit) as caught:
            fit(make_trainer(loss_fn=Tripwire(1, fail), backend=backend), data, None, tmp_path / str(number))
        assert str(caught.value.__cause__) == "in the same step"


def test_handlers_of_the_caller_are_left_alone(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    trainer = fit(make_trainer(loss_fn=Tripwire(2, send(signal.SIGINT))), synthetic.train)
    signal.signal(signal.SIGINT, before)
    assert received == [signal.SIGINT]
    assert trainer.global_step == 5


def test_ctrl_c_acts_at_once_in_the_loop_body(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    records, reached = make_trainer().epochs(synthetic.train, max_epochs=3), []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        for record in records:
            signal.raise_signal(signal.SIGINT)
            reached.append(record)
    assert not reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_stopped_run_continues_in_memory(make_trainer: MakeTrainer, synthetic: DatasetSplits, capsys: Any) -> None:
    whole = fit(make_trainer(loss_fn=Tripwire(0)), synthetic.train, max_epochs=3)
    trainer = make_trainer(loss_fn=Tripwire(7, send(signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt):
        fit(trainer, synthetic.train, max_epochs=3, progress_bar=True)
    assert "Stopped at epoch 2 step 2; nothing is saved without a checkpointer" in capsys.readouterr().err
    assert len(trainer.history) == 1
    assert metrics_of(fit(trainer, synthetic.train, max_epochs=3)) == metrics_of(whole)


WORKER = """
import os, signal, sys
from cifarnet.training.distributed import ProcessGroup
from cifarnet.training.signals import GracefulShutdown
with GracefulShutdown(ProcessGroup()) as shutdown:
    child = os.fork()
    if child == 0:
        signal.raise_signal(signal.SIGTERM)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shutdown.requested)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_worker_ends_at_once() -> None:
    command = [sys.executable, "-W", "ignore", "-c", WORKER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [str(-signal.SIGTERM), "None"]  # and the run continues
