"""A `DataLoader` with workers of its own, given to a trainer."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from cifarnet import Checkpointer, DatasetSplits, Trainer
from cifarnet.checkpoint import read_checkpoint
from cifarnet.engine import ForeignBatches
from cifarnet.errors import CheckpointWarning, SettingError
from runs import assert_equal_runs

MakeTrainer = Callable[..., Trainer]
CPU = torch.device("cpu")


class Holding(Dataset[tuple[Tensor, Tensor]]):
    """Two images, and anything."""

    def __init__(self, thing: object) -> None:
        self.thing = thing

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.full((3, 16, 16), 0.5), torch.tensor(index)


def loader_of(dataset: Dataset[Any], method: str | None = "spawn", **settings: Any) -> DataLoader[Any]:
    return DataLoader(dataset, **{"num_workers": 1, "multiprocessing_context": method, **settings})


UNPICKLABLE = [
    ({"dataset": Holding(lambda x: x)}, r"the dataset of the DataLoader \(Holding\) .*<lambda>"),
    ({"dataset": Holding({"file": threading.Lock()})}, r"the dataset .*cannot pickle '_thread.lock' object"),
    ({"dataset": Holding(np.array([lambda: 0]))}, r"the dataset .*<lambda>"),
    ({"collate_fn": lambda items: items}, r"the collate_fn of the DataLoader \(<lambda>\) .*num_workers=0"),
    ({"worker_init_fn": lambda number: None}, r"the worker_init_fn .* top level of a module"),
]


@pytest.mark.parametrize("method", [m for m in multiprocessing.get_all_start_methods() if m != "fork"])
@pytest.mark.parametrize(("settings", "message"), UNPICKLABLE, ids=["lambda", "lock", "array", "collate", "init"])
def test_what_cannot_be_sent_to_workers_is_refused_before_training(
    make_trainer: MakeTrainer,
    synthetic: DatasetSplits,
    tmp_path: Path,
    method: str,
    settings: dict[str, Any],
    message: str,
) -> None:
    loader = loader_of(**{"dataset": Holding(None), "method": method, **settings})
    for train, val in ((loader, None), (synthetic.train, loader)):
        with pytest.raises(SettingError, match=message):
            make_trainer().fit(train, val, max_epochs=1, checkpointer=Checkpointer(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings", [{"num_workers": 0, "multiprocessing_context": None}, {"method": "fork"}])
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_what_need_not_be_sent_may_be_anything(settings: dict[str, Any]) -> None:
    (batch, _) = ForeignBatches(loader_of(Holding(lambda x: x), **settings), device=CPU).in_order()
    assert len(batch.labels) == 1


def test_what_can_be_sent_is_not_refused() -> None:
    """Not even what only a starting worker can pickle; and the sampler, which stays here, may be anything."""
    context = multiprocessing.get_context("spawn")
    loader = loader_of(Holding(context.Lock()), sampler=(i for i in (1, 0)))
    batches = list(ForeignBatches(loader, device=CPU).in_order())
    assert [batch.labels.tolist() for batch in batches] == [[1], [0]]


def test_the_trial_leaves_the_data_where_it_is() -> None:
    images = torch.full((2, 3, 16, 16), 0.5)
    ForeignBatches(loader_of(TensorDataset(images, torch.arange(2))), device=CPU)
    assert not images.untyped_storage().is_shared()


class Drawn(Dataset[tuple[Tensor, int]]):
    """Images with noise that the workers draw."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.randint(0, 9, (3, 1, 1), dtype=torch.uint8)
        return self.images[index] // 2 + noise, int(self.labels[index])


