"""The files of a run: what is saved is restored, and a damaged file falls back or says why it cannot."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from cifarnet.checkpoint import Checkpointer, load_best
from cifarnet.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CheckpointSaveError,
    CheckpointVersionError,
    CheckpointWarning,
    SettingTypeError,
    UnsafeCheckpointError,
)


class Run:
    """The smallest thing that can be saved: an epoch and a tensor made of it."""

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
    """The epoch that a fresh process would resume from; any warning is an error."""
    run = Run(-1)
    assert Checkpointer(directory).load(run)
    assert run.state["weights"].tolist() == [run.state["epoch"]] * 50
    return int(run.state["epoch"])


def test_making_one_touches_nothing(checkpointer: Checkpointer, tmp_path: Path) -> None:
    assert not checkpointer.exists()
    assert checkpointer.read_last() is None
    assert checkpointer.load(Run()) is False
    assert list(tmp_path.iterdir()) == []
    assert repr(checkpointer) == f"Checkpointer('{tmp_path}/runs/first')"


def test_the_last_save_is_restored(checkpointer: Checkpointer) -> None:
    for epoch in range(3):
        assert checkpointer.save(Run(epoch)) == checkpointer.last_path
    assert last_epoch(checkpointer.directory) == 2
    assert sorted(os.listdir(checkpointer.directory)) == ["last.previous.safetensors", "last.safetensors"]


def test_a_network_and_its_optimizer_are_stateful(checkpointer: Checkpointer) -> None:
    model = torch.nn.Linear(2, 2)
    checkpointer.save(model)
    other = torch.nn.Linear(2, 2)
    assert checkpointer.load(other)
    assert torch.equal(other.weight, model.weight)


def test_the_previous_file_is_the_old_file_itself(checkpointer: Checkpointer) -> None:
    checkpointer.save(Run(1))
    inode, content = checkpointer.last_path.stat().st_ino, checkpointer.last_path.read_bytes()
    checkpointer.save(Run(2))
    assert checkpointer.previous_path.stat().st_ino == inode
    assert checkpointer.previous_path.read_bytes() == content
    assert checkpointer.last_path.stat().st_ino != inode


def test_equal_states_give_equal_files(tmp_path: Path) -> None:
    one, two, other = (Checkpointer(tmp_path / name).save(Run(epoch)) for name, epoch in [("a", 1), ("b", 1), ("c", 2)])
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes() != other.read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="no umask")
def test_a_file_gets_the_mode_of_the_umask(checkpointer: Checkpointer) -> None:
    before = os.umask(0o027)
    try:
        assert checkpointer.save(Run()).stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_a_state_that_is_no_dictionary_is_refused(checkpointer: Checkpointer) -> None:
    run = Run()
    run.state = [1]  # type: ignore[assignment]
    with pytest.raises(SettingTypeError, match="must return a dict, got list"):
        checkpointer.save(run)
    assert not checkpointer.directory.exists()


# Best


def test_best_holds_the_weights_under_their_own_names(checkpointer: Checkpointer) -> None:
    weights = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict()
    description = {"mean": (0.5, 0.4), "classes": ["cat", "dog"], "loss": float("inf")}
    path = checkpointer.save_best(weights, description)
    assert safetensors.torch.load_file(path).keys() == weights.keys()
    for loaded, said in (load_best(path), load_best(checkpointer.directory), checkpointer.read_best()):
        assert said == description
        assert loaded.keys() == weights.keys()
        assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())


def test_a_description_holds_no_tensor(checkpointer: Checkpointer) -> None:
    with pytest.raises(SettingTypeError, match="description holds a tensor, preprocess/mean"):
        checkpointer.save_best({}, {"preprocess": {"mean": torch.zeros(3)}})


def test_best_and_last_do_not_pass_for_one_another(checkpointer: Checkpointer) -> None:
    checkpointer.save(Run())
    with pytest.raises(CheckpointMismatchError):
        load_best(checkpointer.last_path)
    checkpointer.save_best({}, {})
    os.replace(checkpointer.best_path, checkpointer.last_path)
    with pytest.raises(CheckpointMismatchError):
        checkpointer.read_last()


def test_no_best_says_what_to_do(checkpointer: Checkpointer) -> None:
    with pytest.raises(CheckpointNotFoundError, match="train first"):
        checkpointer.read_best()


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors", "last.previous.safetensors"])
def test_any_checkpoint_makes_a_run(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    assert Checkpointer(tmp_path).exists()


# Falling back


@pytest.fixture
def two_saves(checkpointer: Checkpointer) -> Checkpointer:
    checkpointer.save(Run(11))
    checkpointer.save(Run(12))
    return checkpointer


def damage(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_a_truncated_last_falls_back_and_says_so(two_saves: Checkpointer) -> None:
    size = two_saves.last_path.stat().st_size
    os.truncate(two_saves.last_path, size - 100)
    run = Run()
    said = (
        rf"last\.safetensors is {size - 100} bytes, its header says {size}; resuming from last\.previous\.safetensors$"
    )
    with pytest.warns(CheckpointWarning, match=said):
        assert two_saves.load(run)
    assert run.state["epoch"] == 11


def test_an_altered_last_falls_back_and_says_so(two_saves: Checkpointer) -> None:
    damage(two_saves.last_path)
    with pytest.warns(CheckpointWarning, match=r"SHA-256 .* differs .*; resuming from last\.previous"):
        assert two_saves.read_last()


def test_a_missing_last_falls_back_and_says_so(two_saves: Checkpointer) -> None:
    two_saves.last_path.unlink()
    with pytest.warns(CheckpointWarning, match=r"last\.safetensors is missing; resuming from last\.previous"):
        assert two_saves.read_last()


def test_if_both_are_damaged_the_newest_is_named(two_saves: Checkpointer) -> None:
    damage(two_saves.previous_path)
    os.truncate(two_saves.last_path, 100)
    with pytest.raises(CheckpointCorruptError, match=r"last\.safetensors is 100 bytes"):
        two_saves.read_last()


def test_a_damaged_file_alone_is_an_error(checkpointer: Checkpointer) -> None:
    damage(checkpointer.save(Run()))
    with pytest.raises(CheckpointCorruptError, match="SHA-256"):
        checkpointer.read_last()
    os.replace(checkpointer.last_path, checkpointer.previous_path)
    with pytest.raises(CheckpointCorruptError, match=r"last\.previous\.safetensors: the SHA-256"):
        checkpointer.read_last()


def test_a_pickle_is_refused_without_falling_back(two_saves: Checkpointer) -> None:
    torch.save({}, two_saves.last_path)
    with pytest.raises(UnsafeCheckpointError):
        two_saves.read_last()


def test_a_newer_format_is_refused_without_falling_back(
    two_saves: Checkpointer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        newer.setattr("cifarnet.checkpoint.format.FORMAT_VERSION", 3)
        two_saves.save(Run(13))
    with pytest.raises(CheckpointVersionError, match="format 3; this version reads 2"):
        two_saves.read_last()


def test_a_damaged_last_never_takes_the_place_of_a_sound_previous(two_saves: Checkpointer) -> None:
    """Linked over the previous file, it would leave nothing sound until the new file is in place."""
    sound = two_saves.previous_path.read_bytes()
    damage(two_saves.last_path)
    fresh = Checkpointer(two_saves.directory)
    fresh.save(Run(13))
    assert fresh.previous_path.read_bytes() == sound
    assert last_epoch(fresh.directory) == 13
    fresh.save(Run(14))
    damage(fresh.last_path)
    with pytest.warns(CheckpointWarning):
        assert (Checkpointer(fresh.directory).read_last() or {})["epoch"] == 13


# Preparing


def test_preparing_makes_the_directory_and_leaves_it_empty(checkpointer: Checkpointer) -> None:
    checkpointer.prepare()
    checkpointer.prepare()
    assert os.listdir(checkpointer.directory) == []


def test_preparing_sweeps_what_a_killed_save_left_and_nothing_else(two_saves: Checkpointer) -> None:
    ours = [".last.safetensors.0123456789abcdef.tmp"]
    foreign = ["notes.tmp", ".last.safetensors.tmp", ".other.safetensors.0123456789abcdef.tmp", "history.csv"]
    for name in ours + foreign:
        (two_saves.directory / name).write_bytes(b"half")
    with pytest.warns(CheckpointWarning, match=r"^Removed 1 unfinished checkpoint$"):
        two_saves.prepare()
    assert set(os.listdir(two_saves.directory)) == {*foreign, "last.safetensors", "last.previous.safetensors"}


def test_preparing_counts_what_it_sweeps(checkpointer: Checkpointer) -> None:
    checkpointer.prepare()
    for path in (checkpointer.best_path, checkpointer.last_path, checkpointer.previous_path):
        path.with_name(f".{path.name}.{'0' * 16}.tmp").write_bytes(b"")
    with pytest.warns(CheckpointWarning, match="Removed 3 unfinished checkpoints"):
        checkpointer.prepare()
    assert os.listdir(checkpointer.directory) == []


@pytest.mark.parametrize("below", ["", "below", "further/below"])
def test_a_directory_that_cannot_be_is_refused_before_training(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(CheckpointSaveError, match=r"cannot write to .*; choose another directory") as caught:
        Checkpointer(tmp_path / "file" / below).prepare()
    assert caught.value.errno is not None
    assert isinstance(caught.value, OSError)
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_saving_where_there_is_no_directory_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(CheckpointSaveError, match=r"cannot write .*; there was none before"):
        Checkpointer(tmp_path / "file" / "run").save(Run())


def test_reading_where_there_is_no_directory_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_best(tmp_path / "file" / "run")


def test_nothing_is_warned_about_when_all_is_well(two_saves: Checkpointer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Checkpointer(two_saves.directory).prepare()
        assert last_epoch(two_saves.directory) == 12
