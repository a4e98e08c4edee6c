"""Taking a state apart and putting it together changes nothing, whatever the state."""

from __future__ import annotations

import json
import math
import struct
from collections import OrderedDict, namedtuple
from enum import IntEnum
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cifarnet.checkpoint.codec import MAX_DEPTH, flatten, unflatten
from cifarnet.errors import SettingTypeError

DTYPES = [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any dtype, 0 to 3 dimensions, also empty ones; the bits are small integers."""
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    values = draw(st.lists(st.integers(0, 1), min_size=math.prod(shape), max_size=math.prod(shape)))
    return torch.tensor(values, dtype=dtype).reshape(shape)


tricky_keys = st.sampled_from(["", "/", "a/b", "a", "b", "0", "a~2", "$tensor", "$tuple", "$x", "__metadata__"])
keys = tricky_keys | st.text(max_size=4) | st.integers(-3, 3)
leaves = st.none() | st.booleans() | st.integers(-(2**1024) + 1, 2**1024 - 1) | st.floats() | st.text() | tensors()
states = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=5)
        | st.dictionaries(tricky_keys, inner, max_size=5)
    ),
    max_leaves=12,
)


def fingerprint(value: Any) -> Any:
    """A value that is equal only for states that agree in type and bit at every place."""
    if isinstance(value, Tensor):
        return ("tensor", str(value.dtype), tuple(value.shape), value.reshape(-1).view(torch.uint8).tolist())
    if isinstance(value, dict):
        return ("dict", {(type(key), key): fingerprint(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return (type(value), [fingerprint(item) for item in value])
    if isinstance(value, float):
        return ("float", "nan" if math.isnan(value) else struct.pack("<d", value))
    return (type(value), value)


@given(states)
def test_every_state_comes_back_with_equal_types_and_bits(state: Any) -> None:
    named, values = flatten(state)
    through_json = json.loads(json.dumps(values, allow_nan=False, sort_keys=True))
    assert fingerprint(unflatten(named, through_json)) == fingerprint(state)


@given(states)
def test_no_tensor_gets_the_name_that_safetensors_reserves(state: Any) -> None:
    assert "__metadata__" not in flatten({"__metadata__": torch.zeros(1), "state": state})[0]


@given(st.dictionaries(keys, leaves, max_size=6), st.randoms())
def test_the_order_of_insertion_changes_nothing(state: dict[Any, Any], random: Any) -> None:
    items = list(state.items())
    random.shuffle(items)
    shuffled_tensors, shuffled = flatten(dict(items))
    named, values = flatten(state)
    assert json.dumps(shuffled, sort_keys=True) == json.dumps(values, sort_keys=True)
    assert list(shuffled_tensors) == list(named)
    assert all(shuffled_tensors[name] is named[name] for name in named)


def test_names_of_tensors_are_readable_paths() -> None:
    state = {"model": {"conv1.weight": torch.zeros(1)}, "optimizer": {"state": {0: {"exp_avg": torch.zeros(1)}}}}
    assert list(flatten(state)[0]) == ["model/conv1.weight", "optimizer/state/0/exp_avg"]


def test_paths_that_read_the_same_get_different_names() -> None:
    state = {"a": {"b": torch.tensor(1)}, "a/b": torch.tensor(2), "a/b~2": torch.tensor(3)}
    named, values = flatten(state)
    assert list(named) == ["a/b", "a/b~2", "a/b~2~2"]
    assert unflatten(named, values) == state


def test_tensors_are_passed_on_not_copied() -> None:
    tensor = torch.zeros(3)
    named, values = flatten({"x": tensor})
    assert named["x"] is tensor
    assert unflatten(named, values)["x"] is tensor


def test_an_ordered_dict_comes_back_as_a_dict() -> None:
    state = torch.nn.Linear(2, 2).state_dict()
    back = unflatten(*flatten(state))
    assert type(back) is dict
    assert back.keys() == state.keys()
    assert type(flatten(OrderedDict(a=1))[1]) is dict


class Colour(IntEnum):
    RED = 1


Point = namedtuple("Point", "x")


@pytest.mark.parametrize(
    "value",
    [
        Colour.RED,
        Point(1),
        torch.Size([1]),
        torch.float32,
        torch.device("cpu"),
        {1, 2},
        b"bytes",
        1j,
        object(),
        2**1024,
        -(2**1024),
        "\ud800",
        {"\udfff": 1},
        {1.5: 1},
        {True: 1},
        {(1, 2): 1},
        {None: 1},
        {2**1024: 1},
    ],
    ids=lambda value: f"{type(value).__name__}-{str(value)[:12]!a}",
)
def test_what_would_not_come_back_is_refused_by_path(value: object) -> None:
    with pytest.raises(SettingTypeError, match=r"optimizer/groups/1/lr"):
        flatten({"optimizer": {"groups": [{}, {"lr": value}]}})


def test_a_refusal_says_what_to_do() -> None:
    with pytest.raises(SettingTypeError, match=r"lr is a complex; .* Convert it \(float\(x\)"):
        flatten({"lr": 1j})
    with pytest.raises(SettingTypeError, match="the state is a set"):
        flatten(set())


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float64(0.1), 0.1),
        (np.int64(1), 1),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array([0.9, 0.99]), [0.9, 0.99]),
        ((np.float32(0.5), np.int8(3)), (0.5, 3)),
    ],
)
def test_numbers_of_numpy_become_plain_values(value: object, plain: object) -> None:
    tensors, values = flatten({"value": value})
    assert unflatten(tensors, json.loads(json.dumps(values))) == {"value": plain}


def test_a_list_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(SettingTypeError, match=r"state/0/0.* nests deeper than 64 levels"):
        flatten({"state": endless})


def test_the_deepest_state_allowed_comes_back() -> None:
    state: Any = 1
    for level in range(MAX_DEPTH):
        state = {level: state} if level % 2 else (state,)
    assert unflatten(*flatten(state)) == state
    with pytest.raises(SettingTypeError, match="nests deeper"):
        flatten([state])


@pytest.mark.parametrize(
    "values",
    [
        {"$tensor": "y"},
        {"$tensor": 1},
        {"$tensor": ["x"]},
        {"$tuple": 1},
        {"$tuple": {}},
        {"$float": "1.0"},
        {"$float": 1.0},
        {"$float": ["nan"]},
        {"$dict": {}},
        {"$dict": [[1]]},
        {"$dict": [[1, 2, 3]]},
        {"$dict": [[True, 2]]},
        {"$dict": [[None, 2]]},
        {"$dict": [[1.0, 2]]},
        {"$dict": [["a", 1], ["a", 2]]},
        {"$dict": ["ab"]},
        {"$other": 1},
        {"$tensor": "x", "more": 1},
        {"$tuple": [], "$float": "nan"},
        {"a": {"$": 1}},
    ],
    ids=str,
)
def test_values_that_flatten_never_writes_are_refused(values: Any) -> None:
    with pytest.raises(ValueError, match=r"reference|pair"):
        unflatten({"x": torch.zeros(1)}, values)


def test_a_tensor_is_used_once_and_only_once() -> None:
    x = torch.zeros(1)
    with pytest.raises(ValueError, match="'x' belongs nowhere"):
        unflatten({"x": x}, {})
    with pytest.raises(ValueError, match="dangling"):
        unflatten({"x": x}, [{"$tensor": "x"}, {"$tensor": "x"}])


def test_values_nested_too_deep_are_refused() -> None:
    values: Any = 1
    for _ in range(MAX_DEPTH + 1):
        values = [values]
    with pytest.raises(ValueError, match="deeper than 64"):
        unflatten({}, values)
