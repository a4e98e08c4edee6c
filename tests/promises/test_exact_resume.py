"""A resumed run is bit-identical to an uninterrupted one, from any step, after any kind of stop."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import killed
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from cifarnet import Checkpointer, DatasetSplits, History, Trainer
from cifarnet.optim import one_cycle
from runs import assert_equal_runs, fit, interrupt_at, metrics_of, read_state

MakeTrainer = Callable[..., Trainer]

#: All that changes weights: mixing, schedule, clipping and average.
EVERYTHING: dict[str, Any] = {
    "batch_transform": v2.CutMix(num_classes=10),
    "lr_schedule": one_cycle(),
    "max_grad_norm": 1.0,
    "ema_decay": 0.9,
}


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "float32"},
        {"precision": "bf16", "lr_schedule": one_cycle()},
        {"precision": "float32", "accumulate_grad_batches": 3, "fused": None, "deterministic": True},
        {"precision": "bf16", "backend": "cuda-graph", **EVERYTHING},
    ],
    ids=["plain", "bf16", "accumulated", "graph"],
)
def test_resume_after_a_kill_between_saves_is_bit_identical(
    graphs: None, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """The run ends between `last` and `best`, the worst moment."""
    train, val = synthetic.train.split(0.2, seed=0)

    class StoppedError(Exception):
        pass

    class Stopping(Checkpointer):
        def save_state(self, state: Mapping[str, Any]) -> Path:
            path = super().save_state(state)
            if len(state["history"]) == 2:
                raise StoppedError
            return path

    whole = fit(make_trainer(**settings), train, val, tmp_path / "whole", max_epochs=3)
    checkpointer = Stopping(tmp_path / "resumed", save_every_s=0)
    with pytest.raises(StoppedError):
        fit(make_trainer(**settings), train, val, max_epochs=3, checkpointer=checkpointer)
    torch.rand(100)
    saved = History.from_list(read_state(tmp_path / "resumed")["history"])
    resumed = fit(make_trainer(**settings), train, val, tmp_path / "resumed", max_epochs=3)
    assert [*resumed.history[:2]] == [*saved], "with their times, because they are not trained again"
    assert_equal_runs(tmp_path / "whole", tmp_path / "resumed")
    assert metrics_of(resumed) == metrics_of(whole)
    other_seed = fit(make_trainer(seed=1, **settings), train, val, max_epochs=3)
    assert metrics_of(other_seed) != metrics_of(whole), "equality is no accident"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_resume_from_any_step_is_bit_identical(
    backend: str, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, signum: int
) -> None:
    """An epoch has five steps. The stopped run saves after the step in which the signal arrives."""

    def make() -> Trainer:
        return make_trainer(backend=backend, **EVERYTHING)

    whole = fit(make(), synthetic.train, None, tmp_path / "whole", max_epochs=3)
    assert whole.uses_cuda_graph == (backend == "cuda-graph")
    first = 1 if signum == signal.SIGINT else 2
    for step in range(first, 15, 2 if backend == "eager" else 6):
        directory, stopped = tmp_path / str(step), make()
        interrupt_at(stopped, step, signum)
        with pytest.raises((KeyboardInterrupt, SystemExit)) as caught:
            fit(stopped, synthetic.train, None, directory, max_epochs=3)
        assert getattr(caught.value, "code", 143) == 143
        assert read_state(directory)["position"]["global_step"] == step
        resumed = fit(make(), synthetic.train, None, directory, max_epochs=3)
        assert metrics_of(resumed) == metrics_of(whole)
        assert_equal_runs(tmp_path / "whole", directory)


def test_resume_of_a_killed_process_is_bit_identical(tmp_path: Path) -> None:
    def run(directory: str, *how: str) -> tuple[int, dict[str, Any]]:
        command = [sys.executable, killed.__file__, str(tmp_path / directory), *how]
        return subprocess.run(command, check=False).returncode, read_state(tmp_path / directory)

    (ended, whole), (died, saved), (resumed, after) = run("whole"), run("killed", "killed"), run("killed")
    assert (ended, died, resumed) == (0, -signal.SIGKILL, 0)
    assert saved["position"]["global_step"] >= killed.NUM_STEPS
    assert after["history"][: len(saved["history"])] == saved["history"]
    assert [row["train_loss"] for row in after["history"]] == [row["train_loss"] for row in whole["history"]]
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")


def test_resume_of_early_stopping_is_exact(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    train, val = synthetic.train.split(0.2, seed=0)
    whole = fit(make_trainer(lr=0.05), train, val, tmp_path / "whole", max_epochs=40, patience=2)
    for max_epochs in (*range(1, len(whole.history)), 40, 40):
        resumed = fit(make_trainer(lr=0.05), train, val, tmp_path / "parts", max_epochs=max_epochs, patience=2)
    assert metrics_of(resumed) == metrics_of(whole)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("save_every_s", [0, 1e9])
def test_resume_of_a_dataloader_starts_at_an_epochs_end(
    backend: str, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, save_every_s: float
) -> None:
    loader = DataLoader(synthetic.train, batch_size=64, shuffle=True)
    whole = fit(make_trainer(backend=backend), loader, None, tmp_path / "whole", max_epochs=3)
    stopped, checkpointer = make_trainer(backend=backend), Checkpointer(tmp_path / "stopped", save_every_s=save_every_s)
    interrupt_at(stopped, 7)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, loader, max_epochs=3, checkpointer=checkpointer)
    position = read_state(tmp_path / "stopped")["position"]
    assert (position["epoch"], position["step"]) == (1, 0)
    resumed = fit(make_trainer(backend=backend), loader, None, tmp_path / "stopped", max_epochs=3)
    assert metrics_of(resumed) == metrics_of(whole)
    assert_equal_runs(tmp_path / "whole", tmp_path / "stopped")


def test_a_fall_back_is_bit_identical(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    """The previous file is of the middle of an epoch, and the best weights on the disk are of a later one."""
    train, val = synthetic.train.split(0.2, seed=0)
    settings: dict[str, Any] = {"max_epochs": 40, "patience": 3}
    whole = fit(make_trainer(lr=0.05), train, val, tmp_path / "whole", **settings)
    for step in range(2, whole.global_step, 5):
        directory, stopped = tmp_path / str(step), make_trainer(lr=0.05)
        interrupt_at(stopped, step)
        with pytest.raises(KeyboardInterrupt):
            fit(stopped, train, val, directory, **settings)
        checkpointer = Checkpointer(directory)
        checkpointer.save_best(*Checkpointer(tmp_path / "whole").read_best())
        checkpointer.save(whole)
        checkpointer.last_path.write_bytes(checkpointer.last_path.read_bytes()[:-1])
        with pytest.warns(UserWarning, match=r"resuming from last\.previous\.safetensors|the best so far, are missing"):
            resumed = fit(make_trainer(lr=0.05), train, val, directory, **settings)
        assert metrics_of(resumed) == metrics_of(whole)
        assert_equal_runs(tmp_path / "whole", directory)


CHILD = """
import os, sys
from cifarnet import cli, make_synthetic
from cifarnet.cli import data_source as data
from cifarnet.training import loop
data.make_synthetic = lambda size: make_synthetic(num_train=200, num_test=60, seed=0)
train_step = loop.train_step
def struck_step(trainer, batch, **settings):
    for _ in range(int(sys.argv[2]) if trainer.state.step == 2 else 0): os.kill(os.getpid(), int(sys.argv[1]))
    train_step(trainer, batch, **settings)
loop.train_step = struck_step
sys.exit(cli.main(["train", "--data", "synthetic", "--epochs", "2", "--out", "run", "--save-every", "0"]))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("signum", "times", "code"),
    [(signal.SIGTERM, 1, 143), (signal.SIGTERM, 2, -signal.SIGTERM), (signal.SIGINT, 1, 130), (signal.SIGINT, 2, 130)],
)
def test_the_cli_saves_and_returns_shell_codes(tmp_path: Path, signum: int, times: int, code: int) -> None:
    command = [sys.executable, "-c", CHILD, str(int(signum)), str(times)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    if times == 1:
        assert re.search(r"Stopped at epoch 1 step \d; saved run/last.safetensors", done.stderr)
        assert read_state(tmp_path / "run")
    assert "Traceback" not in done.stderr
