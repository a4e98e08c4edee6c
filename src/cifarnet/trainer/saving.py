"""How a run finds its files, saves itself while it trains, and what its best weights say of themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from cifarnet.checkpoint import BackgroundWriter, Checkpointer, snapshot
from cifarnet.engine import Precision, Ranks
from cifarnet.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    NonFiniteLossError,
    RankLostError,
    RunExistsError,
    SettingError,
)
from cifarnet.models import describe_model
from cifarnet.trainer.plan import Plan, describe_data
from cifarnet.trainer.selection import Selection
from cifarnet.trainer.state import RunState
from cifarnet.transforms import Preprocess

__all__ = ["RunSaver", "check_resume", "describe_best", "holds_best", "open_run"]


class RunSaver:
    """Saves a run beside its training: ``last`` by time, ``best`` when an epoch improves, both at the end.

    Only a copy of the state is made between two steps; a thread writes it. ``last`` always goes first, so that a
    best epoch on the disk is never ahead of its run. Within the block, no other process writes the directory.

    Of several processes that train together the first writes, and tells the others what it has read; they look whether
    the state is fit to be saved when it does.

    Args:
        checkpointer: Of the run's directory; without one nothing is saved.
        plan: What is trained.
        state: Of the run.
        device: Where it is.
        read_state: Gives all that a resume needs.
        describe: Gives what to write beside the best weights.
        check: Raises where the state is not fit to be saved.
        ranks: Of the processes that train together.
    """

    def __init__(
        self,
        checkpointer: Checkpointer | None,
        plan: Plan,
        state: RunState,
        *,
        device: torch.device,
        read_state: Callable[[], Mapping[str, Any]],
        describe: Callable[[], dict[str, Any]],
        check: Callable[[], None],
        ranks: Ranks,
    ) -> None:
        self._ranks = ranks
        self._is_saved = checkpointer is not None
        self._checkpointer = checkpointer if ranks.rank == 0 else None
        self._plan = plan
        self._state = state
        self._device = device
        self._read_state = read_state
        self._describe = describe
        self._check = check
        self._saved_at = time.perf_counter()
        self._saved: tuple[int, int] | None = None  # epoch and steps of the newest save, begun or done
        self._epoch_end: Any = None  # the state there, where a run can only be continued from the end of an epoch
        self._best_on_disk: Any = None

    def __enter__(self) -> RunSaver:
        self._ranks.from_first(self._enter)
        return self

    def _enter(self) -> None:
        if self._checkpointer is not None:
            self._checkpointer.__enter__()
            try:
                self._writer = BackgroundWriter("last", "best")
            except BaseException as error:
                self._checkpointer.__exit__(type(error), error, error.__traceback__)
                raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._checkpointer is None:
            return
        release = partial(self._checkpointer.__exit__, kind, error, trace)
        try:
            if isinstance(error, KeyboardInterrupt) and self._writer.busy:  # the second one: the first has saved
                self._writer.abandon(then=release)  # the directory is ours until the write has ended
                return
            self._writer.close()
        except KeyboardInterrupt:
            self._writer.abandon(then=release)
            raise
        except BaseException as failure:
            release()
            if error is None:
                raise
            error.add_note(f"Besides, a save failed: {failure}")
        else:
            release()
        if isinstance(error, NonFiniteLossError | RankLostError):
            paths = (self._checkpointer.last_path, self._checkpointer.previous_path)
            good = paths[0] if self._checkpointer.last_is_sound else paths[1]
            if good.exists():
                error.args = (f"{error}. Last good checkpoint: {good}",)

    def open(self, resume: bool | str) -> Mapping[str, Any] | None:
        """What is to be continued, if anything; see `open_run`."""
        state: Mapping[str, Any] | None = self._ranks.from_first(
            lambda: None if self._checkpointer is None else open_run(self._checkpointer, resume)
        )
        return state

    def begin(self) -> None:
        """Note what is on the disk, and write a best that was found but not written when the run was killed."""
        if self._checkpointer is None:
            return
        if self._state.global_step and self._checkpointer.last_is_sound:
            self._saved = self._position
        if self._state.selection.weights is not None:
            self._write_best()

    def after_step(self) -> None:
        """Save ``last`` if it is time to, and the save before is done.

        Raises:
            CheckpointSaveError: If an earlier save failed.
        """
        if not self._is_saved:
            return
        due = False
        if self._checkpointer is not None:
            self._writer.raise_failure()
            due = time.perf_counter() - self._saved_at >= self._checkpointer.every_s
            due = due and self._can_continue_here and not self._writer.busy
        if self._ranks.most(due) == [True]:
            self._save()

    def after_epoch(self, *, improved: bool) -> None:
        """Save both if the epoch is the best so far, else ``last`` if it is time to.

        Raises:
            CheckpointSaveError: If an earlier save failed.
        """
        if improved:
            self._save(with_best=True)
        else:
            self.after_step()
        if self._checkpointer is not None and not self._plan.train.starts_anywhere:
            self._epoch_end = None if self._saved == self._position else snapshot(self._read_state())

    def stop(self, *, in_step: bool = False) -> str:
        """Save where the run stands before it is stopped; what to tell about it.

        Args:
            in_step: Whether a step was begun and has failed, so that the state as it is belongs to no step.

        Raises:
            CheckpointSaveError: If that fails.
        """
        where = f"Stopped at epoch {self._state.epoch + 1} step {self._state.step}"
        if self._checkpointer is None:
            if self._is_saved and self._can_continue_here:
                self._check()
            return f"{where}; nothing is saved without a checkpointer"
        if self._can_continue_here and not in_step:
            self._save()
            self._writer.wait()
            return f"{where}; saved {self._checkpointer.last_path}"
        if self._epoch_end is not None:
            self._writer.wait()
            self._writer.put(last=partial(self._checkpointer.save_state, self._epoch_end))
        self._writer.wait()
        if not self._state.epoch:
            return f"{where}; nothing is saved, as an iterable can only be continued from the end of an epoch"
        return f"{where}; it will go on from the end of epoch {self._state.epoch}, as an iterable only can"

    def finish(self) -> None:
        """Write what is not on the disk yet.

        Raises:
            CheckpointSaveError: If that fails.
        """
        if self._checkpointer is None:
            return
        if self._saved != self._position:
            self._save()
        self._writer.wait()
        self._write_best()

    @property
    def _position(self) -> tuple[int, int]:
        return self._state.epoch, self._state.global_step

    @property
    def _can_continue_here(self) -> bool:
        return self._plan.train.starts_anywhere or not self._state.step

    def _save(self, *, with_best: bool = False) -> None:
        if self._checkpointer is None:
            if self._is_saved:
                self._check()
            return
        if not with_best:
            self._writer.wait()  # a best epoch that waits must not come behind a later `last`, and perhaps never
        self._check()
        state = snapshot(self._read_state())
        jobs: dict[str, Callable[[], object]] = {"last": self._after_copies(self._checkpointer.save_state, state)}
        if with_best:
            # The selection's weights are a copy already, and replaced as a whole.
            weights, description = self._state.selection.weights, self._describe()
            assert weights is not None
            jobs["best"] = self._after_copies(self._checkpointer.save_best, weights, description)
            self._best_on_disk = description["selected_by"]  # or will be, or a failure is raised
        self._writer.put(**jobs)
        self._saved_at = time.perf_counter()
        self._saved = self._position

    def _after_copies(self, save: Callable[..., object], *content: Any) -> Callable[[], object]:
        """A job that waits for the copies that the device was told to make: its thread has another stream."""
        if self._device.type != "cuda":
            return partial(save, *content)
        copied = torch.cuda.current_stream(self._device).record_event()

        def job() -> None:
            copied.synchronize()
            save(*content)

        return job

    def _write_best(self) -> None:
        """Write the best weights unless they are there: without validation, those that the model has."""
        assert self._checkpointer is not None
        description = self._describe()
        chosen = description["selected_by"]
        if self._best_on_disk == chosen:
            return
        weights = self._state.selection.weights
        weights = self._state.evaluated_weights if weights is None else weights
        if not holds_best(self._checkpointer, chosen, weights):
            self._checkpointer.save_best(weights, description)
        self._best_on_disk = chosen


def check_resume(resume: object) -> None:
    """Refuse what `Trainer.fit` does not take.

    Raises:
        SettingError: If it is not ``True``, ``False`` or ``"weights"``.
    """
    if resume not in (False, True, "weights"):
        raise SettingError(f'resume must be True, False or "weights", got {resume!r}')


def open_run(checkpointer: Checkpointer, resume: bool | str) -> Mapping[str, Any] | None:
    """Find out what is in the run's directory.

    Args:
        checkpointer: Of the directory, which is prepared.
        resume: Whether to continue the run that is there: ``True``, ``False`` or ``"weights"``.

    Returns:
        The state to continue from, or the weights alone; ``None`` where there is no run yet.

    Raises:
        RunExistsError: If there is a run that is not to be continued.
        CheckpointError: If the state cannot be read.
    """
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


def holds_best(checkpointer: Checkpointer, selected_by: Mapping[str, Any], weights: Mapping[str, Tensor]) -> bool:
    """Whether ``best`` on the disk is the one selected so: a run can be killed before it writes it."""
    try:
        saved, description = checkpointer.read_best()
    except (CheckpointNotFoundError, CheckpointCorruptError):
        return False
    if description.get("selected_by") != selected_by or saved.keys() != weights.keys():
        return False
    return all(torch.equal(saved[name], tensor.cpu()) for name, tensor in weights.items())


def describe_best(
    model: nn.Module,
    preprocess: Preprocess,
    precision: Precision,
    plan: Plan,
    selection: Selection,
    *,
    epoch: int,
    notes: dict[str, Any],
) -> dict[str, Any]:
    """What makes weights usable by others: architecture, preprocessing, class names, how they were chosen."""
    return {
        "model": describe_model(model),
        "preprocess": asdict(preprocess),
        "classes": plan.classes,
        "precision": precision.name,
        "selected_by": selection.describe(last_epoch=epoch),
        "data": describe_data(plan.data),
        "notes": notes,
    }
