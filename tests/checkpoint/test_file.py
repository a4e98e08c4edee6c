"""File format: saved content is read again bit for bit; any other bytes give a typed error and execute nothing."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import itertools
import json
import math
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cifarnet.checkpoint import load_best, read_checkpoint
from cifarnet.checkpoint.file import _DTYPES, MAX_FILE_BYTES, MAX_HEADER_BYTES, canonical, decode, encode, read_kind
from cifarnet.checkpoint.state_tree import flatten, unflatten
from cifarnet.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CifarnetError,
    SettingError,
)

GOLDEN = [Path(__file__).with_name(f"golden_format_{version}.safetensors") for version in (1, 2)]


def golden_state() -> dict[str, object]:
    """Return the content of the golden files: every dtype, and every kind of value."""
    numbers = torch.arange(6).reshape(2, 3)
    return {
        "dtypes": {name: (numbers % 2).to(dtype) for dtype, name in _DTYPES.items()},
        "model": {"conv1.weight": numbers.float() / 7, "count": torch.tensor(11), "nothing": torch.zeros(0, 4)},
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": numbers.double() / 3}},
            "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "fused": None, "params": [0]}],
        },
        "floats": [math.inf, -math.inf, -0.0, 5e-324, 0.1, 1e300],
        "names": {"a/b": 1, "$tensor": "mine", "Käfer 🐞": True, 7: [], "7": {}},
        "seed": 2**127 + 1,
    }


def are_same(a: Tensor, b: Tensor) -> bool:
    raw = [t.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)


def round_trip(tensor: Tensor) -> Tensor:
    return decode(encode({"x": tensor}, {}, kind="last"), name="memory").tensors["x"]


# Writing and reading


@pytest.mark.parametrize("path", GOLDEN, ids=["format 1", "format 2"])
def test_golden_files_of_both_formats_are_read(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    tensors, values = flatten(golden_state())
    assert (checkpoint.kind, checkpoint.values) == ("last", values)
    assert checkpoint.tensors.keys() == tensors.keys()
    assert all(are_same(tensor, tensors[name]) for name, tensor in checkpoint.tensors.items())
    assert unflatten(checkpoint.tensors, checkpoint.values)["names"] == golden_state()["names"]


def test_any_process_writes_the_golden_file_byte_for_byte() -> None:
    assert encode(*flatten(golden_state()), kind="last") == GOLDEN[1].read_bytes()
    code = "import sys, test_file as t; sys.stdout.buffer.write(t.encode(*t.flatten(t.golden_state()), kind='last'))"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, timeout=60)
    assert done.stdout == GOLDEN[1].read_bytes()


images = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)


@pytest.mark.parametrize(
    "tensor",
    [
        images.to(memory_format=torch.channels_last),
        images[:, ::2],
        images.view(-1)[1:3:2],
        torch.zeros(()),
        torch.zeros(2, 0, 3),
        torch.ones(1).expand(3, 4),
        torch.nn.Parameter(torch.ones(2)),
        torch.tensor([1 + 2j]).conj().imag,
        torch.tensor([math.nan, -0.0, math.inf]),
        *(
            torch.arange(256).to(torch.uint8).repeat(dtype.itemsize).view(dtype)
            for dtype in (torch.float16, torch.bfloat16)
        ),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)}-{tensor.stride()}-{tensor.dtype}",
)
def test_tensor_of_any_layout_comes_back(tensor: Tensor) -> None:
    before = tensor.stride(), tensor._version, tensor.data_ptr()
    back = round_trip(tensor)
    assert are_same(back, tensor.detach().resolve_neg())
    assert back.is_contiguous()
    assert not back.requires_grad
    assert (tensor.stride(), tensor._version, tensor.data_ptr()) == before


@pytest.mark.parametrize(
    "value", [torch.zeros(2, dtype=torch.complex64), torch.eye(2).to_sparse(), torch.zeros(2, device="meta"), b"bytes"]
)
def test_encode_refuses_what_it_cannot_hold_by_name(value: Any) -> None:
    with pytest.raises(SettingError, match=r"model/weight is a (tensor of torch\.\w+.*convert it|bytes)"):
        encode({"model/weight": value}, {}, kind="last")


def test_encode_refuses_a_header_that_decode_would_refuse() -> None:
    with pytest.raises(SettingError, match=r"take 16,\d{3},\d{3} bytes of at most 16,777,216"):
        encode({}, "x" * (MAX_HEADER_BYTES - 100), kind="last")


# Damaged and hostile files

STATE = {"model": {"w": torch.arange(300.0).reshape(3, 100), "n": torch.tensor(7)}, "epoch": 3, "lr": [0.1, 0.2]}
SOUND = encode(*flatten(STATE), kind="last")


def refused(content: bytes) -> CifarnetError:
    with pytest.raises(CifarnetError) as caught:
        decode(content, name="last.safetensors")
    assert str(caught.value).startswith("last.safetensors")
    return caught.value


def build(header: Any, data: bytes = b"") -> bytes:
    """Return a file with this header, which is JSON text or a value."""
    text = (header if isinstance(header, str) else json.dumps(header, separators=(",", ":"))).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def with_metadata(text: str, content: bytes = SOUND) -> bytes:
    header, data = header_of(content)
    return build(canonical({**header, "__metadata__": {"cifarnet": text}}), data)


def with_document(**changes: Any) -> bytes:
    """Return the sound file with other fields in its metadata, and a correct hash of the metadata."""
    document = {**json.loads(header_of(SOUND)[0]["__metadata__"]["cifarnet"]), **changes}
    document = {key: value for key, value in document.items() if value is not ...}
    if "sha256" not in changes:
        document.pop("sha256")
        document["sha256"] = hashlib.sha256(canonical(document).encode()).hexdigest()
    return with_metadata(canonical(document))


def test_sound_file_is_accepted() -> None:
    """Control for all tests below."""
    assert decode(SOUND, name="x").tensors["model/n"] == 7
    assert decode(with_document(), name="x").kind == "last"


@pytest.mark.parametrize("size", [*range(0, len(SOUND), 512), 1, 7, 8, 9, len(SOUND) - 1, len(SOUND) + 1])
def test_every_truncation_and_extension_is_detected(size: int) -> None:
    assert isinstance(refused((SOUND + b"\0")[:size]), CheckpointCorruptError)


@given(st.integers(0, len(SOUND) - 1), st.integers(1, 255))
@settings(max_examples=400)
def test_every_altered_byte_is_detected(position: int, mask: int) -> None:
    altered = bytearray(SOUND)
    altered[position] ^= mask
    refused(bytes(altered))


def test_every_flipped_bit_of_the_header_is_detected() -> None:
    end = 8 + int.from_bytes(SOUND[:8], "little")
    for position, bit in itertools.product(range(end), range(8)):
        altered = bytearray(SOUND)
        altered[position] ^= 1 << bit
        refused(bytes(altered))


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(content: bytes) -> None:
    refused(content)
    refused((len(content) + 1).to_bytes(8, "little") + b"{" + content)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), json_values, max_size=4), st.binary(max_size=9))
def test_any_json_header_is_refused(header: dict[str, Any], data: bytes) -> None:
    refused(build(header, data))


def tensor(dtype: str = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


EMPTY = encode({}, {}, kind="last")
METADATA = json.loads(header_of(EMPTY)[0]["__metadata__"]["cifarnet"])
HEADERS: dict[str, tuple[Any, bytes]] = {
    "overlap": ({"a": tensor(), "b": tensor(offsets=(2, 6))}, bytes(6)),
    "hole": ({"a": tensor(), "b": tensor(offsets=(8, 12))}, bytes(12)),
    "negative offset": ({"a": tensor(offsets=(-4, 0))}, b""),
    "shape of another size": ({"a": tensor(shape=(5,))}, bytes(4)),
    "shape of 2**64 bytes": ({"a": tensor(shape=(2**62,), dtype="F32", offsets=(0, 2**64))}, bytes(4)),
    "overflow to 0": ({"a": tensor(shape=(2**32, 2**32), offsets=(0, 0))}, b""),
    "overflow beside 0": ({"a": tensor(shape=(0, 2**62, 2**62), offsets=(0, 0))}, b""),
    "0 elements beyond 64 bits": ({"a": tensor(shape=(0, 2**64 - 1), offsets=(0, 0))}, b""),
    "unknown dtype": ({"a": tensor(dtype="F128")}, bytes(4)),
    "complex dtype": ({"a": tensor(dtype="C64", shape=(1,), offsets=(0, 8))}, bytes(8)),
    "dtype that torch lacks": ({"a": tensor(dtype="F8_E8M0")}, bytes(4)),
    "deep lists": ('{"a":' + "[" * 100_000, b""),
    "lone surrogate": ('{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', bytes(1)),
}


@pytest.mark.parametrize(("header", "data"), HEADERS.values(), ids=HEADERS)
def test_hostile_header_is_refused(header: Any, data: bytes) -> None:
    metadata = {"__metadata__": {"cifarnet": canonical(METADATA)}}
    content = build({**metadata, **header} if isinstance(header, dict) else header, data)
    assert isinstance(refused(content), CheckpointCorruptError)


def test_header_that_is_not_canonical_is_refused() -> None:
    header, data = header_of(SOUND)
    assert build(canonical(header), data) == SOUND
    refused(build(json.dumps(header, sort_keys=True), data))
    refused(build(canonical(header)[:-1] + "," + canonical(header)[1:], data))  # every key twice


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 2**31, 2**63, 2**64 - 1])
def test_huge_header_is_refused_unread(length: int) -> None:
    assert "without the header of a checkpoint" in str(refused(length.to_bytes(8, "little") + b"{}"))


def test_newer_format_is_refused_by_name() -> None:
    error = refused(with_document(format=3, surprise=1))
    assert isinstance(error, CheckpointMismatchError)
    assert str(error) == "last.safetensors: format 3; this version reads 2. Upgrade cifarnet"


CHANGES: list[dict[str, Any]] = [
    *({"format": value} for value in (0, True, 1.0, "1", None, ...)),
    *({"kind": value} for value in ("middle", 1, ...)),
    *({field: value} for field in ("sha256", "tensors_sha256") for value in ("0" * 64, ...)),
    *({"values": ...}, {"more": 1}),
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_metadata_has_a_closed_schema(changes: dict[str, Any]) -> None:
    assert isinstance(refused(with_document(**changes)), CheckpointCorruptError)


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '"x"', '{"format":NaN}', "[" * 100_000, "9" * 5000])
def test_broken_metadata_is_refused(text: str) -> None:
    assert isinstance(refused(with_metadata(text)), CheckpointCorruptError)


@pytest.mark.parametrize("values", [1, [], {"w": {"$tensor": "missing"}}, {"w": {"$tensor": "model/w"}}, {"$evil": 1}])
def test_values_that_are_no_state_are_refused(values: Any, tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    path.write_bytes(with_document(values=values))
    with pytest.raises(CheckpointCorruptError, match=r"last\.safetensors is damaged"):
        read_kind(path, "last")


@pytest.mark.parametrize("depth", [100, 500, 900, 1500])
def test_deep_values_are_read_or_refused(depth: int, tmp_path: Path) -> None:
    document = {"format": 2, "kind": "last", "tensors_sha256": METADATA["tensors_sha256"], "values": {"a": "MARK"}}
    nested = "[" * depth + "]" * depth
    sha256 = hashlib.sha256(canonical(document).replace('"MARK"', nested).encode()).hexdigest()
    path = tmp_path / "last.safetensors"
    path.write_bytes(with_metadata(canonical({**document, "sha256": sha256}).replace('"MARK"', nested), EMPTY))
    with contextlib.suppress(CheckpointCorruptError) if depth > 300 else contextlib.nullcontext():
        assert read_kind(path, "last")[1]["a"]


def test_last_is_not_read_as_best(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    path.write_bytes(SOUND)
    with pytest.raises(CheckpointMismatchError, match='of kind "last", needed is "best"'):
        load_best(path)


# Memory

MEASURED = """
import re, sys
from pathlib import Path
from cifarnet.checkpoint import read_checkpoint
from cifarnet.errors import CheckpointCorruptError
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
held = b"1" * int(sys.argv[2])
try:
    read_checkpoint(sys.argv[1])
