"""Trainer and optimizer of a recipe."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cifarnet._validation import check_choice
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
    """Build the trainer of a recipe, with a new network that is initialised from the seed.

    Args:
        recipe: Recipe of the run. To save it, pass ``metadata={"recipe": asdict(recipe)}`` to the `Checkpointer`.
        data: Training images. The network gets as many classes.
        seed: Seed of initial weights, order, augmentation and dropout.
        device: Device, see `Trainer`.
        precision: Precision, see `Trainer`.
        deterministic: Whether only deterministic kernels are used, see `Trainer`.
        cuda_graph: Whether a CUDA graph may be used, see `Trainer`.
        fitted: Whether FastCNN's whitening filters are computed from ``data`` now. ``False`` leaves them to a
            later call of ``cifarnet.recipes.builders.fit_to_images``, for example to measure its time.

    Returns:
        The trainer, not trained yet.

    Raises:
        SettingError: If a value is outside its range, or the optimizer or the network has no such argument.
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
    """Compute the weights that a network takes from the training images: the whitening filters of `FastCNN`.

    Args:
        trainer: Trainer that is not trained yet. The images are preprocessed on its device, and not augmented.
        data: Training images. The first 5,000 are used.

    Raises:
        SettingError: If the trainer is trained already.
    """
    if trainer.global_step:
        raise SettingError(
            f"The trainer has done {trainer.global_step} steps, which would be lost. Build a new trainer"
        )
    if isinstance(trainer.model, FastCNN):
        # Whitening is computed in float64, which mps does not support.
        device = torch.device("cpu") if trainer.device.type == "mps" else trainer.device
        images = data.images[:_WHITENING_IMAGES].to(device)
        trainer.model.fit_whitening(trainer.transforms.preprocess(images))
        if trainer.ema is not None:
            trainer.ema.begin()


def build_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of a recipe over the parameters of a network.

    Args:
        recipe: Recipe. If it has ``head`` or ``others``, these parameters get groups of their own.
        model: Network in its final form.

    Returns:
        The optimizer. Adam and SGD are ``fused``: they update weights and moments in one pass.

    Raises:
        SettingError: If the optimizer has no such argument.

    Example:
        >>> from cifarnet import CifarCNN
        >>> from cifarnet.recipes import get_recipe
        >>> [group["lr"] for group in build_optimizer(get_recipe("reference"), CifarCNN()).param_groups]
        [0.001]
    """
    kind = _OPTIMIZERS[recipe.optimizer]
    is_muon = kind is Muon  # it checks the arguments of its groups; torch ignores unknown ones
    arguments = tuple(inspect.signature(kind).parameters)[1:]
    own = ("lr", "weight_decay", "fused", "foreach")  # fields of the recipe, and the choice of the library
    for key in ("settings",) if is_muon else ("settings", "head", "others"):
        options = tuple(name for name in arguments if key != "settings" or name not in own)
        for name in getattr(recipe, key):
            check_choice(f"argument in {key} of the {recipe.optimizer} recipe {recipe.name}:", name, options)
    settings: dict[str, Any] = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, **recipe.settings}
    params: Any = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if recipe.head or recipe.others:
        params = param_groups(model, filters={}, head=recipe.head, others=recipe.others)
    try:
        return kind(params, **settings, **({} if is_muon else {"fused": True}))
    except SettingError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise SettingError(f"recipe {recipe.name}: {recipe.optimizer} cannot be built: {error}") from error
