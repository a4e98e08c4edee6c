"""What a network does to one image, step by step: every layer, its output and its parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from cifarnet import randomness
from cifarnet._validation import check_count
from cifarnet.errors import InputError, SettingError, SettingTypeError
from cifarnet.models.modes import unwrapped
from cifarnet.models.tracing import Block, Layer, Recorder, recorded

__all__ = ["ModelSummary", "summarize_model"]


@dataclass(frozen=True)
class ModelSummary:
    """The layers of a network in running order; prints as a table.

    Args:
        name: Class of the network.
        image_shape: ``(C, H, W)`` of the image that it ran on.
        layers: A row for each layer and functional call; those that were not used come last.
        num_parameters: The sum over the rows: each parameter counts once, where it is first used.
        num_trainable: How many of them require gradients.
        blocks: Which rows belong together.
        links: ``(from, to)``: the numbers of two rows, the second of which takes what the first gave; from -1 is from
            the image. Rows stand in running order, so the row above need not be the one that the input is from.
    """

    name: str
    image_shape: tuple[int, int, int]
    layers: tuple[Layer, ...]
    num_parameters: int
    num_trainable: int
    blocks: tuple[Block, ...] = ()
    links: tuple[tuple[int, int], ...] = ()

    def folded(self, max_rows: int) -> ModelSummary:
        """The same network in at most ``max_rows`` rows.

        Blocks become one row each, the deepest first, and all of a class together; a container such as
        ``nn.Sequential`` folds alone. Where no block is left, the rows in the middle become one.

        Args:
            max_rows: At least 3.

        Returns:
            A summary with the same totals.

        Raises:
            SettingError: If ``max_rows`` is below 3.

        Example:
            >>> deep = nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 2)))
            >>> [row.kind for row in summarize_model(deep).folded(3).layers]
            ['flatten', 'linear', 'Sequential']
        """
        check_count("max_rows", max_rows, "24 fit a page", least=3)  # the first, the middle, the last
        summary = self
        while len(summary.layers) > max_rows and (group := _next_to_fold(summary.blocks)):
            for block in reversed(group):  # from the end, so that the rows before it keep their numbers
                summary = _fold(summary, block)
        surplus = len(summary.layers) - max_rows
        if surplus > 0:
            middle = Layer("", f"{surplus + 1} more rows", None, 0, family="block")
            start = max_rows // 2
            summary = _fold(summary, Block(middle, 1, start, start + surplus + 1))
        return summary

    def __str__(self) -> str:
        rows = [("layer", "kind", "output", "parameters")]
        for layer in self.layers:
            kind = f"{layer.kind}, {layer.detail}" if layer.detail else layer.kind
            rows.append((layer.name, kind, layer.output, f"{layer.num_parameters:,}"))
        rows.append(("total", f"{self.num_trainable:,} of them trainable", "", f"{self.num_parameters:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        template = "  ".join(f"{{:{side}{width}}}" for side, width in zip("<<<>", widths, strict=True))
        lines = [template.format(*row) for row in rows]
        title = f"{self.name} on an image of {' x '.join(map(str, self.image_shape))}"
        return "\n".join(line.rstrip() for line in (title, *lines))


#: Of lazy modules, which a first batch would turn into others for good.
_LAZY = (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)


def summarize_model(model: nn.Module, image_shape: tuple[int, int, int] | None = None) -> ModelSummary:
    """Run a network once on an image of zeros and list what it does.

    Rows stand in running order; ``links`` says which row takes its input from which, as where branches join again.
    It runs in evaluation mode, on its own device and in its own dtype; the mode of each module, its buffers, the
    random state and the hooks are as before afterwards. Leaf modules and functional calls outside them are rows.

    Args:
        model: Any network that takes images ``(N, C, H, W)``; compiled ones run uncompiled.
        image_shape: ``(C, H, W)``; ``None`` is what the library's networks were built for, else ``(3, 32, 32)``.

    Returns:
        The layers in running order.

    Raises:
        SettingError: If ``image_shape`` is not three sizes, or a parameter has no shape yet (lazy modules).
        SettingTypeError: If ``model`` is not a module.
        InputError: If the network cannot take such an image.

    Example:
        >>> print(summarize_model(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(7200, 10))))
        Sequential on an image of 3 x 32 x 32
        layer  kind                      output       parameters
        0      conv 3x3, 3 -> 8          8 x 30 x 30         224
        1      ReLU                      8 x 30 x 30           0
        2      flatten                   7,200                 0
        3      linear, 7,200 -> 10       10               72,010
        total  72,234 of them trainable                   72,234
    """
    if not isinstance(model, nn.Module):
        raise SettingTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}; pass the network itself")
    model = unwrapped(model)
    shape = _check_shape(_own_image_shape(model) if image_shape is None else image_shape)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    lazy = [name for name, tensor in [*parameters.items(), *buffers.items()] if isinstance(tensor, _LAZY)]
    if lazy:
        raise SettingError(f'"{lazy[0]}" has no shape before the first batch; pass one through the network first')
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    recorder = Recorder(model)
    tensors = [*parameters.values(), *buffers.values()]
    dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.get_default_dtype())
    image = torch.zeros(1, *shape, dtype=dtype, device=tensors[0].device if tensors else "cpu")
    try:
        with randomness.isolated(image.device, autotune=False), recorded(model, recorder, image):
            model(image)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{type(model).__name__} cannot take an image of shape {shape} ({reason}); "
            "image_shape=(C, H, W) says which it was made for"
        ) from error
    finally:
        with torch.no_grad():  # a forward may count its calls in a buffer
            for name, buffer in buffers.items():
                buffer.copy_(before[name])
    recorder.add_unused()
    total = sum(parameter.numel() for parameter in parameters.values())
    trainable = sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad)
    return ModelSummary(
        type(model).__name__,
        shape,
        tuple(recorder.rows),
        total,
        trainable,
        tuple(recorder.blocks),
        tuple(recorder.links),
    )


def _own_image_shape(model: nn.Module) -> tuple[int, int, int]:
    """What a network of the library was built for; CIFAR-10's for others."""
    arguments = getattr(model, "arguments", None)
    known = arguments if isinstance(arguments, Mapping) else {}
    size = known.get("image_size", 32)
    return known.get("in_channels", 3), size, size


