"""The training step, run operation by operation: the reference that other backends are held to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from cifarnet import randomness
from cifarnet._types import Images, Logits
from cifarnet.engine.batches import Batch, BatchSource
from cifarnet.engine.evaluate import check_fit, check_sizes
from cifarnet.engine.foreign import check_labels
from cifarnet.engine.replica import Replica
from cifarnet.engine.settings import StepSettings
from cifarnet.engine.step import forward, mixed, prepared, set_learning_rates, update
from cifarnet.engine.sums import RunningSums
from cifarnet.transforms import draws_per_image

__all__ = ["EagerBackend"]


class EagerBackend:
    """Forward, loss, backward, optimizer: one batch at a time.

    Args:
        settings: What a step is made of.
    """

    name: str = "eager"
    steps_per_graph: int = 1

    def __init__(self, settings: StepSettings) -> None:
        self._settings = settings
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
        seed, device = self._settings.seed, self._settings.precision.device
        self.set_modes()
        randomness.seed_torch(randomness.step_seed(seed, epoch, -1), device)  # a foreign sampler draws now
        for step, batch in enumerate(batches.epoch(epoch, first_step), first_step):
            self._check(batch, step)
            randomness.seed_torch(randomness.step_seed(seed, epoch, step), device)
            set_learning_rates(self._settings.optimizer, multipliers[min(step, len(multipliers) - 1)])
            if self._settings.replica is None:
                with randomness.scope(seed, epoch, batch.ids):
                    self._step(batch, step, sums)
            else:
                self._step_together(self._settings.replica, batch, epoch, step, sums)
            yield step + 1

    def set_modes(self) -> None:
        """Put the network in training mode, but for what came frozen."""
        self._settings.model.train()
        for module in self._frozen:
            module.training = False

    def _check(self, batch: Batch, step: int) -> None:
        """Before mixing and loss, which on CUDA would not raise but break the process."""
        if batch.highest_label is None:
            return
        if self._num_classes is None:
            model, precision, transforms = self._settings.model, self._settings.precision, self._settings.transforms
            image = batch.images[:1]
            num_classes = check_fit(
                model, image, None, "the batches", preprocess=transforms.preprocess, precision=precision
            )
            check_sizes(model, image, "the batches", transforms=transforms, precision=precision)
            self._num_classes = num_classes
        check_labels(batch, self._num_classes, step)

    def _step(self, batch: Batch, step: int, sums: RunningSums) -> None:
        images, labels = mixed(self._settings, prepared(self._settings, batch.images), batch.labels)
        update(self._settings, images, labels, sums, step, loss_and_logits=self._loss_and_logits)

    def _step_together(self, replica: Replica, batch: Batch, epoch: int, step: int, sums: RunningSums) -> None:
        """As `_step`, on this process's part of the batch."""
        settings = self._settings
        part, everything = replica.ranks.part(len(batch.labels)), slice(None)
        # What draws for a batch, or mixes its images, has to see all of it: the work is then done in every process.
        alone = settings.mix is None and all(draws_per_image(each) for each in settings.transforms.steps)
        first, then = (part, everything) if alone else (everything, part)
        with randomness.scope(settings.seed, epoch, batch.ids[first]):
            images, labels = mixed(settings, prepared(settings, batch.images[first]), batch.labels)
        # Dropout: another mask in each process, and after the step equal generators again, for who draws then.
        seed, device = randomness.step_seed(settings.seed, epoch, step), settings.precision.device
        randomness.seed_torch(randomness.step_seed(settings.seed, epoch, step, 1 + replica.ranks.rank), device)
        update(settings, images[then], labels, sums, step, loss_and_logits=self._loss_and_logits)
        randomness.seed_torch(seed, device)

    def _loss_and_logits(self, images: Images, labels: Tensor) -> tuple[Tensor, Logits]:
        return forward(self._settings, images, labels)
