"""Lock of a run's directory: one process at a time, free when the owner ends, however it ends."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from checkpoint_files import lock_once
from cifarnet import Checkpointer
from cifarnet.errors import CheckpointError

HOLDER = """
import os, sys
from cifarnet import Checkpointer
checkpointer = Checkpointer(sys.argv[1])
checkpointer.__enter__()
print("held", flush=True)
if sys.argv[2:] and os.fork() == 0:  # as a worker of a DataLoader
    try:
        checkpointer.__exit__()
        Checkpointer(sys.argv[1]).__enter__()
        print(os.getpid(), "not refused", flush=True)
    except Exception as error:
        print(os.getpid(), error, flush=True)
sys.stdin.read()
"""


def start_holder(*args: str | Path) -> subprocess.Popen[str]:
    """Start a process that has locked the directory and waits for the end of its standard input."""
    command = [sys.executable, "-c", HOLDER, *map(str, args)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_second_process_is_refused_until_the_owner_is_killed(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    unfinished = tmp_path / f".last.safetensors.{'0' * 16}.tmp"
    unfinished.touch()  # a save of the owner
    with pytest.raises(CheckpointError, match=rf"in use by process {holder.pid}; wait for it, stop it"):
        lock_once(tmp_path)
    assert unfinished.exists()
    holder.kill()
    holder.communicate()
    unfinished.unlink()
    with Checkpointer(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_worker_does_not_hold_the_lock_of_its_parent(tmp_path: Path) -> None:
    with start_holder(tmp_path, "fork") as parent:
        try:
            assert parent.stdout is not None
            child, answer = parent.stdout.readline().split(maxsplit=1)
            assert f"in use by process {parent.pid}" in answer, "the child has locked it too"
            with pytest.raises(CheckpointError, match=f"in use by process {parent.pid}"):
                lock_once(tmp_path)  # the child's exit did not free it
        finally:
            parent.kill()
            parent.wait()
        os.kill(int(child), 0)  # the child lives until its standard input ends
        lock_once(tmp_path)


def test_two_runs_of_one_process_do_not_share_a_directory(tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(tmp_path / "run")
    with Checkpointer(tmp_path / "run") as checkpointer:
        with checkpointer:  # one object may enter again
            pass
        for name in ("run", "alias"):
            with pytest.raises(CheckpointError, match=f"in use by process {os.getpid()}"):
                lock_once(tmp_path / name)
    lock_once(tmp_path / "run")


def test_lock_is_released_in_another_thread_and_after_pickling(tmp_path: Path) -> None:
    checkpointer = pickle.loads(pickle.dumps(Checkpointer(tmp_path))).__enter__()
    thread = threading.Thread(target=checkpointer.__exit__)
    thread.start()
    thread.join()
    lock_once(tmp_path)


@pytest.mark.parametrize("code", [37, 38, 95], ids=["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
@pytest.mark.skipif(sys.platform != "linux", reason="flock and its error codes on Linux")
def test_disk_without_locks_is_used_with_a_warning(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.warns(UserWarning, match="disk without locks .* let no other process train there"):
        lock_once(tmp_path)
