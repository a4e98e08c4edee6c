"""The library's networks, a file each, and how a checkpoint names and rebuilds one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from cifarnet._validation import did_you_mean
from cifarnet.errors import SettingError
from cifarnet.models.basic_cnn import BasicCNN
from cifarnet.models.cifar_cnn import CifarCNN
from cifarnet.models.fast_cnn import FastCNN
from cifarnet.models.flops import count_flops
from cifarnet.models.modes import evaluation_mode, unwrapped
from cifarnet.models.resnet18 import ResNet18
from cifarnet.models.summary import ModelSummary, summarize_model
from cifarnet.models.whitening import whitening_filters

__all__ = [
    "MODELS",
    "BasicCNN",
    "CifarCNN",
    "FastCNN",
    "ModelSummary",
    "ResNet18",
    "build_model",
    "count_flops",
    "describe_model",
    "evaluation_mode",
    "is_known",
    "summarize_model",
    "unwrapped",
    "whitening_filters",
]

#: Every network that a recipe or a checkpoint can name; a closed list, so that a file never chooses code.
MODELS: dict[str, type[nn.Module]] = {
    "BasicCNN": BasicCNN,
    "CifarCNN": CifarCNN,
    "FastCNN": FastCNN,
    "ResNet18": ResNet18,
}


def build_model(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a network of the library from its name.

    Args:
        name: A key of `MODELS`.
        arguments: The constructor's arguments, by name.

    Returns:
        The network, freshly initialised.

    Raises:
        SettingError: If the name or an argument is unknown, or a value is outside its range.

    Example:
        >>> type(build_model("CifarCNN", {"num_classes": 100})).__name__
        'CifarCNN'
    """
    if name not in MODELS:
        raise SettingError(f'unknown model "{name}"; {did_you_mean(name, MODELS)}')
    try:
        return MODELS[name](**arguments)
    except SettingError:  # some are TypeErrors too
        raise
    except TypeError as error:
        raise SettingError(f"{name} cannot be built with {dict(arguments)}: {error}") from error


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Name and arguments of a network, as a checkpoint stores them.

    Args:
        model: One of the library's, or a user's own.

    Returns:
        ``{"name": ..., "arguments": {...}}``; the arguments of a user's own network are ``None``.

    Example:
        >>> describe_model(nn.Linear(2, 2))
        {'name': 'Linear', 'arguments': None}
    """
    model = unwrapped(model)
    name = type(model).__name__
    return {"name": name, "arguments": dict(model.arguments) if is_known(model) else None}  # type: ignore[arg-type]


def is_known(model: nn.Module) -> bool:
    """Whether a network is one of the library's.

    Args:
        model: Perhaps inside the wrappers of ``torch.compile`` and the like.

    Example:
        >>> is_known(CifarCNN()), is_known(nn.Linear(2, 2))
        (True, False)
    """
    model = unwrapped(model)
    return MODELS.get(type(model).__name__) is type(model)
