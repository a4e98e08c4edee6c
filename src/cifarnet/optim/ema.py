"""Exponential moving average of the weights, which is often more accurate than the last weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cifarnet.errors import SettingError

__all__ = ["ExponentialMovingAverage"]


class ExponentialMovingAverage:
    """Exponential moving average of a network's weights (averaging: Polyak and Juditsky, 1992).

    Each step computes ``average = decay * average + (1 - decay) * weights``. The running statistics of batch norm are
    averaged too, and counters are copied. After ``n`` updates, the decay is at most ``n / (n + 9)``, so that the
    initial weights do not count for long (the warm-up of TensorFlow's ``ExponentialMovingAverage``).

    Args:
        model: Network on its device and in its dtype. The average has the same memory format. It covers parameters and
            persistent buffers, tied ones once.
        decay: Weight of the old average in each update, in ``(0, 1)``; 0.999 averages over about 1,000 steps.

    Attributes:
        decay: Weight of the old average in each update.
        num_updates: Number of calls of `update`.
        weights: Averages by the names of the model's ``state_dict``. Tied weights share a tensor.

    Raises:
        SettingError: If ``decay`` is outside its range.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> average = ExponentialMovingAverage(model, decay=0.5)
        >>> for weight in (1.0, 2.0):
        ...     _ = nn.init.constant_(model.weight, weight)
        ...     average.update()
        >>> round(average.weights["weight"].item(), 3)  # a decay of 0, then of 0.1
        1.9
        >>> with average.applied():
        ...     round(model.weight.item(), 3)
        1.9
        >>> model.weight.item()
        2.0
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise SettingError(f"The decay of the moving average must be in (0, 1), got {decay}. 0.999 is usual")
        self.decay = decay
        self.num_updates = 0
        self._model = model
        self.weights: dict[str, Tensor] = _copy_weights(model)

    def begin(self) -> None:
        """Start from the current weights of the model if no step was averaged yet."""
        if not self.num_updates:
            self.weights = _copy_weights(self._model)

    @torch.no_grad()
    def update(self) -> None:
        """Include the current weights of the model in the average."""
        pairs = self._pairs()
        decay = min(self.decay, self.num_updates / (self.num_updates + 9))
        averages, weights = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for average, counter in pairs:
            if not average.is_floating_point():
                average.copy_(counter)
        self.num_updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Swap the average and the weights of the model for the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, tensor in self._pairs():
            aside = tensor.clone()
            tensor.copy_(average)
            average.copy_(aside)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Pair each average with its tensor of the model, tied ones once."""
        weights = self.weights
        pairs = {id(weights[name]): (weights[name], tensor) for name, tensor in self._model.state_dict().items()}
        return list(pairs.values())


def _copy_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copy parameters and persistent buffers by name, tied weights once, in their memory format."""
    copies: dict[tuple[object, ...], Tensor] = {}
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        weights[name] = copies.setdefault(key, tensor.clone())
    return weights
