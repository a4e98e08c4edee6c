"""Memory that is short: told from other errors, freed, and explained."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from cifarnet.errors import DeviceMemoryError

__all__ = ["out_of_memory_advice"]

# torch has a type of its own for its own allocator of devices alone: not for the CPU, nor for what libraries take.
_TEXTS = re.compile(
    r"(CUDA|HIP|MPS|XPU)( error:| backend)? out of memory"
    r"|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_\w*ALLOC(ATION)?_FAILED"
    r"|DefaultCPUAllocator: (can't allocate|not enough) memory"
)


@contextmanager
def out_of_memory_advice(device: torch.device, explain: Callable[[], str]) -> Iterator[None]:
    """Within the block, an allocation that fails frees what the block had taken, and says what to try.

    Args:
        device: Where the memory is short.
        explain: What did not fit, and the remedy; called when it has not.

    Raises:
        DeviceMemoryError: In the place of what torch raises.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or _TEXTS.search(str(error))):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold activations
        reason = str(error).splitlines()[0]
    else:
        return
    if device.type == "cuda":
        torch.cuda.empty_cache()
    raise DeviceMemoryError(f"{explain()} ({reason})")
