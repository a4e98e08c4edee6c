"""A batch of training that does not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cifarnet.engine import explained_out_of_memory
from cifarnet.errors import DeviceMemoryError

__all__ = ["explained_memory_errors"]


@contextmanager
def explained_memory_errors(
    optimizer: torch.optim.Optimizer, device: torch.device, batch_size: int | None
) -> Iterator[None]:
    """Within the block, an allocation that fails frees what the step had taken, and says what to try.

    Args:
        optimizer: Its gradients are dropped.
        device: Where the memory is short.
        batch_size: Of the training; ``None`` where nobody knows.

    Raises:
        DeviceMemoryError: In the place of what torch raises; that of an evaluation passes through.
    """

    def explain() -> str:
        size = "a batch" if batch_size is None else f"batch_size={batch_size}"
        remedy = "give smaller batches" if batch_size is None or batch_size < 2 else f"try {batch_size // 2}"
        return f"training with {size} did not fit into the memory of {device}; {remedy}"

    try:
        with explained_out_of_memory(device, explain):
            yield
    except DeviceMemoryError:
        optimizer.zero_grad(set_to_none=True)
        raise
