"""The table of any measurement, by its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cifarnet._validation import did_you_mean
from cifarnet.bench.accuracy import format_accuracy
from cifarnet.bench.inference import format_inference
from cifarnet.bench.saving import format_saving
from cifarnet.bench.start import format_start
from cifarnet.bench.training import format_training
from cifarnet.errors import InputError

__all__ = ["FORMATS", "format_report"]

#: What makes a table of a document, by its ``kind``.
FORMATS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "accuracy": format_accuracy,
    "inference": format_inference,
    "saving": format_saving,
    "start": format_start,
    "training": format_training,
}


def format_report(document: Mapping[str, Any]) -> str:
    """What ``cifarnet bench`` measured, as a table in Markdown.

    Args:
        document: What it printed with ``--json``.

    Raises:
        InputError: If it is none of its documents.
    """
    kind = str(document.get("kind"))
    if kind not in FORMATS:
        raise InputError(f'a measurement of kind "{kind}" is unknown; {did_you_mean(kind, FORMATS)}')
    return FORMATS[kind](document)
