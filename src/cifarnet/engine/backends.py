"""How the steps of a run are computed: one protocol, and who is best at it where."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Protocol

from cifarnet._choices import BACKENDS
from cifarnet.engine.batches import BatchSource
from cifarnet.engine.compiled import CompiledBackend
from cifarnet.engine.eager import EagerBackend
from cifarnet.engine.graph import CudaGraphBackend, what_cannot_be_captured
from cifarnet.engine.settings import StepSettings
from cifarnet.engine.sums import RunningSums
from cifarnet.errors import SettingError, did_you_mean
from cifarnet.models import is_known

__all__ = ["BACKENDS", "Backend", "choose_backend"]


class Backend(Protocol):
    """Trains a network batch by batch."""

    #: Which it is, and how many steps the host can only start together; both are recorded.
    name: str
    steps_per_graph: int

    def epoch(
        self, batches: BatchSource, epoch: int, *, first_step: int, multipliers: Sequence[float], sums: RunningSums
    ) -> Iterator[int]:
        """Train for the rest of an epoch; see `EagerBackend.epoch`.

        Args:
            batches: Where the images come from.
            epoch: Counted from 0.
            first_step: Steps of the epoch that are done already.
            multipliers: Of the base learning rates, one a step of the whole epoch.
            sums: Loss and counts are added to them.
        """


def choose_backend(name: str, settings: StepSettings) -> Backend:
    """Find what computes a run's steps.

    Args:
        name: One of `BACKENDS`. ``"auto"`` captures CUDA graphs of the library's own networks on a GPU, and is eager
            elsewhere: compiling takes longer than it saves in a run of the reference's length, and what a foreign
            network decides anew in each step would be decided once and for all in a graph.
        settings: What a step is made of.

    Returns:
        The backend; an eager one where a part cannot be captured, with a warning that names it.

    Raises:
        SettingError: If the name is unknown, or the device is none of the backend's.
    """
    if name not in BACKENDS:
        raise SettingError(f'backend "{name}" is unknown; {did_you_mean(str(name), BACKENDS)}')
    device = settings.precision.device
    if name == "compiled":
        return CompiledBackend(settings)
    if name == "cuda-graph" and device.type != "cuda":
        raise SettingError(
            f'backend "cuda-graph" needs a CUDA device, and this run is on {device}; "auto" takes what is there'
        )
    if name == "eager" or device.type != "cuda" or (name == "auto" and not is_known(settings.model)):
        return EagerBackend(settings)
    obstacle = what_cannot_be_captured(settings)
    if obstacle is None:
        return CudaGraphBackend(settings)
    warnings.warn(
        f'{obstacle} cannot be captured in a CUDA graph; training eagerly, which backend="eager" does without this '
        "warning",
        stacklevel=3,
    )
    return EagerBackend(settings)
