"""No checkpoint file executes code, a damaged one is refused, and a save that fails keeps the previous checkpoint."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import itertools
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from checkpoint_files import SOUND, build, entry, lock_once, mutate, numbered, read_number, refuse
from cifarnet.checkpoint import Checkpointer, load_best
from cifarnet.errors import CheckpointError

# Files that could execute code


class Payload:
    """Object that creates a directory when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.trace),)


def dangerous_files(payload: Payload) -> dict[str, bytes]:
    """Return a file of every format that unpickles, by the name of the format."""
    files = {f"pickle {protocol}": pickle.dumps(payload, protocol) for protocol in range(6)}
    files |= {f"pickled dict {protocol}": pickle.dumps({"weight": payload}, protocol) for protocol in range(6)}
    files["gzip"] = gzip.compress(files["pickle 5"])
    for name, zip_format in (("torch.save", True), ("old torch.save", False)):
        torch.save({"weight": payload}, buffer := io.BytesIO(), _use_new_zipfile_serialization=zip_format)
        files[name] = buffer.getvalue()
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("archive/code.pkl", files["pickle 5"])
    files["TorchScript"] = buffer.getvalue()
    return files


def test_no_pickle_is_executed(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    for name, content in dangerous_files(Payload(trace)).items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"\.safetensors is a pickle file .* never unpickles"):
            load_best(path)
        assert not trace.exists(), name
    pickle.loads(pickle.dumps(Payload(trace)))
    assert trace.exists(), "control: a payload that is unpickled leaves a trace"


# Damaged and hostile files


def test_every_cut_and_every_flipped_bit_is_refused() -> None:
    for position in range(len(SOUND)):
        refuse(SOUND[:position])
        for bit in range(8):
            refuse(SOUND[:position] + bytes([SOUND[position] ^ 1 << bit]) + SOUND[position + 1 :])


@given(st.integers(0, 2**32))
@settings(max_examples=400)
def test_mutated_file_is_refused(seed: int) -> None:
    mutated = mutate(SOUND, random.Random(seed))
    assume(mutated != SOUND)
    refuse(mutated)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), json_values, max_size=4), st.binary(max_size=99))
def test_any_bytes_and_any_json_header_are_refused(header: dict[str, Any], data: bytes) -> None:
    refuse(data)
    refuse((len(data) + 1).to_bytes(8, "little") + b"{" + data)
    refuse(build(header, data))


READ_AND_MEASURE = """
import re, sys
from pathlib import Path
from cifarnet.checkpoint import read_checkpoint
from cifarnet.errors import CheckpointCorruptError
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
try:
    read_checkpoint(sys.argv[1])
except CheckpointCorruptError:
    print(peak() - before)
held = b"1" * 2**28
print(peak() - before)
"""

DECLARED = build({"__metadata__": {"cifarnet": "{}"}, "a": entry(shape=(2**28,), offsets=(0, 2**28))})
TENSORS = build({f"{i:x}": entry(shape=(1,), offsets=(i, i + 1)) for i in range(2**14)}, bytes(2**14))
VALUES = build({"__metadata__": {"cifarnet": json.dumps({"format": 2, "kind": "last", "values": [{}] * 2**18})}})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc of Linux")
@pytest.mark.parametrize(
    ("content", "limit"),
    [(DECLARED, 2**25), (TENSORS, 64 * len(TENSORS)), (VALUES, 64 * len(VALUES))],
    ids=["256 MiB declared", "16,384 tensors", "262,144 values"],
)
def test_hostile_header_allocates_by_its_own_size_only(content: bytes, limit: int, tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    path.write_bytes(content)
    command = [sys.executable, "-c", READ_AND_MEASURE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    growth, control = map(int, done.stdout.split())
    assert growth < limit
    assert control > 200 * 2**20, "the measurement sees 256 MiB"


# Saves that fail


class KilledError(BaseException):
    """End of the process: no later call reaches the disk."""


class Faults:
    """Error before or after the k-th call by which a save changes the disk. A write is cut in half first."""

    def __init__(self, patch: pytest.MonkeyPatch, k: int, error: BaseException, *, after: bool) -> None:
        self.k, self.error, self.after = k, error, after
        self.calls: list[str] = []
        self.is_killed = False
        for name in ("mkdir", "open", "write", "fsync", "link", "replace", "unlink"):
            patch.setattr(os, name, self.wrap(name, getattr(os, name)))

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self.is_killed:
                raise self.error
            self.calls.append(name)
            is_hit = len(self.calls) == self.k
            self.is_killed = is_hit and isinstance(self.error, KilledError)
            if is_hit and not self.after:
                if name == "write":
                    call(args[0], args[1][: len(args[1]) // 2])
                raise self.error
            result = call(*args, **kwargs)
            if is_hit:
                raise self.error
            return result

        return wrapped


@pytest.mark.parametrize(
    ("error", "after"),
    [
        (OSError(errno.EIO, "Input/output error"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (KeyboardInterrupt(), False),
        (KilledError(), False),
        (KilledError(), True),
    ],
    ids=["broken disk", "full disk", "interrupt", "kill before", "kill after"],
)
@pytest.mark.parametrize("is_fresh", [False, True], ids=["same process", "fresh process"])
def test_save_that_fails_at_any_call_keeps_a_checkpoint(
    error: BaseException, after: bool, is_fresh: bool, tmp_path: Path
) -> None:
    files = {"last.safetensors", "last.previous.safetensors"}
    num_unfinished = 0
    for k in itertools.count(1):
        directory = tmp_path / str(k)
        checkpointer = Checkpointer(directory)
        checkpointer.save_state(numbered(1))
        checkpointer.save_state(numbered(2))
        if is_fresh:
            checkpointer = Checkpointer(directory)
        raised: BaseException | None = None
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, k, error, after=after)
            try:
                checkpointer.save_state(numbered(3))
            except BaseException as caught:
                raised = caught
        if len(faults.calls) < k:
            break
        if isinstance(error, OSError) and raised is not None:
            assert isinstance(raised, CheckpointError)
            assert raised.__cause__ is error
            assert "the previous checkpoint is intact" in str(raised)
        elif not isinstance(error, OSError):
            assert raised is error, "it was swallowed"
        unfinished = set(os.listdir(directory)) - files
        num_unfinished += len(unfinished)
        with pytest.warns(UserWarning, match="Removed") if unfinished else contextlib.nullcontext():
            lock_once(directory)
        assert set(os.listdir(directory)) == files
        assert read_number(directory) in ((2, 3) if raised else (3,))
        os.replace(checkpointer.previous_path, checkpointer.last_path)
        assert read_number(directory) in ((1, 2) if raised else (2,)), "a disk without hard links keeps a copy"
    assert raised is None
    assert faults.calls.count("fsync") == 2
    assert {"open", "write", "link", "replace"} <= set(faults.calls)
    assert (num_unfinished > 0) == isinstance(error, KilledError)
