from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from cifarnet import DatasetSplits, Preprocess, Transforms, build_transforms
from cifarnet.errors import DataError, SettingError
from cifarnet.randomness import draw, scope
from cifarnet.transforms import CIFAR10_MEAN, CIFAR10_STD, Cutout, RandomCrop, RandomFlip

EVERYTHING = build_transforms(crop_padding=3, flip="random", cutout=8)


def random_images(num_images: int = 16, size: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_images, 3, size, size), dtype=torch.uint8, generator=generator)


@settings(max_examples=40, deadline=None)
@given(
    num_images=st.integers(1, 9),
    height=st.integers(5, 20),
    width=st.integers(5, 20),
    padding=st.integers(1, 4),
    mode=st.sampled_from(["reflect", "zero"]),
    seed=st.integers(0, 100),
)
def test_augmentation_keeps_shape_dtype_and_range(
    num_images: int, height: int, width: int, padding: int, mode: Literal["reflect", "zero"], seed: int
) -> None:
    images = torch.randint(0, 256, (num_images, 3, height, width), dtype=torch.uint8)
    augment = build_transforms(crop_padding=padding, crop_mode=mode, cutout=3).augment
    with scope(seed, 0, torch.arange(num_images)):
        output = augment(images)
    assert output.shape == images.shape
    assert output.dtype == torch.uint8
    with scope(seed, 0, torch.arange(num_images)):
        torch.testing.assert_close(augment(images / 255), output / 255)


@given(position=st.integers(0, 15), epoch=st.integers(0, 20))
@settings(max_examples=25, deadline=None)
def test_an_image_is_augmented_the_same_in_any_batch(position: int, epoch: int) -> None:
    images, ids = random_images(), torch.arange(100, 116)
    with scope(0, epoch, ids):
        together = EVERYTHING.train(images)
    with scope(0, epoch, ids[position : position + 1]):
        alone = EVERYTHING.train(images[position])
    with scope(0, epoch, ids.flip(0)):
        reordered = EVERYTHING.train(images.flip(0)).flip(0)
    with scope(0, epoch + 1, ids):
        later = EVERYTHING.train(images)
    assert torch.equal(together[position], alone)
    assert torch.equal(together, reordered)
    assert bool((together != later).flatten(1).any(dim=1).all())


@pytest.mark.parametrize(("mode", "torchvision_mode"), [("reflect", "reflect"), ("zero", "constant")])
@pytest.mark.parametrize("padding", [1, 4])
def test_crop_equals_torchvisions_image_by_image(
    mode: Literal["reflect", "zero"], torchvision_mode: str, padding: int
) -> None:
    images, ids = random_images(64), torch.arange(64)
    with scope(0, 0, ids):
        ours = RandomCrop(padding, mode=mode)(images)
        places = (draw("crop", num_images=64, columns=2) * (2 * padding + 1)).long()
    padded = F.pad(images, [padding], padding_mode=torchvision_mode)
    theirs = [F.crop(image, int(y), int(x), 32, 32) for image, (y, x) in zip(padded, places, strict=True)]
    assert torch.equal(ours, torch.stack(theirs))


