"""Classifiers in files: their network is built from the description in ``best.safetensors``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cifarnet.checkpoint import Checkpointer, load_best
from cifarnet.checkpoint.file import corrupt
from cifarnet.checkpoint.state_dict import check_weights, load_weights, unwrapped_state_dict
from cifarnet.classifier.metadata import ClassifierMetadata, constructor_call, parse_metadata
from cifarnet.errors import CheckpointError, CheckpointMismatchError, DataError, SettingError
from cifarnet.inference import resolve_device, resolve_precision
from cifarnet.inference.evaluate import check_model_fits
from cifarnet.models import MODELS, build_model
from cifarnet.models.registry import describe_model
from cifarnet.randomness import isolated
from cifarnet.transforms import Preprocess

if TYPE_CHECKING:
    from cifarnet.classifier.classifier import Classifier

__all__ = ["blank_image", "load_classifier", "save_classifier"]


def load_classifier(
    cls: type[Classifier],
    path: str | Path,
    model: nn.Module | None,
    *,
    preprocess: Preprocess | None,
    device: str | torch.device,
    precision: str | None,
) -> Classifier:
    """Build a classifier from a file, see `Classifier.load`."""
    device = resolve_device(device)
    if precision is not None:
        resolve_precision(precision, device)  # before the file is read
    weights, values = load_best(path)
    metadata = parse_metadata(values, name=str(path))
    preprocess = metadata.preprocess if preprocess is None else preprocess
    if model is None:
        model = _build_network(metadata, preprocess, weights, str(path))
    model.to(resolve_precision(metadata.precision, torch.device("cpu")).weights)
    load_weights(model, weights, source=str(path), built_with=constructor_call(metadata.model))
    try:
        classifier = cls(
            model,
            preprocess,
            metadata.classes,
            device=device,
            precision=metadata.precision if precision is None else precision,
            selected_by=asdict(metadata.selected_by),
            metadata=metadata.metadata,
            temperature=metadata.temperature,
        )
    except (SettingError, DataError) as error:
        raise CheckpointMismatchError(f"{path}: {error}") from error
    classifier._data = None if metadata.data is None else asdict(metadata.data)
    return classifier


def _build_network(
    metadata: ClassifierMetadata, preprocess: Preprocess | None, weights: Mapping[str, Tensor], source: str
) -> nn.Module:
    """Build a network without storage, check that weights and images fit it, and then build it with storage."""
    name, arguments = metadata.model.name, metadata.model.arguments
    if arguments is None or name not in MODELS:
        raise CheckpointMismatchError(
            f"{source} holds a {name}, which is not one of the library's networks. Build it and pass it as model="
        )
    meta = torch.device("meta")
    precision = resolve_precision("float64" if metadata.precision == "float64" else "float32", meta)
    try:
        with meta:
            shell = build_model(name, arguments).to(precision.weights)
    except (SettingError, RuntimeError, OverflowError) as error:  # the last two if a size exceeds 64 bits
        reason = str(error).partition("\n")[0][:300]
        raise corrupt(f"{source} has invalid metadata: {reason}") from error
    try:
        check_weights(shell, weights, source="its content")
    except CheckpointMismatchError as error:
        differences = str(error).partition(". ")[0]  # without the remedy, which is for a wrong model
        network = constructor_call(metadata.model)
        raise corrupt(f"{source} contradicts itself. It describes {network}, and {differences}") from error
    if preprocess is not None:
        image, num_classes = blank_image(preprocess, meta), len(metadata.classes) or None
        try:
            check_model_fits(shell, image, num_classes, "the classifier", preprocess=preprocess, precision=precision)
        except SettingError as error:
            raise CheckpointMismatchError(f"{source}: {error}") from error
    with torch.device("cpu"), isolated(torch.device("cpu")):  # the initial weights are drawn, and later replaced
        return build_model(name, arguments)


def save_classifier(classifier: Classifier, directory: str | Path) -> Path:
    """Write a ``best.safetensors``, unless the directory holds one with other weights; see `Classifier.save`."""
    preprocess = classifier._preprocess
    description = {
        "model": describe_model(classifier.model),
        "preprocess": None if preprocess is None else asdict(preprocess),
        "classes": list(classifier.classes),
        "precision": classifier.precision.name,
        "selected_by": {"monitor": "unknown", "epoch": 0, "value": None, **classifier.selected_by},
        "data": classifier._data,
        "metadata": classifier.metadata,
        **({} if classifier.temperature == 1 else {"temperature": classifier.temperature}),
    }
    parse_metadata(description, name="the classifier")  # `load_classifier` must accept it
    weights = {name: tensor.cpu() for name, tensor in unwrapped_state_dict(classifier.model).items()}
    checkpointer = Checkpointer(directory)
    with checkpointer:
        saved = checkpointer.read_best()[0] if checkpointer.best_path.exists() else weights
        if saved.keys() != weights.keys() or not all(
            saved[name].dtype == tensor.dtype and torch.equal(saved[name], tensor) for name, tensor in weights.items()
        ):
            raise CheckpointError(
                f"{checkpointer.directory} holds a run with other weights, or in another precision. Save to another "
                "directory"
            )
        return checkpointer.save_best(weights, description)


def blank_image(preprocess: Preprocess, device: torch.device | str = "cpu") -> Tensor:
    """Return a black uint8 image, shape ``(1, C, size, size)``."""
    shape = (1, len(preprocess.mean), preprocess.size, preprocess.size)
    return torch.zeros(shape, dtype=torch.uint8, device=device)
