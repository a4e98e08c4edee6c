"""Loading into a network and an optimizer: all or nothing, and training continues with equal bits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cifarnet.checkpoint import Checkpointer
from cifarnet.checkpoint.state_dict import follow_weights, load_optimizer, load_weights, unwrapped_state_dict
from cifarnet.errors import CheckpointMismatchError


def network(num_classes: int = 10) -> nn.Sequential:
    head = nn.Linear(8, num_classes)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, num_steps: int, *, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        images = torch.randn(4, 3, 8, 8, generator=generator).to(memory_format=torch.channels_last)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), torch.arange(4))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def through_a_file(state: dict[str, Any], directory: Path) -> dict[str, Any]:
    class Holder:
        def state_dict(self) -> Mapping[str, Any]:
            return state

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    checkpointer = Checkpointer(directory)
    checkpointer.save(Holder())
    read = checkpointer.read_last()
    assert read is not None
    return read


def bits(model: nn.Module) -> list[bytes]:
    return [bytes(t.detach().contiguous().view(-1).view(torch.uint8).tolist()) for t in model.state_dict().values()]


# Weights


def test_loaded_weights_are_equal_and_the_parameters_the_same_objects() -> None:
    source, model = network(), network().to(memory_format=torch.channels_last)
    before = {name: (p, p.data_ptr(), p.stride()) for name, p in model.named_parameters()}
    load_weights(model, source.state_dict(), source="best.safetensors")
    assert bits(model) == bits(source)
    for name, parameter in model.named_parameters():
        assert (parameter, parameter.data_ptr(), parameter.stride()) == before[name]
        assert parameter.requires_grad
    conv = model[0]
    assert isinstance(conv, nn.Conv2d)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "names",
    [
        ["weight", "bias"],
        ["_orig_mod.weight", "_orig_mod.bias"],
        ["n_averaged", "module.weight", "module.bias"],
        ["_orig_mod.n_averaged", "_orig_mod.module._orig_mod.weight", "_orig_mod.module._orig_mod.bias"],
    ],
)
def test_wrappers_change_no_name(names: list[str]) -> None:
    assert list(unwrapped_state_dict(dict.fromkeys(names, torch.zeros(1)))) == ["weight", "bias"]


def test_part_called_module_keeps_its_name() -> None:
    names = ["weight", "module.weight", "head._orig_mod.bias"]
    bare = unwrapped_state_dict(dict.fromkeys(names, torch.zeros(1)))
    assert list(bare) == ["weight", "module.weight", "head.bias"]


@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel, torch.compile])
def test_weights_are_loaded_into_a_wrapped_network(wrap: Callable[[nn.Module], nn.Module]) -> None:
    source, model = nn.Linear(3, 2), wrap(nn.Linear(3, 2))
    load_weights(model, wrap(source).state_dict(), source="file")
    assert torch.equal(unwrapped_state_dict(model)["weight"], source.weight)


def test_mismatch_names_every_difference_and_the_network() -> None:
    with pytest.raises(CheckpointMismatchError) as caught:
        load_weights(
            network(100), network(10).state_dict(), source="best.safetensors", built_with="CifarCNN(num_classes=10)"
        )
    assert str(caught.value) == (
        "best.safetensors does not fit the model: 5.weight is 10x8 in the file, 100x8 in the model; "
        "5.bias is 10 in the file, 100 in the model. The file holds CifarCNN(num_classes=10). Build the same model"
    )


DIFFERENCES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda weights: weights.pop("0.bias"), r"0\.bias is only in the model"),
    "more": (lambda weights: weights.update(extra=torch.zeros(1)), "extra is only in the file"),
    "dtype": (
        lambda weights: weights.update({"0.bias": torch.zeros(8).half()}),
        r"0\.bias is float16 in the file, float32",
    ),
}


@pytest.mark.parametrize(("change", "said"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_any_difference_loads_nothing(change: Callable[[dict[str, Tensor]], Any], said: str) -> None:
    model = network()
    before = bits(model)
    weights = dict(network().state_dict())
    change(weights)
    with pytest.raises(CheckpointMismatchError, match=said):
        load_weights(model, weights, source="file")
    assert bits(model) == before


def test_message_lists_five_differences_and_counts_the_rest() -> None:
    with pytest.raises(CheckpointMismatchError) as caught:
        load_weights(network(), {}, source="file")
    assert str(caught.value).count("is only in the model") == 5
    assert "; and 4 more. Build the model of the file" in str(caught.value)


# Optimizers


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda params: torch.optim.Adam(params, weight_decay=1e-4),
    "adam fused": lambda params: torch.optim.Adam(params, fused=True),
    "adam amsgrad": lambda params: torch.optim.AdamW(params, amsgrad=True),
    "adam tensor lr": lambda params: torch.optim.Adam(params, lr=torch.tensor(1e-3)),
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1),
    "sgd momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True),
    "adafactor": lambda params: torch.optim.Adafactor(params),
}


def start(build: Callable[[Any], torch.optim.Optimizer]) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = network().to(memory_format=torch.channels_last)
    return model, build(model.parameters())


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_goes_on_with_equal_bits(build: Callable[[Any], torch.optim.Optimizer], tmp_path: Path) -> None:
    model, optimizer = start(build)
    train(model, optimizer, 3)
    saved = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path)
    train(model, optimizer, 3, seed=1)

    resumed, resumed_optimizer = start(build)
    load_weights(resumed, saved["model"], source="file")
    load_optimizer(resumed_optimizer, saved["optimizer"])
    before = copy.deepcopy(saved["optimizer"])
    train(resumed, resumed_optimizer, 3, seed=1)
    assert bits(resumed) == bits(model)
    assert str(saved["optimizer"]) == str(before), "training wrote into the state that was loaded"

    without, fresh_optimizer = start(build)  # the negative control
    load_weights(without, saved["model"], source="file")
    train(without, fresh_optimizer, 3, seed=1)
    has_state = any(isinstance(value, Tensor) for entries in before["state"].values() for value in entries.values())
    assert (bits(without) != bits(model)) == has_state


def test_state_takes_the_memory_format_of_the_parameters(tmp_path: Path) -> None:
    model, optimizer = start(OPTIMIZERS["adam"])
    train(model, optimizer, 1)
    saved = through_a_file(optimizer.state_dict(), tmp_path)
    assert saved["state"][0]["exp_avg"].is_contiguous()
    load_optimizer(optimizer, saved)
    for parameter, entries in optimizer.state.items():
        assert entries["exp_avg"].stride() == parameter.stride()
        assert entries["exp_avg_sq"].stride() == parameter.stride()
        assert entries["step"].shape == ()
        assert entries["step"].dtype == torch.float32


def test_wide_state_of_narrow_weights_keeps_its_dtype(tmp_path: Path) -> None:
    """torch casts it to the parameter's dtype: 16 of 24 bits would be lost at each resume."""
    weight = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
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


