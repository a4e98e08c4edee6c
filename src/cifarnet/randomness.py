"""Random draws as functions of (seed, epoch, image), and the only code that changes global random state.

Order and augmentation do not use a generator with a state. Each draw is a hash of the seed, the epoch, the image id and
the name of the draw. Integer tensor operations on the device of the batch compute the hash. An image is therefore
augmented the same way alone, in any batch, after a resume, and on any backend.

Dropout, user-supplied transforms and the sampler of a ``DataLoader`` use torch's global generator. The trainer seeds it
before each step and restores the caller's state afterwards.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

__all__ = [
    "Scope",
    "draw",
    "isolated",
    "permutation",
    "scope",
]

_MASK = 0xFFFFFFFF

#: 32-bit word, or an int64 tensor of 32-bit words.
Word = TypeVar("Word", int, Tensor, int | Tensor)


@dataclass(frozen=True)
class Scope:
    """Key of the draws of a batch.

    Args:
        seed: Seed of the run.
        epoch: Epoch, counted from 0: an int, or a 0-d int64 tensor that a captured graph reads from the device.
        ids: Image ids, int64, shape ``(N,)``. Only the low 32 bits are used.
    """

    seed: int
    epoch: int | Tensor
    ids: Tensor


_current: ContextVar[Scope | None] = ContextVar("cifarnet_scope", default=None)


@contextmanager
def scope(seed: int, epoch: int | Tensor, ids: Tensor) -> Iterator[Scope]:
    """Let transforms draw by hash for these images within the block.

    Args:
        seed: Seed of the run.
        epoch: Epoch, counted from 0.
        ids: Image ids of the batch, int64, shape ``(N,)``.

    Yields:
        The scope.

    Example:
        >>> with scope(seed=0, epoch=3, ids=torch.tensor([7, 8])):
        ...     both = draw("flip", num_images=2)
        >>> with scope(seed=0, epoch=3, ids=torch.tensor([8])):
        ...     alone = draw("flip", num_images=1)
        >>> bool(both[1] == alone[0])
        True
    """
    current = Scope(seed, epoch, ids)
    token = _current.set(current)
    try:
        yield current
    finally:
        _current.reset(token)


def draw(
    name: str,
    *,
    num_images: int,
    columns: int = 1,
    device: torch.device | None = None,
    every_epoch: bool = True,
) -> Tensor:
    """Draw uniform numbers for each image of the current batch.

    Inside a `scope`, a draw is a hash of (seed, epoch, image id, name, column). Outside a scope, torch's global
    generator draws.

    Args:
        name: Name of the draw. Equal names give equal draws.
        num_images: Number of images, ``N``.
        columns: Draws per image.
        device: Device of the images.
        every_epoch: Whether the draws differ between epochs.

    Returns:
        Multiples of 2**-24 in ``[0, 1)``, float32, shape ``(N, columns)``.
    """
    current = _current.get()
    if current is None:
        return torch.rand(num_images, columns, device=device)
    assert current.ids.shape == (num_images,), "The ids of the scope belong to another batch"
    epoch = current.epoch if every_epoch else 0
    bits = _hash(current.seed, epoch, current.ids, name, columns)
    return (bits >> 8).to(torch.float32) * 2.0**-24  # a float32 holds 24 bits exactly


def current_epoch() -> int | Tensor | None:
    """Return the epoch of the current scope, counted from 0; ``None`` outside a scope."""
    current = _current.get()
    return None if current is None else current.epoch


def permutation(seed: int, epoch: int, ids: Tensor) -> Tensor:
    """Return the order of the images in an epoch. It depends only on (seed, epoch) and the image ids.

    The order sorts the images by a hash of their ids, so leaving some images out does not reorder the others.

    Args:
        seed: Seed of the run.
        epoch: Epoch, counted from 0.
        ids: Image ids, int64, shape ``(N,)``.

    Returns:
        Indices into ``ids``, int64, shape ``(N,)``, on the same device.

    Example:
        >>> permutation(0, 0, torch.arange(5)).sort().values.tolist()
        [0, 1, 2, 3, 4]
    """
    return torch.argsort(_hash(seed, epoch, ids, "order", 1)[:, 0], stable=True)


def step_seed(seed: int, epoch: int, step: int, rank: int = 0) -> int:
    """Return the seed of torch's generator for one training step.

    Args:
        seed: Seed of the run.
        epoch: Epoch, counted from 0.
        step: Step of the epoch, counted from 0.
        rank: Rank of the process; 0 if all processes must draw the same.

    Returns:
        A number in ``[0, 2**63)``.
    """
    words = [_absorb(_absorb(_key(word, seed), epoch), step) for word in _name_words("step")]
    if rank:
        words = [_absorb(word, rank) for word in words]
    return (words[0] << 31) ^ words[1]


def seed_torch(value: int, device: torch.device) -> None:
    """Seed torch's global generators of the CPU and of ``device``.

    Args:
        value: Seed.
        device: Device of the training.
    """
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(value)
    elif device.type == "mps":
        torch.mps.manual_seed(value)


@contextmanager
def isolated(device: torch.device, *, deterministic: bool = False, autotune: bool = True) -> Iterator[None]:
    """Set the choice of kernels for the block, and restore it and torch's global generators at its end.

    Args:
        device: Device of the training.
        deterministic: Whether kernels with results that differ between runs are refused.
        autotune: Whether cuDNN times its kernels and uses the fastest. It is ignored if ``deterministic`` is ``True``.
    """
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        if deterministic:
            torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = autotune and not deterministic
        with kept_generators(device):
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)


@contextmanager
def kept_generators(device: torch.device) -> Iterator[None]:
    """Restore the state of torch's global generators at the end of the block.

    Args:
        device: Device whose generator is restored in addition to that of the CPU.
    """
    generators, on_device = torch.get_rng_state(), _device_state(device)
    try:
        yield
    finally:
        torch.set_rng_state(generators)
        if on_device is not None and device.type == "cuda":
            torch.cuda.set_rng_state(on_device, device)
        elif on_device is not None:
            torch.mps.set_rng_state(on_device)


def _device_state(device: torch.device) -> Tensor | None:
    """Return the state of the generator of a GPU; ``None`` for the CPU, which has only the global generator."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" else None


