"""Registry of the library's networks: how a checkpoint names and rebuilds one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from cifarnet._validation import did_you_mean
from cifarnet.errors import SettingError
from cifarnet.models._modules import unwrapped
from cifarnet.models.basic_cnn import BasicCNN
from cifarnet.models.cifar_cnn import CifarCNN
from cifarnet.models.fast_cnn import FastCNN
from cifarnet.models.resnet18 import ResNet18

__all__ = ["MODELS", "build_model", "describe_model", "is_known"]

#: Networks that a recipe or a checkpoint can name. The list is closed, so that a file never chooses code.
MODELS: dict[str, type[nn.Module]] = {
    "BasicCNN": BasicCNN,
    "CifarCNN": CifarCNN,
    "FastCNN": FastCNN,
    "ResNet18": ResNet18,
}


def build_model(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a network of the library from its name.

    Args:
        name: Key of `MODELS`.
        arguments: Arguments of the constructor by name.

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
    """Return the name and the arguments of a network as a checkpoint stores them.

    Args:
        model: Network of the library or of your own, compiled or not.

    Returns:
        ``{"name": ..., "arguments": {...}}``. The arguments of a network of your own are ``None``.

    Example:
        >>> describe_model(nn.Linear(2, 2))
        {'name': 'Linear', 'arguments': None}
    """
    model = unwrapped(model)
    name = type(model).__name__
    return {"name": name, "arguments": dict(model.arguments) if is_known(model) else None}  # type: ignore[arg-type]


def is_known(model: nn.Module) -> bool:
    """Return true if a network is one of the library's.

    Args:
        model: Compiled or plain network.

    Example:
        >>> is_known(CifarCNN()), is_known(nn.Linear(2, 2))
        (True, False)
    """
    model = unwrapped(model)
    return MODELS.get(type(model).__name__) is type(model)
