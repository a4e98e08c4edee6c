"""An error states the value, the rule and the remedy, in at most 200 characters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cifarnet import (
    Checkpointer,
    CifarCNN,
    Classifier,
    ImageDataset,
    Trainer,
    build_transforms,
    load_cifar10,
    load_image_folder,
    make_synthetic,
)
from cifarnet.errors import CifarnetError
from cifarnet.recipes import get_recipe

DATA = make_synthetic(40, 10)
PIXELS = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)


def small() -> Trainer:
    return Trainer(CifarCNN(widths=(2, 2), hidden=4), lr=1e-3, device="cpu")


@pytest.mark.parametrize(
    ("wrong", "value", "remedy"),
    [
        (lambda: CifarCNN(num_classes=0), "got 0", "CIFAR-10 has 10"),
        (lambda: build_transforms(flip="randm"), '"randm"', 'did you mean "random"?'),  # type: ignore[arg-type]
        (lambda: get_recipe("refrence"), '"refrence"', 'did you mean "reference"?'),
        (lambda: Trainer(CifarCNN(), lr=0.1, precision="fp16"), '"fp16"', 'did you mean "bf16"?'),
        (lambda: Trainer(CifarCNN(), lr=0.1, device="gpu"), '"gpu"', 'Did you mean "cuda"?'),
        (lambda: small().fit(DATA.train, max_epochs=0), "got 0", "The reference run has 10"),
        (lambda: small().fit(DATA.train, max_epochs=1, batch_size=0), "got 0", "The reference run has 64"),
        (lambda: small().fit(DATA, max_epochs=1), "DatasetSplits", "Pass its .train"),  # type: ignore[arg-type]
        (lambda: small().fit(DATA.train, max_epochs=1, patience=3), "patience", "train.split(0.1, seed=0)"),
        (
            lambda: small().fit(DATA.train, DATA.test, max_epochs=1, monitor="val_acuracy"),
            '"val_acuracy"',
            'did you mean "val_accuracy"?',
        ),
        (lambda: small().evaluate(DATA.test, tta="flp"), '"flp"', 'did you mean "flip"?'),  # type: ignore[arg-type]
        (lambda: DATA.train.split(1.5, seed=0), "1.5", "Use 0.1"),
        (lambda: load_cifar10("/nowhere", download=False), "/nowhere", "Name its folder (--data DIR)"),
        (lambda: load_image_folder("/nowhere"), "/nowhere", "Put pictures into train/<class>/"),
        (lambda: Classifier.load("/nowhere"), "/nowhere", "train first"),
        (lambda: Checkpointer("run", save_every_s=-1), "got -1", "The default is 30"),
        (lambda: ImageDataset(PIXELS / 255, torch.zeros(2).long(), ("a", "b")), "torch.float32", ".to(torch.uint8)"),
        (lambda: ImageDataset(PIXELS, torch.tensor([0, 5]), ("a", "b")), "0 to 5", "Give every class a name"),
    ],
)
def test_a_mistake_gets_value_and_remedy(wrong: Callable[[], object], value: str, remedy: str) -> None:
    with pytest.raises(CifarnetError) as caught:
        wrong()
    message = str(caught.value)
    assert value in message
    assert remedy in message
    assert len(message) <= 200
    assert "\n" not in message
