"""Saving of a run in a background thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from cifarnet.checkpoint.background import BackgroundWriter, snapshot
from cifarnet.checkpoint.checkpointer import encode_state
from cifarnet.checkpoint.state_tree import flatten
from cifarnet.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    CifarnetError,
    NonFiniteError,
)
from cifarnet.inference.open_data import describe_data
from cifarnet.models.registry import describe_model
from cifarnet.training.state import check_finite

if TYPE_CHECKING:
    from cifarnet.training.run_settings import RunSettings
    from cifarnet.training.trainer import Trainer

__all__ = ["CheckpointSaver"]


class CheckpointSaver:
    """Context manager that saves a run while it trains: ``last`` by time, ``best`` when an epoch improves.

    Training only copies the state between two steps; a thread writes it. ``last`` is always written first, so that
    ``best`` on the disk is never ahead of the run. Within the block, no other process writes the directory.

    With several processes, rank 0 writes and all of them check that the state is finite.

    Args:
        trainer: Trainer whose state is saved.
        run: Checkpointer and data of the run.
    """

    def __init__(self, trainer: Trainer, run: RunSettings) -> None:
        self._trainer = trainer
        self._run = run
        self._group = trainer.group
        self._checkpointer = run.checkpointer if self._group.rank == 0 else None
        self._saved_at = time.perf_counter()
        self._saved: tuple[int, int] | None = None  # epoch and global step of the newest save, started or done

    def __enter__(self) -> CheckpointSaver:
        self._group.broadcast_from_first(self._enter)
        return self

    def _enter(self) -> None:
        if self._checkpointer is not None:
            self._checkpointer.__enter__()
            self._writer = BackgroundWriter("last", "best")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
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
        if isinstance(error, NonFiniteError) or type(error) is CifarnetError:  # itself for a lost process
            last, previous = self._checkpointer.last_path, self._checkpointer.previous_path
            good = last if self._checkpointer.last_is_sound else previous
            if good.exists():
                error.args = (f"{error}. Last good checkpoint: {good}",)

    def read(self) -> Mapping[str, Any] | None:
        """Return the state to resume from, in rank 0; ``None`` if there is no run yet.

        Raises:
            CheckpointError: If there is a run and ``resume`` is ``False``, or the state cannot be read.
        """
        checkpointer = self._checkpointer
        if checkpointer is None or not checkpointer.exists():
            return None
        if not self._run.resume:
            raise CheckpointError(
                f"{checkpointer.directory} holds a run. Continue it with resume=True (--resume), or choose another "
                "directory"
            )
        state: Mapping[str, Any] | None = checkpointer.read_last()
        if state is None:
            raise CheckpointNotFoundError(
                f"{checkpointer.directory} holds best.safetensors but no last.safetensors to resume from. Start a new "
                f"run from its weights with init_from={str(checkpointer.directory)!r}"
            )
        return state

    def start(self) -> None:
        """Prepare the first save, and write a best epoch that was found but not written when the run was killed.

        Raises:
            SettingError: If the state holds a value that cannot be saved.
        """
        if self._run.checkpointer is None:
            return
        state = self._trainer.state_dict()  # collective, as in _save
        if self._checkpointer is None:
            return
        if not self._trainer.global_step:  # before work can be lost
            encode_state(state)
            flatten(self._describe_best())
        elif self._checkpointer.last_is_sound:
            self._saved = self._position
        if self._trainer.best.weights is not None:
            self._write_best()

    def after_step(self) -> None:
        """Save ``last`` if ``save_every_s`` has passed and the previous save is complete.

        Raises:
            CheckpointError: If an earlier save failed.
        """
        if self._run.checkpointer is None:
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

        A run that can only be resumed at the end of an epoch saves ``last`` there always.

        Raises:
            CheckpointError: If an earlier save failed.
        """
        if is_best or not self._run.train.starts_anywhere:
            self._save(with_best=is_best)
        else:
            self.after_step()

    def stop(self, *, in_step: bool = False) -> str:
        """Save before the run is stopped.

        Args:
            in_step: Whether a step has failed, so that the state belongs to no step.

        Returns:
            A line for the user.

        Raises:
            CheckpointError: If the save fails.
        """
        state, can_save = self._trainer.state, self._can_resume_here and not in_step
        where = f"Stopped at epoch {state.epoch + 1} step {state.step}"
        if can_save:
            self._save()
        if self._checkpointer is None:
            return f"{where}; nothing is saved without a checkpointer"
        self._writer.wait()
        if can_save:
            return f"{where}; saved {self._checkpointer.last_path}"
        return f"{where}; it resumes at the end of epoch {state.epoch}, because an iterable resumes there only"

    def finish(self) -> None:
        """Save the end of the run, unless it is on the disk already.

        Raises:
            CheckpointError: If the save fails.
        """
        if self._group.all_reduce_max(self._checkpointer is not None and self._saved != self._position) == [True]:
            self._save()
        if self._checkpointer is not None:
            self._writer.wait()
            if not self._trainer.best.epoch:
                self._write_best()

    @property
    def _position(self) -> tuple[int, int]:
        return self._trainer.state.epoch, self._trainer.global_step

    @property
    def _can_resume_here(self) -> bool:
        return self._run.train.starts_anywhere or not self._trainer.state.step

    def _save(self, *, with_best: bool = False) -> None:
        if self._run.checkpointer is None:
            return
        if self._checkpointer is not None and not with_best:
            self._writer.wait()  # a best epoch that waits must be written before a later `last`
        check_finite(self._trainer)
        state = self._trainer.state_dict()  # collective: it sums the running metrics of all processes
        if self._checkpointer is None:
            return
        jobs = {"last": self._after_copies(self._checkpointer.save_state, snapshot(state))}
        if with_best:
            weights = self._trainer.best.weights
            assert weights is not None  # a copy already, and replaced as a whole
            jobs["best"] = self._after_copies(self._checkpointer.save_best, weights, self._describe_best())
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
        """Write the best weights, without validation the evaluated ones, unless the file on the disk holds them."""
        assert self._checkpointer is not None
        state, description = self._trainer.state, self._describe_best()
        weights = state.best.weights or state.evaluated_weights
        with suppress(CheckpointNotFoundError, CheckpointCorruptError):
            saved, found = self._checkpointer.read_best()
            is_same = found.get("selected_by") == description["selected_by"] and saved.keys() == weights.keys()
            if is_same and all(torch.equal(saved[name], tensor.cpu()) for name, tensor in weights.items()):
                return  # the file may have a temperature from `Classifier.save`
        self._checkpointer.save_best(weights, description)

    def _describe_best(self) -> dict[str, Any]:
        """Return what a `Classifier` needs besides the weights."""
        trainer = self._trainer
        assert self._checkpointer is not None
        return {
            "model": describe_model(trainer.model),
            "preprocess": None if trainer.preprocess is None else asdict(trainer.preprocess),
            "classes": self._run.classes,
            "precision": trainer.precision.name,
            "selected_by": trainer.best.selected_by(last_epoch=trainer.state.epoch),
            "data": describe_data(self._run.train_data),
            "metadata": self._checkpointer.metadata,
        }
