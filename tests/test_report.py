from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cifarnet import BasicCNN, make_synthetic
from cifarnet.errors import InputError
from cifarnet.models import count_flops
from cifarnet.recipes import RECIPES, Recipe, build_trainer, get_recipe, measured_results
from cifarnet.report import (
    build_report,
    comparison_table,
    load_report,
    published_table,
    read_reports,
    save_report,
    summarize_seeds,
)

ROOT = Path(__file__).parents[1]


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


def test_a_table_has_mean_and_standard_deviation(tmp_path: Path) -> None:
    for seed, accuracy in enumerate([0.78, 0.79, 0.80]):
        save_report(report(seed, accuracy), tmp_path / f"seed-{seed}.json")
    table = published_table(read_reports(tmp_path))
    assert "| test accuracy | 77.63 % | 79.00 ± 1.00 % |" in table
    assert "| training time | ~20 min | 10.0 ± 0.0 min |" in table
    assert "| parameters | ~6.4M | 6,447,754 |" in table
    assert "3 runs (seeds 0, 1, 2), 10 epochs" in table


def test_one_run_has_no_spread(tmp_path: Path) -> None:
    save_report(report(0, 0.785), tmp_path / "seed-0.json")
    assert "| test accuracy | 77.63 % | 78.50 % |" in published_table(read_reports(tmp_path))


def test_runs_that_cannot_be_compared_have_no_mean(tmp_path: Path) -> None:
    save_report(report(0, 0.78), tmp_path / "seed-0.json")
    save_report(report(1, 0.78, hardware="a GPU"), tmp_path / "seed-1.json")
    with pytest.raises(InputError, match="differ in hardware"):
        published_table(read_reports(tmp_path))


def test_runs_without_test_images_have_no_mean_of_them(tmp_path: Path) -> None:
    document = report(0, 0.78)
    del document["metrics"]["test_accuracy"]
    save_report(document, tmp_path / "seed-0.json")
    with pytest.raises(InputError, match=r"no test accuracy; build_report\(test=, evaluation=\)"):
        summarize_seeds(read_reports(tmp_path))


def test_recipes_stand_beside_each_other_and_what_is_not_measured_says_so(tmp_path: Path) -> None:
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
    table = comparison_table(columns, recipes=["basic", "reference", "fast94"])
    assert table.splitlines()[0] == "| recipe | network | parameters | FLOPs | published | CPU | one GPU |"
    assert (
        "| `reference` | CifarCNN | 6,447,754 | 43M | 77.63 %, ~20 min | 79.00 ± 1.41 %, n = 2, 1.5 ± 0.0 min | "
        "79.00 %, n = 1, 2.00 s |"
    ) in table
    assert "| `basic` | BasicCNN | 1,007,306 | 16M | ~60 %, ~10 min | not measured yet | not measured yet |" in table
    assert "not measured yet | 93.50 ± 0.71 % (94.00 ± 0.71 % with TTA, flip+shift), n = 2, 2.00 ± 0.00 s |" in table
    assert "- `fast94`: 8 epochs, the last counts; a GPU, bf16, eager, torch 2.15.0; CIFAR-10" in table
    assert "- `reference`: 10 epochs, the last counts; a CPU, bf16" in table
    assert comparison_table({"CPU": rows[:1]}).count("| `") == 1
    for other in ({"data": "synthetic shapes"}, {"epochs": 1}):  # beside which 77.63 % says nothing
        assert "| 43M |  | 79.00" in comparison_table({"CPU": [rows[0] | other]})
    empty = comparison_table({"CPU": rows[:1], "one GPU": []})
    assert "79.00 ± 1.41 %, n = 2, 1.5 ± 0.0 min | not measured yet |" in empty


@pytest.mark.parametrize("name", RECIPES)
def test_a_published_result_is_that_of_the_recipe_as_it_is_now(name: str) -> None:
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


def summary(**changes: Any) -> dict[str, Any]:
    return summarize_seeds([report(0, 0.8)]) | changes


