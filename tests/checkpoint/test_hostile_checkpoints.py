"""Whatever the bytes are: the right state or a typed error, and nothing of the file is ever executed."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
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
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cifarnet.checkpoint import load_best, read_checkpoint
from cifarnet.checkpoint.codec import flatten
from cifarnet.checkpoint.format import decode, encode, parse_metadata
from cifarnet.checkpoint.layout import MAX_HEADER_BYTES, canonical
from cifarnet.checkpoint.reading import MAX_FILE_BYTES, read_state
from cifarnet.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CheckpointVersionError,
    CifarnetError,
    UnsafeCheckpointError,
)

STATE = {"model": {"w": torch.arange(300.0).reshape(3, 100), "n": torch.tensor(7)}, "epoch": 3, "lr": [0.1, 0.2]}
SOUND = encode(*flatten(STATE), kind="last")


def refused(content: bytes) -> CifarnetError:
    with pytest.raises(CifarnetError) as caught:
        decode(content, name="last.safetensors")
    assert str(caught.value).startswith("last.safetensors")
    return caught.value


def build(header: Any, data: bytes = b"", *, pad: bool = True) -> bytes:
    """A file with this header, which is JSON text or a value; our metadata is added where there is none."""
    if isinstance(header, dict):
        header = {"__metadata__": {"cifarnet": "{}"}} | header
    text = (header if isinstance(header, str) else canonical(header)).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8 if pad else 0)
    return len(text).to_bytes(8, "little") + text + data


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def with_metadata(text: str) -> bytes:
    header, data = header_of(SOUND)
    return build({**header, "__metadata__": {"cifarnet": text}}, data)


def with_document(**changes: Any) -> bytes:
    """The sound file with other fields in its metadata, each hash of the metadata right again."""
    document = {**json.loads(header_of(SOUND)[0]["__metadata__"]["cifarnet"]), **changes}
    document = {key: value for key, value in document.items() if value is not ...}
    if "sha256" not in changes:
        document.pop("sha256")
        document["sha256"] = hashlib.sha256(canonical(document).encode()).hexdigest()
    return with_metadata(canonical(document))


def test_the_unaltered_file_is_sound() -> None:
    """The control for everything below."""
    assert decode(SOUND, name="last.safetensors").tensors["model/n"] == 7
    assert decode(with_document(), name="last.safetensors").kind == "last"


# Truncated and altered files


@pytest.mark.parametrize("size", [*range(0, len(SOUND), 512), 1, 7, 8, 9, len(SOUND) - 1])
def test_every_truncation_is_detected(size: int) -> None:
    assert isinstance(refused(SOUND[:size]), CheckpointCorruptError)


def test_a_truncated_file_says_both_sizes() -> None:
    assert f"is 1,500 bytes, its header says {len(SOUND):,}" in str(refused(SOUND[:1500]))
    assert f"is {len(SOUND) + 1:,} bytes, its header says {len(SOUND):,}" in str(refused(SOUND + b"\0"))


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


def test_a_flipped_bit_of_a_tensor_is_named() -> None:
    altered = SOUND[:-1] + bytes([SOUND[-1] ^ 1])
    assert "SHA-256 of its tensors differs" in str(refused(altered))


@given(st.binary(max_size=300))
@example(b"")
def test_any_bytes_are_refused(content: bytes) -> None:
    refused(content)


@given(st.binary(max_size=200), st.binary(max_size=40))
def test_any_bytes_behind_a_plausible_length_are_refused(text: bytes, data: bytes) -> None:
    refused((len(text) + 1).to_bytes(8, "little") + b"{" + text + data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), json_values, max_size=4), st.binary(max_size=9))
def test_any_json_header_is_refused(header: dict[str, Any], data: bytes) -> None:
    refused(build(json.dumps(header), data))


@given(json_values)
def test_any_json_in_the_metadata_is_refused(document: Any) -> None:
    error = refused(with_metadata(json.dumps(document, sort_keys=True, separators=(",", ":"))))
    assert 'metadata key "cifarnet"' in str(error)


places = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "I64", "BOOL", "F4", "C64", "F8_E8M0"]),
        "shape": st.lists(st.sampled_from([0, 1, 2, 4, 2**31, 2**62, -1]), max_size=4),
        "data_offsets": st.lists(st.sampled_from([0, 4, 8, 16, 2**63, 2**64, -4]), min_size=2, max_size=2),
    }
)


@given(st.dictionaries(st.sampled_from(["a", "b", "", "../../etc/passwd", "\0"]), places, max_size=3))
def test_any_tensor_table_without_our_metadata_is_refused(table: dict[str, Any]) -> None:
    refused(build(table, bytes(16)))


# Hostile headers


def tensor(dtype: str = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def text(members: str) -> str:
    return '{"__metadata__":{"cifarnet":"{}"},' + members + "}"


HEADERS: dict[str, tuple[Any, bytes]] = {
    "other metadata": ({"__metadata__": {"format": "pt"}, "a": tensor()}, bytes(4)),
    "metadata beside ours": ({"__metadata__": {"cifarnet": "{}", "x": ""}}, b""),
    "metadata that is a list": ({"__metadata__": ["cifarnet"]}, b""),
    "metadata that is a number": ({"__metadata__": {"cifarnet": 1}}, b""),
    "overlap": ({"a": tensor(), "b": tensor(offsets=(2, 6))}, bytes(6)),
    "the same place twice": ({"a": tensor(), "b": tensor()}, bytes(4)),
    "hole": ({"a": tensor(), "b": tensor(offsets=(8, 12))}, bytes(12)),
    "hole at the start": ({"a": tensor(offsets=(4, 8))}, bytes(8)),
    "negative": ({"a": tensor(offsets=(-4, 0))}, b""),
    "backwards": ({"a": tensor(offsets=(4, 0))}, bytes(4)),
    "shape too large for its offsets": ({"a": tensor(shape=(5,))}, bytes(4)),
    "shape too small for its offsets": ({"a": tensor(shape=(3,))}, bytes(4)),
    "shape of 2**64 bytes": ({"a": tensor(shape=(2**62,), dtype="F32", offsets=(0, 2**64))}, bytes(4)),
    "overflow to 0": ({"a": tensor(shape=(2**32, 2**32), offsets=(0, 0))}, b""),
    "overflow beside 0": ({"a": tensor(shape=(0, 2**62, 2**62), offsets=(0, 0))}, b""),
    "1,000 dimensions": ({"a": tensor(shape=[1] * 1000, offsets=(0, 1))}, bytes(1)),
    "negative shape": ({"a": tensor(shape=(-2, -2))}, bytes(4)),
    "shape of floats": ({"a": tensor(shape=(4.0,))}, bytes(4)),
    "shape of booleans": ({"a": tensor(shape=(True,), offsets=(0, 1))}, bytes(1)),
    "offsets of booleans": ({"a": tensor(shape=(1,), offsets=(False, True))}, bytes(1)),
    "three offsets": ({"a": tensor(offsets=(0, 4, 4))}, bytes(4)),
    "unknown dtype": ({"a": tensor(dtype="F128")}, bytes(4)),
    "dtype of a list": ({"a": {**tensor(), "dtype": []}}, bytes(4)),
    "foreign field": ({"a": {**tensor(), "stride": [1]}}, bytes(4)),
    "missing field": ({"a": {"dtype": "U8", "shape": [4]}}, bytes(4)),
    "tensor that is a number": ({"a": 4}, bytes(4)),
    "key twice": (text('"a":0,"a":{"data_offsets":[0,1],"dtype":"U8","shape":[1]}'), bytes(1)),
    "NaN": (text('"a":NaN'), b""),
    "infinity": (text('"a":1e999'), b""),
    "5,000 digits": (text('"a":' + "9" * 5000), b""),
    "deep lists": ('{"a":' + "[" * 100_000, b""),
    "deep dictionaries": ('{"a":' * 100_000, b""),
    "spaces": (text('"a": ' + canonical(tensor())), bytes(4)),
    "another order": (text('"a":{"shape":[1],"data_offsets":[0,1],"dtype":"U8"}'), bytes(1)),
    "other digits": (text('"a":{"data_offsets":[0,1],"dtype":"U8","shape":[1.0]}'), bytes(1)),
    "no JSON": ("{nonsense}", b""),
    "no UTF-8": (text('"a":"\ud800"'), b""),
    "lone surrogate": (text('"a":"\\ud800"'), b""),
}


@pytest.mark.parametrize(("header", "data"), HEADERS.values(), ids=HEADERS)
def test_a_hostile_header_is_refused(header: Any, data: bytes) -> None:
    error = refused(build(header, data))
    assert isinstance(error, CheckpointCorruptError)
    assert "its header is not a checkpoint's" in str(error)


def test_a_header_that_is_not_padded_is_refused() -> None:
    header, data = header_of(encode({"x": torch.zeros(1)}, "odd length", kind="last"))
    assert len(canonical(header)) % 8
    decode(build(header, data), name="x")
    refused(build(header, data, pad=False))


def test_the_lengths_in_the_header_are_those_of_the_file() -> None:
    assert "its header says" in str(refused(build({"a": tensor()}, bytes(5))))
    assert 'metadata key "cifarnet": not what format 2 writes' in str(refused(build({"a": tensor()}, bytes(4))))


@pytest.mark.parametrize("depth", range(50, 1100, 50))
def test_nesting_of_any_depth_is_a_typed_error(depth: int) -> None:
    """Parsing and writing JSON give up at different depths."""
    nested = "[" * depth + "]" * depth
    refused(build(text(f'"a":{nested}')))
    refused(with_metadata(nested))
    refused(with_metadata(f'{{"format":1,"values":{nested}}}'))


def test_a_reader_that_sees_other_tensors_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = safetensors.torch.load
    monkeypatch.setattr(safetensors.torch, "load", lambda content: {**real(content), "more": torch.zeros(1)})
    assert "can be read in two ways" in str(refused(SOUND))


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 2**31, 2**63, 2**64 - 1])
def test_a_huge_header_is_refused_before_it_is_read(length: int) -> None:
    assert "without the header of a checkpoint" in str(refused(length.to_bytes(8, "little") + b"{}"))


def test_a_name_that_safetensors_refuses_is_refused() -> None:
    """Python's JSON knows lone surrogates, Rust's does not; the hashes are right."""
    good = encode({"aaaaaa": torch.zeros(1)}, {}, kind="best")
    header, data = header_of(good)
    decode(good, name="x")
    head = canonical(["\ud800", "F32", [1]]).encode()
    digest = hashlib.sha256(len(head).to_bytes(8, "little") + head + (4).to_bytes(8, "little") + data).hexdigest()
    document = json.loads(header["__metadata__"]["cifarnet"])
    del document["sha256"]
    document["tensors_sha256"] = digest
    document["sha256"] = hashlib.sha256(canonical(document).encode()).hexdigest()
    forged = {"\ud800": header["aaaaaa"], "__metadata__": {"cifarnet": canonical(document)}}
    assert "safetensors refuses it" in str(refused(build(forged, data)))


MEASURED = """
import re, sys
from pathlib import Path
from cifarnet.checkpoint import read_checkpoint
from cifarnet.errors import CheckpointCorruptError
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
held = b"1" * int(sys.argv[2])
try:
    read_checkpoint(sys.argv[1])
