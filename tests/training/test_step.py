"""One training step: its images, its gradient and its update, eager and captured."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifarnet import CifarCNN, DatasetSplits, Trainer, Transforms, build_transforms, make_synthetic
from cifarnet.errors import SettingError
from cifarnet.optim import ExponentialMovingAverage, one_cycle
from cifarnet.optim.schedules import tabulate
from cifarnet.randomness import permutation, scope
from runs import fit, weights_of

MakeTrainer = Callable[..., Trainer]


def network(precision: torch.dtype = torch.float64, **settings: Any) -> CifarCNN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CifarCNN(image_size=16, widths=(8, 16), hidden=32, dropout=0.0, **settings)
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
    settings: dict[str, Any] = {"lr_schedule": one_cycle(), "max_grad_norm": 0.5, "ema_decay": 0.9}
    settings |= {"device": "cpu", "precision": "float64"}
    trainer = Trainer(model, make(model), transforms=small_transforms, **settings)
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
        model = network(batch_norm=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        settings: dict[str, Any] = {"device": "cpu", "precision": "float64", "accumulate_grad_batches": parts}
        trainer = Trainer(model, optimizer, transforms=build_transforms(size=16), **settings)
        trainer.cuda_graph = backend == "cuda-graph"
        [record, _] = trainer.epochs(synthetic.train, max_epochs=2)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        totals.append((record.train_loss, record.train_accuracy))
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=0, atol=1e-12)
    assert totals[1] == pytest.approx(totals[0], abs=1e-9)
    assert totals[2] == pytest.approx(totals[0], abs=1e-9)


def test_a_mixed_step_is_the_textbook_step(small_transforms: Transforms) -> None:
    """Half of each image and half of its neighbour, in float64: the gradient of the mean of both losses."""
    ours, plain = network(), network()
    images, labels = torch.randn(6, 3, 16, 16, dtype=torch.float64), torch.randint(10, (6,))

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        shares = nn.functional.one_hot(labels, 10).float()
        return (images + images.roll(1, 0)) / 2, 0.7 * shares + 0.3 * shares.roll(1, 0)

    optimizer, settings = torch.optim.SGD(ours.parameters(), lr=0.1), {"device": "cpu", "precision": "float64"}
    trainer = Trainer(ours, optimizer, transforms=small_transforms, batch_transform=mix, **settings)  # type: ignore[arg-type]
    [record] = trainer.epochs([(images, labels)], max_epochs=1)
    textbook = torch.optim.SGD(plain.parameters(), lr=0.1)
    logits = plain((images + images.roll(1, 0)) / 2)
    cross_entropy = nn.functional.cross_entropy
    loss = 0.7 * cross_entropy(logits, labels) + 0.3 * cross_entropy(logits, labels.roll(1, 0))
    loss.backward()  # type: ignore[no-untyped-call]
    textbook.step()
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)  # mix gave float32 shares
    assert record.train_loss == pytest.approx(loss.item(), rel=1e-6)
    assert record.train_accuracy == float((logits.argmax(dim=1) == labels).double().mean())  # 0.7 is the larger share


def test_mixed_labels_that_are_not_soft_are_refused(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    trainer = make_trainer(batch_transform=lambda images, labels: (images, labels))
    with pytest.raises(SettingError, match=r"returned labels of shape \(64,\).*It must return soft labels"):
        fit(trainer, synthetic.train)


def gradient(precision: str, *, wrong_label: bool = False) -> Tensor:
    """Return the gradient of one batch."""
    images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(64) % 10
    labels[0] += int(wrong_label)
    model = network(torch.float32)
    optimizer, transforms = torch.optim.SGD(model.parameters(), lr=0.0), build_transforms(flip="none", size=16)
    fit(Trainer(model, optimizer, transforms=transforms, device="cpu", precision=precision), [(images, labels)])
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 5e-3), ("bf16", 0.1)])
def test_the_gradient_of_one_step_is_that_of_float64(precision: str, tolerance: float) -> None:
    """Relative to its norm. A pixel that a pooling chooses differently is 0.001; 0.07 was measured in bf16."""
    exact = gradient("float64")
    assert float((gradient(precision) - exact).norm() / exact.norm()) < tolerance
    wrong = gradient(precision, wrong_label=True)
    assert float((wrong - exact).norm() / exact.norm()) > tolerance, "one wrong label of 64 is seen"


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.float32), ("float64", torch.float64)])
def test_a_loss_is_computed_in_the_dtype_of_the_weights(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, precision: str, dtype: torch.dtype
) -> None:
    seen: set[torch.dtype] = set()

    class Loss(nn.CrossEntropyLoss):
        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            assert self.weight is not None
            seen.update((logits.dtype, self.weight.dtype))
            return super().forward(logits, labels)

    trainer = make_trainer(precision=precision, loss_fn=Loss(weight=torch.ones(10)))
    fit(trainer, synthetic.train, synthetic.test)
    assert seen == {parameter.dtype for parameter in trainer.model.parameters()} == {dtype}


def test_an_evaluation_has_the_loss_of_all_images(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    """With class weights, the mean over batches of images that are sorted by class is another number."""
    weight = torch.tensor([10.0] + [0.1] * 9)
    data = make_synthetic(num_train=10, num_test=1200, seed=0, size=16).test
    data = data.subset(data.labels.argsort())
    trainer = make_trainer(loss_fn=nn.CrossEntropyLoss(weight=weight), precision="float32")
    [record] = trainer.epochs(synthetic.train, data, max_epochs=1)
    with torch.no_grad():
        logits = trainer.model.eval()(trainer.transforms.preprocess(data.images))
    expected = nn.functional.cross_entropy(logits, data.labels, weight=weight).item()
    assert trainer.evaluate(data).loss == pytest.approx(expected, rel=1e-5)
    assert record.val_loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "kind", [torch.optim.Adam, torch.optim.AdamW, functools.partial(torch.optim.SGD, momentum=0.9)]
)
def test_an_optimizer_without_a_choice_runs_fused(synthetic: DatasetSplits, kind: Any) -> None:
    """Moments from before the Trainer are moved to channels-last with their weights, which fused Adam relies on."""
    results = []
    for chosen in ({}, {"fused": True}, {"foreach": False}):
        model = network(torch.float32)
        optimizer = kind(model.parameters(), lr=1e-3, **chosen)
        before = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
        images = torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        nn.functional.cross_entropy(model(images), torch.arange(32) % 10).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        trainer = Trainer(model, optimizer, transforms=build_transforms(size=16), device="cpu", precision="float64")
        assert {key: optimizer.param_groups[0][key] for key in before} == before, "the constructor writes nothing"
        fit(trainer, synthetic.train)
        assert bool(optimizer.param_groups[0]["fused"]) == ("foreach" not in chosen)
        results.append(weights_of(model))
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=0, atol=1e-6)
