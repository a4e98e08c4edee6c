"""Feature maps and Grad-CAM."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifarnet import CifarCNN, Classifier, DatasetSplits, FastCNN, Preprocess, ResNet18
from cifarnet.data import ImageLike
from cifarnet.errors import DataError, NonFiniteError, SettingError
from cifarnet.inspection import feature_maps, grad_cam, map_shapes

SIZE = 16
CLASSES = tuple(f"kind {i}" for i in range(10))


class InPlace(nn.Module):
    """Network that changes outputs in place, runs a layer twice, and draws random numbers in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(5, 6, 3)
        self.unused = nn.Conv2d(3, 5, 3)
        self.head = nn.Linear(6, 10)

    def forward(self, images: Tensor) -> Tensor:
        self.unused(images)
        x = self.relu(self.last(self.relu(self.conv(images))))
        noise = 1e-3 * torch.rand(10, device=images.device)
        logits: Tensor = self.head(x.mean(dim=(2, 3))) + noise
        return logits


def build(make: Callable[[], nn.Module], precision: str = "float64") -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = make()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
                nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
    return Classifier(model, Preprocess(SIZE), CLASSES, device="cpu", precision=precision)


def cifar_cnn() -> nn.Module:
    return CifarCNN(image_size=SIZE, widths=(4, 6), hidden=8)


def images(synthetic: DatasetSplits, count: int = 5) -> list[ImageLike]:
    return list(synthetic.test.images[:count])


