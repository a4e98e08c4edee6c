"""From a new process to its first step and to its saved model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cifarnet import bench, make_synthetic
from cifarnet.bench.start import STAGES
from cifarnet.errors import CifarnetError, SettingError


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run on 80 images of two classes."""
    root = tmp_path_factory.mktemp("images")
    data = make_synthetic(80, 20)
    for part, images in (("train", data.train), ("test", data.test)):
        for i, (image, label) in enumerate(images):
            path = root / part / f"class-{label % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    options = ["--data", str(root), "--epochs", "1", "--device", "cpu", "--precision", "float32"]
    return bench.measure_start(options, runs=1, device="cpu", precision="float32")


def test_stages_follow_each_other_and_are_all_of_the_time(document: dict[str, Any]) -> None:
    stages = [stage["median"] for stage in document["stages"].values()]
    assert list(document["stages"]) == list(STAGES)
    assert min(stages) > 0
    assert sum(stages) == pytest.approx(document["total_s"]["median"])
    assert sum(stages[:7]) == pytest.approx(document["to_first_step_s"]["median"])
    assert sum(stages[:8]) == pytest.approx(document["to_model_s"]["median"])
    epochs = document["total_s"]["median"] - document["outside_epochs_s"]["median"]
    assert 0 < epochs < sum(stages[6:8])


def test_the_table_has_a_line_a_stage(document: dict[str, Any]) -> None:
    table = bench.format_report(document)
    for stage, name in STAGES.items():
        assert f"| {name} | {document['stages'][stage]['median']:.2f} s | " in table
    assert f"| **to the end of the first step** | {document['to_first_step_s']['median']:.2f} s | " in table
    assert "in 1 new processes" not in table
    assert "in a new process" in table


def test_a_run_that_fails_is_told(tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    with pytest.raises(CifarnetError, match=r"cifarnet train --data .* ended with exit code 1: .*holds neither"):
        bench.measure_start(["--data", str(tmp_path)], runs=1, device="cpu", precision="float32")


def test_runs_are_counted() -> None:
    with pytest.raises(SettingError, match="runs must be at least 1, got 0"):
        bench.measure_start([], runs=0, device="cpu", precision="float32")
