"""Feature maps and Grad-CAM as numbers.

All functions restore the modes, gradients, hooks and random state of the network.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cifarnet._types import Images, Labels, Logits
from cifarnet._validation import check_count, did_you_mean
from cifarnet.classifier import Classifier
from cifarnet.data import ImageLike
from cifarnet.errors import DataError, NonFiniteError, SettingError
from cifarnet.inference import predict_logits
from cifarnet.inference.loader import EVAL_BATCH_SIZE
from cifarnet.models._modules import evaluation_mode, unwrapped
from cifarnet.randomness import isolated

__all__ = ["feature_maps", "grad_cam", "map_shapes"]


def map_shapes(classifier: Classifier) -> dict[str, tuple[int, int, int]]:
    """List the layers whose outputs are feature maps, with channels of more than one pixel.

    Layers that run more than once and functional calls are left out.

    Args:
        classifier: Classifier whose network runs once on one black image.

    Returns:
        Shapes ``(C, H, W)`` by dotted path of the module, in running order.

    Raises:
        DataError: If ``classifier`` is not a `Classifier`.
        NonFiniteError: If the logits contain NaN or infinity.

    Example:
        >>> from cifarnet import CifarCNN, Preprocess
        >>> map_shapes(Classifier(CifarCNN(), Preprocess(), ()))["bn2"]
        (64, 14, 14)
    """
    if not isinstance(classifier, Classifier):
        raise DataError(f"expected a Classifier, got {type(classifier).__name__}; Classifier.load(run) gives one")
    calls: list[tuple[str, tuple[int, ...]]] = []
    with _undisturbed(classifier) as layers, torch.no_grad(), ExitStack() as hooks:
        for name, module in layers.items():
            hooks.callback(module.register_forward_hook(partial(_note_shape, name, calls)).remove)
        channels, size = len(classifier.preprocess.mean), classifier.preprocess.size
        _score(classifier, torch.zeros(1, channels, size, size, dtype=torch.uint8, device="cpu"))
    names = [name for name, _ in calls]
    return {
        name: (shape[1], shape[2], shape[3])
        for name, shape in calls
        if len(shape) == 4 and shape[2] * shape[3] > 1 and names.count(name) == 1
    }


def feature_maps(
    classifier: Classifier, images: ImageLike | Sequence[ImageLike], *, layers: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Compute the outputs of layers for images.

    Args:
        classifier: Classifier with the network.
        images: One image or a list of images, as in `Classifier.predict`. All their maps are kept in memory.
        layers: Dotted paths of modules. ``None`` uses the last layer of each shape.

    Returns:
        Maps by layer in running order, each of shape ``(N, C, H, W)`` on the CPU.

    Raises:
        DataError: If an item is not an image.
        SettingError: If a layer is unknown, gives no maps, or runs more than once.
        NonFiniteError: If the logits contain NaN or infinity.

    Example:
        >>> from cifarnet import CifarCNN, Preprocess
        >>> classifier = Classifier(CifarCNN(), Preprocess(), ())
        >>> {name: tuple(maps.shape[1:]) for name, maps in feature_maps(classifier, torch.zeros(3, 32, 32)).items()}
        {'bn1': (32, 30, 30), 'conv2': (64, 28, 28), 'bn2': (64, 14, 14)}
    """
    shapes = map_shapes(classifier)
    if layers is None:
        chosen = list({shape: name for name, shape in shapes.items()}.values())
    elif isinstance(layers, str) or not layers:
        raise SettingError(f"layers must be a list of names, got {layers!r}; {did_you_mean(str(layers), shapes)}")
    else:
        chosen = [_check_layer(name, shapes) for name in layers]
    kept: dict[str, list[Tensor]] = {name: [] for name in shapes if name in chosen}
    pixels = classifier.to_pixels(images)
    with _undisturbed(classifier) as modules, torch.no_grad(), ExitStack() as hooks:
        for name, outputs in kept.items():
            hooks.callback(modules[name].register_forward_hook(partial(_keep, outputs)).remove)
        for batch in torch.split(pixels, EVAL_BATCH_SIZE):
            _score(classifier, batch)
    return {name: torch.cat(outputs) for name, outputs in kept.items()}


