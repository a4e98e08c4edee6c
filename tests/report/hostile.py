"""A run whose every name is hostile, and the page of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from reader import Reader

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
    "\x07bell",
    "javascript:alert(1)",
    "猫",
)
COMMAND = "cifarnet train --out '</code></pre><script>alert(2)</script>' --data \"x\" onload=alert(3)"


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


def train(directory: Path, data: DatasetSplits, *, epochs: int = 3, command: str = COMMAND) -> None:
    """What ``cifarnet train --val-fraction`` does, with a small network."""
    arguments = {"widths": (8, 16), "hidden": 32}
    recipe = replace(get_recipe("reference"), model_arguments=arguments, max_epochs=epochs, summary="<b>bold</b>")
    train, val = data.train.split(0.2, seed=0)
    trainer = build_trainer(recipe, train, device="cpu", precision="float32")
    trainer.fit(train, val, max_epochs=epochs, batch_size=32, checkpointer=Checkpointer(directory), progress_bar=False)
    evaluation = trainer.evaluate(data.test)
    classifier = Classifier.load(directory, device="cpu")
    classifier.temperature = 1.7
    classifier.save(directory)
    report = build_report(
        trainer, recipe, train=train, val=val, test=data.test, evaluation=evaluation,
        evaluation_calibrated=classifier.evaluate(data.test), command=command, version="0.1.0",
    )  # fmt: skip
    save_report(report, directory / "report.json")


def make(directory: Path) -> Made:
    """Train, and write the page."""
    synthetic = make_synthetic(num_train=300, num_test=100, seed=0)
    data = DatasetSplits(rename(synthetic.train, HOSTILE), rename(synthetic.test, HOSTILE))
    train(directory, data)
    run = load_run(directory, device="cpu")
    page = build_page(run, data.test)
    return Made(directory, run, data, page, Reader(page.html))
