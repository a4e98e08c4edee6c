"""Which epoch is the best, its weights, and how long ago it was."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cifarnet.checkpoint import Checkpointer, parse_description
from cifarnet.engine import Ranks
from cifarnet.errors import CheckpointCorruptError, CheckpointNotFoundError, SettingError, did_you_mean
from cifarnet.history import MONITORS, EpochRecord, is_better

__all__ = ["Selection"]


class Selection:
    """The best validated epoch so far.

    Args:
        monitor: What it is judged by, a key of `MONITORS`.

    Raises:
        SettingError: If ``monitor`` is not one of them.
    """

    def __init__(self, monitor: str = "val_accuracy") -> None:
        if monitor not in MONITORS:
            hint = did_you_mean(str(monitor), MONITORS)
            raise SettingError(f'monitor "{monitor}" is unknown; {hint} The test set chooses nothing')
        self.monitor = monitor
        #: The best epoch, from 1; 0 while there is none.
        self.epoch = 0
        #: What it was judged by.
        self.value: float | None = None
        #: How many epochs came after it.
        self.epochs_since = 0
        #: A copy of its weights, on their device.
        self.weights: dict[str, Tensor] | None = None

    def update(self, record: EpochRecord, weights: Mapping[str, Tensor]) -> bool:
        """Take an epoch and the weights that were evaluated into account; whether it is the new best."""
        value: float | None = getattr(record, self.monitor)
        if record.val_loss is not None and not math.isfinite(record.val_loss):
            # The accuracy of a network that says NaN is a number like any other.
            warnings.warn(
                f"val_loss is {record.val_loss} at epoch {record.epoch}, which cannot become the best; try a tenth of "
                "the learning rate",
                stacklevel=2,
            )
            value = None
        if not is_better(self.monitor, value, self.value):
            # A best from the file may be of an epoch that is only now trained again.
            self.epochs_since = max(0, record.epoch - self.epoch) if self.epoch else self.epochs_since + 1
            return False
        self.epoch, self.value, self.epochs_since = record.epoch, value, 0
        self.keep(weights)
        return True

    def keep(self, weights: Mapping[str, Tensor]) -> None:
        """Copy the weights of the best epoch."""
        self.weights = {name: tensor.clone() for name, tensor in weights.items()}

    def read(self, checkpointer: Checkpointer, ranks: Ranks) -> bool:
        """Read the weights of the best epoch from its file; whether it was of this epoch, or of a better later one.

        A later one is there when the newest ``last`` was damaged and the one before it has to serve.
        """
        try:
            weights, description = ranks.from_first(checkpointer.read_best)
            chosen = parse_description(description, name=str(checkpointer.best_path)).selected_by
        except (CheckpointNotFoundError, CheckpointCorruptError):
            return False
        same = chosen == self.describe(last_epoch=0)
        if not same and not (
            chosen["monitor"] == self.monitor and is_better(self.monitor, chosen["value"], self.value)
        ):
            return False
        self.weights, self.epoch, self.value = weights, chosen["epoch"], chosen["value"]
        return True

    def describe(self, *, last_epoch: int) -> dict[str, Any]:
        """How the weights of ``best`` were chosen; without validation they are those of the last epoch."""
        if not self.epoch:
            return {"monitor": "final", "epoch": last_epoch, "value": None}
        return {"monitor": self.monitor, "epoch": self.epoch, "value": self.value}

    def state_dict(self) -> dict[str, Any]:
        """Plain values; the weights are in a file of their own."""
        return {
            "monitor": self.monitor,
            "epoch": self.epoch,
            "value": self.value,
            "epochs_since": self.epochs_since,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Selection:
        """The inverse of `state_dict`."""
        selection = cls(state["monitor"])
        selection.epoch, selection.value = state["epoch"], state["value"]
        selection.epochs_since = state["epochs_since"]
        return selection
