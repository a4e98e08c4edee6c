"""One bar on a terminal or in a notebook, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import NoReturn

from tqdm.auto import tqdm

from cifarnet.engine import RunningSums
from cifarnet.history import EpochRecord
from cifarnet.trainer.plan import Plan

__all__ = ["Progress"]

#: Reading the sums waits for the device, so the bar does it five times a second at most.
_MIN_INTERVAL_S = 0.2


class Progress:
    """Shows how far a run is.

    Args:
        plan: How far the run goes.
        epoch: Epochs done before.
        step: Steps done before, of the epoch begun.
        enabled: Otherwise nothing is shown.
    """

    def __init__(self, plan: Plan, *, epoch: int, step: int, enabled: bool) -> None:
        self._enabled = enabled
        self._max_epochs = plan.max_epochs
        self._num_steps = plan.train.num_steps
        self._shown_at = time.perf_counter()
        self._bar: tqdm[NoReturn] | None = None
        if enabled and (sys.stderr.isatty() or "ipykernel" in sys.modules):
            num_steps = plan.train.num_steps
            self._bar = tqdm(
                total=None if num_steps is None else plan.max_epochs * num_steps,
                initial=0 if num_steps is None else epoch * num_steps + step,
                unit="step",
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def show_step(self, epoch: int, step: int, sums: RunningSums, train_s: float) -> None:
        """Move the bar, at most five times a second.

        Args:
            epoch: Counted from 0.
            step: How many of its steps are done.
            sums: Of this epoch.
            train_s: Seconds trained in this epoch.
        """
        now = time.perf_counter()
        if self._bar is None or now - self._shown_at < _MIN_INTERVAL_S:
            return
        self._shown_at = now
        totals = sums.read()
        rate = totals.num_images / train_s if train_s > 0 else 0.0
        self._bar.set_description_str(f"epoch {epoch + 1}/{self._max_epochs}", refresh=False)
        self._bar.set_postfix_str(
            f"{rate:,.0f} images/s, loss {totals.mean_loss:.4f}, accuracy {totals.accuracy:.2%}", refresh=False
        )
        done = step if self._num_steps is None else epoch * self._num_steps + step
        self._bar.n = done
        self._bar.refresh()

    def show_epoch(self, record: EpochRecord) -> None:
        """Leave a line about an epoch that is done."""
        if self._bar is not None and self._num_steps is not None:
            self._bar.n = record.epoch * self._num_steps
        self.show_line(f"{record} ({record.epoch}/{self._max_epochs})")

    def show_line(self, line: str) -> None:
        """Leave a line."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        elif self._enabled:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
