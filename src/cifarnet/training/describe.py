"""Description of settings by plain values, and comparison of two descriptions."""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import os
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cifarnet._validation import shorten

__all__ = ["describe_value", "differences", "incomparable_parts"]

_INCOMPARABLE = "incomparable"
#: Settings that `describe_value` has described.
_DESCRIBED = ("augment", "resize", "batch_transform", "loss_fn", "lr_schedule")
_MAX_DEPTH = 20
_MODULE_ATTRIBUTES = {*vars(nn.Module())}


def describe_value(value: Any, *, model: nn.Module | None = None, depth: int = 0) -> Any:
    """Describe a setting by plain values that are equal if and only if the setting is.

    A function or class is described by its name, an object by its class and its fields, a tensor by a hash.

    Args:
        value: Setting, such as a loss or a transform.
        model: Model that is trained. Its parts change, so that a setting which holds them is described without them.
        depth: Depth of ``value`` in the setting.

    Returns:
        Nested dictionaries and lists of plain values. A value that cannot be compared, such as a lambda, becomes
        ``{"incomparable": ...}``.

    Example:
        >>> describe_value(nn.CrossEntropyLoss(label_smoothing=0.1))["fields"]["label_smoothing"]
        0.1
        >>> describe_value(lambda logits, labels: 0)
        {'incomparable': 'a lambda'}
    """
    inside = functools.partial(describe_value, model=model, depth=depth + 1)
    if depth > _MAX_DEPTH:
        return {_INCOMPARABLE: f"a {type(value).__name__} that contains itself"}
    if model is not None and isinstance(value, nn.Module | Tensor) and _is_part_of(model, value):
        return {"global": "the model"}
    if isinstance(value, Enum):
        return {"class": _name(type(value)), "value": value.name}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return _hash(value)
    if isinstance(value, Mapping):
        return {str(key): inside(entry) for key, entry in value.items()}
    if isinstance(value, Sequence):
        return [inside(entry) for entry in value]
    if isinstance(value, functools.partial):
        return {"partial": inside(value.func), "args": inside(value.args), "keywords": inside(value.keywords)}
    if isinstance(value, types.MethodType):  # the state of its object may change in every step
        return {_INCOMPARABLE: f"a method of a {type(value.__self__).__name__}"}
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        return _name_of_global(value)
    if isinstance(value, torch.dtype | torch.device | os.PathLike):
        return str(value)
    if not is_dataclass(value) and not hasattr(value, "__dict__"):
        return {_INCOMPARABLE: f"a {type(value).__name__}"}
    return {"class": _name(type(value)), "fields": {key: inside(entry) for key, entry in _fields(value).items()}}


def _is_part_of(model: nn.Module, value: nn.Module | Tensor) -> bool:
    return any(part is value for part in (*model.modules(), *model.parameters(), *model.buffers()))


def _fields(value: Any) -> dict[str, Any]:
    """Return the constructor arguments or attributes of an object."""
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if type(value).__module__.partition(".")[0] in ("torch", "torchvision"):
        # Private attributes of these change between versions.
        names = inspect.signature(type(value).__init__).parameters
        found = {name: getattr(value, name) for name in names if name != "self" and hasattr(value, name)}
    else:
        found = {name: entry for name, entry in vars(value).items() if name not in _MODULE_ATTRIBUTES}
    if isinstance(value, nn.Module):
        own = (value.named_parameters(recurse=False), value.named_buffers(recurse=False), value.named_children())
        found |= dict(itertools.chain(*own))
    return found


def _hash(value: Tensor | np.ndarray | np.generic) -> Any:
    if isinstance(value, np.generic) or value.ndim == 0:
        return value.item()
    tensor = torch.as_tensor(value, device="cpu").detach().contiguous()
    digest = hashlib.sha256(tensor.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
    return {"tensor": digest, "shape": list(tensor.shape), "dtype": str(tensor.dtype)}


def _name(value: Any) -> str:
    """Return package and name, without the module, which may move between versions."""
    package = (value.__module__ or "").partition(".")[0]
    return f"{package}.{value.__qualname__}" if package in ("cifarnet", "torch", "torchvision") else value.__qualname__


def _name_of_global(value: Any) -> Any:
    found: Any = sys.modules.get(value.__module__ or "builtins")
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is value:
        return {"global": _name(value)}
    kind = "a lambda" if value.__name__ == "<lambda>" else f"{value.__qualname__}, which is local to a function"
    return {_INCOMPARABLE: kind}


def differences(saved: Any, now: Any, name: str = "") -> Iterator[str]:
    """Yield ``weight_decay 0.0001 in the run, 0.0005 now`` for each value that differs, at any depth."""
    if isinstance(saved, list | tuple) and isinstance(now, list | tuple) and len(saved) == len(now):
        for index, (one, other) in enumerate(zip(saved, now, strict=True)):
            yield from differences(one, other, f"{name}[{index}]")
        return
    are_mappings = isinstance(saved, Mapping) and isinstance(now, Mapping)
    if are_mappings and _INCOMPARABLE in saved and _INCOMPARABLE in now:
        return
    kinds = (_INCOMPARABLE, "class")
    if not are_mappings or [saved.get(key) for key in kinds] != [now.get(key) for key in kinds]:
        if saved != now:
            yield f"{name.replace('.fields', '')} {_short(saved)} in the run, {_short(now)} now"
        return
    # A field or argument that only one side has was added or removed by another version of a library.
    keys = saved.keys() & now.keys() if name.endswith("fields") else saved.keys()
    if name.partition(".")[0] in _DESCRIBED and not name.endswith("fields"):
        keys = saved.keys() | now.keys()
    for key in sorted(keys, key=str):
        yield from differences(saved.get(key), now.get(key), f"{name}.{key}".lstrip("."))


def incomparable_parts(now: Any, name: str = "") -> Iterator[str]:
    """Yield ``loss_fn is a lambda, which cannot be compared`` for each such value."""
    if isinstance(now, Mapping) and _INCOMPARABLE in now:
        yield f"{name.replace('.fields', '')} is {now[_INCOMPARABLE]}, which cannot be compared"
    elif isinstance(now, Mapping):
        for key, value in now.items():
            yield from incomparable_parts(value, f"{name}.{key}".lstrip("."))
    elif isinstance(now, list):
        for index, value in enumerate(now):
            yield from incomparable_parts(value, f"{name}[{index}]")


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("class") or value.get("global") or value.get(_INCOMPARABLE) or value.get("batches") or value
    return value if isinstance(value, str) and len(value) <= 60 else shorten(value)
