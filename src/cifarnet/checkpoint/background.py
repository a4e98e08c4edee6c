"""Saving beside the training: a copy of the state, and a thread that writes it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cifarnet.errors import CheckpointSaveError

__all__ = ["BackgroundWriter", "snapshot"]


def snapshot(state: Any) -> Any:
    """Copy a nested state on the device of its tensors, so that training may change the original at once.

    Args:
        state: Nested dictionaries, lists and tuples; of other values, tensors are copied and the rest is kept.

    Returns:
        The same with tensors of its own, in the same memory format; on the CPU where the device has no room.
    """
    if isinstance(state, Tensor):
        try:
            return state.detach().clone()
        except torch.OutOfMemoryError:
            return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: snapshot(value) for key, value in state.items()}
    if isinstance(state, list):
        return [snapshot(value) for value in state]
    if isinstance(state, tuple):
        return tuple(snapshot(value) for value in state)
    return state


class BackgroundWriter:
    """Runs jobs in one thread. Of jobs with one name that wait, only the newest is run.

    A job that fails is told to the thread that trains, by its next call; no job is run after it.

    Args:
        order: The names that jobs may have. Of those that wait, the first in this order is run first.

    Raises:
        CheckpointSaveError: If the system has no thread to give.
    """

    def __init__(self, *order: str) -> None:
        self._order = order
        self._waiting: dict[str, Callable[[], object]] = {}
        self._running = False
        self._closed = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._at_end: Callable[[], object] = lambda: None
        # A daemon: a process that is told twice to end must not wait for a disk. A save that it cuts is swept.
        self._thread = threading.Thread(target=self._work, name="cifarnet-save", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise CheckpointSaveError(f"no thread to save in ({error}); raise the limit on threads") from error

    @property
    def busy(self) -> bool:
        """Whether a job runs or waits."""
        with self._changed:
            return self._running or bool(self._waiting)

    def put(self, **jobs: Callable[[], object]) -> None:
        """Run jobs as soon as may be, in the place of those of the same names that still wait.

        Args:
            jobs: What to run, by name; the names are those of ``order``.

        Raises:
            BaseException: What an earlier job raised.
        """
        assert set(jobs) <= set(self._order)
        self.raise_failure()
        with self._changed:
            self._waiting.update(jobs)
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until no job runs or waits.

        Raises:
            BaseException: What a job raised.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._running and not self._waiting)
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise what a job raised, once."""
        with self._changed:
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Run what waits, and end the thread.

        Raises:
            BaseException: What a job raised.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self.raise_failure()

    def abandon(self, then: Callable[[], object]) -> None:
        """Drop what waits, and do not wait for the job that runs.

        Args:
            then: Run when it has ended; in its thread.
        """
        with self._changed:
            self._waiting.clear()
            self._at_end = then
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        try:
            self._run_jobs()
        finally:
            self._at_end()

    def _run_jobs(self) -> None:
        while True:
            with self._changed:
                self._running = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                name = min(self._waiting, key=self._order.index)
                job = self._waiting.pop(name)
                self._running = True
            try:
                job()
            except BaseException as error:
                with self._changed:
                    self._failure = error
                    self._waiting.clear()
            del job  # and with it the copy of the state
