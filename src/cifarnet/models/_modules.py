"""Parts that several networks and their callers share: flattening, evaluation mode and compiled networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["evaluation_mode", "flatten", "unwrapped"]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside a ``torch.compile`` wrapper, or the network itself if it is not compiled.

    Args:
        model: Compiled or plain network.
    """
    inner: nn.Module = getattr(model, "_orig_mod", model)
    return inner


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for the block, and restore the mode of each module afterwards.

    Args:
        model: Network. Modules that were in evaluation mode before, such as frozen batch norms, stay in it.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def flatten(maps: Tensor) -> Tensor:
    """Compute ``maps.flatten(1)`` with a gradient in the memory format of the maps.

    torch returns the gradient of a flattened channels-last tensor contiguous, so the layer before gets its output and
    its gradient in two formats. On a CPU, the backward pass of a batch norm then takes several times as long.

    Args:
        maps: Feature maps, shape ``(N, C, H, W)``.

    Returns:
        Features, shape ``(N, C * H * W)``, in the order of channels, rows, columns.

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
