"""The file format of checkpoints: safetensors with one metadata key and SHA-256 sums.

The metadata key ``cifarnet`` is canonical JSON (sorted keys, ASCII, no spaces, no NaN)::

    {"format": 2, "kind": "best" | "last", "sha256": ..., "tensors_sha256": ..., "values": ...}

``tensors_sha256`` covers names, dtypes, shapes and bytes of all tensors. ``sha256`` covers this JSON without itself.
The header is canonical JSON too, so that equal contents give equal files. Format 1 differs only in its values, which
the training package converts.

safetensors checks the structure of a file. `decode` then encodes the header again from what was read: a file is sound
if it begins with exactly these bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from cifarnet._files import to_path, write_atomic
from cifarnet._types import Json
from cifarnet.checkpoint.state_tree import RESERVED_NAME, unflatten
from cifarnet.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    SettingError,
)

__all__ = ["Checkpoint", "corrupt", "decode", "encode", "load_best", "read_checkpoint", "write_checkpoint"]

FORMAT_VERSION = 2

#: Largest file. A network of 6.4 million parameters with Adam's moments takes 77 MB.
MAX_FILE_BYTES = 16 * 2**30

#: Largest header. 3,000 tensors and a history of 1,000 epochs take about 1 MiB.
MAX_HEADER_BYTES = 16 * 2**20

#: End of the message of every `CheckpointCorruptError`.
REMEDY = "; if it was cut or altered, restore it from a copy or delete it"

_DTYPES = {
    **{getattr(torch, f"int{bits}"): f"I{bits}" for bits in (8, 16, 32, 64)},
    **{getattr(torch, f"uint{bits}"): f"U{bits}" for bits in (8, 16, 32, 64)},
    **{getattr(torch, f"float{bits}"): f"F{bits}" for bits in (16, 32, 64)},
    torch.bfloat16: "BF16",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}

# A zip archive, pickle protocol 2 and later, gzip, and the first opcodes of protocols 0 and 1: a global, a marked list,
# dictionary, tuple or instance, an empty one.
_EXECUTABLE = re.compile(rb"PK|\x80|\x1f\x8b|c[\w.]+\n|\((dp|lp|[ci][\w.]+\n|[FISV][^\n]*\n)|[]}]q")

#: Exceptions of safetensors, torch and json for content that is not a checkpoint.
_MALFORMED = (SafetensorError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

#: Canonical JSON of a value: sorted keys, ASCII, no spaces. It raises ValueError for NaN.
canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint file.

    Attributes:
        kind: ``"best"`` (weights to use) or ``"last"`` (state to resume).
        tensors: Tensors by name, contiguous, on the CPU.
        values: The rest as JSON, with references to the tensors.
    """

    kind: str
    tensors: dict[str, Tensor]
    values: Json


def encode(tensors: Mapping[str, Tensor], values: Json, *, kind: str) -> bytes:
    """Return the bytes of a checkpoint file, the same for equal arguments.

    Tensors can have any memory format, be on any device and share storage. ``values`` are what `flatten` gives.

    Raises:
        SettingError: If a tensor, which the message names, cannot be saved, or names and values exceed 16 MiB.
    """
    head, parts = _parts(tensors, values, kind, FORMAT_VERSION)
    if len(head) > 8 + MAX_HEADER_BYTES:
        raise SettingError(f"names and values take {len(head):,} bytes of at most {MAX_HEADER_BYTES:,}; save less")
    return b"".join([head, *parts])


