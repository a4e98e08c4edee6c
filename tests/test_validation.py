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


def test_a_mapping_needs_only_fields_without_a_default() -> None:
    assert from_json(Outer, MINIMAL, "it") == Outer("x", Inner(3))
    assert math.isnan(from_json(Outer, {**MINIMAL, "ratio": "nan"}, "it").ratio)
    with pytest.raises(SettingError, match=r"^it must be a dictionary, got \[\]"):
        from_json(Outer, [], "it")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("ratio", 1, 1.0),
        ("ratio", "-inf", -math.inf),
        ("inner", {"size": 1, "pair": [1, 2]}, Inner(1, (1.0, 2.0))),
        ("inners", [{"size": 1}, {"size": 2}], (Inner(1), Inner(2))),
        ("rows", [[1, 2], [3]], ((1, 2), (3,))),
        ("words", ("a", "b"), ["a", "b"]),
        ("settings", {"lr": 1}, {"lr": 1.0}),
        ("extra", {"any": [None, {"x": object}]}, {"any": [None, {"x": object}]}),
        ("optional", {"size": 2}, Inner(2)),
        ("number", 5, 5),
    ],
)
def test_values_are_converted_by_the_annotations(key: str, value: Any, expected: Any) -> None:
    found = getattr(from_json(Outer, {**MINIMAL, key: value}, "it"), key)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("nmae", "x", r"^it has an unknown 'nmae'; did you mean \"name\"\?"),
        ("name", ..., "^it has no 'name'"),
        ("name", 5, "^it.name must be a string, got 5"),
        ("inner", {"size": 1.0}, "^it.inner.size must be a whole number, got 1.0"),
        ("inner", {"size": 1, "pair": [1]}, r"^it.inner.pair must have 2 items, got \[1\]"),
        ("ratio", "0.5", "^it.ratio must be a number, got '0.5'"),
        ("ratio", 10**400, "^it.ratio must be a number, got 1000"),
        ("ratio", 2, "^ratio must be at most 1, got 2.0"),
        ("is_fast", 1, "^it.is_fast must be true or false, got 1"),
        ("mode", "c", "^it.mode must be one of 'a', 'b', 1, got 'c'"),
        ("mode", True, "^it.mode must be one of .*, got True"),
        ("inners", [{"size": 1}, {"size": "2"}], r"^it.inners\[1\].size must be a whole number, got '2'"),
        ("settings", {"lr": None}, "^it.settings.lr must be a number, got None"),
        ("settings", {1: 2}, "^it.settings must be a dictionary with strings as keys"),
        ("name", ["x" * 100], r"^it.name must be a string, got \['x+\.\.\.$"),
    ],
)
def test_an_error_names_path_rule_and_value(key: Any, value: Any, message: str) -> None:
    values = {name: one for name, one in {**MINIMAL, key: value}.items() if one is not ...}
    with pytest.raises(SettingError, match=message):
        from_json(Outer, values, "it")


@pytest.mark.parametrize(
    ("check", "arguments", "message"),
    [
        (check_count, (0,), "n must be at least 1, got 0; Use 1"),
        (check_count, (1.0,), "n must be a whole number, got 1.0; Use 1"),
        (check_count, (True,), "n must be a whole number, got True"),
        (check_counts, ("12", 2), "n must be 2 whole numbers, got '12'; Use 1"),
        (check_counts, ((1,), 2), r"n must be 2 whole numbers, got \(1,\); Use 1"),
        (check_counts, ((1, 0), 2), "each of n must be at least 1, got 0; Use 1"),
    ],
)
def test_a_wrong_count_is_refused(check: Any, arguments: tuple[Any, ...], message: str) -> None:
    check_count("n", np.int64(5), "Use 1")
    check_counts("n", (1, 2), 2, "Use (1, 1)")
    with pytest.raises(SettingError, match=message):
        check("n", *arguments, "Use 1")


def test_an_unknown_choice_gets_a_suggestion() -> None:
    with pytest.raises(SettingError, match=r'mode "reflekt" is unknown; did you mean "reflect"\?'):
        check_choice("mode", "reflekt", ("reflect", "zero"))
    with pytest.raises(SettingError, match='mode "x" is unknown; choose one of "reflect", "zero"'):
        check_choice("mode", "x", ("zero", "reflect"))
