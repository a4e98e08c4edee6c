"""How a run finds its files and what its best weights say of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from cifarnet.checkpoint import Checkpointer
from cifarnet.engine import Precision
from cifarnet.errors import CheckpointCorruptError, CheckpointNotFoundError, RunExistsError, SettingError
from cifarnet.models import describe_model
from cifarnet.trainer.plan import Plan, describe_data
from cifarnet.trainer.selection import Selection
from cifarnet.transforms import Preprocess

__all__ = ["describe_best", "holds_best", "open_run"]


def open_run(checkpointer: Checkpointer, resume: bool | str) -> Mapping[str, Any] | None:
    """Make the run's directory ready.

    Args:
        checkpointer: Of the directory.
        resume: Whether to continue the run that is there: ``True``, ``False`` or ``"weights"``.

    Returns:
        The state to continue from, or the weights alone; ``None`` where there is no run yet.

    Raises:
        SettingError: If ``resume`` is something else.
        RunExistsError: If there is a run that is not to be continued.
        CheckpointError: If the directory cannot be written, or the state not be read.
    """
    if resume not in (False, True, "weights"):
        raise SettingError(f'resume must be True, False or "weights", got {resume!r}')
    checkpointer.prepare()
    if not checkpointer.holds_run():
        return None
    if not resume:
        raise RunExistsError(
            f"{checkpointer.directory} holds a run already; continue it with resume=True (--resume), or choose "
            "another directory"
        )
    state = checkpointer.read_last()
    if state is None and resume == "weights":
        weights, _ = checkpointer.read_best()
        return {"model": weights}
    if state is None:
        raise CheckpointNotFoundError(
            f"{checkpointer.directory} holds a best.safetensors but no last.safetensors to continue from; "
            'resume="weights" starts a new run from its weights'
        )
    return state


def holds_best(checkpointer: Checkpointer, selected_by: Mapping[str, Any]) -> bool:
    """Whether ``best`` on the disk is the one selected so: a run can be killed before it writes it."""
    try:
        _, description = checkpointer.read_best()
    except (CheckpointNotFoundError, CheckpointCorruptError):
        return False
    return bool(description.get("selected_by") == selected_by)


def describe_best(
    model: nn.Module, preprocess: Preprocess, precision: Precision, plan: Plan, selection: Selection, *, epoch: int
) -> dict[str, Any]:
    """What makes weights usable by others: architecture, preprocessing, class names, how they were chosen."""
    return {
        "model": describe_model(model),
        "preprocess": asdict(preprocess),
        "classes": plan.classes,
        "precision": precision.name,
        "selected_by": selection.describe(last_epoch=epoch),
        "data": describe_data(plan.data),
    }
