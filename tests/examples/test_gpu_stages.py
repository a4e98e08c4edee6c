"""Stages of the GPU benchmarks, run on a CPU."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = ROOT / "examples" / "benchmarks" / "gpu"


def run_stages(directory: Path, part: str, *stages: str) -> dict[str, Any]:
    """Run some stages by their command, and return the record of each. None may have an error."""
    for name in ("src", "tests", "examples", "pyproject.toml"):
        (directory / name).symlink_to(ROOT / name)
    done = subprocess.run(
        ["bash", "examples/benchmarks/gpu/remote.sh", part, "900", "--dry", "--only", *stages],
        cwd=directory,
        env=os.environ | {"GPU_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "GPU_WORK": "work", "OUT": "out"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (directory / "out" / "results.tar.gz").exists()
    text = (directory / "out" / "stages.json").read_text()
    assert '"error"' not in text
    return {record["stage"]: record for record in json.loads(text)}


def test_first_part_runs_on_a_cpu(tmp_path: Path) -> None:
    stages = ("facts", "smoke", "resume", "profile-reference")
    records = run_stages(tmp_path, "first", *stages)
    assert records.keys() == set(stages)
    assert records["smoke"]["reference-eager"]["good"] is True
    checks = ("was_stopped", "uninterrupted_runs_are_equal", "resumed_run_is_equal")
    assert [records["resume"][check] for check in checks] == [True, True, True]
    text = (tmp_path / "work/results/reports/profile-reference.json").read_text()
    profile = json.loads(text)
    assert profile["epochs"]["step_us"] > 0
    assert profile["parts"].keys() >= {"order_us", "window", "check_finite_us", "evaluation_10000_images_ms", "graphs"}
    assert '"error"' not in text


def test_second_part_runs_on_a_cpu(tmp_path: Path) -> None:
    extra = tmp_path / "work/extra/run.sh"
    extra.parent.mkdir(parents=True)
    extra.write_text('echo "$EXTRA_DRY" > "$EXTRA_OUT/is_dry.txt"\n')
    stages = ("accuracy-reference-eager", "train-reference", "extra", "start")
    records = run_stages(tmp_path, "second", *stages, "inference")
    assert records.keys() == {"unpack", *stages, "inference"}
    reports = tmp_path / "work/results/reports"
    names = {str(path.relative_to(reports).with_suffix("")) for path in reports.rglob("*.json")}
    expected = {"accuracy-reference-eager", "reference/seed-0", "start"}
    assert names == expected | {"inference", "saving"}
    assert (tmp_path / "work/results/extra/is_dry.txt").read_text() == "1\n"


@pytest.mark.real_data
def test_second_part_recognizes_cifar10(tmp_path: Path, real_data_root: Path) -> None:
    (tmp_path / "work/project").mkdir(parents=True)
    (tmp_path / "work/project/data").symlink_to(real_data_root)
    assert run_stages(tmp_path, "second", "unpack")["unpack"]["fingerprint_is_right"] is True


def test_first_part_runs_every_cuda_test() -> None:
    tests = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "tests").rglob("test_*.py")}
    marked = {name for name, path in tests.items() if f"pytest.mark.{'cuda'}" in path.read_text()}
    assert marked == set(runpy.run_path(str(STAGES / "remote.py"), run_name="remote")["CUDA_TESTS"])
