"""Claims about the real CIFAR-10. Set CIFARNET_TEST_DATA to a folder that holds it."""

from __future__ import annotations

import pytest

from cifarnet import DatasetSplits
from cifarnet.transforms import CIFAR10_MEAN, CIFAR10_STD

pytestmark = pytest.mark.real_data


def test_the_statistics_are_the_published_ones(cifar10: DatasetSplits) -> None:
    assert (len(cifar10.train), len(cifar10.test)) == (50_000, 10_000)
    assert cifar10.train.labels.bincount().tolist() == [5_000] * 10
    assert cifar10.test.labels.bincount().tolist() == [1_000] * 10
    images = cifar10.train.images.double() / 255
    assert images.mean(dim=(0, 2, 3)).tolist() == pytest.approx(CIFAR10_MEAN, abs=1e-4)
    assert images.std(dim=(0, 2, 3)).tolist() == pytest.approx(CIFAR10_STD, abs=1e-4)


def test_a_tenth_for_validation_is_about_500_images_per_class(cifar10: DatasetSplits) -> None:
    train, val = cifar10.train.split(0.1, seed=0)
    assert (train.labels.bincount() + val.labels.bincount()).tolist() == [5_000] * 10
    assert ((val.labels.bincount() - 500).abs() < 4 * 21.3).all()  # four standard deviations
    assert not set(train.ids.tolist()) & set(val.ids.tolist())
    assert not set(train.image_hashes.tolist()) & set(val.image_hashes.tolist())
