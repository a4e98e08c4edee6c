"""The most memory that a process has held."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["PeakMemory", "peak_of_process"]

_PROC = Path("/proc")  # Linux alone has it


class PeakMemory:
    """The most memory held since this was made, beyond what was held then.

    On CUDA it is what torch allocated there; on a CPU, resident memory of this process, which Linux alone tells.
    Memory that is free for reuse when this is made is not seen again, so make it early.

    Args:
        device: Whose memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        #: Megabytes of this process that were resident then.
        self.resident_before = _read("VmRSS", "self")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before: float | None = torch.cuda.memory_allocated(device) / 1e6
            return
        self._before = self.resident_before
        try:
            (_PROC / "self" / "clear_refs").write_text("5")  # the peak is now what is held now: man 5 proc
        except OSError:
            self._before = peak_of_process("self")  # it stays; growth beyond it is seen

    def read(self) -> float | None:
        """Megabytes; ``None`` where nobody counts."""
        if self._device.type == "cuda":
            peak: float | None = torch.cuda.max_memory_allocated(self._device) / 1e6
        else:
            peak = peak_of_process("self")
        return None if peak is None or self._before is None else max(0.0, peak - self._before)


def peak_of_process(process: int | str) -> float | None:
    """The most resident memory that a process has held.

    Args:
        process: Its number, or ``"self"``.

    Returns:
        Megabytes; ``None`` where nobody counts, or once it has ended.
    """
    return _read("VmHWM", process)


def _read(key: str, process: int | str) -> float | None:
    try:
        text = (_PROC / str(process) / "status").read_text()
    except OSError:
        return None
    sizes = [line.split()[1] for line in text.splitlines() if line.startswith(f"{key}:")]
    return int(sizes[0]) * 1024 / 1e6 if sizes else None  # it says kB and means KiB
