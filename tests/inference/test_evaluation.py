"""Evaluation as an object: its JSON and its tables."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import answers, scored
from torch import Tensor, nn

from cifarnet import Evaluation
from cifarnet.errors import DataError, SettingError

Answers = tuple[Tensor, Tensor]


def sound() -> dict[str, Any]:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0], [1.0, 0.0, 0.0]])
    document = scored(logits, torch.tensor([0, 1, 0]), classes=("cat", "dog", "cow")).to_dict()
    return dict(json.loads(json.dumps(document)))


@settings(max_examples=60, deadline=None)
@given(given_=answers(), extreme=st.sampled_from([None, math.nan, math.inf, -math.inf]), columns=st.integers(1, 3))
def test_every_evaluation_survives_json(given_: Answers, extreme: float | None, columns: int) -> None:
    logits, labels = given_
    if extreme is not None:
        logits[:: columns + 1, :columns] = extreme
    found = scored(logits, labels, loss_fn=lambda logits, labels: logits.mean())
    back = Evaluation.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert back.to_dict() == found.to_dict()
    assert extreme is not None or back == found
    assert str(back) == str(found)
    assert back.table() == found.table()
    if extreme is not None and math.isnan(extreme):
        assert found.to_dict()["log_loss"] == "nan"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("loss", "0.5", "loss must be a number, got '0.5'"),
        ("confusion_matrix", [[1, 0], [0, 1, 0], [0, 0, 1]], "confusion_matrix of an evaluation contradicts"),
        ("confusion_matrix", [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], r"confusion_matrix\[0\]\[0\] must be a whole number"),
        ("confusion_matrix", [[1, 0, 0], [0, 1, 0], [0, 0, 1]], "reliability_bins of an evaluation contradicts"),
        ("num_top_k", 4, "num_top_k of an evaluation contradicts"),
        ("reliability_bins", [{"num_images": 3}] * 15, r"reliability_bins\[0\] has no 'num_correct'"),
        ("classes", ["cat"], "classes of an evaluation contradicts"),
        ("temperature", 0, r"temperature must be in \[0.001, 1000\], got 0"),
        ("more", 1, "The evaluation has an unknown 'more'"),
        ("log_loss", ..., "The evaluation has no 'log_loss'"),
    ],
)
def test_an_invalid_document_is_refused(key: str, value: Any, message: str) -> None:
    document = {name: one for name, one in {**sound(), key: value}.items() if one is not ...}
    with pytest.raises(DataError, match=message):
        Evaluation.from_dict(document)
    assert Evaluation.from_dict({**sound(), "accuracy": 1.0, "per_class": []}).to_dict() == sound()  # derived values


def test_a_document_of_an_earlier_version_is_read() -> None:
    document = {**sound(), "tta": "flip+shift"}
    earlier = {
        "accuracy_interval": "interval",
        "confusion_matrix": "confusion",
        "log_loss": "nll",
        "reliability_bins": "bins",
        "top_losses": "worst",
        "tta": "test_time_augmentation",
    }
    old = {earlier.get(key, key): value for key, value in document.items()}
    old["test_time_augmentation"] = "multi-crop"
    assert Evaluation.from_dict(old).to_dict() == document


@pytest.mark.filterwarnings("error")
def test_a_share_of_nothing_is_0_and_shown_as_a_dash() -> None:
    logits = torch.eye(4)[torch.tensor([0, 0, 1, 1])].double()
    found = scored(logits, torch.tensor([0, 1, 1, 3]))  # no image has class 2, and none is predicted as 2 or 3
    assert [(one.precision, one.recall) for one in found.per_class] == [(0.5, 1), (0.5, 0.5), (0, 0), (0, 0)]
    assert [one.f1 for one in found.per_class] == [pytest.approx(2 / 3), 0.5, 0, 0]
    rows = {line.split("  ")[0]: line.split()[2:] for line in found.table().splitlines() if line.startswith("class ")}
    assert rows["class 2"] == ["0", "-", "-", "-", "-"]
    assert rows["class 3"] == ["1", "-", "0.0%", "0.0%", "class", "1", "(1)"]


def test_an_evaluation_prints_as_a_line_and_as_a_table() -> None:
    torch.manual_seed(0)
    labels = torch.arange(10_000) % 3
    logits = nn.functional.one_hot(labels, 3) * 2.0
    logits[:2237] = logits[:2237].roll(1, dims=1)
    found = scored(logits, labels, classes=("cat", "dog", "a name of more than twenty-four letters"), temperature=2)
    line = "accuracy 77.63% (95 % interval 76.80% to 78.44%), loss 0.6869, 10,000 images"
    assert str(found) == line
    assert found.table(num_top_losses=1).splitlines() == [
        line,
        "log loss           0.7751",
        "Brier score        0.4324",
        "calibration error  20.02%",
        "temperature        2.000",
        "",
        "class                    images  precision  recall     F1  most confused with",
        "cat                       3,334      77.6%   77.6%  77.6%  dog (746)",
        "dog                       3,333      77.6%   77.6%  77.6%  a name of m…our letters (746)",
        "a name of m…our letters   3,333      77.6%   77.6%  77.6%  cat (745)",
        "",
        "top losses: image    id  class  predicted  probability  log loss",
        "                0  1000  cat    dog              57.6%      1.55",
    ]
    assert found.table(max_classes=0, num_top_losses=0).count("\n") == 4
    for settings_ in ({"max_classes": -1}, {"num_top_losses": -1}):
        with pytest.raises(SettingError, match=r"must be at least 0, got -1"):
            found.table(**settings_)


def test_the_table_shows_the_classes_with_the_lowest_f1() -> None:
    labels = torch.arange(30).repeat(4)
    logits = nn.functional.one_hot(labels, 31) * 5.0  # class 30 has no image
    logits[[7, 12, 19]] = logits[[8, 13, 20]]
    table = scored(logits, labels).table(max_classes=6)
    assert re.findall(r"^class (\d+) ", table, re.MULTILINE) == ["7", "8", "12", "13", "19", "20"]
    assert "25 more classes, none of them with a lower F1" in table
    assert "top-5 accuracy" in table
    assert "&lt;script&gt;" in scored(torch.eye(2), torch.tensor([0, 1]), classes=("<script>", "&"))._repr_html_()
