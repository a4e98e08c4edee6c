"""What the reports of several runs say together: mean and spread over seeds, and recipes beside each other."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from cifarnet._files import to_path
from cifarnet.errors import InputError
from cifarnet.models import build_model, count_flops
from cifarnet.recipes import get_recipe
from cifarnet.report.document import load_report

__all__ = ["comparison_table", "format_result", "published_table", "read_reports", "summarize_seeds"]

#: What must be equal for a mean over runs to mean something.
_SHARED: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "recipe": lambda report: report["recipe"],
    "data": lambda report: {key: value for key, value in report["data"].items() if key != "source"},
    "hardware": lambda report: report["hardware"],
    "precision": lambda report: report["precision"],
    "backend": lambda report: report.get("backend"),
    "versions": lambda report: report["versions"],
    "selected_by": lambda report: report["selected_by"]["monitor"],
}

#: Test accuracy and training time as the project that this library re-makes published them.
_PUBLISHED = {"basic": "~60 %, ~10 min", "reference": "77.63 %, ~20 min", "resnet18": "~95 %, ~30 min"}


def read_reports(directory: str | Path) -> list[dict[str, Any]]:
    """The reports of all seeds of a recipe.

    Args:
        directory: Holds a ``seed-N.json`` a run, or the runs themselves, ``seed-N/report.json``.

    Returns:
        By seed.

    Raises:
        InputError: If there are none, a seed is there twice, they are of different recipes, data, machines or versions,
            or one was changed when it was resumed.
    """
    directory = to_path(directory)
    paths = [*directory.glob("seed-*.json"), *directory.glob("seed-*/report.json")]
    reports = sorted((load_report(path) for path in paths), key=lambda report: int(report["seed"]))
    if not reports:
        raise InputError(f"{directory} holds no seed-*.json; run the recipe first")
    for one, other in pairwise(reports):
        if one["seed"] == other["seed"]:
            raise InputError(f"{directory} holds two reports of seed {one['seed']}; keep one of them")
    for key, value in _SHARED.items():
        if any(value(report) != value(reports[0]) for report in reports):
            raise InputError(f"the reports in {directory} differ in {key}; a mean over them means nothing")
    for report in reports:
        if report.get("changed_on_resume"):
            raise InputError(
                f"the run of seed {report['seed']} in {directory} was changed when it was resumed: "
                f"{'; '.join(report['changed_on_resume'])}; train it anew"
            )
    return reports


def summarize_seeds(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread over the runs of one recipe.

    Args:
        reports: Of `read_reports`.

    Returns:
        Plain values. Of ``test_accuracy`` and the like: ``mean`` and ``sd``, fractions; of ``train_s`` and ``total_s``,
        with the evaluations: seconds.

    Raises:
        InputError: If the runs were not evaluated on test images.
    """
    first = reports[0]
    if any(report["metrics"].get("test_accuracy") is None for report in reports):
        raise InputError("the reports have no test accuracy; build_report(test=, evaluation=) writes it into one")
    recipe, metrics = first["recipe"], [report["metrics"] for report in reports]
    augmented = [scores.get("test_accuracy_tta") for scores in metrics]
    return {
        "recipe": recipe["name"],
        "model": recipe["model"],
        "epochs": recipe["max_epochs"],
        "num_parameters": first["num_parameters"],
        "flops_per_image": first.get("flops_per_image"),
        "n": len(reports),
        "seeds": [report["seed"] for report in reports],
        "test_accuracy": _mean_and_sd([scores["test_accuracy"] for scores in metrics]),
        "train_accuracy": _mean_and_sd([scores["train_accuracy"] for scores in metrics]),
        "tta": recipe.get("tta"),
        "test_accuracy_tta": None if None in augmented else _mean_and_sd(augmented),
        "train_s": _mean_and_sd([report["durations"]["train_s"] for report in reports]),
        "total_s": _mean_and_sd([sum(report["durations"].values()) for report in reports]),
        "peak_memory_mb": max(
            (report["peak_memory_mb"] for report in reports if report["peak_memory_mb"]), default=None
        ),
        "data": first["data"]["name"],
        "hardware": first["hardware"],
        "precision": first["precision"],
        "backend": first.get("backend"),
        "selected_by": first["selected_by"]["monitor"],
        "torch": first["versions"]["torch"],
    }


