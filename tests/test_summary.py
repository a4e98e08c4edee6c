from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from cifarnet import CifarCNN
from cifarnet.errors import InputError, SettingError, SettingTypeError
from cifarnet.models.summary import ModelSummary, summarize_model
from cifarnet.models.tracing import Layer


def small_cnn() -> CifarCNN:
    return CifarCNN(4, image_size=8, widths=(2, 3), hidden=5)


def resnet18() -> nn.Module:
    model: nn.Module = torchvision.models.resnet18(num_classes=10)
    return model


class SharedWeights(nn.Module):
    """One layer runs twice, and another has the weights of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 12, bias=False)
        self.tied = nn.Linear(12, 12, bias=False)
        self.tied.weight = self.first.weight

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.tied(self.first(self.first(images.flatten(1))))
        return x


class OwnParameters(nn.Module):
    """Parameters of the network itself: scaled by, concatenated after being computed, and never used."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 1, 1))
        self.token = nn.Parameter(torch.zeros(1, 4))
        self.forgotten = nn.Parameter(torch.zeros(7))
        self.fc = nn.Linear(16, 2)
        self.auxiliary = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 5))

    def forward(self, images: Tensor) -> Tensor:
        x = (images * self.scale).flatten(1)
        x = torch.cat([x, self.token.expand(len(x), -1) * 2], dim=1)
        logits: Tensor = self.fc(x)
        return logits


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(x)))


class Functional(nn.Module):
    """Nothing but functions; dropout is drawn in evaluation mode too."""

    def forward(self, images: Tensor) -> Tensor:
        mask = torch.ones(3, 1, 1).exp()  # not computed from the image: no row
        x = F.gelu(images) * mask
        x = F.avg_pool2d(x, kernel_size=2).contiguous()
        x = F.dropout(torch.cat([x, x], dim=1), 0.25, training=True)
        x = F.adaptive_avg_pool2d(F.leaky_relu(x), (2, 2))
        x = x.permute(0, 2, 3, 1)[:, 0].transpose(1, 2)
        return F.log_softmax(x.reshape(1, -1), dim=1)


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.frozen = nn.BatchNorm2d(4).eval()

    def forward(self, images: Tensor) -> Tensor:
        torch.rand(3)
        self.frozen(self.conv(images))
        raise RuntimeError("no such luck\nand more")