except CheckpointCorruptError as error:
    print(peak() - before, error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc of Linux")
def test_a_file_that_declares_more_than_it_has_allocates_nothing(tmp_path: Path) -> None:
    """In a process of its own: the peak of this one is high already, and would not move.

    ``ru_maxrss`` would not do even there: a child begins with the peak of its parent.
    """
    size = 256 * 2**20
    header = {"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    path = tmp_path / "last.safetensors"
    path.write_bytes(build(header))

    def measure(held: int) -> tuple[int, str]:
        command = [sys.executable, "-c", MEASURED, str(path), str(held)]
        grown, told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(maxsplit=1)
        return int(grown), told

    grown, told = measure(0)
    assert f"its header says {size + len(build(header)):,}" in told
    assert grown < 32 * 1024
    assert measure(size)[0] > 200 * 1024  # the control: so much is seen


# The metadata


def test_a_newer_format_is_refused_by_name() -> None:
    error = refused(with_document(format=3, surprise=1))
    assert isinstance(error, CheckpointVersionError)
    assert str(error) == "last.safetensors: format 3; this version reads 2. Upgrade cifarnet"


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 0},
        {"format": True},
        {"format": 1.0},
        {"format": "1"},
        {"format": None},
        {"kind": "middle"},
        {"kind": 1},
        {"kind": ...},
        {"tensors_sha256": 1},
        {"tensors_sha256": "0" * 64},
        {"tensors_sha256": ...},
        {"values": ...},
        {"more": 1},
        {"sha256": "0" * 64},
        {"sha256": 1},
        {"sha256": ...},
    ],
    ids=str,
)
def test_the_metadata_has_a_closed_schema(changes: dict[str, Any]) -> None:
    assert isinstance(refused(with_document(**changes)), CheckpointCorruptError)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '"x"',
        "NaN",
        '{"format":NaN}',
        '{"format": 1}',
        "[" * 100_000,
        '{"format":1e400}',
        "9" * 5000,
    ],
    ids=lambda text: text[:20] or "empty",
)
def test_broken_metadata_is_refused(text: str) -> None:
    assert str(refused(with_metadata(text))).startswith('last.safetensors: metadata key "cifarnet": ')


