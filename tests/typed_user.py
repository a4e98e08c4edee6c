"""Script of a user with a type checker. mypy and pyright check it against the wheel, and a test runs it."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import torch
from torch import Tensor, nn

import cifarnet
from cifarnet import (
    Checkpointer,
    CifarCNN,
    Classifier,
    DatasetSplits,
    EpochRecord,
    Evaluation,
    History,
    ImageDataset,
    Prediction,
    Preprocess,
    Trainer,
    Transforms,
    build_transforms,
    make_synthetic,
)
from cifarnet.errors import CheckpointNotFoundError
from cifarnet.inference import wilson_interval
from cifarnet.models import build_model, count_flops
from cifarnet.optim import Schedule, linear, one_cycle
from cifarnet.recipes import Recipe, get_recipe


class Own(nn.Module):
    """A network of the user's."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.mean(dim=(2, 3)))
        return logits


def every_other(step: int, total_steps: int) -> float:
    """A schedule is any function of the step."""
    return 1.0 if step % 2 else 0.5


def train(directory: Path) -> Classifier:
    """From images to a classifier."""
    data = assert_type(make_synthetic(num_train=64, num_test=32, seed=0), DatasetSplits)
    train, val = data.train.split(0.25, seed=0)
    assert_type(train, ImageDataset)
    transforms = assert_type(build_transforms(crop_padding=2, flip="random"), Transforms)
    assert_type(transforms.preprocess, Preprocess)
    model = Own(len(train.classes))
    schedules: list[Schedule] = [every_other, linear(warmup=0.1), one_cycle()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, optimizer, transforms=transforms, lr_schedule=schedules[0], device="cpu", seed=0)
    for record in trainer.epochs(train, val, max_epochs=1):
        assert_type(record, EpochRecord)
        assert_type(record.val_accuracy, float | None)
    fitted = Trainer(model, lr=1e-3, transforms=transforms, device="cpu", seed=0)
    history = fitted.fit(train, val, max_epochs=2, checkpointer=Checkpointer(directory), progress_bar=False)
    assert_type(history["val_accuracy"], list[float | None])
    assert_type(history, History)
    assert_type(history[0], EpochRecord)
    assert_type(history[:1], History)
    best = history.best("val_loss")
    assert best is not None
    assert_type(best.epoch, int)
    return Classifier.load(directory, Own(len(train.classes)), device="cpu")


def use(classifier: Classifier) -> Evaluation:
    """One in, one out; a list in, a list out."""
    test = make_synthetic(num_train=10, num_test=20).test
    assert_type(classifier.predict(test.images[0]), Prediction)
    assert_type(classifier.predict([test.images[0], test.images[1]]), list[Prediction])
    evaluation = assert_type(classifier.evaluate(test), Evaluation)
    assert_type(evaluation.accuracy_interval, tuple[float, float])
    assert_type(wilson_interval(3, 4), tuple[float, float])
    assert_type(count_flops(CifarCNN()), int)
    assert_type(build_model("CifarCNN", {"num_classes": 3}), nn.Module)
    assert_type(get_recipe("reference"), Recipe)
    assert_type(cifarnet.__version__, str)
    try:
        Classifier.load("nowhere")
    except CheckpointNotFoundError as error:
        assert_type(error, CheckpointNotFoundError)
    return evaluation