def grad_cam(
    classifier: Classifier,
    images: ImageLike | Sequence[ImageLike],
    *,
    layer: str | None = None,
    target: int | str | None = None,
) -> Tensor:
    """Compute Grad-CAM, a map of the evidence for a class (Selvaraju et al., 2017, arXiv:1610.02391, equations 1, 2).

    The maps of a layer are summed, each weighted by the mean gradient of the class's logit with respect to it.
    Negative sums, which are evidence for other classes, become 0. The result is enlarged to the size of the image.

    Args:
        classifier: Classifier with the network.
        images: One image or a list of images, as in `Classifier.predict`.
        layer: Dotted path of a module that gives maps. ``None`` uses the last one.
        target: Index or name of the class. ``None`` uses the predicted class of each image.

    Returns:
        Evidence of at least 0, in units of the logit, shape ``(N, size, size)``, on the CPU. Its pixels are those of
        `Classifier.to_pixels`.

    Raises:
        DataError: If an item is not an image, or the network has no layer that gives maps.
        SettingError: If the layer or the class is unknown.
        NonFiniteError: If the logits contain NaN or infinity.

    Example:
        >>> from cifarnet import CifarCNN, Preprocess
        >>> classifier = Classifier(CifarCNN(num_classes=2), Preprocess(), ("cat", "dog"))
        >>> grad_cam(classifier, torch.rand(3, 480, 640), target="dog").shape
        torch.Size([1, 32, 32])
    """
    shapes = map_shapes(classifier)
    if layer is None and not shapes:
        raise DataError("the network has no module that gives maps of an image; Grad-CAM needs one")
    name = _check_layer(next(reversed(shapes)) if layer is None else layer, shapes)
    maps = []
    for batch in torch.split(classifier.to_pixels(images), EVAL_BATCH_SIZE):
        with _undisturbed(classifier) as layers, torch.enable_grad():
            maps.append(_weigh(classifier, batch, layers[name], name, target))
    return torch.cat(maps)


def _weigh(classifier: Classifier, pixels: Images, module: nn.Module, name: str, target: int | str | None) -> Tensor:
    held: list[Tensor] = []

    def hold(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Start the graph here, because no gradient of earlier layers is needed."""
        held.append(output.detach().requires_grad_())
        return held[-1].clone()  # the next layer may change it in place

    hook = module.register_forward_hook(hold)
    try:
        logits = _score(classifier, pixels)  # (N, K)
    finally:
        hook.remove()
    labels = _targets(classifier, logits.detach(), target)
    (maps,) = held  # (N, C, h, w)
    scores = logits.gather(1, labels[:, None])  # (N, 1)
    # In evaluation mode, images do not depend on each other, so one backward pass is enough.
    gradients = torch.autograd.grad(scores.sum(), maps, allow_unused=True)[0] if scores.requires_grad else None
    if gradients is None:
        raise SettingError(f'the logits do not depend on layer "{name}"; choose an earlier one')
    dtype = classifier.precision.weights
    weights = gradients.to(dtype).mean(dim=(2, 3), keepdim=True)  # (N, C, 1, 1)
    evidence = (weights * maps.detach().to(dtype)).sum(dim=1, keepdim=True).relu()  # (N, 1, h, w)
    size = pixels.shape[-1]
    return nn.functional.interpolate(evidence, (size, size), mode="bilinear", align_corners=False)[:, 0].cpu()


def _targets(classifier: Classifier, logits: Logits, target: int | str | None) -> Labels:
    """Return the class of interest of each image."""
    num_classes = logits.shape[1]
    if target is None:
        return logits.sort(dim=1, descending=True, stable=True).indices[:, 0]  # as in `Classifier.predict`
    if isinstance(target, str):
        names = [classifier.class_name(i) for i in range(num_classes)]
        if target not in names:
            raise SettingError(f'there is no class "{target}"; {did_you_mean(target, names)}')
        target = names.index(target)
    check_count("target", target, f"give a class in [0, {num_classes}), or its name", least=0)
    if target >= num_classes:
        raise SettingError(f"target must be a class in [0, {num_classes}), or its name, got {target}")
    return torch.full((len(logits),), target, device=logits.device)


@contextmanager
def _undisturbed(classifier: Classifier) -> Iterator[dict[str, nn.Module]]:
    """Yield the layers by name, in evaluation mode and not compiled, and restore the network afterwards."""
    model = unwrapped(classifier.model)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(isolated(classifier.device, autotune=False))
        stack.enter_context(evaluation_mode(model))
        if "torch._dynamo" in sys.modules:  # else nothing here is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield {name.replace("._orig_mod", ""): module for name, module in model.named_modules() if name}


def _score(classifier: Classifier, pixels: Images) -> Logits:
    logits = predict_logits(
        unwrapped(classifier.model),
        pixels.to(classifier.device),
        preprocess=classifier.preprocess,
        precision=classifier.precision,
    )
    if not bool(logits.isfinite().all()):
        raise NonFiniteError(
            f"the network gives NaN or infinity in {classifier.precision.name}; its weights may be broken, or "
            'precision="float32" may help'
        )
    return logits


def _note_shape(name: str, calls: list[tuple[str, tuple[int, ...]]], module: nn.Module, args: Any, output: Any) -> None:
    calls.append((name, tuple(output.shape) if isinstance(output, Tensor) else ()))


def _keep(outputs: list[Tensor], module: nn.Module, args: Any, output: Tensor) -> None:
    outputs.append(output.detach().to("cpu", copy=True))  # the next layer may change it in place


def _check_layer(name: str, shapes: dict[str, tuple[int, int, int]]) -> str:
    if name not in shapes:
        raise SettingError(f'layer "{name}" is unknown, gives no maps or runs twice; {did_you_mean(name, shapes)}')
    return name
