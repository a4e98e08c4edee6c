"""Where a run is: everything that changes while it trains, and that a resume needs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cifarnet.checkpoint import Checkpointer, check_weights, load_optimizer, load_weights, unwrapped_state_dict
from cifarnet.engine import Precision, Ranks, RunningSums
from cifarnet.errors import CheckpointWarning, NonFiniteLossError, ResumeMismatchError
from cifarnet.history import History
from cifarnet.optim import ExponentialMovingAverage, Lookahead
from cifarnet.trainer.plan import Plan
from cifarnet.trainer.selection import Selection

__all__ = ["RunState", "check_epochs", "check_finite"]


class RunState:
    """Weights, optimizer, position, running sums, history, and the best epoch so far.

    Args:
        model: Changed in place by training and loading.
        optimizer: Over its parameters.
        lookahead: Of its weights, if they are pulled back.
        average: Of its weights, if there is one: it is evaluated and kept in their place.
        device: Where all are.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        lookahead: Lookahead | None,
        average: ExponentialMovingAverage | None,
        device: torch.device,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self._lookahead = lookahead
        self._average = average
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
        self.sums.reset()

    def take_up_selection(self, selection: Selection, checkpointer: Checkpointer | None, ranks: Ranks) -> None:
        """Go on judging epochs as before, with the best weights at hand, or begin with a new ``selection``.

        Args:
            selection: For a run that has selected nothing yet.
            checkpointer: Where the best weights of a loaded run lie.
            ranks: Of the processes, of which the first reads them.

        Raises:
            ResumeMismatchError: If the run is selected by something else.

        Warns:
            CheckpointWarning: If the best weights are lost; the best is then chosen among the epochs to come.
        """
        own = self.selection
        if not own.epoch:
            if own.monitor == selection.monitor:
                selection.epochs_since = own.epochs_since  # none was good enough so far, which patience counts
            self.selection = selection
            return
        if own.monitor != selection.monitor:
            raise ResumeMismatchError(f"the run is selected by {own.monitor}, not by {selection.monitor}; keep to it")
        if own.weights is not None:
            return
        if own.epoch == self.epoch and self.step == 0:
            own.keep(self.evaluated_weights)  # the weights at hand are the best
        elif checkpointer is None or not own.read(checkpointer, ranks):
            warnings.warn(
                f"the weights of epoch {own.epoch}, the best so far, are not at hand; the best will be chosen among "
                "the epochs to come",
                CheckpointWarning,
                stacklevel=3,
            )
            self.selection = selection

    @property
    def evaluated_weights(self) -> dict[str, Tensor]:
        """The weights that an epoch is judged by, between its steps: the average where there is one; not copies."""
        return unwrapped_state_dict(self.model if self._average is None else self._average.weights)

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Within the block the model holds the weights that are judged."""
        with nullcontext() if self._average is None or self._last_weights is not None else self._average.applied():
            yield

    def put_best_weights(self) -> None:
        """Load the best weights into the model, and keep the last ones aside."""
        best = self.selection.weights
        if best is None or self.selection.epoch == self.epoch:
            if self._average is None:
                return  # they are there
            best = self.evaluated_weights
        if self._last_weights is None:
            self._last_weights = {name: tensor.clone() for name, tensor in unwrapped_state_dict(self.model).items()}
        load_weights(self.model, best, source="the best epoch")

    def put_last_weights(self) -> None:
        """Load the weights that training had reached: it goes on from them, not from the best."""
        if self._last_weights is not None:
            load_weights(self.model, self._last_weights, source="the last epoch")
            self._last_weights = None

    def state_dict(self) -> dict[str, Any]:
        """Nested dicts of tensors and plain values; the tensors are not copies."""
        copies = {"lookahead": self._lookahead, "average": self._average}
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
            **{
                key: {"num_updates": copy.num_updates, "weights": unwrapped_state_dict(copy.weights)}
                for key, copy in copies.items()
                if copy is not None
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict` said; unchanged where weights or optimizer do not fit.

        Raises:
            CheckpointMismatchError: If they do not fit.
        """
        copies = {"lookahead": self._lookahead, "average": self._average}
        check_weights(self.model, state["model"], source="the checkpoint")  # before any of them is changed
        for key, copy in copies.items():
            if copy is not None:
                check_weights(self.model, state[key]["weights"], source=f"the checkpoint's {key}")
        load_optimizer(self.optimizer, state["optimizer"])
        load_weights(self.model, state["model"], source="the checkpoint")
        for key, copy in copies.items():
            if copy is not None:
                copy.num_updates = state[key]["num_updates"]
                for name, tensor in unwrapped_state_dict(copy.weights).items():
                    tensor.copy_(state[key]["weights"][name])  # whose memory format may be another
        position = state["position"]
        self.epoch, self.step = position["epoch"], position["step"]
        self.global_step, self.train_s = position["global_step"], position["train_s"]
        self.sums.load_state_dict(state["sums"])
        self.history = History.from_list(state["history"])
        self.selection = Selection.from_state_dict(state["selection"])
        self._last_weights = None


def check_epochs(state: RunState, plan: Plan) -> None:
    """Refuse a position that the plan does not have.

    Raises:
        ResumeMismatchError: If more epochs or steps are done than are asked for.
    """
    num_steps = plan.train.num_steps
    if num_steps is not None and state.step > num_steps:
        raise ResumeMismatchError(
            f"the run has done {state.step} steps of an epoch, and the training data give {num_steps}; continue it "
            "with the data that it was started with"
        )
    if state.epoch > plan.max_epochs:
        raise ResumeMismatchError(
            f"the run has {state.epoch} epochs already, max_epochs={plan.max_epochs} asks for fewer; ask for at least "
            f"{state.epoch}, or start anew in another directory"
        )


def check_finite(model: nn.Module, state: RunState, plan: Plan, precision: Precision) -> None:
    """Wait for the device and refuse what is NaN or infinite, before anything of the epoch is recorded or saved."""
    bad_step = state.sums.read().first_bad_step
    statistics = [buffer for name, buffer in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
    tensors = [*model.parameters(), *statistics]  # other buffers may well be infinite: a mask of an attention is
    if bad_step < 0 and all(bool(tensor.isfinite().all()) for tensor in tensors):
        return
    multipliers = plan.epoch_multipliers(state.epoch)
    rate = state.optimizer.param_groups[0]["initial_lr"] * multipliers[min(bad_step, len(multipliers) - 1)]
    what = (
        f"the loss was not finite first at step {bad_step + 1} of" if bad_step >= 0 else "a weight was not finite after"
    )
    narrow = "" if precision.name == "float32" else "float32"
    raise NonFiniteLossError(
        f"{what} epoch {state.epoch + 1} (learning rate {rate:g}, {precision.name}); nothing was saved since. Try a "
        f"tenth of the learning rate{', max_grad_norm=1.0,' if narrow else ''} or {narrow or 'max_grad_norm=1.0'}"
    )
