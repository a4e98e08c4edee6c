"""Files of a run: a saved state is restored, and a damaged file falls back or gives a typed error."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from cifarnet.checkpoint import Checkpointer, load_best
from cifarnet.errors import CheckpointCorruptError, CheckpointError, CheckpointMismatchError, SettingError


class Run:
    """Smallest object that can be saved: an epoch and a tensor of it."""

    def __init__(self, epoch: int = 0) -> None:
        self.state: dict[str, Any] = {"epoch": epoch, "weights": torch.full((50,), float(epoch))}

    def state_dict(self) -> Mapping[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


@pytest.fixture
def checkpointer(tmp_path: Path) -> Checkpointer:
    return Checkpointer(tmp_path / "runs" / "first")


def last_epoch(directory: Path) -> int:
    """Return the epoch that a fresh process would resume from. Any warning is an error."""
    run = Run(-1)
    assert Checkpointer(directory).load(run)
    assert run.state["weights"].tolist() == [run.state["epoch"]] * 50
    return int(run.state["epoch"])


def lock_once(directory: Path) -> None:
    with Checkpointer(directory):
        pass


def test_constructor_touches_nothing(checkpointer: Checkpointer, tmp_path: Path) -> None:
    assert not checkpointer.exists()
    assert checkpointer.read_last() is None
    assert checkpointer.load(Run()) is False
    assert list(tmp_path.iterdir()) == []
    assert repr(checkpointer) == f"Checkpointer('{tmp_path}/runs/first')"


def test_last_save_is_restored_and_the_one_before_is_kept(checkpointer: Checkpointer) -> None:
    checkpointer.save(Run(1))
    inode, content = checkpointer.last_path.stat().st_ino, checkpointer.last_path.read_bytes()
    assert checkpointer.save(Run(2)) == checkpointer.last_path
    assert last_epoch(checkpointer.directory) == 2
    assert sorted(os.listdir(checkpointer.directory)) == ["last.previous.safetensors", "last.safetensors"]
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


def test_best_is_not_read_as_last(checkpointer: Checkpointer) -> None:
    checkpointer.save_best({}, {})
    os.replace(checkpointer.best_path, checkpointer.last_path)
    with pytest.raises(CheckpointMismatchError):
        checkpointer.read_last()


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors", "last.previous.safetensors"])
def test_any_checkpoint_makes_a_run(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    assert Checkpointer(tmp_path).exists()


# Fallback to the previous file


@pytest.fixture
def two_saves(checkpointer: Checkpointer) -> Checkpointer:
    checkpointer.save(Run(11))
    checkpointer.save(Run(12))
    return checkpointer


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
    run = Run()
    with pytest.warns(UserWarning, match=rf"last\.safetensors {reason}.*; resuming from last\.previous\.safeten"):
        assert two_saves.load(run)
    assert run.state["epoch"] == 11


def test_newest_of_two_damaged_files_is_named(two_saves: Checkpointer) -> None:
    damage(two_saves.previous_path)
    os.truncate(two_saves.last_path, 100)
    with pytest.raises(CheckpointCorruptError, match=r"last\.safetensors of 100 bytes is damaged"):
        two_saves.read_last()


def test_damaged_file_alone_is_an_error(checkpointer: Checkpointer) -> None:
    damage(checkpointer.save(Run()))
    with pytest.raises(CheckpointCorruptError, match=r"last\.safetensors is damaged"):
        checkpointer.read_last()
    os.replace(checkpointer.last_path, checkpointer.previous_path)
    with pytest.raises(CheckpointCorruptError, match=r"last\.previous\.safetensors is damaged"):
        checkpointer.read_last()


def test_pickle_is_refused_without_a_fallback(two_saves: Checkpointer) -> None:
    torch.save({}, two_saves.last_path)
    with pytest.raises(CheckpointError):
        two_saves.read_last()


def test_newer_format_is_refused_without_a_fallback(two_saves: Checkpointer, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr("cifarnet.checkpoint.file.FORMAT_VERSION", 3)
        two_saves.save(Run(13))
    with pytest.raises(CheckpointMismatchError, match="format 3; this version reads 2"):
        two_saves.read_last()


def test_damaged_last_never_replaces_a_sound_previous(two_saves: Checkpointer) -> None:
    sound = two_saves.previous_path.read_bytes()
    damage(two_saves.last_path)
    fresh = Checkpointer(two_saves.directory)
    fresh.save(Run(13))
    assert fresh.previous_path.read_bytes() == sound
    assert last_epoch(fresh.directory) == 13
    fresh.save(Run(14))
    damage(fresh.last_path)
    with pytest.warns(UserWarning, match="resuming from"):
        assert (Checkpointer(fresh.directory).read_last() or {})["epoch"] == 13


# The directory


def test_locking_removes_temporary_files_and_nothing_else(two_saves: Checkpointer) -> None:
    paths = (two_saves.best_path, two_saves.last_path, two_saves.previous_path)
    ours = [f".{path.name}.{'0' * 16}.tmp" for path in paths]
    others = ["notes.tmp", ".last.safetensors.tmp", ".other.safetensors.0123456789abcdef.tmp", "history.csv"]
    for name in ours + others:
        (two_saves.directory / name).write_bytes(b"half")
    with pytest.warns(UserWarning, match=r"^Removed 3 unfinished checkpoint file"):
        lock_once(two_saves.directory)
    assert set(os.listdir(two_saves.directory)) == {*others, "last.safetensors", "last.previous.safetensors"}


def test_sound_run_gives_no_warning(two_saves: Checkpointer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lock_once(two_saves.directory)
        assert last_epoch(two_saves.directory) == 12


@pytest.mark.parametrize("below", ["", "below"])
def test_path_below_a_file_is_a_typed_error(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    directory = tmp_path / "file" / below
    with pytest.raises(CheckpointError, match=r"cannot write .*; choose another directory") as caught:
        lock_once(directory)
    assert isinstance(caught.value, OSError)
    assert caught.value.errno is not None
    with pytest.raises(CheckpointError, match=r"cannot write .*; there was none before"):
        Checkpointer(directory).save(Run())
    assert (tmp_path / "file").read_bytes() == b"mine"
