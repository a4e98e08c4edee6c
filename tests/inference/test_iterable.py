"""TensorLoader of other people: what is wrong with them is told with batch, value and remedy."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from cifarnet import DatasetSplits, Trainer
from cifarnet.errors import InputError, SettingError
from cifarnet.inference.iterable import IterableLoader

MakeTrainer = Callable[..., Trainer]
CPU = torch.device("cpu")
LABELS = torch.tensor([0, 1])


def images(*, value: float = 0.5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Two of them; ``value`` is one pixel of the second."""
    made = torch.full((2, 3, 16, 16), 0.25, dtype=dtype)
    made[1, 2, 3, 4] = value
    return made


def spoiled(at: int, *, value: float = 0.5, label: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Four batches of which one is spoiled."""
    batches = [(images(), LABELS) for _ in range(4)]
    batches[at] = images(value=value), torch.tensor([0, label])
    return batches


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_pixels_that_are_no_numbers_are_found(value: float, dtype: torch.dtype) -> None:
    batches = [(images(dtype=dtype), LABELS), (images(value=value, dtype=dtype), LABELS)]
    with pytest.raises(InputError, match=rf"^Batch 2 has the value {value} in the image at row 1\. .*Leave it out"):
        list(IterableLoader(batches, device=CPU).in_order())


def test_pixels_passed_as_floats_are_found(synthetic: DatasetSplits) -> None:
    pixels = synthetic.train.images[:64]
    batch = pixels.float(), synthetic.train.labels[:64]
    with pytest.raises(InputError, match=r"^Batch 1 has floating images .* max 2\d\d\. .* Pass uint8 images"):
        list(IterableLoader([batch], device=CPU).in_order())


def test_images_that_are_ready_are_left_alone(synthetic: DatasetSplits) -> None:
    pixels = synthetic.train.images[:64]
    centred = pixels.float() - 128  # as networks of the Caffe days take them
    for ready in (pixels, pixels / 255, v2.functional.normalize(pixels / 255, [0.5] * 3, [0.25] * 3), centred):
        (batch,) = IterableLoader([(ready, synthetic.train.labels[:64])], device=CPU).in_order()
        assert torch.equal(batch.images, ready)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.uint16, torch.uint32, torch.uint64])
def test_labels_are_integers_of_any_kind(dtype: torch.dtype) -> None:
    (batch,) = IterableLoader([(images(), LABELS.to(dtype))], device=CPU).in_order()
    assert torch.equal(batch.labels, LABELS)


@pytest.mark.parametrize(
    ("pixels", "labels"),
    [(images(), LABELS.to(torch.complex64)), (images().to(torch.float8_e4m3fn), LABELS), (images(), LABELS.float())],
)
def test_number_formats_that_nobody_trains_on_are_refused(pixels: Tensor, labels: Tensor) -> None:
    with pytest.raises(InputError, match=r"^Batch 1 must have .*(integer labels|uint8 images)"):
        list(IterableLoader([(pixels, labels)], device=CPU).in_order())


def test_an_empty_batch_is_refused() -> None:
    batches = [(torch.zeros(0, 3, 16, 16), torch.zeros(0, dtype=torch.int64))]
    with pytest.raises(InputError, match=r"^Batch 1 must have images .*, got \(0, 3, 16, 16\)"):
        list(IterableLoader(batches, device=CPU).in_order())


def test_a_batch_of_another_device_is_not_waited_for() -> None:
    """The meta device has no values to look at: to try it would raise."""
    batches = [(images().to("meta"), LABELS.to("meta"))]
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
def test_a_label_without_a_class_ends_the_epoch_before_its_step(
    make_trainer: MakeTrainer, mix: nn.Module | None, label: int, message: str
) -> None:
    trainer = make_trainer(batch_transform=mix)
    with pytest.raises(InputError, match=message):
        trainer.fit(spoiled(2, label=label), max_epochs=1, progress_bar=False)
    assert trainer.global_step == 2


def test_evaluation_refuses_what_training_refuses(make_trainer: MakeTrainer) -> None:
    for batches, message in (
        (spoiled(1, label=10), r"^Batch 2 has label 10 at row 1\. Labels must be in \[0, 10\)"),
        (spoiled(1, value=math.nan), "^Batch 2 has the value nan in the image at row 1"),
        (spoiled(3, value=255), "^Batch 4 .* min 0.25 and max 255"),
    ):
        with pytest.raises(InputError, match=message):
            make_trainer().evaluate(batches)


def test_images_of_another_size_are_refused_before_the_first_step(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    with pytest.raises(SettingError, match=r"CifarCNN cannot take the images of the batches \(\(3, 8, 8\)\): "):
        trainer.fit([(torch.zeros(2, 3, 8, 8), LABELS)], max_epochs=1, progress_bar=False)
    assert trainer.global_step == 0


def test_looking_at_the_first_batch_draws_nothing(make_trainer: MakeTrainer) -> None:
    """A network that draws in evaluation mode too: a run resumed after an epoch would otherwise part from its own."""

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.5, training=True)

    unbroken, begun, resumed = (make_trainer() for _ in range(3))
    for trainer in (unbroken, begun, resumed):
        trainer.model.add_module("noise", Noisy())
        trainer.model.register_forward_pre_hook(lambda model, args: model.noise(args[0]))
    unbroken.fit(spoiled(0), max_epochs=2, progress_bar=False)
    begun.fit(spoiled(0), max_epochs=1, progress_bar=False)
    resumed.load_state_dict(begun.state_dict())
    resumed.fit(spoiled(0), max_epochs=2, progress_bar=False)
    assert [r.train_loss for r in resumed.history] == [r.train_loss for r in unbroken.history]
