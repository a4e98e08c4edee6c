"""Start of a run: from a checkpoint, from the weights of another run, or from the beginning."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cifarnet.checkpoint import load_best
from cifarnet.checkpoint.state_dict import load_weights
from cifarnet.errors import CheckpointCorruptError, CheckpointMismatchError, CheckpointNotFoundError, SettingError
from cifarnet.training.checkpointing import CheckpointSaver
from cifarnet.training.state import BestEpoch

if TYPE_CHECKING:
    from cifarnet.training.run_settings import RunSettings
    from cifarnet.training.trainer import Trainer

__all__ = ["restore_run", "upgrade_from_format_1"]

#: Settings of format 1 that were the text of `repr`, which is not compared.
_TEXT_IN_FORMAT_1 = ("augmentation", "mix", "loss", "schedule", "sizes")


def restore_run(trainer: Trainer, run: RunSettings, saver: CheckpointSaver) -> None:
    """Load the start of the run: a checkpoint, the weights of another run, or nothing.

    Raises:
        CheckpointMismatchError: If the checkpoint is of another run.
        CheckpointError: If a file cannot be read.
        SettingError: If ``init_from`` is given to a trainer that has trained, or the processes have different settings.
    """
    trainer.identity.check_processes(run)
    saved: Mapping[str, Any] | None = trainer.group.broadcast_from_first(saver.read)
    if saved is not None:
        saved = upgrade_from_format_1(saved)
        trainer.identity.check(saved, run)
        trainer.load_state_dict(saved)
    elif run.init_from is not None:
        if trainer.global_step:
            raise SettingError("init_from starts a new run, and this trainer has trained. Build a new Trainer")
        path: Any = run.init_from
        weights, _ = trainer.group.broadcast_from_first(lambda: load_best(path))
        load_weights(trainer.model, weights, source=str(path))
    epoch = trainer.state.epoch
    if epoch > run.max_epochs:
        raise CheckpointMismatchError(
            f"The run has {epoch} epochs, and max_epochs is {run.max_epochs}. Use max_epochs={epoch} or more, or start "
            "a new run in another directory"
        )
    trainer.identity.start(run, is_resumed=saved is not None)
    _restore_best(trainer, run)
    trainer.state.put_last_weights()
    if trainer.ema is not None:
        trainer.ema.begin()
    saver.start()


def _restore_best(trainer: Trainer, run: RunSettings) -> None:
    """Continue with the best epoch and its weights, or start a new selection."""
    state, fresh = trainer.state, BestEpoch(run.monitor)
    best = state.best
    if best.epoch and best.monitor != run.monitor:
        raise CheckpointMismatchError(
            f"The run is selected by {best.monitor}, not by {run.monitor}. Use monitor={best.monitor!r}"
        )
    if not best.epoch:
        fresh.epochs_since = best.epochs_since if best.monitor == run.monitor else 0  # epochs that were not finite
        state.best = fresh
    elif best.weights is None and best.epoch == state.epoch and state.step == 0:
        best.keep(state.evaluated_weights)
    elif best.weights is None and not _read_best_weights(trainer, run):
        # They are of a later epoch if `last` was damaged. That epoch is trained again and chosen again.
        warnings.warn(
            f"The weights of epoch {best.epoch}, the best so far, are missing. The best epoch is chosen among the "
            "epochs to come",
            UserWarning,
            stacklevel=4,
        )
        state.best = fresh


def _read_best_weights(trainer: Trainer, run: RunSettings) -> bool:
    """Read the weights of the best epoch, and return whether the file holds them."""
    best = trainer.best
    if run.checkpointer is None:
        return False
    try:
        weights, description = trainer.group.broadcast_from_first(run.checkpointer.read_best)
    except (CheckpointNotFoundError, CheckpointCorruptError):
        return False
    if description.get("selected_by") != best.selected_by(last_epoch=0):
        return False
    best.weights = {name: tensor.to(trainer.device) for name, tensor in weights.items()}
    return True


def upgrade_from_format_1(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Convert a state of file format 1; return any other unchanged.

    Format 1 describes loss, augmentation, batch transform and schedule by `repr`. They are not compared.
    """
    if "sums" not in state or "run" not in state:
        return state
    settings = _without(state["run"], *_TEXT_IN_FORMAT_1)
    for name in ("data", "val_data"):
        images = settings.pop(name, None)
        if images is not None:  # user-supplied iterables were not described
            settings[name] = _without(images, "name")
    groups = [
        _without(group, "initial_lr") | ({"lr": group["initial_lr"]} if "initial_lr" in group else {})
        for group in settings["optimizer"]["groups"]
    ]
    environment = state["environment"]
    known = ("deterministic", "device", "optimizer", "precision", "threads", "torch", "world_size")
    groups_of_state = [_without(group, "initial_lr") for group in state["optimizer"]["param_groups"]]
    new = {
        "settings": {**settings, "optimizer": {**settings["optimizer"], "groups": groups}},
        "environment": {key: environment[key] for key in known if key in environment}
        | {"differences": list(environment.get("changes", []))},
        "optimizer": {**state["optimizer"], "param_groups": groups_of_state},
        "running_metrics": state["sums"],
        "best": state["selection"],
        **{key: state[key] for key in ("model", "position", "history")},
    }
    return new | {"ema": state["average"]} if "average" in state else new


def _without(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}