def _parts(tensors: Mapping[str, Tensor], values: Json, kind: str, version: int) -> tuple[bytes, list[memoryview]]:
    """Return the file up to the first tensor, and the bytes of each tensor in the order of the file."""
    raw = {name: _raw_bytes(name, tensors[name]) for name in sorted(tensors)}
    header: dict[str, Any] = {name: {"dtype": _DTYPES[t.dtype], "shape": list(t.shape)} for name, t in tensors.items()}
    sha256 = hashlib.sha256()
    for name, content in raw.items():
        # Each part is preceded by its length, so that no two contents have the same hash.
        head = canonical([name, header[name]["dtype"], header[name]["shape"]]).encode()
        sha256.update(len(head).to_bytes(8, "little") + head + content.nbytes.to_bytes(8, "little"))
        sha256.update(content)
    document = {"format": version, "kind": kind, "tensors_sha256": sha256.hexdigest(), "values": values}
    document["sha256"] = hashlib.sha256(canonical(document).encode()).hexdigest()
    # Wide dtypes first, as safetensors does, so that each tensor is aligned without padding.
    order = sorted(raw, key=lambda name: (-tensors[name].dtype.itemsize, name))
    end = 0
    for name in order:
        begin, end = end, end + raw[name].nbytes
        header[name]["data_offsets"] = [begin, end]
    text = canonical({**header, RESERVED_NAME: {"cifarnet": canonical(document)}}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, [raw[name] for name in order]


def _raw_bytes(name: str, tensor: object) -> memoryview:
    """Return the bytes of a tensor in row-major order, without a copy if it is contiguous on the CPU."""
    if not isinstance(tensor, Tensor):
        raise SettingError(f"{name} is a {type(tensor).__name__}; only tensors can be saved under a name")
    if tensor.dtype not in _DTYPES or tensor.layout is not torch.strided or tensor.is_meta:
        described = f"{name} is a tensor of {tensor.dtype}, {tensor.layout}, on {tensor.device}"
        raise SettingError(f"{described}; convert it to a dense one of real numbers (torch.view_as_real, to_dense)")
    # A slice of one number counts as contiguous with any stride. reshape would keep the stride, view refuse it.
    flat = tensor.detach().cpu().resolve_neg().contiguous().as_strided((tensor.numel(),), (1,))
    return flat.view(torch.uint8).numpy().data


def decode(content: bytes, *, name: str) -> Checkpoint:
    """Parse and verify the untrusted bytes of a file. ``name`` is for error messages, which `read_checkpoint` lists."""
    _check_magic(content[:64], name)
    try:
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get(RESERVED_NAME) or {}
        if "cifarnet" not in metadata:
            raise ValueError('the metadata key "cifarnet" is missing, as in a file from another program')
        document = json.loads(metadata["cifarnet"])
        version, kind, values = document["format"], document.get("kind"), document.get("values")
        is_newer = type(version) is int and version > FORMAT_VERSION
        head, _ = _parts(tensors, values, kind, version)
    except _MALFORMED as error:
        raise corrupt(f"{name} of {len(content):,} bytes is damaged: {error}") from error
    if is_newer:
        raise CheckpointMismatchError(
            f"{name}: format {version}; this version reads {FORMAT_VERSION}. Upgrade cifarnet"
        )
    if type(version) is not int or version < 1 or kind not in ("best", "last") or not content.startswith(head):
        raise corrupt(f"{name} is damaged: its content does not have the SHA-256 in its header")
    return Checkpoint(kind, tensors, values)


def _check_magic(head: bytes, name: str) -> None:
    """Refuse a file whose first bytes are not those of a safetensors file."""
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES:
        return  # a sound header of 19,280 bytes begins with "PK" too, one in 32 with 0x80
    if _EXECUTABLE.match(head):
        raise CheckpointError(
            f"{name} is a pickle file (or a zip or gzip of one, as torch.save and TorchScript write); cifarnet never "
            "unpickles, because that can execute code. If you trust it, read it with torch.load(path, "
            "weights_only=True) and write it with Checkpointer.save_best"
        )
    remedy = "give a run's directory, or a safetensors file that cifarnet wrote"
    raise CheckpointCorruptError(f"{name} is without the header of a checkpoint; {remedy}")


def corrupt(message: str) -> CheckpointCorruptError:
    """Build an error about a file, with the common remedy."""
    return CheckpointCorruptError(message + REMEDY)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read and verify a checkpoint file.

    The file is read into memory, at most 16 GiB. ``load_file`` of safetensors maps it instead, and the process dies by
    SIGBUS if another process cuts the file at that time.

    Args:
        path: File that `Checkpointer` wrote.

    Raises:
        CheckpointNotFoundError: If there is no such file.
        CheckpointCorruptError: If its content is not what was saved.
        CheckpointMismatchError: If a newer cifarnet wrote it.
        CheckpointError: If it is a pickle or an archive of pickles, cannot be read, or is not a regular file.
    """
    path = to_path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # not after opening, because that waits at a named pipe
            raise CheckpointError(f"{path} is not a regular file; a checkpoint is a file named *.safetensors")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise corrupt(f"{path} is {size:,} bytes, at most {MAX_FILE_BYTES:,} are allowed")
            _check_magic(file.read(64), str(path))  # before a large file of another format is read
            file.seek(0)
            content = file.read(size + 1)
    except FileNotFoundError:
        remedy = "check the path, or train first with checkpointer=Checkpointer(...)"
        raise CheckpointNotFoundError(f"no checkpoint at {path}; {remedy}") from None
    except OSError as error:
        kind = CheckpointCorruptError if error.errno == errno.EIO else CheckpointError
        raise kind(f"cannot read {path}: {error}; check the path, its permissions and the disk") from error
    if len(content) != size:
        raise CheckpointCorruptError(f"{path} changed while it was read; is another process writing it?")
    return decode(content, name=str(path))


def load_best(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the best weights of a run and their description.

    Args:
        path: Directory of a run, or a file that `Checkpointer.save_best` wrote.

    Returns:
        Weights by name, on the CPU, and the description.

    Raises:
        CheckpointError: As `read_checkpoint`, and a `CheckpointMismatchError` if the file is of kind ``"last"``.
    """
    path = to_path(path)
    return read_kind(path / "best.safetensors" if os.path.isdir(path) else path, "best")


def read_kind(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file, and the description in ``best`` or the state, with the tensors, in ``last``."""
    checkpoint = read_checkpoint(path)
    if checkpoint.kind != kind:
        remedy = "best.safetensors holds the weights to use, last.safetensors the state to resume"
        raise CheckpointMismatchError(f'{path} is of kind "{checkpoint.kind}", needed is "{kind}"; {remedy}')
    try:
        state = unflatten(checkpoint.tensors if kind == "last" else {}, checkpoint.values)
        if not isinstance(state, dict):
            raise ValueError("its values are not a dictionary")
    except (ValueError, TypeError, RecursionError) as error:
        raise corrupt(f"{path} is damaged: {error}") from None
    return checkpoint.tensors, state


def write_checkpoint(path: Path, content: bytes, *, previous: Path | None = None) -> None:
    """Replace a checkpoint file in one step, and keep the old file as ``previous``. A failure changes nothing.

    Raises:
        CheckpointError: If the file cannot be written.
    """
    kept = "the previous checkpoint is intact" if os.path.exists(path) else "there was none before"
    with save_errors(path, f"{kept}. Free some space or choose another directory", num_bytes=len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content, previous=previous)


@contextmanager
def save_errors(path: Path, remedy: str, *, num_bytes: int = 0) -> Iterator[None]:
    """Turn an ``OSError`` into a `CheckpointError`."""
    try:
        yield
    except OSError as error:
        size = f" ({num_bytes / 1e6:,.1f} MB)" if num_bytes else ""
        raise CheckpointError(f"cannot write {path}{size}: {error.strerror or error}; {remedy}") from error
