from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cifarnet.errors import DataError
from cifarnet.recipes import RECIPES, Recipe, get_recipe
from cifarnet.recipes.named import measured_results
from cifarnet.report import (
    comparison_table,
    read_reports,
    save_report,
    summarize_seeds,
)

ROOT = Path(__file__).parents[2]


def report(seed: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "recipe": {"name": "reference", "model": "CifarCNN", "max_epochs": 10},
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


def test_summary_requires_test_images(tmp_path: Path) -> None:
    document = report(0, 0.78)
    del document["metrics"]["test_accuracy"]
    save_report(document, tmp_path / "seed-0.json")
    with pytest.raises(DataError, match=r"no test accuracy; build_report\(test=, evaluation=\)"):
        summarize_seeds(read_reports(tmp_path))


def test_table_shows_recipes_and_columns_with_results(tmp_path: Path) -> None:
    rows = []
    for name, model, machine, accuracies in (
        ("reference", "CifarCNN", "a CPU", [0.78, 0.80]),
        ("reference", "CifarCNN", "a GPU", [0.79]),
        ("fast94", "FastCNN", "a GPU", [0.93, 0.94]),
    ):
        tta = None if model == "CifarCNN" else "flip+shift"
        recipe = {"name": name, "model": model, "max_epochs": 10 if name == "reference" else 8, "tta": tta}
        folder = tmp_path / machine / name
        for seed, accuracy in enumerate(accuracies):
            document = report(seed, accuracy, recipe=recipe, hardware=machine, backend="eager")
            document["metrics"]["test_accuracy_tta"] = None if tta is None else accuracy + 0.005
            document["durations"] = {"train_s": 2.0 if machine == "a GPU" else 90.0, "eval_s": 9.0}
            (folder / f"seed-{seed}").mkdir(parents=True)  # as runs lie beside each other
            save_report(document, folder / f"seed-{seed}" / "report.json")
        rows.append(summarize_seeds(read_reports(folder)))
    columns = {"CPU": rows[:1], "one GPU": rows[1:]}
    table = comparison_table(columns)
    assert table.splitlines()[0] == "| recipe | network | parameters | FLOPs | published | CPU | one GPU |"
    assert (
        "| `reference` | CifarCNN | 6,447,754 | 43M | 77.63 %, ~20 min | 79.00 ± 1.41 %, n = 2, 1.5 ± 0.0 min | "
        "79.00 %, n = 1, 2.00 s |"
    ) in table
    assert "236M |  |  | 93.50 ± 0.71 % (94.00 ± 0.71 % with TTA, flip+shift), n = 2, 2.00 ± 0.00 s |" in table
    assert "- `fast94`: 8 epochs, last epoch; a GPU, bf16, eager, torch 2.15.0; CIFAR-10" in table
    assert "- `reference`: 10 epochs, last epoch; a CPU, bf16" in table
    assert comparison_table({"CPU": rows[:1], "one GPU": []}) == comparison_table({"CPU": rows[:1]})
    for other in ({"data": "synthetic shapes"}, {"epochs": 1}):  # beside which 77.63 % says nothing
        assert "| 43M |  | 79.00" in comparison_table({"CPU": [rows[0] | other]})


@pytest.mark.parametrize("name", RECIPES)
def test_published_result_belongs_to_the_current_recipe(name: str) -> None:
    make_tables = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))
    for result in measured_results(name):
        machine = "h200" if "H200" in result["hardware"] else "cpu"
        assert machine in make_tables["MACHINES"]
        reports = read_reports(ROOT / "docs" / "results" / machine / name)
        assert result == json.loads(json.dumps(summarize_seeds(reports)))
        # An older report lacks newer settings, which were the defaults then.
        measured = Recipe.from_dict(reports[0]["recipe"])
        assert replace(measured, summary="") == replace(get_recipe(name), summary="")
        assert [r["seed"] for r in reports] == list(range(len(reports))), "no seed was left out"


def test_table_refuses_two_results_for_one_cell() -> None:
    summary = summarize_seeds([report(0, 0.8)])
    with pytest.raises(DataError, match="two results of a recipe"):
        comparison_table({"CPU": [summary, summary]})
    with pytest.raises(DataError, match="different data cannot be compared"):
        comparison_table({"CPU": [summary], "GPU": [summary | {"recipe": "basic", "data": "synthetic"}]})
    own = summary | {"num_parameters": 5, "flops_per_image": 7_000_000, "selected_by": "val_accuracy"}
    table = comparison_table({"CPU": [own]})  # the values of the report, not of the recipe
    assert "| CifarCNN | 5 | 7M |" in table
    assert "epochs, best val_accuracy; " in table


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"seed": 0}, "holds two reports of one seed; keep one of them"),
        ({"changed_on_resume": ["device 'cuda' in the run"]}, "seed 1 in .* was changed when it was resumed: device"),
        ({"hardware": "a GPU"}, "differ in hardware"),
        ({"selected_by": {"monitor": "val_loss", "epoch": 1, "value": 1.0}}, "differ in selected_by"),
    ],
)
def test_read_reports_refuses_runs_that_differ(tmp_path: Path, second: dict[str, Any], message: str) -> None:
    save_report(report(0, 0.78, backend="eager"), tmp_path / "seed-0.json")
    save_report(report(1, 0.78, backend="eager", data={"name": "CIFAR-10", "source": "b"}), tmp_path / "seed-1.json")
    assert len(read_reports(tmp_path)) == 2  # the path of the data may differ
    save_report(report(1, 0.78, backend="eager") | second, tmp_path / "seed-1.json")
    with pytest.raises(DataError, match=message):
        read_reports(tmp_path)
