"""Learning-rate schedules as pure functions of the step.

A schedule maps ``(step, total_steps)`` to a multiplier of each parameter group's base learning rate. It has no
state, so a resumed run needs none of it, and more epochs are just another ``total_steps``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from cifarnet.errors import SettingError

__all__ = ["Schedule", "constant", "cosine", "from_torch", "linear", "one_cycle", "tabulate"]

#: ``(step, total_steps) -> multiplier`` with ``0 <= step < total_steps``.
Schedule = Callable[[int, int], float]


@dataclass(frozen=True)
class _Constant:
    def __call__(self, step: int, total_steps: int) -> float:
        return 1.0


@dataclass(frozen=True)
class _WarmupThenDecay:
    """Linear from ``start`` to 1 over the first share of the steps, down to ``end``, and there for the last share."""

    warmup: float
    start: float
    end: float
    tail: float
    curve: str

    def __post_init__(self) -> None:
        warmup, tail = self.warmup, self.tail
        if not 0 <= warmup < 1:
            raise SettingError(f"warmup must be in [0, 1), a share of all steps, got {warmup}; 0.1 is usual")
        if not 0 <= tail < 1 - warmup:
            raise SettingError(f"tail must be in [0, {1 - warmup}), what the warm-up leaves, got {tail}; 0.1 is usual")
        for key, value in (("start", self.start), ("end", self.end)):
            if not 0 <= value < math.inf:
                raise SettingError(f"{key} must be finite and not negative, got {value}; 1 is the base learning rate")

    def __call__(self, step: int, total_steps: int) -> float:
        warmup_steps = self.warmup * total_steps
        if step < warmup_steps:
            return self.start + (1 - self.start) * step / warmup_steps
        decay_steps = total_steps - warmup_steps - self.tail * total_steps
        progress = min(1.0, (step - warmup_steps) / decay_steps)
        if self.curve == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return 1 + (self.end - 1) * progress


@dataclass(frozen=True)
class _FromTorch:
    build: Callable[[torch.optim.Optimizer, int], LRScheduler]

    def __call__(self, step: int, total_steps: int) -> float:
        return self.table(total_steps)[step]

    def table(self, total_steps: int) -> list[float]:
        """Multipliers of all steps, from one walk along the scheduler."""
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1, device="cpu"))], lr=1.0)
        scheduler = self.build(optimizer, total_steps)
        multipliers = []
        for _ in range(total_steps):
            multipliers.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()  # torch warns where the scheduler moves before the optimizer
            scheduler.step()
        return multipliers


def constant() -> Schedule:
    """The base learning rate at every step.

    Example:
        >>> constant()(5, 10)
        1.0
    """
    return _Constant()


def linear(*, warmup: float = 0.0, start: float = 0.0, end: float = 0.0, tail: float = 0.0) -> Schedule:
    """Linear warm-up, then a straight line down.

    Args:
        warmup: Share of all steps that the warm-up takes, in ``[0, 1)``.
        start: Multiplier at the first step of a warm-up.
        end: Multiplier that the step after the last would have; with a tail, a floor.
        tail: Share of all steps, at the end, that stay at ``end``; with the warm-up less than 1.

    Returns:
        The schedule.

    Raises:
        SettingError: If a value is outside its range.

    Example:
        >>> [linear()(step, 4) for step in range(4)]
        [1.0, 0.75, 0.5, 0.25]
        >>> [linear(warmup=0.25, end=0.5, tail=0.25)(step, 8) for step in range(8)]
        [0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.5]
    """
    return _WarmupThenDecay(warmup, start, end, tail, "linear")


def cosine(*, warmup: float = 0.0, start: float = 0.0, end: float = 0.0, tail: float = 0.0) -> Schedule:
    """Linear warm-up, then half a cosine down (Loshchilov and Hutter, 2017, arXiv:1608.03983, without restarts).

    Args:
        warmup: Share of all steps that the warm-up takes, in ``[0, 1)``.
        start: Multiplier at the first step of a warm-up.
        end: Multiplier that the step after the last would have; with a tail, a floor.
        tail: Share of all steps, at the end, that stay at ``end``; with the warm-up less than 1.

    Returns:
        The schedule.

    Raises:
        SettingError: If a value is outside its range.

    Example:
        >>> round(cosine()(2, 4), 6)
        0.5
    """
    return _WarmupThenDecay(warmup, start, end, tail, "cosine")


def one_cycle(*, warmup: float = 0.3, start: float = 0.04, end: float = 0.0, tail: float = 0.0) -> Schedule:
    """A triangle: up to the base learning rate, then down (Smith and Topin, 2018, arXiv:1708.07120).

    Args:
        warmup: Share of all steps on the way up, in ``(0, 1)``.
        start: Multiplier at the first step.
        end: Multiplier that the step after the last would have; with a tail, a floor.
        tail: Share of all steps, at the end, that stay at ``end``; with the warm-up less than 1.

    Returns:
        The schedule.

    Raises:
        SettingError: If a value is outside its range.

    Example:
        >>> one_cycle(warmup=0.5, start=0.0)(5, 10)
        1.0
    """
    if warmup == 0:
        raise SettingError("warmup must be in (0, 1), got 0; use linear() for a decay alone")
    return _WarmupThenDecay(warmup, start, end, tail, "linear")


def from_torch(build: Callable[[torch.optim.Optimizer, int], LRScheduler]) -> Schedule:
    """Any scheduler of torch, tabulated.

    Args:
        build: Makes the scheduler for an optimizer, whose learning rate is 1, and the number of steps. The
            scheduler's learning rate is the multiplier; it is stepped once a training step.

    Returns:
        The schedule.

    Example:
        >>> from torch.optim.lr_scheduler import StepLR
        >>> schedule = from_torch(lambda optimizer, total_steps: StepLR(optimizer, step_size=2, gamma=0.5))
        >>> [schedule(step, 4) for step in range(4)]
        [1.0, 1.0, 0.5, 0.5]
    """
    return _FromTorch(build)


def tabulate(schedule: Schedule, total_steps: int) -> Tensor:
    """The multiplier of every step.

    Args:
        schedule: Any ``(step, total_steps) -> multiplier``.
        total_steps: How many steps the run has, at least 1.

    Returns:
        float64, shape ``(total_steps,)``.

    Raises:
        SettingError: If a multiplier is negative or not finite.
    """
    if isinstance(schedule, _FromTorch):
        table = schedule.table(total_steps)
    else:
        table = [schedule(step, total_steps) for step in range(total_steps)]
    for step, value in enumerate(table):
        if not 0 <= value < math.inf:
            raise SettingError(
                f"the schedule gives {float(value)} at step {step} of {total_steps}; multipliers of the learning rate "
                "must be finite and not negative"
            )
    return torch.tensor(table, dtype=torch.float64, device="cpu")