def state_of(model: nn.Module) -> list[Any]:
    """All that a summary may not change."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_forward_hooks_with_kwargs")
    return [
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
        torch.backends.cudnn.benchmark,
        [(module.training, [dict(vars(module)[hook]) for hook in hooks]) for module in model.modules()],
        {name: tensor.tolist() for name, tensor in model.state_dict().items()},
    ]


def kinds(summary: ModelSummary) -> list[str]:
    return [layer.kind for layer in summary.layers]


def test_cifar_cnn_is_these_twelve_operations_in_this_order() -> None:
    summary = summarize_model(CifarCNN())
    assert summary.layers == (
        Layer("conv1", "conv 3x3", (32, 30, 30), 896, "3 -> 32", "convolution"),
        Layer("", "ReLU", (32, 30, 30), 0),
        Layer("bn1", "batch norm", (32, 30, 30), 64, family="norm"),
        Layer("conv2", "conv 3x3", (64, 28, 28), 18_496, "32 -> 64", "convolution"),
        Layer("", "ReLU", (64, 28, 28), 0),
        Layer("", "max-pool 2x2", (64, 14, 14), 0, family="pooling"),
        Layer("bn2", "batch norm", (64, 14, 14), 128, family="norm"),
        Layer("", "flatten", (12_544,), 0),
        Layer("fc1", "linear", (512,), 6_423_040, "12,544 -> 512", "linear"),
        Layer("", "ReLU", (512,), 0),
        Layer("dropout", "dropout 0.5", (512,), 0),
        Layer("fc2", "linear", (10,), 5_130, "512 -> 10", "linear"),
    )
    assert (summary.name, summary.image_shape) == ("CifarCNN", (3, 32, 32))
    assert summary.num_parameters == summary.num_trainable == 6_447_754


@pytest.mark.parametrize("build", [small_cnn, resnet18, SharedWeights, OwnParameters, Functional])
def test_rows_add_up_to_the_parameters_folded_or_not(build: Any) -> None:
    model = build()
    summary = summarize_model(model, (3, 2, 2) if build in (SharedWeights, OwnParameters) else None)
    total = sum(parameter.numel() for parameter in model.parameters())
    for each in (summary, summary.folded(8), summary.folded(8).folded(3)):
        assert sum(layer.num_parameters for layer in each.layers) == each.num_parameters == total


def test_a_shared_parameter_counts_at_its_first_use_only() -> None:
    summary = summarize_model(SharedWeights(), (3, 2, 2))
    rows = [(layer.name, layer.num_parameters) for layer in summary.layers]
    assert rows == [("", 0), ("first", 144), ("first", 0), ("tied", 0)]


def test_parameters_outside_layers_count_where_they_are_used_and_else_in_rows_of_their_own() -> None:
    summary = summarize_model(OwnParameters(), (3, 2, 2))
    rows = [(layer.name, layer.kind, layer.output_shape, layer.num_parameters) for layer in summary.layers]
    assert rows == [
        ("", "multiply", (3, 2, 2), 3),
        ("", "flatten", (12,), 0),
        ("", "concatenate", (16,), 4),
        ("fc", "linear", (2,), 34),
        ("", "parameters, not used", None, 7),
        ("auxiliary", "Sequential, not used", None, 21),
    ]


def test_functional_calls_are_rows_if_they_are_computed_from_the_image() -> None:
    summary = summarize_model(Functional())
    assert [(layer.kind, layer.output_shape) for layer in summary.layers] == [
        ("GELU", (3, 32, 32)),
        ("multiply", (3, 32, 32)),
        ("avg-pool 2x2", (3, 16, 16)),
        ("concatenate", (6, 16, 16)),
        ("dropout 0.25", (6, 16, 16)),
        ("LeakyReLU", (6, 16, 16)),
        ("adaptive avg-pool 2x2", (6, 2, 2)),
        ("permute", (2, 2, 6)),
        ("slice", (2, 6)),
        ("permute", (6, 2)),
        ("reshape", (12,)),
        ("log-softmax", (12,)),
    ]


def test_modules_have_the_names_of_the_field() -> None:
    class Conv(nn.Conv2d):
        """A subclass of torch's is still one."""

    class Dropout(nn.Module):
        """Of somebody else, with parts of its own: only the name is the same."""

        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            negated: Tensor = -self.part(x)
            return negated

    model = nn.Sequential(
        Conv(3, 6, (3, 1), stride=(2, 1)), nn.Conv2d(6, 6, 3, groups=6), nn.ConvTranspose2d(6, 4, 2, stride=2),
        nn.GroupNorm(2, 4), nn.SiLU(), nn.MaxPool2d((2, 3)), nn.Sequential(), Dropout(), nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(4), nn.Hardtanh(), nn.Softmax(dim=1),
    )  # fmt: skip
    summary = summarize_model(model)
    assert kinds(summary) == [
        "conv 3x1", "depthwise conv 3x3", "transposed conv 2x2", "group norm", "SiLU", "max-pool 2x3", "identity",
        "tanh", "negate", "dropout 0.1", "global avg-pool", "flatten", "layer norm", "Hardtanh", "softmax",
    ]  # fmt: skip
    assert [layer.detail for layer in summary.layers[:3]] == ["3 -> 6, stride 2x1", "6 -> 6", "6 -> 4, stride 2"]


def test_resnet18_folds_to_its_blocks() -> None:
    summary = summarize_model(resnet18()).folded(24)
    assert [(layer.name, layer.kind) for layer in summary.layers] == [
        ("conv1", "conv 7x7"), ("bn1", "batch norm"), ("relu", "ReLU"), ("maxpool", "max-pool 3x3"),
        ("layer1.0", "BasicBlock"), ("layer1.1", "BasicBlock"), ("layer2.0", "BasicBlock"),
        ("layer2.1", "BasicBlock"), ("layer3.0", "BasicBlock"), ("layer3.1", "BasicBlock"),
        ("layer4.0", "BasicBlock"), ("layer4.1", "BasicBlock"),
        ("avgpool", "global avg-pool"), ("", "flatten"), ("fc", "linear"),
    ]  # fmt: skip
    block = summary.layers[6]
    assert block == Layer("layer2.0", "BasicBlock", (128, 4, 4), 230_144, "9 layers", "block")


def test_links_say_what_each_row_takes_though_rows_stand_in_running_order() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.act = nn.ReLU(inplace=True)

        def forward(self, images: Tensor) -> Tensor:
            left = self.act(self.left(images)).contiguous()  # 0, 1
            right = self.right(input=images)  # 2
            largest = right.argmax(dim=1, keepdim=True)  # whole numbers: no row, and yet from 2
            return torch.cat([left, right, left * largest], dim=1)  # 3, 4

    summary = summarize_model(Branches())
    assert kinds(summary) == ["conv 1x1", "ReLU", "conv 1x1", "multiply", "concatenate"]
    assert summary.links == ((-1, 0), (0, 1), (-1, 2), (1, 3), (2, 3), (1, 4), (2, 4), (3, 4))


