"""What a ``best`` file says of its weights, read as if somebody hostile had written it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from cifarnet.checkpoint.codec import flatten
from cifarnet.checkpoint.layout import corrupt
from cifarnet.errors import SettingTypeError
from cifarnet.metrics import TEMPERATURE_RANGE

__all__ = ["MAX_IMAGE_VALUES", "Description", "checked_notes", "parse_description"]

#: How large ``C * size * size`` may be: 2,364 pixels a side in colour. An image is allocated before it is needed.
MAX_IMAGE_VALUES = 2**24

#: The largest whole number among a network's arguments: far beyond any use, and no product of a few overflows.
MAX_ARGUMENT = 2**20

_Schema: TypeAlias = "dict[str, _Schema] | Callable[[Any], bool]"


@dataclass(frozen=True)
class Description:
    """A description whose every field has its type and a possible value; whether they fit together is not known.

    Attributes:
        model: Name of the network.
        arguments: What builds it; ``None`` for a user's own network.
        size: Side of an image in pixels.
        mean: Of each channel.
        std: Of each channel.
        classes: Names of the classes; none where nobody knew them.
        precision: Number format of the run.
        selected_by: How the weights were chosen: monitor, epoch, value.
        notes: Whatever whoever trained it wanted to be kept.
        data: Name, size and fingerprint of the training images, if they are known.
        temperature: What logits are divided by where they become probabilities.
    """

    model: str
    arguments: dict[str, Any] | None
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    precision: str
    selected_by: dict[str, Any]
    notes: dict[str, Any]
    data: dict[str, Any] | None
    temperature: float


def parse_description(description: Mapping[str, Any], *, name: str) -> Description:
    """Check what a file says of its weights.

    Args:
        description: As `load_best` gives it.
        name: What messages call the file.

    Returns:
        The same, typed.

    Raises:
        CheckpointCorruptError: If a field is missing or unknown, or has another type or an impossible value.
    """
    description = {"notes": {}, "temperature": 1.0, **description}  # older files lack these
    try:
        _check(description, _SCHEMA, "")
        model, preprocess = description["model"], description["preprocess"]
        if preprocess["size"] ** 2 * len(preprocess["mean"]) > MAX_IMAGE_VALUES:
            raise ValueError(f"an image of {len(preprocess['mean'])} channels and {preprocess['size']} pixels a side")
    except ValueError as error:
        raise corrupt(f"{name} does not describe its weights: {error}") from None
    return Description(
        model["name"],
        model["arguments"],
        preprocess["size"],
        tuple(preprocess["mean"]),
        tuple(preprocess["std"]),
        tuple(description["classes"]),
        description["precision"],
        description["selected_by"],
        description["notes"],
        description["data"],
        float(description["temperature"]),
    )


def checked_notes(notes: object) -> dict[str, Any]:
    """Notes that can be written beside weights: plain values, as deep as they like.

    Args:
        notes: What somebody wants to be kept.

    Returns:
        A copy of the outermost dictionary.

    Raises:
        SettingTypeError: If it is no dictionary of texts to values, or holds a tensor or what cannot be saved.
    """
    if not isinstance(notes, Mapping) or not all(map(_is_text, notes)):
        raise SettingTypeError(f'notes must be a dictionary such as {{"recipe": "mine"}}, got {_shown(notes)}')
    tensors, _ = flatten(dict(notes))
    if tensors:
        raise SettingTypeError(f"notes hold a tensor, {next(iter(tensors))}; use a list")
    return dict(notes)


def _check(value: Any, schema: _Schema, path: str) -> None:
    """Compare with a closed schema: the keys are just those, and each value is what its test says."""
    if callable(schema):
        if not schema(value):
            raise ValueError(f"{path} is {_shown(value)}")
    elif not isinstance(value, Mapping):
        raise ValueError(f"{path} is {_shown(value)}")
    else:
        for key in sorted(schema.keys() ^ value.keys(), key=str):
            raise ValueError(f"{path or 'it'} {'has no' if key in schema else 'has an unknown'} {_shown(key)}")
        for key, inner in schema.items():
            _check(value[key], inner, f"{path}.{key}" if path else key)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_count(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _is_number(value: Any) -> bool:
    # In this order: math.isfinite raises OverflowError for a whole number beyond the floats.
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) <= MAX_ARGUMENT)


def _is_list_of(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: type(value) in (list, tuple) and all(map(test, value))


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_argument(value: Any) -> bool:
    plain = value is None or type(value) in (bool, str) or _is_number(value)
    return plain or _is_list_of(_is_argument)(value)


def _are_arguments(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, dict) and all(map(_is_text, value)) and all(map(_is_argument, value.values()))


def _is_data(value: Any) -> bool:
    match value:
        case None:
            return True
        case {"name": str(), "num_images": num_images, "fingerprint": str()}:
            return len(value) == 3 and _is_count(1, 2**63)(num_images)
    return False


_SCHEMA: _Schema = {
    "classes": _is_list_of(_is_text),
    "data": _is_data,
    "notes": lambda value: isinstance(value, dict) and all(map(_is_text, value)),
    "model": {"name": _is_text, "arguments": _are_arguments},
    "precision": lambda value: value in ("bf16", "float32", "float64"),
    "preprocess": {
        "size": _is_count(2, MAX_ARGUMENT),
        "mean": _is_list_of(_is_number),
        "std": _is_list_of(_is_number),
    },
    "selected_by": {
        "monitor": _is_text,
        "epoch": _is_count(0, 2**63),
        "value": lambda value: value is None or type(value) is float or _is_number(value),
    },
    "temperature": lambda value: _is_number(value) and TEMPERATURE_RANGE[0] <= value <= TEMPERATURE_RANGE[1],
}
