"""One run of a network, recorded: every layer and functional call, in running order."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cifarnet.models.modes import evaluation_mode, unwrapped
from cifarnet.models.wording import SILENT, Family, call_key, describe, describe_module, field_name, name_arguments

__all__ = ["IMAGE", "Block", "Layer", "Recorder", "recorded"]

#: The image among the rows that a row takes its input from.
IMAGE = -1


@dataclass(frozen=True)
class Layer:
    """One row of a summary.

    Args:
        name: Dotted path of the module, empty for a functional call.
        kind: In the field's words, such as ``"conv 3x3"``; the class of a module that has none.
        output_shape: Without the batch; ``None`` if nothing came out, as for a layer that was not used.
        num_parameters: Those that no earlier row counted.
        detail: Such as ``"3 -> 32"`` channels, or how many layers were folded.
        family: What the kind belongs to.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...] | None
    num_parameters: int
    detail: str = ""
    family: Family = "other"

    @property
    def output(self) -> str:
        """The shape in words, such as ``"32 x 30 x 30"``."""
        if self.output_shape is None:
            return "-"
        return " x ".join(f"{size:,}" for size in self.output_shape) or "scalar"


@dataclass(frozen=True)
class Block:
    """Rows ``start`` to ``stop`` (exclusive) of a summary, which one module ran and which fold into one row.

    Args:
        row: What they fold into.
        depth: Of the calls: blocks directly in the network have 1.
        start: First row.
        stop: Row behind the last one.
    """

    row: Layer
    depth: int
    start: int
    stop: int


@contextmanager
def recorded(model: nn.Module, recorder: Recorder, image: Tensor) -> Iterator[None]:
    """Within the block every call is recorded, in evaluation mode and without gradients."""
    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(recorder.enter).remove)
            # always_call: a forward that catches an exception of its layers must not leave them entered.
            stack.callback(module.register_forward_hook(recorder.leave, with_kwargs=True, always_call=True).remove)
        if "torch._dynamo" in sys.modules:  # else nothing here is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        recorder.follow([image], {IMAGE})
        with evaluation_mode(model), torch.no_grad(), _FunctionalCalls(recorder):
            yield