def test_flip_equals_torchvisions_image_by_image() -> None:
    images, ids = random_images(64), torch.arange(64)
    with scope(0, 0, ids):
        ours = RandomFlip()(images)
        flipped = draw("flip", num_images=64)[:, 0] < 0.5
    theirs = [F.horizontal_flip(image) if flip else image for image, flip in zip(images, flipped, strict=True)]
    assert torch.equal(ours, torch.stack(theirs))


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_normalisation_equals_torchvisions(seed: int) -> None:
    images = random_images(4, seed=seed)
    theirs = F.normalize(F.to_dtype(images, torch.float32, scale=True), list(CIFAR10_MEAN), list(CIFAR10_STD))
    torch.testing.assert_close(Preprocess()(images), theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(Preprocess()(images.float() / 255), theirs, rtol=0, atol=1e-6)
    large = random_images(2, size=48, seed=seed)
    assert torch.equal(Preprocess(32)(large), Preprocess(32)(F.resize(large, [32, 32], antialias=True)))
    assert Preprocess()(images.double() / 255).dtype == torch.float64


def test_alternating_flip_shows_both_sides_in_two_epochs() -> None:
    images, ids = random_images(64), torch.arange(64)
    flip = RandomFlip("alternating")
    by_epoch = []
    for epoch in range(4):
        with scope(0, epoch, ids):
            by_epoch.append(flip(images))
    assert torch.equal(by_epoch[0], by_epoch[1].flip(-1))
    assert torch.equal(by_epoch[0], by_epoch[2])
    flipped = (by_epoch[0] != images).flatten(1).any(dim=1)
    assert 16 < int(flipped.sum()) < 48  # not all the same way
    with scope(0, torch.tensor(1), ids):
        assert torch.equal(flip(images), by_epoch[1])
    assert flip(images).shape == images.shape  # without an epoch, the flips are random


def test_cutout_paints_a_square_that_the_edge_cuts_off() -> None:
    images, ids = torch.full((200, 3, 32, 32), 255, dtype=torch.uint8), torch.arange(200)
    with scope(0, 0, ids):
        output = Cutout(8, fill=(1, 2, 3))(images)
    painted = output[:, 0] == 1
    counts = painted.flatten(1).sum(dim=1)
    assert int(counts.max()) == 64
    assert int(counts.min()) >= 16
    for image, mask in zip(output, painted, strict=True):
        rows, columns = mask.any(dim=1).nonzero().flatten(), mask.any(dim=0).nonzero().flatten()
        assert int(mask.sum()) == len(rows) * len(columns)  # a rectangle
        assert image[:, mask].unique(dim=1).tolist() == [[1], [2], [3]]
        assert bool((image[:, ~mask] == 255).all())


def test_transforms_do_not_change_labels(synthetic: DatasetSplits) -> None:
    transforms = build_transforms(size=16)
    for images, labels in DataLoader(synthetic.train, batch_size=100):
        output, same = transforms.train(images, labels)
        assert output.shape == (100, 3, 16, 16)
        assert same is labels
    image, label = transforms.eval(*synthetic.train[0])
    assert image.dtype == torch.float32
    assert label == synthetic.train[0][1]
    plain = build_transforms(crop_padding=0, flip="none", size=16)
    assert torch.equal(plain.train(images), plain.eval(images))


def test_transforms_compose_with_torchvisions_own() -> None:
    pipeline = v2.Compose([v2.PILToTensor(), v2.RandomRotation([-10, 10]), *EVERYTHING.train.transforms])
    image = Image.fromarray(random_images(1)[0].permute(1, 2, 0).numpy())
    output = pipeline(image)
    assert (output.shape, output.dtype) == ((3, 32, 32), torch.float32)
    wrapped = tv_tensors.Image(random_images(1)[0])
    assert isinstance(RandomCrop(2)(wrapped), tv_tensors.Image)
    assert type(EVERYTHING.train(wrapped)) is Tensor


def test_transforms_print_and_pickle() -> None:
    assert "RandomCrop(name=crop, padding=3, mode=reflect)" in repr(EVERYTHING.train)
    assert "Preprocess(size=32" in repr(EVERYTHING.eval)
    copy: Transforms = pickle.loads(pickle.dumps(EVERYTHING))
    images, ids = random_images(4), torch.arange(4)
    with scope(0, 0, ids):
        assert torch.equal(copy.train(images), EVERYTHING.train(images))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_padding": -1}, "crop_padding must be at least 0, got -1"),
        ({"crop_mode": "reflekt"}, 'mode "reflekt" is unknown; did you mean "reflect"'),
        ({"flip": "alternate"}, 'flip "alternate" is unknown; did you mean "alternating"'),
        ({"cutout": -3}, "cutout must be at least 0, got -3"),
        ({"std": (0.0, 1.0, 1.0)}, "std must be above 0"),
        ({"mean": (0.0, math.nan, 1.0)}, "mean and std must be finite"),
        ({"std": (1.0,)}, "mean has 3 values, std 1"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build_transforms(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: RandomFlip()(Image.new("RGB", (32, 32))), "takes a tensor, got Image. Put v2.PILToTensor"),
        (lambda: RandomFlip()(torch.zeros(32, 32)), r"takes \(C, H, W\) or \(N, C, H, W\), got shape \(32, 32\)"),
        (lambda: RandomFlip()(tv_tensors.Video(torch.zeros(2, 3, 3, 8, 8))), "takes a tensor, got Video"),
        (lambda: RandomCrop(0), "padding must be at least 1"),
        (lambda: RandomCrop(8)(random_images(2, size=8)), "padding 8 does not fit images of 8x8"),
        (lambda: Cutout(0), "size must be at least 1"),
        (lambda: Cutout(4)(random_images(2)[:, :1]), "fill has 3 values, the images 1 channels"),
        (lambda: Preprocess()(random_images(2)[:, :1]), "the images have 1 channels"),
    ],
)
def test_images_that_do_not_fit_a_transform_are_refused(use: Callable[[], object], message: str) -> None:
    with pytest.raises((DataError, SettingError), match=message):
        use()
