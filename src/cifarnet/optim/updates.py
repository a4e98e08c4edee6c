"""How weights change in a step: by Muon, SGD or AdamW.

Nothing is read from the device, and what the host decides depends on settings and shapes alone, so that a CUDA graph
can hold a step. Each function takes parameters that have a gradient, their states and their group.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from cifarnet._hardware import is_bf16_faster
from cifarnet.optim.orthogonal import newton_schulz

__all__ = ["ADJUSTMENTS", "NS_DTYPES", "UPDATES"]

#: By which learning rates can be scaled with a matrix's shape; names of `torch.optim.Muon`, but for ``"none"``.
ADJUSTMENTS = ("none", "original", "match_rms_adamw", "spectral_unclamped")

#: In which the products of `newton_schulz` can be computed.
NS_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def _muon(params: list[Tensor], states: list[dict[str, Tensor]], group: dict[str, Any]) -> None:
    lr, momentum = group["lr"], group["momentum"]
    grads, buffers = _grads(params), _zeros_once("momentum_buffer", params, states)
    torch._foreach_lerp_(buffers, grads, 1 - momentum)
    updates = torch._foreach_lerp(grads, buffers, momentum) if group["nesterov"] else buffers
    if group["normalize_weights"]:
        norms = torch._foreach_norm(params)
        torch._foreach_clamp_min_(norms, 1e-12)  # weights that are all 0 stay so
        torch._foreach_div_(params, norms)
        torch._foreach_mul_(params, [math.sqrt(len(parameter)) for parameter in params])
    if group["weight_decay"]:
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
    for (shape, dtype, _), places in _alike(params).items():
        matrices = torch.stack([updates[i].flatten(1) for i in places])  # (B, R, C)
        fastest = torch.bfloat16 if dtype != torch.float64 and is_bf16_faster(matrices.device) else dtype
        ns_dtype = NS_DTYPES.get(group["ns_dtype"], fastest)
        orthogonal = newton_schulz(matrices, num_steps=group["ns_steps"], dtype=ns_dtype).to(dtype)
        steps = orthogonal * (lr * _adjustment(group["adjust_lr_fn"], *shape))
        for i, step in zip(places, steps, strict=True):
            params[i].sub_(step.reshape(params[i].shape))


def _sgd(params: list[Tensor], states: list[dict[str, Tensor]], group: dict[str, Any]) -> None:
    # A buffer of zeros becomes the gradient in the first step, as torch's SGD has it.
    buffers: list[Tensor | None] = [*_zeros_once("momentum_buffer", params, states)]
    settings = {key: group[key] for key in ("lr", "momentum", "nesterov", "weight_decay")}
    sgd(params, _grads(params), buffers, fused=True, dampening=0.0, maximize=False, **settings)


def _adamw(params: list[Tensor], states: list[dict[str, Tensor]], group: dict[str, Any]) -> None:
    averages, squares = (_zeros_once(key, params, states) for key in ("exp_avg", "exp_avg_sq"))
    for parameter, state in zip(params, states, strict=True):
        state.setdefault("step", parameter.new_zeros((), dtype=torch.float32))
    counts = [state["step"] for state in states]
    beta1, beta2 = group["betas"]
    settings = {key: group[key] for key in ("lr", "eps", "weight_decay")}
    settings |= {"beta1": beta1, "beta2": beta2, "amsgrad": False, "maximize": False, "fused": True}
    adamw(params, _grads(params), averages, squares, [], counts, **settings)


def _grads(params: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in params if parameter.grad is not None]


def _zeros_once(key: str, params: list[Tensor], states: list[dict[str, Tensor]]) -> list[Tensor]:
    for parameter, state in zip(params, states, strict=True):
        if key not in state:
            state[key] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return [state[key] for state in states]


def _alike(params: list[Tensor]) -> dict[tuple[tuple[int, int], torch.dtype, torch.device], list[int]]:
    """Which parameters are matrices of one shape, dtype and device."""
    places = defaultdict(list)
    for i, parameter in enumerate(params):
        places[(len(parameter), parameter[0].numel()), parameter.dtype, parameter.device].append(i)
    return places


def _adjustment(adjust_lr_fn: str, rows: int, columns: int) -> float:
    if adjust_lr_fn == "original":
        return math.sqrt(max(1, rows / columns))
    if adjust_lr_fn == "spectral_unclamped":
        return math.sqrt(rows / columns)
    return 0.2 * math.sqrt(max(rows, columns)) if adjust_lr_fn == "match_rms_adamw" else 1.0


#: By the name of the algorithm.
UPDATES = {"muon": _muon, "sgd": _sgd, "adamw": _adamw}
