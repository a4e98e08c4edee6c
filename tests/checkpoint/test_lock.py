from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cifarnet import Checkpointer
from cifarnet.checkpoint.lock import RunLock
from cifarnet.errors import CheckpointWarning, RunDirectoryBusyError

HOLDER = """
import sys
from cifarnet import Checkpointer
with Checkpointer(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that has the directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_told_by_whom(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    unfinished = tmp_path / f".last.safetensors.{'0' * 16}.tmp"
    unfinished.touch()  # of a save that is under way: the owner's
    for enter in (Checkpointer(tmp_path).__enter__, Checkpointer(tmp_path).prepare):
        with pytest.raises(RunDirectoryBusyError, match=rf"in use by process {holder.pid} since \d+-\d+-\d+ \d+:"):
            enter()
    assert unfinished.exists()
    holder.communicate("")
    unfinished.unlink()
    with Checkpointer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_the_directory_free(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert (tmp_path / ".lock").exists()
    with Checkpointer(tmp_path):
        assert f"process {os.getpid()} since" in (tmp_path / ".lock").read_text()
    assert list(tmp_path.iterdir()) == []


def test_two_runs_of_one_process_do_not_share_a_directory(tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(tmp_path / "run")
    with Checkpointer(tmp_path / "run") as checkpointer:
        for name in ("run", "alias"):
            with pytest.raises(RunDirectoryBusyError, match="another run of this process"):
                Checkpointer(tmp_path / name).prepare()
        with checkpointer:  # but one object may enter again
            pass
        with pytest.raises(RunDirectoryBusyError):
            Checkpointer(tmp_path / "run").prepare()
    Checkpointer(tmp_path / "run").prepare()


def test_a_lock_that_its_owner_removes_while_it_is_waited_for_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the file and locking it, the owner may remove it: the lock then guards a file without a name."""
    lock, real, calls = RunLock(tmp_path), os.path.exists, []

    def exists(path: os.PathLike[str]) -> bool:
        calls.append(path)
        if len(calls) == 1:
            os.unlink(path)
        return real(path)

    monkeypatch.setattr(os.path, "exists", exists)
    lock.acquire()
    assert len(calls) == 2
    assert os.stat(tmp_path / ".lock").st_size > 0
    lock.release()
    assert not lock.held


def test_a_disk_without_locks_is_warned_of_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with pytest.warns(CheckpointWarning, match=r"disk without locks \(No locks available\)"), Checkpointer(tmp_path):
        pass
