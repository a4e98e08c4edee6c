"""History of a run: a record of plain values per epoch."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from cifarnet._files import to_path, write_atomic
from cifarnet._types import Json
from cifarnet._validation import did_you_mean, from_json
from cifarnet.errors import DataError, SettingError

__all__ = ["EpochRecord", "History", "check_monitor", "is_better"]

#: Standard columns of the metrics, in the order in which they are written.
_STANDARD = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy")
_COUNTS = ("epoch", "global_step")
_TIMES = ("train_s", "eval_s", "images_per_s")
_OWN = (*_COUNTS, "learning_rate", *_TIMES)
_FIELDS = (*_COUNTS, "learning_rate", *_STANDARD, *_TIMES)


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of training.

    Args:
        epoch: Number of completed epochs, from 1.
        global_step: Number of completed optimizer steps.
        learning_rate: Learning rate of the first parameter group at the last step of the epoch.
        train_s: Seconds of training in this epoch, over all parts of a resumed run.
        eval_s: Seconds of evaluation.
        images_per_s: Training images per second of ``train_s``.
        metrics: Values by name. ``train_loss`` and ``train_accuracy`` are measured during training, on augmented
            images. ``val_loss``, ``val_accuracy``, ``test_loss`` and ``test_accuracy`` are there if such images are
            evaluated, and so are the caller's own metrics, such as ``val_top5``. Accuracies are in ``[0, 1]``.
    """

    epoch: int
    global_step: int
    learning_rate: float
    train_s: float
    eval_s: float
    images_per_s: float
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def train_loss(self) -> float:
        """Mean loss per image in training mode, on augmented images."""
        return self.metrics["train_loss"]

    @property
    def train_accuracy(self) -> float:
        """Fraction of the training images that were predicted correctly, in training mode."""
        return self.metrics["train_accuracy"]

    @property
    def val_loss(self) -> float | None:
        """Mean loss per validation image; ``None`` without them."""
        return self.metrics.get("val_loss")

    @property
    def val_accuracy(self) -> float | None:
        """Accuracy on the validation images; ``None`` without them."""
        return self.metrics.get("val_accuracy")

    @property
    def test_loss(self) -> float | None:
        """Mean loss per test image; ``None`` without them. It selects nothing."""
        return self.metrics.get("test_loss")

    @property
    def test_accuracy(self) -> float | None:
        """Accuracy on the test images; ``None`` without them. It selects nothing."""
        return self.metrics.get("test_accuracy")

    def to_dict(self) -> dict[str, Any]:
        """Return a flat dictionary of all values; the standard metrics that are missing are ``None``."""
        flat = dict.fromkeys(_FIELDS) | {name: getattr(self, name) for name in _OWN}
        return flat | self.metrics

    def __str__(self) -> str:
        parts = [f"epoch {self.epoch}: train loss {self.train_loss:.4f}, accuracy {self.train_accuracy:.2%}"]
        for split in ("val", "test"):
            if f"{split}_loss" in self.metrics:
                loss, accuracy = self.metrics[f"{split}_loss"], self.metrics[f"{split}_accuracy"]
                parts.append(f"{split} loss {loss:.4f}, accuracy {accuracy:.2%}")
        others = [f"{name} {value:.4f}" for name, value in self.metrics.items() if name not in _STANDARD]
        parts += [", ".join(others)] if others else []
        parts.append(f"{self.images_per_s:,.0f} images/s, {self.train_s + self.eval_s:.1f} s")
        return "; ".join(parts)


