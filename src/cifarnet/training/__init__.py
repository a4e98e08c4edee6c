"""Trainer, its training loop, and the history of a run."""

from __future__ import annotations

from cifarnet.training.history import EpochRecord, History
from cifarnet.training.trainer import Trainer

__all__ = ["EpochRecord", "History", "Trainer"]
