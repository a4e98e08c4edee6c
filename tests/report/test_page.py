"""The page has everything of a run, shows nothing that is not so, and neither loads nor runs anything."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import COMMAND, HOSTILE, Made, rename
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from reader import Reader
from torch import nn

from cifarnet import Checkpointer, Classifier, ImageDataset, Trainer, build_transforms, cli, make_synthetic
from cifarnet.errors import CheckpointMismatchError, CheckpointNotFoundError, InputError, SettingError
from cifarnet.report import build_page, load_report, load_run, save_page, save_report
from cifarnet.report.page.assembly import _judge
from cifarnet.report.page.markup import Markup, element
from cifarnet.report.page.wording import count, duration, number, percent, shown

pytestmark = pytest.mark.filterwarnings("ignore:No installed font has:UserWarning")

SECTIONS = (
    "result", "curves", "evaluation", "classes", "confusion", "calibration", "losses", "predictions", "grad-cam",
    "filters", "maps", "network", "schedule", "recipe", "environment", "command", "history",
)  # fmt: skip


def test_a_page_has_every_section_and_its_navigation_leads_to_each(made: Made) -> None:
    assert made.page.sections == tuple(made.read.sections) == SECTIONS
    assert made.page.left_out == {}
    assert made.page.remarks == ()
    links = [attributes["href"] for attributes in made.read.all("a")]
    ids = [attributes["id"] for _, attributes in made.read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for section in SECTIONS:
        assert links.count(f"#{section}") >= 2  # in the navigation, and the heading itself
    assert {str(link)[1:] for link in links} <= set(ids)
    assert [text for tag, text in made.read.headings if tag == "h1"] == ["reference, seed 0"]
    assert len([text for tag, text in made.read.headings if tag == "h2" and text]) == len(SECTIONS)


def test_those_who_do_not_see_it_are_told(made: Made) -> None:
    images = made.read.all("img")
    assert len(images) == 11
    alts = [str(image["alt"]) for image in images]
    assert all(len(alt) > 40 for alt in alts)
    assert len(set(alts)) == len(alts)
    assert len(made.read.all("figcaption")) == len(made.read.all("figure")) == len(images)
    assert len(made.read.all("caption")) == len(made.read.all("table")) > 8
    assert {cell["scope"] for cell in made.read.all("th")} == {"col", "row"}
    labels = [attributes["aria-labelledby"] for _, attributes in made.read.tags if "aria-labelledby" in attributes]
    assert labels
    assert set(labels) <= {attributes.get("id") for _, attributes in made.read.tags}
    assert made.read.all("html") == [{"lang": "en"}]
    for scrolling in (tag for tag in made.read.all("div") if tag.get("role") == "region"):
        assert scrolling["tabindex"] == "0"  # a keyboard can scroll it


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(made: Made) -> None:
    for tag, attributes in made.read.tags:
        assert tag not in ("script", "iframe", "object", "embed", "form", "base", "audio", "video")
        for key, value in attributes.items():
            assert not key.startswith("on"), (tag, key)
            assert key != "style", "the policy allows none"
            if key in ("src", "srcset", "href", "data", "action", "poster"):
                assert re.fullmatch(r"data:(image/png;base64,[A-Za-z0-9+/=]+|,)|#[a-z-]+", str(value)), (tag, key)
    (style,) = re.findall(r"<style>(.*?)</style>", made.page.html, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = (meta["content"] for meta in made.read.all("meta") if meta.get("http-equiv"))
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def test_what_others_wrote_is_text(made: Made) -> None:
    assert made.read.sections["command"].endswith(COMMAND)
    assert "<b>bold</b>" in made.read.sections["recipe"]
    for name in HOSTILE:
        assert name.replace("\x07", "\\x07") in made.read.sections["evaluation"]
    assert "\x07" not in made.page.html


def test_the_numbers_are_those_of_the_evaluation(made: Made) -> None:
    evaluation = made.run.classifier.evaluate(made.data.test)
    assert made.page.evaluation == evaluation
    result = made.read.sections["result"].replace("\N{NO-BREAK SPACE}", " ")
    low, high = (f"{100 * bound:.2f} %" for bound in evaluation.accuracy_interval)
    assert f"{100 * evaluation.accuracy:.2f} % of 100 test images are classified right" in result
    assert f"interval {low} to {high} (Wilson)" in result
    chosen = made.run.classifier.selected_by
    number = made.run.fact("data", "val", "num_images")
    best = f"the best in val_accuracy ({100 * chosen['value']:.2f} %) on {number} images"
    assert f"epoch {chosen['epoch']} of 3, {best}" in result
    text = made.read.sections["evaluation"].replace("\N{NO-BREAK SPACE}", " ")
    for one in evaluation.per_class:
        name = one.name.replace("\x07", "\\x07")
        assert f"{name}{one.num_images}{100 * one.precision:.1f} %" in text or not one.num_predicted
    calibration = made.read.sections["calibration"].replace("\N{NO-BREAK SPACE}", " ")
    made.run.classifier.temperature = 1.0
    plain = made.run.classifier.evaluate(made.data.test)
    made.run.classifier.temperature = 1.7
    assert plain.expected_calibration_error != evaluation.expected_calibration_error
    for scores in (plain, evaluation):
        assert f"{100 * scores.expected_calibration_error:.2f} %" in calibration
        assert f"{scores.log_loss:.4f}" in text
    i, j = divmod(int(np.argmax(np.array(evaluation.confusion_matrix) * (1 - np.eye(10, dtype=int)))), 10)
    assert f"{HOSTILE[i]}{HOSTILE[j]}{evaluation.confusion_matrix[i][j]}" in made.read.sections["confusion"]


def test_what_the_run_was_is_told_from_its_report(made: Made) -> None:
    report = load_report(made.directory / "report.json")
    for split in ("train", "val", "test"):
        assert report["data"][split]["fingerprint"] in made.read.sections["environment"]
    assert report["hardware"] in made.read.sections["environment"]
    assert f"torch{report['versions']['torch']}" in made.read.sections["environment"]
    assert "crop_modezero" in made.read.sections["recipe"]
    history = made.read.sections["history"]
    for record in made.run.history:
        assert f"{record.train_loss:.4f}" in history
        assert f"{record.val_loss:.4f}" in history
    assert history.count("\N{BLACK STAR}") == 1
    assert f"{made.run.classifier.selected_by['epoch']} \N{BLACK STAR}" in history


def test_every_picture_has_something_on_it_and_a_dark_one_beside_it(made: Made) -> None:
    def pixels(url: str | None) -> np.ndarray:
        content = base64.b64decode(str(url).removeprefix("data:image/png;base64,"))
        with Image.open(io.BytesIO(content)) as picture:
            return np.asarray(picture.convert("L"))

    images, dark = made.read.all("img"), made.read.all("source")
    assert len(dark) == len(images) - 1  # an architecture is drawn in boxes of its own colours
    for image in images:
        shown = pixels(image["src"])
        assert shown.std() > 10
        assert shown[0, 0] == 255
        assert abs(shown.shape[1] / shown.shape[0] - int(str(image["width"])) / int(str(image["height"]))) < 0.02
    for source in dark:
        assert source["media"] == "(prefers-color-scheme: dark)"
        assert pixels(source["srcset"])[0, 0] < 50


def test_the_command_gives_the_same_small_page_once_more(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cifarnet.cli.data_source.make_synthetic", lambda size: made.data)
    path = tmp_path / "page.html"
    best = str(made.directory / "best.safetensors")
    command = ["report", best, "--data", "synthetic", "--out", str(path), "--device", "cpu", "--json"]
    assert cli.main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert path.read_text(encoding="utf-8") == made.page.html
    assert 200_000 < path.stat().st_size == told["num_bytes"] < 3_000_000
    assert (told["run"], told["path"], told["sections"]) == (best, str(path), list(SECTIONS))
    assert (told["left_out"], told["remarks"]) == ({}, [])
    assert told["accuracy"] == made.page.evaluation.accuracy
    assert str(made.directory) not in made.page.html
    assert str(tmp_path) not in made.page.html


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("no/such", "--out", "page.pdf"), 2, 'must end in ".html", got "page.pdf"; page.html does'),
        (("no/such", "--out", "."), 2, ". is a folder; report.html would be a file in it"),
        (("no/such",), 1, "no checkpoint at no/such"),
        (("no/such", "--device", "gpu"), 2, 'device "gpu" cannot be used'),
        (("no/such", "--dta", "x"), 2, 'unknown option --dta; did you mean "--data"?'),
    ],
)
def test_wrong_use_of_the_command_is_told_in_a_line(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *arguments]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_page_goes_where_a_page_can_go(made: Made, tmp_path: Path) -> None:
    for wrong, message in (
        (tmp_path / "page.pdf", 'must end in ".html", got'),
        (tmp_path, "is a folder; .*report.html would be a file in it"),
        (tmp_path / "no" / "page.html", "there is no folder"),
    ):
        with pytest.raises(SettingError, match=message):
            save_page(made.page, wrong)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_agree_is_told(made: Made, tmp_path: Path) -> None:
    report = load_report(made.directory / "report.json")
    (tmp_path / "best.safetensors").write_bytes((made.directory / "best.safetensors").read_bytes())

    def remarks(**changes: object) -> str:
        save_report({**report, **changes}, tmp_path / "report.json")
        return " ".join(_judge(load_run(tmp_path, device="cpu"), made.data.test).remarks)

    assert remarks() == ""
    assert "fingerprints differ" in remarks(data={"test": {"fingerprint": "0" * 64}})
    right = made.page.evaluation.num_correct
    assert f"counted {right + 3} images right, this page {right}" in remarks(metrics={"test_num_correct": right + 3})
    assert "report.json is about other weights (selected by final, epoch 9)" in remarks(
        selected_by={"monitor": "final", "epoch": 9, "value": None}
    )
    assert "The recipe is none of this version of cifarnet" in remarks(recipe={"model": "GPT"})
    assert "The history of report.json cannot be read" in remarks(history=[{"epoch": 1}])
    assert "The history of report.json cannot be read" in remarks(history=7)
    # Whatever somebody made of the rest, it is shown, not believed.
    assert remarks(data=3, metrics=[], durations="long", versions=None, hardware={"x": 1}) == ""


def test_a_report_that_is_none_is_refused(made: Made, tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_bytes((made.directory / "best.safetensors").read_bytes())
    for content in ("{", "[" * 100_000, '{"format": 7}'):
        (tmp_path / "report.json").write_text(content)
        with pytest.raises(InputError, match=r"give a report\.json"):
            load_run(tmp_path, device="cpu")
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint at"):
        load_run(tmp_path / "elsewhere", device="cpu")


def test_a_run_without_a_report_has_a_page_that_says_what_it_lacks(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """`Trainer` and `Checkpointer` alone; two classes, one epoch, and a network of 16 pixels."""
    synthetic = make_synthetic(num_train=60, num_test=30, seed=0, size=16)
    data = [rename(part, ("cat", "dog")) for part in (synthetic.train, synthetic.test)]
    trainer = make_trainer(num_classes=2)
    trainer.fit(data[0], max_epochs=1, batch_size=20, checkpointer=Checkpointer(tmp_path), progress_bar=False)
    page = build_page(load_run(tmp_path, device="cpu"), data[1])
    read = Reader(page.html)
    assert sorted(page.left_out) == ["command", "schedule"]
    assert page.remarks == (
        "The run has no report.json, which cifarnet train writes: this page shows what its files say.",
    )
    assert page.remarks[0] in read.sections["result"]
    assert "Left out: no command is at hand" in read.sections["command"]
    assert "the last epoch, 1 of 1: nothing was held out" in read.sections["result"]
    assert f"{trainer.history[0].train_loss:.4f}" in read.sections["history"]
    assert "RandomCrop" in read.sections["recipe"] or "crop" in read.sections["recipe"].lower()
    assert data[0].fingerprint in read.sections["environment"]
    assert "Top-" not in read.sections["result"]  # of two classes every second guess is right
    assert "there is no temperature" in read.sections["calibration"]
    assert "<h1>CifarCNN</h1>" in page.html

    (tmp_path / "last.safetensors").write_bytes(b"broken")
    run = load_run(tmp_path, device="cpu")
    assert "Its last checkpoint cannot be read" in run.remarks[1]
    assert len(run.history) == 0
    trainer.history.save_csv(tmp_path / "history.csv")
    assert load_run(tmp_path, device="cpu").history == trainer.history
    (tmp_path / "history.csv").write_bytes(b"\xff\xfe")
    assert "The history of history.csv cannot be read" in load_run(tmp_path, device="cpu").remarks[2]


class Linear(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 8 * 8, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(images.flatten(1))
        return logits


def test_a_hundred_classes_and_a_network_without_filters(tmp_path: Path) -> None:
    """What a network does not have is left out; the best weights alone are enough."""
    classes = tuple(f"class-{i:03}" for i in range(100))
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (300, 3, 8, 8), dtype=torch.uint8, generator=draw)
    data = ImageDataset(images, torch.arange(300) % 100, classes, name="<noise>")
    torch.manual_seed(0)
    network = Linear(100)
    preprocess = build_transforms(size=8).preprocess
    Classifier(network, preprocess, classes, device="cpu", precision="float32").save(tmp_path)
    with pytest.raises(CheckpointMismatchError, match="Build it and pass it as model="):
        load_run(tmp_path, device="cpu")
    page = build_page(load_run(tmp_path, model=network, device="cpu"), data)
    read = Reader(page.html)
    assert sorted(page.left_out) == [
        "command", "curves", "filters", "grad-cam", "history", "maps", "recipe", "schedule",
    ]  # fmt: skip
    assert all(f"Left out: {reason}" in read.sections[section] for section, reason in page.left_out.items())
    assert "How these weights were chosen is not recorded" in read.sections["result"]
    assert all(name in read.sections["evaluation"] for name in classes)
    assert "&lt;noise&gt;" in page.html
    assert len(page.html) < 3_000_000
    with pytest.raises(InputError, match="evaluate on data with the classes it was trained on"):
        build_page(load_run(tmp_path, model=network, device="cpu"), rename(data, classes[:7]))


TEXTS = st.text() | st.text(alphabet="<>&\"'/!-?=;#xbp \n")  # much of what HTML takes for its own


@given(TEXTS, TEXTS)
def test_every_text_comes_back_as_the_text_that_it_was(text: str, attribute: str) -> None:
    read = Reader(element("p", text, element("br"), title=attribute))
    assert [tag for tag, _ in read.tags] == ["p", "br"]
    seen = re.sub(r"[\r\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "", text)
    if seen == text:
        assert read.text == text
        if not re.search(r"[\x00-\x1f]|[\x7f-\x9f\ud800-\udfff\ufffe\uffff]", attribute):
            assert read.tags[0][1] == {"title": attribute}
    element("p", text).encode()  # no half of a pair is left, as a file name can have


def test_only_markup_is_not_escaped() -> None:
    assert element("p", Markup("<br>"), "<br>") == "<p><br>&lt;br&gt;</p>"
    assert element("a", class_="x", hidden=True, title=None, id='"') == '<a class="x" hidden id="&quot;"></a>'
    assert element("p", "\x1b[31m\udcff") == "<p>\\x1b[31m\\udcff</p>"


def test_values_are_worded() -> None:
    assert (percent(0.12345), percent(None), percent("nan")) == ("12.35\N{NO-BREAK SPACE}%", "not recorded", "nan")
    assert (duration(3.25), duration(371), duration(7260), duration(-1)) == ("3.2 s", "6 min 11 s", "2 h 1 min", "-1")
    assert (count(10_000), count(True), number(0.5, 2)) == ("10,000", "yes", "0.50")
    assert shown({"lr": 0.01, "betas": [0.9, 0.99], "nesterov": True}) == "lr = 0.01, betas = 0.9, 0.99, nesterov = yes"
    assert (shown([]), shown(None), shown("<x>")) == ("none", "none", "<x>")
    assert json.loads('"\\u00a0"') in percent(0.5)
