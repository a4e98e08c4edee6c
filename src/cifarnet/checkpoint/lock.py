"""One process at a time writes a run's directory."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
import warnings
from pathlib import Path

from cifarnet.errors import CheckpointWarning, RunDirectoryBusyError

__all__ = ["RunLock"]

_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_held: set[Path] = set()  # by this process, to which the system would lend a lock twice


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
        _held.add(key)

    def release(self) -> None:
        """Give the lock back, if this object holds it."""
        if self._key is not None:
            _held.discard(self._key)
            self._free(self._descriptor)
            self._key = None

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
        # Not flock: a forked worker of a DataLoader would hold that on for its killed parent.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
