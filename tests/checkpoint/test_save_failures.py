"""Failing saves: at any call to the disk, the error is raised and the old or the new file is whole."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from cifarnet.checkpoint import Checkpointer
from cifarnet.errors import CheckpointError

#: Every call by which a save changes the disk.
CALLS = ("mkdir", "open", "write", "fsync", "link", "replace")
OURS = {"best.safetensors", "last.safetensors", "last.previous.safetensors"}


class Run:
    def __init__(self, epoch: int, size: int = 50) -> None:
        self.state: Mapping[str, Any] = {"epoch": epoch, "weights": torch.full((size,), float(epoch))}

    def state_dict(self) -> Mapping[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


class Faults:
    """Fault in place of the k-th call to the disk, or behind it. A write is cut in half first."""

    def __init__(self, patch: pytest.MonkeyPatch, k: int, fault: Callable[[], None], *, behind: bool = False) -> None:
        self.k, self.fault, self.behind = k, fault, behind
        self.calls: list[str] = []
        for name in CALLS:
            patch.setattr(os, name, self.wrap(name, getattr(os, name)))

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            hit = len(self.calls) == self.k
            if hit and not self.behind:
                if name == "write":
                    call(args[0], args[1][: len(args[1]) // 2])
                self.fault()
            try:
                return call(*args, **kwargs)
            finally:
                if hit:
                    self.fault()

        return wrapped


def raising(error: BaseException) -> Callable[[], None]:
    def fault() -> None:
        raise error

    return fault


def epoch_of(state: dict[str, Any] | None) -> int:
    assert state is not None
    assert state["weights"].tolist() == [state["epoch"]] * 50
    return int(state["epoch"])


def attempt(save: Callable[..., object], *args: Any) -> CheckpointError | None:
    try:
        save(*args)
    except CheckpointError as error:
        return error
    return None


def every_k(act: Callable[[int], list[str]]) -> list[str]:
    """Let the first, the second, ... call fail until none is left. Return the calls of the last, sound save."""
    for k in range(1, 100):
        calls = act(k)
        if len(calls) < k:
            return calls
    raise AssertionError("a save makes fewer than 100 calls")


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("fresh", [False, True], ids=["same process", "fresh process"])
def test_failing_call_leaves_the_old_or_the_new_file_whole(code: int, fresh: bool, tmp_path: Path) -> None:
    def fail(k: int) -> list[str]:
        directory = tmp_path / str(k)
        checkpointer = Checkpointer(directory)
        checkpointer.save(Run(1))
        checkpointer.save(Run(2))
        if fresh:
            checkpointer = Checkpointer(directory)
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, k, raising(OSError(code, os.strerror(code))))
            error = attempt(checkpointer.save, Run(3))
        if error:
            assert isinstance(error.__cause__, OSError)
            assert error.__cause__.errno == code
            assert "the previous checkpoint is intact" in str(error)
        assert set(os.listdir(directory)) == {"last.safetensors", "last.previous.safetensors"}
        epoch = epoch_of(Checkpointer(directory).read_last())
        assert epoch in ((2, 3) if error else (3,))
        os.replace(checkpointer.previous_path, checkpointer.last_path)
        assert epoch_of(Checkpointer(directory).read_last()) in (1, 2)
        return faults.calls

    calls = every_k(fail)
    assert calls.count("fsync") == 2
    assert {"open", "write", "link", "replace"} <= set(calls)


def test_interrupted_call_leaves_nothing_unfinished(tmp_path: Path) -> None:
    def interrupt(k: int) -> list[str]:
        checkpointer = Checkpointer(tmp_path / str(k))
        checkpointer.save(Run(1))
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, k, raising(KeyboardInterrupt()))
            try:
                checkpointer.save(Run(2))
            except KeyboardInterrupt:
                pass
            else:
                assert len(faults.calls) < k, "an interrupt was swallowed"
        assert set(os.listdir(checkpointer.directory)) <= OURS
        assert epoch_of(checkpointer.read_last()) in (1, 2)
        return faults.calls

    assert every_k(interrupt)


def test_disk_without_hard_links_keeps_a_copy_of_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", lambda *_: raising(OSError(errno.EPERM, "Operation not permitted"))())
    checkpointer = Checkpointer(tmp_path)
    for epoch in (1, 2, 3):
        checkpointer.save(Run(epoch))
    assert set(os.listdir(tmp_path)) == {"last.safetensors", "last.previous.safetensors"}
    assert epoch_of(checkpointer.read_last()) == 3
    os.replace(checkpointer.previous_path, checkpointer.last_path)
    assert epoch_of(checkpointer.read_last()) == 2


@pytest.mark.skipif(os.name != "posix", reason="directories are opened on POSIX only")
def test_disk_that_cannot_sync_directories_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert Checkpointer(tmp_path).save(Run(1)).exists()


def lock_once(directory: Path) -> None:
    with Checkpointer(directory):
        pass


def test_failing_probe_leaves_nothing(tmp_path: Path) -> None:
    def fail(k: int) -> list[str]:
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, k, raising(OSError(errno.ENOSPC, "No space left on device")))
            error = attempt(lock_once, tmp_path)
        if error:
            assert isinstance(error.__cause__, OSError)
            assert error.__cause__.errno == errno.ENOSPC
            assert "cannot write" in str(error)
        assert os.listdir(tmp_path) == []
        return faults.calls

    assert {"open", "write", "fsync"} <= set(every_k(fail))


# A child process is killed at a call, or may not write large files.

CHILD = """
import json, os, resource, sys
from pathlib import Path
import pytest
from test_save_failures import *

