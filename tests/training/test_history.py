from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cifarnet import EpochRecord, History
from cifarnet._validation import finite_json
from cifarnet.errors import DataError, SettingError

numbers = st.floats(allow_nan=False, allow_infinity=False)
FIELDS = ("learning_rate", "train_s", "eval_s", "images_per_s")


def record(epoch: int = 1, **metrics: float | None) -> EpochRecord:
    plain = {"train_loss": 1.5, "train_accuracy": 0.4, "val_loss": 1.25, "val_accuracy": 0.5}
    known = {name: value for name, value in {**plain, **metrics}.items() if value is not None}
    return EpochRecord(epoch, 10 * epoch, 1e-3, train_s=2.0, eval_s=0.5, images_per_s=320.0, metrics=known)


metrics = st.fixed_dictionaries(
    dict.fromkeys(("train_loss", "train_accuracy"), numbers),
    optional=dict.fromkeys(("val_loss", "val_accuracy", "test_loss", "test_accuracy", "val_top5"), numbers),
)
records = st.builds(
    EpochRecord,
    **{name: st.integers(0, 2**53) for name in ("epoch", "global_step")},
    **dict.fromkeys(FIELDS, numbers),
    metrics=metrics,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(records, max_size=5))
def test_csv_keeps_every_digit(tmp_path: Path, rows: list[EpochRecord]) -> None:
    history = History(rows)
    history.save_csv(tmp_path / "history.csv")
    assert History.load_csv(tmp_path / "history.csv") == history
    assert History.from_list(history.to_list()) == history  # type: ignore[arg-type]


def test_a_csv_of_pandas_is_read(tmp_path: Path) -> None:
    history = History([record(1), record(2, val_top5=0.9)])
    assert list(history.to_pandas().index) == [1, 2]
    assert history.to_pandas()["val_top5"].isna().tolist() == [True, False]
    for frame in (history.to_pandas(), history.to_pandas().reset_index()):
        frame.to_csv(tmp_path / "history.csv")
        assert History.load_csv(tmp_path / "history.csv") == history
    history.to_pandas().astype(float).to_csv(tmp_path / "history.csv")
    assert History.load_csv(tmp_path / "history.csv") == history


def test_a_csv_of_a_spreadsheet_is_read(tmp_path: Path) -> None:
    history = History([record(1), record(2)])
    history.save_csv(tmp_path / "history.csv")
    text = (tmp_path / "history.csv").read_text()
    empty = "," * text.partition("\n")[0].count(",") + "\n"
    english = "\ufeff" + (text + empty).replace("\n", "\r\n")
    german = "\ufeff" + (text + empty).replace(",", ";").replace(".", ",").replace("\n", "\r\n")
    for written in (english, german):
        (tmp_path / "sheet.csv").write_bytes(written.encode())
        assert History.load_csv(tmp_path / "sheet.csv") == history


def test_a_history_is_a_sequence_with_named_columns() -> None:
    history = History([record(1, train_loss=2.0), record(2, train_loss=1.0)])
    history.append(record(3, train_loss=0.5))
    assert len(history) == 3
    assert history[-1].epoch == 3
    assert history[:2] == History([history[0], history[1]])
    assert history["train_loss"] == [2.0, 1.0, 0.5]
    assert [r.epoch for r in history] == [1, 2, 3]


def test_the_best_epoch_is_the_earliest_of_equals_and_never_nan() -> None:
    accuracies = [0.5, math.nan, 0.7, 0.7, 0.6]
    history = History(record(i, val_accuracy=a, val_loss=1 - a) for i, a in enumerate(accuracies, 1))
    assert history.best("val_accuracy") is history.best("val_loss") is history[2]
    assert History([record(val_accuracy=None)]).best() is None


def test_a_misspelt_column_gets_a_suggestion() -> None:
    with pytest.raises(SettingError, match='no column "val_acuracy"; did you mean "val_accuracy"'):
        History()["val_acuracy"]


def test_a_record_reads_as_a_line() -> None:
    assert str(record(3, test_loss=1.0, test_accuracy=0.25)) == (
        "epoch 3: train loss 1.5000, accuracy 40.00%; val loss 1.2500, accuracy 50.00%; "
        "test loss 1.0000, accuracy 25.00%; 320 images/s, 2.5 s"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [("epoch,loss\n1,2\n", "line 2 lacks global_step"), (None, "could not convert string to float: 'much'")],
)
def test_a_file_that_is_no_history_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    History([record()]).save_csv(tmp_path / "h.csv")
    text = (tmp_path / "h.csv").read_text().replace("320.0", "much") if content is None else content
    (tmp_path / "h.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        History.load_csv(tmp_path / "h.csv")


@pytest.mark.parametrize(("field", "value"), [("epoch", 1.5), ("train_loss", "1"), ("mood", "good"), ("epoch", True)])
def test_a_row_with_a_value_of_the_wrong_type_is_refused(field: str, value: object) -> None:
    row = {**record().to_dict(), field: value}
    with pytest.raises(DataError, match=rf"epoch 1\.(metrics\.)?{field} must be"):
        History.from_list([row])


def test_a_result_that_is_nan_survives_the_files(tmp_path: Path) -> None:
    history = History([record(val_loss=math.nan, test_loss=math.inf, test_accuracy=-math.inf)])
    history.save_csv(tmp_path / "history.csv")
    text = json.loads(json.dumps(finite_json(history.to_list()), allow_nan=False))
    for loaded in (History.load_csv(tmp_path / "history.csv"), History.from_list(text)):
        assert math.isnan(loaded[0].val_loss or 0)
        assert (loaded[0].test_loss, loaded[0].test_accuracy) == (math.inf, -math.inf)


def test_a_column_that_this_version_does_not_know_is_kept(tmp_path: Path) -> None:
    history = History.from_list([{**record().to_dict(), "grad_norm": 2.5}])
    assert history["grad_norm"] == [2.5]
    assert history[0].metrics["grad_norm"] == 2.5
    history.append(record(2))
    history.save_csv(tmp_path / "history.csv")
    assert History.load_csv(tmp_path / "history.csv") == history
    assert history["grad_norm"] == [2.5, None]
