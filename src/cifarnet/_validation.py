"""Checks of settings, and the one reader of dataclasses from JSON."""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from numbers import Integral
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cifarnet.errors import SettingError

__all__ = [
    "NON_FINITE",
    "check_choice",
    "check_count",
    "check_counts",
    "did_you_mean",
    "finite_json",
    "from_json",
    "shorten",
]

Built = TypeVar("Built")


#: The words for them; ``float`` reads each.
NON_FINITE = ("nan", "inf", "-inf")


def finite_json(value: Any) -> Any:
    """The same value with ``"nan"``, ``"inf"`` and ``"-inf"`` for the numbers that JSON does not have.

    Args:
        value: Numbers, texts, lists and dicts.

    Example:
        >>> finite_json({"val_loss": [float("nan"), 0.5]})
        {'val_loss': ['nan', 0.5]}
    """
    if isinstance(value, dict):
        return {key: finite_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(item) for item in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def check_count(key: str, value: object, remedy: str, *, least: int = 1) -> None:
    """Refuse a value that is not a whole number of at least ``least``.

    Args:
        key: The setting's name.
        value: What was given.
        remedy: What to do instead.
        least: The smallest allowed.

    Raises:
        SettingError: If it is not a whole number, or too small.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):  # numpy's whole numbers are Integral
        raise SettingError(f"{key} must be a whole number, got {value!r}; {remedy}")
    if value < least:
        raise SettingError(f"{key} must be at least {least}, got {value}; {remedy}")


def check_counts(key: str, values: object, length: int, remedy: str) -> None:
    """Refuse a value that is not a list of ``length`` whole numbers of at least 1.

    Args:
        key: The setting's name.
        values: What was given.
        length: How many there must be.
        remedy: What to do instead.

    Raises:
        SettingError: If it is not a list or tuple of ``length`` whole numbers, each at least 1.
    """
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise SettingError(f"{key} must be {length} whole numbers, got {values!r}; {remedy}")
    if len(values) != length:
        raise SettingError(f"{key} must be {length} whole numbers, got {values!r}; {remedy}")
    for value in values:
        check_count(f"each of {key}", value, remedy)


def check_choice(key: str, value: str, options: tuple[str, ...]) -> None:
    """Refuse an unknown name, and suggest the nearest right one.

    Args:
        key: The setting's name.
        value: What was given.
        options: What would have been right.

    Raises:
        SettingError: If it is none of them.
    """
    if value not in options:
        raise SettingError(f'{key} "{value}" is unknown; {did_you_mean(str(value), options)}')


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """The tail of a message about an unknown name: the nearest right one, or all of them.

    Args:
        name: What was given.
        options: What would have been right.

    Returns:
        A clause to put behind a semicolon.

    Example:
        >>> did_you_mean("refrence", ["basic", "reference"])
        'did you mean "reference"?'
        >>> did_you_mean("x", ["basic", "reference"])
        'choose one of "basic", "reference"'
    """
    known = sorted(options)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f'did you mean "{near[0]}"?'
    return "choose one of " + ", ".join(f'"{option}"' for option in known)


def from_json(cls: type[Built], values: object, name: str) -> Built:
    """Build a dataclass from plain JSON values.

    The keys are closed: each is a field, and a field without a default must be there. The annotations of the fields
    decide which types are valid: ``bool``, ``int``, ``float`` (also a whole number, ``"nan"``, ``"inf"``, ``"-inf"``),
    ``str``, ``None``, ``Any``, ``Literal``, unions, ``tuple``, ``list``, ``dict``, ``Mapping`` and other dataclasses. A
    list becomes a tuple where the annotation says tuple.

    Args:
        cls: The dataclass.
        values: Mapping of its fields to values.
        name: Name of the whole in error messages.

    Returns:
        An instance. Ranges are the business of its ``__post_init__``.

    Raises:
        SettingError: If a key or a value does not fit. The message names its path.
    """
    if not isinstance(values, Mapping):
        raise SettingError(f"{name} must be a dictionary, got {shorten(values)}")
    known = {field.name: field for field in fields(cls) if field.init}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise SettingError(f"{name} has an unknown {shorten(key)}; {did_you_mean(str(key), known)}")
    for key, field in known.items():
        if key not in values and field.default is MISSING and field.default_factory is MISSING:
            raise SettingError(f"{name} has no {key!r}")
    hints = get_type_hints(cls)
    return cls(**{key: _read(hints[key], value, f"{name}.{key}") for key, value in values.items()})


def _read(hint: Any, value: Any, path: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        choices = [choice for choice in inner if choice is not type(None)]
        for choice in choices[:-1]:
            try:
                return _read(choice, value, path)
            except SettingError:
                continue
        return _read(choices[-1], value, path)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return from_json(hint, value, path)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in inner or type(value) not in map(type, inner):
            raise SettingError(f"{path} must be one of {', '.join(map(repr, inner))}, got {shorten(value)}")
        return value
    if origin in (tuple, list):
        return _read_list(origin, inner, value, path)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise SettingError(f"{path} must be a dictionary with strings as keys, got {shorten(value)}")
        return {key: _read(inner[1], item, f"{path}.{key}") for key, item in value.items()}
    if hint is float and (type(value) is int or (isinstance(value, str) and value in NON_FINITE)):
        try:
            return float(value)
        except OverflowError:
            raise SettingError(f"{path} must be a number, got {shorten(value)}") from None
    if type(value) is not hint:
        raise SettingError(f"{path} must be {_TYPE_NAMES.get(hint, hint)}, got {shorten(value)}")
    return value


def _read_list(cls: type, inner: tuple[Any, ...], value: Any, path: str) -> Any:
    if not isinstance(value, list | tuple):
        raise SettingError(f"{path} must be a list, got {shorten(value)}")
    if cls is tuple and inner[-1] is not Ellipsis:
        if len(value) != len(inner):
            raise SettingError(f"{path} must have {len(inner)} items, got {shorten(value)}")
        return tuple(_read(hint, item, f"{path}[{i}]") for i, (hint, item) in enumerate(zip(inner, value, strict=True)))
    return cls(_read(inner[0], item, f"{path}[{i}]") for i, item in enumerate(value))


_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", type(None): "null"}


def shorten(value: object, length: int = 60) -> str:
    """Return ``repr(value)``, cut to ``length`` characters for an error message."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."
