"""Checkpoint files, read with a bound: never mapped into memory, never larger than they said they were."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from cifarnet._files import to_path
from cifarnet._types import Json
from cifarnet.checkpoint.codec import unflatten
from cifarnet.checkpoint.format import Checkpoint, load_tensors, parse_metadata
from cifarnet.checkpoint.layout import HEAD_BYTES, corrupt, header_end, parse_layout
from cifarnet.errors import CheckpointCorruptError, CheckpointError, CheckpointMismatchError, CheckpointNotFoundError

__all__ = ["MAX_FILE_BYTES", "load_best", "read_checkpoint", "read_state"]

#: A 6.4-million-parameter network with Adam's moments takes 77 MB; this is far beyond any use here.
MAX_FILE_BYTES = 16 * 2**30


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read and verify a checkpoint file.

    The header and the metadata are checked against the file's size before the tensors are read, and each
    tensor's bytes are read once and hashed once. ``load_file`` of safetensors maps the file instead, and dies
    by SIGBUS if it is cut in the meantime.

    Args:
        path: A file that `Checkpointer` wrote.

    Returns:
        What it holds.

    Raises:
        CheckpointNotFoundError: If there is no such file.
        CheckpointCorruptError: If it is not what was saved, or changes while it is read.
        CheckpointVersionError: If a newer cifarnet wrote it.
        UnsafeCheckpointError: If it is a pickle in any of its wrappings.
        CheckpointError: If it cannot be read, or is no regular file.
    """
    path = to_path(path)
    try:
        # Without O_NONBLOCK, opening a named pipe waits for a writer for ever.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with open(path, "rb", opener=lambda file, _: os.open(file, flags)) as file:
            return _read(file, str(path))
    except FileNotFoundError:
        raise CheckpointNotFoundError(
            f"no checkpoint at {path}; check the path, or train first with checkpointer=Checkpointer(...)"
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    message = f"cannot read {path}: {error.strerror or error}; check the path, its permissions and the disk"
    return CheckpointCorruptError(message) if error.errno == errno.EIO else CheckpointError(message)


def _read(file: BinaryIO, name: str) -> Checkpoint:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{name} is not a regular file; a checkpoint is a file named *.safetensors")
    size = status.st_size
    if size > MAX_FILE_BYTES:
        raise corrupt(f"{name} is {size:,} bytes, more than the {MAX_FILE_BYTES:,} that a checkpoint may have")
    head = file.read(HEAD_BYTES)
    head += file.read(max(0, header_end(head, size, name=name) - len(head)))
    layout = parse_layout(head, size, name=name)
    metadata = parse_metadata(layout.metadata, name=name)
    file.seek(0)  # the header is read twice, so that the tensors need no second copy in memory
    content = file.read(size + 1)
    if len(content) != size or not content.startswith(head):
        raise CheckpointCorruptError(f"{name} changed while it was read; is another process writing it?")
    return Checkpoint(metadata.kind, load_tensors(content, layout, metadata, name=name), metadata.values)


def load_best(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the weights of a run and what was written about them.

    Args:
        path: A run's directory, or a file that `Checkpointer.save_best` wrote.

    Returns:
        The weights by name, on the CPU, and the description.

    Raises:
        CheckpointNotFoundError: If there is no such file.
        CheckpointMismatchError: If it is a checkpoint of another kind.
        CheckpointCorruptError: If it is not what was saved.
        CheckpointVersionError: If a newer cifarnet wrote it.
        UnsafeCheckpointError: If it is a pickle in any of its wrappings.
    """
    path = to_path(path)
    file = path / "best.safetensors" if os.path.isdir(path) else path
    checkpoint = _read_kind(file, "best")
    return checkpoint.tensors, _unflatten({}, checkpoint.values, file)


def read_state(path: Path) -> dict[str, Any]:
    """Read the state that `Checkpointer.save` wrote.

    Args:
        path: A file of kind ``"last"``.

    Returns:
        The state, tensors on the CPU.

    Raises:
        CheckpointError: As `load_best` does.
    """
    checkpoint = _read_kind(path, "last")
    return _unflatten(checkpoint.tensors, checkpoint.values, path)


def _read_kind(path: Path, kind: str) -> Checkpoint:
    checkpoint = read_checkpoint(path)
    if checkpoint.kind != kind:
        raise CheckpointMismatchError(
            f'{path} is a checkpoint of kind "{checkpoint.kind}", needed is "{kind}"; best.safetensors holds the '
            "weights to use, last.safetensors the state to resume"
        )
    return checkpoint


def _unflatten(tensors: Mapping[str, Tensor], values: Json, path: Path) -> dict[str, Any]:
    try:
        state = unflatten(tensors, values)
        if not isinstance(state, dict):
            raise ValueError("its values are no dictionary")
    except ValueError as error:
        raise corrupt(f'{path}: metadata key "cifarnet": {error}') from None
    return state
