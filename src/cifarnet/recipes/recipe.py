"""Recipe: all settings of a run as plain values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cifarnet._validation import check_choice, check_count, from_json
from cifarnet.errors import SettingError
from cifarnet.models import MODELS
from cifarnet.optim import Schedule, constant, cosine, linear, one_cycle
from cifarnet.transforms import TTA, Transforms, build_transforms
from cifarnet.transforms.tta import check_tta, current_tta_name

__all__ = ["Recipe"]

#: Settings of a group of parameters, by the argument names of the optimizer.
Settings = Mapping[str, Any]

_SCHEDULES: Mapping[str, Callable[..., Schedule]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "one_cycle": one_cycle,
}

#: Fields of earlier recipes, and the value that did not use them.
_REMOVED: Mapping[str, Any] = {
    "lookahead_every": None,
    "lookahead_decay": 0.5,
    "brightness": 0.0,
    "contrast": 0.0,
    "max_grad_norm": None,
    "ema_decay": None,
}


@dataclass(frozen=True)
class Recipe:
    """All settings of a run, without its data and its seed.

    The values are plain, so that a recipe survives a round trip through JSON. Lists become tuples.

    Args:
        name: Name of the recipe.
        summary: Description in one line.
        model: Network, a key of `cifarnet.models.MODELS`.
        model_arguments: Arguments of its constructor, without the number of classes.
        optimizer: ``"adam"`` (Kingma and Ba, 2015, arXiv:1412.6980), ``"sgd"`` or ``"muon"`` (`Muon`).
        learning_rate: Largest learning rate, above 0. The schedule multiplies it.
        weight_decay: Weight decay, at least 0. Adam and SGD add it to the gradient, Muon decouples it.
        settings: More arguments of the optimizer, such as ``{"momentum": 0.9, "nesterov": True}``.
        head: Arguments that differ for the layer of the logits, such as ``{"lr": 0.01}``, see `param_groups`.
        others: Arguments that differ for biases and norms.
        schedule: Learning-rate schedule, see `cifarnet.optim`. All but ``"constant"`` end at 0.
        warmup: Share of all steps in which the learning rate rises, in ``[0, 1)``.
        batch_size: Images per step.
        max_epochs: Number of epochs.
        crop_padding: Pixels of padding around a random crop, see `build_transforms`.
        crop_mode: Content of the padding.
        flip: Horizontal flip.
        cutout: Side of the square of `Cutout` in pixels.
        sizes: Sides in pixels of the training images, each for an equal share of the epochs, for networks that take any
            size. None trains at full size.
        label_smoothing: Label smoothing of the cross-entropy, in ``[0, 1)``.
        tta: Test-time augmentation of a second evaluation; ``None`` evaluates only once.
        watch_test: Whether the test images are evaluated in each epoch, as in the published curve. They select nothing,
            and the report says so.

    Raises:
        SettingError: If a value is outside its range. Arguments that the optimizer or the network does not have are
            refused when these are built.
    """

    name: str
    summary: str
    model: str = "CifarCNN"
    model_arguments: Settings = field(default_factory=dict, hash=False)
    optimizer: Literal["adam", "sgd", "muon"] = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    settings: Settings = field(default_factory=dict, hash=False)
    head: Settings = field(default_factory=dict, hash=False)
    others: Settings = field(default_factory=dict, hash=False)
    schedule: Literal["constant", "linear", "cosine", "one_cycle"] = "constant"
    warmup: float = 0.0
    batch_size: int = 64
    max_epochs: int = 10
    crop_padding: int = 0
    crop_mode: Literal["reflect", "zero"] = "reflect"
    flip: Literal["random", "alternating", "none"] = "random"
    cutout: int = 0
    sizes: tuple[int, ...] = ()
    label_smoothing: float = 0.0
    tta: TTA | None = None
    watch_test: bool = False

    def __post_init__(self) -> None:
        for key in ("model_arguments", "settings", "head", "others"):
            object.__setattr__(self, key, _copy_plain(key, getattr(self, key)))
        object.__setattr__(self, "sizes", tuple(self.sizes))
        check_choice("model", self.model, tuple(MODELS))
        check_choice("optimizer", self.optimizer, ("adam", "sgd", "muon"))
        check_choice("schedule", self.schedule, tuple(_SCHEDULES))
        check_choice("crop_mode", self.crop_mode, ("reflect", "zero"))
        check_tta(self.tta)
        check_count("batch_size", self.batch_size, "The reference recipe has 64")
        check_count("max_epochs", self.max_epochs, "The reference recipe has 10")
        if len(self.sizes) > self.max_epochs:
            raise SettingError(
                f"sizes must be at most {self.max_epochs}, one per epoch, got {len(self.sizes)}. Leave some out"
            )
        if not 0 < self.learning_rate < math.inf:
            raise SettingError(f"learning_rate must be above 0, got {self.learning_rate}. Adam usually has 1e-3")
        if not 0 <= self.weight_decay < math.inf:
            raise SettingError(f"weight_decay must be at least 0, got {self.weight_decay}. The reference has 1e-4")
        if not 0 <= self.label_smoothing < 1:
            raise SettingError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}. 0.1 is usual")
        _ = self.transforms, self.multiplier  # refuse values outside their ranges

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Build the recipe of a report or a checkpoint, also of an earlier version.

        Args:
            values: Fields by name, as `dataclasses.asdict` returns them, also after a round trip through JSON.

        Raises:
            SettingError: If a field is missing, is unknown or has another type, or if the recipe uses a field that no
                longer exists.
        """
        for name, unused in _REMOVED.items():
            value = values.get(name, unused)
            if value != unused:
                raise SettingError(f"The recipe uses {name}, which cifarnet no longer has. Leave it out")
        kept = {key: current_tta_name(value) if key == "tta" else value for key, value in values.items()}
        return from_json(cls, {key: value for key, value in kept.items() if key not in _REMOVED}, "The recipe")

    @property
    def transforms(self) -> Transforms:
        """Augmentation of the recipe, and the normalisation of CIFAR-10."""
        return build_transforms(
            crop_padding=self.crop_padding,
            crop_mode=self.crop_mode,
            flip=self.flip,
            cutout=self.cutout,
            sizes={i * self.max_epochs // len(self.sizes): size for i, size in enumerate(self.sizes)} or None,
        )

    @property
    def multiplier(self) -> Schedule:
        """Multiplier of the learning rate at each step."""
        if self.schedule != "constant":
            return _SCHEDULES[self.schedule](warmup=self.warmup)
        if self.warmup:
            raise SettingError(f'schedule="constant" has no warmup, got {self.warmup}. Use schedule="linear"')
        return constant()


def _copy_plain(key: str, settings: Settings) -> dict[str, Any]:
    """Return a copy with tuples in place of lists, because JSON has only lists."""
    for name, value in settings.items():
        items = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(item, bool | int | float | str) for item in items):
            raise SettingError(f"{key} must hold plain values under names, got {name!r}: {value!r}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
