"""Summary of a network: its layers, output shapes, parameters and FLOPs."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cifarnet import randomness
from cifarnet.errors import DataError, SettingError
from cifarnet.models._modules import evaluation_mode, unwrapped

__all__ = ["Layer", "ModelSummary", "count_flops", "summarize_model"]


@dataclass(frozen=True)
class Layer:
    """One row of a summary.

    Args:
        name: Dotted path of the module, empty for the network itself.
        kind: Class of the module, with kernel and stride, such as ``"Conv2d 3x3, stride 2"``.
        output_shape: Shape of the output without the batch.
        num_parameters: Number of parameters of the module itself that no earlier row counted.
        flops: FLOPs of the module for one image, without those of earlier rows.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    num_parameters: int
    flops: int

    @property
    def output(self) -> str:
        """Shape as text, such as ``"32 x 30 x 30"``."""
        return " x ".join(f"{size:,}" for size in self.output_shape) or "-"


@dataclass(frozen=True)
class ModelSummary:
    """The layers of a network in running order. It prints as a table.

    Args:
        name: Class of the network.
        image_shape: Shape ``(C, H, W)`` of the image that the network ran on.
        layers: One row per call of a layer.
        num_parameters: Number of parameters of the whole network, shared ones once.
        num_trainable: Number of parameters that require gradients.
        flops: FLOPs of the whole network for one image, functional calls included.
    """

    name: str
    image_shape: tuple[int, int, int]
    layers: tuple[Layer, ...]
    num_parameters: int
    num_trainable: int
    flops: int

    def __str__(self) -> str:
        rows = [("layer", "kind", "output", "parameters", "FLOPs")]
        rows += [(row.name, row.kind, row.output, f"{row.num_parameters:,}", f"{row.flops:,}") for row in self.layers]
        rows.append(("total", f"{self.num_trainable:,} trainable", "", f"{self.num_parameters:,}", f"{self.flops:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        template = "  ".join(f"{{:{side}{width}}}" for side, width in zip("<<<>>", widths, strict=True))
        title = f"{self.name} on an image of {' x '.join(map(str, self.image_shape))}"
        return "\n".join([title, *(template.format(*row) for row in rows)])


@torch.no_grad()
def summarize_model(model: nn.Module, image_shape: tuple[int, int, int] | None = None) -> ModelSummary:
    """Run a network once on an image of zeros and list its layers.

    A layer is a module with own parameters, or without submodules. Functional calls, such as ``F.relu``, are no rows.
    The network runs in evaluation mode, on its device and in its dtype. Modes, hooks and random state are restored.

    Args:
        model: Any network that takes images ``(N, C, H, W)``. A compiled one runs uncompiled.
        image_shape: Shape ``(C, H, W)``. ``None`` uses the shape that a network of the library was built for, and
            ``(3, 32, 32)`` for any other network.

    Returns:
        The layers in running order, with totals.

    Raises:
        SettingError: If ``model`` is not a module.
        DataError: If the network cannot take such an image.

    Example:
        >>> print(summarize_model(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(7200, 10))))
        Sequential on an image of 3 x 32 x 32
        layer  kind              output       parameters    FLOPs
        0      Conv2d 3x3        8 x 30 x 30         224  388,800
        1      ReLU              8 x 30 x 30           0        0
        2      Flatten           7,200                 0        0
        3      Linear            10               72,010  144,000
        total  72,234 trainable                   72,234  532,800
    """
    if not isinstance(model, nn.Module):
        raise SettingError(f"model must be a torch.nn.Module, got {type(model).__name__}; pass the network itself")
    model = unwrapped(model)
    arguments: dict[str, Any] = getattr(model, "arguments", {})
    size = arguments.get("image_size", 32)
    shape = (arguments.get("in_channels", 3), size, size) if image_shape is None else image_shape
    parameters = list(model.parameters())
    num_trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    num_parameters = sum(parameter.numel() for parameter in parameters)
    image = torch.zeros(1, *shape)
    if parameters:
        image = image.to(parameters[0].device, parameters[0].dtype)
    recorder = _Recorder()
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if recorder.is_layer(module):
                recorder.names[module] = name
                stack.callback(module.register_forward_pre_hook(recorder.enter).remove)
                stack.callback(module.register_forward_hook(recorder.leave).remove)
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(randomness.isolated(image.device, autotune=False))
        stack.enter_context(recorder.counter)
        try:
            model(image)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise DataError(
                f"{type(model).__name__} cannot take an image of {shape}: {reason}; give image_shape=(C, H, W)"
            ) from error
    flops = recorder.counter.get_total_flops()
    return ModelSummary(type(model).__name__, shape, tuple(recorder.layers), num_parameters, num_trainable, flops)


def count_flops(model: nn.Module, image_shape: tuple[int, int, int] | None = None) -> int:
    """Count the floating-point operations of one image's forward pass.

    The count is twice the multiply-adds of convolutions and matrix products (`torch.utils.flop_counter`). All other
    operations are few beside them. A training step takes about three times as many per image.

    Args:
        model: Any network, as in `summarize_model`.
        image_shape: Shape ``(C, H, W)``, as in `summarize_model`.

    Raises:
        SettingError: If ``model`` is not a module.
        DataError: If the network cannot take such an image.

    Example:
        >>> count_flops(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)))
        61440
    """
    return summarize_model(model, image_shape).flops


class _Recorder:
    """Hooks that turn the calls of layers into rows."""

    def __init__(self) -> None:
        self.counter = FlopCounterMode(display=False)
        self.layers: list[Layer] = []
        self.names: dict[nn.Module, str] = {}
        self._counted: set[int] = set()
        self._entered: list[tuple[int, int]] = []  # FLOPs and rows before each call that still runs

    def is_layer(self, module: nn.Module) -> bool:
        has_parameters = next(module.parameters(recurse=False), None) is not None
        has_parts = next(module.children(), None) is not None
        return has_parameters or not (has_parts or isinstance(module, nn.Sequential))  # an empty one is an identity

    def enter(self, module: nn.Module, args: Any) -> None:
        self._entered.append((self.counter.get_total_flops(), len(self.layers)))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        flops_before, num_rows = self._entered.pop()
        flops = self.counter.get_total_flops() - flops_before - sum(layer.flops for layer in self.layers[num_rows:])
        new = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in self._counted]
        self._counted.update(map(id, new))
        first = output[0] if isinstance(output, tuple | list) and output else output
        shape = tuple(first.shape[1:]) if isinstance(first, Tensor) else ()
        num_parameters = sum(parameter.numel() for parameter in new)
        self.layers.append(Layer(self.names[module], _kind(module), shape, num_parameters, flops))


def _kind(module: nn.Module) -> str:
    kind, kernel = type(module).__name__, getattr(module, "kernel_size", None)
    if kernel is not None:
        kind += " " + "x".join(map(str, kernel if isinstance(kernel, tuple) else (kernel, kernel)))
    if isinstance(module, nn.modules.conv._ConvNd) and max(module.stride) > 1:
        kind += f", stride {module.stride[0]}"
    return kind
