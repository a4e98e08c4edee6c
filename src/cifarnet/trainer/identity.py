"""What makes two runs the same run: what must agree before one is continued, and what should."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from cifarnet.engine import Precision
from cifarnet.errors import CheckpointWarning, ResumeMismatchError
from cifarnet.models import describe_model
from cifarnet.optim import Schedule
from cifarnet.trainer.plan import Plan
from cifarnet.transforms import Transforms

__all__ = ["describe_environment", "describe_run", "optimizer_settings", "refuse_differences", "warn_of_differences"]

#: Group entries that say how the update is computed, not what it is, or that change in the course of a run.
_NOT_SETTINGS = {"params", "lr", "foreach", "fused", "capturable", "differentiable"}


def describe_run(
    model: nn.Module, optimizer: torch.optim.Optimizer, transforms: Transforms, plan: Plan | None, *, seed: int
) -> dict[str, Any]:
    """What must agree: another value would be another run."""
    return {
        "seed": seed,
        "model": describe_model(model),
        "optimizer": {"name": type(optimizer).__name__, "groups": optimizer_settings(optimizer)},
        "preprocess": asdict(transforms.preprocess),
        "batch_size": None if plan is None else plan.batch_size,
        "data": None if plan is None else plan.describe_data(),
    }


def optimizer_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Plain settings of every parameter group."""
    return [
        {key: _plain(value) for key, value in sorted(group.items()) if key not in _NOT_SETTINGS}
        for group in optimizer.param_groups
    ]


def describe_environment(
    transforms: Transforms,
    schedule: Schedule,
    precision: Precision,
    plan: Plan | None,
    *,
    backend: str,
    deterministic: bool,
) -> dict[str, Any]:
    """What should agree: with another value the resumed run is a good run, but not equal to the last bit."""
    return {
        "augmentation": repr(transforms.augment),
        "backend": backend,
        "deterministic": deterministic,
        "device": precision.device.type,
        "precision": precision.name,
        "schedule": _describe_schedule(schedule, plan),
        "steps_per_graph": 1,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "world_size": 1,
    }


def refuse_differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise where a run would go on as another one.

    Raises:
        ResumeMismatchError: Naming every setting that differs.
    """
    differences = list(_differences(saved, now))
    if differences:
        raise ResumeMismatchError(
            f"{'; '.join(differences)}. Continue with the run's own settings, start anew in another directory, or "
            'take its weights alone with resume="weights"'
        )


def warn_of_differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warn where a continued run will not be equal to the last bit."""
    differences = list(_differences(saved, now))
    if differences:
        warnings.warn(
            f"{'; '.join(differences)}: the resumed run will be sound, but not equal to an unbroken one bit for bit",
            CheckpointWarning,
            stacklevel=2,
        )


def _differences(saved: Any, now: Any, name: str = "") -> Iterator[str]:
    """``weight_decay 0.0001 in the run, 0.0005 now``, however deep it lies."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        for key in sorted(saved, key=str):  # what the file does not know, such as a newer torch's setting, is as it was
            yield from _differences(saved.get(key), now.get(key), str(key) if not name else f"{name}.{key}")
    elif isinstance(saved, list | tuple) and isinstance(now, list | tuple) and len(saved) == len(now):
        for i, (one, other) in enumerate(zip(saved, now, strict=True)):
            yield from _differences(one, other, f"{name}[{i}]")
    elif saved != now:
        yield f"{name} {saved!r} in the run, {now!r} now"


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor) else value


def _describe_schedule(schedule: Schedule, plan: Plan | None) -> str:
    """A schedule is a function of the number of steps in all, unless it is constant."""
    name = "a function" if " at 0x" in repr(schedule) else repr(schedule)  # an address says nothing
    return name if plan is None or len(set(plan.multipliers)) == 1 else f"{name} over {plan.max_epochs} epochs"
