"""The bytes of a checkpoint, format 2: a safetensors file that says what it is and proves it.

Its one metadata key, ``cifarnet``, is canonical JSON (sorted keys, ASCII, no spaces, no NaN)::

    {"format": 2, "kind": "best" | "last", "sha256": ..., "tensors_sha256": ..., "values": ...}

``tensors_sha256`` covers names, dtypes, shapes and bytes of all tensors; ``sha256`` covers this JSON without
itself, and so the first hash too. Equal contents give equal files, in every process. Format 1 has the same bytes and
other values, which `Trainer.load_state_dict` converts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cifarnet._types import Json
from cifarnet.checkpoint.codec import RESERVED_NAME
from cifarnet.checkpoint.layout import (
    DTYPES,
    MAX_HEADER_BYTES,
    Layout,
    canonical,
    corrupt,
    is_possible,
    parse_json,
    parse_layout,
)
from cifarnet.errors import CheckpointCorruptError, CheckpointVersionError, SettingError, SettingTypeError

__all__ = ["FORMAT_VERSION", "KINDS", "Checkpoint", "Metadata", "decode", "encode", "load_tensors", "parse_metadata"]

FORMAT_VERSION = 2

#: ``best``: what a classifier needs. ``last``: all that a resume needs.
KINDS = ("best", "last")

_FIELDS = {"format", "kind", "sha256", "tensors_sha256", "values"}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        kind: ``"best"`` or ``"last"``.
        tensors: On the CPU, contiguous, by name.
        values: The rest, as ``codec.flatten`` gave it.
    """

    kind: str
    tensors: dict[str, Tensor]
    values: Json


@dataclass(frozen=True)
class Metadata:
    """The ``cifarnet`` metadata of a file, its own hash verified."""

    kind: str
    tensors_sha256: str
    values: Json


def encode(tensors: Mapping[str, Tensor], values: Json, *, kind: str) -> bytes:
    """Write a checkpoint into bytes.

    Tensors may lie on any device, in any memory format, and share storage: the file holds the numbers of
    each, contiguous.

    Args:
        tensors: By name.
        values: A JSON value without NaN, as ``codec.flatten`` gives it.
        kind: ``"best"`` or ``"last"``.

    Returns:
        The content of a safetensors file, the same for equal arguments.

    Raises:
        SettingTypeError: If a tensor is complex, sparse, quantised or without storage, or a name is no text.
        SettingError: If names and values take more than 16 MiB.
    """
    assert kind in KINDS
    raw = {name: _raw_bytes(name, tensors[name]) for name in _sorted_names(tensors)}
    header: dict[str, Any] = {}
    end = 0
    # Wide dtypes first, as safetensors itself does: each tensor is aligned without padding.
    order = sorted(raw, key=lambda name: (-tensors[name].dtype.itemsize, name))
    for name in order:
        begin, end = end, end + raw[name].nbytes
        header[name] = {**_describe(tensors[name]), "data_offsets": [begin, end]}
    described = ((name, _describe(tensors[name]), content) for name, content in raw.items())
    document = {
        "format": FORMAT_VERSION,
        "kind": kind,
        "tensors_sha256": _tensors_sha256(described),
        "values": values,
    }
    document["sha256"] = _json_sha256(document)
    header[RESERVED_NAME] = {"cifarnet": canonical(document)}
    text = canonical(header).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise SettingError(f"names and values take {len(text):,} bytes of at most {MAX_HEADER_BYTES:,}; save less")
    return b"".join([len(text).to_bytes(8, "little"), text, *(raw[name] for name in order)])


def _sorted_names(tensors: Mapping[str, Tensor]) -> list[str]:
    for name in tensors:
        try:
            usable = name.encode() != RESERVED_NAME.encode()
        except (AttributeError, UnicodeEncodeError):
            usable = False
        if not usable:
            raise SettingTypeError(f"{name!r} cannot name a tensor; a name is Unicode text but not {RESERVED_NAME!r}")
    return sorted(tensors)


def _raw_bytes(name: str, tensor: object) -> memoryview:
    """The numbers of a tensor in row-major order, without a copy where it lies so already."""
    if not isinstance(tensor, Tensor):
        raise SettingTypeError(f"{name} is a {type(tensor).__name__}; only tensors can be saved under a name")
    storable = tensor.layout is torch.strided and not tensor.is_meta and is_possible(tensor.shape)
    if not storable or tensor.dtype not in _DTYPE_NAMES:
        raise SettingTypeError(
            f"{name} is a tensor of {tensor.dtype}, {tensor.layout}, on {tensor.device}; a checkpoint holds "
            "dense tensors of real numbers. Convert it, for example with torch.view_as_real or .to_dense()"
        )
    # A slice of one number counts as contiguous with any stride; reshape would keep it, view refuse it.
    flat = tensor.detach().cpu().resolve_neg().contiguous().as_strided((tensor.numel(),), (1,))
    return flat.view(torch.uint8).numpy().data


