"""The stages for a GPU run on a CPU, so that no change of the library breaks them unseen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cifarnet

STAGES = Path(__file__).resolve().parents[1] / "examples" / "benchmarks" / "gpu"


def run_stages(directory: Path, which: str, *stages: str) -> dict[str, dict[str, Any]]:
    """Run a part with ``--dry`` and return the record of each stage."""
    out = directory / f"out-{which}"
    command: list[str | Path] = [sys.executable, STAGES / "remote.py", which, "--dry", "--seconds", "500"]
    source = str(Path(cifarnet.__file__).parents[1])
    done = subprocess.run(
        [*command, "--work", directory / "work", "--out", out, "--only", *stages],
        cwd=directory,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "results.tar.gz").exists()
    return {record["stage"]: record for record in json.loads((out / "stages.json").read_text())}


def errors(record: Any) -> list[str]:
    """Return every error in a record, at any depth."""
    if not isinstance(record, dict):
        return []
    own = [str(record["error"])] if "error" in record else []
    return own + [error for value in record.values() for error in errors(value)]


def test_the_first_part_runs_on_a_cpu(tmp_path: Path) -> None:
    records = run_stages(tmp_path, "first", "facts", "smoke", "resume", "profile-reference")
    assert records.keys() == {"facts", "smoke", "resume", "profile-reference"}
    assert [error for record in records.values() for error in errors(record)] == []
    assert records["smoke"]["reference-eager"]["good"] is True
    resume = records["resume"]
    assert (resume["was_stopped"], resume["unbroken_runs_are_equal"], resume["resumed_run_is_equal"]) == (True,) * 3
    assert records["profile-reference"]["step_us"] > 0


@pytest.mark.real_data
def test_the_second_part_runs_on_a_cpu(tmp_path: Path, real_data_root: Path) -> None:
    (tmp_path / "data").symlink_to(real_data_root)
    (tmp_path / "examples").symlink_to(STAGES.parents[1])
    stages = ("accuracy-reference", "train-reference", "training", "start", "inference")
    records = run_stages(tmp_path, "second", *stages)
    assert [error for record in records.values() for error in errors(record)] == []
    reports = tmp_path / "work" / "results" / "reports"
    found = {str(path.relative_to(reports)) for path in reports.rglob("*.json")}
    assert found >= {
        "accuracy-reference.json",
        "reference/seed-0.json",
        "training.json",
        "start.json",
        "inference.json",
    }
