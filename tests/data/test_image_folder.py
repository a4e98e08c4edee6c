from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifarnet.data import load_image_folder
from cifarnet.errors import DataError

FILES = {
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
    for name, grey in FILES.items():
        write_picture(tmp_path / name, grey)
    return tmp_path


def test_classes_and_ids_follow_the_sorted_paths(flowers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(flowers.parent))
    data = load_image_folder(f"~/{flowers.name}", size=8)
    assert data.train.classes == data.test.classes == ("daisy", "rose", "tulip")
    assert data.train.images.shape == (4, 3, 8, 8)
    assert data.train.labels.tolist() == [0, 1, 1, 2]
    assert data.test.class_counts == {"daisy": 1, "rose": 0, "tulip": 1}
    assert data.train.ids.tolist() == [0, 1, 2, 3]
    assert data.train.images[:, 0, 0, 0].tolist() == pytest.approx([30, 20, 10, 40], abs=1)
    assert data.test.images[:, 0, 0, 0].tolist() == pytest.approx([60, 50], abs=1)
    assert data.train.name == f"images in {flowers}"


def test_hidden_files_and_folders_are_ignored(flowers: Path) -> None:
    before = load_image_folder(flowers).train.fingerprint
    (flowers / "train" / ".DS_Store").write_bytes(b"x")
    (flowers / "train" / "rose" / ".thumbs").write_bytes(b"x")
    (flowers / "train" / ".git").mkdir()
    assert load_image_folder(flowers).train.fingerprint == before


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        ("remove", "train", r"/train: no class folders\. Put pictures into train/<class>/"),
        ("remove", "test", r"/test: no class folders"),
        ("mkdir", "train/lily", r"train/lily: no pictures\. Add some or remove the folder"),
        ("mkdir", "train/rose/more", r"train/rose/more: not a picture"),
        ("write", "train/notes.txt", r"notes.txt: a file outside a class folder\. Move it"),
        ("write", "test/tulip/1.png", r"test/tulip/1.png: not a picture that Pillow reads"),
    ],
)
def test_an_error_names_the_broken_folder_or_file(flowers: Path, change: str, name: str, message: str) -> None:
    path = flowers / name
    if change == "remove":
        path.rename(flowers / "elsewhere")
    elif change == "mkdir":
        path.mkdir()
    else:
        path.write_bytes(b"these bytes are no picture")
    with pytest.raises(DataError, match=message):
        load_image_folder(flowers)


def test_a_val_folder_is_the_validation_set(flowers: Path) -> None:
    assert load_image_folder(flowers).val is None
    write_picture(flowers / "val" / "daisy" / "a.png", 1)
    val = load_image_folder(flowers).val
    assert val is not None
    assert val.class_counts == {"daisy": 1, "rose": 0, "tulip": 0}


def test_a_class_without_training_images_is_refused(flowers: Path) -> None:
    write_picture(flowers / "val" / "lily" / "a.png", 1)
    with pytest.raises(DataError, match=r"/val: class 'lily' is not in .*train\. Rename it"):
        load_image_folder(flowers)


def test_names_in_another_unicode_form_are_one_class(flowers: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    write_picture(flowers / "train" / composed / "a.png", 1)
    write_picture(flowers / "train" / decomposed / "b.png", 2)
    write_picture(flowers / "test" / decomposed / "a.png", 1)
    data = load_image_folder(flowers)
    assert data.train.classes == data.test.classes == (composed, "daisy", "rose", "tulip")
    assert data.train.class_counts[composed] == 2
