"""`Trainer.fit` beside a disk, a thread or a signal that fails: typed errors, and the run goes on to the same bytes."""

from __future__ import annotations

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
from torch import Tensor, nn

from cifarnet import Checkpointer, DatasetSplits, Trainer
from cifarnet.checkpoint.background import BackgroundWriter
from cifarnet.errors import CheckpointSaveError, RunDirectoryBusyError
from runs import assert_equal_runs

MakeTrainer = Callable[..., Trainer]

#: Every call by which a save changes the disk.
CALLS = ("mkdir", "open", "write", "fsync", "link", "replace")


class KthCallFails:
    """Within the block, the k-th call of this process to the disk fails, in whatever thread it is made."""

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


@pytest.mark.filterwarnings("ignore::cifarnet.errors.CheckpointWarning")
def test_whichever_call_to_the_disk_fails_the_run_can_go_on_to_the_same_bytes(
    backend: str, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    def fit(directory: str) -> None:
        checkpointer = Checkpointer(tmp_path / directory, save_every_s=0)
        trainer = make_trainer(lr=0.01, backend=backend)
        trainer.fit(
            synthetic.train, synthetic.test, max_epochs=2, checkpointer=checkpointer, resume=True, progress_bar=False
        )
        assert trainer.uses_cuda_graph == (backend == "cuda-graph")

    fit("unbroken")
    messages: list[str] = []
    every = 1 if backend == "eager" else 7  # which calls there are does not depend on it
    for k in range(1, 400, every):
        with KthCallFails(k) as faults:
            try:
                fit(str(k))
            except CheckpointSaveError as error:
                messages.append(str(error))
        fit(str(k))
        assert_equal_runs(tmp_path / "unbroken", tmp_path / str(k))
        if faults.calls < k:
            break
    assert len(messages) > 20 // every
    assert all("No space left" in message or "MB free" in message for message in messages)
    assert faults.calls < k, "as far as to a run with no fault left"


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_a_disk_that_is_full_ends_the_run_and_costs_nothing(
    backend: str, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    import resource

    def fit(max_epochs: int) -> None:
        make_trainer(backend=backend).fit(
            synthetic.train, max_epochs=max_epochs, checkpointer=Checkpointer(tmp_path), resume=True, progress_bar=False
        )

    fit(1)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["last.safetensors"]) // 2, hard))
    try:
        with pytest.raises(CheckpointSaveError, match=r"File too large|MB free"):
            fit(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")} == before
    fit(2)
    state = Checkpointer(tmp_path).read_last()
    assert state is not None
    assert state["position"]["epoch"] == 2


def test_a_system_without_threads_is_told_of_before_training_and_leaves_the_directory_free(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            BackgroundWriter("last")
        trainer = make_trainer()
        with pytest.raises(RuntimeError, match="can't start new thread"):
            trainer.fit(synthetic.train, max_epochs=1, checkpointer=Checkpointer(tmp_path), progress_bar=False)
    assert trainer.global_step == 0
    trainer.fit(synthetic.train, max_epochs=1, checkpointer=Checkpointer(tmp_path), progress_bar=False)


@pytest.mark.parametrize(
    ("signum", "outcome"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["INT", "TERM"]
)
def test_a_step_that_fails_does_not_swallow_the_signal_that_waited_for_it(
    backend: str, make_trainer: MakeTrainer, synthetic: DatasetSplits, signum: int, outcome: type[BaseException]
) -> None:
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        signal.raise_signal(signum)
        raise RuntimeError("in the same step")

    with pytest.raises(outcome) as caught:
        make_trainer(loss_fn=loss, backend=backend).fit(synthetic.train, max_epochs=1, progress_bar=False)
    assert str(caught.value.__cause__) == "in the same step"


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_the_second_ctrl_c_does_not_wait_for_a_slow_disk_which_keeps_the_directory(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    disk = threading.Event()

    class Slow(Checkpointer):
        def save_state(self, state: Mapping[str, Any]) -> Path:
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)  # the second: the main thread waits for this save
            assert disk.wait(30)
            return super().save_state(state)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        return nn.functional.cross_entropy(logits, labels)

    with pytest.raises(KeyboardInterrupt):
        make_trainer(loss_fn=loss).fit(synthetic.train, max_epochs=1, checkpointer=Slow(tmp_path), progress_bar=False)
    assert not disk.is_set()
    assert not (tmp_path / "last.safetensors").exists()
    with pytest.raises(RunDirectoryBusyError), Checkpointer(tmp_path):
        pass
    disk.set()
    for thread in threading.enumerate():
        if thread.name == "cifarnet-save":
            thread.join()
    with Checkpointer(tmp_path) as checkpointer:
        state = checkpointer.read_last()
    assert state is not None
    assert state["position"]["global_step"] == 1


def test_what_is_not_finite_in_running_statistics_is_not_saved(
    synthetic: DatasetSplits, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    from cifarnet.errors import NonFiniteLossError

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.register_buffer("mask", torch.full((2,), -torch.inf))  # which is as it should be
            self.fc = nn.Linear(3, 10)

        def forward(self, images: Tensor) -> Tensor:
            if self.training and self.norm.num_batches_tracked == 7:
                assert self.norm.running_mean is not None
                self.norm.running_mean.fill_(torch.nan)
            logits: Tensor = self.fc(self.norm(images).mean(dim=(2, 3)))
            return logits

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trainer = Trainer(model, optimizer, transforms=make_trainer().transforms, device="cpu", precision="float32")
    checkpointer = Checkpointer(tmp_path, save_every_s=0)
    with pytest.raises(
        NonFiniteLossError, match=r"A weight is not finite after step \d of epoch 2 .*\. Try a tenth .*norm=1\.0\. "
    ):
        trainer.fit(synthetic.train, max_epochs=3, checkpointer=checkpointer, progress_bar=False)
    state = Checkpointer(tmp_path).read_last()
    assert state is not None
    assert state["model"]["norm.running_mean"].isfinite().all()


def test_a_loss_that_is_not_a_number_never_becomes_the_best_by_its_accuracy(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        value = nn.functional.cross_entropy(logits, labels)
        return value if torch.is_grad_enabled() else value * torch.inf

    trainer = make_trainer(loss_fn=loss)
    with pytest.warns(UserWarning, match="val_loss is inf at epoch"):
        trainer.fit(
            synthetic.train, synthetic.test, max_epochs=2, checkpointer=Checkpointer(tmp_path), progress_bar=False
        )
    assert trainer.best.epoch == 0
    assert Checkpointer(tmp_path).read_best()[1]["selected_by"]["monitor"] == "final"