def _check_shape(shape: object) -> tuple[int, int, int]:
    sizes = tuple(shape) if isinstance(shape, Iterable) else ()
    if len(sizes) != 3 or not all(type(size) is int and size > 0 for size in sizes):
        raise SettingError(
            f"image_shape must be (C, H, W), three whole numbers of at least 1, got {shape!r}; "
            "an image of CIFAR-10 has (3, 32, 32)"
        )
    return sizes


def _next_to_fold(blocks: tuple[Block, ...]) -> list[Block]:
    """Of the deepest blocks the class that saves most rows; a container alone, as its class says nothing."""
    deepest = max((block.depth for block in blocks), default=0)
    groups: dict[tuple[str, int], list[Block]] = {}
    for block in blocks:
        if block.depth == deepest:
            alone = block.start if block.row.kind == "Sequential" else -1
            groups.setdefault((block.row.kind, alone), []).append(block)
    return max(groups.values(), key=lambda group: sum(b.stop - b.start - 1 for b in group), default=[])


def _fold(summary: ModelSummary, block: Block) -> ModelSummary:
    """Put the block's row in the place of its rows."""
    rows, start, stop = summary.layers[block.start : block.stop], block.start, block.stop
    shapes = [row.output_shape for row in rows if row.output_shape is not None]
    shape = block.row.output_shape or (shapes[-1] if shapes else None)
    row = replace(block.row, output_shape=shape, num_parameters=sum(row.num_parameters for row in rows))
    saved = len(rows) - 1

    def moved(number: int) -> int:
        """The new number of a row."""
        return number - saved if number >= stop else min(number, start)

    others = [
        replace(other, start=moved(other.start), stop=moved(other.stop - 1) + 1)
        for other in summary.blocks
        if not (start <= other.start and other.stop <= stop)
    ]
    links = {(moved(source), moved(target)): None for source, target in summary.links}  # a set that keeps the order
    return replace(
        summary,
        layers=(*summary.layers[:start], row, *summary.layers[stop:]),
        blocks=tuple(others),
        links=tuple((source, target) for source, target in links if source != target),
    )
