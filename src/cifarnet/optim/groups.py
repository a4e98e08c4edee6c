"""Which parameters of a network train by which settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from cifarnet.errors import SettingError

__all__ = ["param_groups"]


def param_groups(
    model: nn.Module, *, filters: Mapping[str, Any], head: Mapping[str, Any], others: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Parameter groups for `Muon` or any optimizer of torch: filters, the head, and the rest.

    Of the parameters that require a gradient, those of two dimensions or more are filters (and the weights of hidden
    linear layers), and the last of them is the head, which gives the logits. Biases and what norms have are the rest.

    Args:
        model: Whose layers were made in running order, as in every network here.
        filters: Settings of the filters' group, such as ``{"lr": 0.24}``.
        head: Settings of the head's.
        others: Settings of the rest's; biases bear learning rates many times those of filters.

    Returns:
        Up to three groups in this order; one without parameters is left out.

    Raises:
        SettingError: If no parameter requires a gradient.

    Example:
        >>> from cifarnet import CifarCNN
        >>> groups = param_groups(
        ...     CifarCNN(),
        ...     filters={"algorithm": "muon", "lr": 0.02},
        ...     head={"algorithm": "adamw", "lr": 1e-3},
        ...     others={"algorithm": "sgd", "lr": 0.05},
        ... )
        >>> [(group["algorithm"], len(group["params"])) for group in groups]
        [('muon', 3), ('adamw', 1), ('sgd', 8)]
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise SettingError("no parameter of the model requires a gradient; there is nothing to optimize")
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    rest = [parameter for parameter in trained if parameter.ndim < 2]
    parts = ((matrices[:-1], filters), (matrices[-1:], head), (rest, others))
    return [{"params": params, **settings} for params, settings in parts if params]
