"""The same claims on a GPU; skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cifarnet import Checkpointer, Classifier, DatasetSplits, Trainer, Transforms, build_transforms
from cifarnet.engine import predict_logits
from cifarnet.errors import DeviceMemoryError, InputError
from cifarnet.models import evaluation_mode
from cifarnet.randomness import permutation, scope

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")
MakeTrainer = Callable[..., Trainer]


def test_order_and_augmentation_are_those_of_the_cpu(synthetic: DatasetSplits, small_transforms: Transforms) -> None:
    train = synthetic.train
    assert torch.equal(permutation(3, 5, train.ids), permutation(3, 5, train.ids.to(CUDA)).cpu())
    with scope(3, 5, train.ids):
        on_cpu = small_transforms.augment(train.images)
    with scope(3, 5, train.ids.to(CUDA)):
        on_cuda = small_transforms.augment(train.images.to(CUDA)).cpu()
    difference = (on_cpu.int() - on_cuda.int()).abs()
    assert int(difference.max()) <= 1  # jitter rounds a float32 product down; crop, flip and cutout are exact
    assert float((difference > 0).float().mean()) < 1e-3


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_resumed_run_equals_an_unbroken_one(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, precision: str
) -> None:
    settings: dict[str, Any] = {"device": "cuda", "deterministic": True, "precision": precision}
    unbroken = make_trainer(**settings)
    unbroken.fit(synthetic.train, max_epochs=3, progress=False)
    make_trainer(**settings).fit(synthetic.train, max_epochs=1, checkpointer=Checkpointer(tmp_path), progress=False)
    torch.rand(9, device=CUDA)
    resumed = make_trainer(**settings)
    resumed.fit(synthetic.train, max_epochs=3, checkpointer=Checkpointer(tmp_path), resume=True, progress=False)
    for one, other in zip(unbroken.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [r.train_loss for r in unbroken.history] == [r.train_loss for r in resumed.history]


def test_the_callers_generator_is_untouched(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    before = torch.cuda.get_rng_state()
    for _ in make_trainer(device="cuda").epochs(synthetic.train, max_epochs=2):
        assert torch.equal(before, torch.cuda.get_rng_state())


def test_a_run_of_the_gpu_goes_on_on_a_cpu_with_a_warning(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    make_trainer(device="cuda").fit(synthetic.train, max_epochs=1, checkpointer=Checkpointer(tmp_path), progress=False)
    with pytest.warns(UserWarning, match="device 'cuda' in the run, 'cpu' now"):
        make_trainer(device="cpu").fit(
            synthetic.train, max_epochs=2, checkpointer=Checkpointer(tmp_path), resume=True, progress=False
        )


@pytest.mark.parametrize("batches_are_foreign", [False, True])
def test_no_step_waits_for_the_gpu(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, batches_are_foreign: bool
) -> None:
    trainer = make_trainer(device="cuda", transforms=build_transforms(flip="alternating", cutout=4, size=16))
    images, labels = synthetic.train.images.to(CUDA), synthetic.train.labels.to(CUDA)
    data = (
        list(zip(torch.split(images, 64), torch.split(labels, 64), strict=True))
        if batches_are_foreign
        else synthetic.train
    )
    list(trainer.epochs(data, max_epochs=1))  # kernels are loaded, constants are made
    plan = trainer._make_plan(data, None, None, max_epochs=2, batch_size=64)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for event in trainer._run(plan):
            if event == plan.train.num_steps:
                break
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Greedy(nn.Module):
    """A loss that takes a hundredth of the GPU's memory for each image: 16 of them fit, 256 do not."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        _, total = torch.cuda.mem_get_info()
        torch.empty(len(labels) * (total // 100), dtype=torch.uint8, device=CUDA)
        return nn.functional.cross_entropy(logits, labels)


def test_a_batch_that_does_not_fit_is_told_and_a_smaller_one_is_trained_on(
    make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    trainer = make_trainer(device="cuda", loss_fn=Greedy())
    with pytest.raises(DeviceMemoryError, match=r"^training with batch_size=256 did not fit .* of cuda; try 128"):
        trainer.fit(synthetic.train, max_epochs=1, batch_size=256, progress=False)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert trainer.global_step == 0
    history = trainer.fit(synthetic.train, max_epochs=1, batch_size=16, progress=False)
    assert history[-1].global_step == 19


def test_an_evaluation_that_does_not_fit_is_told_from_training(
    make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    trainer = make_trainer(device="cuda", loss_fn=Greedy())
    message = r"^evaluating 300 images at once did not fit .* of cuda; evaluate DataLoader\(images, batch_size=150\)"
    with pytest.raises(DeviceMemoryError, match=message):
        trainer.fit(synthetic.test, synthetic.train, max_epochs=1, batch_size=16, progress=False)
    _, total = torch.cuda.mem_get_info()
    assert torch.cuda.memory_reserved() < total // 20  # what training had taken, 16 hundredths, was given back
    assert trainer.evaluate(DataLoader(synthetic.train, batch_size=16)).num_images == 300


def test_labels_of_a_loader_are_refused_before_they_break_the_process(
    make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    """In a kernel, an index out of bounds would make every later call of CUDA fail."""
    trainer = make_trainer(device="cuda")
    images = synthetic.train.images[:8]
    batches = [(images, torch.full((8,), 9)), (images, torch.full((8,), 10))]
    for use in (trainer.evaluate, lambda data: trainer.fit(data, max_epochs=1, progress=False)):
        with pytest.raises(InputError, match="batch 2: label 10 at row 0, and the network tells 10 classes apart"):
            use(batches)
    assert torch.ones(2, device=CUDA).sum() == 2


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-9), ("float32", 1e-2)])  # TF32 has 10 bits
def test_a_run_of_the_gpu_loads_on_a_cpu_with_close_logits(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, precision: str, tolerance: float
) -> None:
    trainer = make_trainer(device="cuda", precision=precision)
    trainer.fit(synthetic.train, max_epochs=2, checkpointer=Checkpointer(tmp_path), progress=False)
    classifier = Classifier.load(tmp_path, device="cpu")
    logits = []
    for scorer in (trainer, classifier):
        assert isinstance(scorer, Trainer | Classifier)
        preprocess = trainer.transforms.preprocess
        images = synthetic.test.images.to(scorer.device)
        with torch.no_grad(), evaluation_mode(scorer.model):
            logits.append(predict_logits(scorer.model, images, preprocess=preprocess, precision=scorer.precision).cpu())
    torch.testing.assert_close(*logits, rtol=0, atol=tolerance * float(logits[1].abs().max()))
    assert next(classifier.model.parameters()).device.type == "cpu"
