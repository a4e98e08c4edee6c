"""The processes of one training: which of them this is, and what they tell one another.

torch's process group carries all of it: gloo between CPUs, NCCL between GPUs, and gloo for what the host decides, so
that no step waits for a GPU. A process that was started alone has no group, and every method is next to nothing.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cifarnet.errors import InputError, RankLostError, SettingError

__all__ = ["Ranks"]

#: How long a process waits for the others: they may be writing figures, or downloading the data.
TIMEOUT = timedelta(minutes=10)

_abandoned = False


@dataclass(frozen=True)
class Ranks:
    """Which process this is, of how many.

    All processes call the same methods in the same order; who does not is waited for, for ten minutes at most.

    Args:
        rank: Of this process, from 0; the first writes, prints and draws.
        world_size: How many there are.
        local_rank: Of this process on its machine, from 0: which GPU is its own.

    Example:
        >>> Ranks(rank=1, world_size=3).part(10)
        slice(3, 6, None)
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def here(cls) -> Ranks:
        """This process's, as the script's own process group or torchrun's environment says; alone without either.

        Raises:
            SettingError: If the environment tells of several processes, and not how to reach them.
        """
        if dist.is_available() and dist.is_initialized():
            rank, world_size = dist.get_rank(), dist.get_world_size()
        else:
            world_size = _number("WORLD_SIZE", 1)
            missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
            if world_size > 1 and missing:
                raise SettingError(
                    f"WORLD_SIZE={world_size} tells of several processes, and {', '.join(missing)} is not set; start "
                    "them with torchrun, or unset WORLD_SIZE"
                )
            rank = _number("RANK", 0)
        if world_size == 1:
            return cls()
        if not dist.is_available():
            raise SettingError(
                f"WORLD_SIZE={world_size} tells of several processes, and this torch was built without "
                "torch.distributed; take another one, or unset WORLD_SIZE"
            )
        # Whoever starts processes without torchrun may not say LOCAL_RANK: then as if all were on one machine.
        return cls(rank, world_size, _number("LOCAL_RANK", rank % (torch.cuda.device_count() or world_size)))

    def join(self, device: torch.device) -> None:
        """Open the process group, unless it is open; it is closed when the process ends.

        Args:
            device: Where this process trains.

        Raises:
            SettingError: If processes cannot train together there, or the script's own group has no gloo.
            RankLostError: If the others do not come.
        """
        if self.world_size == 1:
            return
        if device.type not in ("cpu", "cuda"):
            raise SettingError(f"several processes train together on CPUs or on CUDA devices, not on {device}")
        if dist.is_initialized():
            if "gloo" not in dist.get_backend_config():
                raise SettingError(
                    f"the script's process group is {dist.get_backend_config()}, and what is decided on the host goes "
                    'over gloo; open it with init_process_group("cpu:gloo,cuda:nccl"), or leave that to the Trainer'
                )
            return
        from torch.distributed.rendezvous import rendezvous  # which a torch without torch.distributed lacks

        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with _told_where_lost():
            store, rank, world_size = next(rendezvous("env://", timeout=TIMEOUT))
            if os.environ.get("GROUP_WORLD_SIZE") == "1":
                # torchrun's agent keeps the store when it starts all again, with the addresses of those that are gone.
                # Agents of several machines count otherwise.
                prefix = f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT')}"
                store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]  # torch documents it there
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
        atexit.register(_leave)

    @staticmethod
    def abandon() -> None:
        """Do not wait for the others when this process ends: it ends with an error."""
        global _abandoned
        _abandoned = True

    def part(self, num_images: int) -> slice:
        """Where this process's images lie in a batch.

        Slices differ by one image at most. A batch that has not two images for each process is not cut, as batch norm
        knows no variance of one: every process computes all of it, and the first one's result is taken.

        Args:
            num_images: Of the whole batch.
        """
        if num_images < 2 * self.world_size:
            return slice(0, num_images)
        return slice(num_images * self.rank // self.world_size, num_images * (self.rank + 1) // self.world_size)

    def counts(self, num_images: int) -> bool:
        """Whether this process's part of a batch is taken; see `part`.

        Args:
            num_images: Of the whole batch.
        """
        return self.rank == 0 or num_images >= 2 * self.world_size

    def most(self, *numbers: int) -> list[int]:
        """The largest of each number over all processes.

        Args:
            numbers: As many in every process.

        Raises:
            RankLostError: As all methods below, if another process has ended.
        """
        if self.world_size == 1:
            return list(numbers)
        told = torch.tensor(numbers, dtype=torch.int64)
        with _told_where_lost():
            dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return [int(number) for number in told]

    def wait(self) -> None:
        """Until all have come here."""
        self.most(0)

    def refuse_unequal(self, what: str, *numbers: int) -> None:
        """See whether all processes have the same.

        Args:
            what: What differs if they have not, in the plural.
            numbers: As many in every process.

        Raises:
            InputError: In all of them, if they have not.
        """
        if self.world_size == 1:
            return
        most = self.most(*numbers, *(-number for number in numbers))
        if most[: len(numbers)] != [-number for number in most[len(numbers) :]]:
            raise InputError(
                f"{what} differ from process to process; give all of them the same, and the whole: each takes its own "
                "part of every batch, and the first alone writes"
            )

    def from_first(self, function: Callable[[], Any]) -> Any:
        """What a function gives in the first process: it is called there alone, and what it raises is raised in all.

        Args:
            function: Gives something that can be pickled.
        """
        if self.world_size == 1:
            return function()
        told: list[Any] = [None, None]
        if self.rank == 0:
            try:
                told[0] = function()
            except Exception as error:
                told[1] = error
        failure = told[1]
        with _told_where_lost():
            dist.broadcast_object_list(told, src=0, device=torch.device("cpu"))
        if told[1] is not None:
            raise told[1] if failure is None else failure
        return told[0]

    @contextmanager
    def first_of_each_machine(self) -> Iterator[None]:
        """The block is run by the first process of each machine, and then by the others: what it left is there."""
        if self.local_rank:
            self.wait()
        yield
        if not self.local_rank:
            self.wait()

    @torch.no_grad()
    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the tensors of the first.

        Args:
            tensors: Of the same shapes and types in every process; overwritten.
        """
        if self.world_size == 1:
            return
        for tensor in tensors:
            data = tensor.detach().flatten().view(torch.uint8)  # bytes: gloo and NCCL do not know every type
            with _told_where_lost():
                dist.broadcast(data, src=0)
            tensor.copy_(data.view(tensor.dtype).view(tensor.shape))

    @torch.no_grad()
    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes; those of one type go together.

        Args:
            tensors: Of the same shapes and types in every process.
        """
        ordered = sorted(tensors, key=lambda tensor: str(tensor.dtype))
        for _, group in groupby(ordered, key=lambda tensor: tensor.dtype):
            members = list(group)
            data = torch.cat([tensor.flatten() for tensor in members])
            with _told_where_lost():
                dist.all_reduce(data)
            for tensor, total in zip(members, torch.split(data, [tensor.numel() for tensor in members]), strict=True):
                tensor.copy_(total.view(tensor.shape))


def _number(name: str, default: int) -> int:
    """Of the environment.

    Raises:
        SettingError: If there is something else.
    """
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise SettingError(f"{name}={text} is no number of processes; start them with torchrun, or unset {name}")
    return int(text)


@contextmanager
def _told_where_lost() -> Iterator[None]:
    """Explain what torch raises where another process does not answer."""
    try:
        yield
    except RuntimeError as error:  # gloo has no type of its own
        Ranks.abandon()
        reason = str(error).splitlines()[0][-120:]
        raise RankLostError(
            f"another process of this training has ended, or does not answer ({reason}); what it said itself tells "
            "why. Start all of them again with resume=True (--resume), or let torchrun --max-restarts do so"
        ) from error


def _leave() -> None:
    # NCCL waits here for the others, who never come after an error; the end of the process closes its side too.
    if dist.is_initialized() and not _abandoned and getattr(sys, "last_value", None) is None:
        dist.destroy_process_group()
