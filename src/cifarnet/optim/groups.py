"""Parameter groups: their settings, and fused updates of torch's optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cifarnet.errors import SettingError

__all__ = ["param_groups", "use_fused"]

_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
_DEVICES = ("cpu", "cuda")


def param_groups(
    model: nn.Module, *, filters: Mapping[str, Any], head: Mapping[str, Any], others: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Build parameter groups for `Muon` or any optimizer of torch: filters, the head and the rest.

    Trainable parameters of two dimensions or more are filters. The last of them is the head, which computes the
    logits. Biases and the parameters of norms are the rest.

    Args:
        model: Network with layers in running order, as in this library.
        filters: Settings of the filters, such as ``{"lr": 0.24}``.
        head: Settings of the head.
        others: Settings of the rest. Biases tolerate much higher learning rates than filters.

    Returns:
        Up to three groups in this order, without empty ones.

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


def use_fused(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer that leaves ``fused`` and ``foreach`` unset update all parameters in one pass.

    torch computes the same update by default with one operation per arithmetic step. On a CPU, that is 60 % of a
    training step of `CifarCNN`.

    Args:
        optimizer: `torch.optim.Adam`, ``AdamW`` or ``SGD``; any other is left alone.

    Example:
        >>> optimizer = torch.optim.Adam([torch.zeros(2)])
        >>> use_fused(optimizer)
        >>> optimizer.param_groups[0]["fused"]
        True
    """
    if type(optimizer) not in _FUSED:
        return
    for group in optimizer.param_groups:
        unset = group.get("fused") is None and group.get("foreach") is None and not group.get("differentiable")
        if unset and all(p.is_floating_point() and p.device.type in _DEVICES for p in group["params"]):
            group["fused"] = True
            for parameter in group["params"]:
                state = optimizer.state.get(parameter, {})
                if isinstance(state.get("step"), Tensor):  # fused kernels count on the device
                    state["step"] = state["step"].to(parameter.device)
