"""Checkpoint files, written so that a failure is loud and costs nothing that was there before."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cifarnet._files import probe_write, remove_unfinished, write_atomic
from cifarnet.errors import CheckpointSaveError, RunDirectoryBusyError

__all__ = ["make_directory", "probe_directory", "sweep_directory", "write_checkpoint"]

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def make_directory(directory: Path, acquire: Callable[[], None]) -> None:
    """Create a run's directory and take its lock.

    Raises:
        RunDirectoryBusyError: If another process has the lock.
        CheckpointSaveError: If the directory cannot be created or written.
    """
    with _save_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        acquire()


def probe_directory(path: Path) -> None:
    """Find out whether a checkpoint could be written to ``path``.

    Raises:
        CheckpointSaveError: If it could not.
    """
    with _save_errors(path.parent):
        probe_write(path)


def sweep_directory(*paths: Path) -> int:
    """Remove the unfinished files that a killed process left beside ``paths``; how many there were.

    Raises:
        CheckpointSaveError: If they cannot be removed.
    """
    with _save_errors(paths[0].parent):
        return sum(map(remove_unfinished, paths))


@contextmanager
def _save_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except RunDirectoryBusyError:
        raise
    except OSError as error:
        reason = f"cannot write to {directory}: {error.strerror or error}"
        raise _with_errno(f"{reason}; choose another directory or change its permissions", error) from error


def write_checkpoint(path: Path, content: bytes, *, previous: Path | None = None) -> None:
    """Replace a checkpoint file in one step, or raise and leave it as it was.

    Args:
        path: Where it goes; the directory is created.
        content: What `cifarnet.checkpoint.format.encode` gave.
        previous: A name in the same directory under which the old file stays.

    Raises:
        CheckpointSaveError: If it cannot be written; ``errno`` says why.
    """
    existed = os.path.exists(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content, previous=previous)
    except OSError as error:
        raise _save_error(error, path, len(content), existed=existed) from error


def _save_error(error: OSError, path: Path, num_bytes: int, *, existed: bool) -> CheckpointSaveError:
    reason = error.strerror or str(error)
    if error.errno in _NO_SPACE:
        place = next(parent for parent in path.absolute().parents if parent.exists())
        reason = f"needs {_size(num_bytes)}, {_size(shutil.disk_usage(place).free)} free in {path.parent} ({reason})"
    kept = "the previous checkpoint is intact" if existed else "there was none before"
    return _with_errno(f"cannot write {path}: {reason}; {kept}. Free some space or choose another directory", error)


def _with_errno(message: str, error: OSError) -> CheckpointSaveError:
    raised = CheckpointSaveError(message)
    raised.errno = error.errno  # given to the constructor, it would stand in front of the message
    return raised


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:,.1f} kB"
