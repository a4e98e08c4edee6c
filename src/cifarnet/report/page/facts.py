"""The parts of a page that say what was done, and with what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from cifarnet.errors import InputError
from cifarnet.inference import describe_machine
from cifarnet.report.page.markup import Markup, element, join, table
from cifarnet.report.page.section import Judged, figure, note
from cifarnet.report.page.wording import UNKNOWN, count, duration, number, percent, shown
from cifarnet.training.history import EpochRecord

__all__ = ["command", "environment", "history", "recipe", "schedule"]

_MAX_EPOCHS = 400  # rows of the history; of more, some are left out


def schedule(judged: Judged) -> Markup:
    """The learning rate over the steps."""
    from cifarnet.visualize import plot_schedule

    run = judged.run
    if run.recipe is None:
        raise InputError("no recipe of the run is at hand; the history has the learning rate at the end of each epoch")
    if not len(run.history) or run.history[-1].epoch < 1:
        raise InputError("no history of the run is at hand, which says how many steps an epoch has")
    last = run.history[-1]
    epochs = max(run.recipe.max_epochs, last.epoch)
    steps = last.global_step * epochs // last.epoch
    text = f"{run.recipe.schedule} schedule, highest learning rate {run.recipe.learning_rate:g}, {steps:,} steps"
    return figure(
        partial(
            plot_schedule,
            run.recipe.multiplier,
            total_steps=steps,
            learning_rate=run.recipe.learning_rate,
            num_epochs=epochs,
        ),
        f"{text[0].upper()}{text[1:]}. Groups of parameters with a rate of their own follow the same curve.",
        alt=f"Curve of the learning rate over the steps of the run: {text}.",
    )


def recipe(judged: Judged) -> Markup:
    """All settings of the run."""
    run = judged.run
    told = run.fact("recipe")
    values: Mapping[str, Any] | None = told if isinstance(told, Mapping) else None
    if values is None and run.recipe is not None:
        values = asdict(run.recipe)
    if values is not None:
        rows = [(key, shown(value)) for key, value in values.items()]
        seed = run.fact("seed") if run.report else run.settings.get("seed")
        return table(
            "Every setting of the recipe, as it was trained",
            ("setting", "value"),
            [("seed", shown(seed) if seed is not None else UNKNOWN), *rows],
            texts=(0, 1),
            id_="recipe-table",
        )
    if not run.settings:
        raise InputError("neither a recipe nor the settings of the run are at hand")
    rows = [(key, shown(value)) for key, value in run.settings.items()]
    caption = "Settings of the run, as its last checkpoint has them"
    return table(caption, ("setting", "value"), rows, texts=(0, 1), id_="recipe-table")


def environment(judged: Judged) -> Markup:
    """Machine, versions and data: of the run, and of this page."""
    run = judged.run
    here = describe_machine(run.classifier.precision)
    versions: Mapping[str, Any] = here.pop("versions")
    there = run.report if run.report else run.environment
    rows = [(key, _told(there.get(key)), shown(value)) for key, value in here.items()]
    rows.append(("backend", _told(there.get("backend")), "-"))
    told = run.fact("versions") if run.report else {"torch": run.environment.get("torch")}
    known: Mapping[str, Any] = told if isinstance(told, Mapping) else {}
    rows += [(key, _told(known.get(key)), shown(versions.get(key, "-"))) for key in dict.fromkeys((*known, *versions))]
    peak = run.fact("peak_memory_mb")
    rows.append(("peak memory", UNKNOWN if peak is None else f"{count(peak)} MB", "-"))
    durations = run.fact("durations")
    for key, what in (("train_s", "time of training"), ("eval_s", "time of evaluation after each epoch")):
        rows.append((what, duration(durations.get(key) if isinstance(durations, Mapping) else None), "-"))
    parts = [
        table(
            "Machine and versions",
            ("", "the run", "the scores of this page"),
            rows,
            texts=(0, 1, 2),
            id_="environment-table",
        ),
        _data(judged),
    ]
    changes = run.fact("changed_on_resume") if run.report else run.environment.get("changes")
    if isinstance(changes, list) and changes:
        parts.append(note("Changed when the run was resumed: ", "; ".join(map(shown, changes)), "."))
    return join(parts)


def _told(value: Any) -> str:
    return UNKNOWN if value is None else shown(value)


def _data(judged: Judged) -> Markup:
    run, test = judged.run, judged.test
    rows: list[Sequence[str]] = []
    for split, what, key in (("train", "training", "data"), ("val", "held out", "val_data"), ("test", "test", "")):
        told = run.fact("data", split) if run.report else run.settings.get(key)
        known = told if isinstance(told, Mapping) else None
        if known is None:
            nothing = "none" if split == "val" and (run.report or run.settings) else UNKNOWN
            rows.append((f"{what} images of the run", nothing, "-"))
        else:
            rows.append((f"{what} images of the run", *_images(known)))
    rows.append(("test images of this page", *_images({"num_images": len(test), "fingerprint": test.fingerprint})))
    caption = f"Data: {shown(run.fact('data', 'name') or test.name)}"
    head = ("", "images", "SHA-256 over images, labels and classes")
    return table(caption, head, rows, texts=(0, 2), id_="data-table")


def _images(known: Mapping[str, Any]) -> tuple[str, Markup]:
    return count(known.get("num_images")), element("code", _told(known.get("fingerprint")))


def command(judged: Judged) -> Markup:
    """What was typed."""
    typed = judged.run.fact("command")
    if not isinstance(typed, str) or not typed:
        raise InputError("no command is at hand; the run was started by a program")
    return element("pre", element("code", typed), tabindex=0, aria_label="the command of the run")


def history(judged: Judged) -> Markup:
    """Every epoch in numbers."""
    records = list(judged.run.history)
    if not records:
        raise InputError("no history of the run is at hand")
    monitor = judged.run.classifier.selected_by.get("monitor")
    best = judged.run.history.best(monitor) if isinstance(monitor, str) and monitor.startswith("val_") else None
    every = -(-len(records) // _MAX_EPOCHS)
    kept = [one for i, one in enumerate(records) if i % every == 0 or one is best or i == len(records) - 1]
    splits = [split for split in ("val", "test") if any(getattr(one, f"{split}_loss") is not None for one in records)]
    head = ["epoch", "step", "learning rate", "train loss", "train accuracy"]
    head += [f"{split} {quantity}" for split in splits for quantity in ("loss", "accuracy")]
    head += ["training time", "images/s"]
    caption = "Every epoch" if every == 1 else f"One of {every} epochs, the best and the last; history.csv has them all"
    if best is not None:
        caption += f"; the best in {monitor} has a star"
    rows = [_epoch(one, splits, star=one is best) for one in kept]
    return table(caption, head, rows, texts=(), id_="history-table")


def _epoch(record: EpochRecord, splits: Sequence[str], *, star: bool) -> list[str]:
    mark = " \N{BLACK STAR}" if star else ""
    row = [f"{record.epoch}{mark}", count(record.global_step), f"{record.learning_rate:.3g}"]
    row += [number(record.train_loss), percent(record.train_accuracy)]
    for split in splits:
        loss, accuracy = getattr(record, f"{split}_loss"), getattr(record, f"{split}_accuracy")
        row += ["-" if loss is None else number(loss), "-" if accuracy is None else percent(accuracy)]
    return [*row, duration(record.train_s), f"{record.images_per_s:,.0f}"]
