from __future__ import annotations

import pytest
import torch
from torch import nn

from cifarnet import CifarCNN
from cifarnet.errors import SettingError
from cifarnet.optim import ExponentialMovingAverage


def small() -> nn.Module:
    torch.manual_seed(0)
    return CifarCNN(image_size=8, widths=(2, 4), hidden=4).double().to(memory_format=torch.channels_last)


def train_a_step(model: nn.Module) -> None:
    """Change weights, statistics and counters."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(4, 3, 8, 8, dtype=torch.float64)).square().mean().backward()
    optimizer.step()


def test_the_average_is_the_recursion_written_out() -> None:
    """Compare it with sums of weighted snapshots: weights, statistics of batch norm, counters."""
    model = small()
    average = ExponentialMovingAverage(model, decay=0.7)
    assert average.weights["conv2.weight"].is_contiguous(memory_format=torch.channels_last)
    seen = []
    for _ in range(25):
        train_a_step(model)
        average.update()
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    decays = [min(0.7, n / (n + 9)) for n in range(25)]
    assert decays[0] == 0
    assert decays[-1] == 0.7  # both branches are taken
    shares = [1 - decay for decay in decays]
    for n in range(25):
        for later in decays[n + 1 :]:
            shares[n] *= later
    assert sum(shares) == pytest.approx(1)
    for name, tensor in average.weights.items():
        if tensor.is_floating_point():
            expected = sum(share * snapshot[name] for share, snapshot in zip(shares, seen, strict=True))
            torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-13)
        else:
            assert int(tensor) == 25, name
    assert not torch.equal(average.weights["fc1.weight"], seen[-1]["fc1.weight"]), "the control"


def test_an_error_in_the_block_restores_the_weights() -> None:
    model = small()
    average = ExponentialMovingAverage(model, decay=0.9)
    for _ in range(3):
        train_a_step(model)
        average.update()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    averaged = {name: tensor.clone() for name, tensor in average.weights.items()}

    def interrupt() -> None:
        with average.applied():
            assert all(torch.equal(tensor, averaged[name]) for name, tensor in model.state_dict().items())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in average.weights.items())
    assert not torch.equal(before["fc1.weight"], averaged["fc1.weight"]), "the control"


def test_tied_weights_are_averaged_once() -> None:
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    average = ExponentialMovingAverage(model, decay=0.9)
    for value in (1.0, 2.0):
        nn.init.constant_(first.weight, value)
        average.update()
    with average.applied():
        assert second.weight[0, 0].item() == pytest.approx(1.9)
    assert second.weight[0, 0].item() == 2


@pytest.mark.parametrize("decay", [0, 1, -0.1, 1.5, float("nan")])
def test_a_decay_outside_its_range_is_refused(decay: float) -> None:
    with pytest.raises(SettingError, match=r"must be in \(0, 1\), got .*\. 0.999 is usual"):
        ExponentialMovingAverage(nn.Linear(1, 1), decay)
