"""Data that a run takes besides an `ImageDataset`: data sets of other libraries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch.utils.data import Dataset, Subset

from cifarnet import Classifier, DatasetSplits, ImageDataset, Trainer
from cifarnet.errors import DataError
from runs import fit, metrics_of

MakeTrainer = Callable[..., Trainer]


class Pictures(Dataset[Any]):
    """A map-style data set as torchvision's are."""

    classes = tuple("abcdefghij")

    def __init__(self, data: ImageDataset, kind: str) -> None:
        self.data, self.kind = data, kind

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.data[index]
        if self.kind == "pil":
            return Image.fromarray(image.permute(1, 2, 0).numpy()), label
        return (image if self.kind == "uint8" else (image / 255 - 0.5)), label


def test_a_map_style_data_set_is_read_into_memory(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    expected = fit(make_trainer(), synthetic.train)
    for kind in ("pil", "uint8"):
        assert metrics_of(fit(make_trainer(), Pictures(synthetic.train, kind))) == metrics_of(expected)


def test_subsets_are_accepted(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    expected = fit(make_trainer(), synthetic.train.subset(range(100)))
    assert metrics_of(fit(make_trainer(), Subset(synthetic.train, range(100)))) == metrics_of(expected)
    pictures, others = (Subset(Pictures(synthetic.train, "pil"), range(i, i + 100)) for i in (0, 100))
    trainer = fit(make_trainer(), pictures, others, tmp_path)
    assert trainer.history[0].train_loss == expected.history[0].train_loss
    assert Classifier.load(tmp_path, device="cpu").classes == Pictures.classes
    assert trainer.evaluate(pictures).num_images == 100


def test_floating_items_are_batched_and_shuffled(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    trainer = fit(make_trainer(), Pictures(synthetic.train, "float"), max_epochs=2, batch_size=100)
    assert trainer.global_step == 6
    assert trainer.history[0].train_loss != trainer.history[1].train_loss


def test_a_data_set_of_other_items_is_refused(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    class Wrong(Pictures):
        def __getitem__(self, index: int) -> Any:
            return {"image": 1} if self.kind == "dict" else ("a picture", 0)

    for kind, message in (("dict", r"Return \(image, label\)"), ("text", "is a str. Return a PIL image")):
        with pytest.raises(DataError, match=message):
            fit(make_trainer(), Wrong(synthetic.train, kind))
    with pytest.raises(DataError, match="is empty"):
        fit(make_trainer(), Subset(Pictures(synthetic.train, "pil"), []))
