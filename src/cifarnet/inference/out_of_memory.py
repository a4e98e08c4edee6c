"""Out-of-memory errors with advice."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from cifarnet.errors import DeviceMemoryError

__all__ = ["out_of_memory_advice"]

# torch.OutOfMemoryError covers only torch's allocators of devices. The CPU allocator and CUDA's libraries raise
# RuntimeError with these texts.
_TEXTS = re.compile(
    r"(CUDA|HIP|MPS|XPU)( error:| backend)? out of memory"
    r"|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_\w*ALLOC(ATION)?_FAILED"
    r"|DefaultCPUAllocator: (can't allocate|not enough) memory"
)


@contextmanager
def out_of_memory_advice(device: torch.device, explain: Callable[[], str]) -> Iterator[None]:
    """Turn out-of-memory errors of the block into `DeviceMemoryError` with advice, and free the memory of the block.

    Args:
        device: Device of the block.
        explain: Function that returns two sentences: the part that does not fit, and the remedy. It is called only on
            failure.

    Raises:
        DeviceMemoryError: If an allocation fails. It replaces the error of torch.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or _TEXTS.search(str(error))):
            raise
        traceback.clear_frames(error.__traceback__)  # the frames hold activations
        reason = str(error).splitlines()[0]
    else:
        return
    if device.type == "cuda":
        torch.cuda.empty_cache()
    raise DeviceMemoryError(f"{explain()} ({reason})")