except CheckpointCorruptError as error:
    pass
print(peak() - before)
"""


def measure(path: Path, held: int = 0) -> int:
    """Return the growth of the peak memory in bytes while a fresh process reads a file."""
    command = [sys.executable, "-c", MEASURED, str(path), str(held)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc of Linux")
def test_declared_size_allocates_nothing(tmp_path: Path) -> None:
    size = 256 * 2**20
    path = tmp_path / "last.safetensors"
    path.write_bytes(build({"__metadata__": {"cifarnet": "{}"}, "a": tensor(shape=(size,), offsets=(0, size))}))
    assert measure(path) < 32 * 2**20
    assert measure(path, size) > 200 * 2**20, "control: the measurement sees that much"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc of Linux")
@pytest.mark.parametrize("kind", ["tensors", "values"])
def test_hostile_header_costs_at_most_64_times_its_size(kind: str, tmp_path: Path) -> None:
    size, values = 2**20, ""
    tensors = {f"{i:x}": tensor(shape=(1,), offsets=(i, i + 1)) for i in range(size // 60 if kind == "tensors" else 0)}
    if kind == "values":
        values = "{}," * (size // 3) + "{}"
    path = tmp_path / "last.safetensors"
    metadata = f'{{"format":2,"kind":"last","values":[{values}]}}'
    path.write_bytes(build({"__metadata__": {"cifarnet": metadata}, **tensors}, bytes(len(tensors))))
    assert path.stat().st_size >= 0.9 * size
    assert measure(path) < 64 * path.stat().st_size


# Files that could execute code


class Payload:
    """Object that creates a directory when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.trace),)