@pytest.mark.parametrize(("make", "layer", "default"), [
    (cifar_cnn, "bn2", True), (cifar_cnn, "conv1", False), (cifar_cnn, "conv2", False),
    (ResNet18, "stage4", True), (ResNet18, "stage2.0.conv1", False),
    (lambda: FastCNN(widths=(8, 8, 8)), "group2", False), (InPlace, "last", True), (InPlace, "conv", False),
])  # fmt: skip
@pytest.mark.parametrize("target", [None, 3])
def test_grad_cam_equals_captums(
    make: Callable[[], nn.Module], layer: str, default: bool, target: int | None, synthetic: DatasetSplits
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum uses old functions of torch
        from captum.attr import LayerAttribution, LayerGradCam

    classifier = build(make)
    maps = grad_cam(classifier, images(synthetic), layer=None if default else layer, target=target)
    prepared = classifier.preprocess(classifier.to_pixels(images(synthetic))).double()
    with torch.no_grad():
        labels = classifier.model(prepared).argmax(dim=1) if target is None else torch.full((5,), target)
    module = classifier.model.get_submodule(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = LayerGradCam(classifier.model, module).attribute(prepared, target=labels, relu_attributions=True)
        theirs = LayerAttribution.interpolate(small, (SIZE, SIZE), "bilinear")[:, 0].detach()
    assert maps.shape == (5, SIZE, SIZE)
    assert theirs.any() or target is not None  # a chosen class may have no positive evidence
    torch.testing.assert_close(maps, theirs, rtol=1e-9, atol=1e-12)


def test_an_image_has_the_same_map_alone_and_in_a_list(synthetic: DatasetSplits) -> None:
    classifier = build(cifar_cnn)
    together = grad_cam(classifier, images(synthetic))
    for image, one in zip(images(synthetic), together, strict=True):
        torch.testing.assert_close(grad_cam(classifier, image), one[None], rtol=1e-9, atol=1e-12)


def test_a_target_is_a_name_or_an_index(synthetic: DatasetSplits) -> None:
    classifier = build(cifar_cnn)
    by_name = grad_cam(classifier, images(synthetic), target="kind 7")
    assert torch.equal(by_name, grad_cam(classifier, images(synthetic), target=7))
    assert not torch.equal(by_name, grad_cam(classifier, images(synthetic), target=6))


def test_feature_maps_are_the_outputs_of_layers(synthetic: DatasetSplits) -> None:
    classifier = build(cifar_cnn)
    model: Any = classifier.model
    maps = feature_maps(classifier, images(synthetic), layers=["bn2", "conv1"])
    assert list(maps) == ["conv1", "bn2"]
    prepared = classifier.preprocess(classifier.to_pixels(images(synthetic))).double()
    with torch.no_grad():
        conv1 = model.conv1(prepared)
        bn2 = model.bn2(F.max_pool2d(F.relu(model.conv2(model.bn1(F.relu(conv1)))), 2))
    torch.testing.assert_close(maps["conv1"], conv1)
    torch.testing.assert_close(maps["bn2"], bn2)


def test_maps_are_copied_before_a_change_in_place(synthetic: DatasetSplits) -> None:
    classifier = build(InPlace)
    maps = feature_maps(classifier, images(synthetic), layers=["conv"])["conv"]
    assert maps.min() < 0  # before the ReLU in place
    prepared = classifier.preprocess(classifier.to_pixels(images(synthetic))).double()
    torch.testing.assert_close(maps, classifier.model.conv(prepared).detach())  # type: ignore[operator]


def test_layers_with_maps_are_listed_in_running_order() -> None:
    shapes = map_shapes(build(ResNet18))
    assert shapes["stage1"] == (64, 16, 16)
    assert next(reversed(shapes)) == "stage4"
    assert list(feature_maps(build(ResNet18), torch.zeros(3, 8, 8))) == ["stage1", "stage2", "stage3", "stage4"]
    assert list(map_shapes(build(InPlace))) == ["unused", "conv", "last"]  # the ReLU runs twice
    assert not set(map_shapes(build(cifar_cnn))) & {"fc1", "fc2", "dropout"}


@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_inspection_leaves_no_trace(grad_mode: Callable[[], Any], synthetic: DatasetSplits) -> None:
    classifier = build(InPlace)
    model: Any = classifier.model
    model.train()
    model.last.eval()
    model.conv.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, benchmark = torch.get_rng_state(), torch.backends.cudnn.benchmark
    with grad_mode():
        maps = [grad_cam(classifier, images(synthetic)), *feature_maps(classifier, images(synthetic)).values()]
    assert not any(one.requires_grad for one in maps)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.backends.cudnn.benchmark == benchmark
    assert [name for name, module in model.named_modules() if not module.training] == ["last"]
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert [name for name, one in model.named_parameters() if one.grad is not None] == ["head.weight"]
    assert [name for name, one in model.named_parameters() if not one.requires_grad] == ["conv.weight"]
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_other_precisions_give_similar_maps(precision: str, synthetic: DatasetSplits) -> None:
    exact = grad_cam(build(cifar_cnn), images(synthetic), target=1)
    near = grad_cam(build(cifar_cnn, precision), images(synthetic), target=1)
    tolerance = {"float32": 1e-4, "bf16": 0.1}[precision]
    assert (near - exact).abs().max() <= tolerance * exact.max()


def test_compiled_networks_have_the_same_maps(synthetic: DatasetSplits) -> None:
    plain, compiled = build(cifar_cnn), build(cifar_cnn)
    compiled.model = torch.compile(compiled.model, backend="eager")  # type: ignore[assignment]
    assert torch.equal(grad_cam(plain, images(synthetic)), grad_cam(compiled, images(synthetic)))
    assert map_shapes(plain) == map_shapes(compiled)


def test_unknown_layers_classes_and_images_are_refused(synthetic: DatasetSplits) -> None:
    classifier, in_place = build(cifar_cnn), build(InPlace)
    with pytest.raises(SettingError, match=r'layer "conv3" is unknown, .*; did you mean "conv'):
        grad_cam(classifier, images(synthetic), layer="conv3")
    with pytest.raises(SettingError, match='layer "fc1" is unknown, gives no maps or runs twice'):
        feature_maps(classifier, images(synthetic), layers=["fc1"])
    with pytest.raises(SettingError, match="layers must be a list of names, got 'conv1'"):
        feature_maps(classifier, images(synthetic), layers="conv1")
    with pytest.raises(SettingError, match='there is no class "kid 3"; did you mean "kind 3"'):
        grad_cam(classifier, images(synthetic), target="kid 3")
    for wrong in (10, -1, True, 1.0):
        with pytest.raises(SettingError, match=r"a class in \[0, 10\), or its name"):
            grad_cam(classifier, images(synthetic), target=wrong)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match='the logits do not depend on layer "unused"'):
        grad_cam(in_place, images(synthetic), layer="unused")
    assert not any(module._forward_hooks for module in in_place.model.modules())
    with pytest.raises(DataError, match="There are no images"):
        grad_cam(classifier, [])
    with pytest.raises(DataError, match="expected a Classifier, got CifarCNN"):
        grad_cam(classifier.model, images(synthetic))  # type: ignore[arg-type]
    flat = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 10)), Preprocess(SIZE), CLASSES, device="cpu")
    with pytest.raises(DataError, match="no module that gives maps"):
        grad_cam(flat, images(synthetic))
    assert feature_maps(flat, images(synthetic)) == {}


def test_broken_weights_are_refused(synthetic: DatasetSplits) -> None:
    classifier = build(cifar_cnn)
    nn.init.constant_(classifier.model.fc2.weight, float("nan"))  # type: ignore[union-attr,arg-type]
    with pytest.raises(NonFiniteError, match="gives NaN or infinity in float64"):
        grad_cam(classifier, images(synthetic))
