"""Weights that run ahead, and are pulled back every few steps to an average that follows them slowly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cifarnet._checks import check_count
from cifarnet.errors import CheckpointMismatchError, SettingError
from cifarnet.optim.copies import copied_weights, pairs_with_weights
from cifarnet.optim.schedules import Schedule, tabulate

__all__ = ["Lookahead"]


class Lookahead:
    """Every few steps the slow weights move towards the model's, and the model goes on from there.

    Zhang et al., 2019, arXiv:1907.08610. After every ``every``-th step, and after the last::

        slow = decay * slow + (1 - decay) * weights
        weights = slow

    The last step of all takes a ``decay`` of 1 where it is not an ``every``-th one: the training ends at the slow
    weights, and up to ``every - 1`` steps at its end are lost. Running statistics of batch norm go the same way,
    counters stay the model's. The optimizer's momentum is left as it is. Unlike `ExponentialMovingAverage`, which
    watches the training, this changes it.

    Args:
        model: On its device, in its dtype; the slow weights start from its weights and have its memory format.
        total_steps: Of the training; without it `begin` has to be called before the first step.
        every: Steps between two pulls; 5 is usual.
        decay: How much of the slow weights stays, in ``[0, 1]``: a number, which the paper calls ``1 - alpha``, or a
            schedule. The fast CIFAR-10 runs let the slow weights grow heavy towards the end, by
            ``polynomial(power=3, end=0.95**5)``.

    Attributes:
        num_updates: How often `update` was called.
        every: As given.
        decay: As given.
        table: What a step does, float64, shape ``(total_steps, 2)``: the share of the model's weights that the slow
            ones take, and how far the model's are pulled to those then, 0 or 1.

    Raises:
        SettingError: If a value is outside its range.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> lookahead = Lookahead(model, total_steps=4, every=2, decay=0.5)
        >>> for _ in range(4):
        ...     with torch.no_grad():
        ...         _ = model.weight.add_(1)
        ...     lookahead.update()
        ...     print(model.weight.item())
        1.0
        1.0
        2.0
        2.0
    """

    def __init__(
        self, model: nn.Module, *, total_steps: int | None = None, every: int = 5, decay: float | Schedule = 0.5
    ) -> None:
        check_count("every", every, "5 is usual")
        if not callable(decay):
            _check_decays(torch.tensor([decay], dtype=torch.float64))
        self.every = every
        self.decay = decay
        self.num_updates = 0
        self.table = torch.zeros(0, 2, dtype=torch.float64)
        self._model = model
        #: The slow weights, by the names of the model's ``state_dict``; tied weights share a tensor.
        self.weights: dict[str, Tensor] = copied_weights(model)
        if total_steps is not None:
            self.begin(total_steps)

    def begin(self, total_steps: int) -> None:
        """Say how long the training is; where it has not begun, the slow weights start from the model's as they are.

        Args:
            total_steps: Of the training, counting those done before.

        Raises:
            SettingError: As `check` does.
        """
        self.table = self._tabulate(total_steps)
        if not self.num_updates:
            self.weights = copied_weights(self._model)

    def check(self, total_steps: int) -> None:
        """See whether a training can be so long, and change nothing.

        Args:
            total_steps: Of the training.

        Raises:
            SettingError: If it is below 1 or below ``every``, or a scheduled ``decay`` leaves its range.
        """
        self._tabulate(total_steps)

    def _tabulate(self, total_steps: int) -> Tensor:
        check_count("total_steps", total_steps, "it is the number of steps of the whole training")
        decay, every = self.decay, self.every
        if every > total_steps:
            raise SettingError(
                f"every is {every}, and the training has {total_steps} steps: it would end at the weights that it "
                "began with; 5 is usual"
            )
        decays = tabulate(decay, total_steps) if callable(decay) else torch.tensor([decay], dtype=torch.float64)
        _check_decays(decays)
        table = torch.zeros(total_steps, 2, dtype=torch.float64)
        table[-1, 1] = 1.0
        table[every - 1 :: every, 0] = 1 - decays.expand(total_steps)[every - 1 :: every]
        table[every - 1 :: every, 1] = 1.0
        return table

    @torch.no_grad()
    def update(self, row: Tensor | None = None) -> None:
        """Take a step of the model into account, and pull the model where it is time.

        Args:
            row: Of `table`, where a captured graph reads it from the device and somebody else counts the updates;
                without it the next row is taken, and counted.

        Raises:
            SettingError: After more steps than were told.
        """
        if row is None and self.num_updates == len(self.table):
            raise SettingError(
                f"{self.num_updates} updates were done, total_steps={len(self.table)}; tell all steps (a Trainer "
                "counts them by the length of an iterable of batches, which must not give more)"
            )
        floating, counters = pairs_with_weights(self.weights, self._model)
        if row is not None:
            for slow, tensor in floating:
                slow.lerp_(tensor, row[0].to(tensor.dtype))
                tensor.lerp_(slow, row[1].to(tensor.dtype))  # by 0 or 1: to the last bit what it was, or what slow is
        else:
            taken, pulled = self.table[self.num_updates].tolist()
            self.num_updates += 1
            if pulled and floating:
                slow_weights, weights = zip(*floating, strict=True)
                torch._foreach_lerp_(slow_weights, weights, taken)
                torch._foreach_copy_(weights, slow_weights)
        for copy, counter in counters:
            copy.copy_(counter)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes; the tensors are not copies."""
        return {"num_updates": self.num_updates, "weights": dict(self.weights)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; the model's weights are loaded apart.

        Args:
            state: Its tensors are copied, on any device and in any memory format.

        Raises:
            CheckpointMismatchError: If it is of another network; nothing is changed then.
        """
        saved = state["weights"]
        shapes = {name: tensor.shape for name, tensor in self.weights.items()}
        if {name: tensor.shape for name, tensor in saved.items()} != shapes:
            raise CheckpointMismatchError(
                "the slow weights have other names or shapes than the model's; load their own"
            )
        for name, tensor in self.weights.items():
            tensor.copy_(saved[name])
        self.num_updates = state["num_updates"]


def _check_decays(decays: Tensor) -> None:
    if not bool(((decays >= 0) & (decays <= 1)).all()):
        farthest = float(decays[(decays - 0.5).abs().argmax()])
        raise SettingError(f"decay must be in [0, 1], got {farthest}; 0.5 is usual")
