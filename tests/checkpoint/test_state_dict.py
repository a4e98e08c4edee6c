"""Loading into a network and an optimizer: all or nothing, and training continues with equal bits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.swa_utils import AveragedModel

from cifarnet.checkpoint import Checkpointer
from cifarnet.checkpoint.state_dict import follow_weights, load_optimizer, load_weights, unwrapped_state_dict
from cifarnet.errors import CheckpointMismatchError
from runs import equal, weights_of


def network() -> nn.Sequential:
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), pool, nn.Flatten(), nn.Linear(8, 10))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, *, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        images = torch.randn(4, 3, 8, 8, generator=generator).to(memory_format=torch.channels_last)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), torch.arange(4))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def through_a_file(state: dict[str, Any], directory: Path) -> dict[str, Any]:
    Checkpointer(directory).save_state(state)
    read = Checkpointer(directory).read_last()
    assert read is not None
    return read


# Weights


def test_weights_are_loaded_into_the_same_parameters() -> None:
    source, model = network(), network().to(memory_format=torch.channels_last)
    before = {name: (p, p.data_ptr(), p.stride(), True) for name, p in model.named_parameters()}
    load_weights(model, source.state_dict(), source="best.safetensors")
    assert equal(weights_of(model), weights_of(source))
    assert {name: (p, p.data_ptr(), p.stride(), p.requires_grad) for name, p in model.named_parameters()} == before


@pytest.mark.parametrize(
    ("names", "bare"),
    [
        (["_orig_mod.weight", "_orig_mod.bias"], ["weight", "bias"]),
        (["_orig_mod.n_averaged", "_orig_mod.module._orig_mod.weight"], ["weight"]),
        (["weight", "module.weight", "head._orig_mod.b"], ["weight", "module.weight", "head.b"]),
    ],
    ids=["compiled", "compiled average of a compiled network", "part called module"],
)
def test_wrappers_change_no_name(names: list[str], bare: list[str]) -> None:
    assert list(unwrapped_state_dict(dict.fromkeys(names, torch.zeros(1)))) == bare


@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel])
def test_weights_are_loaded_into_a_wrapped_network(wrap: Callable[[nn.Module], nn.Module]) -> None:
    source, model = nn.Linear(3, 2), wrap(nn.Linear(3, 2))
    load_weights(model, wrap(source).state_dict(), source="file")
    assert torch.equal(unwrapped_state_dict(model)["weight"], source.weight)


def test_mismatch_names_every_difference_and_the_network() -> None:
    with pytest.raises(CheckpointMismatchError) as caught:
        load_weights(nn.Linear(8, 100), nn.Linear(8, 10).state_dict(), source="a file", built_with="Linear(8, 10)")
    assert str(caught.value) == (
        "a file does not fit the model: weight is 10x8 in the file, 100x8 in the model; bias is 10 in the file, 100 in "
        "the model. The file holds Linear(8, 10). Build the same model"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"0.bias": None}, r"0\.bias is only in the model\. Build the model of the file"),
        ({"extra": torch.zeros(1)}, "extra is only in the file"),
        ({"0.bias": torch.zeros(8).half()}, r"0\.bias is float16 in the file, float32 in the model"),
        (dict.fromkeys(network().state_dict()), "(is only in the model; .*){5}and 4 more"),
    ],
    ids=["missing", "more", "dtype", "none"],
)
def test_any_difference_loads_nothing(changes: dict[str, Tensor | None], reason: str) -> None:
    model = network()
    before = weights_of(model)
    changed = {**network().state_dict(), **changes}
    with pytest.raises(CheckpointMismatchError, match=reason):
        load_weights(model, {name: value for name, value in changed.items() if value is not None}, source="file")
    assert equal(weights_of(model), before)


# Optimizers


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda params: Adam(params, weight_decay=1e-4),
    "adam fused": lambda params: Adam(params, fused=True),
    "adam amsgrad": lambda params: torch.optim.AdamW(params, amsgrad=True),
    "adam tensor lr": lambda params: Adam(params, lr=torch.tensor(1e-3)),
    "sgd": lambda params: SGD(params, lr=0.1, momentum=0.9, nesterov=True),
    "adafactor": lambda params: torch.optim.Adafactor(params),
}


def start(build: Callable[[Any], torch.optim.Optimizer]) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = network().to(memory_format=torch.channels_last)
    return model, build(model.parameters())


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_continues_with_equal_bits(build: Callable[[Any], torch.optim.Optimizer], tmp_path: Path) -> None:
    model, optimizer = start(build)
    train(model, optimizer)
    saved = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path)
    before = copy.deepcopy(saved["optimizer"])
    train(model, optimizer, seed=1)

    resumed, resumed_optimizer = start(build)
    load_weights(resumed, saved["model"], source="file")
    load_optimizer(resumed_optimizer, saved["optimizer"])
    for parameter, entries in resumed_optimizer.state.items():
        assert all(entry.stride() == parameter.stride() for entry in entries.values() if entry.shape == parameter.shape)
    train(resumed, resumed_optimizer, seed=1)
    assert equal(weights_of(resumed), weights_of(model))
    assert str(saved["optimizer"]) == str(before), "training wrote into the state that was loaded"

    control, fresh_optimizer = start(build)
    load_weights(control, saved["model"], source="file")
    train(control, fresh_optimizer, seed=1)
    assert not equal(weights_of(control), weights_of(model))


def test_wide_state_of_narrow_weights_keeps_its_dtype(tmp_path: Path) -> None:
    """torch casts it to the parameter's dtype: 16 of 24 bits would be lost at each resume."""
    weight = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = SGD([weight], lr=0.1, momentum=0.9)
    moment = torch.full((4, 4), 1 / 3)
    optimizer.state[weight]["momentum_buffer"] = moment
    saved = through_a_file(optimizer.state_dict(), tmp_path)
    load_optimizer(optimizer, saved)
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], moment)
    optimizer.load_state_dict(saved)
    assert optimizer.state[weight]["momentum_buffer"].dtype == torch.bfloat16, "the negative control"


