"""The same claims on a GPU; skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cifarnet import Checkpointer, DatasetSplits, Trainer, Transforms, build_transforms
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


def test_no_step_waits_for_the_gpu(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    trainer = make_trainer(device="cuda", transforms=build_transforms(flip="alternating", cutout=4, size=16))
    list(trainer.epochs(synthetic.train, max_epochs=1))  # kernels are loaded, constants are made
    plan = trainer._make_plan(synthetic.train, None, None, max_epochs=2, batch_size=64)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for event in trainer._run(plan):
            if event == plan.train.num_steps:
                break
    finally:
        torch.cuda.set_sync_debug_mode("default")
