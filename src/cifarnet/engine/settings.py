"""What a training step is made of, for every backend the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cifarnet._types import Images, Labels
from cifarnet.engine.device import Precision
from cifarnet.engine.replica import Replica
from cifarnet.optim import ExponentialMovingAverage, Lookahead
from cifarnet.transforms import Transforms

__all__ = ["Mix", "StepSettings"]

#: ``(images, labels) -> (mixed images, shares of the classes)``, such as `torchvision.transforms.v2.MixUp`.
Mix = Callable[[Images, Labels], tuple[Images, Tensor]]


@dataclass(frozen=True)
class StepSettings:
    """The parts of a training step.

    Args:
        model: On the device already, in the precision's dtype. Modules that are in evaluation mode while it is in
            training mode are taken for frozen, and stay so.
        optimizer: Holds the model's parameters; a group's ``initial_lr`` is its base learning rate.
        loss_fn: ``(logits, labels) -> mean loss``.
        transforms: For uint8 batches; floating ones are taken as they are.
        precision: Number format.
        seed: The run's seed.
        mix: After the transforms; ``None`` mixes nothing.
        max_grad_norm: Longer gradients are shortened to this 2-norm; ``None`` leaves them.
        lookahead: Pulls the weights back every few steps, before the average sees them; ``None`` where nothing does.
        average: Follows the weights after each step; ``None`` where nothing does.
        replica: Of the model, where several processes train together; ``None`` where one is alone.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    transforms: Transforms
    precision: Precision
    seed: int
    mix: Mix | None = None
    max_grad_norm: float | None = None
    lookahead: Lookahead | None = None
    average: ExponentialMovingAverage | None = None
    replica: Replica | None = None
