"""Where a run is: everything that changes while it trains, and that a resume needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cifarnet.checkpoint import check_weights, load_optimizer, load_weights, unwrapped_state_dict
from cifarnet.engine import RunningSums
from cifarnet.history import History
from cifarnet.trainer.selection import Selection

__all__ = ["RunState"]


class RunState:
    """Weights, optimizer, position, running sums, history, and the best epoch so far.

    Args:
        model: Changed in place by training and loading.
        optimizer: Over its parameters.
        device: Where both are.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.model = model
        self.optimizer = optimizer
        self._device = device
        #: Whole epochs done, steps done of the one begun, steps done in all.
        self.epoch = self.step = self.global_step = 0
        #: Seconds trained in the epoch begun.
        self.train_s = 0.0
        #: Of the epoch begun.
        self.sums = RunningSums(device)
        self.history = History()
        self.selection = Selection()
        #: What training had reached, kept aside while the model holds the best weights.
        self._last_weights: dict[str, Tensor] | None = None

    def finish_epoch(self) -> None:
        """Stand at the beginning of the next epoch."""
        self.epoch, self.step, self.train_s = self.epoch + 1, 0, 0.0
        self.sums = RunningSums(self._device)

    def put_best_weights(self) -> None:
        """Load the best weights into the model, and keep the last ones aside."""
        if self.selection.weights is not None and self.selection.epoch != self.epoch:
            self._last_weights = {name: tensor.clone() for name, tensor in unwrapped_state_dict(self.model).items()}
            load_weights(self.model, self.selection.weights, source="the best epoch")

    def put_last_weights(self) -> None:
        """Load the weights that training had reached: it goes on from them, not from the best."""
        if self._last_weights is not None:
            load_weights(self.model, self._last_weights, source="the last epoch")
            self._last_weights = None

    def state_dict(self) -> dict[str, Any]:
        """Nested dicts of tensors and plain values; the tensors are not copies."""
        return {
            "model": unwrapped_state_dict(self.model) if self._last_weights is None else self._last_weights,
            "optimizer": self.optimizer.state_dict(),
            "position": {
                "epoch": self.epoch,
                "step": self.step,
                "global_step": self.global_step,
                "train_s": self.train_s,
            },
            "sums": self.sums.state_dict(),
            "history": self.history.to_list(),
            "selection": self.selection.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict` said; unchanged where weights or optimizer do not fit.

        Raises:
            CheckpointMismatchError: If they do not fit.
        """
        check_weights(self.model, state["model"], source="the checkpoint")  # before either of the two is changed
        load_optimizer(self.optimizer, state["optimizer"])
        load_weights(self.model, state["model"], source="the checkpoint")
        position = state["position"]
        self.epoch, self.step = position["epoch"], position["step"]
        self.global_step, self.train_s = position["global_step"], position["train_s"]
        self.sums = RunningSums(self._device)
        self.sums.load_state_dict(state["sums"])
        self.history = History.from_list(state["history"])
        self.selection = Selection.from_state_dict(state["selection"])
        self._last_weights = None
