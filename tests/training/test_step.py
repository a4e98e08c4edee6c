"""A training step computes what the textbook computes, eagerly and as a graph that `tape` replays on a CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import tape
from cifarnet import CifarCNN, DatasetSplits, Trainer, Transforms, build_transforms
from cifarnet._types import Images, Logits
from cifarnet.optim import ExponentialMovingAverage, one_cycle, tabulate
from cifarnet.randomness import permutation, scope
from cifarnet.training import cuda_graph
from cifarnet.training.cuda_graph import GraphedUpdate, can_be_captured, windows
from cifarnet.training.run_data import open_run_data

MakeTrainer = Callable[..., Trainer]


def network(precision: torch.dtype = torch.float64) -> CifarCNN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CifarCNN(image_size=16, widths=(8, 16), hidden=32, dropout=0.0)
    return model.to(precision)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 1e-3}, {"params": plain, "lr": 0.05}]
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True)


def textbook(data: DatasetSplits, transforms: Transforms, make: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """Train for 20 steps by the loop of every tutorial, except for order and augmentation."""
    model = network().train()
    optimizer, average = make(model), ExponentialMovingAverage(model, 0.9)
    base = [group["lr"] for group in optimizer.param_groups]
    rates = tabulate(one_cycle(), 20)
    for step in range(20):
        epoch, place = divmod(step, 5)
        index = permutation(0, epoch, data.train.ids)[64 * place : 64 * (place + 1)]
        with scope(0, epoch, data.train.ids[index]):
            images = transforms.train(data.train.images[index]).double()
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * float(rates[step])
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), data.train.labels[index])
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        average.update()
    return model, average.weights


@pytest.mark.parametrize("make", [adam, sgd])
def test_weights_equal_those_of_a_textbook_loop(
    backend: str, synthetic: DatasetSplits, small_transforms: Transforms, make: Any
) -> None:
    expected, average = textbook(synthetic, small_transforms, make)
    model = network()
    trainer = Trainer(
        model,
        make(model),
        transforms=small_transforms,
        lr_schedule=one_cycle(),
        max_grad_norm=0.5,
        ema_decay=0.9,
        device="cpu",
        precision="float64",
    )
    trainer.cuda_graph = backend == "cuda-graph"
    list(trainer.epochs(synthetic.train, max_epochs=4))
    assert trainer.uses_cuda_graph == (backend == "cuda-graph")
    weights = trainer.state_dict()["model"]
    tolerance = 1e-9 if backend == "eager" else 2e-7  # graphs read float32 learning rates
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=tolerance)
    assert trainer.ema is not None
    for name, tensor in average.items():
        torch.testing.assert_close(trainer.ema.weights[name], tensor, rtol=0, atol=tolerance)


def test_accumulated_gradients_are_those_of_the_whole_batch(backend: str, synthetic: DatasetSplits) -> None:
    """Parts of 22, 21 and 21 images; a network without batch norm, which would normalise each part."""
    weights, totals = [], []
    for parts in (1, 3, 64):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = CifarCNN(image_size=16, widths=(8, 16), hidden=32, dropout=0.0, batch_norm=False)
        trainer = Trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            transforms=build_transforms(size=16),
            accumulate_grad_batches=parts,
            device="cpu",
            precision="float64",
        )
        trainer.cuda_graph = backend == "cuda-graph"
        [record, _] = trainer.epochs(synthetic.train, max_epochs=2)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        totals.append((record.train_loss, record.train_accuracy))
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=0, atol=1e-12)
    assert totals[1] == pytest.approx(totals[0], abs=1e-9)
    assert totals[2] == pytest.approx(totals[0], abs=1e-9)


class Recorder(nn.Module):
    """A small network that keeps the images it is trained on, by operations that can be captured."""

    def __init__(self, num_images: int) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(num_images, 3, 16, 16))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.fc = nn.Linear(3, 10)

    def forward(self, images: Images) -> Logits:
        if self.training:
            self.get_buffer("seen").index_copy_(0, self.get_buffer("count") + torch.arange(len(images)), images)
            self.get_buffer("count").add_(len(images))
        logits: Logits = self.fc(images.mean(dim=(2, 3)))
        return logits


def test_a_network_sees_the_same_images_byte_for_byte(
    backend: str, synthetic: DatasetSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs cropped, flipped and cut out; a graph gets them in windows of two batches."""
    monkeypatch.setattr(cuda_graph, "WINDOW_IMAGES", 128)
    transforms, data = build_transforms(crop_padding=2, cutout=4, size=16), synthetic.train
    model = Recorder(2 * len(data))
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), transforms=transforms, device="cpu", seed=7)
    trainer.cuda_graph = backend == "cuda-graph"
    list(trainer.epochs(data, max_epochs=2))
    assert int(model.get_buffer("count")) == 600
    expected = []
    for epoch in range(2):
        order = permutation(7, epoch, data.ids)
        with scope(7, epoch, data.ids[order]):
            expected.append(transforms.train(data.images[order]))
    assert torch.equal(model.get_buffer("seen"), torch.cat(expected))
    first, second = (images[permutation(7, epoch, data.ids).argsort()] for epoch, images in enumerate(expected))
    changed = (first != second).flatten(1).any(dim=1)
    assert changed.float().mean() > 0.9, "each epoch draws anew"


