"""Checks of settings that many modules share: value, rule, remedy."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from cifarnet.errors import SettingError, SettingTypeError, did_you_mean

__all__ = ["check_choice", "check_count", "check_counts"]


def check_count(key: str, value: object, remedy: str, *, least: int = 1) -> None:
    """Refuse what is no whole number, or too small a one.

    Args:
        key: The setting's name.
        value: What was given.
        remedy: What to do instead.
        least: The smallest allowed.

    Raises:
        SettingTypeError: If it is no whole number.
        SettingError: If it is too small.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):  # numpy's whole numbers are Integral
        raise SettingTypeError(f"{key} must be a whole number, got {value!r}; {remedy}")
    if value < least:
        raise SettingError(f"{key} must be at least {least}, got {value}; {remedy}")


def check_counts(key: str, values: object, length: int, remedy: str) -> None:
    """Refuse what is not so many whole numbers of at least 1.

    Args:
        key: The setting's name.
        values: What was given.
        length: How many there must be.
        remedy: What to do instead.

    Raises:
        SettingTypeError: If it is no list or tuple, or something in it is no whole number.
        SettingError: If there are more or fewer, or one is below 1.
    """
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise SettingTypeError(f"{key} must be {length} whole numbers, got {values!r}; {remedy}")
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
