"""State of a run: everything that changes while it trains and that a resume needs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cifarnet._validation import from_json
from cifarnet.checkpoint.state_dict import check_weights, load_optimizer, load_weights, unwrapped_state_dict
from cifarnet.errors import CheckpointMismatchError, NonFiniteError
from cifarnet.inference.metrics import MetricTotals, RunningMetrics
from cifarnet.training.history import EpochRecord, History, check_monitor, is_better

if TYPE_CHECKING:
    from cifarnet.training.trainer import Trainer

__all__ = ["BestEpoch", "TrainState", "check_finite"]

_NEVER = -(2**62)


@dataclass
class BestEpoch:
    """Best validated epoch so far.

    Args:
        monitor: Validation metric that decides, such as ``"val_accuracy"``.
        epoch: Number of the best epoch, from 1; 0 if there is none.
        value: Its value of ``monitor``; ``None`` if there is none.
        epochs_since: Number of epochs since the best one.
        weights: Copy of its weights on their device; ``None`` if there is none.

    Raises:
        SettingError: If a run cannot be selected by ``monitor``.
    """

    monitor: str = "val_accuracy"
    epoch: int = 0
    value: float | None = None
    epochs_since: int = 0
    weights: dict[str, Tensor] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_monitor(self.monitor)
        if self.epoch and (self.value is None or not math.isfinite(self.value)):
            raise ValueError(f"the best epoch is {self.epoch} with the value {self.value}")

    def update(self, record: EpochRecord, weights: Mapping[str, Tensor]) -> bool:
        """Compare an epoch with the best one, and keep a copy of the weights if it is better.

        Args:
            record: Record of the epoch.
            weights: Evaluated weights.

        Returns:
            Whether the epoch is the new best one.
        """
        value = record.metrics.get(self.monitor)
        if record.val_loss is not None and not math.isfinite(record.val_loss):
            warnings.warn(
                f"val_loss is {record.val_loss} at epoch {record.epoch}. Such an epoch cannot become the best. Use a "
                "tenth of the learning rate",
                stacklevel=2,
            )
            value = None  # the accuracy of a network that returns NaN looks like any other
        if not is_better(self.monitor, value, self.value):
            self.epochs_since += 1
            return False
        self.epoch, self.value, self.epochs_since = record.epoch, value, 0
        self.keep(weights)
        return True

    def keep(self, weights: Mapping[str, Tensor]) -> None:
        """Copy the weights of the best epoch."""
        self.weights = {name: tensor.clone() for name, tensor in weights.items()}

    def is_stale(self, patience: int | None) -> bool:
        """Return whether ``patience`` epochs have passed without a new best one."""
        return patience is not None and self.epochs_since >= patience

    def selected_by(self, *, last_epoch: int) -> dict[str, Any]:
        """Describe how the best weights were chosen. Without validation, they are those of the last epoch."""
        if not self.epoch:
            return {"monitor": "final", "epoch": last_epoch, "value": None}
        return {"monitor": self.monitor, "epoch": self.epoch, "value": self.value}

    def state_dict(self) -> dict[str, Any]:
        """Return plain values. The weights have a file of their own."""
        return {name: getattr(self, name) for name in ("monitor", "epoch", "value", "epochs_since")}


class TrainState:
    """Weights, optimizer, position in the run, running metrics, history and best epoch.

    The model holds the best weights after training. The weights that training reached are kept aside until it
    continues.

    Args:
        trainer: Model, optimizer and moving average, changed in place by training and loading.

    Attributes:
        epoch: Number of completed epochs.
        step: Number of completed steps of the current epoch.
        global_step: Number of completed steps of the run.
        train_s: Seconds of training in the current epoch.
        metrics: Running metrics of the current epoch.
        history: Records of the completed epochs.
        best: Best epoch so far.
        base_lrs: Learning rate of each group at the start of the run, which a schedule multiplies.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.epoch = self.step = self.global_step = 0
        self.train_s = 0.0
        self.metrics = RunningMetrics(trainer.device)
        self.history = History()
        self.best = BestEpoch()
        self.base_lrs: list[float] = []
        self._last_weights: dict[str, Tensor] | None = None
        self._best_in_model: dict[str, Tensor] = {}

    def complete_step(self, train_s: float) -> None:
        """Count a step."""
        self.step += 1
        self.global_step += 1
        self.train_s = train_s

    def complete_epoch(self, record: EpochRecord) -> None:
        """Append the record and move to the beginning of the next epoch."""
        self.history.append(record)
        self.epoch, self.step, self.train_s = self.epoch + 1, 0, 0.0
        self.metrics.reset()

    def metric_totals(self) -> MetricTotals:
        """Return the running metrics of all processes; synchronizes with the device."""
        totals, group = self.metrics.read(), self._trainer.group
        if not group.is_open:
            return totals
        [bad_step] = group.all_reduce_max(totals.first_bad_step)
        sums = torch.tensor([totals.loss, totals.num_correct, totals.num_images], dtype=torch.float64, device="cpu")
        loss, num_correct, num_images = group.all_reduce_sum(sums).tolist()
        return MetricTotals(loss, int(num_correct), int(num_images), bad_step)

    @property
    def evaluated_weights(self) -> dict[str, Tensor]:
        """Weights that an epoch is evaluated with: the moving average, if there is one. They are not copies."""
        return unwrapped_state_dict(self._trainer.model if self._trainer.ema is None else self._trainer.ema.weights)

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Put the evaluated weights into the model for the block."""
        if self._trainer.ema is None or self._last_weights is not None:
            yield
        else:
            with self._trainer.ema.applied():
                yield

    def put_best_weights(self) -> None:
        """Load the best weights into the model, and keep the last ones aside."""
        last = {name: tensor.clone() for name, tensor in unwrapped_state_dict(self._trainer.model).items()}
        best = self.best.weights
        if best is None or self.best.epoch == self.epoch:
            best = last if self._trainer.ema is None else self.evaluated_weights
        self._last_weights, self._best_in_model = last, best
        load_weights(self._trainer.model, best, source="the best epoch")

    def put_last_weights(self) -> None:
        """Load the weights that training reached, unless the caller has changed the model since."""
        if self._last_weights is None:
            return
        if not self._is_changed():
            load_weights(self._trainer.model, self._last_weights, source="the last epoch")
        else:  # average and selection restart, because they belong to the replaced weights
            self.best = BestEpoch(self.best.monitor)
            if self._trainer.ema is not None:
                self._trainer.ema.num_updates = 0
        self._last_weights = None

    def _is_changed(self) -> bool:
        weights = unwrapped_state_dict(self._trainer.model)
        return weights.keys() != self._best_in_model.keys() or not all(
            torch.equal(tensor, self._best_in_model[name]) for name, tensor in weights.items()
        )

    def state_dict(self) -> dict[str, Any]:
        """Return nested dictionaries of tensors and plain values. The tensors are not copies."""
        weights = self._last_weights
        state = {
            "model": unwrapped_state_dict(self._trainer.model) if weights is None or self._is_changed() else weights,
            "optimizer": self._trainer.optimizer.state_dict(),
            "position": {name: getattr(self, name) for name in ("epoch", "step", "global_step", "train_s")},
            "running_metrics": self.metric_totals()._asdict(),
            "history": self.history.to_list(),
            "best": self.best.state_dict(),
        }
        ema = self._trainer.ema
        if ema is not None:
            state["ema"] = {"num_updates": ema.num_updates, "weights": unwrapped_state_dict(ema.weights)}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned. Nothing is changed if a part does not fit.

        Raises:
            CheckpointMismatchError: If a part is missing or does not fit.
        """
        model, ema = self._trainer.model, self._trainer.ema
        try:
            position = {name: int(state["position"][name]) for name in ("epoch", "step", "global_step")}
            train_s = float(state["position"]["train_s"])
            RunningMetrics(self.metrics.device).load_state_dict(state["running_metrics"])
            history, best = History.from_list(state["history"]), from_json(BestEpoch, state["best"], "best")
            if len(history) != position["epoch"] or min(position.values()) < 0:
                raise ValueError(f"{position['epoch']} epochs are done and {len(history)} are recorded")
            check_weights(model, state["model"], source="the checkpoint")
            if ema is not None:
                num_updates = int(state["ema"]["num_updates"])
                check_weights(model, state["ema"]["weights"], source="the moving average of the checkpoint")
            load_optimizer(self._trainer.optimizer, state["optimizer"])
        except CheckpointMismatchError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointMismatchError(
                f"This is not the state of a Trainer ({type(error).__name__}: {error}). Pass what Trainer.state_dict "
                "returned or fit saved; load other weights with init_from="
            ) from error
        load_weights(model, state["model"], source="the checkpoint")
        if ema is not None:
            ema.num_updates = num_updates
            for name, tensor in unwrapped_state_dict(ema.weights).items():
                tensor.copy_(state["ema"]["weights"][name])  # keeps the memory format
        self.epoch, self.step, self.global_step = position.values()
        self.train_s, self.history, self.best = train_s, history, best
        self.metrics.load_state_dict(state["running_metrics"])
        if self._trainer.group.rank:  # rank 0 holds the metrics of the steps before
            self.metrics.reset()
        self._last_weights = None


