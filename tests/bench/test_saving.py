from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cifarnet import bench, cli, make_synthetic
from cifarnet.errors import SettingError
from cifarnet.recipes import get_recipe


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    train = make_synthetic(num_train=400, num_test=10, seed=0).train
    return bench.measure_saving(get_recipe("reference"), train, num_steps=2, rounds=2, device="cpu")


def test_what_is_measured_belongs_together(document: dict[str, Any]) -> None:
    assert document["last_bytes"] == pytest.approx(3 * 4 * 6_447_754, rel=0.001)  # weights and two moments
    assert document["epoch_s"] == pytest.approx(document["part_s"]["median"] * 400 / (2 * 64))
    assert document["cost_s"] == document["part_with_save_s"]["median"] - document["part_s"]["median"]
    assert 0 < document["copy_s"]["median"] < document["part_with_save_s"]["median"]
    assert {document[key]["n"] for key in ("part_s", "part_with_save_s", "copy_s", "write_s", "read_s")} == {2}


@pytest.mark.skipif(sys.platform != "linux", reason="counters of Linux")
def test_each_byte_of_a_checkpoint_is_read_once(document: dict[str, Any]) -> None:
    assert document["times_each_byte_is_read"] == pytest.approx(1, abs=0.001)


def test_the_table_shows_medians_ranges_and_the_share(document: dict[str, Any]) -> None:
    table = bench.format_report(document)
    assert f"| 2 steps | {document['part_s']['median']:.3f} s | " in table
    assert f"Saving every epoch costs {document['share_of_an_epoch']:.1%} of an epoch of " in table


@pytest.mark.parametrize("count", ["num_steps", "rounds"])
def test_too_few_steps_or_rounds_are_refused(count: str) -> None:
    with pytest.raises(SettingError, match=f"{count} must be at least 1, got 0"):
        bench.measure_saving(get_recipe("reference"), make_synthetic(8, 1).train, device="cpu", **{count: 0})  # type: ignore[arg-type]


def test_too_few_images_are_refused() -> None:
    train = make_synthetic(num_train=100, num_test=10, seed=0).train
    with pytest.raises(SettingError, match="2 steps of 64 images need 128, there are 100"):
        bench.measure_saving(get_recipe("reference"), train, num_steps=2, rounds=1)


def test_the_command_prints_one_document(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["bench", "saving", "--data", "synthetic", "--steps", "1", "--rounds", "1", "--json", "--device", "cpu"]
    assert cli.main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "saving"
    assert document["command"] == "cifarnet bench saving --data synthetic --steps 1 --rounds 1 --json --device cpu"
    assert set(document["versions"]) >= {"cifarnet", "torch"}


@pytest.mark.parametrize("option", ["--steps", "--rounds"])
def test_counts_are_checked_before_anything_is_read(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "saving", "--data", "nowhere", option, "0"]) == 2
    assert f"{option} must be" in capsys.readouterr().err
