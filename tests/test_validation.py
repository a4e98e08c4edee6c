from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from cifarnet._validation import from_json, shorten


@dataclass(frozen=True)
class Point:
    x: float
    y: float = 0.0


@dataclass(frozen=True)
class Everything:
    name: str
    count: int
    is_on: bool
    kind: Literal["a", "b"]
    pair: tuple[int, str]
    points: tuple[Point, ...] = ()
    values: list[float] = field(default_factory=list)
    more: Mapping[str, int] = field(default_factory=dict)
    either: int | str | None = None
    anything: Any = None


VALID: dict[str, Any] = {"name": "n", "count": 3, "is_on": True, "kind": "a", "pair": [1, "one"]}


def test_reader_builds_nested_dataclasses() -> None:
    built = from_json(
        Everything,
        {**VALID, "points": [{"x": 1}, {"x": "nan", "y": "-inf"}], "values": [2], "more": {"k": 1}, "either": "text"},
        "it",
    )
    assert built.pair == (1, "one")
    assert built.points[0] == Point(1.0)
    assert math.isnan(built.points[1].x)
    assert built.points[1].y == -math.inf
    assert (built.values, built.more, built.either) == ([2.0], {"k": 1}, "text")
    assert from_json(Everything, VALID, "it").either is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 3}, "it.name must be a string, got 3"),
        ({"count": True}, "it.count must be a whole number, got True"),
        ({"count": 3.0}, "it.count must be a whole number"),
        ({"is_on": 1}, "it.is_on must be true or false, got 1"),
        ({"kind": "c"}, "it.kind must be one of 'a', 'b', got 'c'"),
        ({"pair": [1]}, "it.pair must have 2 items"),
        ({"pair": "ab"}, "it.pair must be a list"),
        ({"points": [{"x": 1}, {"x": "one"}]}, r"it\.points\[1\]\.x must be a number, got 'one'"),
        ({"points": [3]}, r"it\.points\[0\] must be a dictionary, got 3"),
        ({"points": [{"x": 10**400}]}, "x must be a number"),
        ({"more": {1: 1}}, "it.more must be a dictionary with strings as keys"),
        ({"either": 1.5}, "it.either must be a string, got 1.5"),
        ({"nmae": "n"}, "it has an unknown 'nmae'; did you mean \"name\""),
    ],
)
def test_reader_names_the_path_of_a_wrong_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(Everything, {**VALID, **changes}, "it")


def test_reader_names_a_missing_field() -> None:
    with pytest.raises(ValueError, match="it has no 'count'"):
        from_json(Everything, {key: value for key, value in VALID.items() if key != "count"}, "it")
    with pytest.raises(ValueError, match="it must be a dictionary, got None"):
        from_json(Everything, None, "it")


def test_long_values_are_cut_in_messages() -> None:
    assert shorten("x" * 100) == "'" + "x" * 56 + "..."