def test_a_sequence_is_linked_row_to_row_and_what_did_not_run_is_not() -> None:
    model = CifarCNN()
    model.add_module("auxiliary", nn.Linear(2, 2))
    assert summarize_model(model).links == tuple((row - 1, row) for row in range(12))


def test_an_opaque_part_gives_what_its_last_row_gave() -> None:
    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.ReLU()

        def forward(self, images: Tensor) -> Tensor:
            return torch.from_numpy(self.first(images).numpy() + 1)

    assert summarize_model(nn.Sequential(Opaque(), nn.Tanh())).links == ((-1, 0), (0, 1))


def test_folded_rows_are_linked_as_their_parts_were() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.other = Residual(), Residual()

        def forward(self, images: Tensor) -> Tensor:
            x = self.block(images)  # 4 rows
            return torch.cat([self.other(x), x, images], dim=1)  # 4 rows and 1

    summary = summarize_model(Outer(), (4, 8, 8))
    block = [(-1, 0), (0, 1), (-1, 2), (1, 2), (2, 3)]
    other = [(3, 4), (4, 5), (3, 6), (5, 6), (6, 7)]
    assert summary.links == (*block, *other, (-1, 8), (3, 8), (7, 8))
    assert summary.folded(8).links == ((-1, 0), (0, 1), (-1, 2), (0, 2), (1, 2))
    middle = summarize_model(CifarCNN()).folded(5)
    assert middle.links == ((-1, 0), (0, 1), (1, 2), (2, 3), (3, 4))


def test_folding_takes_the_deepest_blocks_first_and_no_more_than_it_must() -> None:
    stage = nn.Sequential(Residual(), Residual())  # 4 rows each
    model = nn.Sequential(nn.Conv2d(3, 4, 1), stage, nn.Sequential(nn.Flatten(), nn.Linear(4096, 2)))
    summary = summarize_model(model)
    assert len(summary.layers) == 11
    assert summary.folded(11) == summary
    assert kinds(summary.folded(10)) == ["conv 1x1", "Residual", "Residual", "flatten", "linear"]
    folded = summary.folded(4)
    assert [(layer.name, layer.kind, layer.detail) for layer in folded.layers] == [
        ("0", "conv 1x1", "3 -> 4"),
        ("1", "Sequential", "8 layers"),
        ("2.0", "flatten", ""),
        ("2.1", "linear", "4,096 -> 2"),
    ]
    assert summary.folded(5).folded(4) == folded


@pytest.mark.parametrize("max_rows", range(3, 12))
def test_a_network_without_blocks_keeps_its_ends(max_rows: int) -> None:
    summary = summarize_model(CifarCNN()).folded(max_rows)
    assert len(summary.layers) == max_rows
    assert (summary.layers[0].name, summary.layers[-1].name) == ("conv1", "fc2")
    assert f"{13 - max_rows} more rows" in kinds(summary)


def test_the_class_names_a_block_rather_than_the_container_that_it_is_in() -> None:
    model = nn.Sequential(nn.Sequential(nn.Sequential(Residual())), nn.ReLU())
    assert [block.row.kind for block in summarize_model(model, (4, 8, 8)).blocks] == ["Residual"]


@pytest.mark.parametrize("model", [small_cnn(), Fails(), Functional()])
def test_the_network_and_the_random_state_are_as_before(model: nn.Module) -> None:
    model.register_forward_hook(lambda *_: None)
    before = copy.deepcopy(state_of(model))
    assert before[3][0][0]  # in training mode
    if isinstance(model, Fails):
        with pytest.raises(InputError):
            summarize_model(model)
    else:
        summarize_model(model)
    assert state_of(model) == before


