"""`examples/sweep.py`: finished runs are not repeated, stopped ones resume, and failed ones end alone."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from cifarnet import Checkpointer
from cifarnet.errors import SettingError

SWEEP = Path(__file__).resolve().parents[2] / "examples" / "sweep.py"


def command(out: Path, *options: str) -> list[str]:
    return [sys.executable, str(SWEEP), "--data", "synthetic", "--images", "80", "--out", str(out), *options]


def sweep(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(out, *options), capture_output=True, text=True, check=False)


def test_a_killed_sweep_resumes_and_survives_failed_runs(tmp_path: Path) -> None:
    options = ("--set", "learning_rate=0.001,1e30", "--seeds", "2", "--processes", "2", "--epochs")
    killed = subprocess.Popen(command(tmp_path, *options, "2"), stderr=subprocess.PIPE, text=True)
    assert killed.stderr is not None
    assert any("learning_rate=0.001" in line and line.endswith(": done\n") for line in killed.stderr)
    killed.kill()
    killed.communicate()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("report.json")}
    assert done
    result = sweep(tmp_path, *options, "2")
    assert result.returncode == 1
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert re.search(r"\| learning_rate=0.001 \| 2 \| \d+\.\d\d ± \d+\.\d\d % \|", result.stdout)
    assert "Best on the held-out images: learning_rate=0.001. Its test accuracy: " in result.stdout
    assert (tmp_path / "table.md").read_text() in result.stdout
    assert len(re.findall(r"1e\+30/seed-\d failed: .*The loss is not finite", result.stderr)) == 2
    reports = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("report.json"))]
    assert [(report["seed"], len(report["history"])) for report in reports] == [(0, 2), (1, 2)]
    other = sweep(tmp_path, *options, "3")
    assert other.returncode == 1
    assert "seed-0 is of other settings or data; choose another --out" in other.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupted_sweep_saves_its_runs_first(tmp_path: Path) -> None:
    options, run = ("--epochs", "300"), tmp_path / "recipe" / "seed-0"
    stopped = subprocess.Popen(command(tmp_path, *options), stderr=subprocess.PIPE, text=True, start_new_session=True)
    giving_up = time.monotonic() + 120
    while not (run / "last.safetensors").exists():  # it is written after the first epoch, which is the best so far
        assert stopped.poll() is None
        assert time.monotonic() < giving_up
        time.sleep(0.02)
    os.killpg(stopped.pid, signal.SIGINT)  # as a terminal does it
    assert stopped.communicate(timeout=60)[1] == f"{run}: ended with code 143\n"
    assert stopped.returncode == 130
    state = Checkpointer(run).read_last()
    assert state is not None
    assert 0 < len(state["history"]) < 300
    result = sweep(tmp_path, *options)
    assert result.returncode == 0, result.stderr
    times = [epoch["train_s"] for epoch in json.loads((run / "report.json").read_text())["history"]]
    assert len(times) == 300
    assert times[: len(state["history"])] == [epoch["train_s"] for epoch in state["history"]]


def test_a_plan_has_seeds_a_grid_or_single_changes(tmp_path: Path) -> None:
    plan = runpy.run_path(str(SWEEP))["plan"]
    defaults = {"recipe": "basic", "set": [], "one_at_a_time": False, "random": None, "seeds": 1, "epochs": None}
    defaults |= {"data": None, "images": None, "out": tmp_path}

    def planned(**settings: Any) -> list[str]:
        return [str(run.relative_to(tmp_path)) for run in plan(Namespace(**defaults | settings))]

    assert planned(seeds=2) == ["recipe/seed-0", "recipe/seed-1"]
    values = ["flip=none,random", "crop_padding=0,1"]
    grid = planned(set=values)
    assert grid == [f"flip={flip},crop_padding={pad}/seed-0" for flip in ("none", "random") for pad in (0, 1)]
    drawn = planned(set=values, random=2)
    assert len(set(drawn)) == 2
    assert set(drawn) < set(grid)
    alone = ["recipe", "flip=none", "flip=random", "crop_padding=0", "crop_padding=1"]
    assert planned(set=values, one_at_a_time=True) == [f"{name}/seed-0" for name in alone]
    with pytest.raises((SettingError, TypeError), match="momentum"):
        planned(set=["momentum=0.9"])
