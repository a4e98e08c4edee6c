"""Files of a run: a saved state is restored, and a damaged file falls back or gives a typed error."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from checkpoint_files import lock_once, numbered, read_number
from cifarnet.checkpoint import Checkpointer, load_best
from cifarnet.errors import CheckpointCorruptError, CheckpointError, CheckpointMismatchError, SettingError

LAST_FILES = {"last.safetensors", "last.previous.safetensors"}


@pytest.fixture
def checkpointer(tmp_path: Path) -> Checkpointer:
    return Checkpointer(tmp_path / "runs" / "first")


@pytest.fixture
def two_saves(checkpointer: Checkpointer) -> Checkpointer:
    checkpointer.save_state(numbered(11))
    checkpointer.save_state(numbered(12))
    return checkpointer


def test_constructor_touches_nothing(checkpointer: Checkpointer, tmp_path: Path) -> None:
    assert not checkpointer.exists()
    assert checkpointer.load(torch.optim.SGD([torch.zeros(1)])) is False
    assert list(tmp_path.iterdir()) == []
    assert repr(checkpointer) == f"Checkpointer('{tmp_path}/runs/first')"


def test_constructor_refuses_wrong_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="save_every_s must be 0 or more seconds, got -1"):
        Checkpointer(tmp_path, save_every_s=-1)
    with pytest.raises(SettingError, match="metadata must be a dictionary such as"):
        Checkpointer(tmp_path, metadata=[1])  # type: ignore[arg-type]


def test_last_save_is_restored_and_the_one_before_is_kept(checkpointer: Checkpointer) -> None:
    checkpointer.save_state(numbered(1))
    inode, content = checkpointer.last_path.stat().st_ino, checkpointer.last_path.read_bytes()
    assert checkpointer.save_state(numbered(2)) == checkpointer.last_path
    assert read_number(checkpointer.directory) == 2
    assert set(os.listdir(checkpointer.directory)) == LAST_FILES
    assert checkpointer.previous_path.stat().st_ino == inode
    assert checkpointer.previous_path.read_bytes() == content


def test_state_that_is_no_dictionary_is_refused(checkpointer: Checkpointer) -> None:
    with pytest.raises(SettingError, match="must return a dict, got list"):
        checkpointer.save_state([1])  # type: ignore[arg-type]
    assert not checkpointer.directory.exists()


# Best


def test_best_has_the_names_of_the_weights(checkpointer: Checkpointer) -> None:
    weights = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict()
    description = {"mean": (0.5, 0.4), "classes": ["cat", "dog"], "loss": float("inf")}
    path = checkpointer.save_best(weights, description)
    assert safetensors.torch.load_file(path).keys() == weights.keys()
    for loaded, found in (load_best(path), load_best(checkpointer.directory), checkpointer.read_best()):
        assert found == description
        assert loaded.keys() == weights.keys()
        assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())


def test_description_with_a_tensor_is_refused(checkpointer: Checkpointer) -> None:
    with pytest.raises(SettingError, match="description holds a tensor, preprocess/mean"):
        checkpointer.save_best({}, {"preprocess": {"mean": torch.zeros(3)}})


# Fallback to the previous file


def damage(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (lambda path: os.truncate(path, 600), "of 600 bytes is damaged"),
    "altered": (damage, "is damaged: its content does not have the SHA-256"),
    "missing": (Path.unlink, "is missing"),
}


@pytest.mark.parametrize(("spoil", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_last_falls_back_with_a_warning(
    spoil: Callable[[Path], None], reason: str, two_saves: Checkpointer
) -> None:
    spoil(two_saves.last_path)
    with pytest.warns(UserWarning, match=rf"last\.safetensors {reason}.*; resuming from last\.previous\.safeten"):
        assert read_number(two_saves.directory) == 11


def test_newest_of_damaged_files_is_named(two_saves: Checkpointer) -> None:
    damage(two_saves.previous_path)
    os.truncate(two_saves.last_path, 100)
    with pytest.raises(CheckpointCorruptError, match=r"last\.safetensors of 100 bytes is damaged"):
        two_saves.read_last()
    two_saves.last_path.unlink()
    assert two_saves.exists()
    with pytest.raises(CheckpointCorruptError, match=r"last\.previous\.safetensors is damaged"):
        two_saves.read_last()


def test_pickle_and_newer_format_have_no_fallback(two_saves: Checkpointer) -> None:
    with pytest.MonkeyPatch.context() as newer:
        newer.setattr("cifarnet.checkpoint.file.FORMAT_VERSION", 3)
        two_saves.save_state(numbered(13))
    with pytest.raises(CheckpointMismatchError, match="format 3; this version reads 2"):
        two_saves.read_last()
    torch.save({}, two_saves.last_path)
    with pytest.raises(CheckpointError, match="is a pickle file"):
        two_saves.read_last()


def test_damaged_last_never_replaces_a_sound_previous(two_saves: Checkpointer) -> None:
    sound = two_saves.previous_path.read_bytes()
    damage(two_saves.last_path)
    fresh = Checkpointer(two_saves.directory)
    fresh.save_state(numbered(13))
    assert fresh.previous_path.read_bytes() == sound
    assert read_number(fresh.directory) == 13
    fresh.save_state(numbered(14))
    damage(fresh.last_path)
    with pytest.warns(UserWarning, match="resuming from"):
        assert read_number(fresh.directory) == 13


# The directory and the disk. tests/promises has a fault in every call.


def test_locking_removes_temporary_files_and_nothing_else(two_saves: Checkpointer) -> None:
    paths = (two_saves.best_path, two_saves.last_path, two_saves.previous_path)
    ours = [f".{path.name}.{'0' * 16}.tmp" for path in paths]
    others = ["notes.tmp", ".last.safetensors.tmp", ".other.safetensors.0123456789abcdef.tmp", "history.csv"]
    for name in ours + others:
        (two_saves.directory / name).write_bytes(b"half")
    with pytest.warns(UserWarning, match=r"^Removed 3 unfinished checkpoint file"):
        lock_once(two_saves.directory)
    assert set(os.listdir(two_saves.directory)) == {*others, *LAST_FILES}
    lock_once(two_saves.directory)  # without a warning


@pytest.mark.parametrize("below", ["", "below"])
def test_path_below_a_file_is_a_typed_error(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(CheckpointError, match=r"cannot write .*; choose another directory"):
        lock_once(tmp_path / "file" / below)
    with pytest.raises(CheckpointError, match=r"cannot write .*; there was none before"):
        Checkpointer(tmp_path / "file" / below).save_state(numbered(1))
    assert (tmp_path / "file").read_bytes() == b"mine"


def fail(code: int) -> None:
    raise OSError(code, os.strerror(code))


def test_full_disk_is_found_by_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: fail(errno.ENOSPC))
    with pytest.raises(CheckpointError, match=r"cannot write .*: No space left on device; choose another directory"):
        lock_once(tmp_path)
    assert os.listdir(tmp_path) == []


def test_full_disk_is_named_with_the_size_and_costs_nothing(two_saves: Checkpointer) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"\(4\.0 MB\): File too large; the previous checkpoint is intact"):
            two_saves.save_state(numbered(13, size=1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert set(os.listdir(two_saves.directory)) == LAST_FILES
    assert read_number(two_saves.directory) == 12


@pytest.mark.skipif(os.name != "posix", reason="directories are opened on POSIX only")
def test_disk_that_cannot_sync_directories_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            fail(errno.EINVAL)

    monkeypatch.setattr(os, "fsync", fsync)
    assert Checkpointer(tmp_path).save_state(numbered(1)).exists()
