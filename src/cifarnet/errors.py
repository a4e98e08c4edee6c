"""Exceptions that cifarnet raises on purpose.

All derive from `CifarnetError`, and from the built-in exception where one fits, so that both ``except CifarnetError``
and ``except ValueError`` work. A message states the value, the rule and the remedy.
"""

from __future__ import annotations

__all__ = [
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointNotFoundError",
    "CifarnetError",
    "DataError",
    "DeviceMemoryError",
    "NonFiniteError",
    "SettingError",
]


class CifarnetError(Exception):
    """Base of the library's exceptions. Raised itself for a failed export, a missing extra and a lost process."""


class SettingError(CifarnetError, ValueError, TypeError):
    """A setting has the wrong type, is outside its range, or names something unknown."""


class DataError(CifarnetError, ValueError):
    """Images, labels or files of a data set are missing, damaged, or have a wrong shape, dtype or range."""


class CheckpointError(CifarnetError):
    """A checkpoint could not be written, could execute code, or its directory is in use or holds another run."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no checkpoint at this path."""


class CheckpointCorruptError(CheckpointError, ValueError):
    """A checkpoint file is truncated, altered, or of another format."""


class CheckpointMismatchError(CheckpointError, ValueError):
    """An intact checkpoint belongs to another network, kind of file, format version or run."""


class DeviceMemoryError(CifarnetError, MemoryError):
    """A batch does not fit into the memory of the device."""


class NonFiniteError(CifarnetError, FloatingPointError):
    """A loss, a weight or a logit is NaN or infinite. Nothing is saved after it."""