def test_every_result_has_a_place_of_its_own() -> None:
    for rows, recipes in (([summary(), summary()], []), ([summary()], ["basic"])):
        with pytest.raises(InputError, match="there is not one place for the result of reference on CPU"):
            comparison_table({"CPU": rows}, recipes=recipes)
    with pytest.raises(InputError, match="synthetic and CIFAR-10 cannot be compared"):
        comparison_table({"CPU": [summary()], "GPU": [summary(recipe="basic", data="synthetic")]})


def test_a_table_draws_from_nobodys_generator() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    comparison_table({"CPU": [summary()]}, recipes=list(RECIPES))
    assert torch.equal(torch.rand(1), expected)


def test_what_was_measured_stands_before_what_the_recipe_would_have() -> None:
    assert "| CifarCNN | 5 | 7M |" in comparison_table({"CPU": [summary(num_parameters=5, flops_per_image=7_000_000)]})
    assert "the best in val_accuracy counts" in comparison_table({"CPU": [summary(selected_by="val_accuracy")]})


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"seed": 0}, "holds two reports of seed 0; keep one of them"),
        ({"changed_on_resume": ["device 'cuda' in the run"]}, "seed 1 in .* was changed when it was resumed: device"),
        ({"backend": "compiled"}, "differ in backend"),
        ({"selected_by": {"monitor": "val_loss", "epoch": 1, "value": 1.0}}, "differ in selected_by"),
        ({"data": {"name": "CIFAR-10", "test": {"fingerprint": "x"}}}, "differ in data"),
    ],
)
def test_a_mean_is_of_runs_that_were_alike(tmp_path: Path, second: dict[str, Any], message: str) -> None:
    save_report(report(0, 0.78, backend="eager"), tmp_path / "seed-0.json")
    save_report(report(1, 0.78, backend="eager") | second, tmp_path / "seed-1.json")
    with pytest.raises(InputError, match=message):
        read_reports(tmp_path)


def test_what_was_typed_and_which_epoch_was_best_are_no_differences(tmp_path: Path) -> None:
    for seed in (0, 1):
        chosen = {"monitor": "val_accuracy", "epoch": 3 + seed, "value": 0.5}
        data = {"name": "CIFAR-10", "source": "data" + "/" * seed}
        save_report(report(seed, 0.78, selected_by=chosen, data=data), tmp_path / f"seed-{seed}.json")
    assert len(read_reports(tmp_path)) == 2


def test_a_report_counts_the_arithmetic_of_images_as_the_network_takes_them() -> None:
    """And test-time augmentation has a place of its own."""
    data = make_synthetic(num_train=40, num_test=20, size=16)
    recipe = replace(get_recipe("basic"), max_epochs=1, tta="flip")
    trainer = build_trainer(recipe, data.train, device="cpu", precision="float32")
    trainer.fit(data.train, max_epochs=1, progress_bar=False)
    evaluation, augmented = trainer.evaluate(data.test), trainer.evaluate(data.test, tta="flip")
    document = build_report(
        trainer, recipe, train=data.train, val=None, test=data.test, evaluation=evaluation, evaluation_tta=augmented,
        command="", version="",
    )  # fmt: skip
    assert document["flops_per_image"] == count_flops(BasicCNN())
    assert document["metrics"]["test_accuracy_tta"] == augmented.accuracy


def test_a_report_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    document = report(0, 0.78, recipe={"name": "fast94", "tta": "multi-crop"})
    document["metrics"] |= {"test_interval": [0.7, 0.8], "test_nll": 0.6, "calibrated": {"test_nll": 0.5}}
    save_report(document, tmp_path / "report.json")
    found = load_report(tmp_path / "report.json")
    assert found["recipe"]["tta"] == "flip+shift"
    assert found["metrics"]["test_accuracy_interval"] == [0.7, 0.8]
    assert found["metrics"]["test_log_loss"] == 0.6
    assert found["metrics"]["calibrated"] == {"test_log_loss": 0.5}
    assert not {"test_interval", "test_nll"} & found["metrics"].keys()


def test_no_reports_give_no_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no seed-\*.json"):
        published_table(read_reports(tmp_path))


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 2}'])
def test_what_is_no_report_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(InputError, match=r"give a report.json"):
        load_report(tmp_path / "report.json")
