"""A run whose every name is hostile, its page, and the page as a program reads it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

from cifarnet import Checkpointer, Classifier, DatasetSplits, ImageDataset, make_synthetic
from cifarnet.recipes import build_trainer, get_recipe
from cifarnet.report import Page, Run, build_page, build_report, load_run, save_report

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$\\frac{1}{",
    "a & b &amp; c",
    "</td></table><h1>",
    "very long " * 12,
    "\u202eright to left",
    "{{ 7 * 7 }}{% raw %}\x07",
    "javascript:alert(1)",
    "猫",
)
COMMAND = "cifarnet train --out '</code></pre><script>alert(2)</script>' --data \"x\" onload=alert(3)"
VOID = {"br", "img", "link", "meta"}


class Reader(HTMLParser):
    """Every tag with its attributes, the text of each section, and a check that each tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self._open: list[str] = []
        self._section = ""
        self.feed(html)
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"an attribute twice: {tag} {attrs}"
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self._section = str(dict(attrs)["id"])
            self.sections[self._section] = ""
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if self._section:
            self.sections[self._section] += data.replace("\N{NO-BREAK SPACE}", " ")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every such tag."""
        return [attributes for name, attributes in self.tags if name == tag]


@dataclass(frozen=True)
class Made:
    """A run in a directory, and the page of it."""

    directory: Path
    run: Run
    data: DatasetSplits
    page: Page
    read: Reader


def rename(data: ImageDataset, classes: tuple[str, ...]) -> ImageDataset:
    return ImageDataset(data.images, data.labels % len(classes), classes, ids=data.ids, name=data.name)


def make(directory: Path) -> Made:
    """Train as ``cifarnet train --val-fraction`` does, with a small network, and build the page."""
    synthetic = make_synthetic(num_train=120, num_test=60, seed=0)
    data = DatasetSplits(rename(synthetic.train, HOSTILE), rename(synthetic.test, HOSTILE))
    arguments = {"widths": (8, 16), "hidden": 32}
    recipe = replace(get_recipe("reference"), model_arguments=arguments, max_epochs=3, summary="<b>bold</b>")
    train, val = data.train.split(0.2, seed=0)
    trainer = build_trainer(recipe, train, device="cpu", precision="float32")
    trainer.fit(train, val, max_epochs=3, batch_size=32, checkpointer=Checkpointer(directory), progress_bar=False)
    evaluation = trainer.evaluate(data.test)
    classifier = Classifier.load(directory, device="cpu")
    classifier.temperature = 1.7
    classifier.save(directory)
    report = build_report(
        trainer, recipe, train=train, val=val, test=data.test, evaluation=evaluation,
        evaluation_calibrated=classifier.evaluate(data.test), command=COMMAND, version="0.1.0",
    )  # fmt: skip
    save_report(report, directory / "report.json")
    run = load_run(directory, device="cpu")
    page = build_page(run, data.test)
    return Made(directory, run, data, page, Reader(page.html))
