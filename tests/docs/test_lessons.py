"""The pages on understanding agree with their committed reports."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cifarnet.recipes import Recipe, get_recipe

ROOT = Path(__file__).resolve().parents[2]


def read_reports(experiment: str) -> list[dict[str, Any]]:
    paths = sorted((ROOT / "docs" / "results" / experiment).glob("*/seed-*.json"))
    return [json.loads(path.read_text()) for path in paths]


def test_committed_runs_are_those_of_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    variants = runpy.run_path(str(ROOT / "examples" / "ablation.py"))["VARIANTS"]
    sizes = runpy.run_path(str(ROOT / "examples" / "size_and_accuracy.py"))
    assert runpy.run_path(str(ROOT / "docs" / "make_tables.py"))["ABLATION"] == tuple(variants)
    train_variants = runpy.run_path(str(ROOT / "examples" / "train_variants.py"))
    by_size = {size: sizes["settings_of"](size) for size in sizes["SIZES"]}
    for experiment, changes in (("ablation", variants), ("size", by_size)):
        for report in read_reports(experiment):
            recipe = Recipe.from_dict(report["recipe"])
            common: dict[str, Any] = {"summary": recipe.summary, "watch_test": False, "max_epochs": recipe.max_epochs}
            assert recipe == replace(get_recipe("reference"), name=recipe.name, **common, **changes[recipe.name])
            assert report["test_watched"] == "never"
            assert report["data"]["val"]["num_images"] == train_variants["VAL_FRACTION"] * 50_000
            assert len(report["history"]) == recipe.max_epochs


def test_every_ablation_run_shows_what_the_page_says() -> None:
    runs: dict[str, list[list[dict[str, Any]]]] = {}
    for report in read_reports("ablation"):
        runs.setdefault(report["recipe"]["name"], []).append(report["history"])
    for seed, whole in enumerate(runs["all three"]):
        plain, undropped, unaugmented, bare = (
            runs[name][seed] for name in ("no batch norm", "no dropout", "no augmentation", "none of the three")
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
