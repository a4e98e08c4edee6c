"""``cifarnet bench``: options, documents, tables."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cifarnet import bench, cli, make_synthetic
from cifarnet.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """80 training and 20 test images as files."""
    root = tmp_path_factory.mktemp("images")
    data = make_synthetic(80, 20)
    for part, images in (("train", data.train), ("test", data.test)):
        for i, (image, label) in enumerate(images):
            path = root / part / f"class-{label}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return str(root)


def measured(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The document of a command, which can be formatted again, and says what was measured and where."""
    assert cli.main(["bench", *words, "--device", "cpu", "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["format"] == 1
    assert document["kind"] == words[0]
    assert document["command"] == f"cifarnet bench {' '.join(words)} --device cpu --json"
    assert set(document["versions"]) >= {"cifarnet", "torch"}
    assert document["hardware"] in bench.format_report(document)
    return document


def test_training_without_a_script_is_compared_with_its_first_backend(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    document = measured(capsys, "training", "--data", folder, "--steps", "1", "--rounds", "1", "--backends", "eager")
    assert (document["baseline"], document["script"]) == ("eager", None)
    assert document["contenders"][0]["ratio"] == 1
    assert document["data"]["num_images"] == 80
    assert multiprocessing.active_children() == []


def test_inference_is_of_the_test_images(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = measured(capsys, "inference", "--data", folder, "--rounds", "1", "--calls", "2")
    assert document["data"]["num_images"] == 20


def test_accuracy_runs_cold_with_the_same_options(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = measured(capsys, "accuracy", "--data", folder, "--runs", "1", "--epochs", "1", "--cold")
    cold = document["cold"]
    assert "--epochs 1" in " ".join(cold["options"])
    assert 0 < cold["to_training_s"] < cold["to_first_epoch_s"] < cold["total_s"]
    assert (document["data"]["num_images"], document["test_data"]["num_images"]) == (80, 20)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("savin",), 'unknown benchmark "savin"; did you mean "saving"?'),
        (("saving", "--stesp", "3"), 'unknown option --stesp; did you mean "--steps"?'),
        (("inference", "--steps", "3"), "unknown option --steps"),
        (("saving", "more"), "more: one argument too many; cifarnet bench saving --help"),
        (("training", "--rounds", "0"), "--rounds must be at least 1"),
        (("training", "--workers", "-1"), "--workers must be at least 0"),
        (("training", "--backends", "eagre"), 'did you mean "eager"?'),
        (("inference", "--calls", "1"), "--calls must be at least 2"),
        (("start", "--runs", "0"), "--runs must be at least 1"),
        (("start", "--epochs", "0"), "--epochs must be at least 1"),
        (("accuracy", "--runs", "0"), "--runs must be at least 1"),
        (("accuracy", "--target", "94"), "--target must be in (0, 1), got 94.0"),
        (("accuracy", "--precision", "bf61"), 'did you mean "bf16"?'),
        (("training", "--script", "nowhere.py"), "--script nowhere.py: there is no such file"),
    ],
)
def test_wrong_use_is_told_before_anything_is_read(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["bench", *words, *(() if words[0] == "savin" else ("--data", str(tmp_path / "nowhere")))]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_a_document_of_another_kind_has_no_table() -> None:
    with pytest.raises(InputError, match='kind "savings" is unknown; did you mean "saving"'):
        bench.format_report({"kind": "savings"})
