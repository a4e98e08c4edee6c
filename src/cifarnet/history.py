"""What a run did, epoch by epoch, as plain data."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from cifarnet._files import write_atomic
from cifarnet._json import NON_FINITE, finite_json
from cifarnet._types import Json
from cifarnet.errors import InputError, SettingError, did_you_mean

__all__ = ["MONITORS", "EpochRecord", "History", "finite_json", "is_better"]

#: What a run can be selected by, and whether more of it is better. The test set is not among them.
MONITORS = {"val_accuracy": True, "val_loss": False}


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of training.

    Args:
        epoch: How many epochs are done, from 1.
        global_step: How many optimizer steps are done.
        learning_rate: Of the first parameter group at the epoch's last step.
        train_loss: Mean loss an image over the epoch, in training mode, on augmented images.
        train_accuracy: Share classified right, measured likewise; a fraction in ``[0, 1]``.
        val_loss: Mean loss an image on the validation images; ``None`` without them.
        val_accuracy: Share of them classified right.
        test_loss: Mean loss an image on the test images, where a run watches them; selects nothing.
        test_accuracy: Share of them classified right.
        train_s: Seconds of training in this epoch, over all parts of a resumed run.
        eval_s: Seconds of evaluation.
        images_per_s: Training images a second of ``train_s``.
    """

    epoch: int
    global_step: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    train_s: float
    eval_s: float
    images_per_s: float

    def __str__(self) -> str:
        parts = [f"epoch {self.epoch}: train loss {self.train_loss:.4f}, accuracy {self.train_accuracy:.2%}"]
        for split, loss, accuracy in (
            ("val", self.val_loss, self.val_accuracy),
            ("test", self.test_loss, self.test_accuracy),
        ):
            if loss is not None and accuracy is not None:
                parts.append(f"{split} loss {loss:.4f}, accuracy {accuracy:.2%}")
        parts.append(f"{self.images_per_s:,.0f} images/s, {self.train_s + self.eval_s:.1f} s")
        return "; ".join(parts)


_FIELDS = {field.name: field for field in dataclasses.fields(EpochRecord)}
_INTEGERS = ("epoch", "global_step")
_OPTIONAL = ("val_loss", "val_accuracy", "test_loss", "test_accuracy")


