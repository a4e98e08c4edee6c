from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cifarnet.data import load_image_folder
from cifarnet.errors import DatasetFormatError, DatasetNotFoundError, SettingError, SettingTypeError

LAYOUT = {
    "train/rose/b.png": 10,
    "train/rose/a.JPG": 20,
    "train/daisy/x.png": 30,
    "train/tulip/1.bmp": 40,
    "test/tulip/1.png": 50,
    "test/daisy/2.webp": 60,
}


def write_picture(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 20, 3), grey, np.uint8)).save(path)


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    for name, grey in LAYOUT.items():
        write_picture(tmp_path / name, grey)
    return tmp_path


def test_classes_are_sorted_and_ids_follow_the_sorted_paths(flowers: Path) -> None:
    data = load_image_folder(str(flowers), size=8)
    assert data.train.classes == data.test.classes == ("daisy", "rose", "tulip")
    assert data.train.images.shape == (4, 3, 8, 8)
    assert data.train.labels.tolist() == [0, 1, 1, 2]
    assert data.test.labels.tolist() == [0, 2]
    assert data.train.ids.tolist() == [0, 1, 2, 3]
    greys = data.train.images[:, 0, 0, 0].tolist()
    assert greys == pytest.approx([30, 20, 10, 40], abs=1)
    assert data.test.images[:, 0, 0, 0].tolist() == pytest.approx([60, 50], abs=1)
    assert data.train.name == f"images in {flowers}"


def test_many_pictures_are_read_the_same_every_time(tmp_path: Path) -> None:
    for i in range(40):
        write_picture(tmp_path / "train" / f"class {i % 2}" / f"{i:02}.png", 6 * i)
    write_picture(tmp_path / "test" / "class 0" / "0.png", 1)
    first = load_image_folder(tmp_path)
    assert first.train.images.shape == (40, 3, 32, 32)
    assert first.train.images[:, 0, 0, 0].tolist() == [6 * i for i in (*range(0, 40, 2), *range(1, 40, 2))]
    assert load_image_folder(tmp_path).train.fingerprint == first.train.fingerprint


def test_hidden_files_and_folders_are_ignored(flowers: Path) -> None:
    before = load_image_folder(flowers).train.fingerprint
    (flowers / "train" / ".DS_Store").write_bytes(b"x")
    (flowers / "train" / "rose" / ".thumbs").write_bytes(b"x")
    (flowers / "train" / ".git").mkdir()
    assert load_image_folder(flowers).train.fingerprint == before


def remove(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / name).rename(root / "elsewhere")

    return change


def write(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"these bytes are no picture")

    return change


def make(name: str) -> Callable[[Path], None]:
    return lambda root: os.makedirs(root / name)


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (remove("train"), DatasetNotFoundError, r"/train: no such folder; expected train/<class>/\*"),
        (remove("test"), DatasetNotFoundError, r"/test: no such folder"),
        (make("train/lily"), DatasetNotFoundError, r"train/lily: no pictures; put some there or remove"),
        (make("test/rose"), DatasetNotFoundError, r"test/rose: no pictures"),
        (write("train/notes.txt"), DatasetFormatError, r"train/notes.txt: a file outside a class folder; move it"),
        (write("train/rose/c.txt"), DatasetFormatError, r"train/rose/c.txt: not a picture that Pillow reads"),
        (write("test/tulip/1.png"), DatasetFormatError, r"test/tulip/1.png: not a picture.*or remove it"),
        (make("train/rose/more"), DatasetFormatError, r"train/rose/more: not a file; pictures go directly into"),
        (remove("test/tulip"), None, ""),
    ],
)
def test_a_broken_folder_is_a_typed_error_that_names_the_file(
    flowers: Path, break_it: Callable[[Path], None], error: type[Exception] | None, message: str
) -> None:
    break_it(flowers)
    if error is None:  # not every class needs test images
        assert load_image_folder(flowers).test.class_counts == {"daisy": 1, "rose": 0, "tulip": 0}
        return
    with pytest.raises(error, match=message):
        load_image_folder(flowers)


def test_a_root_that_is_absent_or_empty_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"absent/train: no such folder"):
        load_image_folder(tmp_path / "absent")
    (tmp_path / "train").mkdir()
    with pytest.raises(DatasetNotFoundError, match=r"/train: no class folders; expected one for each class"):
        load_image_folder(tmp_path)


def test_one_class_only_is_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "train" / "rose" / "a.png", 1)
    write_picture(tmp_path / "test" / "rose" / "a.png", 1)
    with pytest.raises(DatasetFormatError, match=r"one class only \('rose'\); expected a folder for each"):
        load_image_folder(tmp_path)


def test_a_test_class_that_was_not_trained_on_is_refused(flowers: Path) -> None:
    write_picture(flowers / "test" / "lily" / "a.png", 1)
    with pytest.raises(DatasetFormatError, match=r"class 'lily' is not in .*train \(daisy, rose, tulip\)\. Rename"):
        load_image_folder(flowers)


def test_a_val_folder_is_the_validation_set(flowers: Path) -> None:
    assert load_image_folder(flowers).val is None
    for name in ("daisy", "rose"):
        write_picture(flowers / "val" / name / "a.png", 1)
    val = load_image_folder(flowers).val
    assert val is not None
    assert val.class_counts == {"daisy": 1, "rose": 1, "tulip": 0}
    write_picture(flowers / "val" / "lily" / "a.png", 1)
    with pytest.raises(DatasetFormatError, match=r"/val: class 'lily' is not in .*train"):
        load_image_folder(flowers)


def test_names_in_another_unicode_form_are_one_class(flowers: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    write_picture(flowers / "train" / composed / "a.png", 1)
    write_picture(flowers / "train" / decomposed / "b.png", 2)
    write_picture(flowers / "test" / decomposed / "a.png", 1)
    data = load_image_folder(flowers)
    assert data.train.classes == data.test.classes == (composed, "daisy", "rose", "tulip")
    assert data.train.class_counts[composed] == 2


def test_the_home_directory_is_expanded(flowers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(flowers.parent))
    assert len(load_image_folder(f"~/{flowers.name}").train) > 0


@pytest.mark.parametrize(("size", "error"), [(1, SettingError), (-3, SettingError), (8.5, SettingTypeError)])
def test_a_size_that_is_none_is_refused(flowers: Path, size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="size must be"):
        load_image_folder(flowers, size=size)


def test_what_was_read_is_uint8_and_splits(flowers: Path) -> None:
    train = load_image_folder(flowers).train
    assert train.images.dtype == torch.uint8
    assert train.split(0.25, seed=0)[1].class_counts == {"daisy": 0, "rose": 1, "tulip": 0}