@pytest.mark.parametrize(
    "values", [1, [], {"w": {"$tensor": "missing"}}, {"w": {"$tensor": "model/w"}}, {"$evil": 1}], ids=str
)
def test_values_that_fit_no_state_are_refused(values: Any, tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    path.write_bytes(with_document(values=values))
    with pytest.raises(CheckpointCorruptError, match=r'last\.safetensors: metadata key "cifarnet"'):
        read_state(path)


def test_a_state_that_is_no_dictionary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    path.write_bytes(encode({}, [1], kind="last"))
    with pytest.raises(CheckpointCorruptError, match="its values are no dictionary"):
        read_state(path)


def test_a_checkpoint_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    path.write_bytes(SOUND)
    with pytest.raises(CheckpointMismatchError, match='of kind "last", needed is "best"'):
        load_best(path)


# Files that could execute code


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.trace),)


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
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
    **{f"list {protocol}": pickled(lambda payload: [payload], protocol) for protocol in range(6)},
    "torch.save": lambda payload: saved_by_torch(payload, zip_format=True),
    "old torch.save": lambda payload: saved_by_torch(payload, zip_format=False),
    "zip": lambda payload: zipped(pickle.dumps(payload)),
    "gzip": lambda payload: gzip.compress(pickle.dumps(payload)),
}


