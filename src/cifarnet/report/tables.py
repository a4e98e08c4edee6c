"""Tables over several runs: mean and spread over seeds, and recipes side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cifarnet._files import to_path
from cifarnet.errors import DataError
from cifarnet.models import build_model, count_flops
from cifarnet.recipes import get_recipe
from cifarnet.report.report_json import load_report

__all__ = ["comparison_table", "format_result", "read_reports", "summarize_seeds"]

#: Test accuracy and training time that the project which this library rebuilds has published.
_PUBLISHED = {"basic": "~60 %, ~10 min", "reference": "77.63 %, ~20 min", "resnet18": "~95 %, ~30 min"}


def read_reports(directory: str | Path) -> list[dict[str, Any]]:
    """Read the reports of all seeds of a recipe.

    Args:
        directory: Folder with one ``seed-N.json`` per run, or with the runs themselves, ``seed-N/report.json``.

    Returns:
        The reports, sorted by seed.

    Raises:
        DataError: If there are none, a seed is there twice, recipe, data, machine or versions differ, or settings of a
            run changed when it was resumed.
    """
    directory = to_path(directory)
    paths = [*directory.glob("seed-*.json"), *directory.glob("seed-*/report.json")]
    reports = sorted((load_report(path) for path in paths), key=lambda report: int(report["seed"]))
    if not reports:
        raise DataError(f"{directory} holds no seed-*.json; run the recipe first")
    if len({report["seed"] for report in reports}) < len(reports):
        raise DataError(f"{directory} holds two reports of one seed; keep one of them")
    shared = [_shared_conditions(report) for report in reports]
    for key, value in shared[0].items():
        if any(other[key] != value for other in shared):
            raise DataError(f"the reports in {directory} differ in {key}; a mean over them means nothing")
    for report in reports:
        if report.get("changed_on_resume"):
            raise DataError(
                f"the run of seed {report['seed']} in {directory} was changed when it was resumed: "
                f"{'; '.join(report['changed_on_resume'])}; train it again"
            )
    return reports


def _shared_conditions(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be equal for a mean over runs to be meaningful."""
    return {
        **{key: report[key] for key in ("recipe", "hardware", "precision", "versions")},
        "data": {key: value for key, value in report["data"].items() if key != "source"},
        "backend": report.get("backend"),
        "selected_by": report["selected_by"]["monitor"],
    }


