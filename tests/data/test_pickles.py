from __future__ import annotations

import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_cifar import LABELS, PIXELS, ROWS, pickled_batch

from cifarnet.data import pickles
from cifarnet.data.pickles import read_pickled_batch
from cifarnet.errors import DatasetFormatError

GOOD = pickled_batch(PIXELS[0], LABELS[0])
PICTURE = GOOD.index(PIXELS[0].tobytes())


def read(content: bytes, rows: int = ROWS) -> tuple[Any, Any]:
    return read_pickled_batch(io.BytesIO(content), "data_batch_2", rows)


def test_a_batch_as_published_is_read() -> None:
    pixels, labels = read(GOOD)
    assert np.array_equal(pixels, PIXELS[0])
    assert np.array_equal(labels, LABELS[0])


def test_what_is_read_here_is_what_pickle_would_have_made() -> None:
    batch = pickle.loads(GOOD, encoding="bytes")
    assert np.array_equal(batch[b"data"], PIXELS[0])
    assert batch[b"labels"] == LABELS[0].tolist()


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("fortran", [False, True])
def test_a_batch_pickled_anew_by_this_numpy_is_read(protocol: int, as_bytes: bool, fortran: bool) -> None:
    data = np.asfortranarray(PIXELS[0]) if fortran else PIXELS[0]
    batch: dict[Any, Any] = {"labels": LABELS[0].tolist(), "data": data, "extra": [(1, 2, 3, 4), None, (), 70_000]}
    if as_bytes:
        batch = {key.encode(): value for key, value in batch.items()}
    pixels, labels = read(pickle.dumps(batch, protocol))
    assert np.array_equal(pixels, PIXELS[0])
    assert np.array_equal(labels, LABELS[0])


