"""A run in a separate process: ``python killed.py DIRECTORY [killed]``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cifarnet import Checkpointer, CifarCNN, Trainer, build_transforms, make_synthetic

#: Five steps are an epoch. The first save from then on is the last one.
NUM_STEPS = 7


class Killing(Checkpointer):
    """Saves nothing before `NUM_STEPS`, and is killed after its first save, while another thread trains."""

    def save_state(self, state: Mapping[str, Any]) -> Path:
        if state["position"]["global_step"] >= NUM_STEPS:
            super().save_state(state)
            os.kill(os.getpid(), signal.SIGKILL)
        return self.last_path


if __name__ == "__main__":
    checkpointer = (Killing if sys.argv[2:] else Checkpointer)(sys.argv[1], save_every_s=0)
    data = make_synthetic(num_train=300, num_test=50, size=16)
    torch.manual_seed(0)
    model = CifarCNN(image_size=16, widths=(8, 16), hidden=32)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    trainer = Trainer(model, optimizer, transforms=build_transforms(size=16), precision="bf16", device="cpu")
    trainer.fit(data.train, data.test, max_epochs=3, checkpointer=checkpointer, resume=True, progress_bar=False)
