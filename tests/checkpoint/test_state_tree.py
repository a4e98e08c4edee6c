"""Splitting a state and building it again changes nothing, for any state."""

from __future__ import annotations

import json
import math
import struct
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cifarnet.checkpoint.state_tree import flatten, unflatten
from cifarnet.errors import SettingError

DTYPES = [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Draw a small tensor of any dtype with 0 to 3 dimensions."""
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    return torch.randint(2, shape).to(draw(st.sampled_from(DTYPES)))


tricky_keys = st.sampled_from(["", "/", "a/b", "a", "b", "0", "a~2", "$tensor", "$tuple", "$x", "__metadata__"])
keys = tricky_keys | st.text(max_size=4) | st.integers(-3, 3)
leaves = st.none() | st.booleans() | st.integers(-(2**1024), 2**1024) | st.floats() | st.text() | tensors()
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
    """Return a value that is equal only for states that agree in every type and bit."""
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
    assert "__metadata__" not in flatten({"__metadata__": torch.zeros(1), "state": state})[0]


@given(st.dictionaries(keys, leaves, max_size=6), st.randoms())
def test_order_of_insertion_changes_nothing(state: dict[Any, Any], random: Any) -> None:
    items = list(state.items())
    random.shuffle(items)
    shuffled_tensors, shuffled = flatten(dict(items))
    named, values = flatten(state)
    assert json.dumps(shuffled, sort_keys=True) == json.dumps(values, sort_keys=True)
    assert list(shuffled_tensors) == list(named)
    assert all(shuffled_tensors[name] is named[name] for name in named)


def test_names_of_tensors_are_readable_and_unique_paths() -> None:
    tensor = torch.tensor(1)
    state = {"optimizer": {"state": {0: {"exp_avg": tensor}}}, "a": {"b": tensor}, "a/b": tensor, "a/b~2": tensor}
    assert list(flatten(state)[0]) == ["a/b", "a/b~2", "a/b~2~2", "optimizer/state/0/exp_avg"]


Point = namedtuple("Point", "x")


@pytest.mark.parametrize(
    "value",
    [Point(1), torch.Size([1]), torch.float32, {1, 2}, b"bytes", 1j, {1.5: 1}, {True: 1}, {None: 1}],
    ids=lambda value: f"{type(value).__name__}-{str(value)[:12]!a}",
)
def test_value_that_would_not_come_back_is_refused_by_path(value: object) -> None:
    with pytest.raises(SettingError, match=r"optimizer/groups/1/lr (has a key|is a .* Convert it \(float\(x\))"):
        flatten({"optimizer": {"groups": [{}, {"lr": value}]}})


def test_numbers_of_numpy_become_plain_values() -> None:
    state = {"lr": np.float64(0.1), "step": np.int64(1), "betas": np.array([0.9, 0.99]), "pair": (np.float32(0.5), 3)}
    tensors, values = flatten(state)
    back = unflatten(tensors, json.loads(json.dumps(values)))
    assert back == {"lr": 0.1, "step": 1, "betas": [0.9, 0.99], "pair": (0.5, 3)}


@pytest.mark.parametrize(
    "values",
    [
        {"$tensor": "x"},  # for the second time
        {"$tensor": ["x"]},
        {"$tensor": "x", "more": 1},
        {"$tuple": 1},
        {"$tuple": [], "$float": "nan"},
        {"$float": "1.0"},
        {"$float": 1.0},
        {"$dict": {}},
        {"$dict": [[1]]},
        {"$dict": [[[], 2]]},
        {"$other": 1},
        {"a": {"$": 1}},
    ],
    ids=str,
)
def test_values_that_flatten_never_writes_are_refused(values: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        unflatten({"x": torch.zeros(1)}, [{"$tensor": "x"}, values])


def test_tensor_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing refers to tensor 'x'"):
        unflatten({"x": torch.zeros(1)}, {})
