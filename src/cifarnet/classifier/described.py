"""The network that a checkpoint describes, built without believing what it says."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cifarnet.checkpoint import Description, check_weights
from cifarnet.engine import check_fit, resolve_precision
from cifarnet.errors import CheckpointCorruptError, CheckpointMismatchError, SettingError
from cifarnet.models import MODELS, build_model
from cifarnet.randomness import isolated
from cifarnet.transforms import Preprocess

__all__ = ["build_described", "constructor_call"]


def build_described(
    described: Description, preprocess: Preprocess, weights: Mapping[str, Tensor], source: str
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
    image = torch.zeros(1, len(preprocess.mean), preprocess.size, preprocess.size, dtype=torch.uint8, device=meta)
    num_classes = len(described.classes) or None
    try:
        check_fit(shell, image, num_classes, "the classifier", preprocess=preprocess, precision=precision)
    except SettingError as error:
        raise CheckpointMismatchError(f"{source}: {error}") from error
    with isolated(torch.device("cpu")):  # its first weights are drawn, and then replaced
        return build_model(described.model, described.arguments)


def constructor_call(described: Description) -> str:
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
