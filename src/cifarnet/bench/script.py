"""A training script of somebody else's, run anew for each measurement."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import torch

from cifarnet.bench.memory import peak_of_process
from cifarnet.errors import CifarnetError

__all__ = ["ScriptRuns", "run_script"]

_POLL_S = 0.2  # the peak of a process can be read only while it runs


class ScriptRuns:
    """A script that says how fast it trained.

    Args:
        script: A Python file and its arguments.
        num_workers: Of its `DataLoader`.
        num_steps: Steps a part.
        batch_size: Images a step.
        device: Where it trains.
        imported_mb: Memory that imports take, which is not counted; ``None`` where nobody knows.
    """

    def __init__(
        self,
        script: Sequence[str],
        num_workers: int,
        num_steps: int,
        batch_size: int,
        device: torch.device,
        *,
        imported_mb: float | None,
    ) -> None:
        self.name = f"script, {num_workers} worker{'' if num_workers == 1 else 's'}"
        options = {"steps": num_steps, "workers": num_workers, "batch-size": batch_size, "device": device}
        self._command = [*script, *(str(word) for key, value in options.items() for word in (f"--{key}", value))]
        self._num_workers = num_workers
        self._device = device
        self._imported_mb = imported_mb
        self._precision: str | None = None
        self._peaks: list[float] = []

    def images_per_s(self) -> float:
        """Train a part.

        Raises:
            CifarnetError: If the script fails, or does not say its speed.
        """
        answer, resident_mb = run_script(self._command, "images_per_s")
        self._precision = answer.get("precision")
        if answer.get("peak_memory_mb") is not None:
            self._peaks.append(float(answer["peak_memory_mb"]))
        elif self._device.type == "cpu" and resident_mb is not None and self._imported_mb is not None:
            self._peaks.append(max(0.0, resident_mb - self._imported_mb))
        return float(answer["images_per_s"])

    def describe(self) -> dict[str, Any]:
        """Workers, precision and memory."""
        return {
            "backend": None,
            "precision": self._precision,
            "workers": self._num_workers,
            "start_s": None,
            "preparation_s": None,
            "data_path_share": None,
            "peak_memory_mb": max(self._peaks, default=None),
        }


def run_script(command: Sequence[str], key: str) -> tuple[dict[str, Any], float | None]:
    """Run a Python file to its end.

    Args:
        command: The file and its arguments.
        key: What the JSON object of its last line has to have.

    Returns:
        That object, and the most megabytes that its main process was seen to hold.

    Raises:
        CifarnetError: If it fails, or ends without such a line.
    """
    process = subprocess.Popen(  # noqa: S603 the user named the file
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    peak_mb: float | None = None
    with process:
        try:
            while True:
                try:
                    out, err = process.communicate(timeout=_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    peak_mb = peak_of_process(process.pid) or peak_mb
        except BaseException:
            process.kill()
            raise
    last = (out.splitlines() or [""])[-1]
    try:
        answer = json.loads(last)
    except ValueError:
        answer = None
    if process.returncode or not isinstance(answer, dict) or key not in answer:
        reason = (err.splitlines() or ["it said nothing"])[-1]
        raise CifarnetError(
            f'{command[0]} ended with exit code {process.returncode} and "{last[:80]}" ({reason[:200]}); its last line '
            f'shall be a JSON object with "{key}"'
        )
    return answer, peak_mb
