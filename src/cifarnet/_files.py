"""Atomic writes of files, and paths with ``~``."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from pathlib import Path

from cifarnet.errors import SettingError

__all__ = ["TEMPORARY_SUFFIX", "check_target", "probe_write", "remove_unfinished", "to_path", "write_atomic"]

#: How the names of unfinished files end, so that a sweep can tell them from everything else.
TEMPORARY_SUFFIX = ".tmp"

_RANDOM_BYTES = 8


def to_path(path: str | os.PathLike[str]) -> Path:
    """Expand ``~`` in a path of the user. A user without a home directory keeps it.

    Example:
        >>> to_path("runs/a")
        PosixPath('runs/a')
    """
    with contextlib.suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


def check_target(path: str | Path, suffix: str, *, name: str = "model") -> Path:
    """Refuse a place where a file cannot go, before anything is computed.

    Args:
        path: Path of the file.
        suffix: How its name must end.
        name: What messages call it.

    Raises:
        OSError: If the folder cannot be written to.
        SettingError: If the name ends otherwise, or there is no such folder.
    """
    target = to_path(path)
    if target.is_dir():
        raise SettingError(f"{target} is a folder; {target / f'{name}{suffix}'} would be a file in it")
    if target.suffix != suffix:
        raise SettingError(f'the file must end in "{suffix}", got "{target}"; {target.with_suffix(suffix)} does')
    if not target.parent.is_dir():
        raise SettingError(f"there is no folder {target.parent} to write {target.name} to; make it first")
    probe_write(target)
    return target


def write_atomic(path: Path, content: bytes, *, previous: Path | None = None) -> None:
    """Replace ``path`` by ``content`` so that a reader sees the old file or the new one, never a part.

    The content goes to a temporary name in the same directory, is forced to the disk, and is renamed over
    ``path``; the directory is forced to the disk too. On any failure the temporary file is removed, and
    ``path`` is the old file, or the new one if only the last step failed.

    Args:
        path: Where the file goes; its directory must exist.
        content: Every byte of it.
        previous: A name in the same directory under which the old file, if there is one, stays available.

    Raises:
        OSError: If the directory is not writable or the disk is full.
    """
    temporary = _temporary(path)
    try:
        _write_new(temporary, content)
        if previous is not None:
            _keep(path, previous)
        os.replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise
    _sync_directory(path.parent)


def probe_write(path: Path) -> None:
    """Find out whether `write_atomic` could write ``path``, leaving nothing behind.

    Raises:
        OSError: If it could not.
    """
    temporary = _temporary(path)
    try:
        _write_new(temporary, b"probe")
    finally:
        _remove(temporary)


def remove_unfinished(path: Path) -> int:
    """Remove what a killed `write_atomic` to ``path`` left behind.

    Returns:
        How many files that were.
    """
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{{2 * _RANDOM_BYTES}}}{re.escape(TEMPORARY_SUFFIX)}")
    unfinished = [file for file in path.parent.iterdir() if pattern.fullmatch(file.name)]
    for file in unfinished:
        file.unlink(missing_ok=True)
    return len(unfinished)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(_RANDOM_BYTES)}{TEMPORARY_SUFFIX}")


def _write_new(path: Path, content: bytes) -> None:
    """Write a file that is not there yet, and force it to the disk."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)  # less the umask, unlike mkstemp's 0600
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]  # Linux writes 2 GiB at a time
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(temporary: Path) -> None:
    """Tidy up after a failure without hiding it: what cannot be removed now is swept later."""
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def _keep(path: Path, previous: Path) -> None:
    """Make ``previous`` a second name of the file ``path``; at no moment is one of them missing."""
    temporary = _temporary(previous)
    try:
        try:
            os.link(path, temporary)
        except FileNotFoundError:
            return  # nothing to keep: this is the first file
        except OSError:
            _write_new(temporary, path.read_bytes())  # FAT and some network disks have no hard links
        os.replace(temporary, previous)
    finally:
        _remove(temporary)  # rename(2) also leaves it where both names already were one file


def _sync_directory(directory: Path) -> None:
    """Force a rename to the disk, where the platform lets a directory be opened (POSIX)."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # network disks that know no such thing
            raise
    finally:
        os.close(descriptor)