def zipped(content: bytes, name: str = "data.pkl") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def saved_by_torch(payload: object, *, zip_format: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": payload}, buffer, _use_new_zipfile_serialization=zip_format)
    return buffer.getvalue()


def pickled(wrap: Callable[[Payload], object], protocol: int) -> Callable[[Payload], bytes]:
    return lambda payload: pickle.dumps(wrap(payload), protocol=protocol)


DANGEROUS: dict[str, Callable[[Payload], bytes]] = {
    **{f"object {protocol}": pickled(lambda payload: payload, protocol) for protocol in range(6)},
    **{f"dict {protocol}": pickled(lambda payload: {"weight": payload}, protocol) for protocol in range(6)},
    "torch.save": lambda payload: saved_by_torch(payload, zip_format=True),
    "old torch.save": lambda payload: saved_by_torch(payload, zip_format=False),
    "TorchScript": lambda payload: zipped(pickle.dumps(payload), "code.pkl"),
    "gzip": lambda payload: gzip.compress(pickle.dumps(payload)),
}


@pytest.mark.parametrize("make", DANGEROUS.values(), ids=DANGEROUS)
def test_pickle_is_refused_and_not_executed(make: Callable[[Payload], bytes], tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    (tmp_path / "best.safetensors").write_bytes(make(Payload(trace)))
    with pytest.raises(CheckpointError, match=r"best\.safetensors is a pickle file .* never unpickles"):
        load_best(tmp_path)
    assert not trace.exists()


def test_unpickled_payload_leaves_a_trace(tmp_path: Path) -> None:
    """Control: without it, the missing trace would prove nothing."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_sound_file_whose_length_looks_like_a_pickle_is_read() -> None:
    contents = (encode({}, "x" * size, kind="last") for size in range(0, 512, 8))
    content = next(content for content in contents if content[0] == 0x80)
    assert decode(content, name="x").kind == "last"


def test_safetensors_file_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    for metadata in (None, {"format": "pt"}):
        safetensors.torch.save_file({"weight": torch.zeros(2)}, path, metadata)
        with pytest.raises(CheckpointCorruptError, match="another program"):
            load_best(path)


# The file system


def test_missing_file_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"no checkpoint at .*; check the path, or train first"):
        read_checkpoint(tmp_path / "nothing.safetensors")


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in the file system")
def test_pipes_and_devices_are_refused_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(CheckpointError, match="not a regular file"):
            read_checkpoint(path)


def test_path_that_cannot_be_read_gives_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot read"):
        read_checkpoint(tmp_path / "file" / "below")


def test_file_beyond_the_bound_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # sparse: no disk is used
    with pytest.raises(CheckpointCorruptError, match="at most 17,179,869,184"):
        read_checkpoint(path)


@pytest.mark.parametrize("change", [-1, 1])
def test_file_that_changes_while_it_is_read_is_detected(
    change: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.safetensors"
    path.write_bytes(SOUND * 100)
    real = os.fstat

    def measure_and_change(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        os.truncate(path, len(SOUND) * 100 + change)
        return status

    monkeypatch.setattr(os, "fstat", measure_and_change)
    with pytest.raises(CheckpointCorruptError, match="changed while it was read"):
        read_checkpoint(path)


def test_read_error_of_the_disk_counts_as_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    path = tmp_path / "last.safetensors"
    path.write_bytes(SOUND)
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(CheckpointCorruptError, match="Input/output error"):
        read_checkpoint(path)
