from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_cifar import BINARY, LABELS, PICKLED, PIXELS, ROWS, TINY, pickled_batch, write_archive, write_folder

from cifarnet.data.cifar10_files import LAYOUTS, Layout, read_splits
from cifarnet.errors import DataError

GOOD = pickled_batch(PIXELS[0], LABELS[0])
both_layouts = pytest.mark.parametrize("layout", TINY, ids=["binary", "pickled"])


@both_layouts
@pytest.mark.parametrize("as_archive", [False, True])
def test_every_row_arrives_in_its_place(tmp_path: Path, layout: Layout, as_archive: bool) -> None:
    path = tmp_path / layout.archive
    if as_archive:
        layout = write_archive(path, layout)
    else:
        write_folder(path, layout)
    data = read_splits(path, layout)
    assert data.train.images.shape == (5 * ROWS, 3, 32, 32)
    assert torch.equal(data.train.images.flatten(1), torch.from_numpy(PIXELS[:5].reshape(-1, 3072)))
    assert torch.equal(data.test.images.flatten(1), torch.from_numpy(PIXELS[5]))
    assert data.train.labels.tolist() == LABELS[:5].reshape(-1).tolist()
    assert data.test.labels.tolist() == LABELS[5].tolist()
    assert data.train.ids.tolist() == list(range(5 * ROWS))
    assert data.train.classes[:2] == ("airplane", "automobile")
    assert os.listdir(tmp_path) == [layout.archive]  # nothing is unpacked


def test_an_archive_with_another_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    expected = write_archive(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"SHA-256 [0-9a-f]{{64}}, expected {expected.sha256}. Delete it"):
        read_splits(path, expected)


@both_layouts
@pytest.mark.parametrize("length", [0, 3073, -1, None])
def test_a_missing_or_truncated_batch_is_named(tmp_path: Path, layout: Layout, length: int | None) -> None:
    path = write_folder(tmp_path / "data", layout) / layout.batches[1]
    path.write_bytes(path.read_bytes()[:length] if length is not None else bytes(5 * 3073))
    message = r"expected 12,292 bytes \(4 records of 3,073\)" if layout is BINARY else "not a batch as published"
    with pytest.raises(DataError, match=rf"{path.name}: {message}.* Get the file again"):
        read_splits(path.parent, layout)
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name} missing\. Add them, or move the folder"):
        read_splits(path.parent, layout)


@both_layouts
def test_a_wrong_label_is_named_with_its_row(tmp_path: Path, layout: Layout) -> None:
    path = write_folder(tmp_path / "data", layout) / layout.batches[1]
    content = bytearray(path.read_bytes())
    content[3 * 3073 if layout is BINARY else content.index(b"]q\x04(K") + 5 + 2 * 3] = 10
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path.name}: label 10 at row 3, expected 0 to 9"):
        read_splits(path.parent, layout)


def read(content: bytes) -> tuple[Any, Any]:
    return LAYOUTS[1].read_batch(content, ROWS)


class Gadget:
    """Pickles as a call. ``pickle.load`` makes the folder ``made``."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("place", ["whole", "value", "label", "key"])
def test_a_gadget_is_refused_and_not_run(tmp_path: Path, protocol: int, place: str) -> None:
    gadget = Gadget(tmp_path / "made")
    batches: dict[str, Any] = {
        "whole": gadget,
        "value": {"data": gadget, "labels": LABELS[0].tolist()},
        "label": {"data": PIXELS[0], "labels": [gadget, 1, 2, 3]},
        "key": {"data": PIXELS[0], "labels": LABELS[0].tolist(), gadget: 1},
    }
    path = write_folder(tmp_path / "data", PICKLED) / "data_batch_2"
    path.write_bytes(pickle.dumps(batches[place], protocol))
    with pytest.raises(DataError, match=r"data_batch_2: not a batch .*which no batch needs, is refused"):
        read_splits(path.parent, PICKLED)
    assert not gadget.made.exists()
    pickle.loads(path.read_bytes())
    assert gadget.made.exists(), "the gadget does not work, so the test above proves nothing"


#: A tuple that holds a tuple twice, 60 times: a hash takes 2**60 steps.
NESTED = b"K\x01" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
DEEP = b")" + b"\x85" * 100_000  # a hash overflows the stack


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"cos\nsystem\n(U\x04truetR.", "the name 'os.system'"),
        (b"cnumpy\nload\n.", "the name 'numpy.load'"),
        (b"(S'true'\nios\nsystem\n.", "opcode STRING"),
        (b"cnumpy\nndarray\n)\x81.", "opcode NEWOBJ"),
        (b"Ppersistent\n.", "opcode PERSID"),
        (b"h\x05.", "UnpicklingError"),
        (b"K\x01.", "TypeError"),
        (b"<html>", "ValueError"),
        (b"\x96" + b"\xff" * 7 + b"\x00x.", "ValueError"),  # 2**56 bytes
        (b"}r\xff\xff\xff\x7f.", "opcode LONG_BINPUT"),  # `pickle.loads` would allocate 32 GB
        (b"}" + NESTED + b"K\x01s.", "opcode "),
        (b"}" + DEEP + b"K\x01s.", "opcode TUPLE1"),
        (b"]" * 500_002 + b".", "opcode EMPTY_LIST"),
    ],
    ids=range(13),
)
def test_a_hostile_program_is_refused(program: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"not a batch as published \(.*{message}"):
        read(program)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"data": PIXELS[0]}, "KeyError: 'labels'"),
        ({"data": PIXELS[0], "labels": (1, 2, 3, 4)}, "labels must be a list of 4 numbers"),
        ({"data": PIXELS[0], "labels": [1, -1, 2, 3]}, "ValueError"),
        ({"data": b"bytes", "labels": [1, 2, 3, 4]}, "AttributeError"),
        ({"data": PIXELS[0, :3], "labels": [1, 2, 3, 4]}, r"data must be uint8 of shape \(4, 3072\)"),
        ({"data": PIXELS[0].astype(np.int8), "labels": [1, 2, 3, 4]}, r"data must be uint8 of shape \(4, 3072\)"),
    ],
    ids=range(6),
)
def test_a_batch_of_another_form_is_refused(batch: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"not a batch as published \(.*{message}"):
        read(pickle.dumps(batch, 3))


def test_an_array_whose_shape_and_bytes_differ_is_refused() -> None:
    """numpy's own ``__setstate__`` would take the shape and the dtype from the file."""
    end = GOOD.index(b"T\x00\x30\x00\x00")
    changed = {
        GOOD.replace(b"M\x04\x00M\x00\x0c\x86", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"): "data must be uint8",
        GOOD[:end] + b"T\x04\x00\x00\x00abcd" + GOOD[end + 5 + PIXELS[0].size :]: "cannot reshape array of size 4",
    }
    for content, message in changed.items():
        with pytest.raises(ValueError, match=message):
            read(content)


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.none() | st.integers(0, len(GOOD) - 1),
)
def test_random_changes_give_a_clear_error_or_a_batch(changes: list[tuple[int, int]], cut: int | None) -> None:
    content = bytearray(GOOD)
    for position, value in changes:
        content[position] = value
    try:
        pixels, labels = read(bytes(content[:cut]))
    except ValueError as error:
        assert "not a batch as published" in str(error)  # noqa: PT017 (whether it raises depends on the change)
        return
    assert pixels.shape == (ROWS, 3072)
    assert labels.shape == (ROWS,)
