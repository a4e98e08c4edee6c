"""Which process this is, and what it would do, without any other process."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from cifarnet import CifarCNN, Trainer
from cifarnet.engine import Precision, Ranks, Replica, StepSettings, choose_backend, resolve_precision
from cifarnet.errors import SettingError
from cifarnet.transforms import Transforms

CPU = torch.device("cpu")
ENVIRONMENT = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("num_images", [1, 2, 3, 5, 6, 13, 14, 64, 500])
def test_parts_cover_a_batch_once_and_none_has_a_single_image_of_many(world_size: int, num_images: int) -> None:
    ranks = [Ranks(rank, world_size) for rank in range(world_size)]
    parts = [range(num_images)[one.part(num_images)] for one in ranks if one.counts(num_images)]
    assert [image for part in parts for image in part] == list(range(num_images))
    assert len(parts) in (1, world_size)
    sizes = [len(range(num_images)[one.part(num_images)]) for one in ranks]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(2, num_images)


def test_a_process_is_told_by_its_environment_who_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    assert Ranks.here() == Ranks()
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert Ranks.here() == Ranks(1, 2, 1)
    model = CifarCNN()
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), device="cpu")
    assert (trainer.rank, trainer.world_size) == (1, 2)
    assert not torch.distributed.is_initialized(), "building a trainer joins nothing"
    with pytest.raises(SettingError, match="train together on CPUs or on CUDA devices, not on mps"):
        Ranks.here().join(torch.device("mps"))
    with pytest.raises(SettingError, match=r'^batch_norm "?globl'):
        Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), device="cpu", batch_norm="globl")
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(SettingError, match="and MASTER_ADDR is not set; start them with torchrun"):
        Ranks.here()


@pytest.mark.parametrize("name", ["auto", "cuda-graph", "compiled"])
def test_what_exchanges_with_others_is_neither_captured_nor_compiled_and_the_first_says_so(
    small_transforms: Transforms, name: str
) -> None:
    model = CifarCNN()
    optimizer = torch.optim.Adam(model.parameters())
    precision = Precision("float32", torch.device("cuda"), torch.float32)
    settings = StepSettings(model, optimizer, nn.CrossEntropyLoss(), small_transforms, precision, 0)
    first, second = (replace(settings, replica=Replica(model, Ranks(rank, 2))) for rank in (0, 1))
    with pytest.warns(UserWarning, match="the exchange between 2 processes cannot be (captured|compiled)") as told:
        assert choose_backend(name, first).name == "eager"
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_backend(name, second).name == "eager"
        on_cpu = replace(first, precision=resolve_precision("float32", CPU))
        assert choose_backend("auto", on_cpu).name == "eager"
