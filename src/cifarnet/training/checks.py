"""Checks of the components of a run before its first step."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from cifarnet import randomness
from cifarnet._types import Images
from cifarnet._validation import check_count
from cifarnet.data import ImageDataset
from cifarnet.errors import SettingError
from cifarnet.inference.evaluate import check_model_fits
from cifarnet.transforms import Transforms
from cifarnet.transforms.augment import draws_per_image

if TYPE_CHECKING:
    from cifarnet.training.trainer import Trainer

__all__ = [
    "check_augmentation",
    "check_components",
    "check_optimizer",
    "check_options",
    "check_sizes",
    "choose_optimizer",
    "warn_of_shared_images",
]

#: Larger shares of validation or test images among the training images cause a warning.
_MAX_SHARED = 0.01
#: Number of draws that reveals a transform with a probability of 10 % in 99 % of all cases.
_NUM_DRAWS = 44


def check_components(model: Any, optimizer: Any, transforms: Any, loss_fn: Any, lr_schedule: Any) -> None:
    """Refuse a class in the place of an instance, and components of another kind.

    Raises:
        SettingError: If one cannot be used, or the loss is not a mean. The message names the argument.
    """
    components: tuple[tuple[str, object, Any, str], ...] = (
        ("model", model, nn.Module, "an nn.Module, such as CifarCNN()"),
        ("optimizer", optimizer, torch.optim.Optimizer | None, "an optimizer, such as Adam(model.parameters())"),
        ("transforms", transforms, Transforms | None, "Transforms, such as build_transforms()"),
        ("loss_fn", loss_fn, Callable | None, "a function (logits, labels) -> loss, such as nn.CrossEntropyLoss()"),
        ("lr_schedule", lr_schedule, Callable | None, "a function (step, total_steps) -> factor. Use optim.from_torch"),
    )
    for name, value, kind, remedy in components:
        if isinstance(value, type) or not isinstance(value, kind):
            found = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
            raise SettingError(f"{name} is {found}. It must be {remedy}")
    reduction = getattr(loss_fn, "reduction", "mean")
    if reduction != "mean":
        raise SettingError(
            f"loss_fn must return the mean over the images, and it has reduction={reduction!r}. Use reduction='mean'"
        )


def check_options(
    seed: int, accumulate_grad_batches: int, max_grad_norm: float | None, deterministic: bool, device: torch.device
) -> None:
    """Refuse numbers outside their ranges, and ``deterministic=True`` where it has no effect.

    Raises:
        SettingError: Naming the argument.
    """
    check_count("seed", seed, "The default is 0", least=0)
    check_count("accumulate_grad_batches", accumulate_grad_batches, "1 does not split a batch")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise SettingError(f"max_grad_norm must be above 0, got {max_grad_norm}. Use None for no clipping")
    # torch reads it once, at the first matrix product of the process.
    if deterministic and device.type == "cuda" and "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
        raise SettingError(
            "deterministic=True needs CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment. Set it before Python starts"
        )


def choose_optimizer(
    optimizer: torch.optim.Optimizer | None, model: nn.Module, lr: float | None
) -> torch.optim.Optimizer:
    """Return the optimizer, which is Adam by default, after `check_optimizer`.

    Raises:
        SettingError: If the optimizer cannot train the model, or there is a ``lr`` beside it.
    """
    if optimizer is not None and lr is not None:
        raise SettingError("lr is the learning rate of the default Adam. Set it in your optimizer, or leave it out")
    if optimizer is None:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3 if lr is None else lr)
    check_optimizer(optimizer, model)
    return optimizer


def check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer that cannot train the model.

    Raises:
        SettingError: If it holds other parameters, none that requires a gradient, or a negative learning rate, or if
            it needs a closure.
    """
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise SettingError(f"{type(optimizer).__name__} needs a closure. Use Adam, AdamW, SGD or Muon")
    own = {id(parameter) for parameter in model.parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not all(id(parameter) in own for parameter in parameters):
        raise SettingError("The optimizer holds parameters that are not the model's. Build it from model.parameters()")
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


def check_sizes(trainer: Trainer, image: Images, name: str) -> None:
    """Predict an image of each smaller size of progressive resizing. A floating image is never resized.

    Args:
        trainer: Trainer of the run.
        image: One image, shape ``(1, C, H, W)``.
        name: Name of the images in error messages.

    Raises:
        SettingError: If the network cannot take one of the sizes.
    """
    preprocess = trainer.transforms.preprocess
    for size in trainer.transforms.train_sizes:
        if size != preprocess.size and not image.is_floating_point():
            small = replace(preprocess, size=size)
            check_model_fits(trainer.model, image, None, name, preprocess=small, precision=trainer.precision)


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
