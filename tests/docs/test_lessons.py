"""The experiments behind the pages on understanding, on small data; and what the pages say of the committed ones."""

from __future__ import annotations

import json
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import cifarnet
from cifarnet import DatasetSplits, make_synthetic
from cifarnet.errors import DataError
from cifarnet.recipes import Recipe, build_trainer, get_recipe

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "understanding"


@pytest.fixture
def small_cifar10(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> DatasetSplits:
    """`load_cifar10` gives 200 synthetic images."""
    data = make_synthetic(num_train=200, num_test=60, seed=0)
    monkeypatch.setattr(cifarnet, "load_cifar10", lambda *_, **__: data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples")
    return data


def run_example(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    return runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def read(folder: Path) -> dict[str, list[list[dict[str, Any]]]]:
    """Histories by the variant's name, a list of epochs a seed."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("*/seed-*.json"))]
    histories: dict[str, list[list[dict[str, Any]]]] = {}
    for report in reports:
        histories.setdefault(report["recipe"]["name"], []).append(report["history"])
    return histories


@pytest.mark.usefixtures("small_cifar10")
def test_the_ablation_trains_each_variant_once_and_never_sees_the_test_images(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--variants", "all three", "no dropout", "--seeds", "2", "--epochs", "1")
    run_example("ablation.py", *options, monkeypatch=monkeypatch)
    assert capsys.readouterr().err.count("epoch 1:") == 4
    for variant, dropout in (("all-three", {}), ("no-dropout", {"dropout": 0.0})):
        for seed in (0, 1):
            report = json.loads(Path(f"runs/ablation/{variant}/seed-{seed}/report.json").read_text())
            assert report["recipe"]["model_arguments"] == dropout
            assert (report["seed"], report["test_watched"], report["data"]["test"]) == (seed, "never", None)
            assert report["data"]["train"]["num_images"] + report["data"]["val"]["num_images"] == 200
            assert not any(epoch["test_accuracy"] for epoch in report["history"])
    for seed in (0, 1):
        with Image.open(f"runs/ablation/ablation-{seed}.png") as figure:
            assert figure.size == (800, 660)
    # Reports alone are enough to draw again, and are not trained anew.
    for run in Path("runs/ablation").glob("*/seed-*"):
        (run / "report.json").rename(run.with_suffix(".json"))
    run_example("ablation.py", *options, monkeypatch=monkeypatch)
    captured = capsys.readouterr()
    assert "epoch" not in captured.err
    assert "no dropout" in captured.out
    with pytest.raises(DataError, match=r"seed-0\.json is of other settings or data; choose another folder"):
        run_example("ablation.py", *options[:-1], "2", monkeypatch=monkeypatch)


def test_sizes_are_compared_and_a_network_is_looked_into(
    small_cifar10: DatasetSplits, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example("size_and_accuracy.py", "--sizes", "2-4-8", "4-8-16", "--epochs", "1", monkeypatch=monkeypatch)
    parameters = 3 * 9 * 2 + 2 + 4 + 2 * 9 * 4 + 4 + 8 + 4 * 196 * 8 + 8 + 8 * 10 + 10
    flops = 2 * (900 * 27 * 2 + 784 * 18 * 4 + 784 * 8 + 80)
    assert f"2-4-8: {parameters:,} parameters, {flops:,} FLOPs, " in capsys.readouterr().out
    assert Path("runs/size/size.png").exists()
    with pytest.raises(SystemExit):
        run_example("size_and_accuracy.py", "--sizes", "2-4", monkeypatch=monkeypatch)
    assert "2-4 is no size; 32-64-512 is that of the reference" in capsys.readouterr().err

    options = ("runs/size/4-8-16/seed-0", "--follow", "ring", "--out", "inside")
    names = run_example("look_inside.py", *options, monkeypatch=monkeypatch)
    report = json.loads(Path("inside/features.json").read_text())
    assert [image["class"] for image in report["images"]] == list(small_cifar10.test.classes)
    for image in report["images"]:
        index = small_cifar10.test.labels.tolist().index(small_cifar10.test.classes.index(image["class"]))
        prediction = names["classifier"].predict(small_cifar10.test[index][0], top_k=2)
        assert image["taken_for"] == [list(guess) for guess in prediction.top]
    for figure in ("filters", "feature_maps", "grad_cam"):
        assert Path(f"inside/{figure}.png").exists()
    # "Before training" is what this network began with.
    recipe = replace(get_recipe("reference"), model_arguments={"widths": (4, 8), "hidden": 16})
    began = build_trainer(recipe, small_cifar10.train, seed=0, device="cpu").model.get_parameter("conv1.weight")
    assert torch.equal(names["fresh"].get_parameter("conv1.weight"), began)
    assert 0 < report["conv1_cosine"]["least"] < report["conv1_cosine"]["median"] < 1


def test_the_committed_runs_are_those_of_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    variants = runpy.run_path(str(ROOT / "examples" / "ablation.py"))["VARIANTS"]
    sizes = runpy.run_path(str(ROOT / "examples" / "size_and_accuracy.py"))
    assert runpy.run_path(str(ROOT / "docs" / "make_tables.py"))["ABLATION"] == tuple(variants)
    held_out = runpy.run_path(str(ROOT / "examples" / "held_out.py"))
    by_size = {size: sizes["settings_of"](size) for size in sizes["SIZES"]}
    for folder, changes in (("ablation", variants), ("size", by_size)):
        paths = sorted((ROOT / "docs" / "results" / folder).glob("*/seed-*.json"))
        reports = [json.loads(path.read_text()) for path in paths]
        assert {report["recipe"]["name"] for report in reports} <= set(changes)
        for report in reports:
            name = report["recipe"]["name"]
            common = {"watch_test": False, "max_epochs": report["recipe"]["max_epochs"]}
            summary = report["recipe"]["summary"]
            expected = replace(get_recipe("reference"), name=name, summary=summary, **common, **changes[name])
            assert Recipe.from_dict(report["recipe"]) == expected
            assert report["test_watched"] == "never"
            assert report["data"]["val"]["num_images"] == held_out["VAL_FRACTION"] * 50_000
            assert len(report["history"]) == report["recipe"]["max_epochs"]


def test_what_the_page_on_the_ablation_says_is_in_every_run_of_its_reports() -> None:
    histories = read(ROOT / "docs" / "results" / "ablation")
    for seed, whole in enumerate(histories["all three"]):
        plain, undropped, unaugmented, bare = (
            histories[name][seed] for name in ("no batch norm", "no dropout", "no augmentation", "none of the three")
        )
        for ours, theirs, later in zip(whole, plain, range(len(whole)), strict=True):
            assert theirs["val_accuracy"] < ours["val_accuracy"]
            assert not later or theirs["train_accuracy"] < ours["train_accuracy"]
        assert abs(plain[-1]["val_accuracy"] - whole[1]["val_accuracy"]) < 0.01
        for run in (unaugmented, bare):
            assert run[-1]["train_accuracy"] - run[-1]["val_accuracy"] > 0.1
            assert run[-1]["val_loss"] > run[-2]["val_loss"]
            assert run[-1]["train_loss"] < run[-2]["train_loss"]
        for ours, theirs in zip(whole, undropped, strict=True):
            assert theirs["train_accuracy"] > ours["train_accuracy"]
            assert theirs["val_accuracy"] > ours["val_accuracy"]


@pytest.mark.parametrize("page", ["ablation", "features", "size"])
def test_a_page_has_its_figures_and_its_command(page: str) -> None:
    text = (PAGES / f"{page}.md").read_text()
    figures = re.findall(r"\]\(([\w/-]+\.png)\)", text)
    assert figures
    for figure in figures:
        assert (PAGES / figure).stat().st_size < 150_000
    assert re.search(r"^python examples/(ablation|look_inside|size_and_accuracy)\.py ", text, flags=re.MULTILINE)
