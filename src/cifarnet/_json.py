"""Numbers that JSON does not have, written as words."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["NON_FINITE", "finite_json"]

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
