"""File format: saved content is read again bit for bit, and any other content gives a typed error."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from checkpoint_files import SOUND, build, entry, refuse
from cifarnet.checkpoint import load_best, read_checkpoint
from cifarnet.checkpoint.file import _DTYPES, MAX_FILE_BYTES, MAX_HEADER_BYTES, canonical, decode, encode, read_kind
from cifarnet.checkpoint.state_tree import flatten, unflatten
from cifarnet.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
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


# Writing and reading


@pytest.mark.parametrize("path", GOLDEN, ids=["format 1", "format 2"])
def test_golden_files_of_both_formats_are_read(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    tensors, values = flatten(golden_state())
    assert (checkpoint.kind, checkpoint.values) == ("last", values)
    assert checkpoint.tensors.keys() == tensors.keys()
    assert all(are_same(tensor, tensors[name]) for name, tensor in checkpoint.tensors.items())
    assert unflatten(checkpoint.tensors, checkpoint.values)["names"] == golden_state()["names"]


def test_golden_file_is_written_byte_for_byte() -> None:
    assert encode(*flatten(golden_state()), kind="last") == GOLDEN[1].read_bytes()


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
        torch.arange(256, dtype=torch.uint8).repeat(2).view(torch.bfloat16),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)}-{tensor.stride()}-{tensor.dtype}",
)
def test_tensor_of_any_layout_comes_back(tensor: Tensor) -> None:
    before = tensor.stride(), tensor._version, tensor.data_ptr()
    back = decode(encode({"x": tensor}, {}, kind="last"), name="memory").tensors["x"]
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


# Hostile content. tests/promises has random damage.

EMPTY = encode({}, {}, kind="last")


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def with_metadata(text: str, content: bytes = SOUND) -> bytes:
    header, data = header_of(content)
    return build(canonical({**header, "__metadata__": {"cifarnet": text}}), data)


def with_document(content: bytes = SOUND, **changes: Any) -> bytes:
    """Return a file with other fields in its metadata, and a correct hash of the metadata."""
    document = {**json.loads(header_of(content)[0]["__metadata__"]["cifarnet"]), **changes}
    document = {key: value for key, value in document.items() if value is not ...}
    if "sha256" not in changes:
        document.pop("sha256")
        document["sha256"] = hashlib.sha256(canonical(document).encode()).hexdigest()
    return with_metadata(canonical(document), content)


def test_sound_file_is_accepted() -> None:
    """Control for the tests below."""
    assert decode(with_document(), name="x").tensors["model/n"] == 7
    contents = (encode({}, "x" * size, kind="last") for size in range(0, 512, 8))
    like_a_pickle = next(content for content in contents if content[0] == 0x80)
    assert decode(like_a_pickle, name="x").kind == "last"


def with_tensors(num_bytes: int, **entries: Any) -> bytes:
    return build({**header_of(EMPTY)[0], **entries}, bytes(num_bytes))


HEADER, DATA = header_of(SOUND)
CHANGES: list[dict[str, Any]] = [
    *({"format": value} for value in (0, True, 1.0, "1", None, ...)),
    *({"kind": value} for value in ("middle", 1, ...)),
    *({field: value} for field in ("sha256", "tensors_sha256") for value in ("0" * 64, ...)),
    *({"values": ...}, {"more": 1}),
]
HOSTILE = {
    "overlap": with_tensors(6, a=entry(), b=entry(offsets=(2, 6))),
    "shape of 2**64 bytes": with_tensors(4, a=entry(shape=(2**62,), dtype="F32", offsets=(0, 2**64))),
    "overflow to 0": with_tensors(0, a=entry(shape=(2**32, 2**32), offsets=(0, 0))),
    "unknown dtype": with_tensors(4, a=entry(dtype="F128")),
    "complex dtype": with_tensors(8, a=entry(dtype="C64", shape=(1,), offsets=(0, 8))),
    "dtype that torch lacks": with_tensors(4, a=entry(dtype="F8_E8M0")),
    "deep header": build('{"a":' + "[" * 100_000),
    "lone surrogate": build('{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', bytes(1)),
    "extended": SOUND + b"\0",
    "not canonical": build(json.dumps(HEADER, sort_keys=True), DATA),
    "every key twice": build(canonical(HEADER)[:-1] + "," + canonical(HEADER)[1:], DATA),
    **{f"metadata {text[:9]}": with_metadata(text) for text in ("", "[]", "{}", "[" * 100_000, "9" * 5000)},
    **{f"document {changes}": with_document(**changes) for changes in CHANGES},
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_content_is_refused(content: bytes) -> None:
    assert isinstance(refuse(content), CheckpointCorruptError)


def test_huge_header_is_refused_unread() -> None:
    error = refuse((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}")
    assert "without the header of a checkpoint" in str(error)


def test_newer_format_is_refused_by_name() -> None:
    error = refuse(with_document(format=3, surprise=1))
    assert isinstance(error, CheckpointMismatchError)
    assert str(error) == "last.safetensors: format 3; this version reads 2. Upgrade cifarnet"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "last.safetensors").write_bytes(SOUND)
    return tmp_path / "last.safetensors"


@pytest.mark.parametrize("values", [1, [], {"w": {"$tensor": "missing"}}, {"$evil": 1}])
def test_values_that_are_no_state_are_refused(values: Any, path: Path) -> None:
    path.write_bytes(with_document(EMPTY, values=values))
    with pytest.raises(CheckpointCorruptError, match=r"last\.safetensors is damaged: (its values|unknown or dangling)"):
        read_kind(path, "last")


@pytest.mark.parametrize("depth", [100, 500, 700])
def test_deep_values_are_read_or_refused(depth: int, path: Path) -> None:
    path.write_bytes(with_document(EMPTY, values={"a": json.loads("[" * depth + "]" * depth)}))
    with contextlib.suppress(CheckpointCorruptError) if depth > 300 else contextlib.nullcontext():
        assert read_kind(path, "last")[1]["a"]


def test_last_is_not_read_as_best(path: Path) -> None:
    with pytest.raises(CheckpointMismatchError, match='of kind "last", needed is "best"'):
        load_best(path)


def test_safetensors_file_of_another_program_is_refused(path: Path) -> None:
    for metadata in (None, {"format": "pt"}):
        safetensors.torch.save_file({"weight": torch.zeros(2)}, path, metadata)
        with pytest.raises(CheckpointCorruptError, match="another program"):
            load_best(path)


# The file system


def test_path_that_cannot_be_read_gives_a_typed_error(path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"no checkpoint at .*; check the path, or train first"):
        read_checkpoint(path.with_name("nothing.safetensors"))
    with pytest.raises(CheckpointError, match="cannot read"):
        read_checkpoint(path / "below")


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in the file system")
def test_pipes_and_devices_are_refused_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(CheckpointError, match="not a regular file"):
            read_checkpoint(path)


def test_file_beyond_the_bound_is_refused_unread(path: Path) -> None:
    os.truncate(path, MAX_FILE_BYTES + 1)  # sparse: no disk is used
    with pytest.raises(CheckpointCorruptError, match="at most 17,179,869,184"):
        read_checkpoint(path)


@pytest.mark.parametrize("change", [-1, 1])
def test_file_that_changes_while_it_is_read_is_detected(
    change: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(SOUND * 100)
    fstat = os.fstat

    def measure_and_change(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        os.truncate(path, len(SOUND) * 100 + change)
        return status

    monkeypatch.setattr(os, "fstat", measure_and_change)
    with pytest.raises(CheckpointCorruptError, match="changed while it was read"):
        read_checkpoint(path)


def test_read_error_of_the_disk_counts_as_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(CheckpointCorruptError, match="Input/output error"):
        read_checkpoint(path)
