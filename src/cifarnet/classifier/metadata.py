"""Metadata of ``best.safetensors``, parsed as untrusted input, and the network that it describes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from cifarnet.checkpoint.file import corrupt
from cifarnet.checkpoint.state_dict import check_weights
from cifarnet.errors import CheckpointMismatchError, SettingError
from cifarnet.inference import TEMPERATURE_RANGE, resolve_precision
from cifarnet.inference.evaluate import check_model_fits
from cifarnet.models import MODELS, build_model
from cifarnet.randomness import isolated
from cifarnet.transforms import Preprocess

__all__ = ["MAX_IMAGE_VALUES", "ClassifierMetadata", "build_from_metadata", "constructor_call", "parse_metadata"]

#: Largest ``C * size * size``: a side of 2,364 pixels in colour. The check of the network allocates such an image.
MAX_IMAGE_VALUES = 2**24

#: Largest integer among a network's arguments. No product of a few of them overflows.
MAX_ARGUMENT = 2**20

_Schema: TypeAlias = "dict[str, _Schema] | Callable[[Any], bool]"


@dataclass(frozen=True)
class ClassifierMetadata:
    """Metadata whose fields have the right type and range each. Contradictions between fields are not checked.

    Attributes:
        model: Class name of the network.
        arguments: Constructor arguments of the network; ``None`` for a user's own network.
        preprocess: Preprocessing of the training images; ``None`` if they were floating batches.
        classes: Names of the classes; empty if they are unknown.
        precision: Precision of the run.
        selected_by: Monitor, epoch and value that selected the weights.
        metadata: Plain values from the `Checkpointer`.
        data: Name, size and fingerprint of the training images; ``None`` if they are unknown.
        temperature: Divisor of the logits before the softmax.
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
    """Check the type and range of each field of the metadata.

    Args:
        description: Metadata from `load_best`.
        name: Name of the file in error messages.

    Returns:
        The metadata, typed.

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
        raise corrupt(f"{name} has invalid metadata: {error}") from None
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
        raise ValueError(f"an image has {len(values['mean'])} channels and a side of {values['size']} pixels")
    return Preprocess(values["size"], tuple(values["mean"]), tuple(values["std"]))


def build_from_metadata(
    described: ClassifierMetadata, preprocess: Preprocess | None, weights: Mapping[str, Tensor], source: str
) -> nn.Module:
    """Build the network that a file describes.

    A network without storage is built first, to check that the weights and the images of the file fit it.
    """
    if described.arguments is None or described.model not in MODELS:
        raise CheckpointMismatchError(
            f"{source} holds a {described.model}, which is not one of the library's networks. Build it and pass it as "
            "model="
        )
    meta = torch.device("meta")
    precision = resolve_precision("float64" if described.precision == "float64" else "float32", meta)
    try:
        with meta:
            shell = build_model(described.model, described.arguments).to(precision.weights)
    except (SettingError, RuntimeError, OverflowError) as error:  # the last two if a size exceeds 64 bits
        reason = str(error).partition("\n")[0][:300]
        raise corrupt(f"{source} has invalid metadata: {reason}") from error
    try:
        check_weights(shell, weights, source="its content")
    except CheckpointMismatchError as error:
        differences = str(error).partition(". ")[0]  # without the remedy, which is for a wrong model
        network = constructor_call(described)
        raise corrupt(f"{source} contradicts itself. It describes {network}, and {differences}") from error
    if preprocess is not None:
        image = torch.zeros(1, len(preprocess.mean), preprocess.size, preprocess.size, dtype=torch.uint8, device=meta)
        num_classes = len(described.classes) or None
        try:
            check_model_fits(shell, image, num_classes, "the classifier", preprocess=preprocess, precision=precision)
        except SettingError as error:
            raise CheckpointMismatchError(f"{source}: {error}") from error
    with torch.device("cpu"), isolated(torch.device("cpu")):  # the initial weights are drawn, and later replaced
        return build_model(described.model, described.arguments)


def constructor_call(described: ClassifierMetadata) -> str:
    """Return code such as ``CifarCNN(num_classes=10)``, without arguments that have their default value."""
    name, arguments = described.model, described.arguments
    if arguments is None:
        return f"a {name}"
    parameters = inspect.signature(MODELS[name]).parameters if name in MODELS else {}
    written = [
        f"{key}={arguments[key]!r}"
        for key, parameter in parameters.items()
        if key in arguments and (key == "num_classes" or arguments[key] != parameter.default)
    ]
    return f"{name}({', '.join(written)})"


def _check(value: Any, schema: _Schema, path: str) -> None:
    """Compare a value with a closed schema: exactly its keys, and values that pass their tests.

    Raises:
        ValueError: Naming the first key or value that does not fit.
    """
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
    # The type comes first: math.isfinite raises OverflowError for an integer beyond the floats.
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