class Gadget:
    """Pickles as a call; unpickled by ``pickle.load`` it would make the folder ``made``."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("place", ["whole", "value", "label", "key"])
def test_a_gadget_is_refused_and_not_run(tmp_path: Path, protocol: int, place: str) -> None:
    made = tmp_path / "made"
    gadget = Gadget(made)
    batch: Any = {"data": PIXELS[0], "labels": LABELS[0].tolist()}
    if place == "whole":
        batch = gadget
    elif place == "label":
        batch["labels"][2] = gadget
    else:
        batch |= {"more": gadget} if place == "value" else {gadget: 1}
    content = pickle.dumps(batch, protocol)
    with pytest.raises(DatasetFormatError, match=r"data_batch_2: .*; cifarnet reads only batches as published"):
        read(content)
    assert not made.exists()
    pickle.loads(content)
    assert made.exists(), "the gadget does not work, so the test above proves nothing"


def test_the_refused_name_is_told(tmp_path: Path) -> None:
    content = pickle.dumps(Gadget(tmp_path / "made"), 2)
    with pytest.raises(
        DatasetFormatError, match=rf"asks for the name '{os.name}.mkdir', which no CIFAR-10 batch needs"
    ):
        read(content)


NUMPY = b"cnumpy.core.multiarray\n_reconstruct\n"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"(S'true'\nios\nsystem\n.", "instruction"),  # INST calls without REDUCE
        (b"(cos\nsystem\nU\x04trueo.", "the name 'os.system'"),
        (b"U\x05posixU\x06system\x93.", "the name 'posix.system'"),
        (b"\x82\x01.", "instruction EXT1"),
        (b"Ppersistent\n.", "instruction PERSID"),
        (b"cnumpy\nndarray\n)\x81.", "instruction NEWOBJ"),
        (b"cnumpy\ndtype\nU\x01O\x85R.", r"a call of dtype\('O',\)"),
        (NUMPY + b"cnumpy\ndtype\n\x85R.", "a call of _reconstruct"),
        (b"cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R.", "a call of ndarray"),
        (NUMPY + b"(U\x0c__setstate__K\x00tb.", "state for a _Name"),
        (NUMPY + b"cnumpy\nndarray\n\x85R(K\x01tb.", "state for a _Array"),
        (b"K\x01.", "a int where a dict must be"),
        (b".", "no result"),
        (b"q\x00.", "BINPUT at byte 0 lacks its operands"),
        (b"h\x05.", "BINGET at byte 0 lacks its operands"),
        (b"e.", "APPENDS at byte 0 lacks its operands"),
        (b"}K\x01K\x02s.", "a key of type int"),
        (b"}.", 'expected an array under "data"'),
        (b"", "not a whole pickle"),
        (b"<html>", "not a whole pickle"),
        (b"\x8e" + struct.pack("<Q", 2**62) + b"x.", "not a whole pickle"),
    ],
)
def test_a_hostile_program_is_refused(program: bytes, message: str) -> None:
    with pytest.raises(DatasetFormatError, match=message):
        read(program)


def test_a_memo_index_of_two_billion_costs_nothing() -> None:
    pixels, _ = read(GOOD.replace(b"q\x01", b"r\xff\xff\xff\x7f", 1))  # pickle.loads would ask for 32 GB
    assert np.array_equal(pixels, PIXELS[0])


#: A tuple of a tuple of a tuple ..., each one twice: hashing or printing it takes 2**60 steps.
NESTED = b"K\x01" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
LABELS_OF = b"}(U\x04data" + GOOD[GOOD.index(NUMPY) : -2] + b"U\x06labels](K\x01K\x01"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"}" + NESTED + b"K\x01s.", "a key of type tuple"),
        (NUMPY + NESTED + b"R.", r"a call of _reconstruct\(\("),
        (NESTED + b"U\x06system\x93.", "the name"),
        (
            NUMPY + b"cnumpy\nndarray\n\x85R(K\x01" + NESTED + b"cnumpy\ndtype\nU\x02u1\x85RNU\x00tb.",
            "an array of shape",
        ),
        (LABELS_OF + NESTED + b"K\x01eu.", r"label \(\(.* at row 2"),
    ],
    ids=["key", "call", "name", "shape", "label"],
)
def test_a_value_that_takes_forever_to_hash_or_print_is_refused_at_once(program: bytes, message: str) -> None:
    with pytest.raises(DatasetFormatError, match=message):
        read(program)


def test_size_and_length_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatasetFormatError, match="more than 500,000 instructions"):
        read(b"N" * 500_001 + b".")
    monkeypatch.setattr(pickles, "LARGEST_BATCH", len(GOOD) - 1)
    with pytest.raises(DatasetFormatError, match=r"data_batch_2: more than .* bytes, expected about 31,000,000"):
        read(GOOD)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"data": PIXELS[0]}, 'a list of 4 numbers under "labels"'),
        ({"data": PIXELS[0], "labels": (1, 2, 3, 4)}, 'a list of 4 numbers under "labels"'),
        ({"data": PIXELS[0], "labels": [1, 2, 3]}, 'a list of 4 numbers under "labels"'),
        ({"data": PIXELS[0], "labels": [1, 2, 10, 3]}, r"label 10 at row 2 \(0 to 9\)"),
        ({"data": PIXELS[0], "labels": [1, -1, 2, 3]}, "label -1 at row 1"),
        ({"data": PIXELS[0], "labels": [1, True, 2, 3]}, "label True at row 1"),
        ({"data": PIXELS[0], "labels": [2**99, 1, 2, 3]}, "label 633825300114114700748351602688 at row 0"),
        ({"labels": [1, 2, 3, 4]}, 'an array under "data"'),
        ({"data": b"bytes", "labels": [1, 2, 3, 4]}, 'an array under "data"'),
        ({"data": PIXELS[0, :3], "labels": [1, 2, 3, 4]}, r"shape \(3, 3072\), expected \(4, 3072\)"),
        ({"data": PIXELS[0].reshape(-1), "labels": [1, 2, 3, 4]}, r"shape \(12288,\), expected \(rows, 3072\)"),
        ({"data": PIXELS[0].astype(np.uint16), "labels": [1, 2, 3, 4]}, "a call of dtype"),
        ({"data": np.array([[{}]]), "labels": [1, 2, 3, 4]}, "a call of dtype"),
    ],
)
def test_a_batch_of_another_form_is_refused(batch: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetFormatError, match=message):
        read(pickle.dumps(batch, 3))


def test_an_array_whose_shape_and_bytes_differ_is_refused() -> None:
    wrong = GOOD.replace(b"M\x04\x00M\x00\x0c\x86", b"M\x04\x00M\x01\x0c\x86")
    with pytest.raises(DatasetFormatError, match=r"shape \(4, 3073\) in 12,288 bytes"):
        read(wrong)
    with pytest.raises(DatasetFormatError, match="another type than uint8"):
        read(GOOD[: GOOD.index(b"cnumpy\ndtype")] + b"N" + GOOD[GOOD.index(b"tq\x11b") + 4 :])


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, PICTURE - 1), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.none() | st.integers(0, len(GOOD) - 1),
)
def test_random_changes_give_a_typed_error_or_a_batch(changes: list[tuple[int, int]], cut: int | None) -> None:
    content = bytearray(GOOD)
    for position, value in changes:
        content[position] = value
    try:
        pixels, labels = read(bytes(content[:cut]))
    except DatasetFormatError:
        return
    assert pixels.shape == (ROWS, 3072)
    assert labels.max() <= 9


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=60)
    | st.lists(st.sampled_from(list(b"}]()t\x85\x86Rbuesqh\x00K\x01N0.")), max_size=40).map(bytes)
)
def test_random_programs_give_a_typed_error(program: bytes) -> None:
    with pytest.raises(DatasetFormatError):
        read(program + b".")
