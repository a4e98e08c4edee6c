"""Settings and environment of a run, compared on values when it resumes.

The *settings* must be equal, or the resumed run would be another run. The *environment* should be equal, or the resumed
run is not bit-identical to an uninterrupted one. A lambda or a closure cannot be compared and is named in a warning.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
import torchvision

from cifarnet.checkpoint.state_dict import OPTIMIZER_FLAGS
from cifarnet.data import ImageDataset
from cifarnet.errors import CheckpointMismatchError
from cifarnet.models.registry import describe_model
from cifarnet.training.describe import describe_value, differences, incomparable_parts
from cifarnet.training.step import set_learning_rates

if TYPE_CHECKING:
    from cifarnet.training.run_settings import RunSettings
    from cifarnet.training.trainer import Trainer

__all__ = ["RunIdentity"]

#: Entries of a parameter group that are no settings of the run.
_NOT_SETTINGS = {"params", "lr", "initial_lr", *OPTIMIZER_FLAGS}
_DATA = ("batch_size", "data", "val_data")
#: Settings that are compared if the data are unknown.
_WITHOUT_DATA = ("seed", "model", "optimizer", "preprocess", "ema_decay")


class RunIdentity:
    """Settings and environment of a run.

    Args:
        trainer: Trainer of the run.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._settings: dict[str, Any] | None = None  # of the run that was started or loaded
        self._environment: dict[str, Any] = {}
        #: Settings that changed on resume, each with the step at which it changed.
        self.differences: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "settings": self._settings_with_new_groups(),
            "environment": {**self._environment, "differences": self.differences},
        }

    def add_groups(self) -> None:
        """Add the parameter groups that the loop body added to the optimizer to the settings of the run."""
        self._settings = self._settings_with_new_groups()
        self._environment["optimizer"] = _optimizer_flags(self._trainer)

    def _settings_with_new_groups(self) -> dict[str, Any]:
        now = _settings(self._trainer, None)
        if self._settings is None:
            return now
        optimizer = self._settings["optimizer"]
        groups = [*optimizer["groups"], *now["optimizer"]["groups"][len(optimizer["groups"]) :]]
        return {**self._settings, "optimizer": {**optimizer, "groups": groups}}

    def check_processes(self, run: RunSettings) -> None:
        """Refuse settings that differ between the processes, before one of them compares its own with a file.

        Raises:
            SettingError: In every process.
        """
        self._trainer.group.check_equal({**_settings(self._trainer, run), **run.options()})

    def check(self, state: Mapping[str, Any], run: RunSettings | None) -> None:
        """Refuse the state of another run before anything is loaded.

        Args:
            state: State of a trainer.
            run: Data of the run; ``None`` compares seed, model, optimizer, preprocessing and moving average only.

        Raises:
            CheckpointMismatchError: If it is not the state of a trainer, or a setting differs.
        """
        saved: Any = state.get("settings")
        if not isinstance(saved, Mapping) or not isinstance(state.get("environment"), Mapping):
            raise CheckpointMismatchError(
                "This is not the state of a Trainer. Pass what Trainer.state_dict returned or fit saved; load other "
                "weights with init_from="
            )
        # The caller of a trainer that has trained may have changed its optimizer since.
        unknown = {"optimizer"} if self._trainer.global_step else set()
        keys = [key for key in saved if key not in unknown and (run is not None or key in _WITHOUT_DATA)]
        _refuse({key: saved[key] for key in keys}, _settings(self._trainer, run))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over settings, environment and, if there is a schedule, the base learning rates of a run."""
        if self._trainer.lr_schedule is not None:
            groups = state["settings"]["optimizer"]["groups"]
            set_learning_rates(self._trainer.optimizer, [group["lr"] for group in groups])
        environment = dict(state["environment"])
        self.differences = list(environment.pop("differences", []))
        self._settings, self._environment = dict(state["settings"]), environment

    def start(self, run: RunSettings, *, is_resumed: bool) -> None:
        """Start or continue the run with these data.

        Args:
            run: Data and length of the run.
            is_resumed: Whether the run was read from a file by this call.

        Raises:
            CheckpointMismatchError: If it would be another run.

        Warns:
            UserWarning: If it will not be bit-identical to an uninterrupted run, or if that is unknown.
        """
        trainer, step = self._trainer, self._trainer.global_step
        settings, environment = _settings(trainer, run), _environment(trainer, run)
        if self._settings and step:
            # The caller may change optimizer and trainer between two calls, but not the data. The state of a file was
            # compared by `check`, before the optimizer loaded it.
            _refuse({key: self._settings[key] for key in _DATA if key in self._settings}, settings)
            unknown = sorted(set(incomparable_parts(settings))) if is_resumed else []
            if is_resumed and trainer.group.world_size > 2:  # DistributedDataParallel regroups gradients after it
                unknown.append("the first step sums the gradients of the processes in another order")
            known = len(self._environment.get("optimizer", ()))  # groups that a step has been made with
            now = {**environment, "optimizer": environment["optimizer"][:known]}
            new = [*differences(self._environment, now), *unknown]
            self.differences += [f"{difference}, from step {step}" for difference in new]
            if new and trainer.group.rank == 0:
                warnings.warn(
                    f"{'; '.join(new)}. The resumed run is valid, but may not be bit-identical to an uninterrupted one",
                    UserWarning,
                    stacklevel=4,
                )
        if is_resumed and self._settings:  # the body of the loop may have changed the optimizer of the run since
            settings["optimizer"] = self._settings["optimizer"]
        self._settings, self._environment = settings, environment


def _settings(trainer: Trainer, run: RunSettings | None) -> dict[str, Any]:
    """Return the settings, which must be equal. ``None`` leaves the data out."""
    groups = [
        {key: describe_value(value) for key, value in sorted(group.items()) if key not in _NOT_SETTINGS}
        for group in trainer.optimizer.param_groups
    ]
    live = [float(group["lr"]) for group in trainer.optimizer.param_groups]
    base_lrs = trainer.state.base_lrs
    for group, rate in zip(groups, [*base_lrs, *live[len(base_lrs) :]], strict=True):
        group["lr"] = rate
    transforms, describe = trainer.transforms, functools.partial(describe_value, model=trainer.model)
    settings: dict[str, Any] = {
        "seed": trainer.seed,
        "model": describe_model(trainer.model),
        "optimizer": {"name": type(trainer.optimizer).__name__, "groups": groups},
        "preprocess": asdict(transforms.preprocess),
        "augment": describe(transforms.augment),
        "resize": describe(transforms.resize),
        "batch_transform": describe(trainer.batch_transform),
        "loss_fn": describe(trainer.loss_fn),
        "max_grad_norm": trainer.max_grad_norm,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "ema_decay": None if trainer.ema is None else trainer.ema.decay,
        "lr_schedule": describe(trainer.lr_schedule),
    }
    if run is not None:
        settings["batch_size"] = run.batch_size
        settings["data"] = _describe_images(run.train_data)
        settings["val_data"] = _describe_images(run.val_data)
    return settings


def _describe_images(data: Any) -> dict[str, Any] | None:
    """Describe images by their fingerprint, and a `DataLoader` by its length, batch size and data set."""
    if data is None:
        return None
    if isinstance(data, ImageDataset):
        return {"num_images": len(data), "fingerprint": data.fingerprint}
    facts: dict[str, Any] = {"batches": type(data).__name__}
    if hasattr(data, "__len__"):
        facts["num_batches"] = len(data)
    if isinstance(data, torch.utils.data.DataLoader):
        dataset = data.dataset
        facts |= {"batch_size": data.batch_size, "dataset": type(dataset).__name__}
        facts["num_images"] = len(dataset) if hasattr(dataset, "__len__") else None
        facts["fingerprint"] = getattr(dataset, "fingerprint", None)
    return facts


def _environment(trainer: Trainer, run: RunSettings) -> dict[str, Any]:
    """Return the environment, which should be equal."""
    return {
        "cuda_graph": trainer.uses_cuda_graph,
        "deterministic": trainer.deterministic,
        "device": trainer.device.type,
        "max_epochs": f"{run.max_epochs} epochs" if trainer.lr_schedule is not None else None,
        "optimizer": _optimizer_flags(trainer),
        "precision": trainer.precision.name,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "world_size": trainer.group.world_size,
    }


def _optimizer_flags(trainer: Trainer) -> list[dict[str, Any]]:
    return [{key: group[key] for key in OPTIMIZER_FLAGS if key in group} for group in trainer.optimizer.param_groups]


def _refuse(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    found = list(differences(saved, {key: now.get(key) for key in saved}))
    if found:
        raise CheckpointMismatchError(
            f"{'; '.join(found)}. Continue with the settings of the run, start a new run in another directory, "
            "or start a new run from its weights with init_from="
        )
