from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import _muon as torchs_muon

from cifarnet import Checkpointer, CifarCNN, DatasetSplits, Trainer, Transforms
from cifarnet.checkpoint.state_dict import load_optimizer
from cifarnet.errors import SettingError
from cifarnet.optim import Muon, linear, param_groups

SHAPES: list[tuple[int, ...]] = [(6, 4), (4, 9), (4, 9), (5, 5)]


def parameters(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def set_grads(params: list[Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in params:
        grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        parameter.grad = torch.empty_like(parameter).copy_(grad)  # in the parameter's memory format


def run(optimizer: torch.optim.Optimizer, params: list[Tensor], steps: range = range(6)) -> list[Tensor]:
    for step in steps:
        set_grads(params, step)
        optimizer.step()
    return [parameter.detach() for parameter in params]


def mixed_groups(params: list[Tensor]) -> list[dict[str, Any]]:
    return [
        {"params": params[:2], "lr": 0.05, "normalize_weights": True, "weight_decay": 0.1},
        {"params": params[2:3], "algorithm": "sgd", "weight_decay": 0.01},
        {"params": params[3:], "algorithm": "adamw", "lr": 0.01},
    ]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_muon_on_matrices_is_torchs_muon(nesterov: bool, weight_decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch computes in bfloat16 only. The patch replaces it by float64, so that every digit counts."""
    settings: dict[str, Any] = {"nesterov": nesterov, "weight_decay": weight_decay}
    ours = parameters(SHAPES)
    run(Muon(ours, lr=0.1, momentum=0.8, ns_steps=4, **settings), ours)
    # Versions of torch differ in which of the two they call.
    monkeypatch.setattr(torchs_muon, "torch", types.SimpleNamespace(**{**vars(torch), "bfloat16": torch.float64}))
    monkeypatch.setattr(Tensor, "bfloat16", lambda matrix: matrix.to(torch.float64, copy=True))
    theirs = parameters(SHAPES)
    run(torch.optim.Muon(theirs, lr=0.1, momentum=0.8, ns_steps=4, **settings), theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("is_faster", [True, False])
def test_products_are_in_bfloat16_if_that_is_faster(is_faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against torch's Muon, which always uses bfloat16."""
    monkeypatch.setattr("cifarnet.optim.muon.is_bf16_faster", lambda device: is_faster)
    start, ours, theirs = (parameters(SHAPES, torch.float32) for _ in range(3))
    run(Muon(ours, lr=0.1), ours)
    run(torch.optim.Muon(theirs, lr=0.1, weight_decay=0), theirs)
    moved, torchs = (
        torch.cat([(p - s).flatten() for p, s in zip(params, start, strict=True)]) for params in (ours, theirs)
    )
    assert (moved - torchs).norm() / torchs.norm() < 0.02
    exact = parameters(SHAPES)
    run(Muon(exact, lr=0.1), exact)
    rounded = max((p - q).abs().max().item() for p, q in zip(ours, exact, strict=True))
    assert (rounded > 1e-4) == is_faster


@pytest.mark.parametrize("nesterov", [True, False])
def test_filters_take_the_steps_of_the_fast_runs(nesterov: bool) -> None:
    """Heavy-ball momentum, and weights rescaled before each step."""
    (filters,) = params = parameters([(6, 3, 2, 2)])
    weights, velocity = filters.detach().numpy().copy(), np.zeros((6, 3, 2, 2))
    optimizer = Muon(
        params, lr=0.24, momentum=0.6, ns_steps=3, nesterov=nesterov, adjust_lr_fn="none", normalize_weights=True
    )
    for step in range(5):
        set_grads(params, step)
        assert filters.grad is not None
        grad = filters.grad.numpy()
        velocity = 0.6 * velocity + grad
        x = (grad + 0.6 * velocity if nesterov else velocity).reshape(6, 12)
        x = x / np.linalg.norm(x)
        for _ in range(3):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        weights = weights * (np.sqrt(6) / np.linalg.norm(weights)) - 0.24 * x.reshape(weights.shape)
        optimizer.step()
    np.testing.assert_allclose(filters.detach().numpy(), weights, rtol=0, atol=1e-12)


def test_the_memory_format_changes_no_bit() -> None:
    plain, other = parameters([(4, 3, 3, 3)] * 2, torch.float32), parameters([(4, 3, 3, 3)] * 2, torch.float32)
    other = [p.detach().to(memory_format=torch.channels_last).requires_grad_() for p in other]
    optimizers = [Muon(params, lr=0.1) for params in (plain, other)]
    for one, another in zip(run(optimizers[0], plain), run(optimizers[1], other), strict=True):
        assert torch.equal(one, another)
    assert optimizers[1].state[other[0]]["momentum_buffer"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize(
    ("algorithm", "theirs", "settings"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.85, "nesterov": True, "weight_decay": 0.1}),
        ("sgd", torch.optim.SGD, {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}),
        ("adamw", torch.optim.AdamW, {"betas": (0.8, 0.9), "eps": 1e-4, "weight_decay": 0.1}),
    ],
)
def test_other_groups_equal_torchs_optimizers(
    algorithm: str, theirs: Any, settings: dict[str, Any], tensor_lr: bool
) -> None:
    lr = torch.tensor(0.25, dtype=torch.float64) if tensor_lr else 0.25
    shapes: list[tuple[int, ...]] = [(3,), (2, 4)]
    ours, expected = parameters(shapes), parameters(shapes)
    run(Muon([{"params": ours, "algorithm": algorithm, **settings}], lr=lr), ours)
    run(theirs(expected, lr=0.25, foreach=False, **settings), expected)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def make_trainer(transforms: Transforms) -> Trainer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CifarCNN(image_size=16, widths=(4, 8), hidden=8, dropout=0.0)  # drawn per replay in a graph
    groups = param_groups(
        model, filters={"lr": 0.05}, head={"algorithm": "adamw"}, others={"algorithm": "sgd", "lr": 0.1}
    )
    return Trainer(model, Muon(groups, lr=0.01), transforms=transforms, device="cpu")


def test_a_resumed_run_equals_an_uninterrupted_one(
    synthetic: DatasetSplits, small_transforms: Transforms, tmp_path: Path
) -> None:
    uninterrupted = make_trainer(small_transforms)
    uninterrupted.fit(synthetic.train, max_epochs=2, batch_size=64, progress_bar=False)
    first, resumed = make_trainer(small_transforms), make_trainer(small_transforms)
    settings: dict[str, Any] = {"batch_size": 64, "checkpointer": Checkpointer(tmp_path), "progress_bar": False}
    first.fit(synthetic.train, max_epochs=1, **settings)
    resumed.fit(synthetic.train, max_epochs=2, resume=True, **settings)
    for key, tensor in uninterrupted.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[key]), key
    assert not torch.equal(first.model.state_dict()["conv2.weight"], resumed.model.state_dict()["conv2.weight"])


def test_a_network_trains_alike_in_graphs(graphs: None, synthetic: DatasetSplits, small_transforms: Transforms) -> None:
    trained = []
    for cuda_graph in (False, True):
        trainer = make_trainer(small_transforms)
        trainer.cuda_graph, trainer.lr_schedule = cuda_graph, linear(end=0.5)
        list(trainer.epochs(synthetic.train, max_epochs=2))
        assert trainer.uses_cuda_graph == cuda_graph
        trained.append(trainer.model.state_dict())
    start = make_trainer(small_transforms).model.state_dict()
    for key, tensor in trained[0].items():
        torch.testing.assert_close(tensor, trained[1][key], rtol=0, atol=1e-4)  # rates in a graph are float32
    assert (trained[0]["conv2.weight"] - start["conv2.weight"]).norm() > 0.1, "the control"


def test_a_loaded_step_counter_fits_the_fused_kernel() -> None:
    (bias,) = parameters([(3,)])
    optimizer = Muon([{"params": [bias], "algorithm": "adamw"}], lr=0.1)
    run(optimizer, [bias])
    state = optimizer.state_dict()
    state["state"][0] = {**state["state"][0], "step": torch.tensor(6.0, dtype=torch.float64)}
    load_optimizer(optimizer, state)
    assert optimizer.state[bias]["step"].dtype == torch.float32
    assert optimizer.state[bias]["step"] == 6


def test_weights_of_zeros_can_be_normalized() -> None:
    weights = torch.zeros(2, 3, requires_grad=True)
    assert all(p.isfinite().all() for p in run(Muon([weights], lr=0.1, normalize_weights=True), [weights]))
    assert weights.any()


def test_a_step_takes_a_closure_and_skips_unused_parameters() -> None:
    used, unused = parameters([(2, 3), (2, 3)])
    before = unused.detach().clone()
    optimizer = Muon([used, unused], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = used.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    losses = [optimizer.step(closure) or 0.0 for _ in range(3)]
    assert losses == sorted(losses, reverse=True)
    assert losses[2] > 0
    assert torch.equal(unused, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr must be finite and not negative, got -1.0"),
        ({"lr": torch.tensor(float("nan"))}, "lr must be finite and not negative, got nan"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -0.1}, r"weight_decay must be in \[0, inf\), got -0.1; 0 is none"),
        ({"ns_steps": 0}, "ns_steps must be at least 1, got 0"),
        ({"adjust_lr_fn": "orginal"}, 'did you mean "original"'),
    ],
)
def test_a_setting_outside_its_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Muon(parameters([(2, 2)]), **{"lr": 0.1, **settings})


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({}, 'Muon trains filters and matrices of real numbers, got a parameter of 3, torch.float64; .*"sgd"'),
        ({"algorithm": "adam"}, 'algorithm "adam" is unknown; did you mean "adamw"'),
        ({"algorithm": "sgd", "ns_steps": 3}, 'a group with algorithm "sgd" has no ns_steps'),
        ({"algorithm": "sgd", "weigth_decay": 0.1}, 'no weigth_decay; did you mean "weight_decay"'),
    ],
)
def test_a_wrong_group_is_refused(group: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Muon([{"params": parameters([(3,)]), **group}], lr=0.1)


def test_a_group_has_only_the_settings_of_its_algorithm() -> None:
    groups = Muon(mixed_groups(parameters(SHAPES)), lr=0.1, momentum=0.7).param_groups
    common = {"params", "algorithm", "lr", "fused"}
    assert groups[0].keys() - common > {"momentum", "ns_steps"}
    assert groups[1].keys() - common == {"momentum", "nesterov", "weight_decay"}
    assert groups[2].keys() - common == {"betas", "eps", "weight_decay"}
    assert [group["lr"] for group in groups] == [0.05, 0.1, 0.01]
    assert groups[1]["momentum"] == 0.9, "keywords are Muon's"