def _describe(tensor: Tensor) -> dict[str, Any]:
    return {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape)}


def _tensors_sha256(tensors: Iterable[tuple[str, Mapping[str, Any], memoryview]]) -> str:
    """Hash names, dtypes, shapes and bytes, each preceded by its length, so that nothing can pass for another.

    Args:
        tensors: Name, ``{"dtype": ..., "shape": ...}`` and bytes, in the order of the names.
    """
    sha256 = hashlib.sha256()
    for name, description, content in tensors:
        head = canonical([name, description["dtype"], description["shape"]]).encode()
        sha256.update(len(head).to_bytes(8, "little") + head + content.nbytes.to_bytes(8, "little"))
        sha256.update(content)
    return sha256.hexdigest()


def _json_sha256(document: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(canonical(rest).encode()).hexdigest()


def decode(content: bytes, *, name: str) -> Checkpoint:
    """Read a checkpoint from bytes that may be anything.

    Args:
        content: All bytes of a file.
        name: What messages call the file.

    Returns:
        What was saved, verified.

    Raises:
        UnsafeCheckpointError: If it is a pickle in any of its wrappings.
        CheckpointCorruptError: If a byte differs from what was saved.
        CheckpointVersionError: If a newer cifarnet wrote it.
    """
    layout = parse_layout(content, len(content), name=name)
    metadata = parse_metadata(layout.metadata, name=name)
    return Checkpoint(metadata.kind, load_tensors(content, layout, metadata, name=name), metadata.values)


def parse_metadata(text: str, *, name: str) -> Metadata:
    """Read and verify the text of the metadata key ``cifarnet``.

    Raises:
        CheckpointCorruptError: If it is not exactly what `encode` writes.
        CheckpointVersionError: If a newer cifarnet wrote it.
    """
    try:
        document = parse_json(text)
        is_canonical = isinstance(document, dict) and canonical(document) == text
    except ValueError as error:
        raise _corrupt_metadata(name, str(error)) from None
    version = document.get("format") if isinstance(document, dict) else None
    if type(version) is int and version > FORMAT_VERSION:
        raise CheckpointVersionError(f"{name}: format {version}; this version reads {FORMAT_VERSION}. Upgrade cifarnet")
    if not is_canonical or type(version) is not int or set(document) != _FIELDS:
        raise _corrupt_metadata(name, f"not what format {FORMAT_VERSION} writes")
    match document:
        case {
            "format": 1 | 2,
            "kind": "best" | "last" as kind,
            "sha256": sha256,
            "tensors_sha256": str(tensors_sha256),
        }:
            if sha256 != _json_sha256(document):
                raise _corrupt_metadata(name, "its SHA-256 differs from the one it states")
            return Metadata(kind, tensors_sha256, document["values"])
    raise _corrupt_metadata(name, f"a field has a value that format {FORMAT_VERSION} does not know")


def _corrupt_metadata(name: str, reason: str) -> CheckpointCorruptError:
    return corrupt(f'{name}: metadata key "cifarnet": {reason}')


def load_tensors(content: bytes, layout: Layout, metadata: Metadata, *, name: str) -> dict[str, Tensor]:
    """Verify the hash of the tensors, then load them; safetensors checks the header once more.

    Raises:
        CheckpointCorruptError: If the hash differs, or safetensors reads another header than `parse_layout`.
    """
    view = memoryview(content)
    places = sorted(layout.places.items())
    described = ((key, {"dtype": p.dtype, "shape": p.shape}, view[p.begin : p.end]) for key, p in places)
    if _tensors_sha256(described) != metadata.tensors_sha256:
        raise corrupt(f"{name}: the SHA-256 of its tensors differs from the one it states")
    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise corrupt(f"{name}: safetensors refuses it ({error})") from error
    if {key: (_DTYPE_NAMES[t.dtype], tuple(t.shape)) for key, t in tensors.items()} != {
        key: (place.dtype, place.shape) for key, place in places
    }:
        raise corrupt(f"{name}: its header can be read in two ways")
    return tensors
