"""Seconds, and what to say of several."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch

__all__ = ["summarize", "synchronize", "timed"]


def timed(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = perf_counter()
    function()
    return perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was asked for: a clock read before that measures nothing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summarize(values: Sequence[float]) -> dict[str, Any]:
    """Median, range and number of measurements, in the unit that they have.

    Args:
        values: At least one.

    Example:
        >>> summarize([3.0, 1.0, 2.0])
        {'median': 2.0, 'min': 1.0, 'max': 3.0, 'n': 3}
    """
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}
