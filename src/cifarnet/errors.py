"""Exceptions that cifarnet raises on purpose.

All derive from `CifarnetError`, and from the built-in exception where one fits, so that both
``except CifarnetError`` and ``except ValueError`` do what they say. A message states the value, the rule
and the remedy.
"""

from __future__ import annotations

__all__ = [
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointNotFoundError",
    "CheckpointSaveError",
    "CheckpointVersionError",
    "CheckpointWarning",
    "CifarnetError",
    "DatasetDownloadError",
    "DatasetError",
    "DatasetFormatError",
    "DatasetIntegrityError",
    "DatasetNotFoundError",
    "DeviceMemoryError",
    "ExportError",
    "InputError",
    "MissingPackageError",
    "NonFiniteLogitsError",
    "NonFiniteLossError",
    "RankLostError",
    "ResumeMismatchError",
    "RunDirectoryBusyError",
    "RunExistsError",
    "SettingError",
    "SettingTypeError",
    "UnsafeCheckpointError",
]


class CifarnetError(Exception):
    """Base of every exception that cifarnet raises on purpose."""


class SettingError(CifarnetError, ValueError):
    """A setting has a value outside its range, or a name that nobody knows."""


class SettingTypeError(SettingError, TypeError):
    """A setting has a value of the wrong type."""


class InputError(CifarnetError, ValueError):
    """Images or labels have a shape, dtype or range that the library cannot take."""


class DatasetError(CifarnetError):
    """Base of everything that is wrong with a data set."""


class DatasetNotFoundError(DatasetError, FileNotFoundError):
    """The data set, or a part of it, is not where it was looked for."""


class DatasetFormatError(DatasetError, ValueError):
    """A data file is there, but does not hold what its format says."""


class DatasetIntegrityError(DatasetError, ValueError):
    """An archive is not the published one: its SHA-256 or its members differ."""


class DatasetDownloadError(DatasetError, ConnectionError):
    """No address gave the archive."""


class CheckpointError(CifarnetError):
    """Base of everything that is wrong with a checkpoint."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no checkpoint where one was asked for."""


class CheckpointCorruptError(CheckpointError, ValueError):
    """A checkpoint file is truncated, altered, or was never one."""


class UnsafeCheckpointError(CheckpointError, ValueError):
    """The file could execute code when loaded (a pickle, a TorchScript archive); it is not opened."""


class CheckpointVersionError(CheckpointError, ValueError):
    """The checkpoint was written by a newer cifarnet, in a format that this one does not read."""


class CheckpointMismatchError(CheckpointError, ValueError):
    """The checkpoint is sound, but belongs to another architecture or kind of file."""


class CheckpointSaveError(CheckpointError, OSError):
    """A checkpoint could not be written; the previous one is intact."""


class CheckpointWarning(UserWarning):
    """Something about the checkpoints of a run is not as it should be, and the library went on without it."""


class ResumeMismatchError(CheckpointError, ValueError):
    """The run on disk was trained with settings that differ from those asked for now."""


class RunExistsError(CheckpointError, FileExistsError):
    """The directory holds a run already, and continuing it was not asked for."""


class RunDirectoryBusyError(CheckpointError, OSError):
    """Another process, or another run of this one, is writing the directory."""


class DeviceMemoryError(CifarnetError, MemoryError):
    """A batch did not fit into the memory of the device."""


class NonFiniteLossError(CifarnetError, FloatingPointError):
    """The loss or a weight became NaN or infinite; nothing was saved after it did."""


class NonFiniteLogitsError(CifarnetError, FloatingPointError):
    """A network gave NaN or infinity for an image: its weights are broken, or its number format too small."""


class RankLostError(CifarnetError, ConnectionError):
    """Another process of the same training has ended, or does not answer."""


class ExportError(CifarnetError, RuntimeError):
    """A network cannot be written for use elsewhere, or the file would not give what the library gives."""


class MissingPackageError(CifarnetError, ModuleNotFoundError):
    """Something needs a package that is no requirement of the library, but one of its extras."""
