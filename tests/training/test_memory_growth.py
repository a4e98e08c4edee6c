"""What a run needs of memory, it needs from its first epoch on."""

from __future__ import annotations

import subprocess
import sys

import pytest

EPOCHS = """
import ctypes, gc, re, sys
from pathlib import Path
import torch
from cifarnet import Checkpointer, CifarCNN, Trainer, make_synthetic

def megabytes():  # glibc keeps freed memory, more or less of it from run to run, until it is asked to give it back
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

data = make_synthetic(num_train=192, num_test=64, seed=0)
model = CifarCNN(hidden=128)
trainer = Trainer(model, torch.optim.Adam(model.parameters(), fused=True), device="cpu", ema_decay=0.99)
held = []
with_saves = Checkpointer(sys.argv[1], save_every_s=0)
for max_epochs in (3, 23):
    trainer.fit(data.train, data.test, max_epochs=max_epochs, checkpointer=with_saves, resume=True, progress_bar=False)
    held.append(megabytes())
print(held[1] - held[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counters of Linux")
def test_twenty_more_epochs_with_saves_take_no_more_memory(tmp_path: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EPOCHS, str(tmp_path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 10, "a save has 20 MB: one that is kept would show"
