"""Training on small images first: what the network sees, on every backend, and what a resumed run keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cifarnet import Checkpointer, CifarCNN, DatasetSplits, FastCNN, Trainer, Transforms, build_transforms
from cifarnet.errors import ResumeMismatchError, SettingError, SettingTypeError
from cifarnet.randomness import scope
from cifarnet.transforms import ProgressiveResize
from runs import assert_equal_runs, interrupt_at, read_state

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


def triangle(size: int, new: int) -> np.ndarray[Any, Any]:
    """Antialiased bilinear interpolation of ``size`` pixels to ``new``, shape ``(new, size)``: a triangle as wide as
    two of the new pixels about the centre of each, its weights with sum 1."""
    scale = size / new
    centres = (np.arange(new) + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(size) + 0.5 - centres[:, None]) / max(scale, 1))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def test_an_epochs_images_are_the_full_ones_resized(synthetic: DatasetSplits) -> None:
    images, ids = synthetic.train.images[:20], torch.arange(20)
    full = transforms_of(None)
    for epoch, side in enumerate([10, 10, 10, 12, 12, 12, 16, 16, 16, 16]):
        with scope(0, epoch, ids):
            small, large = transforms_of().train(images), full.train(images).double().numpy()
        weights = triangle(16, side)
        expected = np.einsum("yh,nchw,xw->ncyx", weights, large, weights)
        assert small.shape == (20, 3, side, side)
        assert small.dtype == torch.float32
        np.testing.assert_allclose(small.numpy(), expected, rtol=0, atol=1e-5)


def test_evaluation_and_what_has_no_epoch_are_at_full_size(synthetic: DatasetSplits) -> None:
    images = synthetic.train.images[:4]
    transforms = transforms_of()
    assert transforms.train(images).shape == (4, 3, 16, 16)
    with scope(0, 0, torch.arange(4)):
        assert torch.equal(transforms.eval(images), transforms.preprocess(images))
    with scope(0, torch.tensor(3), torch.arange(4)):
        assert transforms.train(images).shape == (4, 3, 12, 12)
    with scope(0, 0, torch.arange(1)):
        image, label = transforms.train(*synthetic.train[0])
    assert image.shape == (3, 10, 10)
    assert label == synthetic.train[0][1]


def test_an_image_is_resized_the_same_alone_and_in_any_batch(synthetic: DatasetSplits) -> None:
    images, ids = synthetic.train.images[:50], torch.arange(50)
    with scope(0, 0, ids):
        together = transforms_of().train(images)
    for i in range(0, 50, 7):
        with scope(0, 0, ids[i : i + 1]):
            assert torch.equal(transforms_of().train(images[i]), together[i])


def test_the_network_sees_small_images_in_training_alone(synthetic: DatasetSplits) -> None:
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


def test_a_graph_computes_what_the_eager_step_does_at_every_size(graphs: None, synthetic: DatasetSplits) -> None:
    eager, captured = make("eager", ema_decay=0.9), make("cuda-graph", ema_decay=0.9)
    expected = list(eager.epochs(synthetic.train, max_epochs=9))
    for record, other in zip(captured.epochs(synthetic.train, max_epochs=9), expected, strict=True):
        assert record.train_loss == pytest.approx(other.train_loss, abs=1e-10)
    for key, tensor in eager.model.state_dict().items():
        torch.testing.assert_close(captured.model.state_dict()[key], tensor, rtol=0, atol=1e-10)
    assert captured.uses_cuda_graph


@pytest.mark.parametrize("stop", [9, 14, 15, 18, 29, 30, 33])
def test_a_run_resumes_around_a_change_of_size_to_the_same_bytes(
    backend: str, synthetic: DatasetSplits, tmp_path: Path, stop: int
) -> None:
    """An epoch has five steps: sizes change after 15 and 30."""

    def run(trainer: Trainer, directory: str) -> None:
        checkpointer = Checkpointer(tmp_path / directory, save_every_s=1e9)
        trainer.fit(synthetic.train, max_epochs=8, checkpointer=checkpointer, resume=True, progress_bar=False)

    unbroken, stopped, resumed = (make(backend, precision="float32") for _ in range(3))
    run(unbroken, "unbroken")
    interrupt_at(stopped, stop)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, "stopped")
    assert read_state(tmp_path / "stopped")["position"]["global_step"] == stop
    run(resumed, "stopped")
    assert_equal_runs(tmp_path / "unbroken", tmp_path / "stopped")
    assert [r.train_loss for r in unbroken.history] == [r.train_loss for r in resumed.history]


def fit(trainer: Trainer, data: DatasetSplits, directory: Path, max_epochs: int) -> None:
    checkpointer = Checkpointer(directory)
    trainer.fit(data.train, max_epochs=max_epochs, checkpointer=checkpointer, resume=True, progress_bar=False)


@pytest.mark.parametrize("saved", [None, SIZES, {0: 10}])
@pytest.mark.parametrize("now", [None, SIZES, {0: 10}])
def test_a_run_keeps_its_sizes(
    synthetic: DatasetSplits, tmp_path: Path, saved: dict[int, int] | None, now: dict[int, int] | None
) -> None:
    fit(make(sizes=saved), synthetic, tmp_path, 1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if saved == now:
        fit(make(sizes=None if now is None else dict(reversed(now.items()))), synthetic, tmp_path, 2)
        return
    with pytest.raises(ResumeMismatchError, match=r"resize.* in the run"):
        fit(make(sizes=now), synthetic, tmp_path, 2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class TestRefusals:
    def make(self, model: nn.Module, sizes: dict[int, int]) -> Trainer:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        return Trainer(model, optimizer, transforms=transforms_of(sizes), device="cpu", precision="float32")

    @pytest.mark.parametrize("kind", ["data set", "loader"])
    def test_a_network_for_one_size_is_refused_before_training(
        self, synthetic: DatasetSplits, tmp_path: Path, kind: str
    ) -> None:
        trainer = self.make(CifarCNN(image_size=16, widths=(4, 8), hidden=16), {0: 16, 5: 12, 6: 16})
        before = {key: tensor.clone() for key, tensor in trainer.model.state_dict().items()}
        train = synthetic.train if kind == "data set" else DataLoader(synthetic.train, batch_size=64)
        message = r"CifarCNN cannot take the images of .*prepared to 12 pixels.*\. Leave out sizes=, or train a network"
        with pytest.raises(SettingError, match=message):
            trainer.fit(train, max_epochs=8, checkpointer=Checkpointer(tmp_path / "run"), progress_bar=False)
        assert trainer.global_step == 0
        assert all(torch.equal(before[key], tensor) for key, tensor in trainer.model.state_dict().items())
        assert not list(tmp_path.glob("run/*.safetensors"))

    def test_images_too_small_for_any_size_are_refused(self, synthetic: DatasetSplits) -> None:
        with pytest.raises(SettingError, match=r"FastCNN cannot take .*prepared to 6 pixels"):
            self.make(FastCNN(widths=(4, 8, 8)), {0: 6}).fit(synthetic.train, max_epochs=1, progress_bar=False)

    def test_floating_batches_are_trained_on_as_they_are(self, synthetic: DatasetSplits) -> None:
        trainer = self.make(CifarCNN(image_size=16, widths=(4, 8), hidden=16), {0: 12})
        ready = trainer.transforms.preprocess(synthetic.train.images[:64])
        trainer.fit([(ready, synthetic.train.labels[:64])], max_epochs=1, progress_bar=False)
        assert trainer.global_step == 1

    @pytest.mark.parametrize(
        ("sizes", "error", "message"),
        [
            ({}, SettingError, r"sizes must tell the side from epoch 0 on, got \{\}; \{0: 24, 3: 28, 6: 32\} begins"),
            ({2: 24}, SettingError, r"sizes must tell the side from epoch 0 on, got \{2: 24\}"),
            ({0: 24, -1: 28}, SettingError, "each epoch of sizes must be at least 0, got -1"),
            ({0: 1}, SettingError, "each side of sizes must be at least 2, got 1"),
            ({0: 24.5}, SettingTypeError, "each side of sizes must be a whole number, got 24.5"),
            ({0.0: 24}, SettingTypeError, "each epoch of sizes must be a whole number, got 0.0"),
            ([24, 28, 32], SettingTypeError, r"sizes must be a dict from epochs to pixels, got \[24, 28, 32\]"),
            ({0: 24, 3: 40}, SettingError, "sizes has 40 pixels, and images are prepared to 32, .* or give size=40"),
        ],
    )
    def test_sizes_out_of_range(self, sizes: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            build_transforms(sizes=sizes)


def test_the_side_of_an_epoch_is_that_of_the_last_change() -> None:
    resize = ProgressiveResize({6: 32, 0: 24, 3: 28})
    assert [resize.size_at(epoch) for epoch in range(8)] == [24, 24, 24, 28, 28, 28, 32, 32]
    assert repr(resize) == "ProgressiveResize({0: 24, 3: 28, 6: 32})"
