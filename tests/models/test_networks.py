"""What holds for every network of the library."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn
from torch.nn import functional as F

from cifarnet import Checkpointer, CifarCNN, Classifier, FastCNN, Preprocess, Trainer, build_transforms, make_synthetic
from cifarnet.checkpoint import load_best
from cifarnet.checkpoint.state_dict import unwrapped_state_dict
from cifarnet.errors import DataError, SettingError
from cifarnet.models import MODELS, ResNet18, build_model, count_flops, summarize_model
from cifarnet.models._modules import evaluation_mode
from cifarnet.models.registry import describe_model
from cifarnet.models.resnet18 import ResidualBlock
from cifarnet.visualize import plot_architecture

every_network = pytest.mark.parametrize("name", sorted(MODELS))


def build(name: str, **arguments: Any) -> nn.Module:
    """With statistics that are not those of a fresh network, so that evaluation differs from training."""
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
    assert sum(parameter.numel() for parameter in build(name).parameters()) == count
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
def test_loss_at_the_start_is_about_the_logarithm_of_the_number_of_classes(name: str) -> None:
    model = build(name).train()
    torch.manual_seed(0)
    with torch.no_grad():
        logits = model(torch.randn(16, 3, 32, 32))
        loss = F.cross_entropy(logits, torch.randint(10, (16,)))
    assert abs(float(loss) - math.log(10)) < 0.6  # ResNet18's head sees features of variance 1


@every_network
def test_every_trainable_parameter_gets_a_gradient_and_no_other(name: str) -> None:
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
def test_an_exported_network_gives_the_same_logits_for_any_number_of_images(name: str) -> None:
    model = build(name)
    sizes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=sizes)
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(program.module()(images), model(images), rtol=1e-5, atol=1e-5)


@every_network
def test_a_network_is_summarized_and_drawn_with_its_own_channels(name: str) -> None:
    model = build(name, in_channels=1)
    summary = summarize_model(model)
    assert summary.image_shape == (1, 32, 32)
    assert sum(layer.num_parameters for layer in summary.layers) == summary.num_parameters
    figure = plot_architecture(model)
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
    assert figure.axes[0].get_title().startswith(f"{name}: {summary.num_parameters:,} parameters")


@every_network
def test_a_network_has_the_same_shapes_without_storage(name: str) -> None:
    """As a file's description is first built."""
    with torch.device("meta"):
        shell = build_model(name, {})
    assert {key: tensor.shape for key, tensor in shell.state_dict().items()} == {
        key: tensor.shape for key, tensor in build(name).state_dict().items()
    }
    with evaluation_mode(shell):
        assert shell(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 10)


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
    ],
)
def test_an_argument_out_of_range_is_refused_with_a_remedy(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build_model(name, arguments)


@pytest.mark.parametrize("widths", [5, "444", None, {4: 4, 5: 5, 6: 6}, (4, 4, 4.0), (4, True, 4)])
def test_widths_of_a_wrong_type_are_told_so(widths: Any) -> None:
    with pytest.raises(SettingError, match=r"widths must be .* whole number"):
        build_model("FastCNN", {"widths": widths})


@pytest.mark.parametrize("size", [16, 17, 31])
def test_the_smallest_and_odd_images_fit_the_basic_network(size: int) -> None:
    assert build("BasicCNN", image_size=size)(torch.zeros(1, 3, size, size)).shape == (1, 10)


@pytest.mark.parametrize("size", [1, 7, 48])
def test_resnet18_takes_images_of_any_size(size: int) -> None:
    assert build("ResNet18")(torch.zeros(1, 3, size, size)).shape == (1, 10)


def test_resnet18_has_the_maps_of_the_variant_for_cifar() -> None:
    layers = summarize_model(ResNet18()).layers
    maps = [layer.output_shape for layer in layers if layer.name.endswith(".norm2")]
    assert maps == [shape for shape in ((64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)) for _ in range(2)]
    convolutions = [layer.kind for layer in layers if layer.kind.startswith("Conv2d")]
    assert convolutions.count("Conv2d 3x3") == 14
    assert convolutions.count("Conv2d 3x3, stride 2") == convolutions.count("Conv2d 1x1, stride 2") == 3


def test_a_residual_block_adds_its_input() -> None:
    block = ResidualBlock(4, 4).eval()
    nn.init.zeros_(block.conv2.weight)  # then the convolutions give nothing
    images = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block(images), F.relu(images), rtol=0, atol=0)


def test_weights_and_whitening_come_back_from_a_checkpoint(tmp_path: Path) -> None:
    data = make_synthetic(num_train=40, num_test=20, seed=0, size=16)
    transforms = build_transforms(size=16)
    model = FastCNN(widths=(4, 6, 8))
    model.fit_whitening(transforms.preprocess(data.train.images))
    filters = model.whitening.weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    trainer = Trainer(model, optimizer, transforms=transforms, device="cpu")
    trainer.fit(data.train, max_epochs=1, batch_size=20, checkpointer=Checkpointer(tmp_path))
    assert torch.equal(unwrapped_state_dict(load_best(tmp_path)[0])["whitening.weight"], filters)
    loaded = Classifier.load(tmp_path, device="cpu")
    assert loaded.preprocess == Preprocess(16)
    assert isinstance(loaded.model, FastCNN)
    assert torch.equal(loaded.model.whitening.weight, filters)
    assert not loaded.model.whitening.weight.requires_grad


def test_arithmetic_is_twice_the_multiply_adds() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 30 * 30, 5)).train()
    statistics = copy.deepcopy(model[1].state_dict())
    assert count_flops(model) == 2 * (30 * 30 * 8 * 27 + 8 * 30 * 30 * 5)
    assert count_flops(CifarCNN()) == 2 * (900 * 32 * 27 + 784 * 64 * 288 + 12_544 * 512 + 512 * 10)
    assert model.training
    assert all(torch.equal(value, statistics[key]) for key, value in model[1].state_dict().items())
    assert count_flops(nn.Conv2d(1, 2, 3), (1, 8, 8)) == 2 * 36 * 2 * 9
    assert count_flops(CifarCNN(image_size=8)) < count_flops(CifarCNN())
    assert count_flops(nn.Flatten()) == 0
    with pytest.raises(DataError, match=r"CifarCNN cannot take an image of \(3, 32, 32\): .*give image_shape="):
        count_flops(CifarCNN(image_size=64), (3, 32, 32))
