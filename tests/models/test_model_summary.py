"""Rows and totals of a summary."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifarnet import CifarCNN
from cifarnet.errors import DataError, SettingError
from cifarnet.models import summarize_model
from cifarnet.models.summary import Layer


class OwnParameters(nn.Module):
    """Network with an own scale, a shared layer and functional calls."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 1, 1))
        self.layer = nn.Conv2d(3, 3, 1)
        self.again = self.layer
        self.head = nn.LSTM(48, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, int]:
        maps = self.again(F.relu(self.layer(images * self.scale)))
        return self.head(maps.flatten(1))[0], 1


def test_a_summary_lists_layers_in_running_order() -> None:
    summary = summarize_model(CifarCNN())
    assert summary.layers[:2] == (
        Layer("conv1", "Conv2d 3x3", (32, 30, 30), 896, 2 * 900 * 32 * 27),
        Layer("bn1", "BatchNorm2d", (32, 30, 30), 64, 0),
    )
    assert [layer.name for layer in summary.layers] == ["conv1", "bn1", "conv2", "bn2", "fc1", "dropout", "fc2"]
    assert summary.num_parameters == summary.num_trainable == 6_447_754


def test_shared_and_own_parameters_count_once() -> None:
    model = OwnParameters()
    summary = summarize_model(model, (3, 4, 4))
    assert [(layer.name, layer.num_parameters) for layer in summary.layers] == [
        ("layer", 12),
        ("layer", 0),
        ("head", 416),
        ("", 3),
    ]
    assert [layer.flops for layer in summary.layers] == [288, 288, summary.layers[2].flops, 0]
    assert summary.layers[-1].output_shape == (2,)
    assert summary.num_parameters == 431


def test_a_summary_prints_as_a_table() -> None:
    lines = str(summarize_model(CifarCNN(image_size=8, widths=(2, 3), hidden=5))).splitlines()
    assert lines[0] == "CifarCNN on an image of 3 x 8 x 8"
    assert lines[1].split() == ["layer", "kind", "output", "parameters", "FLOPs"]
    assert lines[2].split() == ["conv1", "Conv2d", "3x3", "2", "x", "6", "x", "6", "56", "3,888"]
    assert len({len(line) for line in lines[1:]}) == 1


def test_kinds_have_kernel_and_stride() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, (3, 1), stride=2), nn.MaxPool2d(2), nn.Sequential(), nn.Flatten())
    kinds = [layer.kind for layer in summarize_model(model).layers]
    assert kinds == ["Conv2d 3x1, stride 2", "MaxPool2d 2x2", "Flatten"]


def test_a_summary_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    model[1].eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(0)
    random.seed(0)
    before = torch.get_rng_state()
    summarize_model(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert (model.training, model[1].training, model[2].training) == (True, False, True)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    "change", [nn.Module.bfloat16, nn.Module.double, torch.compile, lambda model: model.to("meta")]
)
def test_dtype_device_and_compilation_change_no_row(change) -> None:  # type: ignore[no-untyped-def]
    model = CifarCNN(image_size=8, widths=(2, 3), hidden=5)
    assert summarize_model(change(CifarCNN(image_size=8, widths=(2, 3), hidden=5))) == summarize_model(model)


def test_an_image_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match=r"CifarCNN cannot take an image of \(1, 32, 32\): .*give image_shape="):
        summarize_model(CifarCNN(), (1, 32, 32))
    with pytest.raises(SettingError, match=r"must be a torch\.nn\.Module, got dict"):
        summarize_model({})  # type: ignore[arg-type]
