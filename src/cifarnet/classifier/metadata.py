"""Metadata of ``best.safetensors``: parsed as untrusted input, and turned into a network."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from cifarnet.checkpoint.layout import corrupt
from cifarnet.checkpoint.restore import check_weights
from cifarnet.errors import CheckpointCorruptError, CheckpointMismatchError, SettingError
from cifarnet.inference import TEMPERATURE_RANGE, resolve_precision
from cifarnet.inference.evaluate import check_model_fits
from cifarnet.models import MODELS, build_model
from cifarnet.randomness import isolated
from cifarnet.transforms import Preprocess

__all__ = ["MAX_IMAGE_VALUES", "ClassifierMetadata", "build_from_metadata", "constructor_call", "parse_metadata"]

#: How large ``C * size * size`` may be: 2,364 pixels a side in colour. An image is allocated before it is needed.
MAX_IMAGE_VALUES = 2**24

#: The largest whole number among a network's arguments: far beyond any use, and no product of a few overflows.
MAX_ARGUMENT = 2**20

_Schema: TypeAlias = "dict[str, _Schema] | Callable[[Any], bool]"


@dataclass(frozen=True)
class ClassifierMetadata:
    """A description whose every field has its type and a possible value; whether they fit together is not known.

    Attributes:
        model: Name of the network.
        arguments: What builds it; ``None`` for a user's own network.
        preprocess: Preprocessing of the training images; ``None`` if they were floating batches.
        classes: Names of the classes; none where nobody knew them.
        precision: Number format of the run.
        selected_by: How the weights were chosen: monitor, epoch, value.
        metadata: Plain values that the `Checkpointer` was given.
        data: Name, size and fingerprint of the training images, if they are known.
        temperature: What logits are divided by where they become probabilities.
    """

    model: str
    arguments: dict[str, Any] | None
    preprocess: Preprocess | None
    classes: tuple[str, ...]
    precision: str
    selected_by: dict[str, Any]
    metadata: dict[str, Any]
    data: dict[str, Any] | None
    temperature: float


def parse_metadata(description: Mapping[str, Any], *, name: str) -> ClassifierMetadata:
    """Check what a file says of its weights.

    Args:
        description: As `load_best` gives it.
        name: What messages call the file.

    Returns:
        The same, typed.

    Raises:
        CheckpointCorruptError: If a field is missing or unknown, or has another type or an impossible value.
    """
    description = {"metadata": {}, "temperature": 1.0, **description}  # files of format 1 may lack these
    if "notes" in description:  # the name in format 1
        description["metadata"] = description.pop("notes")
    try:
        _check(description, _SCHEMA, "")
        model, preprocess = description["model"], _parse_preprocess(description["preprocess"])
    except ValueError as error:
        raise corrupt(f"{name} does not describe its weights: {error}") from None
    return ClassifierMetadata(
        model["name"],
        model["arguments"],
        preprocess,
        tuple(description["classes"]),
        description["precision"],
        description["selected_by"],
        description["metadata"],
        description["data"],
        float(description["temperature"]),
    )


def _parse_preprocess(values: Mapping[str, Any] | None) -> Preprocess | None:
    if values is None:
        return None
    _check(values, _PREPROCESS, "preprocess")
    if values["size"] ** 2 * len(values["mean"]) > MAX_IMAGE_VALUES:
        raise ValueError(f"an image of {len(values['mean'])} channels and {values['size']} pixels a side")
    return Preprocess(values["size"], tuple(values["mean"]), tuple(values["std"]))


def build_from_metadata(
    described: ClassifierMetadata, preprocess: Preprocess | None, weights: Mapping[str, Tensor], source: str
) -> nn.Module:
    """The network that a file describes; first without storage, to see that its weights and its images fit."""
    if described.arguments is None or described.model not in MODELS:
        raise CheckpointMismatchError(
            f"{source} holds a {described.model}, which is not one of the library's networks; build it and give it as "
            "model="
        )
    meta = torch.device("meta")
    precision = resolve_precision("float64" if described.precision == "float64" else "float32", meta)
    try:
        with meta:
            shell = build_model(described.model, described.arguments).to(precision.weights)
    except (SettingError, RuntimeError, OverflowError) as error:  # the latter two where torch counts beyond 64 bits
        reason = str(error).partition("\n")[0][:300]
        raise CheckpointCorruptError(f"{source} does not describe its weights: {reason}") from error
    try:
        check_weights(shell, weights, source="what it holds", built_with=constructor_call(described))
    except CheckpointMismatchError as error:
        raise CheckpointCorruptError(f"{source} contradicts itself: {error}") from error
    if preprocess is not None:
        image = torch.zeros(1, len(preprocess.mean), preprocess.size, preprocess.size, dtype=torch.uint8, device=meta)
        num_classes = len(described.classes) or None
        try:
            check_model_fits(shell, image, num_classes, "the classifier", preprocess=preprocess, precision=precision)
        except SettingError as error:
            raise CheckpointMismatchError(f"{source}: {error}") from error
    with torch.device("cpu"), isolated(torch.device("cpu")):  # its first weights are drawn, and then replaced
        return build_model(described.model, described.arguments)


def constructor_call(described: ClassifierMetadata) -> str:
    """``CifarCNN(num_classes=10)``, as it would stand in code: other arguments that are the defaults are left out."""
    name, arguments = described.model, described.arguments
    if arguments is None:
        return f"a {name}"
    parameters = inspect.signature(MODELS[name]).parameters if name in MODELS else {}
    told = [
        f"{key}={arguments[key]!r}"
        for key, parameter in parameters.items()
        if key in arguments and (key == "num_classes" or arguments[key] != parameter.default)
    ]
    return f"{name}({', '.join(told)})"


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


_PREPROCESS: _Schema = {
    "size": _is_count(2, MAX_ARGUMENT),
    "mean": _is_list_of(_is_number),
    "std": _is_list_of(_is_number),
}

_SCHEMA: _Schema = {
    "classes": _is_list_of(_is_text),
    "data": _is_data,
    "metadata": lambda value: isinstance(value, dict) and all(map(_is_text, value)),
    "model": {"name": _is_text, "arguments": _are_arguments},
    "precision": lambda value: value in ("bf16", "float32", "float64"),
    "preprocess": lambda value: value is None or isinstance(value, Mapping),
    "selected_by": {
        "monitor": _is_text,
        "epoch": _is_count(0, 2**63),
        "value": lambda value: value is None or type(value) is float or _is_number(value),
    },
    "temperature": lambda value: _is_number(value) and TEMPERATURE_RANGE[0] <= value <= TEMPERATURE_RANGE[1],
}
