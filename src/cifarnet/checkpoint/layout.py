"""The head of a safetensors file, read as if somebody hostile had written it.

Eight bytes give the length of a JSON header (little-endian), which gives each tensor's dtype, shape and
place; the tensors follow without a gap. Everything is checked against the file's real size before one
byte is allocated for a tensor.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cifarnet.checkpoint.codec import RESERVED_NAME
from cifarnet.errors import CheckpointCorruptError, UnsafeCheckpointError

__all__ = [
    "DTYPES",
    "HEAD_BYTES",
    "MAX_HEADER_BYTES",
    "REMEDY",
    "Layout",
    "Place",
    "canonical",
    "corrupt",
    "header_end",
    "is_possible",
    "parse_json",
    "parse_layout",
]

#: 3,000 tensors and a history of 1,000 epochs take about 1 MiB; parsing hostile JSON takes 20 times its size.
MAX_HEADER_BYTES = 16 * 2**20

#: How many of a file's first bytes show what it is.
HEAD_BYTES = 64

#: torch's own operators stop at 64 dimensions.
MAX_DIMS = 64

#: What safetensors calls the dtypes that a checkpoint may hold.
DTYPES = {
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "I8": torch.int8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "U8": torch.uint8,
}

#: How the message of every `CheckpointCorruptError` ends.
REMEDY = "; if it was cut or altered, restore it from a copy or delete it"

_EXECUTABLE = {
    rb"PK": "a zip archive, as torch.save and TorchScript write them",
    rb"\x80": "as pickle.dump and old torch.save write them",
    rb"\x1f\x8b": "or another file inside gzip",
    # The first opcodes of protocols 0 and 1: a global, a marked list, dict, tuple or instance, an empty one.
    rb"c[\w.]+\n|\((dp|lp|[ci][\w.]+\n|[FISV][^\n]*\n)|[]}]q": "in one of the oldest protocols",
}


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the file: its bytes are ``[begin, end)``, counted from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Layout:
    """A header that agrees with the file's size: the ``cifarnet`` metadata and every tensor's place."""

    metadata: str
    places: dict[str, Place]


def header_end(head: bytes, size: int, *, name: str) -> int:
    """Where the header ends and the tensors begin, from the first bytes of a file.

    Args:
        head: The file's first `HEAD_BYTES` bytes, or as many as there are.
        size: The file's size in bytes.
        name: What messages call the file.

    Returns:
        An offset in bytes, at most ``size``.

    Raises:
        UnsafeCheckpointError: If it is a pickle in any of its wrappings.
        CheckpointCorruptError: If it is no safetensors file, or is cut within its header.
    """
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or length > MAX_HEADER_BYTES:
        # Only here: a sound header of 19,280 bytes begins with "PK" too, one in 32 with 0x80.
        _refuse_executable(head, name)
        raise CheckpointCorruptError(
            f"{name} is {size:,} bytes without the header of a checkpoint; give a run's directory, or a safetensors "
            "file that cifarnet wrote"
        )
    if 8 + length > size:
        raise _wrong_size(name, size, 8 + length)
    return 8 + length


def _refuse_executable(head: bytes, name: str) -> None:
    for pattern, what in _EXECUTABLE.items():
        if re.match(pattern, head):
            raise UnsafeCheckpointError(
                f"{name} is a pickle file ({what}); cifarnet never unpickles, because that can execute code. If you "
                "trust it, read it with torch.load(path, weights_only=True) and write it with Checkpointer.save_best"
            )


def corrupt(message: str) -> CheckpointCorruptError:
    """An error about a file, with the remedy that they all share."""
    return CheckpointCorruptError(message + REMEDY)


def _wrong_size(name: str, size: int, declared: int) -> CheckpointCorruptError:
    return corrupt(f"{name} is {size:,} bytes, its header says {declared:,}")


def parse_layout(head: bytes, size: int, *, name: str) -> Layout:
    """Read and check the header of a safetensors file that cifarnet wrote.

    Args:
        head: The file's first bytes, at least to the header's end; the whole file will do.
        size: The file's size in bytes.
        name: What messages call the file.

    Returns:
        The metadata and the places of the tensors, which cover the rest of the file exactly.

    Raises:
        UnsafeCheckpointError: If it is a pickle in any of its wrappings.
        CheckpointCorruptError: If anything in the header is impossible.
    """
    start = header_end(head[:HEAD_BYTES], size, name=name)
    try:
        text = head[8:start].decode()
        header = parse_json(text)
        metadata = _parse_metadata(header.get(RESERVED_NAME))
        # Refuses a key given twice, NaN, numbers written otherwise: whatever two parsers could read in two ways.
        if canonical(header) != text.rstrip(" ") or len(text) % 8:
            raise ValueError("it is not canonical JSON")
        places = {key: _parse_place(key, place, start) for key, place in header.items() if key != RESERVED_NAME}
        end = _check_cover(places, start)
    except ValueError as error:
        raise corrupt(f"{name}: its header is not a checkpoint's: {error}") from None
    if end != size:
        raise _wrong_size(name, size, end)
    return Layout(metadata, places)


def _parse_metadata(metadata: Any) -> str:
    match metadata:
        case {"cifarnet": str(text), **others} if not others:
            return text
    raise ValueError('metadata key "cifarnet" is missing or not alone, as in a file from another program')


def parse_json(text: str) -> Any:
    """Parse JSON from anywhere. What `canonical` makes of the result shows whether the text was canonical.

    Raises:
        ValueError: If the text is not JSON, or nests too deep to parse.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def canonical(value: Any) -> str:
    """The one text that stands for a JSON value: sorted keys, ASCII, no spaces.

    Raises:
        ValueError: If there is a NaN or an infinity in it, or it nests too deep.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def _parse_place(key: str, place: Any, start: int) -> Place:
    match place:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if len(place) == 3:
            pass
        case _:
            raise ValueError(f"tensor {key[:80]!r} is not a dtype, a shape and two offsets")
    if dtype not in DTYPES:
        raise ValueError(f"tensor {key[:80]!r} has the unknown dtype {dtype[:20]!r}")
    if not all(type(length) is int for length in (begin, end, *shape)) or not is_possible(shape):
        raise ValueError(f"tensor {key[:80]!r} has an impossible shape")
    if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"tensor {key[:80]!r} has offsets that do not fit its shape")
    return Place(dtype, tuple(shape), start + begin, start + end)


def is_possible(shape: Sequence[int]) -> bool:
    """Whether a tensor of this shape can exist. torch multiplies the lengths in 64 bits, 1 in place of 0."""
    return len(shape) <= MAX_DIMS and min(shape, default=0) >= 0 and math.prod(max(n, 1) for n in shape) < 2**60


def _check_cover(places: dict[str, Place], start: int) -> int:
    """The end of the last tensor, if they follow one another without a gap and without an overlap."""
    end = start
    for place in sorted(places.values(), key=lambda place: (place.begin, place.end)):
        if place.begin != end:
            raise ValueError("tensors overlap or leave a gap")
        end = place.end
    return end