class History(Sequence[EpochRecord]):
    """Sequence of the records of a run, with access to their columns by name.

    Args:
        records: Initial records.

    Example:
        >>> history = History()
        >>> history.append(EpochRecord(1, 10, 1e-3, 1.0, 0.1, 640.0, {"train_loss": 1.5, "train_accuracy": 0.4}))
        >>> history["train_loss"]
        [1.5]
    """

    def __init__(self, records: Iterable[EpochRecord] = ()) -> None:
        self._records = list(records)

    @overload
    def __getitem__(self, index: int) -> EpochRecord: ...
    @overload
    def __getitem__(self, index: slice) -> History: ...
    @overload
    def __getitem__(self, index: str) -> list[float | None]: ...
    def __getitem__(self, index: int | slice | str) -> EpochRecord | History | list[float | None]:
        """Return one epoch, a part of the history, or a column by name.

        Raises:
            SettingError: If no epoch has a column of that name.
        """
        if not isinstance(index, str):
            return History(self._records[index]) if isinstance(index, slice) else self._records[index]
        if index not in self._columns:
            raise SettingError(f'The history has no column "{index}"; {did_you_mean(index, self._columns)}')
        return [record.to_dict().get(index) for record in self._records]

    @property
    def _columns(self) -> list[str]:
        return list(dict.fromkeys((*_FIELDS, *(key for record in self._records for key in record.to_dict()))))

    def __len__(self) -> int:
        return len(self._records)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, History) and self._records == other._records

    __hash__ = None  # type: ignore[assignment]  # it grows

    def __repr__(self) -> str:
        return f"<History of {len(self)} epochs>"

    def append(self, record: EpochRecord) -> None:
        """Add the next epoch.

        Args:
            record: Record of that epoch.
        """
        self._records.append(record)

    def best(self, monitor: str = "val_accuracy") -> EpochRecord | None:
        """Return the epoch with the best validation result, the earliest of equal ones.

        Args:
            monitor: Validation metric, such as ``"val_accuracy"`` or ``"val_loss"``.

        Returns:
            Record of that epoch; ``None`` if no epoch was validated.

        Raises:
            SettingError: If the run cannot be selected by ``monitor``.
        """
        check_monitor(monitor)
        known = {"val_accuracy", "val_loss", *(name for record in self._records for name in record.metrics)}
        if monitor not in known:
            raise SettingError(f'No epoch has "{monitor}"; {did_you_mean(monitor, sorted(known))}')
        best: EpochRecord | None = None
        for record in self._records:
            if is_better(monitor, record.metrics.get(monitor), best.metrics[monitor] if best else None):
                best = record
        return best

    def to_list(self) -> list[Json]:
        """Return a flat dictionary per epoch, for JSON."""
        return [record.to_dict() for record in self._records]

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with a row per epoch and the number of the epoch as its index.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("History.to_pandas needs pandas. Install it with: pip install pandas") from error
        return pd.DataFrame(self.to_list(), columns=self._columns).set_index("epoch")

    @classmethod
    def from_list(cls, rows: Iterable[Mapping[str, Any]]) -> History:
        """Build a history from the rows of `to_list`.

        Args:
            rows: Mapping of names to values for each epoch. Unknown names become metrics.

        Raises:
            DataError: If a row lacks a field, or a value is not a number.
        """
        return cls(_record(row, f"epoch {number}") for number, row in enumerate(rows, 1))

    def save_csv(self, path: str | Path) -> None:
        """Write a header and a line per epoch, with all digits of the numbers.

        Args:
            path: Path of the file. If the write fails, an existing file is unchanged.
        """
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(record.to_dict() for record in self._records)
        write_atomic(to_path(path), text.getvalue().encode())

    @classmethod
    def load_csv(cls, path: str | Path) -> History:
        """Read what `save_csv`, pandas or a spreadsheet wrote. Columns that are unknown are kept.

        Args:
            path: File.

        Raises:
            DataError: If it is not such a file.
            OSError: If it cannot be read.
        """
        text = to_path(path).read_text(encoding="utf-8-sig")
        if ";" in text.partition("\n")[0]:  # as spreadsheets write it where the decimal sign is a comma
            text = text.replace(",", ".").replace(";", ",")
        rows = [row for row in csv.DictReader(io.StringIO(text)) if any(row.values())]
        return cls(_record(_numbers(row, f"{path}, line {n}"), f"{path}, line {n}") for n, row in enumerate(rows, 2))


def check_monitor(monitor: str) -> None:
    """Refuse to select a run by anything but a validation metric.

    Args:
        monitor: Name of a metric.

    Raises:
        SettingError: If its name does not begin with ``val_``.
    """
    if not monitor.startswith("val_"):
        hint = did_you_mean(monitor, ("val_accuracy", "val_loss"))
        raise SettingError(f'A run cannot be selected by "{monitor}". The test set chooses nothing; {hint}')


def is_better(monitor: str, value: float | None, than: float | None) -> bool:
    """Return whether a validation result improves on another; NaN never does.

    Args:
        monitor: Validation metric. Lower is better if its name ends with ``loss``, else higher.
        value: New result.
        than: Best result so far; ``None`` at first.

    Raises:
        SettingError: If a run cannot be selected by ``monitor``.

    Example:
        >>> is_better("val_loss", 0.4, than=0.5), is_better("val_accuracy", float("nan"), than=None)
        (True, False)
    """
    check_monitor(monitor)
    if value is None or math.isnan(value):
        return False
    if than is None:
        return True
    return value < than if monitor.endswith("loss") else value > than


def _numbers(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Convert the texts of a CSV file. A column without a name is the index that pandas writes."""
    try:
        values = {name: float(text) for name, text in row.items() if name and text}
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} has an invalid number ({error}). Use a file that save_csv wrote") from error
    return {name: int(value) if name in _COUNTS and value.is_integer() else value for name, value in values.items()}


def _record(row: Mapping[str, Any], where: str) -> EpochRecord:
    missing = [name for name in (*_OWN, "train_loss", "train_accuracy") if row.get(name) is None]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}. Use a history that save_csv wrote")
    metrics = {str(name): value for name, value in row.items() if name not in _OWN and value is not None}
    try:
        return from_json(EpochRecord, {**{name: row[name] for name in _OWN}, "metrics": metrics}, where)
    except ValueError as error:
        raise DataError(f"{error}. Remove the column or correct the value") from None