def test_a_forward_that_catches_the_error_of_a_layer_is_followed_on() -> None:
    class Robust(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrong, self.right = nn.Linear(1, 1), nn.Flatten()

        def forward(self, images: Tensor) -> Tensor:
            try:
                result: Tensor = self.wrong(images)
            except RuntimeError:
                result = self.right(images.relu())
            return result

    assert kinds(summarize_model(Robust())) == ["ReLU", "flatten", "linear, not used"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_and_memory_format_of_the_network_do_not_matter(dtype: torch.dtype) -> None:
    model = small_cnn()
    expected = summarize_model(model)
    assert summarize_model(model.to(dtype).to(memory_format=torch.channels_last)) == expected
    assert summarize_model(model.to("meta")) == expected
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_network_on_a_gpu_gives_the_same_rows_and_keeps_its_generator() -> None:
    expected = summarize_model(Functional())
    state = torch.cuda.get_rng_state()
    assert summarize_model(small_cnn().cuda()) == summarize_model(small_cnn())
    assert summarize_model(nn.Sequential(nn.Conv2d(3, 3, 1).cuda())).layers[0].num_parameters == 12
    assert kinds(summarize_model(Functional())) == kinds(expected)
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_a_compiled_network_is_summarized_uncompiled() -> None:
    def never(*_: object) -> Any:
        raise AssertionError("compiled")

    expected = summarize_model(small_cnn())
    assert summarize_model(torch.compile(small_cnn(), backend=never)) == expected  # type: ignore[arg-type]
    in_place, part = small_cnn(), small_cnn()
    in_place.compile(backend=never)
    assert summarize_model(in_place) == expected
    part.fc1 = torch.compile(part.fc1, backend=never)  # type: ignore[assignment]
    assert summarize_model(part) == expected


def test_an_opaque_network_is_one_row() -> None:
    class Opaque(nn.Module):
        """Torch does not see what it does."""

        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.Linear(3, 4)

        def forward(self, images: Tensor) -> Tensor:
            return torch.from_numpy(images.numpy()[:, :, 0, 0])

    assert summarize_model(Opaque()).layers == (Layer("", "Opaque", (3,), 16),)


def test_a_frozen_backbone_is_counted_and_said() -> None:
    model = small_cnn()
    model.requires_grad_(False)
    model.fc2.requires_grad_(True)
    summary = summarize_model(model)
    assert summary.num_trainable == 24
    assert "24 of them trainable" in str(summary)


def test_a_network_without_batch_norm_shows_where_it_was() -> None:
    rows = {layer.name: layer for layer in summarize_model(CifarCNN(batch_norm=False)).layers}
    assert rows["bn1"] == Layer("bn1", "identity", (32, 30, 30), 0)
    assert rows["bn2"] == Layer("bn2", "identity", (64, 14, 14), 0)


def test_the_table_is_aligned_and_ends_with_the_total() -> None:
    lines = str(summarize_model(CifarCNN())).splitlines()
    assert lines[0] == "CifarCNN on an image of 3 x 32 x 32"
    assert [line.split()[0] for line in lines[1:3]] == ["layer", "conv1"]
    assert len({len(line) for line in lines[1:]}) == 1  # the counts end in one column
    assert lines[-1].split()[0] == "total"
    assert lines[-1].endswith(" 6,447,754")
    assert "linear, 12,544 -> 512        512            6,423,040" in lines[10]


@pytest.mark.parametrize("shape", [(3, 32), (3, 32, 0), (3, 32.0, 32), "abc", 3072])
def test_an_image_shape_that_is_none_is_refused_with_a_remedy(shape: Any) -> None:
    with pytest.raises(SettingError, match=r"image_shape must be \(C, H, W\).*CIFAR-10 has \(3, 32, 32\)"):
        summarize_model(small_cnn(), shape)


def test_a_network_made_for_other_images_says_which_setting_helps() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with pytest.raises(
        InputError, match=r"Sequential cannot take .* \(3, 32, 32\) \(.*3072.*\); image_shape=\(C, H, W\)"
    ):
        summarize_model(model)
    assert summarize_model(model, (1, 28, 28)).image_shape == (1, 28, 28)


def test_only_the_first_line_of_a_long_error_is_quoted() -> None:
    with pytest.raises(InputError, match=r"\(no such luck\); image_shape"):
        summarize_model(Fails())


def test_strides_and_groups_given_by_position_are_told() -> None:
    class Functional(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.conv2d(images, torch.ones(3, 1, 3, 3), None, 2, 1, 1, 3)

    (row,) = summarize_model(Functional()).layers
    assert (row.kind, row.detail) == ("depthwise conv 3x3", "3 -> 3, stride 2")


def test_buffers_that_a_forward_changes_are_put_back() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, images: Tensor) -> Tensor:
            calls = self.get_buffer("calls")
            return images * calls.add_(1)

    model = Counting()
    summarize_model(model)
    assert float(model.get_buffer("calls")) == 0


def test_wrong_arguments_are_refused_with_a_remedy() -> None:
    with pytest.raises(SettingError, match='"running_mean" has no shape before the first batch'):
        summarize_model(nn.LazyBatchNorm2d(affine=False))
    with pytest.raises(SettingTypeError, match=r"model must be a torch\.nn\.Module, got dict"):
        summarize_model({})  # type: ignore[arg-type]
    with pytest.raises(SettingError, match='"weight" has no shape before the first batch'):
        summarize_model(nn.LazyLinear(2))
    with pytest.raises(SettingError, match="max_rows must be at least 3, got 2"):
        summarize_model(small_cnn()).folded(2)
