"""How much arithmetic an image costs."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cifarnet import randomness
from cifarnet.errors import InputError
from cifarnet.models.modes import evaluation_mode, unwrapped

__all__ = ["count_flops"]


@torch.no_grad()
def count_flops(model: nn.Module, image_shape: tuple[int, ...] = (3, 32, 32)) -> int:
    """Floating-point operations of one image's way through a network.

    Twice the multiply-adds of convolutions and matrix products, as `torch.utils.flop_counter` counts them; all else is
    little beside them. A training step takes about three times as many.

    Args:
        model: Any network, on its device, in its dtype; the mode of its modules is put back.
        image_shape: ``(C, H, W)`` of an image that it takes.

    Raises:
        InputError: If it has no weights, or cannot take such an image.

    Example:
        >>> count_flops(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)))
        61440
    """
    model = unwrapped(model)
    weight = next(model.parameters(), None)
    if weight is None:
        raise InputError(f"{type(model).__name__} has no weights, so there is no telling its device and number format")
    image = torch.zeros(1, *image_shape, dtype=weight.dtype, device=weight.device)
    with (
        evaluation_mode(model),
        randomness.isolated(weight.device, autotune=False),
        FlopCounterMode(display=False) as counter,
    ):
        try:
            model(image)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"{type(model).__name__} cannot take an image of {image_shape}: {reason}; give image_shape=(C, H, W)"
            ) from error
    return int(counter.get_total_flops())