def test_windows_give_what_the_loader_and_the_transforms_give(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()
    data = open_run_data(trainer, synthetic.train, None, None, max_epochs=1, batch_size=64)
    monkeypatch.setattr(cuda_graph, "WINDOW_IMAGES", 150)
    for step in (0, 3, 5):
        trainer.state.step = step
        expected = list(data.train.epoch(0, step))
        found = list(windows(trainer, data.train))
        assert len(found) == len(expected) == 5 - step
        for one, other in zip(found, expected, strict=True):
            with scope(0, 0, other.ids):
                assert torch.equal(one.images, trainer.transforms.train(other.images))
            assert torch.equal(one.labels, other.labels)


class TestGraphs:
    """Graphs are recorded and replayed on the CPU, without a fall-back."""

    @pytest.fixture
    def captures(self, monkeypatch: pytest.MonkeyPatch) -> list[object]:
        """The functions that were captured."""
        made: list[object] = []

        def capture(function: Callable[[], None]) -> Callable[[], None]:
            made.append(function)
            return tape.capture(function)

        monkeypatch.setattr("cifarnet.training.trainer.can_be_captured", lambda trainer: True)
        monkeypatch.setattr("cifarnet.training.loop.GraphedUpdate", lambda trainer: GraphedUpdate(trainer, capture))
        return made

    def test_a_step_is_captured_once_per_shape(
        self, captures: list[object], make_trainer: MakeTrainer, synthetic: DatasetSplits
    ) -> None:
        trainer = make_trainer(backend="cuda-graph")
        list(trainer.epochs(synthetic.train, max_epochs=4))
        assert len(captures) == 2  # whole batches, and the last one of an epoch

    def test_a_second_call_continues_without_a_warning(
        self, captures: list[object], make_trainer: MakeTrainer, synthetic: DatasetSplits
    ) -> None:
        trainer, whole = make_trainer(backend="cuda-graph"), make_trainer(backend="cuda-graph")
        for max_epochs in (1, 3):
            trainer.fit(synthetic.train, max_epochs=max_epochs, progress_bar=False)
        whole.fit(synthetic.train, max_epochs=3, progress_bar=False)
        assert trainer.resume_differences == []
        assert [r.train_loss for r in trainer.history] == [r.train_loss for r in whole.history]

    def test_what_changes_between_epochs_changes_in_graphs(
        self, captures: list[object], make_trainer: MakeTrainer, synthetic: DatasetSplits
    ) -> None:
        def train(backend: str) -> list[float]:
            trainer = make_trainer(backend=backend, precision="float64", dropout=0.0)
            losses = []
            for record in trainer.epochs(synthetic.train, max_epochs=6):
                losses.append(record.train_loss)
                if record.epoch == 2:
                    trainer.optimizer.param_groups[0]["weight_decay"] = 0.1
                    trainer.model.get_parameter("conv1.weight").requires_grad_(False)
                if record.epoch == 4:
                    trainer.optimizer.param_groups[0]["lr"] = 1e-2
            return losses

        assert train("cuda-graph") == pytest.approx(train("eager"), abs=1e-6)
        assert len(captures) > 2

    def test_a_loss_or_a_group_that_changes_between_epochs_changes_in_graphs(
        self, captures: list[object], make_trainer: MakeTrainer, synthetic: DatasetSplits
    ) -> None:
        def train(backend: str) -> list[float]:
            donor = make_trainer(dropout=0.0)
            head, body = (donor.model.get_parameter(name) for name in ("fc2.weight", "conv1.weight"))
            loss = torch.nn.CrossEntropyLoss()
            trainer = Trainer(
                donor.model,
                torch.optim.Adam([head], lr=0.01),
                transforms=donor.transforms,
                loss_fn=loss,
                max_grad_norm=10.0,
                device="cpu",
                precision="float64",
            )
            trainer.cuda_graph = backend == "cuda-graph"
            losses = []
            for record in trainer.epochs(synthetic.train, max_epochs=10):
                losses.append(record.train_loss)
                if record.epoch in (1, 3):  # the small last batch was trained eagerly, and is captured
                    loss.label_smoothing = record.epoch / 10
                if record.epoch == 5:
                    trainer.optimizer.add_param_group({"params": [body], "lr": 0.001})
                if record.epoch == 7:
                    trainer.max_grad_norm = 1e-3
            return losses

        assert train("cuda-graph") == pytest.approx(train("eager"), abs=1e-6)

    def test_a_state_that_is_loaded_in_the_body_is_used_by_graphs(
        self, captures: list[object], make_trainer: MakeTrainer, synthetic: DatasetSplits
    ) -> None:
        def train(backend: str) -> list[float]:
            trainer = make_trainer(backend=backend, precision="float64", dropout=0.0)
            losses, saved = [], None
            for record in trainer.epochs(synthetic.train, max_epochs=6):
                losses.append(record.train_loss)
                if saved is None and record.epoch == 3:
                    saved = copy.deepcopy(trainer.state_dict())
                elif saved is not None and len(losses) == 4:  # the epoch that was just trained is trained again
                    trainer.load_state_dict(saved)
            return losses

        assert train("cuda-graph") == pytest.approx(train("eager"), abs=1e-6)

    def test_batches_of_an_iterable_are_captured_too(
        self, captures: list[object], make_trainer: MakeTrainer, synthetic: DatasetSplits
    ) -> None:
        losses = []
        for backend in ("eager", "cuda-graph"):
            loader = DataLoader(synthetic.train, batch_size=64, shuffle=True)
            trainer = make_trainer(
                backend=backend, precision="float64", dropout=0.0, batch_transform=v2.MixUp(num_classes=10)
            )
            losses.append([record.train_loss for record in trainer.epochs(loader, max_epochs=3)])
        assert losses[1] == pytest.approx(losses[0], abs=1e-6)
        assert captures


def test_only_known_steps_are_captured(make_trainer: MakeTrainer) -> None:
    """A loss, a network or an optimizer of the user may read a value on the host."""
    trainer = make_trainer()
    assert not can_be_captured(trainer), "on a CPU"
    trainer.device = torch.device("cuda")
    assert can_be_captured(trainer)
    assert trainer.uses_cuda_graph is False, "the fixture has switched it off"
    trainer.loss_fn = lambda logits, labels: logits.sum()
    assert not can_be_captured(trainer)
    trainer = make_trainer()
    trainer.device, trainer.optimizer = torch.device("cuda"), torch.optim.LBFGS(trainer.model.parameters())
    assert not can_be_captured(trainer)
    trainer = make_trainer()
    trainer.device, trainer.model = torch.device("cuda"), nn.Linear(2, 2)
    assert not can_be_captured(trainer)


#: Shares of a gradient's norm. In float32, sums are ordered differently, and a pixel that a pooling chooses differently
#: is 0.001; bf16 has 8 bits: 0.07 to float64 was measured.
RTOL = {"float32": 5e-3, "bf16": 0.1}


def gradient(precision: str, *, wrong_label: bool = False) -> Tensor:
    """Return the gradient of one batch."""
    images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(64) % 10
    labels[0] += int(wrong_label)
    model = network(torch.float32)
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        transforms=build_transforms(crop_padding=0, flip="none", size=16),
        device="cpu",
        precision=precision,
    )
    trainer.fit([(images, labels)], max_epochs=1, progress_bar=False)
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("precision", RTOL)
def test_the_gradient_of_one_step_is_that_of_float64(precision: str) -> None:
    exact = gradient("float64")
    assert float((gradient(precision) - exact).norm() / exact.norm()) < RTOL[precision]
    wrong = gradient(precision, wrong_label=True)
    assert float((wrong - exact).norm() / exact.norm()) > RTOL[precision], "one wrong label of 64 is seen"
