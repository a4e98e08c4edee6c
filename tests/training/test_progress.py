from __future__ import annotations

import io
import re
import sys
import types
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any

import pytest

from cifarnet import DatasetSplits, Trainer
from cifarnet.inference.metrics import MetricTotals, RunningMetrics
from cifarnet.training import progress

MakeTrainer = Callable[..., Trainer]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def fit(trainer: Trainer, data: DatasetSplits, **settings: object) -> None:
    trainer.fit(data.train, data.test, max_epochs=2, **settings)  # type: ignore[arg-type]


@pytest.fixture
def terminal() -> Terminal:
    """For `contextlib.redirect_stderr`: pytest puts its own stderr back after the fixtures."""
    return Terminal()


def test_a_terminal_gets_a_bar_and_a_line_per_epoch(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_MIN_INTERVAL_S", 0.0)
    trainer = make_trainer()
    with redirect_stderr(terminal):
        trainer.fit(synthetic.train, max_epochs=1)
        trainer.fit(synthetic.train, max_epochs=2)
    shown = terminal.getvalue()
    states = [line for line in re.split(r"[\r\n]", shown) if "images/s, loss" in line and "%|" in line]
    assert len(states) >= 8
    # Share done, time left, epoch, speed, loss and accuracy so far.
    pattern = r"epoch 2/2 +\d+%\|.*\| \d\d:\d\d<[\d:?]+, [\d,]+ images/s, loss \d\.\d{4}, accuracy \d+\.\d\d%"
    assert re.search(pattern, states[-1]), states[-1]
    assert len(re.findall(r"epoch \d: train loss", shown)) == 2
    assert " 60%|" in shown  # one step into the second of two epochs of five steps


def test_the_bar_reads_the_device_at_most_five_times_a_second(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped clock: no step is old enough to be shown."""
    reads: list[int] = []
    read = RunningMetrics.read

    def count(sums: RunningMetrics) -> MetricTotals:
        reads.append(1)
        return read(sums)

    monkeypatch.setattr(RunningMetrics, "read", count)
    clock = types.SimpleNamespace(perf_counter=lambda: 100.0)
    monkeypatch.setattr(progress, "time", clock)
    with redirect_stderr(terminal):
        fit(make_trainer(), synthetic)
    in_fit = len(reads)
    reads.clear()
    fit(make_trainer(), synthetic, progress_bar=False)
    assert in_fit == len(reads)


def test_a_file_gets_a_plain_line_per_epoch(make_trainer: MakeTrainer, synthetic: DatasetSplits, capsys: Any) -> None:
    fit(make_trainer(), synthetic)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line[:8] for line in lines] == ["Training", "epoch 1:", "epoch 2:"]
    assert re.fullmatch(r"Training on .+, \d+ threads?, (float32|bf16)", lines[0])
    assert lines[2].endswith("(2/2)")
    assert "\r" not in captured.err


def test_a_notebook_gets_a_bar_for_any_iterable(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setattr(progress, "_MIN_INTERVAL_S", 0.0)
    batch = (synthetic.train.images[:50], synthetic.train.labels[:50])
    make_trainer().fit(iter([batch] * 3), max_epochs=1)  # without a length
    assert re.search(r"%\|.*images/s, loss", capsys.readouterr().err)


def test_training_continues_without_a_display(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.close()
    for stream in (None, terminal):
        monkeypatch.setattr(sys, "stderr", stream)
        trainer = make_trainer()
        trainer.fit(synthetic.train, max_epochs=2)
        assert len(trainer.history) == 2
