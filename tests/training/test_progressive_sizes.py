"""Training on small images first: what the network sees, on every backend, and what a resumed run keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cifarnet import CifarCNN, DatasetSplits, FastCNN, Trainer, Transforms, build_transforms
from cifarnet.errors import SettingError
from cifarnet.randomness import scope
from runs import assert_equal_runs, fit, interrupt_at, read_state

SIZES = {0: 10, 3: 12, 6: 16}  # each for three epochs: a unit is captured in the second or third
MakeTrainer = Callable[..., Trainer]


def transforms_of(sizes: dict[int, int] | None = SIZES) -> Transforms:
    return build_transforms(cutout=4, size=16, sizes=sizes)


def make(backend: str = "eager", sizes: dict[int, int] | None = SIZES, **settings: Any) -> Trainer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FastCNN(widths=(4, 8, 8))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2**-10)  # float32 has it
    settings = {"device": "cpu", "precision": "float64", **settings}
    trainer = Trainer(model, optimizer, transforms=transforms_of(sizes), **settings)
    trainer.cuda_graph = backend == "cuda-graph"
    return trainer


def test_the_images_of_an_epoch_are_resized(synthetic: DatasetSplits) -> None:
    images, ids = synthetic.train.images[:20], torch.arange(20)
    full = transforms_of(None)
    for epoch, side in enumerate([10, 10, 10, 12, 12, 12, 16, 16, 16, 16]):
        with scope(0, epoch, ids):
            small, large = transforms_of().train(images), full.train(images)
        expected = nn.functional.interpolate(large, (side, side), mode="bilinear", antialias=True)
        torch.testing.assert_close(small, expected, rtol=0, atol=1e-5)
    assert transforms_of().train(images).shape == (20, 3, 16, 16), "full size outside of a run"


def test_training_alone_sees_small_images(synthetic: DatasetSplits) -> None:
    trainer, seen = make(), []

    def note(module: nn.Module, inputs: tuple[Tensor]) -> None:
        seen.append((module.training, tuple(inputs[0].shape[2:])))

    trainer.model.register_forward_pre_hook(note)
    epochs = trainer.epochs(synthetic.train, synthetic.test, max_epochs=8, batch_size=100)
    for epoch, record in enumerate(epochs):
        side = 10 if epoch < 3 else 12 if epoch < 6 else 16
        assert [shape for training, shape in seen if training] == 3 * [(side, side)]
        # Before the first epoch, one image of each size is tried.
        evaluated = {(16, 16)} if epoch else {(10, 10), (12, 12), (16, 16)}
        assert {shape for training, shape in seen if not training} == evaluated
        seen.clear()
        assert record.val_accuracy == trainer.evaluate(synthetic.test).accuracy
        seen.clear()


@pytest.mark.parametrize("stop", [14, 15, 18])
def test_resume_around_a_resize_is_exact(backend: str, synthetic: DatasetSplits, tmp_path: Path, stop: int) -> None:
    """An epoch has five steps: the size changes after 15."""
    whole, stopped, resumed = (make(backend, precision="float32") for _ in range(3))
    fit(whole, synthetic.train, None, tmp_path / "whole", max_epochs=4)
    interrupt_at(stopped, stop)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, synthetic.train, None, tmp_path / "stopped", max_epochs=4)
    assert read_state(tmp_path / "stopped")["position"]["global_step"] == stop
    fit(resumed, synthetic.train, None, tmp_path / "stopped", max_epochs=4)
    assert_equal_runs(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("kind", ["data set", "loader"])
def test_a_network_for_one_size_is_refused_before_training(synthetic: DatasetSplits, tmp_path: Path, kind: str) -> None:
    model = CifarCNN(image_size=16, widths=(4, 8), hidden=16)
    trainer = Trainer(model, transforms=transforms_of({0: 16, 5: 12, 6: 16}), device="cpu")
    train = synthetic.train if kind == "data set" else DataLoader(synthetic.train, batch_size=64)
    with pytest.raises(SettingError, match=r"CifarCNN cannot take .*prepared to 12 pixels.*\. Build it for that size"):
        fit(trainer, train, None, tmp_path / "run", max_epochs=8)
    assert trainer.global_step == 0
    assert not list(tmp_path.glob("run/*.safetensors"))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({2: 24}, r"sizes must have epoch 0, got \{2: 24\}. Pass \{0: 24, 3: 28, 6: 32\}"),
        ({0: 24, -1: 28}, "each epoch of sizes must be at least 0, got -1"),
        ({0: 1}, "each side of sizes must be at least 2, got 1"),
        ([24, 28, 32], r"sizes must be a dictionary of epochs and pixels, got \[24, 28, 32\]"),
        ({0: 24, 3: 40}, "sizes must be at most 32 pixels, .* got 40. Pass size=40 too"),
    ],
)
def test_sizes_out_of_range_are_refused(sizes: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build_transforms(sizes=sizes)
