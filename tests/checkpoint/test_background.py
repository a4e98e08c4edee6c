"""Background writer: jobs run in order, and a failure is raised in the training thread."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch

from cifarnet.checkpoint.background import BackgroundWriter, snapshot


@pytest.fixture
def writer() -> BackgroundWriter:
    return BackgroundWriter("last", "best")


def occupy(writer: BackgroundWriter, done: list[str]) -> threading.Event:
    """Start a job that runs until the returned event is set."""
    is_released = threading.Event()

    def job() -> None:
        assert is_released.wait(10)
        done.append("last 1")

    writer.put(last=job)
    while "last" in writer._waiting:  # until it runs
        pass
    return is_released


def test_snapshot_is_equal_and_shares_nothing() -> None:
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last).requires_grad_()
    expected, one = weight.detach().clone(), torch.ones(2)
    copy = snapshot({"model": {"w": weight}, 3: [one, ("a", 1.5, None)], "flag": True})
    assert copy["model"]["w"].stride() == weight.stride()
    assert not copy["model"]["w"].requires_grad
    with torch.no_grad():
        weight.zero_()
    one.zero_()
    assert torch.equal(copy["model"]["w"], expected)
    assert copy[3][0].tolist() == [1, 1]
    assert (copy[3][1], copy["flag"]) == (("a", 1.5, None), True)


def test_newest_waiting_job_of_each_name_runs_last_first(writer: BackgroundWriter) -> None:
    done: list[str] = []
    is_released = occupy(writer, done)
    for number in (2, 3, 4):
        writer.put(best=partial(done.append, f"best {number}"))
        writer.put(last=partial(done.append, f"last {number}"))
    assert writer.busy
    is_released.set()
    writer.wait()
    assert not writer.busy
    assert done == ["last 1", "last 4", "best 4"]
    writer.close()


@pytest.mark.parametrize("call", ["put", "wait", "close", "raise_failure"])
def test_failure_is_raised_by_the_next_call_and_ends_all_jobs(writer: BackgroundWriter, call: str) -> None:
    def fail() -> None:
        raise OSError("disk full")

    done: list[str] = []
    is_released = occupy(writer, done)
    writer.put(last=fail, best=partial(done.append, "best"))
    is_released.set()
    with writer._changed:
        writer._changed.wait_for(lambda: writer._failure is not None, timeout=10)
    with pytest.raises(OSError, match="disk full"):
        getattr(writer, call)()
    writer.close()
    assert done == ["last 1"]


def test_abandoned_writer_discards_jobs_and_then_calls_back(writer: BackgroundWriter) -> None:
    done: list[str] = []
    has_ended = threading.Event()
    is_released = occupy(writer, done)
    writer.put(best=partial(done.append, "best"))
    writer.abandon(then=has_ended.set)
    assert not has_ended.is_set()
    is_released.set()
    assert has_ended.wait(10)
    assert done == ["last 1"]
