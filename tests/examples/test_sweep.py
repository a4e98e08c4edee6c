"""`examples/sweep.py`: finished runs are not repeated, stopped ones resume, and failed ones end alone."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
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


def test_a_killed_sweep_resumes_and_survives_failed_runs(tmp_path: Path) -> None:
    options = ("--set", "learning_rate=0.001,1e30", "--seeds", "2", "--epochs", "2", "--processes", "2")
    sweep = subprocess.Popen(command(tmp_path, *options), stderr=subprocess.PIPE, text=True)
    giving_up = threading.Timer(240, sweep.kill)
    giving_up.start()
    assert sweep.stderr is not None
    for line in sweep.stderr:
        if "learning_rate=0.001" in line and line.endswith(": done\n"):
            break
    sweep.send_signal(signal.SIGKILL)
    sweep.communicate()
    giving_up.cancel()
    done = list(tmp_path.rglob("report.json"))
    assert done
    before = {path: path.stat().st_mtime_ns for path in done}
    result = subprocess.run(command(tmp_path, *options), capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert {path: path.stat().st_mtime_ns for path in done} == before
    assert re.search(r"\| learning_rate=0.001 \| 2 \| \d+\.\d\d ± \d+\.\d\d % \|", result.stdout)
    assert "Best on the held-out images: learning_rate=0.001. Its test accuracy: " in result.stdout
    assert (tmp_path / "table.md").read_text() in result.stdout
    assert len(re.findall(r"1e\+30/seed-\d failed: .*The loss is not finite", result.stderr)) == 2
    assert len(list(tmp_path.rglob("report.json"))) == 2
    for seed in (0, 1):
        run = tmp_path / f"learning_rate=0.001/seed-{seed}"
        report = json.loads((run / "report.json").read_text())
        state = Checkpointer(run).read_last()
        assert state is not None
        assert (report["seed"], len(report["history"]), state["position"]["epoch"]) == (seed, 2, 2)
    other = subprocess.run(command(tmp_path, *options[:-3], "3"), capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert "seed-0 is of other settings or data; choose another --out" in other.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupted_sweep_saves_its_runs_first(tmp_path: Path) -> None:
    options, run = ("--epochs", "300"), tmp_path / "recipe" / "seed-0"
    sweep = subprocess.Popen(command(tmp_path, *options), stderr=subprocess.PIPE, text=True, start_new_session=True)
    giving_up = time.monotonic() + 120
    while not (run / "last.safetensors").exists():  # it is written after the first epoch, which is the best so far
        assert sweep.poll() is None
        assert time.monotonic() < giving_up
        time.sleep(0.02)
    os.killpg(sweep.pid, signal.SIGINT)  # as a terminal does it
    printed = sweep.communicate(timeout=60)[1]
    assert sweep.returncode == 130
    assert printed == f"{run}: ended with code 143\n"
    assert not (run / "report.json").exists()
    stopped = Checkpointer(run).read_last()
    assert stopped is not None
    assert 0 < len(stopped["history"]) < 300
    result = subprocess.run(command(tmp_path, *options), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    history = json.loads((run / "report.json").read_text())["history"]
    assert len(history) == 300
    # Not trained again: their times are those of before.
    assert [epoch["train_s"] for epoch in history[: len(stopped["history"])]] == [
        epoch["train_s"] for epoch in stopped["history"]
    ]


def planned(tmp_path: Path, **settings: Any) -> list[str]:
    plan = runpy.run_path(str(SWEEP))["plan"]
    given = {"recipe": "basic", "set": [], "one_at_a_time": False, "random": None, "seeds": 1, "epochs": None}
    given |= {"data": None, "images": None, "out": tmp_path}
    return [str(run.relative_to(tmp_path)) for run in plan(Namespace(**given | settings))]


def test_a_plan_has_seeds_a_grid_or_single_changes(tmp_path: Path) -> None:
    assert planned(tmp_path, seeds=2) == ["recipe/seed-0", "recipe/seed-1"]
    values = ["flip=none,random", "crop_padding=0,1"]
    grid = planned(tmp_path, set=values)
    assert grid == [f"flip={flip},crop_padding={pad}/seed-0" for flip in ("none", "random") for pad in (0, 1)]
    some = planned(tmp_path, set=values, random=2)
    assert len(set(some)) == 2
    assert set(some) < set(grid)
    assert planned(tmp_path, set=values, random=2) == some
    alone = ["recipe", "flip=none", "flip=random", "crop_padding=0", "crop_padding=1"]
    assert planned(tmp_path, set=values, one_at_a_time=True) == [f"{name}/seed-0" for name in alone]
    with pytest.raises((SettingError, TypeError), match="momentum"):
        planned(tmp_path, set=["momentum=0.9"])
