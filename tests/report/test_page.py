"""The page has everything of a run, states what is missing, and neither loads nor runs anything."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import COMMAND, HOSTILE, Made, Reader, rename
from PIL import Image
from torch import nn

from cifarnet import Checkpointer, Classifier, ImageDataset, Preprocess, Trainer, cli, make_synthetic
from cifarnet.errors import DataError
from cifarnet.report import build_page, load_run

pytestmark = pytest.mark.filterwarnings("ignore:Glyph .* missing from font:UserWarning")

SECTIONS = (
    "result", "curves", "evaluation", "classes", "confusion", "calibration", "losses", "predictions", "grad-cam",
    "filters", "maps", "network", "schedule", "recipe", "environment", "command", "history",
)  # fmt: skip


def test_page_has_every_section_and_links_to_each(made: Made) -> None:
    assert made.page.sections == tuple(made.read.sections) == SECTIONS
    assert made.page.left_out == {}
    assert made.page.remarks == ()
    links = [attributes["href"] for attributes in made.read.all("a")]
    ids = [attributes["id"] for _, attributes in made.read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(link)[1:] for link in links} == set(SECTIONS)
    assert "<h1>reference, seed 0</h1>" in made.page.html


def test_page_describes_every_figure_and_table(made: Made) -> None:
    images = made.read.all("img")
    alts = [str(image["alt"]) for image in images]
    assert len(set(alts)) == len(alts) == len(made.read.all("figcaption")) == 11
    assert all(len(alt) > 40 for alt in alts)
    for image in images:
        content = base64.b64decode(str(image["src"]).removeprefix("data:image/png;base64,"))
        with Image.open(io.BytesIO(content)) as picture:
            assert np.asarray(picture.convert("L")).std() > 10
    assert len(made.read.all("caption")) == len(made.read.all("table")) > 8
    assert {cell["scope"] for cell in made.read.all("th")} == {"col", "row"}
    labels = {attributes["aria-labelledby"] for _, attributes in made.read.tags if "aria-labelledby" in attributes}
    assert labels <= {attributes.get("id") for _, attributes in made.read.tags}
    assert made.read.all("html") == [{"lang": "en"}]
    for scrolling in (tag for tag in made.read.all("div") if tag.get("role") == "region"):
        assert scrolling["tabindex"] == "0"  # a keyboard can scroll it


def test_page_loads_nothing_and_contains_no_script(made: Made) -> None:
    for tag, attributes in made.read.tags:
        assert tag not in ("script", "iframe", "object", "embed", "form", "base", "audio", "video")
        for key, value in attributes.items():
            assert not key.startswith("on"), (tag, key)
            if key in ("src", "srcset", "href", "data", "action", "poster"):
                assert re.fullmatch(r"data:(image/png;base64,[A-Za-z0-9+/=]+|,)|#[a-z-]+", str(value)), (tag, key)
    (style,) = re.findall(r"<style>(.*?)</style>", made.page.html, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = (meta["content"] for meta in made.read.all("meta") if meta.get("http-equiv"))
    assert str(policy).startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


def test_page_shows_hostile_text_as_text(made: Made) -> None:
    assert COMMAND in made.read.sections["command"]
    assert "<b>bold</b>" in made.read.sections["recipe"]
    for name in HOSTILE:
        assert name.replace("\x07", "\\x07") in made.read.sections["evaluation"]
    assert "\x07" not in made.page.html


def test_page_shows_the_metrics_of_the_evaluation(made: Made) -> None:
    evaluation = made.run.classifier.evaluate(made.data.test)
    assert made.page.evaluation == evaluation
    result = " ".join(made.read.sections["result"].split())
    low, high = (f"{100 * bound:.2f} %" for bound in evaluation.accuracy_interval)
    assert f"{100 * evaluation.accuracy:.2f} % of 60 test images are classified correctly." in result
    assert f"95 % interval {low} to {high} (Wilson)" in result
    chosen = made.run.classifier.selected_by
    num_images = made.run.report["data"]["val"]["num_images"]
    best = f"the best in val_accuracy ({100 * chosen['value']:.2f} %) on {num_images} validation images"
    assert f"epoch {chosen['epoch']} of 3, {best}" in result
    text, calibration = made.read.sections["evaluation"], made.read.sections["calibration"]
    for one in evaluation.per_class:
        assert not one.num_predicted or f"{100 * one.precision:.1f} %" in text
    for value in (evaluation.expected_calibration_error, made.run.report["metrics"]["test_calibration_error"]):
        assert f"{100 * value:.2f} %" in calibration
        assert f"{100 * value:.2f} %" in text
    counts, i, j = max(
        (n, i, j) for i, row in enumerate(evaluation.confusion_matrix) for j, n in enumerate(row) if i != j
    )
    assert HOSTILE[i].replace("\x07", "\\x07") in made.read.sections["confusion"]
    assert f"{HOSTILE[j]} ({counts})".replace("\x07", "\\x07") in text
    history = made.read.sections["history"]
    assert all(f"{record.train_loss:.4f}" in history for record in made.run.history)
    assert history.count("\N{BLACK STAR}") == 1
    assert f"{chosen['epoch']} \N{BLACK STAR}" in history


def test_command_writes_the_same_bytes_again(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cifarnet.cli.data_source.make_synthetic", lambda size: made.data)
    path = tmp_path / "page.html"
    best = str(made.directory / "best.safetensors")
    command = ["report", best, "--data", "synthetic", "--out", str(path), "--device", "cpu", "--json"]
    assert cli.main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert path.read_text(encoding="utf-8") == made.page.html
    assert path.stat().st_size == document["num_bytes"] < 3_000_000
    assert (document["run"], document["path"], document["sections"]) == (best, str(path), list(SECTIONS))
    assert str(made.directory) not in made.page.html


def test_command_refuses_another_kind_of_file(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    for path, code, message in (
        ("page.pdf", 2, 'must end in ".html", got "page.pdf"; page.html does'),
        ("no/such/page.html", 2, "there is no folder"),
    ):
        assert cli.main(["report", str(made.directory), "--out", path]) == code
        assert message in capsys.readouterr().err


def test_page_names_contradictions_and_shows_any_values(made: Made) -> None:
    num_correct = made.page.evaluation.num_correct

    def build(**changes: object) -> str:
        run = replace(made.run, report={**made.run.report, **changes})
        return " ".join(build_page(run, made.data.test).remarks)

    assert "fingerprints differ" in build(data={"test": {"fingerprint": "0" * 64}})
    remark = build(metrics={"test_num_correct": num_correct + 3})
    assert f"counted {num_correct + 3} correct images, this page {num_correct}" in remark
    edited = {"data": 3, "metrics": [], "durations": "long", "versions": None, "hardware": {"x": 1}, "recipe": None}
    assert build(**edited) == ""


def test_page_of_a_run_without_report_states_what_is_missing(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    synthetic = make_synthetic(num_train=60, num_test=30, seed=0, size=16)
    train, test = (rename(part, ("cat", "dog")) for part in (synthetic.train, synthetic.test))
    trainer = make_trainer(num_classes=2)
    trainer.fit(train, max_epochs=1, batch_size=20, checkpointer=Checkpointer(tmp_path), progress_bar=False)
    page = build_page(load_run(tmp_path, device="cpu"), test)
    read = Reader(page.html)
    assert sorted(page.left_out) == ["command", "schedule"]
    (remark,) = page.remarks
    assert remark.startswith("The run has no report.json")
    assert remark in read.sections["result"]
    assert "Left out: the files of the run do not record it." in read.sections["command"]
    assert "the last epoch, 1 of 1, because the run had no validation set" in read.sections["result"]
    assert f"{trainer.history[0].train_loss:.4f}" in read.sections["history"]
    assert "RandomCrop" in read.sections["recipe"]
    assert train.fingerprint in read.sections["environment"]
    assert "Top-" not in read.sections["result"]  # always 100 % of two classes


def test_page_supports_100_classes_and_own_networks(tmp_path: Path) -> None:
    classes = tuple(f"class-{i:03}" for i in range(100))
    torch.manual_seed(0)
    images = torch.randint(0, 256, (300, 3, 8, 8), dtype=torch.uint8)
    data = ImageDataset(images, torch.arange(300) % 100, classes, name="<noise>")
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 100))
    Classifier(network, Preprocess(8), classes, device="cpu", precision="float32").save(tmp_path)
    run = load_run(tmp_path, model=network, device="cpu")
    page = build_page(run, data)
    read = Reader(page.html)
    assert sorted(page.left_out) == [
        "command", "curves", "filters", "grad-cam", "history", "maps", "recipe", "schedule",
    ]  # fmt: skip
    assert all(f"Left out: {reason}" in read.sections[section] for section, reason in page.left_out.items())
    assert "does not record how its weights were chosen" in read.sections["result"]
    assert all(name in read.sections["evaluation"] for name in classes)
    assert "&lt;noise&gt;" in page.html
    with pytest.raises(DataError, match="Use images with the classes of the training"):
        build_page(run, rename(data, classes[:7]))
