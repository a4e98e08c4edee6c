"""Reads CIFAR-10's pickled batches without running them.

A pickle is a program for a small stack machine, and ``pickle.load`` runs whatever it says. Limiting its
``find_class`` is not enough against a hostile file: CPython's machine sizes its memo by a number in the file
(64 GB from a few bytes) and hashes any nested tuple given as a key (forever). So this is a machine of its own,
on the standard library's parser of instructions: it knows the instructions that a batch of the published
form needs, and three names (numpy's ``_reconstruct``, ``ndarray`` and ``dtype``) that here mean one thing only,
an array of uint8. Nothing is imported or called.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from reprlib import repr as shown  # short whatever it shows: nested tuples can double with every level
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import numpy.typing as npt

from cifarnet.errors import DatasetFormatError

__all__ = ["LARGEST_BATCH", "read_pickled_batch"]

#: Bytes; the published batches have 31.0 MB.
LARGEST_BATCH: Final = 2**25
_MOST_INSTRUCTIONS: Final = 500_000  # the published batches have about 60,000

_GLOBALS: Final = {
    "numpy.core.multiarray _reconstruct": "_reconstruct",
    "numpy._core.multiarray _reconstruct": "_reconstruct",  # as numpy 2 writes it
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
}
_CONSTANTS: Final[dict[str, Any]] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES: Final = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "SHORT_BINSTRING", "BINSTRING"}
    | {"SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES"}
)


@dataclass(frozen=True)
class _Name:
    """One of the three names; it is not what it names in numpy."""

    name: str


@dataclass
class _Array:
    """What ``_reconstruct`` makes and BUILD fills: uint8 of this shape, not converted before it is asked for."""

    shape: tuple[int, ...] = ()
    content: bytes | str = b""
    order: Literal["C", "F"] = "C"


class _Malformed(Exception):  # noqa: N818 (it never leaves this module)
    """The file is no batch; the text says why."""


def read_pickled_batch(file: BinaryIO, where: str, rows: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Read a batch in the published pickled form; nothing in the file is executed.

    Args:
        file: Opened for reading in binary.
        where: Its name for messages.
        rows: How many images it must hold.

    Returns:
        Pixels, uint8 ``(rows, 3072)``, and labels in ``[0, 9]``, uint8 ``(rows,)``.

    Raises:
        DatasetFormatError: If the file holds anything else than such a batch.
    """
    content = file.read(LARGEST_BATCH + 1)
    try:
        if len(content) > LARGEST_BATCH:
            raise _Malformed(f"more than {LARGEST_BATCH:,} bytes, expected about 31,000,000")
        batch = _Machine().run(content)
        return _pixels(batch, rows), _labels(batch, rows)
    except _Malformed as error:
        raise DatasetFormatError(
            f"{where}: {error}; cifarnet reads only batches as published, and cifar-10-binary.tar.gz needs no pickle"
        ) from error


def _pixels(batch: dict[str, Any], rows: int) -> npt.NDArray[np.uint8]:
    array = batch.get("data")
    if not isinstance(array, _Array):
        raise _Malformed('expected an array under "data"')
    if array.shape != (rows, 3072):
        raise _Malformed(f"data has shape {array.shape}, expected ({rows}, 3072)")
    content = array.content
    if isinstance(content, str):  # Python 2 wrote bytes as its str; the parser gives those as Latin-1
        content = content.encode("latin-1", errors="replace")
    return np.frombuffer(content, np.uint8).reshape(array.shape, order=array.order)


def _labels(batch: dict[str, Any], rows: int) -> npt.NDArray[np.uint8]:
    labels = batch.get("labels")
    if not isinstance(labels, list) or len(labels) != rows:
        raise _Malformed(f'expected a list of {rows:,} numbers under "labels"')
    for row, label in enumerate(labels):
        if type(label) is not int or not 0 <= label <= 9:
            raise _Malformed(f"label {shown(label)} at row {row} (0 to 9)")
    return np.array(labels, np.uint8)


