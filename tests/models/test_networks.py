"""Properties of every network of the library."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cifarnet import CifarCNN
from cifarnet.errors import DataError, SettingError
from cifarnet.models import MODELS, ResNet18, build_model, count_flops, summarize_model
from cifarnet.models.registry import describe_model
from cifarnet.models.resnet18 import ResidualBlock
from cifarnet.visualize import plot_architecture

every_network = pytest.mark.parametrize("name", sorted(MODELS))


def build(name: str, **arguments: Any) -> nn.Module:
    """Build a network whose running statistics differ from those of a new one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(name, arguments)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.8, 1.2)
        return model.eval()


@pytest.mark.parametrize(
    ("name", "count"),
    [("BasicCNN", 1_007_306), ("CifarCNN", 6_447_754), ("FastCNN", 1_972_792), ("ResNet18", 11_173_962)],
)
def test_the_number_of_parameters_is_the_stated_one(name: str, count: int) -> None:
    assert summarize_model(build(name)).num_parameters == count


@every_network
def test_every_network_is_rebuilt_from_its_description(name: str) -> None:
    model = build(name, num_classes=7, in_channels=1)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    description = describe_model(model)
    rebuilt = build_model(description["name"], description["arguments"])
    assert describe_model(rebuilt) == description
    rebuilt.load_state_dict(model.state_dict())
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(rebuilt.eval()(images), model(images))


@every_network
def test_trainable_parameters_get_a_gradient_and_no_other(name: str) -> None:
    model = build(name).train()
    loss = F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4))
    loss.backward()  # type: ignore[no-untyped-call]
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, path
            assert bool(parameter.grad.any()), path
        else:
            assert parameter.grad is None, path


@every_network
def test_logits_in_evaluation_do_not_depend_on_batch_mates(name: str) -> None:
    model = build(name)
    images = torch.randn(3, 3, 32, 32)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, rtol=1e-5, atol=1e-5)


@every_network
def test_channels_last_changes_nothing_and_bf16_little(name: str) -> None:
    model, images = build(name), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        model = model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(images)
    assert rounded.dtype == torch.bfloat16
    assert float((rounded - expected).norm() / expected.norm()) < 0.03


@every_network
def test_networks_are_summarized_and_drawn(name: str) -> None:
    model = build(name, in_channels=1)
    summary = summarize_model(model)
    assert summary.image_shape == (1, 32, 32)
    assert sum(layer.num_parameters for layer in summary.layers) == summary.num_parameters
    assert sum(layer.flops for layer in summary.layers) == summary.flops == count_flops(model, (1, 32, 32))
    assert plot_architecture(model).axes[0].get_title().startswith(f"{name}: {summary.num_parameters:,} parameters")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        *[(name, {"num_classes": 1}, "num_classes must be at least 2, got 1") for name in MODELS],
        *[(name, {"in_channels": 0}, "in_channels must be at least 1, got 0") for name in MODELS],
        *[(name, {"wides": 1}, f"{name} cannot be built with .*wides") for name in MODELS],
        ("BasicCNN", {"image_size": 15}, "image_size must be at least 16, got 15"),
        ("BasicCNN", {"widths": (32, 0)}, "each of widths must be at least 1, got 0"),
        ("BasicCNN", {"hidden": 512}, "hidden must be 2 whole numbers, got 512"),
        ("FastCNN", {"widths": (64, 256)}, r"widths must be 3 whole numbers, got \(64, 256\); the default is"),
        ("FastCNN", {"widths": "444"}, "widths must be 3 whole numbers, got '444'"),
        ("FastCNN", {"widths": None}, "widths must be 3 whole numbers, got None"),
        ("FastCNN", {"convs_per_group": 4}, "convs_per_group must be 2 or 3, got 4; 2 is the default"),
        ("CifarCNN", {"image_size": 5}, "image_size must be at least 6, got 5"),
        ("CifarCNN", {"num_classes": True}, "num_classes must be a whole number, got True"),
        ("CifarCNN", {"widths": (32, 6.5)}, "each of widths must be a whole number, got 6.5"),
        ("CifarCNN", {"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ("CifarCNN", {"batch_norm": "no"}, "batch_norm must be True or False, got 'no'"),
        ("CifarCnn", {}, 'unknown model "CifarCnn"; did you mean "CifarCNN"'),
    ],
)
def test_an_argument_out_of_range_is_refused_with_a_remedy(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build_model(name, arguments)


def test_a_class_of_the_same_name_is_not_the_librarys() -> None:
    fake = type("CifarCNN", (nn.Linear,), {})(2, 2)
    assert describe_model(fake) == {"name": "CifarCNN", "arguments": None}


@pytest.mark.parametrize(("name", "size"), [("BasicCNN", 16), ("BasicCNN", 31), ("ResNet18", 1), ("ResNet18", 48)])
def test_networks_support_the_smallest_and_odd_images(name: str, size: int) -> None:
    model = build(name, **({"image_size": size} if name == "BasicCNN" else {}))
    assert model(torch.zeros(1, 3, size, size)).shape == (1, 10)


def test_resnet18_has_the_maps_of_the_variant_for_cifar() -> None:
    layers = summarize_model(ResNet18()).layers
    maps = [layer.output_shape for layer in layers if layer.name.endswith(".norm2")]
    assert maps == [shape for shape in ((64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)) for _ in range(2)]
    convolutions = [layer.kind for layer in layers if layer.kind.startswith("Conv2d")]
    assert convolutions.count("Conv2d 3x3") == 14
    assert convolutions.count("Conv2d 3x3, stride 2") == convolutions.count("Conv2d 1x1, stride 2") == 3


def test_a_residual_block_adds_its_input() -> None:
    block = ResidualBlock(4, 4).eval()
    nn.init.zeros_(block.conv2.weight)
    images = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block(images), F.relu(images), rtol=0, atol=0)


def test_flops_are_twice_the_multiply_adds() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 30 * 30, 5))
    assert count_flops(model) == 2 * (30 * 30 * 8 * 27 + 8 * 30 * 30 * 5)
    assert count_flops(CifarCNN()) == 2 * (900 * 32 * 27 + 784 * 64 * 288 + 12_544 * 512 + 512 * 10)
    assert count_flops(nn.Conv2d(1, 2, 3), (1, 8, 8)) == 2 * 36 * 2 * 9
    assert count_flops(nn.Flatten()) == 0
    with pytest.raises(DataError, match=r"CifarCNN cannot take an image of \(3, 32, 32\): .*give image_shape="):
        count_flops(CifarCNN(image_size=64), (3, 32, 32))