def check_finite(trainer: Trainer) -> None:
    """Refuse NaN and infinite values before anything is recorded or saved; synchronizes with the device. Collective.

    Args:
        trainer: Model and state.

    Raises:
        NonFiniteError: If a loss, a weight or a running statistic is not finite.
    """
    state, model = trainer.state, trainer.model
    # Other buffers may be infinite, such as an attention mask.
    statistics = [buffer for name, buffer in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
    finite = [tensor.detach().isfinite().all() for tensor in (*model.parameters(), *statistics)]
    bad_step = state.metrics.read().first_bad_step
    is_bad = bad_step >= 0 or not bool(torch.stack(finite).all())
    # The loss of one process may be infinite where all weights are finite. All processes must raise then.
    first, is_bad_anywhere = trainer.group.all_reduce_max(_NEVER if bad_step < 0 else -bad_step, is_bad)
    if not is_bad_anywhere:
        return
    what = f"The loss is not finite since step {1 - first}"
    if first == _NEVER:
        what = f"A weight is not finite after step {state.step}"
    rate, precision = float(trainer.optimizer.param_groups[0]["lr"]), trainer.precision.name
    remedy = "max_grad_norm=1.0" if precision == "float32" else "max_grad_norm=1.0 or float32"
    raise NonFiniteError(
        f"{what} of epoch {state.epoch + 1} (learning rate {rate:g}, {precision}). Nothing was saved since. Try a "
        f"tenth of the learning rate, {remedy}"
    )