class History(Sequence[EpochRecord]):
    """The records of a run in order, and their columns by name.

    Args:
        records: Those there are to begin with.

    Example:
        >>> history = History()
        >>> len(history), history.column("train_loss")
        (0, [])
    """

    def __init__(self, records: Iterable[EpochRecord] = ()) -> None:
        self._records = list(records)

    @overload
    def __getitem__(self, index: int) -> EpochRecord: ...
    @overload
    def __getitem__(self, index: slice) -> History: ...
    def __getitem__(self, index: int | slice) -> EpochRecord | History:
        return History(self._records[index]) if isinstance(index, slice) else self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[EpochRecord]:
        return iter(self._records)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, History) and self._records == other._records

    __hash__ = None  # type: ignore[assignment]  # it grows

    def __repr__(self) -> str:
        return f"<History of {len(self)} epochs>"

    def append(self, record: EpochRecord) -> None:
        """Add the next epoch.

        Args:
            record: Of that epoch.
        """
        self._records.append(record)

    def column(self, name: str) -> list[float | None]:
        """One value an epoch.

        Args:
            name: A field of `EpochRecord`.

        Returns:
            Its values, ``None`` where there is none.

        Raises:
            SettingError: If there is no such field.
        """
        if name not in _FIELDS:
            raise SettingError(f'there is no column "{name}"; {did_you_mean(name, _FIELDS)}')
        return [getattr(record, name) for record in self._records]

    def best(self, monitor: str = "val_accuracy") -> EpochRecord | None:
        """The epoch with the best validation; the earliest of equals.

        Args:
            monitor: ``"val_accuracy"`` or ``"val_loss"``.

        Returns:
            Its record; ``None`` where no epoch was validated.

        Raises:
            SettingError: If the run cannot be selected by ``monitor``.
        """
        best: EpochRecord | None = None
        for record in self._records:
            if is_better(monitor, getattr(record, monitor, None), getattr(best, monitor, None)):
                best = record
        return best

    def to_list(self) -> list[Json]:
        """The records as plain values, for JSON."""
        return [dataclasses.asdict(record) for record in self._records]

    @classmethod
    def from_list(cls, rows: Iterable[Mapping[str, Any]]) -> History:
        """The inverse of `to_list`.

        Args:
            rows: A mapping an epoch.

        Raises:
            InputError: If a row lacks a field, has one too many, or a value of the wrong type.
        """
        return cls(_record(_without_words(row), f"epoch {number}") for number, row in enumerate(rows, 1))

    def save_csv(self, path: str | Path) -> None:
        """Write a header and a line an epoch; numbers with all their digits.

        Args:
            path: Replaced whole, or left as it was.
        """
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(_FIELDS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(record) for record in self._records)
        write_atomic(Path(path), text.getvalue().encode())

    @classmethod
    def load_csv(cls, path: str | Path) -> History:
        """Read what `save_csv` wrote.

        Args:
            path: The file.

        Raises:
            InputError: If it is not such a file.
            OSError: If it cannot be read.
        """
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return cls(_record(_numbers(row, str(path)), f"{path}, line {line}") for line, row in enumerate(rows, 2))

    def save_json(self, path: str | Path) -> None:
        """Write a JSON list with an object an epoch; JSON has no NaN, so one is written as ``"nan"``.

        Args:
            path: Replaced whole, or left as it was.
        """
        write_atomic(Path(path), (json.dumps(finite_json(self.to_list()), indent=1) + "\n").encode())

    @classmethod
    def load_json(cls, path: str | Path) -> History:
        """Read what `save_json` wrote.

        Args:
            path: The file.

        Raises:
            InputError: If it is not such a file.
            OSError: If it cannot be read.
        """
        try:
            rows = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not JSON ({error}); give a file that save_json wrote") from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InputError(f"{path} holds no list of epochs; give a file that save_json wrote")
        return cls.from_list(rows)


def is_better(monitor: str, value: float | None, than: float | None) -> bool:
    """Whether a validation result improves on another; NaN never does.

    Args:
        monitor: A key of `MONITORS`.
        value: The new result.
        than: The best so far, ``None`` at first.

    Raises:
        SettingError: If the run cannot be selected by ``monitor``.

    Example:
        >>> is_better("val_loss", 0.4, than=0.5), is_better("val_accuracy", float("nan"), than=None)
        (True, False)
    """
    if monitor not in MONITORS:
        raise SettingError(f'a run cannot be selected by "{monitor}"; {did_you_mean(monitor, MONITORS)}')
    if value is None or math.isnan(value):
        return False
    if than is None:
        return True
    return value > than if MONITORS[monitor] else value < than


def _without_words(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: float(value) if value in NON_FINITE else value for key, value in row.items()}


def _numbers(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    try:
        return {
            name: None if text == "" and name in _OPTIONAL else int(text) if name in _INTEGERS else float(text)
            for name, text in row.items()
        }
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}; give a file that save_csv wrote") from error


def _record(row: Mapping[str, Any], where: str) -> EpochRecord:
    if set(row) != set(_FIELDS):
        missing, extra = sorted(set(_FIELDS) - set(row)), sorted(str(key) for key in set(row) - set(_FIELDS))
        raise InputError(f"{where}: missing columns {missing}, unknown columns {extra}; the rest of the file is fine")
    for name, value in row.items():
        right = isinstance(value, int) if name in _INTEGERS else isinstance(value, int | float)
        if not (right or (value is None and name in _OPTIONAL)) or isinstance(value, bool):
            raise InputError(f"{where}: {name} is {value!r}, not a number; the rest of the file is fine")
    return EpochRecord(**row)
