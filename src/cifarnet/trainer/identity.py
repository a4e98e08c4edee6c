"""What makes two runs the same run: what must agree before one is continued, and what should."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from cifarnet.checkpoint import OPTIMIZER_FLAGS
from cifarnet.engine import Backend, Ranks, StepSettings
from cifarnet.errors import CheckpointWarning, ResumeMismatchError, SettingError
from cifarnet.models import describe_model
from cifarnet.optim import Lookahead, Schedule
from cifarnet.trainer.plan import Plan, describe_data

__all__ = ["Identity"]

#: Group entries that are no settings: they change in the course of a run, or say how it is computed.
_NOT_SETTINGS = {"params", "lr", *OPTIMIZER_FLAGS}

#: What a run saved by an earlier release does not tell, and what it was in all of them.
_ADDED_LATER = {"lookahead": None, "sizes": None}


class Identity:
    """Says what a run is and where it runs, and sees to it that it goes on as the same run.

    Args:
        settings: What its steps are made of.
        schedule: Of the learning rate.
        backend: What computes the steps.
        deterministic: Whether only kernels whose result never changes are allowed.
        ranks: Of the processes that train together.
        batch_norm: Of those, over which images it takes its statistics.
    """

    def __init__(
        self,
        settings: StepSettings,
        schedule: Schedule,
        *,
        backend: Backend,
        deterministic: bool,
        ranks: Ranks,
        batch_norm: str,
    ) -> None:
        self._ranks = ranks
        self._batch_norm = batch_norm if ranks.world_size > 1 else "synchronised"  # one process sees all images
        self._settings = settings
        self._schedule = schedule
        self._backend = backend
        self._chosen = backend.name  # which may turn out not to work here
        self._deterministic = deterministic
        self._facts: dict[str, Any] | None = None  # of the run that was begun or loaded

    @property
    def changes(self) -> list[str]:
        """What was changed on resuming, and from which step on."""
        return [] if self._facts is None else list(self._facts["environment"]["changes"])

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        facts = self._facts or self._describe(None, [])
        # A backend knows only when it is used whether it works here.
        return {**facts, "environment": {**facts["environment"], "backend": self._backend.name}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Be the run that `state_dict` said."""
        self._facts = {
            "run": dict(state["run"]),
            "environment": {"changes": [], **state["environment"]},
        }

    def refuse_other(self, state: Mapping[str, Any], plan: Plan | None = None) -> None:
        """Refuse the state of another run; without a ``plan``, its data and batch size are not looked at.

        Raises:
            ResumeMismatchError: Naming every setting that differs.
        """
        now = self._describe(plan, [])["run"]
        saved = {**_ADDED_LATER, **state["run"]}
        if plan is None:
            parts = ("seed", "model", "optimizer", "preprocess", "lookahead", "ema_decay")
            saved = {part: saved.get(part) for part in parts}
        _refuse_differences(saved, {part: now.get(part) for part in saved})

    def begin(self, plan: Plan, *, global_step: int) -> None:
        """Make sure that what was begun or loaded goes on as the same run.

        Args:
            plan: What it shall do now.
            global_step: Steps that it has done.

        Raises:
            ResumeMismatchError: If it would be another one.
            SettingError: If the processes were told different things.

        Warns:
            CheckpointWarning: If it will not be equal to an unbroken one bit for bit.
        """
        changes: list[str] = []
        facts = self._describe(plan, changes)
        differences = list(_differences(self._ranks.from_first(lambda: facts["run"]), facts["run"], of="in rank 0"))
        if self._ranks.most(bool(differences)) == [True]:
            told = "; ".join(differences) or "another process says which"
            raise SettingError(f"the processes were given different settings ({told}); give all of them the same")
        if self._facts is not None and global_step:
            _refuse_differences({**_ADDED_LATER, **self._facts["run"]}, facts["run"])
            changes += self.changes
            known = {key: value for key, value in self._facts["environment"].items() if key != "changes"}
            if known.pop("chosen_backend", None) == self._chosen:
                known.pop("backend", None)  # the one that worked then; what works now is not known yet
            new = list(_differences(known, facts["environment"]))
            if new and self._ranks.rank == 0:
                _warn_of(new)
            if new:
                changes += [f"{change}, from step {global_step} on" for change in new]
        self._facts = facts

    def _describe(self, plan: Plan | None, changes: list[str]) -> dict[str, Any]:
        settings = self._settings
        environment = _describe_environment(
            settings, plan, self._ranks, backend=self._backend, deterministic=self._deterministic
        )
        environment |= {"batch_norm": self._batch_norm, "chosen_backend": self._chosen}
        return {
            "run": _describe_run(settings, self._schedule, plan),
            "environment": environment | {"changes": changes},
        }