def comparison_table(columns: Mapping[str, Sequence[Mapping[str, Any]]], *, recipes: Sequence[str] = ()) -> str:
    """Recipes beside each other, as Markdown: a row a recipe, a column a kind of machine.

    Args:
        columns: What each column holds, of `summarize_seeds`, all on the same data; it may be empty.
        recipes: Names of the library's recipes that have a row, measured or not; those of ``columns`` if not given.

    Returns:
        A table, and below it where the numbers come from.

    Raises:
        InputError: If two results are for one cell, one is for none, or they are of different data.
        SettingError: If a recipe is not one of the library's.
    """
    summaries = [row for column in columns.values() for row in column]
    names = recipes or list(dict.fromkeys(row["recipe"] for row in summaries))
    by_cell: dict[tuple[str, str], Mapping[str, Any]] = {}
    for heading, column in columns.items():
        for row in column:
            cell = row["recipe"], heading
            if cell in by_cell or cell[0] not in names:
                raise InputError(f"there is not one place for the result of {cell[0]} on {heading}; give each its own")
            if row["data"] != summaries[0]["data"]:
                raise InputError(f"{row['data']} and {summaries[0]['data']} cannot be compared; make a table of each")
            by_cell[cell] = row
    lines = [
        f"| recipe | network | parameters | FLOPs | published | {' | '.join(columns)} |",
        f"| --- | --- | --- | --- | --- |{' --- |' * len(columns)}",
    ]
    for name in names:
        rows = [by_cell.get((name, heading)) for heading in columns]
        results = " | ".join("not measured yet" if row is None else format_result(row) for row in rows)
        lines.append(f"| `{name}` | {_network(name, rows)} | {_published(name, rows)} | {results} |")
    lines += [
        "",
        "Accuracy of the test images, mean ± standard deviation over n seeds; time of training, without evaluation, on "
        "the machine that is named below: times of different ones cannot be compared. TTA: logits averaged over "
        "flipped and shifted copies of an image. FLOPs: of a forward pass.",
        "",
        *(f"- {_conditions(row)}" for row in summaries),
    ]
    return "\n".join(lines)


def _published(name: str, rows: Sequence[Mapping[str, Any] | None]) -> str:
    """What was published of a recipe; nothing beside other data or other epochs than the recipe's."""
    recipe = get_recipe(name)
    alike = all(
        row is None or (row["data"].startswith("CIFAR-10") and row["epochs"] == recipe.max_epochs) for row in rows
    )
    return _PUBLISHED.get(name, "") if alike else ""


def _network(name: str, rows: Sequence[Mapping[str, Any] | None]) -> str:
    """Class, parameters and arithmetic: as measured, else as the recipe builds it for ten classes."""
    recipe = get_recipe(name)
    row = next((row for row in rows if row is not None), {})
    with torch.device("meta"):
        model = build_model(recipe.model, recipe.model_arguments)
    num_parameters = row.get("num_parameters") or sum(parameter.numel() for parameter in model.parameters())
    flops = row.get("flops_per_image") or count_flops(model)
    return f"{recipe.model} | {num_parameters:,} | {flops / 1e6:,.0f}M"


def format_result(row: Mapping[str, Any]) -> str:
    """Accuracy, number of runs and time of a recipe, in a line.

    Args:
        row: Of `summarize_seeds`.
    """
    with_tta = row["test_accuracy_tta"]
    told = "" if with_tta is None else f" ({_percent(with_tta)} with TTA, {row['tta']})"
    return f"{_percent(row['test_accuracy'])}{told}, n = {row['n']}, {_duration(row['train_s'])}"


def _conditions(row: Mapping[str, Any]) -> str:
    chosen = "the last" if row["selected_by"] == "final" else f"the best in {row['selected_by']}"
    backend = "" if row["backend"] is None else f"{row['backend']}, "
    return (
        f"`{row['recipe']}`: {row['epochs']} epochs, {chosen} counts; {row['hardware']}, {row['precision']}, {backend}"
        f"torch {row['torch']}; {row['data']}"
    )


def published_table(reports: Sequence[Mapping[str, Any]]) -> str:
    """The reference recipe beside what was published of it, as Markdown.

    Args:
        reports: Of `read_reports`.

    Returns:
        A table with mean and standard deviation, and where they come from.
    """
    own = summarize_seeds(reports)
    rows = [
        ("test accuracy", "77.63 %", _percent(own["test_accuracy"])),
        ("training accuracy", "77.14 %", _percent(own["train_accuracy"])),
        ("training time", "~20 min", _duration(own["total_s"])),
        ("peak memory", "", "" if own["peak_memory_mb"] is None else f"{own['peak_memory_mb'] / 1e3:.2f} GB"),
        ("parameters", "~6.4M", f"{own['num_parameters']:,}"),
        ("size of the weights", "~25 MB", f"{own['num_parameters'] * 4 / 1e6:.1f} MB"),
    ]
    lines = ["| | published | cifarnet |", "| --- | --- | --- |"]
    lines += [f"| {name} | {published} | {value} |" for name, published, value in rows]
    lines += [
        "",
        f"Mean ± standard deviation over {own['n']} runs (seeds {', '.join(map(str, own['seeds']))}), {own['epochs']} "
        f"epochs, after the last one; time with an evaluation of the test images after each epoch, memory of the whole "
        f"process, torch included. {own['data']}. {own['hardware']}, {own['precision']}, torch {own['torch']}.",
    ]
    return "\n".join(lines)


def _mean_and_sd(values: Sequence[float]) -> dict[str, float | None]:
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}


def _percent(share: Mapping[str, float | None]) -> str:
    return _spread(share, 100, 2) + " %"


def _duration(seconds: Mapping[str, float | None]) -> str:
    """In minutes, or in seconds where it takes less than one."""
    mean = seconds["mean"]
    assert mean is not None
    return _spread(seconds, 1, 2) + " s" if mean < 60 else _spread(seconds, 1 / 60, 1) + " min"


def _spread(value: Mapping[str, float | None], scale: float, digits: int) -> str:
    mean, sd = value["mean"], value["sd"]
    assert mean is not None
    return f"{scale * mean:.{digits}f}" + ("" if sd is None else f" ± {scale * sd:.{digits}f}")
