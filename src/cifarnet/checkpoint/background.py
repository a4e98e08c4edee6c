"""Background saving: a copy of the state, and a thread that writes it."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["BackgroundWriter", "snapshot"]


def snapshot(state: Any) -> Any:
    """Copy the tensors of a nested state on their device, so that training can change the originals at once.

    Args:
        state: Nested dictionaries, lists and tuples of tensors and plain values.

    Returns:
        The same state with copied tensors, in the same memory format. If the device has no memory left, a tensor is
        copied to the CPU.
    """
    if isinstance(state, Tensor):
        try:
            return state.detach().clone()
        except torch.OutOfMemoryError:
            return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: snapshot(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        items = [snapshot(value) for value in state]
        return items if isinstance(state, list) else tuple(items)
    return state


class BackgroundWriter:
    """Thread that runs named jobs. Among waiting jobs of the same name, only the newest runs.

    A failed job is re-raised in the training thread on the next call, and later jobs are discarded.

    Args:
        order: Names of jobs. The first waiting one in this order runs first.
    """

    def __init__(self, *order: str) -> None:
        self._order = order
        self._waiting: dict[str, Callable[[], object]] = {}
        self._running = False
        self._closed = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._at_end: Callable[[], object] = lambda: None
        # Daemon thread: a second Ctrl-C must not wait for a slow disk.
        self._thread = threading.Thread(target=self._work, name="cifarnet-save", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """``True`` if a job runs or waits."""
        with self._changed:
            return self._running or bool(self._waiting)

    def put(self, **jobs: Callable[[], object]) -> None:
        """Run jobs as soon as possible. A job replaces a waiting one of the same name.

        Args:
            jobs: Functions by name. The names are those of ``order``.

        Raises:
            BaseException: If an earlier job failed, its exception.
        """
        self.raise_failure()
        with self._changed:
            self._waiting.update(jobs)
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until no job runs or waits.

        Raises:
            BaseException: If a job failed, its exception.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._running and not self._waiting)
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise the exception of a failed job, once."""
        with self._changed:
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Run the waiting jobs, then end the thread.

        Raises:
            BaseException: If a job failed, its exception.
        """
        self._end()
        self._thread.join()
        self.raise_failure()

    def abandon(self, then: Callable[[], object]) -> None:
        """Discard the waiting jobs and return at once, while the running job continues.

        Args:
            then: Function that the thread calls when the running job has ended.
        """
        with self._changed:
            self._at_end = then
            self._waiting.clear()
            self._end()
        # Python aborts if it ends while a daemon thread is in C++ code. A write of 77 MB takes about 0.5 s.
        atexit.register(self._thread.join, 2.0)

    def _end(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                job()
            except BaseException as error:
                with self._changed:
                    self._failure = error
                    self._waiting.clear()
            del job  # frees the copy of the state
        self._at_end()

    def _next(self) -> Callable[[], object] | None:
        """Wait for the next job; ``None`` if the writer is closed and no job waits."""
        with self._changed:
            self._running = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            self._running = True
            return self._waiting.pop(min(self._waiting, key=self._order.index))