def _describe_run(settings: StepSettings, schedule: Schedule, plan: Plan | None) -> dict[str, Any]:
    """What must agree: another value would be another run. What is not known yet is left out."""
    facts: dict[str, Any] = {
        "seed": settings.seed,
        "model": describe_model(settings.model),
        "optimizer": {
            "name": type(settings.optimizer).__name__,
            "groups": _optimizer_settings(settings.optimizer),
        },
        "preprocess": asdict(settings.transforms.preprocess),
        "augmentation": _describe(settings.transforms.augment),
        "sizes": None if settings.transforms.resize is None else str(settings.transforms.resize.sizes),
        "mix": None if settings.mix is None else _describe(settings.mix),
        "loss": _describe(settings.loss_fn),
        "max_grad_norm": settings.max_grad_norm,
        "lookahead": _describe_lookahead(settings.lookahead),
        "ema_decay": None if settings.average is None else settings.average.decay,
        "schedule": _describe(schedule),
    }
    if plan is not None:
        facts["batch_size"] = plan.batch_size
        facts["data"] = describe_data(plan.data)
        facts["val_data"] = describe_data(plan.val_data)
    return facts


def _optimizer_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Plain settings of every parameter group."""
    return [
        {key: _plain(value) for key, value in sorted(group.items()) if key not in _NOT_SETTINGS}
        for group in optimizer.param_groups
    ]


def _describe_lookahead(lookahead: Lookahead | None) -> dict[str, Any] | None:
    if lookahead is None:
        return None
    decay = lookahead.decay
    return {"every": lookahead.every, "decay": _describe(decay) if callable(decay) else decay}


def _describe_environment(
    settings: StepSettings, plan: Plan | None, ranks: Ranks, *, backend: Backend, deterministic: bool
) -> dict[str, Any]:
    """What should agree: with another value the resumed run is a good run, but not equal to the last bit."""
    facts: dict[str, Any] = {
        "backend": backend.name,
        "deterministic": deterministic,
        "device": settings.precision.device.type,
        "optimizer": [
            {key: group.get(key) for key in OPTIMIZER_FLAGS if key in group}
            for group in settings.optimizer.param_groups
        ],
        "precision": settings.precision.name,
        "steps_per_graph": backend.steps_per_graph,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "world_size": ranks.world_size,
    }
    if plan is not None and (len(set(plan.multipliers)) > 1 or settings.lookahead is not None):
        facts["schedule"] = f"over {plan.max_epochs} epochs"  # it is a function of the number of steps in all
    return facts


def _refuse_differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
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


def _warn_of(differences: list[str]) -> None:
    warnings.warn(
        f"{'; '.join(differences)}: the resumed run will be sound, but not equal to an unbroken one bit for bit",
        CheckpointWarning,
        stacklevel=4,
    )


def _differences(saved: Any, now: Any, name: str = "", *, of: str = "in the run") -> Iterator[str]:
    """``weight_decay 0.0001 in the run, 0.0005 now``, however deep it lies."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        for key in sorted(saved, key=str):  # what the file does not know, such as a newer torch's setting, is as it was
            yield from _differences(saved.get(key), now.get(key), str(key) if not name else f"{name}.{key}", of=of)
    elif isinstance(saved, list | tuple) and isinstance(now, list | tuple) and len(saved) == len(now):
        for i, (one, other) in enumerate(zip(saved, now, strict=True)):
            yield from _differences(one, other, f"{name}[{i}]", of=of)
    elif saved != now:
        yield f"{name} {saved!r} {of}, {now!r} now"


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor) else value


def _describe(thing: object) -> str:
    """A setting in words that are the same in every process."""
    if isinstance(thing, nn.Module) and not list(thing.children()):
        # Many modules keep silent about their settings: repr(CrossEntropyLoss(label_smoothing=0.1)) has no 0.1.
        plain = {key: value for key, value in vars(thing).items() if isinstance(value, bool | int | float | str)}
        settings = {key: value for key, value in sorted(plain.items()) if key[0] != "_" and key != "training"}
        name = f"{thing!r}{settings}" if settings else repr(thing)
    else:
        name = repr(thing)
    return f"a {type(thing).__name__}" if " at 0x" in name else name  # an address says nothing
