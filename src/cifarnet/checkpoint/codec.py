"""A nested state and its two flat halves: tensors by readable name, and everything else as JSON.

The JSON has the state's own shape. What JSON cannot say is a dictionary with one key of ours:

=========================  ===========================================================
``{"$tensor": name}``      the tensor that the file holds under that name
``{"$tuple": [...]}``      a tuple
``{"$float": "nan"}``      a float without digits: ``nan``, ``inf`` or ``-inf``
``{"$dict": [[k, v]...]}``  a dictionary with integer keys, or with a key that starts with ``$``
=========================  ===========================================================

Dictionaries are walked in sorted order, so that equal states give equal halves; the order in which the
keys were inserted is not kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from cifarnet._types import Json
from cifarnet.errors import SettingTypeError

__all__ = ["MAX_DEPTH", "MAX_INT_BITS", "RESERVED_NAME", "flatten", "unflatten"]

#: How deep a state may nest. Real ones reach about 6; the limit ends a list that contains itself.
MAX_DEPTH = 64

#: How large an integer may be. Seeds and generator states have 128 bits; a bound keeps parsing linear.
MAX_INT_BITS = 1024

#: The one name that safetensors does not give to a tensor.
RESERVED_NAME = "__metadata__"

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def flatten(state: object) -> tuple[dict[str, Tensor], Json]:
    """Take a nested state apart into tensors with names and a JSON value that refers to them.

    A tensor is called after its path, ``"optimizer/state/0/exp_avg"``; where two paths read the same, the
    later one gets a suffix ``~2``. Nothing is copied: the tensors are the state's own.

    Args:
        state: Dictionaries (keys str or int), lists and tuples of None, bool, int, float, str and tensors. Numbers
            and arrays of numpy become plain numbers and lists.

    Returns:
        The tensors by name, and the rest for `unflatten`.

    Raises:
        SettingTypeError: If something else is in it, at any depth; the message names the path.

    Example:
        >>> flatten({"epoch": 3, "betas": (0.9, float("inf"))})[1]
        {'betas': {'$tuple': [0.9, {'$float': 'inf'}]}, 'epoch': 3}
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _flatten(state, (), tensors)


def _flatten(value: object, path: tuple[str, ...], tensors: dict[str, Tensor]) -> Json:
    if len(path) > MAX_DEPTH:
        raise SettingTypeError(f"{_at(path[:8])}/... nests deeper than {MAX_DEPTH} levels; does it contain itself?")
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
    return _flatten_leaf(value, path)


def _flatten_mapping(value: Mapping[Any, object], path: tuple[str, ...], tensors: dict[str, Tensor]) -> Json:
    for key in value:
        if type(key) is not str and type(key) is not int:
            raise SettingTypeError(f"{_at(path)} has a key {key!r} of type {_type(key)}; keys are str or int")
        _flatten_leaf(key, path)  # an integer too large or text that is not Unicode
    ordered = sorted(value.items(), key=lambda item: (type(item[0]) is str, item[0]))
    flat = [(key, _flatten(item, (*path, str(key)), tensors)) for key, item in ordered]
    if all(type(key) is str and not key.startswith("$") for key in value):
        return dict(flat)
    return {"$dict": [[key, item] for key, item in flat]}


def _flatten_leaf(value: object, path: tuple[str, ...]) -> Json:
    if value is None or type(value) is bool:
        return value
    if type(value) is int:
        if value.bit_length() > MAX_INT_BITS:
            raise SettingTypeError(f"{_at(path)} is an integer of {value.bit_length()} bits, at most {MAX_INT_BITS}")
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if type(value) is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise SettingTypeError(f"{_at(path)} is {value!r}, which is not valid Unicode (a lone surrogate)") from None
        return value
    raise SettingTypeError(
        f"{_at(path)} is a {_type(value)}; a checkpoint holds dict, list, tuple, None, bool, int, float, str and "
        "tensors. Convert it (float(x), list(x), torch.as_tensor(x)) or leave it out of state_dict()"
    )


def _unused_name(name: str, tensors: Mapping[str, Tensor]) -> str:
    unused, count = name, 1
    while unused in tensors or unused == RESERVED_NAME:
        count += 1
        unused = f"{name}~{count}"
    return unused


def _at(path: tuple[str, ...]) -> str:
    return "/".join(path) or "the state"


def _type(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def unflatten(tensors: Mapping[str, Tensor], values: Json) -> Any:
    """Put together what `flatten` took apart.

    Args:
        tensors: The tensors by name; each must be referred to exactly once.
        values: The JSON value that refers to them.

    Returns:
        A state equal to the one that was taken apart, holding ``tensors``' own tensors.

    Raises:
        ValueError: If ``values`` is not what `flatten` writes, or does not fit ``tensors``.

    Example:
        >>> unflatten({}, {"betas": {"$tuple": [0.9, {"$float": "inf"}]}, "epoch": 3})
        {'betas': (0.9, inf), 'epoch': 3}
    """
    unused = dict(tensors)
    state = _unflatten(values, unused, 0)
    if unused:
        raise ValueError(f"tensor {next(iter(unused))!r} belongs nowhere")
    return state


def _unflatten(value: Json, unused: dict[str, Tensor], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"values nest deeper than {MAX_DEPTH} levels")
    if isinstance(value, list):
        return [_unflatten(item, unused, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if not any(key.startswith("$") for key in value):
        return {key: _unflatten(item, unused, depth + 1) for key, item in value.items()}
    if len(value) == 1:
        match value:
            case {"$tensor": str(name)} if name in unused:
                return unused.pop(name)
            case {"$float": str(text)} if text in _NON_FINITE:
                return _NON_FINITE[text]
            case {"$tuple": list(items)}:
                return tuple(_unflatten(item, unused, depth + 1) for item in items)
            case {"$dict": list(pairs)}:
                return _unflatten_pairs(pairs, unused, depth)
    raise ValueError(f"unknown or dangling reference {str(value)[:80]}")


def _unflatten_pairs(pairs: list[Json], unused: dict[str, Tensor], depth: int) -> dict[str | int, Any]:
    state: dict[str | int, Any] = {}
    for pair in pairs:
        match pair:
            case [str() | int() as key, item] if type(key) is not bool and key not in state:
                state[key] = _unflatten(item, unused, depth + 1)
            case _:
                raise ValueError(f"not a pair of a new key and a value: {str(pair)[:80]}")
    return state
