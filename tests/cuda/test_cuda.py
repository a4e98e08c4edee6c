"""Training and evaluation on a GPU. Without one, the tests are skipped."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cifarnet import Checkpointer, Classifier, DatasetSplits, Trainer, Transforms, build_transforms, make_synthetic
from cifarnet.errors import DataError, DeviceMemoryError, SettingError
from cifarnet.inference import predict_logits
from cifarnet.models._modules import evaluation_mode
from cifarnet.randomness import permutation, scope
from cifarnet.recipes import build_trainer, get_recipe
from runs import assert_equal_runs, fit, metrics_of, read_state

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")
MakeTrainer = Callable[..., Trainer]


def test_order_and_augmentation_equal_those_of_the_cpu(synthetic: DatasetSplits, small_transforms: Transforms) -> None:
    train = synthetic.train
    assert torch.equal(permutation(3, 5, train.ids), permutation(3, 5, train.ids.to(CUDA)).cpu())
    with scope(3, 5, train.ids):
        on_cpu = small_transforms.augment(train.images)
    with scope(3, 5, train.ids.to(CUDA)):
        on_cuda = small_transforms.augment(train.images.to(CUDA)).cpu()
    difference = (on_cpu.int() - on_cuda.int()).abs()
    assert int(difference.max()) <= 1  # jitter rounds a float32 product down; crop, flip and cutout are exact
    assert float((difference > 0).float().mean()) < 1e-3


@pytest.mark.parametrize("backend", ["eager", "cuda-graph"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("stop", [1, 2])
def test_resume_on_a_gpu_is_bit_identical(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, backend: str, precision: str, stop: int
) -> None:
    def train(max_epochs: int, directory: str) -> Trainer:
        settings: dict[str, Any] = {"device": "cuda", "backend": backend, "precision": precision, "ema_decay": 0.9}
        trainer = make_trainer(**settings, deterministic=True)
        return fit(trainer, synthetic.train, None, tmp_path / directory, max_epochs=max_epochs, batch_size=8)

    whole = train(4, "whole")
    train(stop, "resumed")
    torch.rand(9, device=CUDA)
    assert metrics_of(train(4, "resumed")) == metrics_of(whole)
    assert_equal_runs(tmp_path / "whole", tmp_path / "resumed")


def test_deterministic_runs_need_the_workspace_of_cublas(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    with pytest.raises(SettingError, match="needs CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment"):
        make_trainer(device="cuda", deterministic=True)


def test_training_leaves_the_callers_generator_unchanged(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    before = torch.cuda.get_rng_state()
    for _ in make_trainer(device="cuda").epochs(synthetic.train, max_epochs=2):
        assert torch.equal(before, torch.cuda.get_rng_state())


def test_a_cpu_resumes_a_run_of_a_gpu_with_a_warning(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    fit(make_trainer(device="cuda"), synthetic.train, None, tmp_path)
    with pytest.warns(UserWarning, match="device cuda in the run, cpu now"):
        fit(make_trainer(device="cpu"), synthetic.train, None, tmp_path, max_epochs=2)


@pytest.mark.parametrize("is_iterable", [False, True])
@pytest.mark.parametrize("backend", ["eager", "cuda-graph"])
def test_no_step_synchronizes_with_the_gpu(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, is_iterable: bool, backend: str
) -> None:
    transforms = build_transforms(flip="alternating", cutout=4, size=16)
    trainer = make_trainer(device="cuda", transforms=transforms, backend=backend)
    images, labels = synthetic.train.images.to(CUDA), synthetic.train.labels.to(CUDA)
    batches = list(zip(torch.split(images, 64), torch.split(labels, 64), strict=True))
    complete_step = trainer.state.complete_step

    def complete_and_watch(train_s: float) -> None:
        """Kernels are loaded and graphs captured in the first two epochs; the end of an epoch synchronizes."""
        complete_step(train_s)
        set_sync_debug_mode("error" if trainer.state.epoch == 2 and trainer.state.step < 5 else "default")

    trainer.state.complete_step = complete_and_watch  # type: ignore[method-assign]
    try:
        list(trainer.epochs(batches if is_iterable else synthetic.train, max_epochs=3))
    finally:
        set_sync_debug_mode("default")


def set_sync_debug_mode(mode: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype feature")
        torch.cuda.set_sync_debug_mode(mode)


class Greedy(nn.Module):
    """A loss that takes a hundredth of the GPU's memory for each image: 16 of them fit, 256 do not."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        _, total = torch.cuda.mem_get_info()
        torch.empty(len(labels) * (total // 100), dtype=torch.uint8, device=CUDA)
        return nn.functional.cross_entropy(logits, labels)


def test_a_batch_that_does_not_fit_gets_advice(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    trainer = make_trainer(device="cuda", loss_fn=Greedy())
    with pytest.raises(DeviceMemoryError, match=r"^batch_size=256 does not fit .* of cuda. Use 128"):
        trainer.fit(synthetic.train, max_epochs=1, batch_size=256, progress_bar=False)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert trainer.global_step == 0
    history = trainer.fit(synthetic.train, max_epochs=1, batch_size=16, progress_bar=False)
    assert history[-1].global_step == 19


def test_an_evaluation_that_does_not_fit_gets_advice(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    trainer = make_trainer(device="cuda", loss_fn=Greedy())
    message = r"^A batch of 300 images does not fit .* of cuda.* Evaluate DataLoader\(images, batch_size=150\)"
    with pytest.raises(DeviceMemoryError, match=message):
        trainer.fit(synthetic.test, synthetic.train, max_epochs=1, batch_size=16, progress_bar=False)
    _, total = torch.cuda.mem_get_info()
    assert torch.cuda.memory_reserved() < total // 20  # what training had taken, 16 hundredths, was given back
    assert trainer.evaluate(DataLoader(synthetic.train, batch_size=16)).num_images == 300


def test_the_host_refuses_labels_without_a_logit(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    """In a kernel, an index out of bounds would make every later call of CUDA fail."""
    trainer = make_trainer(device="cuda")
    images = synthetic.train.images[:8]
    batches = [(images, torch.full((8,), 9)), (images, torch.full((8,), 10))]
    for use in (trainer.evaluate, lambda data: trainer.fit(data, max_epochs=1, progress_bar=False)):
        with pytest.raises(DataError, match=r"^Batch 2 has label 10 at row 0\. Labels must be in \[0, 10\)"):
            use(batches)
    assert torch.ones(2, device=CUDA).sum() == 2


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-9), ("float32", 1e-2)])  # TF32 has 10 bits
def test_a_cpu_predicts_close_logits_for_a_run_of_a_gpu(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, precision: str, tolerance: float
) -> None:
    trainer = make_trainer(device="cuda", precision=precision)
    trainer.fit(synthetic.train, max_epochs=2, checkpointer=Checkpointer(tmp_path), progress_bar=False)
    classifier = Classifier.load(tmp_path, device="cpu")
    logits = []
    for model, images in ((trainer.model, synthetic.test.images.to(CUDA)), (classifier.model, synthetic.test.images)):
        with torch.no_grad(), evaluation_mode(model):
            predicted = predict_logits(model, images, preprocess=classifier.preprocess, precision=classifier.precision)
        logits.append(predicted.cpu())
    torch.testing.assert_close(*logits, rtol=0, atol=tolerance * float(logits[1].abs().max()))
    assert next(classifier.model.parameters()).device.type == "cpu"


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets an entry per replay of a graph."""
    seen: list[int] = []
    replay = torch.cuda.CUDAGraph.replay

    def replay_and_count(graph: torch.cuda.CUDAGraph) -> None:
        seen.append(1)
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", replay_and_count)
    return seen


def test_a_captured_run_equals_an_eager_run(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, replays: list[int]
) -> None:
    """In float64 and without dropout; batches of 8 are two whole graphs, one of 5 steps, and a tail."""
    trained = []
    for backend in ("eager", "cuda-graph"):
        trainer = make_trainer(device="cuda", backend=backend, precision="float64", dropout=0.0, deterministic=True)
        list(trainer.epochs(synthetic.train, max_epochs=3, batch_size=8))
        trained.append(trainer)
    eager, captured = trained
    assert len(replays) > 3 * 38 - 4
    for one, other in zip(eager.model.state_dict().values(), captured.model.state_dict().values(), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-7)  # learning rates are float32 there
    assert [r.train_loss for r in eager.history] == pytest.approx([r.train_loss for r in captured.history], abs=1e-6)


def test_each_step_of_a_graph_draws_another_dropout_mask(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, replays: list[int]
) -> None:
    seen = torch.zeros(5, 8, 32, device=CUDA)
    trainer = make_trainer(device="cuda", backend="cuda-graph", dropout=0.5)
    count = torch.zeros((), dtype=torch.int64, device=CUDA)

    def note(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if module.training:
            seen.index_copy_(0, (count % 5)[None], (output == 0).float()[None, :8])
            count.add_(1)

    trainer.model.get_submodule("dropout").register_forward_hook(note)
    list(trainer.epochs(synthetic.train.subset(torch.arange(80)), max_epochs=4, batch_size=8))
    assert len(replays) > 30
    assert int(count) == 40
    assert len({tuple(mask.flatten().tolist()) for mask in seen}) == 5


@pytest.mark.parametrize("name", ["reference", "cifarcnn_tuned", "fast94", "resnet18"])
def test_each_recipe_is_captured_with_its_optimizer(name: str) -> None:
    data = make_synthetic(num_train=512, num_test=64).train
    losses = []
    for cuda_graph in (False, True):
        recipe = replace(get_recipe(name), batch_size=64)
        trainer = build_trainer(recipe, data, device="cuda", precision="float32", cuda_graph=cuda_graph)
        assert trainer.uses_cuda_graph == cuda_graph
        losses.append([r.train_loss for r in trainer.epochs(data, max_epochs=2, batch_size=64)])
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_checkpoints_are_written_while_steps_are_captured(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, replays: list[int]
) -> None:
    trainer = make_trainer(device="cuda", backend="cuda-graph")
    fit(trainer, synthetic.train, max_epochs=4, batch_size=8, checkpointer=Checkpointer(tmp_path, save_every_s=0))
    assert len(replays) > 30
    state = read_state(tmp_path)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor.cpu(), state["model"][name])
