from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tape
from cifarnet import CifarCNN
from cifarnet.errors import CheckpointMismatchError, SettingError
from cifarnet.optim import Lookahead, Schedule, polynomial

DECAYS: list[float | Schedule] = [0.5, polynomial(power=3, end=0.95**5)]


def small(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    model = CifarCNN(image_size=8, widths=(2, 4), hidden=4).to(dtype)
    return model.to(memory_format=torch.channels_last)


def train_a_step(model: nn.Module, step: int) -> None:
    """Moves weights, statistics and counters in place, by what depends on weights and step alone."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.mul_(0.9).add_(noise.to(tensor.dtype))
            else:
                tensor.add_(1)


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("total_steps", [11, 12])
def test_weights_are_those_of_the_recursion_written_out(decay: float | Schedule, total_steps: int) -> None:
    model, twin = small(), small()
    lookahead = Lookahead(model, total_steps=total_steps, every=3, decay=decay)
    slow = copied(twin)
    for step in range(total_steps):
        train_a_step(model, step)
        lookahead.update()
        train_a_step(twin, step)
        fast, done = twin.state_dict(), step + 1
        if done % 3 == 0 or done == total_steps:
            heavy = decay if isinstance(decay, float) else 0.95**5 * (step / total_steps) ** 3
            heavy = heavy if done % 3 == 0 else 1.0
            for name, tensor in fast.items():
                if tensor.is_floating_point():
                    slow[name] = heavy * slow[name] + (1 - heavy) * tensor
                    tensor.copy_(slow[name])
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, fast[name], rtol=0, atol=1e-13)
    assert all(torch.equal(tensor, lookahead.weights[name]) for name, tensor in model.state_dict().items())
    assert lookahead.num_updates == total_steps


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_recorded_update_reads_its_row_anew(dtype: torch.dtype) -> None:
    """And where the model is not pulled, not a bit of it changes."""
    model, twin = small(dtype), small(dtype)
    plain, captured = (Lookahead(m, total_steps=8, every=3, decay=0.25) for m in (model, twin))
    row = torch.zeros(2, dtype=torch.float64)
    replay = tape.capture(lambda: captured.update(row))
    for step in range(8):
        train_a_step(model, step)
        plain.update()
        train_a_step(twin, step)
        before = copied(twin)
        row.copy_(captured.table[step])
        replay()
        for name, tensor in twin.state_dict().items():
            pulled = step in (2, 5, 7)
            assert torch.equal(tensor, captured.weights[name]) or not pulled
            assert torch.equal(tensor, before[name]) or pulled
            tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 0.05}[dtype]
            torch.testing.assert_close(tensor, model.state_dict()[name], rtol=tolerance, atol=tolerance)


def test_a_saved_state_goes_on_to_the_same_bytes() -> None:
    model = small(torch.float32)
    lookahead = Lookahead(model, total_steps=10, decay=0.3)
    for step in range(7):
        train_a_step(model, step)
        lookahead.update()
    state, weights = lookahead.state_dict(), copied(model)
    state["weights"] = {
        name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state["weights"].items()
    }
    resumed = small(torch.float32)
    other = Lookahead(resumed, total_steps=10, decay=0.3)
    other.load_state_dict(state)
    resumed.load_state_dict(weights)
    assert other.weights["conv2.weight"].is_contiguous(memory_format=torch.channels_last)
    for step in range(7, 10):
        for network, ahead in ((model, lookahead), (resumed, other)):
            train_a_step(network, step)
            ahead.update()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])
    assert not torch.equal(weights["conv2.weight"], model.state_dict()["conv2.weight"]), "the control"


def test_tied_weights_are_taken_once() -> None:
    first, second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    second.weight = first.weight
    nn.init.zeros_(first.weight)
    lookahead = Lookahead(nn.Sequential(first, second), total_steps=1, every=1, decay=0.75)
    nn.init.ones_(first.weight)
    lookahead.update()
    assert second.weight.item() == 0.25


def test_what_cannot_be_meant_is_refused() -> None:
    model = nn.Linear(1, 1)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"decay": 1.5}, r"decay must be in \[0, 1\], got 1.5"),
        ({"decay": -0.5}, r"decay must be in \[0, 1\], got -0.5"),
        ({"decay": float("nan")}, r"decay must be in \[0, 1\], got nan"),
        ({"decay": polynomial(power=1, end=3)}, "got 2.25"),
        ({"every": 0}, "every must be at least 1"),
        ({"total_steps": 0}, "total_steps must be at least 1"),
        ({"every": 5}, "every is 5, and the training has 4 steps: it would end at the weights that it began with"),
    ]
    for settings, message in wrong:
        with pytest.raises(SettingError, match=message):
            Lookahead(model, **{"total_steps": 4, "every": 2, **settings})


def test_more_steps_than_told_are_refused() -> None:
    lookahead = Lookahead(nn.Linear(1, 1), total_steps=1, every=1)
    lookahead.update()
    with pytest.raises(SettingError, match="total_steps=1; tell all steps"):
        lookahead.update()


def test_slow_weights_of_another_network_are_refused() -> None:
    lookahead = Lookahead(nn.Linear(2, 2), total_steps=1, every=1)
    state = Lookahead(nn.Linear(2, 3), total_steps=1, every=1).state_dict()
    with pytest.raises(CheckpointMismatchError, match="other names or shapes"):
        lookahead.load_state_dict(state)
