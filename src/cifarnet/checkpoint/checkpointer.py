"""The two files of a run: ``best`` for using the network, ``last`` for continuing the training."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from torch import Tensor

from cifarnet._files import to_path
from cifarnet.checkpoint.codec import flatten
from cifarnet.checkpoint.format import encode
from cifarnet.checkpoint.layout import REMEDY
from cifarnet.checkpoint.lock import RunLock
from cifarnet.checkpoint.reading import load_best, read_checkpoint, read_state
from cifarnet.checkpoint.writing import make_directory, probe_directory, sweep_directory, write_checkpoint
from cifarnet.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointWarning,
    SettingError,
    SettingTypeError,
)

__all__ = ["Checkpointer", "Stateful"]


class Stateful(Protocol):
    """What can be saved and continued: a `Trainer`, an optimizer, anything with these two methods."""

    def state_dict(self) -> Mapping[str, Any]:
        """Everything that a continuation needs, as `Checkpointer.save` takes it."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> object:
        """Become what the state says.

        Args:
            state: What ``state_dict`` gave, tensors on the CPU.
        """
        ...


class Checkpointer:
    """Writes and reads the checkpoints of one run, safely and without pickle.

    A save is atomic: whenever the machine stops, the newest checkpoint or the one before it is whole.

    In a ``with`` block it has the directory to itself, as `Trainer.fit` wants it; other processes are refused.

    Args:
        directory: Directory of the run; ``~`` is the home directory. Nothing is touched there before a save.
        save_every_s: Seconds after which `Trainer.fit` saves ``last`` again, in mid-epoch too; 0 saves at every step.
        metadata: Plain values that ``best.safetensors`` keeps beside the weights, such as the recipe.

    Attributes:
        directory: Directory of the run.
        save_every_s: Seconds between two saves.
        metadata: Plain values, a copy.
        best_path: ``best.safetensors``, weights and a description.
        last_path: ``last.safetensors``, all that a resume needs.
        previous_path: ``last.previous.safetensors``, the one before it.
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
        self.directory = to_path(directory)
        self.save_every_s = save_every_s
        self.metadata = _validate_metadata({} if metadata is None else metadata)
        self.best_path = self.directory / "best.safetensors"
        self.last_path = self.directory / "last.safetensors"
        self.previous_path = self.directory / "last.previous.safetensors"
        self.last_is_sound = False
        self._lock = RunLock(self.directory)
        self._num_entered = 0

    def __repr__(self) -> str:
        return f"Checkpointer({str(self.directory)!r})"

    def __enter__(self) -> Checkpointer:
        """Prepare the directory, and keep every other process out of it until the block ends.

        Raises:
            RunDirectoryBusyError: If another process is writing it.
            CheckpointSaveError: As `prepare` does.
        """
        if not self._num_entered:
            make_directory(self.directory, self._lock.acquire)
            try:
                self._prepare()
            except BaseException:
                self._lock.release()
                raise
        self._num_entered += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._num_entered -= 1
        if not self._num_entered:
            self._lock.release()

    def prepare(self) -> None:
        """Create the directory, find out whether it can be written, and sweep what a killed save left.

        Raises:
            RunDirectoryBusyError: If another process is writing it.
            CheckpointSaveError: If the directory cannot be created or written.

        Warns:
            CheckpointWarning: If there was something to sweep.
        """
        with self:
            pass

    def _prepare(self) -> None:
        self.last_is_sound = False  # it was out of our hands
        probe_directory(self.last_path)
        removed = sweep_directory(self.best_path, self.last_path, self.previous_path)
        if removed:
            message = f"Removed {removed} unfinished checkpoint{'s' if removed > 1 else ''}"
            warnings.warn(message, CheckpointWarning, stacklevel=2)

    def exists(self) -> bool:
        """Return whether there is a checkpoint in the directory, sound or not."""
        return any(os.path.exists(path) for path in (self.best_path, self.last_path, self.previous_path))

    def save(self, source: Stateful) -> Path:
        """Write ``source.state_dict()`` to `last_path`; the old file stays as `previous_path`.

        Args:
            source: What to save. Its state is nested dictionaries, lists and tuples of None, bool, int,
                float, str and tensors.

        Returns:
            `last_path`.

        Raises:
            SettingTypeError: If something else is in the state; the message names where.
            CheckpointSaveError: If the file cannot be written. The old one is intact then.
        """
        return self.save_state(source.state_dict())

    def save_state(self, state: Mapping[str, Any]) -> Path:
        """Write a state to `last_path`, as `save` does.

        Args:
            state: What a ``state_dict()`` gave.

        Returns:
            `last_path`.

        Raises:
            SettingTypeError: If it is no dictionary, or holds what cannot be saved.
            CheckpointSaveError: If the file cannot be written. The old one is intact then.
        """
        write_checkpoint(self.last_path, encode_state(state), previous=self._keep_as())
        self.last_is_sound = True
        return self.last_path

    def save_best(self, weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> Path:
        """Write weights and what to know about them to `best_path`.

        Args:
            weights: A network's ``state_dict``. Its names are the file's names, so that
                ``safetensors.torch.load_file`` reads them without this library.
            description: Architecture, preprocessing, class names and the like: what a state may hold, but no
                tensors.

        Returns:
            `best_path`.

        Raises:
            SettingTypeError: If there is something in it that cannot be saved.
            CheckpointSaveError: If the file cannot be written. The old one is intact then.
        """
        tensors, values = flatten(dict(description))
        if tensors:
            raise SettingTypeError(
                f"description holds a tensor, {next(iter(tensors))}; put it into weights or use a list"
            )
        write_checkpoint(self.best_path, encode(weights, values, kind="best"))
        return self.best_path

    def _keep_as(self) -> Path | None:
        """Where the old `last_path` is kept. A damaged one must not take the place of a sound previous one."""
        if not self.last_is_sound:
            try:
                read_checkpoint(self.last_path)
            except CheckpointError:
                return None
        return self.previous_path

    def load(self, target: Stateful) -> bool:
        """Load the last checkpoint into ``target``.

        Args:
            target: What shall go on from there.

        Returns:
            False if there is none; ``target`` is then what it was.

        Raises:
            CheckpointError: As `read_last` does.
        """
        state = self.read_last()
        if state is None:
            return False
        target.load_state_dict(state)
        return True

    def read_last(self) -> dict[str, Any] | None:
        """Read `last_path`, or `previous_path` where that is missing or damaged.

        Returns:
            The state that was saved, tensors on the CPU; None if there is neither file.

        Raises:
            CheckpointCorruptError: If no file is sound; about the newest.
            CheckpointVersionError: If a newer cifarnet wrote the newest.
            UnsafeCheckpointError: If the newest is a pickle.

        Warns:
            CheckpointWarning: If `previous_path` had to serve.
        """
        missing = not os.path.lexists(self.last_path)
        if missing and not os.path.lexists(self.previous_path):
            return None
        try:
            state = read_state(self.last_path)
        except (CheckpointNotFoundError, CheckpointCorruptError) as error:
            state = self._read_previous(error, missing=missing)
        else:
            self.last_is_sound = True
        return state

    def _read_previous(self, error: CheckpointError, *, missing: bool) -> dict[str, Any]:
        try:
            state = read_state(self.previous_path)
        except CheckpointNotFoundError:
            raise error from None
        except CheckpointCorruptError:
            if missing:
                raise
            raise error from None
        reason = f"{self.last_path} is missing" if missing else str(error).removesuffix(REMEDY)
        warnings.warn(
            f"{reason}; resuming from {self.previous_path.name}{_where(state)}", CheckpointWarning, stacklevel=3
        )
        return state

    def read_best(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read `best_path`, as `load_best` does."""
        return load_best(self.best_path)


def encode_state(state: Mapping[str, Any]) -> bytes:
    """Return the bytes that `Checkpointer.save_state` writes.

    Raises:
        SettingTypeError: If it is no dictionary, or holds what cannot be saved.
    """
    if not isinstance(state, Mapping):
        raise SettingTypeError(f"state_dict() must return a dict, got {type(state).__name__}")
    tensors, values = flatten(state)
    return encode(tensors, values, kind="last")


def _validate_metadata(metadata: object) -> dict[str, Any]:
    if not isinstance(metadata, Mapping) or not all(isinstance(key, str) for key in metadata):
        raise SettingTypeError(f'metadata must be a dictionary such as {{"recipe": "mine"}}, got {metadata!r:.60}')
    tensors, _ = flatten(dict(metadata))
    if tensors:
        raise SettingTypeError(f"metadata holds a tensor, {next(iter(tensors))}. Use a list")
    return dict(metadata)


def _where(state: Mapping[str, Any]) -> str:
    """`` (epoch 11)``, where the state is one of a trainer."""
    position = state.get("position")
    if not isinstance(position, Mapping) or "epoch" not in position:
        return ""
    return f" (epoch {position['epoch']})"
