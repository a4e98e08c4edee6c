"""`Trainer`: the loop, and what `fit` adds to it."""

from __future__ import annotations

from cifarnet.trainer.trainer import Trainer

__all__ = ["Trainer"]
