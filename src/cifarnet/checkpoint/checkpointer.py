"""Files of a run: ``best`` for using the network, ``last`` for resuming the training."""

from __future__ import annotations

import contextlib
import errno
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout
from torch import Tensor

from cifarnet._files import probe_write, remove_unfinished, to_path
from cifarnet._types import Json
from cifarnet.checkpoint.file import REMEDY, encode, read_checkpoint, read_kind, save_errors, write_checkpoint
from cifarnet.checkpoint.state_tree import flatten
from cifarnet.errors import CheckpointCorruptError, CheckpointError, CheckpointNotFoundError, SettingError

__all__ = ["Checkpointer", "Stateful"]


class Stateful(Protocol):
    """Object that can be saved and resumed: a `Trainer`, an optimizer, anything with these two methods."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return everything that a resume needs, as `Checkpointer.save` takes it."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> object:
        """Restore a state.

        Args:
            state: Result of ``state_dict``, tensors on the CPU.
        """
        ...


class Checkpointer:
    """Writer and reader of the checkpoints of one run, without pickle.

    A save is atomic: whenever the machine stops, the newest checkpoint or the one before it is sound. A ``with`` block
    locks the directory, as `Trainer.fit` does, so that no other process can write it.

    Args:
        directory: Directory of the run; ``~`` is the home directory. It is created by the first save.
        save_every_s: Seconds between two saves of ``last`` by `Trainer.fit`, also within an epoch; 0: every step.
        metadata: Plain values that ``best.safetensors`` stores beside the weights, such as the recipe.

    Attributes:
        directory: Directory of the run.
        save_every_s: Seconds between two saves of ``last``.
        metadata: Plain values, a copy.
        best_path: ``best.safetensors``, the weights and their description.
        last_path: ``last.safetensors``, the state to resume from.
        previous_path: ``last.previous.safetensors``, the state before that.
        last_is_sound: Whether this object has written or verified `last_path`.

    Example:
        >>> import torch
        >>> checkpointer = Checkpointer(getfixture("tmp_path") / "runs" / "first")
        >>> optimizer = torch.optim.SGD([torch.zeros(3)], lr=0.1)
        >>> checkpointer.save(optimizer).name
        'last.safetensors'
        >>> checkpointer.load(optimizer)
        True
    """

    def __init__(
        self, directory: str | Path, *, save_every_s: float = 30.0, metadata: Mapping[str, Any] | None = None
    ) -> None:
        if not save_every_s >= 0:
            raise SettingError(f"save_every_s must be 0 or more seconds, got {save_every_s}. The default is 30")
        metadata = {} if metadata is None else metadata
        _flatten_plain(metadata, "metadata")
        self.directory = to_path(directory)
        self.save_every_s = save_every_s
        self.metadata = dict(metadata)
        self.best_path = self.directory / "best.safetensors"
        self.last_path = self.directory / "last.safetensors"
        self.previous_path = self.directory / "last.previous.safetensors"
        self.last_is_sound = False
        self._lock: FileLock | None = None  # built late, because it can neither be pickled nor used after a fork
        self._num_entered = 0

    def __repr__(self) -> str:
        return f"Checkpointer({str(self.directory)!r})"

    def __enter__(self) -> Checkpointer:
        """Create and lock the directory, and remove the temporary files of a killed process.

        Raises:
            CheckpointError: If another run has locked it, or it cannot be created or written.

        Warns:
            UserWarning: If there were temporary files, or the disk does not support locks.
        """
        if not self._num_entered:
            remedy = "choose another directory or change its permissions"
            with save_errors(self.directory, remedy), contextlib.ExitStack() as undo:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._acquire_lock()
                undo.callback(self._release_lock)
                self.last_is_sound = False  # another process may have written it since
                probe_write(self.last_path)
                removed = sum(map(remove_unfinished, (self.best_path, self.last_path, self.previous_path)))
                if removed:
                    warnings.warn(f"Removed {removed} unfinished checkpoint file(s)", UserWarning, stacklevel=3)
                undo.pop_all()
        self._num_entered += 1
        return self

    def __exit__(self, *exception: object) -> None:
        self._num_entered -= 1
        if not self._num_entered:
            self._release_lock()

    def _acquire_lock(self) -> None:
        path = self.directory / ".lock"
        # Another thread may release the lock: the one that still writes after a second Ctrl-C.
        lock = FileLock(path, thread_local=False, fallback_to_soft=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            owner = "another process"
            with contextlib.suppress(OSError):
                owner = path.read_text() or owner
            raise CheckpointError(
                f"{self.directory} is in use by {owner}; wait for it, stop it, or choose another directory"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            reason = f"{self.directory} is on a disk without locks ({error.strerror})"
            warnings.warn(f"{reason}; let no other process train there", UserWarning, stacklevel=4)
        else:
            self._lock = lock
            with contextlib.suppress(OSError):  # Windows refuses a second handle of a locked file
                path.write_text(f"process {os.getpid()}")

    def _release_lock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None and lock.is_locked:  # not in a forked child: filelock leaves the lock to the parent
            with contextlib.suppress(OSError):  # Windows keeps open files
                os.unlink(lock.lock_file)
            lock.release()

    def exists(self) -> bool:
        """Return whether there is a checkpoint in the directory, sound or not."""
        return any(os.path.exists(path) for path in (self.best_path, self.last_path, self.previous_path))

    def save(self, source: Stateful) -> Path:
        """Write ``source.state_dict()`` to `last_path`; the old file stays as `previous_path`.

        Args:
            source: Object to save. Its state is nested dictionaries, lists and tuples of None, bool, int, float, str
                and tensors.

        Returns:
            `last_path`.

        Raises:
            SettingError: If the state holds anything else. The message names the path.
            CheckpointError: If the file cannot be written. The old one is intact then.
        """
        return self.save_state(source.state_dict())

    def save_state(self, state: Mapping[str, Any]) -> Path:
        """Write a state to `last_path`, as `save` does, and return the path.

        Args:
            state: Result of a ``state_dict()``.

        Raises:
            SettingError: If the state is not a dictionary, or holds a value that cannot be saved.
            CheckpointError: If the file cannot be written. The old one is intact then.
        """
        content = encode_state(state)
        write_checkpoint(self.last_path, content, previous=self.previous_path if self._last_loads() else None)
        self.last_is_sound = True
        return self.last_path

    def _last_loads(self) -> bool:
        """Return whether `last_path` may replace `previous_path`. A damaged file must not replace a sound one."""
        if not self.last_is_sound:
            try:
                read_checkpoint(self.last_path)
            except CheckpointError:
                return False
        return True

    def save_best(self, weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> Path:
        """Write weights and their description to `best_path`.

        Args:
            weights: ``state_dict`` of a network. The file has the same names, so that ``safetensors.torch.load_file``
                reads them without this library.
            description: Architecture, preprocessing, class names and the like: values of a state without tensors.

        Returns:
            `best_path`.

        Raises:
            SettingError: If a value cannot be saved.
            CheckpointError: If the file cannot be written. The old one is intact then.
        """
        values = _flatten_plain(description, "description")
        write_checkpoint(self.best_path, encode(weights, values, kind="best"))
        return self.best_path

    def load(self, target: Stateful) -> bool:
        """Load the last checkpoint into ``target``.

        Args:
            target: Object to restore.

        Returns:
            ``False`` if there is no checkpoint; ``target`` is unchanged then.

        Raises:
            CheckpointError: As `read_last`.
        """
        state = self.read_last()
        if state is not None:
            target.load_state_dict(state)
        return state is not None

    def read_last(self) -> dict[str, Any] | None:
        """Read the state in `last_path`, or in `previous_path` if the former is missing or damaged.

        Returns:
            The state, tensors on the CPU; ``None`` if there is neither file.

        Raises:
            CheckpointCorruptError: If no file is sound. The message is about the newest.
            CheckpointMismatchError: If a newer cifarnet wrote the newest.
            CheckpointError: If the newest is a pickle.

        Warns:
            UserWarning: If the state comes from `previous_path`.
        """
        if not any(os.path.lexists(path) for path in (self.last_path, self.previous_path)):
            return None
        try:
            _, state = read_kind(self.last_path, "last")
        except (CheckpointNotFoundError, CheckpointCorruptError) as error:
            is_missing = isinstance(error, CheckpointNotFoundError)
            try:
                _, state = read_kind(self.previous_path, "last")
            except (CheckpointNotFoundError, CheckpointCorruptError) as older:
                raise (older if is_missing else error) from None
            reason = f"{self.last_path} is missing" if is_missing else str(error).removesuffix(REMEDY)
            warnings.warn(f"{reason}; resuming from {self.previous_path.name}", UserWarning, stacklevel=3)
        else:
            self.last_is_sound = True
        return state

    def read_best(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read `best_path`, as `load_best` does."""
        return read_kind(self.best_path, "best")


def encode_state(state: Mapping[str, Any]) -> bytes:
    """Return the bytes that `Checkpointer.save_state` writes.

    Raises:
        SettingError: If it is not a dictionary, or holds a value that cannot be saved.
    """
    if not isinstance(state, Mapping):
        raise SettingError(f"state_dict() must return a dict, got {type(state).__name__}")
    return encode(*flatten(state), kind="last")


def _flatten_plain(values: object, name: str) -> Json:
    """Return a dictionary of plain values as JSON."""
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise SettingError(f'{name} must be a dictionary such as {{"recipe": "mine"}}, got {values!r:.60}')
    tensors, plain = flatten(values)
    if tensors:
        raise SettingError(f"{name} holds a tensor, {next(iter(tensors))}. Use a list")
    return plain
