"""The training step, run operation by operation: the reference that other backends are held to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from cifarnet import randomness
from cifarnet._types import Images, Labels
from cifarnet.engine.batches import Batch, BatchSource
from cifarnet.engine.evaluate import check_fit
from cifarnet.engine.foreign import check_labels
from cifarnet.engine.settings import StepSettings
from cifarnet.engine.sums import RunningSums
from cifarnet.errors import SettingError

__all__ = ["EagerBackend"]


class EagerBackend:
    """Forward, loss, backward, optimizer: one batch at a time.

    Args:
        settings: What a step is made of.
    """

    name = "eager"

    def __init__(self, settings: StepSettings) -> None:
        self._settings = settings
        self._augment_and_preprocess = settings.transforms.train
        model = settings.model
        self._num_classes: int | None = None  # logits of the network, where batches are foreign
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

        Raises:
            InputError: If a foreign batch is none, or has a label that the network has no logit for.
            SettingError: If the network cannot take the images of a foreign batch.
        """
        seed, optimizer, device = self._settings.seed, self._settings.optimizer, self._settings.precision.device
        self._settings.model.train()
        for module in self._frozen:
            module.training = False
        randomness.seed_torch(randomness.step_seed(seed, epoch, -1), device)  # a foreign sampler draws now
        for step, batch in enumerate(batches.epoch(epoch, first_step), first_step):
            self._check(batch, step)
            randomness.seed_torch(randomness.step_seed(seed, epoch, step), device)
            for group in optimizer.param_groups:
                _set_learning_rate(group, group["initial_lr"] * multipliers[min(step, len(multipliers) - 1)])
            with randomness.scope(seed, epoch, batch.ids):
                self._step(batch, step, sums)
            yield step + 1

    def _check(self, batch: Batch, step: int) -> None:
        """Before mixing and loss, which on CUDA would not raise but break the process."""
        if batch.highest_label is None:
            return
        if self._num_classes is None:
            preprocess, precision = self._settings.transforms.preprocess, self._settings.precision
            image = batch.images[:1]
            self._num_classes = check_fit(
                self._settings.model, image, None, "the batches", preprocess=preprocess, precision=precision
            )
        check_labels(batch, self._num_classes, step)

    def _step(self, batch: Batch, step: int, sums: RunningSums) -> None:
        model, optimizer, precision = self._settings.model, self._settings.optimizer, self._settings.precision
        images = batch.images if batch.images.is_floating_point() else self._augment_and_preprocess(batch.images)
        images, labels = self._mixed(images, batch.labels)
        with precision.autocast():
            logits = model(precision.prepare(images))
        logits = logits.to(precision.weights)  # the loss of bf16 logits has 3 digits
        loss = self._settings.loss_fn(logits, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self._settings.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), self._settings.max_grad_norm)
        optimizer.step()
        if self._settings.average is not None:
            self._settings.average.update()
        sums.add(loss, logits, labels, step)

    def _mixed(self, images: Images, labels: Labels) -> tuple[Images, Tensor]:
        """The batch with shares of the classes for labels, where it is mixed."""
        if self._settings.mix is None:
            return images, labels
        images, shares = self._settings.mix(images, labels)
        if shares.ndim != 2 or not shares.is_floating_point():
            raise SettingError(
                f"mix gave labels of shape {tuple(shares.shape)} and {shares.dtype}; it must give the shares of the "
                "classes, floating, (N, K), as torchvision.transforms.v2.MixUp(num_classes=K) does"
            )
        return images, shares.to(self._settings.precision.weights)


def _set_learning_rate(group: dict[str, object], value: float) -> None:
    """Keep a tensor a tensor: a capturable optimizer reads it on the device."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(value)
    else:
        group["lr"] = value
