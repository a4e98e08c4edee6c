"""Conversion of a nested state into named tensors and a JSON value, and back.

The JSON value has the shape of the state. A dictionary with one reserved key stands for what JSON cannot express:

==========================  =============================================================
``{"$tensor": name}``       the tensor of that name in the file
``{"$tuple": [...]}``       a tuple
``{"$float": "nan"}``       a float that is not finite: ``nan``, ``inf`` or ``-inf``
``{"$dict": [[k, v]...]}``  a dictionary with integer keys, or with a key that starts with ``$``
==========================  =============================================================

Dictionaries are visited in sorted order, so that equal states give equal files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from cifarnet._types import Json
from cifarnet.errors import SettingError

__all__ = ["RESERVED_NAME", "flatten", "unflatten"]

#: The one name that safetensors does not give to a tensor.
RESERVED_NAME = "__metadata__"


def flatten(state: object) -> tuple[dict[str, Tensor], Json]:
    """Split a nested state into named tensors and a JSON value that refers to them.

    The name of a tensor is its path, such as ``"optimizer/state/0/exp_avg"``. If two paths read the same, the later one
    gets a suffix ``~2``. The tensors are not copied.

    Args:
        state: Dictionaries (keys str or int), lists and tuples of None, bool, int, float, str and tensors. Numbers
            and arrays of numpy become plain numbers and lists.

    Returns:
        Tensors by name, and the JSON value for `unflatten`.

    Raises:
        SettingError: If the state holds anything else, at any depth. The message names the path.

    Example:
        >>> flatten({"epoch": 3, "betas": (0.9, float("inf"))})[1]
        {'betas': {'$tuple': [0.9, {'$float': 'inf'}]}, 'epoch': 3}
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _flatten(state, (), tensors)


def _flatten(value: object, path: tuple[str, ...], tensors: dict[str, Tensor]) -> Json:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()  # a plain number, or a list of them
    if isinstance(value, Tensor):
        name = _unused_name("/".join(path), tensors)
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, Mapping):
        return _flatten_mapping(value, path, tensors)
    # Exact types from here on: a named tuple is a tuple, but would not come back as one.
    if type(value) is list or type(value) is tuple:
        items = [_flatten(item, (*path, str(index)), tensors) for index, item in enumerate(value)]
        return items if type(value) is list else {"$tuple": items}
    if type(value) is float and not math.isfinite(value):
        return {"$float": repr(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value  # type: ignore[return-value]
    raise SettingError(
        f"{_at(path)} is a {type(value).__name__}; a checkpoint holds dict, list, tuple, None, bool, int, float, str "
        "and tensors. Convert it (float(x), list(x), torch.as_tensor(x)) or leave it out of state_dict()"
    )


def _flatten_mapping(value: Mapping[Any, object], path: tuple[str, ...], tensors: dict[str, Tensor]) -> Json:
    for key in value:
        if type(key) is not str and type(key) is not int:
            raise SettingError(f"{_at(path)} has a key {key!r} of type {type(key).__name__}; keys are str or int")
    ordered = sorted(value.items(), key=lambda item: (type(item[0]) is str, item[0]))
    flat = [(key, _flatten(item, (*path, str(key)), tensors)) for key, item in ordered]
    if all(type(key) is str and not key.startswith("$") for key in value):
        return dict(flat)
    return {"$dict": [[key, item] for key, item in flat]}


def _unused_name(name: str, tensors: Mapping[str, Tensor]) -> str:
    unused, count = name, 1
    while unused in tensors or unused == RESERVED_NAME:
        count += 1
        unused = f"{name}~{count}"
    return unused


def _at(path: tuple[str, ...]) -> str:
    return "/".join(path) or "the state"


def unflatten(tensors: Mapping[str, Tensor], values: Json) -> Any:
    """Build the state that `flatten` has split.

    Args:
        tensors: Tensors by name. Each must be referred to exactly once.
        values: JSON value that refers to them.

    Returns:
        A state equal to the original. It holds the given tensors, not copies.

    Raises:
        ValueError: If `flatten` cannot have written ``values``, or they do not fit ``tensors``.
        TypeError: If ``values`` hold a dictionary with a key or an item of the wrong type.

    Example:
        >>> unflatten({}, {"betas": {"$tuple": [0.9, {"$float": "inf"}]}, "epoch": 3})
        {'betas': (0.9, inf), 'epoch': 3}
    """
    unused = dict(tensors)
    state = _unflatten(values, unused)
    if unused:
        raise ValueError(f"nothing refers to tensor {next(iter(unused))!r}")
    return state


def _unflatten(value: Json, unused: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unflatten(item, unused) for item in value]
    if not isinstance(value, dict):
        return value
    if not any(key.startswith("$") for key in value):
        return {key: _unflatten(item, unused) for key, item in value.items()}
    match list(value.items()):
        case [("$tensor", str(name))] if name in unused:
            return unused.pop(name)
        case [("$float", "nan" | "inf" | "-inf" as text)]:
            return float(text)
        case [("$tuple", list(items))]:
            return tuple(_unflatten(item, unused) for item in items)
        case [("$dict", list(pairs))]:
            return {key: _unflatten(item, unused) for key, item in pairs}  # type: ignore[misc,str-unpack]
    raise ValueError(f"unknown or dangling reference {str(value)[:80]}")
