from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest

from cifarnet._validation import check_choice, check_count, check_counts, from_json
from cifarnet.errors import SettingError


@dataclass(frozen=True)
class Inner:
    size: int
    pair: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    ratio: float = 0.5
    is_fast: bool = False
    mode: Literal["a", "b", 1] = "a"
    inners: tuple[Inner, ...] = ()
    rows: tuple[tuple[int, ...], ...] = ()
    words: list[str] = field(default_factory=list)
    settings: Mapping[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    optional: Inner | None = None
    number: int | str | None = None

    def __post_init__(self) -> None:
        if self.ratio > 1:
            raise SettingError(f"ratio must be at most 1, got {self.ratio}")


MINIMAL: dict[str, Any] = {"name": "x", "inner": {"size": 3}}


def test_missing_fields_have_their_defaults() -> None:
    assert from_json(Outer, MINIMAL, "it") == Outer("x", Inner(3))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("ratio", 1, 1.0),
        ("ratio", "-inf", -math.inf),
        ("inner", {"size": 1, "pair": [1, 2]}, Inner(1, (1.0, 2.0))),
        ("mode", 1, 1),
        ("inners", [{"size": 1}, {"size": 2}], (Inner(1), Inner(2))),
        ("rows", [[1, 2], [3]], ((1, 2), (3,))),
        ("words", ("a", "b"), ["a", "b"]),
        ("settings", {"lr": 1}, {"lr": 1.0}),
        ("extra", {"any": [None, {"x": object}]}, {"any": [None, {"x": object}]}),
        ("optional", None, None),
        ("optional", {"size": 2}, Inner(2)),
        ("number", 5, 5),
        ("number", "five", "five"),
        ("number", None, None),
    ],
)
def test_values_are_converted_by_the_annotations(key: str, value: Any, expected: Any) -> None:
    found = getattr(from_json(Outer, {**MINIMAL, key: value}, "it"), key)
    assert found == expected
    assert type(found) is type(expected)


def test_nan_is_a_number() -> None:
    assert math.isnan(from_json(Outer, {**MINIMAL, "ratio": "nan"}, "it").ratio)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("nmae", "x", r"^it has an unknown 'nmae'; did you mean \"name\"\?"),
        (5, "x", "^it has an unknown 5"),
        ("name", ..., "^it has no 'name'"),
        ("name", 5, "^it.name must be a string, got 5"),
        ("inner", {}, "^it.inner has no 'size'"),
        ("inner", {"size": 1.0}, "^it.inner.size must be a whole number, got 1.0"),
        ("inner", {"size": True}, "^it.inner.size must be a whole number, got True"),
        ("inner", {"size": 1, "more": 2}, "^it.inner has an unknown 'more'"),
        ("inner", {"size": 1, "pair": [1]}, r"^it.inner.pair must have 2 items, got \[1\]"),
        ("inner", [1], r"^it.inner must be a dictionary, got \[1\]"),
        ("ratio", "0.5", "^it.ratio must be a number, got '0.5'"),
        ("ratio", 10**400, "^it.ratio must be a number, got 1000"),
        ("ratio", 2, "^ratio must be at most 1, got 2.0"),
        ("is_fast", 1, "^it.is_fast must be true or false, got 1"),
        ("mode", "c", "^it.mode must be one of 'a', 'b', 1, got 'c'"),
        ("mode", True, "^it.mode must be one of .*, got True"),
        ("mode", ["a"], "^it.mode must be one of"),
        ("inners", [{"size": 1}, {"size": "2"}], r"^it.inners\[1\].size must be a whole number, got '2'"),
        ("rows", [[1], 2], r"^it.rows\[1\] must be a list, got 2"),
        ("words", "ab", "^it.words must be a list, got 'ab'"),
        ("settings", {"lr": None}, "^it.settings.lr must be a number, got None"),
        ("settings", {1: 2}, "^it.settings must be a dictionary with strings as keys"),
        ("optional", 5, "^it.optional must be a dictionary, got 5"),
        ("number", 0.5, "^it.number must be a string, got 0.5"),
        ("name", ["x" * 100], r"^it.name must be a string, got \['x+\.\.\.$"),
    ],
)
def test_an_error_names_path_rule_and_value(key: Any, value: Any, message: str) -> None:
    values = {name: one for name, one in {**MINIMAL, key: value}.items() if one is not ...}
    with pytest.raises(SettingError, match=message):
        from_json(Outer, values, "it")


def test_only_a_mapping_is_read() -> None:
    with pytest.raises(SettingError, match=r"^it must be a dictionary, got \[\]"):
        from_json(Outer, [], "it")


@pytest.mark.parametrize("value", [1, np.int64(5)])
def test_a_count_is_a_whole_number(value: Any) -> None:
    check_count("n", value, "Use 1")


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, SettingError, "n must be at least 1, got 0; Use 1"),
        (1.0, SettingError, "n must be a whole number, got 1.0; Use 1"),
        (True, SettingError, "n must be a whole number, got True"),
    ],
)
def test_a_wrong_count_is_refused(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_count("n", value, "Use 1")


@pytest.mark.parametrize(
    ("values", "error"), [("12", SettingError), ((1,), SettingError), ((1, 0), SettingError), (5, SettingError)]
)
def test_wrong_counts_are_refused(values: Any, error: type[Exception]) -> None:
    check_counts("n", (1, 2), 2, "Use (1, 1)")
    with pytest.raises(error, match="n must be"):
        check_counts("n", values, 2, "Use (1, 1)")


def test_an_unknown_choice_gets_a_suggestion() -> None:
    with pytest.raises(SettingError, match=r'mode "reflekt" is unknown; did you mean "reflect"\?'):
        check_choice("mode", "reflekt", ("reflect", "zero"))
    with pytest.raises(SettingError, match='mode "x" is unknown; choose one of "reflect", "zero"'):
        check_choice("mode", "x", ("zero", "reflect"))
