"""What a network sees in an image: feature maps, layer by layer, and Grad-CAM.

Nothing of this leaves a trace: modes, gradients, hooks and random state of the network are afterwards what they were.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cifarnet._types import Images, Labels, Logits
from cifarnet._validation import check_count, did_you_mean
from cifarnet.classifier import Classifier
from cifarnet.data import ImageLike
from cifarnet.errors import InputError, NonFiniteLogitsError, SettingError
from cifarnet.inference import predict_logits
from cifarnet.inference.loader import EVAL_BATCH_SIZE
from cifarnet.models import evaluation_mode, unwrapped
from cifarnet.randomness import isolated

__all__ = ["feature_maps", "grad_cam", "map_shapes"]


def map_shapes(classifier: Classifier) -> dict[str, tuple[int, int, int]]:
    """The layers that give maps of an image: channels of more than one pixel, whose places are those of the image.

    Layers that run more than once are left out, and so is what a network calls as a function.

    Args:
        classifier: Its network runs once, on one black image.

    Returns:
        ``(C, H, W)`` by dotted path of the module, in running order.

    Raises:
        InputError: If ``classifier`` is no classifier.
        NonFiniteLogitsError: If the network gives NaN or infinity.

    Example:
        >>> from cifarnet import CifarCNN, Preprocess
        >>> map_shapes(Classifier(CifarCNN(), Preprocess(), ()))["bn2"]
        (64, 14, 14)
    """
    if not isinstance(classifier, Classifier):
        raise InputError(f"expected a Classifier, got {type(classifier).__name__}; Classifier.load(run) gives one")
    calls: list[tuple[str, tuple[int, ...]]] = []
    with _undisturbed(classifier) as layers, torch.no_grad(), ExitStack() as hooks:
        for name, module in layers.items():
            hooks.callback(module.register_forward_hook(_noting_shapes(name, calls)).remove)
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
    """What layers of a network make of images.

    Args:
        classifier: Whose network.
        images: What `Classifier.predict` takes: one image, or a list of them. All maps of all of them are kept.
        layers: Dotted paths of modules; ``None`` takes, of the layers after each other that give maps of the same
            shape, the last one: what is handed on to the next size.

    Returns:
        The maps by layer, in running order, each of shape ``(N, C, H, W)``, as the layer gives them, on the CPU.

    Raises:
        InputError: If something is no image.
        SettingError: If a layer is unknown, gives no maps, or runs more than once.
        NonFiniteLogitsError: If the network gives NaN or infinity.

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
        chosen = [_check_layer(classifier, name, shapes) for name in layers]
    kept: dict[str, list[Tensor]] = {name: [] for name in shapes if name in chosen}
    pixels = classifier.to_pixels(images)
    with _undisturbed(classifier) as modules, torch.no_grad(), ExitStack() as hooks:
        for name, outputs in kept.items():
            hooks.callback(modules[name].register_forward_hook(_keeping(outputs)).remove)
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
    """Where in an image the evidence for a class is (Selvaraju et al., 2017, arXiv:1610.02391, equations 1 and 2).

    The maps of a layer are added up, each weighted by the mean gradient of the class's logit with respect to it, and
    what is negative, evidence for other classes, is cut off. The sum is enlarged to the size of the image.

    Args:
        classifier: Whose network.
        images: What `Classifier.predict` takes: one image, or a list of them.
        layer: Dotted path of a module that gives maps; ``None`` is the last one.
        target: Index or name of the class; ``None`` is, for each image, the class it is taken for.

    Returns:
        Not negative, in units of the logit and not scaled, shape ``(N, size, size)``, on the CPU. The same place as
        in the images that `Classifier.to_pixels` gives. All 0 where nothing speaks for the class.

    Raises:
        InputError: If something is no image, or the network has no layer that gives maps.
        SettingError: If there is no such layer or class.
        NonFiniteLogitsError: If the network gives NaN or infinity.

    Example:
        >>> from cifarnet import CifarCNN, Preprocess
        >>> classifier = Classifier(CifarCNN(num_classes=2), Preprocess(), ("cat", "dog"))
        >>> grad_cam(classifier, torch.rand(3, 480, 640), target="dog").shape
        torch.Size([1, 32, 32])
    """
    shapes = map_shapes(classifier)
    if layer is None and not shapes:
        raise InputError("the network has no module that gives maps of an image; there is nothing to weigh")
    name = _check_layer(classifier, next(reversed(shapes)) if layer is None else layer, shapes)
    maps = []
    for batch in torch.split(classifier.to_pixels(images), EVAL_BATCH_SIZE):
        with _undisturbed(classifier) as layers, torch.enable_grad():
            maps.append(_weigh(classifier, batch, layers[name], name, target))
    return torch.cat(maps)


def _weigh(classifier: Classifier, pixels: Images, module: nn.Module, name: str, target: int | str | None) -> Tensor:
    held: list[Tensor] = []

    def hold(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Start the graph here: what lies before is not needed, and may not have a gradient."""
        held.append(output.detach().requires_grad_())
        return held[-1].clone()  # which the next layer may change in place

    hook = module.register_forward_hook(hold)
    try:
        logits = _score(classifier, pixels)  # (N, K)
    finally:
        hook.remove()
    labels = _targets(classifier, logits.detach(), target)
    (maps,) = held  # (N, C, h, w)
    scores = logits.gather(1, labels[:, None])  # (N, 1)
    # In evaluation mode no image depends on another, so that one backward pass serves all.
    gradients = torch.autograd.grad(scores.sum(), maps, allow_unused=True)[0] if scores.requires_grad else None
    if gradients is None:
        raise SettingError(f'the logits do not depend on layer "{name}"; choose one that lies before them')
    dtype = classifier.precision.weights
    weights = gradients.to(dtype).mean(dim=(2, 3), keepdim=True)  # (N, C, 1, 1)
    evidence = (weights * maps.detach().to(dtype)).sum(dim=1, keepdim=True).relu()  # (N, 1, h, w)
    size = pixels.shape[-1]
    return nn.functional.interpolate(evidence, (size, size), mode="bilinear", align_corners=False)[:, 0].cpu()


def _targets(classifier: Classifier, logits: Logits, target: int | str | None) -> Labels:
    """The class asked about, for each image."""
    num_classes = logits.shape[1]
    if target is None:
        return logits.sort(dim=1, descending=True, stable=True).indices[:, 0]  # as `Classifier.predict` decides
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
    """Lend the block the layers by name, in evaluation mode and not compiled; afterwards all is as it was."""
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
        raise NonFiniteLogitsError(
            f"the network gives NaN or infinity in {classifier.precision.name}; its weights may be broken, or "
            'precision="float32" may help'
        )
    return logits


def _noting_shapes(name: str, calls: list[tuple[str, tuple[int, ...]]]) -> Callable[..., None]:
    def note(module: nn.Module, args: Any, output: object) -> None:
        calls.append((name, tuple(output.shape) if isinstance(output, Tensor) else ()))

    return note


def _keeping(outputs: list[Tensor]) -> Callable[..., None]:
    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        # A copy: the next layer may change it in place.
        outputs.append(output.detach().to("cpu", copy=True))

    return keep


def _check_layer(classifier: Classifier, name: str, shapes: dict[str, tuple[int, int, int]]) -> str:
    if name in shapes:
        return name
    with _undisturbed(classifier) as layers:
        reason = "gives no maps of the image, or runs more than once" if name in layers else "is unknown"
    raise SettingError(f'layer "{name}" {reason}; {did_you_mean(name, shapes)}')
