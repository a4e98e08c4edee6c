"""What one call of `fit` or `epochs` is asked to do, checked before anything is trained or written."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor, nn

from cifarnet._checks import check_count
from cifarnet._types import Json
from cifarnet.datasets import DatasetSplits, ImageDataset
from cifarnet.engine import (
    EVAL_BATCH_SIZE,
    Batches,
    BatchSource,
    ForeignBatches,
    Precision,
    Ranks,
    check_fit,
    check_sizes,
)
from cifarnet.errors import InputError, SettingError
from cifarnet.optim import Schedule, constant, tabulate
from cifarnet.transforms import Transforms

__all__ = ["Data", "Plan", "check_optimizer", "describe_data", "open_for_evaluation"]

#: An `ImageDataset`, or any iterable of ``(images, labels)`` batches.
Data = ImageDataset | Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Plan:
    """Data on the device, and how far to go.

    Args:
        train: Batches to learn from.
        val: Images that the run is selected by, if any.
        test: Images that are watched and select nothing, if any.
        max_epochs: How many epochs the run has in all.
        batch_size: Images a step; of a foreign iterable, nobody knows.
        multipliers: Of the learning rate, for every step of the run; a single one where it is constant.
        data: The training images as they were given.
        val_data: The validation images as they were given.
    """

    train: BatchSource
    val: BatchSource | None
    test: BatchSource | None
    max_epochs: int
    batch_size: int | None
    multipliers: list[float]
    data: Data
    val_data: Data | None

    @classmethod
    def make(
        cls,
        train: Data,
        val: Data | None,
        test: Data | None,
        *,
        max_epochs: int,
        batch_size: int,
        schedule: Schedule,
        model: nn.Module,
        transforms: Transforms,
        precision: Precision,
        seed: int,
        ranks: Ranks,
    ) -> Plan:
        """Check numbers and data, move the data to the device, tabulate the schedule."""
        device = precision.device
        check_count("max_epochs", max_epochs, "10 is the reference's")
        check_count("batch_size", batch_size, "64 is the reference's")
        for data in (train, val, test):
            _refuse_splits(data)
            if isinstance(data, ImageDataset):
                check_fit(
                    model,
                    data.images[:1],
                    len(data.classes),
                    data.name,
                    preprocess=transforms.preprocess,
                    precision=precision,
                )
                if isinstance(train, ImageDataset) and data.classes != train.classes:
                    raise SettingError(
                        f"{data.name} has the classes {', '.join(data.classes)}, the training images have "
                        f"{', '.join(train.classes)}; give images with the same classes in the same order"
                    )
        source: BatchSource
        if isinstance(train, ImageDataset):
            check_sizes(model, train.images[:1], train.name, transforms=transforms, precision=precision)
            if len(train) % batch_size == 1 or batch_size == 1:
                _check_lone_image(model, train, batch_size, transforms=transforms, precision=precision)
            source = Batches(train.images, train.labels, train.ids, batch_size=batch_size, device=device, seed=seed)
        else:
            source = ForeignBatches(train, device=device, ranks=ranks)
        return cls(
            source,
            None if val is None else open_for_evaluation(val, device, ranks),
            None if test is None else open_for_evaluation(test, device, ranks),
            max_epochs,
            batch_size if isinstance(train, ImageDataset) else None,
            _tabulate(schedule, max_epochs, source.num_steps),
            train,
            val,
        )

    @property
    def total_steps(self) -> int:
        """Steps of the whole run.

        Raises:
            SettingError: If nobody knows.
        """
        if self.train.num_steps is None:
            raise SettingError(
                "lookahead needs the number of steps, and the iterable of batches has no length; give it a __len__, or "
                "train without lookahead_every"
            )
        return self.max_epochs * self.train.num_steps

    def epoch_multipliers(self, epoch: int) -> list[float]:
        """Multipliers of the learning rate for the steps of one epoch, counted from 0."""
        if len(self.multipliers) == 1:
            return self.multipliers
        num_steps = len(self.multipliers) // self.max_epochs
        return self.multipliers[epoch * num_steps : (epoch + 1) * num_steps]

    @property
    def classes(self) -> list[Json]:
        """Names of the classes; none where nobody knows them."""
        return list(self.data.classes) if isinstance(self.data, ImageDataset) else []


def describe_data(data: Data | None) -> dict[str, Json] | None:
    """Name, size and fingerprint of images; ``None`` for a foreign iterable."""
    if not isinstance(data, ImageDataset):
        return None
    return {"name": data.name, "num_images": len(data), "fingerprint": data.fingerprint}


def open_for_evaluation(data: Data, device: torch.device, ranks: Ranks | None = None) -> BatchSource:
    """Images in their own order, in batches of a fixed size."""
    _refuse_splits(data)
    if not isinstance(data, ImageDataset):
        return ForeignBatches(data, device=device, ranks=ranks)
    return Batches(data.images, data.labels, data.ids, batch_size=EVAL_BATCH_SIZE, device=device, seed=0)


def _refuse_splits(data: object) -> None:
    if isinstance(data, DatasetSplits):
        raise InputError("expected images, got DatasetSplits; give its .train or .test")


def _check_lone_image(
    model: nn.Module, train: ImageDataset, batch_size: int, *, transforms: Transforms, precision: Precision
) -> None:
    """Refuse a last batch of one image where batch norm would see one value a channel of it, at the epoch's end.

    Raises:
        SettingError: Naming the layer, and a batch size that leaves no image alone.
    """
    lone: list[str] = []
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            trained = module.training or not model.training
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and trained:

                def note(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                    if inputs and inputs[0].numel() == inputs[0].shape[1]:
                        lone.append(name)

                hooks.callback(module.register_forward_pre_hook(note).remove)
        for size in transforms.train_sizes:
            check_fit(
                model,
                train.images[:1],
                None,
                train.name,
                preprocess=replace(transforms.preprocess, size=size),
                precision=precision,
            )
    if lone:
        fits = next(size for size in count(batch_size + 1) if len(train) % size != 1 or size > len(train))
        remedy = f"batch_size={fits} leaves none alone" if len(train) > 1 else "give more of them"
        raise SettingError(
            f"{train.name} has {len(train):,} images, so that the last batch of an epoch has one, and {lone[0]} sees "
            f"one value a channel of it, which has no variance; {remedy}"
        )


def check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer over anything but parameters of the model, or one that would climb."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    own = {id(parameter) for parameter in model.parameters()}
    if not all(id(parameter) in own for parameter in held):
        raise SettingError(
            "the optimizer holds parameters that are not the model's; build it from model.parameters() after the "
            "model has its final form"
        )
    for group in optimizer.param_groups:
        if not float(group["lr"]) >= 0:
            raise SettingError(f"the learning rate must not be negative, got {float(group['lr'])}; 1e-3 suits Adam")


def _tabulate(schedule: Schedule, max_epochs: int, num_steps: int | None) -> list[float]:
    if num_steps is not None:
        multipliers: list[float] = tabulate(schedule, max_epochs * num_steps).tolist()
        return multipliers
    if schedule != constant():
        raise SettingError(
            "a schedule needs the number of steps, and the iterable of batches has no length; give it a __len__, or "
            "train with a constant learning rate"
        )
    return [1.0]
