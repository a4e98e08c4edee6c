"""What may stand around a network, and the mode that it is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluation_mode", "unwrapped"]


def unwrapped(model: nn.Module) -> nn.Module:
    """The network that ``torch.compile`` has wrapped; any other as it is.

    Args:
        model: Compiled or not.
    """
    inner: nn.Module = getattr(model, "_orig_mod", model)
    return inner


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for the block, and each of its modules back into its own.

    Args:
        model: Parts of it may be in evaluation mode for good, such as frozen batch norms.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
