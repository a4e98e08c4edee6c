"""A `DataLoader` with workers of its own, given to a trainer."""

from __future__ import annotations

import multiprocessing
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
from cifarnet.engine import ForeignBatches
from cifarnet.errors import SettingError

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
