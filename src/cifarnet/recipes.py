"""Every named run as plain data: what ``cifarnet train --recipe NAME`` trains."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_type_hints

import torch
from torch import nn

from cifarnet.datasets import ImageDataset
from cifarnet.errors import SettingError, SettingTypeError, did_you_mean
from cifarnet.models import MODELS, build_model
from cifarnet.randomness import isolated, seed_torch
from cifarnet.trainer import Trainer
from cifarnet.transforms import Transforms, build_transforms

__all__ = ["RECIPES", "Recipe", "build_trainer", "get_recipe"]


@dataclass(frozen=True)
class Recipe:
    """All that a run is made of, but for its data and its seed.

    Args:
        name: How it is asked for.
        summary: What it is, in a line.
        model: A key of `cifarnet.models.MODELS`, with its default arguments.
        learning_rate: Of Adam (Kingma and Ba, 2015, arXiv:1412.6980), above 0.
        weight_decay: Of Adam, in the classic form: added to the gradient. Not negative.
        batch_size: Images a step.
        max_epochs: Epochs in all.
        crop_padding: See `build_transforms`, as for the next five.
        crop_mode: What the padding shows.
        flip: Mirroring.
        cutout: Side of a painted square.
        brightness: Largest relative change.
        contrast: Largest relative change.
        label_smoothing: Of the cross-entropy, in ``[0, 1)``.
        watch_test: Whether the test images are evaluated each epoch, as the published curve did. They select
            nothing, and the report says so.

    Raises:
        SettingError: If a value is outside its range.
    """

    name: str
    summary: str
    model: str = "CifarCNN"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    batch_size: int = 64
    max_epochs: int = 10
    crop_padding: int = 0
    crop_mode: Literal["reflect", "zero"] = "reflect"
    flip: Literal["random", "alternating", "none"] = "random"
    cutout: int = 0
    brightness: float = 0.0
    contrast: float = 0.0
    label_smoothing: float = 0.0
    watch_test: bool = False

    def __post_init__(self) -> None:
        _check_types(self)
        if self.model not in MODELS:
            raise SettingError(f'model "{self.model}" is unknown; {did_you_mean(self.model, MODELS)}')
        for key in ("batch_size", "max_epochs"):
            if getattr(self, key) < 1:
                raise SettingError(f"{key} must be at least 1, got {getattr(self, key)}; see the reference recipe")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise SettingError(f"learning_rate must be above 0, got {self.learning_rate}; 1e-3 suits Adam")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise SettingError(f"weight_decay must not be negative, got {self.weight_decay}; 1e-4 is the reference's")
        if not 0 <= self.label_smoothing < 1:
            raise SettingError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}; 0.1 is usual")
        _ = self.transforms  # refuses what is outside its range

    @property
    def transforms(self) -> Transforms:
        """The recipe's augmentation, and CIFAR-10's normalisation."""
        return build_transforms(
            crop_padding=self.crop_padding,
            crop_mode=self.crop_mode,
            flip=self.flip,
            cutout=self.cutout,
            brightness=self.brightness,
            contrast=self.contrast,
        )


def _check_types(recipe: Recipe) -> None:
    """Refuse a value that has not its field's type: a recipe may come from a file or a command line."""
    hints = get_type_hints(Recipe)
    for field in fields(recipe):
        hint, value = hints[field.name], getattr(recipe, field.name)
        expected = hint if isinstance(hint, type) else str
        allowed = (int, float) if expected is float else expected
        if not isinstance(value, allowed) or (isinstance(value, bool) and expected is not bool):
            raise SettingTypeError(f"{field.name} must be of type {expected.__name__}, got {value!r}")


#: Every recipe of the library, by name.
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="reference",
            summary="the published run: CifarCNN, Adam, 10 epochs, all 50,000 training images",
            model="CifarCNN",
            learning_rate=1e-3,
            weight_decay=1e-4,
            batch_size=64,
            max_epochs=10,
            # Chosen on validation images: docs/results/reference.md.
            crop_padding=2,
            crop_mode="zero",
            flip="random",
            watch_test=True,
        ),
    )
}


def get_recipe(name: str) -> Recipe:
    """Find a recipe.

    Args:
        name: A key of `RECIPES`.

    Returns:
        The recipe; `dataclasses.replace` gives a changed copy.

    Raises:
        SettingError: If there is none of that name.

    Example:
        >>> get_recipe("reference").max_epochs
        10
    """
    if name not in RECIPES:
        raise SettingError(f'unknown recipe "{name}"; {did_you_mean(name, RECIPES)}')
    return RECIPES[name]


def build_trainer(
    recipe: Recipe,
    data: ImageDataset,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "auto",
    backend: str = "auto",
    deterministic: bool = False,
) -> Trainer:
    """A trainer for a recipe, its network freshly initialised from the seed.

    Args:
        recipe: What to train.
        data: The training images; the network gets as many classes.
        seed: Of initial weights, order, augmentation and dropout.
        device: See `Trainer`.
        precision: See `Trainer`.
        backend: See `Trainer`.
        deterministic: See `Trainer`.

    Returns:
        The trainer; nothing is trained yet.

    Raises:
        SettingError: If a value is outside its range.
    """
    cpu = torch.device("cpu")
    with isolated(cpu):
        seed_torch(seed, cpu)
        model = build_model(recipe.model, {"num_classes": len(data.classes)})
    optimizer = torch.optim.Adam(
        model.parameters(),
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        fused=True,  # the same update in one pass over weights and moments
    )
    return Trainer(
        model,
        optimizer,
        transforms=recipe.transforms,
        loss_fn=nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing),
        device=device,
        precision=precision,
        backend=backend,
        deterministic=deterministic,
        seed=seed,
    )
