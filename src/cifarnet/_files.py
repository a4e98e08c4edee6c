"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

__all__ = ["TEMPORARY_SUFFIX", "write_atomic"]

#: How the names of unfinished files end, so that a sweep can tell them from everything else.
TEMPORARY_SUFFIX = ".tmp"


def write_atomic(path: Path, content: bytes, *, previous: Path | None = None) -> None:
    """Replace ``path`` by ``content`` so that a reader sees the old file or the new one, never a part.

    The content goes to a temporary name in the same directory, is forced to the disk, and is renamed over
    ``path``; the directory is forced to the disk too. On any failure the temporary file is removed and the
    old file is what it was.

    Args:
        path: Where the file goes; its directory must exist.
        content: Every byte of it.
        previous: A name in the same directory under which the old file, if there is one, stays available.

    Raises:
        OSError: If the directory is not writable or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("xb") as file:  # created with the umask's mode, unlike mkstemp's 0600
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _hard_link(path, previous)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _hard_link(path: Path, link: Path) -> None:
    """Make ``link`` a second name of the file ``path``; ``link`` is replaced in one step, not removed first."""
    temporary = link.with_name(f".{link.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    os.link(path, temporary)
    os.replace(temporary, link)
    temporary.unlink(missing_ok=True)  # rename(2) keeps both names where they already were one file


def _sync_directory(directory: Path) -> None:
    """Force a rename to the disk, where the platform lets a directory be opened (POSIX)."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
