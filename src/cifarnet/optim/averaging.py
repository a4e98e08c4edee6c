"""An average of the weights along the way of the training, which is often better than where it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cifarnet.errors import SettingError
from cifarnet.optim.copies import copied_weights, pairs_with_weights

__all__ = ["ExponentialMovingAverage"]


class ExponentialMovingAverage:
    """A copy of a network's weights that follows them slowly (Polyak and Juditsky, 1992).

    After each step ``average = decay * average + (1 - decay) * weights``, running statistics of batch norm
    included; counters are copied. In the beginning the decay is smaller, ``n / (n + 9)`` after ``n`` updates, so
    that the initial weights are soon forgotten (the warm-up of TensorFlow's ``ExponentialMovingAverage``).

    Args:
        model: On its device, in its dtype; the average has its memory format. Parameters and persistent buffers are
            averaged, tied ones once.
        decay: In ``(0, 1)``; 0.999 averages over about 1,000 steps.

    Attributes:
        decay: As given.
        num_updates: How often `update` was called.

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
            raise SettingError(f"the decay of an average must be in (0, 1), got {decay}; 0.999 is usual")
        self.decay = decay
        self.num_updates = 0
        self._model = model
        #: By the names of the model's ``state_dict``; tied weights share a tensor.
        self.weights: dict[str, Tensor] = copied_weights(model)

    def begin(self) -> None:
        """Where nothing was averaged yet, start from the model's weights as they are now."""
        if not self.num_updates:
            self.weights = copied_weights(self._model)

    @torch.no_grad()
    def update(self) -> None:
        """Take a step of the model into account."""
        floating, counters = pairs_with_weights(self.weights, self._model)
        if floating:
            averages, weights = zip(*floating, strict=True)
            decay = min(self.decay, self.num_updates / (self.num_updates + 9))
            torch._foreach_lerp_(averages, weights, 1 - decay)
        for average, counter in counters:
            average.copy_(counter)
        self.num_updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model holds the average, and `weights` what the model had."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        floating, counters = pairs_with_weights(self.weights, self._model)
        for average, tensor in floating + counters:
            aside = tensor.clone()
            tensor.copy_(average)
            average.copy_(aside)
