"""What came of the recipes where they were run."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

__all__ = ["measured_results"]


def measured_results(name: str) -> list[dict[str, Any]]:
    """The results of a recipe that this version was published with.

    They are made from the reports of the repository's ``docs/results``, a report a run, by ``docs/make_tables.py``.

    Args:
        name: A key of `RECIPES`.

    Returns:
        An entry for each machine, as `cifarnet.report.summarize_seeds` gives it; none where nothing was measured yet.

    Example:
        >>> measured_results("reference")[0]["n"] > 1
        True
    """
    results: list[dict[str, Any]] = json.loads(files("cifarnet.recipes").joinpath("measured.json").read_text("utf-8"))
    return [result for result in results if result["recipe"] == name]
