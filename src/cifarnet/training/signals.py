"""Signals that end a run between two steps: Ctrl-C, SIGTERM, SIGHUP and SIGUSR1."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from cifarnet.training.distributed import ProcessGroup

#: Signals that end a run, each with its default handler. A lost terminal sends SIGHUP, and a scheduler may send SIGUSR1
#: before the time of a job is over. Windows has neither.
_SIGNALS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL} | {
    getattr(signal, name): signal.SIG_DFL for name in ("SIGHUP", "SIGUSR1") if hasattr(signal, name)
}

__all__ = ["GracefulShutdown", "StopRequestedError"]

T = TypeVar("T")


class StopRequestedError(Exception):
    """A signal that asked for the end of the run. It does not leave `cifarnet.training.loop`."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        #: Exception that training ends with: that of the signal, or the exit code that shells give it.
        self.outcome: BaseException = KeyboardInterrupt() if signum == signal.SIGINT else SystemExit(128 + signum)


class GracefulShutdown:
    """Signal handlers that let the current step end; a second signal acts at once.

    Handlers that the caller has installed are left alone. Outside the main thread, which receives the signals, this
    class does nothing.

    Args:
        group: Processes that stop together.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group
        #: Exception that `check` raises, once a signal has arrived.
        self.requested: StopRequestedError | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> GracefulShutdown:
        self._pid = os.getpid()
        self._install()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._restore()
        if self.requested is not None and (error is None or isinstance(error, Exception)):
            # The signal arrived after the last check, or the step failed. Raise it now so that it is not lost.
            raise self.requested.outcome from error

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Give the caller's handlers back for the block: the body of the caller's loop."""
        self._restore()
        try:
            yield
        finally:
            self._install()

    def _install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum, usual in _SIGNALS.items():
                if signal.getsignal(signum) is usual:
                    self._before[signum] = signal.signal(signum, self._request)

    def _request(self, signum: int, frame: FrameType | None) -> None:
        is_forked = os.getpid() != self._pid  # a DataLoader worker inherits the handlers and has no step to end
        if is_forked or self.requested is not None:
            self._restore()
            signal.raise_signal(signum)
        self.requested = StopRequestedError(signum)

    def _restore(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._before.items():
                signal.signal(signum, handler)
            self._before.clear()

    def checked(self, steps: Iterable[T]) -> Iterator[T]:
        """Yield steps or batches, and stop after the current one if a signal has arrived. Collective, as `check` is.

        Raises:
            StopRequestedError: If a signal has arrived.
        """
        for step in steps:
            yield step
            self.check()

    def check(self) -> None:
        """Stop here if a signal has arrived in any process. All processes call this at the same place.

        Raises:
            StopRequestedError: If a signal has arrived.
        """
        [signum] = self._group.all_reduce_max(0 if self.requested is None else self.requested.signum)
        if signum:
            raise StopRequestedError(signum)
