from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny_cifar import LABELS, PIXELS, ROWS, TINY, TINY_BINARY, TINY_PICKLED, batch_files, write_archive, write_folder

from cifarnet.data import DatasetSplits, find_cifar10, load_cifar10
from cifarnet.data.cifar10 import load_from
from cifarnet.data.layouts import BINARY, Layout
from cifarnet.errors import DatasetDownloadError, DatasetFormatError, DatasetIntegrityError, DatasetNotFoundError

REAL = os.environ.get("CIFARNET_TEST_DATA")

both_layouts = pytest.mark.parametrize("layout", TINY, ids=["binary", "pickled"])


@pytest.fixture(autouse=True)
def no_data_elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without data, whatever the machine has; its cache."""
    home = tmp_path_factory.mktemp("home")
    for name in ("CIFARNET_DATA", "CIFARNET_MIRROR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    return home / ".cache" / "cifarnet"


def find(*places: Path, layouts: Sequence[Layout] = TINY, addresses: Sequence[str] = ()) -> DatasetSplits:
    return load_from(places, layouts=layouts, addresses=addresses, progress_bar=False)


def write_blank_cifar10(root: Path) -> Path:
    """The real file sizes, sparse on disk: every image a black airplane."""
    (root / BINARY.folder).mkdir(parents=True)
    for name in BINARY.batches:
        with (root / BINARY.folder / name).open("wb") as file:
            file.truncate(30_730_000)
    return root


@both_layouts
def test_every_row_arrives_in_its_place(tmp_path: Path, layout: Layout) -> None:
    write_folder(tmp_path / layout.folder, layout)
    data = find(tmp_path)
    assert data.train.images.shape == (5 * ROWS, 3, 32, 32)
    assert data.train.images.dtype == torch.uint8
    assert torch.equal(data.train.images.flatten(1), torch.from_numpy(PIXELS[:5].reshape(-1, 3072)))
    assert torch.equal(data.test.images.flatten(1), torch.from_numpy(PIXELS[5]))
    assert data.train.labels.tolist() == LABELS[:5].reshape(-1).tolist()
    assert data.test.labels.tolist() == LABELS[5].tolist()
    assert data.train.ids.tolist() == list(range(5 * ROWS))
    assert data.test.ids.tolist() == list(range(ROWS))
    assert data.train.classes[:2] == ("airplane", "automobile")


def test_folders_and_archives_of_both_layouts_hold_the_same(tmp_path: Path) -> None:
    found = []
    for layout in TINY:
        write_folder(tmp_path / "loose" / layout.folder, layout)
        found.append(find(tmp_path / "loose" / layout.folder))
        expected = write_archive(tmp_path / layout.archive, layout)
        found.append(find(tmp_path / layout.archive, layouts=[expected]))
    assert len({data.train.fingerprint for data in found}) == 1
    assert len({data.test.fingerprint for data in found}) == 1
    assert [data.train.name for data in found] == [
        "CIFAR-10, loose files (not checked against the official archive)",
        "CIFAR-10",
    ] * 2
    assert [data.test.name for data in found] == [data.train.name for data in found]


def test_reading_an_archive_leaves_no_unpacked_copy(tmp_path: Path) -> None:
    layout = write_archive(tmp_path / TINY_BINARY.archive, TINY_BINARY)
    find(tmp_path, layouts=[layout])
    assert [path.name for path in tmp_path.iterdir()] == [TINY_BINARY.archive]


def test_the_first_place_that_has_data_is_used(tmp_path: Path) -> None:
    for name in ("second", "third"):
        write_folder(tmp_path / name / TINY_BINARY.folder, TINY_BINARY)
    (tmp_path / "third" / TINY_BINARY.folder / "test_batch.bin").unlink()
    assert len(find(tmp_path / "absent", tmp_path / "second", tmp_path / "third").test) == ROWS


def test_a_folder_of_another_name_is_known_by_its_files(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine", TINY_PICKLED)
    assert len(find(tmp_path / "mine").train) == 5 * ROWS


@both_layouts
def test_a_missing_file_is_named_and_not_skipped(tmp_path: Path, layout: Layout) -> None:
    write_folder(tmp_path / "broken" / layout.folder, layout)
    write_folder(tmp_path / "whole" / layout.folder, layout)
    missing = layout.batches[2]
    (tmp_path / "broken" / layout.folder / missing).unlink()
    with pytest.raises(DatasetNotFoundError, match=f"{re.escape(missing)} missing; put back what is missing"):
        find(tmp_path / "broken", tmp_path / "whole")


def test_an_empty_layout_folder_is_broken_not_absent(tmp_path: Path) -> None:
    (tmp_path / TINY_BINARY.folder).mkdir()
    with pytest.raises(DatasetNotFoundError, match=r"data_batch_1.bin, .*test_batch.bin missing"):
        find(tmp_path)


@both_layouts
@pytest.mark.parametrize("length", [0, 1, 3073, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, layout: Layout, length: int) -> None:
    folder = write_folder(tmp_path / layout.folder, layout)
    path = folder / layout.batches[1]
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DatasetFormatError, match=rf"{re.escape(path.name)}: "):
        find(tmp_path)


def test_a_binary_file_that_is_too_long_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / TINY_BINARY.folder, TINY_BINARY)
    with (folder / "data_batch_4.bin").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DatasetFormatError, match=r"data_batch_4.bin: more than 12,292 bytes, expected 12,292 \(4 rec"):
        find(tmp_path)


@both_layouts
def test_a_wrong_label_is_named_with_its_row(tmp_path: Path, layout: Layout) -> None:
    folder = write_folder(tmp_path / layout.folder, layout)
    path = folder / layout.batches[1]
    content = bytearray(path.read_bytes())
    if layout is TINY_BINARY:
        content[3 * 3073] = 10
    else:
        content[content.index(b"]q\x04(K") + 5 + 2 * 3] = 10
    path.write_bytes(content)
    with pytest.raises(DatasetFormatError, match=rf"{re.escape(path.name)}: label 10 at row 3 \(0 to 9\)"):
        find(tmp_path)


def test_a_batch_that_is_a_dangling_link_is_missing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / TINY_BINARY.folder, TINY_BINARY)
    (folder / "test_batch.bin").unlink()
    (folder / "test_batch.bin").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DatasetNotFoundError, match=r"test_batch.bin missing"):
        find(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_a_typed_error(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / TINY_BINARY.folder, TINY_BINARY)
    (folder / "test_batch.bin").chmod(0)
    with pytest.raises(DatasetNotFoundError, match=r"cannot read .*test_batch.bin"):
        find(tmp_path)


def test_data_that_is_nowhere_names_the_places_and_the_remedies(tmp_path: Path, no_data_elsewhere: Path) -> None:
    with pytest.raises(DatasetNotFoundError) as caught:
        load_cifar10(download=False)
    message = str(caught.value)
    assert f"CIFAR-10 is not in {no_data_elsewhere}" in message
    for remedy in ("--data DIR", "set CIFARNET_DATA", f"put {BINARY.archive} in {no_data_elsewhere}", "synthetic"):
        assert remedy in message


def test_a_named_place_is_the_only_place(tmp_path: Path, no_data_elsewhere: Path) -> None:
    write_blank_cifar10(no_data_elsewhere)
    assert find_cifar10() is not None
    other = tmp_path / "cifar-100-python"
    for _ in ("absent", "empty"):
        with pytest.raises(DatasetNotFoundError, match=re.escape(f"CIFAR-10 is not in {other}")):
            load_cifar10(other, download=False)
        assert find_cifar10(other) is None
        other.mkdir(exist_ok=True)
    (other / "train").write_bytes(b"another data set")
    with pytest.raises(DatasetNotFoundError, match=r"does not hold CIFAR-10\. Name the folder that does, a new folder"):
        load_cifar10(other, download=True)


def test_a_user_without_a_home_directory_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def expanduser(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", expanduser)  # a user id without an entry in /etc/passwd
    for name in ("XDG_CACHE_HOME", "CIFARNET_DATA"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DatasetNotFoundError, match="CIFAR-10 is not in"):
        load_cifar10(tmp_path, download=False)
    find_cifar10()


def test_the_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_blank_cifar10(tmp_path / "data")
    assert find_cifar10("~/data") == tmp_path / "data" / BINARY.folder


def test_an_archive_that_was_named_but_is_absent_is_not_replaced_by_another(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"cifar-10-python.tar.gz: no such file; put the archive there"):
        load_cifar10(tmp_path / "cifar-10-python.tar.gz", download=False)


def test_a_root_that_is_some_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(DatasetFormatError, match=r"notes.txt is a file; expected a folder, or one of cifar-10-binary"):
        load_cifar10(path, download=False)


def test_find_says_what_load_would_read_without_reading_it(tmp_path: Path, no_data_elsewhere: Path) -> None:
    assert find_cifar10(tmp_path) is None
    no_data_elsewhere.mkdir(parents=True)
    (no_data_elsewhere / "cifar-10-python.tar.gz").write_bytes(b"broken")
    assert find_cifar10() == no_data_elsewhere / "cifar-10-python.tar.gz"
    (tmp_path / BINARY.folder).mkdir()
    assert find_cifar10(tmp_path) == find_cifar10(str(tmp_path / BINARY.folder)) == tmp_path / BINARY.folder


def test_an_archive_with_another_hash_is_refused(tmp_path: Path) -> None:
    write_archive(tmp_path / BINARY.archive, TINY_BINARY)
    with pytest.raises(DatasetIntegrityError, match=rf"SHA-256 [0-9a-f]{{64}}, expected {BINARY.sha256}; delete it"):
        load_cifar10(tmp_path)


def test_cifarnet_data_and_the_cache_are_looked_at_in_turn(
    tmp_path: Path, no_data_elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = write_blank_cifar10(no_data_elsewhere)
    data = load_cifar10(download=False)
    assert (len(data.train), len(data.test)) == (50_000, 10_000)
    assert data.train.class_counts["airplane"] == 50_000
    assert data.train.name == "CIFAR-10, loose files (not checked against the official archive)"
    monkeypatch.setenv("CIFARNET_DATA", str(tmp_path))
    (tmp_path / BINARY.folder).mkdir()
    with pytest.raises(DatasetNotFoundError, match=re.escape(str(tmp_path / BINARY.folder))):
        load_cifar10(download=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CIFARNET_DATA", "")
    shutil.move(cached, tmp_path / "cache" / "cifarnet")
    assert load_cifar10(download=False).test.fingerprint == data.test.fingerprint


def test_a_download_lands_in_the_first_place_and_is_found_there_again(tmp_path: Path) -> None:
    published = tmp_path / "published" / TINY_BINARY.archive
    layout = write_archive(published, TINY_BINARY)
    root = tmp_path / "not" / "yet" / "there"
    data = find(root, tmp_path / "cache", layouts=[layout], addresses=[published.as_uri()])
    assert data.train.name == "CIFAR-10"
    published.unlink()
    assert find(root, layouts=[layout]).train.fingerprint == data.train.fingerprint
    assert not (tmp_path / "cache").exists()


def test_a_mirror_of_ones_own_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFARNET_MIRROR", "file:///nowhere/cifar-10-binary.tar.gz")
    monkeypatch.setattr("cifarnet.data.download.ADDRESSES", ("file:///nowhere/official",))
    with pytest.raises(DatasetDownloadError, match=r"tried 2 addresses \(file:///nowhere/cifar-10-binary.tar.gz: "):
        load_cifar10(tmp_path, progress_bar=False)


@pytest.mark.real_data
@pytest.mark.skipif(REAL is None, reason="set CIFARNET_TEST_DATA to a folder that holds cifar-10-batches-bin")
def test_the_real_data_set_is_whole_balanced_and_known() -> None:
    data = load_cifar10(REAL, download=False)
    assert "loose files" not in data.train.name
    assert set(data.train.class_counts.values()) == {5000}
    assert set(data.test.class_counts.values()) == {1000}
    mean = data.train.images.float().mean((0, 2, 3)) / 255
    assert torch.allclose(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-4)  # the published statistic
    train, val = data.train.split(0.1, seed=0)
    assert all(abs(count - 500) < 4 * 21.3 for count in val.class_counts.values())  # four standard deviations
    assert train.name == data.train.name


def test_no_layout_has_two_files_of_one_name() -> None:
    for layout in TINY:
        assert len(set(batch_files(layout)) | set(layout.extras)) == 8
