from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cifarnet import FastCNN
from cifarnet.errors import DataError
from cifarnet.models.fast_cnn import ConvGroup
from cifarnet.models.whitening import whitening_filters


def small(in_channels: int = 3) -> FastCNN:
    return FastCNN(5, in_channels=in_channels, widths=(4, 6, 8))


def test_layers_have_the_published_order() -> None:
    torch.manual_seed(0)
    model = small().double().train()

    def group(part: ConvGroup) -> list[nn.Module]:
        return [part.conv1, nn.MaxPool2d(2), part.norm1, nn.GELU(), part.conv2, part.norm2, nn.GELU()]

    reference = nn.Sequential(
        model.whitening, nn.GELU(), *group(model.group1), *group(model.group2), *group(model.group3),
        nn.MaxPool2d(3), nn.Flatten(), model.head,
    )  # fmt: skip
    images = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model(images), reference(images) / 8)


def test_a_third_convolution_is_inside_a_shortcut() -> None:
    torch.manual_seed(0)
    group = FastCNN(widths=(4, 6, 8), convs_per_group=3).double().group2
    images = torch.randn(5, 4, 8, 8, dtype=torch.float64)
    pooled = F.gelu(group.norm1(F.max_pool2d(group.conv1(images), 2)))
    inner = group.norm3(group.conv3(F.gelu(group.norm2(group.conv2(pooled)))))
    torch.testing.assert_close(group(images), F.gelu(inner + pooled))


def test_the_published_shapes_and_the_frozen_parts() -> None:
    model = FastCNN()
    assert [tuple(module.weight.shape) for module in model.modules() if isinstance(module, nn.Conv2d)] == [
        (24, 3, 2, 2),
        (64, 24, 3, 3),
        (64, 64, 3, 3),
        (256, 64, 3, 3),
        (256, 256, 3, 3),
        (256, 256, 3, 3),
        (256, 256, 3, 3),
    ]
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    norms = {f"group{group}.norm{norm}.weight" for group in (1, 2, 3) for norm in (1, 2)}
    assert frozen == {"whitening.weight"} | norms
    assert model.whitening.bias is not None
    assert model.head.bias is None


def test_batch_norm_has_the_published_settings() -> None:
    norms = [module for module in FastCNN().modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 6
    for norm in norms:
        assert (norm.eps, norm.momentum) == (1e-12, 0.4)
        assert bool((norm.weight == 1).all())
        assert norm.bias.requires_grad


@pytest.mark.parametrize(("in_channels", "out_channels"), [(4, 6), (6, 6), (6, 4)])
def test_a_new_convolution_is_the_identity_on_its_channels(in_channels: int, out_channels: int) -> None:
    group = ConvGroup(in_channels, out_channels)
    images = torch.randn(2, in_channels, 9, 9)
    shared = min(in_channels, out_channels)
    torch.testing.assert_close(group.conv1(images)[:, :shared], images[:, :shared], rtol=0, atol=0)
    if out_channels > in_channels:  # the other filters use every channel
        assert bool((group.conv1.weight[in_channels:].abs().sum(dim=(2, 3)) > 0).all())
    expected = torch.empty(in_channels, in_channels, 3, 3)
    nn.init.dirac_(expected)
    assert torch.equal(group.conv1.weight[:in_channels], expected[:out_channels])


def test_the_head_begins_with_standard_deviation_1() -> None:
    assert float(FastCNN().head.weight.detach().std()) == pytest.approx(1, rel=1e-5)


def test_fit_whitening_sets_the_filters_and_their_negatives() -> None:
    torch.manual_seed(0)
    model = small(in_channels=2).to(memory_format=torch.channels_last)
    weight = model.whitening.weight
    images = torch.randn(20, 2, 16, 16)
    model.fit_whitening(images)
    filters = whitening_filters(images).float()
    assert model.whitening.weight is weight  # an optimizer may hold it
    assert not weight.requires_grad
    torch.testing.assert_close(weight, torch.cat([filters, -filters]), rtol=0, atol=0)


def test_unfitted_whitening_returns_the_pixels_of_a_patch() -> None:
    model = small()
    nn.init.zeros_(model.whitening.bias)  # type: ignore[arg-type]
    images = torch.randn(2, 3, 9, 9)
    patches = F.unfold(images, 2).view(2, 12, 8, 8)
    torch.testing.assert_close(model.whitening(images), torch.cat([patches, -patches], dim=1), rtol=0, atol=0)


def test_one_network_supports_images_from_nine_pixels() -> None:
    model = small().eval()
    for size in (9, 16, 17, 32, 40):
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 5)
    with pytest.raises(RuntimeError, match="Output size is too small"):
        model(torch.zeros(2, 3, 8, 8))


def test_images_of_other_channels_are_refused() -> None:
    model = small()
    before = model.whitening.weight.clone()
    with pytest.raises(DataError, match="images have 1 channels, the network takes 3"):
        model.fit_whitening(torch.randn(8, 1, 16, 16))
    assert torch.equal(model.whitening.weight, before)
