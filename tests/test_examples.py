"""README and examples do what they say, on small data."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cifarnet
from cifarnet import DatasetSplits, make_synthetic

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def small_cifar10(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> DatasetSplits:
    """`load_cifar10` gives 200 synthetic images, so that ten epochs take seconds."""
    data = make_synthetic(num_train=200, num_test=60, seed=0)
    monkeypatch.setattr(cifarnet, "load_cifar10", lambda *_, **__: data)
    monkeypatch.chdir(tmp_path)
    return data


def run_example(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    return runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


@pytest.mark.usefixtures("small_cifar10")
def test_the_readmes_python_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "val loss" in out
    assert "95 % interval" in out


def test_the_readmes_commands_are_known(tmp_path: Path) -> None:
    """Every `cifarnet ...` line of the README parses; the short ones run."""
    lines = re.findall(r"^cifarnet .*$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        short = line.replace("--epochs 3", "--epochs 1")
        arguments = [sys.executable, "-m", *short.split()]
        result = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr


@pytest.mark.usefixtures("small_cifar10")
def test_train_cifar10_trains_and_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example("train_cifar10.py", "--epochs", "1", monkeypatch=monkeypatch)
    names = run_example("train_cifar10.py", "--epochs", "2", monkeypatch=monkeypatch)
    assert len(names["history"]) == 2
    captured = capsys.readouterr()
    assert "test accuracy" in captured.out
    assert captured.err.count("epoch 1:") == 1


@pytest.mark.usefixtures("small_cifar10")
def test_choose_augmentation_ranks_its_candidates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    names = run_example("choose_augmentation.py", "--out", "report.json", "--epochs", "1", monkeypatch=monkeypatch)
    assert "flip, crop 2 (reflect)" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    committed = json.loads((ROOT / "docs/results/reference-cpu/augmentation.json").read_text())
    # The committed table is of these candidates, no two of them alike, whatever the recipe says by now.
    pairs = [(c["augmentation"], c["settings"]) for c in report["candidates"]]
    assert pairs == [(c["augmentation"], c["settings"]) for c in committed["candidates"]]
    assert len({json.dumps(settings, sort_keys=True) for settings in names["CANDIDATES"].values()}) == len(pairs)


def test_the_tables_agree_with_the_committed_reports() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "docs" / "make_tables.py", "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
