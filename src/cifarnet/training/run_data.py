"""Data and length of a run, checked before anything is trained or written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cifarnet._types import Json
from cifarnet._validation import check_count
from cifarnet.data import ImageDataset
from cifarnet.errors import SettingError
from cifarnet.inference.data import Data, open_data, open_evaluation_loader
from cifarnet.inference.evaluate import check_model_fits, check_preprocess, check_sizes
from cifarnet.inference.iterable import IterableLoader, check_labels
from cifarnet.inference.loader import Batch, Loader, TensorLoader
from cifarnet.optim import tabulate
from cifarnet.training.checks import check_augmentation, warn_of_shared_images

if TYPE_CHECKING:
    from cifarnet.training.trainer import Trainer

__all__ = ["RunData", "check_batch", "open_run_data"]


@dataclass(frozen=True)
class RunData:
    """Data on the device and the length of the run.

    Args:
        train: Training batches.
        val: Validation batches; ``None`` without them.
        test: Test batches, which select nothing; ``None`` without them.
        max_epochs: Number of epochs of the whole run.
        batch_size: Images per step; ``None`` for a user-supplied iterable.
        multipliers: Factor of the base learning rates for each step of the run; ``None`` without a schedule.
        train_data: Training images as they were passed.
        val_data: Validation images as they were passed.
    """

    train: Loader
    val: Loader | None
    test: Loader | None
    max_epochs: int
    batch_size: int | None
    multipliers: list[float] | None
    train_data: Data
    val_data: Data | None

    def multiplier(self, epoch: int, step: int) -> float | None:
        """Return the factor of the base learning rates at a step; ``None`` leaves the learning rates alone."""
        if self.multipliers is None or self.train.num_steps is None:
            return None
        return self.multipliers[epoch * self.train.num_steps + step]

    @property
    def classes(self) -> list[Json]:
        """Class names; empty if they are unknown."""
        return list(self.train_data.classes) if isinstance(self.train_data, ImageDataset) else []


def open_run_data(
    trainer: Trainer, train: Data, val: Data | None, test: Data | None, *, max_epochs: int, batch_size: int
) -> RunData:
    """Check numbers and data, move the data to the device and tabulate the schedule.

    Raises:
        SettingError: If a value is outside its range, or the model does not fit the data.
    """
    check_count("max_epochs", max_epochs, "The reference run has 10")
    check_count("batch_size", batch_size, "The reference run has 64")
    max_epochs, batch_size = int(max_epochs), int(batch_size)  # numpy's may overflow
    device, group, preprocess = trainer.device, trainer.group, trainer.transforms.preprocess
    images = open_data(train, batch_size=batch_size, shuffle=True)
    val, test = (
        None if data is None else open_data(data, batch_size=batch_size, shuffle=False) for data in (val, test)
    )
    for data in (images, val, test):
        if isinstance(data, ImageDataset):
            num_classes = len(data.classes)
            check_model_fits(
                trainer.model,
                data.images[:1],
                num_classes,
                data.name,
                preprocess=preprocess,
                precision=trainer.precision,
            )
            if isinstance(images, ImageDataset) and data.classes != images.classes:
                raise SettingError(
                    f"{data.name} has the classes {', '.join(data.classes)}, the training images have "
                    f"{', '.join(images.classes)}. Pass images with the same classes in the same order"
                )
    for split, held_out in (("val", val), ("test", test)):
        if isinstance(images, ImageDataset) and isinstance(held_out, ImageDataset):
            warn_of_shared_images(images, held_out, split)
    loader: Loader
    if isinstance(images, ImageDataset):
        check_augmentation(trainer, images.images)
        check_sizes(
            trainer.model, images.images[:1], images.name, transforms=trainer.transforms, precision=trainer.precision
        )
        group.check_batches(len(images), batch_size)
        loader = TensorLoader(
            images.images, images.labels, images.ids, batch_size=batch_size, device=device, seed=trainer.seed
        )
    else:
        group.check_iterable(images)
        loader = IterableLoader(images, device=device)
    if trainer.lr_schedule is not None and loader.num_steps is None:
        raise SettingError(
            "lr_schedule needs the number of steps, and the iterable of batches has no length. Give it a __len__, or "
            "set learning rates in the loop over trainer.epochs"
        )
    return RunData(
        loader,
        None if val is None else open_evaluation_loader(val, device),
        None if test is None else open_evaluation_loader(test, device),
        max_epochs,
        batch_size if isinstance(images, ImageDataset) else None,
        None
        if trainer.lr_schedule is None or loader.num_steps is None
        else tabulate(trainer.lr_schedule, max_epochs * loader.num_steps).tolist(),
        images,
        val,
    )


def check_batch(trainer: Trainer, data: RunData, batch: Batch | None) -> None:
    """Refuse a batch of a user-supplied iterable that the model cannot take; on CUDA, the loss would not raise.

    Args:
        trainer: Model and processes.
        data: Data of the run.
        batch: Batch of the whole step; ``None`` at the end of the epoch, to compare only the processes.

    Raises:
        InputError: If a label has no logit, or the batch differs between processes.
        SettingError: If the model cannot take the images.
    """
    if data.train.starts_anywhere:
        return
    trainer.group.check_batch(batch)
    if batch is None:
        return
    if trainer.num_logits is None:
        trainer.has_floating_batches = batch.images.is_floating_point()
        if isinstance(data.val, TensorLoader) or isinstance(data.test, TensorLoader):
            check_preprocess(trainer.preprocess)
        image, transforms, precision = batch.images[:1], trainer.transforms, trainer.precision
        num_logits = check_model_fits(
            trainer.model, image, None, "the batches", preprocess=transforms.preprocess, precision=precision
        )
        check_sizes(trainer.model, image, "the batches", transforms=transforms, precision=precision)
        if not batch.images.is_floating_point():
            check_augmentation(trainer, batch.images)
        trainer.num_logits = num_logits
    check_labels(batch, trainer.num_logits, trainer.state.step)