@pytest.mark.parametrize("make", DANGEROUS.values(), ids=DANGEROUS)
def test_a_pickle_is_refused_and_not_executed(make: Callable[[Payload], bytes], tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    path = tmp_path / "best.safetensors"
    path.write_bytes(make(Payload(trace)))
    with pytest.raises(UnsafeCheckpointError, match=r"best\.safetensors is a pickle file .* never unpickles"):
        load_best(tmp_path)
    assert not trace.exists()


def test_the_payload_does_leave_a_trace_where_it_is_unpickled(tmp_path: Path) -> None:
    """The negative control: without it, the absence of the trace would prove nothing."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_torchscript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    path.write_bytes(zipped(b"").replace(b"data.pkl", b"code.pkl"))
    with pytest.raises(UnsafeCheckpointError, match="TorchScript"):
        load_best(path)


@pytest.mark.parametrize("first_bytes", [0x80, 0x4B50], ids=["pickle's", "zip's"])
def test_a_sound_file_whose_length_looks_like_magic_is_read(first_bytes: int) -> None:
    """The first bytes are the header's length, which may be those of a pickle or a zip archive."""
    unit = 2 ** (8 if first_bytes < 256 else 16)
    for size in range(unit // 8 + 1):
        content = encode({}, "x" * (size * 8), kind="last")
        if int.from_bytes(content[:8], "little") % unit == first_bytes:
            break
    assert content.startswith(first_bytes.to_bytes(len(f"{first_bytes:x}") // 2, "little"))
    assert decode(content, name="x").values == "x" * (size * 8)


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointCorruptError, match="another program"):
        load_best(path)


# Files that are no files


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"no checkpoint at .*; check the path, or train first"):
        read_checkpoint(tmp_path / "nothing.safetensors")


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in the file system")
def test_a_named_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_checkpoint(tmp_path / "pipe")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no device files")
def test_a_device_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_checkpoint("/dev/zero")


@pytest.mark.parametrize("name", [".", "file/below", "x" * 300])
def test_a_path_that_cannot_be_read_is_a_typed_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot read"):
        read_checkpoint(tmp_path / name)


def test_a_file_beyond_the_bound_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # sparse: no disk is used
    with pytest.raises(CheckpointCorruptError, match="more than the 17,179,869,184"):
        read_checkpoint(path)


@pytest.mark.parametrize("change", ["cut", "grow", "rewrite"])
def test_a_file_that_changes_while_it_is_read_is_detected(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.safetensors"
    sound = encode({"w": torch.zeros(1000, 300)}, "v" * 300_000, kind="last")  # more than a buffer
    path.write_bytes(sound)

    def parse_and_change(*args: Any, **kwargs: Any) -> Any:
        other = sound.replace(b"[1000,300]", b"[300,1000]")
        path.write_bytes({"cut": sound[:-1], "grow": sound + b"\0", "rewrite": other}[change])
        return parse_metadata(*args, **kwargs)

    monkeypatch.setattr("cifarnet.checkpoint.reading.parse_metadata", parse_and_change)
    with pytest.raises(CheckpointCorruptError, match="changed while it was read"):
        read_checkpoint(path)


def test_a_read_error_of_the_disk_counts_as_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(CheckpointCorruptError, match="Input/output error"):
        read_checkpoint(tmp_path / "last.safetensors")
