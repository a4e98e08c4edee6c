from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
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


FORKED = """
import os, sys
from cifarnet import Checkpointer
checkpointer = Checkpointer(sys.argv[1])
checkpointer.__enter__()
if os.fork() == 0:  # as a worker of a DataLoader
    try:
        checkpointer.__exit__(None, None, None)
        Checkpointer(sys.argv[1]).prepare()
        print(os.getpid(), "not refused", flush=True)
    except Exception as error:
        print(os.getpid(), error, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_worker_neither_frees_the_directory_nor_holds_it_for_its_killed_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORKED, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            child, told = parent.stdout.readline().split(maxsplit=1)
            assert f"in use by process {parent.pid} since" in told
            with pytest.raises(RunDirectoryBusyError, match=f"in use by process {parent.pid} since"):
                Checkpointer(tmp_path).prepare()  # the child's exit was not the parent's
        finally:
            parent.kill()
            parent.wait()
        os.kill(int(child), 0)  # it lives, waiting for the end of its standard input
        with Checkpointer(tmp_path):
            assert f"process {os.getpid()} since" in (tmp_path / ".lock").read_text()


FORKED_IN_BETWEEN = """
import os, sys, threading
from cifarnet import Checkpointer
opened, forked, real = threading.Event(), threading.Event(), os.open
descriptors = []
def slow_open(path, *args):
    descriptors.append(real(path, *args))
    opened.set()
    forked.wait(0.5)  # in vain: the fork waits for the lock to be in the table
    return descriptors[-1]
os.open = slow_open
thread = threading.Thread(target=Checkpointer(sys.argv[1]).__enter__)
thread.start()
opened.wait()
child = os.fork()
if child == 0:
    try:
        os.fstat(descriptors[0])
    except OSError:
        os._exit(0)
    os._exit(1)
forked.set()
thread.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_while_another_thread_takes_the_lock_does_not_copy_it(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED_IN_BETWEEN, tmp_path], check=True, timeout=60)


def test_reading_the_lock_does_not_free_it(tmp_path: Path) -> None:
    """As a POSIX lock would be when anything in the process closes the file, a copy of the directory for example."""
    with Checkpointer(tmp_path):
        assert (tmp_path / ".lock").read_text()
        command = [sys.executable, "-c", "import cifarnet, sys; cifarnet.Checkpointer(sys.argv[1]).prepare()"]
        done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert f"RunDirectoryBusyError: {tmp_path} is in use by process {os.getpid()}" in done.stderr


def test_of_many_threads_one_gets_the_directory(tmp_path: Path) -> None:
    def take(lock: RunLock) -> None:
        start.wait()
        try:
            lock.acquire()
        except RunDirectoryBusyError:
            refused.append(lock)

    refused: list[RunLock] = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(30):
            locks, start = [RunLock(tmp_path) for _ in range(4)], threading.Barrier(4)
            refused.clear()
            threads = [threading.Thread(target=take, args=(lock,)) for lock in locks]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert [lock for lock in locks if not lock.held] == [lock for lock in locks if lock in refused]
            assert len(refused) == 3
            for lock in locks:
                lock.release()
    finally:
        sys.setswitchinterval(interval)


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

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.warns(CheckpointWarning, match=r"disk without locks \(No locks available\)"), Checkpointer(tmp_path):
        pass
