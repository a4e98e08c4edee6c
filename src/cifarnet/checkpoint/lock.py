"""One process at a time writes a run's directory."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
import warnings
from pathlib import Path

from cifarnet.errors import CheckpointWarning, RunDirectoryBusyError

__all__ = ["RunLock"]

_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_held: dict[Path, RunLock] = {}  # by this process, also where the disk knows no locks
_table = threading.RLock()  # of _held; reentrant, because a signal's handler may fork while the main thread has it


class RunLock:
    """Held while a run is trained. The system frees it when the process ends, however it ends.

    Args:
        directory: Of the run; it must exist. The file ``.lock`` in it tells who holds the lock.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / ".lock"
        self._key: Path | None = None
        self._descriptor = -1

    @property
    def held(self) -> bool:
        """Whether this object holds it."""
        return self._key is not None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            RunDirectoryBusyError: If another run has it.
            OSError: If the file cannot be written.

        Warns:
            CheckpointWarning: If the disk knows no locks; the run goes on without.
        """
        key = self._path.resolve()
        with _table:
            if key in _held:
                raise self._busy("another run of this process")
            descriptor = self._open()
            try:
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}".encode())
            except BaseException:
                self._free(descriptor)
                raise
            self._key, self._descriptor = key, descriptor
            _held[key] = self

    def release(self) -> None:
        """Give the lock back, if this object holds it. In a forked child it does not: the lock is the parent's."""
        with _table:
            if self._key is not None:
                del _held[self._key]
                self._key = None
                self._free(self._descriptor)

    def _leave_to_parent(self) -> None:
        """Let go of what a fork has copied, so that the parent alone holds the lock and its end frees it."""
        self._key = None
        os.close(self._descriptor)

    def _open(self) -> int:
        """Open and lock the file that has the name, not one that its last owner has just removed."""
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._lock(descriptor)
                if os.path.exists(self._path) and os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _free(self, descriptor: int) -> None:
        with contextlib.suppress(OSError):  # Windows keeps open files; the next run takes it over
            self._path.unlink()
        os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        try:
            _lock(descriptor)
        except OSError as error:
            if error.errno in _BUSY:
                raise self._busy(os.read(descriptor, 200).decode(errors="replace")) from None
            reason = f"{self._path.parent} is on a disk without locks ({error.strerror})"
            message = f"{reason}; see to it that no other process trains there"
            warnings.warn(message, CheckpointWarning, stacklevel=2)

    def _busy(self, owner: str) -> RunDirectoryBusyError:
        return RunDirectoryBusyError(
            f"{self._path.parent} is in use by {owner or 'another process'}; wait for it, stop it, or choose another "
            "directory"
        )


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 2**20, os.SEEK_SET)  # behind what the file tells, so that others can read it
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        # Not lockf: that lock is gone when anything in this process reads the file and closes it. Linux's F_OFD_SETLK
        # would do the same as flock, on fewer systems.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _after_fork_in_child() -> None:
        for lock in _held.values():
            lock._leave_to_parent()
        _held.clear()
        _table.release()

    # The lock lasts as long as any process has the descriptor. A fork waits until every one is in the table.
    os.register_at_fork(before=_table.acquire, after_in_parent=_table.release, after_in_child=_after_fork_in_child)