class _FunctionalCalls(TorchFunctionMode):
    """Shows the recorder every call of a torch function on tensors."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.recorder.call(getattr(func, "__name__", "?"), args, kwargs or {}, result)
        return result


class Recorder:
    """Turns calls into rows. Only what is computed from the image counts: not a mask, not a scaled weight.

    Args:
        model: Whose calls they are.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.rows: list[Layer] = []
        self.blocks: list[Block] = []
        self.links: list[tuple[int, int]] = []  # from a row, or the image, to a later one that takes its output
        #: Compiled parts of a network are wrapped; their names leave the wrapper out.
        self.paths = {m: re.sub(r"(^|\.)_orig_mod\b", "", path).strip(".") for path, m in model.named_modules()}
        self.entered: list[tuple[nn.Module, int]] = []  # with the first row of each
        self.ran: set[nn.Module] = set()
        self.uncounted = {id(parameter): parameter for parameter in model.parameters()}
        # By id, and kept alive so that no id is used twice: one image needs little memory.
        self.from_image: dict[int, tuple[Tensor, set[int]]] = {}  # with the rows that gave it
        self.from_parameters: dict[int, tuple[Tensor, list[Tensor]]] = {}

    def follow(self, tensors: Iterable[Tensor], rows: set[int]) -> None:
        """From now on what is computed from these is a row, with a link from ``rows``."""
        self.from_image.update((id(tensor), (tensor, rows)) for tensor in tensors)

    def enter(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook of every module."""
        self.entered.append((module, len(self.rows)))

    def leave(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        """Forward hook of every module."""
        _, start = self.entered.pop()
        outputs = list(_tensors(result))
        if self._inside_leaf() or result is None:  # None: it raised, and the module around it may go on
            return
        self.ran.add(module)
        path, output = self.paths[module], outputs[0] if outputs else None
        if len(self.rows) == start:  # a leaf, or a module that hides what it does
            inputs = list(_tensors((args, kwargs)))
            kind, detail, family = describe_module(module, inputs[0] if inputs else None, output)
            count = self._count(module.parameters())
            self._add_row(Layer(path, kind, _shape(output), count, detail, family), inputs, outputs)
            return
        hidden = [tensor for tensor in outputs if id(tensor) not in self.from_image]
        self.follow(hidden, {len(self.rows) - 1})
        if self.entered:
            self._add_block(start, path, type(unwrapped(module)).__name__, _shape(output))

    def call(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """A torch function returned."""
        outputs = list(_tensors(result))
        if not outputs or self._inside_leaf():
            return
        inputs = list(_tensors((args, kwargs)))
        parameters = [parameter for tensor in inputs for parameter in self._parameters_in(tensor)]
        before = next((tensor for tensor in inputs if id(tensor) in self.from_image), None)
        if before is None:
            self.from_parameters.update((id(tensor), (tensor, parameters)) for tensor in outputs)
            return
        if call_key(name)[0] in SILENT or not (outputs[0].is_floating_point() or outputs[0].is_complex()):
            self.follow(outputs, self._sources(inputs))
            return
        kind, detail, family = describe(name, name_arguments(name, args) | dict(kwargs), before, outputs[0])
        layer = Layer("", kind, _shape(outputs[0]), self._count(parameters), detail, family)
        self._add_row(layer, inputs, outputs)

    def _add_row(self, layer: Layer, inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> None:
        row = len(self.rows)
        self.rows.append(layer)
        self.links += [(source, row) for source in sorted(self._sources(inputs))]
        self.follow(outputs, {row})

    def _sources(self, tensors: Iterable[Tensor]) -> set[int]:
        """The rows that gave these."""
        known = [self.from_image[id(tensor)] for tensor in tensors if id(tensor) in self.from_image]
        return {row for _, rows in known for row in rows}

    def add_unused(self) -> None:
        """Give parameters that no row used a row each: the largest module that did not run, or their owner."""
        start = len(self.rows)
        for module, path in self.paths.items():
            untouched = all(id(parameter) in self.uncounted for parameter in module.parameters())
            whole = untouched and module not in self.ran
            count = self._count(module.parameters(recurse=whole))
            if count:
                kind, _, family = describe_module(module, None, None) if whole else ("parameters", "", "other")
                self.rows.append(Layer(path, f"{kind}, not used", None, count, "", family))
        self.entered.append((self.model, start))
        self._add_block(start, "", "not used", None)

    def _add_block(self, start: int, path: str, kind: str, shape: tuple[int, ...] | None) -> None:
        """Note that a module ran all rows from ``start``; of two around the same rows a mere container goes."""
        stop = len(self.rows)
        inner = self.blocks[-1] if self.blocks else None
        if inner is not None and (inner.start, inner.stop) == (start, stop):
            if kind == "Sequential":
                return
            self.blocks.pop()
        if stop - start > 1:
            row = Layer(path, kind, shape, 0, f"{stop - start} layers", "block")
            self.blocks.append(Block(row, len(self.entered), start, stop))

    def _inside_leaf(self) -> bool:
        return any(self._is_leaf(module) for module, _ in self.entered)

    def _is_leaf(self, module: nn.Module) -> bool:
        """A network without parts is looked into all the same: it calls functions, and nothing else would show."""
        childless = next(module.children(), None) is None
        return field_name(module) is not None or (childless and module is not self.model)

    def _parameters_in(self, tensor: Tensor) -> list[Tensor]:
        """The parameter itself, or those that it was computed from."""
        return [tensor] if id(tensor) in self.uncounted else self.from_parameters.get(id(tensor), (tensor, []))[1]

    def _count(self, parameters: Iterable[Tensor]) -> int:
        """Elements of those that were not counted before."""
        taken = [self.uncounted.pop(id(parameter), None) for parameter in parameters]
        return sum(parameter.numel() for parameter in taken if parameter is not None)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _shape(output: Tensor | None) -> tuple[int, ...] | None:
    return None if output is None else tuple(output.shape[1:])
