from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cifarnet.errors import InputError, SettingError
from cifarnet.recipes import RECIPES, Recipe, get_recipe
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


def test_recipes_are_plain_data_under_their_names() -> None:
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert Recipe(**json.loads(json.dumps(vars(recipe)))) == recipe


def test_the_reference_recipe_is_the_published_one() -> None:
    recipe = get_recipe("reference")
    assert (recipe.model, recipe.learning_rate, recipe.weight_decay) == ("CifarCNN", 1e-3, 1e-4)
    assert (recipe.batch_size, recipe.max_epochs, recipe.label_smoothing) == (64, 10, 0.0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("learning_rate", -0.1, "learning_rate must be above 0, got -0.1"),
        ("learning_rate", float("inf"), "learning_rate must be above 0, got inf"),
        ("learning_rate", "fast", "learning_rate must be of type float, got 'fast'"),
        ("weight_decay", -1e-4, "weight_decay must not be negative, got -0.0001"),
        ("batch_size", 0, "batch_size must be at least 1, got 0"),
        ("batch_size", 6.4, "batch_size must be of type int, got 6.4"),
        ("max_epochs", True, "max_epochs must be of type int, got True"),
        ("label_smoothing", 1.0, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ("model", "CifarCnn", 'model "CifarCnn" is unknown; did you mean "CifarCNN"'),
        ("flip", "randm", 'flip "randm" is unknown; did you mean "random"'),
        ("crop_padding", -2, "crop_padding must be 0 or more pixels, got -2"),
    ],
)
def test_a_recipe_out_of_range_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Recipe(**{"name": "mine", "summary": "a try", field: value})  # type: ignore[arg-type]
