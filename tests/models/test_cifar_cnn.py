from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cifarnet import CifarCNN
from cifarnet.errors import SettingError
from cifarnet.models import MODELS, build_model, count_flops
from cifarnet.models._modules import flatten
from cifarnet.models.registry import describe_model


def test_the_reference_network_has_6447754_parameters() -> None:
    model = CifarCNN()
    assert sum(parameter.numel() for parameter in model.parameters()) == 6_447_754
    assert [tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")] == [
        (32, 3, 3, 3),
        (32,),
        (64, 32, 3, 3),
        (64,),
        (512, 12_544),
        (10, 512),
    ]


def test_the_order_is_conv_relu_norm_then_conv_relu_pool_norm() -> None:
    torch.manual_seed(0)
    model = CifarCNN().eval()
    # Statistics that are not the identity, so that another order would show.
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


@pytest.mark.parametrize("seed", range(3))
def test_loss_at_the_start_is_about_ln_10(seed: int) -> None:
    torch.manual_seed(seed)
    logits = CifarCNN()(torch.randn(256, 3, 32, 32))
    loss = nn.functional.cross_entropy(logits, torch.randint(10, (256,)))
    assert abs(float(loss.detach()) - math.log(10)) < 0.1


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
def test_every_size_gives_a_logit_a_class_and_is_rebuilt_from_its_description(**arguments: Any) -> None:
    model = CifarCNN(**arguments)
    size, channels = arguments["image_size"], arguments["in_channels"]
    assert model(torch.zeros(2, channels, size, size)).shape == (2, arguments["num_classes"])
    description = describe_model(model)
    rebuilt = build_model(description["name"], description["arguments"])
    assert [p.shape for p in rebuilt.parameters()] == [p.shape for p in model.parameters()]
    assert rebuilt.state_dict().keys() == model.state_dict().keys()


def test_without_batch_norm_all_else_begins_with_the_same_weights() -> None:
    torch.manual_seed(0)
    whole = CifarCNN()
    torch.manual_seed(0)
    model = CifarCNN(batch_norm=False)
    kept = {name: tensor for name, tensor in whole.state_dict().items() if not name.startswith("bn")}
    assert model.state_dict().keys() == kept.keys()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    assert sum(parameter.numel() for parameter in model.parameters()) == 6_447_754 - 2 * (32 + 64)
    reference = nn.Sequential(
        model.conv1, nn.ReLU(), model.conv2, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), model.fc1, nn.ReLU(), model.fc2
    )
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(model.eval()(images), reference(images))
    assert count_flops(model) == count_flops(whole)


def test_without_batch_norm_an_image_is_scored_alone_in_training_too() -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 8, 8)
    for batch_norm in (True, False):
        model = CifarCNN(image_size=8, widths=(2, 4), hidden=8, dropout=0.0, batch_norm=batch_norm).train()
        alone, together = model(images[:2]), model(images)[:2]
        assert torch.allclose(alone, together, atol=1e-6) is not batch_norm


def test_logits_in_evaluation_do_not_depend_on_batch_mates() -> None:
    torch.manual_seed(0)
    model = CifarCNN().eval()
    images = torch.randn(32, 3, 32, 32)
    together = model(images)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_dropout_is_drawn_in_training_only() -> None:
    model = CifarCNN(image_size=8, widths=(2, 2), hidden=64)
    images = torch.randn(4, 3, 8, 8)
    model.train()
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"image_size": 5}, "image_size must be at least 6, got 5"),
        ({"widths": (32,)}, "widths must be 2 whole numbers"),
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"num_classes": True}, "num_classes must be a whole number, got True"),
        ({"in_channels": -3}, "in_channels must be at least 1, got -3"),
        ({"widths": (32, 6.5)}, "each of widths must be a whole number, got 6.5"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"batch_norm": "no"}, "batch_norm must be True or False, got 'no'"),
        ({"num_clases": 10}, "CifarCNN cannot be built with {'num_clases': 10}"),
    ],
)
def test_an_argument_out_of_range_is_refused_with_a_remedy(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build_model("CifarCNN", arguments)


def test_a_misspelt_network_is_told_the_right_name() -> None:
    with pytest.raises(SettingError, match='unknown model "CifarCnn"; did you mean "CifarCNN"'):
        build_model("CifarCnn", {})


def test_a_class_that_only_shares_a_name_is_not_taken_for_the_librarys() -> None:
    fake = type("CifarCNN", (nn.Linear,), {})(2, 2)
    assert describe_model(fake) == {"name": "CifarCNN", "arguments": None}
    assert set(MODELS) == {"BasicCNN", "CifarCNN", "FastCNN", "ResNet18"}


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_gradient_of_flattened_maps_has_their_memory_format(memory_format: torch.memory_format) -> None:
    maps = torch.randn(2, 3, 4, 5).to(memory_format=memory_format).requires_grad_()
    rows = flatten(maps)
    assert torch.equal(rows, maps.flatten(1))
    weights = torch.randn_like(rows)
    (gradient,) = torch.autograd.grad((rows * weights).sum(), maps)
    assert torch.equal(gradient, weights.view(2, 3, 4, 5))
    assert gradient.is_contiguous(memory_format=memory_format)
    assert torch.autograd.gradcheck(flatten, maps.double().detach().requires_grad_())


@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_network_that_flattens_can_be_exported(batch_norm: bool) -> None:
    model = CifarCNN(image_size=16, widths=(4, 8), hidden=16, batch_norm=batch_norm).eval()
    images = torch.randn(2, 3, 16, 16)
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), model(images))
