"""Data and options of a run, checked before anything is trained or written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cifarnet._types import Json, Labels, Logits
from cifarnet._validation import check_count, did_you_mean
from cifarnet.checkpoint import Checkpointer
from cifarnet.data import ImageDataset
from cifarnet.errors import SettingError
from cifarnet.inference.evaluate import check_model_fits, check_preprocess
from cifarnet.inference.loader import Batch, IterableLoader, Loader, TensorLoader, check_labels
from cifarnet.inference.open_data import Data, open_data, open_evaluation_loader
from cifarnet.optim.schedules import tabulate
from cifarnet.training.checks import check_augmentation, check_optimizer, check_sizes, warn_of_shared_images
from cifarnet.training.history import check_monitor

if TYPE_CHECKING:
    from cifarnet.training.trainer import Trainer

__all__ = ["Metric", "RunSettings", "check_batch", "check_images"]

#: ``(logits, labels) -> value`` over all images of an evaluation.
Metric = Callable[[Logits, Labels], float | Tensor]


@dataclass
class RunSettings:
    """Data and options of a run, see `Trainer.epochs`. They are checked, and the data are moved to the device.

    Args:
        trainer: Trainer of the run.
        train_data: Training images.
        val_data: Validation images; ``None`` without them.
        test_data: Test images, which select nothing; ``None`` without them.
        max_epochs: Number of epochs of the whole run.
        batch_size: Images per step; afterwards ``None`` for a user-supplied iterable.
        checkpointer: Checkpointer of the run's directory, or the directory; ``None`` saves nothing.
        resume: Whether to resume a run in that directory.
        init_from: Run whose best weights a new run starts from, or ``None``.
        monitor: Validation metric that selects the best epoch.
        patience: Number of epochs without a new best one after which training stops, or ``None``.
        metrics: Further metrics of the evaluation.

    Attributes:
        train: Training batches.
        val: Validation batches; ``None`` without them.
        test: Test batches; ``None`` without them.
        multipliers: Factor of the base learning rates for each step of the run; ``None`` without a schedule.
        num_logits: Number of logits, once a batch of a user-supplied iterable was checked.

    Raises:
        SettingError: If a value is outside its range, or the model does not fit the data.
    """

    trainer: Trainer
    train_data: Data
    val_data: Data | None
    test_data: Data | None
    max_epochs: int
    batch_size: int | None
    checkpointer: Any  # Checkpointer or None; a directory before
    resume: bool
    init_from: str | Path | None
    monitor: str
    patience: int | None
    metrics: Any  # Mapping[str, Metric]; may be None before
    train: Loader = field(init=False)
    val: Loader | None = field(init=False)
    test: Loader | None = field(init=False)
    multipliers: list[float] | None = None
    num_logits: int | None = None

    def __post_init__(self) -> None:
        trainer, self.metrics = self.trainer, self.metrics or {}
        check_count("max_epochs", self.max_epochs, "The reference run has 10")
        check_count("batch_size", self.batch_size, "The reference run has 64")
        self.max_epochs = int(self.max_epochs)  # numpy's may overflow
        self.batch_size = batch_size = int(self.batch_size or 0)
        self._check_selection()
        check_optimizer(trainer.optimizer, trainer.model)
        if isinstance(self.checkpointer, str | Path):
            self.checkpointer = Checkpointer(self.checkpointer)
        images = self.train_data = open_data(self.train_data, batch_size=batch_size, shuffle=True)
        self.val_data, self.test_data = (
            None if data is None else open_data(data, batch_size=batch_size, shuffle=False)
            for data in (self.val_data, self.test_data)
        )
        for split, data in (("train", images), ("val", self.val_data), ("test", self.test_data)):
            if isinstance(data, ImageDataset):
                check_images(trainer, data, images.classes if isinstance(images, ImageDataset) else None)
                if isinstance(images, ImageDataset) and split != "train":
                    warn_of_shared_images(images, data, split)
        self._open_training_images(images, batch_size)
        self.val, self.test = (
            None if data is None else open_evaluation_loader(data, trainer.device)
            for data in (self.val_data, self.test_data)
        )
        if trainer.lr_schedule is not None:
            if self.train.num_steps is None:
                raise SettingError(
                    "lr_schedule needs the number of steps, and the iterable of batches has no length. Give it a "
                    "__len__, or set learning rates in the loop over trainer.epochs"
                )
            self.multipliers = tabulate(trainer.lr_schedule, self.max_epochs * self.train.num_steps).tolist()

    def _check_selection(self) -> None:
        check_monitor(self.monitor)
        names = ["val_accuracy", "val_loss", *(f"val_{name}" for name in self.metrics)]
        if self.monitor not in names:
            raise SettingError(f'monitor "{self.monitor}" is unknown; {did_you_mean(self.monitor, names)}')
        if len(set(names)) < len(names):
            raise SettingError('metrics must not be named "accuracy" or "loss", which are always there. Rename yours')
        if self.patience is not None:
            check_count("patience", self.patience, "3 is usual")
        if self.val_data is None and (self.patience is not None or (self.metrics and self.test_data is None)):
            raise SettingError("patience and metrics need validation images. Use train.split(0.1, seed=0)")

    def _open_training_images(self, images: ImageDataset | Iterable[Any], batch_size: int) -> None:
        trainer, device = self.trainer, self.trainer.device
        if isinstance(images, ImageDataset):
            check_augmentation(trainer, images.images)
            check_sizes(trainer, images.images[:1], images.name)
            trainer.group.check_batches(len(images), batch_size)
            parts = (images.images, images.labels, images.ids)
            self.train = TensorLoader(*parts, batch_size=batch_size, device=device, seed=trainer.seed)
        else:
            trainer.group.check_iterable(images)
            self.train, self.batch_size = IterableLoader(images, device=device), None

    def multiplier(self, epoch: int, step: int) -> float | None:
        """Return the factor of the base learning rates at a step; ``None`` leaves the learning rates alone."""
        if self.multipliers is None or self.train.num_steps is None:
            return None
        return self.multipliers[epoch * self.train.num_steps + step]

    @property
    def classes(self) -> list[Json]:
        """Class names; empty if they are unknown."""
        return list(self.train_data.classes) if isinstance(self.train_data, ImageDataset) else []

    def options(self) -> dict[str, Any]:
        """Return the options that all processes of a run must have in common."""
        loaders = {"number of validation batches": self.val, "number of test batches": self.test}
        counts = {name: None if loader is None else loader.num_steps for name, loader in loaders.items()}
        return counts | {
            **{name: getattr(self, name) for name in ("max_epochs", "resume", "monitor", "patience")},
            "checkpointer": self.checkpointer is not None,
            "metrics": sorted(self.metrics),
            "precision": self.trainer.precision.name,
        }


def check_images(trainer: Trainer, data: ImageDataset, classes: Sequence[str] | None = None) -> None:
    """Refuse images that the model cannot take.

    Args:
        trainer: Model and transforms.
        data: Images.
        classes: Classes of the training images; ``None`` does not compare them.

    Raises:
        SettingError: If size, number of classes or classes do not fit.
    """
    if classes is None:
        check_preprocess(trainer.preprocess)
    num_classes, preprocess = len(data.classes), trainer.transforms.preprocess
    check_model_fits(
        trainer.model, data.images[:1], num_classes, data.name, preprocess=preprocess, precision=trainer.precision
    )
    if classes is not None and data.classes != classes:
        raise SettingError(
            f"{data.name} has the classes {', '.join(data.classes)}, the training images have {', '.join(classes)}. "
            "Pass images with the same classes in the same order"
        )


def check_batch(trainer: Trainer, run: RunSettings, batch: Batch | None) -> None:
    """Refuse a batch of a user-supplied iterable that the model cannot take; on CUDA, the loss would not raise.

    Args:
        trainer: Model and processes.
        run: Data of the run.
        batch: Batch of the whole step; ``None`` at the end of the epoch, to compare only the processes.

    Raises:
        DataError: If a label has no logit, or the batch differs between processes.
        SettingError: If the model cannot take the images.
    """
    if run.train.starts_anywhere:
        return
    trainer.group.check_batch(batch)
    if batch is None:
        return
    if run.num_logits is None:
        trainer.has_floating_batches = batch.images.is_floating_point()
        if isinstance(run.val, TensorLoader) or isinstance(run.test, TensorLoader):
            check_preprocess(trainer.preprocess)
        image, preprocess, precision = batch.images[:1], trainer.transforms.preprocess, trainer.precision
        model, name = trainer.model, "the batches"
        run.num_logits = check_model_fits(model, image, None, name, preprocess=preprocess, precision=precision)
        check_sizes(trainer, image, name)
        if not batch.images.is_floating_point():
            check_augmentation(trainer, batch.images)
    check_labels(batch, run.num_logits, trainer.state.step)
