"""Checkpoints that cannot be lost and cannot execute code: the file format, the files of a run, and loading them."""

from cifarnet.checkpoint.checkpointer import Checkpointer, Stateful
from cifarnet.checkpoint.file import load_best, read_checkpoint

__all__ = ["Checkpointer", "Stateful", "load_best", "read_checkpoint"]
