"""The training step, run operation by operation: the reference that other backends are held to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from cifarnet import randomness
from cifarnet.engine.batches import Batch, BatchSource
from cifarnet.engine.device import Precision
from cifarnet.engine.sums import RunningSums
from cifarnet.transforms import Transforms

__all__ = ["EagerBackend"]


class EagerBackend:
    """Forward, loss, backward, optimizer: one batch at a time.

    Args:
        model: On the device already, in the precision's dtype. Modules that are in evaluation mode while it is in
            training mode are taken for frozen, and stay so.
        optimizer: Holds the model's parameters; a group's ``initial_lr`` is its base learning rate.
        loss_fn: ``(logits, labels) -> mean loss``.
        transforms: For uint8 batches; floating ones are taken as they are.
        precision: Number format.
        max_grad_norm: Longer gradients are shortened to this 2-norm; ``None`` leaves them.
        seed: The run's seed.
    """

    name = "eager"

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        transforms: Transforms,
        *,
        precision: Precision,
        max_grad_norm: float | None,
        seed: int,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._loss_fn = loss_fn
        self._transforms = transforms
        self._augment_and_preprocess = transforms.train
        self._precision = precision
        self._max_grad_norm = max_grad_norm
        self._seed = seed
        self._frozen = [module for module in model.modules() if model.training and not module.training]

    def epoch(
        self, batches: BatchSource, epoch: int, *, first_step: int, multipliers: Sequence[float], sums: RunningSums
    ) -> Iterator[int]:
        """Train for the rest of an epoch.

        Args:
            batches: Where the images come from.
            epoch: Counted from 0.
            first_step: Counted from 0 within the epoch.
            multipliers: Of the base learning rates, one for each step of the epoch, or a single one for all.
            sums: Added to.

        Yields:
            How many steps of the epoch are done; the state is whole and may be saved.
        """
        device = self._precision.device
        self._model.train()
        for module in self._frozen:
            module.training = False
        randomness.seed_torch(randomness.step_seed(self._seed, epoch, -1), device)  # a foreign sampler draws now
        for step, batch in enumerate(batches.epoch(epoch, first_step), first_step):
            randomness.seed_torch(randomness.step_seed(self._seed, epoch, step), device)
            for group in self._optimizer.param_groups:
                _set_learning_rate(group, group["initial_lr"] * multipliers[min(step, len(multipliers) - 1)])
            with randomness.scope(self._seed, epoch, batch.ids):
                self._step(batch, step, sums)
            yield step + 1

    def _step(self, batch: Batch, step: int, sums: RunningSums) -> None:
        images = batch.images if batch.images.is_floating_point() else self._augment_and_preprocess(batch.images)
        with self._precision.autocast():
            logits = self._model(self._precision.prepare(images))
        logits = logits.to(self._precision.weights)  # the loss of bf16 logits has 3 digits
        loss = self._loss_fn(logits, batch.labels)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self._max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._max_grad_norm)
        self._optimizer.step()
        sums.add(loss, logits, batch.labels, step)


def _set_learning_rate(group: dict[str, object], value: float) -> None:
    """Keep a tensor a tensor: a capturable optimizer reads it on the device."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(value)
    else:
        group["lr"] = value