def summarize_seeds(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compute mean and standard deviation over the runs of one recipe.

    Args:
        reports: Reports from `read_reports`.

    Returns:
        Plain values. Accuracies are dictionaries of ``mean`` and ``sd`` as fractions, ``train_s`` and ``total_s`` (with
        the evaluations) in seconds.

    Raises:
        DataError: If the runs were not evaluated on test images.
    """
    first = reports[0]
    if any(report["metrics"].get("test_accuracy") is None for report in reports):
        raise DataError("the reports have no test accuracy; build_report(test=, evaluation=) writes it into one")
    recipe, metrics = first["recipe"], [report["metrics"] for report in reports]
    with_tta = [scores.get("test_accuracy_tta") for scores in metrics]
    peaks = [report["peak_memory_mb"] for report in reports if report["peak_memory_mb"]]
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
        "test_accuracy_tta": None if None in with_tta else _mean_and_sd(with_tta),
        "train_s": _mean_and_sd([report["durations"]["train_s"] for report in reports]),
        "total_s": _mean_and_sd([sum(report["durations"].values()) for report in reports]),
        "peak_memory_mb": max(peaks, default=None),
        "data": first["data"]["name"],
        "hardware": first["hardware"],
        "precision": first["precision"],
        "backend": first.get("backend"),
        "selected_by": first["selected_by"]["monitor"],
        "torch": first["versions"]["torch"],
    }


def comparison_table(columns: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Format a Markdown table with one row per recipe and one column per kind of machine.

    Args:
        columns: Results from `summarize_seeds` by heading, all on the same data. A column without results is left out.

    Returns:
        The table, and below it the conditions of each result.

    Raises:
        DataError: If a recipe has two results in a column, or the results are of different data.
        SettingError: If a recipe is not one of the library's.
    """
    summaries = [row for column in columns.values() for row in column]
    columns = {heading: column for heading, column in columns.items() if column}
    by_cell = {(row["recipe"], heading): row for heading, column in columns.items() for row in column}
    if len(by_cell) < len(summaries):
        raise DataError("A column has two results of a recipe. Pass one result per recipe and column")
    if len({row["data"] for row in summaries}) > 1:
        raise DataError("results of different data cannot be compared; make a table of each")
    lines = [
        f"| recipe | network | parameters | FLOPs | published | {' | '.join(columns)} |",
        f"| --- | --- | --- | --- | --- |{' --- |' * len(columns)}",
    ]
    for name in dict.fromkeys(row["recipe"] for row in summaries):
        rows = [by_cell.get((name, heading)) for heading in columns]
        results = " | ".join("" if row is None else format_result(row) for row in rows)
        lines.append(f"| `{name}` | {_recipe_cells(name, [row for row in rows if row])} | {results} |")
    lines += [
        "",
        "Test accuracy: mean ± standard deviation over n seeds. Time: training without evaluation; compare times only "
        "on the same hardware. TTA: test-time augmentation, which averages the logits of flipped and shifted copies. "
        "FLOPs: one forward pass.",
        "",
        *(f"- {_conditions(row)}" for row in summaries),
    ]
    return "\n".join(lines)


def _recipe_cells(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return class, parameters and FLOPs, measured or else of the recipe with ten classes, and the published result.

    The published result is left out beside other data or another number of epochs.
    """
    recipe, row = get_recipe(name), rows[0] if rows else {}
    with torch.device("meta"):
        model = build_model(recipe.model, recipe.model_arguments)
    num_parameters = row.get("num_parameters") or sum(parameter.numel() for parameter in model.parameters())
    flops = row.get("flops_per_image") or count_flops(model)
    alike = all(row["data"].startswith("CIFAR-10") and row["epochs"] == recipe.max_epochs for row in rows)
    published = _PUBLISHED.get(name, "") if alike else ""
    return f"{recipe.model} | {num_parameters:,} | {flops / 1e6:,.0f}M | {published}"


def format_result(row: Mapping[str, Any]) -> str:
    """Format accuracy, number of runs and training time of a recipe in one line.

    Args:
        row: Result from `summarize_seeds`.
    """
    with_tta = row["test_accuracy_tta"]
    suffix = "" if with_tta is None else f" ({_percent(with_tta)} with TTA, {row['tta']})"
    return f"{_percent(row['test_accuracy'])}{suffix}, n = {row['n']}, {_duration(row['train_s'])}"


def _conditions(row: Mapping[str, Any]) -> str:
    chosen = "last epoch" if row["selected_by"] == "final" else f"best {row['selected_by']}"
    backend = "" if row["backend"] is None else f"{row['backend']}, "
    return (
        f"`{row['recipe']}`: {row['epochs']} epochs, {chosen}; {row['hardware']}, {row['precision']}, {backend}"
        f"torch {row['torch']}; {row['data']}"
    )


def _mean_and_sd(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}


def _percent(share: Mapping[str, Any]) -> str:
    return _spread(share, 100, 2) + " %"


def _duration(seconds: Mapping[str, Any]) -> str:
    """Format a duration in minutes, or in seconds below one minute."""
    return _spread(seconds, 1, 2) + " s" if seconds["mean"] < 60 else _spread(seconds, 1 / 60, 1) + " min"


def _spread(value: Mapping[str, Any], scale: float, digits: int) -> str:
    sd = "" if value["sd"] is None else f" ± {scale * value['sd']:.{digits}f}"
    return f"{scale * value['mean']:.{digits}f}{sd}"
