"""Checkpoints that cannot be lost and cannot execute code: the format, the files of a run, and loading them."""

from cifarnet.checkpoint.background import BackgroundWriter, snapshot
from cifarnet.checkpoint.checkpointer import Checkpointer, Stateful
from cifarnet.checkpoint.description import Description, checked_notes, parse_description
from cifarnet.checkpoint.reading import load_best, read_checkpoint
from cifarnet.checkpoint.restore import (
    OPTIMIZER_FLAGS,
    check_weights,
    follow_weights,
    load_optimizer,
    load_weights,
    unwrapped_state_dict,
)

__all__ = [
    "OPTIMIZER_FLAGS",
    "BackgroundWriter",
    "Checkpointer",
    "Description",
    "Stateful",
    "check_weights",
    "checked_notes",
    "follow_weights",
    "load_best",
    "load_optimizer",
    "load_weights",
    "parse_description",
    "read_checkpoint",
    "snapshot",
    "unwrapped_state_dict",
]
