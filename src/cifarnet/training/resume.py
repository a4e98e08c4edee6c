"""Comparison of a saved run with the one that resumes it, on values.

The *settings* must be equal, or the resumed run would be another run. The *environment* should be equal, or the resumed
run is not bit-identical to an uninterrupted one. A lambda or a closure cannot be compared and is named in a warning.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import sys
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from cifarnet.checkpoint.state_dict import OPTIMIZER_FLAGS
from cifarnet.data import ImageDataset
from cifarnet.errors import CheckpointMismatchError, CheckpointWarning, ResumeMismatchError
from cifarnet.models import describe_model
from cifarnet.training.step import set_learning_rates

if TYPE_CHECKING:
    from cifarnet.training.run_data import RunData
    from cifarnet.training.trainer import Trainer

__all__ = ["RunIdentity", "describe_value", "upgrade_from_format_1"]

_INCOMPARABLE = "incomparable"
#: Entries of a parameter group that are no settings of the run.
_NOT_SETTINGS = {"params", "lr", "initial_lr", *OPTIMIZER_FLAGS}
#: Settings of format 1 that were the text of `repr`, which is not compared.
_TEXT_IN_FORMAT_1 = ("augmentation", "mix", "loss", "schedule", "sizes")
#: Settings that `describe_value` has described.
_DESCRIBED = ("augment", "resize", "batch_transform", "loss_fn", "lr_schedule")
_DATA = ("batch_size", "data", "val_data")
_MAX_DEPTH = 20


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

    def check_loadable(self, state: Mapping[str, Any]) -> None:
        """Refuse the state of another kind of run; its data and batch size are not compared.

        Raises:
            CheckpointMismatchError: If it is not the state of a trainer.
            ResumeMismatchError: If seed, model, optimizer, preprocessing or moving average differ.
        """
        settings: Any = state.get("settings")
        if not isinstance(settings, Mapping) or not isinstance(state.get("environment"), Mapping):
            raise CheckpointMismatchError(
                "This is not the state of a Trainer. Pass what Trainer.state_dict returned or fit saved; load other "
                "weights with init_from="
            )
        now = _settings(self._trainer, None)
        known = ("seed", "model", "optimizer", "preprocess", "ema_decay")
        _refuse(self._without_own_rates({key: settings.get(key) for key in known}), now)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over settings, environment and, if there is a schedule, the base learning rates of a run."""
        if self._trainer.lr_schedule is not None:
            groups = state["settings"]["optimizer"]["groups"]
            set_learning_rates(self._trainer.optimizer, [group["lr"] for group in groups])
        environment = dict(state["environment"])
        self.differences = list(environment.pop("differences", []))
        self._settings, self._environment = dict(state["settings"]), environment

    def check_processes(self, data: RunData) -> None:
        """Refuse settings that differ between the processes, before one of them compares its own with a file.

        Raises:
            SettingError: In every process.
        """
        trainer = self._trainer
        trainer.group.check_equal({**_settings(trainer, data), "precision": trainer.precision.name})

    def check(self, state: Mapping[str, Any], data: RunData) -> None:
        """Refuse the state of another run before anything is loaded.

        Raises:
            ResumeMismatchError: Naming each setting that differs.
        """
        _refuse(self._without_own_rates(state["settings"]), _settings(self._trainer, data))

    def _without_own_rates(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Leave out learning rates that the caller of a trainer that has trained may have set since."""
        if self._trainer.lr_schedule is not None or not self._trainer.global_step:
            return dict(settings)
        groups = [
            {key: value for key, value in group.items() if key != "lr"} for group in settings["optimizer"]["groups"]
        ]
        return {**settings, "optimizer": {**settings["optimizer"], "groups": groups}}

    def start(self, data: RunData, *, is_resumed: bool) -> None:
        """Start or continue the run with these data.

        Args:
            data: Data and length of the run.
            is_resumed: Whether the run was read from a file by this call.

        Raises:
            ResumeMismatchError: If it would be another run.

        Warns:
            CheckpointWarning: If it will not be bit-identical to an uninterrupted run, or if that is unknown.
        """
        trainer, step = self._trainer, self._trainer.state.global_step
        settings, environment = _settings(trainer, data), _environment(trainer, data)
        if self._settings and step:
            # The caller may change optimizer and trainer between two calls, but not the data. The state of a file was
            # compared by `check`, before the optimizer loaded it.
            _refuse({key: self._settings[key] for key in _DATA if key in self._settings}, settings)
            unknown = sorted(set(_incomparable(settings))) if is_resumed else []
            if is_resumed and trainer.group.world_size > 2:  # DistributedDataParallel regroups gradients after it
                unknown.append("the first step sums the gradients of the processes in another order")
            known = len(self._environment.get("optimizer", ()))  # groups that a step has been made with
            now = {**environment, "optimizer": environment["optimizer"][:known]}
            new = [*_differences(self._environment, now), *unknown]
            if new:
                self.differences += [f"{difference}, from step {step}" for difference in new]
                if trainer.group.rank == 0:
                    _warn(new)
        if is_resumed and self._settings:  # the body of the loop may have changed the optimizer of the run since
            settings["optimizer"] = self._settings["optimizer"]
        self._settings, self._environment = settings, environment


def describe_value(value: Any, *, model: nn.Module | None = None, depth: int = 0) -> Any:
    """Describe a setting by plain values that are equal if and only if the setting is.

    A function or class is described by its name, an object by its class and its fields, a tensor by a hash.

    Args:
        value: Setting, such as a loss or a transform.
        model: Model that is trained. Its parts change, so that a setting which holds them is described without them.
        depth: Depth of ``value`` in the setting.

    Returns:
        Nested dictionaries and lists of plain values. A value that cannot be compared, such as a lambda, becomes
        ``{"incomparable": ...}``.

    Example:
        >>> describe_value(nn.CrossEntropyLoss(label_smoothing=0.1))["fields"]["label_smoothing"]
        0.1
        >>> describe_value(lambda logits, labels: 0)
        {'incomparable': 'a lambda'}
    """
    if depth > _MAX_DEPTH:
        return {_INCOMPARABLE: f"a {type(value).__name__} that contains itself"}
    inside = functools.partial(describe_value, model=model, depth=depth + 1)
    if model is not None and isinstance(value, nn.Module | Tensor) and _is_part_of(model, value):
        return {"global": "the model"}
    if isinstance(value, Enum):
        return {"class": _name(type(value)), "value": value.name}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes | Tensor | np.ndarray | np.generic):
        return _hash(value)
    if isinstance(value, Mapping):
        return {str(key): inside(entry) for key, entry in value.items()}
    if isinstance(value, Sequence):
        return [inside(entry) for entry in value]
    if isinstance(value, functools.partial):
        return {"partial": inside(value.func), "args": inside(value.args), "keywords": inside(value.keywords)}
    if isinstance(value, types.MethodType):
        if not isinstance(value.__self__, type):  # the state of an object may change in every step
            return {_INCOMPARABLE: f"a method of a {type(value.__self__).__name__}"}
        return {"method": value.__name__, "self": inside(value.__self__)}
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        return _name_of_global(value)
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, torch.dtype | torch.device | os.PathLike):
        return str(value)
    found = _fields(value)
    if found is None:
        return {_INCOMPARABLE: f"a {type(value).__name__}"}
    return {"class": _name(type(value)), "fields": {key: inside(entry) for key, entry in found.items()}}


def _is_part_of(model: nn.Module, value: nn.Module | Tensor) -> bool:
    parts = model.modules() if isinstance(value, nn.Module) else (*model.parameters(), *model.buffers())
    return any(part is value for part in parts)


def _fields(value: Any) -> dict[str, Any] | None:
    """Return the constructor arguments or attributes of an object; ``None`` if none can be read."""
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if not hasattr(value, "__dict__"):
        return None
    module = type(value).__module__.partition(".")[0]
    if module in ("torch", "torchvision"):  # private attributes of these change between versions
        names = [name for name in inspect.signature(type(value).__init__).parameters if name != "self"]
        found = {name: getattr(value, name) for name in names if hasattr(value, name)}
    else:
        found = {name: entry for name, entry in vars(value).items() if name not in _MODULE_ATTRIBUTES}
    if isinstance(value, nn.Module):
        found |= dict(value.named_parameters(recurse=False))
        found |= dict(value.named_buffers(recurse=False))
        found |= dict(value.named_children())
    return found


_MODULE_ATTRIBUTES = {*vars(nn.Module())}


def _hash(value: bytes | Tensor | np.ndarray | np.generic) -> Any:
    if isinstance(value, np.generic) or (isinstance(value, Tensor | np.ndarray) and value.ndim == 0):
        return value.item()
    if isinstance(value, bytes):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    tensor = torch.as_tensor(value, device="cpu").detach().contiguous()
    digest = hashlib.sha256(tensor.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
    return {"tensor": digest, "shape": list(tensor.shape), "dtype": str(tensor.dtype)}


def _name(value: Any) -> str:
    """Return package and name, without the module, which may move between versions."""
    package = (value.__module__ or "").partition(".")[0]
    return f"{package}.{value.__qualname__}" if package in ("cifarnet", "torch", "torchvision") else value.__qualname__


def _name_of_global(value: Any) -> Any:
    found: Any = sys.modules.get(value.__module__ or "builtins")
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is value:
        return {"global": _name(value)}
    kind = "a lambda" if value.__name__ == "<lambda>" else f"{value.__qualname__}, which is local to a function"
    return {_INCOMPARABLE: kind}


def _settings(trainer: Trainer, data: RunData | None) -> dict[str, Any]:
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
        "max_grad_norm": describe(trainer.max_grad_norm),
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "ema_decay": None if trainer.ema is None else describe_value(trainer.ema.decay),
        "lr_schedule": describe(trainer.lr_schedule),
    }
    if data is not None:
        settings["batch_size"] = data.batch_size
        settings["data"] = _describe_images(data.train_data)
        settings["val_data"] = _describe_images(data.val_data)
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
        facts["batch_size"] = data.batch_size
        facts["dataset"] = type(dataset).__name__
        facts["num_images"] = len(dataset) if hasattr(dataset, "__len__") else None
        facts["fingerprint"] = getattr(dataset, "fingerprint", None)
    return facts


def _environment(trainer: Trainer, data: RunData) -> dict[str, Any]:
    """Return the environment, which should be equal."""
    return {
        "cuda_graph": trainer.uses_cuda_graph,
        "deterministic": trainer.deterministic,
        "device": trainer.device.type,
        "max_epochs": f"{data.max_epochs} epochs" if trainer.lr_schedule is not None else None,
        "optimizer": _optimizer_flags(trainer),
        "precision": trainer.precision.name,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "world_size": trainer.group.world_size,
    }


def _optimizer_flags(trainer: Trainer) -> list[dict[str, Any]]:
    return [{key: group[key] for key in OPTIMIZER_FLAGS if key in group} for group in trainer.optimizer.param_groups]


def upgrade_from_format_1(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Convert a state of file format 1; return any other unchanged.

    Format 1 describes loss, augmentation, batch transform and schedule by `repr`. They are not compared.
    """
    if "sums" not in state or "run" not in state:
        return state
    new = {key: state[key] for key in ("model", "position", "history")}
    optimizer, run, environment = state["optimizer"], dict(state["run"]), dict(state["environment"])
    if run.get("lookahead") is not None:
        raise ResumeMismatchError("The run was trained with Lookahead, which cifarnet no longer has. Start a new run")
    settings = {key: value for key, value in run.items() if key not in (*_TEXT_IN_FORMAT_1, "lookahead")}
    for name in ("data", "val_data"):
        if settings.get(name) is None:
            settings.pop(name, None)  # user-supplied iterables were not described
        else:
            settings[name] = {key: value for key, value in settings[name].items() if key != "name"}
    groups = settings["optimizer"]["groups"]
    settings["optimizer"] = {**settings["optimizer"], "groups": [_with_lr(group) for group in groups]}
    known = ("deterministic", "device", "optimizer", "precision", "threads", "torch", "world_size")
    new["settings"] = settings
    new["environment"] = {
        **{key: environment[key] for key in known if key in environment},
        "differences": [*environment.get("changes", [])],
    }
    groups = [
        {key: value for key, value in group.items() if key != "initial_lr"} for group in optimizer["param_groups"]
    ]
    new["optimizer"] = {**optimizer, "param_groups": groups}
    new["running_metrics"], new["best"] = state["sums"], state["selection"]
    if "average" in state:
        new["ema"] = state["average"]
    return new


def _with_lr(group: Mapping[str, Any]) -> dict[str, Any]:
    settings = dict(group)
    if "initial_lr" in settings:
        settings["lr"] = settings.pop("initial_lr")
    return settings


def _refuse(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differences = list(_differences(saved, {key: now.get(key) for key in saved}))
    if differences:
        raise ResumeMismatchError(
            f"{'; '.join(differences)}. Continue with the settings of the run, start a new run in another directory, "
            "or start a new run from its weights with init_from="
        )


def _warn(differences: list[str]) -> None:
    warnings.warn(
        f"{'; '.join(differences)}. The resumed run is valid, but may not be bit-identical to an uninterrupted one",
        CheckpointWarning,
        stacklevel=5,
    )


def _differences(saved: Any, now: Any, name: str = "") -> Iterator[str]:
    """Yield ``weight_decay 0.0001 in the run, 0.0005 now`` for each value that differs, at any depth."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        if _INCOMPARABLE in saved or _INCOMPARABLE in now:
            if (_INCOMPARABLE in saved) != (_INCOMPARABLE in now):
                yield f"{_path(name)} {_short(saved)} in the run, {_short(now)} now"
            return
        if "class" in saved and saved.get("class") != now.get("class"):
            yield f"{_path(name)} {_short(saved)} in the run, {_short(now)} now"
            return
        # A field or argument that only one side has was added or removed by another version of a library.
        keys = saved.keys() & now.keys() if name.endswith("fields") else saved.keys()
        if name.partition(".")[0] in _DESCRIBED and not name.endswith("fields"):
            keys = saved.keys() | now.keys()
        for key in sorted(keys, key=str):
            yield from _differences(saved.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif isinstance(saved, list | tuple) and isinstance(now, list | tuple) and len(saved) == len(now):
        for index, (one, other) in enumerate(zip(saved, now, strict=True)):
            yield from _differences(one, other, f"{name}[{index}]")
    elif saved != now:
        yield f"{_path(name)} {_short(saved)} in the run, {_short(now)} now"


def _incomparable(now: Any, name: str = "") -> Iterator[str]:
    """Yield ``loss_fn is a lambda, which cannot be compared`` for each such value."""
    if isinstance(now, Mapping):
        if _INCOMPARABLE in now:
            yield f"{_path(name)} is {now[_INCOMPARABLE]}, which cannot be compared"
            return
        for key, value in now.items():
            yield from _incomparable(value, f"{name}.{key}".lstrip("."))
    elif isinstance(now, list):
        for index, value in enumerate(now):
            yield from _incomparable(value, f"{name}[{index}]")


def _path(name: str) -> str:
    return name.replace(".fields", "")


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        known = value.get("class") or value.get("global") or value.get(_INCOMPARABLE) or value.get("batches")
        value = known or value
    text = str(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
