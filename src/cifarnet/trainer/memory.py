"""A batch that does not fit into memory."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
        batch_size: What was tried; ``None`` where nobody knows.

    Raises:
        DeviceMemoryError: In the place of what torch raises.
    """
    try:
        yield
    except RuntimeError as error:  # which torch.OutOfMemoryError is, too
        if not _is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the step's activations
        reason = str(error).splitlines()[0]
    else:
        return
    optimizer.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    size = "the batch" if batch_size is None else f"batch_size={batch_size}"
    remedy = "give smaller batches" if batch_size is None or batch_size < 2 else f"try {batch_size // 2}"
    raise DeviceMemoryError(f"{size} did not fit into the memory of {device}; {remedy} ({reason})")


def _is_out_of_memory(error: RuntimeError) -> bool:
    # torch has a type of its own for devices alone.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
