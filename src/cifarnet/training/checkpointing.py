"""Saving of a run in a background thread, and its restoration."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cifarnet.checkpoint import Checkpointer, load_best, load_weights
from cifarnet.checkpoint.background import BackgroundWriter, snapshot
from cifarnet.checkpoint.checkpointer import encode_state
from cifarnet.checkpoint.state_tree import flatten
from cifarnet.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    CheckpointWarning,
    NonFiniteLossError,
    RankLostError,
    ResumeMismatchError,
    RunExistsError,
    SettingError,
)
from cifarnet.inference.data import describe_data
from cifarnet.models import describe_model
from cifarnet.training.history import is_better
from cifarnet.training.resume import upgrade_from_format_1
from cifarnet.training.state import BestEpoch, TrainState, check_finite

if TYPE_CHECKING:
    from cifarnet.training.run_data import RunData
    from cifarnet.training.trainer import Trainer

__all__ = ["CheckpointSaver", "restore_run"]


class CheckpointSaver:
    """Context manager that saves a run while it trains: ``last`` by time, ``best`` when an epoch improves.

    Training only copies the state between two steps; a thread writes it. ``last`` is always written first, so that
    ``best`` on the disk is never ahead of the run. Within the block, no other process writes the directory.

    With several processes, rank 0 writes and all of them check that the state is finite.

    Args:
        checkpointer: Checkpointer of the run's directory; ``None`` saves nothing.
        trainer: Trainer whose state is saved.
        data: Data of the run.
    """

    def __init__(self, checkpointer: Checkpointer | None, trainer: Trainer, data: RunData) -> None:
        self._trainer = trainer
        self._data = data
        self._state = trainer.state
        self._group = trainer.group
        self._is_saved = checkpointer is not None
        self._checkpointer = checkpointer if self._group.rank == 0 else None
        self._saved_at = time.perf_counter()
        self._saved: tuple[int, int] | None = None  # epoch and global step of the newest save, started or done
        self._epoch_end: Any = None  # state at the end of an epoch, if a run can only be resumed there
        self._best_on_disk: Any = None

    def __enter__(self) -> CheckpointSaver:
        self._group.broadcast_from_first(self._enter)
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
            if isinstance(error, KeyboardInterrupt) and self._writer.busy:  # a second Ctrl-C; the first one saved
                self._writer.abandon(then=release)  # the directory stays locked until the write has ended
                return
            self._writer.close()
        except KeyboardInterrupt:
            self._writer.abandon(then=release)
            raise
        except BaseException as failure:
            release()
            if error is None:
                raise
            error.add_note(f"A save failed too: {failure}")
        else:
            release()
        if isinstance(error, NonFiniteLossError | RankLostError):
            paths = (self._checkpointer.last_path, self._checkpointer.previous_path)
            good = paths[0] if self._checkpointer.last_is_sound else paths[1]
            if good.exists():
                error.args = (f"{error}. Last good checkpoint: {good}",)

    def read(self, *, resume: bool) -> Mapping[str, Any] | None:
        """Return the state to resume from; ``None`` if there is no run yet.

        Args:
            resume: Whether to resume a run in the directory.

        Raises:
            RunExistsError: If there is a run and ``resume`` is ``False``.
            CheckpointError: If the state cannot be read.
        """
        state: Mapping[str, Any] | None = self._group.broadcast_from_first(lambda: self._read(resume))
        return state

    def _read(self, resume: bool) -> Mapping[str, Any] | None:
        checkpointer = self._checkpointer
        if checkpointer is None or not checkpointer.exists():
            return None
        if not resume:
            raise RunExistsError(
                f"{checkpointer.directory} holds a run. Continue it with resume=True (--resume), or choose another "
                "directory"
            )
        state = checkpointer.read_last()
        if state is None:
            raise CheckpointNotFoundError(
                f"{checkpointer.directory} holds best.safetensors but no last.safetensors to resume from. Start a new "
                f"run from its weights with init_from={str(checkpointer.directory)!r}"
            )
        return state

    def start(self) -> None:
        """Prepare the first save, and write a best epoch that was found but not written when the run was killed.

        Raises:
            SettingTypeError: If the state holds a value that cannot be saved.
        """
        if not self._is_saved:
            return
        state = self._trainer.state_dict()  # collective, as in _save
        if self._checkpointer is None:
            return
        if not self._state.global_step:  # before work can be lost
            encode_state(state)
            flatten(self._describe_best())
        if self._state.global_step and self._checkpointer.last_is_sound:
            self._saved = self._position
        if self._state.best.weights is not None:
            self._write_best()

    def after_step(self) -> None:
        """Save ``last`` if ``save_every_s`` has passed and the previous save is complete.

        Raises:
            CheckpointSaveError: If an earlier save failed.
        """
        if not self._is_saved:
            return
        is_due = False
        if self._checkpointer is not None:
            self._writer.raise_failure()
            is_due = time.perf_counter() - self._saved_at >= self._checkpointer.save_every_s
            is_due = is_due and self._can_resume_here and not self._writer.busy
        if self._group.all_reduce_max(is_due) == [True]:
            self._save()

    def after_epoch(self, *, is_best: bool) -> None:
        """Save both files if the epoch is the best so far, else ``last`` as after a step.

        Raises:
            CheckpointSaveError: If an earlier save failed.
        """
        if is_best:
            self._save(with_best=True)
        else:
            self.after_step()
        if self._is_saved and not self._data.train.starts_anywhere:
            state = self._trainer.state_dict()  # collective, as in _save
            if self._checkpointer is not None:
                self._epoch_end = None if self._saved == self._position else snapshot(state)

    def stop(self, *, in_step: bool = False) -> str:
        """Save before the run is stopped.

        Args:
            in_step: Whether a step has failed, so that the state belongs to no step.

        Returns:
            A line for the user.

        Raises:
            CheckpointSaveError: If the save fails.
        """
        where = f"Stopped at epoch {self._state.epoch + 1} step {self._state.step}"
        if self._can_resume_here and not in_step:
            self._save()
        if self._checkpointer is None:
            return f"{where}; nothing is saved without a checkpointer"
        if self._can_resume_here and not in_step:
            self._writer.wait()
            return f"{where}; saved {self._checkpointer.last_path}"
        self._writer.wait()
        if self._epoch_end is not None:
            self._writer.put(last=partial(self._checkpointer.save_state, self._epoch_end))
            self._writer.wait()
        if not self._state.epoch:
            return f"{where}; nothing is saved, because an iterable resumes at the end of an epoch only"
        return f"{where}; it resumes at the end of epoch {self._state.epoch}, because an iterable resumes there only"

    def finish(self) -> None:
        """Save the end of the run, unless it is on the disk already.

        Raises:
            CheckpointSaveError: If the save fails.
        """
        if self._group.all_reduce_max(self._checkpointer is not None and self._saved != self._position) == [True]:
            self._save()
        if self._checkpointer is not None:
            self._writer.wait()
            self._write_best()

    @property
    def _position(self) -> tuple[int, int]:
        return self._state.epoch, self._state.global_step

    @property
    def _can_resume_here(self) -> bool:
        return self._data.train.starts_anywhere or not self._state.step

    def _save(self, *, with_best: bool = False) -> None:
        if not self._is_saved:
            return
        if self._checkpointer is not None and not with_best:
            self._writer.wait()  # a best epoch that waits must be written before a later `last`
        check_finite(self._trainer)
        state = self._trainer.state_dict()  # collective: it sums the running metrics of all processes
        if self._checkpointer is None:
            return
        jobs = {"last": self._after_copies(self._checkpointer.save_state, snapshot(state))}
        if with_best:
            weights, description = self._state.best.weights, self._describe_best()
            assert weights is not None  # a copy already, and replaced as a whole
            jobs["best"] = self._after_copies(self._checkpointer.save_best, weights, description)
            self._best_on_disk = description["selected_by"]  # or will be, or a failure is raised
        self._writer.put(**jobs)
        self._saved_at = time.perf_counter()
        self._saved = self._position

    def _after_copies(self, save: Callable[..., object], *content: Any) -> Callable[[], object]:
        """Return a job that waits for the copies on the device in a separate CUDA stream."""
        device = self._trainer.device
        if device.type != "cuda":
            return partial(save, *content)
        copied = torch.cuda.current_stream(device).record_event()

        def job() -> None:
            # The current stream of a new thread is the one that trains, which must not wait for these copies.
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            with torch.cuda.stream(stream):
                stream.wait_event(copied)
                save(*content)

        return job

    def _write_best(self) -> None:
        """Write the best weights unless they are on the disk; without validation, the weights of the model."""
        assert self._checkpointer is not None
        description = self._describe_best()
        selected_by = description["selected_by"]
        if self._best_on_disk == selected_by:
            return
        weights = self._state.best.weights or self._state.evaluated_weights
        if not _holds_best(self._checkpointer, selected_by, weights):
            self._checkpointer.save_best(weights, description)
        self._best_on_disk = selected_by

    def _describe_best(self) -> dict[str, Any]:
        """Return what a `Classifier` needs besides the weights."""
        trainer, checkpointer = self._trainer, self._checkpointer
        assert checkpointer is not None
        return {
            "model": describe_model(trainer.model),
            "preprocess": None if trainer.preprocess is None else asdict(trainer.preprocess),
            "classes": self._data.classes,
            "precision": trainer.precision.name,
            "selected_by": self._state.best.selected_by(last_epoch=self._state.epoch),
            "data": describe_data(self._data.train_data),
            "metadata": checkpointer.metadata,
        }


def _load_initial_weights(trainer: Trainer, path: Any) -> None:
    """Load the best weights of another run into the model of a new one.

    Args:
        trainer: Trainer that has not trained yet.
        path: Directory of a run, or its ``best.safetensors``.

    Raises:
        CheckpointError: If the file cannot be read or does not fit.
    """
    weights, _ = trainer.group.broadcast_from_first(lambda: load_best(path))
    load_weights(trainer.model, weights, source=str(path))


def _read_best_weights(trainer: Trainer, checkpointer: Checkpointer | None) -> bool:
    """Read the weights of the best epoch, if they are of the epoch in the state or of a better later one.

    A later one is there when the newest ``last`` was damaged and the one before it is resumed.

    Returns:
        Whether the best epoch has weights now.
    """
    best = trainer.state.best
    if checkpointer is None:
        return False
    try:
        weights, description = trainer.group.broadcast_from_first(checkpointer.read_best)
        found = description["selected_by"]
        later = BestEpoch.from_state_dict({**found, "epochs_since": 0})
    except (CheckpointNotFoundError, CheckpointCorruptError, KeyError, TypeError, ValueError):
        return False
    is_same = found == best.selected_by(last_epoch=0)
    if not is_same and not (later.monitor == best.monitor and is_better(best.monitor, later.value, best.value)):
        return False
    best.weights = {name: tensor.to(trainer.device) for name, tensor in weights.items()}
    best.epoch, best.value = later.epoch, later.value
    return True


def _holds_best(checkpointer: Checkpointer, selected_by: Mapping[str, Any], weights: Mapping[str, Tensor]) -> bool:
    """Return whether ``best`` on the disk holds these weights; a run can be killed before it writes them."""
    try:
        saved, description = checkpointer.read_best()
    except (CheckpointNotFoundError, CheckpointCorruptError):
        return False
    if description.get("selected_by") != selected_by or saved.keys() != weights.keys():
        return False
    return all(torch.equal(saved[name], tensor.cpu()) for name, tensor in weights.items())


def restore_run(
    trainer: Trainer,
    data: RunData,
    saver: CheckpointSaver,
    checkpointer: Checkpointer | None,
    *,
    resume: bool,
    init_from: Any,
    monitor: str,
) -> None:
    """Load the start of the run: a checkpoint, the weights of another run, or nothing.

    Raises:
        ResumeMismatchError: If the checkpoint is of another run.
        CheckpointError: If a file cannot be read.
        SettingError: If ``init_from`` is given to a trainer that has trained, or the processes have different settings.
    """
    state = trainer.state
    trainer.identity.check_processes(data)
    saved = saver.read(resume=resume)
    if saved is not None:
        saved = upgrade_from_format_1(saved)
        trainer.identity.check_loadable(saved)
        trainer.identity.check(saved, data)
        trainer.load_state_dict(saved)
    elif init_from is not None:
        if state.global_step:
            raise SettingError("init_from starts a new run, and this trainer has trained. Build a new Trainer")
        _load_initial_weights(trainer, init_from)
    trainer.identity.start(data, is_resumed=saved is not None)
    _check_position(state, data)
    _restore_best(trainer, checkpointer, monitor)
    state.put_last_weights()
    if trainer.ema is not None:
        trainer.ema.begin()
    saver.start()


def _check_position(state: TrainState, data: RunData) -> None:
    num_steps = data.train.num_steps
    if num_steps is not None and state.step > num_steps:
        raise ResumeMismatchError(
            f"The run has done {state.step} steps of an epoch, and the training data give {num_steps}. Continue it "
            "with the data that it was started with"
        )
    if state.epoch > data.max_epochs:
        raise ResumeMismatchError(
            f"The run has {state.epoch} epochs, and max_epochs is {data.max_epochs}. Use max_epochs={state.epoch} or "
            "more, or start a new run in another directory"
        )


def _restore_best(trainer: Trainer, checkpointer: Checkpointer | None, monitor: str) -> None:
    """Continue with the best epoch and its weights, or start a new selection."""
    state, fresh = trainer.state, BestEpoch(monitor)
    best = state.best
    if not best.epoch:
        if best.monitor == monitor:
            fresh.epochs_since = best.epochs_since  # epochs that were not finite count for patience
        state.best = fresh
        return
    if best.monitor != monitor:
        raise ResumeMismatchError(
            f"The run is selected by {best.monitor}, not by {monitor}. Use monitor={best.monitor!r}"
        )
    if best.weights is not None:
        return
    if best.epoch == state.epoch and state.step == 0:
        best.keep(state.evaluated_weights)
    elif not _read_best_weights(trainer, checkpointer):
        warnings.warn(
            f"The weights of epoch {best.epoch}, the best so far, are missing. The best epoch is chosen among the "
            "epochs to come",
            CheckpointWarning,
            stacklevel=4,
        )
        state.best = fresh
