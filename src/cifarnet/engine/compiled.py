"""The training step with its forward and backward pass compiled."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from cifarnet._types import Images, Logits
from cifarnet.engine.eager import EagerBackend
from cifarnet.engine.settings import StepSettings
from cifarnet.engine.step import forward

__all__ = ["CompiledBackend"]


class CompiledBackend(EagerBackend):
    """As `EagerBackend`, with network and loss compiled by ``torch.compile``; eager where no compiler works.

    Augmentation, optimizer and sums are as they are there. Dropout draws other masks.

    Args:
        settings: What a step is made of.
    """

    def __init__(self, settings: StepSettings) -> None:
        super().__init__(settings)
        self.name = "compiled"
        self._compiled = torch.compile(self._loss_and_logits_eagerly, dynamic=False)

    def _loss_and_logits_eagerly(self, images: Images, labels: Tensor) -> tuple[Tensor, Logits]:
        return forward(self._settings, images, labels)

    def _loss_and_logits(self, images: Images, labels: Tensor) -> tuple[Tensor, Logits]:
        if self.name == EagerBackend.name:
            return self._loss_and_logits_eagerly(images, labels)
        try:
            return self._compiled(images, labels)
        except torch._dynamo.exc.TorchDynamoException as error:  # nothing was computed yet
            cause = getattr(error, "inner_exception", error)
            reason = f"{type(cause).__name__}: {cause}".splitlines()[0]
            warnings.warn(f"torch.compile does not work here ({reason[:200]}); training eagerly", stacklevel=2)
            self.name = EagerBackend.name
            return self._loss_and_logits_eagerly(images, labels)
