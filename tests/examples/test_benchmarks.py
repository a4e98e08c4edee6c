"""Benchmarks on tiny images: their reports, and their statistics against values computed by hand."""

from __future__ import annotations

import importlib
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from torchvision.transforms import v2

from cifarnet import make_synthetic
from cifarnet.recipes import build_trainer, get_recipe

BENCHMARKS = Path(__file__).resolve().parents[2] / "examples" / "benchmarks"
SCRIPT = "import json, sys; print('log'); print(json.dumps({'images_per_s': float(sys.argv.count('--workers')) * 8}))"
Module = Callable[[str], Any]
Measure = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """130 training and 20 test images as files."""
    root = tmp_path_factory.mktemp("images")
    data = make_synthetic(130, 20)
    for part, images in (("train", data.train), ("test", data.test)):
        for i, (image, label) in enumerate(images):
            path = root / part / f"class-{label}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            v2.ToPILImage()(image).save(path)
    return root


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Module:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def measure(
    module: Module, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Measure:
    """Run a benchmark of the basic recipe; return its report and the table that it printed."""

    def run(name: str, *options: str) -> tuple[dict[str, Any], str]:
        path = tmp_path / f"{name}.json"
        shared = ["--data", str(folder), "--recipe", "basic", "--device", "cpu", "--precision", "float32"]
        monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / f"{name}.py"), *shared, *options, "--json", str(path)])
        capsys.readouterr()
        module(name).main()
        report, table = json.loads(path.read_text()), capsys.readouterr().out
        assert report["command"].startswith(f"python examples/benchmarks/{name}.py --data ")
        assert (report["format"], report["device"], report["precision"]) == (1, "cpu", "float32")
        assert report["data"]["num_images"] == (20 if name == "inference" else 130)
        assert {"cifarnet", "torch"} <= set(report["versions"])
        assert table == module(name).format_table(report) + "\n"
        return report, table

    return run


def test_train_throughput_compares_library_and_script(measure: Measure, tmp_path: Path) -> None:
    script = tmp_path / "plain.py"
    script.write_text(SCRIPT)
    options = ("--steps", "1", "--rounds", "2", "--script", str(script), "--workers", "0", "1")
    report, table = measure("train_throughput", *options)
    own, *scripts = report["contenders"]
    assert [one["name"] for one in report["contenders"]] == ["eager", "script, 0 workers", "script, 1 worker"]
    assert report["baseline"] == "script, 0 workers"
    assert [(one["images_per_s"]["median"], one["ratio"]) for one in scripts] == [(8, 1), (8, 1)]
    assert own["ratio"] == statistics.median(own["images_per_s"]["values"]) / 8
    assert own["images_per_s"]["n"] == 2
    assert own["start_s"] > own["preparation_s"] >= 0
    assert own["peak_memory_mb"] >= 0, "one tiny step may need no more than the imports did"
    assert f"| eager | float32 | {own['images_per_s']['median']:,.0f} | " in table


def test_time_to_accuracy_trains_the_recipe(measure: Measure, folder: Path) -> None:
    report, table = measure("time_to_accuracy", "--runs", "2", "--epochs", "2", "--target", "0.01")
    data = importlib.import_module("cifarnet").load_image_folder(folder)
    for trial in report["trials"]:
        trainer = build_trainer(get_recipe("basic"), data.train, seed=trial["seed"], device="cpu", precision="float32")
        list(trainer.epochs(data.train, max_epochs=2, batch_size=report["batch_size"]))
        evaluation = trainer.evaluate(data.test)
        assert (trial["num_correct"], trial["loss"]) == (evaluation.num_correct, evaluation.loss)
        assert 0 <= trial["preparation_s"] < trial["train_s"]
    accuracies = [trial["accuracy"] for trial in report["trials"]]
    assert report["accuracy"]["mean"] == statistics.fmean(accuracies)
    assert report["train_s"]["median"] == statistics.median(trial["train_s"] for trial in report["trials"])
    assert "| training | " in table
    assert (report["epochs"], report["backend"], report["test_data"]["num_images"]) == (2, "eager", 20)


def test_p_value_uses_accuracy_with_test_time_augmentation(module: Module) -> None:
    shared = {"backend": "eager", "train_s": 1.0, "preparation_s": None, "eval_s": 1.0, "eval_tta_s": 1.0}
    trials = [shared | {"accuracy": 0.5 + seed / 100, "accuracy_tta": 0.9 + seed / 100} for seed in range(3)]
    summary = module("time_to_accuracy").summarize_trials(trials, 0.8, 10_000)
    assert (summary["accuracy"]["mean"], summary["accuracy_tta"]["mean"]) == pytest.approx((0.51, 0.91))
    assert summary["p_value"] == pytest.approx(stats.ttest_1samp([0.90, 0.91, 0.92], 0.8, alternative="greater").pvalue)


def test_intervals_and_p_values_follow_student(module: Module) -> None:
    measurement = module("measurement")
    summary = measurement.summarize_accuracies([0.1, 0.2, 0.3], 100)
    half = 4.302653 * 0.1 / 3**0.5  # quantile 97.5 % with 2 degrees of freedom, from a printed table
    assert summary["interval"] == pytest.approx([0.2 - half, 0.2 + half], abs=1e-6)
    assert (summary["interval_of"], summary["sd"]) == ("runs, Student", pytest.approx(0.1))
    assert measurement.p_value([0.94, 0.95, 0.96], 0.94) == pytest.approx(0.1127, abs=1e-4)
    assert measurement.p_value([0.94, 0.94], 0.9) is measurement.p_value([0.94], 0.9) is None
    single = measurement.summarize_accuracies([0.5], 100)
    assert (single["interval_of"], single["sd"], single["n"]) == ("images, Wilson", None, 1)
    assert single["interval"] == pytest.approx([0.4038, 0.5962], abs=1e-4)


def test_inference_measures_batches_and_single_images(measure: Measure) -> None:
    report, table = measure("inference", "--rounds", "2", "--calls", "20", "--batch-sizes", "1", "32")
    latency = report["latency_s"]
    assert latency["min"] <= latency["p5"] <= latency["median"] <= latency["p95"] <= latency["max"]
    assert (latency["n"], report["images_per_s"]["n"]) == (20, 2)
    assert [one["batch_size"] for one in report["by_batch_size"]] == [1, 32]
    assert f"| prediction of one image | {latency['median'] * 1e3:.2f} ms | 90 % within " in table


def test_saving_compares_parts_with_and_without_a_save(measure: Measure) -> None:
    report, _ = measure("saving", "--steps", "1", "--rounds", "2")
    assert report["cost_s"] == report["part_with_save_s"]["median"] - report["part_s"]["median"]
    assert report["share_of_an_epoch"] == report["cost_s"] / report["epoch_s"]
    assert report["last_bytes"] > 3 * 4 * 1_007_306, "weights of BasicCNN and two moments of Adam, in float32"
    assert {report[key]["n"] for key in ("write_s", "read_s", "part_s", "part_with_save_s")} == {2}


def test_cold_start_measures_every_stage_of_a_process(measure: Measure) -> None:
    report, _ = measure("cold_start", "--runs", "1")
    stages = {name: one["median"] for name, one in report["stages"].items()}
    assert sum(stages.values()) == pytest.approx(report["total_s"]["median"])
    assert sum(list(stages.values())[:7]) == pytest.approx(report["to_first_step_s"]["median"])
    assert report["to_first_step_s"]["median"] < report["to_model_s"]["median"] < report["total_s"]["median"]
    assert all(seconds > 0 for seconds in stages.values())
