"""Stopping a run from outside, between two steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from cifarnet.engine import Batch, OrderedBatches, Ranks

__all__ = ["StopRequestedError", "StopSignals", "WatchedBatches"]


class StopRequestedError(Exception):
    """A signal asked for the end of the run; it passes from the loop to `Trainer.fit` and no further."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        #: What `fit` raises in its place: what the signal would have raised, or the exit code that shells give it.
        self.outcome: BaseException = KeyboardInterrupt() if signum == signal.SIGINT else SystemExit(128 + signum)


class StopSignals:
    """Within the block, Ctrl-C and SIGTERM wait for the end of a step; the second one acts at once.

    Handlers that somebody else has installed are left alone, and so is everything outside the main thread, which
    is the one that signals go to.

    Args:
        ranks: Of the processes that stop together, whichever of them is told to.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self._ranks = Ranks() if ranks is None else ranks
        self._requested: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self._pid = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for signum, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
                if signal.getsignal(signum) is usual:
                    self._before[signum] = signal.signal(signum, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        if self._requested is not None and (error is None or isinstance(error, Exception)):
            # It came after the last check, or the step that it waited for has failed: late, but not lost.
            raise StopRequestedError(self._requested).outcome from error

    def _request(self, signum: int, frame: FrameType | None) -> None:
        forked = os.getpid() != self._pid  # a worker has copied the handlers, but has no step to finish
        if forked or self._requested is not None:
            self._restore()
            signal.raise_signal(signum)
        self._requested = signum

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    @property
    def requested(self) -> StopRequestedError | None:
        """What `check` would raise."""
        return None if self._requested is None else StopRequestedError(self._requested)

    def check(self) -> None:
        """Called where the run may stop, by all processes at the same place.

        Raises:
            StopRequestedError: If it shall.
        """
        [signum] = self._ranks.most(self._requested or 0)
        if signum:
            raise StopRequestedError(signum)


class WatchedBatches:
    """Batches for evaluation, with a look at the signals before each.

    Args:
        batches: Those to evaluate.
        check: Raises where the run shall stop.
    """

    def __init__(self, batches: OrderedBatches, check: Callable[[], None]) -> None:
        self._batches = batches
        self._check = check

    def in_order(self) -> Iterator[Batch]:
        """Every image once."""
        for batch in self._batches.in_order():
            self._check()
            yield batch
