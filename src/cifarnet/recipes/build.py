"""From a recipe to a trainer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cifarnet._validation import did_you_mean
from cifarnet.data import ImageDataset
from cifarnet.errors import SettingError
from cifarnet.models import FastCNN, build_model
from cifarnet.optim import Muon, param_groups
from cifarnet.randomness import isolated, seed_torch
from cifarnet.recipes.recipe import Recipe
from cifarnet.training import Trainer

__all__ = ["build_optimizer", "build_trainer", "fit_to_images"]

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "muon": Muon,
}
#: What a recipe says elsewhere, or leaves to us.
_OF_THE_RECIPE = {
    "lr": "learning_rate is its field",
    "weight_decay": "it is a field of its own",
    "fused": "the update is always fused",
    "foreach": "the update is always fused",
}
_WHITENING_IMAGES = 5_000  # as in airbench94; their patches of 2x2 pixels are 4.8 million


def build_trainer(
    recipe: Recipe,
    data: ImageDataset,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "auto",
    deterministic: bool = False,
    cuda_graph: bool = True,
    fitted: bool = True,
) -> Trainer:
    """A trainer for a recipe, its network freshly initialised from the seed.

    Args:
        recipe: What to train; pass ``metadata={"recipe": asdict(recipe)}`` to the `Checkpointer` to keep it.
        data: The training images; the network gets as many classes.
        seed: Of initial weights, order, augmentation and dropout.
        device: See `Trainer`.
        precision: See `Trainer`.
        deterministic: See `Trainer`.
        cuda_graph: See `Trainer`.
        fitted: Whether to do what `fit_to_images` does; else that is to be done before training.

    Returns:
        The trainer; nothing is trained yet.

    Raises:
        SettingError: If a value is outside its range, or the optimizer or the network do not know a setting.
    """
    cpu = torch.device("cpu")
    with isolated(cpu):
        seed_torch(seed, cpu)
        model = build_model(recipe.model, {**recipe.model_arguments, "num_classes": len(data.classes)})
    trainer = Trainer(
        model,
        build_optimizer(recipe, model),
        transforms=recipe.transforms,
        loss_fn=nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing),
        lr_schedule=None if recipe.schedule == "constant" else recipe.multiplier,
        max_grad_norm=recipe.max_grad_norm,
        ema_decay=recipe.ema_decay,
        device=device,
        precision=precision,
        deterministic=deterministic,
        seed=seed,
    )
    trainer.cuda_graph = cuda_graph
    if fitted:
        fit_to_images(trainer, data)
    return trainer


def fit_to_images(trainer: Trainer, data: ImageDataset) -> None:
    """What a network takes from the training images before the first step: `FastCNN` its whitening filters.

    Args:
        trainer: Not trained yet. The images go to its device and are preprocessed there, not augmented.
        data: The training images, of which the first 5,000 are used.

    Raises:
        SettingError: If it was trained already.
    """
    if trainer.global_step:
        raise SettingError(f"the trainer has done {trainer.global_step} steps; what it has learnt would be lost")
    if isinstance(trainer.model, FastCNN):
        # Whitening is computed in float64, which Apple's GPUs do not have.
        device = torch.device("cpu") if trainer.device.type == "mps" else trainer.device
        images = data.images[:_WHITENING_IMAGES].to(device)
        trainer.model.fit_whitening(trainer.transforms.preprocess(images))
        if trainer.ema is not None:
            trainer.ema.begin()


def build_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters of a network.

    Args:
        recipe: Whose ``head`` and ``others``, if it has such, get groups of their own.
        model: In its final form.

    Returns:
        The optimizer; Adam and SGD compute the same update in one pass over weights and moments (``fused``).

    Raises:
        SettingError: If the optimizer does not know a setting.

    Example:
        >>> from cifarnet import CifarCNN
        >>> from cifarnet.recipes import get_recipe
        >>> [group["lr"] for group in build_optimizer(get_recipe("reference"), CifarCNN()).param_groups]
        [0.001]
    """
    for name, remedy in _OF_THE_RECIPE.items():
        if name in recipe.settings:
            raise SettingError(f"settings of recipe {recipe.name} have {name}; {remedy}")
    kind = _OPTIMIZERS[recipe.optimizer]
    settings = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, **recipe.settings}
    known = [*inspect.signature(kind).parameters][1:]
    groups = ("head", recipe.head), ("others", recipe.others)
    # torch keeps what it does not know in a group, and never reads it; Muon refuses it by itself.
    for key, given in (("settings", settings), *(() if kind is Muon else groups)):
        for name in given:
            if name not in known:
                raise SettingError(f"{key} of the {recipe.optimizer} recipe has {name}; {did_you_mean(name, known)}")
    if kind is not Muon:
        settings["fused"] = True
    params: Any = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if recipe.head or recipe.others:
        params = param_groups(model, filters={}, head=recipe.head, others=recipe.others)
    try:
        return kind(params, **settings)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(f"recipe {recipe.name}: {recipe.optimizer} cannot be built: {error}") from error