def killed_at(k, directory, behind):
    checkpointer = Checkpointer(directory)
    checkpointer.save(Run(1)), checkpointer.save(Run(2))
    child = os.fork()
    if not child:
        Faults(pytest.MonkeyPatch(), k, lambda: os._exit(9), behind=behind)
        checkpointer.save(Run(3))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def limited(directory):
    checkpointer = Checkpointer(directory)
    checkpointer.save(Run(1))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        checkpointer.save(Run(2, size=1_000_000))
        return "no error"
    except CheckpointError as error:
        return [error.__cause__.errno, str(error)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

root = Path(sys.argv[1])
exits = {}
for behind in (False, True):
    for k in range(1, 100):
        exits[f"{behind}-{k}"] = killed_at(k, root / f"{behind}-{k}", behind)
        if exits[f"{behind}-{k}"] == 0:
            break
print(json.dumps({"exits": exits, "limited": limited(root / "limited")}))
"""


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the directory of a child process, and its report."""
    if os.name != "posix":
        pytest.skip("needs fork and resource limits")
    root = tmp_path_factory.mktemp("child")
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(root)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return root, json.loads(done.stdout)


def test_process_killed_at_any_call_leaves_a_sound_checkpoint(child: tuple[Path, dict[str, Any]]) -> None:
    root, said = child
    codes = list(said["exits"].values())
    assert codes.count(0) == 2, "each series ends with a save that nothing stopped"
    assert codes.count(9) == len(codes) - 2 >= 16
    unfinished = 0
    for name in said["exits"]:
        checkpointer = Checkpointer(root / name)
        assert epoch_of(checkpointer.read_last()) in (2, 3)
        left = set(os.listdir(root / name)) - OURS
        unfinished += len(left)
        with pytest.warns(UserWarning, match="Removed") if left else contextlib.nullcontext():
            lock_once(checkpointer.directory)
        assert set(os.listdir(root / name)) == {"last.safetensors", "last.previous.safetensors"}
        checkpointer.save(Run(4))
        assert epoch_of(checkpointer.read_last()) == 4
    assert unfinished > 0, "no kill left anything: the faults did not reach the writing"


def test_full_disk_is_named_with_the_size_and_costs_nothing(child: tuple[Path, dict[str, Any]]) -> None:
    root, said = child
    number, message = said["limited"]
    assert number == errno.EFBIG
    assert "(4.0 MB): File too large; the previous checkpoint is intact" in message
    assert os.listdir(root / "limited") == ["last.safetensors"]
    assert epoch_of(Checkpointer(root / "limited").read_last()) == 1
