"""What lies in the directory of a run, for tests that compare two of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cifarnet import Checkpointer
from cifarnet.checkpoint import read_checkpoint


def read_state(directory: Path) -> dict[str, Any]:
    """What a resume would go on from."""
    state = Checkpointer(directory).read_last()
    assert state is not None
    return state


def assert_equal_runs(one: Path, other: Path) -> None:
    """Every tensor of ``best`` and of ``last`` is equal, to the last bit."""
    for name in ("best", "last"):
        a, b = (read_checkpoint(directory / f"{name}.safetensors").tensors for directory in (one, other))
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            assert torch.equal(a[key], b[key]), f"{name}: {key}"


def after_unit(backend: str, step: int) -> int:
    """Where a run that is stopped in a step stands: graphs are of 3, 1 and 1 steps of an epoch of 5."""
    epoch, place = divmod(step - 1, 5)
    return 5 * epoch + (max(3, place + 1) if backend == "cuda-graph" else place + 1)
