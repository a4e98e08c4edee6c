"""``report.json`` is complete, stays readable, and a run is read from the files that it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hostile import Made

from cifarnet import BasicCNN, Checkpointer, Trainer, make_synthetic
from cifarnet.errors import CheckpointNotFoundError, DataError
from cifarnet.models import count_flops
from cifarnet.recipes import build_trainer, get_recipe
from cifarnet.report import build_report, load_report, load_run, save_report

pytestmark = pytest.mark.filterwarnings("ignore:Glyph .* missing from font:UserWarning")


def test_report_counts_flops_at_the_size_of_the_network() -> None:
    data = make_synthetic(num_train=40, num_test=20, size=16)
    recipe = replace(get_recipe("basic"), max_epochs=1, tta="flip")
    trainer = build_trainer(recipe, data.train, device="cpu", precision="float32")
    trainer.fit(data.train, max_epochs=1, progress_bar=False)
    evaluation, with_tta = trainer.evaluate(data.test), trainer.evaluate(data.test, tta="flip")
    report = build_report(
        trainer, recipe, train=data.train, val=None, test=data.test, evaluation=evaluation, evaluation_tta=with_tta,
        command="", version="",
    )  # fmt: skip
    assert report["flops_per_image"] == count_flops(BasicCNN())
    assert report["metrics"]["test_accuracy_tta"] == with_tta.accuracy
    assert report["test_watched"] == "at the end"
    assert report["data"]["val"] is None
    without = build_report(trainer, recipe, train=data.train, val=None, command="", version="")
    assert without["test_watched"] == "never"
    assert without["metrics"].keys() == {"train_accuracy", "val_accuracy"}


def test_load_report_reads_keys_of_earlier_versions(tmp_path: Path) -> None:
    metrics = {"test_interval": [0.7, 0.8], "test_nll": 0.6, "calibrated": {"test_nll": 0.5}}
    save_report({"format": 1, "recipe": {"tta": "multi-crop"}, "metrics": metrics}, tmp_path / "report.json")
    report = load_report(tmp_path / "report.json")
    assert report["recipe"]["tta"] == "flip+shift"
    assert report["metrics"] == {
        "test_accuracy_interval": [0.7, 0.8],
        "test_log_loss": 0.6,
        "calibrated": {"test_log_loss": 0.5},
    }


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 2}', "[" * 100_000])
def test_load_report_refuses_other_files(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(DataError, match=r"give a report\.json"):
        load_report(tmp_path / "report.json")


def test_load_run_lists_what_it_cannot_use(made: Made, tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_bytes((made.directory / "best.safetensors").read_bytes())

    def remarks(**changes: object) -> str:
        save_report({**made.run.report, **changes}, tmp_path / "report.json")
        return " ".join(load_run(tmp_path, device="cpu").remarks)

    assert remarks() == ""
    assert "other weights" in remarks(selected_by={"monitor": "final", "epoch": 9, "value": None})
    assert "cannot read the recipe" in remarks(recipe={"model": "GPT"})
    assert "The history cannot be read" in remarks(history=7)
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint at"):
        load_run(tmp_path / "elsewhere", device="cpu")


def test_load_run_without_report_reads_checkpoint_or_csv(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    data = make_synthetic(num_train=40, num_test=20, size=16)
    trainer = make_trainer()
    trainer.fit(data.train, max_epochs=1, batch_size=20, checkpointer=Checkpointer(tmp_path), progress_bar=False)
    assert load_run(tmp_path, device="cpu").history == trainer.history
    (tmp_path / "last.safetensors").write_bytes(b"broken")
    run = load_run(tmp_path, device="cpu")
    assert "The last checkpoint cannot be read" in run.remarks[1]
    assert len(run.history) == 0
    trainer.history.save_csv(tmp_path / "history.csv")
    assert load_run(tmp_path, device="cpu").history == trainer.history
    (tmp_path / "history.csv").write_bytes(b"\xff\xfe")
    assert "The history cannot be read" in load_run(tmp_path, device="cpu").remarks[2]
