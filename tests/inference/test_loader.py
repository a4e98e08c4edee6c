from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from cifarnet import DatasetSplits, Trainer
from cifarnet.errors import CheckpointMismatchError, DataError, SettingError
from cifarnet.inference.loader import Batch, IterableLoader, TensorLoader

MakeTrainer = Callable[..., Trainer]
CPU = torch.device("cpu")
LABELS = torch.tensor([0, 1])


@pytest.fixture
def loader(synthetic: DatasetSplits) -> TensorLoader:
    train = synthetic.train
    return TensorLoader(train.images, train.labels, train.ids, batch_size=64, device=CPU, seed=0)


def read(*items: object) -> list[Batch]:
    return list(IterableLoader(items, device=CPU).in_order())


def make_images(*, value: float = 0.5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return two images; ``value`` is one pixel of the second."""
    images = torch.full((2, 3, 16, 16), 0.25, dtype=dtype)
    images[1, 2, 3, 4] = value
    return images


def make_batches(at: int, *, value: float = 0.5, label: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Return four batches; the one at ``at`` has the pixel ``value`` and the label ``label``."""
    batches = [(make_images(), LABELS) for _ in range(4)]
    batches[at] = make_images(value=value), torch.tensor([0, label])
    return batches


def test_an_epoch_visits_every_image_once(loader: TensorLoader, synthetic: DatasetSplits) -> None:
    batches = list(loader.epoch(0))
    assert loader.num_steps == len(batches) == 5
    assert [len(batch.labels) for batch in batches] == [64, 64, 64, 64, 44]
    columns = zip(*((batch.images, batch.labels, batch.ids) for batch in batches), strict=True)
    images, labels, ids = map(torch.cat, columns)
    assert torch.equal(ids.sort().values, torch.arange(300))
    assert torch.equal(images, synthetic.train.images[ids])
    assert torch.equal(labels, synthetic.train.labels[ids])
    first = next(loader.in_order())
    assert torch.equal(first.ids, torch.arange(64))
    assert first.images.data_ptr() == synthetic.train.images.data_ptr()  # a view


def test_an_epoch_starts_at_any_step(loader: TensorLoader) -> None:
    whole = [batch.ids.tolist() for batch in loader.epoch(3)]
    for first_step in range(6):
        assert [batch.ids.tolist() for batch in loader.epoch(3, first_step)] == whole[first_step:]
    assert [batch.ids.tolist() for batch in loader.epoch(4)] != whole
    with pytest.raises(CheckpointMismatchError, match="at step 3 of an epoch"):
        list(IterableLoader([], device=CPU).epoch(0, first_step=3))


def test_an_iterable_gets_running_ids() -> None:
    loader = DataLoader(TensorDataset(torch.rand(10, 3, 8, 8), torch.arange(10) % 3), batch_size=4)
    batches = IterableLoader(loader, device=CPU)
    assert batches.num_steps == 3
    assert [batch.ids.tolist() for batch in batches.epoch(0)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert IterableLoader(iter([]), device=CPU).num_steps is None
    with pytest.raises(DataError, match="The iterable has no batches"):
        read()


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (torch.zeros(2, 3, 8, 8), r"^Batch 1 must be two tensors \(images, labels\), got Tensor"),
        ((torch.zeros(3, 8, 8), torch.tensor(1)), r"got torch.float32 \(3, 8, 8\)\. The shape must be \(N, C, H, W\)"),
        ((torch.zeros(0, 3, 8, 8), LABELS[:0]), r"got torch.float32 \(0, 3, 8, 8\)"),
        ((make_images().to(torch.float8_e4m3fn), LABELS), "got torch.float8_e4m3fn"),
        ((make_images().int(), LABELS), r"got torch.int32 .*Use images.to\(torch.uint8\)"),
        ((make_images(), LABELS[:1]), r"must have 2 integer labels, got torch.int64 \(1,\)"),
        ((make_images(), LABELS.float()), r"must have 2 integer labels, got torch.float32 \(2,\)"),
    ],
)
def test_invalid_batches_are_refused(item: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(item)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_pixels_that_are_not_finite_are_refused(value: float, dtype: torch.dtype) -> None:
    with pytest.raises(DataError, match=rf"^Batch 2 has the value {value} in the image at row 1\. .*Leave it out"):
        read((make_images(dtype=dtype), LABELS), (make_images(value=value, dtype=dtype), LABELS))


def test_floating_images_must_be_preprocessed(synthetic: DatasetSplits) -> None:
    pixels, labels = synthetic.train.images[:64], synthetic.train.labels[:64]
    with pytest.raises(DataError, match=r"^Batch 1 has floating images .* max 2\d\d\. .* Pass uint8 images"):
        read((pixels.float(), labels))
    normalised = v2.functional.normalize(pixels / 255, [0.5] * 3, [0.25] * 3)
    for ready in (pixels, pixels / 255, normalised, pixels.float() - 128):  # the last as in networks of Caffe
        for dtype in (torch.uint8, torch.int32, torch.uint64):
            (batch,) = read((ready, labels.to(dtype)))
            assert torch.equal(batch.images, ready)
            assert torch.equal(batch.labels, labels)


def test_checks_do_not_synchronize_with_a_device() -> None:
    """The meta device has no values, so that reading one raises."""
    batches = [(make_images().to("meta"), LABELS.to("meta"))]
    (batch,) = IterableLoader(batches, device=torch.device("meta")).in_order()
    assert batch.highest_label is None


@pytest.mark.parametrize("mix", [None, v2.MixUp(num_classes=10)])
@pytest.mark.parametrize(
    ("label", "message"),
    [
        (10, r"^Batch 3 has label 10 at row 1\. Labels must be in \[0, 10\) .* num_classes=11"),
        (-1, r"^Batch 3 has label -1 at row 1\. Labels count the classes from 0"),
    ],
)
def test_training_refuses_labels_and_sizes_that_do_not_fit(
    make_trainer: MakeTrainer, mix: nn.Module | None, label: int, message: str
) -> None:
    trainer = make_trainer(batch_transform=mix)
    with pytest.raises(DataError, match=message):
        trainer.fit(make_batches(2, label=label), max_epochs=1, progress_bar=False)
    assert trainer.global_step == 2
    with pytest.raises(SettingError, match=r"CifarCNN cannot take the images of the batches \(\(3, 8, 8\)\): "):
        make_trainer().fit([(torch.zeros(2, 3, 8, 8), LABELS)], max_epochs=1, progress_bar=False)


def test_evaluation_refuses_what_training_refuses(make_trainer: MakeTrainer) -> None:
    for batches, message in (
        (make_batches(1, label=10), r"^Batch 2 has label 10 at row 1\. Labels must be in \[0, 10\)"),
        (make_batches(1, value=math.nan), "^Batch 2 has the value nan in the image at row 1"),
        (make_batches(3, value=255), "^Batch 4 .* min 0.25 and max 255"),
    ):
        with pytest.raises(DataError, match=message):
            make_trainer().evaluate(batches)
