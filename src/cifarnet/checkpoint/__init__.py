"""Checkpoints that cannot be lost and cannot execute code: the format, the files of a run, and loading them."""

from cifarnet.checkpoint.checkpointer import Checkpointer, Stateful
from cifarnet.checkpoint.reading import load_best, read_checkpoint
from cifarnet.checkpoint.restore import load_optimizer, load_weights

__all__ = [
    "Checkpointer",
    "Stateful",
    "load_best",
    "load_optimizer",
    "load_weights",
    "read_checkpoint",
]
