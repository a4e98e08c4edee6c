"""Examples do what they say, on small data."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import cifarnet
from cifarnet import DatasetSplits, make_synthetic
from cifarnet.errors import DataError
from cifarnet.recipes import build_trainer, get_recipe

ROOT = Path(__file__).resolve().parents[2]
RunExample = Callable[..., dict[str, Any]]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def data() -> DatasetSplits:
    return make_synthetic(num_train=200, num_test=60, seed=0)


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: DatasetSplits) -> RunExample:
    """Run an example in an empty directory and return its names. `load_cifar10` gives few synthetic images."""
    monkeypatch.setattr(cifarnet, "load_cifar10", lambda *_, **__: data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples")  # `python examples/NAME` imports from there

    def run(name: str, *arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        return runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")

    return run


def read_json(path: str | Path) -> Any:
    return json.loads(Path(path).read_text())


def test_train_cifar10_resumes_a_stopped_run(run_example: RunExample, capsys: Capture) -> None:
    run_example("train_cifar10.py", "--epochs", "1")
    names = run_example("train_cifar10.py", "--epochs", "2")
    assert len(names["history"]) == 2
    captured = capsys.readouterr()
    assert "test accuracy" in captured.out
    assert captured.err.count("epoch 1:") == 1


def test_choose_recipe_trains_each_candidate_once(run_example: RunExample, capsys: Capture) -> None:
    options = ("choose_recipe.py", "augmentation", "--out", "report.json", "--epochs", "1")
    names = run_example(*options)
    assert "flip, crop 2 (reflect)" in capsys.readouterr().out
    report = read_json("report.json")
    run_example(*options)
    assert read_json("report.json") == report
    assert "epoch" not in capsys.readouterr().err
    for search, path in (("augmentation", "reference/augmentation"), ("cifarcnn_tuned", "cifarcnn_tuned/candidates")):
        committed = read_json(ROOT / f"docs/results/cpu/{path}.json")["candidates"]
        start, candidates = names["SEARCHES"][search]
        assert [(one["name"], one["settings"]) for one in committed] == list(candidates.items())
        different = {json.dumps(asdict(replace(start, **changes))) for changes in candidates.values()}
        assert len(different) == len(candidates)


def test_compare_models_writes_one_report_per_run(
    run_example: RunExample, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    run_one = "import sys, cifarnet.cli.commands, cifarnet as n; small = n.make_synthetic(num_train=96, num_test=32); "
    run_one += "cifarnet.cli.data_source.make_synthetic = lambda size: small; sys.exit(cifarnet.cli.main(sys.argv[1:]))"
    calls = []

    def run(command: list[str], *, check: bool) -> None:
        calls.append(" ".join(command[3:8]))
        real([sys.executable, "-c", run_one, *command[3:]], check=check, capture_output=True)

    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", run)
    options = ("compare_models.py", "--data", "synthetic", "--recipes", "basic", "reference", "--seeds", "2")
    for _ in range(2):
        run_example(*options, "--epochs", "1")
        assert calls == [f"train --recipe {name} --seed {seed}" for name in ("basic", "reference") for seed in (0, 1)]
    table = capsys.readouterr().out
    assert table.count("n = 2") == 4
    assert Path("runs/compare/comparison.md").read_text() in table
    with pytest.raises(SystemExit, match="seed-0 is of other settings or data; choose another --out"):
        run_example(*options, "--epochs", "2")


def test_quickstart_trains_evaluates_and_draws(run_example: RunExample, data: DatasetSplits, capsys: Capture) -> None:
    names = run_example("quickstart.py", "--data", "here", "--epochs", "2")
    out = capsys.readouterr().out
    assert f"test {names['classifier'].evaluate(data.test)}" in out
    assert "the first test image is a circle: " in out
    for name in ("training_curves", "predictions", "augmentations"):
        with Image.open(f"runs/quickstart/{name}.png") as figure:
            assert min(figure.size) > 300


def test_custom_images_learns_a_folder_of_photos(run_example: RunExample, capsys: Capture) -> None:
    run_example("custom_images.py", "--num-drawn", "400", "--epochs", "5")
    out = capsys.readouterr().out
    assert "{'checkerboard': 40, 'circle': 40, 'ring': 40}" in out
    assert len(re.findall(r"^(?:checkerboard|circle|ring)/\d+.jpg: (?:checkerboard|circle|ring) ", out, re.M)) == 6
    assert Path("runs/my_photos/photos.png").exists()
    run_example("custom_images.py", "--photos", "runs/my_photos/photos", "--out", "runs/again", "--epochs", "1")
    assert "120 images of 3x32x32, 3 classes" in capsys.readouterr().out


def test_custom_loop_stops_early_and_keeps_the_best_epoch(run_example: RunExample, capsys: Capture) -> None:
    names = run_example("custom_loop.py", "--images", "200", "--epochs", "40")
    log = [json.loads(line) for line in Path("runs/custom_loop/log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == list(range(1, len(log) + 1))
    best = min(log, key=lambda line: line["val_loss"])
    assert f"epoch {best['epoch']} has the best validation loss" in capsys.readouterr().out
    assert best["epoch"] + 3 == len(log) < 40
    assert names["trainer"].evaluate(names["val"]).loss == pytest.approx(best["val_loss"])
    assert log[-1]["learning_rate"] < 1e-3 or len(log) < 5, "the scheduler of the body has acted"


def test_a_plain_dataloader_loop_learns(run_example: RunExample, capsys: Capture) -> None:
    run_example("with_lightning_or_dataloader.py", "--images", "500", "--epochs", "3")
    out = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"loss (\d\.\d+), accuracy", out)]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert "test accuracy" in out
    assert "a circle: " in out


def test_the_plain_script_trains_and_measures(run_example: RunExample, capsys: Capture) -> None:
    options = ("plain_pytorch.py", "--batch-size", "50", "--workers", "0", "--device", "cpu")
    run_example(*options, "--epochs", "2")
    first, second = json.loads(capsys.readouterr().out.splitlines()[-1])["history"]
    assert second["train_loss"] < first["train_loss"]
    run_example(*options, "--steps", "3")
    assert json.loads(capsys.readouterr().out)["images_per_s"] > 0


def test_ablation_trains_each_variant_once(run_example: RunExample, capsys: Capture) -> None:
    options = ("ablation.py", "--variants", "all three", "no dropout", "--seeds", "2", "--epochs")
    run_example(*options, "1")
    assert capsys.readouterr().err.count("epoch 1:") == 4
    for variant, dropout in (("all-three", {}), ("no-dropout", {"dropout": 0.0})):
        for seed in (0, 1):
            report = read_json(f"runs/ablation/{variant}/seed-{seed}/report.json")
            assert report["recipe"]["model_arguments"] == dropout
            assert (report["seed"], report["test_watched"], report["data"]["test"]) == (seed, "never", None)
            assert report["data"]["train"]["num_images"] + report["data"]["val"]["num_images"] == 200
            assert not any(epoch["test_accuracy"] for epoch in report["history"])
    assert len(list(Path("runs/ablation").glob("ablation-*.png"))) == 2
    for run in Path("runs/ablation").glob("*/seed-*"):  # reports alone suffice to draw again
        (run / "report.json").rename(run.with_suffix(".json"))
    run_example(*options, "1")
    captured = capsys.readouterr()
    assert "epoch" not in captured.err
    assert "no dropout" in captured.out
    with pytest.raises(DataError, match=r"seed-0\.json is of other settings or data; choose another folder"):
        run_example(*options, "2")


def test_look_inside_explains_a_run_of_size_and_accuracy(
    run_example: RunExample, data: DatasetSplits, capsys: Capture
) -> None:
    run_example("size_and_accuracy.py", "--sizes", "2-4-8", "4-8-16", "--epochs", "1")
    parameters = 3 * 9 * 2 + 2 + 4 + 2 * 9 * 4 + 4 + 8 + 4 * 196 * 8 + 8 + 8 * 10 + 10
    flops = 2 * (900 * 27 * 2 + 784 * 18 * 4 + 784 * 8 + 80)
    assert f"2-4-8: {parameters:,} parameters, {flops:,} FLOPs, " in capsys.readouterr().out
    assert Path("runs/size/size.png").exists()

    names = run_example("look_inside.py", "runs/size/4-8-16/seed-0", "--follow", "ring", "--out", "inside")
    report = read_json("inside/features.json")
    assert [image["class"] for image in report["images"]] == list(data.test.classes)
    for image in report["images"]:
        first = data.test.labels.tolist().index(data.test.classes.index(image["class"]))
        prediction = names["classifier"].predict(data.test[first][0], top_k=2)
        assert image["taken_for"] == [list(guess) for guess in prediction.top]
    assert {path.name for path in Path("inside").glob("*.png")} == {"filters.png", "feature_maps.png", "grad_cam.png"}
    recipe = replace(get_recipe("reference"), model_arguments={"widths": (4, 8), "hidden": 16})
    initial = build_trainer(recipe, data.train, seed=0, device="cpu").model.get_parameter("conv1.weight")
    assert torch.equal(names["fresh"].get_parameter("conv1.weight"), initial)
    assert 0 < report["conv1_cosine"]["least"] < report["conv1_cosine"]["median"] < 1


def test_tables_agree_with_the_committed_reports() -> None:
    command = [sys.executable, str(ROOT / "docs" / "make_tables.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
