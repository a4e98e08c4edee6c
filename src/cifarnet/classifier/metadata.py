"""Metadata of ``best.safetensors``, parsed as untrusted input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cifarnet._validation import from_json, shorten
from cifarnet.checkpoint.file import corrupt
from cifarnet.errors import SettingError
from cifarnet.inference.calibration import check_temperature
from cifarnet.transforms import Preprocess

__all__ = ["MAX_IMAGE_VALUES", "ClassifierMetadata", "constructor_call", "parse_metadata"]

#: Largest ``C * size * size``: a side of 2,364 pixels in colour. The check of the network allocates such an image.
MAX_IMAGE_VALUES = 2**24

#: Largest number among a network's arguments. No product of a few of them overflows.
MAX_ARGUMENT = 2**20


@dataclass(frozen=True)
class ModelMetadata:
    """Class name of the network, and its constructor arguments; ``None`` for a user's own network."""

    name: str
    arguments: dict[str, Any] | None

    def __post_init__(self) -> None:
        for key, value in (self.arguments or {}).items():
            if not _is_argument(value):
                raise SettingError(f"model.arguments.{key} is {shorten(value)}")


@dataclass(frozen=True)
class SelectionMetadata:
    """Monitor, epoch and value that selected the weights."""

    monitor: str
    epoch: int
    value: float | None

    def __post_init__(self) -> None:
        if self.epoch < 0:
            raise SettingError(f"selected_by.epoch is {shorten(self.epoch)}")


@dataclass(frozen=True)
class DataMetadata:
    """Name, size and fingerprint of the training images."""

    name: str
    num_images: int
    fingerprint: str


@dataclass(frozen=True)
class ClassifierMetadata:
    """Metadata whose fields have the right type and range each. Contradictions between fields are not checked.

    Attributes:
        model: Network and its arguments.
        preprocess: Preprocessing of the training images; ``None`` if they were floating batches.
        classes: Names of the classes; empty if they are unknown.
        precision: Precision of the run.
        selected_by: Monitor, epoch and value that selected the weights.
        data: Training images; ``None`` if they are unknown.
        metadata: Plain values from the `Checkpointer`. Files of format 1 may lack them.
        temperature: Divisor of the logits before the softmax.
    """

    model: ModelMetadata
    preprocess: Preprocess | None
    classes: tuple[str, ...]
    precision: Literal["bf16", "float32", "float64"]
    selected_by: SelectionMetadata
    data: DataMetadata | None
    metadata: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if self.preprocess is None:
            return
        size, mean, std = self.preprocess.size, self.preprocess.mean, self.preprocess.std
        if size**2 * len(mean) > MAX_IMAGE_VALUES or max(map(abs, (*mean, *std)), default=0) > MAX_ARGUMENT:
            raise SettingError(f"preprocess is {shorten(self.preprocess)}")


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
    # "notes" is the name of "metadata" in format 1.
    values = {"metadata" if key == "notes" else key: value for key, value in description.items()}
    try:
        return from_json(ClassifierMetadata, values, "the metadata")
    except SettingError as error:
        raise corrupt(f"{name} has invalid metadata: {error}") from None


def constructor_call(model: ModelMetadata) -> str:
    """Return code such as ``CifarCNN(num_classes=10)`` for error messages."""
    arguments = (f"{key}={value!r}" for key, value in (model.arguments or {}).items())
    return f"{model.name}({', '.join(arguments)})"


def _is_argument(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(map(_is_argument, value))
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) in (bool, str) or (type(value) is int and abs(value) <= MAX_ARGUMENT)
