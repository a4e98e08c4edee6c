"""`examples/sweep.py`: an interrupted trial resumes, and the search ends with its best settings."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from cifarnet import Checkpointer
from cifarnet.recipes import Recipe

pytestmark = pytest.mark.filterwarnings(
    "ignore::optuna.exceptions.ExperimentalWarning",
    "ignore:Removed . unfinished checkpoint",  # of a killed save
)
SWEEP = Path(__file__).resolve().parents[2] / "examples" / "sweep.py"


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module that notices a killed process after three seconds."""
    monkeypatch.syspath_prepend(SWEEP.parent)
    module = importlib.import_module("sweep")
    monkeypatch.setattr(module, "HEARTBEAT_S", 1)
    return module


def arguments(out: Path, *options: str) -> list[str]:
    return [str(SWEEP), "--data", "synthetic", "--set", "learning_rate=1e-4:1e-2", "--out", str(out), *options]


def trials(out: Path) -> list[optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{out}/study.db"
    return optuna.load_study(study_name=optuna.get_all_study_names(storage)[0], storage=storage).trials


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_trial_resumes(
    sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    options = arguments(tmp_path, "--trials", "1", "--epochs", "3")
    process = subprocess.Popen([sys.executable, *options])
    giving_up = time.monotonic() + 120
    while not (tmp_path / "trial-0" / "last.safetensors").exists():  # the first epoch is the best so far
        assert process.poll() is None
        assert time.monotonic() < giving_up
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(60) == (130 if number == signal.SIGINT else -number)
    stopped = Checkpointer(tmp_path / "trial-0").read_last()
    assert stopped is not None
    monkeypatch.setattr(sys, "argv", options)
    sweep.main()
    interrupted, resumed = trials(tmp_path)
    assert (interrupted.state, resumed.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert (resumed.params, sorted(resumed.intermediate_values)) == (interrupted.params, [1, 2, 3])
    finished = Checkpointer(tmp_path / "trial-0").read_last()
    assert finished is not None
    assert finished["history"][: len(stopped["history"])] == stopped["history"], "epochs are not trained twice"
    assert len(finished["history"]) == 3


def test_a_search_ends_with_its_best_settings(
    sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = arguments(tmp_path, "--set", "flip=none,random", "--trials", "3", "--epochs", "1", "--workers", "2")
    monkeypatch.setattr(sys, "argv", options)
    sweep.main()
    best = max(trials(tmp_path), key=lambda trial: trial.value or 0)
    recipe = Recipe.from_dict(json.loads((tmp_path / "best_recipe.json").read_text()))
    assert (recipe.learning_rate, recipe.flip) == (best.params["learning_rate"], best.params["flip"])
    assert f"trial-{best.number}" in capsys.readouterr().out
    assert (tmp_path / "search.png").stat().st_size > 1000


def test_a_loss_that_is_not_finite_ends_its_trial_only(
    sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [str(SWEEP), "--data", "synthetic", "--set", "learning_rate=1e29,1e30", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*options, "--trials", "2", "--epochs", "1"])
    with pytest.raises(SystemExit, match="No trial completed"):
        sweep.main()
    assert [trial.state for trial in trials(tmp_path)] == [TrialState.FAIL] * 2
