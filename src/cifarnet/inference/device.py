"""Device, number format and memory of a network."""

from __future__ import annotations

import os
import platform
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy
import safetensors
import torch
import torchvision
from torch import Tensor

from cifarnet._hardware import cpu_name, is_bf16_faster
from cifarnet._types import Images
from cifarnet._validation import check_choice
from cifarnet.errors import DeviceMemoryError, SettingError

__all__ = [
    "Precision",
    "describe_device",
    "describe_machine",
    "out_of_memory_advice",
    "resolve_device",
    "resolve_precision",
]

# torch.OutOfMemoryError covers only torch's allocators of devices. The CPU allocator and CUDA's libraries raise
# RuntimeError with these texts.
_OUT_OF_MEMORY = re.compile(
    r"(CUDA|HIP|MPS|XPU)( error:| backend)? out of memory"
    r"|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_\w*ALLOC(ATION)?_FAILED"
    r"|DefaultCPUAllocator: (can't allocate|not enough) memory"
)


@dataclass(frozen=True)
class Precision:
    """Number format of the weights of a network and of its arithmetic.

    Args:
        name: ``"float32"``, ``"bf16"`` or ``"float64"``.
        device: Device of the network.
        weights: dtype of weights, optimizer state and loss.
    """

    name: str
    device: torch.device
    weights: torch.dtype

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context in which convolutions and matrix products run in bfloat16 if `name` is ``"bf16"``."""
        if self.name == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def prepare(self, images: Images) -> Tensor:
        """Convert images to the dtype of the weights and to channels-last memory, for the first layer of the network.

        Args:
            images: Floating images, shape ``(N, C, H, W)``.
        """
        return images.to(dtype=self.weights, memory_format=torch.channels_last)


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Convert a name to an available device.

    Args:
        device: ``"auto"`` (CUDA if there is one, else the CPU) or an argument of `torch.device`. If several processes
            train together, ``"auto"`` and ``"cuda"`` give each process its own GPU.

    Returns:
        The device.

    Raises:
        SettingError: If the device is unknown to torch or is not on this machine.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    local_rank = int(os.environ.get("LOCAL_RANK") or 0)
    is_one_of_several = os.environ.get("WORLD_SIZE", "1") != "1"
    if str(device) in ("auto", "cuda") and is_one_of_several and torch.cuda.is_available():
        if torch.cuda.device_count() == 1:  # CUDA_VISIBLE_DEVICES gives each process its own; NCCL refuses to share one
            return torch.device("cuda", 0)
        if local_rank >= torch.cuda.device_count():
            raise SettingError(
                f"This machine has {torch.cuda.device_count()} GPUs, too few for process {local_rank + 1} on it. "
                f"Use --nproc-per-node {torch.cuda.device_count()}"
            )
        return torch.device("cuda", local_rank)
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:  # AssertionError if torch was built without CUDA
        reason = str(error).splitlines()[0].partition(". ")[0][:120]
        remedy = 'Did you mean "cuda"?' if device == "gpu" else 'Use "auto" for CUDA or the CPU'
        raise SettingError(f'device "{device}" cannot be used ({reason}). {remedy}') from error
    if resolved.type == "meta":
        raise SettingError('device "meta" stores no values. Use "auto" for CUDA or the CPU')
    return resolved


def resolve_precision(precision: str, device: torch.device) -> Precision:
    """Convert a name to a precision that the device supports.

    Args:
        precision: ``"auto"`` (bf16 on CUDA and on CPUs where it is faster, else float32), ``"float32"``,
            ``"bf16"`` (autocast with float32 weights) or ``"float64"``.
        device: Device of the network.

    Returns:
        The precision.

    Raises:
        SettingError: If the name is unknown.

    Example:
        >>> resolve_precision("float32", torch.device("cpu")).weights
        torch.float32
    """
    check_choice("precision", precision, ("auto", "bf16", "float32", "float64"))
    if precision == "auto":
        precision = "bf16" if is_bf16_faster(device) else "float32"
    return Precision(precision, device, torch.float64 if precision == "float64" else torch.float32)


def describe_device(device: torch.device) -> str:
    """Return the name of the hardware for reports.

    Args:
        device: Any device of this machine.

    Example:
        >>> isinstance(describe_device(torch.device("cpu")), str)
        True
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"


def describe_machine(precision: Precision) -> dict[str, Any]:
    """Return hardware, number format, threads and versions of a measurement as plain values.

    Args:
        precision: Precision of the measurement, which includes its device.
    """
    return {
        "hardware": describe_device(precision.device),
        "device": precision.device.type,
        "precision": precision.name,
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": torchvision.__version__,
            "numpy": numpy.__version__,
            "safetensors": safetensors.__version__,
        },
    }


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
        if not (isinstance(error, torch.OutOfMemoryError) or _OUT_OF_MEMORY.search(str(error))):
            raise
        traceback.clear_frames(error.__traceback__)  # the frames hold activations
        reason = str(error).splitlines()[0]
    else:
        return
    if device.type == "cuda":
        torch.cuda.empty_cache()
    raise DeviceMemoryError(f"{explain()} ({reason})")
