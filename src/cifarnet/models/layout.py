"""From maps to rows of features, without a slow way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["flatten"]


def flatten(maps: Tensor) -> Tensor:
    """``maps.flatten(1)``, whose gradient comes back in the memory format of the maps.

    torch gives the gradient of a flattened channels-last tensor contiguous, and the layer before gets one thing in
    two formats: on a CPU the backward pass of a batch norm then takes several times as long.

    Args:
        maps: Shape ``(N, C, H, W)``.

    Returns:
        Shape ``(N, C * H * W)``, in the order of channels, rows, columns.

    Example:
        >>> flatten(torch.zeros(2, 3, 4, 4)).shape
        torch.Size([2, 48])
    """
    if not maps.requires_grad or torch.compiler.is_exporting():
        return maps.flatten(1)
    rows: Tensor = _Flatten.apply(maps)
    return rows


class _Flatten(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        ctx.shape = maps.shape
        ctx.is_channels_last = maps.is_contiguous(memory_format=torch.channels_last)
        return maps.flatten(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].view(ctx.shape)
        return gradient.contiguous(memory_format=torch.channels_last) if ctx.is_channels_last else gradient
