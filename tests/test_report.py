from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cifarnet.errors import InputError
from cifarnet.report import load_report, results_table, save_report


def report(seed: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "recipe": {"name": "reference", "max_epochs": 10},
        "seed": seed,
        "data": {"name": "CIFAR-10"},
        "num_parameters": 6_447_754,
        "metrics": {"test_accuracy": accuracy, "train_accuracy": accuracy - 0.01},
        "durations": {"train_s": 540.0 + seed, "eval_s": 60.0},
        "hardware": "a CPU, 2 threads",
        "precision": "bf16",
        "versions": {"torch": "2.15.0"},
        "selected_by": {"monitor": "final", "epoch": 10, "value": None},
        "peak_memory_mb": 1200.0,
        **changes,
    }


def test_a_table_has_mean_and_standard_deviation(tmp_path: Path) -> None:
    for seed, accuracy in enumerate([0.78, 0.79, 0.80]):
        save_report(report(seed, accuracy), tmp_path / f"seed-{seed}.json")
    table = results_table(tmp_path)
    assert "| test accuracy | 77.63 % | 79.00 ± 1.00 % |" in table
    assert "| training time | ~20 min | 10.0 ± 0.0 min |" in table
    assert "| parameters | ~6.4M | 6,447,754 |" in table
    assert "3 runs (seeds 0, 1, 2), 10 epochs" in table


def test_one_run_has_no_spread(tmp_path: Path) -> None:
    save_report(report(0, 0.785), tmp_path / "seed-0.json")
    assert "| test accuracy | 77.63 % | 78.50 % |" in results_table(tmp_path)


def test_runs_that_cannot_be_compared_have_no_mean(tmp_path: Path) -> None:
    save_report(report(0, 0.78), tmp_path / "seed-0.json")
    save_report(report(1, 0.78, hardware="a GPU"), tmp_path / "seed-1.json")
    with pytest.raises(InputError, match="differ in hardware"):
        results_table(tmp_path)


def test_no_reports_give_no_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no seed-\*.json"):
        results_table(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 2}'])
def test_what_is_no_report_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(InputError, match=r"give a report.json"):
        load_report(tmp_path / "report.json")
