"""`ProcessGroup` and `Trainer` before they meet another process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from scenarios import make_cnn, make_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from cifarnet.errors import CifarnetError, SettingError
from cifarnet.inference.loader import Batch
from cifarnet.training.distributed import ProcessGroup
from cifarnet.training.preparation import prepare_network

ENVIRONMENT = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Remove what torchrun may have set."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def second_of_two(alone: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Set what torchrun sets for the second of two processes."""
    for name, value in ENVIRONMENT.items():
        alone.setenv(name, value)
    yield alone
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("num_images", [7, 13, 14, 64, 500])
def test_local_slices_cover_a_batch_once(world_size: int, num_images: int) -> None:
    parts = [range(num_images)[ProcessGroup(rank, world_size).local_slice(num_images)] for rank in range(world_size)]
    assert [image for part in parts for image in part] == list(range(num_images))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("num_images", "batch_size", "last"), [(65, 64, 1), (2, 64, 2), (10, 2, 2)])
def test_check_batches_refuses_fewer_images_than_processes(num_images: int, batch_size: int, last: int) -> None:
    expected = f"has {last} of {num_images} images, fewer than the 3 processes. Use another batch_size or fewer"
    with pytest.raises(SettingError) as error:
        ProcessGroup(0, 3).check_batches(num_images, batch_size)
    assert expected in str(error.value)
    ProcessGroup(0, 3).check_batches(67, 64)  # 3 images are enough
    ProcessGroup().check_batches(num_images, batch_size)


class OwnSampler(DistributedSampler[int]):
    """A user's subclass."""


@pytest.mark.parametrize("sampler_type", [DistributedSampler, OwnSampler])
def test_check_iterable_refuses_a_distributed_sampler(sampler_type: type[DistributedSampler[int]]) -> None:
    images = TensorDataset(torch.zeros(40, 3, 8, 8), torch.zeros(40))
    loader = DataLoader(images, 10, sampler=sampler_type(images, 2, 0))
    with pytest.raises(SettingError, match="Remove the sampler"):
        ProcessGroup(0, 2).check_iterable(loader)
    ProcessGroup().check_iterable(loader)
    ProcessGroup(0, 2).check_iterable(DataLoader(images, 10, shuffle=True))
    ProcessGroup(0, 2).check_iterable([])


def test_current_returns_one_process_without_torchrun(alone: pytest.MonkeyPatch) -> None:
    assert ProcessGroup.current() == ProcessGroup(rank=0, world_size=1, local_rank=0)


def test_current_reads_the_environment(second_of_two: pytest.MonkeyPatch) -> None:
    assert ProcessGroup.current() == ProcessGroup(rank=1, world_size=2, local_rank=1)


def test_join_refuses_other_devices_than_cpu_and_cuda(second_of_two: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match="can train on CPUs or CUDA devices, not on mps"):
        ProcessGroup.current().join(torch.device("mps"))


def test_a_trainer_saves_and_loads_its_state_before_it_joins(second_of_two: pytest.MonkeyPatch) -> None:
    trainer = make_trainer()
    assert (trainer.group.rank, trainer.group.world_size) == (1, 2)
    trainer.load_state_dict(trainer.state_dict())


def test_a_frozen_batch_norm_stays_frozen_when_synchronized() -> None:
    """On CUDA, several processes replace each batch norm by a `SyncBatchNorm`."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.Flatten())
    model[1].eval()
    trainer = make_trainer(model)
    nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    prepare_network(trainer)
    assert isinstance(model[1], nn.SyncBatchNorm)
    assert [module.training for module in model] == [True, False, True, True]


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
    assert opened.is_open
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


def test_a_lost_process_is_explained(opened: ProcessGroup) -> None:
    with pytest.raises(CifarnetError, match="has ended or does not answer"), opened.explained_loss():
        raise RuntimeError("Connection closed by peer")
    with pytest.raises(RuntimeError, match="another error"), opened.explained_loss():
        raise RuntimeError("another error")
