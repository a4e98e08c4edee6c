"""A CUDA graph on a CPU: operations are recorded without effect, and replayed on the same tensors.

As on a GPU, a number that the host computed during the recording is frozen, and reading a value of the device is an
error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_FORBIDDEN = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_fill.Tensor,  # reads the value that it fills in
    torch.ops.aten.masked_fill_.Tensor,
)
_WRITTEN_IN_SILENCE = ("running_mean", "running_var")  # batch norm's schemas do not declare it


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self._first_values: list[tuple[Tensor, Tensor]] = []
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FORBIDDEN:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.name in _WRITTEN_IN_SILENCE or (argument.alias_info and argument.alias_info.is_write):
                written = [tensor for tensor in _tensors(value) if _storage(tensor) not in self._made]
                self._first_values += [(tensor, tensor.clone()) for tensor in written]
        output = func(*args, **kwargs)
        self._made |= set(map(_storage, _tensors(output))) - set(map(_storage, _tensors((args, kwargs))))
        self.calls.append((func, args, kwargs, output))
        return output

    def undo(self) -> None:
        """Restore what the recording has changed, because a graph would not have computed."""
        for tensor, value in reversed(self._first_values):
            tensor.copy_(value)
        self._first_values.clear()

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, output in self.calls:
                new = func(*args, **kwargs)
                read = set(map(_storage, _tensors((args, kwargs))))
                for old, value in zip(_tensors(output), _tensors(new), strict=True):
                    if _storage(old) not in read:
                        old.copy_(value)


def capture(function: Callable[[], None]) -> Callable[[], None]:
    """Replace `torch.cuda.graph`."""
    tape = Tape()
    with tape:
        function()
    with torch.no_grad():
        tape.undo()
    return tape.replay


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_iter(values) if isinstance(value, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
