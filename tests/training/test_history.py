from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cifarnet import EpochRecord, History
from cifarnet.errors import InputError, SettingError
from cifarnet.training.history import is_better

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
def test_csv_and_json_keep_every_digit(tmp_path: Path, rows: list[EpochRecord]) -> None:
    history = History(rows)
    history.save_csv(tmp_path / "history.csv")
    history.save_json(tmp_path / "history.json")
    assert History.load_csv(tmp_path / "history.csv") == history
    assert History.load_json(tmp_path / "history.json") == history
    assert History.from_list(history.to_list()) == history  # type: ignore[arg-type]


def test_a_csv_that_pandas_wrote_is_read(tmp_path: Path) -> None:
    history = History([record(1), record(2)])
    for frame in (history.to_pandas(), history.to_pandas().reset_index()):
        frame.to_csv(tmp_path / "history.csv")
        assert History.load_csv(tmp_path / "history.csv") == history
    history.to_pandas().astype(float).to_csv(tmp_path / "history.csv")
    assert History.load_csv(tmp_path / "history.csv") == history


def test_a_csv_that_a_spreadsheet_wrote_is_read(tmp_path: Path) -> None:
    history = History([record(1), record(2)])
    history.save_csv(tmp_path / "history.csv")
    text = (tmp_path / "history.csv").read_text()
    empty = "," * text.partition("\n")[0].count(",") + "\n"
    english = "\ufeff" + (text + empty).replace("\n", "\r\n")
    german = "\ufeff" + (text + empty).replace(",", ";").replace(".", ",").replace("\n", "\r\n")
    for written in (english, german):
        (tmp_path / "sheet.csv").write_bytes(written.encode())
        assert History.load_csv(tmp_path / "sheet.csv") == history


def test_csv_is_what_a_spreadsheet_expects(tmp_path: Path) -> None:
    History([record(1), record(2)]).save_csv(tmp_path / "history.csv")
    with (tmp_path / "history.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == [
        "epoch", "global_step", "learning_rate", "train_loss", "train_accuracy", "val_loss", "val_accuracy",
        "test_loss", "test_accuracy", "train_s", "eval_s", "images_per_s",
    ]  # fmt: skip
    assert [row[0] for row in rows[1:]] == ["1", "2"]
    assert rows[1][rows[0].index("test_loss")] == ""


def test_a_history_is_a_sequence_with_named_columns() -> None:
    history = History([record(1, train_loss=2.0), record(2, train_loss=1.0)])
    history.append(record(3, train_loss=0.5))
    assert len(history) == 3
    assert history[-1].epoch == 3
    assert history[:2] == History([history[0], history[1]])
    assert history["train_loss"] == [2.0, 1.0, 0.5]
    assert [r.epoch for r in history] == [1, 2, 3]
    assert repr(history) == "<History of 3 epochs>"
    assert history != [*history]


def test_the_best_epoch_is_the_earliest_of_equals_and_never_nan() -> None:
    accuracies = [0.5, math.nan, 0.7, 0.7, 0.6]
    history = History(record(i, val_accuracy=a, val_loss=1 - a) for i, a in enumerate(accuracies, 1))
    for monitor in ("val_accuracy", "val_loss"):
        best = history.best(monitor)
        assert best is not None
        assert best.epoch == 3
    assert History([record(val_accuracy=None)]).best() is None


def test_nothing_is_selected_by_the_test_set() -> None:
    with pytest.raises(SettingError, match='cannot be selected by "test_accuracy"'):
        is_better("test_accuracy", 0.9, 0.1)


def test_a_misspelt_column_is_told_the_right_name() -> None:
    with pytest.raises(SettingError, match='no column "val_acuracy"; did you mean "val_accuracy"'):
        History()["val_acuracy"]


def test_a_record_reads_as_a_line() -> None:
    assert str(record(3, test_loss=1.0, test_accuracy=0.25)) == (
        "epoch 3: train loss 1.5000, accuracy 40.00%; val loss 1.2500, accuracy 50.00%; "
        "test loss 1.0000, accuracy 25.00%; 320 images/s, 2.5 s"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("h.csv", "epoch,loss\n1,2\n", "line 2 lacks global_step"),
        ("h.csv", None, "could not convert string to float: 'much'"),
        ("h.json", "{", "is not JSON"),
        ("h.json", '{"epoch": 1}', "holds no list of epochs"),
        ("h.json", "[3]", "holds no list of epochs"),
        ("h.json", "[{}]", "epoch 1 lacks epoch"),
    ],
)
def test_a_file_that_is_no_history_is_refused(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = tmp_path / name
    if content is None:
        History([record()]).save_csv(path)
        content = path.read_text().replace("320.0", "much")
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        History.load_csv(path) if name.endswith("csv") else History.load_json(path)


@pytest.mark.parametrize(("field", "value"), [("epoch", 1.5), ("train_loss", "1"), ("mood", "good"), ("epoch", True)])
def test_a_row_with_a_value_of_the_wrong_type_is_refused(field: str, value: object) -> None:
    row = {**record().to_dict(), field: value}
    with pytest.raises(InputError, match=f"epoch 1: {field} is"):
        History.from_list([row])


def test_a_result_that_is_nan_survives_the_files(tmp_path: Path) -> None:
    history = History([record(val_loss=math.nan, test_loss=math.inf, test_accuracy=-math.inf)])
    history.save_json(tmp_path / "history.json")
    history.save_csv(tmp_path / "history.csv")
    assert "NaN" not in (tmp_path / "history.json").read_text()
    for loaded in (History.load_json(tmp_path / "history.json"), History.load_csv(tmp_path / "history.csv")):
        assert math.isnan(loaded[0].val_loss or 0)
        assert (loaded[0].test_loss, loaded[0].test_accuracy) == (math.inf, -math.inf)


def test_a_column_that_this_version_does_not_know_is_kept(tmp_path: Path) -> None:
    history = History.from_list([{**record().to_dict(), "grad_norm": 2.5}])
    assert history["grad_norm"] == [2.5]
    assert history[0].metrics["grad_norm"] == 2.5
    history.append(record(2))
    for save, load in ((history.save_csv, History.load_csv), (history.save_json, History.load_json)):
        save(tmp_path / "history")
        assert load(tmp_path / "history") == history
    assert history["grad_norm"] == [2.5, None]


def test_a_metric_of_the_caller_selects_the_best_epoch() -> None:
    history = History([record(1, val_top5=0.9), record(2, val_top5=0.95), record(3, val_top5=0.92)])
    best = history.best("val_top5")
    assert best is not None
    assert best.epoch == 2
    assert "val_top5 0.9500" in str(best)


def test_to_pandas_gives_a_row_per_epoch(tmp_path: Path) -> None:
    frame = History([record(1), record(2, val_top5=0.9)]).to_pandas()
    assert list(frame.index) == [1, 2]
    assert frame["val_accuracy"].tolist() == [0.5, 0.5]
    assert frame["val_top5"].isna().tolist() == [True, False]
    frame.reset_index().to_csv(tmp_path / "history.csv")  # with pandas' own index in front
    assert History.load_csv(tmp_path / "history.csv") == History([record(1), record(2, val_top5=0.9)])