def losses(trainer: Trainer) -> list[tuple[float, float | None]]:
    return [(record.train_loss, record.val_loss) for record in trainer.history]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_run_with_workers_saves_beside_them_and_resumes_to_the_same_bytes(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    """Workers are forked while the thread that saves is at work: it saves whenever it can."""

    def fit(directory: str, max_epochs: int) -> Trainer:
        drawn = Drawn(synthetic.train.images, synthetic.train.labels)
        loader = DataLoader(drawn, batch_size=64, shuffle=True, num_workers=2)
        val = DataLoader(synthetic.test, batch_size=50, num_workers=2)
        trainer, checkpointer = make_trainer(), Checkpointer(tmp_path / directory, every_s=0)
        trainer.fit(loader, val, max_epochs=max_epochs, checkpointer=checkpointer, resume=True, progress=False)
        return trainer

    unbroken = fit("unbroken", 3)
    for max_epochs in (1, 3):
        resumed = fit("resumed", max_epochs)
    assert losses(resumed) == losses(unbroken)
    assert len(set(losses(unbroken))) == 3
    assert_equal_runs(tmp_path / "unbroken", tmp_path / "resumed")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_that_are_kept_cost_the_last_bit_and_are_named(
    make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    def loader() -> DataLoader[Any]:
        return DataLoader(synthetic.train, batch_size=64, shuffle=True, num_workers=1, persistent_workers=True)

    begun, resumed, kept = make_trainer(), make_trainer(), loader()
    begun.fit(kept, max_epochs=1, progress=False)
    resumed.load_state_dict(begun.state_dict())
    begun.fit(kept, max_epochs=2, progress=False)  # its workers are there still
    with pytest.warns(CheckpointWarning, match="persistent_workers=True: they start anew in mid-run"):
        resumed.fit(loader(), max_epochs=2, progress=False)
    assert losses(begun) != losses(resumed)


KILLED = """
import multiprocessing, os, signal, sys, torch
from torch.utils.data import DataLoader
from cifarnet import Checkpointer, CifarCNN, Trainer, build_transforms, make_synthetic

directory, kill_at = sys.argv[1], int(sys.argv[2])
calls = 0

def loss_fn(logits, labels):
    global calls
    calls += 1
    if calls == kill_at:
        print(len(multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.nn.functional.cross_entropy(logits, labels)

if __name__ == "__main__":
    torch.manual_seed(0)
    model = CifarCNN(image_size=16, widths=(8, 16), hidden=32)
    trainer = Trainer(model, torch.optim.Adam(model.parameters()), loss_fn=loss_fn, device="cpu", precision="float32",
                      transforms=build_transforms(size=16))
    data = make_synthetic(num_train=300, num_test=100, seed=0, size=16)
    loader = DataLoader(data.train, batch_size=32, shuffle=True, num_workers=2)
    trainer.fit(loader, max_epochs=3, checkpointer=Checkpointer(directory, every_s=0), resume=True, progress=False)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_run_goes_on_at_once_beside_the_workers_that_outlive_it(tmp_path: Path) -> None:
    """Workers notice that their parent is gone seconds later; until then they must not hold its directory."""
    script = tmp_path / "train.py"
    script.write_text(KILLED)

    def train(directory: str, kill_at: int = 0) -> subprocess.Popen[str]:
        command = [sys.executable, str(script), str(tmp_path / directory), str(kill_at)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with train("killed", kill_at=15) as killed:  # 10 steps an epoch: in the middle of the second
        assert killed.stdout is not None
        assert killed.stdout.readline() == "2\n"
        assert killed.wait() == -signal.SIGKILL  # the pipe stays open as long as the workers live
        with train("killed") as resumed:
            assert resumed.wait() == 0
    with train("unbroken") as unbroken:
        assert unbroken.wait() == 0
    assert_equal_runs(tmp_path / "unbroken", tmp_path / "killed")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
# torch raises for a dead worker wherever the main thread is: in Hypothesis's callback of the garbage collector too
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("every_s", [0, 1e9])
def test_a_signal_to_all_processes_of_a_run_ends_it_as_one_to_the_run_alone(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, every_s: float
) -> None:
    """As ``timeout`` and schedulers of clusters send it: the workers die before they have given their batch."""

    class Deadly(Dataset[tuple[Tensor, int]]):
        def __init__(self, at: int | None) -> None:
            self.at, self.calls = at, multiprocessing.Value("i", 0)

        def __len__(self) -> int:
            return 100

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            with self.calls.get_lock():
                self.calls.value += 1
                calls = self.calls.value
            if calls == self.at:
                os.kill(os.getppid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGKILL)
            return synthetic.train[index]

    def fit(directory: str, at: int | None = None) -> Trainer:
        trainer = make_trainer()
        loader = DataLoader(Deadly(at), batch_size=50, shuffle=True, num_workers=1)
        checkpointer = Checkpointer(tmp_path / directory, every_s=every_s)
        trainer.fit(loader, max_epochs=3, checkpointer=checkpointer, resume=True, progress=False)
        return trainer

    unbroken = fit("unbroken")
    with pytest.raises(SystemExit) as caught:
        fit("stopped", at=160)  # in the second epoch
    assert caught.value.code == 143
    assert "DataLoader worker" in str(caught.value.__cause__)
    state = Checkpointer(tmp_path / "stopped").read_last()
    assert state is not None
    assert (state["position"]["epoch"], state["position"]["step"]) == (1, 0)
    resumed = fit("stopped")
    assert [r.train_loss for r in resumed.history] == [r.train_loss for r in unbroken.history]
    for name in ("last", "best"):
        one, other = (read_checkpoint(tmp_path / d / f"{name}.safetensors") for d in ("unbroken", "stopped"))
        assert all(torch.equal(one.tensors[key], other.tensors[key]) for key in one.tensors)
