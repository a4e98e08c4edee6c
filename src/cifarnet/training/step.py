"""One training step: augment, forward, backward, optimizer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cifarnet import randomness
from cifarnet._types import Images, Labels, Logits
from cifarnet.errors import SettingError
from cifarnet.inference.evaluate import check_logits
from cifarnet.inference.loader import Batch
from cifarnet.transforms.augment import draws_per_image

if TYPE_CHECKING:
    from cifarnet.training.trainer import Trainer

__all__ = ["BatchTransform", "Update", "forward", "set_learning_rates", "train_step", "update"]

#: ``(images, labels) -> (mixed images, soft labels)``, such as `torchvision.transforms.v2.MixUp`.
BatchTransform = Callable[[Images, Labels], tuple[Images, Tensor]]

#: ``(trainer, images, labels, step, num_images)``: `update`, or a CUDA graph of it.
Update = Callable[["Trainer", Images, Tensor, int, int], None]


def train_step(trainer: Trainer, batch: Batch, *, multiplier: float | None, update: Update) -> None:
    """Train on one batch, at the step of the trainer's state.

    Args:
        trainer: Model, optimizer and settings.
        batch: Images of the whole batch, on the device. Every process passes the same one.
        multiplier: Factor of the base learning rates; ``None`` leaves the learning rates alone.
        update: `update`, or a CUDA graph of it.
    """
    state, group, device = trainer.state, trainer.group, trainer.device
    randomness.seed_torch(randomness.step_seed(trainer.seed, state.epoch, state.step), device)
    if multiplier is not None:
        set_learning_rates(trainer.optimizer, [base * multiplier for base in state.base_lrs])
    images, labels = _prepare(trainer, batch)
    if group.world_size > 1:  # each process draws its own dropout masks
        randomness.seed_torch(randomness.step_seed(trainer.seed, state.epoch, state.step, 1 + group.rank), device)
    update(trainer, images, labels, state.step, len(batch.labels))
    if trainer.ema is not None:
        trainer.ema.update()


def _prepare(trainer: Trainer, batch: Batch) -> tuple[Images, Tensor]:
    """Augment, normalise and mix a batch, and return the part of this process. Floating images are only mixed."""
    part, mix = trainer.group.local_slice(len(batch.labels)), trainer.batch_transform
    # A transform that draws once per batch must see the whole batch, so that it draws as in one process.
    is_split_first = mix is None and all(map(draws_per_image, trainer.transforms.steps))
    first, then = (part, slice(None)) if is_split_first else (slice(None), part)
    images, labels, ids = batch.images[first], batch.labels[first], batch.ids[first]
    with randomness.scope(trainer.seed, trainer.state.epoch, ids):
        if not images.is_floating_point():
            images = trainer.transforms.train(images)
        if mix is not None:
            images, labels = mix(images, labels)
            if labels.ndim != 2 or not labels.is_floating_point():
                raise SettingError(
                    f"batch_transform returned labels of shape {tuple(labels.shape)} and {labels.dtype}. It must "
                    "return soft labels (N, K). Use torchvision.transforms.v2.MixUp(num_classes=K), for example"
                )
            labels = labels.to(trainer.precision.weights)
    return images[then], labels[then]


def update(trainer: Trainer, images: Images, labels: Tensor, step: int | Tensor, num_images: int) -> None:
    """Compute the gradient of a batch, in parts if gradients are accumulated, and let the optimizer step.

    Args:
        trainer: Model, optimizer and settings.
        images: Images that the model takes, shape ``(n, C, H, W)``.
        labels: Labels ``(n,)`` or soft labels ``(n, K)``.
        step: Index of the step in the epoch; a tensor inside a CUDA graph.
        num_images: Images of the whole batch, over all processes.
    """
    trainer.optimizer.zero_grad()
    # Equal in all processes, whose batch norms exchange statistics in each part.
    num_parts = min(trainer.accumulate_grad_batches, num_images // trainer.group.world_size)
    parts = zip(images.tensor_split(num_parts), labels.tensor_split(num_parts), strict=True)
    no_sync = getattr(trainer.network, "no_sync", nullcontext)  # of DistributedDataParallel
    for index, (some, their_labels) in enumerate(parts, 1):
        with no_sync() if index < num_parts else nullcontext():
            loss, logits = forward(trainer, some, their_labels)
            # DistributedDataParallel averages over processes, whose parts may differ by one image.
            share = trainer.group.world_size * len(their_labels) / num_images
            (loss if share == 1 else loss * share).backward()  # type: ignore[no-untyped-call]
        trainer.state.metrics.add(loss, logits, their_labels, step)
    if trainer.max_grad_norm is not None:
        nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.max_grad_norm)
    trainer.optimizer.step()


def forward(trainer: Trainer, images: Images, labels: Tensor) -> tuple[Tensor, Logits]:
    """Compute loss and logits, in the dtype of the weights because a bf16 loss has only 3 digits.

    Raises:
        SettingError: If the model does not return a tensor in training mode, or the loss is not one number.
    """
    with trainer.precision.autocast():
        output: object = trainer.network(trainer.precision.prepare(images))
    logits = check_logits(output).to(trainer.precision.weights)
    loss: object = trainer.loss_fn(logits, labels)
    if not isinstance(loss, Tensor) or loss.ndim:
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise SettingError(f"loss_fn must return the mean over the images as one number, and it returns {found}")
    return loss, logits


def set_learning_rates(optimizer: torch.optim.Optimizer, rates: list[float]) -> None:
    """Set the learning rate of each group. A tensor stays a tensor, because a capturable optimizer reads it."""
    for group, rate in zip(optimizer.param_groups, rates, strict=False):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
