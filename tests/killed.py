"""A run in a process of its own: ``python killed.py DIRECTORY [killed]``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cifarnet import Checkpointer, CifarCNN, History, Trainer, build_transforms, make_synthetic

#: Five of them are an epoch; from then on the first save is the last.
NUM_STEPS = 7


class Killing(Checkpointer):
    """Saves nothing before `NUM_STEPS`, and is killed after its first save, while another thread trains."""

    def save_state(self, state: Mapping[str, Any]) -> Path:
        if state["position"]["global_step"] < NUM_STEPS:
            return self.last_path
        super().save_state(state)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("killed")


def train(directory: Path, checkpointer: type[Checkpointer] = Checkpointer) -> History:
    """Train to the end, from where the run in the directory stands."""
    data = make_synthetic(num_train=300, num_test=50, size=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CifarCNN(image_size=16, widths=(8, 16), hidden=32)
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        transforms = build_transforms(size=16)
        trainer = Trainer(model, optimizer, transforms=transforms, precision="bf16", device="cpu")
    return trainer.fit(
        data.train,
        data.test,
        max_epochs=3,
        checkpointer=checkpointer(directory, save_every_s=0),
        resume=True,
        progress_bar=False,
    )


if __name__ == "__main__":
    train(Path(sys.argv[1]), Killing if sys.argv[2:] == ["killed"] else Checkpointer)
