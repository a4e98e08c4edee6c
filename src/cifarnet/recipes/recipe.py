"""What a run is made of, as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cifarnet._validation import check_choice, check_count, did_you_mean
from cifarnet.errors import SettingError, SettingTypeError
from cifarnet.models import MODELS
from cifarnet.optim import Schedule, constant, cosine, linear, one_cycle
from cifarnet.transforms import TTA, Transforms, build_transforms
from cifarnet.transforms.tta import check_tta, current_tta_name

__all__ = ["Recipe"]

#: Settings of a group of parameters, by the names that the optimizer gives them.
Settings = Mapping[str, Any]


#: Options of earlier recipes, and the value that did not use them.
_REMOVED = {"lookahead_every": None, "lookahead_decay": 0.5, "brightness": 0.0, "contrast": 0.0}


@dataclass(frozen=True)
class Recipe:
    """All that a run is made of, but for its data and its seed.

    Values are plain, so that a recipe can be written to JSON and built from it; lists become tuples.

    Args:
        name: How it is asked for.
        summary: What it is, in a line.
        model: A key of `cifarnet.models.MODELS`.
        model_arguments: Of its constructor, beside the number of classes.
        optimizer: ``"adam"`` (Kingma and Ba, 2015, arXiv:1412.6980), ``"sgd"`` or ``"muon"`` (`Muon`).
        learning_rate: Of the optimizer, above 0; the schedule multiplies it.
        weight_decay: Of the optimizer, not negative: Adam and SGD add it to the gradient, Muon decouples it.
        settings: More arguments of the optimizer, such as ``{"momentum": 0.9, "nesterov": True}``.
        head: What is otherwise for the layer that gives the logits, such as ``{"lr": 0.01}``; see
            `param_groups`.
        others: What is otherwise for biases and norms.
        schedule: Of the learning rate, see `cifarnet.optim`; all but the constant one end at 0.
        warmup: Share of all steps that the learning rate rises, in ``[0, 1)``.
        max_grad_norm: See `Trainer`.
        ema_decay: See `Trainer`.
        batch_size: Images a step.
        max_epochs: Epochs in all.
        crop_padding: See `build_transforms`, as for the next five.
        crop_mode: What the padding shows.
        flip: Mirroring.
        cutout: Side of a painted square.
        sizes: Sides in pixels of the training images, each for an equal share of the epochs, for networks that take any
            size; none trains at the full size.
        label_smoothing: Of the cross-entropy, in ``[0, 1)``.
        tta: Test-time augmentation of a second evaluation; ``None`` evaluates only once.
        watch_test: Whether the test images are evaluated each epoch, as the published curve did. They select
            nothing, and the report says so.

    Raises:
        SettingError: If a value is outside its range. What the optimizer and the network do not know is found when
            they are built.
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
    max_grad_norm: float | None = None
    ema_decay: float | None = None
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
        _check_types(self)
        for key in ("model_arguments", "settings", "head", "others"):
            object.__setattr__(self, key, _plain(key, getattr(self, key)))
        object.__setattr__(self, "sizes", tuple(self.sizes))
        if self.model not in MODELS:
            raise SettingError(f'model "{self.model}" is unknown; {did_you_mean(self.model, MODELS)}')
        check_choice("optimizer", self.optimizer, ("adam", "sgd", "muon"))
        check_tta(self.tta)
        for key in ("batch_size", "max_epochs"):
            check_count(key, getattr(self, key), "see the reference recipe")
        if len(self.sizes) > self.max_epochs:
            raise SettingError(f"sizes are {len(self.sizes)}, max_epochs is {self.max_epochs}; give an epoch to each")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise SettingError(f"learning_rate must be above 0, got {self.learning_rate}; 1e-3 suits Adam")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise SettingError(f"weight_decay must not be negative, got {self.weight_decay}; 1e-4 is the reference's")
        _check_range("max_grad_norm", self.max_grad_norm, 0, math.inf, "1.0 is usual")
        _check_range("ema_decay", self.ema_decay, 0, 1, "0.999 is usual")
        check_choice("crop_mode", self.crop_mode, ("reflect", "zero"))
        if not 0 <= self.label_smoothing < 1:
            raise SettingError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}; 0.1 is usual")
        _ = self.transforms, self.multiplier  # refuse what is outside their ranges

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Return the recipe of a report or a checkpoint, also of one with options that no longer exist.

        Args:
            values: Fields by name, as `dataclasses.asdict` gives them.

        Raises:
            SettingError: If an option that no longer exists was used.
            TypeError: If a field is unknown.
        """
        for name, unused in _REMOVED.items():
            if values.get(name, unused) != unused:
                raise SettingError(f"The recipe uses {name}, which cifarnet no longer has. Leave it out")
        kept = {name: value for name, value in values.items() if name not in _REMOVED}
        return cls(**{name: current_tta_name(value) if name == "tta" else value for name, value in kept.items()})

    @property
    def transforms(self) -> Transforms:
        """The recipe's augmentation, and CIFAR-10's normalisation."""
        return build_transforms(
            crop_padding=self.crop_padding,
            crop_mode=self.crop_mode,
            flip=self.flip,
            cutout=self.cutout,
            sizes={i * self.max_epochs // len(self.sizes): size for i, size in enumerate(self.sizes)} or None,
        )

    @property
    def multiplier(self) -> Schedule:
        """Of the learning rate, at each step."""
        check_choice("schedule", self.schedule, ("constant", "linear", "cosine", "one_cycle"))
        if self.schedule == "constant":
            if self.warmup:
                raise SettingError(f'warmup is {self.warmup}, and schedule="constant" has none; "linear" does')
            return constant()
        return {"linear": linear, "cosine": cosine, "one_cycle": one_cycle}[self.schedule](warmup=self.warmup)


def _check_types(recipe: Recipe) -> None:
    """Refuse a value that has not its field's type: a recipe may come from a file or a command line."""
    hints = get_type_hints(Recipe)
    for known in fields(recipe):
        hint, value = hints[known.name], getattr(recipe, known.name)
        if type(None) in get_args(hint):
            if value is None:
                continue
            hint = get_args(hint)[0]
        expected = {Literal: str, Mapping: Mapping, tuple: tuple}.get(get_origin(hint), hint)
        allowed = {float: (int, float), tuple: (tuple, list)}.get(expected, expected)
        if not isinstance(value, allowed) or (isinstance(value, bool) and expected is not bool):
            raise SettingTypeError(f"{known.name} must be of type {expected.__name__}, got {value!r}")


def _check_range(key: str, value: float | None, low: float, high: float, remedy: str) -> None:
    if value is not None and not low < value < high:
        raise SettingError(f"{key} must be in ({low}, {high}), got {value}; {remedy}")


def _plain(key: str, settings: Mapping[Any, Any]) -> dict[str, Any]:
    """A copy whose lists are tuples, as they are before a recipe goes through JSON."""
    for name, value in settings.items():
        items = value if isinstance(value, list | tuple) else [value]
        if not isinstance(name, str) or not all(isinstance(item, bool | int | float | str) for item in items):
            raise SettingTypeError(f"{key} must hold plain values under names, got {name!r}: {value!r}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
