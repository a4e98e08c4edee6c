"""Format 1: what is written is read again, bit for bit, now and by every later version."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cifarnet._types import Json
from cifarnet.checkpoint.codec import flatten, unflatten
from cifarnet.checkpoint.format import decode, encode
from cifarnet.checkpoint.layout import DTYPES, MAX_HEADER_BYTES
from cifarnet.checkpoint.reading import read_checkpoint
from cifarnet.errors import SettingError, SettingTypeError

GOLDEN = Path(__file__).with_name("golden_format_1.safetensors")
GOLDEN_2 = Path(__file__).with_name("golden_format_2.safetensors")


def golden_state() -> dict[str, object]:
    """What the golden file holds: every dtype, and every kind of value."""
    numbers = torch.arange(6).reshape(2, 3)
    return {
        "dtypes": {name: (numbers % 2).to(dtype) for name, dtype in DTYPES.items()},
        "model": {"conv1.weight": numbers.float() / 7, "count": torch.tensor(11), "nothing": torch.zeros(0, 4)},
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": numbers.double() / 3}},
            "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "fused": None, "params": [0]}],
        },
        "floats": [math.inf, -math.inf, -0.0, 5e-324, 0.1, 1e300],
        "names": {"a/b": 1, "$tensor": "mine", "Käfer 🐞": True, 7: [], "7": {}},
        "seed": 2**127 + 1,
    }


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)


def raw(tensor: Tensor) -> bytes:
    return bytes(tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).tolist())


def round_trip(tensor: Tensor) -> Tensor:
    return decode(encode({"x": tensor}, {}, kind="last"), name="memory").tensors["x"]


@pytest.mark.parametrize("path", [GOLDEN, GOLDEN_2], ids=["format 1", "format 2"])
def test_golden_files_of_both_formats_are_read(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    state = unflatten(checkpoint.tensors, checkpoint.values)
    tensors, values = flatten(golden_state())
    assert checkpoint.kind == "last"
    assert checkpoint.values == values
    assert checkpoint.tensors.keys() == tensors.keys()
    assert all(same(tensor, tensors[name]) for name, tensor in checkpoint.tensors.items())
    assert state["names"] == golden_state()["names"]
    assert math.copysign(1, state["floats"][2]) == -1


def test_this_version_writes_the_golden_file() -> None:
    assert encode(*flatten(golden_state()), kind="last") == GOLDEN_2.read_bytes()


def test_another_process_writes_the_same_bytes() -> None:
    code = (
        "import hashlib, test_checkpoint_format as t\n"
        "print(hashlib.sha256(t.encode(*t.flatten(t.golden_state()), kind='last')).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(__file__).parent)}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert out.stdout.strip() == hashlib.sha256(GOLDEN_2.read_bytes()).hexdigest()


@given(st.permutations(["b", "a", "c"]))
def test_the_order_of_names_changes_no_byte(order: list[str]) -> None:
    tensors = {"a": torch.tensor([1, 2]), "b": torch.tensor(1.5), "c": torch.tensor([True])}
    values: dict[str, Json] = {"x": 1, "y": 2}
    shuffled = encode({name: tensors[name] for name in order}, dict(reversed(values.items())), kind="best")
    assert shuffled == encode(tensors, values, kind="best")


def test_other_contents_give_other_hashes() -> None:
    """The negative control: name, dtype, shape, order of the bytes and values all count."""
    x = torch.tensor([1, 2, 3, 4], dtype=torch.int32)
    variants = [
        encode({"x": x}, {}, kind="last"),
        encode({"y": x}, {}, kind="last"),
        encode({"x": x.view(torch.float32)}, {}, kind="last"),
        encode({"x": x.reshape(2, 2)}, {}, kind="last"),
        encode({"x": x.flip(0)}, {}, kind="last"),
        encode({"x": x[:2], "y": x[2:]}, {}, kind="last"),
        encode({"x": x}, {"a": 1}, kind="last"),
        encode({"x": x}, {}, kind="best"),
    ]
    stated = [json.loads(metadata(content))["sha256"] for content in variants]
    assert len(set(stated)) == len(variants)


def metadata(content: bytes) -> str:
    end = 8 + int.from_bytes(content[:8], "little")
    return str(json.loads(content[8:end])["__metadata__"]["cifarnet"])


def test_the_only_metadata_is_one_key_of_canonical_json() -> None:
    content = GOLDEN.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == ["cifarnet"]
    document = json.loads(metadata(content))
    assert json.dumps(document, sort_keys=True, separators=(",", ":")) == metadata(content)
    assert document.keys() == {"format", "kind", "sha256", "tensors_sha256", "values"}
    assert document["format"] == 1


def test_safetensors_alone_reads_the_tensors_by_the_names_they_were_given() -> None:
    weights = torch.nn.Conv2d(3, 4, 3).state_dict()
    loaded = safetensors.torch.load(encode(weights, {}, kind="best"))
    assert loaded.keys() == weights.keys()
    assert all(same(loaded[name], weight) for name, weight in weights.items())


images = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)


@pytest.mark.parametrize(
    "tensor",
    [
        images.to(memory_format=torch.channels_last),
        images.transpose(0, 3),
        images[:, ::2],
        images[0, 0, 0, 0],
        images.view(-1)[1:3:2],
        torch.zeros(()),
        torch.zeros(0),
        torch.zeros(2, 0, 3),
        torch.ones(1).expand(3, 4),
        torch.nn.Parameter(torch.ones(2)),
        torch.ones(2, requires_grad=True) * 2,
        torch.tensor([1 + 2j]).conj().imag,
        torch.tensor([math.nan, -0.0, math.inf]),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)}-{tensor.stride()}",
)
def test_a_tensor_comes_back_whatever_its_layout(tensor: Tensor) -> None:
    back = round_trip(tensor)
    assert same(back, tensor.detach().resolve_neg())
    assert back.is_contiguous()
    assert not back.requires_grad


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype_comes_back_bit_for_bit(dtype: torch.dtype) -> None:
    top = 2 if dtype is torch.bool else 256
    bits = torch.arange(256, dtype=torch.int64).remainder(top).to(torch.uint8).repeat(dtype.itemsize)
    tensor = bits.view(dtype)
    assert same(round_trip(tensor), tensor)


def test_tensors_that_share_memory_are_saved_one_by_one() -> None:
    base = torch.arange(6.0)
    tensors = {"base": base, "alias": base, "part": base[2:4]}
    back = decode(encode(tensors, {}, kind="last"), name="memory").tensors
    assert all(same(back[name], tensor) for name, tensor in tensors.items())
    back["base"].zero_()
    assert back["alias"].tolist() == base.tolist()


def test_saving_leaves_the_tensors_as_they_were() -> None:
    weight = images.clone().to(memory_format=torch.channels_last).requires_grad_()
    before = weight.stride(), weight._version, weight.data_ptr()
    encode({"weight": weight}, {}, kind="last")
    assert (weight.stride(), weight._version, weight.data_ptr()) == before


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, dtype=torch.complex64),
        torch.eye(2).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.zeros([1] * 65),
        torch.empty(0, 2**60),
    ],
    ids=["complex", "sparse", "meta", "65 dimensions", "endless"],
)
def test_a_tensor_that_the_format_cannot_hold_is_refused_by_name(tensor: Tensor) -> None:
    with pytest.raises(SettingTypeError, match=r"model/weight is a tensor of torch\.\w+.*Convert it"):
        encode({"model/weight": tensor}, {}, kind="last")


@pytest.mark.parametrize("name", ["__metadata__", "\ud800", 3])
def test_a_name_that_the_format_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(SettingTypeError, match="cannot name a tensor"):
        encode({name: torch.zeros(1)}, {}, kind="best")


def test_a_value_that_is_no_tensor_is_refused_by_name() -> None:
    with pytest.raises(SettingTypeError, match=r"block\._extra_state is a bytes"):
        encode({"block._extra_state": b""}, {}, kind="best")  # type: ignore[dict-item]


def test_what_could_not_be_read_again_is_not_written() -> None:
    with pytest.raises(SettingError, match=r"take 16,\d{3},\d{3} bytes of at most 16,777,216"):
        encode({}, "x" * (MAX_HEADER_BYTES - 100), kind="last")
