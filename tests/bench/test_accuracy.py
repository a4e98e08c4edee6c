from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cifarnet import bench, make_synthetic
from cifarnet.bench.cold import measure_cold
from cifarnet.errors import CifarnetError, SettingError
from cifarnet.recipes import build_trainer, get_recipe

RECIPE = replace(get_recipe("reference"), batch_size=8, max_epochs=2)
DATA = make_synthetic(40, 50)
SCRIPT = """
import json, sys
seed = int(sys.argv[sys.argv.index("--seed") + 1])
print(json.dumps({"train_s": 2.0, "history": [{"test_accuracy": 0.1}, {"test_accuracy": 0.5 + seed / 100}]}))
"""


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script = tmp_path_factory.mktemp("script") / "plain.py"
    script.write_text(SCRIPT)
    return bench.measure_accuracy(
        RECIPE, DATA, runs=2, target=0.1, saves=True, script=(str(script),), device="cpu", precision="float32"
    )


def test_all_runs_are_kept_with_and_without_saves(document: dict[str, Any]) -> None:
    trials = document["trials"]
    assert [(trial["seed"], trial["saves"]) for trial in trials] == [(s, x) for s in range(2) for x in (False, True)]
    for plain, saved in zip(trials[::2], trials[1::2], strict=True):
        assert plain["num_correct"] == saved["num_correct"]  # saving changes nothing of a run
        assert plain["accuracy"] == plain["num_correct"] / 50
        assert 0 <= plain["preparation_s"] < plain["train_s"]


def test_a_trial_is_the_run_that_the_recipe_names(document: dict[str, Any]) -> None:
    trainer = build_trainer(RECIPE, DATA.train, seed=1, device="cpu", precision="float32")
    list(trainer.epochs(DATA.train, max_epochs=2, batch_size=8))
    assert trainer.evaluate(DATA.test).num_correct == document["trials"][2]["num_correct"]


def test_the_summary_is_of_the_trials(document: dict[str, Any]) -> None:
    plain = [trial for trial in document["trials"] if not trial["saves"]]
    assert document["accuracy"]["mean"] == pytest.approx(statistics.fmean(trial["accuracy"] for trial in plain))
    assert document["train_s"]["median"] == statistics.median(trial["train_s"] for trial in plain)
    assert document["train_with_saves_s"]["n"] == document["train_without_preparation_s"]["n"] == 2
    assert (document["backend"], document["epochs"], document["cold"]) == ("eager", 2, None)


def test_a_script_is_trained_with_the_same_seeds(document: dict[str, Any]) -> None:
    script = document["script"]
    assert [trial["accuracy"] for trial in script["trials"]] == pytest.approx([0.5, 0.51])
    assert script["accuracy"]["mean"] == pytest.approx(0.505)
    assert script["accuracy"]["interval_of"] == "runs, Student"
    assert script["accuracy"]["interval"] == pytest.approx([0.505 - 0.0635, 0.505 + 0.0635], abs=1e-4)


def test_the_table_shows_every_part(document: dict[str, Any]) -> None:
    cold = {"options": [], "total_s": 9.0, "to_first_epoch_s": 5.0, "to_training_s": 4.0}
    table = bench.format_report({**document, "cold": cold, "p_value": 0.0123})
    for part in (
        "| training | ",
        "| training, saving every epoch | ",
        "| test accuracy of plain.py | 50.50% | 44.15% to 56.85% (runs, Student) | 2 |",
        "| cold, from start to saved run | 9.000 s | | 1 |",
        "One-sided t-test for a mean above 10.00%: p = 0.012. ",
    ):
        assert part in table
    assert "Too few different runs" in bench.format_report({**document, "p_value": None})
    assert "t-test" not in bench.format_report({**document, "target": None})


def test_whitening_is_on_the_clock_and_test_time_augmentation_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(get_recipe("fast94"), model_arguments={"widths": (4, 4, 4)}, batch_size=8, max_epochs=1)
    calls: list[str] = []

    def noted(name: str, function: Any) -> Any:
        def wrapped(*args: Any) -> Any:
            calls.append(name)
            return function(*args)

        return wrapped

    for name in ("perf_counter", "fit_to_images"):
        monkeypatch.setattr(f"cifarnet.bench.trial.{name}", noted(name, getattr(bench.trial, name)))
    document = bench.measure_accuracy(recipe, DATA, runs=2, target=0.01, device="cpu", precision="float32")
    clock = "perf_counter"
    assert calls[:4] == [clock, clock, "fit_to_images", clock], "built, then whitened and trained"
    for trial in document["trials"]:
        trainer = build_trainer(recipe, DATA.train, seed=trial["seed"], device="cpu", precision="float32")
        list(trainer.epochs(DATA.train, max_epochs=1, batch_size=8))
        assert trial["loss"] == trainer.evaluate(DATA.test).loss, "whitened, and before training"
        assert trial["accuracy_tta"] == trainer.evaluate(DATA.test, tta="flip+shift").accuracy
        assert trial["eval_tta_s"] > 0
    table = bench.format_report(document)
    assert "| test accuracy with test-time augmentation (flip+shift) | " in table
    assert "| evaluation with test-time augmentation | " in table
    told = bench.format_report({**document, "p_value": 0.25})
    assert "for a mean above 1.00% with test-time augmentation: p = 0.25" in told


def test_the_target_is_of_accuracies_with_test_time_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPE, max_epochs=1, tta="flip", sizes=())

    def run_trial(*_: Any, seed: int, saves: bool, **__: Any) -> dict[str, Any]:
        return {
            "seed": seed, "saves": saves, "backend": "eager", "build_s": 1.0, "train_s": 1.0, "preparation_s": None,
            "eval_s": 1.0, "eval_tta_s": 1.0, "accuracy": 0.5 + seed / 100, "accuracy_tta": 0.9 + seed / 100,
            "num_correct": 25, "loss": 1.0,
        }  # fmt: skip

    monkeypatch.setattr(bench.accuracy, "run_trial", run_trial)
    document = bench.measure_accuracy(recipe, DATA, runs=3, target=0.8, device="cpu", precision="float32")
    assert document["accuracy"]["mean"] == pytest.approx(0.51)
    assert document["accuracy_tta"]["mean"] == pytest.approx(0.91)
    assert document["p_value"] < 0.01


def test_a_single_run_of_one_epoch_claims_no_more_than_it_can() -> None:
    document = bench.measure_accuracy(replace(RECIPE, max_epochs=1), DATA, runs=1, target=0.5, device="cpu")
    assert document["preparation_s"] is document["train_without_preparation_s"] is document["p_value"] is None
    assert document["accuracy"]["interval_of"] == "images, Wilson"
    assert document["accuracy"]["sd"] is None


@pytest.mark.parametrize(("settings", "message"), [({"runs": 0}, "runs must"), ({"target": 94.0}, "target must be in")])
def test_settings_are_checked_first(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        bench.measure_accuracy(RECIPE, DATA, **settings)


def test_a_cold_run_that_fails_is_told(tmp_path: Path) -> None:
    (tmp_path / "something").write_text("else")
    with pytest.raises(CifarnetError, match=r"ended with exit code 1: .*neither CIFAR-10"):
        measure_cold(["--data", str(tmp_path)])
