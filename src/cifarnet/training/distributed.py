"""Several processes that train one model: torch's process group and `DistributedDataParallel`.

gloo connects CPUs and carries decisions of the host, so that no step synchronizes with a GPU. NCCL connects GPUs.
A process that was started alone has no group, and every method returns at once.
"""

from __future__ import annotations

import atexit
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.utils.data.distributed import DistributedSampler

from cifarnet._validation import shorten
from cifarnet.errors import CifarnetError, DataError, SettingError
from cifarnet.inference.loader import Batch

__all__ = ["ProcessGroup", "do_not_wait"]

#: Time that a process waits for the others, which may be downloading the data or writing figures.
TIMEOUT = timedelta(minutes=10)

_LOST = ("gloo", "NCCL", "Connection", "connection", "Socket", "socket", "timed out", "Timed out")
_is_broken = False


@dataclass(frozen=True)
class ProcessGroup:
    """This process and the number of processes that train together.

    Every process must call the same methods in the same order, because they are collective. A missing process causes a
    timeout after 10 minutes.

    Args:
        rank: Index of this process. Rank 0 writes, prints and draws.
        world_size: Number of processes.
        local_rank: Index of this process on its machine, which selects its GPU.

    Example:
        >>> ProcessGroup(rank=1, world_size=3).local_slice(10)
        slice(3, 6, None)
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def current(cls) -> ProcessGroup:
        """Return the group of the script or of torchrun's environment; a group of one without either."""
        if dist.is_available() and dist.is_initialized():
            rank, world_size = dist.get_rank(), dist.get_world_size()
        else:
            rank, world_size = int(os.environ.get("RANK") or 0), int(os.environ.get("WORLD_SIZE") or 1)
        if world_size == 1:
            return cls()
        local_rank = rank % (torch.cuda.device_count() or world_size)
        return cls(rank, world_size, int(os.environ.get("LOCAL_RANK", local_rank)))

    @property
    def is_open(self) -> bool:
        """``True`` if there are other processes and `join` has been called."""
        return self.world_size > 1 and dist.is_initialized()

    def join(self, device: torch.device) -> None:
        """Open torch's process group unless it is open.

        Args:
            device: Device that this process trains on.

        Raises:
            SettingError: If processes cannot train together on the device, or the script's group has no gloo.
            CifarnetError: If another process is missing.
        """
        if self.world_size == 1:
            return
        if device.type not in ("cpu", "cuda"):
            raise SettingError(f"Several processes can train on CPUs or CUDA devices, not on {device}")
        if dist.is_initialized():
            if "gloo" not in dist.get_backend_config():
                raise SettingError(
                    f"The process group of the script is {dist.get_backend_config()} and needs gloo too. Open it with "
                    'init_process_group("cpu:gloo,cuda:nccl"), or let the Trainer open it'
                )
            return
        with self.explained_loss():
            store, rank, world_size = next(rendezvous("env://", timeout=TIMEOUT))
            if os.environ.get("GROUP_WORLD_SIZE") == "1":
                # After a restart, torchrun's agent keeps the store with the addresses of the processes that ended.
                prefix = f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT')}"
                store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]  # documented, not exported
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
        atexit.register(_leave)

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return the module that a step runs: `DistributedDataParallel`, with `SyncBatchNorm` on CUDA.

        torch has no synchronized batch norm on CPUs. Each process normalises over its own images there.
        """
        if self.world_size == 1:
            return model
        if device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]  # children are replaced in place; parameters stay
        with self.explained_loss():
            return nn.parallel.DistributedDataParallel(model, device_ids=None if device.type == "cpu" else [device])

    def check_batches(self, num_images: int, batch_size: int) -> None:
        """Refuse a batch that has fewer images than there are processes.

        Raises:
            SettingError: Naming the batch.
        """
        last = num_images % batch_size or min(batch_size, num_images)
        if min(last, batch_size) < self.world_size:
            raise SettingError(
                f"The last batch of an epoch has {last} of {num_images:,} images, fewer than the {self.world_size} "
                "processes. Use another batch_size or fewer processes"
            )

    def check_equal(self, settings: Mapping[str, Any]) -> None:
        """Refuse settings that differ between the processes.

        Raises:
            SettingError: In every process, naming them.
        """
        first = self.broadcast_from_first(lambda: dict(settings))
        different = [
            f"{key} is {shorten(first[key])} in rank 0 and {shorten(value)} in rank {self.rank}"
            for key, value in settings.items()
            if first[key] != value
        ]
        if self.all_reduce_max(bool(different)) == [True]:
            named = "; ".join(different) or "another process names them"
            raise SettingError(f"The processes have different settings ({named}). Give all of them the same")

    def check_iterable(self, batches: object) -> None:
        """Refuse a `DistributedSampler`, which gives each process other images.

        Raises:
            SettingError: If there is one.
        """
        sampler = getattr(batches, "sampler", None)
        if self.world_size > 1 and isinstance(sampler, DistributedSampler):
            raise SettingError(
                "The DataLoader has a DistributedSampler. Remove the sampler, and give batch_size of the whole batch"
            )

    def check_batch(self, batch: Batch | None) -> None:
        """Refuse a batch of a user-supplied iterable that differs between the processes.

        Args:
            batch: Batch on the device; ``None`` at the end of the iterable.

        Raises:
            DataError: If it differs, or has fewer images than there are processes.
        """
        if self.world_size == 1:
            return
        facts = [-1, 0] if batch is None else [len(batch.labels), zlib.crc32(batch.labels.cpu().numpy().tobytes())]
        most = self.all_reduce_max(*facts, *(-fact for fact in facts))
        if most != [*facts, *(-fact for fact in facts)]:
            raise DataError("The batches differ between the processes. Iterate over the same batches in each of them")
        if batch is not None:
            self.check_batches(facts[0], facts[0])

    def local_slice(self, num_images: int) -> slice:
        """Return the part of a batch that this process computes. Parts differ by one image at most."""
        return slice(num_images * self.rank // self.world_size, num_images * (self.rank + 1) // self.world_size)

    def all_reduce_max(self, *numbers: int) -> list[int]:
        """Return the largest of each number over all processes.

        Raises:
            CifarnetError: If another process has ended.
        """
        if self.world_size == 1:
            return list(numbers)
        reduced = torch.tensor(numbers, dtype=torch.int64, device="cpu")
        with self.explained_loss():
            dist.all_reduce(reduced, op=dist.ReduceOp.MAX)
        return list(map(int, reduced))

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes.

        Raises:
            CifarnetError: If another process has ended.
        """
        total = tensor.clone()
        if self.world_size > 1:
            with self.explained_loss():
                dist.all_reduce(total)
        return total

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of rank 0.

        Raises:
            CifarnetError: If another process has ended.
        """
        if self.world_size > 1:
            with self.explained_loss():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Wait until all processes call this."""
        self.all_reduce_max(0)

    def broadcast_from_first(self, function: Callable[[], Any]) -> Any:
        """Call a function in rank 0 and return its result, or raise its exception, in every process.

        Args:
            function: Function whose result can be pickled.
        """
        if self.world_size == 1:
            return function()
        message: list[Any] = [None, None]
        failure: Exception | None = None
        if self.rank == 0:
            try:
                message[0] = function()
            except Exception as error:
                message[1] = failure = error
        with self.explained_loss():
            dist.broadcast_object_list(message, src=0, device=torch.device("cpu"))
        if failure or message[1]:
            raise failure or message[1]
        return message[0]

    @contextmanager
    def first_of_each_machine(self) -> Iterator[None]:
        """Run the block in the first process of each machine, and then in the others, which find its files."""
        if self.local_rank:
            self.wait()
        yield
        if not self.local_rank:
            self.wait()

    @contextmanager
    def explained_loss(self) -> Iterator[None]:
        """Turn torch's errors about a missing process into `CifarnetError`."""
        try:
            yield
        except RuntimeError as error:  # gloo raises no other type
            if self.world_size == 1 or isinstance(error, CifarnetError) or not any(w in str(error) for w in _LOST):
                raise
            do_not_wait()
            reason = str(error).splitlines()[0][-120:]
            raise CifarnetError(
                f"Another process of this training has ended or does not answer ({reason}). Its own error explains "
                "why. Start all processes again with resume=True (--resume), or use torchrun --max-restarts"
            ) from error


def do_not_wait() -> None:
    """Do not wait for the other processes when this one ends, because it ends with an error."""
    global _is_broken
    _is_broken = True


def _leave() -> None:
    # NCCL waits here for processes that never come after an error. The end of the process closes its side too.
    if dist.is_initialized() and not _is_broken and getattr(sys, "last_value", None) is None:
        dist.destroy_process_group()
