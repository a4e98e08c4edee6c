from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cifarnet import Trainer, build_transforms, make_synthetic
from cifarnet.errors import SettingError


def test_classes_are_balanced_and_named() -> None:
    data = make_synthetic(num_train=95, num_test=10)
    assert set(data.train.class_counts.values()) == {9, 10}
    assert set(data.test.class_counts.values()) == {1}
    assert "circle" in data.train.classes
    assert len(data.train.classes) == 10
    assert data.train.images.dtype == torch.uint8
    assert data.train.images.shape == (95, 3, 32, 32)


@settings(max_examples=8, deadline=None)
@given(num_train=st.integers(1, 1100), seed=st.integers(0, 2**64 - 1), size=st.sampled_from([8, 9, 16]))
def test_an_image_depends_on_seed_part_and_position_alone(num_train: int, seed: int, size: int) -> None:
    short = make_synthetic(num_train, 3, seed=seed, size=size)
    long = make_synthetic(1100, 5, seed=seed, size=size)
    assert torch.equal(short.train.images, long.train.images[:num_train])
    assert torch.equal(short.test.images, long.test.images[:3])
    assert short.train.images.shape[2:] == (size, size)


def test_images_are_equal_in_every_version_and_on_every_machine() -> None:
    before = torch.get_rng_state()
    data = make_synthetic(40, 10, seed=3)
    assert data.train.fingerprint == "35a2c3963d8c2ab6938e1c4c739b9c59cff1cd2372812b0033078c0958e6e37b"
    assert data.test.fingerprint == "cf2e2be59a69e34b8d813a81a1eb927b9e4717559563515fb685da2b90bebc79"
    assert torch.equal(torch.get_rng_state(), before)
    assert make_synthetic(40, 10, seed=4).train.fingerprint != data.train.fingerprint


@pytest.mark.parametrize(
    ("name", "value"), [("num_train", 0), ("num_test", -1), ("seed", 0.5), ("size", 7), ("size", True)]
)
def test_another_number_is_refused(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=rf"{name} must be .*, got {value}"):
        make_synthetic(**{name: value})


def test_a_small_network_learns_it_and_a_linear_one_does_not() -> None:
    data = make_synthetic(2000, 500)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for width_in, width_out in ((3, 16), (16, 32), (32, 48)):
            convolution = nn.Conv2d(width_in, width_out, 3, padding=1)
            layers += [convolution, nn.BatchNorm2d(width_out), nn.ReLU(), nn.MaxPool2d(2)]
        convolutional = nn.Sequential(*layers, nn.Flatten(), nn.Linear(48 * 16, 10))
        linear = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    plain = build_transforms(crop_padding=0, flip="none")
    for model, epochs, low, high in ((convolutional, 4, 0.5, 1), (linear, 2, 0, 0.3)):
        trainer = Trainer(model, lr=2e-3, transforms=plain, device="cpu", precision="float32")
        trainer.fit(data.train, max_epochs=epochs, batch_size=50, progress_bar=False)
        assert low < trainer.evaluate(data.test).accuracy < high
