from __future__ import annotations

import pytest
from torch import nn

from cifarnet import CifarCNN
from cifarnet.errors import SettingError
from cifarnet.optim import param_groups


def test_every_trained_parameter_is_in_one_group() -> None:
    model = CifarCNN(image_size=8, widths=(2, 4), hidden=4)
    model.conv1.weight.requires_grad_(False)
    groups = param_groups(model, filters={"lr": 1.0}, head={"lr": 2.0}, others={"lr": 3.0})
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [[names[parameter] for parameter in group["params"]] for group in groups]
    assert found[:2] == [["conv2.weight", "fc1.weight"], ["fc2.weight"]]
    assert sorted(name for group in found for name in group) == sorted(set(names.values()) - {"conv1.weight"})
    assert [group["lr"] for group in groups] == [1.0, 2.0, 3.0]


def test_a_group_without_parameters_is_left_out() -> None:
    groups = param_groups(nn.Linear(2, 3, bias=False), filters={"lr": 1.0}, head={"lr": 2.0}, others={"lr": 3.0})
    assert [group["lr"] for group in groups] == [2.0]


def test_a_frozen_network_is_refused() -> None:
    with pytest.raises(SettingError, match="nothing to optimize"):
        param_groups(nn.Linear(2, 2).requires_grad_(False), filters={}, head={}, others={})
