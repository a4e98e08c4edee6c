"""Parser of an evaluation in plain JSON values. Its schema refuses unknown keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from cifarnet._validation import NON_FINITE
from cifarnet.errors import InputError
from cifarnet.inference.records import ConfidenceBin, TopLoss
from cifarnet.transforms.tta import current_tta_name

__all__ = ["parse_evaluation", "with_current_keys"]

#: Schema of each key of a dictionary, of each item of a list, or of a value: a function that returns the converted
#: value or raises ValueError.
_Schema: TypeAlias = "dict[str, _Schema] | list[_Schema] | Callable[[Any], Any]"

#: Keys of earlier versions and their current names.
_RENAMED = {
    "interval": "accuracy_interval",
    "confusion": "confusion_matrix",
    "nll": "log_loss",
    "bins": "reliability_bins",
    "worst": "top_losses",
    "test_time_augmentation": "tta",
}


def with_current_keys(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Rename the keys of a document that an earlier version wrote.

    Args:
        document: Plain values of an evaluation. A value that is not a mapping is returned unchanged.
    """
    if not isinstance(document, Mapping):
        return document
    new = {key if _RENAMED.get(key, key) in document else _RENAMED.get(key, key): document[key] for key in document}
    return {key: current_tta_name(value) if key == "tta" else value for key, value in new.items()}


def parse_evaluation(document: object) -> dict[str, Any]:
    """Check the keys and types of a result of `Evaluation.to_dict`, and convert it.

    Args:
        document: Result of `Evaluation.to_dict`, also after a round trip through JSON.

    Returns:
        The arguments of `Evaluation`.

    Raises:
        InputError: If a value is missing, is unknown or has another type.
    """
    try:
        values = _read(document, _SCHEMA, "The evaluation")
    except ValueError as error:
        raise InputError(f"{error}. Pass the values that Evaluation.to_dict() returned") from None
    arguments = {key: value for key, value in values.items() if key not in _FOLLOWS}
    bins = [{key: value for key, value in one.items() if key != "accuracy"} for one in arguments["reliability_bins"]]
    return {
        **arguments,
        "reliability_bins": tuple(ConfidenceBin(**one) for one in bins),
        "top_losses": tuple(TopLoss(**one) for one in arguments["top_losses"]),
    }


def _read(value: Any, schema: _Schema, path: str) -> Any:
    if callable(schema):
        try:
            return schema(value)
        except ValueError as error:
            raise ValueError(f"{path} must be {error}, got {_shown(value)}") from None
    if isinstance(schema, list):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{path} must be a list, got {_shown(value)}")
        return tuple(_read(item, schema[0], f"{path}[{i}]") for i, item in enumerate(value))
    if not isinstance(value, Mapping):
        raise ValueError(f"{path} must be a dictionary, got {_shown(value)}")
    for key in sorted(schema.keys() ^ value.keys(), key=str):
        raise ValueError(f"{path} {'has no' if key in schema else 'has an unknown'} {_shown(key)}")
    return {
        key: _read(value[key], inner, key if schema is _SCHEMA else f"{path}.{key}") for key, inner in schema.items()
    }


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("a whole number of at least 0")
    return value


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise ValueError("a whole number")
    return value


def _number(value: Any) -> float:
    try:
        if type(value) in (int, float) or value in NON_FINITE:
            return float(value)
    except OverflowError:  # a whole number above the largest float
        pass
    raise ValueError("a number")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a string")
    return value


def _optional(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


#: Values that follow from the arguments. `Evaluation.from_dict` compares them.
_FOLLOWS: dict[str, _Schema] = {
    "accuracy": _number,
    "accuracy_interval": [_number],
    "num_correct": _count,
    "num_images": _count,
    "k": _count,
    "top_k_accuracy": _number,
    "expected_calibration_error": _number,
    "per_class": [
        {
            "name": _text,
            "num_images": _count,
            "num_predicted": _count,
            "num_correct": _count,
            "precision": _number,
            "recall": _number,
            "f1": _number,
        }
    ],
}

_SCHEMA: _Schema = {
    **_FOLLOWS,
    "loss": _number,
    "confusion_matrix": [[_count]],
    "num_top_k": _count,
    "log_loss": _number,
    "brier": _number,
    "reliability_bins": [
        {
            "num_images": _count,
            "num_correct": _count,
            "confidence": _optional(_number),
            "accuracy": _optional(_number),
        }
    ],
    "top_losses": [
        {
            "index": _count,
            "id": _integer,
            "label": _count,
            "predicted": _count,
            "probability": _number,
            "loss": _number,
        }
    ],
    "classes": [_text],
    "temperature": _number,
    "tta": _optional(_text),
}