def _hash(seed: int, epoch: int | Tensor, ids: Tensor, name: str, columns: int) -> Tensor:
    """Return 32 random bits per image and column: int64 in ``[0, 2**32)``, shape ``(N, columns)``."""
    first, second = (_absorb(_key(word, seed), epoch) for word in _name_words(name))
    rows = _mix((ids & _MASK) ^ first)  # (N,)
    # The golden ratio spreads consecutive columns over the whole range before the second mixing.
    offsets = torch.arange(columns, device=ids.device) * 0x9E3779B9  # (columns,)
    return _mix(((rows[:, None] + offsets) & _MASK) ^ second)


def _key(word: int, seed: int) -> int:
    return _absorb(_absorb(word, seed & _MASK), (seed >> 32) & _MASK)


def _absorb(key: int, word: Word) -> Word:
    return _mix((word & _MASK) ^ key)


def _mix(x: Word) -> Word:
    """Mix a 32-bit word by a bijection in which each input bit flips each output bit with probability 1/2.

    The constants are "21f0aaad d35a2d97" of the hash-prospector table (Wellons, 2018, public domain). The second
    multiplier is written as a negative number that is equal modulo 2**32, so that no product leaves the range of int64.
    """
    x = x ^ (x >> 16)
    x = (x * 0x21F0AAAD) & _MASK
    x = x ^ (x >> 15)
    x = (x * -0x2CA5D269) & _MASK
    return x ^ (x >> 15)


@functools.cache
def _name_words(name: str) -> tuple[int, int]:
    """Return two independent 32-bit words for a name. They are the same in every process."""
    digest = hashlib.blake2s(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
