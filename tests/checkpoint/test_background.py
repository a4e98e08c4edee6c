from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from cifarnet.checkpoint.background import BackgroundWriter, snapshot


@pytest.fixture
def writer() -> BackgroundWriter:
    return BackgroundWriter("last", "best")


def test_a_snapshot_is_equal_and_shares_nothing() -> None:
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


def test_jobs_run_in_another_thread_while_this_one_goes_on(writer: BackgroundWriter) -> None:
    threads: list[int] = []
    writer.put(last=lambda: threads.append(threading.get_ident()))
    writer.wait()
    assert not writer.busy
    writer.close()
    assert threads
    assert threads[0] != threading.get_ident()


def test_of_what_waits_only_the_newest_is_run_and_last_goes_first(writer: BackgroundWriter) -> None:
    done: list[str] = []
    opened = threading.Event()
    writer.put(last=gate(done, "last 1", opened))
    while True:  # until it runs, and no longer waits
        with writer._changed:
            if writer._running:
                break
    for number in (2, 3, 4):
        writer.put(best=lambda number=number: done.append(f"best {number}"))  # type: ignore[misc]
        writer.put(last=lambda number=number: done.append(f"last {number}"))  # type: ignore[misc]
    assert writer.busy
    opened.set()
    writer.wait()
    assert done == ["last 1", "last 4", "best 4"]
    writer.close()


def test_closing_runs_what_waits(writer: BackgroundWriter) -> None:
    done: list[str] = []
    opened = threading.Event()
    writer.put(last=gate(done, "last", opened), best=lambda: done.append("best"))
    opened.set()
    writer.close()
    assert done == ["last", "best"]


@pytest.mark.parametrize("call", ["put", "wait", "close", "raise_failure"])
def test_a_failure_is_raised_by_the_next_call_and_nothing_is_run_after_it(writer: BackgroundWriter, call: str) -> None:
    done: list[str] = []
    opened = threading.Event()

    def fail() -> None:
        assert opened.wait(10)
        raise OSError("disk full")

    writer.put(last=fail, best=lambda: done.append("best"))
    opened.set()
    with writer._changed:
        writer._changed.wait_for(lambda: writer._failure is not None, timeout=10)
    actions: dict[str, Callable[[], None]] = {
        "put": lambda: writer.put(last=lambda: done.append("last")),
        "wait": writer.wait,
        "close": writer.close,
        "raise_failure": writer.raise_failure,
    }
    with pytest.raises(OSError, match="disk full"):
        actions[call]()
    writer.close()
    assert done == []