def params(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(shape)) for shape in shapes]


def stepped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


a, b = params((2, 3), (4,))
MISMATCHES: dict[str, tuple[torch.optim.Optimizer, str]] = {
    "fewer groups": (Adam([{"params": [a]}, {"params": [b]}]), "2 parameter groups in the file, 1 in the optimizer"),
    "fewer parameters": (Adam([a]), "group 0 has 1 parameters in the file, 2 in the optimizer"),
    "another optimizer": (SGD([a, b]), "group 0 has momentum only in the file"),
    "another shape": (Adam(params((2, 3), (5,))), "exp_avg of parameter 1 is 5 in the file, 4 in the model"),
    "another order": (Adam([("b", b), ("a", a)]), "group 0 has other parameter names, or another order of them"),
}


@pytest.mark.parametrize(("saved", "reason"), MISMATCHES.values(), ids=MISMATCHES)
def test_optimizer_that_does_not_fit_is_refused_untouched(saved: torch.optim.Optimizer, reason: str) -> None:
    optimizer = stepped(Adam(zip("ab", params((2, 3), (4,)), strict=True), lr=0.5))
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(CheckpointMismatchError, match=rf"not fit the optimizer: .*{reason}.*\. Use the optimizer"):
        load_optimizer(optimizer, stepped(saved).state_dict())
    assert str(optimizer.state_dict()) == str(before)
    load_optimizer(optimizer, before)


def test_optimizer_state_follows_moved_weights() -> None:
    [parameter] = params((2, 3))
    optimizer = stepped(Adam([parameter]))
    optimizer.state["shared"] = {"scale": torch.ones(2, 3), "count": 3}  # type: ignore[index]
    parameter.data = parameter.data.double()
    follow_weights(optimizer)
    assert optimizer.state[parameter]["exp_avg"].dtype == torch.float64
    assert optimizer.state["shared"]["count"] == 3  # type: ignore[index]
    assert torch.equal(optimizer.state["shared"]["scale"], torch.ones(2, 3))  # type: ignore[index]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("capturable", [False, True])
def test_state_from_a_file_goes_to_the_device(capturable: bool, tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(2, 3, 4, 4, device="cuda").to(memory_format=torch.channels_last))
    optimizer = stepped(Adam([weight], lr=torch.tensor(0.1, device="cuda"), capturable=capturable))
    load_optimizer(optimizer, through_a_file(optimizer.state_dict(), tmp_path))
    assert optimizer.state[weight]["exp_avg"].is_cuda
    assert optimizer.state[weight]["exp_avg"].stride() == weight.stride()
    assert optimizer.param_groups[0]["lr"].is_cuda
    stepped(optimizer)
