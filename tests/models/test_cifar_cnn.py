from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cifarnet import CifarCNN
from cifarnet.models import build_model, count_flops
from cifarnet.models._modules import flatten
from cifarnet.models.registry import describe_model


def test_the_order_is_conv_relu_norm_then_conv_relu_pool_norm() -> None:
    torch.manual_seed(0)
    model = CifarCNN().eval()
    # With these statistics, a changed order of layers changes the logits.
    for norm in (model.bn1, model.bn2):
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    reference = nn.Sequential(
        model.conv1, nn.ReLU(), model.bn1,
        model.conv2, nn.ReLU(), nn.MaxPool2d(2), model.bn2,
        nn.Flatten(), model.fc1, nn.ReLU(), nn.Dropout(0.5), model.fc2,
    ).eval()  # fmt: skip
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(model(images), reference(images))


@settings(max_examples=15, deadline=None)
@given(
    num_classes=st.integers(2, 100),
    in_channels=st.integers(1, 4),
    image_size=st.integers(6, 40),
    widths=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    hidden=st.integers(1, 16),
    dropout=st.floats(0, 0.9),
    batch_norm=st.booleans(),
)
def test_networks_of_every_size_are_rebuilt(**arguments: Any) -> None:
    model = CifarCNN(**arguments)
    size, channels = arguments["image_size"], arguments["in_channels"]
    assert model(torch.zeros(2, channels, size, size)).shape == (2, arguments["num_classes"])
    description = describe_model(model)
    rebuilt = build_model(description["name"], description["arguments"])
    assert [p.shape for p in rebuilt.parameters()] == [p.shape for p in model.parameters()]
    assert rebuilt.state_dict().keys() == model.state_dict().keys()


def test_a_network_without_batch_norm_has_equal_other_weights() -> None:
    torch.manual_seed(0)
    whole = CifarCNN()
    torch.manual_seed(0)
    model = CifarCNN(batch_norm=False)
    kept = {name: tensor for name, tensor in whole.state_dict().items() if not name.startswith("bn")}
    assert model.state_dict().keys() == kept.keys()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    reference = nn.Sequential(
        model.conv1, nn.ReLU(), model.conv2, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), model.fc1, nn.ReLU(), model.fc2
    )
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(model.eval()(images), reference(images))
    assert count_flops(model) == count_flops(whole)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_gradients_of_flattened_maps_keep_the_memory_format(memory_format: torch.memory_format) -> None:
    maps = torch.randn(2, 3, 4, 5).to(memory_format=memory_format).requires_grad_()
    rows = flatten(maps)
    assert torch.equal(rows, maps.flatten(1))
    weights = torch.randn_like(rows)
    (gradient,) = torch.autograd.grad((rows * weights).sum(), maps)
    assert torch.equal(gradient, weights.view(2, 3, 4, 5))
    assert gradient.is_contiguous(memory_format=memory_format)
    assert torch.autograd.gradcheck(flatten, maps.double().detach().requires_grad_())