@dataclass
class _Machine:
    """The stack, the marks on it, and the memo of one run."""

    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self, content: bytes) -> dict[str, Any]:
        """Run a whole program; its result must be a dict with names as keys."""
        instructions = pickletools.genops(content)
        for _ in range(_MOST_INSTRUCTIONS):
            try:
                operation, argument, position = next(instructions)
            except (ValueError, StopIteration, Warning) as error:  # no instruction; a Warning if those are errors
                raise _Malformed(f"not a whole pickle ({error})") from error
            if operation.name == "STOP":
                result: dict[str, Any] = self._pop(dict)
                return result
            try:
                self._step(operation.name, argument)
            except (IndexError, KeyError) as error:  # an empty stack, or nothing under that number
                raise _Malformed(f"{operation.name} at byte {position} lacks its operands") from error
        raise _Malformed(f"more than {_MOST_INSTRUCTIONS:,} instructions")

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(self._global(argument))
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name not in ("PROTO", "FRAME"):
            self._combine(name)

    def _combine(self, name: str) -> None:
        """The instructions that make one value of several."""
        if name in ("EMPTY_DICT", "EMPTY_LIST"):
            self.stack.append({} if name == "EMPTY_DICT" else [])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3", "TUPLE"):
            values = self._since_mark() if name == "TUPLE" else self._take(int(name[-1]))
            self.stack.append(tuple(values))
        elif name in ("APPEND", "APPENDS"):
            values = self._since_mark() if name == "APPENDS" else self._take(1)
            self._peek(list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = self._since_mark() if name == "SETITEMS" else self._take(2)
            self._set_items(self._peek(dict), values)
        elif name == "REDUCE":
            arguments, function = self._pop(tuple), self._pop(_Name)
            self.stack.append(_reduce(function.name, arguments))
        elif name == "BUILD":
            _build(self._pop(tuple), self.stack[-1])
        else:
            raise _refused(f"instruction {name}")

    def _global(self, argument: str | None) -> _Name:
        if argument is None:  # STACK_GLOBAL has its module and name on the stack
            module, name = (value if isinstance(value, str) else shown(value) for value in self._take(2))
            argument = f"{module} {name}"
        if argument not in _GLOBALS:
            raise _refused(f"the name {shown(argument.replace(' ', '.'))}")
        return _Name(_GLOBALS[argument])

    def _set_items(self, target: dict[str, Any], values: list[Any]) -> None:
        for key, value in zip(values[::2], values[1::2], strict=False):
            name = key.decode("latin-1") if isinstance(key, bytes) else key
            if not isinstance(name, str):
                raise _Malformed(f"a key of type {type(key).__name__}, expected a name")
            target[name] = value

    def _take(self, count: int) -> list[Any]:
        taken = [self.stack.pop() for _ in range(count)]
        return taken[::-1]

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _peek(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise _Malformed(f"a {type(self.stack[-1]).__name__} where a {kind.__name__} must be")
        return self.stack[-1]

    def _pop(self, kind: type) -> Any:
        if not self.stack:
            raise _Malformed("no result")
        self._peek(kind)
        return self.stack.pop()


def _reduce(function: str, arguments: tuple[Any, ...]) -> _Array | _Name:
    """What ``function(*arguments)`` would make: an empty array, or the one dtype."""
    if function == "_reconstruct" and arguments[:1] == (_Name("ndarray"),):
        return _Array()
    if function == "dtype" and arguments[:1] in (("u1",), (b"u1",)):
        return _Name("uint8")
    raise _refused(f"a call of {function}{shown(arguments)}")


def _build(state: tuple[Any, ...], target: Any) -> None:
    """Fill an array by ``(version, shape, dtype, in Fortran's order, bytes)``; a dtype's state says nothing new."""
    if target == _Name("uint8"):
        return
    if not isinstance(target, _Array) or len(state) != 5:
        raise _refused(f"state for a {type(target).__name__}")
    _, shape, dtype, fortran, content = state
    if dtype != _Name("uint8") or not isinstance(content, bytes | str):
        raise _Malformed("an array of another type than uint8")
    if type(shape) is not tuple or len(shape) != 2 or not all(type(length) is int for length in shape):
        raise _Malformed(f"an array of shape {shown(shape)}, expected (rows, 3072)")
    if min(shape) < 0 or shape[0] * shape[1] != len(content):
        raise _Malformed(f"an array of shape {shape} in {len(content):,} bytes")
    target.shape, target.content, target.order = shape, content, "F" if fortran is True else "C"


def _refused(what: str) -> _Malformed:
    return _Malformed(f"asks for {what}, which no CIFAR-10 batch needs (refused, not run)")
