"""Values as text to read. What a file says may be of any type: nothing here fails for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["UNKNOWN", "count", "duration", "number", "percent", "shown"]

#: Where nobody wrote a value down.
UNKNOWN = "not recorded"


def shown(value: Any) -> str:
    """A setting, as a reader would write it."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case Mapping():
            return ", ".join(f"{key} = {shown(item)}" for key, item in value.items()) or "none"
        case list() | tuple():
            return ", ".join(map(shown, value)) or "none"
    return str(value)


def count(value: Any) -> str:
    """Of things: ``10,000``."""
    return f"{value:,}" if _is_number(value) else _other(value)


def number(value: Any, digits: int = 4) -> str:
    """With so many digits behind the point."""
    return f"{value:.{digits}f}" if _is_number(value) else _other(value)


def percent(share: Any, digits: int = 2) -> str:
    """A share of 1 as ``78.32 %``, in one piece."""
    return f"{share:.{digits}%}".replace("%", "\N{NO-BREAK SPACE}%") if _is_number(share) else _other(share)


def duration(seconds: Any) -> str:
    """Seconds as ``6 min 11 s``."""
    if not _is_number(seconds) or not 0 <= seconds < 1e9:
        return _other(seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _other(value: Any) -> str:
    return UNKNOWN if value is None else shown(value)
