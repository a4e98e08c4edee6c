"""`ProcessGroup` before it meets another process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from scenarios import make_cnn
from torch import nn

from cifarnet.errors import CifarnetError, SettingError
from cifarnet.inference.loader import Batch
from cifarnet.training.distributed import ProcessGroup


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("num_images", [7, 13, 14, 64, 500])
def test_local_slices_cover_a_batch_once(world_size: int, num_images: int) -> None:
    parts = [range(num_images)[ProcessGroup(rank, world_size).local_slice(num_images)] for rank in range(world_size)]
    assert [image for part in parts for image in part] == list(range(num_images))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_current_reads_the_environment_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert ProcessGroup.current() == ProcessGroup(rank=3, world_size=4, local_rank=1)
    with pytest.raises(SettingError, match="can train on CPUs or CUDA devices, not on mps"):
        ProcessGroup.current().join(torch.device("mps"))
    monkeypatch.delenv("WORLD_SIZE")
    assert ProcessGroup.current() == ProcessGroup(rank=0, world_size=1, local_rank=0)


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessGroup]:
    """Open a group of this process alone, which answers as two equal processes would."""
    monkeypatch.setattr("cifarnet.training.distributed._is_broken", False)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield ProcessGroup(rank=0, world_size=2)
    torch.distributed.destroy_process_group()


def test_collectives_return_what_equal_processes_agree_on(opened: ProcessGroup) -> None:
    def fail() -> None:
        raise LookupError

    opened.join(torch.device("cpu"))
    assert opened.all_reduce_max(3, -1) == [3, -1]
    tensor = torch.tensor([1.0, 2.0])
    opened.broadcast([tensor])
    assert opened.all_reduce_sum(tensor).tolist() == [1, 2]
    assert opened.broadcast_from_first(lambda: "all") == "all"
    with pytest.raises(LookupError):
        opened.broadcast_from_first(fail)
    opened.check_equal({"seed": 0})
    opened.check_batch(None)
    with pytest.raises(SettingError, match="1 of 1 images, fewer than the 2 processes"):
        opened.check_batch(Batch(torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.zeros(1)))
    with opened.first_of_each_machine():
        assert isinstance(opened.wrap(make_cnn(), torch.device("cpu")), nn.parallel.DistributedDataParallel)


def test_explained_loss_explains_lost_processes_only(opened: ProcessGroup) -> None:
    with pytest.raises(CifarnetError, match="has ended or does not answer"), opened.explained_loss():
        raise RuntimeError("Connection closed by peer")
    with pytest.raises(RuntimeError, match="another error"), opened.explained_loss():
        raise RuntimeError("another error")
