"""Signals, memory and numbers that end a run: what was done is kept, and the run goes on to the same bytes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cifarnet import Checkpointer, CifarCNN, DatasetSplits, Trainer
from cifarnet.checkpoint import read_checkpoint
from cifarnet.errors import (
    CheckpointSaveError,
    CheckpointWarning,
    DeviceMemoryError,
    NonFiniteLossError,
    RunDirectoryBusyError,
)
from cifarnet.training.distributed import ProcessGroup
from cifarnet.training.signals import GracefulShutdown
from runs import assert_equal_runs, read_state

MakeTrainer = Callable[..., Trainer]


#: Calls, the call that acts, and the action of each tripwire: outside of it, because they are no settings of the run.
WIRES: dict[int, list[Any]] = {}


class Tripwire(nn.Module):
    """A loss that does something when it is called for the k-th time."""

    def __init__(self, at: int, action: Callable[[], object]) -> None:
        super().__init__()
        WIRES[id(self)] = [0, at, action]

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        wire = WIRES[id(self)]
        wire[0] += 1
        if wire[0] == wire[1]:
            wire[2]()
        return nn.functional.cross_entropy(logits, labels)


def send(*signums: int) -> Callable[[], None]:
    def action() -> None:
        for signum in signums:
            signal.raise_signal(signum)

    return action


# 300 images in batches of 64 are 5 steps an epoch, each with a call of the loss; then 100 test images are one more.
@pytest.mark.parametrize("at", [1, 3, 5, 6, 9, 12])
@pytest.mark.parametrize(("signum", "outcome"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_at_any_step_saves_and_the_run_goes_on_to_the_same_bytes(
    make_trainer: MakeTrainer,
    synthetic: DatasetSplits,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    at: int,
    signum: int,
    outcome: type[BaseException],
) -> None:
    def fit(directory: str, action: Callable[[], None], *, at: int = 0, resume: bool = False) -> Trainer:
        trainer = make_trainer(loss_fn=Tripwire(at, action))
        try:
            trainer.fit(
                synthetic.train,
                synthetic.test,
                max_epochs=2,
                checkpointer=Checkpointer(tmp_path / directory),
                resume=resume,
            )
        finally:
            trainers.append(trainer)
        return trainer

    trainers: list[Trainer] = []
    unbroken = fit("unbroken", send())
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    capsys.readouterr()
    with pytest.raises(outcome) as caught:
        fit("stopped", send(signum), at=at)
    if outcome is SystemExit:
        assert caught.value.code == 143  # type: ignore[attr-defined]
    assert {number: signal.getsignal(number) for number in before} == before
    stopped = trainers[-1]
    epoch, step = (at - 1) // 6, (at - 1) % 6 + 1
    done = 5 * epoch + min(step, 5)
    told = re.search(r"Stopped at epoch (\d+) step (\d+); saved (.*)\n", capsys.readouterr().err)
    assert told is not None
    if step < 6:
        assert (int(told[1]), int(told[2])) == (epoch + 1, done - 5 * epoch)
        assert len(stopped.history) == epoch
    assert Path(told[3]) == tmp_path / "stopped/last.safetensors"
    saved = read_state(tmp_path / "stopped")
    assert saved["position"]["global_step"] == done
    resumed = fit("stopped", send(), resume=True)
    assert list(resumed.history[: len(stopped.history)]) == list(stopped.history), "times too: not done again"
    assert_equal_runs(tmp_path / "unbroken", tmp_path / "stopped")
    assert [r.train_loss for r in resumed.history] == [r.train_loss for r in unbroken.history]
    assert [r.val_loss for r in resumed.history] == [r.val_loss for r in unbroken.history]


def test_a_signal_in_a_long_evaluation_does_not_wait_for_its_end(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    seen: list[int] = []

    def batches() -> Any:
        for number, index in enumerate(range(0, 100, 10)):
            if number == 3:
                signal.raise_signal(signal.SIGINT)
            seen.append(number)
            yield synthetic.test.images[index : index + 10], synthetic.test.labels[index : index + 10]

    class Loader:
        def __iter__(self) -> Any:
            return batches()

    trainer = make_trainer()
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(synthetic.train, Loader(), max_epochs=2, checkpointer=Checkpointer(tmp_path), progress_bar=False)
    assert seen == [0, 1, 2, 3]
    position = Checkpointer(tmp_path).read_last()
    assert position is not None
    assert (position["position"]["epoch"], position["position"]["step"]) == (0, 5)


def test_the_second_signal_acts_at_once(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    trainer = make_trainer(loss_fn=Tripwire(3, send(signal.SIGINT, signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.fit(synthetic.train, max_epochs=2, checkpointer=Checkpointer(tmp_path), progress_bar=False)
    assert any(entry.name == "forward" for entry in caught.traceback)  # in the middle of the step
    assert not (tmp_path / "last.safetensors").exists()


def test_a_signal_that_comes_while_the_run_is_finished_is_late_but_not_lost(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    class Late(Checkpointer):
        def save_best(self, weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> Path:
            signal.raise_signal(signal.SIGINT)
            return super().save_best(weights, description)

    trainer = make_trainer()
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(synthetic.train, max_epochs=1, checkpointer=Late(tmp_path), progress_bar=False)
    assert Checkpointer(tmp_path).read_best()[1]["selected_by"]["epoch"] == 1
    assert len(trainer.history) == 1


def test_a_damaged_last_is_replaced_though_nothing_is_left_to_train(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    for max_epochs in (1, 2):
        checkpointer = Checkpointer(tmp_path, save_every_s=1e9)
        make_trainer().fit(
            synthetic.train, max_epochs=max_epochs, checkpointer=checkpointer, resume=True, progress_bar=False
        )
    last = tmp_path / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.warns(CheckpointWarning, match="resuming from last.previous"):
        make_trainer().fit(
            synthetic.train, max_epochs=1, checkpointer=Checkpointer(tmp_path), resume=True, progress_bar=False
        )
    assert read_checkpoint(last).kind == "last"


def test_handlers_of_others_are_left_alone(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        trainer = make_trainer(loss_fn=Tripwire(2, send(signal.SIGINT)))
        trainer.fit(synthetic.train, max_epochs=1, progress_bar=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert received == [signal.SIGINT]
    assert trainer.global_step == 5


def test_another_thread_can_train(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    trainer = make_trainer()
    thread = threading.Thread(target=lambda: trainer.fit(synthetic.train, max_epochs=1, progress_bar=False))
    thread.start()
    thread.join()
    assert len(trainer.history) == 1
    with GracefulShutdown(ProcessGroup()) as shutdown:
        shutdown.check()


WORKER = """
import os, signal, sys
from cifarnet.training.distributed import ProcessGroup
from cifarnet.training.signals import GracefulShutdown
signum = int(sys.argv[1])
with GracefulShutdown(ProcessGroup()) as signals:
    ready, is_ready = os.pipe()
    end, ends = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ends)
        try:
            os.write(is_ready, b".")
            os.read(end, 1)
        except KeyboardInterrupt:
            at_once = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
            os._exit(130 if at_once else 1)
        os._exit(0)
    os.read(ready, 1)  # Python itself loses a signal that comes before its child is set up
    os.kill(child, signum)
    os.close(ends)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, signals._requested is not None, flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_a_forked_worker_dies_of_a_signal_at_once(signum: int, code: int) -> None:
    command = [sys.executable, "-W", "ignore", "-c", WORKER, str(int(signum))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [str(int(code)), "False"]  # and the run goes on


def test_without_a_checkpointer_what_was_done_is_kept_in_memory(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, capsys: pytest.CaptureFixture[str]
) -> None:
    unbroken = make_trainer(loss_fn=Tripwire(0, send()))
    unbroken.fit(synthetic.train, max_epochs=3, progress_bar=False)
    trainer = make_trainer(loss_fn=Tripwire(7, send(signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(synthetic.train, max_epochs=3)
    message = "Stopped at epoch 2 step 2; nothing is saved without a checkpointer"
    assert message in capsys.readouterr().err
    assert len(trainer.history) == 1
    trainer.fit(synthetic.train, max_epochs=3, progress_bar=False)  # goes on from the step that it had finished
    assert [r.train_loss for r in trainer.history] == [r.train_loss for r in unbroken.history]


@pytest.mark.parametrize("save_every_s", [0, 1e9])
def test_an_iterable_goes_on_from_the_end_of_an_epoch(
    make_trainer: MakeTrainer,
    synthetic: DatasetSplits,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    save_every_s: float,
) -> None:
    def fit(directory: str, at: int, *, resume: bool = False) -> Trainer:
        trainer = make_trainer(loss_fn=Tripwire(at, send(signal.SIGINT)))
        loader = DataLoader(synthetic.train, batch_size=100, shuffle=True)
        checkpointer = Checkpointer(tmp_path / directory, save_every_s=save_every_s)
        trainer.fit(loader, max_epochs=3, checkpointer=checkpointer, resume=resume)
        return trainer

    unbroken = fit("unbroken", 0)
    with pytest.raises(KeyboardInterrupt):
        fit("stopped", 5)
    message = "Stopped at epoch 2 step 2; it resumes at the end of epoch 1, because an iterable resumes there only"
    assert message in capsys.readouterr().err
    position = read_state(tmp_path / "stopped")["position"]
    assert (position["epoch"], position["step"]) == (1, 0)
    resumed = fit("stopped", 0, resume=True)
    assert [r.train_loss for r in resumed.history] == [r.train_loss for r in unbroken.history]
    assert_equal_runs(tmp_path / "unbroken", tmp_path / "stopped")


def test_a_run_saves_by_time_in_mid_epoch(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    saved: list[tuple[int, int]] = []

    class Noting(Checkpointer):
        def save_state(self, state: Mapping[str, Any]) -> Path:
            saved.append((state["position"]["epoch"], state["position"]["step"]))
            return super().save_state(state)

    make_trainer().fit(
        synthetic.train, max_epochs=6, checkpointer=Noting(tmp_path / "a", save_every_s=0), progress_bar=False
    )
    assert saved == sorted(set(saved))
    assert saved[-1] == (6, 0)
    assert any(step for _, step in saved)
    saved.clear()
    make_trainer().fit(
        synthetic.train, max_epochs=6, checkpointer=Noting(tmp_path / "b", save_every_s=1e9), progress_bar=False
    )
    assert saved == [(6, 0)]


def test_a_save_that_fails_in_its_thread_ends_the_run_and_costs_nothing(
    backend: str, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    class Failing(Checkpointer):
        def save_state(self, state: Mapping[str, Any]) -> Path:
            if state["position"]["epoch"] >= 1:
                raise CheckpointSaveError("needs 77 MB, 12 MB free")
            return super().save_state(state)

    trainer = make_trainer(backend=backend)
    with pytest.raises(CheckpointSaveError, match="12 MB free"):
        trainer.fit(synthetic.train, max_epochs=50, checkpointer=Failing(tmp_path, save_every_s=0), progress_bar=False)
    assert len(trainer.history) < 50
    assert Checkpointer(tmp_path).read_last() is not None


def test_a_directory_in_use_is_refused_before_anything_is_trained(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    trainer = make_trainer()
    with Checkpointer(tmp_path), pytest.raises(RunDirectoryBusyError, match="in use by process"):
        trainer.fit(synthetic.train, max_epochs=1, checkpointer=Checkpointer(tmp_path), progress_bar=False)
    assert trainer.global_step == 0


def test_an_exploding_run_names_its_last_good_checkpoint(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    def explode() -> None:
        with torch.no_grad():
            trainer.model.get_parameter("fc2.bias").fill_(float("nan"))

    trainer = make_trainer(loss_fn=Tripwire(8, explode))
    with pytest.raises(NonFiniteLossError, match=rf"epoch 2 .*Last good checkpoint: {tmp_path}/last.safetensors$"):
        trainer.fit(
            synthetic.train, max_epochs=50, checkpointer=Checkpointer(tmp_path, save_every_s=0), progress_bar=False
        )
    state = Checkpointer(tmp_path).read_last()
    assert state is not None
    assert state["position"]["global_step"] <= 7
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


class TestMemory:
    def test_a_batch_that_does_not_fit_says_what_to_try(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits
    ) -> None:
        trainer = make_trainer(loss_fn=Tripwire(1, lambda: torch.empty(2**58)))  # which no machine has
        with pytest.raises(
            DeviceMemoryError,
            match=r"^batch_size=128 does not fit into the memory of cpu. Use 64 or accumulate_grad_batches=2 \(",
        ):
            trainer.fit(synthetic.train, max_epochs=1, batch_size=128, progress_bar=False)
        assert all(parameter.grad is None for parameter in trainer.model.parameters())
        history = trainer.fit(synthetic.train, max_epochs=1, batch_size=64, progress_bar=False)  # as it said
        assert len(history) == 1

    def test_the_activations_of_the_step_are_freed(self, make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
        import gc
        import weakref

        held: list[Any] = []

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            held.append(weakref.ref(logits))
            torch.empty(2**58)
            return logits.sum()

        trainer = make_trainer(loss_fn=loss)
        with pytest.raises(DeviceMemoryError) as caught:
            trainer.fit(synthetic.train, max_epochs=1, progress_bar=False)
        gc.collect()
        assert caught.value.args
        assert held[0]() is None

    @pytest.mark.parametrize(
        "text",
        [
            "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",  # as cuDNN 9 calls it
            "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9",
            "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9",
            "MPS backend out of memory (MPS allocated: 9 GB)",
        ],
    )
    def test_libraries_say_it_in_their_own_words(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits, text: str
    ) -> None:
        def fail() -> None:
            raise RuntimeError(text)

        with pytest.raises(DeviceMemoryError, match=r"batch_size=64 does not fit .* Use 32") as caught:
            make_trainer(loss_fn=Tripwire(2, fail)).fit(synthetic.train, max_epochs=1, progress_bar=False)
        assert text.splitlines()[0] in str(caught.value)

    def test_an_evaluation_that_does_not_fit_says_so_and_the_run_goes_on(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits
    ) -> None:
        wire = Tripwire(6, lambda: torch.empty(2**58))  # five steps, then the evaluation
        trainer = make_trainer(loss_fn=wire)
        remedy = r"Evaluate DataLoader\(images, batch_size=50\), because"
        with pytest.raises(
            DeviceMemoryError, match=rf"^A batch of 100 images does not fit .* of cpu during evaluation\. {remedy}"
        ):
            trainer.fit(synthetic.train, synthetic.test, max_epochs=1, progress_bar=False)
        assert trainer.model.training
        assert len(trainer.fit(synthetic.train, synthetic.test, max_epochs=1, progress_bar=False)) == 1
        assert trainer.global_step == 5
        WIRES[id(wire)][:2] = 0, 1
        with pytest.raises(DeviceMemoryError, match=r"^A batch of 100 images does not fit"):
            trainer.evaluate(synthetic.test)
        assert trainer.evaluate(DataLoader(synthetic.test, batch_size=50)).num_images == 100  # as it said

    def test_a_network_that_does_not_fit_with_one_image_is_told(self, synthetic: DatasetSplits) -> None:
        class Vast(CifarCNN):
            def forward(self, images: Tensor) -> Tensor:
                return torch.empty(2**58)

        model = Vast()
        trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), device="cpu")
        with pytest.raises(DeviceMemoryError, match=r"^Vast and one image do not fit .*smaller network"):
            trainer.fit(synthetic.train, max_epochs=1)

    def test_errors_of_other_kinds_are_left_alone(self, make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
        def fail() -> None:
            raise RuntimeError("something else")

        with pytest.raises(RuntimeError, match="something else"):
            make_trainer(loss_fn=Tripwire(2, fail)).fit(synthetic.train, max_epochs=1, progress_bar=False)


CHILD = """
import os, signal, sys, threading, time
from cifarnet import Checkpointer, cli, make_synthetic
from cifarnet.cli import data_source as data
data.make_synthetic = lambda size: make_synthetic(num_train=200, num_test=60, seed=0)
where, signum, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def strike():
    for _ in range(times):
        os.kill(os.getpid(), signum)
if where == "training":
    from cifarnet.training import loop
    train_step = loop.train_step
    def struck(trainer, batch, *, step, **settings):
        if step == 2: strike()
        train_step(trainer, batch, step=step, **settings)
    loop.train_step = struck
elif where == "evaluating":
    from cifarnet.inference.loader import TensorLoader
    in_order = TensorLoader.in_order
    def struck(self):
        strike()
        return in_order(self)
    TensorLoader.in_order = struck
elif where == "saving twice":
    save = Checkpointer.save_state
    saves = []
    def struck(self, state):
        saves.append(state)
        if len(saves) == 2:
            for _ in range(2):
                os.kill(os.getpid(), signum)
                time.sleep(0.5)
        return save(self, state)
    Checkpointer.save_state = struck
elif where == "saving":
    save = Checkpointer.save_state
    struck_before = []
    def struck(self, state):
        if not struck_before:
            struck_before.append(True)
            strike()
        return save(self, state)
    Checkpointer.save_state = struck
sys.exit(cli.main(["train", "--data", "synthetic", "--epochs", "2", "--out", sys.argv[4], "--save-every", "0"]))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("where", "signum", "times", "code"),
    [
        ("training", signal.SIGTERM, 1, 143),
        ("training", signal.SIGTERM, 2, -signal.SIGTERM),
        ("training", signal.SIGINT, 1, 130),
        ("evaluating", signal.SIGTERM, 1, 143),
        ("evaluating", signal.SIGINT, 1, 130),
        ("saving twice", signal.SIGTERM, 2, -signal.SIGTERM),
        ("saving twice", signal.SIGINT, 2, 130),
        ("saving", signal.SIGTERM, 1, 143),  # twice in one moment is once, from another thread
        ("saving", signal.SIGINT, 1, 130),
    ],
)
def test_the_command_line_stops_with_the_shells_code(
    tmp_path: Path, where: str, signum: int, times: int, code: int
) -> None:
    command = [sys.executable, "-c", CHILD, where, str(int(signum)), str(times), "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    if times == 1:
        assert re.search(r"Stopped at epoch 1 step \d; saved run/last.safetensors", done.stderr)
    if times == 1 or where == "saving twice":
        assert Checkpointer(tmp_path / "run").read_last() is not None
    assert "Traceback" not in done.stderr
