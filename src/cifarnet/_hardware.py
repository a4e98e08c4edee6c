"""Facts about the processor that decide which number format is fast."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["cpu_name", "is_bf16_faster"]


@functools.cache
def is_bf16_faster(device: torch.device) -> bool:
    """Return whether matrix products in bfloat16 are faster than in float32 on a device."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch before 2.11 does not report the capabilities of the processor.
    return device.type == "cpu" and _is_cpu_suitable(getattr(torch.cpu, "get_capabilities", dict)(), cpu_name())


def _is_cpu_suitable(capabilities: Mapping[str, Any], name: str) -> bool:
    """Return whether a processor computes bfloat16 itself and gains time by it.

    Some virtual machines hide the matrix unit of an Intel processor. With its vector instructions alone, the reference
    network takes a third longer in bfloat16 than in float32. AMD's vector instructions are faster in bfloat16.
    """
    if capabilities.get("amx_bf16", False) or capabilities.get("arm_bf16", False):
        return True
    return bool(capabilities.get("avx512_bf16", False)) and "Intel" not in name


def cpu_name() -> str:
    """Return the name of the processor. Python knows it on Linux only from ``/proc/cpuinfo``."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