Adam, SGD = torch.optim.Adam, torch.optim.SGD
MISMATCHES: dict[str, tuple[torch.optim.Optimizer, str]] = {
    "fewer groups": (Adam([{"params": params((2, 3))}, {"params": params((4,))}]), "2 parameter groups in the file"),
    "fewer parameters": (Adam(params((2, 3))), "group 0 has 1 parameters in the file, 2 in the optimizer"),
    "another optimizer": (SGD(params((2, 3), (4,))), "group 0 has momentum only in the file"),
    "another shape": (Adam(params((2, 3), (5,))), "exp_avg of parameter 1 is 5 in the file, 4 in the model"),
    "named": (
        Adam([("a", params((2, 3))[0]), ("b", params((4,))[0])]),
        "group 0 has param_names only in the file",
    ),
}


@pytest.mark.parametrize(("saved", "said"), MISMATCHES.values(), ids=MISMATCHES)
def test_optimizer_that_does_not_fit_is_refused_untouched(saved: torch.optim.Optimizer, said: str) -> None:
    optimizer = stepped(Adam(params((2, 3), (4,)), lr=0.5))
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(CheckpointMismatchError, match=rf"not fit the optimizer: .*{said}.*\. Use the optimizer"):
        load_optimizer(optimizer, stepped(saved).state_dict())
    assert str(optimizer.state_dict()) == str(before)


def test_parameters_in_another_order_are_refused() -> None:
    a, b = params((2, 3), (2, 3))
    saved = stepped(Adam([("a", a), ("b", b)])).state_dict()
    load_optimizer(Adam([("a", a), ("b", b)]), saved)
    with pytest.raises(CheckpointMismatchError, match="has other parameter names, or another order"):
        load_optimizer(Adam([("b", b), ("a", a)]), saved)


def test_optimizer_state_follows_moved_weights() -> None:
    optimizer = stepped(Adam(params((2, 3))))
    optimizer.state["shared"] = {"scale": torch.ones(2, 3), "count": 3}  # type: ignore[index]
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.data = parameter.data.double()
    follow_weights(optimizer)
    [parameter] = optimizer.param_groups[0]["params"]
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
