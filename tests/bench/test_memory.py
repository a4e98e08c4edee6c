from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cifarnet.bench.memory import peak_of_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells")

PROGRAM = """
import torch
from cifarnet.bench.memory import PeakMemory

early = torch.ones(60_000_000, dtype=torch.uint8)
del early
memory = PeakMemory(torch.device("cpu"))
nothing = memory.read()
block = torch.ones(100_000_000, dtype=torch.uint8)
del block
print(nothing, memory.read())
"""


def test_the_peak_counts_what_came_and_went_since_and_nothing_before() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    nothing, peak = map(float, result.stdout.split())
    assert peak == pytest.approx(100, abs=10)
    if Path("/proc/self/clear_refs").exists():
        assert nothing < 10


def test_a_process_that_is_gone_has_no_peak() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert peak_of_process(process.pid) is None
