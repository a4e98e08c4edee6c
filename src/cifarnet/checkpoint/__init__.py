"""Checkpoints that cannot be lost and cannot execute code: the file format, the files of a run, and loading them."""

from cifarnet.checkpoint.checkpointer import Checkpointer, Stateful
from cifarnet.checkpoint.file import load_best, read_checkpoint
from cifarnet.checkpoint.state_dict import load_optimizer, load_weights

__all__ = ["Checkpointer", "Stateful", "load_best", "load_optimizer", "load_weights", "read_checkpoint"]
