"""Whether the host waits for a CUDA device while something runs, as no CUDA graph can."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["waits_for_device"]


def waits_for_device(function: Callable[[], None]) -> str:
    """Run a function, and tell whether the host waited for the device meanwhile, which no graph can do.

    Args:
        function: Works on CUDA.

    Returns:
        What torch says of it; empty where it does not.
    """
    own, mode, waits = threading.get_ident(), torch.cuda.get_sync_debug_mode(), list[str]()
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *where: Any, **other: Any) -> None:
            if "called a synchronizing CUDA operation" not in str(message):
                if "Synchronization debug mode" not in str(message):
                    show(message, category, *where, **other)
            elif threading.get_ident() == own:  # a checkpoint that another thread writes may wait
                waits.append(f"{message} in {where[0]}, line {where[1]}")

        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return waits[0].replace("\n", " ") if waits else ""
