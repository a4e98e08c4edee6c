"""Stages of the GPU benchmarks, run on a CPU."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import cifarnet

ROOT = Path(__file__).resolve().parents[2]
STAGES = ROOT / "examples" / "benchmarks" / "gpu"
Records = dict[str, dict[str, Any]]


def run_stages(directory: Path, command: Sequence[str | Path], *options: str | Path) -> Records:
    """Run a part and return the record of each stage."""
    done = subprocess.run(
        [*command, *options],
        cwd=directory,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(cifarnet.__file__).parents[1]),
            "GPU_PYTHON": sys.executable,
            "GPU_WORK": "work",
            "OUT": "out",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (directory / "out" / "results.tar.gz").exists()
    return {record["stage"]: record for record in json.loads((directory / "out" / "stages.json").read_text())}


def run_second_part(directory: Path, *stages: str) -> Records:
    (directory / "examples").symlink_to(ROOT / "examples")
    options = ("second", "--dry", "--seconds", "900", "--work", "work", "--out", "out", "--only")
    return run_stages(directory, [sys.executable, STAGES / "remote.py", *options], *stages)


def errors(record: Any) -> list[str]:
    """Return every error in a record, at any depth."""
    if not isinstance(record, dict):
        return []
    own = [str(record["error"])] if "error" in record else []
    return own + [error for value in record.values() for error in errors(value)]


def test_the_first_part_runs_on_a_cpu_by_its_command(tmp_path: Path) -> None:
    for part in ("src", "tests", "examples", "pyproject.toml"):
        (tmp_path / part).symlink_to(ROOT / part)
    stages = ("facts", "smoke", "resume", "profile-reference")
    command = ["bash", "examples/benchmarks/gpu/remote.sh", "first", "500", "--dry", "--only"]
    records = run_stages(tmp_path, command, *stages)
    assert records.keys() == set(stages)
    assert [error for record in records.values() for error in errors(record)] == []
    assert records["smoke"]["reference-eager"]["good"] is True
    resume = records["resume"]
    equal = (resume["uninterrupted_runs_are_equal"], resume["resumed_run_is_equal"])
    assert (resume["was_stopped"], *equal) == (True,) * 3
    profile = json.loads((tmp_path / "work" / "results" / "reports" / "profile-reference.json").read_text())
    assert profile["epochs"]["step_us"] > 0
    assert profile["parts"].keys() >= {"order_us", "window", "check_finite_us", "evaluation_10000_images_ms", "graphs"}
    assert errors(profile) == []


def test_the_second_part_runs_on_a_cpu(tmp_path: Path) -> None:
    extra = tmp_path / "work" / "extra" / "run.sh"
    extra.parent.mkdir(parents=True)
    extra.write_text('echo "$EXTRA_DRY" > "$EXTRA_OUT/is_dry.txt"\n')
    stages = ("accuracy-fast94-10", "accuracy-reference-eager", "train-reference", "training", "extra", "start")
    records = run_second_part(tmp_path, *stages, "inference")
    assert records.keys() == {"unpack", *stages, "inference"}
    assert [error for record in records.values() for error in errors(record)] == []
    reports = tmp_path / "work" / "results" / "reports"
    assert {str(path.relative_to(reports)) for path in reports.rglob("*.json")} == {
        "accuracy-fast94.json",
        "accuracy-reference-eager.json",
        "reference/seed-0.json",
        "training.json",
        "start.json",
        "inference.json",
        "saving.json",
    }
    assert (tmp_path / "work" / "results" / "extra" / "is_dry.txt").read_text() == "1\n"


@pytest.mark.real_data
def test_the_second_part_recognizes_cifar10(tmp_path: Path, real_data_root: Path) -> None:
    (tmp_path / "data").symlink_to(real_data_root)
    assert run_second_part(tmp_path, "unpack")["unpack"]["fingerprint_is_right"] is True


def test_the_first_part_runs_every_cuda_test() -> None:
    tests = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "tests").rglob("test_*.py")}
    marked = {name for name, path in tests.items() if f"pytest.mark.{'cuda'}" in path.read_text()}
    assert marked == set(runpy.run_path(str(STAGES / "remote.py"), run_name="remote")["CUDA_TESTS"])
