"""Background writer: jobs run in order, and a failure is raised in the training thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from cifarnet.checkpoint.background import BackgroundWriter, snapshot


@pytest.fixture
def writer() -> BackgroundWriter:
    return BackgroundWriter("last", "best")


def test_snapshot_is_equal_and_shares_nothing() -> None:
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last).requires_grad_()
    state = {"model": {"w": weight}, 3: [torch.ones(2), ("a", 1.5, None)], "flag": True}
    copy = snapshot(state)
    assert copy["model"]["w"].stride() == weight.stride()
    assert not copy["model"]["w"].requires_grad
    expected = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
    state[3][0].zero_()  # type: ignore[index]
    assert torch.equal(copy["model"]["w"], expected)
    assert copy[3][0].tolist() == [1, 1]
    assert copy[3][1] == ("a", 1.5, None)
    assert copy["flag"] is True


def gate(done: list[str], name: str, opened: threading.Event) -> Callable[[], None]:
    def job() -> None:
        assert opened.wait(10)
        done.append(name)

    return job


def test_jobs_run_in_another_thread(writer: BackgroundWriter) -> None:
    threads: list[int] = []
    writer.put(last=lambda: threads.append(threading.get_ident()))
    writer.wait()
    assert not writer.busy
    writer.close()
    assert threads
    assert threads[0] != threading.get_ident()


def test_newest_waiting_job_of_each_name_runs_last_first(writer: BackgroundWriter) -> None:
    done: list[str] = []
    opened = threading.Event()
    writer.put(last=gate(done, "last 1", opened))
    while "last" in writer._waiting:  # until it runs
        pass
    for number in (2, 3, 4):
        writer.put(best=lambda number=number: done.append(f"best {number}"))  # type: ignore[misc]
        writer.put(last=lambda number=number: done.append(f"last {number}"))  # type: ignore[misc]
    assert writer.busy
    opened.set()
    writer.wait()
    assert done == ["last 1", "last 4", "best 4"]
    writer.close()


@pytest.mark.parametrize("call", ["put", "wait", "close", "raise_failure"])
def test_failure_is_raised_by_the_next_call_and_ends_all_jobs(writer: BackgroundWriter, call: str) -> None:
    done: list[str] = []
    opened = threading.Event()

    def fail() -> None:
        assert opened.wait(10)
        raise OSError("disk full")

    writer.put(last=fail, best=lambda: done.append("best"))
    opened.set()
    with writer._changed:
        writer._changed.wait_for(lambda: writer._failure is not None, timeout=10)
    with pytest.raises(OSError, match="disk full"):
        getattr(writer, call)()
    writer.close()
    assert done == []


def test_abandoned_writer_discards_jobs_and_then_calls_back(writer: BackgroundWriter) -> None:
    done: list[str] = []
    opened, ended = threading.Event(), threading.Event()
    writer.put(last=gate(done, "last", opened))
    while "last" in writer._waiting:
        pass
    writer.put(best=lambda: done.append("best"))
    writer.abandon(then=ended.set)
    assert not ended.is_set()
    opened.set()
    assert ended.wait(10)
    assert done == ["last"]
