"""Random draws as functions of (seed, epoch, image), and the only code that touches global random state.

Order and augmentation are not a stream that a generator walks along: every draw is a hash of the seed, the
epoch, the image's id and the draw's name, computed with integer tensor operations on the batch's device. So
an image is augmented the same way alone, in any batch, after a resume, and on any backend.

What is foreign to that (dropout, other people's transforms, a ``DataLoader``'s sampler) uses torch's global
generator, which the trainer seeds before each step and gives back to its owner afterwards.
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
    "current_epoch",
    "draw",
    "isolated",
    "kept_generators",
    "permutation",
    "scope",
    "seed_torch",
    "step_seed",
]

_MASK = 0xFFFFFFFF

#: A 32-bit word, or a tensor of them as int64.
Word = TypeVar("Word", int, Tensor, int | Tensor)


@dataclass(frozen=True)
class Scope:
    """What the draws of a batch are keyed by.

    Args:
        seed: The run's seed.
        epoch: Counted from 0; an int, or a 0-d int64 tensor (a captured graph reads it from the device).
        ids: The identity of each image, int64, shape ``(N,)``; the low 32 bits count.
    """

    seed: int
    epoch: int | Tensor
    ids: Tensor


_current: ContextVar[Scope | None] = ContextVar("cifarnet_scope", default=None)


@contextmanager
def scope(seed: int, epoch: int | Tensor, ids: Tensor) -> Iterator[Scope]:
    """Within the block, transforms draw by hash for these images.

    Args:
        seed: The run's seed.
        epoch: Counted from 0.
        ids: The identity of each image of the batch, int64, shape ``(N,)``.

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
    """Uniform draws for each image of the batch at hand.

    In a `scope` they are a hash of (seed, epoch, image id, name, column); outside one they come from torch's
    global generator.

    Args:
        name: Which draw this is; equal names give equal draws.
        num_images: How many images, ``N``.
        columns: How many draws an image.
        device: Where the images are.
        every_epoch: Whether another epoch gives other draws.

    Returns:
        Shape ``(N, columns)``, float32, multiples of 2**-24 in ``[0, 1)``.
    """
    current = _current.get()
    if current is None:
        return torch.rand(num_images, columns, device=device)
    assert current.ids.shape == (num_images,), "the scope's ids are not those of this batch"
    epoch = current.epoch if every_epoch else 0
    bits = _hash(current.seed, epoch, current.ids, name, columns)
    return (bits >> 8).to(torch.float32) * 2.0**-24  # 24 bits are what a float32 holds exactly


def current_epoch() -> int | Tensor | None:
    """The epoch of the scope at hand, counted from 0; ``None`` outside one."""
    current = _current.get()
    return None if current is None else current.epoch


def permutation(seed: int, epoch: int, ids: Tensor) -> Tensor:
    """The order in which an epoch visits the images: a function of (seed, epoch), not of what came before.

    Images are sorted by a hash of their id, so that leaving some out does not reorder the rest.

    Args:
        seed: The run's seed.
        epoch: Counted from 0.
        ids: The identity of each image, int64, shape ``(N,)``.

    Returns:
        Indices into ``ids``, int64, shape ``(N,)``, on the same device.

    Example:
        >>> permutation(0, 0, torch.arange(5)).sort().values.tolist()
        [0, 1, 2, 3, 4]
    """
    return torch.argsort(_hash(seed, epoch, ids, "order", 1)[:, 0], stable=True)


def step_seed(seed: int, epoch: int, step: int, rank: int = 0) -> int:
    """The seed of torch's generator for one training step.

    Args:
        seed: The run's seed.
        epoch: Counted from 0.
        step: Counted from 0 within the epoch.
        rank: Of the process, where each shall draw something else.

    Returns:
        A number in ``[0, 2**63)``.
    """
    words = [_absorb(_absorb(_key(word, seed), epoch), step) for word in _name_words("step")]
    if rank:
        words = [_absorb(word, rank) for word in words]
    return (words[0] << 31) ^ words[1]


def seed_torch(value: int, device: torch.device) -> None:
    """Seed torch's global generator of the CPU and, where it is another, of ``device``.

    Args:
        value: The seed.
        device: Where the training runs.
    """
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(value)
    elif device.type == "mps":
        torch.mps.manual_seed(value)


@contextmanager
def isolated(device: torch.device, *, deterministic: bool = False, autotune: bool = True) -> Iterator[None]:
    """Lend the block torch's global generators and kernel choices; put the caller's back at its end.

    Args:
        device: Where the training runs.
        deterministic: Refuse kernels whose result changes from run to run.
        autotune: Let cuDNN time its kernels and take the fastest, unless ``deterministic``.
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
    """Put torch's global generators back at the end of the block.

    Args:
        device: Device whose generator is put back besides that of the CPU.
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
    """State of the device's own generator; the CPU has none besides the global one."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" else None


def _hash(seed: int, epoch: int | Tensor, ids: Tensor, name: str, columns: int) -> Tensor:
    """32 random bits for each image and column: shape ``(N, columns)``, int64 in ``[0, 2**32)``."""
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
    """A bijection of 32-bit words in which every input bit moves every output bit with chance 1/2.

    "21f0aaad d35a2d97" of the hash-prospector table (Wellons, 2018, public domain). The second multiplier is
    written as the negative number it equals modulo 2**32, so that no product leaves the range of int64.
    """
    x = x ^ (x >> 16)
    x = (x * 0x21F0AAAD) & _MASK
    x = x ^ (x >> 15)
    x = (x * -0x2CA5D269) & _MASK
    return x ^ (x >> 15)


@functools.cache
def _name_words(name: str) -> tuple[int, int]:
    """Two independent 32-bit words for a name, the same in every process."""
    digest = hashlib.blake2s(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
