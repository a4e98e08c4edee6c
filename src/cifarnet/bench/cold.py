"""A run from nothing: from the start of the process to the saved model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from cifarnet.errors import CifarnetError

__all__ = ["measure_cold"]


def measure_cold(options: Sequence[str]) -> dict[str, Any]:
    """Run ``python -m cifarnet train`` once, in a new process and a new directory.

    Args:
        options: Of that command, all but ``--out``.

    Returns:
        ``total_s``, from the start of the process to its end, report and figures included; ``to_first_epoch_s``, to
        the line about the first epoch; ``to_training_s``, the same less the seconds of that epoch: all that is
        before the first step. The compiler's cache and the system's cache of files are as they are.

    Raises:
        CifarnetError: If the run fails.
    """
    with TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        command = [sys.executable, "-m", "cifarnet", "train", *options, "--out", str(out)]
        to_first_epoch_s: float | None = None
        lines: list[str] = []
        started = perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # noqa: S603
        with process:
            assert process.stderr is not None
            try:
                for line in process.stderr:
                    lines.append(line.strip())
                    if to_first_epoch_s is None and line.startswith("epoch 1:"):
                        to_first_epoch_s = perf_counter() - started
            except BaseException:
                process.kill()
                raise
        total_s = perf_counter() - started
        if process.returncode or to_first_epoch_s is None:
            raise CifarnetError(
                f"cifarnet train {' '.join(options)} ended with exit code {process.returncode}: {(lines or [''])[-1]}"
            )
        first = json.loads((out / "report.json").read_text())["history"][0]
    return {
        "options": list(options),
        "total_s": total_s,
        "to_first_epoch_s": to_first_epoch_s,
        "to_training_s": to_first_epoch_s - first["train_s"] - first["eval_s"],
    }
