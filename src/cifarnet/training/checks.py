"""Checks of a run before its first step: value, rule, remedy."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from cifarnet import randomness
from cifarnet._types import Images
from cifarnet.data import ImageDataset
from cifarnet.errors import SettingError, SettingTypeError
from cifarnet.transforms import Transforms, draws_per_image

if TYPE_CHECKING:
    from cifarnet.training.trainer import Trainer

__all__ = ["check_augmentation", "check_components", "check_optimizer", "warn_of_shared_images"]

#: Larger shares of validation or test images among the training images cause a warning.
_MAX_SHARED = 0.01
#: Number of draws that reveals a transform with a probability of 10 % in 99 % of all cases.
_NUM_DRAWS = 44


def check_components(model: Any, optimizer: Any, transforms: Any, loss_fn: Any, lr_schedule: Any) -> None:
    """Refuse a class in the place of an instance, and components of another kind.

    Raises:
        SettingTypeError: Naming the argument.
        SettingError: If the loss is not a mean.
    """
    if not isinstance(model, nn.Module):
        raise SettingTypeError(f"model must be an nn.Module, got {_kind(model)}. Build it first, such as CifarCNN()")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise SettingTypeError(
            f"optimizer must be a torch.optim.Optimizer, got {_kind(optimizer)}. Build it first, such as "
            "torch.optim.Adam(model.parameters())"
        )
    if transforms is not None and not isinstance(transforms, Transforms):
        raise SettingTypeError(
            f"transforms must be Transforms, got {_kind(transforms)}. Use build_transforms(), or "
            "Transforms(augment, Preprocess()) with your own augment"
        )
    if loss_fn is not None and (isinstance(loss_fn, type) or not callable(loss_fn)):
        raise SettingTypeError(
            f"loss_fn must be a function (logits, labels) -> loss, got {_kind(loss_fn)}. Build it first, such as "
            "nn.CrossEntropyLoss()"
        )
    reduction = getattr(loss_fn, "reduction", "mean")
    if reduction != "mean":
        raise SettingError(
            f"loss_fn must return the mean over the images, and it has reduction={reduction!r}. Use reduction='mean'"
        )
    if lr_schedule is not None and (isinstance(lr_schedule, type) or not callable(lr_schedule)):
        raise SettingTypeError(
            f"lr_schedule must be a function (step, total_steps) -> factor, got {_kind(lr_schedule)}. Use "
            "optim.from_torch, or step a torch scheduler in the loop over epochs"
        )


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer that cannot train the model.

    Raises:
        SettingError: If it holds other parameters, none that requires a gradient, or a negative learning rate, or if
            it needs a closure.
    """
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise SettingError(
            f"{type(optimizer).__name__} needs a closure that evaluates a batch again, and a step evaluates it once. "
            "Use Adam, AdamW, SGD or Muon"
        )
    own = {id(parameter) for parameter in model.parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not all(id(parameter) in own for parameter in parameters):
        raise SettingError(
            "The optimizer holds parameters that are not the model's. Build it from model.parameters() after the "
            "model has its final form"
        )
    if not any(parameter.requires_grad for parameter in parameters):
        raise SettingError("No parameter of the optimizer requires a gradient. Unfreeze the head, for example")
    for group in optimizer.param_groups:
        if not float(group["lr"]) >= 0:
            raise SettingError(f"The learning rate must not be negative, got {float(group['lr'])}. 1e-3 suits Adam")


def warn_of_shared_images(train: ImageDataset, other: ImageDataset, split: str) -> None:
    """Warn if more than 1 % of the validation or test images are training images too.

    Args:
        train: Training images.
        other: Validation or test images.
        split: ``"val"`` or ``"test"``.
    """
    num_shared = int(np.isin(other.image_hashes.numpy(), train.image_hashes.numpy()).sum())
    if num_shared > _MAX_SHARED * len(other):
        warnings.warn(
            f"{num_shared:,} of {len(other):,} {split} images are training images too, so {split}_accuracy is too "
            "high. Train on the other part of train, val = data.train.split(0.1, seed=0)",
            stacklevel=5,
        )


def check_augmentation(trainer: Trainer, images: Images) -> None:
    """Apply the augmentation to one image before the first step. The caller's random state is restored.

    Args:
        trainer: Trainer of the run.
        images: At least one image, uint8, shape ``(N, C, H, W)``.

    Raises:
        SettingError: If a transform does not return uint8 images.

    Warns:
        UserWarning: If a transform draws once per batch.
    """
    images = images[:1].to(trainer.device).repeat(4, 1, 1, 1)
    ids = torch.zeros(4, dtype=torch.int64, device=trainer.device)
    with randomness.kept_generators(trainer.device), randomness.scope(trainer.seed, 0, ids):
        for step in trainer.transforms.steps:
            name = type(step).__name__
            if not draws_per_image(step) and _draws_once(step, images):
                warnings.warn(
                    f"{name} draws once per batch, so all images of a batch are changed alike. Use RandomCrop, "
                    "RandomFlip or Cutout of cifarnet.transforms, or apply it in a data set, which reads each image "
                    "alone",
                    stacklevel=5,
                )
            changed: Any = step(images)
            if not isinstance(changed, Tensor) or changed.dtype != torch.uint8:
                found = changed.dtype if isinstance(changed, Tensor) else type(changed).__name__
                raise SettingError(
                    f"The augmentation must return uint8 images, and {name} returns {found}. Leave out ToDtype and "
                    "Normalize, because Preprocess scales and normalises"
                )
            images = changed


def _draws_once(transform: Callable[[Images], Any], images: Images) -> bool:
    """Return whether a random transform changes equal images of a batch alike. Each draw has a seed."""
    results = []
    for seed in range(_NUM_DRAWS):
        randomness.seed_torch(seed, images.device)
        result = transform(images)
        if not isinstance(result, Tensor) or not bool((result == result[:1]).all()):
            return False
        results.append(result[0])
    return not all(torch.equal(results[0], result) for result in results)
