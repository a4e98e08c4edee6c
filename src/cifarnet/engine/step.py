"""One training step, in the operations that every backend shares."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from cifarnet._types import Images, Labels, Logits
from cifarnet.engine.settings import StepSettings
from cifarnet.engine.sums import RunningSums
from cifarnet.errors import SettingError

__all__ = ["LossAndLogits", "forward", "mixed", "prepared", "set_learning_rates", "update"]

#: ``(images, labels) -> (loss, logits)``: what a compiler may put in the place of `forward`.
LossAndLogits = Callable[[Images, Tensor], tuple[Tensor, Logits]]


def prepared(settings: StepSettings, images: Images) -> Images:
    """Images as they lie in memory, augmented and preprocessed; floating ones are ready as they are.

    Args:
        settings: Of the step.
        images: Shape ``(N, C, H, W)``, on the device.
    """
    return images if images.is_floating_point() else settings.transforms.train(images)


def mixed(settings: StepSettings, images: Images, labels: Labels) -> tuple[Images, Tensor]:
    """Images and, where they are mixed, shares of the classes for labels.

    Raises:
        SettingError: If ``mix`` gives something else.
    """
    if settings.mix is None:
        return images, labels
    images, shares = settings.mix(images, labels)
    if shares.ndim != 2 or not shares.is_floating_point():
        raise SettingError(
            f"mix gave labels of shape {tuple(shares.shape)} and {shares.dtype}; it must give the shares of the "
            "classes, floating, (N, K), as torchvision.transforms.v2.MixUp(num_classes=K) does"
        )
    return images, shares.to(settings.precision.weights)


def forward(settings: StepSettings, images: Images, labels: Tensor) -> tuple[Tensor, Logits]:
    """Loss and logits in the dtype of the weights: the loss of bf16 logits has 3 digits.

    Args:
        settings: Of the step.
        images: As `prepared` gives them; where several processes train together, this one's part of the batch.
        labels: int64 ``(N,)``, or shares ``(N, K)``; of the whole batch, as is what is returned.
    """
    with settings.precision.autocast():
        logits: Logits = settings.model(settings.precision.prepare(images))
    logits = logits.to(settings.precision.weights)
    if settings.replica is not None:
        logits = settings.replica.gather(logits, len(labels))
    return settings.loss_fn(logits, labels), logits


def update(
    settings: StepSettings,
    images: Images,
    labels: Tensor,
    sums: RunningSums,
    step: int | Tensor,
    *,
    loss_and_logits: LossAndLogits,
    lookahead_row: Tensor | None = None,
    averaging_weight: Tensor | None = None,
) -> None:
    """Forward, backward, optimizer, lookahead, average, sums.

    Args:
        settings: Of the step.
        images: As `prepared` gives them.
        labels: As `mixed` gives them.
        sums: Added to.
        step: Counted from 0 within the epoch; a tensor where the host does not know it.
        loss_and_logits: `forward`, or what is in its place.
        lookahead_row: What `Lookahead` does, where the host does not count its updates.
        averaging_weight: How far the average moves, where the host does not count its updates.
    """
    replica = settings.replica
    # The backward pass too: where activations are recomputed in it, they are normalised once more.
    with nullcontext() if replica is None else replica.normalising(len(labels)):
        loss, logits = loss_and_logits(images, labels)
        settings.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
    if replica is not None:
        replica.combine()
    if settings.max_grad_norm is not None:
        nn.utils.clip_grad_norm_(settings.model.parameters(), settings.max_grad_norm)
    settings.optimizer.step()
    if settings.lookahead is not None:
        settings.lookahead.update(lookahead_row)
    if settings.average is not None:
        settings.average.update(averaging_weight)
    sums.add(loss, logits, labels, step)


def set_learning_rates(optimizer: torch.optim.Optimizer, multiplier: float) -> None:
    """Multiply the base learning rate of every group, and keep a tensor a tensor.

    Args:
        optimizer: Whose groups have an ``initial_lr``.
        multiplier: Of it.
    """
    for group in optimizer.param_groups:
        rate = group["initial_lr"] * multiplier
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)  # a capturable optimizer reads it on the device
        else:
            group["lr"] = rate
