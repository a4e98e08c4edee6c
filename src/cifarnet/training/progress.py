"""Progress bar on a terminal or in a notebook, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from tqdm.auto import tqdm

from cifarnet._console import write_line
from cifarnet.inference.device import describe_device
from cifarnet.training.history import EpochRecord

if TYPE_CHECKING:
    from cifarnet.training.run_settings import RunSettings
    from cifarnet.training.trainer import Trainer

__all__ = ["Progress"]

#: Reading the running metrics synchronizes with the device, so the bar does it at most five times a second.
_MIN_INTERVAL_S = 0.2


class Progress:
    """Context manager that shows the progress of a run. If the display fails, training continues without it.

    Args:
        trainer: Trainer of the run.
        run: Length of the run.
        enabled: Whether anything is shown. Rank 0 alone shows it.
    """

    def __init__(self, trainer: Trainer, run: RunSettings, *, enabled: bool) -> None:
        self._trainer, self._run = trainer, run
        self._enabled = enabled and trainer.group.rank == 0
        self._shown_at = time.perf_counter()
        self._bar: tqdm[NoReturn] | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        with self._safely():
            if self._bar is not None:
                self._bar.close()

    @contextmanager
    def _safely(self) -> Iterator[None]:
        """Turn the display off if the block fails, for example because the terminal was closed."""
        try:
            yield
        except Exception:
            self._bar, self._enabled = None, False

    def start(self) -> None:
        """Open the bar, and show a line about the run."""
        trainer, run, best = self._trainer, self._run, self._trainer.best
        with self._safely():
            if self._enabled and (sys.stderr.isatty() or "ipykernel" in sys.modules):
                self._bar = tqdm(
                    total=None if run.train.num_steps is None else run.max_epochs * run.train.num_steps,
                    initial=self._position,
                    unit="step",
                    dynamic_ncols=True,
                    bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
                )
        done = f"({trainer.state.epoch}/{run.max_epochs})"
        if trainer.state.epoch >= run.max_epochs:
            line = f"Run already finished {done}"
        elif best.is_stale(run.patience):
            line = f"Run already finished: the best {best.monitor} was {best.epochs_since} epochs ago {done}"
        else:
            graph = ", CUDA graph" if trainer.uses_cuda_graph else ""
            processes = f", {trainer.group.world_size} processes" if trainer.group.world_size > 1 else ""
            line = f"Training on {describe_device(trainer.device)}, {trainer.precision.name}{graph}{processes}"
        self.show_line(line)

    @property
    def _position(self) -> int:
        state, num_steps = self._trainer.state, self._run.train.num_steps
        return state.step if num_steps is None else state.epoch * num_steps + state.step

    def show_step(self) -> None:
        """Move the bar, at most five times a second."""
        now, state = time.perf_counter(), self._trainer.state
        if self._bar is None or now - self._shown_at < _MIN_INTERVAL_S:
            return
        self._shown_at = now
        totals = state.metrics.read()  # of this process
        num_images = totals.num_images * self._trainer.group.world_size
        rate = num_images / state.train_s if state.train_s > 0 else 0.0
        with self._safely():
            self._bar.set_description_str(f"epoch {state.epoch + 1}/{self._run.max_epochs}", refresh=False)
            self._bar.set_postfix_str(
                f"{rate:,.0f} images/s, loss {totals.mean_loss:.4f}, accuracy {totals.accuracy:.2%}", refresh=False
            )
            self._bar.n = self._position
            self._bar.refresh()

    def show_epoch(self, record: EpochRecord) -> None:
        """Leave a line about a completed epoch."""
        if self._bar is not None and self._run.train.num_steps is not None:
            self._bar.n = self._position
        self.show_line(f"{record} ({record.epoch}/{self._run.max_epochs})")

    def show_line(self, line: str) -> None:
        """Leave a line."""
        with self._safely():
            if self._bar is not None:
                self._bar.write(line, file=sys.stderr)
            elif self._enabled:
                write_line(line)
